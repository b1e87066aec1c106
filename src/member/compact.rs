//! Drops compacted history in the background, in steps so short that nobody notices.
//!
//! A Compact takes effect at once when it is applied: older revisions are refused from then on. This
//! thread then gives the space back, a hundred records at a time, and lets waiting readers and the
//! apply loop go first between two steps. It goes no faster than it must, for what it deletes costs
//! the disk and the processor that writes need: gently while few write, who shall not notice, and
//! briskly while many do, or history would grow faster than it goes. It waits a while if the storage
//! has much left to write, so that it does not take the room in the queue that the apply loop needs.

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

/// How a compaction goes.
struct Pace {
    /// Records that a step looks at, or deletes, while it holds the state.
    step_records: usize,
    /// What it deletes in a second, if there is so much.
    records_a_second: u64,
    /// If there is more it goes as fast as if it were to end after this time.
    spread: Duration,
}

/// A step takes less than half a millisecond; 4 us of processor a record are a fifth of a core.
const GENTLE: Pace =
    Pace { step_records: 128, records_a_second: 50_000, spread: Duration::from_secs(60) };

const BRISK: Pace =
    Pace { step_records: 500, records_a_second: 100_000, spread: Duration::from_secs(20) };

impl Pace {
    /// The pace while `grown` revisions came in `passed`.
    fn at(grown: u64, passed: Duration) -> &'static Pace {
        let a_second = grown / passed.as_secs().max(1);
        if a_second < limits::COMPACTION_BRISK_WRITES { &GENTLE } else { &BRISK }
    }

    /// How long to wait after a step if `left` records are known that shall go.
    fn pause(&self, left: u64) -> Duration {
        if left == 0 {
            return limits::COMPACTION_PAUSE;
        }
        let records_a_second = self.records_a_second.max(left / self.spread.as_secs());
        let step_us = self.step_records as u64 * 1_000_000 / records_a_second;
        Duration::from_micros(step_us).max(limits::COMPACTION_PAUSE)
    }
}

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
    fn step(&self, state: &mut Store, pace: &Pace) -> Result<CompactStep, StorageError> {
        fail::fail_point!("compact_before_step");
        let step = state.compact_step(pace.step_records)?;
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
        let (began, oldest) = (clock::now(), shared.state.read().revision());
        let mut grown = 0;
        loop {
            let pace = Pace::at(grown, clock::now() - began);
            let (step, revision, left, newest) = {
                let mut state = shared.state.write();
                let before = state.compact_left();
                let step = self.step(&mut state, pace)?;
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
                        self.counts.compaction_last.store(clock::unix_ms() / 1000, Relaxed);
                        tracing::info!(revision, "finished scheduled compaction");
                    }
                    return Ok(());
                }
            }
            grown = u64::try_from(newest - oldest).unwrap_or(0);
            let pause = pace.pause(left);
            tasks::rest(pause).await;
            let backlog = || shared.state.read().backend().backlog_bytes();
            // Not for ever: history must not grow because clients never pause.
            let until = clock::now() + pause * 2;
            while backlog() > limits::COMPACTION_BACKLOG_BYTES_MAX && clock::now() < until {
                tasks::rest(limits::COMPACTION_PAUSE_LONG).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the pauses of `pace` let it delete in a second.
    fn records_a_second(pace: &Pace, left: u64) -> u64 {
        let pause = u64::try_from(pace.pause(left).as_micros()).unwrap();
        pace.step_records as u64 * 1_000_000 / pause
    }

    #[test]
    fn compaction_is_gentle_with_few_writes_and_outruns_many() {
        let minute = Duration::from_secs(60);
        let (few, many) = (Pace::at(9_000 * 60, minute), Pace::at(11_000 * 60, minute));
        assert_eq!(records_a_second(few, 1), 50_000);
        assert_eq!(records_a_second(few, 6_000_000), 100_000);
        assert_eq!(records_a_second(many, 1), 100_000);
        assert_eq!(records_a_second(many, 6_000_000) / 1000, 300);
        assert_eq!(few.pause(u64::MAX), limits::COMPACTION_PAUSE, "others come in between");
        assert_eq!(few.pause(0), limits::COMPACTION_PAUSE, "while it only looks");
        assert_eq!(records_a_second(Pace::at(0, Duration::ZERO), 1), 50_000, "as it begins");
    }
}
