//! The integration tests, one binary.

mod conformance;
mod crash;
mod snapshot;
#[path = "../support/mod.rs"]
mod support;
