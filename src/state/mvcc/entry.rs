//! One key in the index: its newest version, its older ones, and perhaps its pair.
//!
//! An entry of a key that was written once costs 80 bytes besides the key itself.

use std::sync::atomic::{AtomicBool, Ordering};

use super::super::revision::Revision;

/// One write or deletion of a key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Version {
    /// The mod revision.
    pub(crate) main: i64,
    /// The revision that began the generation; 0 in a tombstone.
    pub(crate) create: i64,
    /// Counts the writes of the generation; 0 in a tombstone.
    pub(crate) number: i64,
    /// The place within the revision.
    pub(crate) sub: u32,
    /// The length of the encoded pair in bytes.
    pub(crate) len: u32,
}

impl Version {
    /// Where the pair is recorded.
    pub(crate) fn revision(&self) -> Revision {
        Revision { main: self.main, sub: self.sub }
    }

    /// Whether the key is there at this version.
    pub(crate) fn is_live(&self) -> bool {
        self.number > 0
    }
}

/// A key of the index.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    key: Box<[u8]>,
    latest: Version,
    /// The encoded pair of `latest`, if it is kept in memory.
    kv: Option<Box<[u8]>>,
    older: Option<Box<Older>>,
    /// Whether `kv` was read since the eviction hand last passed.
    read: AtomicBool,
}

/// The versions before the latest, oldest first.
#[derive(Debug, Default)]
struct Older {
    versions: Vec<Version>,
}

impl Entry {
    /// A key that has no version yet; its first [`Entry::push`] must follow at once.
    pub(super) fn new(key: &[u8]) -> Self {
        Entry { key: key.into(), ..Entry::default() }
    }

    pub(crate) fn key(&self) -> &[u8] {
        &self.key
    }

    pub(crate) fn latest(&self) -> &Version {
        &self.latest
    }

    /// The newest version at or below revision `main`, be it a tombstone.
    pub(crate) fn version_at(&self, main: i64) -> Option<&Version> {
        if self.latest.main <= main {
            return Some(&self.latest);
        }
        let older = &self.older.as_ref()?.versions;
        let after = older.partition_point(|version| version.main <= main);
        after.checked_sub(1).map(|at| &older[at])
    }

    /// The version with which the key is live at revision `main`.
    pub(crate) fn live_at(&self, main: i64) -> Option<&Version> {
        self.version_at(main).filter(|version| version.is_live())
    }

    /// The encoded pair of the latest version if it is in memory; keeps it there a while longer.
    pub(crate) fn cached(&self) -> Option<&[u8]> {
        let kv = self.kv.as_deref()?;
        // A plain store would make readers of a hot key fight for its cache line.
        if !self.read.load(Ordering::Relaxed) {
            self.read.store(true, Ordering::Relaxed);
        }
        Some(kv)
    }

    pub(super) fn cached_len(&self) -> usize {
        self.kv.as_ref().map_or(0, |kv| kv.len())
    }

    /// Keeps `kv`; gives back what was kept before.
    pub(super) fn set_cached(&mut self, kv: Option<Box<[u8]>>) -> Option<Box<[u8]>> {
        *self.read.get_mut() = false;
        std::mem::replace(&mut self.kv, kv)
    }

    /// Takes back the mark that [`Entry::cached`] leaves, and says whether there was one.
    pub(super) fn take_read_mark(&mut self) -> bool {
        std::mem::take(self.read.get_mut())
    }

    /// Makes `version` the latest one.
    pub(super) fn push(&mut self, version: Version) {
        if self.latest.main != 0 {
            assert!(self.latest.revision() < version.revision(), "versions of a key rise");
            let older = self.older.get_or_insert_default();
            older.versions.push(self.latest);
        }
        self.latest = version;
    }

    /// Whether compaction might find something to drop.
    pub(super) fn has_garbage(&self) -> bool {
        self.older.is_some() || !self.latest.is_live()
    }

    /// Drops up to `versions_max` versions that nobody can read at or above revision `main`,
    /// oldest first, and hands each to `dropped`.
    ///
    /// As in etcd: a tombstone at exactly `main` stays, an older one goes.
    pub(super) fn compact(
        &mut self,
        main: i64,
        versions_max: usize,
        mut dropped: impl FnMut(&Version),
    ) -> Compacted {
        let goes = |version: &Version| !version.is_live() && version.main < main;
        let mut budget = versions_max;
        if let Some(older) = &mut self.older {
            let versions = &mut older.versions;
            let mut garbage = versions.len();
            if self.latest.main > main {
                let visible = versions.partition_point(|version| version.main <= main);
                let kept = visible > 0 && !goes(&versions[visible - 1]);
                garbage = visible - usize::from(kept);
            }
            let taken = garbage.min(budget);
            versions.drain(..taken).for_each(|version| dropped(&version));
            if taken < garbage {
                return Compacted::Partly;
            }
            budget -= taken;
            if versions.is_empty() {
                self.older = None;
            } else if versions.len() * 4 < versions.capacity() {
                versions.shrink_to_fit();
            }
        }
        if self.latest.main > main || !goes(&self.latest) {
            return Compacted::Whole;
        }
        if budget == 0 {
            return Compacted::Partly;
        }
        dropped(&self.latest);
        Compacted::Gone
    }
}

/// How far [`Entry::compact`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compacted {
    /// Nothing droppable is left.
    Whole,
    /// The budget is used up before that.
    Partly,
    /// Nothing at all is left: the key must leave the index.
    Gone,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(mains: &[(i64, i64)]) -> Entry {
        let mut entry = Entry::new(b"k");
        for &(main, number) in mains {
            entry.push(Version { main, number, ..Version::default() });
        }
        entry
    }

    fn compact(entry: &mut Entry, main: i64, max: usize) -> (Compacted, Vec<i64>) {
        let mut gone = Vec::new();
        let compacted = entry.compact(main, max, |version| gone.push(version.main));
        (compacted, gone)
    }

    #[test]
    fn entry_is_small() {
        assert_eq!(size_of::<Entry>(), 80);
    }

    #[test]
    fn live_at_follows_generations() {
        let entry = entry(&[(2, 1), (4, 2), (6, 0), (8, 1)]);
        let at = |main| entry.live_at(main).map(|version| version.main);
        assert_eq!([1, 2, 3, 4, 5, 6, 7, 8, 9].map(at), {
            [None, Some(2), Some(2), Some(4), Some(4), None, None, Some(8), Some(8)]
        });
    }

    #[test]
    fn compact_keeps_the_newest_and_a_tombstone_at_the_revision() {
        let mut one = entry(&[(2, 1), (4, 2), (6, 0), (8, 1)]);
        assert_eq!(compact(&mut one, 3, 9), (Compacted::Whole, vec![]));
        assert_eq!(compact(&mut one, 6, 9), (Compacted::Whole, vec![2, 4]));
        assert_eq!(compact(&mut one, 7, 9), (Compacted::Whole, vec![6]));
        assert!(!one.has_garbage());
        let mut two = entry(&[(2, 1), (6, 0)]);
        assert_eq!(compact(&mut two, 6, 9), (Compacted::Whole, vec![2]));
        assert_eq!(compact(&mut two, 7, 9), (Compacted::Gone, vec![6]));
    }

    #[test]
    fn compact_in_steps_drops_the_oldest_first() {
        let mut one = entry(&[(2, 1), (4, 2), (6, 0)]);
        assert_eq!(compact(&mut one, 9, 1), (Compacted::Partly, vec![2]));
        assert_eq!(compact(&mut one, 9, 1), (Compacted::Partly, vec![4]));
        assert_eq!(compact(&mut one, 9, 1), (Compacted::Gone, vec![6]));
    }
}
