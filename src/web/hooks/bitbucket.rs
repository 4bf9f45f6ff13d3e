//! Bitbucket Cloud: [repo:push](https://support.atlassian.com/bitbucket-cloud/docs/event-payloads/#Push), which says of
//! its repository only which page it has; and Bitbucket Data Center:
//! [repo:refs_changed](https://confluence.atlassian.com/bitbucketserver/event-payload-938025882.html).

use serde::Deserialize;

use super::provider::Provider;
use super::push::{Push, Update};
use super::signature::{Signature, SignedForm};

/// Both Bitbuckets.
///
/// `X-Request-UUID` (Data Center: `X-Request-Id`) is the same when a delivery is made again; `X-Hook-UUID` is the same
/// for all deliveries of a webhook.
pub const BITBUCKET: Provider = Provider {
    name: "bitbucket",
    signature: Signature::Hmac { header: "X-Hub-Signature", prefix: "sha256=", form: SignedForm::Body },
    event_header: "X-Event-Key",
    delivery_headers: &["X-Request-UUID", "X-Request-Id"],
    read,
};

fn read(event: &str, payload: &[u8]) -> Result<Option<Push>, serde_json::Error> {
    match event {
        "repo:push" => serde_json::from_slice(payload).map(|payload: Cloud| Some(payload.into())),
        "repo:refs_changed" => serde_json::from_slice(payload).map(|payload: DataCenter| Some(payload.into())),
        _ => Ok(None),
    }
}

#[derive(Deserialize)]
struct Cloud {
    actor: Option<Person>,
    repository: Repository,
    push: Changes,
}

#[derive(Deserialize)]
struct Changes {
    changes: Vec<CloudChange>,
}

#[derive(Deserialize)]
struct CloudChange {
    /// None: it is gone.
    new: Option<Named>,
    /// None: it is new.
    old: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    #[serde(rename = "type")]
    kind: String,
    name: String,
}

#[derive(Deserialize)]
struct DataCenter {
    actor: Option<Person>,
    repository: Repository,
    changes: Vec<DataCenterChange>,
}

#[derive(Deserialize)]
struct DataCenterChange {
    #[serde(rename = "ref")]
    reference: Reference,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Reference {
    id: String,
}

#[derive(Deserialize)]
struct Repository {
    #[serde(default)]
    links: Links,
}

/// Cloud has `html`, Data Center `clone`; its version 5 has neither.
#[derive(Default, Deserialize)]
struct Links {
    html: Option<Link>,
    #[serde(default)]
    clone: Vec<Link>,
}

#[derive(Deserialize)]
struct Link {
    href: String,
}

/// Cloud has `nickname`, and of a team only `display_name`; Data Center has `name`.
#[derive(Deserialize)]
struct Person {
    nickname: Option<String>,
    name: Option<String>,
    display_name: Option<String>,
}

impl Person {
    fn into_name(self) -> Option<String> {
        self.nickname.or(self.name).or(self.display_name)
    }
}

impl Repository {
    fn into_urls(self) -> Vec<String> {
        self.links.clone.into_iter().chain(self.links.html).map(|link| link.href).collect()
    }
}

impl From<Cloud> for Push {
    fn from(payload: Cloud) -> Push {
        let update = |change: CloudChange| {
            let is_deletion = change.new.is_none();
            let Named { kind, name } = change.new.or(change.old)?;
            let folder = if kind == "tag" { "tags" } else { "heads" };
            Some(Update { reference: format!("refs/{folder}/{name}"), is_deletion })
        };
        Push {
            urls: payload.repository.into_urls(),
            updates: payload.push.changes.into_iter().filter_map(update).collect(),
            pusher: payload.actor.and_then(Person::into_name),
        }
    }
}

impl From<DataCenter> for Push {
    fn from(payload: DataCenter) -> Push {
        let update =
            |change: DataCenterChange| Update { is_deletion: change.kind == "DELETE", reference: change.reference.id };
        Push {
            urls: payload.repository.into_urls(),
            updates: payload.changes.into_iter().map(update).collect(),
            pusher: payload.actor.and_then(Person::into_name),
        }
    }
}
