//! Configuration: settings from the environment, project files, and what changed between two loads.

pub mod environment;
pub mod project;
pub mod settings;

pub use environment::{Environment, Template};
pub use project::{Catalog, Problem, Project, Repository};
pub use settings::Settings;
