//! The integration tests, one binary.

mod bad_luck;
mod conformance;
mod crash;
mod snapshot;
#[path = "../support/mod.rs"]
mod support;
