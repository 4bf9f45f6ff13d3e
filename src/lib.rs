//! Shiparr brings a host to what a Git branch says: `docker compose` stacks, deployed by a push.
//!
//! # Map
//!
//! | module | owns |
//! |---|---|
//! | [`cli`] | the verbs of the command line, and the client of the control socket |
//! | [`daemon`] | start and stop order, signals, supervision, timers, the worker, reload |
//! | [`web`] | the gate in front of tiny_http, routes, auth, API, widget |
//! | [`deploy`] | the pipeline from commit to running stack, and the drivers that run stacks |
//! | [`config`] | settings from the environment, project files, what changed between two loads |
//! | [`store`] | the database: projects, repositories, the queue, history, logs |
//! | [`git`] | asking a remote for a branch, and the child process that fetches and checks out |
//! | [`secrets`] | the type that does not print, decryption, the scrubber |
//! | [`notify`] | telling people |
//! | [`http`] | outgoing HTTP |
//! | [`command`] | the only place that starts a process |
//! | [`model`] | plain types, statuses and their transitions |
//!
//! Imports run down that list only.

pub mod cli;
pub mod command;
pub mod config;
pub mod daemon;
pub mod deploy;
pub mod git;
pub mod http;
pub mod model;
pub mod notify;
pub mod secrets;
pub mod store;
pub mod web;
