//! What the integration tests share: members as processes, clusters of them, and script runners.

pub(crate) mod cluster;
pub(crate) mod conformance;
pub(crate) mod memory;
pub(crate) mod script;
pub(crate) mod server;

/// The seed of a random test: printed first, taken back by `QUORATE_SEED`.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("QUORATE_SEED").ok();
    let seed = given.map_or_else(|| fastrand::u64(..), |seed| seed.parse().unwrap());
    eprintln!("QUORATE_SEED={seed}");
    seed
}
