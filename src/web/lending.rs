//! A stack in somebody's hands, as an answer: what they need, and then nothing until they let go or have to.

use std::io::{self, Write};
use std::time::Duration;

use super::presence::Watch;
use super::stream::{Stream, chunk, head};
use super::{Context, Lent};
use crate::command::Limit;

/// How long somebody who has to let go may take for it: their program gets SIGTERM, and SIGKILL 10 s later.
const LET_GO_LIMIT: Duration = Duration::from_secs(15);

/// How soon it is noticed then that they have let go.
const LOOK_SOON: Duration = Duration::from_millis(50);

/// The answer of POST `/control/compose`: one line of JSON with [`Tools`](crate::deploy::by_hand::Tools), and where the
/// daemon ends it a second one, `{"end": "…"}`, that says why.
pub struct Lending(pub Lent);

impl Stream for Lending {
    fn head(&self) -> String {
        head("application/x-ndjson")
    }

    fn write(self: Box<Self>, _: &Context, watch: &Watch, to: &mut dyn Write) -> io::Result<()> {
        let head = self.head();
        let Lent { tools, hold } = self.0;
        let mut line = serde_json::to_vec(&tools)?;
        // Nothing of it is kept longer than it takes to hand it over.
        drop(tools);
        line.push(b'\n');
        to.write_all(head.as_bytes())?;
        chunk(to, &line)?;
        drop(line);
        // However long they take: they go, somebody cancels it, or Shiparr stops.
        watch.limit().sleep(Duration::MAX);
        let why = if watch.is_gone() { "Shiparr stops" } else { "it was cancelled (`shiparr cancel`)" };
        // They may be gone themselves.
        let told = chunk(to, format!("{}\n", serde_json::json!({ "end": why })).as_bytes());
        // The stack is theirs until their program has ended.
        let patience = Limit::after(LET_GO_LIMIT);
        while !watch.is_gone() && patience.sleep(LOOK_SOON) {}
        drop(hold);
        told?;
        to.write_all(b"0\r\n\r\n")?;
        to.flush()
    }
}
