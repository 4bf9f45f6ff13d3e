//! Every limit of the gate that is not a size of a message.

use std::time::Duration;

use rustix::process::{Resource, getrlimit};

/// From the first byte of a request head to its last.
pub const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// From the end of the head to the last byte of the body.
pub const BODY_LIMIT: Duration = Duration::from_secs(30);
/// A connection that has had an answer and asks nothing more.
pub const IDLE_LIMIT: Duration = Duration::from_secs(75);
/// A request until the first byte of its answer.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(120);
/// A client that takes nothing of its answer.
pub const WRITE_LIMIT: Duration = Duration::from_secs(30);
/// A client that does not close after the last answer.
pub const LINGER_LIMIT: Duration = Duration::from_secs(2);
/// Pause after `accept` failed for want of descriptors or memory.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Without a failure of `accept` for so long, it counts as well again.
pub const ACCEPT_CALM: Duration = Duration::from_secs(10);
/// Pause before another connection to tiny_http is tried.
pub const CONNECT_PAUSE: Duration = Duration::from_millis(20);
/// Pause before another connection to tiny_http is greeted after one that broke off instead of an answer: the next one
/// may do the same.
pub const GREETING_PAUSE: Duration = Duration::from_millis(100);
/// A new connection to tiny_http until its greeting is answered.
pub const GREETING_LIMIT: Duration = Duration::from_secs(10);
/// When the gate stops, a client that does not close after the last answer.
pub const STOP_LINGER_LIMIT: Duration = Duration::from_millis(500);
/// Deadlines are looked at no more often than this.
pub const SWEEP_PAUSE: Duration = Duration::from_millis(20);
/// An unused connection to tiny_http beyond [`UPSTREAMS_KEPT`]; each costs a thread.
pub const UPSTREAM_IDLE_LIMIT: Duration = Duration::from_secs(10);

/// A connection on which nothing comes is asked whether its other end is still there after this, …
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// … again after each of these, …
pub const KEEPALIVE_PAUSE: Duration = Duration::from_secs(10);
/// … and so often before it is given up.
pub const KEEPALIVE_PROBES: u32 = 3;
/// Most clients that listen at once.
const LISTENERS_MAX: usize = 128;

/// Connections to tiny_http that stay open.
pub const UPSTREAMS_KEPT: usize = 4;
/// Bytes of a stream that wait for a client, beyond which its writer has to wait too.
pub const OUTPUT_MAX_BYTES: usize = 256 * 1024;
/// Bytes of answers that wait for their clients, of all clients together.
pub const OUTPUTS_MAX_BYTES: usize = 32 * 1024 * 1024;
/// Bytes of request bodies in memory, of all clients together.
pub const BODIES_MAX_BYTES: usize = 16 * 1024 * 1024;
/// Descriptors that one connection to tiny_http takes: ours, and two of tiny_http.
pub const DESCRIPTORS_PER_UPSTREAM: usize = 3;

/// Descriptors that this process counts on, however many it may have: those that the system gives unless somebody says
/// otherwise. More connections would cost memory, and serve nobody on a single host.
const DESCRIPTORS_MAX: usize = 1024;
/// Most connections to tiny_http that carry something other than a stream: more than slow answers and logins together
/// can hold (`server.rs`).
const SHORT_MAX: usize = 24;
/// A complete request until a connection to tiny_http is free.
const QUEUE_LIMIT: Duration = Duration::from_secs(30);
/// Requests in flight when the gate is stopped.
const STOP_LIMIT: Duration = Duration::from_secs(3);
/// When the gate stops, a client that connected just before and has not asked yet may do so for this long: it was
/// accepted, so nobody else will answer it.
const STOP_FIRST_REQUEST_LIMIT: Duration = Duration::from_secs(2);
/// When the gate stops, a client that has had an answer and asks one thing after the other may ask for this long; it is
/// told then that the connection ends. One that rests is closed, and has to expect that.
const STOP_NEXT_REQUEST_LIMIT: Duration = Duration::from_millis(250);
/// From a connection's begin to the first byte of its first request. Browsers connect ahead of a request that may never
/// come, but drop such a connection sooner, and connect anew where it was closed.
const FIRST_REQUEST_LIMIT: Duration = Duration::from_secs(30);

/// Limits that depend on the process's own, and those that tests set.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections of clients at once, without those that listen.
    pub connections: usize,
    /// Clients that listen at once.
    pub listeners: usize,
    /// Connections to tiny_http that carry something other than a stream.
    pub short: usize,
    /// Connections to tiny_http in all.
    pub upstreams: usize,
    /// A new connection has this long until its first request begins.
    pub first_request: Duration,
    /// A complete request waits this long for a connection to tiny_http.
    pub queue: Duration,
    /// Requests in flight when the gate is stopped have this long.
    pub stop: Duration,
    /// When the gate is stopped, a connection has this long until its first request begins …
    pub stop_first_request: Duration,
    /// … and until another one does.
    pub stop_next_request: Duration,
}

impl Limits {
    /// What fits under this process's `RLIMIT_NOFILE`: never more than half of the descriptors are the clients'.
    pub fn of_process() -> Limits {
        let descriptors = getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok());
        Limits::within(descriptors.unwrap_or(usize::MAX))
    }

    fn within(descriptors: usize) -> Limits {
        let descriptors = descriptors.min(DESCRIPTORS_MAX);
        let left = descriptors / 2;
        let most = SHORT_MAX + crate::web::STREAMS_MAX + crate::web::CONTROL_STREAMS_MAX;
        let upstreams = (left / 2 / DESCRIPTORS_PER_UPSTREAM).clamp(UPSTREAMS_KEPT, most);
        Limits {
            connections: (descriptors - left).max(8),
            // They are taken from the half that is not the clients'.
            listeners: (left / 4).min(LISTENERS_MAX),
            short: upstreams.min(SHORT_MAX),
            upstreams,
            first_request: FIRST_REQUEST_LIMIT,
            queue: QUEUE_LIMIT,
            stop: STOP_LIMIT,
            stop_first_request: STOP_FIRST_REQUEST_LIMIT,
            stop_next_request: STOP_NEXT_REQUEST_LIMIT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_and_the_narrow_limit_of_descriptors() {
        let usual = Limits::within(1024);
        assert_eq!((usual.connections, usual.short, usual.upstreams), (512, 24, 72));
        let large = Limits::within(524_288);
        assert_eq!((large.connections, large.short, large.upstreams, large.listeners), (512, 24, 72, 128));
        assert!(large.connections + large.upstreams * DESCRIPTORS_PER_UPSTREAM + large.listeners < DESCRIPTORS_MAX);
        let narrow = Limits::within(64);
        assert_eq!((narrow.connections, narrow.short, narrow.upstreams, narrow.listeners), (32, 5, 5, 8));
        assert!(Limits::within(0).connections > 0);
    }
}
