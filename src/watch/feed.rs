//! From the apply thread to all hubs: each entry's events are published once, and kept a while.
//!
//! Publishing takes a lock that hubs hold only to copy a few references. A hub without watchers is
//! not told anything; when its first watcher comes, it learns under the same lock what is next, so
//! that no event falls between.
//!
//! A thread that does not come to its news is not sent ever more of them: above a bound it is told
//! once that some were skipped. Its watchers then catch up, from the window if it still has them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use super::event::Batch;
use crate::state::Event;

/// What a hub hears, in the order in which it happened.
#[derive(Debug)]
pub enum News {
    /// These events are applied.
    Events(Arc<Batch>),
    /// A snapshot replaced the state; events below `next` that did not come are in its history.
    Resync {
        /// The revision of the next event that will be published.
        next: i64,
    },
    /// Too many events waited. Those that did not come are in the window or the history.
    Skipped,
}

/// All that a member publishes.
#[derive(Debug)]
pub struct Feed {
    window: Mutex<Window>,
    /// What waits for each hub.
    inboxes: Vec<Mutex<Inbox>>,
    counters: Vec<Arc<Counters>>,
    bytes_max: usize,
}

#[derive(Debug)]
struct Window {
    batches: VecDeque<Arc<Batch>>,
    bytes: usize,
    /// All events from this revision on are in the window.
    first: i64,
    /// The next event is of this revision or a later one.
    next: i64,
    /// Which hubs have watchers.
    active: Vec<bool>,
}

/// What was posted to one hub and is not taken yet.
#[derive(Debug, Default)]
struct Inbox {
    /// What the events take in memory.
    bytes: usize,
    /// Events below this revision were skipped; set while [`News::Skipped`] is on its way.
    skipped: Option<i64>,
}

impl Inbox {
    /// What to post of `batch`, which goes up to below `next`, if `bytes_max` may wait.
    fn admit(&mut self, batch: &Arc<Batch>, next: i64, bytes_max: usize) -> Option<News> {
        if self.skipped.is_some() {
            // The hub learns how far it goes when it comes to it.
            self.skipped = Some(next);
            return None;
        }
        // One that is too large by itself is taken nevertheless.
        if self.bytes > 0 && self.bytes + batch.bytes() > bytes_max {
            self.skipped = Some(next);
            return Some(News::Skipped);
        }
        self.bytes += batch.bytes();
        Some(News::Events(Arc::clone(batch)))
    }
}

/// What one hub counts for the metrics.
#[derive(Debug, Default)]
pub struct Counters {
    pub(super) streams: AtomicI64,
    pub(super) watchers: AtomicI64,
    pub(super) slow_watchers: AtomicI64,
    pub(super) events: AtomicU64,
    pub(super) pending_events: AtomicI64,
}

/// The sums of all hubs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Open watch streams.
    pub streams: u64,
    /// Watchers.
    pub watchers: u64,
    /// Those of them that are unsynced.
    pub slow_watchers: u64,
    /// Events that streams have taken since the start.
    pub events: u64,
    /// Events that wait for their streams.
    pub pending_events: u64,
}

/// Some batches of the window that follow one another.
#[derive(Debug)]
pub(super) struct Recent {
    pub(super) batches: Vec<Arc<Batch>>,
    /// The first revision behind them.
    pub(super) next: i64,
}

impl Feed {
    /// A feed to `hubs` hubs that goes on behind `revision` and keeps about `bytes_max` of events;
    /// as many may wait for each hub.
    pub fn new(hubs: usize, revision: i64, bytes_max: usize) -> Arc<Feed> {
        let next = revision + 1;
        let active = vec![false; hubs];
        let window = Window { batches: VecDeque::new(), bytes: 0, first: next, next, active };
        let counters = (0..hubs).map(|_| Arc::default()).collect();
        let inboxes = (0..hubs).map(|_| Mutex::default()).collect();
        Arc::new(Feed { window: Mutex::new(window), inboxes, counters, bytes_max })
    }

    /// Publishes the events of one log entry; `post` takes them to the hub of each number.
    ///
    /// To be called by the one thread that applies.
    pub fn publish(&self, events: Vec<Event>, mut post: impl FnMut(usize, News)) {
        let batch = Batch::new(events);
        let (Some(first), Some(last)) = (batch.first(), batch.last()) else { return };
        let mut dropped = Vec::new();
        let targets = {
            let mut window = self.window.lock();
            assert!(first >= window.next, "events are published in the order of revisions");
            window.next = last + 1;
            window.bytes += batch.bytes();
            window.batches.push_back(Arc::clone(&batch));
            while window.bytes > self.bytes_max {
                let Some(oldest) = window.batches.pop_front() else { break };
                window.bytes -= oldest.bytes();
                window.first = oldest.last().expect("a batch has events") + 1;
                dropped.push(oldest);
            }
            window.targets()
        };
        // Outside of the lock, for it may free much.
        drop(dropped);
        for hub in targets {
            let news = self.inboxes[hub].lock().admit(&batch, last + 1, self.bytes_max);
            news.into_iter().for_each(|news| post(hub, news));
        }
    }

    /// A snapshot took the state to `revision`; as [`Feed::publish`].
    pub fn resync(&self, revision: i64, mut post: impl FnMut(usize, News)) {
        let next = revision + 1;
        let targets = {
            let mut window = self.window.lock();
            if next <= window.next {
                return;
            }
            window.batches.clear();
            window.bytes = 0;
            window.first = next;
            window.next = next;
            window.targets()
        };
        targets.for_each(|hub| post(hub, News::Resync { next }));
    }

    /// The sums of all hubs.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        let gauge = |value: &AtomicI64| value.load(Relaxed).max(0).cast_unsigned();
        for counters in &self.counters {
            totals.streams += gauge(&counters.streams);
            totals.watchers += gauge(&counters.watchers);
            totals.slow_watchers += gauge(&counters.slow_watchers);
            totals.events += counters.events.load(Relaxed);
            totals.pending_events += gauge(&counters.pending_events);
        }
        totals
    }

    /// `hub` has come to this batch.
    pub(super) fn taken(&self, hub: usize, batch: &Batch) {
        self.inboxes[hub].lock().bytes -= batch.bytes();
    }

    /// `hub` has come to [`News::Skipped`]: the revision with which its news go on.
    pub(super) fn taken_skipped(&self, hub: usize) -> i64 {
        self.inboxes[hub].lock().skipped.take().expect("it was posted when events were skipped")
    }

    pub(super) fn counters(&self, hub: usize) -> Arc<Counters> {
        Arc::clone(&self.counters[hub])
    }

    /// From now on `hub` gets the news; answers with the revision with which they go on.
    pub(super) fn activate(&self, hub: usize) -> i64 {
        let mut window = self.window.lock();
        window.active[hub] = true;
        window.next
    }

    pub(super) fn deactivate(&self, hub: usize) {
        self.window.lock().active[hub] = false;
    }

    /// The first revision from which on the window has all events.
    pub(super) fn first(&self) -> i64 {
        self.window.lock().first
    }

    /// About `bytes_max` of events from revision `from` on, but below `end`; none if the window has
    /// lost some.
    pub(super) fn recent(&self, from: i64, end: i64, bytes_max: usize) -> Option<Recent> {
        let window = self.window.lock();
        if from < window.first {
            return None;
        }
        let begin = window.batches.partition_point(|batch| batch.last() < Some(from));
        let mut recent = Recent { batches: Vec::new(), next: end };
        let mut bytes = 0;
        for batch in window.batches.range(begin..) {
            let first = batch.first().expect("a batch has events");
            if first >= end {
                break;
            }
            if bytes >= bytes_max {
                recent.next = first;
                break;
            }
            bytes += batch.bytes();
            recent.batches.push(Arc::clone(batch));
        }
        Some(recent)
    }
}

impl Window {
    fn targets(&self) -> impl Iterator<Item = usize> + use<> {
        let active = self.active.clone();
        (0..active.len()).filter(move |hub| active[*hub])
    }
}
