//! Drops compacted history in the background, in steps so short that nobody notices.
//!
//! A Compact takes effect at once when it is applied: older revisions are refused from then on. This
//! thread then gives the space back, a hundred records at a time, and lets waiting readers and the
//! apply loop go first between two steps. It goes no faster than it must, for what it deletes costs
//! the disk and the processor that writes need, and slower if the storage has much left to write, so
//! that it does not take the room in the queue that the apply loop needs.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use parking_lot::RwLockWriteGuard;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::OperationCounts;
use crate::clock;
use crate::limits;
use crate::raft::{Shared, Store};
use crate::state::CompactStep;
use crate::storage::{Backend, StorageError};
use crate::tasks::{self, watch};

/// The background compaction of one member.
pub(crate) struct Compactor {
    wake: UnboundedSender<()>,
    finished: watch::Sender<i64>,
    counts: Arc<OperationCounts>,
}

impl Compactor {
    /// A compactor, and what [`Compactor::start`] needs.
    pub(crate) fn new(counts: Arc<OperationCounts>) -> (Arc<Compactor>, UnboundedReceiver<()>) {
        let (wake, woken) = unbounded_channel();
        (Arc::new(Compactor { wake, finished: watch::Sender::new(0), counts }), woken)
    }

    /// There may be something to compact.
    pub(crate) fn wake(&self) {
        // The thread ends only with the process.
        self.wake.send(()).ok();
    }

    /// Resolves once everything below `revision` is physically gone.
    pub(crate) async fn finished(&self, revision: i64) {
        let mut finished = self.finished.subscribe();
        // The sender lives as long as `self`.
        drop(finished.wait_for(|at| *at >= revision).await);
    }

    /// Runs until the process ends; `failed` hears of a storage error.
    pub(crate) fn start(
        self: Arc<Self>,
        mut woken: UnboundedReceiver<()>,
        shared: Arc<Shared>,
        failed: impl Fn(StorageError) + Send + 'static,
    ) {
        tasks::worker("compactor", async move {
            while woken.recv().await.is_some() {
                // Several wake-ups need one run.
                while woken.try_recv().is_ok() {}
                if let Err(error) = self.run(&shared).await {
                    return failed(error);
                }
            }
        });
    }

    /// One step; if somebody still reads what is to go, this is woken when they have done.
    fn step(&self, state: &mut Store) -> Result<CompactStep, StorageError> {
        fail::fail_point!("compact_before_step");
        let step = state.compact_step(limits::COMPACTION_STEP_KEYS)?;
        fail::fail_point!("compact_after_step");
        if step != CompactStep::Held {
            return Ok(step);
        }
        let wake = self.wake.clone();
        state.when_unpinned(Box::new(move || {
            wake.send(()).ok();
        }));
        // They may have done just before.
        Ok(if state.compaction_pending() { CompactStep::More } else { CompactStep::Held })
    }

    async fn run(&self, shared: &Shared) -> Result<(), StorageError> {
        let began = (clock::now(), shared.state.read().revision());
        loop {
            let (step, revision, left, newest) = {
                let mut state = shared.state.write();
                let before = state.compact_left();
                let step = self.step(&mut state)?;
                let deleted = before.saturating_sub(state.compact_left());
                self.counts.compacted.fetch_add(deleted, Relaxed);
                let left = state.compact_left();
                let seen = (step, state.compact_revision(), left, state.revision());
                RwLockWriteGuard::unlock_fair(state);
                seen
            };
            match step {
                CompactStep::More => {}
                CompactStep::Held => return Ok(()),
                CompactStep::Done => {
                    fail::fail_point!("compact_after_last_step");
                    if self.finished.send_replace(revision) < revision {
                        tracing::info!(revision, "finished scheduled compaction");
                    }
                    return Ok(());
                }
            }
            let grown = u64::try_from(newest - began.1).unwrap_or(0);
            let pause = pause(left, grown, clock::now() - began.0);
            tasks::rest(pause).await;
            // Once more and not for ever: history must not grow because clients never pause.
            let backlog_bytes = shared.state.read().backend().backlog_bytes();
            if backlog_bytes > limits::COMPACTION_BACKLOG_BYTES_MAX {
                tasks::rest(pause).await;
            }
        }
    }
}

/// How long to wait after a step if `left` records are known that shall go, and `grown` have come in
/// the time of `passed`.
fn pause(left: u64, grown: u64, passed: Duration) -> Duration {
    if left == 0 {
        return limits::COMPACTION_PAUSE;
    }
    let spread = left / limits::COMPACTION_SPREAD.as_secs();
    // Faster than history grows, also with twice the pause, or under a load that never pauses it would
    // do so without end.
    let growth = grown / passed.as_secs().max(1) * 3;
    let records_a_second = limits::COMPACTION_RECORDS_A_SECOND.max(spread).max(growth);
    let step_us = limits::COMPACTION_STEP_KEYS as u64 * 1_000_000 / records_a_second;
    Duration::from_micros(step_us).max(limits::COMPACTION_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps a second that the pauses allow, and what they delete.
    fn records_a_second(left: u64, grown: u64, passed: Duration) -> u64 {
        let pause = pause(left, grown, passed);
        limits::COMPACTION_STEP_KEYS as u64 * 1_000_000 / u64::try_from(pause.as_micros()).unwrap()
    }

    #[test]
    fn few_records_go_slowly_many_within_a_minute_and_never_slower_than_others_come() {
        let minute = Duration::from_secs(60);
        assert_eq!(records_a_second(1, 0, Duration::ZERO), 50_000);
        assert_eq!(records_a_second(1_000_000, 900_000, minute), 50_000);
        assert_eq!(records_a_second(6_000_000, 0, Duration::ZERO), 100_000);
        assert_eq!(records_a_second(1_000_000, 2_000_000, minute) / 1000, 100);
        assert_eq!(pause(u64::MAX, 0, minute), limits::COMPACTION_PAUSE, "others come in between");
        assert_eq!(pause(0, 0, minute), limits::COMPACTION_PAUSE, "while it only looks");
    }
}
