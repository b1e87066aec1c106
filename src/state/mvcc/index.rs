//! Every key that has history, in key order, with as many pairs as the budget allows.
//!
//! The newest pair of a key enters when it is written or read, and leaves when the clock hand finds
//! that nobody read it since it last passed. What is not here is read from the storage on demand.

use std::ops::ControlFlow;

use super::super::key_range::KeyRange;
use super::super::revision::Revision;
use super::ages::Age;
use super::entry::{Compacted, Entry, Version};
use super::record::Pair;
use super::tree::{Span, Summary, Sweep, Tree};

/// The key index.
#[derive(Debug, Default)]
pub(crate) struct Index {
    tree: Tree,
    cached_bytes: usize,
    cached_bytes_max: usize,
    /// Where the next eviction begins.
    hand: Box<[u8]>,
}

impl Index {
    /// An empty index that keeps pairs of at most this many bytes in memory.
    pub(crate) fn new(cached_bytes_max: usize) -> Self {
        Index { cached_bytes_max, ..Index::default() }
    }

    /// Sets how many bytes of pairs stay in memory; what is too many goes with the next eviction.
    pub(crate) fn set_cached_bytes_max(&mut self, cached_bytes_max: usize) {
        self.cached_bytes_max = cached_bytes_max;
    }

    /// The entry of `key`, be it deleted.
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.tree.get(key)
    }

    /// How many keys of `range` are live now.
    pub(crate) fn count(&self, range: KeyRange<'_>) -> i64 {
        match range {
            KeyRange::Key(key) => {
                i64::from(self.get(key).is_some_and(|entry| entry.latest().is_live()))
            }
            KeyRange::Span { start, end: None } => self.tree.summary().live - self.tree.rank(start),
            KeyRange::Span { start, end: Some(end) } if start < end => {
                self.tree.rank(end) - self.tree.rank(start)
            }
            KeyRange::Span { .. } => 0,
        }
    }

    /// Shows the entries of `range` in the order of the walk until `visit` breaks.
    pub(crate) fn visit(
        &self,
        range: KeyRange<'_>,
        walk: Walk,
        mut visit: impl FnMut(&Entry) -> ControlFlow<()>,
    ) {
        let walked = match range {
            KeyRange::Key(key) => self.get(key).map_or(ControlFlow::Continue(()), visit),
            KeyRange::Span { start, end } if walk.backwards => {
                self.tree.visit_backwards(Span { start, end }, walk.live_only, &mut visit)
            }
            KeyRange::Span { start, end } => {
                self.tree.visit(Span { start, end }, walk.live_only, &mut visit)
            }
        };
        match walked {
            // The one who breaks knows it.
            ControlFlow::Continue(()) | ControlFlow::Break(()) => {}
        }
    }

    /// The live entry of `range` that is best by `age`.
    ///
    /// O(log n) for the oldest one, and if few keys of the range are younger than what is wanted.
    pub(crate) fn find(&self, range: KeyRange<'_>, age: Age) -> Option<&Entry> {
        match range {
            KeyRange::Key(key) => self.get(key).filter(|entry| {
                let latest = entry.latest();
                latest.is_live() && age.score(latest.create).is_some()
            }),
            KeyRange::Span { start, end } => self.tree.find(Span { start, end }, age),
        }
    }

    /// Bytes of encoded pairs in memory.
    pub(crate) fn cached_bytes(&self) -> usize {
        self.cached_bytes
    }

    /// Adds the version and the pair that `change` makes of the latest version so far.
    ///
    /// The pair stays in memory at least until [`Index::evict`]. Also gives back the pair of the
    /// version before, if it was in memory.
    pub(crate) fn write<R>(
        &mut self,
        key: &[u8],
        change: impl FnOnce(&Version) -> Written<R>,
    ) -> (R, Option<Box<[u8]>>) {
        let cached_bytes = &mut self.cached_bytes;
        self.tree.upsert(key, |entry| {
            let written = change(entry.latest());
            *cached_bytes -= entry.cached_len();
            *cached_bytes += written.cached.as_ref().map_or(0, |kv| kv.len());
            entry.push(written.version);
            let before = entry.set_cached(written.cached);
            (written.answer, before)
        })
    }

    /// Keeps `kv`, which was read from the storage, if it still is the newest pair of its key.
    pub(crate) fn warm(&mut self, revision: Revision, kv: &[u8]) {
        let key = Pair::decode(kv).expect("the state encoded this pair").key;
        let is_wanted = |entry: &&Entry| {
            let latest = entry.latest();
            latest.is_live() && latest.revision() == revision && entry.cached_len() == 0
        };
        if kv.len() <= self.cached_bytes_max && self.get(key).filter(is_wanted).is_some() {
            self.tree.update(key, |entry| drop(entry.set_cached(Some(kv.into()))));
            self.cached_bytes += kv.len();
        }
    }

    /// Drops pairs from memory until the budget holds: a second chance for those that were read.
    pub(crate) fn evict(&mut self) {
        // The hand passes each pair at most twice: once to take its mark, once to drop it.
        for _ in 0..3 {
            if self.cached_bytes <= self.cached_bytes_max {
                return;
            }
            let (cached_bytes, max) = (&mut self.cached_bytes, self.cached_bytes_max);
            let stopped = self.tree.sweep(
                &self.hand,
                |summary| summary.cached > 0,
                |entry| {
                    if *cached_bytes <= max {
                        return Sweep::Stop;
                    }
                    if !entry.take_read_mark() {
                        *cached_bytes -= entry.cached_len();
                        entry.set_cached(None);
                    }
                    Sweep::Keep
                },
            );
            self.hand = stopped.unwrap_or_default();
        }
        assert!(self.cached_bytes <= self.cached_bytes_max, "three rounds evict everything");
    }

    /// Drops versions that nobody can read at or above revision `main`, from key `from` on.
    ///
    /// Looks at up to `versions_max` keys and drops up to as many versions, each of which goes to
    /// `dropped`. Answers with the key to go on with, none at the end.
    pub(crate) fn compact(
        &mut self,
        main: i64,
        from: &[u8],
        versions_max: usize,
        mut dropped: impl FnMut(&Version),
    ) -> Option<Box<[u8]>> {
        let has_garbage = |summary: &Summary| summary.garbage > 0;
        let mut budget = versions_max.max(1);
        self.tree.sweep(from, has_garbage, |entry| {
            if budget == 0 {
                return Sweep::Stop;
            }
            let mut count = 0;
            let compacted = entry.compact(main, budget, |version| {
                count += 1;
                dropped(version);
            });
            budget = budget.saturating_sub(count.max(1));
            match compacted {
                Compacted::Whole => Sweep::Keep,
                Compacted::Partly => Sweep::Stop,
                Compacted::Gone => Sweep::Remove,
            }
        })
    }
}

/// How to go through the entries of a range.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Walk {
    /// From the last key to the first.
    pub(crate) backwards: bool,
    /// Past what is not live now; single tombstones may still be shown.
    pub(crate) live_only: bool,
}

/// What a write puts into the index.
#[derive(Debug)]
pub(crate) struct Written<R> {
    pub(crate) version: Version,
    /// The encoded pair; none for a tombstone.
    pub(crate) cached: Option<Box<[u8]>>,
    /// What the writer wants back.
    pub(crate) answer: R,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(index: &mut Index, key: &[u8], main: i64, len: u32) {
        index.write(key, |before| Written {
            version: Version { main, number: before.number + 1, len, ..Version::default() },
            cached: Some(vec![0; len as usize].into()),
            answer: (),
        });
    }

    #[test]
    fn evict_spares_what_was_read() {
        let mut index = Index::new(100);
        for number in 0..10_u8 {
            write(&mut index, &[number], i64::from(number) + 1, 10);
        }
        index.evict();
        assert_eq!(index.cached_bytes(), 100);
        assert!(index.get(&[0]).unwrap().cached().is_some());
        write(&mut index, &[10], 11, 10);
        index.evict();
        assert_eq!(index.cached_bytes(), 100);
        assert!(index.get(&[0]).unwrap().cached().is_some());
        assert!(index.get(&[1]).unwrap().cached().is_none());
        let mut kv = Vec::new();
        Pair { key: &[1], value: b"warmth", ..Pair::default() }.encode(&mut kv);
        index.warm(Revision::first(2), &kv);
        index.warm(Revision::first(2), &kv);
        index.warm(Revision::first(7), &kv);
        assert_eq!(index.cached_bytes(), 100 + kv.len());
    }

    #[test]
    fn evict_without_a_budget_keeps_nothing() {
        let mut index = Index::new(0);
        write(&mut index, b"a", 1, 10);
        assert!(index.get(b"a").unwrap().cached().is_some());
        index.evict();
        assert_eq!(index.cached_bytes(), 0);
    }
}
