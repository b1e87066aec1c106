//! The integration tests, one binary.

mod conformance;
#[path = "../support/mod.rs"]
mod support;
