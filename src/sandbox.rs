//! What the units let the daemon write, and the drop-in that opens more to it.
//!
//! `ProtectSystem=strict` makes everything read-only but the folders that the unit names (systemd.exec(5)).

use std::path::{Path, PathBuf};

/// The unit whose sandbox this is.
pub const UNIT: &str = "shiparr.service";
/// Folders that `ProtectHome=` is about.
pub const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];

/// The lines of a drop-in that makes these folders writable.
pub fn drop_in<'a>(folders: impl IntoIterator<Item = &'a Path>) -> Vec<String> {
    let mut lines = vec!["[Service]".to_owned()];
    for folder in folders {
        let line = "ProtectHome=read-only";
        if is_in_a_home(folder) && !lines.iter().any(|known| known == line) {
            lines.push(line.to_owned());
        }
        lines.push(format!("ReadWritePaths={}", as_word(folder)));
    }
    lines
}

/// The folder to open for a checkout: the one that it lies in, where that is a folder for checkouts by all appearance, so
/// that the next one beside it needs no change; else the checkout itself.
pub fn folder_to_open(local_path: &Path) -> PathBuf {
    // `/srv/stacks`, but neither `/srv` nor the home of somebody.
    let least = if is_in_a_home(local_path) { 3 } else { 2 };
    match local_path.parent() {
        Some(parent) if parent.components().count() > least => parent.to_owned(),
        _ => local_path.to_owned(),
    }
}

/// What to do where a checkout cannot be written because its file system is read-only: part of a line.
pub fn way_out_of_read_only(local_path: &Path) -> String {
    let lines = drop_in([folder_to_open(local_path).as_path()]);
    format!(
        "the file system is read-only here: mount it writable, or, where the sandbox of {UNIT} makes it so, run \
         `systemctl edit {UNIT}`, write there `{}`, and restart it (`shiparr check` has it line by line)",
        lines.join("` `")
    )
}

/// A path as one word of a unit: in quotes where it would be several, and without a specifier (systemd.syntax(7),
/// systemd.unit(5)).
fn as_word(path: &Path) -> String {
    let text = path.display().to_string().replace('%', "%%");
    if !text.contains(|character: char| character.is_whitespace() || matches!(character, '"' | '\'' | '\\')) {
        return text;
    }
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Whether `ProtectHome=` is about this path.
pub fn is_in_a_home(path: &Path) -> bool {
    HOMES.iter().any(|home| path.starts_with(home))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_for_checkouts_is_opened_and_no_larger_one() {
        let opened = |path: &str| folder_to_open(Path::new(path)).display().to_string();
        assert_eq!(opened("/srv/stacks/media"), "/srv/stacks");
        assert_eq!(opened("/srv/stacks"), "/srv/stacks");
        assert_eq!(opened("/stacks"), "/stacks");
        assert_eq!(opened("/home/ann/stacks"), "/home/ann/stacks");
        assert_eq!(opened("/home/ann/stacks/media"), "/home/ann/stacks");
        assert_eq!(opened("/root/media"), "/root/media");
    }

    #[test]
    fn a_drop_in_opens_homes_only_where_it_must() {
        assert_eq!(drop_in([Path::new("/srv/stacks")]), ["[Service]", "ReadWritePaths=/srv/stacks"]);
        let homes = drop_in([Path::new("/home/ann/stacks"), Path::new("/home/bob/stacks")]);
        assert_eq!(
            homes,
            [
                "[Service]",
                "ProtectHome=read-only",
                "ReadWritePaths=/home/ann/stacks",
                "ReadWritePaths=/home/bob/stacks"
            ]
        );
        let odd = [r"/srv/my stacks", "/srv/100%", r#"/srv/a"b\c"#].map(Path::new);
        assert_eq!(
            drop_in(odd)[1..],
            [r#"ReadWritePaths="/srv/my stacks""#, "ReadWritePaths=/srv/100%%", r#"ReadWritePaths="/srv/a\"b\\c""#]
        );
        let line = way_out_of_read_only(Path::new("/srv/stacks/media"));
        assert!(line.contains("`[Service]` `ReadWritePaths=/srv/stacks`") && !line.contains('\n'), "{line}");
    }
}
