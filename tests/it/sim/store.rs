//! The disk below a simulated member's state: after a crash it is a prefix of what was committed.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use fastrand::Rng;
use parking_lot::Mutex;
use quorate::raft::{Stage, StateHome};
use quorate::storage::memory::Memory;
use quorate::storage::{Backend, Batch, StorageError};

use super::invariants::Checks;

/// Commits that may wait to be written without a checkpoint; then some of them are.
const UNWRITTEN_MAX: usize = 4096;

/// One stored state.
#[derive(Default)]
pub(crate) struct Volume {
    now: Memory,
    /// Whether it is the member's state, and not a snapshot on its way in.
    counts: AtomicBool,
    disk: Mutex<Written>,
}

#[derive(Default)]
struct Written {
    durable: BTreeMap<Bytes, Bytes>,
    /// Commits that a crash may lose from the end.
    unwritten: Vec<Batch>,
}

impl Written {
    fn write(&mut self, commits: usize) {
        for batch in self.unwritten.drain(..commits) {
            for (key, value) in batch.writes {
                match value {
                    Some(value) => self.durable.insert(key, value),
                    None => self.durable.remove(&key),
                };
            }
        }
    }
}

impl Volume {
    /// What is there after a crash that loses all but the first `kept` commits since a checkpoint.
    fn after_crash(&self, kept: impl FnOnce(usize) -> usize) -> Volume {
        let mut disk = self.disk.lock();
        let commits = kept(disk.unwritten.len());
        disk.write(commits);
        let mut batch = Batch::default();
        for (key, value) in &disk.durable {
            batch.put(key.clone(), value.clone());
        }
        let now = Memory::new();
        now.commit(batch).expect("memory takes everything");
        let written = Written { durable: disk.durable.clone(), unwritten: Vec::new() };
        Volume { now, counts: AtomicBool::new(true), disk: Mutex::new(written) }
    }
}

/// The states of one member. Clones are the same.
#[derive(Clone)]
pub(crate) struct Vault {
    current: Arc<Mutex<Arc<Volume>>>,
    checks: Arc<Checks>,
    member: usize,
}

impl Vault {
    pub(crate) fn new(member: usize, checks: &Arc<Checks>) -> Vault {
        let volume = Volume { counts: AtomicBool::new(true), ..Volume::default() };
        let current = Arc::new(Mutex::new(Arc::new(volume)));
        Vault { current, checks: Arc::clone(checks), member }
    }

    /// The current state, to be opened.
    pub(crate) fn open(&self) -> Box<dyn Backend> {
        self.backend(Arc::clone(&self.current.lock()))
    }

    /// The process ends; with `rng`, it and what it had not written is gone.
    pub(crate) fn crash(&self, rng: Option<&mut Rng>) {
        let mut current = self.current.lock();
        let after = current.after_crash(|commits| match rng {
            Some(rng) => rng.usize(..=commits),
            None => commits,
        });
        *current = Arc::new(after);
    }

    fn backend(&self, volume: Arc<Volume>) -> Box<dyn Backend> {
        Box::new(SimBackend { volume, checks: Arc::clone(&self.checks), member: self.member })
    }
}

impl StateHome for Vault {
    fn stage(&self) -> Result<Stage, StorageError> {
        let volume = Arc::new(Volume::default());
        let (vault, adopted) = (self.clone(), Arc::clone(&volume));
        let adopt = move || {
            let unwritten = adopted.disk.lock().unwritten.len();
            if unwritten > 0 {
                let text = format!("a snapshot is adopted with {unwritten} commits not durable");
                vault.checks.violated("storage (src/storage/mod.rs)", text);
            }
            adopted.counts.store(true, Ordering::Relaxed);
            vault.checks.installed(vault.member);
            *vault.current.lock() = adopted;
            Ok(())
        };
        Ok(Stage { backend: self.backend(volume), adopt: Box::new(adopt) })
    }

    fn remove_replaced(&self) -> Result<(), StorageError> {
        Ok(())
    }
}

struct SimBackend {
    volume: Arc<Volume>,
    checks: Arc<Checks>,
    member: usize,
}

impl Backend for SimBackend {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.volume.now.get(key)
    }

    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        self.volume.now.scan(start, end, visit)
    }

    fn commit(&self, batch: Batch) -> Result<(), StorageError> {
        if self.volume.counts.load(Ordering::Relaxed) {
            self.checks.committed(self.member, &batch);
        }
        let mut disk = self.volume.disk.lock();
        disk.unwritten.push(batch.clone());
        if disk.unwritten.len() > UNWRITTEN_MAX {
            disk.write(UNWRITTEN_MAX / 2);
        }
        self.volume.now.commit(batch)
    }

    fn checkpoint(&self) -> Result<(), StorageError> {
        let mut disk = self.volume.disk.lock();
        let commits = disk.unwritten.len();
        disk.write(commits);
        Ok(())
    }

    fn backlog_bytes(&self) -> usize {
        0
    }

    fn size_bytes(&self) -> u64 {
        self.volume.now.size_bytes()
    }
}
