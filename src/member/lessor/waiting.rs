//! Keep-alives that wait for a renewal, and their answers on the way to the serving threads.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::super::shard::{Delivery, Shard};
use super::Renewal;

/// A keep-alive that waits.
pub(super) struct Waiting {
    pub(super) id: i64,
    pub(super) deadline: Instant,
    /// The serving thread; none for a call of a peer.
    pub(super) shard: Option<usize>,
    pub(super) sender: oneshot::Sender<Renewal>,
}

/// Answers on their way, one delivery a serving thread.
pub(super) struct Answers {
    by_shard: Vec<Vec<(oneshot::Sender<Renewal>, Renewal)>>,
}

impl Answers {
    pub(super) fn new(shards: usize) -> Self {
        Answers { by_shard: (0..shards).map(|_| Vec::new()).collect() }
    }

    pub(super) fn add(&mut self, one: Waiting, renewal: Renewal) {
        match one.shard {
            Some(shard) => self.by_shard[shard].push((one.sender, renewal)),
            // A peer's call runs on this thread; if it gave up nobody waits.
            None => drop(one.sender.send(renewal)),
        }
    }

    pub(super) fn deliver(self, shards: &[Arc<Shard>]) {
        for (shard, answers) in shards.iter().zip(self.by_shard) {
            if !answers.is_empty() {
                shard.deliver(Delivery::Renewals(answers));
            }
        }
    }
}
