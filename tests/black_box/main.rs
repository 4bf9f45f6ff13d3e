//! Shiparr from outside: the built binary on real parts. Each test has folders, a port, a remote and a compose project
//! of its own, and needs no order.
//!
//! What a machine lacks is said and left out; `SHIPARR_TESTS_REQUIRE_ALL=1` makes that a failure.

#![allow(clippy::disallowed_methods, reason = "the harness starts processes and threads of its own")]

mod api;
mod by_hand;
mod cancelling;
mod checkout;
mod cli;
mod cloned;
mod completions;
mod deploying;
mod events;
mod faults;
mod flood;
mod following;
mod handover;
mod heartbeat;
mod holding;
mod hostile;
mod hostile_corpus;
mod killed;
mod layouts;
mod manual;
mod messages;
mod monitoring;
mod monorepo;
mod nobody_waits;
mod one_shots;
mod proxies;
mod putting_back;
mod quiet;
mod readme;
mod refusals;
mod reload;
mod remotes;
mod secret_mounts;
mod secrets;
mod secure_remotes;
mod service;
mod shutdown;
mod support;
mod taking_over;
mod units;
mod webhooks;
