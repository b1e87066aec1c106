//! Quorate: a strongly consistent, replicated key-value store that speaks the etcd v3 API.

pub mod config;
pub mod data_dir;
pub mod identity;
pub mod limits;
pub mod logging;
pub mod pb;
pub mod raft;
pub mod state;
pub mod storage;
pub mod wal;
