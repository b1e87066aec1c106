//! Checkpoints of the state, and how much log is kept behind them.
//!
//! The log is dropped up to a checkpoint, but for the last of it, which followers that lag a little
//! can go on with. openraft does not drop what a follower is being sent just now; so one that
//! acknowledges all the time, and yet is too slow, would hold the log for ever. Its stream is ended
//! once twice as much log has gathered as is to be kept, and it gets a snapshot.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::node::Node;
use crate::clock;
use crate::limits;

/// Entries up to here have to leave the log: who still needs them gets a snapshot.
#[derive(Debug, Default)]
pub(super) struct LogFloor(AtomicU64);

impl LogFloor {
    fn raise(&self, index: u64) {
        self.0.fetch_max(index, Relaxed);
    }

    /// Whether a follower that has all up to `matched` would need one of them.
    pub(super) fn is_above(&self, matched: u64) -> bool {
        matched < self.0.load(Relaxed)
    }
}

impl Node {
    /// Makes the state durable from time to time and drops log that nobody needs any more.
    pub(super) async fn checkpoint_and_purge(self: Arc<Self>) {
        let mut checkpointed = self.shared.applied_index();
        let mut last = clock::now();
        let mut applied = self.shared.applied();
        let retained_max = self.options.log_retained_bytes_max;
        loop {
            tokio::time::sleep(limits::CHECKPOINT_POLL).await;
            let index = *applied.borrow_and_update();
            let entries = index.saturating_sub(checkpointed);
            let bytes = self.shared.log.retained_bytes();
            let due = entries >= self.options.snapshot_count
                || bytes >= retained_max
                || clock::now().saturating_duration_since(last) >= limits::CHECKPOINT_INTERVAL;
            if entries == 0 || !due {
                continue;
            }
            checkpointed = index;
            last = clock::now();
            if self.raft.trigger().snapshot().await.is_err() {
                return;
            }
            if self.shared.log_hold.holds(clock::now()) {
                continue;
            }
            let entries = self.options.catchup_entries;
            let purgeable = self.shared.log.purge_index_keeping(entries, retained_max / 2);
            // Not what openraft takes for a snapshot: at start it asks for the current one, which may
            // be ahead of the disk, and the one that was triggered just now is not there yet.
            let durable = self.shared.checkpointed_index();
            let purgeable = purgeable.map(|upto| upto.min(durable)).filter(|upto| *upto > 0);
            if let Some(upto) = purgeable {
                if self.raft.trigger().purge_log(upto).await.is_err() {
                    return;
                }
                if bytes > 2 * retained_max {
                    self.log_floor.raise(upto);
                }
            }
        }
    }
}
