//! Ordered bytes, nothing about etcd: the seam between the state and what keeps it on disk.

use std::ops::ControlFlow;

use bytes::Bytes;

/// Writes that become visible and durable together.
#[derive(Debug, Default, Clone)]
pub struct Batch {
    /// Keys in the order they were written; `None` removes the key.
    pub writes: Vec<(Bytes, Option<Bytes>)>,
}

impl Batch {
    /// Sets `key` to `value`.
    pub fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.writes.push((key.into(), Some(value.into())));
    }

    /// Removes `key` if it is there.
    pub fn remove(&mut self, key: impl Into<Bytes>) {
        self.writes.push((key.into(), None));
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

/// This member's storage failed: it cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("storage: {action}: {source}")]
pub struct StorageError {
    /// What was being done, and to which file.
    pub action: String,
    /// What the operating system or the store said.
    #[source]
    pub source: std::io::Error,
}

impl StorageError {
    /// An error of `action`.
    pub fn new(action: impl Into<String>, source: std::io::Error) -> Self {
        StorageError { action: action.into(), source }
    }
}

/// An ordered map of bytes with atomic batches.
pub trait Backend: Send + Sync + 'static {
    /// The value of `key` after every commit so far.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError>;

    /// Calls `visit` for each pair with `start <= key < end` in key order until it breaks.
    ///
    /// Sees every commit that returned before the call; of later ones it may see some.
    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StorageError>;

    /// Makes `batch` visible at once and durable with the next [`Backend::checkpoint`].
    ///
    /// Never waits for a disk. What opens after a crash is an exact prefix of the commits.
    fn commit(&self, batch: Batch) -> Result<(), StorageError>;

    /// Blocks until every commit that returned before the call is durable against power loss.
    fn checkpoint(&self) -> Result<(), StorageError>;

    /// Bytes of commits that are not handed to the disk yet; callers pause when it grows large.
    fn backlog_bytes(&self) -> usize;

    /// Bytes on disk (or in memory, for a backend without a disk).
    fn size_bytes(&self) -> u64;
}
