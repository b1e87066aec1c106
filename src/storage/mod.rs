//! Ordered bytes, nothing about etcd: the seam between the state and what keeps it on disk.
//!
//! A [`Backend`] is one ordered map of bytes with atomic batches. It is **not** in the
//! acknowledgement path: the write-ahead log is what a client's answer stands on, and everything
//! here can be rebuilt from the log or from a peer. What a backend does promise is an order: after
//! any crash it opens as an *exact prefix* of the commits, no shorter than the last
//! [`Backend::checkpoint`] that returned. The state writes the applied log id in the same batch
//! as the data, so the log knows where to go on, and may be purged up to a checkpoint.
//!
//! ```text
//! apply thread ── commit(Batch) ──▶ overlay ─┬─▶ get, scan      (visible at once)
//!                                   queue ───┴─▶ writer thread ─▶ disk, about once a second
//! ```
//!
//! Two implementations: [`memory::Memory`] for tests and for what needs no disk, and
//! [`sled::SledBackend`]. Only the folder `sled/` names the sled crate.

pub mod memory;
pub mod sled;

#[cfg(test)]
mod tests;

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
///
/// Any thread may call any method. Commits take effect in the order in which they return; the
/// callers give that order, usually by committing from one thread.
///
/// After the first error every later call fails too: the member must stop.
pub trait Backend: Send + Sync + 'static {
    /// The value of `key` after every commit so far.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError>;

    /// Calls `visit` for each pair with `start <= key < end` in key order until it breaks.
    ///
    /// Sees every commit that returned before the call; of later ones it may see some, also parts
    /// of a batch. `visit` may take its time: nothing is locked while it runs.
    #[expect(clippy::type_complexity, reason = "an alias would hide the signature to write")]
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
    ///
    /// May take seconds; call it where blocking is allowed.
    fn checkpoint(&self) -> Result<(), StorageError>;

    /// Bytes of commits that are not handed to the disk yet; callers pause when it grows large.
    fn backlog_bytes(&self) -> usize;

    /// Calls `wake` whenever [`Backend::backlog_bytes`] falls from `below_bytes` or more to less.
    ///
    /// `wake` runs on the writer thread and must not block. To wait without a race: register once,
    /// arm whatever `wake` signals, look at the backlog, then wait.
    fn on_drain(&self, below_bytes: usize, wake: Box<dyn Fn() + Send + Sync>) {
        let _ = (below_bytes, wake); // A backend without a backlog has nothing to call back for.
    }

    /// Bytes on disk (or in memory, for a backend without a disk). Cheap; may lag by a second.
    fn size_bytes(&self) -> u64;
}

/// Whichever it is: a member stands on [`sled`], a simulated one on a disk of its own.
impl Backend for Box<dyn Backend> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        (**self).get(key)
    }

    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        (**self).scan(start, end, visit)
    }

    fn commit(&self, batch: Batch) -> Result<(), StorageError> {
        (**self).commit(batch)
    }

    fn checkpoint(&self) -> Result<(), StorageError> {
        (**self).checkpoint()
    }

    fn backlog_bytes(&self) -> usize {
        (**self).backlog_bytes()
    }

    fn on_drain(&self, below_bytes: usize, wake: Box<dyn Fn() + Send + Sync>) {
        (**self).on_drain(below_bytes, wake);
    }

    fn size_bytes(&self) -> u64 {
        (**self).size_bytes()
    }
}
