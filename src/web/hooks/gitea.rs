//! Gitea, Forgejo and Gogs, each with its own headers and [GitHub's](super::github) payload. The two younger ones send
//! the headers of the older ones, and GitHub's, along with their own.

use super::github;
use super::provider::Provider;
use super::signature::{Signature, SignedForm};

/// [Gitea](https://docs.gitea.com/usage/webhooks)
pub const GITEA: Provider = Provider {
    name: "gitea",
    signature: Signature::Hmac { header: "X-Gitea-Signature", prefix: "", form: SignedForm::Payload },
    event_header: "X-Gitea-Event",
    delivery_headers: &["X-Gitea-Delivery"],
    read: github::read,
};

/// [Forgejo](https://forgejo.org/docs/latest/user/webhooks/)
pub const FORGEJO: Provider = Provider {
    name: "forgejo",
    signature: Signature::Hmac { header: "X-Forgejo-Signature", prefix: "", form: SignedForm::Payload },
    event_header: "X-Forgejo-Event",
    delivery_headers: &["X-Forgejo-Delivery"],
    read: github::read,
};

/// [Gogs](https://gogs.io/advancing/webhooks)
pub const GOGS: Provider = Provider {
    name: "gogs",
    signature: Signature::Hmac { header: "X-Gogs-Signature", prefix: "", form: SignedForm::Payload },
    event_header: "X-Gogs-Event",
    delivery_headers: &["X-Gogs-Delivery"],
    read: github::read,
};
