//! Randomness of the tests that fail rarely: the seed is printed, and taken back by the environment.

/// A generator for the test `name`, seeded by `QUORATE_SEED` or by chance.
pub(crate) fn seeded(name: &str) -> fastrand::Rng {
    let seed = match std::env::var("QUORATE_SEED") {
        Ok(seed) => seed.parse().expect("QUORATE_SEED is a number"),
        Err(_) => fastrand::u64(..),
    };
    eprintln!("{name}: QUORATE_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// The number in the variable `name`, or `default`.
pub(crate) fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is not a number")),
        Err(_) => default,
    }
}
