//! Opens what is on disk: the log and the state, and checks that they belong together.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::Config;
use crate::data_dir::{DataDir, DataDirError, Identity};
use crate::limits;
use crate::metrics::Metrics;
use crate::raft::log_store::LogStore;
use crate::raft::{SledHome, SoleVoter, Store};
use crate::state::{Options, State};
use crate::storage::sled::{SledBackend, SledOptions};
use crate::storage::{Backend, StorageError};
use crate::wal;

/// Everything that was opened.
pub(super) struct Opened {
    pub(super) log: LogStore,
    pub(super) state: Store,
    pub(super) home: Arc<SledHome>,
    pub(super) sole_voter: Arc<SoleVoter>,
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
    /// The state lacks entries that the log no longer has.
    #[error(
        "the state in {path} holds entries up to {applied} only, and the log goes on after \
         {purged}: files of the state were lost. Put them back; or remove the member from the \
         cluster, empty its data directory and add it again; or restore a backup"
    )]
    StateLost {
        /// The state's directory.
        path: PathBuf,
        /// The last entry that the state holds.
        applied: u64,
        /// The last entry that the log has dropped.
        purged: u64,
    },
    /// There is a state, but the log beside it is new.
    #[error(
        "the log in {path} is empty, but the state holds entries up to {applied}: files of the \
         log were lost. Put them back; or remove the member from the cluster, empty its data \
         directory and add it again; or restore a backup"
    )]
    LogLost {
        /// The log's directory.
        path: PathBuf,
        /// The last entry that the state holds.
        applied: u64,
    },
}

pub(super) fn state_options(config: &Config) -> Options {
    Options { value_cache_bytes: config.value_cache_bytes }
}

/// Opens log and state of `identity` below `data_dir`.
pub(super) fn open(
    config: &Config,
    data_dir: DataDir,
    identity: Identity,
    metrics: &Arc<Metrics>,
) -> Result<Opened, OpenError> {
    let wal_identity =
        wal::Identity { cluster_id: identity.cluster_id.0, member_id: identity.member_id.0 };
    let mut options = wal::Options::at(&data_dir.wal_dir(), wal_identity)?;
    options.segment_bytes = config.wal_segment_bytes;
    options.observer = Arc::new(LogObserver { metrics: Arc::clone(metrics) });
    let log = LogStore::open(options)?;

    let path = data_dir.current_state_dir();
    let failed = |source| OpenError::State { path: path.clone(), source };
    let storage = SledOptions { cache_bytes: limits::STORAGE_CACHE_BYTES, ..Default::default() };
    let backend: Box<dyn Backend> = Box::new(SledBackend::open(&path, storage).map_err(failed)?);
    let state = State::open(Arc::new(backend), state_options(config)).map_err(failed)?;
    check_together(&data_dir, &log, state.applied().map_or(0, |at| at.index))?;
    let sole_voter = Arc::new(SoleVoter::new(identity.member_id.0));
    let home = Arc::new(SledHome::new(data_dir, limits::STORAGE_CACHE_BYTES));
    Ok(Opened { log, state, home, sole_voter })
}

/// Log and state must leave no hole between them, and a state must not stand beside a new log:
/// that member would have forgotten its vote and entries that it acknowledged.
fn check_together(data_dir: &DataDir, log: &LogStore, applied: u64) -> Result<(), OpenError> {
    if log.is_fresh() && applied > 0 {
        return Err(OpenError::LogLost { path: data_dir.wal_dir(), applied });
    }
    match log.purged_index() {
        Some(purged) if applied < purged => {
            Err(OpenError::StateLost { path: data_dir.current_state_dir(), applied, purged })
        }
        _ => Ok(()),
    }
}

/// Counts flushes of the log.
struct LogObserver {
    metrics: Arc<Metrics>,
}

impl wal::WalObserver for LogObserver {
    fn flushed(&self, flushed: wal::Flushed) {
        self.metrics.wal_synced(flushed.took, flushed.bytes as u64);
    }

    fn space_low(&self, low: bool) {
        if low {
            tracing::warn!("no space for the next segment of the log; free some disk space");
        } else {
            tracing::info!("there is space for the log again");
        }
    }

    fn failed(&self, error: &wal::WalError) {
        // An fsync that failed may have lost what it was asked to keep: never go on, never retry.
        tracing::error!(%error, "the log failed; the member exits");
        std::process::exit(super::EXIT_STORAGE_FAILED);
    }
}
