//! How a connection moves from phase to phase.

use std::io;

use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType};

use super::connection::{Client, Exchange, Incoming, Phase};
use super::head::{self, HEAD_MAX_BYTES, Origin};
use super::limits::{
    ANSWER_LIMIT, BODIES_MAX_BYTES, BODY_LIMIT, CONNECT_PAUSE, DESCRIPTORS_PER_UPSTREAM, GREETING_LIMIT,
    GREETING_PAUSE, HEAD_LIMIT, IDLE_LIMIT, LINGER_LIMIT, OUTPUT_MAX_BYTES, OUTPUTS_MAX_BYTES, STOP_LINGER_LIMIT,
    UPSTREAM_IDLE_LIMIT, UPSTREAMS_KEPT, WRITE_LIMIT,
};
use super::refusal::Refusal;
use super::slots::Key;
use super::upstream::{BadAnswer, Progress, Upstream};
use super::{Gate, READ_BYTES, TOKEN_CLIENT, TOKEN_UPSTREAM};

/// What is watched for while a client owes a request.
const READING: EventFlags = EventFlags::IN.union(EventFlags::RDHUP);
/// A request that no client sent: it has no number.
const GREETING: &[u8] = b"GET / HTTP/1.1\r\nHost: gate\r\n\r\n";
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

impl Gate {
    /// epoll says something about a client.
    pub(super) fn on_client(&mut self, key: Key, flags: EventFlags) {
        if flags.intersects(EventFlags::ERR | EventFlags::HUP) {
            return self.drop_client(key);
        }
        if flags.contains(EventFlags::OUT) {
            self.flush_client(key);
        }
        if !flags.intersects(READING) {
            return;
        }
        match self.clients.get_mut(key).map(|client| &client.phase) {
            Some(Phase::Head | Phase::Body(_) | Phase::Lingering) => self.read_client(key),
            Some(_) => self.hold_back(key, flags),
            None => {}
        }
    }

    /// A client sends, or ends its side, while its request is in flight: it has to wait. One that ends its side while
    /// it gets a stream has hung up; before that it may be one that sends everything and then waits for the answer.
    fn hold_back(&mut self, key: Key, flags: EventFlags) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let mut interest = client.interest.difference(EventFlags::IN);
        if flags.contains(EventFlags::RDHUP) {
            if matches!(client.phase, Phase::Listening { .. }) {
                return self.drop_client(key);
            }
            if let Phase::Answering { upstream, begun: true, .. } = client.phase {
                if self.upstreams.get_mut(upstream).is_some_and(|upstream| upstream.is_stream) {
                    return self.drop_client(key);
                }
            }
            interest = interest.difference(EventFlags::RDHUP);
        }
        self.watch_client(key, interest);
    }

    pub(super) fn watch_client(&mut self, key: Key, interest: EventFlags) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if client.interest == interest {
            return;
        }
        client.interest = interest;
        let token = epoll::EventData::new_u64(TOKEN_CLIENT | key.to_bits());
        if epoll::modify(&self.epoll, &client.socket, token, interest).is_err() {
            self.drop_client(key);
        }
    }

    fn watch_upstream(&mut self, key: Key, interest: EventFlags) {
        let Some(upstream) = self.upstreams.get_mut(key) else { return };
        if upstream.interest == interest {
            return;
        }
        upstream.interest = interest;
        let token = epoll::EventData::new_u64(TOKEN_UPSTREAM | key.to_bits());
        if epoll::modify(&self.epoll, &upstream.socket, token, interest).is_err() {
            self.upstream_failed(key);
        }
    }

    fn read_client(&mut self, key: Key) {
        let Some(client) = self.clients.get_mut(key) else { return };
        // Of what follows a head, no more is kept than a head may have: with pipelined requests it waits for its turn.
        let room = match client.phase {
            Phase::Head => (HEAD_MAX_BYTES + 1).saturating_sub(client.input.len()).max(1),
            _ => READ_BYTES,
        };
        match rustix::io::read(&client.socket, &mut self.scratch[..room]) {
            // What is here is no complete request, and the rest will not come.
            Ok(0) => self.drop_client(key),
            Ok(_) if matches!(client.phase, Phase::Lingering) => {}
            Ok(count) => {
                client.input.extend_from_slice(&self.scratch[..count]);
                self.advance(key);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.drop_client(key),
        }
    }

    /// Understands what is in a client's input, up to one request.
    fn advance(&mut self, key: Key) {
        if let Err(refusal) = self.advance_head(key).and_then(|()| self.advance_body(key)) {
            self.refuse(key, refusal);
        }
    }

    fn advance_head(&mut self, key: Key) -> Result<(), Refusal> {
        let Some(client) = self.clients.get_mut(key) else { return Ok(()) };
        if !matches!(client.phase, Phase::Head) {
            return Ok(());
        }
        let empty = head::empty_lines(&client.input);
        if empty > 0 {
            client.consume(empty);
        }
        if client.input.is_empty() {
            return Ok(());
        }
        let had_begun = client.scanned > 0;
        let Some(end) = head::find(&client.input, &mut client.scanned)? else {
            if !had_begun {
                let deadline = self.now + HEAD_LIMIT;
                client.deadline = Some(deadline);
                self.wake_at(deadline);
            }
            return Ok(());
        };
        self.requests += 1;
        let origin = Origin { listener: client.listener, peer: client.peer, request: self.requests };
        let head = head::parse(&client.input[..end], origin)?;
        client.consume(end);
        client.has_asked = true;
        client.keep_alive = head.keep_alive;
        let waits_for_us = head.expects_continue && client.input.is_empty();
        let incoming = Incoming::new(head, self.requests)?;
        let is_complete = incoming.is_complete();
        client.phase = Phase::Body(Box::new(incoming));
        if !is_complete {
            let deadline = self.now + BODY_LIMIT;
            client.deadline = Some(deadline);
            if waits_for_us {
                client.output.buffer().extend_from_slice(CONTINUE);
            }
            self.wake_at(deadline);
            if waits_for_us {
                self.flush_client(key);
            }
        }
        Ok(())
    }

    fn advance_body(&mut self, key: Key) -> Result<(), Refusal> {
        let Some(client) = self.clients.get_mut(key) else { return Ok(()) };
        let Phase::Body(incoming) = &mut client.phase else { return Ok(()) };
        let before = incoming.held_bytes();
        let used = incoming.feed(&client.input);
        self.body_bytes += incoming.held_bytes() - before;
        let used = used?;
        let is_complete = incoming.is_complete();
        if used > 0 {
            client.consume(used);
        }
        while self.body_bytes > BODIES_MAX_BYTES && self.drop_slowest_body(key) {}
        if self.body_bytes > BODIES_MAX_BYTES {
            return Err(Refusal::TOO_MANY_BODIES);
        }
        if is_complete {
            self.enqueue(key);
        }
        Ok(())
    }

    /// The request is complete: it waits for a connection to tiny_http, mostly for no time at all.
    fn enqueue(&mut self, key: Key) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let Phase::Body(incoming) = std::mem::replace(&mut client.phase, Phase::Head) else { return };
        let exchange = Exchange {
            request: incoming.request,
            is_head: incoming.head.is_head,
            is_http_1_0: incoming.head.is_http_1_0,
        };
        self.body_bytes -= incoming.held_bytes();
        let message = incoming.into_message();
        self.body_bytes += message.len();
        client.phase = Phase::Queued(exchange, message);
        let deadline = self.now + self.limits.queue;
        client.deadline = Some(deadline);
        self.wake_at(deadline);
        self.queue.push_back(key);
    }

    /// Hands queued requests over to tiny_http as far as connections to it are free.
    pub(super) fn pass_on_queued(&mut self) -> io::Result<()> {
        while let Some(key) = self.queue.front().copied() {
            if !self.clients.get_mut(key).is_some_and(|client| matches!(client.phase, Phase::Queued(..))) {
                self.queue.pop_front();
                continue;
            }
            let Some(upstream) = self.take_upstream()? else {
                self.wake_at(self.now + CONNECT_PAUSE);
                return Ok(());
            };
            self.queue.pop_front();
            self.pass_on(key, upstream);
        }
        Ok(())
    }

    fn pass_on(&mut self, key: Key, upstream_key: Key) {
        let (Some(client), Some(upstream)) = (self.clients.get_mut(key), self.upstreams.get_mut(upstream_key)) else {
            return;
        };
        let phase = std::mem::replace(&mut client.phase, Phase::Head);
        let Phase::Queued(exchange, message) = phase else {
            client.phase = phase;
            return;
        };
        self.body_bytes -= message.len();
        client.phase = Phase::Answering { upstream: upstream_key, exchange, begun: false };
        let deadline = self.now + ANSWER_LIMIT;
        client.deadline = Some(deadline);
        upstream.begin(Some(key), message);
        self.wake_at(deadline);
        self.flush_upstream(upstream_key);
    }

    /// A connection to tiny_http that is free, or a new one if there may be more.
    fn take_upstream(&mut self) -> io::Result<Option<Key>> {
        if let Some(key) = self.idle.pop() {
            return Ok(Some(key));
        }
        let busy = self.upstreams.len();
        if self.greeting.is_some() || busy >= self.limits.upstreams || busy - self.streams >= self.limits.short {
            return Ok(None);
        }
        if self.greet_again_at.is_some_and(|at| self.now < at) {
            return Ok(None);
        }
        self.greet_upstream()?;
        Ok(None)
    }

    /// Opens one more connection to tiny_http and greets it. One at a time: of several that come at once, tiny_http may
    /// leave one without a thread until another connection ends; one whose greeting was answered has its thread.
    fn greet_upstream(&mut self) -> io::Result<()> {
        let Some(key) = self.connect_upstream()? else { return Ok(()) };
        self.greeting = Some(key);
        self.wake_at(self.now + GREETING_LIMIT);
        if let Some(upstream) = self.upstreams.get_mut(key) {
            upstream.begin(None, GREETING.to_vec());
        }
        self.flush_upstream(key);
        Ok(())
    }

    fn connect_upstream(&mut self) -> io::Result<Option<Key>> {
        // tiny_http does not survive an accept without a descriptor left for it.
        if !descriptors_are_left(&self.epoll) {
            return Ok(None);
        }
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = match rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None) {
            Ok(socket) => socket,
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match rustix::net::connect(&socket, &SocketAddrUnix::new(&self.upstream_path)?) {
            Ok(()) => {}
            // Its queue of connections is full.
            Err(Errno::AGAIN) => return Ok(None),
            Err(error) => {
                let path = self.upstream_path.display();
                return Err(io::Error::other(format!("the HTTP server behind the gate ({path}) is gone: {error}")));
            }
        }
        let now = self.now;
        let key = self.upstreams.insert_with(|_| Upstream::new(socket, now));
        let Some(upstream) = self.upstreams.get_mut(key) else { return Ok(None) };
        upstream.interest = READING;
        let token = epoll::EventData::new_u64(TOKEN_UPSTREAM | key.to_bits());
        if epoll::add(&self.epoll, &upstream.socket, token, READING).is_err() {
            self.upstreams.remove(key);
            return Ok(None);
        }
        Ok(Some(key))
    }

    /// epoll says something about a connection to tiny_http.
    pub(super) fn on_upstream(&mut self, key: Key, flags: EventFlags) {
        if flags.contains(EventFlags::OUT) {
            self.flush_upstream(key);
        }
        if flags.intersects(READING | EventFlags::HUP | EventFlags::ERR) {
            self.read_upstream(key);
        }
    }

    fn flush_upstream(&mut self, key: Key) {
        let Some(upstream) = self.upstreams.get_mut(key) else { return };
        match upstream.output.flush(&upstream.socket) {
            Ok(_) => {
                let (interest, is_empty) = (upstream.interest, upstream.output.is_empty());
                let interest = if is_empty { interest.difference(EventFlags::OUT) } else { interest | EventFlags::OUT };
                self.watch_upstream(key, interest);
            }
            // The answer may be here all the same: reading tells.
            Err(Errno::PIPE | Errno::CONNRESET) => self.watch_upstream(key, READING),
            Err(_) => self.upstream_failed(key),
        }
    }

    fn read_upstream(&mut self, key: Key) {
        let Some(upstream) = self.upstreams.get_mut(key) else { return };
        let count = match rustix::io::read(&upstream.socket, &mut self.scratch[..]) {
            Ok(0) => return self.upstream_failed(key),
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => return self.upstream_failed(key),
        };
        if self.greeting == Some(key) {
            return self.read_greeting(key, count);
        }
        let was_stream = upstream.is_stream;
        let client = upstream.client.and_then(|client| self.clients.get_mut(client).map(|found| (client, found)));
        let request = client.as_ref().and_then(|(_, client)| client.request());
        let progress = client.ok_or(BadAnswer).and_then(|(client_key, client)| {
            client.keep_alive &= self.stop_at.is_none();
            feed(client, upstream, &self.scratch[..count]).map(|progress| (client_key, progress))
        });
        if upstream.is_stream && !was_stream {
            self.streams += 1;
        }
        match progress {
            Err(BadAnswer) => self.upstream_failed(key),
            Ok((client, progress)) => {
                let listens_after = upstream.listens_after.filter(|_| progress.done);
                if progress.done {
                    self.release_upstream(key);
                }
                if let Some((number, request)) = listens_after.zip(request) {
                    self.begin_to_listen(client, request, number);
                } else if progress.begun {
                    self.flush_client(client);
                }
            }
        }
    }

    fn read_greeting(&mut self, key: Key, count: usize) {
        let Some(upstream) = self.upstreams.get_mut(key) else { return };
        let exchange = Exchange { request: 0, is_head: false, is_http_1_0: false };
        match upstream.feed(&self.scratch[..count], exchange, true, &mut Vec::new()) {
            Ok(progress) if progress.done => {
                self.greeting = None;
                self.release_upstream(key);
            }
            Ok(_) => {}
            Err(BadAnswer) => self.upstream_failed(key),
        }
    }

    /// A connection to tiny_http that has not answered the greeting for long is given up; the next request tries anew.
    pub(super) fn give_up_greeting(&mut self) {
        let Some(key) = self.greeting else { return };
        let until = self.upstreams.get_mut(key).map_or(self.now, |upstream| upstream.idle_since + GREETING_LIMIT);
        if until <= self.now {
            self.remove_upstream(key);
        } else {
            self.wake_at(until);
        }
    }

    fn release_upstream(&mut self, key: Key) {
        let Some(upstream) = self.upstreams.get_mut(key) else { return };
        self.streams -= usize::from(upstream.is_stream);
        if upstream.release(self.now) {
            self.idle.push(key);
            // It may be one that was told to wait for its client.
            self.watch_upstream(key, READING);
            if self.idle.len() > UPSTREAMS_KEPT {
                self.wake_at(self.now + UPSTREAM_IDLE_LIMIT);
            }
        } else {
            self.upstreams.remove(key);
        }
    }

    /// tiny_http broke off: without an answer the client gets one of ours, within one it is cut off.
    fn upstream_failed(&mut self, key: Key) {
        if self.greeting == Some(key) {
            self.greet_again_at = Some(self.now + GREETING_PAUSE);
        }
        let Some(client) = self.remove_upstream(key) else { return };
        self.refuse(client, Refusal::unavailable("the request was not answered"));
    }

    /// Closes a connection to tiny_http; answers whose request it carried.
    fn remove_upstream(&mut self, key: Key) -> Option<Key> {
        let upstream = self.upstreams.remove(key)?;
        self.greeting = self.greeting.filter(|greeted| *greeted != key);
        self.idle.retain(|idle| *idle != key);
        self.streams -= usize::from(upstream.is_stream);
        upstream.client
    }

    /// Sends what is on its way to a client, and what follows from that.
    pub(super) fn flush_client(&mut self, key: Key) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let Ok(progress) = client.output.flush(&client.socket) else { return self.drop_client(key) };
        // Those who listen have a bound of their own, and cost others nothing.
        let is_listening = matches!(client.phase, Phase::Listening { .. });
        let counted_bytes = if is_listening { 0 } else { client.output.len() };
        self.output_bytes = self.output_bytes - client.counted_bytes + counted_bytes;
        client.counted_bytes = counted_bytes;
        let answering = match client.phase {
            Phase::Answering { upstream, begun: true, .. } => Some(upstream),
            _ => None,
        };
        let interest = client.interest;
        if client.output.is_empty() {
            client.stalled_since = None;
            if answering.is_some() || is_listening {
                client.deadline = None;
            }
            if is_listening {
                // It will want no buffer for long.
                std::mem::take(&mut client.output);
            }
            self.watch_client(key, interest.difference(EventFlags::OUT));
            if let Some(upstream) = answering {
                self.let_upstream_talk(upstream, true);
            } else {
                self.on_flushed(key);
            }
            return;
        }
        if progress || client.stalled_since.is_none() {
            client.stalled_since = Some(self.now);
            if !client.owes_request() {
                client.deadline = Some(self.now + WRITE_LIMIT);
            }
        }
        let is_full = client.output.len() > OUTPUT_MAX_BYTES;
        self.wake_at(self.now + WRITE_LIMIT);
        self.watch_client(key, interest | EventFlags::OUT);
        // The thread that writes a stream can wait. One that answers at once is needed by others, so its answer is
        // taken whole.
        let stream = answering.filter(|key| is_full && self.upstreams.get_mut(*key).is_some_and(|one| one.is_stream));
        if let Some(upstream) = stream {
            self.let_upstream_talk(upstream, false);
        }
        self.drop_stalled_readers();
    }

    fn let_upstream_talk(&mut self, key: Key, may: bool) {
        let Some(interest) = self.upstreams.get_mut(key).map(|upstream| upstream.interest) else { return };
        // RDHUP goes too: it would be told again and again while nothing is read.
        let interest = if may { interest | READING } else { interest.difference(READING) };
        self.watch_upstream(key, interest);
    }

    /// Everything that a client was to get is with it, or with its kernel.
    fn on_flushed(&mut self, key: Key) {
        let Some(client) = self.clients.get_mut(key) else { return };
        match client.phase {
            Phase::Finishing if client.keep_alive && self.stop_at.is_none() => {
                let interest = client.interest | READING;
                let has_input = !client.input.is_empty();
                self.wait_for_request(key, IDLE_LIMIT);
                self.watch_client(key, interest);
                if has_input {
                    self.advance(key);
                }
            }
            Phase::Finishing | Phase::Closing => {
                // It fails where the client closed first.
                let _ = rustix::net::shutdown(&client.socket, Shutdown::Write);
                client.phase = Phase::Lingering;
                let limit = if self.stop_at.is_some() { STOP_LINGER_LIMIT } else { LINGER_LIMIT };
                client.deadline = Some(self.now + limit);
                self.wake_at(self.now + limit);
                self.may_make_room(key);
                self.watch_client(key, READING);
            }
            _ => {}
        }
    }

    /// Answers for tiny_http, and closes.
    pub(super) fn refuse(&mut self, key: Key, refusal: Refusal) {
        let Some(client) = self.clients.get_mut(key) else { return };
        let is_head = match &client.phase {
            Phase::Head => client.input.starts_with(b"HEAD "),
            Phase::Body(incoming) => incoming.head.is_head,
            Phase::Queued(exchange, _) => exchange.is_head,
            Phase::Answering { exchange, begun: false, .. } => exchange.is_head,
            Phase::Answering { .. }
            | Phase::Listening { .. }
            | Phase::Finishing
            | Phase::Closing
            | Phase::Lingering => {
                return self.drop_client(key);
            }
        };
        client.output.buffer().extend_from_slice(&refusal.to_bytes(is_head));
        let phase = std::mem::replace(&mut client.phase, Phase::Closing);
        client.input = Vec::new();
        client.scanned = 0;
        self.let_go(key, phase);
        self.flush_client(key);
    }

    /// Whatever a phase holds beside the client.
    fn let_go(&mut self, key: Key, phase: Phase) {
        match phase {
            Phase::Body(incoming) => self.body_bytes -= incoming.held_bytes(),
            Phase::Queued(_, message) => self.body_bytes -= message.len(),
            Phase::Answering { upstream, exchange, .. } => {
                self.remove_upstream(upstream);
                self.presence.left(exchange.request);
                self.broadcast.give_back(exchange.request);
            }
            Phase::Listening { .. } => self.stop_listening(key),
            Phase::Head | Phase::Finishing | Phase::Closing | Phase::Lingering => {}
        }
    }

    /// The connection ends, with all that belongs to it.
    pub(super) fn drop_client(&mut self, key: Key) {
        if let Some(client) = self.clients.remove(key) {
            self.output_bytes -= client.counted_bytes;
            self.let_go(key, client.phase);
        }
    }

    /// A connection has had its time.
    pub(super) fn on_deadline(&mut self, key: Key) {
        let Some(client) = self.clients.get_mut(key) else { return };
        match client.phase {
            Phase::Head if client.input.is_empty() => self.drop_client(key),
            Phase::Head => self.refuse(key, Refusal::timeout("the request head did not come within 10 s")),
            Phase::Body(_) => self.refuse(key, Refusal::timeout("the request body did not come within 30 s")),
            Phase::Queued(..) => self.refuse(key, Refusal::unavailable("there are too many requests at once")),
            Phase::Answering { begun: false, .. } => {
                self.refuse(key, Refusal::unavailable("the request was not answered in time"));
            }
            Phase::Answering { .. }
            | Phase::Listening { .. }
            | Phase::Finishing
            | Phase::Closing
            | Phase::Lingering => self.drop_client(key),
        }
    }

    /// Answers that nobody reads are in memory up to a bound; past it the client that has not read for longest goes.
    fn drop_stalled_readers(&mut self) {
        while self.output_bytes > OUTPUTS_MAX_BYTES && self.drop_stalled(|client| client.counted_bytes > 0) {}
    }
}

/// Passes a piece of an answer on to the client that it is for.
fn feed(client: &mut Client, upstream: &mut Upstream, bytes: &[u8]) -> Result<Progress, BadAnswer> {
    let Phase::Answering { exchange, begun, .. } = &mut client.phase else { return Err(BadAnswer) };
    let progress = upstream.feed(bytes, *exchange, client.keep_alive, client.output.buffer())?;
    *begun |= progress.begun;
    client.keep_alive &= progress.is_framed;
    if progress.done {
        client.phase = match upstream.listens_after {
            Some(_) => Phase::Listening { is_http_1_0: exchange.is_http_1_0 },
            None => Phase::Finishing,
        };
    }
    Ok(progress)
}

/// Whether as many descriptors are free as one more connection to tiny_http takes.
fn descriptors_are_left(any: &rustix::fd::OwnedFd) -> bool {
    let probe: Result<Vec<_>, _> =
        (0..DESCRIPTORS_PER_UPSTREAM).map(|_| rustix::io::fcntl_dupfd_cloexec(any, 0)).collect();
    probe.is_ok()
}
