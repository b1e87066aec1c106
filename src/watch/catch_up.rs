//! Watchers that are behind: they read the window, or the storage off the thread, and join.
//!
//! One loop a hub serves them together, a bounded group and a bounded chunk at a time. A stream
//! whose queue is full is left out until its client has read some of it.

use std::sync::Arc;

use super::event::{Batch, Events, SharedEvent};
use super::group::{Group, Keys};
use super::hub::{Hub, Inner};
use crate::limits;
use crate::state::Event;
use crate::storage::StorageError;
use crate::tasks;

/// Watchers that catch up at a time; below it their keys are compared one by one.
const COMPARED_WATCHERS_MAX: usize = 8;

/// Where history comes from.
pub trait Source: Send + Sync + 'static {
    /// Reads the events from revision `from` on, about as many as
    /// [`limits::WATCH_CHUNK_EVENTS_MAX`]; with previous pairs of the keys that `prev_of` says.
    ///
    /// Called where blocking is allowed.
    ///
    /// # Errors
    /// The member cannot go on.
    fn read(&self, from: i64, prev_of: &dyn Fn(&[u8]) -> bool) -> Result<Read, StorageError>;
}

/// What a [`Source`] reads.
#[derive(Debug)]
pub enum Read {
    /// Everything from the revision asked for to below `next`.
    Chunk {
        /// The events in revision order.
        events: Vec<Event>,
        /// Where to go on.
        next: i64,
    },
    /// History from the revision asked for on is not complete any more.
    Compacted {
        /// The lowest revision that is left.
        revision: i64,
    },
}

/// A read on behalf of some watchers.
#[derive(Debug)]
pub(super) struct ReadPlan {
    from: i64,
    /// The watchers, as slot and generation.
    of: Vec<(u32, u64)>,
    /// The keys whose previous pairs are wanted.
    prev_of: Vec<Keys>,
}

impl ReadPlan {
    pub(super) fn from(&self) -> i64 {
        self.from
    }

    pub(super) fn wants_prev(&self, key: &[u8]) -> bool {
        self.prev_of.iter().any(|keys| keys.contains(key))
    }
}

impl Hub {
    /// Lets watchers that are behind catch up from the window and from `source`, for ever.
    pub async fn catch_up(self: Arc<Self>, source: Arc<dyn Source>) {
        let (results, mut read) = tokio::sync::mpsc::channel(1);
        let (mut is_reading, mut highest_first) = (false, false);
        loop {
            while self.with(Inner::catch_up_recent) {
                // The streams take what they got before they get more.
                tokio::task::yield_now().await;
            }
            if !is_reading && let Some(plan) = self.with(|inner| inner.plan_read(highest_first)) {
                is_reading = true;
                highest_first = !highest_first;
                let (source, results) = (Arc::clone(&source), results.clone());
                tasks::spawn("watch-read", async move {
                    let done = tasks::blocking(move || {
                        let read = source.read(plan.from(), &|key| plan.wants_prev(key));
                        (plan, read)
                    });
                    if let Ok(done) = done.await {
                        // The hub lives as long as its thread.
                        results.send(done).await.ok();
                    }
                });
            }
            tokio::select! {
                biased;
                Some((plan, read)) = read.recv() => {
                    is_reading = false;
                    match read {
                        Ok(read) => self.with(|inner| inner.take_read(&plan, read)),
                        Err(error) => {
                            tracing::error!(%error, "cannot read the history for watchers");
                            return;
                        }
                    }
                }
                () = self.work.notified() => {}
            }
        }
    }
}

impl Inner {
    /// Takes some watchers a step further from memory; true if there may be more to do.
    pub(super) fn catch_up_recent(&mut self) -> bool {
        let first = self.feed.first();
        let board = &mut self.board;
        let mut slots = Vec::new();
        let mut from = i64::MAX;
        for &slot in &board.unsynced {
            let watcher = board.watcher(slot);
            let is_here = watcher.next >= first && !watcher.needs_storage;
            if is_here && board.has_room(slot) && board.is_abreast(slot) {
                from = from.min(watcher.next);
                slots.push(slot);
                if slots.len() == limits::WATCH_CHUNK_WATCHERS_MAX {
                    break;
                }
            }
        }
        if slots.is_empty() {
            return false;
        }
        let bytes_max = limits::WATCH_CHUNK_BYTES_MAX;
        let end = board.next.max(from);
        // The window may have moved on meanwhile: then the storage is asked next.
        let Some(recent) = self.feed.recent(from, end, bytes_max) else { return true };
        self.distribute(&recent.batches, &slots, recent.next);
        true
    }

    /// What to read from the storage for those whom the window cannot help.
    ///
    /// By turns for the one that is furthest behind and for the one that is least, so that a long
    /// replay does not hold up a watcher that lacks a single pair.
    pub(super) fn plan_read(&mut self, highest_first: bool) -> Option<ReadPlan> {
        let first = self.feed.first();
        let board = &self.board;
        let needs = |slot: &&u32| {
            let watcher = board.watcher(**slot);
            let is_gone = watcher.next < first || watcher.needs_storage;
            is_gone && board.has_room(**slot) && board.is_abreast(**slot)
        };
        let slots = || board.unsynced.iter().filter(needs);
        let nexts = slots().map(|slot| board.watcher(*slot).next);
        let from = if highest_first { nexts.max() } else { nexts.min() }?;
        let mut plan = ReadPlan { from, of: Vec::new(), prev_of: Vec::new() };
        let reach = from.saturating_add(limits::WATCH_CHUNK_EVENTS_MAX as i64);
        let slots = slots().filter(|slot| (from..reach).contains(&board.watcher(**slot).next));
        for &slot in slots.take(limits::WATCH_CHUNK_WATCHERS_MAX) {
            let watcher = board.watcher(slot);
            plan.of.push((slot, watcher.generation));
            if watcher.wants_prev() && !plan.prev_of.contains(&watcher.keys) {
                plan.prev_of.push(watcher.keys.clone());
            }
        }
        Some(plan)
    }

    pub(super) fn take_read(&mut self, plan: &ReadPlan, read: Read) {
        let board = &mut self.board;
        let slots: Vec<u32> = plan
            .of
            .iter()
            .filter_map(|(slot, generation)| {
                let watcher = board.watchers.get(*slot as usize)?.as_ref()?;
                (watcher.generation == *generation && board.unsynced.contains(slot))
                    .then_some(*slot)
            })
            .collect();
        match read {
            Read::Compacted { revision } => {
                let is_lost = |slot: &u32| board.watcher(*slot).next < revision;
                let lost: Vec<u32> = slots.into_iter().filter(is_lost).collect();
                lost.into_iter().for_each(|slot| board.end_compacted(slot, revision));
            }
            Read::Chunk { events, next } => {
                assert!(next > plan.from, "a chunk takes its readers further");
                for slot in &slots {
                    board.watcher_mut(*slot).needs_storage = false;
                }
                self.distribute_read(&[Batch::new(events)], &slots, next);
            }
        }
        self.board.settle_progress();
    }

    /// Gives the watchers `slots` their events of `batches`, in which all events from the lowest of
    /// their next revisions to below `end` are.
    fn distribute(&mut self, batches: &[Arc<Batch>], slots: &[u32], end: i64) {
        let found = self.find(batches, slots, end);
        for (slot, events) in slots.iter().copied().zip(found) {
            if events.iter().any(|event| self.board.watcher(slot).lacks_prev(event)) {
                self.board.watcher_mut(slot).needs_storage = true;
            } else {
                self.advance(slot, events, end);
            }
        }
        self.board.settle_progress();
    }

    /// As [`Inner::distribute`] with events whose previous pairs were looked for.
    fn distribute_read(&mut self, batches: &[Arc<Batch>], slots: &[u32], end: i64) {
        let found = self.find(batches, slots, end);
        for (slot, events) in slots.iter().copied().zip(found) {
            self.advance(slot, events, end);
        }
    }

    /// Takes one watcher to `end`, unless its stream is full.
    fn advance(&mut self, slot: u32, events: Vec<SharedEvent>, end: i64) {
        let board = &mut self.board;
        if board.watcher(slot).next >= end {
            return board.join_if_level(slot);
        }
        if !board.has_room(slot) {
            return;
        }
        board.watcher_mut(slot).next = end;
        if !events.is_empty() {
            board.push_events(slot, end - 1, Events::Many(events));
        }
        board.join_if_level(slot);
    }

    /// The events of each watcher.
    fn find(&self, batches: &[Arc<Batch>], slots: &[u32], end: i64) -> Vec<Vec<SharedEvent>> {
        let mut found: Vec<Vec<SharedEvent>> = vec![Vec::new(); slots.len()];
        let board = &self.board;
        let mut group = Group::default();
        if slots.len() > COMPARED_WATCHERS_MAX {
            for (number, slot) in (0..).zip(slots) {
                group.insert(&board.watcher(*slot).keys, number);
            }
        }
        for batch in batches {
            for event in batch.events() {
                let (main, key) = (event.event().revision.main, &event.event().key);
                let mut take = |number: u32| {
                    let watcher = board.watcher(slots[number as usize]);
                    if (watcher.next..end).contains(&main) && watcher.passes(event) {
                        found[number as usize].push(event.clone());
                    }
                };
                if slots.len() > COMPARED_WATCHERS_MAX {
                    group.visit(key, take);
                    continue;
                }
                for (number, slot) in (0..).zip(slots) {
                    if board.watcher(*slot).keys.contains(key) {
                        take(number);
                    }
                }
            }
        }
        found
    }
}
