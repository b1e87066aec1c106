//! What one client holds: watchers that share a queue.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::event::{Events, SharedEvent};
use super::group::Keys;
use super::hub::{Hub, WatchOptions};

/// A stream of deliveries to any number of watchers. Dropping it cancels them all.
///
/// It is to be used on the serving thread of its hub.
#[derive(Debug)]
pub struct WatchStream {
    hub: Arc<Hub>,
    at: u32,
}

/// What a client asks for.
#[derive(Debug, Clone)]
pub struct WatchRequest {
    /// The id it chose; 0 for any.
    pub id: i64,
    /// None if no key can be in the range it named.
    pub keys: Option<Keys>,
    /// The first revision it wants; 0 for what comes after the current one.
    pub start_revision: i64,
    pub(super) options: WatchOptions,
}

impl WatchRequest {
    /// Watches `keys` from `start_revision` on.
    pub fn new(keys: Option<Keys>, start_revision: i64) -> Self {
        WatchRequest { id: 0, keys, start_revision, options: WatchOptions::default() }
    }

    /// With the id that the client chose.
    #[must_use]
    pub fn with_id(mut self, id: i64) -> Self {
        self.id = id;
        self
    }

    /// Without puts, or without deletes.
    #[must_use]
    pub fn without(mut self, puts: bool, deletes: bool) -> Self {
        self.options.no_put = puts;
        self.options.no_delete = deletes;
        self
    }

    /// With the previous pairs.
    #[must_use]
    pub fn with_prev_kv(mut self, wanted: bool) -> Self {
        self.options.prev_kv = wanted;
        self
    }

    /// With progress told at each [`WatchStream::tick`] after a quiet time.
    #[must_use]
    pub fn with_progress(mut self, wanted: bool) -> Self {
        self.options.progress_notify = wanted;
        self
    }

    /// With leave to send one delivery in parts.
    #[must_use]
    pub fn with_fragments(mut self, wanted: bool) -> Self {
        self.options.fragment = wanted;
        self
    }
}

/// The state as a new watcher finds it.
#[derive(Debug, Clone, Copy)]
pub struct Revisions {
    /// The current revision.
    pub current: i64,
    /// The compact revision.
    pub compact: i64,
}

/// A watcher has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Created {
    /// Its id on the stream.
    pub id: i64,
    /// The revision at which it was made.
    pub revision: i64,
}

/// Why a watcher cannot begin; texts are etcd's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// A negative start revision.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    /// The id is in use on the stream.
    #[error("mvcc: duplicate watch ID provided on the WatchStream")]
    DuplicateId,
    /// No key can be in the range.
    #[error("mvcc: watcher range is empty")]
    EmptyRange,
}

/// What a stream yields.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// Events for one watcher, revisions whole.
    Events {
        /// The watcher.
        watch_id: i64,
        /// It has all its events up to this revision.
        revision: i64,
        /// The events.
        events: Events,
        /// It wants the previous pairs of events after this revision.
        prev_after: i64,
        /// Whether the delivery may be sent in parts.
        fragment: bool,
    },
    /// The watcher has all its events up to `revision`; -1 stands for all watchers of the stream.
    Progress {
        /// The watcher.
        watch_id: i64,
        /// How far it is.
        revision: i64,
    },
    /// Compaction overtook the watcher, which has ended.
    Compacted {
        /// The watcher.
        watch_id: i64,
        /// The lowest revision that is left.
        compact_revision: i64,
    },
}

impl Delivery {
    /// How many events it has.
    pub(super) fn events(&self) -> usize {
        match self {
            Delivery::Events { events, .. } => events.as_slice().len(),
            Delivery::Progress { .. } | Delivery::Compacted { .. } => 0,
        }
    }

    /// What its events take in memory.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Delivery::Events { events, .. } => {
                events.as_slice().iter().map(SharedEvent::bytes).sum()
            }
            Delivery::Progress { .. } | Delivery::Compacted { .. } => 0,
        }
    }
}

impl WatchStream {
    /// Opens a stream on `hub`; when about `bytes_max` wait in its queue, its watchers fall behind.
    pub fn open(hub: &Arc<Hub>, bytes_max: usize) -> WatchStream {
        let at = hub.with(|inner| inner.open_stream(bytes_max));
        WatchStream { hub: Arc::clone(hub), at }
    }

    /// Begins a watcher on a state that is at `now`.
    ///
    /// # Errors
    /// A refusal leaves the stream as it was.
    pub fn create(&self, request: WatchRequest, now: Revisions) -> Result<Created, CreateError> {
        self.hub.with(|inner| inner.create(self.at, request, now))
    }

    /// Ends the watcher `id`: nothing is delivered to it any more. False if there is none.
    pub fn cancel(&self, id: i64) -> bool {
        self.hub.with(|inner| inner.cancel(self.at, id))
    }

    /// Has one [`Delivery::Progress`] for the whole stream delivered when all its watchers have
    /// what happened up to `revision`. Dropped if a watcher begins later, or there is none.
    pub fn request_progress(&self, revision: i64) {
        self.hub.with(|inner| inner.board.want_progress(self.at, revision));
    }

    /// Delivers progress to the watchers that asked for it and got no event since the last tick.
    pub fn tick(&self) {
        self.hub.with(|inner| inner.board.tick(self.at));
    }

    /// The next delivery. Dropping the future loses nothing.
    pub async fn next(&self) -> Delivery {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// The next delivery if there is one.
    pub fn try_next(&self) -> Option<Delivery> {
        self.hub.with(|inner| inner.pop(self.at))
    }

    fn poll_next(&self, context: &mut Context<'_>) -> Poll<Delivery> {
        self.hub.with(|inner| match inner.pop(self.at) {
            Some(delivery) => Poll::Ready(delivery),
            None => {
                inner.board.set_waker(self.at, context.waker());
                Poll::Pending
            }
        })
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        self.hub.with(|inner| inner.close_stream(self.at));
    }
}
