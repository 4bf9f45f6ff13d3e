//! Who may ask the daemon, and by which way: users, the key, the public address, proxies that are believed.

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use super::variables::{Reading, is_host_name, password_problem};
use crate::secrets::Secret;
use crate::secrets::url::UrlParts;

/// Characters that an API key has at least: nobody can be slowed down enough for shorter ones.
const KEY_CHARS_MIN: usize = 16;

/// How the paths of routes begin.
const ROUTES_BEGIN: [&str; 7] = ["api", "assets", "containers", "control", "metrics", "webhook", "widget"];

/// Basic Auth, where it is enabled. The passwords are looked up at each use:
/// [`Settings::password`](super::Settings::password), [`Settings::viewer_password`](super::Settings::viewer_password).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// The name of the user who may do everything.
    pub username: String,
    /// The name of the one who may look; nobody has it while there is no password for it.
    pub viewer: String,
}

/// The address that people see, where a proxy stands in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl {
    scheme: String,
    authority: String,
    path: String,
}

impl PublicUrl {
    /// The host as a `Host` header names it: lower case, with its port if it has one.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Whether its path begins as routes do: a proxy that strips it could not be told from one that does not.
    fn hides_a_route(&self) -> bool {
        self.path.split('/').nth(1).is_some_and(|first| ROUTES_BEGIN.contains(&first))
    }

    /// What stands before every path: empty, or as in `/shiparr`, never with a slash at its end.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl std::fmt::Display for PublicUrl {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}://{}{}", self.scheme, self.authority, self.path)
    }
}

impl FromStr for PublicUrl {
    type Err = ();

    /// `http` or `https`, a host, perhaps a port, perhaps a path of plain segments.
    fn from_str(text: &str) -> Result<PublicUrl, ()> {
        let (scheme, rest) = text.split_once("://").ok_or(())?;
        let scheme = scheme.to_ascii_lowercase();
        if !matches!(scheme.as_str(), "http" | "https") {
            return Err(());
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, port)) if address.parse::<Ipv6Addr>().is_ok() => (None, port),
            Some(_) => return Err(()),
            None => {
                let (host, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
                (Some(host), port)
            }
        };
        let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
        if !is_port || host.is_some_and(|host| !is_host_name(host)) {
            return Err(());
        }
        let path = path.trim_end_matches('/');
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        let is_segment = |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(is_plain);
        if !path.split('/').skip(1).all(is_segment) {
            return Err(());
        }
        Ok(PublicUrl { scheme, authority: authority.to_ascii_lowercase(), path: path.to_owned() })
    }
}

/// Addresses that begin alike, in CIDR notation; one address alone is a network too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix_bits: u32,
}

impl Network {
    /// Whether an address is in it. An IPv4 address in the clothes of an IPv6 one is itself.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let differing = network.to_bits() ^ address.to_bits();
                differing.leading_zeros() >= self.prefix_bits
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differing = network.to_bits() ^ address.to_bits();
                differing.leading_zeros() >= self.prefix_bits
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = ();

    fn from_str(text: &str) -> Result<Network, ()> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address = address.parse::<IpAddr>().map_err(drop)?;
        let all_bits = if address.is_ipv4() { 32 } else { 128 };
        let is_number = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let prefix_bits = match prefix {
            None => all_bits,
            Some(prefix) => Some(prefix).filter(is_number).and_then(|text| text.parse::<u32>().ok()).ok_or(())?,
        };
        if prefix_bits > all_bits {
            return Err(());
        }
        match address.to_canonical() {
            // `::ffff:192.0.2.0/120` means IPv4 addresses.
            canonical if canonical != address => {
                Ok(Network { address: canonical, prefix_bits: prefix_bits.checked_sub(128 - 32).ok_or(())? })
            }
            _ => Ok(Network { address, prefix_bits }),
        }
    }
}

impl Reading<'_> {
    pub(super) fn auth(&mut self) -> Option<Auth> {
        let enabled = self.boolean("Shiparr_AUTH_ENABLED");
        let username = self.username("AUTH_USERNAME", "admin");
        let viewer = self.username("VIEWER_USERNAME", "viewer");
        let password = self.secret_of("Shiparr_AUTH_PASSWORD", password_problem, enabled);
        let viewer_password = self.secret_of("Shiparr_VIEWER_PASSWORD", password_problem, enabled);
        self.secret_of("Shiparr_API_KEY", key_problem, enabled);
        if !enabled {
            return None;
        }
        if password == Found::Absent {
            self.problems.push(
                "Shiparr_AUTH_PASSWORD: not set, and Shiparr_AUTH_ENABLED is true; set it, Shiparr_AUTH_PASSWORD_FILE or the \
                 systemd credential `auth_password`"
                    .to_owned(),
            );
        }
        if viewer_password != Found::Absent && username == viewer {
            self.problems.push(format!(
                "Shiparr_VIEWER_USERNAME: `{viewer}` is the name of Shiparr_AUTH_USERNAME too; choose another one"
            ));
        }
        Some(Auth { username, viewer })
    }

    fn username(&mut self, name: &str, default: &str) -> String {
        let (name, username) = self.text(name).unwrap_or_else(|| (format!("Shiparr_{name}"), default));
        if username.contains(|character: char| character == ':' || character.is_control()) {
            self.problems.push(format!("{name}: a colon or a control character cannot be sent in Basic Auth"));
        }
        username.to_owned()
    }

    /// Judges a secret, which only matters where it `is_used`.
    fn secret_of(&mut self, name: &str, problem: fn(&str) -> Option<&'static str>, is_used: bool) -> Found {
        match self.environment.secret(name) {
            Ok(None) => return Found::Absent,
            Ok(Some(_)) if !is_used => {
                let message = "is set, but nobody is asked for it while Shiparr_AUTH_ENABLED is false";
                self.warnings.push(format!("{name}: {message}"));
            }
            Err(_) if !is_used => {}
            Err(unreadable) => self.problems.push(unreadable),
            Ok(Some(secret)) => self.problems.extend(judged(name, &secret, problem)),
        }
        Found::Present
    }

    /// Judges the URL of heartbeats, which is looked up at each use.
    pub(super) fn heartbeat_url(&mut self) {
        self.secret_of("Shiparr_HEARTBEAT_URL", url_problem, true);
    }

    pub(super) fn public_url(&mut self) -> Option<PublicUrl> {
        let (name, text) = self.text("PUBLIC_URL")?;
        let expected = match text.parse::<PublicUrl>() {
            Ok(url) if !url.hides_a_route() => return Some(url),
            Ok(_) => "its path begins like a route; expected another one, as in `https://host.example.com/shiparr`",
            Err(()) => "expected the address that people open, as in `https://host.example.com/shiparr`",
        };
        self.problems.push(format!("{name}: `{text}` is not valid; {expected}"));
        None
    }

    pub(super) fn trusted_proxies(&mut self) -> Vec<Network> {
        let Some((name, text)) = self.text("TRUSTED_PROXIES") else {
            return Vec::new();
        };
        let listed = text.split(|character: char| character == ',' || character.is_whitespace());
        let mut networks = Vec::new();
        for listed in listed.filter(|network| !network.is_empty()) {
            match listed.parse::<Network>() {
                Ok(network) => {
                    if network.prefix_bits == 0 {
                        let message = "every client may say that it is another one; name the proxies alone";
                        self.warnings.push(format!("{name}: with `{listed}` {message}"));
                    }
                    networks.push(network);
                }
                Err(()) => {
                    let expected = "expected addresses and networks as in `127.0.0.1, 172.16.0.0/12, fd00::/8`";
                    self.problems.push(format!("{name}: `{listed}` is not valid; {expected}"));
                }
            }
        }
        networks
    }
}

/// Whether a secret is set, be it good or bad.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Absent,
    Present,
}

/// The problem of a secret with its name, where it has one.
pub(super) fn judged(name: &str, secret: &Secret, problem: fn(&str) -> Option<&'static str>) -> Option<String> {
    problem(secret.expose()).map(|problem| format!("{name}: {problem}"))
}

/// What is wrong with an API key, where something is.
pub(super) fn key_problem(key: &str) -> Option<&'static str> {
    if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some("holds a space or a character that a header cannot carry; choose letters and digits");
    }
    (key.len() < KEY_CHARS_MIN).then_some("is shorter than 16 characters; `openssl rand -hex 24` makes a good one")
}

/// What is wrong with a URL that is asked and holds a token, where something is.
pub(super) fn url_problem(url: &str) -> Option<&'static str> {
    if !url.starts_with("https://") && !url.starts_with("http://") {
        return Some("is no http:// or https:// URL");
    }
    if !url.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some("holds a space or a character that a URL cannot hold");
    }
    match UrlParts::of(url) {
        Some(parts) if parts.host.is_empty() => Some("names no host"),
        Some(parts) if !parts.user.is_empty() || parts.password.is_some() => {
            Some("holds a user or a password, which nobody sends; only its path and query may be secret")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_that_is_asked_has_a_host_and_no_password() {
        for url in ["https://hc-ping.com/token", "http://[::1]:3001/api/push/token?status=up&msg=OK&ping="] {
            assert_eq!(url_problem(url), None, "{url}");
        }
        for url in
            ["", "hc-ping.com/token", "ftp://h/x", "https:///token", "https://u:p@h/x", "https://h/a b", "https://h/\n"]
        {
            assert!(url_problem(url).is_some(), "{url}");
        }
    }

    #[test]
    fn a_public_url_is_an_origin_and_a_path() {
        for (text, authority, path) in [
            ("https://Host.Example.com", "host.example.com", ""),
            ("HTTP://nas:8080/", "nas:8080", ""),
            ("https://host.example.com/shiparr/", "host.example.com", "/shiparr"),
            ("https://[2001:db8::1]:8443/a/b-c", "[2001:db8::1]:8443", "/a/b-c"),
            ("http://192.0.2.1", "192.0.2.1", ""),
        ] {
            let url: PublicUrl = text.parse().expect(text);
            assert_eq!((url.authority(), url.path()), (authority, path), "{text}");
        }
        for (text, hides) in
            [("http://a/api", true), ("http://a/widget/x", true), ("http://a/apis", false), ("http://a", false)]
        {
            assert_eq!(text.parse().map(|url: PublicUrl| url.hides_a_route()), Ok(hides), "{text}");
        }
        let url: PublicUrl = "https://host.example.com/shiparr/".parse().expect("a URL");
        assert_eq!(url.to_string(), "https://host.example.com/shiparr");
        for text in [
            "host.example.com",
            "ftp://host",
            "https://",
            "https://user@host",
            "https://host:port",
            "https://host:",
            "https://host/a?b",
            "https://host/a#b",
            "https://host/../a",
            "https://host//a",
            "https://host/a%2fb",
            "https://[host]",
            "https://[::1",
            "https://[::1]x",
        ] {
            assert_eq!(text.parse::<PublicUrl>(), Err(()), "{text}");
        }
    }

    #[test]
    fn a_network_holds_addresses_that_begin_alike() {
        let holds = |network: &str, address: &str| {
            network.parse::<Network>().expect(network).contains(address.parse().expect(address))
        };
        assert!(holds("127.0.0.1", "127.0.0.1") && !holds("127.0.0.1", "127.0.0.2"));
        assert!(holds("172.16.0.0/12", "172.31.255.255") && !holds("172.16.0.0/12", "172.32.0.0"));
        assert!(holds("0.0.0.0/0", "192.0.2.1") && !holds("0.0.0.0/0", "::1"));
        assert!(holds("10.1.2.3/8", "10.9.9.9"), "bits behind the prefix do not count");
        assert!(holds("10.0.0.0/8", "::ffff:10.1.2.3") && holds("::ffff:10.0.0.0/104", "10.1.2.3"));
        assert!(holds("fd00::/8", "fdff::1") && !holds("fd00::/8", "fe80::1") && holds("::/0", "::1"));
        for text in [
            "",
            "nas",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/8/8",
            "10.0.0",
            "::ffff:10.0.0.0/8",
        ] {
            assert_eq!(text.parse::<Network>(), Err(()), "{text}");
        }
    }

    #[test]
    fn a_key_is_long_and_fits_a_header() {
        assert_eq!(key_problem("0123456789abcdef"), None);
        for key in ["0123456789abcde", "0123456789 abcdef", "0123456789abcdefé", "0123456789abcdef\u{7f}"] {
            assert!(key_problem(key).is_some(), "{key}");
        }
    }
}
