//! Logs as they grow: of one container until it stops, of a stack for as long as somebody reads.
//!
//! Each container has a `docker logs --follow` of its own, and a stack a `docker events` that tells which of its
//! containers start: those that a deployment makes anew, and those that come back. All of them are read by the one
//! thread that writes to the client, so that nothing is read while the client does not take it.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Deserialize;

use super::logs::{LOGS_MAX_BYTES, OWN_WORDS, Timed, Wanted, is_dockers, left_out_line, log_command};
use super::{Container, StackLabels, docker};
use crate::command::{Command, Limit, Output, Several};
use crate::config::Settings;

/// Containers of one stack that are followed at once; each has a process.
const STACK_FOLLOWED_MAX: usize = 20;
/// The lines that were there before are put into the order of time. They have all come when none came for this long…
const PAST_QUIET: Duration = Duration::from_millis(300);
/// …and whatever comes later than this goes out as it comes.
const PAST_LIMIT: Duration = Duration::from_secs(3);
/// Text is handed over in pieces of about this size while much comes at once.
const PIECE_BYTES: usize = 64 * 1024;
/// The key of `docker events` among the children; containers have those above it.
const EVENTS: usize = 0;

/// In the form of [`super::LIST_FORMAT`], with what happened.
const EVENT_FORMAT: &str = concat!(
    r#"{"action":{{json .Action}},"id":{{json .Actor.ID}},"name":{{json (index .Actor.Attributes "name")}},"#,
    r#""project":{{json (index .Actor.Attributes "com.docker.compose.project")}},"#,
    r#""folder":{{json (index .Actor.Attributes "com.docker.compose.project.working_dir")}},"#,
    r#""service":{{json (index .Actor.Attributes "com.docker.compose.service")}}}"#
);

/// What is followed.
pub enum Followed {
    /// A container: its lines as they are, until it stops.
    Container(Container),
    /// A stack, with its containers as they were found after the time `began`: each line with its container's name.
    Stack {
        /// How its containers are known.
        labels: StackLabels,
        /// Those that are there.
        containers: Vec<Container>,
        /// What has happened since then is told anew.
        began: Timestamp,
    },
}

/// Writes the lines that are wanted, and those that come, until there is no more to come or the limit ends. `place` gives
/// leave for one more process, given back when it is dropped: without it, containers are left out, which is told.
///
/// # Errors
/// Those of `write`, and the system's.
pub fn follow<P>(
    followed: Followed,
    wanted: &Wanted,
    settings: &Settings,
    limit: &Limit,
    place: &mut dyn FnMut() -> Option<P>,
    write: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let (stack, containers, began) = match followed {
        Followed::Container(container) => (None, vec![container], Timestamp::now()),
        Followed::Stack { labels, containers, began } => (Some(labels), containers, began),
    };
    let mut follower = Follower {
        children: Several::default(),
        waiting: VecDeque::new(),
        last_key: EVENTS,
        told_left_out: false,
        events_place: None,
        heard: Heard {
            is_stack: stack.is_some(),
            past: (stack.is_some() && wanted.tail > 0).then(Past::new),
            sources: BTreeMap::new(),
            events: Vec::new(),
            complaint: String::new(),
            text: Vec::new(),
            write,
            outcome: Ok(()),
        },
        stack,
        began,
        settings,
        limit,
        place,
    };
    for container in containers {
        follower.add(container, &wanted.tail.to_string(), wanted.since.clone());
    }
    follower.run()
}

struct Follower<'a, P> {
    /// The first field: they end before their places are free again.
    children: Several,
    stack: Option<StackLabels>,
    began: Timestamp,
    settings: &'a Settings,
    limit: &'a Limit,
    place: &'a mut dyn FnMut() -> Option<P>,
    /// Those that wait for their process.
    waiting: VecDeque<usize>,
    last_key: usize,
    told_left_out: bool,
    events_place: Option<P>,
    heard: Heard<'a, P>,
}

/// A container that is, was or will be followed.
struct Source<P> {
    container: Container,
    tail: String,
    since: Option<String>,
    timed: Timed,
    /// While its process runs.
    place: Option<P>,
    /// That process asks for the last words alone.
    is_rest: bool,
    /// It was started anew while its process had not ended yet.
    is_back: bool,
    /// It is no more.
    is_gone: bool,
}

impl<P> Follower<'_, P> {
    fn run(&mut self) -> io::Result<()> {
        if let Some(stack) = &self.stack {
            let label = format!("label=com.docker.compose.project={}", stack.project);
            let command = docker(self.settings)
                .args(["events", "--filter", "type=container", "--filter", &label])
                .args(["--filter", "event=start", "--filter", "event=rename", "--filter", "event=destroy"])
                .args(["--since", &self.began.to_string(), "--format", EVENT_FORMAT]);
            self.events_place = (self.place)();
            self.children.start(EVENTS, command).map_err(io::Error::other)?;
        }
        while !self.limit.is_over() {
            self.start_waiting()?;
            if self.children.is_empty() {
                return self.heard.flush();
            }
            let Follower { children, heard, limit, .. } = self;
            let ended =
                children.listen(limit, heard.patience(), &mut |key, output, line| heard.hear(key, output, line));
            let ended = ended?;
            if !self.limit.is_over() {
                self.heard.tell_past_when_it_is_complete();
                self.heard.flush()?;
            }
            for event in std::mem::take(&mut self.heard.events) {
                self.learn(&event);
            }
            for one in ended {
                if one.key == EVENTS {
                    return self.say_farewell();
                }
                if !(one.success && self.ask_for_rest(one.key)) {
                    self.note_end(one.key);
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, container: Container, tail: &str, since: Option<String>) {
        self.last_key += 1;
        let key = self.last_key;
        let source = Source {
            container,
            tail: tail.to_owned(),
            since,
            timed: Timed::default(),
            place: None,
            is_rest: false,
            is_back: false,
            is_gone: false,
        };
        self.heard.sources.insert(key, source);
        self.waiting.push_back(key);
    }

    /// Starts processes as far as there are places for them.
    fn start_waiting(&mut self) -> io::Result<()> {
        while let Some(key) = self.waiting.front().copied() {
            let running = self.heard.sources.values().filter(|source| source.place.is_some()).count();
            let Some(source) = self.heard.sources.get_mut(&key).filter(|source| !source.is_gone) else {
                self.heard.sources.remove(&key);
                self.waiting.pop_front();
                continue;
            };
            let place = if running < STACK_FOLLOWED_MAX { (self.place)() } else { None };
            let Some(place) = place else { break };
            self.waiting.pop_front();
            let command = source.command(&["--follow", "--timestamps"], self.settings);
            match self.children.start(key, command) {
                Ok(()) => source.place = Some(place),
                Err(error) => {
                    let line = format!("{OWN_WORDS}{}: {error}\n", source.container.name);
                    self.heard.say(&line);
                    self.note_end(key);
                }
            }
        }
        // Some of those that were there before have ended long ago, and leave their places soon.
        if self.heard.past.is_none() && !self.waiting.is_empty() && !self.told_left_out {
            self.told_left_out = true;
            let sources = &self.heard.sources;
            let names = self.waiting.iter().filter_map(|key| Some(sources.get(key)?.container.name.as_str()));
            let line = left_out_line(names);
            self.heard.say(&line);
        }
        self.heard.flush()
    }

    /// Something happened to a container of the compose project.
    fn learn(&mut self, line: &str) {
        #[derive(Deserialize)]
        struct Event {
            action: String,
            #[serde(flatten)]
            container: Container,
        }
        let Ok(Event { action, container }) = serde_json::from_str(line) else {
            return log::debug!("docker events: {line}");
        };
        if !self.stack.as_ref().is_some_and(|stack| container.belongs_to(stack)) {
            return;
        }
        let known = self.heard.sources.iter_mut().find(|(_, source)| source.container.id == container.id);
        match known {
            None if action == "start" => self.add(container, "all", None),
            None => {}
            Some((key, source)) => {
                let key = *key;
                source.container.name = container.name;
                source.is_back |= action == "start";
                source.is_gone |= action == "destroy";
                if source.place.is_none() && !self.waiting.contains(&key) {
                    self.note_end(key);
                }
            }
        }
    }

    /// `docker logs --follow` may end with its container before it has read that one's last words; answers whether they
    /// are asked for now.
    fn ask_for_rest(&mut self, key: usize) -> bool {
        let Some(source) = self.heard.sources.get_mut(&key).filter(|source| !source.is_rest && !source.is_gone) else {
            return false;
        };
        source.go_on(self.began);
        let command = source.command(&["--timestamps"], self.settings);
        source.is_rest = self.children.start(key, command).is_ok();
        source.is_rest
    }

    /// A container's process has ended; it gets another one where the container is back, from where the last one
    /// stopped.
    fn note_end(&mut self, key: usize) {
        let Some(source) = self.heard.sources.get_mut(&key) else { return };
        (source.place, source.is_rest) = (None, false);
        if source.is_gone {
            self.heard.sources.remove(&key);
        } else if std::mem::take(&mut source.is_back) {
            source.go_on(self.began);
            self.waiting.push_back(key);
        }
    }

    /// Docker tells no more of the stack: it was stopped itself, mostly.
    fn say_farewell(&mut self) -> io::Result<()> {
        self.heard.tell_past();
        let complaint = std::mem::take(&mut self.heard.complaint);
        self.heard.say(&format!("{OWN_WORDS}Docker tells no more of this stack: {complaint}\n"));
        self.heard.flush()
    }
}

impl<P> Source<P> {
    fn command(&self, options: &[&str], settings: &Settings) -> Command {
        log_command(&self.container, options, &self.tail, self.since.as_deref(), settings)
    }

    /// What is asked for next follows what came last. Where nothing came, nothing was there: the same is asked for
    /// again, unless that was nothing.
    fn go_on(&mut self, began: Timestamp) {
        if !self.timed.time.is_empty() || self.tail == "0" {
            self.since = Some(after(&self.timed.time).unwrap_or(began).to_string());
            "all".clone_into(&mut self.tail);
        }
    }
}

/// The moment after a time of Docker's; none where there was none.
fn after(time: &str) -> Option<Timestamp> {
    let time: Timestamp = time.parse().ok()?;
    time.checked_add(Duration::from_nanos(1)).ok()
}

/// What the children say, on its way to the client.
struct Heard<'a, P> {
    is_stack: bool,
    sources: BTreeMap<usize, Source<P>>,
    /// Until the lines that were there before have come.
    past: Option<Past>,
    events: Vec<String>,
    complaint: String,
    text: Vec<u8>,
    write: &'a mut dyn FnMut(&[u8]) -> io::Result<()>,
    outcome: io::Result<()>,
}

/// Lines that were there before, with their times.
struct Past {
    lines: Vec<(String, String)>,
    bytes: usize,
    began: Instant,
    last: Instant,
}

impl Past {
    fn new() -> Past {
        Past { lines: Vec::new(), bytes: 0, began: Instant::now(), last: Instant::now() }
    }

    fn complete_at(&self) -> Instant {
        (self.last + PAST_QUIET).min(self.began + PAST_LIMIT)
    }
}

impl<P> Heard<'_, P> {
    /// How long may be waited for the next line.
    fn patience(&self) -> Duration {
        self.past.as_ref().map_or(Duration::MAX, |past| past.complete_at().saturating_duration_since(Instant::now()))
    }

    fn hear(&mut self, key: usize, output: Output, line: &str) -> ControlFlow<()> {
        if key == EVENTS {
            match output {
                Output::Out => self.events.push(line.to_owned()),
                Output::Err => line.clone_into(&mut self.complaint),
            }
            return ControlFlow::Continue(());
        }
        let Some(source) = self.sources.get_mut(&key) else { return ControlFlow::Continue(()) };
        if source.is_rest && is_dockers(line) {
            // The container has gone meanwhile.
            return ControlFlow::Continue(());
        }
        let text = source.timed.strip(line);
        let line = if self.is_stack { format!("{} | {text}\n", source.container.name) } else { format!("{text}\n") };
        match &mut self.past {
            None => self.text.extend_from_slice(line.as_bytes()),
            Some(past) => {
                past.bytes += line.len();
                past.last = Instant::now();
                past.lines.push((source.timed.time.clone(), line));
                if past.bytes > LOGS_MAX_BYTES {
                    self.tell_past();
                }
            }
        }
        self.flush_when_full()
    }

    fn say(&mut self, line: &str) {
        self.text.extend_from_slice(line.as_bytes());
    }

    fn tell_past_when_it_is_complete(&mut self) {
        if self.past.as_ref().is_some_and(|past| past.complete_at() <= Instant::now()) {
            self.tell_past();
        }
    }

    fn tell_past(&mut self) {
        let Some(mut past) = self.past.take() else { return };
        // Lines of one moment stay in their order.
        past.lines.sort_by(|(one, _), (other, _)| one.cmp(other));
        past.lines.iter().for_each(|(_, line)| self.text.extend_from_slice(line.as_bytes()));
    }

    fn flush_when_full(&mut self) -> ControlFlow<()> {
        if self.text.len() < PIECE_BYTES {
            return ControlFlow::Continue(());
        }
        self.outcome = self.flush();
        if self.outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        std::mem::replace(&mut self.outcome, Ok(()))?;
        if self.text.is_empty() {
            return Ok(());
        }
        let written = (self.write)(&self.text);
        self.text.clear();
        written
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests start threads")]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::super::containers_of;
    use super::super::testing::Lab;
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);
    const FOLDER: &str = "/srv/a, folder";
    const STAYS: [&str; 2] = ["run", "--detach"];

    fn last(tail: u32) -> Wanted {
        Wanted { tail, since: None }
    }

    /// Follows in a thread of its own while `test` reads its lines; answers how soon it ended after the limit did.
    fn while_following(
        lab: &Lab,
        followed: Followed,
        wanted: Wanted,
        places: usize,
        test: impl FnOnce(&mut dyn FnMut() -> Option<String>),
    ) -> Duration {
        let limit = Limit::after(PATIENCE);
        let (send, receive) = channel::<Vec<u8>>();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let send = send;
                let mut left = places;
                let mut place = || {
                    left = left.checked_sub(1)?;
                    Some(())
                };
                let mut write = |text: &[u8]| send.send(text.to_vec()).map_err(io::Error::other);
                follow(followed, &wanted, &lab.settings, &limit, &mut place, &mut write).unwrap();
            });
            let _ends = Ends(&limit);
            let mut lines = VecDeque::new();
            test(&mut || next_line(&receive, &mut lines));
            let began = Instant::now();
            limit.cancel();
            thread.join().unwrap();
            began.elapsed()
        })
    }

    /// Ends the follower of a test that fails.
    struct Ends<'a>(&'a Limit);

    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.cancel();
        }
    }

    /// None at the end.
    fn next_line(receive: &Receiver<Vec<u8>>, lines: &mut VecDeque<String>) -> Option<String> {
        while lines.is_empty() {
            let text = String::from_utf8(receive.recv().ok()?).unwrap();
            lines.extend(text.lines().map(str::to_owned));
        }
        lines.pop_front()
    }

    fn stack(lab: &Lab) -> Followed {
        let began = Timestamp::now();
        let limit = Limit::after(PATIENCE);
        let containers = containers_of(std::slice::from_ref(&lab.labels), &lab.settings, &limit).unwrap();
        Followed::Stack { labels: lab.labels.clone(), containers, began }
    }

    /// Whether a process has this among its arguments.
    fn is_followed(text: &str) -> bool {
        let commands = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let command = std::fs::read(entry.ok()?.path().join("cmdline")).ok()?;
            Some(String::from_utf8_lossy(&command).into_owned())
        });
        commands.into_iter().any(|command| command.contains("--follow") && command.contains(text))
    }

    #[test]
    fn a_stack_is_followed_through_new_containers_and_those_that_come_back() {
        let lab = Lab::new();
        let done = lab.start("done", FOLDER, "echo first");
        let web = lab.run(&STAYS, "web", FOLDER, "echo second; while [ ! -e /go ]; do sleep 0.1; done; echo third");
        let id = lab.docker(&["inspect", "--format", "{{.ID}}", &web]).trim().to_owned();
        lab.start("foreign", "/srv/other", "echo private");
        let took = while_following(&lab, stack(&lab), last(10), 10, |next| {
            assert_eq!(next(), Some(format!("{done} | first")));
            assert_eq!(next(), Some(format!("{web} | second")));
            assert!(is_followed(&id));
            lab.start("foreign-too", "/srv/other", "echo private");
            let late = lab.run(&STAYS, "late", FOLDER, "echo here; sleep 600");
            assert_eq!(next(), Some(format!("{late} | here")));
            lab.docker(&["exec", &web, "touch", "/go"]);
            assert_eq!(next(), Some(format!("{web} | third")));
            lab.docker(&["wait", &web]);
            lab.docker(&["start", &web]);
            assert_eq!(next(), Some(format!("{web} | second")), "it says so anew, and nothing comes twice");
            assert_eq!(next(), Some(format!("{web} | third")));
            lab.docker(&["rename", &late, &format!("{late}-er")]);
            lab.docker(&["restart", "--time", "0", &format!("{late}-er")]);
            assert_eq!(next(), Some(format!("{late}-er | here")));
        });
        // Within a second; more only where the machine is busy.
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert!(!is_followed(&id) && !is_followed(&lab.labels.project));
    }

    #[test]
    fn what_there_is_no_place_for_is_told() {
        let lab = Lab::new();
        let one = lab.run(&STAYS, "a", FOLDER, "echo one; while [ ! -e /go ]; do sleep 0.1; done; echo two");
        let other = lab.run(&STAYS, "b", FOLDER, "echo three; sleep 600");
        while_following(&lab, stack(&lab), last(10), 2, |next| {
            assert_eq!(next(), Some(format!("{one} | one")));
            let note = next().unwrap();
            assert!(note.starts_with(OWN_WORDS) && note.ends_with(&other), "{note}");
            lab.docker(&["exec", &one, "touch", "/go"]);
            assert_eq!(next(), Some(format!("{one} | two")));
        });
    }

    #[test]
    fn a_container_is_followed_until_it_stops() {
        let lab = Lab::new();
        let web = lab.run(
            &STAYS,
            "web",
            FOLDER,
            "echo old; sleep 0.1; echo err >&2; sleep 0.1; echo old; while [ ! -e /go ]; do sleep 0.1; done; echo last >&2; sleep 0.1; printf words",
        );
        let found = containers_of(std::slice::from_ref(&lab.labels), &lab.settings, &Limit::after(PATIENCE)).unwrap();
        while lab.docker(&["logs", &web]) != "old\nold\n" {}
        while_following(&lab, Followed::Container(found[0].clone()), last(2), 1, |next| {
            assert_eq!([next().as_deref(), next().as_deref()], [Some("err"), Some("old")]);
            lab.docker(&["exec", &web, "touch", "/go"]);
            assert_eq!([next().as_deref(), next().as_deref()], [Some("last"), Some("words")]);
            assert_eq!(next(), None);
        });
        lab.docker(&["container", "rm", "--force", &web]);
        while_following(&lab, Followed::Container(found[0].clone()), last(2), 1, |next| {
            let complaint = next().unwrap();
            assert!(complaint.to_lowercase().contains("no such container"), "{complaint}");
            assert_eq!(next(), None);
        });
    }
}
