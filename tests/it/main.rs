//! The integration tests, one binary.

#[path = "../support/mod.rs"]
mod support;

mod bench;
mod conformance;
mod model;
mod scripts;
