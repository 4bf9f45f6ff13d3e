//! Logs of containers as they grow, as an answer.

use std::io::{self, Write};
use std::sync::Arc;

use super::Context;
use super::answer::{Failure, Reply};
use super::presence::Watch;
use super::stream::{Stream, chunk, head};
use crate::command::{Limit, Place};
use crate::deploy::containers::{self, Followed, Wanted};

/// Text, until a container stops, or of a stack, until the client goes.
pub struct Following {
    followed: Followed,
    wanted: Wanted,
    /// As many as it cannot be without.
    places: Vec<Place>,
}

impl Following {
    /// An answer that begins once `find` has found out, in the thread that writes it, what is to be followed.
    pub fn open(
        context: &Arc<Context>,
        wanted: Wanted,
        find: impl FnOnce(&Context, &Limit) -> Result<Followed, Failure> + Send + 'static,
    ) -> Reply {
        let context = Arc::clone(context);
        Reply::Stream(Box::new(move |watch| {
            let followed = find(&context, watch.limit())?;
            // Of a stack, one process tells which containers start.
            let least = if matches!(followed, Followed::Container(_)) { 1 } else { 2 };
            let places: Vec<Place> = (0..least).filter_map(|_| context.followers.take()).collect();
            if places.len() < least {
                return Err(Failure::unavailable("too many logs are followed at once"));
            }
            Ok(Box::new(Following { followed, wanted, places }) as Box<dyn Stream>)
        }))
    }
}

impl Stream for Following {
    fn head(&self) -> String {
        head("text/plain; charset=utf-8")
    }

    fn write(self: Box<Self>, context: &Context, watch: &Watch, to: &mut dyn Write) -> io::Result<()> {
        to.write_all(self.head().as_bytes())?;
        to.flush()?;
        let Following { followed, wanted, mut places } = *self;
        let mut place = || places.pop().or_else(|| context.followers.take());
        let mut write = |text: &[u8]| chunk(to, text);
        containers::follow(followed, &wanted, &context.settings, watch.limit(), &mut place, &mut write)?;
        to.write_all(b"0\r\n\r\n")?;
        to.flush()
    }
}
