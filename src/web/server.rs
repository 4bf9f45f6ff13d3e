//! tiny_http behind the gate, and the threads that answer.

use std::io::Write;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::access::{Access, Caller};
use super::answer::{Answer, Failure, Opening, Reply};
use super::auth::{Attempt, Guard, Verdict};
use super::gate::{Gate, Limits, Listener, Stop};
use super::listen::{ListenError, private_socket};
use super::presence::Presence;
use super::request::Request;
use super::{CONTROL_STREAMS_MAX, Context, ListenerKind, Peer, STREAMS_MAX, auth, origin, routes};
use crate::command::{Place, Places};
use crate::pulse;

/// Threads that answer what is answered at once.
const HANDLERS: usize = 4;
/// A thread that answers does so within this: the gate has given up its client before.
const HANDLER_LIMIT: Duration = Duration::from_secs(300);
/// Answers at once that wait for somebody else: Docker, a notifier.
const SLOW_MAX: usize = 8;
/// Requests at once that wait for a password hash: as many as a browser sends. Others than the slow answers, so that
/// neither a Docker that hangs keeps people from logging in nor those who guess keep them from the logs; together they
/// leave some of the gate's connections to those who are known.
const PASSWORDS_MAX: usize = 6;
/// Those at once of addresses that were wrong within the minute: they have places of their own, and take none from
/// somebody who logs in.
const GUESSES_MAX: usize = 4;

/// A long-lived thread that the daemon runs; the web has ended when one of them has, and an error is a reason to start
/// the process anew.
pub struct Thread {
    /// Its name.
    pub name: String,
    /// What it does, until the web is stopped.
    pub run: Box<dyn FnOnce() -> Result<(), String> + Send>,
}

/// The web, ready to run.
pub struct Web {
    /// To be run by the daemon, each in a thread of its own.
    pub threads: Vec<Thread>,
    /// What ends them.
    pub stop: StopWeb,
}

/// Ends the web's threads.
#[derive(Clone)]
pub struct StopWeb {
    gate: Stop,
    server: Arc<Server>,
}

impl StopWeb {
    /// Answers without an end have it now.
    pub fn end_streams(&self) {
        self.server.presence.streams_end();
    }

    /// No new connections; requests in flight may end for three seconds. The threads end by themselves then.
    pub fn stop(&self) {
        self.end_streams();
        self.server.context.events.stop(&self.server.context.store);
        self.gate.stop();
    }

    /// What tells listeners, for tests.
    #[cfg(test)]
    pub fn broadcast(&self) -> &super::gate::Broadcast {
        &self.server.context.events.broadcast
    }
}

struct Server {
    http: tiny_http::Server,
    context: Arc<Context>,
    presence: Arc<Presence>,
    guard: Guard,
    streams: Arc<Places>,
    control_streams: Arc<Places>,
    slow: Arc<Places>,
    passwords: Arc<Places>,
    guesses: Arc<Places>,
    is_stopping: AtomicBool,
}

/// Puts the gate before the listeners and tiny_http behind it. Nothing is served before the daemon runs the threads.
///
/// # Errors
/// The private folder's, or the system's.
pub fn start(context: Context, listeners: Vec<Listener>) -> Result<Web, ListenError> {
    let socket = private_socket(&context.settings.runtime_path)?;
    let problem = |error: &dyn std::fmt::Display| ListenError::new(format!("the web cannot start: {error}"));
    let http = tiny_http::Server::http_unix(&socket).map_err(|error| problem(&error))?;
    let presence = Arc::new(Presence::default());
    let gate = Gate::new(
        listeners,
        socket,
        Limits::of_process(),
        Arc::clone(&presence),
        Arc::clone(&context.events.broadcast),
    );
    let gate = gate.map_err(|error| problem(&error))?;
    let server = Arc::new(Server {
        http,
        context: Arc::new(context),
        presence,
        guard: Guard::new().map_err(|error| problem(&error))?,
        streams: Places::new(STREAMS_MAX),
        control_streams: Places::new(CONTROL_STREAMS_MAX),
        slow: Places::new(SLOW_MAX),
        passwords: Places::new(PASSWORDS_MAX),
        guesses: Places::new(GUESSES_MAX),
        is_stopping: AtomicBool::new(false),
    });
    let stop = StopWeb { gate: gate.stop_handle(), server: Arc::clone(&server) };
    let mut threads: Vec<Thread> = (1..=HANDLERS)
        .map(|number| {
            let server = Arc::clone(&server);
            Thread { name: format!("web-{number}"), run: Box::new(move || server.run()) }
        })
        .collect();
    let tells = Arc::clone(&server);
    let run_events = move || {
        tells.context.events.run(&tells.context.store);
        Ok(())
    };
    threads.push(Thread { name: "events".to_owned(), run: Box::new(run_events) });
    let run_gate = move || {
        let outcome = gate.run().map_err(|error| format!("the gate: {error}"));
        server.stop_handlers();
        outcome
    };
    threads.push(Thread { name: "gate".to_owned(), run: Box::new(run_gate) });
    Ok(Web { threads, stop })
}

impl Server {
    fn run(self: &Arc<Server>) -> Result<(), String> {
        loop {
            pulse::rests();
            let received = self.http.recv();
            pulse::next_within(HANDLER_LIMIT);
            match received {
                Ok(request) => self.answer(request),
                Err(_) if self.is_stopping.load(Ordering::Relaxed) => return Ok(()),
                Err(error) => return Err(format!("the HTTP server: {error}")),
            }
        }
    }

    fn stop_handlers(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        (0..HANDLERS).for_each(|_| self.http.unblock());
        self.context.events.stop(&self.context.store);
        // A stream that began while the gate was about to stop was not told.
        self.presence.all_left();
    }

    fn answer(self: &Arc<Server>, request: tiny_http::Request) {
        match Request::new(request, &self.context.settings, &self.context.metrics) {
            Ok(request) if request.is_greeting() => respond(request.into_inner(), Answer::empty(204)),
            Ok(request) => self.admit(request),
            Err(refused) => respond(refused.0, refused.1.into()),
        }
    }

    /// Rules first, then credentials.
    fn admit(self: &Arc<Server>, request: Request) {
        let settings = &self.context.settings;
        if request.listener == ListenerKind::Control {
            let caller = match request.peer {
                Some(Peer::User(number)) if request.method.writes() => Caller::unix_user(number),
                _ => Caller::nameless(Access::Full),
            };
            return self.dispatch(request, &caller);
        }
        if routes::is_webhook(&request) {
            return self.dispatch(request, &self.nameless());
        }
        if settings.auth.is_none() {
            if let Err(failure) = origin::check_host(&request, settings) {
                return finish(request, failure.into());
            }
        }
        if request.method.writes() {
            if let Err(failure) = origin::check_site(&request, settings) {
                return finish(request, failure.into());
            }
        }
        let nameless = self.nameless();
        let says_who = routes::tells_more(&request) && auth::has_credentials(&request);
        if routes::needed(&request) <= nameless.access && !says_who {
            return self.dispatch(request, &nameless);
        }
        match self.guard.look(&request, settings, Instant::now()) {
            Verdict::Right(caller) => self.dispatch(request, &caller),
            Verdict::Wrong(failure) => self.turn_away(request, failure),
            Verdict::Unknown(attempt) => self.admit_slowly(request, attempt),
        }
    }

    /// A hash takes its time: the handlers stay free for those who are known.
    fn admit_slowly(self: &Arc<Server>, request: Request, attempt: Box<Attempt>) {
        let server = Arc::clone(self);
        let places = if attempt.is_first { &self.passwords } else { &self.guesses };
        let place = places.take();
        if place.is_none() {
            self.guard.forget(&attempt);
        }
        self.in_own_thread("web-password", place, request, move |request, _place| {
            match server.guard.verify(&attempt) {
                Ok(caller) => server.dispatch(request, &caller),
                Err(failure) => server.turn_away(request, failure),
            }
        });
    }

    /// What is open to everybody is so for those with a wrong password too.
    fn turn_away(self: &Arc<Server>, request: Request, failure: Failure) {
        let nameless = self.nameless();
        if routes::needed(&request) <= nameless.access {
            self.dispatch(request, &nameless);
        } else {
            finish(request, failure.into());
        }
    }

    /// What everybody may do.
    fn nameless(&self) -> Caller {
        Caller::nameless(Access::of_everybody(&self.context.settings))
    }

    fn dispatch(self: &Arc<Server>, mut request: Request, caller: &Caller) {
        let reply = request.body().and_then(|body| routes::route(&self.context, &request, &body, caller));
        match reply {
            Ok(Reply::Now(answer)) => finish(request, answer),
            Err(failure) => finish(request, failure.into()),
            Ok(Reply::Slow(work)) => {
                let server = Arc::clone(self);
                self.in_own_thread("web-slow", self.slow.take(), request, move |request, _place| {
                    let watch = server.presence.watch(request.id);
                    finish(request, work(watch.limit()));
                });
            }
            Ok(Reply::Stream(opening)) => {
                let server = Arc::clone(self);
                let places = match request.listener {
                    ListenerKind::Tcp => &self.streams,
                    ListenerKind::Control => &self.control_streams,
                };
                self.in_own_thread("web-stream", places.take(), request, move |request, _place| {
                    server.write_stream(request, opening);
                });
            }
        }
    }

    fn write_stream(&self, request: Request, opening: Opening) {
        // Watched before it is opened: at a stop, it is either told so or refused by the daemon that stops.
        let watch = self.presence.watch_stream(request.id);
        let stream = match opening(&watch) {
            Ok(stream) => stream,
            Err(failure) => return finish(request, failure.into()),
        };
        request.answered(200);
        let is_head = request.is_head();
        let mut writer = request.into_inner().into_writer();
        let outcome = if is_head {
            writer.write_all(stream.head().as_bytes()).and_then(|()| writer.flush())
        } else {
            stream.write(&self.context, &watch, &mut writer)
        };
        if let Err(error) = outcome {
            log::debug!("a stream ended early: {error}");
        }
    }

    /// Runs `work` in a thread of its own where there was a place for it; answers 503 where there was none.
    fn in_own_thread(
        &self,
        name: &str,
        place: Option<Place>,
        request: Request,
        work: impl FnOnce(Request, Place) + Send + 'static,
    ) {
        let Some(place) = place else {
            return finish(request, Failure::unavailable("too much of this is going on at once").into());
        };
        // Shared, so that it can be answered where no thread can be had for it.
        let request = Arc::new(Mutex::new(Some(request)));
        let take = |request: &Mutex<Option<Request>>| request.lock().ok().and_then(|mut request| request.take());
        let moved = Arc::clone(&request);
        let job = Box::new(move || {
            if let Some(request) = take(&moved) {
                work(request, place);
            }
        });
        if let Err(error) = self.context.daemon.spawn(name, job) {
            log::warn!("no thread for an answer: {error}");
            if let Some(request) = take(&request) {
                finish(request, Failure::unavailable("this host has no thread left").into());
            }
        }
    }
}

fn finish(request: Request, answer: Answer) {
    let answer = routes::decorate(&request, answer);
    request.answered(answer.status());
    respond(request.into_inner(), answer);
}

fn respond(request: tiny_http::Request, answer: Answer) {
    if let Err(error) = request.respond(answer.into_response()) {
        log::debug!("an answer did not arrive: {error}");
    }
}
