//! The URL of a remote: which forms are accepted, and what they become.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A remote's URL, normalized: a scheme, a host in lower case, no default port, no credential.
///
/// `git@host:path` stays in that form, for its path is another one than that of `ssh://git@host/path`: it is relative
/// to the user's home folder on the host. Forges take both for the same; plain servers do not.
///
/// It reads again as what it is: parsing its own text changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RemoteUrl {
    /// With a scheme.
    text: String,
    /// As `git@host:path`, where that is what it is.
    relative: Option<String>,
    scheme: Scheme,
    /// Where the user (or, without one, the host) begins in `text`.
    authority: usize,
    /// Where the path begins in `text`, with its slash.
    path: usize,
}

/// How a remote is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `https://`
    Https,
    /// `http://`
    Http,
    /// `ssh://`
    Ssh,
    /// `file://`, a folder of this host.
    File,
}

impl RemoteUrl {
    /// As it is stored and shown.
    pub fn as_str(&self) -> &str {
        self.relative.as_ref().unwrap_or(&self.text)
    }

    /// How it is reached.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The user of an ssh remote, where one is named.
    pub fn user(&self) -> Option<&str> {
        Some(self.authority().rsplit_once('@')?.0)
    }

    /// `github.com`, `git.example.com:3000`, `[::1]:3000`; none for local paths.
    pub fn host_with_port(&self) -> Option<String> {
        let authority = self.authority();
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        (self.scheme != Scheme::File).then(|| host.to_owned())
    }

    /// The host alone, without the brackets of an IPv6 address; none for local paths.
    pub fn host(&self) -> Option<String> {
        let host = self.host_with_port()?;
        let host = match host.rsplit_once(':') {
            // The colons of an IPv6 address are inside its brackets.
            Some((name, port)) if !port.contains(']') => name,
            _ => &host,
        };
        Some(host.trim_start_matches('[').trim_end_matches(']').to_owned())
    }

    /// The port, the scheme's own where none is named; none for local paths.
    pub fn port(&self) -> Option<u16> {
        let named = self.host_with_port()?.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        named.or(self.scheme.default_port())
    }

    /// The path on the host, with its leading slash. That of a `file://` URL is taken as it stands, without
    /// percent-decoding.
    pub fn path(&self) -> &str {
        &self.text[self.path..]
    }

    /// Whether the path of an ssh remote begins in its user's home folder there.
    pub fn is_relative_to_home(&self) -> bool {
        self.relative.is_some()
    }

    /// Another repository on the same host, with a path as [`path`](Self::path) gives it.
    ///
    /// # Errors
    /// As in reading a URL.
    pub fn with_path(&self, path: &str) -> Result<RemoteUrl, String> {
        if self.scheme == Scheme::File {
            return local("", path);
        }
        let url = on_host(self.scheme, self.authority(), path)?;
        Ok(if self.is_relative_to_home() { url.relative_to_home() } else { url })
    }

    /// The folder of a `file://` remote.
    pub fn folder(&self) -> Option<&Path> {
        (self.scheme == Scheme::File).then(|| Path::new(self.path()))
    }

    fn authority(&self) -> &str {
        &self.text[self.authority..self.path]
    }

    /// An ssh remote whose path begins in the user's home folder.
    fn relative_to_home(mut self) -> RemoteUrl {
        let path = &self.path()[1..];
        let (user, host) = self.authority().rsplit_once('@').unwrap_or(("", self.authority()));
        let user = if user.is_empty() { String::new() } else { format!("{user}@") };
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
        // The brackets keep the port from being read as the path.
        let host = if has_port { format!("[{host}]") } else { host.to_owned() };
        self.relative = Some(format!("{user}{host}:{path}"));
        self
    }
}

impl Scheme {
    /// The word before `://`.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Https => "https",
            Scheme::Http => "http",
            Scheme::Ssh => "ssh",
            Scheme::File => "file",
        }
    }

    fn default_port(self) -> Option<u16> {
        match self {
            Scheme::Https => Some(443),
            Scheme::Http => Some(80),
            Scheme::Ssh => Some(22),
            Scheme::File => None,
        }
    }
}

impl fmt::Display for RemoteUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl From<RemoteUrl> for String {
    fn from(url: RemoteUrl) -> String {
        url.relative.unwrap_or(url.text)
    }
}

impl TryFrom<String> for RemoteUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// What is accepted, for messages.
const ACCEPTED: &str =
    "https://host/path, http://host/path, ssh://git@host/path, git@host:path, file:///path, /path or host/path (https)";

impl FromStr for RemoteUrl {
    type Err = String;

    /// Accepts https, http, ssh, `git@host:path` (with a port `git@[host:port]:path`), `file://`, an absolute path, and
    /// `host/path` (https). `.git` stays as it is written. The error never holds the text, which may carry a
    /// credential.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() {
            return Err(format!("an empty URL; expected {ACCEPTED}"));
        }
        if text.chars().any(char::is_control) {
            return Err("a control character in the URL".to_owned());
        }
        if text.starts_with('/') {
            return local("", text);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return without_scheme(text);
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        match scheme.to_ascii_lowercase().as_str() {
            "https" => on_host(Scheme::Https, authority, path),
            "http" => on_host(Scheme::Http, authority, path),
            "ssh" => on_host(Scheme::Ssh, authority, path),
            "file" => local(authority, path),
            _ => Err(format!("an unknown scheme; expected {ACCEPTED}")),
        }
    }
}

/// `host/path`, `host:port/path` and `user@host:path`.
fn without_scheme(text: &str) -> Result<RemoteUrl, String> {
    if text.starts_with(['.', '~']) {
        return Err("a relative path; write it absolute, from /".to_owned());
    }
    let (authority, path) = text.split_at(text.find('/').unwrap_or(text.len()));
    let Some((user, rest)) = text.split_once('@').filter(|(user, _)| !user.contains(['/', ':'])) else {
        let port = authority.rsplit_once(':').map(|(_, port)| port).filter(|port| !port.ends_with(']'));
        if port.is_some_and(|port| !port.bytes().all(|byte| byte.is_ascii_digit())) && !authority.contains('@') {
            return Err("no user before `host:path`; write git@host:path, or https://host/path".to_owned());
        }
        return on_host(Scheme::Https, authority, path);
    };
    // The colons of an IPv6 address, and that before a port, are inside brackets.
    let address = if rest.starts_with("[[") { rest.find(']').map_or(0, |end| end + 1) } else { 0 };
    let in_brackets = rest.starts_with('[').then(|| rest[address..].find("]:")).flatten();
    match in_brackets.map(|end| address + end + 1).or_else(|| rest.find(':')).map(|at| rest.split_at(at)) {
        Some((host, path)) if !host.contains('/') => {
            let inside = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            let has_port = inside.filter(|inside| inside.starts_with('[') || inside.matches(':').count() == 1);
            let authority = format!("{user}@{}", has_port.unwrap_or(host));
            let path = &path[1..];
            let url = on_host(Scheme::Ssh, &authority, &format!("/{}", path.trim_start_matches('/')))?;
            // `~` is the home folder in either form.
            Ok(if path.starts_with(['/', '~']) { url } else { url.relative_to_home() })
        }
        _ => on_host(Scheme::Https, authority, path),
    }
}

/// A remote that a host serves. `path` begins with a slash, or is empty.
fn on_host(scheme: Scheme, authority: &str, path: &str) -> Result<RemoteUrl, String> {
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    let user = user.map(|user| ssh_user(scheme, user)).transpose()?;
    let (host, port) = host_and_port(host)?;
    if path.contains(['?', '#']) {
        return Err("a query or a fragment (? or #) in the URL; a remote has none".to_owned());
    }
    if path.contains(char::is_whitespace) || path.contains('\\') {
        return Err("white space or a backslash in the URL; write a space as %20".to_owned());
    }
    let path = path.trim_end_matches('/');
    if path.is_empty() {
        return Err(format!("no path after the host; expected {ACCEPTED}"));
    }
    let mut text = format!("{}://", scheme.as_str());
    let authority = text.len();
    if let Some(user) = user {
        text.extend([user, "@"]);
    }
    text.push_str(&host);
    if let Some(port) = port.filter(|port| Some(*port) != scheme.default_port()) {
        text.push_str(&format!(":{port}"));
    }
    let start = text.len();
    text.push_str(path);
    Ok(RemoteUrl { text, relative: None, scheme, authority, path: start })
}

/// A folder of this host.
fn local(authority: &str, path: &str) -> Result<RemoteUrl, String> {
    if !matches!(authority, "" | "localhost") {
        return Err("a host in a file:// URL; write file:///path with three slashes".to_owned());
    }
    let path = path.trim_end_matches('/');
    if path.is_empty() {
        return Err("no path in the file:// URL; write file:///path".to_owned());
    }
    let start = "file://".len();
    let text = format!("file://{path}");
    Ok(RemoteUrl { text, relative: None, scheme: Scheme::File, authority: start, path: start })
}

/// A user is part of an ssh remote; anywhere else it may be a token, and a password is refused everywhere.
fn ssh_user(scheme: Scheme, user: &str) -> Result<&str, String> {
    if scheme != Scheme::Ssh {
        return Err(
            "a user or credential inside the URL; take it out and use `token` (for ssh write git@host:path)".to_owned()
        );
    }
    if user.contains(':') {
        return Err("a password inside the URL; take it out and use `ssh_key`".to_owned());
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+".contains(&byte);
    if user.is_empty() || user.starts_with('-') || !user.bytes().all(plain) {
        return Err("an ssh user that is not made of letters, digits and `._-+`".to_owned());
    }
    Ok(user)
}

/// The host in lower case, an IPv6 address in its brackets, and the port.
fn host_and_port(text: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let port = match port {
        // `https://host:/path` is allowed by the standard.
        None | Some("") => None,
        Some(digits) => match digits.parse::<u16>() {
            Ok(port) if port > 0 && digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(port),
            _ => return Err("a port that is not a number from 1 to 65535".to_owned()),
        },
    };
    let host = host.to_ascii_lowercase();
    let name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let valid = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && !host.starts_with(['-', '.']) && host.bytes().all(name),
    };
    if !valid {
        return Err(format!("no valid host name (letters, digits, `.`, `-`, `_`); expected {ACCEPTED}"));
    }
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> RemoteUrl {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn every_accepted_form_is_normalized_and_reads_again_as_itself() {
        for (text, expected) in [
            ("github.com/user/media-stack.git", "https://github.com/user/media-stack.git"),
            ("  https://GitHub.com/User/Repo  ", "https://github.com/User/Repo"),
            ("HTTPS://h/p/", "https://h/p"),
            ("https://h:443/p", "https://h/p"),
            ("https://h:/p", "https://h/p"),
            ("http://h:80/p", "http://h/p"),
            ("http://h:3000/p.git", "http://h:3000/p.git"),
            ("git.example.com:3000/u/r", "https://git.example.com:3000/u/r"),
            ("localhost:443/u/r", "https://localhost/u/r"),
            ("[::1]/u/r", "https://[::1]/u/r"),
            ("https://[::1]:8443/u/r", "https://[::1]:8443/u/r"),
            ("git@GitHub.com:user/repo.git", "git@github.com:user/repo.git"),
            ("git@host:/srv/git/repo.git", "ssh://git@host/srv/git/repo.git"),
            ("git@host:~other/repo.git", "ssh://git@host/~other/repo.git"),
            ("git@[::1]:user/repo", "git@[::1]:user/repo"),
            ("git@host:123/repo", "git@host:123/repo"),
            ("git@[host:22]:repo/", "git@host:repo"),
            ("git@[host:2222]:repo", "git@[host:2222]:repo"),
            ("git@[[::1]:2222]:user/repo", "git@[[::1]:2222]:user/repo"),
            ("git@[host:2222]:/srv/repo", "ssh://git@host:2222/srv/repo"),
            ("ssh://git@Host:22/p", "ssh://git@host/p"),
            ("ssh://git@host:2222/p", "ssh://git@host:2222/p"),
            ("ssh://host/p", "ssh://host/p"),
            ("file:///srv/git/a b.git", "file:///srv/git/a b.git"),
            ("file://localhost/srv/git/a.git/", "file:///srv/git/a.git"),
            ("/srv/git/50%#a.git", "file:///srv/git/50%#a.git"),
        ] {
            let url = parsed(text);
            assert_eq!(url.as_str(), expected, "{text}");
            assert_eq!(parsed(url.as_str()), url, "{text}");
        }
    }

    #[test]
    fn parts_are_those_of_the_normalized_text() {
        let url = parsed("ssh://git@Git.Example.com:2222/u/r.git");
        assert_eq!(
            (url.scheme(), url.user(), url.host(), url.port(), url.path()),
            (Scheme::Ssh, Some("git"), Some("git.example.com".to_owned()), Some(2222), "/u/r.git")
        );
        assert_eq!(url.host_with_port().as_deref(), Some("git.example.com:2222"));
        let url = parsed("git@[Git.Example.com:2222]:u/r.git");
        assert_eq!(
            (url.scheme(), url.user(), url.host(), url.port(), url.path()),
            (Scheme::Ssh, Some("git"), Some("git.example.com".to_owned()), Some(2222), "/u/r.git")
        );
        assert_eq!(url.with_path("/x").unwrap().as_str(), "git@[git.example.com:2222]:x");
        assert_ne!(url, parsed("ssh://git@git.example.com:2222/u/r.git"), "a home folder is not the root");
        let url = parsed("https://[::1]/u/r");
        assert_eq!((url.host(), url.port(), url.user()), (Some("::1".to_owned()), Some(443), None));
        assert_eq!(url.host_with_port().as_deref(), Some("[::1]"));
        let url = parsed("/srv/git/r");
        assert_eq!((url.host_with_port(), url.host(), url.port(), url.user()), (None, None, None, None));
        assert_eq!(url.folder(), Some(Path::new("/srv/git/r")));
    }

    #[test]
    fn what_is_refused_says_why_and_never_repeats_the_text() {
        for (text, part) in [
            ("", "empty"),
            ("https://", "no valid host name"),
            ("https://h", "no path"),
            ("https://h/", "no path"),
            ("repo", "no path"),
            ("ftp://h/p", "unknown scheme"),
            ("ext::sh -c touch% /tmp/x", "no user before"),
            ("https://user:hunter22@h/p", "use `token`"),
            ("https://hunter22@h/p", "use `token`"),
            ("user:hunter22@h/p", "use `token`"),
            ("git@h/hunter22", "use `token`"),
            ("ssh://git:hunter22@h/p", "use `ssh_key`"),
            ("ssh://-oProxyCommand=x@h/p", "ssh user"),
            ("ssh://git@-oProxyCommand/p", "no valid host name"),
            ("github.com:user/repo", "no user before"),
            ("https://h:0/p", "port"),
            ("https://h:65536/p", "port"),
            ("https://h/p?token=hunter22", "query"),
            ("https://h/p#hunter22", "query"),
            ("https://h/a b", "white space"),
            ("https://h/a\nb", "control character"),
            ("https://bücher.example/p", "no valid host name"),
            ("file://host/p", "a host in a file:// URL"),
            ("file:///", "no path"),
            ("/", "no path"),
            ("./repo", "relative"),
            ("~/repo", "relative"),
            ("git@[::1/p", "no valid host name"),
            ("git@[-oProxyCommand:22]:p", "no valid host name"),
            ("git@[h:x]:p", "port"),
            ("git@h:", "no path"),
        ] {
            let error = text.parse::<RemoteUrl>().expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
            assert!(!error.contains("hunter22") && !error.contains('\n'), "{text}: {error}");
        }
    }

    #[test]
    fn it_is_checked_when_it_is_read_from_json() {
        let url: RemoteUrl = serde_json::from_str("\"git@h:p\"").expect("a good one");
        assert_eq!(serde_json::to_string(&url).expect("json"), "\"git@h:p\"");
        assert!(serde_json::from_str::<RemoteUrl>("\"https://u:p@h/p\"").is_err());
    }
}
