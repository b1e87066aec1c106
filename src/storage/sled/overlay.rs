//! What was committed but is not in sled yet: the map that reads look at first.
//!
//! Every entry carries the sequence number of the commit that wrote it. When the writer has put a
//! group of commits into sled it settles them, and an entry goes only if no later commit has
//! written the same key meanwhile: so a read never falls back to an older value.

use std::{collections::BTreeMap, ops::Bound};

use bytes::Bytes;

use crate::storage::Batch;

/// One pending write; `value` is `None` for a removal.
#[derive(Debug)]
struct Pending {
    seq: u64,
    value: Option<Bytes>,
}

/// The newest pending write of each key.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    entries: BTreeMap<Bytes, Pending>,
}

impl Overlay {
    /// Takes in the writes of commit `seq`, which must be larger than every one before.
    pub(super) fn commit(&mut self, seq: u64, batch: &Batch) {
        for (key, value) in &batch.writes {
            let pending = Pending { seq, value: value.clone() };
            if let Some(older) = self.entries.insert(key.clone(), pending) {
                assert!(older.seq <= seq, "commits must reach the overlay in order");
            }
        }
    }

    /// The pending write of `key`: `Some(None)` is a removal, `None` means ask sled.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        self.entries.get(key).map(|pending| pending.value.clone())
    }

    /// The pending writes with `start <= key < end`, in key order.
    pub(super) fn range(&self, start: &[u8], end: &[u8]) -> Vec<(Bytes, Option<Bytes>)> {
        let bounds = (Bound::Included(start), Bound::Excluded(end));
        let entries = self.entries.range::<[u8], _>(bounds);
        entries.map(|(key, pending)| (key.clone(), pending.value.clone())).collect()
    }

    /// Forgets writes that sled has by now, each given by its key and commit.
    pub(super) fn settle(&mut self, applied: &[(Bytes, u64)]) {
        for (key, seq) in applied {
            if self.entries.get(key).is_some_and(|pending| pending.seq == *seq) {
                self.entries.remove(key);
            }
        }
    }

    /// How many keys have a pending write.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str, value: &'static str) -> Batch {
        let mut batch = Batch::default();
        batch.put(key, value);
        batch
    }

    #[test]
    fn settle_when_key_was_written_again_keeps_the_newer_write() {
        let mut overlay = Overlay::default();
        overlay.commit(1, &put("k", "old"));
        overlay.commit(2, &put("k", "new"));
        overlay.settle(&[(Bytes::from("k"), 1)]);
        assert_eq!(overlay.get(b"k"), Some(Some(Bytes::from("new"))));
        overlay.settle(&[(Bytes::from("k"), 2)]);
        assert_eq!(overlay.get(b"k"), None);
        assert_eq!(overlay.len(), 0);
    }
}
