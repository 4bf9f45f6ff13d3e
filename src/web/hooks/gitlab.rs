//! GitLab: [push and tag events](https://docs.gitlab.com/user/project/integrations/webhook_events/) of projects and
//! groups, and [system hooks](https://docs.gitlab.com/administration/system_hooks/).

use serde::Deserialize;

use super::provider::{Provider, is_none};
use super::push::{Push, Update};
use super::signature::Signature;

/// GitLab.
///
/// `Idempotency-Key` is the same when a delivery is made again; versions before 17.4 lack it. `X-Gitlab-Event-UUID` is
/// shared by different events where one webhook leads to another, so it is asked last: it alone is there before 16.2.
pub const GITLAB: Provider = Provider {
    name: "gitlab",
    signature: Signature::Token { header: "X-Gitlab-Token" },
    event_header: "X-Gitlab-Event",
    delivery_headers: &["Idempotency-Key", "X-Gitlab-Webhook-UUID", "X-Gitlab-Event-UUID"],
    read,
};

/// A push of one branch or tag.
#[derive(Deserialize)]
struct One {
    #[serde(flatten)]
    change: Change,
    #[serde(flatten)]
    whose: Whose,
}

/// A system hook's `repository_update`: all that one push changed.
#[derive(Deserialize)]
struct Many {
    changes: Vec<Change>,
    #[serde(flatten)]
    whose: Whose,
}

#[derive(Deserialize)]
struct Whose {
    project: Project,
    user_username: Option<String>,
    user_name: Option<String>,
}

#[derive(Deserialize)]
struct Change {
    #[serde(rename = "ref")]
    reference: String,
    /// Zeros where it is gone.
    after: String,
}

#[derive(Deserialize)]
struct Project {
    git_http_url: Option<String>,
    git_ssh_url: Option<String>,
    web_url: Option<String>,
}

/// What a system hook is about stands in its payload alone.
#[derive(Deserialize)]
struct Named {
    event_name: String,
}

fn read(event: &str, payload: &[u8]) -> Result<Option<Push>, serde_json::Error> {
    let is_one = match event {
        "Push Hook" | "Tag Push Hook" => true,
        "System Hook" => {
            let Named { event_name } = serde_json::from_slice(payload)?;
            match event_name.as_str() {
                "push" | "tag_push" => true,
                "repository_update" => false,
                _ => return Ok(None),
            }
        }
        _ => return Ok(None),
    };
    let (changes, whose) = if is_one {
        let One { change, whose } = serde_json::from_slice(payload)?;
        (vec![change], whose)
    } else {
        let Many { changes, whose } = serde_json::from_slice(payload)?;
        (changes, whose)
    };
    let update = |change: Change| Update { is_deletion: is_none(&change.after), reference: change.reference };
    let Project { git_http_url, git_ssh_url, web_url } = whose.project;
    Ok(Some(Push {
        urls: [git_http_url, git_ssh_url, web_url].into_iter().flatten().collect(),
        updates: changes.into_iter().map(update).collect(),
        pusher: whose.user_username.or(whose.user_name),
    }))
}
