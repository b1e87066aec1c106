//! Two logs that have an entry of the same index and leader agree on that entry.
//!
//! Source: Raft, figure 3, Log Matching. Restarting a leader in its old term breaks it when the log
//! has lost its end (facts/openraft.md, section 8.1).

use std::collections::BTreeMap;

use super::Violation;

/// An entry of a member's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) leader: u64,
    /// Of what it says.
    pub(crate) digest: u32,
}

/// See the head of this file.
#[derive(Default)]
pub(crate) struct LogMatching {
    entries: BTreeMap<(u64, u64, u64), (usize, u32)>,
}

impl LogMatching {
    pub(super) fn check(&mut self, member: usize, entries: &[Seen]) -> Option<Violation> {
        for &Seen { index, term, leader, digest } in entries {
            let first = self.entries.entry((index, term, leader)).or_insert((member, digest));
            if first.1 != digest {
                let text = format!(
                    "entry {index} of term {term} and leader {leader:x} is another on member \
                     {member} than on member {}",
                    first.0
                );
                return Some(("log matching (Raft, figure 3)", text));
            }
        }
        None
    }
}
