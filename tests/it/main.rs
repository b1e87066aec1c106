//! The integration tests, one binary.

#[path = "../support/mod.rs"]
mod support;

mod model;
mod scripts;
