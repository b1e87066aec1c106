//! What the integration tests share: members as processes, clusters of them, and script runners.

use tokio::sync::Mutex;

pub(crate) mod client;
pub(crate) mod cluster;
pub(crate) mod conformance;
pub(crate) mod failpoints;
pub(crate) mod fuzz;
pub(crate) mod history;
pub(crate) mod judges;
pub(crate) mod load;
pub(crate) mod memory;
pub(crate) mod ordeal;
pub(crate) mod power_loss;
pub(crate) mod script;
pub(crate) mod server;
pub(crate) mod store;
pub(crate) mod watch;
pub(crate) mod watch_history;
pub(crate) mod workload;

/// Held by tests that keep the whole machine busy or measure time: one after the other.
pub(crate) static BUSY: Mutex<()> = Mutex::const_new(());

/// The seed of a random test: printed first, taken back by `QUORATE_SEED`.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("QUORATE_SEED").ok();
    let seed = given.map_or_else(|| fastrand::u64(..), |seed| seed.parse().unwrap());
    eprintln!("QUORATE_SEED={seed}");
    seed
}

/// The number in the environment variable `name`, or `default`.
pub(crate) fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is not a number")),
        Err(_) => default,
    }
}
