//! Applying an entry changes the storage of all members in the same way, byte by byte.
//!
//! Source: Raft, figure 3, State Machine Safety: if a server has applied a log entry at a given index,
//! no other server will ever apply a different one for the same index; and our own rule that a
//! refusal is replicated, too (src/state/mod.rs). By induction the states are equal at equal indexes.

use std::collections::BTreeMap;

use super::{Commit, Violation};

/// See the head of this file.
#[derive(Default)]
pub(crate) struct SameState {
    applied: BTreeMap<u64, (usize, u32)>,
}

impl SameState {
    pub(super) fn check(&mut self, member: usize, commit: &Commit<'_>) -> Option<Violation> {
        let digest = digest(commit);
        let (first, same) = *self.applied.entry(commit.index).or_insert((member, digest));
        (same != digest).then(|| {
            let Commit { index, term, leader, revision, .. } = commit;
            let text = format!(
                "applying {index} (term {term} of {leader:x}, now at revision {revision}) changes \
                 something else than on member {first}"
            );
            ("same state at the same index (Raft, figure 3, State Machine Safety)", text)
        })
    }
}

fn digest(commit: &Commit<'_>) -> u32 {
    // How far each member has deleted what is compacted is its own business.
    let shared = commit.batch.writes.iter().filter(|(key, _)| &**key != b"mcompact");
    shared.fold(0, |digest, (key, value)| {
        let digest = crc32c::crc32c_append(digest, key);
        match value {
            Some(value) => crc32c::crc32c_append(crc32c::crc32c_append(digest, b"="), value),
            None => crc32c::crc32c_append(digest, b"-"),
        }
    })
}
