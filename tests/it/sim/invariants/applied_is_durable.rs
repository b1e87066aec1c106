//! A member applies only what its own log has made durable.
//!
//! Source: `src/raft/mod.rs`. Raft allows to apply what a majority has; but a state that a crash leaves
//! ahead of its own log has a hole behind it, or contradicts what the log holds there.

use super::Violation;

pub(super) fn check(applied: u64, durable: u64) -> Option<Violation> {
    (applied > durable).then(|| {
        let text = format!("entry {applied} is applied, the log is on disk up to {durable}");
        ("applied entries are on the own disk (src/raft/mod.rs)", text)
    })
}
