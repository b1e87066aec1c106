//! The integration tests, one binary.

mod conformance;
mod crash;
#[path = "../support/mod.rs"]
mod support;
