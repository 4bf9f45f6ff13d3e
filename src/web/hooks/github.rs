//! GitHub: [push](https://docs.github.com/en/webhooks/webhook-events-and-payloads#push). Gitea, Forgejo and Gogs
//! have made theirs after it.

use serde::Deserialize;

use super::provider::{Provider, is_none};
use super::push::{Push, Update};
use super::signature::{Signature, SignedForm};

/// GitHub, and GitHub Enterprise.
pub const GITHUB: Provider = Provider {
    name: "github",
    signature: Signature::Hmac { header: "X-Hub-Signature-256", prefix: "sha256=", form: SignedForm::Body },
    event_header: "X-GitHub-Event",
    delivery_headers: &["X-GitHub-Delivery"],
    read,
};

#[derive(Deserialize)]
struct Payload {
    #[serde(rename = "ref")]
    reference: String,
    /// The commit that it names since; zeros where it is gone.
    after: Option<String>,
    deleted: Option<bool>,
    repository: Repository,
    pusher: Option<Person>,
    sender: Option<Person>,
}

#[derive(Deserialize)]
struct Repository {
    clone_url: Option<String>,
    ssh_url: Option<String>,
    git_url: Option<String>,
    html_url: Option<String>,
}

/// Gitea has `login`; Gogs, before it had that, `username`; GitHub's pusher only `name`, which is the login.
#[derive(Deserialize)]
struct Person {
    login: Option<String>,
    username: Option<String>,
    name: Option<String>,
}

impl Person {
    fn into_name(self) -> Option<String> {
        [self.login, self.username, self.name].into_iter().flatten().find(|name| !name.is_empty())
    }
}

/// Reads a `push`; no other event moves a branch that this one does not tell of.
pub fn read(event: &str, payload: &[u8]) -> Result<Option<Push>, serde_json::Error> {
    if event != "push" {
        return Ok(None);
    }
    let Payload { reference, after, deleted, repository, pusher, sender } = serde_json::from_slice(payload)?;
    let Repository { clone_url, ssh_url, git_url, html_url } = repository;
    let is_deletion = deleted == Some(true) || after.as_deref().is_some_and(is_none);
    Ok(Some(Push {
        urls: [clone_url, ssh_url, git_url, html_url].into_iter().flatten().collect(),
        updates: vec![Update { reference, is_deletion }],
        pusher: [pusher, sender].into_iter().flatten().find_map(Person::into_name),
    }))
}
