//! What the log store remembers of the log in memory: its bounds, its newest entries, its leaders.
//!
//! Pure bookkeeping without IO, so that the lock around it is held for moments only. The newest
//! entries up to a number of bytes are kept whole; payloads are shared, never copied. Entries that
//! are not durable are always kept: they cannot be read back from anywhere else.

use std::collections::VecDeque;
use std::ops::Range;

use openraft::EntryPayload;

use super::types::{Entry, LogId, StoredMembership, Vote};

/// Counted for an entry on top of its proposal.
const ENTRY_BYTES: usize = 128;

/// See the head of this file.
pub(super) struct Ring {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    /// The last entry, or `purged` if none is retained.
    pub(super) last: Option<LogId>,
    /// Index of the first retained entry, or the one after the last if none is.
    pub(super) first_index: u64,
    entries: VecDeque<Entry>,
    bytes: usize,
    bytes_max: usize,
    /// The last log id of each leader, over the retained log.
    leaders: VecDeque<LogId>,
    /// All memberships in the retained log, and the last one that was purged.
    memberships: Vec<StoredMembership>,
}

impl Ring {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            vote: None,
            committed: None,
            purged: None,
            last: None,
            first_index: 0,
            entries: VecDeque::new(),
            bytes: 0,
            bytes_max,
            leaders: VecDeque::new(),
            memberships: Vec::new(),
        }
    }

    /// Changes the size of the window; takes effect with the next [`Ring::evict`].
    pub(super) fn set_bytes_max(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    /// The index after the last entry.
    pub(super) fn next_index(&self) -> u64 {
        self.last.map_or(0, |last| last.index + 1)
    }

    /// True if no entry is retained.
    pub(super) fn is_empty(&self) -> bool {
        self.first_index >= self.next_index()
    }

    /// Index of the first entry in memory, or the one after the last.
    pub(super) fn memory_first(&self) -> u64 {
        self.entries.front().map_or(self.next_index(), |entry| entry.log_id.index)
    }

    /// Appends an entry. `Err` carries the index that would have fit. Returns its membership.
    pub(super) fn push(&mut self, entry: Entry) -> Result<Option<StoredMembership>, u64> {
        let log_id = entry.log_id;
        if self.is_empty() && log_id.index >= self.next_index() {
            self.first_index = log_id.index;
        } else if log_id.index != self.next_index() {
            return Err(self.next_index());
        }
        self.last = Some(log_id);
        match self.leaders.back_mut() {
            Some(leader) if leader.leader_id == log_id.leader_id => *leader = log_id,
            _ => self.leaders.push_back(log_id),
        }
        let membership = match &entry.payload {
            EntryPayload::Membership(membership) => {
                Some(StoredMembership::new(Some(log_id), membership.clone()))
            }
            EntryPayload::Blank | EntryPayload::Normal(_) => None,
        };
        self.memberships.extend(membership.clone());
        self.bytes += weight(&entry);
        self.entries.push_back(entry);
        Ok(membership)
    }

    /// Drops the oldest entries in front of `durable_next` from memory while there are too many.
    pub(super) fn evict(&mut self, durable_next: u64) {
        while self.bytes > self.bytes_max {
            let Some(entry) = self.entries.front() else { return };
            if entry.log_id.index >= durable_next {
                return;
            }
            self.pop_front();
        }
    }

    /// Drops the entries from `index` on. Returns the membership that is in force then, as far as
    /// the log knows.
    pub(super) fn truncate(&mut self, index: u64) -> StoredMembership {
        while self.entries.back().is_some_and(|entry| entry.log_id.index >= index) {
            let entry = self.entries.pop_back().expect("there is a last entry");
            self.bytes -= weight(&entry);
        }
        if index <= self.first_index {
            self.last = self.purged;
            self.leaders.clear();
            self.first_index = self.next_index();
        } else if index < self.next_index() {
            // The leader of the entry in front of the cut is the first whose last entry is not
            // before it.
            let at = self.leaders.partition_point(|leader| leader.index < index - 1);
            let leader_id = self.leaders[at].leader_id;
            self.leaders.truncate(at);
            let last = LogId::new(leader_id, index - 1);
            self.leaders.push_back(last);
            self.last = Some(last);
        }
        let next_index = self.next_index();
        self.memberships.retain(|stored| index_of(stored) < next_index);
        self.memberships.last().cloned().unwrap_or_default()
    }

    /// Drops the entries up to `purged`, inclusive.
    pub(super) fn purge(&mut self, purged: LogId) {
        if self.purged.is_some_and(|before| before.index >= purged.index) {
            return;
        }
        let next = purged.index + 1;
        self.purged = Some(purged);
        if self.next_index() <= next {
            self.last = Some(purged);
        }
        self.first_index = self.first_index.max(next);
        while self.entries.front().is_some_and(|entry| entry.log_id.index < next) {
            self.pop_front();
        }
        while self.leaders.front().is_some_and(|leader| leader.index < next) {
            self.leaders.pop_front();
        }
        let purged_count = self.memberships.partition_point(|stored| index_of(stored) < next);
        self.memberships.drain(..purged_count.saturating_sub(1));
    }

    /// Clones the entries of `range`, which begins in memory, until `bytes_max` is reached.
    pub(super) fn copy(&self, range: Range<u64>, bytes_max: usize) -> Vec<Entry> {
        let first = self.memory_first();
        let start = (range.start - first) as usize;
        let end = (range.end - first).min(self.entries.len() as u64) as usize;
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            let room = bytes < bytes_max;
            bytes += weight(entry);
            room
        };
        self.entries.range(start..end).take_while(fits).cloned().collect()
    }

    /// The last log id of each leader within `first..=last`.
    pub(super) fn leaders(&self, first: LogId, last: LogId) -> Vec<LogId> {
        let mut found = Vec::new();
        for leader in self.leaders.iter().filter(|leader| leader.index >= first.index) {
            if leader.index >= last.index {
                found.push(LogId::new(leader.leader_id, last.index));
                break;
            }
            found.push(*leader);
        }
        found
    }

    fn pop_front(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= weight(&entry);
        }
    }
}

/// Bytes that an entry is counted with.
pub(super) fn weight(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Blank | EntryPayload::Membership(_) => ENTRY_BYTES,
        EntryPayload::Normal(proposal) => ENTRY_BYTES + proposal.0.len(),
    }
}

fn index_of(stored: &StoredMembership) -> u64 {
    stored.log_id().map_or(0, |log_id| log_id.index)
}
