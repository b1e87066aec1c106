//! Who came first: keys by the revision that created them.
//!
//! Locks and elections are lines of keys under a name, the oldest in front. These questions ask the
//! index alone: no answer is built, nothing is sorted, and no value is read.

use super::State;
use super::key_range::KeyRange;
use super::mvcc::ages::Age;
use crate::storage::Backend;

/// A live key, and when it came to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aged {
    /// The key.
    pub key: Vec<u8>,
    /// The revision that created it.
    pub create_revision: i64,
}

impl<B: Backend> State<B> {
    /// The revision that created `key`; none if it is not there.
    pub fn create_revision(&self, key: &[u8]) -> Option<i64> {
        let latest = self.index().get(key)?.latest();
        latest.is_live().then_some(latest.create)
    }

    /// The live key of `range` that was created first.
    pub fn oldest(&self, range: KeyRange<'_>) -> Option<Aged> {
        self.find(range, Age::Oldest)
    }

    /// The live key of `range` that was created last, but before `revision`.
    pub fn youngest_before(&self, range: KeyRange<'_>, revision: i64) -> Option<Aged> {
        self.find(range, Age::YoungestBefore(revision))
    }

    fn find(&self, range: KeyRange<'_>, age: Age) -> Option<Aged> {
        let entry = self.index().find(range, age)?;
        Some(Aged { key: entry.key().to_vec(), create_revision: entry.latest().create })
    }
}
