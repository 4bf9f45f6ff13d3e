//! The installed service, as the service manager knows it with all its drop-ins.

use std::path::{Path, PathBuf};

use super::{MAX_VERSION_BYTES, VERSION_LIMIT};
use crate::command::{Command, Limit};
use crate::config::Environment;
use crate::sandbox::{HOMES, UNIT};

/// Where credentials of a running service lie; only root and its user may look.
const CREDENTIALS_FOLDER: &str = "/run/credentials";
/// What is asked of the service manager.
const PROPERTIES: &str = "LoadState,User,Environment,EnvironmentFiles,AmbientCapabilities,ProtectSystem,ProtectHome,PrivateTmp,\
                          ReadWritePaths,ReadOnlyPaths,InaccessiblePaths,BindPaths,BindReadOnlyPaths,TemporaryFileSystem,\
                          StateDirectory,CacheDirectory,LogsDirectory,RuntimeDirectory";

/// What the service is started with.
#[derive(Debug, Default)]
pub struct Unit {
    /// Its user, by name; root where the unit names none.
    pub user: String,
    /// `Environment=`, in order.
    pub environment: Vec<(String, String)>,
    /// `EnvironmentFile=`, in order; those that may be missing too.
    pub environment_files: Vec<PathBuf>,
    /// Whether it gets credentials.
    pub has_credentials: bool,
    /// What it names and does not start without, by the option that names it.
    pub needed: Vec<(&'static str, PathBuf)>,
    /// Whether it may use files whatever their owner and mode.
    pub overrides_permissions: bool,
    /// What its sandbox lets it do with files.
    pub sandbox: Sandbox,
}

/// What a sandbox makes of a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It can be written, as far as its owner and mode let the user.
    Open,
    /// It can be read.
    ReadOnly,
    /// The service sees something else there, or nothing.
    Hidden,
}

/// File system options of a unit (systemd.exec(5)).
#[derive(Debug, Default)]
pub struct Sandbox {
    /// The option that says so, for people.
    rules: Vec<(PathBuf, Access, String)>,
}

impl Unit {
    /// The installed service; none where it is not installed, or no service manager runs.
    pub fn installed(environment: &Environment) -> Option<Unit> {
        let answer = |args: &[&str]| {
            let command = Command::new("systemctl", &environment.for_children()).args(args);
            let captured = command.capture(&Limit::after(VERSION_LIMIT), MAX_VERSION_BYTES).ok()?;
            captured.status.success().then(|| String::from_utf8_lossy(&captured.stdout).into_owned())
        };
        let shown = answer(&["show", UNIT, "--property", PROPERTIES])?;
        let unit = Unit::of_properties(&shown)?;
        // The values of credentials are no properties that every version prints.
        let files = answer(&["cat", UNIT]).unwrap_or_default();
        let credentials = credential_files(&files).into_iter().map(|path| ("LoadCredential", path));
        let needed = unit.needed.into_iter().chain(credentials).collect();
        Some(Unit { has_credentials: names_credentials(&files), needed, ..unit })
    }

    /// From what `systemctl show` prints; none where there is no such unit.
    fn of_properties(shown: &str) -> Option<Unit> {
        let values = |name: &'static str| {
            shown
                .lines()
                .filter_map(move |line| line.split_once('='))
                .filter(move |line| line.0 == name)
                .map(|line| line.1)
        };
        let value = |name| values(name).next().unwrap_or_default();
        if value("LoadState") != "loaded" {
            return None;
        }
        let files = values("EnvironmentFiles").map(|line| line.split_once(" (").map_or(line, |(path, _)| path));
        Some(Unit {
            user: Some(value("User")).filter(|user| !user.is_empty()).unwrap_or("root").to_owned(),
            environment: words(value("Environment"))
                .iter()
                .filter_map(|word| word.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            environment_files: files.filter(|path| path.starts_with('/')).map(PathBuf::from).collect(),
            has_credentials: false,
            needed: needed_folders(value("ReadWritePaths")),
            overrides_permissions: ["", "root"].contains(&value("User"))
                || value("AmbientCapabilities").split_whitespace().any(|one| one == "cap_dac_override"),
            sandbox: Sandbox::of_properties(&value),
        })
    }

    /// The folder of its credentials, while it runs and we may look.
    pub fn credentials_folder() -> Option<PathBuf> {
        let folder = Path::new(CREDENTIALS_FOLDER).join(UNIT);
        let has_some = std::fs::read_dir(&folder).is_ok_and(|mut entries| entries.next().is_some());
        has_some.then_some(folder)
    }
}

impl Sandbox {
    fn of_properties<'a>(value: &dyn Fn(&'static str) -> &'a str) -> Sandbox {
        let mut rules = Vec::new();
        let mut rule = |path: &str, access, option: String| rules.push((PathBuf::from(path), access, option));
        let system = value("ProtectSystem");
        let read_only: &[&str] = match system {
            "strict" => &["/"],
            "full" => &["/usr", "/boot", "/efi", "/etc"],
            "yes" => &["/usr", "/boot", "/efi"],
            _ => &[],
        };
        read_only.iter().for_each(|path| rule(path, Access::ReadOnly, format!("ProtectSystem={system}")));
        let homes = value("ProtectHome");
        let access = match homes {
            "yes" | "tmpfs" => Access::Hidden,
            "read-only" => Access::ReadOnly,
            // Not `strict`: homes are left to ProtectHome=.
            _ => Access::Open,
        };
        HOMES.iter().for_each(|path| rule(path, access, format!("ProtectHome={homes}")));
        if !["", "no"].contains(&value("PrivateTmp")) {
            ["/tmp", "/var/tmp"].iter().for_each(|path| rule(path, Access::Hidden, "PrivateTmp=yes".to_owned()));
        }
        // Of two that name the same folder the stricter one counts, in whatever order they stand in the unit (tried with 252);
        // these here least of all.
        let folders = [
            ("StateDirectory", "/var/lib"),
            ("CacheDirectory", "/var/cache"),
            ("LogsDirectory", "/var/log"),
            ("RuntimeDirectory", "/run"),
        ];
        for (option, above) in folders {
            for name in words(value(option)) {
                let name = name.split(':').next().unwrap_or_default();
                rule(&format!("{above}/{name}"), Access::Open, format!("{option}={name}"));
            }
        }
        for (option, access) in [
            ("TemporaryFileSystem", Access::Hidden),
            ("ReadWritePaths", Access::Open),
            ("BindPaths", Access::Open),
            ("ReadOnlyPaths", Access::ReadOnly),
            ("BindReadOnlyPaths", Access::ReadOnly),
            ("InaccessiblePaths", Access::Hidden),
        ] {
            for word in words(value(option)) {
                let path = word.trim_start_matches(['-', '+']);
                // Of `SOURCE:DESTINATION:OPTIONS`, what the service sees; `TemporaryFileSystem=` has a path first.
                let mut parts = path.split(':');
                let first = parts.next().unwrap_or_default();
                let seen = if option.starts_with("Bind") { parts.next().unwrap_or(first) } else { first };
                rule(seen, access, format!("{option}={seen}"));
            }
        }
        Sandbox { rules }
    }

    /// What the service may do at an absolute path, and the option that makes it so. The most precise rule counts, and of
    /// two about the same folder the later one.
    pub fn access(&self, path: &Path) -> (Access, &str) {
        let about = || self.rules.iter().filter(|(folder, ..)| path.starts_with(folder));
        // Nothing can be opened below what is inaccessible.
        let is_closed = |option: &str| option.starts_with("InaccessiblePaths=") || option == "ProtectHome=yes";
        let closed = about().find(|(_, access, option)| *access == Access::Hidden && is_closed(option));
        let most_precise = || about().max_by_key(|(folder, ..)| folder.components().count());
        closed.or_else(most_precise).map_or((Access::Open, ""), |(_, access, option)| (*access, option))
    }
}

/// Whether the text of a unit and its drop-ins names credentials.
fn names_credentials(files: &str) -> bool {
    files.lines().any(|line| {
        let option = line.split_once('=').map_or("", |(option, _)| option.trim());
        ["LoadCredential", "LoadCredentialEncrypted", "SetCredential", "SetCredentialEncrypted"].contains(&option)
    })
}

/// The folders that are to be writable and have to be there. Those in `/run` are made at the start.
fn needed_folders(list: &str) -> Vec<(&'static str, PathBuf)> {
    let folders = words(list).into_iter().map(|word| word.trim_start_matches('+').to_owned());
    let needed = folders.filter(|path| path.starts_with('/') && !path.starts_with("/run/"));
    needed.map(|path| ("ReadWritePaths", PathBuf::from(path))).collect()
}

/// The files of this host that the text names as credentials. One that begins with no `/` may be missing, and one with a `%`
/// is another path than what stands there (systemd.exec(5)).
fn credential_files(text: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for (option, value) in text.lines().filter_map(|line| line.split_once('=')) {
        match (option.trim(), value.trim()) {
            ("LoadCredential" | "LoadCredentialEncrypted", "") => files.clear(),
            ("LoadCredential" | "LoadCredentialEncrypted", value) => {
                files.extend(value.split_once(':').map(|two| two.1))
            }
            _ => {}
        }
    }
    files.into_iter().filter(|path| path.starts_with('/') && !path.contains('%')).map(PathBuf::from).collect()
}

/// The words of a list; one with blanks in it stands in quotes.
fn words(list: &str) -> Vec<String> {
    let (mut words, mut word, mut is_quoted, mut has_begun) = (Vec::new(), String::new(), false, false);
    let mut characters = list.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => (is_quoted, has_begun) = (!is_quoted, true),
            '\\' => {
                word.extend(characters.next());
                has_begun = true;
            }
            blank if blank.is_whitespace() && !is_quoted => {
                if std::mem::take(&mut has_begun) {
                    words.push(std::mem::take(&mut word));
                }
            }
            other => {
                word.push(other);
                has_begun = true;
            }
        }
    }
    if has_begun {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What systemd 252 says of the unit as it is installed, with a drop-in.
    const SHOWN: &str = "Environment=Shiparr_CONFIG_PATH=/etc/shiparr/projects \"A=two words\" B=\n\
        EnvironmentFiles=/etc/shiparr/shiparr.env (ignore_errors=yes)\nEnvironmentFiles=/etc/more.env (ignore_errors=no)\n\
        AmbientCapabilities=cap_chown cap_dac_override cap_fowner\nUser=shiparr\n\
        ReadWritePaths=/run/shiparr -/srv/stacks \"/var/tmp/must be\"\nReadOnlyPaths=/run /etc/shiparr\nInaccessiblePaths=/srv/stacks/closed\n\
        PrivateTmp=yes\nProtectHome=yes\nProtectSystem=strict\nRuntimeDirectory=shiparr/secrets\nStateDirectory=shiparr\n\
        CacheDirectory=\nLogsDirectory=\nBindPaths=/mnt/big:/opt/big:rbind\nBindReadOnlyPaths=\nTemporaryFileSystem=\n\
        LoadState=loaded\n";

    fn access(shown: &str, path: &str) -> (Access, String) {
        let unit = Unit::of_properties(shown).unwrap();
        let (access, option) = unit.sandbox.access(Path::new(path));
        (access, option.to_owned())
    }

    #[test]
    fn a_unit_that_is_not_there_is_none() {
        assert!(Unit::of_properties("User=\nLoadState=not-found\n").is_none());
        assert!(Unit::of_properties("").is_none());
    }

    #[test]
    fn user_variables_and_files_are_those_of_the_service() {
        let unit = Unit::of_properties(SHOWN).unwrap();
        assert_eq!(unit.user, "shiparr");
        assert!(unit.overrides_permissions);
        assert_eq!(unit.needed, [("ReadWritePaths", PathBuf::from("/var/tmp/must be"))]);
        let expected = [("Shiparr_CONFIG_PATH", "/etc/shiparr/projects"), ("A", "two words"), ("B", "")];
        assert_eq!(unit.environment, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(unit.environment_files, ["/etc/shiparr/shiparr.env", "/etc/more.env"].map(PathBuf::from));
        let of_root = Unit::of_properties("LoadState=loaded\nUser=\nEnvironment=\n").unwrap();
        assert_eq!((of_root.user.as_str(), of_root.overrides_permissions), ("root", true));
        let plain = Unit::of_properties("LoadState=loaded\nUser=ann\nAmbientCapabilities=cap_chown\n").unwrap();
        assert!(!plain.overrides_permissions);
    }

    #[test]
    fn the_most_precise_option_counts() {
        use Access::{Hidden, Open, ReadOnly};
        for (path, expected, option) in [
            ("/srv/other", ReadOnly, "ProtectSystem=strict"),
            ("/srv/stacks/web", Open, "ReadWritePaths=/srv/stacks"),
            ("/srv/stackses", ReadOnly, "ProtectSystem=strict"),
            ("/srv/stacks/closed/web", Hidden, "InaccessiblePaths=/srv/stacks/closed"),
            ("/var/lib/shiparr/deployments/home/web", Open, "StateDirectory=shiparr"),
            ("/run/shiparr/secrets", Open, "RuntimeDirectory=shiparr/secrets"),
            ("/run/other", ReadOnly, "ReadOnlyPaths=/run"),
            ("/home/ann/stacks", Hidden, "ProtectHome=yes"),
            ("/tmp/stacks", Hidden, "PrivateTmp=yes"),
            ("/opt/big/web", Open, "BindPaths=/opt/big"),
        ] {
            assert_eq!(access(SHOWN, path), (expected, option.to_owned()), "{path}");
        }
        let opened = SHOWN.replace("-/srv/stacks", "/home/ann/stacks");
        assert_eq!(access(&opened, "/home/ann/stacks/web").0, Hidden, "ProtectHome=yes closes what lies below");
        let opened = opened.replace("ProtectHome=yes", "ProtectHome=read-only");
        assert_eq!(access(&opened, "/home/ann/stacks/web").0, Open);
        assert_eq!(access(&opened, "/home/ann/other").0, ReadOnly);
        let both = SHOWN.replace("ReadOnlyPaths=/run", "ReadOnlyPaths=/run /srv/stacks /var/lib/shiparr");
        assert_eq!(["/srv/stacks/web", "/var/lib/shiparr/x"].map(|path| access(&both, path).0), [ReadOnly; 2]);
        let bare = "LoadState=loaded\nProtectSystem=no\nProtectHome=no\nPrivateTmp=no\n";
        assert!(["/srv/x", "/home/x", "/tmp/x", "/usr/x"].iter().all(|path| access(bare, path).0 == Open));
        assert_eq!(access(&bare.replace("ProtectSystem=no", "ProtectSystem=full"), "/etc/x").0, ReadOnly);
    }

    #[test]
    fn credentials_are_found_in_units_and_drop_ins() {
        assert!(names_credentials("[Service]\nLoadCredential=age_key:/etc/shiparr/age.key\n"));
        assert!(names_credentials("SetCredentialEncrypted = api_key: \\\n  Whxqht+dQJax1aZeCGLxm\n"));
        let files = "LoadCredential=a:/old\nLoadCredential=\nLoadCredential=b:/root/b c\n#LoadCredential=x:/x\n\
            LoadCredentialEncrypted=d:/etc/d.cred\nLoadCredential=stored\nLoadCredential=e:%d/e\nSetCredential=f:/text\n";
        assert_eq!(credential_files(files), ["/root/b c", "/etc/d.cred"].map(PathBuf::from));
        assert!(!names_credentials("# LoadCredential=age_key:/x\n[Service]\nType=notify\n"));
    }
}
