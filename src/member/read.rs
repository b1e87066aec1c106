//! Linearizable reads: one round in flight a member, everything that comes meanwhile shares the next.
//!
//! A round asks the leader for an index that was committed after the round began (Raft, section
//! 6.4); once this member has applied it, every read that joined before may look at its state.
//! A round takes what waits on all serving threads, so that it costs the same for one read and for a
//! thousand, and begins without any of them as soon as the one before has ended.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::Error;
use super::shard::{Delivery, Shard};
use crate::clock;
use crate::limits;
use crate::raft::Node;
use crate::tasks;

/// Why a read round failed; each waiting read gets a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadRefused {
    Timeout,
    TimeoutApplied,
    Stopped,
}

impl From<ReadRefused> for Error {
    fn from(refused: ReadRefused) -> Self {
        match refused {
            ReadRefused::Timeout => Error::Timeout,
            ReadRefused::TimeoutApplied => Error::TimeoutApplied,
            ReadRefused::Stopped => Error::Stopped,
        }
    }
}

/// Whether those who waited may look at the state.
pub(crate) type ReadResult = Result<(), ReadRefused>;

/// Where one read waits for its round.
pub(crate) type ReadSender = oneshot::Sender<ReadResult>;

/// Reads that wait for the next round.
pub(crate) struct Reads {
    shards: Vec<Arc<Shard>>,
    /// By serving thread.
    waiting: Vec<Mutex<Vec<ReadSender>>>,
    /// Other members, which need only the index.
    peers: Mutex<Vec<oneshot::Sender<u64>>>,
    came: Notify,
}

/// Who takes part in one round.
#[derive(Default)]
struct Round {
    /// By serving thread.
    reads: Vec<Vec<ReadSender>>,
    peers: Vec<oneshot::Sender<u64>>,
}

impl Reads {
    pub(crate) fn new(shards: Vec<Arc<Shard>>) -> Arc<Reads> {
        let waiting = shards.iter().map(|_| Mutex::default()).collect();
        Arc::new(Reads { shards, waiting, peers: Mutex::default(), came: Notify::new() })
    }

    /// Adds a read of serving thread `shard` to the next round.
    pub(crate) fn join(&self, shard: usize) -> oneshot::Receiver<ReadResult> {
        self.add(&self.waiting[shard])
    }

    /// Adds another member to the next round.
    pub(crate) fn join_peer(&self) -> oneshot::Receiver<u64> {
        self.add(&self.peers)
    }

    fn add<T>(&self, waiting: &Mutex<Vec<oneshot::Sender<T>>>) -> oneshot::Receiver<T> {
        let (sender, receiver) = oneshot::channel();
        let is_first = {
            let mut waiting = waiting.lock();
            waiting.push(sender);
            waiting.len() == 1
        };
        // A round takes all that wait; so there is somebody to wake only for the first.
        if is_first {
            self.came.notify_one();
        }
        receiver
    }

    /// All that wait; none if nobody does.
    fn take(&self) -> Option<Round> {
        let reads: Vec<_> =
            self.waiting.iter().map(|reads| mem::take(&mut *reads.lock())).collect();
        let peers = mem::take(&mut *self.peers.lock());
        let is_empty = peers.is_empty() && reads.iter().all(Vec::is_empty);
        (!is_empty).then_some(Round { reads, peers })
    }

    /// Runs rounds; a read is refused if its round takes longer than `timeout`.
    pub(crate) async fn run(self: Arc<Self>, node: Arc<Node>, timeout: Duration) {
        loop {
            self.came.notified().await;
            let Some(round) = self.take() else { continue };
            let deadline = clock::now() + timeout;
            match index(&node, deadline).await {
                Some(index) => self.answer(&node, round, index, deadline),
                // As in etcd: also if there is no leader, whom who needs one asks for in the head.
                None => self.end(round.reads, Err(ReadRefused::Timeout)),
            }
        }
    }

    /// Tells peers the index, and threads that they may read once it is applied here.
    fn answer(self: &Arc<Self>, node: &Arc<Node>, round: Round, index: u64, deadline: Instant) {
        for peer in round.peers {
            // A member that gave up does not wait for the index.
            peer.send(index).ok();
        }
        if node.shared().applied_index() >= index {
            self.end(round.reads, Ok(()));
            return;
        }
        let reads = Arc::clone(self);
        let mut applied = node.shared().applied();
        tasks::spawn("read-wait", async move {
            let left = deadline.saturating_duration_since(clock::now());
            let reached = tokio::time::timeout(left, applied.wait_for(|at| *at >= index)).await;
            let result = match reached {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(_)) => Err(ReadRefused::Stopped),
                Err(_) => Err(ReadRefused::TimeoutApplied),
            };
            reads.end(round.reads, result);
        });
    }

    /// One delivery to each thread that has reads in the round.
    fn end(&self, reads: Vec<Vec<ReadSender>>, result: ReadResult) {
        for (shard, reads) in self.shards.iter().zip(reads) {
            if !reads.is_empty() {
                shard.deliver(Delivery::Reads(reads, result));
            }
        }
    }
}

/// An index from the leader, asked for again until `deadline`; reads may always be repeated.
async fn index(node: &Node, deadline: Instant) -> Option<u64> {
    loop {
        let left = deadline.saturating_duration_since(clock::now());
        if left.is_zero() {
            return None;
        }
        let index = node.read_index(left.min(limits::READ_ROUND_TIMEOUT));
        // Raft itself does not answer while it waits for the disk.
        let answered = tokio::time::timeout(left.min(3 * limits::READ_ROUND_TIMEOUT), index).await;
        if let Ok(Some(index)) = answered {
            return Some(index);
        }
        node.leader_news(limits::READ_RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::watch::{Feed, Hub};

    #[test]
    fn a_round_takes_all_that_wait_and_nobody_who_comes_later() {
        let feed = Feed::new(2, 1, 0);
        let (shards, _deliveries): (Vec<_>, Vec<_>) =
            (0..2).map(|number| Shard::new(number, Hub::new(&feed, number))).unzip();
        let reads = Reads::new(shards);
        assert!(reads.came.notified().now_or_never().is_none());
        let (mut first, mut second) = (reads.join(0), reads.join(1));
        assert!(reads.came.notified().now_or_never().is_some(), "the first read starts a round");
        let round = reads.take().expect("two reads wait");
        assert_eq!(round.reads.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1]);

        let (mut late, mut peer) = (reads.join(1), reads.join_peer());
        for read in round.reads.into_iter().flatten() {
            read.send(Ok(())).expect("somebody waits");
        }
        assert_eq!((first.try_recv(), second.try_recv()), (Ok(Ok(())), Ok(Ok(()))));
        assert!(late.try_recv().is_err(), "a round answers only reads from before it began");

        assert!(reads.came.notified().now_or_never().is_some(), "they need another round");
        let next = reads.take().expect("a read and a peer wait");
        assert_eq!((next.reads[1].len(), next.peers.len()), (1, 1));
        assert!(peer.try_recv().is_err());
        assert!(reads.take().is_none());
    }
}
