//! The integration tests, one binary.

mod conformance;
#[path = "../support/mod.rs"]
mod support;

#[path = "../support/mod.rs"]
mod support;

mod bench;
mod model;
mod scripts;
