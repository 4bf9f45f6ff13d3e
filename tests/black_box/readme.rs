//! Every example of README.md is run, from its first line to its last, as a new user would.
//!
//! The commands run word for word, as root, in namespaces of their own: `/etc`, `/srv`, `/usr/local/bin`, `/var/lib` and
//! `/run` are copies that go at the end, and the network is empty. Docker, Compose, sops, age, git and curl are the real ones.
//! What stands in for something else:
//!
//! - `github.com` is, by `/etc/hosts`, an nginx on loopback with a certificate of its own authority (which is added to
//!   the system's), in front of a real Git remote that wants the example's token;
//! - the key that `age-keygen` prints takes the place of `age1replace_with_your_public_key`, and an earlier commit that
//!   of `abc1234`;
//! - the existing stack `notes` has a name that no other test has, and mounts nothing of `/srv`, which Docker would look
//!   for outside of the namespaces;
//! - `apt-get` and `cargo` do nothing, and the binary under test lies where `cargo build` would put it: `tests/run`
//!   installs and builds with the same packages, and runs `packaging/quickstart`;
//! - `sudo` only runs its arguments.
//!
//! What needs systemd or changes packages is run on a whole host instead: [`RUN_ELSEWHERE`] names by which test.

mod man_pages;
mod tables;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;

use crate::support::{
    GitServer, IMAGE, Json, MINUTE, Repo, SHORT, Stack, Tls, files_below, missing, parts, wait_until,
};
use crate::units;

const README: &str = include_str!("../../README.md");
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Set in the process that runs inside the namespaces: the folder that holds everything of the sandbox.
const INSIDE: &str = "SHIPARR_TEST_README_SANDBOX";
const TOKEN: &str = "github_pat_replace_me";
const PUBLIC_KEY: &str = "age1replace_with_your_public_key";
const EARLIER_COMMIT: &str = "abc1234";
const TLS_KEY: &str = "a key of the proxy\n";

/// First lines of blocks that need a whole host, each with the test that runs the block there. It takes the text from
/// README.md, by that line, and fails where there is none.
const RUN_ELSEWHERE: [(&str, &str); 3] = [
    ("sudo apt install ./target/packages/shiparr_*_\"$(dpkg --print-architecture)\".deb", "tests/systemd/readme.py"),
    ("# /etc/shiparr/projects/first.yaml", "tests/systemd/readme.py"),
    ("sudo shiparr check\nsudo systemctl enable --now shiparr.socket shiparr.service", "tests/systemd/readme.py"),
];

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
for covered in /etc /srv /usr/local/bin /var/lib; do
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
rm -rf /etc/shiparr /var/lib/shiparr /srv/stacks
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
    /// The stack that runs already.
    notes: Stack,
    _server: GitServer,
    _tls: Tls,
}

impl Reader {
    fn new(folder: &Path) -> Reader {
        // Process ids are not unique in here, the folder's name is.
        let name = folder.file_name().expect("it has a name").to_string_lossy().to_lowercase();
        let notes = Stack { name: format!("{name}-notes") };
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
            notes,
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
        // What its reader has at home: a way to the private repository, and a key.
        let home = self.folder.join("home");
        fs::write(home.join("tls.key"), TLS_KEY).expect("write a key");
        fs::write(home.join(".gitconfig"), "[credential]\n\thelper = store\n").expect("configure git");
        fs::write(home.join(".git-credentials"), format!("https://oauth2:{TOKEN}@github.com\n")).expect("log in");
    }

    fn clone_folder(&self) -> PathBuf {
        self.folder.join("shiparr")
    }

    /// Does what the README says; an example that is not listed here is a failure.
    fn follow(&mut self, example: &Example) {
        let (language, text) = (example.language, example.text);
        println!("---- {language}\n{text}");
        if let Some((start, test)) = RUN_ELSEWHERE.iter().find(|(start, _)| text.starts_with(start)) {
            assert_runs_there(start, test);
            return;
        }
        match (language, text.lines().next().expect("an example is not empty")) {
            ("sh", "packaging/quickstart" | "packaging/build" | "tests/run") => assert_is_program(text),
            ("sh", first) if first.starts_with("sudo packaging/install ") => assert_has_options(text),
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
            // Docker looks for the folders of a container outside of the namespaces: tests/image/run runs these.
            ("sh", "docker build --tag shiparr .") => assert!(text.contains("/etc/shiparr/age.key"), "{text}"),
            ("sh", first) if first.starts_with("echo \"SHIPARR_DOCKER_GROUP=") => {
                assert!(text.contains("up --detach --wait"), "{text}");
            }
            ("sh", first) if first.ends_with("shiparr deploy host/shiparr --adopt") => {}
            ("ini", first) => units::verify_drop_in(first, text),
            // Run by tests/black_box/proxies.rs, in front of a daemon of its own.
            ("nginx", first) => assert_eq!(first, "location /shiparr/ {"),
            ("sh", "cd media" | "mkdir proxy" | "mkdir notes" | "cp /srv/stacks/notes/.env notes/.env.enc") => {
                self.publish(text);
            }
            ("yaml", first) if first.starts_with("# Dashy: ") || first.starts_with("# Homepage: ") => {
                self.ask_all(text)
            }
            ("yaml", first) if first.starts_with("# Grafana: ") => assert!(text.contains("type: file"), "{text}"),
            ("yaml", "services:") => self.check_compose_file(text),
            ("yaml", "project: homelab") if !Path::new("/etc/shiparr/projects/homelab.yaml").exists() => {
                fs::write("/etc/shiparr/projects/homelab.yaml", text).expect("write the project file");
            }
            ("yaml", "project: homelab" | "project: edge" | "# /etc/shiparr/projects/host.yaml") => {
                self.check_alone(text)
            }
            ("sh", "sudo shiparr history media") => self.go_back(text),
            ("sh", "docker compose ls --all") => {
                self.start_by_hand();
                assert!(self.run(text).contains(&format!("/srv/stacks/{}/compose.yaml", self.notes.name)));
            }
            ("yaml", "# /etc/shiparr/projects/stacks.yaml") => {
                fs::write(STACKS_FILE, self.with_names(text)).expect("write the project file");
            }
            ("sh", "sudo shiparr status") if Path::new(STACKS_FILE).exists() => {
                self.wait_for_notes("waiting");
                assert!(self.run(text).contains("waits for you: `shiparr deploy stacks/"));
            }
            ("sh", first) if first.starts_with("docker ps --filter") => self.take_over(text),
            ("sh", "sudo shiparr compose media ps") => {
                self.run(text);
                wait_until(SHORT, "the stack to run again", || self.stack.container("web")?.is_running().then_some(()));
            }
            ("sh", "sudo shiparr compose media --print") => {
                let told = self.run(text);
                assert!(told.contains("DB_PASSWORD (from .env.enc)") && !told.contains("a-long-random"), "{told}");
            }
            ("sh", "sudo mv /srv/stacks/notes/.env /srv/stacks/notes/.env.before") => self.encrypt_notes(text),
            ("sh", "cd /srv/stacks") => self.leave_working_tree(text),
            ("sh", "cd /srv/stacks/notes") => self.leave_variables(text),
            ("sh", "cd /srv/stacks/proxy") => self.leave_secret_file(text),
            ("sh", first) if first.contains("cd /var/lib/shiparr && rm") => self.leave_data(text),
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
                for expected in ["\"status\":\"ok\"", "\"name\":\"media\"", "\"deployment_id\":", "checked out"] {
                    assert!(told.contains(expected), "no {expected}");
                }
                self.deployed_twice_and_listed[1] = true;
            }
            ("sh", "curl -s -N http://127.0.0.1:8080/api/events") => self.listen(text),
            ("sh", first) if first.contains("/media/logs?follow=1") => self.read_along(text),
            ("sh", first) if first.starts_with("curl -s -H 'X-Api-Key: ") => {
                let told = self.run(text);
                assert!(told.starts_with("[{") && !told.contains("\"error\":\"unauthorized\""), "{told}");
            }
            ("sh", first) if first.starts_with("push=") => {
                let told = self.run(text);
                assert!(told.contains("\"deployment_ids\":[") && told.contains("queued homelab/media"), "{told}");
            }
            ("sh", first) if first.ends_with("/media/health") => {
                assert!(self.run(text).contains("\"status\":\"ok\""));
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

    /// Encrypts and pushes, in a clone of the stacks' repository.
    fn publish(&self, lines: &str) {
        let before = self.remote.tip();
        let identity = "export GIT_AUTHOR_NAME=You GIT_AUTHOR_EMAIL=you@example.com GIT_COMMITTER_NAME=You GIT_COMMITTER_EMAIL=you@example.com\n";
        let lines = self.with_names(lines);
        assert!(self.run_in(&self.remote.clone_folder(), &format!("{identity}{lines}")).contains("main"));
        assert_ne!(self.remote.tip(), before, "nothing was committed");
        for file in files_below(&self.remote.clone_folder())
            .iter()
            .filter(|file| file.ends_with(".env.enc") || file.ends_with("tls.key.enc"))
        {
            let text = fs::read_to_string(file).expect("it is there");
            assert!(text.contains("ENC[AES256_GCM,"), "{} is not encrypted", file.display());
        }
    }

    /// With what this machine has in place of what the reader is to replace.
    fn with_names(&self, lines: &str) -> String {
        lines.replace(PUBLIC_KEY, &self.public_key).replace("notes", &self.notes.name)
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

    /// Listens until a deployment was told from its trigger to its end.
    fn listen(&self, lines: &str) {
        let mut listening = self.shell(lines).stdout(Stdio::piped()).process_group(0).spawn().expect("start bash");
        let told = BufReader::new(listening.stdout.take().expect("it is piped"));
        let mut lines = told.lines().map(|line| line.expect("events are text"));
        assert!(lines.any(|line| line.starts_with("id: ")), "it listens");
        self.run("shiparr deploy media --follow");
        let is_end = |line: &String| line.starts_with("data: {\"id\":") && line.contains("\"status\":\"success\"");
        assert!(lines.any(|line| is_end(&line)), "the end is told");
        kill_process_group(Pid::from_child(&listening), Signal::KILL).expect("end it");
        listening.wait().expect("it ended");
    }

    /// Follows the stack's logs until its container has said something.
    fn read_along(&self, lines: &str) {
        let container = self.stack.container("web").expect("it runs");
        let mut reading = self.shell(lines).stdout(Stdio::piped()).process_group(0).spawn().expect("start bash");
        container.run(&["sh", "-c", "echo said by the container >/proc/1/fd/1"]);
        let mut told = BufReader::new(reading.stdout.take().expect("it is piped")).lines();
        let is_said = |line: std::io::Result<String>| line.expect("text").ends_with("| said by the container");
        assert!(told.any(is_said), "it comes");
        kill_process_group(Pid::from_child(&reading), Signal::KILL).expect("end it");
        reading.wait().expect("it ended");
    }

    /// Loads a project file that stands for itself, with the names that it uses.
    fn check_alone(&self, text: &str) {
        let folder = self.folder.join("alone");
        fs::create_dir_all(&folder).expect("make a folder");
        fs::write(folder.join("homelab.yaml"), text).expect("write the project file");
        let told = self.run(&format!("GITHUB_TOKEN=one FORGEJO_TOKEN=two shiparr check {}", folder.display()));
        let has_one = ["\n  proxy:", "\n  shiparr:"].iter().any(|one| text.contains(one));
        let repositories = if has_one { "1 repositories" } else { "2 repositories" };
        assert!(told.contains(&format!("1 projects with {repositories}")), "{told}");
    }

    /// Asks what a dashboard would ask.
    fn ask_all(&self, text: &str) {
        let urls: Vec<&str> = text.split_whitespace().filter(|word| word.starts_with("http://nas.lan:8080/")).collect();
        assert!(!urls.is_empty(), "{text}");
        for url in urls {
            let here = url.replace("nas.lan", "127.0.0.1");
            self.run(&format!("curl -sf -o /dev/null -H 'X-Api-Key: a-long-key-of-your-own' '{here}'"));
        }
    }

    fn check_compose_file(&self, text: &str) {
        let folder = self.folder.join("compose");
        fs::create_dir_all(&folder).expect("make a folder");
        fs::write(folder.join("compose.yaml"), text).expect("write the compose file");
        self.run_in(&folder, "docker compose config --quiet");
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

// ---- Going back, moving and leaving ----

const STACKS_FILE: &str = "/etc/shiparr/projects/stacks.yaml";

impl Reader {
    /// From a later commit to the one that runs.
    fn go_back(&self, lines: &str) {
        let earlier = self.remote.tip();
        let later = self.remote.commit(&[("media/note", "later")]);
        self.run("shiparr deploy media --follow");
        assert_eq!(self.media()["last_commit_hash"], later);
        self.run(&lines.replace(EARLIER_COMMIT, &earlier[..7]));
        let media = self.media();
        assert_eq!((&media["last_commit_hash"], &media["observed_commit"]), (&earlier.into(), &later.into()));
    }

    fn media(&self) -> Json {
        self.repository("homelab", "media")
    }

    fn repository(&self, project: &str, name: &str) -> Json {
        let route = format!("curl -sf http://127.0.0.1:8080/api/projects/{project}/repositories/{name}");
        let answer = self.shell(&route).output().expect("start curl").stdout;
        serde_json::from_slice(&answer).unwrap_or_default()
    }

    fn notes_folder(&self) -> PathBuf {
        Path::new("/srv/stacks").join(&self.notes.name)
    }

    /// The stack that has run for years, with its data beside it.
    fn start_by_hand(&self) {
        let folder = self.notes_folder();
        fs::create_dir_all(folder.join("data")).expect("make folders");
        let compose = Stack::compose_with("1", "      PASSWORD: ${PASSWORD}\n");
        fs::write(folder.join("compose.yaml"), compose).expect("write the compose file");
        fs::write(folder.join(".env"), "PASSWORD=of-the-notes\n").expect("write its variables");
        fs::write(folder.join("data/precious"), "of years").expect("write its data");
        self.run_in(&folder, "docker compose up -d");
    }

    fn wait_for_notes(&self, status: &str) {
        wait_until(MINUTE, "the repository to have the status", || {
            (self.repository("stacks", &self.notes.name)["status"] == status).then_some(())
        });
    }

    fn notes_container(&self) -> String {
        let container = self.notes.container("web").expect("its container is there");
        assert!(container.is_running() && container.variable("PASSWORD").as_deref() == Some("of-the-notes"));
        assert_eq!(
            fs::read_to_string(self.notes_folder().join("data/precious")).expect("its data is there"),
            "of years"
        );
        container.id().to_owned()
    }

    fn take_over(&self, lines: &str) {
        let container = self.notes_container();
        let told = self.run(&self.with_names(lines));
        assert!(told.contains("no file changed") && told.matches(&container[..12]).count() == 2, "{told}");
        assert_eq!(self.notes_container(), container);
    }

    /// After `env_file` was added to the project file, as the text says.
    fn encrypt_notes(&self, lines: &str) {
        let container = self.notes_container();
        let file = fs::read_to_string(STACKS_FILE).expect("the project file is there");
        let (before, after) = file.split_once("  wiki:\n").expect("it names another stack after this one");
        let file = format!("{before}    env_file: .env.enc\n  wiki:\n{after}");
        fs::write(STACKS_FILE, file).expect("write the project file");
        self.wait_for_notes("waiting");
        let told = self.run(&self.with_names(lines));
        assert!(told.contains("variables: PASSWORD"), "{told}");
        assert_eq!(self.notes_container(), container);
    }

    fn leave_working_tree(&mut self, lines: &str) {
        self.stop();
        let container = self.notes_container();
        let told = self.run(lines);
        assert!(told.contains("On branch main") && !told.contains("modified:"), "{told}");
        assert_eq!(self.notes_container(), container);
    }

    fn leave_variables(&self, lines: &str) {
        let container = self.notes_container();
        self.run(&self.with_names(lines));
        let variables = fs::read_to_string(self.notes_folder().join(".env")).expect("they are decrypted");
        assert_eq!(variables, "PASSWORD=of-the-notes\n");
        assert_eq!(self.notes_container(), container);
    }

    fn leave_secret_file(&self, lines: &str) {
        let folder = Path::new("/srv/stacks/proxy");
        fs::create_dir_all(folder).expect("make a folder");
        let encrypted = self.remote.clone_folder().join("proxy/tls.key.enc");
        fs::copy(encrypted, folder.join("tls.key.enc")).expect("copy the encrypted file");
        symlink("/run/shiparr/secret-files/0123456789abcdef-tls.key", folder.join("tls.key")).expect("link it");
        self.run(lines);
        let decrypted = fs::symlink_metadata(folder.join("tls.key")).expect("it is there");
        assert!(decrypted.is_file());
        assert_eq!(fs::read_to_string(folder.join("tls.key")).expect("it is text"), TLS_KEY);
    }

    fn leave_data(&self, lines: &str) {
        self.run(lines);
        let left = fs::read_dir("/var/lib/shiparr").expect("it is there");
        let left: BTreeSet<String> =
            left.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        assert!(left.iter().all(|name| ["deployments", "saved"].contains(&name.as_str())), "{left:?}");
        assert!(Path::new("/var/lib/shiparr/deployments/homelab/media/media/compose.yaml").exists());
        assert!(!Path::new("/usr/local/bin/shiparr").exists());
        self.notes_container();
    }
}

fn assert_is_program(path: &str) {
    let mode = fs::metadata(Path::new(ROOT).join(path)).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o111, 0o111, "{path} cannot be run");
}

/// What tests/install runs on a host of its own knows these options.
fn assert_has_options(text: &str) {
    assert_is_program("packaging/install");
    let program = fs::read_to_string(Path::new(ROOT).join("packaging/install")).expect("it can be read");
    let known = |option: &str| program.contains(&format!("\n  {option} "));
    let options = text.split_whitespace().filter(|word| word.starts_with("--") && !word.contains("print-architecture"));
    for option in options {
        assert!(known(option), "packaging/install has no {option}");
    }
}

/// The test names the block.
fn assert_runs_there(start: &str, test: &str) {
    let source = fs::read_to_string(Path::new(ROOT).join(test)).expect("the test is there");
    let first = start.lines().next().unwrap_or_default();
    assert!(source.contains(first), "{test} does not run the block that begins with `{first}`");
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
