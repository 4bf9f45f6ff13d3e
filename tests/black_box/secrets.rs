//! Secrets: each format is decrypted, each failure is a clear line, and the plain text is nowhere that it need not be.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use crate::support::*;

const VALUE: &str = "correct-horse-battery";

fn compose_with_secret() -> String {
    Stack::compose_with("1", "      SECRET: \"${SECRET}\"\n")
}

/// A stack with the encrypted file `.env.enc`, deployed.
fn deployed(sops: &Sops, format: Format) -> (Stack, Repo, Daemon) {
    let (stack, repo) = (Stack::new(), Repo::new());
    repo.write("compose.yaml", compose_with_secret());
    repo.commit(&[(".env.enc", &sops.encrypt(format, &[("SECRET", VALUE)]))]);
    let mut daemon = Daemon::new();
    daemon.env("SOPS_AGE_KEY_FILE", sops.key_file());
    daemon.project("home", &[Entry::new("web", &repo.url(), &stack).field("env_file", ".env.enc")]);
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());
    (stack, repo, daemon)
}

/// No plain text in the runtime folder, and no link where the env file's was.
fn assert_no_plain_text(daemon: &Daemon, value: &str) {
    assert_eq!(contains_anywhere(daemon.runtime(), value), Vec::<std::path::PathBuf>::new());
    assert_eq!(contains_anywhere(daemon.folder(), value), Vec::<std::path::PathBuf>::new());
    let link = daemon.tree("home", "web").join(".env");
    assert!(fs::symlink_metadata(&link).is_err(), "{} is still there", link.display());
}

fn is_deployed_from(format: Format) {
    if missing(&[parts::DOCKER, parts::GIT, parts::SOPS]) {
        return;
    }
    let (stack, _repo, daemon) = deployed(&Sops::new(), format);
    assert_eq!(stack.variable("web", "SECRET").as_deref(), Some(VALUE));
    assert_no_plain_text(&daemon, VALUE);
}

#[test]
fn an_encrypted_dotenv_file_is_decrypted() {
    is_deployed_from(Format::Dotenv);
}

#[test]
fn an_encrypted_yaml_file_is_decrypted() {
    is_deployed_from(Format::Yaml);
}

#[test]
fn an_encrypted_json_file_is_decrypted() {
    is_deployed_from(Format::Json);
}

#[test]
fn plain_env_files_of_each_format_are_read_and_later_ones_win() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, repo) = (Stack::new(), Repo::new());
    repo.write("compose.yaml", Stack::compose_with("${A}${B}${C}", "      SECRET: \"${SECRET}\"\n"));
    repo.write("a.env", Format::Dotenv.write(&[("A", "a"), ("SECRET", "from-a")]));
    repo.write("b.yaml", Format::Yaml.write(&[("B", "b"), ("SECRET", "from-b")]));
    repo.write("c.json", Format::Json.write(&[("C", "c"), ("SECRET", "from-c")]));
    repo.commit_all("Plain files");
    let entry = Entry::new("web", &repo.url(), &stack).field("env_file", "[a.env, b.yaml, c.json]");
    let daemon = Daemon::with(&[entry]);
    daemon.wait_for_commit("web", &repo.tip());
    assert_eq!(stack.version().as_deref(), Some("abc"));
    assert_eq!(stack.variable("web", "SECRET").as_deref(), Some("from-c"));
}

#[test]
fn values_arrive_as_they_are_whatever_characters_they_hold() {
    if missing(&[parts::DOCKER, parts::GIT, parts::SOPS]) {
        return;
    }
    let (stack, repo, sops) = (Stack::new(), Repo::new(), Sops::new());
    let value = "pa$word #with ' ${NOTHING} = and  blanks";
    repo.write("compose.yaml", compose_with_secret());
    repo.commit(&[("secrets.enc.yaml", &sops.encrypt(Format::Yaml, &[("SECRET", value)]))]);
    let mut daemon = Daemon::new();
    daemon.env("SOPS_AGE_KEY_FILE", sops.key_file());
    daemon.project("home", &[Entry::new("web", &repo.url(), &stack).field("env_file", "secrets.enc.yaml")]);
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());
    assert_eq!(stack.variable("web", "SECRET").as_deref(), Some(value));
}

#[test]
fn a_services_own_env_file_finds_the_decrypted_one_under_its_name_without_enc() {
    if missing(&[parts::DOCKER, parts::GIT, parts::SOPS]) {
        return;
    }
    let (stack, repo, sops) = (Stack::new(), Repo::new(), Sops::new());
    repo.write("compose.yaml", Stack::compose_with("1", "    env_file: app.env\n"));
    repo.commit(&[("app.env.enc", &sops.encrypt(Format::Dotenv, &[("SECRET", VALUE)]))]);
    let mut daemon = Daemon::new();
    daemon.env("SOPS_AGE_KEY_FILE", sops.key_file());
    daemon.project("home", &[Entry::new("web", &repo.url(), &stack).field("env_file", "app.env.enc")]);
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());
    assert_eq!(stack.variable("web", "SECRET").as_deref(), Some(VALUE));
    assert!(fs::symlink_metadata(daemon.tree("home", "web").join("app.env")).is_err(), "the link went with `up`");
    assert_no_plain_text(&daemon, VALUE);
}

#[test]
fn a_key_from_a_systemd_credential_is_used() {
    if missing(&[parts::DOCKER, parts::GIT, parts::SOPS]) {
        return;
    }
    let (stack, repo, sops) = (Stack::new(), Repo::new(), Sops::new());
    repo.write("compose.yaml", compose_with_secret());
    repo.commit(&[(".env.enc", &sops.encrypt(Format::Dotenv, &[("SECRET", VALUE)]))]);
    let mut daemon = Daemon::new();
    let credentials = daemon.home().join("credentials");
    fs::create_dir(&credentials).expect("make a folder");
    fs::copy(sops.key_file(), credentials.join("age_key")).expect("copy the key");
    daemon.env("CREDENTIALS_DIRECTORY", &credentials);
    daemon.project("home", &[Entry::new("web", &repo.url(), &stack).field("env_file", ".env.enc")]);
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());
    assert_eq!(stack.variable("web", "SECRET").as_deref(), Some(VALUE));
}

/// Expects that the new commit fails with one line that holds `words`, and that the old stack goes on.
fn fails_to_decrypt(stack: &Stack, repo: &Repo, daemon: &Daemon, words: &[&str]) {
    let before = stack.container("web").expect("it runs").id().to_owned();
    let commit = repo.commit(&[("compose.yaml", &compose_with_secret().replace("VERSION: \"1\"", "VERSION: \"2\""))]);
    let deployment = daemon.ended_at("web", &commit);
    assert_eq!(deployment["status"], "failed");
    let error = deployment["error"].as_str().expect("an error");
    assert!(words.iter().all(|word| error.contains(word)), "{words:?} in: {error}");
    assert!(!error.contains('\n'), "one line: {error}");
    assert_eq!(stack.container("web").expect("it runs").id(), before, "the stack that runs is left alone");
    assert_no_plain_text(daemon, VALUE);
}

#[test]
fn a_wrong_key_is_an_error_that_names_the_file() {
    if missing(&[parts::DOCKER, parts::GIT, parts::SOPS]) {
        return;
    }
    let sops = Sops::new();
    let (stack, repo, daemon) = deployed(&sops, Format::Dotenv);
    fs::copy(Sops::new().key_file(), sops.key_file()).expect("replace the key");
    fails_to_decrypt(&stack, &repo, &daemon, &[".env.enc", "key"]);
}

#[test]
fn a_missing_key_is_an_error_that_says_where_it_was_looked_for() {
    if missing(&[parts::DOCKER, parts::GIT, parts::SOPS]) {
        return;
    }
    let sops = Sops::new();
    let (stack, repo, daemon) = deployed(&sops, Format::Dotenv);
    fs::remove_file(sops.key_file()).expect("remove the key");
    fails_to_decrypt(&stack, &repo, &daemon, &[".env.enc", "SOPS_AGE_KEY_FILE"]);
}

#[test]
fn a_missing_sops_is_an_error_that_says_so() {
    if missing(&[parts::DOCKER, parts::GIT, parts::SOPS]) {
        return;
    }
    let (stack, repo, mut daemon) = deployed(&Sops::new(), Format::Dotenv);
    daemon.stop();
    daemon.env("Shiparr_SOPS_BIN", "/nowhere/sops");
    daemon.start();
    fails_to_decrypt(&stack, &repo, &daemon, &["/nowhere/sops", "not installed"]);
}

#[test]
fn a_damaged_file_is_an_error_that_names_it() {
    if missing(&[parts::DOCKER, parts::GIT, parts::SOPS]) {
        return;
    }
    let sops = Sops::new();
    let (stack, repo, daemon) = deployed(&sops, Format::Dotenv);
    let damaged = sops.encrypt(Format::Dotenv, &[("SECRET", VALUE)]).replacen("data:", "data:AAAA", 1);
    repo.write(".env.enc", damaged);
    fails_to_decrypt(&stack, &repo, &daemon, &[".env.enc"]);
}

#[test]
fn a_missing_env_file_is_an_error_that_names_it() {
    if missing(&[parts::DOCKER, parts::GIT, parts::SOPS]) {
        return;
    }
    let (stack, repo, daemon) = deployed(&Sops::new(), Format::Dotenv);
    repo.remove(".env.enc");
    fails_to_decrypt(&stack, &repo, &daemon, &[".env.enc"]);
}

#[test]
fn a_value_that_is_still_encrypted_is_refused() {
    if missing(&[parts::DOCKER, parts::GIT, parts::SOPS]) {
        return;
    }
    let (stack, repo, sops) = (Stack::new(), Repo::new(), Sops::new());
    repo.write("compose.yaml", Stack::compose_with("1", "    env_file: app.env\n"));
    repo.commit(&[("app.env", &sops.encrypt(Format::Dotenv, &[("SECRET", VALUE)]))]);
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack)]);
    let deployment = daemon.ended_at("web", &repo.tip());
    assert_eq!(deployment["status"], "failed");
    assert!(deployment["error"].as_str().expect("an error").contains("SECRET"), "{deployment}");
    assert!(stack.container("web").is_none());
}

#[test]
fn a_hanging_sops_ends_with_the_deployments_limit() {
    if missing(&[parts::DOCKER, parts::GIT, parts::SOPS]) {
        return;
    }
    let (stack, repo, sops, fake) = (Stack::new(), Repo::new(), Sops::new(), Fake::new());
    repo.write("compose.yaml", compose_with_secret());
    repo.commit(&[(".env.enc", &sops.encrypt(Format::Dotenv, &[("SECRET", VALUE)]))]);
    fake.rule("sops", "*", "hang");
    let mut daemon = Daemon::new();
    daemon.use_fake(&fake).env("SOPS_AGE_KEY_FILE", sops.key_file());
    let entry = Entry::new("web", &repo.url(), &stack).field("env_file", ".env.enc").field("timeout", "3");
    daemon.project("home", &[entry]);
    daemon.start();
    let deployment = daemon.ended_at("web", &repo.tip());
    assert_eq!(deployment["status"], "failed");
    assert!(deployment["error"].as_str().expect("an error").contains("limit"), "{deployment}");
    assert_no_plain_text(&daemon, VALUE);
}

#[test]
fn sops_sees_its_own_variables_and_nobody_elses() {
    if missing(&[parts::DOCKER, parts::GIT, parts::SOPS]) {
        return;
    }
    let (stack, repo, sops, fake) = (Stack::new(), Repo::new(), Sops::new(), Fake::new());
    repo.write("compose.yaml", compose_with_secret());
    repo.commit(&[(".env.enc", &sops.encrypt(Format::Dotenv, &[("SECRET", VALUE)]))]);
    let mut daemon = Daemon::new();
    daemon.use_fake(&fake).env("SOPS_AGE_KEY_FILE", sops.key_file()).env("AWS_REGION", "eu-north-1");
    daemon.env("Shiparr_AUTH_PASSWORD", "none-of-its-business").env("OTHER", "x");
    daemon.project("home", &[Entry::new("web", &repo.url(), &stack).field("env_file", ".env.enc")]);
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());
    let calls: Vec<Call> = fake.calls().into_iter().filter(|call| call.name == "sops").collect();
    assert!(!calls.is_empty());
    for call in calls {
        assert_eq!(call.variable("AWS_REGION"), Some("eu-north-1"));
        assert_eq!(call.variable("OTHER"), None);
        assert!(!call.environment.iter().any(|line| line.contains("none-of-its-business")));
    }
}

/// Looks at the process list until it is told to stop, as another user does: every command line, and every environment
/// that user `nobody` can read.
struct Spy {
    stop: Arc<AtomicBool>,
    looking: JoinHandle<(usize, BTreeSet<String>)>,
}

impl Spy {
    fn start(needles: &[&str]) -> Spy {
        let stop = Arc::new(AtomicBool::new(false));
        let (told, needles) =
            (Arc::clone(&stop), needles.iter().map(|needle| (*needle).to_owned()).collect::<Vec<_>>());
        let looking = thread::spawn(move || {
            let (mut rounds, mut found) = (0, BTreeSet::new());
            while !told.load(Ordering::SeqCst) {
                rounds += 1;
                let mut seen = command_lines();
                if rounds % 20 == 1 {
                    seen.push(what_nobody_sees());
                }
                for text in seen {
                    found.extend(needles.iter().filter(|needle| text.contains(needle.as_str())).map(|_| text.clone()));
                }
            }
            (rounds, found)
        });
        Spy { stop, looking }
    }

    fn assert_nothing_seen(self) {
        self.stop.store(true, Ordering::SeqCst);
        let (rounds, found) = self.looking.join().expect("looking does not panic");
        assert!(rounds > 10, "it looked {rounds} times only");
        assert!(found.is_empty(), "{found:?}");
    }
}

fn command_lines() -> Vec<String> {
    let processes = fs::read_dir("/proc").expect("list the processes").flatten();
    let lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).collect()
}

fn what_nobody_sees() -> String {
    let look = "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null";
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", look])
        .output()
        .expect("start setpriv");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Every answer that a GET can have.
fn every_answer(daemon: &Daemon) -> String {
    let mut paths: Vec<String> =
        ["/api/health", "/api/projects", "/api/projects/home", "/api/projects/home/repositories", "/api/repositories"]
            .map(str::to_owned)
            .into();
    paths.extend(["/api/deployments?limit=500", "/widget/dashy?project=home", "/nowhere"].map(str::to_owned));
    for repository in daemon.get("/api/repositories").as_array().expect("a list") {
        paths.push(format!("/api/repositories/{}", repository["id"]));
        paths.push(format!("/api/repositories/{}/deployments", repository["id"]));
        paths.push(format!("/api/repositories/{}/logs", repository["id"]));
    }
    for deployment in daemon.get("/api/deployments?limit=500").as_array().expect("a list") {
        paths.push(format!("/api/deployments/{}", deployment["id"]));
        paths.push(format!("/api/deployments/{}/logs", deployment["id"]));
    }
    let answers = paths.iter().map(|path| {
        let answer = daemon.request("GET", path, &[], b"");
        format!("{path}: {:?} {}\n", answer.headers, answer.text())
    });
    answers.collect()
}

#[test]
fn no_secret_is_anywhere_after_successes_and_failures() {
    if missing(&[parts::DOCKER, parts::GIT, parts::SOPS, parts::ROOT]) {
        return;
    }
    const TOKEN: &str = "glpat-TokenThatNobodySees";
    const ENV_VALUE: &str = "env-value-that-nobody-sees";
    const INLINE: &str = "inline-value-that-nobody-sees";
    const HOOK: &str = "hook-path-that-nobody-sees";
    const SHOUT: &str = "shoutrrr-token-nobody-sees";
    const PASSPHRASE: &str = "password-that-nobody-sees";
    let needles = [TOKEN, ENV_VALUE, INLINE, HOOK, SHOUT, PASSPHRASE];

    let (stack, repo, sops, fake, receiver) = (Stack::new(), Repo::new(), Sops::new(), Fake::new(), Receiver::start());
    fake.rule("shoutrrr", "* send *", "exit 69 cannot reach the service behind it");
    let service = |version: &str, command: &str| {
        Stack::compose_with(version, "      SECRET: \"${SECRET}\"\n      INLINE: \"${INLINE}\"\n")
            .replace("[\"sleep\", \"86400\"]", &format!("[\"sh\", \"-c\", \"{command}\"]"))
    };
    repo.write(".env.enc", sops.encrypt(Format::Dotenv, &[("SECRET", ENV_VALUE)]));
    repo.commit(&[("compose.yaml", &service("1", "sleep 86400"))]);
    let server = GitServer::start(repo.root());
    server.ask_for("oauth2", TOKEN);
    let mut daemon = Daemon::new();
    daemon.use_fake(&fake).env("SOPS_AGE_KEY_FILE", sops.key_file());
    daemon.env("FORGE_TOKEN", TOKEN).env("INLINE", INLINE).env("Shiparr_LOG_LEVEL", "TRACE");
    daemon.env("Shiparr_AUTH_PASSWORD", PASSPHRASE);
    let notifications = format!(
        "{{success: [\"{hook}\"], failure: [\"{hook}\", \"telegram://{SHOUT}@telegram?chats=1\"]}}",
        hook = receiver.url(&format!("/{HOOK}"))
    );
    let entry = Entry::new("web", &server.url("stack"), &stack)
        .field("token", "${FORGE_TOKEN}")
        .field("env_file", ".env.enc")
        .field("environment", "{INLINE: \"${INLINE}\"}")
        .field("notifications", &notifications);
    daemon.project("home", &[entry]);

    let spy = Spy::start(&needles);
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());
    // One whose Compose prints the value in its error, and one whose container does: the daemon shows the last lines of
    // what fails.
    let printing =
        repo.commit(&[("compose.yaml", &service("2", "sleep 86400").replace(IMAGE, "localhost:9/${SECRET}:1"))]);
    assert_eq!(daemon.ended_at("web", &printing)["status"], "failed");
    let dying = repo.commit(&[("compose.yaml", &service("3", "echo secret=$$SECRET inline=$$INLINE; exit 3"))]);
    let deployment = daemon.ended_at("web", &dying);
    assert_eq!(deployment["status"], "failed");
    let log = daemon.log_of(deployment["id"].as_i64().expect("an id"));
    assert!(log.contains("secret=***") && log.contains("inline=***"), "the scrubber was at work: {log}");
    let last = repo.commit(&[("compose.yaml", &service("4", "sleep 86400"))]);
    daemon.wait_for_commit("web", &last);
    wait_until(MINUTE, "the messages", || (receiver.requests().len() >= 3).then_some(()));
    wait_until(MINUTE, "shoutrrr to be called", || (!fake.calls_with("shoutrrr", "send").is_empty()).then_some(()));
    spy.assert_nothing_seen();

    let answers = every_answer(&daemon);
    let outputs: Vec<String> = [vec!["status"], vec!["status", "--json"], vec!["history", "web"], vec!["check"]]
        .iter()
        .map(|args| {
            let output = daemon.cli(args);
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
        })
        .collect();
    for needle in needles {
        assert!(!answers.contains(needle), "{needle} in an answer: {answers}");
        assert!(!daemon.log().contains(needle), "{needle} in the log");
        assert!(outputs.iter().all(|output| !output.contains(needle)), "{needle} on the command line: {outputs:?}");
        for folder in [&daemon.data(), daemon.runtime()] {
            assert_eq!(contains_anywhere(folder, needle), Vec::<std::path::PathBuf>::new(), "{needle}");
        }
    }
    let message = |request: &Received| request.text();
    assert!(receiver.requests().iter().map(message).all(|text| needles.iter().all(|needle| !text.contains(needle))));
}

#[test]
fn a_shared_memory_folder_is_where_the_plain_text_lies_while_it_is_needed() {
    if missing(&[parts::DOCKER, parts::GIT, parts::SOPS]) {
        return;
    }
    let (stack, repo, sops, fake) = (Stack::new(), Repo::new(), Sops::new(), Fake::new());
    repo.write("compose.yaml", compose_with_secret());
    repo.commit(&[(".env.enc", &sops.encrypt(Format::Dotenv, &[("SECRET", VALUE)]))]);
    fake.rule("docker-compose", "* up *", "hold");
    let mut daemon = Daemon::new();
    daemon.use_fake(&fake).env("SOPS_AGE_KEY_FILE", sops.key_file());
    daemon.project("home", &[Entry::new("web", &repo.url(), &stack).field("env_file", ".env.enc")]);
    daemon.start();
    wait_until(MINUTE, "`up` to begin", || (!fake.calls_with("docker-compose", "up").is_empty()).then_some(()));
    let plain = contains_anywhere(daemon.runtime(), VALUE);
    assert!(!plain.is_empty(), "Compose reads it from there");
    for path in &plain {
        assert_eq!(mode_of(path), 0o600, "{}", path.display());
    }
    assert_eq!(contains_anywhere(daemon.folder(), VALUE), Vec::<std::path::PathBuf>::new(), "and nowhere else");
    fake.release();
    daemon.wait_for_commit("web", &repo.tip());
    assert_no_plain_text(&daemon, VALUE);
}

fn mode_of(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).expect("it is there").permissions().mode() & 0o777
}
