//! Rules against pages on the web that use a browser inside the network: DNS rebinding and cross-site writes (spec
//! section 5).

use std::net::{Ipv4Addr, Ipv6Addr};

use super::answer::Failure;
use super::request::Request;
use crate::config::{PublicUrl, Settings};

/// Names that nobody on the web can own.
const PRIVATE_SUFFIXES: [&str; 4] = [".local", ".lan", ".internal", ".home.arpa"];

/// Refuses a `Host` that a page on the web could have made a browser send.
///
/// # Errors
/// 403, with the setting that allows the name.
pub fn check_host(request: &Request, settings: &Settings) -> Result<(), Failure> {
    match request.header("Host") {
        // Only HTTP/1.0 comes without, and no browser speaks that.
        None => Ok(()),
        Some(host) if is_allowed(host, &settings.allowed_hosts) || is_public(host, settings) => Ok(()),
        Some(host) => Err(Failure::forbidden(
            "host_not_allowed",
            format!(
                "requests for the host `{host}` are not answered: add it to Shiparr_ALLOWED_HOSTS, name it in Shiparr_PUBLIC_URL, or \
                 enable authentication"
            ),
        )),
    }
}

/// Refuses a write that another site's page made a browser send.
///
/// # Errors
/// 403.
pub fn check_site(request: &Request, settings: &Settings) -> Result<(), Failure> {
    let refused = match (request.header("Sec-Fetch-Site"), request.header("Origin")) {
        (Some(site), _) => {
            let site = site.trim();
            site.eq_ignore_ascii_case("cross-site") || site.eq_ignore_ascii_case("same-site")
        }
        // Behind a proxy the browser knows the public name, and `Host` may be another one.
        (None, Some(origin)) => {
            let public = settings.public_url.as_ref().map(PublicUrl::authority);
            !is_same_host(origin, request.header("Host")) && !is_same_host(origin, public)
        }
        (None, None) => false,
    };
    if refused {
        return Err(Failure::forbidden("cross_site", "a page of another site may not change anything here"));
    }
    Ok(())
}

fn is_public(host: &str, settings: &Settings) -> bool {
    let public = settings.public_url.as_ref().and_then(|url| name_of(url.authority()));
    public.is_some() && public == name_of(host)
}

fn is_allowed(host: &str, allowed: &[String]) -> bool {
    let Some(name) = name_of(host) else { return false };
    if name.parse::<Ipv4Addr>().is_ok() || name.starts_with('[') {
        return true;
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || !name.bytes().all(is_name) {
        return false;
    }
    !name.contains('.')
        || PRIVATE_SUFFIXES.iter().any(|suffix| name.len() > suffix.len() && name.ends_with(suffix))
        || allowed.iter().any(|allowed| name_of(allowed).is_some_and(|allowed| allowed == name))
}

/// The host of an authority, without port and last dot, in lower case; an IPv6 address keeps its brackets.
fn name_of(authority: &str) -> Option<String> {
    let authority = authority.trim();
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, rest) = rest.split_once(']')?;
            address.parse::<Ipv6Addr>().ok()?;
            (&authority[..address.len() + 2], rest)
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let digits = if port.is_empty() { port } else { port.strip_prefix(':')? };
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase())
}

fn is_same_host(origin: &str, host: Option<&str>) -> bool {
    let authority = origin.trim().split_once("://").map(|(_, authority)| authority);
    match (authority.and_then(name_of), host.and_then(name_of)) {
        (Some(origin), Some(host)) => !origin.is_empty() && origin == host,
        // `null`: a page that does not say where it is from.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_the_web_cannot_name_are_allowed() {
        let allowed = ["Shiparr.Example.com".to_owned()];
        for host in [
            "127.0.0.1",
            "127.0.0.1:8080",
            "192.168.1.4:80",
            "[::1]:8080",
            "[fe80::1]",
            "localhost",
            "LOCALHOST:8080",
            "nas",
            "nas:8080",
            "nas.local",
            "nas.lan",
            "a.b.internal",
            "x.home.arpa",
            "nas.local.",
            "shiparr.example.com",
            "shiparr.example.com:443",
        ] {
            assert!(is_allowed(host, &allowed), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "127.0.0.1.evil.example",
            "local",
            "x.localhost.evil",
            "[::1",
            "[evil]",
            ".local",
            "nas.local:80x",
            "a b",
            "nas.local@evil.example",
            "evil.example.",
            "",
            ":80",
            "[::1]evil.example",
            "nas.local:80:90",
        ] {
            // A name without a dot is nobody's on the web, `local` included.
            assert_eq!(is_allowed(host, &allowed), host == "local", "{host}");
        }
    }

    #[test]
    fn an_origin_is_ours_by_its_host() {
        assert!(is_same_host("http://nas:8080", Some("nas:8080")));
        assert!(is_same_host("https://Shiparr.example.com", Some("shiparr.example.com")));
        assert!(is_same_host("http://[::1]:8080", Some("[::1]:8080")));
        for origin in ["null", "http://evil.example", "http://nas.evil.example", "", "nas", "http://"] {
            assert!(!is_same_host(origin, Some("nas:8080")), "{origin}");
        }
        assert!(!is_same_host("http://nas", None));
    }
}
