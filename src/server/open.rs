//! Opens what is on disk: the log and the state, and checks that they belong together.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::config::Config;
use crate::data_dir::{DataDir, DataDirError, Identity};
use crate::limits;
use crate::metrics::Metrics;
use crate::raft::log_store::LogStore;
use crate::raft::{SoleVoter, Store};
use crate::state::{Options, State};
use crate::storage::{SledBackend, SledOptions, StorageError};
use crate::wal;

/// Everything that was opened.
pub(super) struct Opened {
    pub(super) log: LogStore,
    pub(super) state: Store,
    pub(super) data_dir: Arc<Mutex<DataDir>>,
    pub(super) sole_voter: Arc<SoleVoter>,
    pub(super) metrics: Arc<Metrics>,
}

/// Why the data cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory is locked, foreign, damaged or of a newer format.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The log is damaged or foreign.
    #[error(transparent)]
    Wal(#[from] wal::WalError),
    /// The state is damaged.
    #[error(
        "{source}; the state in {path} cannot be used: remove the member from the cluster, empty \
         its data directory and add it again, or restore a backup"
    )]
    State {
        /// The state's directory.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: StorageError,
    },
}

pub(super) fn state_options(config: &Config) -> Options {
    Options { txn_ops_max: config.max_txn_ops, value_cache_bytes: config.value_cache_bytes }
}
