//! Every member applies every entry once, in the order of the log, and its revision and its clock
//! never go back.
//!
//! Source: Raft (Ongaro, Ousterhout: In Search of an Understandable Consensus Algorithm), figure 3,
//! State Machine Safety, and section 5.3; etcd: the revision is monotonic (API guarantees).

use std::collections::BTreeMap;

use super::{Commit, Violation};

/// See the head of this file.
#[derive(Default)]
pub(crate) struct AppliedInOrder {
    last: BTreeMap<usize, Last>,
}

#[derive(Clone, Copy)]
enum Last {
    /// A fresh state.
    Nothing,
    /// A restart or a snapshot; what follows is not known to us.
    At(Option<u64>),
    Commit {
        index: u64,
        revision: u64,
        clock_ms: u64,
    },
}

impl AppliedInOrder {
    pub(super) fn opened(&mut self, member: usize, index: Option<u64>) {
        let last = index.map_or(Last::Nothing, |index| Last::At(Some(index)));
        self.last.insert(member, last);
    }

    pub(super) fn installed(&mut self, member: usize) {
        self.last.insert(member, Last::At(None));
    }

    pub(super) fn check(&mut self, member: usize, commit: &Commit<'_>) -> Option<Violation> {
        let &Commit { index, revision, clock_ms, .. } = commit;
        let now = Last::Commit { index, revision, clock_ms };
        let wrong = match self.last.insert(member, now) {
            None | Some(Last::Nothing) if index > 1 => format!("a fresh state applies {index}"),
            Some(Last::At(Some(before))) if index != before + 1 => {
                format!("opened at {before}, applies {index}")
            }
            Some(Last::Commit { index: before, .. }) if index != before + 1 => {
                format!("applies {index} after {before}")
            }
            Some(Last::Commit { revision: before, .. }) if revision < before => {
                format!("the revision falls from {before} to {revision} at {index}")
            }
            Some(Last::Commit { clock_ms: before, .. }) if clock_ms < before => {
                format!("the clock falls from {before} to {clock_ms} at {index}")
            }
            _ => return None,
        };
        Some(("applied in order (Raft, figure 3; etcd API guarantees)", wrong))
    }
}
