//! The gate: one thread that owns every client's socket, so that tiny_http sees clean requests only.
//!
//! tiny_http 0.12 trusts its clients: an endless header line, a body length of petabytes, a client that pipelines and
//! never reads, or an `accept` that fails each end it or take its memory. The gate accepts, reads heads and bodies
//! within their limits, refuses what two readers could understand differently, and passes one complete request at a
//! time over a unix socket in a private folder. It passes the answer back as it comes, and knows when the client hung
//! up.
//!
//! A connection's life is `connection::Phase`; the moves between phases are in `flow.rs`, those of listeners in
//! `broadcast.rs`, the loop around them is here.

mod broadcast;
mod chunked;
mod connection;
mod flow;
mod head;
mod limits;
mod refusal;
mod slots;
mod upstream;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{SocketAddrAny, SocketFlags, sockopt};

use super::presence::Presence;
use super::{ListenerKind, Peer};
use crate::pulse;
use broadcast::Audience;
pub use broadcast::Broadcast;
use connection::{Client, Phase};
pub use limits::Limits;
use limits::{ACCEPT_CALM, ACCEPT_PAUSE, STOP_LINGER_LIMIT, SWEEP_PAUSE, UPSTREAM_IDLE_LIMIT, UPSTREAMS_KEPT};
use refusal::Refusal;
use slots::{Key, Slots};
use upstream::Upstream;

/// Events taken from epoll at once.
const EVENTS_AT_ONCE: usize = 256;
/// Connections accepted before others get their turn again.
const ACCEPTS_AT_ONCE: usize = 64;
/// Bytes read from a socket at once.
const READ_BYTES: usize = 64 * 1024;

/// What the upper two bits of an epoll token say.
const TOKEN_STOP: u64 = 0;
const TOKEN_NEWS: u64 = 1;
const TOKEN_LISTENER: u64 = 1 << 62;
const TOKEN_CLIENT: u64 = 2 << 62;
const TOKEN_UPSTREAM: u64 = 3 << 62;
const TOKEN_KINDS: u64 = 3 << 62;

/// A socket that clients connect to.
pub enum Listener {
    /// Anybody who reaches it: rules and authentication apply.
    Tcp(TcpListener),
    /// The control socket: its file permissions are the authentication.
    Control(UnixListener),
}

impl Listener {
    fn kind(&self) -> ListenerKind {
        match self {
            Listener::Tcp(_) => ListenerKind::Tcp,
            Listener::Control(_) => ListenerKind::Control,
        }
    }

    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Listener::Tcp(socket) => socket.set_nonblocking(true),
            Listener::Control(socket) => socket.set_nonblocking(true),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Tcp(socket) => socket.as_fd(),
            Listener::Control(socket) => socket.as_fd(),
        }
    }
}

struct Listening {
    socket: Listener,
    paused_until: Option<Instant>,
    /// When `accept` first failed and when it last did, until it has been well for [`ACCEPT_CALM`].
    failing: Option<(Instant, Instant)>,
}

/// Tells the gate to stop, from any thread.
#[derive(Clone)]
pub struct Stop {
    bell: Arc<OwnedFd>,
}

impl Stop {
    /// No new connections; requests in flight may end for a moment, then [`Gate::run`] returns.
    pub fn stop(&self) {
        // It can only fail because the counter is full: then the gate has been told.
        let _ = rustix::io::write(&*self.bell, &1_u64.to_ne_bytes());
    }
}

/// The gate; see the module.
pub struct Gate {
    epoll: OwnedFd,
    bell: Arc<OwnedFd>,
    news: Arc<OwnedFd>,
    broadcast: Arc<Broadcast>,
    audience: Audience,
    presence: Arc<Presence>,
    limits: Limits,
    upstream_path: PathBuf,
    listeners: Vec<Listening>,
    clients: Slots<Client>,
    upstreams: Slots<Upstream>,
    /// Connections to tiny_http that carry nothing.
    idle: Vec<Key>,
    /// The connection to tiny_http that was just opened.
    greeting: Option<Key>,
    /// No other connection to tiny_http is opened before this: one broke off while it was greeted.
    greet_again_at: Option<Instant>,
    /// Connections to tiny_http that carry a stream.
    streams: usize,
    /// Clients whose request waits for a connection to tiny_http, oldest first; some may be gone.
    queue: VecDeque<Key>,
    /// Clients by the time since which they owe a request, or have had their last answer, oldest first; an entry whose
    /// number is not the client's any more is void.
    waiting: VecDeque<(Key, u32)>,
    /// Bytes of request bodies in memory.
    body_bytes: usize,
    /// Bytes of answers in memory.
    output_bytes: usize,
    requests: u64,
    now: Instant,
    sweep_at: Option<Instant>,
    stop_at: Option<Instant>,
    scratch: Vec<u8>,
}

impl Gate {
    /// A gate in front of the tiny_http server that listens on `upstream_path`.
    ///
    /// # Errors
    /// The system's, where it has no epoll, or no descriptors.
    pub fn new(
        listeners: Vec<Listener>,
        upstream_path: PathBuf,
        limits: Limits,
        presence: Arc<Presence>,
        broadcast: Arc<Broadcast>,
    ) -> io::Result<Gate> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let bell = Arc::new(rustix::event::eventfd(0, flags)?);
        epoll::add(&epoll, &*bell, epoll::EventData::new_u64(TOKEN_STOP), epoll::EventFlags::IN)?;
        let news = Arc::new(rustix::event::eventfd(0, flags)?);
        epoll::add(&epoll, &*news, epoll::EventData::new_u64(TOKEN_NEWS), epoll::EventFlags::IN)?;
        broadcast.open(limits.listeners, Arc::clone(&news));
        let mut listening = Vec::new();
        for (index, socket) in listeners.into_iter().enumerate() {
            socket.set_nonblocking()?;
            epoll::add(&epoll, &socket, listener_token(index), epoll::EventFlags::IN)?;
            listening.push(Listening { socket, paused_until: None, failing: None });
        }
        Ok(Gate {
            epoll,
            bell,
            news,
            broadcast,
            audience: Audience::default(),
            presence,
            limits,
            upstream_path,
            listeners: listening,
            clients: Slots::new(),
            upstreams: Slots::new(),
            idle: Vec::new(),
            greeting: None,
            greet_again_at: None,
            streams: 0,
            queue: VecDeque::new(),
            waiting: VecDeque::new(),
            body_bytes: 0,
            output_bytes: 0,
            requests: 0,
            now: Instant::now(),
            sweep_at: None,
            stop_at: None,
            scratch: vec![0; READ_BYTES],
        })
    }

    /// What stops it.
    pub fn stop_handle(&self) -> Stop {
        Stop { bell: Arc::clone(&self.bell) }
    }

    /// Serves until it is stopped.
    ///
    /// # Errors
    /// epoll's, and a tiny_http that does not listen any more.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
        while !self.has_stopped() {
            let timeout = self.timeout();
            pulse::rests();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            pulse::next_within(Duration::ZERO);
            self.now = Instant::now();
            for event in events.drain(..) {
                self.on_event(event.data.u64(), event.flags);
            }
            self.pass_on_queued()?;
            if self.sweep_at.is_some_and(|at| at <= self.now) {
                self.sweep();
            }
        }
        self.refuse_the_rest();
        Ok(())
    }

    fn on_event(&mut self, token: u64, flags: epoll::EventFlags) {
        match token & TOKEN_KINDS {
            TOKEN_CLIENT => self.on_client(Key::from_bits(token & !TOKEN_KINDS), flags),
            TOKEN_UPSTREAM => self.on_upstream(Key::from_bits(token & !TOKEN_KINDS), flags),
            TOKEN_LISTENER => self.accept((token & !TOKEN_KINDS) as usize),
            _ if token == TOKEN_NEWS => self.tell_listeners(),
            _ => self.begin_to_stop(),
        }
    }

    fn has_stopped(&self) -> bool {
        self.stop_at.is_some_and(|at| at <= self.now || self.clients.len() == 0)
    }

    /// Whoever was accepted is still answered: who waits in the kernel's queue, of a socket that was handed over, is the
    /// next process's, but these are nobody else's.
    fn begin_to_stop(&mut self) {
        let mut count = [0; 8];
        // Whatever was in the counter: it rang.
        let _ = rustix::io::read(&*self.bell, &mut count);
        if self.stop_at.is_some() {
            return;
        }
        for listening in self.listeners.drain(..) {
            // One that was handed over stays open elsewhere, and epoll would go on telling of it; it fails only where
            // it is not watched.
            let _ = epoll::delete(&self.epoll, &listening.socket);
        }
        self.stop_at = Some(self.now + self.limits.stop);
        self.wake_at(self.now + self.limits.stop);
        let keys: Vec<Key> = self.clients.iter().map(|(key, _)| key).collect();
        for key in keys {
            self.shorten(key);
        }
        self.end_listeners();
    }

    /// Whose answer takes longer than a stop may is told so.
    fn refuse_the_rest(&mut self) {
        let waits = |client: &Client| match client.phase {
            Phase::Head => !client.input.is_empty(),
            Phase::Body(_) | Phase::Queued(..) | Phase::Answering { begun: false, .. } => true,
            _ => false,
        };
        let keys: Vec<Key> = self.clients.iter().filter(|(_, client)| waits(client)).map(|(key, _)| key).collect();
        for key in keys {
            self.refuse(key, Refusal::unavailable("Shiparr is stopping: ask again"));
        }
    }

    /// The gate stops: who owes the beginning of a request, or has had the last answer, has less time from now on.
    fn shorten(&mut self, key: Key) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let limit = match client.phase {
            Phase::Head if !client.input.is_empty() => return,
            Phase::Head if client.has_asked => self.limits.stop_next_request,
            Phase::Head => self.limits.stop_first_request,
            Phase::Lingering => STOP_LINGER_LIMIT,
            _ => return,
        };
        let deadline = self.now + limit;
        let deadline = client.deadline.map_or(deadline, |before| before.min(deadline));
        client.deadline = Some(deadline);
        self.wake_at(deadline);
    }

    fn timeout(&self) -> Option<Timespec> {
        let left = self.sweep_at?.saturating_duration_since(Instant::now());
        // A millisecond more, so that it does not wake up just before.
        Timespec::try_from(left + Duration::from_millis(1)).ok()
    }

    fn wake_at(&mut self, at: Instant) {
        self.sweep_at = Some(self.sweep_at.map_or(at, |before| before.min(at)));
    }

    /// Looks at every deadline; at most every [`SWEEP_PAUSE`].
    fn sweep(&mut self) {
        let now = self.now;
        let mut next: Option<Instant> = self.stop_at;
        let mut expired = Vec::new();
        for (key, client) in self.clients.iter() {
            match client.deadline {
                Some(deadline) if deadline <= now => expired.push(key),
                Some(deadline) => next = Some(next.map_or(deadline, |before| before.min(deadline))),
                None => {}
            }
        }
        self.sweep_at = next.map(|at| at.max(now + SWEEP_PAUSE));
        for key in expired {
            self.on_deadline(key);
        }
        self.resume_listeners();
        self.close_idle_upstreams();
        self.give_up_greeting();
    }

    fn close_idle_upstreams(&mut self) {
        // The end of the list is used first, so the beginning has been idle for longest.
        while self.idle.len() > UPSTREAMS_KEPT {
            let key = self.idle[0];
            let since = self.upstreams.get_mut(key).map_or(self.now, |upstream| upstream.idle_since);
            if self.now < since + UPSTREAM_IDLE_LIMIT {
                self.wake_at(since + UPSTREAM_IDLE_LIMIT);
                return;
            }
            self.idle.remove(0);
            self.upstreams.remove(key);
        }
    }

    fn accept(&mut self, index: usize) {
        let mut may_make_room = true;
        for _ in 0..ACCEPTS_AT_ONCE {
            let Some(listening) = self.listeners.get(index) else { return };
            let kind = listening.socket.kind();
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match rustix::net::acceptfrom_with(&listening.socket, flags) {
                Ok((socket, address)) => {
                    if let Err(error) = self.on_accepted(socket, kind, address) {
                        self.pause_listener(index, error);
                        return;
                    }
                }
                Err(Errno::AGAIN) => return,
                // The client is gone already, or the network says something about it.
                Err(
                    Errno::INTR
                    | Errno::CONNABORTED
                    | Errno::PROTO
                    | Errno::NETDOWN
                    | Errno::NOPROTOOPT
                    | Errno::HOSTDOWN
                    | Errno::HOSTUNREACH
                    | Errno::OPNOTSUPP
                    | Errno::NETUNREACH
                    | Errno::TIMEDOUT,
                ) => {}
                Err(Errno::MFILE | Errno::NFILE) if may_make_room && self.drop_longest_waiting() => {
                    may_make_room = false;
                }
                Err(error) => {
                    self.pause_listener(index, error);
                    return;
                }
            }
        }
    }

    fn on_accepted(
        &mut self,
        socket: OwnedFd,
        kind: ListenerKind,
        address: Option<SocketAddrAny>,
    ) -> Result<(), Errno> {
        if self.clients.len() - self.audience.len() >= self.limits.connections && !self.drop_longest_waiting() {
            let refusal = Refusal::unavailable("there are too many requests at once");
            // It is as good as closed; what the socket takes at once is what the client gets.
            let _ = rustix::net::send(&socket, &refusal.to_bytes(false), rustix::net::SendFlags::NOSIGNAL);
            return Ok(());
        }
        if kind == ListenerKind::Tcp {
            // Without it answers are merely later.
            let _ = sockopt::set_tcp_nodelay(&socket, true);
            keep_alive(&socket);
        }
        let peer = match kind {
            ListenerKind::Tcp => address
                .and_then(|address| std::net::SocketAddr::try_from(address).ok())
                .map(|address| Peer::Address(address.ip().to_canonical())),
            ListenerKind::Control => {
                rustix::net::sockopt::socket_peercred(&socket).ok().map(|known| Peer::User(known.uid.as_raw()))
            }
        };
        let key = self.clients.insert_with(|_| Client::new(socket, kind, peer));
        let token = epoll::EventData::new_u64(TOKEN_CLIENT | key.to_bits());
        let Some(client) = self.clients.get_mut(key) else { return Ok(()) };
        client.interest = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
        if let Err(error) = epoll::add(&self.epoll, &client.socket, token, client.interest) {
            self.clients.remove(key);
            return Err(error);
        }
        self.wait_for_request(key, self.limits.first_request);
        Ok(())
    }

    /// From now on the client owes a request, whose first byte has to come within `limit`.
    fn wait_for_request(&mut self, key: Key, limit: Duration) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.phase = Phase::Head;
        let deadline = self.now + limit;
        client.deadline = Some(deadline);
        self.wake_at(deadline);
        self.may_make_room(key);
    }

    /// From now on nothing is lost for the daemon if the client goes.
    fn may_make_room(&mut self, key: Key) {
        let Some(client) = self.clients.get_mut(key) else { return };
        client.waits = client.waits.wrapping_add(1);
        self.waiting.push_back((key, client.waits));
        if self.waiting.len() > 2 * self.limits.connections {
            let clients = &mut self.clients;
            self.waiting.retain(|(key, waits)| clients.get_mut(*key).is_some_and(|client| is_waiting(client, *waits)));
        }
    }

    /// The client that has not read for longest goes. `false` if all of them read.
    fn drop_stalled_reader(&mut self) -> bool {
        self.drop_stalled(|_| true)
    }

    fn drop_stalled(&mut self, may_go: impl Fn(&Client) -> bool) -> bool {
        let clients = self.clients.iter().filter(|(_, client)| may_go(client));
        let stalled = clients.filter_map(|(key, client)| Some((client.stalled_since?, key)));
        let Some((_, key)) = stalled.min_by_key(|(since, _)| *since) else { return false };
        self.drop_client(key);
        true
    }

    /// Makes room: the client that has waited longest for its request goes, or, where none owes one, the one that has
    /// not read for longest. `false` if all are served.
    fn drop_longest_waiting(&mut self) -> bool {
        while let Some((key, waits)) = self.waiting.pop_front() {
            let Some(client) = self.clients.get_mut(key).filter(|client| is_waiting(client, waits)) else { continue };
            if client.owes_request() && !client.input.is_empty() {
                let refusal = Refusal::unavailable("there are too many connections, and this one was the slowest");
                client.output.buffer().extend_from_slice(&refusal.to_bytes(false));
                // As much as the socket takes at once.
                let _ = client.output.flush(&client.socket);
            }
            self.drop_client(key);
            return true;
        }
        self.drop_stalled_reader()
    }

    /// Of the clients whose body is not complete, the one goes that has taken longest for it: whoever sends much and
    /// does not end keeps nobody else from sending. `false` if there is none but `another`.
    fn drop_slowest_body(&mut self, another: Key) -> bool {
        let bodies = self.clients.iter().filter_map(|(key, client)| match &client.phase {
            Phase::Body(incoming) if key != another && incoming.held_bytes() > 0 => Some((client.deadline?, key)),
            _ => None,
        });
        let Some((_, key)) = bodies.min_by_key(|(deadline, _)| *deadline) else { return false };
        self.refuse(key, Refusal::TOO_MANY_BODIES);
        true
    }

    fn pause_listener(&mut self, index: usize, error: Errno) {
        let until = self.now + ACCEPT_PAUSE;
        let Some(listening) = self.listeners.get_mut(index) else { return };
        listening.note_failure(error, self.now);
        listening.paused_until = Some(until);
        // A listener that cannot be taken off the list is only asked again too early.
        let _ = epoll::modify(&self.epoll, &listening.socket, listener_token(index), epoll::EventFlags::empty());
        self.wake_at(until);
    }

    fn resume_listeners(&mut self) {
        let mut wakes = Vec::new();
        for (index, listening) in self.listeners.iter_mut().enumerate() {
            if listening.paused_until.is_some_and(|until| until <= self.now) {
                let (token, flags) = (listener_token(index), epoll::EventFlags::IN);
                let resumed = epoll::modify(&self.epoll, &listening.socket, token, flags);
                listening.paused_until = resumed.err().map(|_| self.now + ACCEPT_PAUSE);
            }
            wakes.extend(listening.paused_until);
            wakes.extend(listening.look_whether_well(self.now));
        }
        wakes.into_iter().for_each(|at| self.wake_at(at));
    }
}

impl Listening {
    /// `accept` failed. That is told when it begins, and when it has been well again for a while: a host that has run
    /// out of descriptors fails many times a second, and now and then it does not.
    fn note_failure(&mut self, error: Errno, now: Instant) {
        if self.failing.is_none() {
            log::warn!("cannot accept connections for now: {error}");
        }
        self.failing = Some((self.failing.map_or(now, |(since, _)| since), now));
    }

    /// Answers when to look again.
    fn look_whether_well(&mut self, now: Instant) -> Option<Instant> {
        let (since, last) = self.failing?;
        if now < last + ACCEPT_CALM {
            return Some(last + ACCEPT_CALM);
        }
        self.failing = None;
        log::info!("connections are accepted again; for {} s some were not", (last - since).as_secs());
        None
    }
}

/// A host that vanished (no network, no power) says nothing of it: a stream with nothing to tell would stay for ever.
fn keep_alive(socket: &OwnedFd) {
    let set = || {
        sockopt::set_socket_keepalive(socket, true)?;
        sockopt::set_tcp_keepidle(socket, limits::KEEPALIVE_IDLE)?;
        sockopt::set_tcp_keepintvl(socket, limits::KEEPALIVE_PAUSE)?;
        sockopt::set_tcp_keepcnt(socket, limits::KEEPALIVE_PROBES)
    };
    if let Err(error) = set() {
        log::debug!("no keepalive on a connection: {error}");
    }
}

fn is_waiting(client: &Client, waits: u32) -> bool {
    client.waits == waits && (client.owes_request() || matches!(client.phase, Phase::Lingering))
}

fn listener_token(index: usize) -> epoll::EventData {
    epoll::EventData::new_u64(TOKEN_LISTENER | index as u64)
}
