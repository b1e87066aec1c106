//! What watchers saw, and whether that is what the promises say: ordered, unique, atomic, gapless,
//! resumable, bookmarkable, and previous pairs right.
//!
//! A [`Recorder`] checks the order while it records. What all recorders saw together is the history
//! of the store, for every revision changes a key; [`History::check`] replays it and holds each record
//! against it.

use std::collections::BTreeMap;

use quorate::pb::etcdserverpb::WatchResponse;
use quorate::pb::mvccpb::{Event, KeyValue};

/// What one watcher saw, over all the streams on which it was resumed.
#[derive(Debug)]
pub(crate) struct Recorder {
    /// Its first key; empty for all keys.
    pub(crate) key: String,
    /// The end of its range; empty for a single key.
    pub(crate) end: String,
    /// Whether it asked for previous pairs.
    pub(crate) prev_kv: bool,
    /// Spans without a compaction in between.
    spans: Vec<Span>,
}

#[derive(Debug)]
struct Span {
    start: i64,
    /// It has seen all its events up to here.
    floor: i64,
    events: BTreeMap<i64, Vec<Event>>,
}

impl Recorder {
    pub(crate) fn new(key: &str, end: &str, prev_kv: bool, start: i64) -> Recorder {
        let span = Span { start, floor: start - 1, events: BTreeMap::new() };
        Recorder { key: key.to_owned(), end: end.to_owned(), prev_kv, spans: vec![span] }
    }

    fn span(&mut self) -> &mut Span {
        self.spans.last_mut().expect("there is a first span")
    }

    /// The revision up to which it has seen everything.
    pub(crate) fn floor(&self) -> i64 {
        self.spans.last().expect("there is a first span").floor
    }

    /// How many events it has.
    pub(crate) fn events(&self) -> usize {
        self.spans.iter().flat_map(|span| span.events.values()).map(Vec::len).sum()
    }

    /// Takes one response that is not about the begin of a watcher.
    pub(crate) fn take(&mut self, response: &WatchResponse) {
        let header = response.header.as_ref().expect("a response has a header").revision;
        if response.compact_revision > 0 {
            let start = response.compact_revision;
            assert!(self.floor() + 1 < start, "canceled although nothing it needs is gone");
            self.spans.push(Span { start, floor: start - 1, events: BTreeMap::new() });
            return;
        }
        let span = self.span();
        let mut last = 0;
        for event in &response.events {
            let revision = revision(event);
            assert!(revision > span.floor, "{revision} after everything up to {}", span.floor);
            assert!(revision >= last && revision <= header, "{last}, {revision}, header {header}");
            last = revision;
            span.events.entry(revision).or_default().push(event.clone());
        }
        // Events of one revision in two responses would meet the floor.
        assert!(header >= span.floor, "from {} back to {header}", span.floor);
        span.floor = header;
    }

    fn wants(&self, key: &[u8]) -> bool {
        if self.end.is_empty() { key == self.key.as_bytes() } else { self.contains(key) }
    }

    fn contains(&self, key: &[u8]) -> bool {
        key >= self.key.as_bytes() && (self.end == "\0" || key < self.end.as_bytes())
    }
}

fn revision(event: &Event) -> i64 {
    event.kv.as_ref().expect("an event has a pair").mod_revision
}

/// What happened, as all recorders saw it together.
#[derive(Debug, Default)]
pub(crate) struct History {
    events: BTreeMap<i64, Vec<Event>>,
}

impl History {
    /// Everything that watchers of all keys saw.
    pub(crate) fn of(recorders: &[Recorder]) -> History {
        let mut history = History::default();
        for recorder in recorders.iter().filter(|recorder| recorder.end == "\0") {
            for (revision, events) in recorder.spans.iter().flat_map(|span| &span.events) {
                let without_prev =
                    events.iter().cloned().map(|event| Event { prev_kv: None, ..event });
                let seen: Vec<Event> = without_prev.collect();
                let known = history.events.entry(*revision).or_insert_with(|| seen.clone());
                assert_eq!(*known, seen, "two watchers disagree about revision {revision}");
            }
        }
        history
    }

    /// Panics unless every revision up to `last` is there and each recorder saw what it should.
    pub(crate) fn check(&self, recorders: &[Recorder], last: i64) {
        let found: Vec<i64> = self.events.keys().copied().collect();
        let first = *found.first().expect("something happened");
        let wanted: Vec<i64> = (first..=last).collect();
        assert_eq!(found.len(), wanted.len(), "revisions are missing between {first} and {last}");
        assert_eq!(found, wanted);
        let prevs = self.replay();
        for recorder in recorders {
            self.check_recorder(recorder, &prevs, last);
        }
    }

    /// The pair of each changed key before each revision, as far as it is known.
    fn replay(&self) -> BTreeMap<(i64, Vec<u8>), Option<KeyValue>> {
        let mut store: BTreeMap<Vec<u8>, KeyValue> = BTreeMap::new();
        let mut prevs = BTreeMap::new();
        for (revision, events) in &self.events {
            for event in events {
                let kv = event.kv.as_ref().expect("an event has a pair");
                let key = kv.key.to_vec();
                let before = store.get(&key).cloned();
                if event.r#type == 0 {
                    let version = before.as_ref().map_or(1, |kv| kv.version + 1);
                    assert_eq!(kv.version, version, "version of a put at {revision}");
                    store.insert(key.clone(), kv.clone());
                } else {
                    assert!(before.is_some(), "a delete of nothing at {revision}");
                    store.remove(&key);
                }
                prevs.insert((*revision, key), before);
            }
        }
        prevs
    }

    fn check_recorder(
        &self,
        recorder: &Recorder,
        prevs: &BTreeMap<(i64, Vec<u8>), Option<KeyValue>>,
        last: i64,
    ) {
        assert!(recorder.floor() >= last, "a watcher came only to {}", recorder.floor());
        for span in &recorder.spans {
            for (revision, events) in self.events.range(span.start..=span.floor) {
                let key = |event: &Event| event.kv.as_ref().map(|kv| kv.key.clone()).unwrap();
                let wanted: Vec<&Event> =
                    events.iter().filter(|event| recorder.wants(&key(event))).collect();
                let seen = span.events.get(revision).map_or(&[][..], Vec::as_slice);
                assert_eq!(seen.len(), wanted.len(), "revision {revision} of {}", recorder.key);
                for (seen, wanted) in seen.iter().zip(wanted) {
                    assert_eq!((seen.r#type, &seen.kv), (wanted.r#type, &wanted.kv));
                    let before = &prevs[&(*revision, key(seen).to_vec())];
                    match (&seen.prev_kv, before) {
                        (Some(prev), before) => assert_eq!(Some(prev), before.as_ref()),
                        // Only what was compacted may be missing: at the begin of a span.
                        (None, Some(_)) if recorder.prev_kv => {
                            assert_eq!(*revision, span.start, "no previous pair at {revision}");
                        }
                        (None, _) => {}
                    }
                }
            }
            let after = span.events.range(span.floor + 1..).next();
            assert!(after.is_none(), "events behind the floor");
        }
    }
}
