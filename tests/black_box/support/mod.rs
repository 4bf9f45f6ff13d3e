//! What the black-box tests stand on: the daemon as a process, real Git remotes, real stacks, and programs that fail on
//! demand.

mod by_hand;
pub mod daemon;
mod docker;
mod docker_proxy;
mod fake;
mod folders;
mod git_server;
mod http;
mod lived;
mod nginx;
pub mod parts;
mod project;
mod repo;
mod server;
mod sops;
mod ssh;
mod tls;
mod wait;

pub use by_hand::{Compose, Tree, composes};
pub use daemon::{Daemon, free_port};
pub use docker::{Container, Stack, docker};
pub use docker_proxy::DockerProxy;
pub use fake::{Call, Fake};
pub use folders::{contains_anywhere, copy_tree, files_below};
pub use git_server::{Fault, GitServer, Requests};
pub use http::{Answer, exchange, read_answer, read_until};
pub use lived::{Lived, lines_to_write, written};
pub use nginx::Nginx;
pub use parts::{IMAGE, all_required, missing};
pub use project::{Entry, project_file};
pub use repo::Repo;
pub use server::{Received, Receiver};
pub use sops::{Format, Sops};
pub use ssh::Ssh;
pub use tls::Tls;
pub use wait::{MINUTE, SHORT, wait_until};

/// A JSON value.
pub type Json = serde_json::Value;
