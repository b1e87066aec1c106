//! What must hold at every moment of a simulation, one file a property, each with its source.
//!
//! The storage below each member's state reports every commit, and a monitor looks at the members'
//! logs a few times a second. What clients see is judged from their history, see `support/judges`.

use std::sync::Arc;

use parking_lot::Mutex;
use quorate::storage::Batch;

use super::log::EventLog;

mod applied_in_order;
mod applied_is_durable;
mod log_matching;
mod one_leader_a_term;
mod same_state;

pub(crate) use log_matching::{LogMatching, Seen};

/// What an entry did, as the storage of one member was told.
pub(crate) struct Commit<'b> {
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) leader: u64,
    pub(crate) clock_ms: u64,
    pub(crate) revision: u64,
    pub(crate) batch: &'b Batch,
}

/// All invariants of one simulation.
pub(crate) struct Checks {
    log: EventLog,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    violations: Vec<String>,
    in_order: applied_in_order::AppliedInOrder,
    one_leader: one_leader_a_term::OneLeaderATerm,
    same_state: same_state::SameState,
    log_matching: LogMatching,
    commits: u64,
    installs: u64,
}

impl Checks {
    pub(crate) fn new(log: EventLog) -> Arc<Checks> {
        Arc::new(Checks { log, inner: Mutex::default() })
    }

    /// Notes that `rule`, with its source, does not hold.
    pub(crate) fn violated(&self, rule: &str, what: impl std::fmt::Display) {
        let text = format!("VIOLATION of {rule}: {what}");
        self.log.say("checks", &text);
        self.inner.lock().violations.push(text);
    }

    /// What was violated so far.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.inner.lock().violations.clone()
    }

    /// Entries applied on all members together.
    pub(crate) fn commits(&self) -> u64 {
        self.inner.lock().commits
    }

    /// Snapshots installed by all members together.
    pub(crate) fn installs(&self) -> u64 {
        self.inner.lock().installs
    }

    /// `member` has begun with a state at `index`.
    pub(crate) fn opened(&self, member: usize, index: Option<u64>) {
        self.inner.lock().in_order.opened(member, index);
    }

    /// `member` has taken a snapshot; its next entry follows that.
    pub(crate) fn installed(&self, member: usize) {
        let mut inner = self.inner.lock();
        inner.installs += 1;
        inner.in_order.installed(member);
    }

    /// The storage of `member` was given `batch`.
    pub(crate) fn committed(&self, member: usize, batch: &Batch) {
        let Some(commit) = decode(batch) else { return };
        let mut inner = self.inner.lock();
        inner.commits += 1;
        let found = [
            inner.in_order.check(member, &commit),
            inner.one_leader.check(&commit),
            inner.same_state.check(member, &commit),
        ];
        drop(inner);
        for (rule, text) in found.into_iter().flatten() {
            self.violated(rule, format!("member {member}: {text}"));
        }
    }

    /// `member` has applied entries up to `applied`, and has them on disk up to `durable`.
    pub(crate) fn applied(&self, member: usize, applied: u64, durable: u64) {
        if let Some((rule, text)) = applied_is_durable::check(applied, durable) {
            self.violated(rule, format!("member {member}: {text}"));
        }
    }

    /// `member` has these entries in its log.
    pub(crate) fn logged(&self, member: usize, entries: &[Seen]) {
        let found = self.inner.lock().log_matching.check(member, entries);
        if let Some((rule, text)) = found {
            self.violated(rule, text);
        }
    }
}

/// A rule with its source, and how it is violated.
type Violation = (&'static str, String);

/// The position and what goes with it, see `src/state/schema.rs`; none for work besides the log.
fn decode(batch: &Batch) -> Option<Commit<'_>> {
    let (_, value) = batch.writes.iter().find(|(key, _)| &**key == b"mposition")?;
    let (words, _) = value.as_ref()?.as_chunks::<8>();
    let [index, term, leader, clock_ms, revision] = *words else { return None };
    Some(Commit {
        index: u64::from_be_bytes(index),
        term: u64::from_be_bytes(term),
        leader: u64::from_be_bytes(leader),
        clock_ms: u64::from_be_bytes(clock_ms),
        revision: u64::from_be_bytes(revision),
        batch,
    })
}
