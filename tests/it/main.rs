//! The integration tests, one binary.

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod bad_luck;
mod bench;
mod conformance;
mod crash;
mod model;
mod scripts;
mod snapshot;
