//! The command line, against a running daemon and without one.

use std::io::{BufRead, BufReader};
use std::process::{Output, Stdio};

use crate::support::*;

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[track_caller]
fn json(output: &Output) -> Json {
    assert!(output.status.success(), "{}", said(output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(output)))
}

#[test]
fn help_and_version_are_complete() {
    let daemon = Daemon::new();
    let help = daemon.cli(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    for verb in ["run", "check", "status", "deploy", "cancel", "logs", "history", "prune", "notify-test", "health"] {
        assert!(said(&help).contains(verb), "{verb}: {}", said(&help));
        let own = daemon.cli(&[verb, "--help"]);
        assert_eq!(own.status.code(), Some(0), "{verb}: {}", said(&own));
    }
    assert!(said(&daemon.cli(&["--version"])).contains(env!("CARGO_PKG_VERSION")));
    assert_ne!(daemon.cli(&["no-such-verb"]).status.code(), Some(0));
}

#[test]
fn run_once_deploys_everything_and_exits_with_the_outcome() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (one, two) = (Stack::new(), Stack::new());
    let good = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let second = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let daemon = Daemon::new();
    daemon.project("home", &[Entry::new("one", &good.url(), &one), Entry::new("two", &second.url(), &two)]);
    let first = daemon.cli(&["run", "--once"]);
    assert_eq!(first.status.code(), Some(0), "{}", said(&first));
    assert_eq!((one.version().as_deref(), two.version().as_deref()), (Some("1"), Some("1")));
    let started = one.container("web").expect("it runs").started_at().to_owned();
    let again = daemon.cli(&["run", "--once"]);
    assert_eq!(again.status.code(), Some(0), "nothing to do is well too: {}", said(&again));
    assert_eq!(one.container("web").expect("it runs").started_at(), started);

    second.commit(&[("compose.yaml", "services: [")]);
    let failed = daemon.cli(&["run", "--once"]);
    assert_eq!(failed.status.code(), Some(1), "{}", said(&failed));
    assert!(said(&failed).contains("home/two"), "it names the one that failed: {}", said(&failed));
    assert_eq!(two.version().as_deref(), Some("1"));
    let still = daemon.cli(&["run", "--once"]);
    assert_eq!(still.status.code(), Some(1), "the tip is not deployed, so not all is: {}", said(&still));
}

#[test]
fn run_once_without_a_remote_exits_1() {
    let daemon = Daemon::new();
    daemon.project("home", &[Entry::new("web", "/nowhere/stack.git", &Stack::new())]);
    let output = daemon.cli(&["run", "--once"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
}

#[test]
fn a_second_daemon_exits_and_says_what_to_use_instead() {
    let mut daemon = Daemon::new();
    daemon.start();
    for args in [&["run"][..], &["run", "--once"], &[]] {
        let output = daemon.cli(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", said(&output));
        assert!(said(&output).contains("shiparr deploy"), "{args:?}: {}", said(&output));
    }
    assert!(daemon.data().join("Shiparr.lock").exists());
    daemon.assert_well();
    daemon.kill_9();
    daemon.start();
}

#[test]
fn check_says_all_is_well_or_names_every_problem_with_its_place() {
    let daemon = Daemon::new();
    daemon.project("home", &[Entry::new("web", "/srv/git/web.git", &Stack::new())]);
    let folder = daemon.config();
    let check = || daemon.cli(&["check", &folder.to_string_lossy()]);
    let well = check();
    assert_eq!(well.status.code(), Some(0), "{}", said(&well));

    daemon.project_text(
        "bad",
        "project: bad\nrepositories:\n  one:\n    url: /srv/git/one.git\n    check_interval: never\n  two:\n    \
         brnach: main\n    path: ../outside\n",
    );
    let bad = check();
    assert_eq!(bad.status.code(), Some(1), "{}", said(&bad));
    let text = said(&bad);
    for expected in [
        "bad.yaml:5",
        "repositories.one.check_interval",
        "repositories.two.url",
        "brnach",
        "branch",
        "bad.yaml:8",
        "path",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let missing_folder = daemon.cli(&["check", "/nowhere/at/all"]);
    assert_eq!(missing_folder.status.code(), Some(1), "{}", said(&missing_folder));
    assert!(said(&missing_folder).contains("/nowhere/at/all"));
}

#[test]
fn where_nobody_reads_any_more_a_verb_ends_as_other_programs_do() {
    let daemon = Daemon::new();
    let (writes, reads) = std::os::unix::net::UnixStream::pair().expect("make a pair of sockets");
    drop(reads);
    let output = daemon.command(&["check"]).stdin(Stdio::null()).stdout(std::os::fd::OwnedFd::from(writes)).output();
    let output = output.expect("start shiparr");
    assert_eq!((output.status.code(), said(&output).as_str()), (Some(128 + 13), ""));
}

#[test]
fn check_takes_names_from_an_env_file_and_only_warns_of_those_it_cannot_know() {
    let daemon = Daemon::new();
    let entry =
        Entry::new("web", "/srv/git/web.git", &Stack::new()).field("environment", "{A: \"${KNOWN_TO_THE_SERVICE}\"}");
    daemon.project("home", &[entry]);
    let folder = daemon.config().to_string_lossy().into_owned();
    let without = daemon.cli(&["check", &folder]);
    assert_eq!(without.status.code(), Some(0), "{}", said(&without));
    assert!(said(&without).contains("KNOWN_TO_THE_SERVICE"), "{}", said(&without));
    let file = daemon.home().join("shiparr.env");
    std::fs::write(&file, "KNOWN_TO_THE_SERVICE=x\n").expect("write");
    let with = daemon.cli(&["check", "--env-file", &file.to_string_lossy(), &folder]);
    assert_eq!(with.status.code(), Some(0), "{}", said(&with));
    assert!(!said(&with).contains("KNOWN_TO_THE_SERVICE"), "{}", said(&with));
}

#[test]
fn check_judges_for_the_installed_service_and_prints_the_drop_in_that_it_needs() {
    let mut daemon = Daemon::new();
    let entry = |path: &str| {
        Entry::new("web", "/srv/git/web.git", &Stack::new())
            .field("local_path", path)
            .field("environment", "{A: \"${KNOWN_TO_THE_SERVICE}\", B: \"${A_CREDENTIAL}\"}")
    };
    // What the service manager would say of the unit.
    let bin = daemon.home().join("bin");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").expect("PATH is set"));
    let script = format!(
        "#!/bin/sh\ncase \"$1\" in\nshow) cat <<'E'\nLoadState=loaded\nUser=shiparr\nAmbientCapabilities=cap_dac_override\n\
         Environment=KNOWN_TO_THE_SERVICE=x\nProtectSystem=strict\nProtectHome=yes\nReadWritePaths={}\nE\n;;\n\
         cat) echo LoadCredential=a_credential:/etc/passwd ;;\nesac\n",
        daemon.folder().display()
    );
    std::fs::create_dir(&bin).expect("make a folder");
    let systemctl = bin.join("systemctl");
    std::fs::write(&systemctl, &script).expect("write a stand-in");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&systemctl, executable).expect("make it executable");
    daemon.project("home", &[entry("/srv/shiparr-test-stacks/web")]);
    daemon.env("PATH", path);
    let refused = daemon.cli(&["check"]);
    let text = said(&refused);
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(text.contains("home/web: local_path /srv/shiparr-test-stacks/web (ProtectSystem=strict)"), "{text}");
    assert!(text.contains("sudo mkdir -p /srv/shiparr-test-stacks"), "{text}");
    assert!(text.contains("\n    [Service]\n    ReadWritePaths=/srv/shiparr-test-stacks\n"), "{text}");
    assert!(!text.contains("KNOWN_TO_THE_SERVICE"), "{text}");
    assert!(text.contains("warning: ") && text.contains("A_CREDENTIAL"), "{text}");

    daemon.project("home", &[entry("/home/shiparr-test/stacks/web")]);
    let text = said(&daemon.cli(&["check"]));
    let lines = "    [Service]\n    ProtectHome=read-only\n    ReadWritePaths=/home/shiparr-test/stacks\n";
    assert!(text.contains(lines), "{text}");

    daemon.project("home", &[entry("/srv/shiparr-test-stacks/web")]);
    let opened = script.replace("ReadWritePaths=", "ReadWritePaths=-/srv/shiparr-test-stacks ");
    std::fs::write(&systemctl, &opened).expect("write a stand-in");
    let well = daemon.cli(&["check"]);
    assert_eq!(well.status.code(), Some(0), "{}", said(&well));

    let missing = opened.replace("=-/srv", "=/srv").replace(":/etc/passwd", ":/etc/shiparr-test-secret");
    std::fs::write(&systemctl, missing).expect("write a stand-in");
    let text = said(&daemon.cli(&["check"]));
    for expected in
        ["ReadWritePaths= names /srv/shiparr-test-stacks,", "LoadCredential= names /etc/shiparr-test-secret,"]
    {
        assert!(text.contains(&format!("shiparr.service does not start: its {expected}")), "{text}");
    }
}

#[test]
fn check_tells_apart_good_and_bad_values_of_what_a_deployment_handles() {
    let daemon = Daemon::new();
    for (field, good, bad) in
        [("deploy", "manual", "later"), ("watch_paths", "[., a]", "../a"), ("secret_files", "[a.enc]", "/a.enc")]
    {
        for (value, exit) in [(good, 0), (bad, 1)] {
            daemon.project("home", &[Entry::new("web", "/srv/git/web.git", &Stack::new()).field(field, value)]);
            let output = daemon.cli(&["check", &daemon.config().to_string_lossy()]);
            assert_eq!(output.status.code(), Some(exit), "{field}: {}", said(&output));
            let is_told = said(&output).contains(&format!("repositories.web.{field}"));
            assert_eq!(is_told, exit == 1, "{}", said(&output));
        }
    }
}

#[test]
fn a_setting_that_cannot_be_read_stops_the_start_with_one_line() {
    for (name, value) in [
        ("Shiparr_PORT", "eighty"),
        ("Shiparr_PORT", "70000"),
        ("Shiparr_DEPLOY_TIMEOUT", "-1"),
        ("Shiparr_LOG_FORMAT", "xml"),
        ("Shiparr_AUTH_ENABLED", "maybe"),
    ] {
        let mut daemon = Daemon::new();
        daemon.env(name, value);
        let output = daemon.cli(&["run"]);
        assert_eq!(output.status.code(), Some(1), "{name}={value}: {}", said(&output));
        assert!(said(&output).contains(name), "{}", said(&output));
    }
    let mut daemon = Daemon::new();
    daemon.env("Shiparr_PROT", "8080").env("SHIPARR_HISTORY_LIMIT", "7");
    daemon.start();
    assert!(daemon.log().contains("Shiparr_PROT") && daemon.log().contains("Shiparr_PORT"), "{}", daemon.log());
}

#[test]
fn without_a_daemon_the_verbs_that_need_it_say_so() {
    let daemon = Daemon::new();
    for args in [&["status"][..], &["deploy", "web"], &["history", "web"], &["logs", "web"], &["health"]] {
        let output = daemon.cli(args);
        assert_ne!(output.status.code(), Some(0), "{args:?}");
        assert!(said(&output).contains("shiparr.sock"), "{args:?}: {}", said(&output));
        assert_eq!(said(&output).trim().lines().count(), 1, "one line: {}", said(&output));
    }
}

#[test]
fn status_history_logs_and_deploy_tell_what_is() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let stack = Stack::new();
    let command = "[\"sh\", \"-c\", \"echo a line of the container; sleep 86400\"]";
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1").replace("[\"sleep\", \"86400\"]", command))]);
    let daemon = Daemon::with(&[Entry::new("web", &repo.url(), &stack).rarely_checked()]);
    daemon.wait_for_commit("web", &repo.tip());
    let short = &repo.tip()[..7];

    let status = daemon.cli(&["status"]);
    assert!(status.status.success());
    for expected in ["home/web", "success", short] {
        assert!(said(&status).contains(expected), "{expected}: {}", said(&status));
    }
    assert!(!said(&status).contains('\u{1b}'), "no colour where there is no terminal");
    let status = json(&daemon.cli(&["status", "--json"]));
    assert!(status.to_string().contains(&repo.tip()), "{status}");

    for name in ["web", "home/web"] {
        let history = daemon.cli(&["history", name]);
        assert!(history.status.success() && said(&history).contains(short), "{}", said(&history));
        assert!(json(&daemon.cli(&["history", name, "--json"])).to_string().contains(&repo.tip()));
    }
    let text = |args: &[&str]| json(&daemon.cli(args))["logs"].as_str().expect("a text").to_owned();
    assert!(text(&["logs", "web", "--json"]).contains("a line of the container"));
    assert!(text(&["logs", "web", "--json", "--deployment", "last"]).contains(short));
    let logs = daemon.cli(&["logs", "web"]);
    assert!(logs.status.success() && said(&logs).contains("a line of the container"), "{}", said(&logs));

    let deploy = daemon.cli(&["deploy", "web"]);
    assert!(deploy.status.success(), "{}", said(&deploy));
    let newest = daemon.deployments_of("web").remove(0);
    assert_eq!(newest["trigger"], "cli");
    daemon.succeeded(newest["id"].as_i64().expect("an id"));
    let accepted = json(&daemon.cli(&["deploy", "web", "--json"]));
    daemon.succeeded(accepted["deployment_id"].as_i64().unwrap_or_else(|| panic!("{accepted}")));

    for args in [&["deploy", "nobody"][..], &["history", "nobody/web"], &["logs", "nobody"]] {
        let output = daemon.cli(args);
        assert_ne!(output.status.code(), Some(0), "{args:?}");
        assert!(said(&output).contains("nobody"), "{args:?}: {}", said(&output));
    }
    assert_eq!(daemon.cli(&["health"]).status.code(), Some(0));
}

#[test]
fn a_name_that_is_not_unique_needs_its_project() {
    let mut daemon = Daemon::new();
    for project in ["one", "two"] {
        daemon.project(project, &[Entry::new("web", "/nowhere/stack.git", &Stack::new()).rarely_checked()]);
    }
    daemon.start();
    let output = daemon.cli(&["deploy", "web"]);
    assert_ne!(output.status.code(), Some(0));
    assert!(said(&output).contains("one/web") && said(&output).contains("two/web"), "{}", said(&output));
    assert!(daemon.cli(&["deploy", "two/web"]).status.success());
}

#[test]
fn the_verbs_reach_a_daemon_by_url_too() {
    let mut daemon = Daemon::new();
    daemon.env("Shiparr_AUTH_ENABLED", "true").env("Shiparr_AUTH_PASSWORD", "open sesame");
    daemon.start();
    let url = format!("http://127.0.0.1:{}", daemon.port());
    let refused = daemon.cli(&["status", "--url", &url]);
    assert_ne!(refused.status.code(), Some(0), "{}", said(&refused));
    daemon.env("SHIPARR_URL", url).env("SHIPARR_USERNAME", "admin").env("SHIPARR_PASSWORD", "open sesame");
    std::fs::remove_file(daemon.runtime().join("shiparr.sock")).expect("take the socket away");
    let output = daemon.cli(&["status"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(!said(&output).contains("plain http"), "{}", said(&output));
    // An address that only looks like another host's.
    let elsewhere = format!("http://0.0.0.0:{}", daemon.port());
    let output = daemon.cli(&["status", "--json", "--url", &elsewhere]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("the password goes over plain http"), "{}", said(&output));
    json(&output);
}

#[test]
fn deploy_follow_streams_the_log_as_it_comes_and_exits_with_the_outcome() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    let (stack, fake) = (Stack::new(), Fake::new());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let mut daemon = Daemon::new();
    daemon.use_fake(&fake).project("home", &[Entry::new("web", &repo.url(), &stack).rarely_checked()]);
    daemon.start();
    daemon.wait_for_commit("web", &repo.tip());

    fake.rule("docker-compose", "* up *", "hold");
    let mut command = daemon.command(&["deploy", "web", "--follow"]);
    let mut following = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("start shiparr");
    let mut lines = BufReader::new(following.stdout.take().expect("it was piped")).lines();
    let seen = lines.next().expect("a line comes").expect("it is text");
    assert!(!seen.is_empty());
    assert_eq!(daemon.repository("web")["status"], "running", "the first line comes while it runs");
    fake.release();
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert!(following.wait().expect("it ends").success(), "{rest:?}");

    repo.commit(&[("compose.yaml", "services: [")]);
    let failed = daemon.cli(&["deploy", "web", "--follow"]);
    assert_eq!(failed.status.code(), Some(1), "{}", said(&failed));
    assert!(said(&failed).contains("yaml: line 1"), "it shows why: {}", said(&failed));
}

#[test]
fn a_followed_log_over_http_comes_line_by_line_and_ends_with_the_deployment() {
    if missing(&[parts::DOCKER, parts::GIT]) {
        return;
    }
    use std::io::{Read, Write};
    let (stack, fake) = (Stack::new(), Fake::new());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    fake.rule("docker-compose", "* up *", "hold");
    let mut daemon = Daemon::new();
    daemon.use_fake(&fake).project("home", &[Entry::new("web", &repo.url(), &stack).rarely_checked()]);
    daemon.start();
    let id = daemon.wait_for("web", "running")["id"].as_i64().expect("an id");
    let short = repo.tip()[..7].to_owned();

    let mut stream = daemon.connect();
    let request = format!(
        "GET /api/deployments/{id}/logs?follow=1 HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("send");
    let mut so_far = read_until(&mut stream, &short);
    assert_eq!(daemon.deployment(id)["status"], "running");
    fake.release();
    stream.read_to_end(&mut so_far).expect("it ends with the deployment");
    daemon.succeeded(id);
    let whole = daemon.log_of(id);
    let last = whole.lines().last().expect("a line").to_owned();
    assert!(String::from_utf8_lossy(&so_far).contains(last.trim()), "the last line came too: {last}");
}

#[test]
fn notify_test_sends_to_every_url_and_says_how_it_went() {
    let receiver = Receiver::start();
    let notifications =
        format!("{{success: [\"{}\"], failure: [\"{}\"]}}", receiver.url("/well"), receiver.url("/bad"));
    let entry = Entry::new("web", "/nowhere/stack.git", &Stack::new()).rarely_checked();
    let daemon = Daemon::with(&[entry.field("notifications", &notifications)]);
    let output = daemon.cli(&["notify-test", "web"]);
    assert!(output.status.success(), "{}", said(&output));
    let sent = serde_json::json!({ "repository": "home/web", "target": "http://127.0.0.1", "problem": null });
    assert_eq!(json(&daemon.cli(&["notify-test", "--json"]))["results"], serde_json::json!([sent, sent]));
    let asked = |path: &str| receiver.requests().iter().any(|request| request.target == path);
    wait_until(SHORT, "both messages", || (asked("/well") && asked("/bad")).then_some(()));
    receiver.answer(500);
    for args in [&["notify-test"][..], &["notify-test", "--json"]] {
        let output = daemon.cli(args);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("500"), "{}", said(&output));
    }
}

#[test]
fn log_lines_are_objects_where_json_is_asked_for_and_carry_priorities_for_the_journal() {
    for (format, holds) in [
        (
            "json",
            (|line: &str| serde_json::from_str::<Json>(line).is_ok_and(|value| value.is_object())) as fn(&str) -> bool,
        ),
        ("journal", |line| line.starts_with('<') && line[1..].starts_with(|digit: char| digit.is_ascii_digit())),
        ("text", |line| !line.starts_with(['{', '<'])),
    ] {
        let mut daemon = Daemon::new();
        daemon.env("Shiparr_LOG_FORMAT", format).env("Shiparr_LOG_LEVEL", "INFO");
        daemon.project("home", &[Entry::new("web", "/nowhere/stack.git", &Stack::new())]);
        daemon.start();
        wait_until(SHORT, "the failed check in the log", || daemon.log().contains("home/web").then_some(()));
        daemon.stop();
        let log = daemon.log();
        assert!(log.lines().count() > 0, "{format}");
        for line in log.lines() {
            assert!(holds(line), "{format}: {line}");
        }
    }
}

#[test]
fn a_runtime_folder_on_a_disk_is_warned_of() {
    let mut daemon = Daemon::new();
    let on_disk = daemon.folder().join("runtime");
    std::fs::create_dir(&on_disk).expect("make a folder");
    let kind = rustix::fs::statfs(&on_disk).expect("a file system").f_type;
    let tmpfs = 0x0102_1994;
    if i128::from(kind) == tmpfs {
        eprintln!("not run, because the temporary folder is in memory here");
        return;
    }
    daemon.env("Shiparr_RUNTIME_PATH", &on_disk);
    daemon.start();
    assert!(daemon.log().lines().any(|line| line.contains("WARN") && line.contains("tmpfs")), "{}", daemon.log());
}
