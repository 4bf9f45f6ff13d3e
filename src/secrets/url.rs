//! The parts of a URL that may carry secrets: nothing is decoded, and nothing is refused.

/// `scheme://user:password@host:port/path?query`.
pub(crate) struct UrlParts<'a> {
    pub(crate) scheme: &'a str,
    /// What follows `scheme://`.
    pub(crate) rest: &'a str,
    /// Empty where there is none.
    pub(crate) user: &'a str,
    pub(crate) password: Option<&'a str>,
    pub(crate) host: &'a str,
    /// With its `:`, or empty.
    pub(crate) port: &'a str,
    /// From the first `/`, `?` or `#` on.
    pub(crate) path_and_query: &'a str,
}

impl UrlParts<'_> {
    /// None where there is no `://`.
    pub(crate) fn of(url: &str) -> Option<UrlParts<'_>> {
        let (scheme, rest) = url.split_once("://")?;
        let (authority, path_and_query) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (user_info, address) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = user_info.split_once(':').map_or((user_info, None), |(user, word)| (user, Some(word)));
        // The colons of an IPv6 address lie within brackets.
        let after_brackets = address.rfind(']').unwrap_or(0);
        let colon = address[after_brackets..].find(':').map_or(address.len(), |index| after_brackets + index);
        let (host, port) = address.split_at(colon);
        Some(UrlParts { scheme, rest, user, password, host, port, path_and_query })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_falls_into_its_parts() {
        let parts = UrlParts::of("smtp://me:p@ss:word@[::1]:587/?from=a@b").unwrap();
        assert_eq!((parts.scheme, parts.user, parts.password), ("smtp", "me", Some("p@ss:word")));
        assert_eq!((parts.host, parts.port, parts.path_and_query), ("[::1]", ":587", "/?from=a@b"));
        let parts = UrlParts::of("discord://token@id").unwrap();
        assert_eq!((parts.user, parts.password, parts.host, parts.port), ("token", None, "id", ""));
        assert!(UrlParts::of("no url").is_none());
    }
}
