//! Every decoder of bytes that somebody else wrote, fed with bytes that nobody meant to write.
//!
//! Each target runs for a second by default; see `support/fuzz.rs` for how to let one run longer, and
//! how to try an input again. Decoders that are private to a module are fuzzed beside it:
//! `cargo test fuzz` runs them all.

mod client;
mod config;
mod files;
mod log;
mod peer;
mod state;
