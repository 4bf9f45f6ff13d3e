//! Where a notification URL leads: to shoutrrr, in its own spelling, or to an address of the web.

use super::Problem;
use crate::secrets::Secret;
use crate::secrets::url::{UrlParts, percent_decoded};

/// An address that gets a POST.
pub(super) struct Address {
    /// Without credentials.
    pub(super) url: String,
    pub(super) basic_auth: Option<(String, Secret)>,
}

pub(super) enum Target {
    Post(Address),
    Shoutrrr(Secret),
}

impl Target {
    /// Forms that people carry over from other tools are translated (spec section 4, Messages).
    pub(super) fn of(url: &Secret) -> Result<Target, Problem> {
        let url = url.expose();
        let Some(parts) = UrlParts::of(url) else {
            return Err(Problem::Refused("expected a URL, `service://…`".to_owned()));
        };
        let translated = match parts.scheme {
            "https" | "http" => return Ok(Target::Post(address(&parts))),
            "email" => Some(format!("smtp://{}", parts.rest)),
            "discord" => discord(&parts),
            "pushover" => pushover(&parts),
            _ => None,
        };
        Ok(Target::Shoutrrr(Secret::new(translated.unwrap_or_else(|| url.to_owned()))))
    }
}

/// How messages name a URL: its service, and for `https://` and `http://` the host. Never more of it.
pub fn label(url: &Secret) -> String {
    let Some(parts) = UrlParts::of(url.expose()) else { return "a notification URL".to_owned() };
    let is_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    if parts.scheme.is_empty() || !parts.scheme.bytes().all(is_scheme) {
        return "a notification URL".to_owned();
    }
    // A password with a `/` that is not encoded would pass for a path, and the user's name for a host.
    let is_host = !parts.host.is_empty() && !parts.path_and_query.contains('@');
    match parts.scheme {
        "https" | "http" if is_host => format!("{}://{}", parts.scheme, parts.host),
        scheme => scheme.to_owned(),
    }
}

/// Whether a URL goes through shoutrrr.
pub fn needs_shoutrrr(url: &Secret) -> bool {
    !UrlParts::of(url.expose()).is_some_and(|parts| matches!(parts.scheme, "https" | "http"))
}

fn address(parts: &UrlParts<'_>) -> Address {
    let basic_auth = (!parts.user.is_empty() || parts.password.is_some())
        .then(|| (percent_decoded(parts.user), Secret::new(percent_decoded(parts.password.unwrap_or_default()))));
    let url = format!("{}://{}{}{}", parts.scheme, parts.host, parts.port, parts.path_and_query);
    Address { url, basic_auth }
}

/// `discord://ID/TOKEN` is `discord://TOKEN@ID`.
fn discord(parts: &UrlParts<'_>) -> Option<String> {
    let (path, query) = split_query(parts.path_and_query);
    let token = path.trim_matches('/');
    let foreign = parts.user.is_empty() && !parts.host.is_empty() && !token.is_empty() && !token.contains('/');
    foreign.then(|| format!("discord://{token}@{}{query}", parts.host))
}

/// `pushover://USER:TOKEN@` is `pushover://shoutrrr:TOKEN@USER`.
fn pushover(parts: &UrlParts<'_>) -> Option<String> {
    let token = parts.password.filter(|token| !token.is_empty() && !parts.user.is_empty() && parts.host.is_empty())?;
    let (_, query) = split_query(parts.path_and_query);
    let slash = if query.is_empty() { "" } else { "/" };
    Some(format!("pushover://shoutrrr:{token}@{}{slash}{query}", parts.user))
}

/// The query keeps its `?`.
fn split_query(path_and_query: &str) -> (&str, &str) {
    path_and_query.split_at(path_and_query.find('?').unwrap_or(path_and_query.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(url: &str) -> String {
        match Target::of(&Secret::new(url)) {
            Ok(Target::Shoutrrr(url)) => url.expose().to_owned(),
            _ => String::new(),
        }
    }

    #[test]
    fn forms_of_other_tools_are_translated() {
        for (given, expected) in [
            ("discord://123/token", "discord://token@123"),
            ("discord://123/token/?splitlines=no", "discord://token@123?splitlines=no"),
            ("discord://token@123", "discord://token@123"),
            ("discord://token@123/?thread_id=4", "discord://token@123/?thread_id=4"),
            ("email://u:p@mail.example.com:587/?to=a@b", "smtp://u:p@mail.example.com:587/?to=a@b"),
            ("pushover://user:token@", "pushover://shoutrrr:token@user"),
            ("pushover://user:token@/?devices=a", "pushover://shoutrrr:token@user/?devices=a"),
            ("pushover://shoutrrr:token@user/", "pushover://shoutrrr:token@user/"),
            ("telegram://1:a@telegram?chats=2", "telegram://1:a@telegram?chats=2"),
        ] {
            assert_eq!(translated(given), expected);
        }
    }

    #[test]
    fn an_address_of_the_web_loses_its_credentials() {
        let Ok(Target::Post(address)) = Target::of(&Secret::new("https://me:p%40ss%2@hooks.example.com:8443/x?y=z"))
        else {
            panic!("not an address");
        };
        assert_eq!(address.url, "https://hooks.example.com:8443/x?y=z");
        assert_eq!(address.basic_auth, Some(("me".to_owned(), Secret::new("p@ss%2"))));
    }

    #[test]
    fn a_label_tells_the_service_and_nothing_else() {
        for (url, expected) in [
            ("discord://token@id", "discord"),
            ("discord://id/token", "discord"),
            ("https://me:pass@hooks.example.com:8443/secret", "https://hooks.example.com"),
            ("https://me:pa/ss@hooks.example.com/secret", "https"),
            ("no url at all", "a notification URL"),
            ("to ken://x", "a notification URL"),
            ("://x", "a notification URL"),
        ] {
            assert_eq!(label(&Secret::new(url)), expected);
        }
    }

    #[test]
    fn the_web_needs_no_shoutrrr() {
        assert!(!needs_shoutrrr(&Secret::new("https://x")) && !needs_shoutrrr(&Secret::new("http://x")));
        assert!(needs_shoutrrr(&Secret::new("discord://x")) && needs_shoutrrr(&Secret::new("nothing")));
    }
}
