//! Which token belongs to which host.

use super::reader::{At, Reader};
use super::suggest::did_you_mean;
use super::template::Template;
use super::variables::is_host_name;

/// A host that is known by name: the keys of `tokens` that are for it, the nearer one first, and the environment's
/// default.
struct Provider {
    host: &'static str,
    keys: &'static [&'static str],
    variable: Option<&'static str>,
}

/// Spec section 3. To add one, add a line.
const PROVIDERS: &[Provider] = &[
    Provider { host: "github.com", keys: &["github"], variable: Some("GITHUB_TOKEN") },
    Provider { host: "gitlab.com", keys: &["gitlab"], variable: Some("GITLAB_TOKEN") },
    Provider { host: "gitea.com", keys: &["gitea", "forgejo"], variable: Some("GITEA_TOKEN") },
    Provider { host: "codeberg.org", keys: &["forgejo", "gitea"], variable: Some("GITEA_TOKEN") },
    Provider { host: BITBUCKET, keys: &["bitbucket"], variable: None },
];

const BITBUCKET: &str = "bitbucket.org";

/// The user name that goes with a bare token.
pub(super) fn user_of_bare_token(host: &str) -> &'static str {
    if host == BITBUCKET { "x-token-auth" } else { "oauth2" }
}

/// A project's `tokens`, by provider or host. A key whose name is not set is kept without a token.
#[derive(Debug, Default)]
pub(super) struct ProjectTokens(Vec<(String, Option<Template>)>);

impl ProjectTokens {
    pub(super) fn read(reader: &mut Reader<'_>, at: &At<'_>) -> ProjectTokens {
        let mut tokens = Vec::new();
        for (key, at) in reader.named(at) {
            if !is_provider(key) && !is_host_with_port(key) {
                reader.error(&at, "neither a provider nor a host; expected `github`, or git.example.com, or host:port");
                continue;
            }
            if !is_provider(key) && !key.contains(['.', ':']) {
                let suggestion = did_you_mean(key, PROVIDERS.iter().flat_map(|provider| provider.keys).copied());
                if !suggestion.is_empty() {
                    reader.warning(&at, format!("taken for a host's name{suggestion}"));
                }
            }
            tokens.push((key.to_ascii_lowercase(), reader.optional_template(&at)));
        }
        ProjectTokens(tokens)
    }

    /// The token for a host, and where it comes from: by the host's own name first, then by its provider's. The inner
    /// none: there is a key for it whose name is not set.
    pub(super) fn for_host(&self, host: &str) -> Option<(Option<Template>, String)> {
        let keys = provider(host).map(|provider| provider.keys).unwrap_or_default();
        std::iter::once(host).chain(keys.iter().copied()).find_map(|wanted| {
            let (key, token) = self.0.iter().find(|(key, _)| key == wanted)?;
            Some((token.clone(), format!("`tokens.{key}` of the project")))
        })
    }
}

/// The environment variable that holds the default token for a host.
pub(super) fn default_variable(host: &str) -> Option<&'static str> {
    provider(host)?.variable
}

fn provider(host: &str) -> Option<&'static Provider> {
    PROVIDERS.iter().find(|provider| provider.host == host)
}

fn is_provider(key: &str) -> bool {
    PROVIDERS.iter().any(|provider| provider.keys.contains(&key))
}

fn is_host_with_port(key: &str) -> bool {
    let (host, port) = match key.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (key, None),
    };
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let valid_host =
        address.map_or_else(|| is_host_name(host), |address| address.parse::<std::net::Ipv6Addr>().is_ok());
    valid_host && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_name_is_looked_for_before_its_providers() {
        let token = |text: &str| Some(Template::new(text));
        let tokens = ProjectTokens(vec![
            ("forgejo".to_owned(), token("f")),
            ("gitea".to_owned(), token("g")),
            ("github".to_owned(), None),
            ("gitlab".to_owned(), token("provider")),
            ("gitlab.com".to_owned(), token("host")),
            ("git.example.com".to_owned(), token("e")),
        ]);
        assert_eq!(tokens.for_host("codeberg.org"), Some((token("f"), "`tokens.forgejo` of the project".to_owned())));
        assert_eq!(tokens.for_host("gitea.com"), Some((token("g"), "`tokens.gitea` of the project".to_owned())));
        assert_eq!(tokens.for_host("github.com"), Some((None, "`tokens.github` of the project".to_owned())));
        assert_eq!(tokens.for_host("gitlab.com").and_then(|(token, _)| token), token("host"));
        assert_eq!(tokens.for_host("git.example.com").and_then(|(token, _)| token), token("e"));
        assert_eq!(tokens.for_host("git.example.com:3000"), None, "a port is part of the host");
        assert_eq!(tokens.for_host("bitbucket.org"), None);
    }

    #[test]
    fn keys_are_providers_or_hosts() {
        for key in ["git.example.com", "forge", "git.example.com:3000", "[::1]:3000", "10.0.0.1"] {
            assert!(is_host_with_port(key), "{key}");
        }
        for key in ["", "https://git.example.com", "git.example.com/", "h:0", "h:x", "[::x]", "a b"] {
            assert!(!is_host_with_port(key), "{key}");
        }
    }
}
