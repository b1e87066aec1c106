//! The watchers of one serving thread, and the queues of their streams.
//!
//! All calls come from that thread (a stream is used where it was opened), so that the lock is never
//! fought for. A batch of events is matched at one go; each stream that gets something is woken once.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Waker;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::event::{Batch, Events, SharedEvent};
use super::feed::{Counters, Feed, News};
use super::group::{Group, Keys};
use super::stream::{CreateError, Created, Delivery, Revisions, WatchRequest};
use crate::limits;
use crate::mutants;
use crate::state::EventKind;

/// What a delivery is taken to cost besides its events.
const DELIVERY_BYTES: usize = 96;

/// The watchers of one serving thread.
#[derive(Debug)]
pub struct Hub {
    pub(super) inner: Mutex<Inner>,
    /// Some watcher may be able to catch up.
    pub(super) work: Notify,
}

/// What the lock of a [`Hub`] guards.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) feed: Arc<Feed>,
    number: usize,
    group: Group,
    pub(super) board: Board,
}

/// Watchers and streams, apart from the index that finds them.
#[derive(Debug)]
pub(super) struct Board {
    pub(super) watchers: Vec<Option<Watcher>>,
    free_watchers: Vec<u32>,
    streams: Vec<Option<Stream>>,
    free_streams: Vec<u32>,
    /// Watchers that are behind.
    pub(super) unsynced: BTreeSet<u32>,
    /// Events below this revision have been offered to the synced watchers.
    pub(super) next: i64,
    /// The highest [`Watcher::level`] that `next` has not reached; 0 if it has reached all.
    awaited: i64,
    /// Streams that wait for their progress to be told.
    pub(super) progress: Vec<u32>,
    last_generation: u64,
    counters: Arc<Counters>,
    /// Whether [`Hub::work`] is to be notified.
    has_work: bool,
}

/// One watcher.
#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) id: i64,
    stream: u32,
    /// Tells this watcher from others that had its slot.
    pub(super) generation: u64,
    pub(super) keys: Keys,
    /// As in etcd: pairs that were replaced at or below the compact revision of then are not told.
    prev_after: i64,
    /// The revision that the client asked for; 0 for the next one.
    pub(super) start: i64,
    /// It has been offered everything below. While it is synced, also what the hub has offered.
    pub(super) next: i64,
    /// Behind the last revision when it was created. It catches up once the hub has heard of all of
    /// them, so that its past comes in one piece, as from etcd.
    level: i64,
    pub(super) is_synced: bool,
    /// It has an end in its queue, and gets nothing any more.
    pub(super) has_ended: bool,
    /// The window lacks a previous pair that it needs.
    pub(super) needs_storage: bool,
    pub(super) options: WatchOptions,
    /// Whether it got no event since the last tick.
    pub(super) is_quiet: bool,
}

/// What a client may choose for a watcher.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct WatchOptions {
    pub(super) no_put: bool,
    pub(super) no_delete: bool,
    pub(super) prev_kv: bool,
    pub(super) progress_notify: bool,
    pub(super) fragment: bool,
}

impl Watcher {
    /// Whether the client is to see `event`, apart from its key.
    pub(super) fn passes(&self, event: &SharedEvent) -> bool {
        match event.event().kind {
            EventKind::Put => !self.options.no_put,
            EventKind::Delete => !self.options.no_delete,
        }
    }

    pub(super) fn wants_prev(&self) -> bool {
        self.options.prev_kv
    }

    /// Whether `event` cannot be told from what is in memory.
    pub(super) fn lacks_prev(&self, event: &SharedEvent) -> bool {
        event.event().revision.main > self.prev_after && !event.has_prev()
    }
}

/// One stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) ids: HashMap<i64, u32>,
    /// Ids of watchers that compaction ended. As in etcd they stay taken until they are canceled.
    ended: BTreeSet<i64>,
    next_id: i64,
    pub(super) queue: VecDeque<Queued>,
    pub(super) bytes: usize,
    bytes_max: usize,
    /// The queue was full and is not yet half empty.
    pub(super) is_blocked: bool,
    pub(super) unsynced: usize,
    /// Its progress is to be told at the first of these revisions or later, and then at the last.
    pub(super) wanted_progress: Option<(i64, i64)>,
    waker: Option<Waker>,
}

/// A delivery in a queue.
#[derive(Debug)]
pub(super) struct Queued {
    /// The watcher, as slot and generation; it is dropped if that is gone. None for the stream.
    of: Option<(u32, u64)>,
    pub(super) bytes: usize,
    pub(super) delivery: Delivery,
}

impl Hub {
    /// The hub of the serving thread `number` on `feed`.
    pub fn new(feed: &Arc<Feed>, number: usize) -> Arc<Hub> {
        let board = Board {
            watchers: Vec::new(),
            free_watchers: Vec::new(),
            streams: Vec::new(),
            free_streams: Vec::new(),
            unsynced: BTreeSet::new(),
            next: 0,
            awaited: 0,
            progress: Vec::new(),
            last_generation: 0,
            counters: feed.counters(number),
            has_work: false,
        };
        let feed = Arc::clone(feed);
        let inner = Inner { feed, number, group: Group::default(), board };
        Arc::new(Hub { inner: Mutex::new(inner), work: Notify::new() })
    }

    /// Takes what [`Feed::publish`] posted, in that order.
    pub fn take(&self, news: News) {
        self.with(|inner| match news {
            News::Events(batch) => {
                inner.feed.taken(inner.number, &batch);
                inner.offer(&batch);
            }
            News::Resync { next } => inner.resync(next),
            News::Skipped => {
                let next = inner.feed.taken_skipped(inner.number);
                inner.resync(next);
            }
        });
    }

    /// Runs `work` and then wakes the catch-up if there is something for it.
    pub(super) fn with<R>(&self, work: impl FnOnce(&mut Inner) -> R) -> R {
        let mut inner = self.inner.lock();
        let result = work(&mut inner);
        let has_work = std::mem::take(&mut inner.board.has_work);
        drop(inner);
        if has_work {
            self.work.notify_one();
        }
        result
    }
}

impl Inner {
    fn offer(&mut self, batch: &Arc<Batch>) {
        let board = &mut self.board;
        let Some(last) = batch.last().filter(|last| *last >= board.next) else { return };
        let events = batch.events();
        let mut at = 0;
        while at < events.len() {
            let main = events[at].event().revision.main;
            let same = |event: &&SharedEvent| event.event().revision.main == main;
            let count = events[at..].iter().take_while(same).count();
            if count == 1 {
                let event = &events[at];
                self.group.visit(&event.event().key, |slot| board.offer_one(slot, event));
            } else {
                let mut picks: Vec<(u32, usize)> = Vec::new();
                for (place, event) in events.iter().enumerate().skip(at).take(count) {
                    let key = &event.event().key;
                    self.group.visit(key, |slot| picks.push((slot, place)));
                }
                picks.sort_unstable();
                for picks in picks.chunk_by(|a, b| a.0 == b.0) {
                    board.offer_many(events, picks);
                }
            }
            at += count;
        }
        board.moved_on(last + 1);
        board.settle_progress();
    }

    /// Events below `next` that did not come are to be caught up.
    fn resync(&mut self, next: i64) {
        self.board.resync(next);
        self.board.settle_progress();
    }

    pub(super) fn open_stream(&mut self, bytes_max: usize) -> u32 {
        let board = &mut self.board;
        board.counters.streams.fetch_add(1, Relaxed);
        let stream = Stream {
            ids: HashMap::new(),
            ended: BTreeSet::new(),
            next_id: 0,
            queue: VecDeque::new(),
            bytes: 0,
            bytes_max,
            is_blocked: false,
            unsynced: 0,
            wanted_progress: None,
            waker: None,
        };
        put_slot(&mut board.streams, &mut board.free_streams, stream)
    }

    pub(super) fn close_stream(&mut self, at: u32) {
        let slots: Vec<u32> = self.board.stream(at).ids.values().copied().collect();
        slots.into_iter().for_each(|slot| self.remove(slot));
        let board = &mut self.board;
        let stream = board.streams[at as usize].take().expect("an open stream has its place");
        let pending: usize = stream.queue.iter().map(|queued| queued.delivery.events()).sum();
        board.counters.pending_events.fetch_sub(pending as i64, Relaxed);
        board.counters.streams.fetch_sub(1, Relaxed);
        board.progress.retain(|other| *other != at);
        board.free_streams.push(at);
    }

    pub(super) fn create(
        &mut self,
        at: u32,
        request: WatchRequest,
        now: Revisions,
    ) -> Result<Created, CreateError> {
        if request.start_revision < 0 {
            return Err(CreateError::Compacted);
        }
        let keys = request.keys.ok_or(CreateError::EmptyRange)?;
        let id = self.board.stream_mut(at).claim_id(request.id)?;
        if self.board.is_idle() {
            self.board.next = self.feed.activate(self.number);
        }
        let start = request.start_revision;
        let next = if start == 0 { now.current + 1 } else { start };
        let board = &mut self.board;
        board.last_generation += 1;
        board.counters.watchers.fetch_add(1, Relaxed);
        let watcher = Watcher {
            id,
            stream: at,
            generation: board.last_generation,
            keys,
            prev_after: if request.options.prev_kv { now.compact } else { i64::MAX },
            start,
            next,
            level: now.current + 1,
            is_synced: true,
            has_ended: false,
            needs_storage: false,
            options: request.options,
            is_quiet: true,
        };
        let slot = board.free_watchers.pop().unwrap_or_else(|| {
            board.watchers.push(None);
            u32::try_from(board.watchers.len() - 1).expect("watchers are counted in 32 bits")
        });
        self.group.insert(&watcher.keys, slot);
        board.watchers[slot as usize] = Some(watcher);
        board.stream_mut(at).ids.insert(id, slot);
        if next < now.compact {
            board.end_compacted(slot, now.compact);
            board.take_back_progress(at, next);
        } else if next < board.next.max(now.current + 1) {
            board.fall_behind(slot, next);
            if board.next <= now.current {
                board.awaited = board.awaited.max(now.current + 1);
            }
            board.take_back_progress(at, next);
        }
        Ok(Created { id, revision: now.current })
    }

    /// Cancels the watcher `id`; false if there is none.
    pub(super) fn cancel(&mut self, at: u32, id: i64) -> bool {
        let stream = self.board.stream_mut(at);
        if stream.ended.remove(&id) {
            return true;
        }
        let slot = stream.ids.get(&id).copied();
        let Some(slot) = slot else { return false };
        self.remove(slot);
        self.board.settle_progress();
        true
    }

    fn remove(&mut self, slot: u32) {
        let board = &mut self.board;
        board.leave_unsynced(slot);
        let watcher = board.watchers[slot as usize].take().expect("a watcher is removed once");
        board.free_watchers.push(slot);
        board.stream_mut(watcher.stream).ids.remove(&watcher.id);
        board.counters.watchers.fetch_sub(1, Relaxed);
        self.group.remove(&watcher.keys, slot);
        if self.board.is_idle() {
            self.feed.deactivate(self.number);
            self.group = Group::default();
            self.board.watchers = Vec::new();
            self.board.free_watchers = Vec::new();
        }
    }

    /// The next delivery of a stream.
    pub(super) fn pop(&mut self, at: u32) -> Option<Delivery> {
        let queued = self.board.pop(at)?;
        if let (&Delivery::Compacted { watch_id, .. }, Some((slot, _))) =
            (&queued.delivery, queued.of)
        {
            self.remove(slot);
            self.board.stream_mut(at).keep_ended(watch_id);
        }
        Some(queued.delivery)
    }
}

fn put_slot<T>(places: &mut Vec<Option<T>>, free: &mut Vec<u32>, value: T) -> u32 {
    if let Some(at) = free.pop() {
        places[at as usize] = Some(value);
        return at;
    }
    places.push(Some(value));
    u32::try_from(places.len() - 1).expect("places are counted in 32 bits")
}

impl Stream {
    fn has_id(&self, id: i64) -> bool {
        self.ids.contains_key(&id) || self.ended.contains(&id)
    }

    /// Keeps the id of an ended watcher taken; of very many the lowest are forgotten.
    fn keep_ended(&mut self, id: i64) {
        self.ended.insert(id);
        if self.ended.len() > limits::WATCH_ENDED_IDS_MAX {
            self.ended.pop_first();
        }
    }

    /// The id for a new watcher; as in etcd 0 asks for any.
    fn claim_id(&mut self, asked: i64) -> Result<i64, CreateError> {
        if asked != 0 {
            let is_taken = self.has_id(asked);
            return if is_taken { Err(CreateError::DuplicateId) } else { Ok(asked) };
        }
        while self.has_id(self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Ok(self.next_id - 1)
    }
}

impl Board {
    /// Everything below `next` has been offered.
    fn moved_on(&mut self, next: i64) {
        self.next = next;
        if self.awaited > 0 && self.next >= self.awaited {
            self.awaited = 0;
            self.has_work = true;
        }
    }

    /// Whether the hub has heard of all that was there when the watcher was created.
    pub(super) fn is_abreast(&self, slot: u32) -> bool {
        self.next >= self.watcher(slot).level
    }

    fn is_idle(&self) -> bool {
        self.watchers.len() == self.free_watchers.len()
    }

    pub(super) fn stream(&self, at: u32) -> &Stream {
        self.streams[at as usize].as_ref().expect("an open stream has its place")
    }

    pub(super) fn stream_mut(&mut self, at: u32) -> &mut Stream {
        self.streams[at as usize].as_mut().expect("an open stream has its place")
    }

    pub(super) fn watcher(&self, slot: u32) -> &Watcher {
        self.watchers[slot as usize].as_ref().expect("a listed watcher has its place")
    }

    pub(super) fn watcher_mut(&mut self, slot: u32) -> &mut Watcher {
        self.watchers[slot as usize].as_mut().expect("a listed watcher has its place")
    }

    /// Whether the watcher's stream can take more.
    pub(super) fn has_room(&self, slot: u32) -> bool {
        !self.stream(self.watcher(slot).stream).is_blocked
    }

    /// Offers a watcher the only event of a revision that is on its key.
    fn offer_one(&mut self, slot: u32, event: &SharedEvent) {
        let main = event.event().revision.main;
        let watcher = self.watcher(slot);
        if !watcher.is_synced || main < watcher.next || !watcher.passes(event) {
            return;
        }
        if watcher.lacks_prev(event) || !self.has_room(slot) {
            return self.fall_behind_at_event(slot, event);
        }
        self.push_events(slot, main, Events::One(event.clone()));
    }

    /// Offers a watcher those of `events` that it is to get of one revision, as slot and place.
    fn offer_many(&mut self, events: &[SharedEvent], picks: &[(u32, usize)]) {
        let (slot, first) = picks[0];
        let main = events[first].event().revision.main;
        let watcher = self.watcher(slot);
        if !watcher.is_synced || main < watcher.next {
            return;
        }
        let places = picks.iter().map(|(_, at)| *at);
        let places: Vec<usize> = places.filter(|at| watcher.passes(&events[*at])).collect();
        let lacking = places.iter().find(|at| watcher.lacks_prev(&events[**at]));
        match (lacking, places.as_slice()) {
            (_, []) => {}
            (Some(at), _) => self.fall_behind_at_event(slot, &events[*at]),
            (None, [at, ..]) if !self.has_room(slot) => {
                self.fall_behind_at_event(slot, &events[*at]);
            }
            (None, places) => {
                let events = places.iter().map(|at| events[*at].clone()).collect();
                self.push_events(slot, main, Events::Many(events));
            }
        }
    }

    /// The watcher could not take `event`: it will get it when it catches up.
    fn fall_behind_at_event(&mut self, slot: u32, event: &SharedEvent) {
        let lacks_prev = self.watcher(slot).lacks_prev(event);
        if !lacks_prev && mutants::is_on("mutant_drop_event_of_slow_watcher") {
            return;
        }
        self.watcher_mut(slot).needs_storage = lacks_prev;
        self.fall_behind(slot, event.event().revision.main);
    }

    /// Makes a synced watcher go on with revision `next` by itself.
    fn fall_behind(&mut self, slot: u32, next: i64) {
        let watcher = self.watcher_mut(slot);
        watcher.is_synced = false;
        watcher.next = next;
        let stream = watcher.stream;
        self.unsynced.insert(slot);
        self.stream_mut(stream).unsynced += 1;
        self.counters.slow_watchers.fetch_add(1, Relaxed);
        self.has_work |= !self.stream(stream).is_blocked;
    }

    /// Makes a watcher synced if it has everything that synced watchers have.
    pub(super) fn join_if_level(&mut self, slot: u32) {
        if self.watcher(slot).next >= self.next && self.leave_unsynced(slot) {
            let watcher = self.watcher_mut(slot);
            watcher.is_synced = true;
            watcher.needs_storage = false;
        }
    }

    fn leave_unsynced(&mut self, slot: u32) -> bool {
        if !self.unsynced.remove(&slot) {
            return false;
        }
        let stream = self.watcher(slot).stream;
        self.stream_mut(stream).unsynced -= 1;
        self.counters.slow_watchers.fetch_sub(1, Relaxed);
        true
    }

    /// Compaction took history away that the watcher would need.
    pub(super) fn end_compacted(&mut self, slot: u32, compact_revision: i64) {
        self.leave_unsynced(slot);
        let watcher = self.watcher_mut(slot);
        watcher.is_synced = false;
        watcher.has_ended = true;
        let (watch_id, stream) = (watcher.id, watcher.stream);
        let of = Some((slot, watcher.generation));
        self.push(stream, of, Delivery::Compacted { watch_id, compact_revision });
    }

    fn resync(&mut self, next: i64) {
        if next <= self.next {
            return;
        }
        let (before, slots) = (self.next, 0..self.watchers.len() as u32);
        self.moved_on(next);
        for slot in slots {
            let Some(watcher) = &self.watchers[slot as usize] else { continue };
            let own = watcher.next.max(before);
            if watcher.is_synced && own < next {
                self.fall_behind(slot, own);
            }
        }
    }

    pub(super) fn push_events(&mut self, slot: u32, revision: i64, events: Events) {
        let watcher = self.watcher_mut(slot);
        watcher.is_quiet = false;
        let fragment = watcher.options.fragment;
        let (watch_id, stream, prev_after) = (watcher.id, watcher.stream, watcher.prev_after);
        let of = Some((slot, watcher.generation));
        let count = events.as_slice().len() as i64;
        self.counters.pending_events.fetch_add(count, Relaxed);
        let delivery = Delivery::Events { watch_id, revision, events, prev_after, fragment };
        self.push(stream, of, delivery);
    }

    pub(super) fn push(&mut self, at: u32, of: Option<(u32, u64)>, delivery: Delivery) {
        let bytes = DELIVERY_BYTES + delivery.bytes();
        let stream = self.stream_mut(at);
        stream.queue.push_back(Queued { of, bytes, delivery });
        stream.bytes += bytes;
        stream.is_blocked |= stream.bytes >= stream.bytes_max;
        if let Some(waker) = stream.waker.take() {
            waker.wake();
        }
    }

    fn pop(&mut self, at: u32) -> Option<Queued> {
        loop {
            let stream = self.stream_mut(at);
            let queued = stream.queue.pop_front()?;
            stream.bytes -= queued.bytes;
            if stream.queue.is_empty() {
                // An idle stream keeps no queue.
                stream.queue = VecDeque::new();
            }
            self.unblock(at);
            let count = queued.delivery.events();
            self.counters.pending_events.fetch_sub(count as i64, Relaxed);
            let is_there = queued.of.is_none_or(|(slot, generation)| {
                let watcher = self.watchers.get(slot as usize).and_then(Option::as_ref);
                watcher.is_some_and(|watcher| watcher.generation == generation)
            });
            if is_there {
                self.counters.events.fetch_add(count as u64, Relaxed);
                return Some(queued);
            }
        }
    }

    /// Lets a stream take more again, if enough of its queue is gone.
    pub(super) fn unblock(&mut self, at: u32) {
        let stream = self.stream_mut(at);
        if stream.is_blocked && stream.bytes <= stream.bytes_max / 2 {
            stream.is_blocked = false;
            let (is_behind, wants) = (stream.unsynced > 0, stream.wanted_progress.is_some());
            self.has_work |= is_behind;
            if wants {
                self.settle_progress();
            }
        }
    }

    pub(super) fn set_waker(&mut self, at: u32, waker: &Waker) {
        self.stream_mut(at).waker = Some(waker.clone());
    }
}
