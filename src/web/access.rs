//! What a caller may do, and what a route needs: the same scale.

use crate::config::Settings;
use crate::users;

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

impl Access {
    /// What somebody may do who says nothing about themselves, over TCP.
    pub fn of_everybody(settings: &Settings) -> Access {
        match settings.auth {
            None => Access::Full,
            Some(_) if settings.widget_public => Access::Widget,
            Some(_) => Access::Open,
        }
    }
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

    /// A user of this host, who came by the control socket: by the name that `/etc/passwd` has, else by number.
    pub fn unix_user(number: u32) -> Caller {
        Caller::named(Access::Full, users::user_name(number).unwrap_or_else(|| format!("uid {number}")))
    }

    /// Somebody with a name.
    pub fn named(access: Access, actor: impl Into<String>) -> Caller {
        Caller { access, actor: Some(actor.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_of_this_host_has_a_name_or_a_number() {
        assert_eq!(Caller::unix_user(0), Caller::named(Access::Full, "root"));
        assert_eq!(Caller::unix_user(4_000_000_000).actor.as_deref(), Some("uid 4000000000"));
    }

    #[test]
    fn whoever_may_do_more_may_do_less() {
        assert!(Access::Open < Access::Widget && Access::Widget < Access::View && Access::View < Access::Full);
    }
}
