//! Hub, streams and catch-up together, on a state in memory.

mod random;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::Bytes;
use parking_lot::Mutex;

use super::catch_up::{Read, Source};
use super::*;
use crate::limits;
use crate::pb::etcdserverpb::{CompactionRequest, DeleteRangeRequest, PutRequest};
use crate::pb::quorate::command::Command;
use crate::pb::quorate::command::command::Body;
use crate::state::{Event, History, HistoryStep, Options, Position, State};
use crate::storage::StorageError;
use crate::storage::memory::Memory;

struct Member {
    state: Mutex<State<Memory>>,
    feed: Arc<Feed>,
    hub: Arc<Hub>,
    inbox: Mutex<VecDeque<News>>,
    /// News wait in the inbox.
    is_busy: AtomicBool,
}

impl Source for Member {
    fn read(&self, from: i64, prev_of: &dyn Fn(&[u8]) -> bool) -> Result<Read, StorageError> {
        let state = self.state.lock();
        let Ok(mut walk) = History::new(&state, from) else {
            return Ok(Read::Compacted { revision: state.compact_revision() });
        };
        let step = HistoryStep { events_max: 3, bytes_max: 1000 };
        let mut events = walk.next_events(&**state.backend(), step)?.unwrap_or_default();
        History::find_prev(&state, events.iter_mut().filter(|event| prev_of(&event.key)));
        walk.read_prev(&**state.backend(), &mut events, step.bytes_max)?;
        Ok(Read::Chunk { events, next: walk.next() })
    }
}

impl Member {
    fn new(window_bytes: usize, cache_bytes: usize) -> Arc<Member> {
        let options = Options { value_cache_bytes: cache_bytes };
        let state = State::open(Arc::new(Memory::default()), options).unwrap();
        let feed = Feed::new(1, state.revision(), window_bytes);
        let hub = Hub::new(&feed, 0);
        let (inbox, is_busy) = Default::default();
        Arc::new(Member { state: Mutex::new(state), feed, hub, inbox, is_busy })
    }

    /// Brings news to the hub, now or when there is time.
    fn post(&self, news: News) {
        self.inbox.lock().push_back(news);
        if !self.is_busy.load(Relaxed) {
            self.take_news(usize::MAX);
        }
    }

    fn take_news(&self, count: usize) {
        for _ in 0..count {
            let Some(news) = self.inbox.lock().pop_front() else { return };
            self.hub.take(news);
        }
    }

    fn apply(&self, bodies: Vec<Body>) -> Vec<Event> {
        let commands: Vec<Command> =
            bodies.into_iter().map(|body| Command { body: Some(body) }).collect();
        let mut state = self.state.lock();
        let index = state.applied().map_or(1, |at| at.index + 1);
        let applied = state.apply(Position { index, term: 1, leader: 1 }, 0, &commands).unwrap();
        applied.into_iter().flat_map(|applied| applied.events).collect()
    }

    /// Applies one entry and tells the hub.
    fn change(&self, bodies: Vec<Body>) -> Vec<Event> {
        let events = self.apply(bodies);
        self.feed.publish(events.clone(), |_, news| self.post(news));
        events
    }

    fn put(&self, key: &str, value: &str) -> i64 {
        self.change(vec![put(key, value)])[0].revision.main
    }

    fn now(&self) -> Revisions {
        let state = self.state.lock();
        Revisions { current: state.revision(), compact: state.compact_revision() }
    }

    fn watch(&self, stream: &WatchStream, key: &str, end: &str, start: i64) -> i64 {
        let keys = Keys::new(key.as_bytes(), end.as_bytes());
        let request = WatchRequest::new(keys, start).with_prev_kv(true);
        stream.create(request, self.now()).unwrap().id
    }

    /// Everything that can be caught up, as the loop of the hub does it.
    fn settle(&self) {
        let mut highest_first = false;
        loop {
            while self.hub.with(hub::Inner::catch_up_recent) {}
            let Some(plan) = self.hub.with(|inner| inner.plan_read(highest_first)) else { return };
            highest_first = !highest_first;
            let read = self.read(plan.from(), &|key| plan.wants_prev(key)).unwrap();
            self.hub.with(|inner| inner.take_read(&plan, read));
        }
    }
}

fn put(key: &str, value: &str) -> Body {
    Body::Put(PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..Default::default()
    })
}

fn delete(key: &str, end: &str) -> Body {
    Body::DeleteRange(DeleteRangeRequest {
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
        ..Default::default()
    })
}

/// Each delivery as watcher, header revision and revisions of the events.
fn taken(stream: &WatchStream) -> Vec<(i64, i64, Vec<i64>)> {
    let mut taken = Vec::new();
    while let Some(delivery) = stream.try_next() {
        taken.push(match delivery {
            Delivery::Events { watch_id, revision, events, .. } => {
                let mains = events.as_slice().iter().map(|it| it.event().revision.main);
                (watch_id, revision, mains.collect())
            }
            Delivery::Progress { watch_id, revision } => (watch_id, revision, vec![]),
            Delivery::Compacted { watch_id, compact_revision } => {
                (watch_id, -compact_revision, vec![])
            }
        });
    }
    taken
}

#[test]
fn synced_watchers_get_each_revision_at_once() {
    let member = Member::new(1 << 20, 1 << 20);
    let stream = WatchStream::open(&member.hub, 1 << 20);
    assert_eq!(member.watch(&stream, "a", "", 0), 0);
    assert_eq!(member.watch(&stream, "a", "c", 0), 1);
    assert_eq!(member.watch(&stream, "a", "\0", 4), 2);
    member.put("a", "1");
    member.change(vec![put("b", "2"), delete("a", "z")]);
    let mut got = taken(&stream);
    got.sort();
    let expected = [
        (0, 2, vec![2]),
        (0, 4, vec![4]),
        (1, 2, vec![2]),
        (1, 3, vec![3]),
        (1, 4, vec![4, 4]),
        (2, 4, vec![4, 4]),
    ];
    assert_eq!(got, expected);
    assert_eq!(member.feed.totals().pending_events, 0);
    assert_eq!(member.feed.totals().events, 8);
    drop(stream);
    assert_eq!(member.feed.totals(), Totals { events: 8, ..Totals::default() });
}

#[test]
fn past_watchers_read_window_or_history_and_join() {
    for window in [0, 1 << 20] {
        let member = Member::new(window, 1 << 20);
        let stream = WatchStream::open(&member.hub, 1 << 20);
        for number in 0..5 {
            member.put("a", &number.to_string());
        }
        member.watch(&stream, "a", "", 3);
        assert_eq!(member.feed.totals().slow_watchers, 1);
        member.put("a", "live");
        member.settle();
        assert_eq!(member.feed.totals().slow_watchers, 0);
        member.put("a", "joined");
        let revisions: Vec<i64> = taken(&stream).into_iter().flat_map(|it| it.2).collect();
        assert_eq!(revisions, [3, 4, 5, 6, 7, 8], "window of {window}");
    }
}

#[test]
fn compaction_ends_who_needs_what_is_gone() {
    let member = Member::new(0, 1 << 20);
    let stream = WatchStream::open(&member.hub, 1 << 20);
    for _ in 0..5 {
        member.put("a", "");
    }
    let lagging = member.watch(&stream, "a", "", 2);
    member.apply(vec![Body::Compact(CompactionRequest { revision: 4, physical: false })]);
    let gone = member.watch(&stream, "a", "", 3);
    let exact = member.watch(&stream, "a", "", 4);
    member.settle();
    let mut got = taken(&stream);
    got.sort();
    assert_eq!(got, [(lagging, -4, vec![]), (gone, -4, vec![]), (exact, 6, vec![4, 5, 6])]);
    assert!(stream.cancel(gone), "as in etcd its id stays taken until it is canceled");
    assert!(!stream.cancel(gone), "nothing may be said of it any more");
    assert_eq!(member.feed.totals().watchers, 1);
}

#[test]
fn a_full_stream_falls_behind_alone_and_loses_nothing() {
    for window in [0, 1 << 20] {
        let member = Member::new(window, 1 << 20);
        let slow = WatchStream::open(&member.hub, 300);
        let quick = WatchStream::open(&member.hub, 1 << 20);
        member.watch(&slow, "a", "", 0);
        member.watch(&quick, "a", "", 0);
        for _ in 0..20 {
            member.put("a", "x");
            member.settle();
        }
        let revisions = |stream: &WatchStream| -> Vec<i64> {
            taken(stream).into_iter().flat_map(|it| it.2).collect()
        };
        let all: Vec<i64> = (2..22).collect();
        assert_eq!(revisions(&quick), all);
        let mut got = Vec::new();
        while got.len() < all.len() {
            let more = revisions(&slow);
            assert!(!more.is_empty(), "stuck behind {got:?}");
            got.extend(more);
            member.settle();
        }
        assert_eq!(got, all);
        member.put("a", "again");
        assert_eq!(revisions(&slow), [22]);
    }
}

/// Bytes that say when nobody holds them any more.
struct Held {
    bytes: Vec<u8>,
    _holder: Arc<()>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What waits for a slow client must be what its queue is charged with, and nothing of others.
#[test]
fn a_slow_stream_holds_nothing_but_its_own_events() {
    let member = Member::new(0, 1 << 20);
    let stream = WatchStream::open(&member.hub, 1 << 20);
    member.watch(&stream, "a", "", 0);
    let mut events = member.apply(vec![put("a", "small"), put("b", "large")]);
    let held = Arc::new(());
    let large = Held { bytes: events[1].kv.to_vec(), _holder: Arc::clone(&held) };
    events[1].kv = Bytes::from_owner(large);
    events[1].key = events[1].kv.slice(2..3);
    member.feed.publish(events, |_, news| member.post(news));
    assert_eq!(Arc::strong_count(&held), 1, "a delivery holds the event of another key");
    assert_eq!(taken(&stream), [(0, 2, vec![2])]);
}

/// What is posted to a serving thread that does not run is bounded; afterwards nothing is missing.
#[test]
fn news_for_a_busy_thread_are_bounded() {
    for (window, waiting_max) in [(0, 2), (1 << 20, 17)] {
        let member = Member::new(window, 1 << 20);
        let stream = WatchStream::open(&member.hub, 1 << 30);
        member.watch(&stream, "a", "", 0);
        member.watch(&stream, "a", "", 50);
        let value = "x".repeat(1 << 16);
        member.is_busy.store(true, Relaxed);
        (0..40).for_each(|_| _ = member.put("a", &value));
        let waiting = member.inbox.lock().len();
        assert!(waiting <= waiting_max, "{waiting} batches wait");
        // What comes while the thread takes some of it must not be lost either.
        member.take_news(3);
        (0..15).for_each(|_| _ = member.put("a", &value));
        stream.request_progress(56);
        member.is_busy.store(false, Relaxed);
        member.take_news(usize::MAX);
        member.settle();
        member.put("a", "again");
        let (mut got, mut told) = ([vec![], vec![]], None);
        for (id, revision, mains) in taken(&stream) {
            match id {
                -1 => told = Some((revision, got.clone().map(|of| of.last().copied()))),
                id => got[id as usize].extend(mains),
            }
        }
        assert_eq!(got, [(2..58).collect::<Vec<_>>(), (50..58).collect()], "window of {window}");
        assert_eq!(told, Some((56, [Some(56), Some(56)])));
        // From now on they are synced again.
        assert_eq!(member.feed.totals().slow_watchers, 0);
    }
}

#[test]
fn a_chunk_ends_where_its_previous_pairs_are_enough() {
    let member = Member::new(0, 0);
    for key in ["a", "b", "c", "d", "e"] {
        member.put(key, &"x".repeat(2000));
    }
    member.apply(vec![delete("a", ""), delete("b", "e"), delete("e", "")]);
    for (from, expected) in [(7, vec![7]), (8, vec![8, 8, 8]), (9, vec![9])] {
        let Read::Chunk { events, next } = member.read(from, &|_| true).unwrap() else { panic!() };
        let mains: Vec<i64> = events.iter().map(|event| event.revision.main).collect();
        assert_eq!((mains, next), (expected, from + 1));
        assert!(events.iter().all(|event| event.prev_kv.is_some()));
    }
}

/// It took seconds of the thread when each one was looked for among the others.
#[test]
fn many_watchers_of_a_key_or_range_leave_quickly() {
    let member = Member::new(0, 1 << 20);
    for end in ["", "c"] {
        let stream = WatchStream::open(&member.hub, 1 << 20);
        let ids: Vec<i64> = (0..100_000).map(|_| member.watch(&stream, "a", end, 0)).collect();
        for id in &ids[..50_000] {
            assert!(stream.cancel(*id));
        }
        drop(stream);
        assert_eq!(member.feed.totals().watchers, 0);
    }
}

#[test]
fn previous_pairs_come_from_the_storage_if_they_must() {
    let member = Member::new(1 << 20, 0);
    let stream = WatchStream::open(&member.hub, 1 << 20);
    member.watch(&stream, "a", "", 0);
    for value in ["first", "second", "third"] {
        member.put("a", value);
    }
    member.settle();
    let mut prevs = Vec::new();
    while let Some(Delivery::Events { events, .. }) = stream.try_next() {
        for event in events.as_slice() {
            let prev = event.event().prev_kv.clone();
            prevs.push(prev.map(|kv| kv.windows(5).any(|part| part == b"first")));
        }
    }
    assert_eq!(prevs, [None, Some(true), Some(false)]);
}

#[test]
fn progress_waits_for_all_events() {
    let member = Member::new(0, 1 << 20);
    let stream = WatchStream::open(&member.hub, 1 << 20);
    stream.request_progress(1);
    assert_eq!(taken(&stream), [], "no watcher, no progress");
    let id = member.watch(&stream, "a", "", 0);
    stream.request_progress(1);
    assert_eq!(taken(&stream), [(-1, 1, vec![])]);
    stream.request_progress(2);
    assert_eq!(taken(&stream), []);
    member.put("a", "");
    assert_eq!(taken(&stream), [(id, 2, vec![2]), (-1, 2, vec![])]);
    member.watch(&stream, "b", "", 2);
    stream.request_progress(2);
    assert_eq!(taken(&stream), [], "one watcher is behind");
    member.settle();
    assert_eq!(taken(&stream), [(-1, 2, vec![])]);
    member.watch(&stream, "b", "", 9);
    stream.request_progress(2);
    assert_eq!(taken(&stream), [], "one watcher has not begun");
}

/// A revision that is told stands for all watchers, also one that came while it waited to be sent.
#[test]
fn progress_does_not_overtake_a_new_watcher() {
    let member = Member::new(1 << 20, 1 << 20);
    let stream = WatchStream::open(&member.hub, 1 << 20);
    member.watch(&stream, "b", "", 0);
    member.put("a", "");
    stream.request_progress(2);
    let id = member.watch(&stream, "a", "", 2);
    assert_eq!(taken(&stream), [], "progress is told when the new watcher has its event");
    member.settle();
    assert_eq!(taken(&stream), [(id, 2, vec![2]), (-1, 2, vec![])]);
}

#[test]
fn progress_that_is_taken_back_leaves_room() {
    let member = Member::new(1 << 20, 1 << 20);
    let stream = WatchStream::open(&member.hub, 150);
    member.watch(&stream, "b", "", 0);
    member.put("a", "");
    stream.request_progress(2);
    stream.request_progress(2);
    let id = member.watch(&stream, "a", "", 2);
    member.settle();
    assert_eq!(taken(&stream)[0], (id, 2, vec![2]), "a queue that is empty has room");
}

#[test]
fn progress_is_told_to_who_asks_too_often() {
    let member = Member::new(0, 1 << 20);
    let stream = WatchStream::open(&member.hub, 1 << 20);
    member.watch(&stream, "b", "", 0);
    for revision in 2..=4 {
        stream.request_progress(revision);
        stream.request_progress(revision + 1);
        member.put("a", "");
        assert_eq!(taken(&stream), [(-1, revision, vec![])]);
    }
}

#[test]
fn ticks_tell_quiet_watchers_how_far_they_are() {
    let member = Member::new(0, 1 << 20);
    let stream = WatchStream::open(&member.hub, 1 << 20);
    let keys = Keys::new(b"a", b"");
    let request = WatchRequest::new(keys, 0).with_progress(true).with_id(7);
    assert_eq!(stream.create(request.clone(), member.now()).unwrap().id, 7);
    assert_eq!(stream.create(request, member.now()), Err(CreateError::DuplicateId));
    stream.tick();
    assert_eq!(taken(&stream), [(7, 1, vec![])]);
    member.put("a", "");
    stream.tick();
    assert_eq!(taken(&stream), [(7, 2, vec![2])]);
    stream.tick();
    assert_eq!(taken(&stream), [(7, 2, vec![])]);
}

#[test]
fn a_canceled_watcher_hears_nothing_more() {
    let member = Member::new(1 << 20, 1 << 20);
    let stream = WatchStream::open(&member.hub, 1 << 20);
    let id = member.watch(&stream, "a", "", 0);
    member.put("a", "1");
    assert!(stream.cancel(id));
    assert!(!stream.cancel(id));
    member.watch(&stream, "a", "", 0);
    assert_eq!(taken(&stream), []);
}

#[test]
fn a_snapshot_leaves_no_gap_and_no_duplicate() {
    let member = Member::new(1 << 20, 1 << 20);
    let stream = WatchStream::open(&member.hub, 1 << 20);
    member.watch(&stream, "a", "", 0);
    member.watch(&stream, "a", "", 6);
    member.put("a", "");
    // What a snapshot brings is applied without being published.
    for _ in 0..4 {
        member.apply(vec![put("a", "")]);
    }
    let revision = member.now().current;
    member.feed.resync(revision, |_, news| member.post(news));
    member.put("a", "");
    member.settle();
    let mut got: Vec<(i64, i64)> = taken(&stream)
        .into_iter()
        .flat_map(|it| it.2.into_iter().map(move |at| (it.0, at)))
        .collect();
    got.sort();
    assert_eq!(got, [(0, 2), (0, 3), (0, 4), (0, 5), (0, 6), (0, 7), (1, 6), (1, 7)]);
}

#[test]
fn an_idle_watcher_is_small() {
    assert!(size_of::<hub::Watcher>() <= 160);
    const { assert!(limits::WATCH_QUEUE_BYTES_MAX >= limits::WATCH_CHUNK_BYTES_MAX) };
}
