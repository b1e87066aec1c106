//! The committed entries of one term come from one leader.
//!
//! Source: Raft, figure 3, Election Safety: at most one leader can be elected in a given term. With
//! openraft's leader ids, which are term and node, a second node may win the same term as long as
//! the first has committed nothing in it.

use std::collections::BTreeMap;

use super::{Commit, Violation};

/// See the head of this file.
#[derive(Default)]
pub(crate) struct OneLeaderATerm {
    leaders: BTreeMap<u64, u64>,
}

impl OneLeaderATerm {
    pub(super) fn check(&mut self, commit: &Commit<'_>) -> Option<Violation> {
        let &Commit { index, term, leader, .. } = commit;
        let first = *self.leaders.entry(term).or_insert(leader);
        (first != leader).then(|| {
            let text = format!("{index} of term {term} is of {leader:x}, others are of {first:x}");
            ("one leader a term (Raft, figure 3, Election Safety)", text)
        })
    }
}
