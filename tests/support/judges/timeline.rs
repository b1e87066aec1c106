//! What happened to the store, as watchers of all keys saw it together.
//!
//! Rules: they agree about each revision; no revision is missing; each event continues what was before
//! it (create revision, version). Source: etcd's API guarantees of watches (ordered, atomic, reliable) and
//! of revisions (each modification has the next one).

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate::pb::mvccpb::{Event, KeyValue};

use super::{Verdict, Violation, show};
use crate::support::history::{Base, History, WatchedStream};
use crate::support::store::{Pairs, Store};

const SOURCE: &str = "etcd API guarantees: a revision for each change, events ordered and complete";

/// All changes since the begin of the run.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    base: Base,
    /// Changes of each revision, in order, without previous pairs.
    events: BTreeMap<i64, Vec<Event>>,
}

/// Whether this watcher sees all changes of the store, each revision in one response.
pub(crate) fn sees_all(stream: &WatchedStream) -> bool {
    let request = &stream.request;
    let is_all = request.key.is_empty() || request.key[..] == *b"\0";
    is_all && request.range_end[..] == *b"\0" && request.filters.is_empty() && !request.fragment
}

/// The key and the revision of an event.
pub(crate) fn parts(event: &Event) -> (&Bytes, i64) {
    let kv = event.kv.as_ref().expect("an event has a pair");
    (&kv.key, kv.mod_revision)
}

impl Timeline {
    /// What the watchers of `history` saw, and where they contradict each other.
    pub(crate) fn of(history: &History) -> (Timeline, Verdict) {
        let mut timeline = Timeline { base: history.base.clone(), events: BTreeMap::new() };
        let mut verdict = Verdict::default();
        let streams = history.watches.iter().flat_map(|watched| &watched.streams);
        for stream in streams.filter(|stream| sees_all(stream)) {
            timeline.add(stream, &mut verdict);
        }
        timeline.check(&mut verdict);
        let seen = history.calls.iter().filter_map(|call| call.revision()).max().unwrap_or(0);
        if seen > timeline.last() {
            verdict.undecided.push(format!(
                "clients were told of revision {seen}, but watchers of all keys came only to {}",
                timeline.last()
            ));
        }
        (timeline, verdict)
    }

    fn add(&mut self, stream: &WatchedStream, verdict: &mut Verdict) {
        for (_, response) in &stream.responses {
            for events in response.events.chunk_by(|one, two| parts(one).1 == parts(two).1) {
                let revision = parts(&events[0]).1;
                let seen = events.iter().map(|event| Event {
                    r#type: event.r#type,
                    kv: event.kv.clone(),
                    prev_kv: None,
                });
                let Some(known) = self.events.get(&revision) else {
                    self.events.insert(revision, seen.collect());
                    continue;
                };
                if !seen.clone().eq(known.iter().cloned()) {
                    let seen: Vec<Event> = seen.collect();
                    verdict.violations.push(Violation::new(
                        "timeline: watchers agree",
                        SOURCE,
                        format!(
                            "revision {revision} is {known:?} for one and {seen:?} for another"
                        ),
                    ));
                }
            }
        }
    }

    /// No revision is missing, and each continues the one before.
    fn check(&mut self, verdict: &mut Verdict) {
        let before = self.events.split_off(&(self.base.revision + 1));
        // What was before the run is nobody's business.
        self.events = before;
        let mut store = self.start();
        let mut wanted = self.base.revision + 1;
        let mut wrong = |text| {
            verdict.violations.push(Violation::new("timeline: no gap, no jump", SOURCE, text));
        };
        for (&revision, events) in &self.events {
            if revision != wanted {
                wrong(format!("revisions {wanted} to {} are missing", revision - 1));
            }
            wanted = revision + 1;
            for event in events {
                if let Err(text) = continues(&store.pairs, event) {
                    wrong(text);
                }
                store.apply(revision, std::slice::from_ref(event));
            }
        }
        let (count, last) = (self.events.len(), self.last());
        verdict.checked.push(format!("{count} revisions up to {last}, none missing"));
    }

    /// The last revision.
    pub(crate) fn last(&self) -> i64 {
        self.events.last_key_value().map_or(self.base.revision, |(revision, _)| *revision)
    }

    /// The store at the begin of the run.
    pub(crate) fn start(&self) -> Store {
        let pairs = self.base.kvs.iter().map(|kv| (kv.key.clone(), kv.clone())).collect();
        Store { revision: self.base.revision, pairs }
    }

    /// What changed, by revision.
    pub(crate) fn events(&self) -> &BTreeMap<i64, Vec<Event>> {
        &self.events
    }
}

fn continues(pairs: &Pairs, event: &Event) -> Result<(), String> {
    let kv = event.kv.as_ref().expect("an event has a pair");
    let (before, revision) = (pairs.get(&kv.key), kv.mod_revision);
    if event.r#type != 0 {
        return before.map(|_| ()).ok_or(format!("{revision} deletes {:?}: not there", kv.key));
    }
    let wanted = match before {
        Some(KeyValue { create_revision, version, .. }) => (*create_revision, version + 1),
        None => (revision, 1),
    };
    if (kv.create_revision, kv.version) != wanted {
        return Err(format!(
            "(create revision, version) should be {wanted:?} in {}",
            show::pair(kv)
        ));
    }
    Ok(())
}
