//! Consensus: the only folder that names openraft.

pub mod codec;
pub mod log_store;
mod ring;
pub mod types;
