//! The web: a gate that owns every client's socket, tiny_http behind it, routes, auth, the API, webhooks, the widget and
//! the status page.
//!
//! ```text
//! client ─▶ gate (one thread) ─▶ tiny_http ─▶ handler threads ─▶ rules ▸ auth ▸ route
//!                                                  └─▶ a thread of a pool, for what streams or takes its time
//! store ─▶ events (one thread) ─▶ gate ─▶ all who listen
//! ```
//!
//! The web never runs a deployment: it reads the store, or writes a pending row and wakes the worker. It spawns
//! nothing: [`start`] hands its long-lived threads to the daemon as functions, and asks it ([`Daemon::spawn`]) for a
//! thread where an answer streams or takes its time.

mod access;
mod answer;
mod api;
mod auth;
mod events;
mod failures;
mod following;
mod forwarded;
pub mod gate;
mod health;
mod hooks;
mod lending;
mod listen;
mod metrics;
mod openapi;
mod origin;
mod page;
mod passwords;
mod pausing;
mod presence;
mod request;
mod routes;
mod server;
mod stream;
mod widget;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::command::{Limit, Places};
use crate::config::{Catalog, Settings};
use crate::deploy::by_hand::Tools;
use crate::metrics::Metrics;
use crate::model::{DeploymentId, RepositoryId, RepositoryName};
use crate::store::Store;

pub use gate::Listener;
pub use listen::{ListenError, listen_control, listen_tcp};
pub use server::{StopWeb, Thread, Web, start};

/// Streams that are written to clients at once; one more is answered 503.
pub const STREAMS_MAX: usize = 32;

/// Those of the control socket: whoever follows logs does not keep an upgrade from waiting (`shiparr hold`).
pub const CONTROL_STREAMS_MAX: usize = 16;

/// Processes of Docker that follow logs, of all streams together; each has two or three descriptors and some 10 MB. A
/// stream that finds none left is answered 503, one that finds some tells which containers it leaves out.
const FOLLOWERS_MAX: usize = 64;

/// The kind of listener that a request came in by; set by the gate, never by a client.
const HEADER_LISTENER: &str = "X-Shiparr-Listener";
/// The client's address, or user on the control socket ([`Peer`]); set by the gate, never by a client.
const HEADER_PEER: &str = "X-Shiparr-Peer";
/// The request's number in this process; set by the gate, never by a client.
const HEADER_REQUEST: &str = "X-Shiparr-Request";

/// In an answer: its client listens from now on to what is told after this number; never passed on to a client.
const HEADER_LISTENS: &str = "X-Shiparr-Listens";

/// How a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerKind {
    /// Over TCP: rules and authentication apply.
    Tcp,
    /// Over the control socket: its file permissions are the authentication.
    Control,
}

impl ListenerKind {
    fn as_str(self) -> &'static str {
        match self {
            ListenerKind::Tcp => "tcp",
            ListenerKind::Control => "control",
        }
    }
}

/// The other end of a connection, as the system tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Over TCP: a client, or a proxy.
    Address(IpAddr),
    /// Over the control socket: the user's number.
    User(u32),
}

/// What a user's number begins with between gate and routes.
const USER_PREFIX: &str = "uid:";

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Address(address) => address.fmt(formatter),
            Peer::User(number) => write!(formatter, "{USER_PREFIX}{number}"),
        }
    }
}

impl FromStr for Peer {
    type Err = ();

    fn from_str(text: &str) -> Result<Peer, ()> {
        match text.strip_prefix(USER_PREFIX) {
            Some(number) => number.parse().map(Peer::User).map_err(drop),
            None => text.parse().map(Peer::Address).map_err(drop),
        }
    }
}

/// What came of one notification URL that was tried.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct NotifyResult {
    /// `project/name` of the repository it is for; of a URL that several have, the first.
    pub repository: String,
    /// The URL's kind (`discord`), for `http` and `https` with its host, never the URL; `notification` where the URL
    /// itself cannot be had.
    pub target: String,
    /// Why nothing was sent, in one line; none when it was.
    pub problem: Option<String>,
}

/// A stack that is in somebody's hands (`shiparr compose`).
pub struct Lent {
    /// What they need to work on it.
    pub tools: Tools,
    /// Dropped when they have let go: the stack's deployments go on then.
    pub hold: Box<dyn Send>,
}

/// A deployment that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Busy {
    /// Whose, and which one.
    pub what: String,
    /// By then it has ended, with all that follows its own time limit.
    pub ends_within: Duration,
}

/// What the web asks of the daemon around it. Nothing here waits, but for [`Daemon::notify_test`] and [`Daemon::lend`].
pub trait Daemon: Send + Sync {
    /// The accepted configuration, and what is wrong with it.
    fn catalog(&self) -> Arc<Catalog>;

    /// There is a new pending row.
    fn wake_worker(&self);

    /// Ends a running deployment of a repository as if it were past its limit. Answers whether that one was running.
    fn cancel_running(&self, repository: RepositoryId, deployment: DeploymentId) -> bool;

    /// A repository is checked now, rather than when its interval ends.
    fn check_now(&self, id: RepositoryId);

    /// The records of these repositories are gone; what else was kept for them goes too.
    fn forgotten(&self, repositories: &[RepositoryName]);

    /// Why Docker does not answer, as it was found out in the background.
    fn docker_problem(&self) -> Option<String>;

    /// When the daemon started.
    fn started_at(&self) -> Instant;

    /// Sends a test message to every notification URL of a repository, or of all of them, each one once. Takes as long
    /// as the notifiers do.
    ///
    /// # Errors
    /// A repository that is not configured, in one line.
    fn notify_test(&self, repository: Option<&RepositoryName>) -> Result<Vec<NotifyResult>, String>;

    /// Puts a stack into the hands of `who`, who have to let go when `limit` is cancelled. Takes as long as decrypting
    /// its variables does.
    ///
    /// # Errors
    /// Why not, in one line.
    fn lend(&self, repository: RepositoryId, who: &str, limit: &Limit) -> Result<Lent, String>;

    /// Asks whoever has a stack in their hands to let go, by the limit that they took it with; answers who that is.
    fn release(&self, repository: RepositoryId) -> Option<String>;

    /// From now on no deployment begins, until the answer is dropped. Those that run go on.
    fn pause(&self) -> Box<dyn Send>;

    /// The deployments that run now, oldest first.
    fn running(&self) -> Vec<Busy>;

    /// Runs something in a thread of its own; the web bounds how many there are.
    ///
    /// # Errors
    /// The system's, where there are no more threads.
    fn spawn(&self, name: &str, job: Box<dyn FnOnce() + Send>) -> io::Result<()>;
}

/// What every route may use.
pub struct Context {
    /// The service's settings.
    pub settings: Arc<Settings>,
    /// The database.
    pub store: Arc<Store>,
    /// The daemon around the web.
    pub daemon: Arc<dyn Daemon>,
    /// What the process counts.
    pub metrics: Arc<Metrics>,
    health: health::Health,
    followers: Arc<Places>,
    events: events::Events,
    refused_webhooks: hooks::Refusals,
}

impl Context {
    /// What the daemon gives to the web.
    pub fn new(settings: Arc<Settings>, store: Arc<Store>, daemon: Arc<dyn Daemon>, metrics: Arc<Metrics>) -> Context {
        let (health, refused_webhooks) = Default::default();
        let (events, followers) = (events::Events::new(), Places::new(FOLLOWERS_MAX));
        Context { settings, store, daemon, metrics, health, followers, events, refused_webhooks }
    }
}
