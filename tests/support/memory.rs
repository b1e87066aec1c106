//! A storage in a map.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use parking_lot::Mutex;
use quorate::storage::{Backend, Batch, StorageError};

/// The map.
#[derive(Debug, Default)]
pub(crate) struct Map {
    pub(crate) pairs: Mutex<BTreeMap<Bytes, Bytes>>,
}

impl Map {
    /// A copy of what is in it.
    pub(crate) fn copy(&self) -> Map {
        Map { pairs: Mutex::new(self.pairs.lock().clone()) }
    }
}

impl Backend for Map {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        Ok(self.pairs.lock().get(key).cloned())
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
        let bounds = (Bound::Included(start), Bound::Excluded(end));
        for (key, value) in self.pairs.lock().range::<[u8], _>(bounds) {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn commit(&self, batch: Batch) -> Result<(), StorageError> {
        let mut pairs = self.pairs.lock();
        for (key, value) in batch.writes {
            match value {
                Some(value) => pairs.insert(key, value),
                None => pairs.remove(&key),
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
        self.pairs.lock().iter().map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }
}
