//! A push, in the words of no provider; and which repositories of the project files it is about.

use crate::config::Repository;
use crate::config::project::Deploy;
use crate::git::{RemoteUrl, Scheme, full_reference};

/// A name is shown with at most this many characters.
const NAME_CHARACTERS_SHOWN: usize = 100;
/// A push is described with at most this many.
const PUSH_CHARACTERS_SHOWN: usize = 300;
/// The port of `git://`, which the URLs of project files do not have.
const GIT_PORT: &str = ":9418";

/// What a delivery says of a push.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Push {
    /// Every URL that the repository has: to clone it in any way, and its page.
    pub urls: Vec<String>,
    /// What happened to its branches and tags.
    pub updates: Vec<Update>,
    /// Who pushed.
    pub pusher: Option<String>,
}

/// What happened to a branch or a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// `refs/heads/main`
    pub reference: String,
    /// It is gone.
    pub is_deletion: bool,
}

/// The repositories that a push is about.
#[derive(Default)]
pub struct Matches<'a> {
    /// Those whose new commits are deployed by themselves.
    pub automatic: Vec<&'a Repository>,
    /// Those whose new commits are only shown.
    pub manual: Vec<&'a Repository>,
    /// Whether another branch of the same remote is followed.
    pub knows_remote: bool,
}

impl Push {
    /// Which of these repositories follow what was pushed.
    pub fn matches<'a>(&self, repositories: impl Iterator<Item = &'a Repository>) -> Matches<'a> {
        let places: Vec<Place> = self.urls.iter().filter_map(|url| Place::of_text(url)).collect();
        let mut matches = Matches::default();
        for repository in repositories.filter(|repository| places.contains(&Place::of(&repository.url))) {
            matches.knows_remote = true;
            match repository.deploy {
                _ if !self.moves(&full_reference(&repository.branch)) => {}
                Deploy::Auto => matches.automatic.push(repository),
                Deploy::Manual => matches.manual.push(repository),
            }
        }
        matches
    }

    /// Whether what `reference` names may be another commit since. Which branch is the remote's `HEAD` is not known
    /// here: it may be any.
    fn moves(&self, reference: &str) -> bool {
        self.updates.iter().filter(|update| !update.is_deletion).any(|update| {
            update.reference == reference || reference == "HEAD" && update.reference.starts_with("refs/heads/")
        })
    }

    /// The repository and what was pushed, for people.
    pub fn describe(&self) -> String {
        let place = self.urls.iter().find_map(|url| Place::of_text(url));
        let repository = place.map_or("a repository without a URL".to_owned(), |place| place.host + &place.path);
        let references: Vec<String> = match self.updates.as_slice() {
            [] => vec!["nothing".to_owned()],
            updates => updates.iter().map(|update| shown(&update.reference)).collect(),
        };
        let what = format!("{} of {}", references.join(", "), shown(&repository));
        shown_within(&what, PUSH_CHARACTERS_SHOWN)
    }
}

/// Where a repository is, however one gets there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    /// In lower case, with the port where that is not the scheme's own; empty for a folder of this host.
    host: String,
    /// Without the `.git` and the slashes at its end. In lower case where there is a host: to no forge are owners and
    /// repositories two that differ in case alone, and one push too many ends `skipped`.
    path: String,
}

impl Place {
    fn of(url: &RemoteUrl) -> Place {
        let path = url.path().trim_end_matches('/');
        let path = path.strip_suffix(".git").unwrap_or(path).trim_end_matches('/');
        match url.host_with_port() {
            Some(host) => Place { host, path: path.to_ascii_lowercase() },
            None => Place { host: String::new(), path: path.to_owned() },
        }
    }

    /// None: it is no URL of a repository.
    fn of_text(text: &str) -> Option<Place> {
        let url = match text.split_once("://") {
            None => text.parse::<RemoteUrl>().ok()?,
            Some((scheme, rest)) => {
                let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
                let (scheme, host) = match host.strip_suffix(GIT_PORT).unwrap_or(host) {
                    host if scheme.eq_ignore_ascii_case("git") => (Scheme::Https.as_str(), host),
                    _ => (scheme, host),
                };
                format!("{scheme}://{host}{path}").parse().ok()?
            }
        };
        Some(Place::of(&url))
    }
}

/// A text of a payload, for a log line, an answer or the record of who asked: one line, nothing that a terminal or a
/// page takes for more than a sign, and not too long.
pub fn shown(text: &str) -> String {
    shown_within(text, NAME_CHARACTERS_SHOWN)
}

/// As [`shown`], with another bound.
pub fn shown_within(text: &str, characters: usize) -> String {
    let is_sign = |sign: &char| {
        let turns_text = matches!(*sign, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}');
        !sign.is_control() && !turns_text && *sign != '\u{feff}'
    };
    text.trim().chars().filter(is_sign).take(characters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_the_same_however_its_url_is_written() {
        let same =
            |one: &str, other: &str| Place::of_text(one).is_some() && Place::of_text(one) == Place::of_text(other);
        for url in [
            "https://git.example.com/ada/stack",
            "https://git.example.com/ada/stack.git",
            "https://git.example.com/Ada/Stack",
            "https://git.example.com/ada/stack.git/",
            "https://git.example.com:443/ada/stack",
            "http://GIT.example.COM:80/ada/stack/",
            "https://ada@git.example.com/ada/stack.git",
            "https://ada:secret@git.example.com/ada/stack.git",
            "git.example.com/ada/stack.git",
            "git@git.example.com:ada/stack.git",
            "forgejo@git.example.com:ada/stack",
            "git@git.example.com:/ada/stack.git",
            "ssh://git@git.example.com/ada/stack.git",
            "ssh://git.example.com:22/ada/stack",
            "git://git.example.com/ada/stack.git",
            "git://git.example.com:9418/ada/stack.git",
            " https://git.example.com/ada/stack ",
        ] {
            assert!(same(url, "https://git.example.com/ada/stack"), "{url}");
        }
        for url in [
            "https://git.example.com/ada/stack2",
            "https://git.example.com/ada",
            "https://git.example.com:3000/ada/stack",
            "https://example.com/ada/stack",
            "ssh://git@git.example.com:2222/ada/stack",
            "https://git.example.com.evil.example/ada/stack",
            "https://evil.example/https://git.example.com/ada/stack",
            "https://git.example.com/ada/stack?x",
            "file:///ada/stack",
            "/ada/stack",
            "",
            "://",
        ] {
            assert!(!same(url, "https://git.example.com/ada/stack"), "{url}");
        }
        assert!(same("ssh://git@h:7999/prj/stack.git", "git@[h:7999]:prj/stack"));
        assert!(same("file:///srv/stack.git", "/srv/stack"));
        assert!(!same("/srv/Stack", "/srv/stack"));
    }

    #[test]
    fn what_is_shown_is_one_short_line() {
        assert_eq!(shown(" ada\n\u{1b}[31m\u{202e}\u{200b}b\u{feff} "), "ada[31mb");
        assert_eq!(shown(&"é".repeat(500)).chars().count(), NAME_CHARACTERS_SHOWN);
    }
}
