//! Every example of README.md is run, from its first line to its last, as a new user would.
//!
//! The commands run word for word, as root, in namespaces of their own: `/etc`, `/usr/local/bin`, `/var/lib` and `/run`
//! are copies that go at the end, and the network is empty. Docker, Compose, sops, age, git and curl are the real ones.
//! What stands in for something else:
//!
//! - `github.com` is, by `/etc/hosts`, an nginx on loopback with a certificate of its own authority (which is added to
//!   the system's), in front of a real Git remote that wants the example's token;
//! - the key that `age-keygen` prints takes the place of `age1replace_with_your_public_key`;
//! - `apt-get` and `cargo` do nothing, and the binary under test lies where `cargo build` would put it: `tests/run`
//!   installs and builds with the same packages, and runs `packaging/quickstart`;
//! - `sudo` only runs its arguments.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::{
    Daemon, Entry, GitServer, IMAGE, MINUTE, Repo, SHORT, Stack, Tls, files_below, missing, parts, wait_until,
};

const README: &str = include_str!("../../README.md");
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Set in the process that runs inside the namespaces: the folder that holds everything of the sandbox.
const INSIDE: &str = "SHIPARR_TEST_README_SANDBOX";
const TOKEN: &str = "github_pat_replace_me";
const PUBLIC_KEY: &str = "age1replace_with_your_public_key";

/// A fenced block.
struct Example {
    language: &'static str,
    text: &'static str,
}

/// In the order of the README.
fn examples() -> Vec<Example> {
    let mut examples = Vec::new();
    let mut rest = README;
    while let Some((_, after)) = rest.split_once("\n```") {
        let (language, after) = after.split_once('\n').expect("a block has a first line");
        let (text, after) = after.split_once("\n```\n").expect("a block is closed");
        examples.push(Example { language, text });
        rest = after;
    }
    examples
}

#[test]
fn every_example_runs() {
    if missing(&[parts::ROOT, parts::NAMESPACES, parts::DOCKER, parts::SOPS, parts::GIT, parts::TLS]) {
        return;
    }
    if let Some(folder) = std::env::var_os(INSIDE) {
        let mut reader = Reader::new(Path::new(&folder));
        for example in &examples() {
            reader.follow(example);
        }
        assert_eq!(reader.deployed_twice_and_listed, [true, true], "the README shows less than it did");
        return;
    }
    let folder = TempDir::with_prefix("shiparr-test-readme-").expect("make a folder");
    let program = std::env::current_exe().expect("a test has a program");
    let output = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-euc", MOUNTS, "bash"])
        .arg(folder.path())
        .arg(program)
        .args(["--exact", "readme::every_example_runs", "--nocapture"])
        .env(INSIDE, folder.path())
        .output()
        .expect("start unshare");
    // Through the harness, which shows it where the test fails.
    println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the examples do not run: {}", output.status);
}

/// Called with the sandbox's folder and the program to run once all is in place.
const MOUNTS: &str = r#"
folder=$1
shift
mount -t tmpfs -o mode=0755 tmpfs "$folder"
for covered in /etc /usr/local/bin /var/lib; do
    name=${covered//\//-}
    mkdir "$folder/upper$name" "$folder/work$name"
    mount -t overlay -o "lowerdir=$covered,upperdir=$folder/upper$name,workdir=$folder/work$name" overlay "$covered"
done
socket=$(readlink -f /var/run/docker.sock)
touch "$folder/docker.sock"
mount --bind "$socket" "$folder/docker.sock"
mount -t tmpfs -o mode=0755 tmpfs /run
touch /run/docker.sock
mount --bind "$folder/docker.sock" /run/docker.sock
rm -rf /etc/shiparr /var/lib/shiparr
ip link set lo up
printf '127.0.0.1 localhost github.com\n' >/etc/hosts
exec "$@"
"#;

/// Somebody who follows the README.
struct Reader {
    folder: PathBuf,
    /// What `age-keygen` printed.
    public_key: String,
    /// The example that starts the daemon, once it was read.
    run_line: Option<&'static str>,
    running: Option<Child>,
    /// `shiparr deploy` and the API were both seen to deploy.
    deployed_twice_and_listed: [bool; 2],
    remote: Repo,
    stack: Stack,
    _server: GitServer,
    _tls: Tls,
}

impl Reader {
    fn new(folder: &Path) -> Reader {
        // Process ids are not unique in here, the folder's name is.
        let name = folder.file_name().expect("it has a name").to_string_lossy().to_lowercase();
        let stack = Stack { name };
        let remote = Repo::named("homelab");
        let compose = format!(
            "name: {}\nservices:\n  web:\n    image: {IMAGE}\n    command: [\"sleep\", \"86400\"]\n    stop_signal: SIGKILL\n    network_mode: none\n    \
             environment:\n      DB_PASSWORD: ${{DB_PASSWORD}}\n",
            stack.name
        );
        remote.commit(&[("media/compose.yaml", &compose)]);
        remote.git(&["branch", "--set-upstream-to=origin/main"]);
        let served = folder.join("served/you");
        fs::create_dir_all(&served).expect("make a folder");
        symlink(remote.bare(), served.join("homelab.git")).expect("link the remote");
        let server = GitServer::start(&folder.join("served"));
        server.ask_for("oauth2", TOKEN);
        let tls = Tls::of_name("github.com", 443, server.port());
        let authorities = Path::new("/etc/ssl/certs/ca-certificates.crt");
        let known = fs::read_to_string(authorities).expect("the system has authorities");
        let own = fs::read_to_string(tls.ca_file()).expect("the authority has a certificate");
        fs::write(authorities, known + &own).expect("add the authority");

        let reader = Reader {
            folder: folder.to_owned(),
            public_key: String::new(),
            run_line: None,
            running: None,
            deployed_twice_and_listed: [false, false],
            remote,
            stack,
            _server: server,
            _tls: tls,
        };
        reader.lay_out();
        reader
    }

    /// A clone of this repository in which `cargo build` was called, and the stand-ins.
    fn lay_out(&self) {
        fs::create_dir_all(self.clone_folder().join("target/release")).expect("make a folder");
        symlink(env!("CARGO_BIN_EXE_shiparr"), self.clone_folder().join("target/release/shiparr")).expect("link");
        symlink(Path::new(ROOT).join("config"), self.clone_folder().join("config")).expect("link");
        fs::create_dir_all(self.folder.join("home")).expect("make a folder");
        fs::create_dir_all(self.folder.join("stand-ins")).expect("make a folder");
        for (name, line) in [("sudo", "exec \"$@\""), ("apt-get", ":"), ("cargo", ":")] {
            let program = self.folder.join("stand-ins").join(name);
            fs::write(&program, format!("#!/bin/sh\n{line}\n")).expect("write a stand-in");
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("make it a program");
        }
    }

    fn clone_folder(&self) -> PathBuf {
        self.folder.join("shiparr")
    }

    /// Does what the README says; an example that is not listed here is a failure.
    fn follow(&mut self, example: &Example) {
        let (language, text) = (example.language, example.text);
        println!("---- {language}\n{text}");
        match (language, text.lines().next().expect("an example is not empty")) {
            ("sh", "packaging/quickstart" | "tests/run") => assert_is_program(text),
            ("sh", first) if first.starts_with("sudo apt-get") => {
                assert_installed_by_scripts(first);
                self.run(text);
                assert!(Path::new("/usr/local/bin/shiparr").is_file());
            }
            ("sh", "sudo mkdir -p /etc/shiparr/projects /var/lib/shiparr") => {
                self.run(text);
            }
            ("sh", "sudo age-keygen -o /etc/shiparr/age.key") => {
                let told = self.run(text);
                let key = told.lines().find_map(|line| line.strip_prefix("Public key: "));
                self.public_key = key.expect("it prints the public key").to_owned();
            }
            ("sh", "sudo shiparr check") => assert!(self.run(text).ends_with("All is well.\n")),
            ("sh", first) if first.starts_with("sudo sh -c") && text.contains("shiparr run") => {
                self.run_line = Some(text);
                self.start();
            }
            ("dotenv", _) => self.change_settings(text),
            ("sh", "cd media") => self.publish(text),
            ("yaml", "project: homelab") if !text.contains("global_notifications") => {
                fs::write("/etc/shiparr/projects/homelab.yaml", text).expect("write the project file");
            }
            ("yaml", "project: homelab") => self.check_alone(text),
            ("sh", "sudo shiparr status") => {
                self.wait_for_deployment();
                let told = self.run(text);
                assert!(told.contains("homelab/media") && told.contains("success"), "{told}");
            }
            ("sh", "sudo shiparr deploy media --follow") => {
                self.run(text);
                self.deployed_twice_and_listed[0] = true;
            }
            ("sh", "curl -s http://127.0.0.1:8080/api/health") => {
                let told = self.run(text);
                for expected in ["\"status\":\"ok\"", "\"name\":\"media\"", "\"deployment_id\":3", "checked out"] {
                    assert!(told.contains(expected), "no {expected}");
                }
                self.deployed_twice_and_listed[1] = true;
            }
            ("sh", first) if first.starts_with("curl -s -u ") => {
                assert!(self.run(text).starts_with("[{"));
                let without = self.run(&text.replace("-u admin:a-long-password-of-your-own", ""));
                assert!(without.contains("\"error\":\"unauthorized\""), "{without}");
            }
            _ => panic!("this test does not know the example, so nobody runs it: tell it how"),
        }
    }

    /// Runs lines in a clone of Shiparr's repository; answers what they printed.
    #[track_caller]
    fn run(&self, lines: &str) -> String {
        self.run_in(&self.clone_folder(), lines)
    }

    #[track_caller]
    fn run_in(&self, folder: &Path, lines: &str) -> String {
        let Output { status, stdout, stderr } = self.shell(lines).current_dir(folder).output().expect("start bash");
        let told = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        println!("{told}");
        assert!(status.success(), "{status}");
        told
    }

    /// A login shell's environment, no more.
    fn shell(&self, lines: &str) -> Command {
        let mut command = Command::new("bash");
        command
            .args(["-euo", "pipefail", "-c", lines])
            .current_dir(self.clone_folder())
            .stdin(Stdio::null())
            .env_clear();
        let system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        command.env("PATH", format!("{}:{system}", self.folder.join("stand-ins").display()));
        command.env("HOME", self.folder.join("home")).env("LC_ALL", "C.UTF-8");
        for name in ["LLVM_PROFILE_FILE", "CARGO_LLVM_COV"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command
    }

    /// Puts lines into the environment file, and starts the daemon anew where it runs: it reads them then.
    fn change_settings(&mut self, lines: &str) {
        let file = Path::new("/etc/shiparr/shiparr.env");
        let before = fs::read_to_string(file).expect("the example file was put there");
        fs::write(file, format!("{before}\n{lines}\n")).expect("write the settings");
        self.run("shiparr check");
        if self.running.is_some() {
            self.stop();
            self.start();
        }
    }

    fn start(&mut self) {
        let line = self.run_line.expect("the README said how to start it");
        self.running = Some(self.shell(line).process_group(0).spawn().expect("start the daemon"));
        wait_until(SHORT, "the daemon to answer", || {
            let asked = self.shell("curl -sf http://127.0.0.1:8080/api/health").output().expect("start curl");
            asked.status.success().then_some(())
        });
    }

    fn stop(&mut self) {
        let mut daemon = self.running.take().expect("it runs");
        kill_process(Pid::from_child(&daemon), Signal::TERM).expect("ask it to stop");
        let status = wait_until(MINUTE, "the daemon to stop", || daemon.try_wait().expect("ask for its end"));
        assert!(status.success(), "{status}");
    }

    /// Encrypts and pushes, in a clone of the stack's repository.
    fn publish(&self, lines: &str) {
        assert!(lines.contains(PUBLIC_KEY), "the example has a place for the public key");
        let identity = "export GIT_AUTHOR_NAME=You GIT_AUTHOR_EMAIL=you@example.com GIT_COMMITTER_NAME=You GIT_COMMITTER_EMAIL=you@example.com\n";
        self.run_in(&self.remote.clone_folder(), &format!("{identity}{}", lines.replace(PUBLIC_KEY, &self.public_key)));
        let encrypted = fs::read_to_string(self.remote.clone_folder().join("media/.env.enc")).expect("it is there");
        assert!(encrypted.contains("ENC[AES256_GCM,") && !encrypted.contains("a-long-random-password"));
    }

    fn wait_for_deployment(&self) {
        wait_until(MINUTE, "the stack to run with the decrypted password", || {
            let container = self.stack.container("web")?;
            (container.variable("DB_PASSWORD")? == "a-long-random-password").then_some(())
        });
        let route = "curl -s http://127.0.0.1:8080/api/projects/homelab/repositories/media";
        wait_until(MINUTE, "the deployment to be a success", || {
            let told = self.shell(route).output().expect("start curl").stdout;
            String::from_utf8_lossy(&told).contains("\"status\":\"success\"").then_some(())
        });
    }

    /// Loads a project file that stands for itself, with the names that it uses.
    fn check_alone(&self, text: &str) {
        let folder = self.folder.join("alone");
        fs::create_dir_all(&folder).expect("make a folder");
        fs::write(folder.join("homelab.yaml"), text).expect("write the project file");
        let told = self.run(&format!("GITHUB_TOKEN=one FORGEJO_TOKEN=two shiparr check {}", folder.display()));
        assert!(told.contains("1 projects with 2 repositories"), "{told}");
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Whatever it started ends with the namespace of processes.
        if let Some(mut daemon) = self.running.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

fn assert_is_program(path: &str) {
    let mode = fs::metadata(Path::new(ROOT).join(path)).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o111, 0o111, "{path} cannot be run");
}

/// The packages that the README names are those that `tests/run` and the quick start install.
fn assert_installed_by_scripts(line: &str) {
    let scripts = fs::read_to_string(Path::new(ROOT).join("packaging/dependencies.sh")).expect("it is there");
    let start = scripts.find("install_build_libraries() {").expect("it installs build libraries");
    let (body, _) = scripts[start..].split_once("\n}").expect("a function ends");
    let words = |text: &str| -> BTreeSet<String> { text.split([' ', '(', ')', '\n']).map(str::to_owned).collect() };
    let installed = words(body);
    let packages = line.strip_prefix("sudo apt-get install -y ").expect("it installs packages");
    for package in packages.split(' ') {
        assert!(installed.contains(package), "packaging/dependencies.sh does not install {package}");
    }
}

// ---- What stands in tables and text ----

/// The first column of the table whose first column has this title.
fn first_column(title: &str) -> Vec<&'static str> {
    let mut lines = README.lines().skip_while(|line| !line.starts_with(&format!("| {title} |")));
    assert!(lines.next().is_some(), "no table of `{title}`");
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.split('|').nth(1).expect("a row has columns").trim()).collect()
}

/// What stands between backticks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn help(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_shiparr")).args(args).arg("--help").output().expect("start shiparr");
    assert!(output.status.success(), "{args:?}");
    String::from_utf8(output.stdout).expect("help is text")
}

#[test]
fn the_table_of_verbs_is_that_of_the_program() {
    let all = help(&[]);
    let commands = all.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next()).expect("it lists verbs");
    let known: BTreeSet<&str> = commands.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let known: BTreeSet<&str> = known.into_iter().filter(|verb| *verb != "help").collect();
    let named = first_column("verb").into_iter().map(|cell| code(cell).next().expect("a verb"));
    let named: BTreeSet<&str> = named.map(|call| call.split(' ').nth(1).expect("a verb")).collect();
    assert_eq!(named, known);

    let start = README.find("\n## Command line\n").expect("the section");
    let section = README[start + 1..].split("\n## ").next().expect("the section");
    for verb in known {
        for word in help(&[verb]).split_whitespace().filter(|word| word.starts_with("--") && *word != "--help") {
            assert!(section.contains(word), "`shiparr {verb}` has {word}, and the README does not");
        }
    }
}

#[test]
fn verbs_that_need_the_control_socket_say_so() {
    for verb in ["prune", "notify-test"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shiparr"));
        let output = command.args([verb, "--url", "http://127.0.0.1:1"]).output().expect("start shiparr");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains("over the control socket only"), "{told}");
    }
}

#[test]
fn every_route_of_the_table_is_served() {
    let stack = Stack::new();
    let entry = Entry::new("web", "/nowhere/web.git", &stack).rarely_checked();
    let daemon = Daemon::with(&[entry]);
    let deployment = daemon.deploy("web");
    daemon.ended(deployment);
    let mut served = 0;
    for cell in first_column("method and route") {
        let (method, route) = cell.split_once(' ').expect("a method and a route");
        let route = code(route).next().expect("a route").replace("{id}", "1");
        let route = if route.contains("/repositories") { route.replace("{name}", "home") } else { route };
        let answer = daemon.request(method, &route.replace("{name}", "home"), &[], b"");
        let text = answer.text();
        assert_ne!(answer.status, 405, "{method} {route}");
        assert!(!text.contains("there is no such route"), "{method} {route}: {text}");
        served += 1;
    }
    assert!(served >= 14, "the table is shorter than it was");
}

#[test]
fn the_errors_that_are_quoted_are_the_programs_own() {
    let mut source = String::new();
    for path in files_below(&Path::new(ROOT).join("src")) {
        source.push_str(&fs::read_to_string(path).expect("sources are text"));
    }
    // A string that goes on in the next line, and what is put in by the program.
    let source: String = source.split("\\\n").map(str::trim_start).collect();
    // The status code is put in, too.
    let quotes = first_column("it says").into_iter().flat_map(code).map(|quote| quote.replace("404", "…"));
    for quote in quotes {
        for fragment in quote.split('…') {
            let words = fragment.trim().trim_start_matches("NAME ").trim_end_matches(':');
            assert!(source.contains(words), "the program says `{words}` nowhere");
        }
    }
}

#[test]
fn links_and_paths_lead_somewhere() {
    for target in README.split("](").skip(1).map(|rest| rest.split(')').next().expect("a link ends")) {
        match target.strip_prefix('#') {
            Some(anchor) => assert!(anchors().contains(anchor), "no heading for #{anchor}"),
            None => assert!(target.starts_with("https://") || Path::new(ROOT).join(target).exists(), "{target}"),
        }
    }
    let ours = ["config/", "packaging/", "tests/"];
    let words = code(README).flat_map(str::split_whitespace);
    let paths: Vec<&str> = words.filter(|word| ours.iter().any(|folder| word.starts_with(folder))).collect();
    assert!(!paths.is_empty());
    for path in paths {
        assert!(Path::new(ROOT).join(path).exists(), "{path}");
    }
}

/// As GitHub makes them of headings.
fn anchors() -> BTreeSet<String> {
    let headings = README.lines().filter_map(|line| line.strip_prefix("## "));
    let kept = |letter: char| letter.is_alphanumeric() || letter == '-';
    headings
        .map(|text| text.to_lowercase().replace(' ', "-").chars().filter(|letter| kept(*letter)).collect())
        .collect()
}
