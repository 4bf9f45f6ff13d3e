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

/// A part of a URL without its percent-encoding; bytes that are no UTF-8 then are replaced.
pub(crate) fn percent_decoded(part: &str) -> String {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let Some(first) = rest.first() {
        let length = match percent_escape(rest, &mut bytes) {
            0 => {
                bytes.push(*first);
                1
            }
            length => length,
        };
        rest = &rest[length..];
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Appends the meaning of the `%20` that a text begins with, and returns its length: 0 where there is none.
pub(super) fn percent_escape(text: &[u8], meaning: &mut Vec<u8>) -> usize {
    match text {
        [b'%', digits @ ..] if digits.len() >= 2 => match hexadecimal(&digits[..2]) {
            Some(value) => {
                meaning.push(value as u8);
                3
            }
            None => 0,
        },
        _ => 0,
    }
}

/// None where a digit is none.
pub(super) fn hexadecimal(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |value, digit| Some(value * 16 + char::from(*digit).to_digit(16)?))
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

    #[test]
    fn percent_encoding_is_taken_off() {
        assert_eq!(percent_decoded("p%40ss%20w%C3%B6rd"), "p@ss wörd");
        assert_eq!(percent_decoded("100% %+1 %4"), "100% %+1 %4");
    }
}
