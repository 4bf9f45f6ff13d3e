//! Looks at containers that many waiting stacks share, so that what they cost does not grow with the number of stacks.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Compose;
use super::watch::{Container, Now};
use crate::command::Limit;
use crate::deploy::StepError;

/// How long a cancellation may go unnoticed by one who waits for another's answer.
const TICK: Duration = Duration::from_millis(50);

/// The questions that waiting stacks ask.
#[derive(Default)]
pub struct Looks {
    /// Ids of the containers that anybody waits for, and how many do.
    wanted: Mutex<BTreeMap<String, u32>>,
    /// By id, all that were asked for; nothing where there was none.
    inspected: Shared<HashMap<String, Option<Container>>>,
    /// Id and compose project of all containers of this host that belong to one, without those of `docker compose run`.
    listed: Shared<Vec<(String, String)>>,
}

/// What one stack watches. Dropped, nobody looks at its containers on its behalf any more.
pub struct Watched<'a> {
    compose: &'a Compose,
    project: &'a str,
    ids: Vec<String>,
}

/// One question that several may have at the same time, and the last answer to it.
struct Shared<T> {
    state: Mutex<State<T>>,
    answered: Condvar,
}

struct State<T> {
    is_asking: bool,
    answer: Option<Answer<T>>,
}

struct Answer<T> {
    /// When the question was asked: what happened since, the answer does not know.
    asked: Now,
    answer: Arc<Result<T, StepError>>,
}

impl<'a> Watched<'a> {
    /// The stack of a compose project.
    pub fn new(compose: &'a Compose, project: &'a str) -> Watched<'a> {
        Watched { compose, project, ids: Vec::new() }
    }

    /// The containers of the project as they were at a moment after `since`, and that moment: those that the last look
    /// found, or, where `anew` or one of them is gone, those that are there now.
    ///
    /// # Errors
    /// Docker did not say, or the limit was over before it did.
    pub fn look(&mut self, since: Instant, anew: bool, limit: &Limit) -> Result<(Now, Vec<Container>), StepError> {
        if !anew && !self.ids.is_empty() {
            let seen = self.inspect(since, limit)?;
            if seen.1.len() == self.ids.len() {
                return Ok(seen);
            }
        }
        let (at, listed) = self.compose.looks.listed.get(since, limit, |_| true, || self.compose.list(limit))?;
        let listed = listed.as_ref().as_ref().map_err(StepError::clone)?;
        let ids = listed.iter().filter(|(_, project)| project == self.project).map(|(id, _)| id.clone()).collect();
        self.want(ids);
        if self.ids.is_empty() { Ok((at, Vec::new())) } else { self.inspect(since, limit) }
    }

    fn inspect(&self, since: Instant, limit: &Limit) -> Result<(Now, Vec<Container>), StepError> {
        let looks = &self.compose.looks;
        let covers = |seen: &HashMap<String, Option<Container>>| self.ids.iter().all(|id| seen.contains_key(id));
        let (at, seen) = looks.inspected.get(since, limit, covers, || {
            let wanted: Vec<String> = looks.wanted().keys().cloned().collect();
            let ids: Vec<&str> = wanted.iter().map(String::as_str).collect();
            let mut found: HashMap<_, _> =
                self.compose.inspect(&ids, limit)?.into_iter().map(|seen| (seen.id.clone(), seen)).collect();
            Ok(wanted.into_iter().map(|id| (found.remove(&id), id)).map(|(seen, id)| (id, seen)).collect())
        })?;
        let seen = seen.as_ref().as_ref().map_err(StepError::clone)?;
        Ok((at, self.ids.iter().filter_map(|id| seen.get(id).cloned().flatten()).collect()))
    }

    fn want(&mut self, ids: Vec<String>) {
        let mut wanted = self.compose.looks.wanted();
        for id in &ids {
            *wanted.entry(id.clone()).or_default() += 1;
        }
        for id in std::mem::replace(&mut self.ids, ids) {
            if let Some(count) = wanted.get_mut(&id) {
                *count -= 1;
                if *count == 0 {
                    wanted.remove(&id);
                }
            }
        }
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.want(Vec::new());
    }
}

impl Looks {
    /// How many containers anybody waits for.
    #[cfg(test)]
    pub fn wanted_count(&self) -> usize {
        self.wanted().len()
    }

    fn wanted(&self) -> MutexGuard<'_, BTreeMap<String, u32>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Default for Shared<T> {
    fn default() -> Shared<T> {
        Shared { state: Mutex::new(State { is_asking: false, answer: None }), answered: Condvar::new() }
    }
}

impl<T> Shared<T> {
    /// An answer to the question as it was asked after `since`, and that `suits`: another's, or one's own. Holds
    /// nobody for longer than their own limit.
    fn get(
        &self,
        since: Instant,
        limit: &Limit,
        suits: impl Fn(&T) -> bool,
        ask: impl FnOnce() -> Result<T, StepError>,
    ) -> Result<(Now, Arc<Result<T, StepError>>), StepError> {
        let mut state = self.state();
        loop {
            if let Some(Answer { asked, answer }) = &state.answer {
                if asked.is_after(since) && answer.as_ref().as_ref().map_or(true, &suits) {
                    return Ok((*asked, Arc::clone(answer)));
                }
            }
            if limit.is_over() {
                let was_ended = limit.is_cancelled();
                let why =
                    if was_ended { "it was ended before Docker answered" } else { "Docker did not answer in time" };
                return Err(StepError::for_now(why));
            }
            if !state.is_asking {
                break;
            }
            let waited = self.answered.wait_timeout(state, limit.left().min(TICK));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.is_asking = true;
        drop(state);
        let asking = Asking(self);
        let (asked, answer) = (Now::read(), Arc::new(ask()));
        // That one's own time was over says nothing to the others.
        if answer.is_ok() || !limit.is_over() {
            self.state().answer = Some(Answer { asked, answer: Arc::clone(&answer) });
        }
        drop(asking);
        Ok((asked, answer))
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets the next one ask, however the question ends.
struct Asking<'a, T>(&'a Shared<T>);

impl<T> Drop for Asking<'_, T> {
    fn drop(&mut self) {
        self.0.state().is_asking = false;
        self.0.answered.notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "tests start threads")]

    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn number(answer: Result<(Now, Arc<Result<u32, StepError>>), StepError>) -> u32 {
        *answer.unwrap().1.as_ref().as_ref().unwrap()
    }

    #[test]
    fn an_answer_serves_all_who_asked_before_it_and_none_who_ask_after() {
        let (shared, asked) = (Shared::default(), AtomicU32::new(0));
        let ask = || Ok(asked.fetch_add(1, Ordering::Relaxed));
        let before = Instant::now();
        let limit = Limit::after(LONG);
        assert_eq!(number(shared.get(before, &limit, |_| true, ask)), 0);
        assert_eq!(number(shared.get(before, &limit, |_| true, ask)), 0);
        assert_eq!(number(shared.get(before, &limit, |answer| *answer > 0, ask)), 1, "one that suits is asked for");
        assert_eq!(number(shared.get(Instant::now(), &limit, |_| true, ask)), 2);
    }

    #[test]
    fn whoever_is_cancelled_leaves_at_once_while_another_asks_and_a_question_that_was_cut_off_is_asked_again() {
        let shared = Shared::<u32>::default();
        let (first, second, third) = (Limit::after(LONG), Limit::after(LONG), Limit::after(LONG));
        let (asking, is_asking) = mpsc::channel();
        let since = Instant::now();
        std::thread::scope(|scope| {
            let hangs = scope.spawn(|| {
                shared.get(
                    since,
                    &first,
                    |_| true,
                    || {
                        asking.send(()).unwrap();
                        first.sleep(LONG);
                        Err(StepError::for_now("cut off"))
                    },
                )
            });
            is_asking.recv().unwrap();
            let cancelled = scope.spawn(|| shared.get(since, &second, |_| true, || unreachable!("another asks")));
            let waits = scope.spawn(|| shared.get(since, &third, |_| true, || Ok(7)));
            second.cancel();
            let began = Instant::now();
            assert!(cancelled.join().unwrap().is_err());
            assert!(began.elapsed() < LONG / 2, "left after {:?}", began.elapsed());
            first.cancel();
            assert!(hangs.join().unwrap().unwrap().1.is_err());
            assert_eq!(number(waits.join().unwrap()), 7);
        });
    }
}
