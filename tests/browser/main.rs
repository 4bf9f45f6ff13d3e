//! The status page in a real browser, in front of the built binary and real stacks.
//!
//! Pictures of the views are written where `SHIPARR_TEST_SCREENSHOTS` names a folder.

#![allow(clippy::disallowed_methods, reason = "the harness starts processes of its own")]

mod driver;
#[path = "../black_box/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the black-box tests, which use the rest of it")]
mod support;

use driver::{Browser, key};
use support::{Daemon, Entry, Repo, SHORT, Stack, missing, parts, wait_until};

const HOSTILE: &str = "<img src=x onerror=alert(1)>";

fn address(daemon: &Daemon) -> String {
    format!("http://127.0.0.1:{}", daemon.port())
}

/// A stack whose service says something, and is well once it is told to be.
fn talking(version: &str) -> String {
    Stack::compose_not_well_yet(version)
        .replace("[\"sleep\", \"86400\"]", "[sh, -c, \"echo all hands on deck; exec sleep 86400\"]")
}

#[test]
fn a_deployment_is_started_by_its_button_and_followed_to_its_end() {
    if missing(&[parts::BROWSER, parts::DOCKER]) {
        return;
    }
    let stack = Stack::new();
    let repo = Repo::with(&[("compose.yaml", &talking("1"))]);
    let hostile = repo.commit_all(HOSTILE);
    let entry = Entry::new("web", &repo.url(), &stack).field("health_timeout", "60").rarely_checked();
    let mut daemon = Daemon::with(&[entry]);
    let browser = Browser::new();
    browser.open(&format!("{}/", address(&daemon)));

    // The first deployment, seen from the list.
    browser.wait_for_text("Deploying");
    wait_until(SHORT, "the container to be there", || stack.container("web"));
    stack.make_well();
    browser.wait_for_text("Deployed\n");
    browser.wait_for_text(HOSTILE);
    assert_eq!(browser.run("return document.querySelectorAll('main img').length"), 0);
    browser.picture("overview");

    // Another one, by the button and the dialog.
    browser.click("button", "Deploy home/web");
    browser.wait_for_text("Deploy home/web?");
    browser.picture("dialog");
    browser.run("document.querySelector('input[name=recreate]').click()");
    browser.click("button", "Deploy");
    browser.wait_for("the deployment's own view", "location.hash === '#/deployments/2'");
    browser.wait_for_text("Running");
    browser.wait_for_text("Following");
    browser.wait_for("its log", "document.querySelector('.log').innerText.includes('up (')");
    browser.picture("deployment-running");
    wait_until(SHORT, "the new container to be there", || stack.container("web").filter(|new| new.is_running()));
    stack.make_well();
    browser.wait_for_text("End of the log.");
    browser.wait_for_text("Success");
    assert!(
        browser.run("return document.title").as_str().is_some_and(|title| title.starts_with("Success: home/web #2"))
    );
    assert_eq!(daemon.deployment(2)["status"], "success");
    assert_eq!(daemon.deployment(2)["commit_hash"], *hostile);

    // Its repository, with durations, containers and their logs.
    browser.click("a", "home/web");
    browser.wait_for_text("running, healthy");
    browser.wait_for_text("Median");
    browser.picture("repository");
    let container = stack.container("web").expect("it runs").name().to_owned();
    browser.click("a", &format!("Log of {container}"));
    browser.wait_for_text("all hands on deck");
    browser.picture("container");
    browser.back();
    browser.wait_for_text("Median");
    browser.assert_content();

    // The daemon goes, and comes again.
    daemon.stop();
    browser.wait_for_text("Not connected.");
    browser.picture("not-connected");
    daemon.start();
    browser.wait_for("the connection to be back", "!document.body.innerText.includes('Not connected')");
    repo.commit_all("After the restart");
    daemon.check_now("web");
    browser.wait_for_text("After the restart");
    let complaints = browser.complaints();
    assert!(complaints.iter().all(|one| one.contains("net::ERR_")), "{complaints:?}");
}

#[test]
fn everything_can_be_done_by_keyboard() {
    if missing(&[parts::BROWSER]) {
        return;
    }
    let stack = Stack::new();
    let daemon = Daemon::with(&[
        Entry::new("first", "/nowhere/first.git", &stack).rarely_checked(),
        Entry::new("web", "/nowhere/web.git", &Stack::new()).rarely_checked(),
    ]);
    let browser = Browser::new();
    browser.open(&format!("{}/", address(&daemon)));
    browser.wait_for_text("Check failed");
    browser.press(key::TAB);
    assert_eq!(browser.focused(), "Skip to content");
    browser.tab_to("Deploy home/web");

    // Left again, the focus is where it was.
    browser.press(key::ENTER);
    browser.wait_for("the dialog", "document.querySelector('dialog[open]')");
    browser.press(key::ESCAPE);
    browser.wait_for("the dialog to be gone", "!document.querySelector('dialog')");
    assert_eq!(browser.focused(), "Deploy home/web");

    // What the API refuses is said in the dialog.
    browser.press(key::ENTER);
    browser.wait_for("the dialog", "document.querySelector('dialog[open]')");
    assert_eq!(browser.focused(), "pull");
    browser.press(key::SPACE);
    daemon.project("home", &[Entry::new("first", "/nowhere/first.git", &stack).rarely_checked()]);
    wait_until(SHORT, "the repository to be an orphan", || {
        (daemon.repository("web")["orphaned"] == true).then_some(())
    });
    browser.tab_to("Deploy");
    browser.press(key::ENTER);
    browser.wait_for_text("home/web is orphaned");
    browser.press(key::ESCAPE);

    browser.open(&format!("{}/", address(&daemon)));
    browser.wait_for_text("Orphaned");
    browser.tab_to("Deploy home/first");
    browser.press(key::ENTER);
    browser.wait_for("the dialog", "document.querySelector('dialog[open]')");
    browser.tab_to("Deploy");
    browser.press(key::ENTER);
    browser.wait_for_text("Deployment #1");
    browser.wait_for_text("End of the log.");
    browser.wait_for_text("Failed");
    assert_eq!(browser.focused(), "Deployment #1");
    browser.picture("deployment-failed");
    let complaints = browser.complaints();
    assert!(complaints.iter().all(|one| one.contains("409 (Conflict)")), "{complaints:?}");
}

#[test]
fn without_projects_it_says_what_to_do_and_with_bad_ones_what_is_wrong() {
    if missing(&[parts::BROWSER]) {
        return;
    }
    let mut daemon = Daemon::new();
    let public = format!("{}/shiparr", address(&daemon));
    daemon.env("Shiparr_PUBLIC_URL", &public);
    daemon.start();
    let browser = Browser::new();
    browser.open(&public);
    browser.wait_for_text("No projects yet");
    browser.wait_for_text(&daemon.config().display().to_string());
    browser.picture("empty");
    daemon.project_text("home", "project: home\nrepositories:\n  web:\n    urll: example.com/web.git\n");
    browser.open(&public);
    browser.wait_for_text("Problems in the project files");
    browser.wait_for_text("home.yaml:4");
    browser.picture("problems");
    daemon.project("home", &[Entry::new("web", "/nowhere/web.git", &Stack::new()).rarely_checked()]);
    browser.wait_for_text("Check failed");
    browser.click("a", "web");
    browser.wait_for_text("Working tree");
    assert!(
        browser
            .run("return location.href")
            .as_str()
            .is_some_and(|at| at.starts_with(&format!("{public}/#/repositories/")))
    );
    browser.assert_content();
}

#[test]
fn a_viewer_sees_everything_and_changes_nothing() {
    if missing(&[parts::BROWSER]) {
        return;
    }
    let mut daemon = Daemon::new();
    daemon.project("home", &[Entry::new("web", "/nowhere/web.git", &Stack::new()).rarely_checked()]);
    daemon.env("Shiparr_AUTH_ENABLED", "true").env("Shiparr_AUTH_PASSWORD", "correct horse");
    daemon.env("Shiparr_VIEWER_PASSWORD", "look").env("Shiparr_WIDGET_PUBLIC", "true");
    daemon.start();
    let browser = Browser::new();

    // In a dashboard's frame, without a login.
    let embedded = format!("{}/?project=home&embed=1", address(&daemon));
    browser.open(&embedded);
    browser.wait_for_text("web");
    browser.wait_for_text("Unknown");
    assert_eq!(browser.run("return document.querySelectorAll('button, a, input').length"), 0);
    browser.picture("embedded");
    browser.assert_content();

    browser.open(&address(&daemon).replace("//", "//viewer:look@"));
    browser.wait_for_text("Check failed");
    browser.click("button", "Deploy home/web");
    browser.wait_for_text("this takes the login of Shiparr_AUTH_USERNAME");
    assert_eq!(browser.run("return document.querySelectorAll('dialog').length"), 0);
    browser.picture("viewer");
    browser.assert_content();
}
