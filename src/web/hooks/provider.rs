//! What the providers of webhooks have in common. To add one: a file with a [`Provider`], its line in [`named`], its
//! fixtures, and its row in the README.

use super::bitbucket::BITBUCKET;
use super::gitea::{FORGEJO, GITEA, GOGS};
use super::github::GITHUB;
use super::gitlab::GITLAB;
use super::push::Push;
use super::signature::Signature;

/// A forge whose deliveries are understood.
pub struct Provider {
    /// As in the route.
    pub name: &'static str,
    /// How it signs.
    pub signature: Signature,
    /// The header that names the event.
    pub event_header: &'static str,
    /// Headers that tell a delivery from others, and stay when it is made again; the first that is there counts.
    pub delivery_headers: &'static [&'static str],
    /// Reads the payload of an event; none: it is no push.
    pub read: fn(event: &str, payload: &[u8]) -> Result<Option<Push>, serde_json::Error>,
}

/// The provider of a route.
pub fn named(name: &str) -> Option<&'static Provider> {
    match name {
        "gitea" => Some(&GITEA),
        "forgejo" => Some(&FORGEJO),
        "gogs" => Some(&GOGS),
        "github" => Some(&GITHUB),
        "gitlab" => Some(&GITLAB),
        "bitbucket" => Some(&BITBUCKET),
        _ => None,
    }
}

/// Whether a hash stands for no commit at all.
pub(super) fn is_none(hash: &str) -> bool {
    !hash.is_empty() && hash.bytes().all(|digit| digit == b'0')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::WEBHOOK_PROVIDERS;

    #[test]
    fn every_provider_is_counted() {
        assert!(WEBHOOK_PROVIDERS.iter().all(|name| named(name).is_some_and(|provider| provider.name == *name)));
    }
}
