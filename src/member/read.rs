//! Linearizable reads: one round in flight a member, everything that comes meanwhile shares the next.
//!
//! A round asks the leader for an index that was committed after the round began (Raft, section
//! 6.4); once this member has applied it, every read that joined before may look at its state.
//! Reads are coalesced twice, per serving thread and per member, so that a round costs the same for
//! one read and for a thousand.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::shard::{Delivery, ReadRefused, Shard};
use crate::clock;
use crate::limits;
use crate::raft::Node;
use crate::tasks;

/// Who waits for a round.
pub(crate) enum ReadRequest {
    /// All reads that a serving thread gathered.
    Shard(Arc<Shard>),
    /// Another member, which needs only the index.
    Peer(oneshot::Sender<u64>),
}

/// Runs rounds until every asker is gone.
pub(crate) async fn run(
    node: Arc<Node>,
    mut requests: mpsc::UnboundedReceiver<ReadRequest>,
    timeout: Duration,
) {
    let mut batch = Vec::new();
    while requests.recv_many(&mut batch, usize::MAX).await > 0 {
        let deadline = clock::now() + timeout;
        match index(&node, deadline).await {
            Some(index) => answer(&node, batch.drain(..), index, deadline),
            None => {
                let leader = node.leadership().leader;
                let refused =
                    if leader.is_none() { ReadRefused::NoLeader } else { ReadRefused::Timeout };
                refuse(batch.drain(..), refused);
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
        if let Some(index) = node.read_index(left.min(limits::READ_ROUND_TIMEOUT)).await {
            return Some(index);
        }
        node.leader_news(limits::READ_RETRY).await;
    }
}

/// Tells peers the index, and threads that they may read once it is applied here.
fn answer(
    node: &Arc<Node>,
    requests: impl Iterator<Item = ReadRequest>,
    index: u64,
    deadline: Instant,
) {
    let mut shards = Vec::new();
    for request in requests {
        match request {
            ReadRequest::Shard(shard) => shards.push(shard),
            // A member that gave up does not wait for the index.
            ReadRequest::Peer(sender) => {
                sender.send(index).ok();
            }
        }
    }
    if node.shared().applied_index() >= index {
        shards.iter().for_each(|shard| shard.deliver(Delivery::ReadRound(Ok(()))));
        return;
    }
    let mut applied = node.shared().applied();
    tasks::spawn("read-wait", async move {
        let left = deadline.saturating_duration_since(clock::now());
        let reached = tokio::time::timeout(left, applied.wait_for(|at| *at >= index)).await;
        let result = match reached {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ReadRefused::Stopped),
            Err(_) => Err(ReadRefused::TimeoutApplied),
        };
        shards.iter().for_each(|shard| shard.deliver(Delivery::ReadRound(result)));
    });
}

fn refuse(requests: impl Iterator<Item = ReadRequest>, refused: ReadRefused) {
    for request in requests {
        match request {
            ReadRequest::Shard(shard) => shard.deliver(Delivery::ReadRound(Err(refused))),
            ReadRequest::Peer(sender) => drop(sender),
        }
    }
}
