//! Gitea, Forgejo and Gogs, each with its own headers and [GitHub's](super::github) payload. The two younger ones send
//! the headers of the older ones, and GitHub's, along with their own.

use super::github;
use super::provider::Provider;
use super::signature::{Signature, SignedForm};

/// [Gitea](https://docs.gitea.com/usage/webhooks)
pub const GITEA: Provider = provider("gitea", "X-Gitea-Signature", "X-Gitea-Event", &["X-Gitea-Delivery"]);

/// [Forgejo](https://forgejo.org/docs/latest/user/webhooks/)
pub const FORGEJO: Provider = provider("forgejo", "X-Forgejo-Signature", "X-Forgejo-Event", &["X-Forgejo-Delivery"]);

/// [Gogs](https://gogs.io/advancing/webhooks)
pub const GOGS: Provider = provider("gogs", "X-Gogs-Signature", "X-Gogs-Event", &["X-Gogs-Delivery"]);

const fn provider(
    name: &'static str,
    header: &'static str,
    event_header: &'static str,
    delivery_headers: &'static [&'static str],
) -> Provider {
    let signature = Signature::Hmac { header, prefix: "", form: SignedForm::Payload };
    Provider { name, signature, event_header, delivery_headers, read: github::read }
}
