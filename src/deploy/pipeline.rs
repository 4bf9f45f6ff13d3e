//! The numbered steps of a deployment.
