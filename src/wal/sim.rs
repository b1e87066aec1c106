//! A disk in memory that forgets, tears and fails on command.
//!
//! It models what a real one may do between two flushes: after a crash each 512-byte sector that
//! was written since the last successful flush of its file holds either its old or its new bytes,
//! and of the names changed since the last directory flush a prefix of the changes survives. A
//! failed flush loses the dirty sectors although reads still see them, as Linux does.
//!
//! It is in the product build because the integration tests run whole clusters on it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::disk::{Disk, DiskFile};

const SECTOR: usize = 512;

/// Which of the unflushed writes a crash loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// All of them.
    Everything,
    /// None: the process was killed, the machine went on.
    Nothing,
    /// Each sector by the toss of a coin.
    Random,
}

/// A simulated disk. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

#[derive(Debug, Clone, Default)]
struct Content {
    current: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
}

impl Content {
    fn write(&mut self, data: &[u8], offset: usize) {
        let end = offset + data.len();
        if self.current.len() < end {
            self.current.resize(end, 0);
        }
        self.current[offset..end].copy_from_slice(data);
        self.dirty.extend(offset / SECTOR..end.div_ceil(SECTOR));
    }

    fn settle(&mut self, sector: usize) {
        let start = sector * SECTOR;
        let end = (start + SECTOR).min(self.current.len());
        if self.durable.len() < end {
            self.durable.resize(end, 0);
        }
        self.durable[start..end].copy_from_slice(&self.current[start..end]);
    }
}

#[derive(Debug, Clone)]
enum NameChange {
    Create(String, u64),
    Rename(String, String),
    Remove(String),
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<u64, Content>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    name_changes: Vec<NameChange>,
    next_file: u64,
    /// Writes, flushes and name changes so far.
    operations: u64,
    crash_at: Option<u64>,
    fail_flush_at: Option<u64>,
    fail_sync_dir_at: Option<u64>,
    bytes_max: Option<u64>,
    crashed: bool,
}

fn rename(names: &mut BTreeMap<String, u64>, change: &NameChange) {
    match change {
        NameChange::Create(name, file) => {
            names.insert(name.clone(), *file);
        }
        NameChange::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        NameChange::Remove(name) => {
            names.remove(name);
        }
    }
}

impl State {
    /// Counts an operation. `Err` if the power is off; `Ok(true)` if it goes off during this one.
    fn operation(&mut self) -> io::Result<bool> {
        if self.crashed {
            return Err(io::Error::other("simulated power loss"));
        }
        self.operations += 1;
        self.crashed = self.crash_at == Some(self.operations);
        Ok(self.crashed)
    }

    fn change_name(&mut self, change: NameChange) -> io::Result<()> {
        self.operation()?;
        rename(&mut self.names, &change);
        self.name_changes.push(change);
        Ok(())
    }

    fn file(&self, name: &str) -> io::Result<u64> {
        self.names.get(name).copied().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn used_bytes(&self) -> u64 {
        let used = |file| self.files.get(file).map_or(0, |content| content.current.len() as u64);
        self.names.values().map(used).sum()
    }
}

impl SimDisk {
    /// An empty disk without faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes, flushes and name changes so far.
    pub fn operations(&self) -> u64 {
        self.0.lock().operations
    }

    /// The power goes off during the operation with this number, counted from 1.
    pub fn crash_at(&self, operation: u64) {
        self.0.lock().crash_at = Some(operation);
    }

    /// The flush that is, or comes first after, the operation with this number fails.
    pub fn fail_flush_at(&self, operation: u64) {
        self.0.lock().fail_flush_at = Some(operation);
    }

    /// The flush of the names that is, or comes first after, the operation with this number fails.
    /// The next one makes all their changes durable.
    pub fn fail_sync_dir_at(&self, operation: u64) {
        self.0.lock().fail_sync_dir_at = Some(operation);
    }

    /// Files cannot grow beyond this sum; `None` takes the limit away.
    pub fn limit_bytes(&self, bytes_max: Option<u64>) {
        self.0.lock().bytes_max = bytes_max;
    }

    /// What is on the disk when the power comes back. This disk stays dead.
    pub fn after_crash(&self, loss: Loss, random: &mut fastrand::Rng) -> Self {
        let mut old = self.0.lock();
        old.crashed = true;
        let mut new = State { next_file: old.next_file, ..State::default() };
        let changes = match loss {
            Loss::Everything => 0,
            Loss::Nothing => old.name_changes.len(),
            Loss::Random => random.usize(..=old.name_changes.len()),
        };
        new.names = old.durable_names.clone();
        for change in &old.name_changes[..changes] {
            rename(&mut new.names, change);
        }
        new.durable_names = new.names.clone();
        for file in new.names.values() {
            let mut content = old.files.get(file).cloned().unwrap_or_default();
            if loss == Loss::Nothing {
                // The page cache stays, and what of it the disk does not know of.
                new.files.insert(*file, content);
                continue;
            }
            for sector in std::mem::take(&mut content.dirty) {
                if loss == Loss::Random && random.bool() {
                    content.settle(sector);
                }
            }
            content.current = content.durable.clone();
            new.files.insert(*file, content);
        }
        Self(Arc::new(Mutex::new(new)))
    }

    /// Names and content of all files, as reads see them.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.0.lock();
        let content = |file: &u64| state.files.get(file).map(|content| content.current.clone());
        state.names.iter().map(|(n, file)| (n.clone(), content(file).unwrap_or_default())).collect()
    }

    /// Changes a stored file behind the back of everybody, durably: bit rot, or an operator.
    pub fn tamper(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.0.lock();
        let Some(file) = state.names.get(name).copied() else { return };
        let content = state.files.entry(file).or_default();
        change(&mut content.current);
        content.durable = content.current.clone();
        content.dirty.clear();
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.0.lock().file(name)?;
        Ok(Arc::new(SimFile { disk: self.clone(), file }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.0.lock();
        state.next_file += 1;
        let file = state.next_file;
        state.files.insert(file, Content::default());
        state.change_name(NameChange::Create(name.to_owned(), file))?;
        Ok(Arc::new(SimFile { disk: self.clone(), file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        state.file(from)?;
        state.change_name(NameChange::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        state.file(name)?;
        state.change_name(NameChange::Remove(name.to_owned()))
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        if state.operation()? {
            return Ok(());
        }
        if state.fail_sync_dir_at.is_some_and(|at| state.operations >= at) {
            state.fail_sync_dir_at = None;
            return Err(io::Error::other("simulated flush error"));
        }
        state.durable_names = state.names.clone();
        state.name_changes.clear();
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let state = self.0.lock();
        let used = state.used_bytes();
        Ok(state.bytes_max.map_or(u64::MAX, |bytes_max| bytes_max.saturating_sub(used)))
    }

    fn path(&self, name: &str) -> String {
        format!("sim:/{name}")
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    file: u64,
}

impl DiskFile for SimFile {
    fn bytes(&self) -> io::Result<u64> {
        let state = self.disk.0.lock();
        Ok(state.files.get(&self.file).map_or(0, |content| content.current.len() as u64))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.disk.0.lock();
        let offset = offset as usize;
        let content = state.files.get(&self.file);
        let bytes = content.and_then(|content| content.current.get(offset..offset + buffer.len()));
        let bytes = bytes.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        state.operation()?;
        let length = state.files.get(&self.file).map_or(0, |content| content.current.len() as u64);
        let growth = (offset + data.len() as u64).saturating_sub(length);
        if state.bytes_max.is_some_and(|bytes_max| state.used_bytes() + growth > bytes_max) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        // A write during which the power goes off is torn when the sectors are drawn.
        state.files.entry(self.file).or_default().write(data, offset as usize);
        if state.crashed { Err(io::Error::other("simulated power loss")) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        if state.operation()? {
            // The power went off before the flush was done: the sectors stay dirty.
            return Err(io::Error::other("simulated power loss"));
        }
        let fails = state.fail_flush_at.is_some_and(|at| state.operations >= at);
        if fails {
            state.fail_flush_at = None;
        }
        let content = state.files.entry(self.file).or_default();
        for sector in std::mem::take(&mut content.dirty) {
            if !fails {
                content.settle(sector);
            }
        }
        if fails { Err(io::Error::other("simulated flush error")) } else { Ok(()) }
    }
}
