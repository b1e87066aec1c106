//! Where the states of a member lie: the one that counts, and one that a snapshot brings.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::data_dir::{DataDir, DataDirError};
use crate::storage::sled::{SledBackend, SledOptions};
use crate::storage::{Backend, StorageError};

/// Makes room for the state that a snapshot brings. May block.
pub trait StateHome: Send + Sync + 'static {
    /// A fresh, empty storage beside the current one.
    ///
    /// # Errors
    /// When the disk refuses.
    fn stage(&self) -> Result<Stage, StorageError>;

    /// Gives back the space of the states that snapshots have replaced. To be called when no snapshot is
    /// being received and nobody reads a replaced state any more.
    ///
    /// # Errors
    /// When the disk refuses; the next start does it again.
    fn remove_replaced(&self) -> Result<(), StorageError>;
}

/// A storage that is not current yet; it is gone after a restart unless it is adopted.
pub struct Stage {
    /// What to fill.
    pub backend: Box<dyn Backend>,
    /// Makes it current, durably and at once. What it holds must be durable before.
    pub adopt: Box<dyn FnOnce() -> Result<(), StorageError> + Send + Sync>,
}

/// States in sled below a data directory.
pub struct SledHome {
    data_dir: Arc<Mutex<DataDir>>,
    cache_bytes: usize,
}

impl SledHome {
    /// The home of a member with the locked `data_dir`.
    pub fn new(data_dir: DataDir, cache_bytes: usize) -> SledHome {
        SledHome { data_dir: Arc::new(Mutex::new(data_dir)), cache_bytes }
    }
}

impl StateHome for SledHome {
    fn stage(&self) -> Result<Stage, StorageError> {
        let making = failed("making a directory for a snapshot");
        let directory = self.data_dir.lock().new_staging_dir().map_err(making)?;
        let options = SledOptions { cache_bytes: self.cache_bytes, ..Default::default() };
        let backend = Box::new(SledBackend::open(directory.path(), options)?);
        let data_dir = Arc::clone(&self.data_dir);
        let adopt = move || data_dir.lock().flip_to(directory).map_err(failed("taking a snapshot"));
        Ok(Stage { backend, adopt: Box::new(adopt) })
    }

    fn remove_replaced(&self) -> Result<(), StorageError> {
        self.data_dir.lock().remove_stale_states().map_err(failed("removing a replaced state"))
    }
}

fn failed(action: &'static str) -> impl Fn(DataDirError) -> StorageError {
    move |error| StorageError::new(action, io::Error::other(error))
}
