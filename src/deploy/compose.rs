//! The Docker Compose driver.
