//! `shiparr hold -- COMMAND ARGS…`: runs something while no deployment does; package upgrades restart the service so.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use serde::Deserialize;

use super::client::Client;
use super::compose::exit_code;
use super::table::printable;
use crate::command::{Command, Limit};
use crate::config::Environment;

/// The daemon's lines are at most this long.
const MAX_LINE_BYTES: usize = 1024 * 1024;
/// A daemon that says nothing at all is not waited for.
const FIRST_LINE_LIMIT: Duration = Duration::from_secs(10);

/// What `hold` takes.
#[derive(Args)]
pub struct HoldArgs {
    /// What is run, with this terminal and this environment
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// What runs, as the daemon tells it.
#[derive(Deserialize)]
struct Line {
    running: Vec<String>,
    ends_within_seconds: u64,
}

/// Waits until no deployment runs, and runs the command while none begins; its exit code. Where no daemon answers, or one
/// of a version that knows nothing of this, or the deployments do not end when they must, it is run all the same: whoever
/// upgrades a package is not to be left with half of it.
///
/// # Errors
/// The command cannot be run.
pub fn run(environment: &Environment, args: &HoldArgs) -> anyhow::Result<ExitCode> {
    match Client::of_this_host(environment) {
        Ok(client) => wait(listen(client)),
        Err(error) => eprintln!("shiparr: nothing is waited for: {error:#}"),
    }
    let (program, rest) =
        args.command.split_first().map_or_else(Default::default, |(first, rest)| (first.clone(), rest));
    let status = Command::new(program, &environment.all()).args(rest).attend(&Limit::after(Duration::MAX))?;
    Ok(exit_code(status))
}

/// Holds the connection until this process ends, and hands on the daemon's lines.
fn listen(client: Client) -> Receiver<anyhow::Result<Line>> {
    let (out, lines) = crossbeam_channel::unbounded();
    #[expect(clippy::disallowed_methods, reason = "the command line has no daemon to start its threads")]
    std::thread::spawn(move || {
        // Where nobody listens any more, the command runs already.
        if let Err(error) = hand_on(&client, &out) {
            let _ = out.send(Err(error));
        }
    });
    lines
}

fn hand_on(client: &Client, out: &Sender<anyhow::Result<Line>>) -> anyhow::Result<()> {
    client.hold("/control/hold", &serde_json::Value::Null, MAX_LINE_BYTES, &mut |line| {
        let _ = out.send(serde_json::from_slice(&line).map_err(anyhow::Error::from));
    })
}

/// Until nothing runs, nobody is there to say so, or what runs should have ended.
fn wait(lines: Receiver<anyhow::Result<Line>>) {
    let mut until = Instant::now() + FIRST_LINE_LIMIT;
    loop {
        match lines.recv_deadline(until) {
            Ok(Ok(Line { running, .. })) if running.is_empty() => return,
            Ok(Ok(Line { running, ends_within_seconds })) => {
                until = Instant::now() + Duration::from_secs(ends_within_seconds);
                let minutes = ends_within_seconds.div_ceil(60);
                let running = running.iter().map(|what| printable(what)).collect::<Vec<_>>().join("; ");
                eprintln!("shiparr: waits for {running} to end, at most {minutes} minutes");
            }
            Ok(Err(error)) => return eprintln!("shiparr: nothing is waited for any more: {error:#}"),
            Err(RecvTimeoutError::Timeout) => return eprintln!("shiparr: it did not end in time"),
            Err(RecvTimeoutError::Disconnected) => return eprintln!("shiparr: the daemon is gone"),
        }
    }
}
