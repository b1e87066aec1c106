//! Every write took effect exactly where its reply says, and real time agrees.
//!
//! Rules: an acknowledged write has a revision of its own, and there it changed what it should, seeing
//! what was before, and answered that; a write of unknown outcome took effect once or never, a refused one
//! never; nothing else changed but by leases that ended, whole; what was called after something was known
//! does not lie before it, and nobody saw what was not called yet. With `serializable`, which holds
//! reads against the same revisions, this is strict serializability of the whole store.
//! Source: etcd API guarantees (atomicity, durability, strict serializability); Herlihy and Wing 1990.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use quorate::pb::etcdserverpb::request_op::Request;
use quorate::pb::etcdserverpb::response_op::Response;
use quorate::pb::etcdserverpb::{RequestOp, ResponseOp, TxnRequest, TxnResponse};
use quorate::pb::mvccpb::Event;

use super::timeline::{Timeline, parts};
use super::{Verdict, Violation, show};
use crate::support::history::{Call, History, Op, Outcome, Reply};
use crate::support::store::{Store, inside};

const SOURCE: &str =
    "etcd API guarantees: KV operations are atomic, durable, strictly serializable";

/// Who made a revision.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Writer<'h> {
    /// A call.
    Call(&'h Call),
    /// The end of this lease.
    Expiry(i64),
}

/// Who made each revision, as far as it is known.
pub(crate) type Writers<'h> = BTreeMap<i64, Writer<'h>>;

/// Judges all writes; also tells who made each revision.
pub(crate) fn judge<'h>(history: &'h History, timeline: &Timeline) -> (Writers<'h>, Verdict) {
    let seen = Seen::of(history);
    let mut search = Search::new(history, timeline, &seen);
    search.run();
    let Search { writers, mut verdict, .. } = search;
    let unknown = writers
        .values()
        .filter(|writer| matches!(writer, Writer::Call(Call { outcome: Outcome::Unknown(_), .. })));
    verdict.checked.push(format!(
        "{} writes against their revisions, {} of them of unknown outcome",
        writers.len(),
        unknown.count()
    ));
    check_real_time(history, &writers, &seen, &mut verdict);
    (writers, verdict)
}

/// When which revision was known to somebody.
pub(crate) struct Seen {
    /// (time, highest revision known then), rising in both.
    known: Vec<(Duration, i64)>,
}

impl Seen {
    /// From replies and from watchers.
    pub(crate) fn of(history: &History) -> Seen {
        let replies =
            history.calls.iter().filter_map(|call| Some((call.returned_at, call.revision()?)));
        let streams = history.watches.iter().flat_map(|watched| &watched.streams);
        let responses = streams.flat_map(|stream| &stream.responses);
        let watched = responses.map(|(at, response)| {
            let header = response.header.as_ref().map_or(0, |header| header.revision);
            (*at, header.max(response.events.last().map_or(0, |event| parts(event).1)))
        });
        let mut all: Vec<_> = replies.chain(watched).collect();
        all.sort_unstable();
        let mut known = Vec::<(Duration, i64)>::new();
        for (at, revision) in all {
            if known.last().is_none_or(|last| revision > last.1) {
                known.push((at, revision));
            }
        }
        Seen { known }
    }

    /// The highest revision that somebody knew before `time`.
    pub(crate) fn before(&self, time: Duration) -> i64 {
        match self.known.partition_point(|(at, _)| *at < time) {
            0 => 0,
            count => self.known[count - 1].1,
        }
    }

    /// When a revision of at least this was known first.
    pub(crate) fn first(&self, revision: i64) -> Option<Duration> {
        let at = self.known.partition_point(|(_, known)| *known < revision);
        self.known.get(at).map(|(at, _)| *at)
    }
}

/// Whether a reply tells of a change.
pub(crate) fn changed(reply: &Reply) -> bool {
    match reply {
        Reply::Put(_) => true,
        Reply::Delete(reply) => reply.deleted > 0,
        Reply::Txn(reply) => txn_changed(reply),
        Reply::Range(_) | Reply::Compact(_) | Reply::Grant(_) | Reply::Revoke(_) => false,
        Reply::KeepAlive(_) | Reply::TimeToLive(_) => false,
    }
}

fn txn_changed(reply: &TxnResponse) -> bool {
    reply.responses.iter().any(|op| match &op.response {
        Some(Response::ResponsePut(_)) => true,
        Some(Response::ResponseDeleteRange(reply)) => reply.deleted > 0,
        Some(Response::ResponseTxn(reply)) => txn_changed(reply),
        Some(Response::ResponseRange(_)) | None => false,
    })
}

/// The reply without its headers.
pub(crate) fn bare(reply: &Reply) -> Reply {
    let mut reply = reply.clone();
    match &mut reply {
        Reply::Range(reply) => reply.header = None,
        Reply::Put(reply) => reply.header = None,
        Reply::Delete(reply) => reply.header = None,
        Reply::Txn(reply) => bare_txn(reply),
        Reply::Compact(reply) => reply.header = None,
        Reply::Grant(reply) => reply.header = None,
        Reply::Revoke(reply) => reply.header = None,
        Reply::KeepAlive(reply) => reply.header = None,
        Reply::TimeToLive(reply) => reply.header = None,
    }
    reply
}

fn bare_txn(reply: &mut TxnResponse) {
    reply.header = None;
    for ResponseOp { response } in &mut reply.responses {
        match response.as_mut().expect("a response is given") {
            Response::ResponseRange(reply) => reply.header = None,
            Response::ResponsePut(reply) => reply.header = None,
            Response::ResponseDeleteRange(reply) => reply.header = None,
            Response::ResponseTxn(reply) => bare_txn(reply),
        }
    }
}

/// Keys that an operation may change: single ones, and ranges.
fn touches(op: &Op, keys: &mut BTreeSet<Bytes>, ranges: &mut bool) {
    match op {
        Op::Put(put) => drop(keys.insert(put.key.clone())),
        Op::Delete(delete) if delete.range_end.is_empty() => drop(keys.insert(delete.key.clone())),
        Op::Delete(_) | Op::Revoke(_) => *ranges = true,
        Op::Txn(txn) => txn_touches(txn, keys, ranges),
        Op::Range(_) | Op::Compact(_) | Op::Grant(_) | Op::KeepAlive(_) | Op::TimeToLive(_) => {}
    }
}

fn txn_touches(txn: &TxnRequest, keys: &mut BTreeSet<Bytes>, ranges: &mut bool) {
    for RequestOp { request } in txn.success.iter().chain(&txn.failure) {
        match request.as_ref().expect("an operation is given") {
            Request::RequestPut(put) => drop(keys.insert(put.key.clone())),
            Request::RequestDeleteRange(delete) if delete.range_end.is_empty() => {
                keys.insert(delete.key.clone());
            }
            Request::RequestDeleteRange(_) => *ranges = true,
            Request::RequestTxn(txn) => txn_touches(txn, keys, ranges),
            Request::RequestRange(_) => {}
        }
    }
}

/// A call whose effect is to be found.
#[derive(Clone, Copy)]
struct Suspect<'h> {
    call: &'h Call,
    /// Known when it was called: its effect comes behind.
    known: i64,
}

/// Calls whose effect is to be found, by the keys that they may change.
#[derive(Default)]
struct Suspects<'h> {
    calls: Vec<Suspect<'h>>,
    by_key: BTreeMap<Bytes, Vec<usize>>,
    ranges: Vec<usize>,
}

impl<'h> Suspects<'h> {
    fn add(&mut self, call: &'h Call, known: i64) {
        let (mut keys, mut ranges) = (BTreeSet::new(), false);
        touches(&call.op, &mut keys, &mut ranges);
        let number = self.calls.len();
        self.calls.push(Suspect { call, known });
        for key in keys {
            self.by_key.entry(key).or_default().push(number);
        }
        if ranges {
            self.ranges.push(number);
        }
    }

    /// Those that do just this to `store`, and may have done it by now.
    fn find(&self, store: &Store, events: &[Event], seen_at: Duration) -> Vec<usize> {
        let event = &events[0];
        let single = self.by_key.get(parts(event).0).map_or(&[][..], Vec::as_slice);
        let fitting = single.iter().chain(&self.ranges).copied().filter(|&number| {
            let Suspect { call, known } = self.calls[number];
            known <= store.revision
                && call.called_at <= seen_at
                && may_make(&call.op, event)
                && does(store, &call.op, events)
        });
        fitting.collect()
    }
}

/// A change that nobody was told of.
struct Stranger<'h> {
    revision: i64,
    events: String,
    /// Calls of unknown outcome that may have made it.
    suspects: Vec<usize>,
    /// The lease whose end may have made it.
    lease: Option<i64>,
    /// What is wrong if none of these did.
    blame: Option<(&'static str, &'h Call)>,
}

/// A cheap test that leaves out most.
fn may_make(op: &Op, event: &Event) -> bool {
    let kv = event.kv.as_ref().expect("an event has a pair");
    match op {
        Op::Put(put) => event.r#type == 0 && put.key == kv.key && put.value == kv.value,
        Op::Delete(delete) => event.r#type != 0 && inside(&kv.key, &delete.key, &delete.range_end),
        Op::Revoke(_) => event.r#type != 0,
        Op::Txn(txn) if event.r#type == 0 => {
            txn.success.iter().chain(&txn.failure).any(|op| match &op.request {
                Some(Request::RequestPut(put)) => put.key == kv.key && put.value == kv.value,
                Some(Request::RequestTxn(_)) => true,
                _ => false,
            })
        }
        Op::Txn(_) => true,
        Op::Range(_) | Op::Compact(_) | Op::Grant(_) | Op::KeepAlive(_) | Op::TimeToLive(_) => {
            false
        }
    }
}

fn does(store: &Store, op: &Op, events: &[Event]) -> bool {
    match op {
        Op::Revoke(revoke) => store.expiry(revoke.id) == events,
        op => store.run(op).is_ok_and(|(_, done)| done == events),
    }
}

struct Search<'h, 't> {
    timeline: &'t Timeline,
    /// Acknowledged changes by their header revision.
    claims: BTreeMap<i64, Vec<&'h Call>>,
    /// Acknowledged revokes, which may have had nothing to delete.
    revokes: BTreeMap<i64, Vec<&'h Call>>,
    unknown: Suspects<'h>,
    refused: Suspects<'h>,
    acknowledged: Vec<&'h Call>,
    strangers: Vec<Stranger<'h>>,
    seen: &'t Seen,
    writers: Writers<'h>,
    verdict: Verdict,
}

impl<'h, 't> Search<'h, 't> {
    fn new(history: &'h History, timeline: &'t Timeline, seen: &'t Seen) -> Self {
        let mut search = Search {
            timeline,
            claims: BTreeMap::new(),
            revokes: BTreeMap::new(),
            unknown: Suspects::default(),
            refused: Suspects::default(),
            acknowledged: Vec::new(),
            strangers: Vec::new(),
            seen,
            writers: BTreeMap::new(),
            verdict: Verdict::default(),
        };
        let mut calls: Vec<&Call> = history.calls.iter().filter(|call| call.op.writes()).collect();
        calls.sort_by_key(|call| call.called_at);
        for call in calls {
            match &call.outcome {
                Outcome::Unknown(_) => search.unknown.add(call, seen.before(call.called_at)),
                Outcome::Refused(_) => search.refused.add(call, seen.before(call.called_at)),
                Outcome::Ok(reply) => {
                    let at = reply.revision();
                    if matches!(call.op, Op::Revoke(_)) {
                        search.revokes.entry(at).or_default().push(call);
                    } else if changed(reply) {
                        search.claims.entry(at).or_default().push(call);
                        search.acknowledged.push(call);
                    }
                }
            }
        }
        search
    }

    fn wrong(&mut self, rule: &'static str, text: String) -> &mut Violation {
        self.verdict.violations.push(Violation::new(rule, SOURCE, text));
        self.verdict.violations.last_mut().expect("one was pushed")
    }

    fn run(&mut self) {
        let mut store = self.timeline.start();
        for (&revision, events) in self.timeline.events() {
            store.revision = revision - 1;
            let writer = match self.claims.remove(&revision) {
                Some(calls) => self.take_claims(&store, revision, events, &calls),
                None => self.find_writer(&store, revision, events),
            };
            if let Some(writer) = writer {
                self.writers.insert(revision, writer);
            }
            store.apply(revision, events);
            self.check_revokes(&store, revision);
        }
        self.find_makers();
        // What lies behind the watched history is reported as undecided there.
        let last = self.timeline.last();
        for (revision, calls) in std::mem::take(&mut self.claims) {
            if revision <= last {
                let text = format!("nothing changed at revision {revision}, or before the run");
                let lost = self.wrong("revisions: nothing acknowledged is lost", text);
                lost.calls.extend(calls.into_iter().map(show::call));
            }
        }
    }

    fn take_claims(
        &mut self,
        store: &Store,
        revision: i64,
        events: &[Event],
        calls: &[&'h Call],
    ) -> Option<Writer<'h>> {
        if calls.len() > 1 {
            let text = format!("revision {revision} was told to several writes");
            let twice = self.wrong("revisions: one write a revision", text);
            twice.calls.extend(calls.iter().map(|call| show::call(call)));
        }
        let mut writer = None;
        for call in calls {
            let done = store.run(&call.op);
            let reply = call.outcome.reply().map(bare);
            let wrong = match done {
                Err(refusal) => Some(format!("should have been refused: {refusal}")),
                Ok((_, changes)) if changes != events => {
                    let (wanted, found) = (show::events(&changes), show::events(events));
                    Some(format!("should have changed {wanted}, but {found} happened"))
                }
                Ok((wanted, _)) if Some(&wanted) != reply.as_ref() => {
                    Some(format!("should have been answered by {}", show::reply(&wanted)))
                }
                Ok(_) => None,
            };
            match wrong {
                None => writer = Some(Writer::Call(call)),
                Some(text) => {
                    let text = format!("at revision {revision}: {text}");
                    let rule = "revisions: a write does and answers what it should";
                    self.wrong(rule, text).calls.push(show::call(call));
                }
            }
        }
        writer
    }

    /// Who made a revision that nobody was told of, if that is certain.
    fn find_writer(
        &mut self,
        store: &Store,
        revision: i64,
        events: &[Event],
    ) -> Option<Writer<'h>> {
        let revokes = self.revokes.get(&revision).map_or(&[][..], Vec::as_slice);
        if let Some(call) = revokes.iter().find(|call| does(store, &call.op, events)) {
            return Some(Writer::Call(call));
        }
        let seen_at = self.seen.first(revision).unwrap_or(Duration::MAX);
        let suspects = self.unknown.find(store, events, seen_at);
        let lease = expired(store, events);
        let blame = match suspects.is_empty() && lease.is_none() {
            true => self.blame(store, events),
            false => None,
        };
        let events = show::events(events);
        self.strangers.push(Stranger { revision, events, suspects, lease, blame });
        None
    }

    /// What a change looks like that nobody may have made.
    fn blame(&self, store: &Store, events: &[Event]) -> Option<(&'static str, &'h Call)> {
        let is_same = |call: &&&Call| {
            events.iter().all(|event| event.r#type == 0 && may_make(&call.op, event))
        };
        let unknown = self.unknown.calls.iter().map(|suspect| &suspect.call);
        if let Some(call) = self.acknowledged.iter().chain(unknown).find(is_same) {
            return Some(("revisions: nothing is applied twice", call));
        }
        let refused = self.refused.find(store, events, Duration::MAX);
        let call = self.refused.calls[*refused.first()?].call;
        Some(("revisions: what was refused is not applied", call))
    }

    /// Finds a maker for each stranger; those that no lease can have made come first.
    fn find_makers(&mut self) {
        let mut strangers = std::mem::take(&mut self.strangers);
        strangers.sort_by_key(|stranger| (stranger.lease.is_some(), stranger.revision));
        let mut made = HashMap::<usize, usize>::new();
        for at in 0..strangers.len() {
            assign(&strangers, at, &mut made, &mut HashSet::new());
        }
        let makers: HashMap<usize, usize> = made.into_iter().map(|(call, at)| (at, call)).collect();
        for (at, stranger) in strangers.into_iter().enumerate() {
            let writer = match (makers.get(&at), stranger.lease) {
                (Some(number), _) => Writer::Call(self.unknown.calls[*number].call),
                (None, Some(lease)) => Writer::Expiry(lease),
                (None, None) => {
                    self.report(&stranger);
                    continue;
                }
            };
            self.writers.insert(stranger.revision, writer);
        }
    }

    fn report(&mut self, stranger: &Stranger<'h>) {
        let text = format!("revision {}: {}", stranger.revision, stranger.events);
        let suspect = stranger.suspects.first().map(|number| self.unknown.calls[*number].call);
        let twice = suspect.map(|call| ("revisions: nothing is applied twice", call));
        match stranger.blame.or(twice) {
            Some((rule, call)) => self.wrong(rule, text).calls.push(show::call(call)),
            None => {
                self.wrong("revisions: nobody made this change, and no lease ended whole", text);
            }
        }
    }

    /// Behind a revoke nothing is left of its lease.
    fn check_revokes(&mut self, store: &Store, revision: i64) {
        for call in self.revokes.remove(&revision).unwrap_or_default() {
            let Op::Revoke(revoke) = &call.op else { continue };
            if let Some(event) = store.expiry(revoke.id).first() {
                let text = format!("after {revision} there should be no {}", show::events([event]));
                let rule = "revisions: the keys of a revoked lease vanish with it";
                self.wrong(rule, text).calls.push(show::call(call));
            }
        }
    }
}

/// Gives the stranger a maker of its own, moving others to other makers if need be (Kuhn 1955).
fn assign(
    strangers: &[Stranger<'_>],
    at: usize,
    made: &mut HashMap<usize, usize>,
    tried: &mut HashSet<usize>,
) -> bool {
    strangers[at].suspects.iter().any(|&call| {
        let is_free = tried.insert(call)
            && made.get(&call).copied().is_none_or(|other| assign(strangers, other, made, tried));
        if is_free {
            made.insert(call, at);
        }
        is_free
    })
}

/// The lease whose end explains these deletions, all of them.
fn expired(store: &Store, events: &[Event]) -> Option<i64> {
    let lease = store.pairs.get(parts(&events[0]).0)?.lease;
    (lease != 0 && store.expiry(lease) == events).then_some(lease)
}

/// Nobody's call lies before what was known when it began, or after what was called when it ended.
fn check_real_time(history: &History, writers: &Writers, seen: &Seen, verdict: &mut Verdict) {
    // The latest call among the writers up to each revision.
    let mut latest: Vec<(i64, &Call)> = Vec::new();
    for (&revision, writer) in writers {
        if let Writer::Call(call) = writer {
            let is_later = latest.last().is_none_or(|last| call.called_at > last.1.called_at);
            if is_later {
                latest.push((revision, call));
            }
            let known = seen.before(call.called_at);
            if revision <= known {
                let text = format!("it made revision {revision}, after {known} was known");
                let rule = "revisions: a write is not ordered before what was known";
                verdict.violations.push(Violation::new(rule, SOURCE, text).of([*call]));
            }
        }
    }
    let mut checked = 0;
    for call in &history.calls {
        let Some(reply) = call.outcome.reply() else { continue };
        checked += 1;
        let (revision, known) = (reply.revision(), seen.before(call.called_at));
        if is_ordered(&call.op) && revision < known {
            let text = format!("answered at revision {revision}, after {known} was known");
            let rule = "revisions: what was known is not forgotten";
            verdict.violations.push(Violation::new(rule, SOURCE, text).of([call]));
        }
        let count = latest.partition_point(|(at, _)| *at <= revision);
        if let Some((at, writer)) = latest[..count].last()
            && writer.called_at > call.returned_at
        {
            let text = format!("answered at revision {revision}, but {at} was called only later");
            let rule = "revisions: nobody sees the future";
            verdict.violations.push(Violation::new(rule, SOURCE, text).of([call, writer]));
        }
    }
    verdict.checked.push(format!("real time of {checked} answered calls"));
}

/// Whether its header revision must not lie before what was known when it was called.
fn is_ordered(op: &Op) -> bool {
    match op {
        Op::KeepAlive(_) | Op::TimeToLive(_) => false,
        op => !op.is_serializable(),
    }
}
