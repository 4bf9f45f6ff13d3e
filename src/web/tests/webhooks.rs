//! Webhooks, with the deliveries that each forge documents: `tests/fixtures/webhooks/PROVIDER/NAME.http`, header lines
//! and a body, in which `{sha256}` stands for the signature and `{secret}` for the secret.

use std::fs;
use std::path::Path;

use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::*;
use crate::config::{Accepted, Basis};
use crate::model::{DeploymentRecord, Status};

const SECRET: &str = "It's a Secret to Everybody";
const WITH_SECRET: (&str, &str) = ("Shiparr_WEBHOOK_SECRET", SECRET);

/// `home/web` follows what the fixtures push to, by one of the URLs that it can have; `home/media` another repository.
const URLS: [(&str, &str); 6] = [
    ("gitea", "git@GIT.example.com:ada/web"),
    ("forgejo", "https://git.example.com/ada/web.git"),
    ("gogs", "ssh://git@git.example.com/ada/web.git"),
    ("github", "github.example.com/ada/web"),
    ("gitlab", "git@gitlab.example.com:ada/web.git"),
    ("bitbucket", "git@bitbucket.example.com:ada/web.git"),
];

struct Delivery {
    headers: Vec<String>,
    body: String,
}

/// A fixture, signed.
fn fixture(provider: &str, name: &str) -> Delivery {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/webhooks/{provider}/{name}.http"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (head, body) = text.split_once("\n\n").unwrap();
    Delivery { headers: head.lines().map(str::to_owned).collect(), body: body.trim_end().to_owned() }.signed()
}

impl Delivery {
    fn signed(self) -> Delivery {
        let digits = hmac(&self.body);
        let fill = |line: &String| line.replace("{sha256}", &digits).replace("{secret}", SECRET);
        Delivery { headers: self.headers.iter().map(fill).collect(), body: self.body }
    }

    fn without(mut self, name: &str) -> Delivery {
        self.headers.retain(|line| !line.to_ascii_lowercase().starts_with(&format!("{}:", name.to_ascii_lowercase())));
        self
    }

    fn with(self, name: &str, value: &str) -> Delivery {
        let mut delivery = self.without(name);
        delivery.headers.push(format!("{name}: {value}"));
        delivery
    }

    /// Another body, signed in every header that has a signature.
    fn saying(self, body: &str) -> Delivery {
        let (old, new) = (hmac(&self.body), hmac(body));
        let headers = self.headers.iter().map(|line| line.replace(&old, &new)).collect();
        Delivery { headers, body: body.to_owned() }
    }

    fn to(&self, scene: &Scene, provider: &str) -> Reply {
        let headers: Vec<&str> = self.headers.iter().map(String::as_str).collect();
        scene.ask("POST", &format!("/webhook/{provider}"), &headers, &self.body)
    }
}

fn hmac(text: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `home/web` with these lines of its project file; `home/media` follows something else.
fn scene_of(web: &str, settings: &[(&str, &str)]) -> Scene {
    let scene = Scene::with(settings);
    let folder = tempfile::tempdir().unwrap();
    let media = "  media:\n    url: https://git.example.com/ada/media\n";
    let text = format!("project: home\nrepositories:\n  web:\n    {web}\n{media}");
    fs::write(folder.path().join("home.yaml"), text).unwrap();
    let (settings, _) = Settings::from_environment(&Environment::from_pairs([("PATH", "/bin")])).unwrap();
    let (previous, accepted) = (Catalog::default(), Accepted::default());
    let basis = Basis { settings: &settings, previous: &previous, accepted: &accepted, unset_names: Severity::Error };
    let catalog = Catalog::load(folder.path(), &basis);
    assert!(catalog.problems.is_empty(), "{:?}", catalog.problems);
    *scene.daemon.catalog.lock().unwrap() = Arc::new(catalog);
    scene
}

fn scene(provider: &str) -> Scene {
    let (_, url) = URLS.iter().find(|(name, _)| *name == provider).unwrap();
    scene_of(&format!("url: {url}"), &[WITH_SECRET])
}

fn deployments(scene: &Scene) -> Vec<DeploymentRecord> {
    scene.store.deployments(&Default::default()).unwrap()
}

fn ids(reply: &Reply) -> Vec<i64> {
    let ids = reply.json()["deployment_ids"].as_array().unwrap_or_else(|| panic!("{}", reply.body)).clone();
    ids.iter().map(|id| id.as_i64().unwrap()).collect()
}

#[track_caller]
fn assert_queued(scene: &Scene, reply: &Reply) -> DeploymentRecord {
    assert_eq!(reply.status, 202, "{}", reply.body);
    let row = deployments(scene).remove(0);
    assert_eq!(ids(reply), [row.id]);
    assert_eq!((row.repository.name.as_str(), row.trigger, row.status), ("web", Trigger::Webhook, Status::Pending));
    assert!(scene.daemon.wakes.load(Ordering::SeqCst) > 0);
    row
}

#[track_caller]
fn assert_nothing(scene: &Scene, reply: &Reply, why: &str) {
    assert_eq!((reply.status, ids(reply)), (200, Vec::new()), "{}", reply.body);
    let message = reply.json()["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("nothing to do: ") && message.contains(why), "{message}");
    assert!(deployments(scene).is_empty());
}

#[test]
fn a_push_is_queued_for_the_repository_that_follows_it() {
    for (provider, name) in [
        ("gitea", "push"),
        ("forgejo", "push"),
        ("gogs", "push"),
        ("github", "push"),
        ("github", "push-form"),
        ("gitlab", "push"),
        ("gitlab", "system-push"),
        ("bitbucket", "push"),
    ] {
        let scene = scene(provider);
        let reply = fixture(provider, name).to(&scene, provider);
        let row = assert_queued(&scene, &reply);
        assert_eq!(row.actor.as_deref(), Some("ada"), "{provider}/{name}");
        assert!(reply.json()["message"].as_str().unwrap().contains("home/web"), "{}", reply.body);
    }
    let scene = scene("gitlab");
    let row = assert_queued(&scene, &fixture("gitlab", "system-update").to(&scene, "gitlab"));
    assert_eq!(row.actor.as_deref(), Some("Ada Author"));
    for url in ["ssh://git@bitbucket.example.com:7999/ada/web.git", "https://bitbucket.example.com/scm/ada/web"] {
        let scene = scene_of(&format!("url: {url}"), &[WITH_SECRET]);
        assert_queued(&scene, &fixture("bitbucket", "refs-changed").to(&scene, "bitbucket"));
    }
}

#[test]
fn a_tag_is_followed_by_its_full_reference() {
    for (provider, name) in [("gitea", "tag"), ("github", "tag"), ("gitlab", "tag"), ("bitbucket", "push")] {
        let (_, url) = URLS.iter().find(|(name, _)| *name == provider).unwrap();
        let tagged = scene_of(&format!("url: {url}\n    branch: refs/tags/v1.2"), &[WITH_SECRET]);
        assert_queued(&tagged, &fixture(provider, name).to(&tagged, provider));
        if name == "tag" {
            let scene = scene(provider);
            assert_nothing(&scene, &fixture(provider, name).to(&scene, provider), "refs/tags/v1.2 of ");
        }
    }
    for branch in ["refs/heads/main", "HEAD"] {
        let scene = scene_of(&format!("url: git.example.com/ada/web\n    branch: {branch}"), &[WITH_SECRET]);
        assert_queued(&scene, &fixture("gitea", "push").to(&scene, "gitea"));
    }
    let other_case = scene_of("url: git.example.com/Ada/Web", &[WITH_SECRET]);
    assert_queued(&other_case, &fixture("gitea", "push").to(&other_case, "gitea"));
    let elsewhere = scene_of("url: git.example.com/ada/web\n    branch: production", &[WITH_SECRET]);
    assert_nothing(&elsewhere, &fixture("gitea", "push").to(&elsewhere, "gitea"), "that branch is followed by no");
}

#[test]
fn what_is_no_push_to_a_branch_that_somebody_follows_does_nothing() {
    for (provider, name, why) in [
        ("gitea", "delete", "the event `delete` is not a push"),
        ("github", "ping", "the event `ping` is not a push"),
        ("github", "deleted", "nothing is left to deploy"),
        ("gitlab", "deleted", "nothing is left to deploy"),
        ("gitlab", "system-project", "the event `System Hook` is not a push"),
        ("bitbucket", "deleted", "nothing is left to deploy"),
        ("bitbucket", "issue", "the event `issue:created` is not a push"),
        ("bitbucket", "refs-deleted", "nothing is left to deploy"),
        ("bitbucket", "data-center-ping", "the event `diagnostics:ping` is not a push"),
    ] {
        let scene = scene(provider);
        assert_nothing(&scene, &fixture(provider, name).to(&scene, provider), why);
        assert_eq!(scene.daemon.wakes.load(Ordering::SeqCst), 0);
    }
    for web in ["url: git.example.com/eve/web", "url: git.example.com/ada/web\n    hosts: [another-host]"] {
        let scene = scene_of(web, &[WITH_SECRET]);
        assert_nothing(&scene, &fixture("gitea", "push").to(&scene, "gitea"), "no repository here has that URL");
    }
}

#[test]
fn manual_ones_are_checked_and_not_queued() {
    let scene = scene_of("url: git.example.com/ada/web\n    deploy: manual", &[WITH_SECRET]);
    assert_nothing(&scene, &fixture("gitea", "push").to(&scene, "gitea"), "home/web only shows it as waiting");
    assert_eq!(*scene.daemon.checked.lock().unwrap(), [scene.id("web")]);
}

#[test]
fn several_repositories_of_one_remote_are_queued_together() {
    let again =
        "url: git.example.com/ada/web\n    path: web\n  other:\n    url: git.example.com/ada/web\n    path: other";
    let scene = scene_of(again, &[WITH_SECRET]);
    scene.store.sync(&[spec("home", &["web", "media", "other"])], &[], Timestamp::now()).unwrap();
    let reply = fixture("gitea", "push").to(&scene, "gitea");
    assert_eq!((reply.status, ids(&reply).len()), (202, 2), "{}", reply.body);
    // One that the database does not have (any more) is not among them.
    scene.store.sync(&[spec("home", &["web", "media"])], &[], Timestamp::now()).unwrap();
    let reply = fixture("gitea", "push").without("X-Gitea-Delivery").to(&scene, "gitea");
    assert_eq!((reply.status, ids(&reply).len()), (202, 1), "{}", reply.body);
    assert_eq!(*scene.daemon.checked.lock().unwrap(), [scene.id("web")], "it joined a row that was there");
}

#[test]
fn without_the_right_signature_nothing_is_done() {
    let headers = [
        ("gitea", "X-Gitea-Signature"),
        ("forgejo", "X-Forgejo-Signature"),
        ("gogs", "X-Gogs-Signature"),
        ("github", "X-Hub-Signature-256"),
        ("gitlab", "X-Gitlab-Token"),
        ("bitbucket", "X-Hub-Signature"),
    ];
    for (provider, header) in headers {
        let scene = scene(provider);
        let of_another_body = hmac("{}");
        let digits = hmac(&fixture(provider, "push").body);
        for value in
            ["", "x", "sha256=", &of_another_body, &format!("sha256={of_another_body}"), &format!("sha1={digits}")]
        {
            let reply = fixture(provider, "push").with(header, value).to(&scene, provider);
            assert_eq!((reply.status, &reply.json()["error"]), (401, &json!("unauthorized")), "{header}: {value}");
            assert!(reply.header("www-authenticate").is_none(), "a password is not asked for");
        }
        // The others that are there are not looked at.
        assert_eq!(fixture(provider, "push").without(header).to(&scene, provider).status, 401, "{header}");
        let mut other = fixture(provider, "push");
        other.body = other.body.replacen("main", "mine", 1);
        assert_eq!(other.to(&scene, provider).status, if provider == "gitlab" { 200 } else { 401 });
        assert!(deployments(&scene).is_empty());
        let upper =
            fixture(provider, "push").headers.iter().find_map(|line| Some(line.strip_prefix(header)?.to_owned()));
        let value = upper.unwrap().trim_start_matches(": ").to_owned();
        let value = if provider == "gitlab" { value } else { value.replace(&digits, &digits.to_uppercase()) };
        assert_queued(&scene, &fixture(provider, "push").with(header, &value).to(&scene, provider));
    }
    let scene = scene("gitea");
    assert_eq!(fixture("gitea", "push").to(&scene, "forgejo").status, 401, "Gitea does not send Forgejo's headers");
    for older in ["gogs", "github"] {
        assert_eq!(fixture("gitea", "push").to(&scene, older).status, 202, "{older}");
    }
}

#[test]
fn a_signed_payload_stays_what_it_is_when_it_is_called_a_form() {
    for provider in ["github", "gitea", "gitlab"] {
        let push = fixture(provider, "push");
        let inner: String = push.body.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let body =
            push.body.replacen('{', &format!("{{\"note\": \"&payload={inner}&\", "), 1).replace("/main", "/other");
        let delivery = push.saying(&body).with("Content-Type", "application/x-www-form-urlencoded");
        let (_, url) = URLS.into_iter().find(|(name, _)| *name == provider).unwrap();
        let reply = delivery.to(&scene_of(&format!("url: {url}"), &[WITH_SECRET]), provider);
        assert_eq!(reply.status, 200, "{provider}: {}", reply.body);
    }
}

#[test]
fn giteas_forms_are_signed_before_they_are_encoded_and_githubs_after() {
    let scene = scene("gitea");
    let payload: String = fixture("gitea", "push").body.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let form = || Delivery { headers: fixture("gitea", "push").headers, body: format!("a=b&payload={payload}") };
    let form = || form().with("Content-Type", "application/x-www-form-urlencoded");
    assert_queued(&scene, &form().to(&scene, "gitea"));
    assert_eq!(form().to(&scene, "github").status, 401);
    let mut changed = form();
    changed.body = changed.body.replacen("%7B", "%7C", 1);
    assert_eq!(changed.to(&scene, "gitea").status, 401);
    for body in ["payload=", "payload", "payload=%7B", "x=1", "%", ""] {
        assert_eq!(fixture("github", "push-form").saying(body).to(&scene, "github").status, 400, "{body}");
    }
    // What curl sends unless it is told otherwise.
    let called_a_form = fixture("gitea", "push").with("Content-Type", "application/x-www-form-urlencoded");
    assert_eq!(called_a_form.without("X-Gitea-Delivery").to(&scene, "gitea").status, 202);
}

#[test]
fn the_same_delivery_again_queues_nothing_and_answers_the_same() {
    for (provider, header) in [
        ("gitea", "X-Gitea-Delivery"),
        ("forgejo", "X-Forgejo-Delivery"),
        ("gogs", "X-Gogs-Delivery"),
        ("github", "X-GitHub-Delivery"),
        ("gitlab", "Idempotency-Key"),
        ("bitbucket", "X-Request-UUID"),
    ] {
        let scene = scene(provider);
        let first = assert_queued(&scene, &fixture(provider, "push").to(&scene, provider)).id;
        let wakes = scene.daemon.wakes.load(Ordering::SeqCst);
        let end = |id, outcome: &Outcome| {
            scene.store.start(id, "1", Timestamp::now()).unwrap();
            let hash: CommitHash = "1".repeat(40).parse().unwrap();
            let commit = Commit { hash: hash.clone(), subject: String::new(), author: String::new() };
            scene.store.checked_out(id, &commit, &hash).unwrap();
            scene.store.finish(id, outcome, Timestamp::now()).unwrap();
        };
        end(first, &Outcome::Success);
        let again = fixture(provider, "push").to(&scene, provider);
        assert_eq!((again.status, ids(&again)), (202, vec![first]), "{}", again.body);
        assert_eq!(scene.daemon.wakes.load(Ordering::SeqCst), wakes);
        let second = assert_queued(&scene, &fixture(provider, "push").with(header, "another").to(&scene, provider)).id;
        end(second, &Outcome::Cancelled { error: "by ada".to_owned() });
        let third = assert_queued(&scene, &fixture(provider, "push").with(header, "another").to(&scene, provider)).id;
        assert!(third > second);
    }
}

#[test]
fn gitlabs_older_versions_have_other_ids() {
    let scene = scene("gitlab");
    let old = || fixture("gitlab", "push").without("Idempotency-Key").without("X-Gitlab-Webhook-UUID");
    let first = assert_queued(&scene, &old().to(&scene, "gitlab")).id;
    scene.store.cancel_pending(first, Timestamp::now()).unwrap();
    let second = assert_queued(&scene, &old().to(&scene, "gitlab")).id;
    assert_eq!(ids(&old().to(&scene, "gitlab")), [second]);
    assert!(old().to(&scene, "gitlab").body.contains("was here before"));
}

#[test]
fn what_is_signed_and_not_understood_is_a_bad_request() {
    let scene = scene("github");
    let push = || fixture("github", "push");
    let deep = "[".repeat(100_000);
    for body in ["", "{", "null", "[]", "{}", "{\"ref\": 7}", "{\"ref\": \"refs/heads/main\"}", "\u{0}", &deep] {
        let reply = push().saying(body).to(&scene, "github");
        assert_eq!((reply.status, &reply.json()["error"]), (400, &json!("bad_request")), "{body:.20}: {}", reply.body);
    }
    let reply = push().without("X-GitHub-Event").to(&scene, "github");
    assert!(reply.status == 400 && reply.body.contains("X-GitHub-Event"), "{}", reply.body);
    for (provider, event) in
        [("gitlab", "push"), ("gitlab", "system-update"), ("bitbucket", "push"), ("bitbucket", "refs-changed")]
    {
        let scene = self::scene(provider);
        assert_eq!(fixture(provider, event).saying("{\"event_name\": \"push\"}").to(&scene, provider).status, 400);
    }
    // A repository without a URL is nobody's.
    let reply = push().saying("{\"ref\": \"refs/heads/main\", \"repository\": {}}").to(&scene, "github");
    assert_nothing(&scene, &reply, "no repository here has that URL");
    assert!(deployments(&scene).is_empty());
}

#[test]
fn a_hostile_payload_is_shown_as_text() {
    let scene = scene("github");
    let body = fixture("github", "push").body.replace("\"name\": \"ada\"", "\"name\": \"\\u001b[31ma\\u202eda\\n<b>\"");
    let reply = fixture("github", "push").saying(&body).to(&scene, "github");
    assert_eq!(reply.status, 202, "{}", reply.body);
    assert_eq!(deployments(&scene)[0].actor.as_deref(), Some("[31mada<b>"));
    let long = fixture("github", "ping").with("X-GitHub-Event", &"x".repeat(5000)).to(&scene, "github");
    assert!(long.status == 200 && long.body.len() < 300, "{}", long.body);
    let quoted =
        fixture("github", "push").saying(&format!("{{\"ref\": \"\", \"repository\": \"{}\"}}", "x".repeat(5000)));
    let quoted = quoted.to(&scene, "github");
    assert!(quoted.status == 400 && quoted.body.len() < 500, "{}", quoted.body);
}

#[test]
fn without_a_secret_there_are_no_webhooks() {
    let scene = scene_of("url: git.example.com/ada/web", &[("GITEA_WEBHOOK_SECRET", SECRET)]);
    assert_eq!(fixture("gitea", "push").to(&scene, "gitea").status, 202);
    let reply = fixture("forgejo", "push").to(&scene, "forgejo");
    assert!(reply.status == 404 && reply.body.contains("Shiparr_WEBHOOK_SECRET"), "{}", reply.body);
    assert_eq!(fixture("gitea", "push").to(&scene, "nobody").status, 404);
    let wrong_method = scene.get("/webhook/gitea");
    assert_eq!((wrong_method.status, wrong_method.header("allow")), (405, Some("POST")));

    // Read at each use; empty is none, and one that cannot be read is no reason to let anybody in.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    let scene = scene_of("url: git.example.com/ada/web", &[("Shiparr_WEBHOOK_SECRET_FILE", file.to_str().unwrap())]);
    let reply = fixture("gitea", "push").to(&scene, "gitea");
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")), "{}", reply.body);
    assert!(!reply.body.contains(file.to_str().unwrap()), "{}", reply.body);
    fs::write(&file, "").unwrap();
    assert_eq!(fixture("gitea", "push").to(&scene, "gitea").status, 404);
    fs::write(&file, format!("{SECRET}\n")).unwrap();
    assert_queued(&scene, &fixture("gitea", "push").to(&scene, "gitea"));
}

#[test]
fn the_signature_is_the_authentication() {
    let url = "url: git.example.com/ada/web";
    let locked =
        scene_of(url, &[WITH_SECRET, ("Shiparr_AUTH_ENABLED", "true"), ("Shiparr_AUTH_PASSWORD", "open sesame")]);
    let delivery = || fixture("gitea", "push").without("X-Gitea-Delivery");
    let wrong = basic("admin", "wrong");
    for header in ["X-Nothing: 1", &wrong, "Authorization: Bearer of-the-forge", "Host: any.example.com"] {
        let mut delivery = delivery();
        delivery.headers.push(header.to_owned());
        for _ in 0..3 {
            assert_eq!(delivery.to(&locked, "gitea").status, 202, "{header}");
        }
    }
    assert_eq!(locked.ask("GET", "/api/projects", &[&wrong], "").status, 401, "not counted as logins that failed");

    let open = scene_of(url, &[WITH_SECRET]);
    for header in ["Host: ship.example.com", "Sec-Fetch-Site: cross-site", "Origin: https://git.example.com"] {
        let mut signed = delivery();
        signed.headers.push(header.to_owned());
        assert_eq!(signed.to(&open, "gitea").status, 202, "{header}");
        let mut unsigned = delivery().without("X-Gitea-Signature");
        unsigned.headers.push(header.to_owned());
        assert_eq!(unsigned.to(&open, "gitea").status, 401, "what is wrong is the signature: {header}");
    }
    let path = "/webhook/gitea";
    assert_eq!(open.control("POST", path, "{}").status, 401, "on the control socket too");
}

#[test]
fn a_body_has_a_bound_and_need_not_come_in_one_piece() {
    let scene = scene("gitea");
    let big = format!("{{\"x\": \"{}\"}}", "x".repeat(1024 * 1024));
    assert_eq!(fixture("gitea", "push").saying(&big).to(&scene, "gitea").status, 413);
    let pad = " ".repeat(1024 * 1024 - fixture("gitea", "push").body.len());
    let full = fixture("gitea", "push").body + &pad;
    let started = Instant::now();
    assert_queued(&scene, &fixture("gitea", "push").saying(&full).to(&scene, "gitea"));
    println!("a delivery of 1 MiB: {:?}", started.elapsed());

    let delivery = fixture("gitea", "push").with("X-Gitea-Delivery", "slow");
    let head = delivery.headers.join("\r\n");
    let mut stream = scene.tcp();
    write!(stream, "POST /webhook/gitea HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n{head}\r\n\r\n").unwrap();
    for piece in delivery.body.as_bytes().chunks(100) {
        write!(stream, "{:x}\r\n", piece.len()).unwrap();
        stream.write_all(piece).unwrap();
        stream.write_all(b"\r\n").unwrap();
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 202 "), "{line}");
}
