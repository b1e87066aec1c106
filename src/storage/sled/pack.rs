//! Packs sparse leaves: brings the survivors of many nearly empty leaves together in a few.
//!
//! sled removes a leaf only when it is empty. Compaction leaves the last revision of each key, so
//! a key that is never written again keeps the leaf of its revision for ever, alone: in the end
//! there is a leaf for every live record, each with its share of memory, and a restart reads them
//! one by one. So removals pay for a sweep: the packer walks over the keys again and again, and
//! where it finds sparse leaves it removes a window of records, which makes sled merge the leaves,
//! and puts them back, which fills new ones.
//!
//! **Invariant:** nobody sees the moment in between. Readers are kept out by the gate, and a crash
//! by the flush, which only the writer thread calls, and not here.

use std::io;

use ::sled::{Batch, InlineArray};

use super::{
    SEQ_KEY,
    handles::{Database, Handles, LEAF_FANOUT},
};

/// Records that are looked at, and if need be moved, in one step: keeps readers out for about 2 ms.
const WINDOW_RECORDS: usize = 512;

/// Bytes at most in such a window.
const WINDOW_BYTES: usize = 512 * 1024;

/// So many removals pay for looking at one record: a leaf must lose many before it is sparse.
const REMOVALS_PER_RECORD: usize = 8;

/// Leaves with less than this on average are packed; freshly split ones hold twice as much.
const SPARSE_RECORDS: usize = LEAF_FANOUT / 4;

/// How far the sweep got, and what it may do.
pub(super) struct Packer {
    cursor: Vec<u8>,
    removals: usize,
}

impl Packer {
    /// A sweep that begins with the first key.
    pub(super) fn new() -> Self {
        Packer { cursor: after(SEQ_KEY), removals: 0 }
    }

    /// Counts removals since the last step.
    pub(super) fn removed(&mut self, keys: usize) {
        self.removals += keys;
    }

    /// Looks at the next window if enough was removed; says how many records and bytes it moved.
    pub(super) fn step(
        &mut self,
        database: &Database,
        handles: &Handles,
    ) -> io::Result<(usize, usize)> {
        if self.removals < removals_a_step() {
            return Ok((0, 0));
        }
        self.removals -= removals_a_step();
        let visits_before = leaf_visits(database);
        let (window, bytes) = read_window(database, &self.cursor)?;
        let leaves = leaf_visits(database) - visits_before;
        self.cursor = match window.last() {
            Some((last, _)) => after(last),
            None => after(SEQ_KEY),
        };
        // Readers count as visits, too: at worst a window is moved that need not be.
        if leaves < 4 || window.len() >= leaves * SPARSE_RECORDS {
            return Ok((0, 0));
        }
        let moved = window.len();
        fail::fail_point!("pack_before_removal");
        handles.exclusive(|| -> io::Result<()> {
            let mut puts = Batch::default();
            for (key, value) in window {
                database.remove(&key)?;
                puts.insert(key, value);
            }
            fail::fail_point!("pack_before_puts");
            database.apply_batch(puts)
        })?;
        fail::fail_point!("pack_after_puts");
        Ok((moved, bytes))
    }
}

/// So many removals pay for a step.
fn removals_a_step() -> usize {
    fail::fail_point!("pack_often", |_| 50);
    WINDOW_RECORDS * REMOVALS_PER_RECORD
}

fn read_window(
    database: &Database,
    start: &[u8],
) -> io::Result<(Vec<(InlineArray, InlineArray)>, usize)> {
    let mut window = Vec::new();
    let mut bytes = 0;
    for pair in database.range(start..) {
        let (key, value) = pair?;
        bytes += key.len() + value.len();
        window.push((key, value));
        if window.len() >= WINDOW_RECORDS || bytes >= WINDOW_BYTES {
            break;
        }
    }
    Ok((window, bytes))
}

/// How often a leaf was looked up since the database was opened.
pub(super) fn leaf_visits(database: &Database) -> usize {
    let cache = database.stats().cache;
    usize::try_from(cache.cache_hits + cache.cache_misses).unwrap_or(usize::MAX)
}

/// The next possible key.
fn after(key: &[u8]) -> Vec<u8> {
    [key, b"\0"].concat()
}
