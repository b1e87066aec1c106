//! Consensus: the only folder that names openraft.

pub mod types;
