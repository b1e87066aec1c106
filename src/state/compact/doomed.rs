//! Records that a compaction will delete, the oldest first.
//!
//! They are found in the order of their keys, and there may be as many as revisions were ever
//! written. Most are the one short record of their revision: a compressed bitmap holds those, at a
//! bit to two bytes each.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use roaring::RoaringTreemap;

use crate::state::records;
use crate::state::revision::Revision;

/// Records that are no short first ones of their revision, at most; 24 bytes each.
const OTHERS_MAX: usize = 1 << 20;

/// A set of records with their lengths.
#[derive(Debug, Default)]
pub(super) struct Doomed {
    /// Main revisions whose first record is short and in the set.
    short_firsts: RoaringTreemap,
    /// All other records of the set.
    others: BinaryHeap<Reverse<(Revision, u32)>>,
}

impl Doomed {
    /// Adds the record at `revision`, whose pair takes `len` bytes. It is not in the set yet.
    pub(super) fn add(&mut self, revision: Revision, len: u32) {
        match u64::try_from(revision.main) {
            Ok(main) if revision.sub == 0 && records::is_short(len) => {
                self.short_firsts.insert(main);
            }
            _ => self.others.push(Reverse((revision, len))),
        }
    }

    /// Takes the oldest record out, with a length that [`records::remove`] understands.
    pub(super) fn take_first(&mut self) -> Option<(Revision, u32)> {
        let short = self.short_firsts.min();
        let first = short.and_then(|main| i64::try_from(main).ok()).map(Revision::first);
        let other = self.others.peek().map(|Reverse((revision, _))| *revision);
        match (first, other) {
            (Some(first), other) if other.is_none_or(|other| first < other) => {
                self.short_firsts.remove(short.expect("it gave the first"));
                Some((first, 0))
            }
            _ => self.others.pop().map(|Reverse(record)| record),
        }
    }

    /// Whether some must go before more are added.
    pub(super) fn is_full(&self) -> bool {
        self.others.len() >= OTHERS_MAX
    }

    /// How many there are.
    pub(super) fn len(&self) -> u64 {
        self.short_firsts.len() + self.others.len() as u64
    }

    /// Whether nothing is left.
    pub(super) fn is_empty(&self) -> bool {
        self.short_firsts.is_empty() && self.others.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_leave_in_the_order_of_their_revisions() {
        let mut doomed = Doomed::default();
        let long = 1 << 20;
        let at = |main, sub| Revision { main, sub };
        for (revision, len) in
            [(at(9, 0), 10), (at(3, 1), 10), (at(3, 0), 10), (at(7, 0), long), (at(3, 2), 10)]
        {
            doomed.add(revision, len);
        }
        let mut left = Vec::new();
        while let Some(record) = doomed.take_first() {
            left.push(record);
        }
        let expected =
            [(at(3, 0), 0), (at(3, 1), 10), (at(3, 2), 10), (at(7, 0), long), (at(9, 0), 0)];
        assert_eq!(left, expected);
        assert!(doomed.is_empty());
    }
}
