//! Where the retained entries are: the segments in order, and a sparse index into them.
//!
//! A point says "entry `index` begins at this offset"; the entries up to the next point follow it in
//! the same segment. There is a point at the first entry of each segment, at the first entry after
//! a truncation, and about every 64 KiB. Since truncation removes points, following the points
//! never meets an entry that was overwritten later.

use std::collections::VecDeque;
use std::sync::Arc;

use super::segment::Segment;

const POINT_BYTES: u64 = 64 * 1024;

/// The position of one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) index: u64,
    pub(super) sequence: u64,
    pub(super) offset: u64,
    /// Bytes of log in front of it, counted over all segments since the start.
    pub(super) position: u64,
}

/// Segments and index. The writer changes it, readers of old entries look into it.
#[derive(Default)]
pub(super) struct Table {
    pub(super) segments: VecDeque<Arc<Segment>>,
    points: VecDeque<Point>,
    /// The index that the next appended entry must have, unless the log is empty.
    pub(super) next_index: u64,
    /// The index after the last purged one.
    pub(super) purged_next: u64,
    /// The next entry needs a point: there was a truncation.
    point_due: bool,
}

impl Table {
    /// Takes note of an entry. `Err` carries the index that would have fit.
    pub(super) fn append(&mut self, entry: Point) -> Result<(), u64> {
        if let Some(last) = self.points.back() {
            if entry.index != self.next_index {
                return Err(self.next_index);
            }
            let near =
                entry.sequence == last.sequence && entry.position < last.position + POINT_BYTES;
            if self.point_due || !near {
                self.points.push_back(entry);
            }
        } else {
            if entry.index < self.purged_next {
                return Err(self.purged_next);
            }
            self.points.push_back(entry);
        }
        self.point_due = false;
        self.next_index = entry.index + 1;
        Ok(())
    }

    /// Forgets the entries from `index` on.
    pub(super) fn truncate(&mut self, index: u64) {
        while self.points.back().is_some_and(|point| point.index >= index) {
            self.points.pop_back();
        }
        self.next_index = self.next_index.min(index).max(self.purged_next);
        if self.next_index <= self.purged_next {
            self.points.clear();
        }
        self.point_due = true;
    }

    /// Forgets the entries in front of `next`.
    pub(super) fn purge(&mut self, next: u64) {
        self.purged_next = self.purged_next.max(next);
        self.next_index = self.next_index.max(next);
        if self.next_index <= self.purged_next {
            self.points.clear();
        }
        while self.points.get(1).is_some_and(|second| second.index <= self.purged_next) {
            self.points.pop_front();
        }
    }

    /// Takes out the oldest segments that hold no retained entry. The active one always stays.
    pub(super) fn take_unused(&mut self) -> Vec<Arc<Segment>> {
        let first_used = self.points.front().map_or(u64::MAX, |point| point.sequence);
        let mut unused = Vec::new();
        while self.segments.len() > 1 && self.segments[0].sequence < first_used {
            unused.extend(self.segments.pop_front());
        }
        unused
    }

    /// The segment and offset from which to read `index`, and the first index that is not there.
    pub(super) fn locate(&self, index: u64) -> Option<(Arc<Segment>, u64, u64)> {
        let after = self.points.partition_point(|point| point.index <= index);
        let point = self.points.get(after.checked_sub(1)?)?;
        let end = self.points.get(after).map_or(self.next_index, |next| next.index);
        if index < self.purged_next || index >= end {
            return None;
        }
        let first = self.segments.front()?.sequence;
        let segment = self.segments.get((point.sequence - first) as usize)?;
        Some((Arc::clone(segment), point.offset, end))
    }

    /// Position of the oldest retained entry, to within one point.
    pub(super) fn first_position(&self) -> Option<u64> {
        self.points.front().map(|point| point.position)
    }

    /// The index of the first point at or behind `position`.
    pub(super) fn index_at(&self, position: u64) -> Option<u64> {
        let at = self.points.partition_point(|point| point.position < position);
        self.points.get(at).map(|point| point.index)
    }
}
