//! Telling people: messages, and the programs and URLs that carry them.
