//! http(s) remotes in protocol v2: one POST lists the branch, one more fetches it.
//!
//! This is the one place that decides where a credential goes: only to the scheme, host and port of the configured URL,
//! over TLS, to a loopback address, or with `insecure_http`; a redirect to any other place is followed without it.

use std::io;
use std::net::IpAddr;

use super::pack::{self, NotPackets, RemoteReference, Unpacked, Unpacker};
use super::{GitError, Remote, RemoteUrl, Scheme};
use crate::command::Limit;
use crate::http::{self, Request, Response};
use crate::model::CommitHash;

/// The path of the service below a repository's URL.
const SERVICE: &str = "/git-upload-pack";
/// Redirects that are followed for one request.
const MAX_REDIRECTS: usize = 5;
/// Bound on the answer about one branch: names that merely begin like it come along.
const MAX_LIST_BYTES: usize = 1024 * 1024;
/// Branches that an error names.
const MAX_NAMED_BRANCHES: usize = 20;

/// The full reference of a `branch` setting.
pub fn full_reference(branch: &str) -> String {
    if branch.starts_with("refs/") || branch == "HEAD" { branch.to_owned() } else { format!("refs/heads/{branch}") }
}

/// What follows from the references that are there, where the one that is followed is not.
pub(super) fn no_such_branch(remote: &Remote, names: &[String], cut_off: bool) -> GitError {
    let short = |name: &String| format!("`{}`", name.strip_prefix("refs/heads/").unwrap_or(name));
    let named: Vec<String> = names.iter().take(MAX_NAMED_BRANCHES).map(short).collect();
    let (branch, url) = (&remote.branch, &remote.url);
    if named.is_empty() {
        return GitError::lasting(format!("{url} has no `{branch}` and no branch at all: push a first commit to it"));
    }
    let more = if cut_off || names.len() > named.len() { " and more" } else { "" };
    GitError::lasting(format!("there is no `{branch}` in {url}; there are {}{more}", named.join(", ")))
}

/// Where the branches are that stand in for a missing reference: tags for a tag, else branches.
pub(super) fn siblings_of(reference: &str) -> &'static str {
    if reference.starts_with("refs/tags/") { "refs/tags/" } else { "refs/heads/" }
}

/// Whether the credential of `remote` may go to `url`.
pub(super) fn may_have_credential(remote: &Remote, url: &RemoteUrl) -> bool {
    let same =
        url.scheme() == remote.url.scheme() && url.host() == remote.url.host() && url.port() == remote.url.port();
    same && (url.scheme() == Scheme::Https || remote.insecure_http || is_loopback(url))
}

fn is_loopback(url: &RemoteUrl) -> bool {
    let host = url.host().unwrap_or_default();
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// How a fetch over protocol v2 ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fetched {
    /// The pack was handed over.
    Whole,
    /// The server does not speak v2, or does not give this commit by its hash.
    NotThisWay,
}

/// Talks to one remote; remembers where redirects led.
pub(super) struct Session<'a> {
    remote: &'a Remote,
    limit: &'a Limit,
    /// Where the repository is by now.
    url: RemoteUrl,
    /// Whether an answer has shown that it is there.
    settled: bool,
}

impl<'a> Session<'a> {
    pub fn new(remote: &'a Remote, limit: &'a Limit) -> Session<'a> {
        Session { remote, limit, url: remote.url.clone(), settled: false }
    }

    /// The branch's commit; none when the server does not speak protocol v2.
    pub fn tip(&mut self) -> Result<Option<CommitHash>, GitError> {
        let reference = full_reference(&self.remote.branch);
        let Some(references) = self.list(&reference)? else { return Ok(None) };
        match references.iter().find(|found| found.name == reference) {
            Some(found) => Ok(Some(found.hash.parse().map_err(|_| GitError::lasting("a reference without a hash"))?)),
            None => self.report_missing(&reference),
        }
    }

    /// Fetches `want` with all that it needs beyond `haves`; the pack goes to `out`.
    pub fn fetch<W: io::Write>(&mut self, want: &str, haves: &[String], out: W) -> Result<(W, Fetched), GitError> {
        let mut unpacker = Unpacker::new(out);
        let answered = self.post(&pack::fetch_request(want, haves), &mut |piece| unpacker.push(piece))?;
        let (out, ended) = unpacker.finish();
        let host = self.url.host_with_port().unwrap_or_default();
        match ended {
            _ if !answered => Ok((out, Fetched::NotThisWay)),
            Unpacked::Whole => Ok((out, Fetched::Whole)),
            Unpacked::NotPackets | Unpacked::Refused(_) => Ok((out, Fetched::NotThisWay)),
            Unpacked::CutOff => Err(GitError::passing(format!("{host} ended the transfer early"))),
            Unpacked::Failed(error) => Err(GitError::passing(format!("cannot store what {host} sent: {error}"))),
        }
    }

    /// The references that begin with `prefix`; none when the server does not speak protocol v2.
    fn list(&mut self, prefix: &str) -> Result<Option<Vec<RemoteReference>>, GitError> {
        let mut body = Vec::new();
        let answered = self.post(&pack::list_request(prefix), &mut |piece| {
            body.extend_from_slice(piece);
            body.len() <= MAX_LIST_BYTES
        })?;
        if !answered {
            return Ok(None);
        }
        Ok(pack::read_references(&body, body.len() <= MAX_LIST_BYTES).ok())
    }

    /// Asks which branches there are, no more of them than the error names.
    fn report_missing(&mut self, reference: &str) -> Result<Option<CommitHash>, GitError> {
        let mut body = Vec::new();
        let mut found = Ok(Vec::new());
        self.post(&pack::list_request(siblings_of(reference)), &mut |piece| {
            body.extend_from_slice(piece);
            found = pack::read_references(&body, false);
            found.as_ref().is_ok_and(|found| found.len() <= MAX_NAMED_BRANCHES)
        })?;
        let found = found.unwrap_or_else(|NotPackets| Vec::new());
        let names: Vec<String> = found.into_iter().map(|found| found.name).collect();
        Err(no_such_branch(self.remote, &names, names.len() > MAX_NAMED_BRANCHES))
    }

    /// Sends a request to the service, following redirects; `false` when the answer is none that protocol v2 has.
    fn post(&mut self, body: &[u8], on_piece: &mut dyn FnMut(&[u8]) -> bool) -> Result<bool, GitError> {
        for _ in 0..=MAX_REDIRECTS {
            let sends_credential = may_have_credential(self.remote, &self.url);
            let credential = self.remote.credential.as_ref().filter(|_| sends_credential);
            let request = Request {
                method: "POST".to_owned(),
                url: format!("{}{SERVICE}", self.url),
                headers: [
                    ("Content-Type", "application/x-git-upload-pack-request"),
                    ("Accept", "application/x-git-upload-pack-result"),
                    ("Git-Protocol", "version=2"),
                    ("User-Agent", concat!("git/2.0 (shiparr ", env!("CARGO_PKG_VERSION"), ")")),
                ]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec(),
                body: Some(body.to_vec()),
                basic_auth: credential.map(|credential| (credential.user.clone(), credential.secret.clone())),
                ca_file: self.remote.ca_file.clone(),
                max_body_bytes: MAX_LIST_BYTES,
                proxies: self.remote.proxies.clone(),
                ..Request::default()
            };
            let response =
                http::stream(&request, self.limit, on_piece).map_err(|error| GitError::passing(with_hint(&error.0)))?;
            match response.status {
                200 => {
                    self.settled = true;
                    let kind = header(&response, "content-type").unwrap_or_default();
                    return Ok(kind.starts_with("application/x-git-upload-pack-result"));
                }
                301 | 302 | 303 | 307 | 308 => self.url = self.redirected(&response)?,
                // Some forges know a repository's services only under its full name.
                404 | 405 if !self.settled && !self.url.path().ends_with(".git") => {
                    self.settled = true;
                    self.url = format!("{}.git", self.url).parse().map_err(GitError::lasting)?;
                }
                401 | 403 | 404 => return Err(refusal(self.remote, &self.url, response.status)),
                407 => {
                    return Err(GitError::lasting("the proxy refuses: it wants a user and a password in HTTPS_PROXY"));
                }
                408 | 425 | 429 | 500 | 502..=599 => {
                    let host = self.url.host_with_port().unwrap_or_default();
                    return Err(GitError::passing(format!("{host} answered {} for {}", response.status, self.url)));
                }
                _ => return Ok(false),
            }
        }
        Err(GitError::lasting(format!("{} redirects more than {MAX_REDIRECTS} times", self.remote.url)))
    }

    /// Where a redirect leads.
    fn redirected(&self, response: &Response) -> Result<RemoteUrl, GitError> {
        let url = &self.url;
        let Some(location) = header(response, "location") else {
            return Err(GitError::lasting(format!("{url} redirects without saying where to")));
        };
        let path = location.split(['?', '#']).next().unwrap_or_default();
        let path = path.strip_suffix(SERVICE).unwrap_or(path);
        let host = url.host_with_port().unwrap_or_default();
        let target = match path.strip_prefix("//") {
            Some(rest) => format!("{}://{rest}", url.scheme().as_str()),
            None if path.starts_with('/') => format!("{}://{host}{path}", url.scheme().as_str()),
            None => path.to_owned(),
        };
        let bad = |why: &str| GitError::lasting(format!("{url} redirects to where Shiparr does not follow ({why})"));
        let target: RemoteUrl = target.parse().map_err(|error: String| bad(&error))?;
        match (url.scheme(), target.scheme()) {
            (_, Scheme::Https) | (Scheme::Http, Scheme::Http) => Ok(target),
            _ => Err(bad("not https")),
        }
    }
}

/// A transport's error, with the setting that helps where one does.
fn with_hint(error: &str) -> String {
    let is_about_trust = error.contains("SSL certificate problem");
    if is_about_trust { format!("{error} (an authority of your own is set as `ca_file`)") } else { error.to_owned() }
}

fn header<'r>(response: &'r Response, name: &str) -> Option<&'r str> {
    response.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
}

/// Why a forge said 401, 403 or 404 at `url`, and what to do: which token was used, and what it needs.
pub(super) fn refusal(remote: &Remote, url: &RemoteUrl, status: u16) -> GitError {
    let host = url.host_with_port().unwrap_or_default();
    let missing = if status == 404 { "there is no such repository, or " } else { "" };
    let Some(credential) = &remote.credential else {
        let set = hint(&host);
        let problem = if status == 404 { "it is private" } else { "it asks for a token" };
        return GitError::lasting(format!(
            "{host} answered {status} for {url}: {missing}{problem} and none is set: set {set}"
        ));
    };
    let source = &credential.source;
    if may_have_credential(remote, url) {
        let needs = needs(&host);
        return GitError::lasting(format!(
            "{host} answered {status} for {url} to the token of {source}: {missing}the token has expired or lacks access: it needs {needs}"
        ));
    }
    let why = if (url.scheme(), url.host(), url.port()) == (remote.url.scheme(), remote.url.host(), remote.url.port()) {
        format!("the token of {source} is not sent over plain http: use https, or set `insecure_http: true`")
    } else {
        let own = remote.url.host_with_port().unwrap_or_default();
        format!(
            "{} redirects here, and the token of {source} is only for {own}: set `url` to where it is now",
            remote.url
        )
    };
    GitError::lasting(format!("{host} answered {status} for {url}: {missing}{why}"))
}

/// What a token needs at a forge, as that forge calls it.
fn needs(host: &str) -> &'static str {
    match host {
        "github.com" => {
            "Contents, read (a classic token: `repo`; for an organisation with SSO it must be authorised there as well)"
        }
        "gitlab.com" => "`read_repository`",
        "gitea.com" | "codeberg.org" => "`repository`, read",
        "bitbucket.org" => "Repositories, read",
        _ => {
            "read access to the repository (GitHub: Contents, read; GitLab: `read_repository`; Gitea, Forgejo: `repository`, read)"
        }
    }
}

/// Where a token for a host is set.
fn hint(host: &str) -> String {
    match host {
        "github.com" => "GITHUB_TOKEN, or `github` under `tokens`".to_owned(),
        "gitlab.com" => "GITLAB_TOKEN, or `gitlab` under `tokens`".to_owned(),
        "gitea.com" | "codeberg.org" => "GITEA_TOKEN, or `gitea` under `tokens`".to_owned(),
        "bitbucket.org" => "`bitbucket` under `tokens`".to_owned(),
        _ => format!("`{host}` under `tokens`, or the repository's `token`"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::git::libgit;
    use crate::git::testing::{Lab, Manners, Server, credential, git, limit, remote};
    use crate::model::Chance;

    /// A repository with one commit, its hash, and a server for it.
    fn serve(manners: Manners) -> (Lab, String, Server) {
        let lab = Lab::new();
        lab.put("file", "one");
        let hash = lab.push("one");
        let server = Server::start(&lab.root(), manners);
        *lab.remote.borrow_mut() = remote(&server.url("remote.git"));
        (lab, hash, server)
    }

    fn with_password() -> Manners {
        Manners { password: Some("oauth2:right".to_owned()), ..Manners::default() }
    }

    fn tip(lab: &Lab) -> Result<Option<CommitHash>, GitError> {
        Session::new(&lab.remote.borrow(), &limit()).tip()
    }

    #[test]
    fn a_check_is_one_small_request_however_many_references_there_are() {
        let (lab, hash, server) = serve(Manners::default());
        let bare = lab.root().join("remote.git");
        let names = (0..5000).map(|number| format!("{hash} refs/pull/{number}/head\n"));
        let packed = format!("# pack-refs with: peeled fully-peeled sorted\n{}", {
            let mut names: Vec<String> = names.collect();
            names.sort();
            names.concat()
        });
        std::fs::write(bare.join("packed-refs"), packed).unwrap();
        git(&lab.clone(), &["push", "-q", "origin", "HEAD:refs/heads/main-2"]);
        assert_eq!(tip(&lab).unwrap().unwrap().as_str(), hash);
        let seen = server.take_seen();
        assert_eq!(seen.len(), 1);
        assert!(seen[0].answer_bytes <= 2048, "{} bytes", seen[0].answer_bytes);
    }

    #[test]
    fn a_missing_branch_is_answered_with_those_that_are_there() {
        let (lab, _, _server) = serve(Manners::default());
        lab.remote.borrow_mut().branch = "refs/heads/mian".to_owned();
        assert!(tip(&lab).unwrap_err().message.ends_with("there are `main`"));
        for number in 0..30 {
            git(&lab.clone(), &["push", "-q", "origin", &format!("HEAD:refs/heads/b-{number:02}")]);
        }
        let error = tip(&lab).unwrap_err();
        assert!(error.message.ends_with("`b-19` and more"), "{error}");
        lab.remote.borrow_mut().branch = "refs/tags/v1".to_owned();
        assert!(tip(&lab).unwrap_err().message.contains("no `refs/tags/v1`"));
    }

    #[test]
    fn an_annotated_tag_gives_its_commit() {
        let (lab, hash, _server) = serve(Manners::default());
        git(&lab.clone(), &["tag", "-a", "v1", "-m", "x"]);
        git(&lab.clone(), &["push", "-q", "origin", "v1"]);
        lab.remote.borrow_mut().branch = "refs/tags/v1".to_owned();
        assert_eq!(tip(&lab).unwrap().unwrap().as_str(), hash);
        assert_eq!(lab.deploy().unwrap().commit.hash.as_str(), hash);
    }

    #[test]
    fn a_fetch_over_http_brings_only_what_is_new() {
        let (lab, _, server) = serve(with_password());
        lab.remote.borrow_mut().credential = credential("right");
        let noise: String = (0..20_000).map(|number| format!("{:x} ", number * 7919 % 65537)).collect();
        lab.put("large", &noise);
        lab.push("two");
        lab.deploy().unwrap();
        server.take_seen();
        lab.put("file", "three");
        let hash = lab.push("three");
        assert_eq!(lab.deploy().unwrap().commit.hash.as_str(), hash);
        let bytes: usize = server.take_seen().iter().map(|seen| seen.answer_bytes).sum();
        assert!(bytes < 4096, "{bytes} bytes");
        assert_eq!((lab.read("file"), lab.read("large")), ("three".into(), noise));
        lab.deploy().unwrap();
        assert_eq!(server.take_seen().len(), 1, "nothing is new, nothing is fetched");
    }

    #[test]
    fn a_refused_token_is_named_and_never_shown() {
        let (lab, hash, server) = serve(with_password());
        let error = tip(&lab).unwrap_err();
        assert!(error.message.contains("asks for a token and none is set"), "{error}");
        assert!(error.message.contains(&format!("`{}` under `tokens`", server.address)), "{error}");
        lab.remote.borrow_mut().credential = credential("wrong-and-secret");
        server.take_seen();
        let error = tip(&lab).unwrap_err();
        assert_eq!(server.take_seen().len(), 1, "offered once");
        assert!(error.message.contains("answered 401") && error.message.contains("TEST_TOKEN"), "{error}");
        assert!(error.message.contains("GitLab: `read_repository`"), "{error}");
        assert!(!error.message.contains("secret") && error.chance == Chance::Final, "{error}");
        assert!(!lab.deploy().unwrap_err().message.contains("secret"));
        lab.remote.borrow_mut().credential = credential("right");
        assert_eq!(tip(&lab).unwrap().unwrap().as_str(), hash);
    }

    #[test]
    fn other_answers_are_told_apart() {
        let (lab, _, server) = serve(Manners::default());
        let told = |answer: &str| {
            server.manners.lock().unwrap().answer = Some(answer.to_owned());
            tip(&lab)
        };
        let busy = told("HTTP/1.1 503 Busy\r\nContent-Length: 0").unwrap_err();
        assert!(busy.chance == Chance::CanPass && busy.message.contains("503"), "{busy}");
        let missing = told("HTTP/1.1 404 No\r\nContent-Length: 0").unwrap_err();
        assert!(missing.message.contains("there is no such repository, or it is private"), "{missing}");
        assert!(
            told("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\n<html").unwrap().is_none()
        );
        assert!(told("HTTP/1.1 501 No\r\nContent-Length: 0").unwrap().is_none());
    }

    #[test]
    fn a_token_stays_with_its_scheme_host_and_port() {
        let (lab, hash, first) = serve(with_password());
        let second = Server::start(&lab.root(), Manners::default());
        lab.remote.borrow_mut().credential = credential("right");
        let lead = |from: &str, to: String| first.manners.lock().unwrap().redirect = Some((from.to_owned(), to));
        // To another path of the same host: with it.
        lab.remote.borrow_mut().url = first.url("old/remote.git").parse().unwrap();
        lead("/old", String::new());
        assert_eq!(tip(&lab).unwrap().unwrap().as_str(), hash);
        // To another port: without it, and a public repository is still had.
        lead("/old", format!("http://{}", second.address));
        assert_eq!(tip(&lab).unwrap().unwrap().as_str(), hash);
        assert_eq!(lab.deploy().unwrap().commit.hash.as_str(), hash);
        assert!(second.take_seen().iter().all(|seen| seen.authorization.is_none()));
        second.manners.lock().unwrap().password = Some("oauth2:right".to_owned());
        let error = tip(&lab).unwrap_err();
        assert!(error.message.contains("redirects here") && error.message.contains("only for 127.0.0.1"), "{error}");
        // In a circle.
        lead("/old", "/old".to_owned());
        assert!(tip(&lab).unwrap_err().message.contains("redirects more than 5 times"));
        lead("/old", "file:///etc".to_owned());
        assert!(tip(&lab).unwrap_err().message.contains("does not follow"));
    }

    #[test]
    fn a_token_goes_over_plain_http_only_where_that_is_allowed() {
        let may = |url: &str, insecure: bool| {
            let remote = Remote { insecure_http: insecure, ..remote(url) };
            may_have_credential(&remote, &remote.url)
        };
        assert!(may("https://h/r", false) && may("http://127.0.0.1:3000/r", false) && may("http://[::1]/r", false));
        assert!(may("http://localhost/r", false) && may("http://h/r", true) && !may("http://h/r", false));
        let plain = Remote { credential: credential("x"), ..remote("http://h/r") };
        assert!(refusal(&plain, &plain.url, 401).message.contains("set `insecure_http: true`"));
        let github = Remote { credential: credential("x"), ..remote("https://github.com/u/r") };
        assert!(refusal(&github, &github.url, 404).message.contains("Contents, read"));
    }

    #[test]
    fn a_server_of_the_old_protocol_is_left_to_libgit2() {
        let (lab, hash, _server) = serve(Manners { old: true, ..with_password() });
        lab.remote.borrow_mut().credential = credential("right");
        assert_eq!(tip(&lab).unwrap(), None);
        assert_eq!(libgit::tip(&lab.remote.borrow()).unwrap().as_str(), hash);
        assert_eq!(lab.deploy().unwrap().commit.hash.as_str(), hash);
        lab.remote.borrow_mut().credential = credential("wrong-and-secret");
        let error = libgit::tip(&lab.remote.borrow()).unwrap_err();
        assert!(error.message.contains("answered 401") && !error.message.contains("secret"), "{error}");
        lab.remote.borrow_mut().branch = "mian".to_owned();
        lab.remote.borrow_mut().credential = credential("right");
        assert!(libgit::tip(&lab.remote.borrow()).unwrap_err().message.ends_with("there are `main`"));
    }

    #[test]
    fn a_remote_that_drips_holds_nobody_longer_than_the_limit() {
        let (lab, _, _server) = serve(Manners { drips: true, ..Manners::default() });
        let begin = Instant::now();
        let error = Session::new(&lab.remote.borrow(), &Limit::after(Duration::from_millis(300))).tip().unwrap_err();
        assert!(error.message.contains("longer than its time limit") && error.chance == Chance::CanPass, "{error}");
        assert!(begin.elapsed() < Duration::from_secs(3));
    }

    #[test]
    fn submodules_are_checked_out_under_their_parents_host() {
        let (lab, _, server) = serve(with_password());
        lab.remote.borrow_mut().credential = credential("right");
        let module = Lab::new();
        module.put("inside", "a submodule's");
        let hash = module.push("module");
        std::fs::rename(module.root().join("remote.git"), lab.root().join("module.git")).unwrap();
        lab.put(".gitmodules", "[submodule \"m\"]\n\tpath = libs/m\n\turl = ../module.git\n");
        git(&lab.clone(), &["add", ".gitmodules"]);
        let gitlink = format!("160000,{hash},libs/m");
        git(&lab.clone(), &["update-index", "--add", "--cacheinfo", &gitlink]);
        git(&lab.clone(), &["commit", "-q", "-m", "with a submodule"]);
        git(&lab.clone(), &["push", "-q", "-f", "origin", "HEAD:main"]);
        lab.deploy().unwrap();
        assert_eq!(lab.read("libs/m/inside"), "a submodule's");
        assert!(server.take_seen().iter().any(|seen| seen.line.starts_with("POST /module.git/")));
        lab.host_puts("libs/m/inside", "changed here");
        lab.deploy().unwrap();
        assert_eq!(lab.read("libs/m/inside"), "a submodule's");
        assert_eq!(lab.saved().len(), 2);
    }
}
