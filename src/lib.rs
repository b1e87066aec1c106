//! Quorate: a strongly consistent, replicated key-value store that speaks the etcd v3 API.

pub mod api;
pub mod clock;
pub mod config;
pub mod data_dir;
pub mod identity;
pub mod limits;
pub mod logging;
pub mod member;
pub mod metrics;
pub mod pb;
pub mod raft;
pub mod release;
pub mod server;
pub mod state;
pub mod storage;
pub mod tasks;
pub mod wal;
