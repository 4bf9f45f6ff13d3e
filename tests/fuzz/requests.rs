//! The fuzz target of the gate: what one client sends on one connection. README.md beside it says how to run it.
//!
//! The gate's own files are compiled in by their paths: so the fuzzer looks at them alone, and builds in seconds rather
//! than with all that the program stands on.

#![no_main]
#![allow(dead_code, reason = "the gate uses more of its files than is looked at here")]

/// As much of `src/web` as the gate's files ask for.
#[path = "../../src/web"]
mod web {
    pub const HEADER_LISTENER: &str = "X-Shiparr-Listener";
    pub const HEADER_PEER: &str = "X-Shiparr-Peer";
    pub const HEADER_REQUEST: &str = "X-Shiparr-Request";

    /// Only shown, never looked into.
    pub type Peer = std::net::IpAddr;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum ListenerKind {
        Tcp,
        Control,
    }

    impl ListenerKind {
        fn as_str(self) -> &'static str {
            match self {
                ListenerKind::Tcp => "tcp",
                ListenerKind::Control => "control",
            }
        }
    }

    pub mod gate {
        pub mod chunked;
        pub mod connection;
        pub mod head;
        pub mod refusal;
        pub mod slots;
    }
}

mod properties;

libfuzzer_sys::fuzz_target!(|sent: &[u8]| properties::hold(sent));
