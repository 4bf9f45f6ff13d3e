//! What a caller may do, and what a route needs: the same scale.

/// Ordered: whoever may do something may do what stands above it here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Everybody, also where there is a password: the signature of a webhook is its own, a preflight carries nothing.
    Open,
    /// What dashboards read; everybody while `Shiparr_WIDGET_PUBLIC`.
    Widget,
    /// Looking. The logs of deployments belong to it, the output of the containers does not: what a deployment logs went
    /// through the scrubber and says why something failed, which is what somebody looks for; what an application writes is
    /// its own affair, and may hold the data of its users.
    View,
    /// Everything: what changes something, and container logs.
    Full,
}

/// Who sent a request, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// What they may do.
    pub access: Access,
    /// Their name, where they have one.
    pub actor: Option<String>,
}

impl Caller {
    /// Somebody who said nothing about themselves.
    pub fn nameless(access: Access) -> Caller {
        Caller { access, actor: None }
    }

    /// Somebody with a name.
    pub fn named(access: Access, actor: impl Into<String>) -> Caller {
        Caller { access, actor: Some(actor.into()) }
    }
}
