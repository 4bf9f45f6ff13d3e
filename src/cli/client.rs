//! The client of the control socket, or of `--url`.

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::command::Limit;
use crate::config::Environment;
use crate::config::settings::{CONTROL_SOCKET, ClientSettings};
use crate::http::{self, Proxies, Request, Response};
use crate::model::{DeploymentId, RepositoryId, Status, Trigger};
use crate::secrets::Secret;
use crate::secrets::url::UrlParts;

/// Where the control socket always is under systemd.
const SYSTEM_RUNTIME_PATH: &str = "/run/shiparr";
/// An answer takes at most this; a followed log may take as long as a deployment.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// An answer is at most this large.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// The status code of an answer to who did not say, or not rightly, who they are.
const UNAUTHORIZED: u16 = 401;
/// The status code of an answer that says that things are not so.
const CONFLICT: u16 = 409;

/// Talks to a daemon.
pub struct Client {
    base: String,
    unix_socket: Option<PathBuf>,
    basic_auth: Option<(String, Secret)>,
    api_key: Option<Secret>,
    proxies: Proxies,
}

/// A repository, as far as the verbs need it.
#[derive(Deserialize)]
pub struct RepositoryView {
    pub id: RepositoryId,
    pub project: String,
    pub name: String,
    pub branch: String,
    pub status: String,
    pub orphaned: bool,
    pub last_commit_hash: Option<String>,
    pub observed_commit: Option<String>,
    pub last_error: Option<String>,
    pub next_check_at: Option<jiff::Timestamp>,
    pub last_deployment: Option<DeploymentView>,
}

/// A deployment, as far as the verbs need it.
#[derive(Deserialize)]
pub struct DeploymentView {
    pub id: DeploymentId,
    pub commit_hash: Option<String>,
    pub commit_subject: Option<String>,
    pub status: Status,
    pub trigger: Trigger,
    pub actor: Option<String>,
    pub error: Option<String>,
    pub created_at: jiff::Timestamp,
    pub finished_at: Option<jiff::Timestamp>,
    pub duration_seconds: Option<f64>,
}

#[derive(Deserialize)]
struct ErrorBody {
    message: String,
}

impl Client {
    /// The daemon at `url` or `SHIPARR_URL`, else the one behind the control socket.
    ///
    /// # Errors
    /// No control socket is there, or the file of `SHIPARR_PASSWORD` or `SHIPARR_API_KEY` cannot be read.
    pub fn new(environment: &Environment, url: Option<&str>) -> anyhow::Result<Client> {
        let settings = ClientSettings::from_environment(environment);
        let from_environment = environment.get("SHIPARR_URL").and_then(|url| url.to_str());
        let Some(url) = url.or(from_environment) else {
            return Client::of_this_host(environment);
        };
        let basic_auth = match environment.secret("SHIPARR_PASSWORD").map_err(anyhow::Error::msg)? {
            Some(password) => {
                let user = environment.get("SHIPARR_USERNAME").and_then(|user| user.to_str()).unwrap_or("admin");
                Some((user.to_owned(), password))
            }
            None => None,
        };
        let api_key = environment.secret("SHIPARR_API_KEY").map_err(anyhow::Error::msg)?;
        if (basic_auth.is_some() || api_key.is_some()) && is_readable_on_the_way(url) {
            eprintln!(
                "shiparr: warning: the password goes over plain http, readable on the way: use https, or run this on the daemon's host"
            );
        }
        Ok(Client {
            base: url.trim_end_matches('/').to_owned(),
            unix_socket: None,
            basic_auth,
            api_key,
            proxies: settings.proxies,
        })
    }

    /// The daemon behind the control socket.
    ///
    /// # Errors
    /// No control socket is there.
    pub fn of_this_host(environment: &Environment) -> anyhow::Result<Client> {
        let likeliest = ClientSettings::from_environment(environment).control_socket;
        let sockets = [likeliest.clone(), Path::new(SYSTEM_RUNTIME_PATH).join(CONTROL_SOCKET)];
        let Some(socket) = sockets.into_iter().find(|socket| socket.exists()) else {
            bail!(
                "no Shiparr runs here ({} is not there): start it with `shiparr run`, or name another one with --url",
                likeliest.display()
            );
        };
        Ok(Client {
            base: "http://localhost".to_owned(),
            unix_socket: Some(socket),
            basic_auth: None,
            api_key: None,
            proxies: Proxies::default(),
        })
    }

    /// Holds back a verb that the daemon serves on its control socket alone.
    ///
    /// # Errors
    /// The client talks to a URL.
    pub fn require_socket(&self, verb: &str) -> anyhow::Result<()> {
        if self.unix_socket.is_none() {
            bail!(
                "`shiparr {verb}` works over the control socket only: run it on that host, without --url and SHIPARR_URL"
            );
        }
        Ok(())
    }

    /// GET, as a value.
    ///
    /// # Errors
    /// The daemon cannot be reached, or refuses: its own words.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        parse(&self.ask(self.request("GET", path))?)
    }

    /// GET within a time of the caller's own, for who would rather have no answer than wait for one.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn get_within<T: DeserializeOwned>(&self, path: &str, limit: Duration) -> anyhow::Result<T> {
        let request = self.request("GET", path);
        let response = http::send(&request, &Limit::after(limit)).with_context(|| self.unreachable())?;
        parse(&accepted(&request, response)?)
    }

    /// GET, as the text that came.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn get_text(&self, path: &str) -> anyhow::Result<String> {
        let mut request = self.request("GET", path);
        request.headers.push(("Accept".to_owned(), "text/plain".to_owned()));
        Ok(String::from_utf8_lossy(&self.ask(request)?.body).into_owned())
    }

    /// GET, whatever the status code.
    ///
    /// # Errors
    /// The daemon cannot be reached.
    pub fn get_any(&self, path: &str) -> anyhow::Result<Response> {
        self.send(&self.request("GET", path))
    }

    /// POST with a JSON body.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &serde_json::Value) -> anyhow::Result<T> {
        parse(&self.ask(with_body(self.request("POST", path), body))?)
    }

    /// POST without a body; none where the daemon answers that things are not so (409).
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn post_unless_conflict<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<Option<T>> {
        let mut request = self.request("POST", path);
        request.body = Some(Vec::new());
        let response = self.send(&request)?;
        if response.status == CONFLICT {
            return Ok(None);
        }
        parse(&accepted(&request, response)?).map(Some)
    }

    /// Whether it talks to a daemon of this host, over the control socket.
    pub fn has_socket(&self) -> bool {
        self.unix_socket.is_some()
    }

    /// POST with a JSON body, whose answer comes line by line, until the daemon ends it or a line is longer than
    /// `max_line_bytes`.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn hold(
        &self,
        path: &str,
        body: &serde_json::Value,
        max_line_bytes: usize,
        on_line: &mut dyn FnMut(Vec<u8>),
    ) -> anyhow::Result<()> {
        let mut line = Vec::new();
        let mut on_piece = |piece: &[u8]| {
            for byte in piece {
                match byte {
                    b'\n' => on_line(std::mem::take(&mut line)),
                    byte => line.push(*byte),
                }
            }
            line.len() <= max_line_bytes
        };
        let request = with_body(self.request("POST", path), body);
        let response =
            http::stream(&request, &Limit::after(Duration::MAX), &mut on_piece).with_context(|| self.unreachable())?;
        accepted(&request, response).map(drop)
    }

    /// Prints a text as it comes, until the daemon ends it or nobody reads any more (`| head`).
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn follow(&self, path: &str) -> anyhow::Result<()> {
        let mut request = self.request("GET", path);
        request.headers.push(("Accept".to_owned(), "text/plain".to_owned()));
        let response =
            http::stream(&request, &Limit::after(Duration::MAX), &mut print).with_context(|| self.unreachable())?;
        accepted(&request, response).map(drop)
    }

    /// The repository that a person means: `project/repository`, or a name that is unique.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn repository(&self, given: &str) -> anyhow::Result<RepositoryView> {
        let all: Vec<RepositoryView> = self.get("/api/repositories")?;
        let full = |repository: &RepositoryView| format!("{}/{}", repository.project, repository.name);
        let names: Vec<String> = all.iter().map(full).collect();
        let mut found: Vec<RepositoryView> =
            all.into_iter().filter(|repository| repository.name == given || full(repository) == given).collect();
        match found.len() {
            1 => Ok(found.remove(0)),
            0 if names.is_empty() => {
                bail!("there is no repository `{given}`: no project file is loaded yet, see `shiparr check`")
            }
            0 => bail!("there is no repository `{given}`: there are {}", names.join(", ")),
            _ => {
                let names: Vec<String> = found.iter().map(full).collect();
                bail!("`{given}` is not unique: say {}", names.join(" or "))
            }
        }
    }

    fn request(&self, method: &str, path: &str) -> Request {
        let mut headers = vec![("User-Agent".to_owned(), concat!("shiparr/", env!("CARGO_PKG_VERSION")).to_owned())];
        headers.extend(self.api_key.as_ref().map(|key| ("X-Api-Key".to_owned(), key.expose().to_owned())));
        Request {
            method: method.to_owned(),
            url: format!("{}{path}", self.base),
            headers,
            basic_auth: self.basic_auth.clone(),
            unix_socket: self.unix_socket.clone(),
            max_body_bytes: MAX_ANSWER_BYTES,
            proxies: self.proxies.clone(),
            ..Request::default()
        }
    }

    fn ask(&self, request: Request) -> anyhow::Result<Response> {
        let response = self.send(&request)?;
        accepted(&request, response)
    }

    fn send(&self, request: &Request) -> anyhow::Result<Response> {
        http::send(request, &Limit::after(ANSWER_LIMIT)).with_context(|| self.unreachable())
    }

    fn unreachable(&self) -> String {
        match &self.unix_socket {
            Some(socket) => {
                format!("cannot talk to the daemon over {} (root and the group shiparr may)", socket.display())
            }
            None => format!("cannot talk to the daemon at {}", self.base),
        }
    }
}

/// Prints a piece of a text. `false` where nobody reads any more, which an empty piece finds out too.
fn print(piece: &[u8]) -> bool {
    let mut out = std::io::stdout().lock();
    if !piece.is_empty() {
        return out.write_all(piece).and_then(|()| out.flush()).is_ok();
    }
    // Asked for nothing, the kernel tells that the other end of a pipe is closed.
    let mut asked = [PollFd::new(&out, PollFlags::empty())];
    let is_closed = rustix::event::poll(&mut asked, Some(&Timespec::default())).is_ok_and(|ready| ready > 0);
    !is_closed
}

/// The same with a JSON body.
fn with_body(mut request: Request, body: &serde_json::Value) -> Request {
    request.headers.push(("Content-Type".to_owned(), "application/json".to_owned()));
    request.body = Some(body.to_string().into_bytes());
    request
}

/// An answer that is no refusal.
fn accepted(request: &Request, response: Response) -> anyhow::Result<Response> {
    if response.status < 400 {
        return Ok(response);
    }
    match serde_json::from_slice::<ErrorBody>(&response.body) {
        Ok(error) if response.status == UNAUTHORIZED => {
            bail!("{}: set SHIPARR_USERNAME and SHIPARR_PASSWORD, or SHIPARR_API_KEY", error.message)
        }
        Ok(error) => bail!("{}", error.message),
        Err(_) => bail!("the daemon answered {} to {} {}", response.status, request.method, request.url),
    }
}

/// Whether what is sent to a URL crosses a network in plain text. Without a scheme it is http.
fn is_readable_on_the_way(url: &str) -> bool {
    let with_scheme = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let Some(parts) = UrlParts::of(&with_scheme) else { return false };
    let host = parts.host.trim_start_matches('[').trim_end_matches(']');
    let stays_here = host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
    parts.scheme.eq_ignore_ascii_case("http") && !stays_here
}

fn parse<T: DeserializeOwned>(response: &Response) -> anyhow::Result<T> {
    serde_json::from_slice(&response.body)
        .context("the daemon's answer is not what this version expects: are both of one version?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_and_this_host_keep_a_password_to_themselves() {
        for url in
            ["http://pi:8080", "HTTP://10.0.0.2", "pi.lan:8080", "http://localhost.example.com", "http://[fe80::1]/"]
        {
            assert!(is_readable_on_the_way(url), "{url}");
        }
        for url in
            ["https://pi", "http://localhost:8080/", "http://127.0.0.1:8080", "http://[::1]:8080", "localhost:8080"]
        {
            assert!(!is_readable_on_the_way(url), "{url}");
        }
    }
}
