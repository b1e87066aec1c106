//! What a serving thread shares with the rest of the member: replies come back in batches.
//!
//! Waking a task of another thread costs as much as all the rest of a small request. So the apply
//! loop never wakes one: it sends each serving thread one batch of completions, and a task of that
//! thread fires the slots, which wakes only neighbours on the same thread.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::Error;
use super::lessor::Renewal;
use super::read::{ReadResult, ReadSender};
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
    /// A read round has ended; these waited for it.
    Reads(Vec<ReadSender>, ReadResult),
    /// What its watchers want to know.
    Watch(News),
}

/// One serving thread, seen from the member.
pub struct Shard {
    /// The thread's number; [`ReplySlot`]s name it.
    pub(crate) id: usize,
    inbox: mpsc::UnboundedSender<Delivery>,
    hub: Arc<Hub>,
}

impl Shard {
    /// A shard and the receiver that [`Shard::deliver_all`] drains on the shard's own thread.
    pub(crate) fn new(id: usize, hub: Arc<Hub>) -> (Arc<Shard>, mpsc::UnboundedReceiver<Delivery>) {
        let (inbox, deliveries) = mpsc::unbounded_channel();
        (Arc::new(Shard { id, inbox, hub }), deliveries)
    }

    /// Hands `delivery` to the shard's thread: one wake-up, however many replies.
    ///
    /// Bounded by what is in flight, since every reply was a request that waits; of watch news the
    /// feed posts no more than [`crate::limits::WATCH_WINDOW_BYTES_MAX`].
    pub(crate) fn deliver(&self, delivery: Delivery) {
        // A closed inbox means that the serving thread has ended; nobody waits any more.
        self.inbox.send(delivery).ok();
    }

    /// The watchers of this thread.
    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Fires completions until the member is gone.
    pub(crate) async fn deliver_all(
        self: Arc<Self>,
        mut deliveries: mpsc::UnboundedReceiver<Delivery>,
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
                Delivery::Reads(reads, result) => {
                    for sender in reads {
                        // A reader that went away does not wait for its round.
                        sender.send(result).ok();
                    }
                }
            }
        }
    }
}
