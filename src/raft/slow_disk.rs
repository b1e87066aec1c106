//! A leader whose disk hangs, or is full, steps aside.
//!
//! Its followers acknowledge what it sends, so raft lets it lead; but it applies only what its own log
//! holds, so nobody gets an answer. In etcd such a leader sends no heartbeats while it waits for its
//! disk, and so loses its leadership. Ours asks another voter to take over after the same time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::node::Node;
use crate::clock;

/// How far the log has come on disk, as it was seen last.
#[derive(Debug)]
struct Progress {
    durable: Option<u64>,
    /// Since when it stands there although there is more to write.
    since: Instant,
}

impl Progress {
    /// Takes a look at `now`; whether the disk has hung for `patience`, told once in that time.
    fn hangs(
        &mut self,
        (durable, last): (Option<u64>, Option<u64>),
        now: Instant,
        patience: Duration,
    ) -> bool {
        if last <= durable || durable != self.durable {
            *self = Progress { durable, since: now };
            return false;
        }
        let hangs = now.saturating_duration_since(self.since) >= patience;
        if hangs {
            self.since = now;
        }
        hangs
    }
}

impl Node {
    /// Hands leadership over when the log has not come forward for an election timeout.
    pub(super) async fn watch_disk(self: Arc<Self>) {
        let patience = self.election_timeout();
        let mut progress = Progress { durable: None, since: clock::now() };
        loop {
            tokio::time::sleep(patience / 4).await;
            let log = &self.shared().log;
            let seen = (log.durable_index(), log.last_index());
            if !progress.hangs(seen, clock::now(), patience) || !self.is_leader() {
                continue;
            }
            let Some(target) = self.best_successor() else { continue };
            tracing::warn!(
                to = format!("{target:x}"),
                "the log does not get to the disk; handing leadership over"
            );
            // Not waited for: until the disk works again this member cannot even note another leader.
            if self.raft().trigger().transfer_leader(target).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_log_that_waits_and_does_not_move_hangs() {
        let patience = Duration::from_millis(100);
        let begin = clock::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut progress = Progress { durable: None, since: begin };
        let mut look = |seen, millis| progress.hangs(seen, at(millis), patience);
        assert!(!look((Some(1), Some(1)), 1000), "there is nothing to write");
        assert!(!look((Some(1), Some(5)), 1050));
        assert!(!look((Some(2), Some(9)), 1120), "it moves");
        assert!(!look((Some(2), Some(9)), 1219));
        assert!(look((Some(2), Some(9)), 1220));
        assert!(!look((Some(2), Some(9)), 1245), "told a moment ago");
        assert!(look((Some(2), Some(9)), 1320));
        assert!(!look((Some(9), Some(9)), 1500));
    }
}
