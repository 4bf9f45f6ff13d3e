//! Variables from env files: dotenv as Compose reads it, or flat YAML or JSON.

use super::Secret;

/// A variable and its value.
pub type Variable = (String, Secret);
