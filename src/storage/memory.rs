//! A backend that lives in memory only: for tests, scripts and simulations.
//!
//! It is also the model that the disk backend is tested against, so it is kept too simple to be
//! wrong.

use std::{
    collections::BTreeMap,
    ops::{Bound, ControlFlow},
};

use bytes::Bytes;
use parking_lot::RwLock;

use crate::storage::{Backend, Batch, StorageError};

/// How many pairs a scan copies under the lock before it lets writers in again.
const SCAN_CHUNK: usize = 256;

/// An ordered map in memory. Everything in it is gone when it is dropped.
#[derive(Debug, Default)]
pub struct Memory {
    map: RwLock<BTreeMap<Bytes, Bytes>>,
}

impl Memory {
    /// An empty store.
    pub fn new() -> Self {
        Memory::default()
    }

    fn chunk(&self, from: Bound<&[u8]>, end: &[u8]) -> Vec<(Bytes, Bytes)> {
        let map = self.map.read();
        let range = map.range::<[u8], _>((from, Bound::Excluded(end)));
        range.take(SCAN_CHUNK).map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

impl Backend for Memory {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        Ok(self.map.read().get(key).cloned())
    }

    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        if start >= end {
            return Ok(());
        }
        let mut chunk = self.chunk(Bound::Included(start), end);
        loop {
            for (key, value) in &chunk {
                if visit(key, value).is_break() {
                    return Ok(());
                }
            }
            match chunk.last() {
                Some((last, _)) if chunk.len() == SCAN_CHUNK => {
                    chunk = self.chunk(Bound::Excluded(last), end);
                }
                _ => return Ok(()),
            }
        }
    }

    fn commit(&self, batch: Batch) -> Result<(), StorageError> {
        let mut map = self.map.write();
        for (key, value) in batch.writes {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        Ok(())
    }

    fn checkpoint(&self) -> Result<(), StorageError> {
        Ok(())
    }

    fn backlog_bytes(&self) -> usize {
        0
    }

    fn size_bytes(&self) -> u64 {
        self.map.read().iter().map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }
}
