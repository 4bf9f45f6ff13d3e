//! A pause, as an answer: what still runs, that nothing does any more, and then nothing until the client goes.

use std::io::{self, Write};
use std::time::Duration;

use super::Context;
use super::presence::Watch;
use super::stream::{Stream, chunk, head};

/// Once nothing runs, nobody needs longer for the restart of a service. A client that hangs, or that somebody has
/// suspended, holds deployments up no longer.
const HOLD_LIMIT: Duration = Duration::from_secs(3600);
/// How soon the end of a deployment is noticed.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The answer of POST `/control/hold`: a line `{"running": ["…"], "ends_within_seconds": 900}` each time when what runs
/// changes, and for as long as the connection stands no deployment begins; the empty list is the last line.
pub struct Pausing;

impl Stream for Pausing {
    fn head(&self) -> String {
        head("application/x-ndjson")
    }

    fn write(self: Box<Self>, context: &Context, watch: &Watch, to: &mut dyn Write) -> io::Result<()> {
        let pause = context.daemon.pause();
        to.write_all(self.head().as_bytes())?;
        let mut told = None;
        while told.as_ref().is_none_or(|told: &Vec<String>| !told.is_empty()) {
            let busy = context.daemon.running();
            let ends_within = busy.iter().map(|busy| busy.ends_within.as_secs()).max().unwrap_or_default();
            let running: Vec<String> = busy.into_iter().map(|busy| busy.what).collect();
            if told.as_ref() != Some(&running) {
                let line = serde_json::json!({ "running": running, "ends_within_seconds": ends_within });
                chunk(to, format!("{line}\n").as_bytes())?;
                told = Some(running);
            } else if !watch.limit().sleep(LOOK_AGAIN) {
                return Ok(());
            }
        }
        if watch.limit().sleep(HOLD_LIMIT) {
            log::warn!("`shiparr hold` took longer than {} minutes: deployments go on", HOLD_LIMIT.as_secs() / 60);
        }
        drop(pause);
        to.write_all(b"0\r\n\r\n")?;
        to.flush()
    }
}
