//! Configuration: settings from the environment, project files, and what changed between two loads.
//!
//! A project file goes through three forms: `yaml` keeps every value with its line, `fields` reads each one as its type
//! and collects all problems, `project` is what the rest of the program sees, every default applied. `catalog` puts the
//! files together and decides which of two that collide goes on.

mod access;
pub mod catalog;
mod collisions;
#[cfg(test)]
mod documented;
pub mod environment;
mod fields;
mod file;
mod fingerprint;
mod problem;
pub mod project;
mod reader;
pub mod settings;
#[cfg(test)]
mod sharing_tests;
mod suggest;
mod template;
#[cfg(test)]
mod tests;
mod tokens;
mod variables;
mod watched;
pub(crate) mod yaml;

pub use access::{Auth, Network, PublicUrl};
pub use catalog::{Accepted, AcceptedRepository, Basis, Catalog};
pub use collisions::real_path;
pub use environment::Environment;
pub(crate) use environment::read_bounded;
pub use fingerprint::hash_key;
pub use problem::{Problem, Severity};
pub use project::{Project, Repository};
pub use settings::Settings;
pub use template::Template;
