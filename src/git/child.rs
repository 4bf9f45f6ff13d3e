//! The child process, `shiparr git`: everything that touches libgit2 and the working tree.

use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{Signal, set_parent_process_death_signal};

use super::libgit::{self, Home};
use super::wire::{Answer, Request, Task};
use super::{GitError, Remote, run};
use crate::command::Limit;

/// Bound on a request.
const MAX_REQUEST_BYTES: u64 = 1024 * 1024;

/// The hidden verb `shiparr git`: reads a request from standard input, writes its result to standard output.
pub fn child_main() -> ExitCode {
    // A daemon that is killed leaves no child that goes on writing; the next daemon waits for the lock otherwise.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let home = Home::announce();
    let answer = answer();
    drop(home);
    let written = serde_json::to_vec(&answer).map_err(std::io::Error::other).and_then(|json| {
        let mut out = std::io::stdout().lock();
        out.write_all(&json)?;
        out.flush()
    });
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn answer() -> Answer {
    let mut text = Vec::new();
    let read = std::io::stdin().lock().take(MAX_REQUEST_BYTES).read_to_end(&mut text);
    let request: Result<Request, String> =
        read.map_err(|error| error.to_string()).and_then(|_| serde_json::from_slice(&text).map_err(|e| e.to_string()));
    let request = match request {
        Ok(request) => request,
        Err(error) => return GitError::lasting(format!("`shiparr git` cannot read its request: {error}")).into(),
    };
    let limit = Limit::after(Duration::from_millis(request.limit_milliseconds));
    carry_out(request, &limit).unwrap_or_else(Answer::from)
}

fn carry_out(request: Request, limit: &Limit) -> Result<Answer, GitError> {
    let remote = request.remote.map(Remote::from);
    let ca_file = remote.as_ref().and_then(|remote| remote.ca_file.as_deref());
    libgit::configure_process(ca_file).map_err(|error| GitError::lasting(format!("libgit2: {}", error.message())))?;
    let remote = || remote.as_ref().ok_or_else(|| GitError::lasting("`shiparr git` was asked without a remote"));
    match request.task {
        Task::Check => libgit::tip(remote()?).map(Answer::Tip),
        Task::FetchAndCheckout(checkout) => run::fetch_and_checkout(remote()?, &checkout, limit).map(Answer::Fetched),
        Task::LookAhead(checkout) => run::look_ahead(remote()?, &checkout, limit).map(Answer::LookedAhead),
        Task::PutBack(checkout) => run::put_back(&checkout).map(Answer::PutBack),
        Task::Tidy(checkout) => run::tidy_stores(&checkout, limit).map(|()| Answer::Tidied),
    }
}
