//! What a serving thread shares with the rest of the member: replies come back in batches.
//!
//! Waking a task of another thread costs as much as all the rest of a small request. So the apply
//! loop never wakes one: it sends each serving thread one batch of completions, and a task of that
//! thread fires the slots, which wakes only neighbours on the same thread.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::Error;
use super::lessor::Renewal;
use crate::state::Applied;
use crate::watch::{Hub, News};

/// The outcome of one command, or why there is none.
pub type Reply = Result<Applied, Error>;

/// Where one request waits for its outcome.
pub(crate) struct ReplySlot {
    pub(crate) shard: usize,
    pub(crate) sender: oneshot::Sender<Reply>,
}

/// News for a serving thread.
pub(crate) enum Delivery {
    /// Outcomes of commands.
    Replies(Vec<(oneshot::Sender<Reply>, Reply)>),
    /// Answers to keep-alives.
    Renewals(Vec<(oneshot::Sender<Renewal>, Renewal)>),
    /// The read round that was in flight has ended.
    ReadRound(Result<(), ReadRefused>),
    /// What its watchers want to know.
    Watch(News),
}

/// Why a read round failed; each waiting read gets a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadRefused {
    NoLeader,
    Timeout,
    TimeoutApplied,
    Stopped,
}

impl From<ReadRefused> for Error {
    fn from(refused: ReadRefused) -> Self {
        match refused {
            ReadRefused::NoLeader => Error::NoLeader,
            ReadRefused::Timeout => Error::Timeout,
            ReadRefused::TimeoutApplied => Error::TimeoutApplied,
            ReadRefused::Stopped => Error::Stopped,
        }
    }
}

type ReadSender = oneshot::Sender<Result<(), ReadRefused>>;

/// One serving thread, seen from the member.
pub struct Shard {
    /// The thread's number; [`ReplySlot`]s name it.
    pub(crate) id: usize,
    inbox: mpsc::UnboundedSender<Delivery>,
    hub: Arc<Hub>,
    reads: Mutex<Reads>,
}

/// Linearizable reads of one thread: one round in flight, the others wait for the next.
#[derive(Default)]
struct Reads {
    in_flight: Option<Vec<ReadSender>>,
    waiting: Vec<ReadSender>,
}

impl Shard {
    /// A shard and the receiver that [`Shard::deliver_all`] drains on the shard's own thread.
    pub(crate) fn new(id: usize, hub: Arc<Hub>) -> (Arc<Shard>, mpsc::UnboundedReceiver<Delivery>) {
        let (inbox, deliveries) = mpsc::unbounded_channel();
        (Arc::new(Shard { id, inbox, hub, reads: Mutex::default() }), deliveries)
    }

    /// Hands `delivery` to the shard's thread: one wake-up, however many replies.
    ///
    /// Bounded by what is in flight, since every reply was a request that waits.
    pub(crate) fn deliver(&self, delivery: Delivery) {
        // A closed inbox means that the serving thread has ended; nobody waits any more.
        self.inbox.send(delivery).ok();
    }

    /// The watchers of this thread.
    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Adds a read; `true` if the caller must start a round.
    pub(crate) fn join_read(&self) -> (oneshot::Receiver<Result<(), ReadRefused>>, bool) {
        let (sender, receiver) = oneshot::channel();
        let mut reads = self.reads.lock();
        if reads.in_flight.is_some() {
            reads.waiting.push(sender);
            (receiver, false)
        } else {
            reads.in_flight = Some(vec![sender]);
            (receiver, true)
        }
    }

    /// Ends the round in flight; `true` if reads that came meanwhile need another.
    fn end_read_round(&self, result: Result<(), ReadRefused>) -> bool {
        let ended = {
            let mut reads = self.reads.lock();
            let waiting = std::mem::take(&mut reads.waiting);
            let next = (!waiting.is_empty()).then_some(waiting);
            std::mem::replace(&mut reads.in_flight, next)
        };
        for sender in ended.into_iter().flatten() {
            // A reader that went away does not wait for its round.
            sender.send(result).ok();
        }
        self.reads.lock().in_flight.is_some()
    }

    /// Fires completions until the member is gone; `start_round` asks for the next read round.
    pub(crate) async fn deliver_all(
        self: Arc<Self>,
        mut deliveries: mpsc::UnboundedReceiver<Delivery>,
        start_round: impl Fn(&Arc<Shard>),
    ) {
        while let Some(delivery) = deliveries.recv().await {
            match delivery {
                Delivery::Replies(replies) => {
                    for (sender, reply) in replies {
                        // A client that went away does not wait for its reply.
                        sender.send(reply).ok();
                    }
                }
                Delivery::Renewals(renewals) => {
                    for (sender, renewal) in renewals {
                        // A client that went away does not wait for its answer.
                        sender.send(renewal).ok();
                    }
                }
                Delivery::Watch(news) => self.hub.take(news),
                Delivery::ReadRound(result) => {
                    if self.end_read_round(result) {
                        start_round(&self);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::Feed;

    #[test]
    fn reads_that_come_during_a_round_share_the_next() {
        let (shard, _deliveries) = Shard::new(0, Hub::new(&Feed::new(1, 1, 0), 0));
        let (mut first, start) = shard.join_read();
        assert!(start);
        let (mut second, start) = shard.join_read();
        assert!(!start);
        let (mut third, start) = shard.join_read();
        assert!(!start);

        assert!(shard.end_read_round(Ok(())), "two reads wait for another round");
        assert_eq!(first.try_recv(), Ok(Ok(())));
        assert!(second.try_recv().is_err(), "a round answers only reads from before it began");

        assert!(!shard.end_read_round(Err(ReadRefused::NoLeader)));
        assert_eq!(second.try_recv(), Ok(Err(ReadRefused::NoLeader)));
        assert_eq!(third.try_recv(), Ok(Err(ReadRefused::NoLeader)));
        assert!(shard.join_read().1, "the next read starts a round again");
    }
}
