//! Shiparr brings a host to what a Git branch says: `docker compose` stacks, deployed by a push.
//!
//! # Map
//!
//! | module | owns |
//! |---|---|
//! | [`cli`] | the verbs of the command line, and the client of the control socket |
//! | [`daemon`] | start and stop order, signals, supervision, timers, the worker, reload |
//! | [`web`] | the gate in front of tiny_http, routes, auth, API, webhooks, events, widgets, status page |
//! | [`deploy`] | the pipeline from commit to running stack, and the drivers that run stacks |
//! | [`config`] | settings from the environment, project files |
//! | [`store`] | the database: projects, repositories, the queue, history, logs |
//! | [`git`] | asking a remote for a branch, and the child process that fetches and checks out |
//! | [`secrets`] | the type that does not print, decryption, env files, the scrubber |
//! | [`notify`] | messages, and what carries them |
//! | [`http`] | outgoing HTTP |
//! | [`metrics`] | what the process counts, and Prometheus' text format |
//! | [`command`] | the only place that starts a process |
//! | [`pulse`] | whether threads still go round |
//! | [`systemd`] | the sockets that a service manager hands over, and what it is told |
//! | [`sandbox`] | what the units let the daemon write, and the drop-in that opens more |
//! | [`users`] | users and groups of this host |
//! | [`model`] | plain types, statuses and their transitions |
//!
//! Imports run down that list only.
//!
//! # Threads
//!
//! ```text
//!  timer, one a repository ───────┐                              ┌─ child: shiparr git  (libgit2: fetch, checkout)
//!  gate ─ handlers of tiny_http ──┼─ pending row + bell ─▶ worker ┼─ child: sops
//!  (TCP and control socket)       │  (SQLite)               │     └─ driver ─ child: compose up
//!  main: signals, start, stop ────┤                         ▼ up has ended
//!  reload: looks at project files ┘                       waiter, one a stack that is waited for
//!  docker: asks whether it answers                          │     └─ driver: looks at the containers
//!  heartbeat: tells that all is well                        │
//!  systemd: tells that all threads live                     │
//!  status: store ─▶ one line for `systemctl status`         │
//!  events: store ─▶ gate ─▶ all who listen                  │
//!                                                           ▼ finished row
//!                                                         teller ─ child: shoutrrr
//! ```
//!
//! There is one worker, and everything that changes files or containers on the host happens on it, one deployment after
//! the other: no two checkouts or `up`s can meet, and nothing has to be locked against another one. What follows an
//! `up` only looks, and may take minutes where a stack is bad; so a [`deploy::pipeline::Waiting`] moves to a waiter, a
//! thread of its own that ends with the deployment, and the worker takes the next row. A few rules keep that simple:
//!
//! - A waiter changes nothing but its own row. Its looks at Docker are shared with those of the other waiters.
//! - A repository has one running row at most, so there is one waiter for it at most, and the worker starts nothing of
//!   it before that has ended. Where a later row would bring something else, the worker ends the waiter
//!   (`superseded`) and takes the row at its next look.
//! - Where an `up` would replace the container that this very process runs in, a helper container does it
//!   ([`deploy::handover`]): the worker waits for that as for its own, and so does the worker of the daemon that comes
//!   after, before it takes anything else.
//! - Whoever ends a deployment before its end says why ([`deploy::control::Cause`]), and the thread that has it records
//!   it.
//!
//! # Invariants
//!
//! 1. The web never runs a deployment: it reads the store, or writes a pending row and wakes the worker.
//! 2. Only [`command`] spawns, only [`daemon`] starts long-lived threads, only [`config`], [`cli`] and
//!    [`systemd`] read the environment. `.clippy.toml` holds that.
//! 3. The queue is the table; the channel is only a bell. A finished row that nobody was told of is the outbox.
//! 4. A deployment is never half recorded: its row, commit and status change in one transaction.
//! 5. Everything that waits has a time limit, everything that grows has a bound, and each is a named constant or a
//!    setting with its unit in its name.
//! 6. A long-lived thread that dies takes the process down with a non-zero exit, and who supervises it starts it again.
//!    A failed reload changes nothing. One that hangs is known by its [`pulse`], and systemd's watchdog hears
//!    nothing more.
//! 7. A secret is a type that does not print, and the log of a command passes through a scrubber that knows the secrets
//!    handed to it.
//! 8. `last_commit_hash` moves only after a success.
//! 9. No untracked file is written, moved or deleted; no command line contains `down`, `rm`, `-v`, `-V`, `-y` unless a
//!    person typed it.

pub mod cli;
pub mod command;
pub mod config;
pub mod daemon;
pub mod deploy;
pub mod git;
pub mod http;
pub mod metrics;
pub mod model;
pub mod notify;
pub mod pulse;
pub mod sandbox;
pub mod secrets;
pub mod store;
pub mod systemd;
pub mod users;
pub mod web;
