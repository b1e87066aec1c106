//! The integration tests, one binary.
#![expect(clippy::unwrap_used, reason = "helpers of a test fail it by a panic, as tests do")]

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod bad_luck;
mod bench;
mod conformance;
mod crash;
mod ctl;
mod etcd_bugs;
mod failpoints;
mod fuzz;
mod lease;
mod lock;
mod model;
#[cfg(feature = "failpoints")]
mod mutants;
mod ordeal;
mod pages;
mod power_loss;
mod scripts;
mod sim;
mod snapshot;
mod upgrade;
mod upkeep;
mod watch;
mod wire;
