//! What watchers saw is what the promises say: ordered, unique, atomic, gapless, resumable,
//! bookmarkable, and previous pairs right.
//!
//! Every response, be it events or a progress mark, means that its watcher has everything up to the
//! header's revision. Source: etcd API guarantees of Watch; `WatchResponse` in etcd's rpc.proto.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use bytes::Bytes;
use quorate::pb::etcdserverpb::WatchResponse;
use quorate::pb::mvccpb::{Event, KeyValue};

use super::timeline::{Timeline, parts};
use super::{Verdict, Violation, show};
use crate::support::history::{History, Op, WatchedStream};
use crate::support::store::inside;

const SOURCE: &str =
    "etcd API guarantees: watches are ordered, unique, reliable, atomic, resumable, bookmarkable";

/// Judges all watchers.
pub(crate) fn judge(history: &History, timeline: &Timeline) -> Verdict {
    let judge = Judge { timeline, prevs: prevs(timeline), compacted: compacted(history) };
    let (mut verdict, mut events, mut streams) = (Verdict::default(), 0, 0);
    for watched in &history.watches {
        for stream in &watched.streams {
            streams += 1;
            match judge.check(stream) {
                Ok(count) => events += count,
                Err(text) => {
                    let text = format!("watcher {} on {}: {text}", watched.watcher, name(stream));
                    let rule = "watch: everything, in order, once, whole";
                    verdict.violations.push(Violation::new(rule, SOURCE, text));
                }
            }
        }
    }
    let watchers = history.watches.len();
    verdict.checked.push(format!("{events} events to {watchers} watchers on {streams} streams"));
    verdict
}

fn name(stream: &WatchedStream) -> String {
    let request = &stream.request;
    format!("{:?}..{:?} from {}", request.key, request.range_end, request.start_revision)
}

/// Up to where a watcher has seen everything, after `response` came; it is resumed behind that.
///
/// A compaction that overtook it moves it on.
pub(crate) fn advance(floor: i64, response: &WatchResponse) -> i64 {
    let header = response.header.as_ref().map_or(0, |header| header.revision);
    match response {
        WatchResponse { compact_revision, .. } if *compact_revision > 0 => {
            floor.max(compact_revision - 1)
        }
        // What begins or ends a watcher says nothing of what it has seen.
        WatchResponse { created: true, .. } | WatchResponse { canceled: true, .. } => floor,
        WatchResponse { fragment: true, .. } => floor,
        _ => floor.max(header),
    }
}

/// The pair of each changed key before each revision.
fn prevs(timeline: &Timeline) -> BTreeMap<(i64, Bytes), KeyValue> {
    let mut store = timeline.start();
    let mut prevs = BTreeMap::new();
    for (&revision, events) in timeline.events() {
        for event in events {
            let key = parts(event).0;
            if let Some(before) = store.pairs.get(key) {
                prevs.entry((revision, key.clone())).or_insert_with(|| before.clone());
            }
        }
        store.apply(revision, events);
    }
    prevs
}

/// Revisions at which somebody asked for a compaction: the pair before each may be gone.
fn compacted(history: &History) -> Vec<i64> {
    let compactions = history.calls.iter().filter_map(|call| match &call.op {
        Op::Compact(compact) => Some(compact.revision),
        _ => None,
    });
    let mut compacted: Vec<i64> = compactions.collect();
    compacted.sort_unstable();
    compacted
}

struct Judge<'t> {
    timeline: &'t Timeline,
    prevs: BTreeMap<(i64, Bytes), KeyValue>,
    compacted: Vec<i64>,
}

impl Judge<'_> {
    /// Checks one stream; returns how many events it brought.
    fn check(&self, stream: &WatchedStream) -> Result<usize, String> {
        let (mut floor, mut count) = (stream.request.start_revision - 1, 0);
        // Events of a revision that came in fragments so far.
        let mut gathered: Vec<Event> = Vec::new();
        for (at, response) in &stream.responses {
            let header = response.header.as_ref().ok_or("a response without a header")?.revision;
            if response.created {
                if stream.request.start_revision == 0 {
                    floor = header;
                }
                continue;
            }
            if response.compact_revision > 0 {
                let (compact, next) = (response.compact_revision, floor + 1);
                let why = "canceled by a compaction although nothing it needs is gone";
                let is_due = next < compact && self.compacted.contains(&compact);
                return if is_due { Ok(count) } else { Err(format!("{why}: {next}, {compact}")) };
            }
            if response.canceled {
                return Ok(count);
            }
            gathered.extend(response.events.iter().cloned());
            if response.fragment {
                continue;
            }
            if header < floor {
                return Err(format!("at {at:?} back from {floor} to header {header}"));
            }
            count += gathered.len();
            self.check_span(stream, &gathered, floor + 1..=header)
                .map_err(|text| format!("at {at:?}, header {header}: {text}"))?;
            gathered.clear();
            floor = header;
        }
        Ok(count)
    }

    /// These are all events of the watcher in these revisions.
    fn check_span(
        &self,
        stream: &WatchedStream,
        events: &[Event],
        span: RangeInclusive<i64>,
    ) -> Result<(), String> {
        let request = &stream.request;
        let wants = |event: &&Event| {
            inside(parts(event).0, &request.key, &request.range_end)
                && !request.filters.contains(&event.r#type)
        };
        // What nobody saw of all keys is told as undecided elsewhere.
        let known = *span.start()..=(*span.end()).min(self.timeline.last());
        let happened: Vec<&Event> = match known.is_empty() {
            true => Vec::new(),
            false => self.timeline.events().range(known).flat_map(|(_, events)| events).collect(),
        };
        let mut wanted = happened.into_iter().filter(wants);
        let mut seen = events.iter().filter(|event| parts(event).1 <= self.timeline.last());
        loop {
            match (wanted.next(), seen.next()) {
                (None, None) => return Ok(()),
                (Some(wanted), Some(seen))
                    if (wanted.r#type, &wanted.kv) == (seen.r#type, &seen.kv) =>
                {
                    self.check_prev(stream, seen)?;
                }
                (wanted, seen) => {
                    return Err(format!(
                        "{} should have come, not {}",
                        show::events(wanted),
                        show::events(seen)
                    ));
                }
            }
        }
    }

    fn check_prev(&self, stream: &WatchedStream, event: &Event) -> Result<(), String> {
        let (key, revision) = parts(event);
        let before = self.prevs.get(&(revision, key.clone()));
        let is_wanted = stream.request.prev_kv;
        match (&event.prev_kv, before) {
            (Some(prev), Some(before)) if is_wanted && prev == before => Ok(()),
            (None, None) => Ok(()),
            (None, Some(_)) if !is_wanted => Ok(()),
            // Compacted: the pair before it is gone, if it was not the newest one.
            (None, Some(_)) if self.compacted.contains(&revision) => Ok(()),
            _ => {
                let before = before.map(show::pair);
                Err(format!("the pair before {} was {before:?}", show::events([event])))
            }
        }
    }
}
