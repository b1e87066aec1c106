//! Judges judged: what a good toy of a cluster does passes, and each way of being broken is found.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use quorate::pb::etcdserverpb::request_op::Request;
use quorate::pb::etcdserverpb::response_op::Response;
use quorate::pb::etcdserverpb::{
    CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantResponse,
    LeaseKeepAliveResponse, LeaseRevokeResponse, LeaseTimeToLiveResponse, PutRequest, PutResponse,
    RangeResponse, ResponseHeader, ResponseOp, TxnResponse, WatchCreateRequest, WatchResponse,
};
use quorate::pb::mvccpb::{Event, KeyValue};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::lease::Patience;
use super::timeline::Timeline;
use super::{Verdict, append, judge, lease, linearizable, revisions, serializable, watch};
use crate::support::history::{Call, History, Op, Outcome, Reply};
use crate::support::seed;
use crate::support::store::{Store, inside};
use crate::support::workload::{Door, Mix, WatchStream, Workload, request};

/// How the toy is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// An acknowledged write is forgotten, and its revision made again.
    LostWrite,
    /// A write happens a second time later.
    AppliedTwice,
    /// A linearizable read shows an old state.
    StaleRead,
    /// A serializable read shows a part of a revision.
    TornRead,
    /// A write with a failed compare happens.
    LostUpdate,
    /// A write that was refused happens.
    RefusedApplied,
    /// A watcher misses an event.
    DroppedEvent,
    /// A watcher gets events twice.
    RepeatedEvent,
    /// A watcher gets a previous pair that is not the one before.
    WrongPrev,
    /// A lease ends early.
    EarlyExpiry,
    /// A lease does not end.
    NoExpiry,
    /// A lease ends, but one of its keys stays.
    HalfExpiry,
    /// What was compacted can still be read.
    CompactedRead,
}

/// A cluster in a box: one store, its past, and leases.
struct Toy {
    fault: Fault,
    start: Instant,
    rng: RefCell<Rng>,
    now: RefCell<Store>,
    past: RefCell<BTreeMap<i64, Store>>,
    events: RefCell<BTreeMap<i64, Vec<Event>>>,
    compacted: Cell<i64>,
    leases: RefCell<BTreeMap<i64, (i64, Instant)>>,
    next_lease: Cell<i64>,
    changed: Notify,
}

impl Toy {
    fn new(fault: Fault, seed: u64) -> Rc<Toy> {
        let now = Store { revision: 1, ..Store::default() };
        Rc::new(Toy {
            fault,
            start: now_instant(),
            rng: RefCell::new(Rng::with_seed(seed)),
            past: RefCell::new(BTreeMap::from([(1, now.clone())])),
            now: RefCell::new(now),
            events: RefCell::default(),
            compacted: Cell::new(0),
            leases: RefCell::default(),
            next_lease: Cell::new(7000),
            changed: Notify::new(),
        })
    }

    /// Whether the fault is `fault`, and strikes now.
    fn strikes(&self, fault: Fault) -> bool {
        self.fault == fault && self.rng.borrow_mut().u8(..40) == 0
    }

    fn header(&self) -> Option<ResponseHeader> {
        let revision = self.now.borrow().revision;
        Some(ResponseHeader { revision, ..ResponseHeader::default() })
    }

    fn commit(&self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let mut now = self.now.borrow_mut();
        let revision = now.revision + 1;
        let before = now.clone();
        now.apply(revision, &events);
        let with_prev = events.into_iter().map(|mut event| {
            let key = &event.kv.as_ref().unwrap().key;
            event.prev_kv = before.pairs.get(key).cloned();
            event
        });
        self.events.borrow_mut().insert(revision, with_prev.collect());
        self.past.borrow_mut().insert(revision, now.clone());
        drop(now);
        self.changed.notify_waiters();
    }

    fn expire(&self) {
        let now = now_instant();
        let early = Duration::from_millis(if self.fault == Fault::EarlyExpiry { 400 } else { 0 });
        let is_due =
            |(_, end): &(i64, Instant)| *end < now + early && self.fault != Fault::NoExpiry;
        let leases = self.leases.borrow();
        let due: Vec<i64> =
            leases.iter().filter(|(_, lease)| is_due(lease)).map(|at| *at.0).collect();
        drop(leases);
        for id in due {
            self.leases.borrow_mut().remove(&id);
            let mut events = self.now.borrow().expiry(id);
            if events.len() > 1 && self.fault == Fault::HalfExpiry {
                events.pop();
            }
            self.commit(events);
        }
    }

    /// What happens when a request arrives.
    fn take(&self, op: &Op) -> Result<Reply, &'static str> {
        self.expire();
        match op {
            Op::Range(range) if range.revision > self.now.borrow().revision => {
                Err("required revision is a future revision")
            }
            Op::Range(range)
                if range.revision > 0
                    && range.revision < self.compacted.get()
                    && !self.strikes(Fault::CompactedRead) =>
            {
                Err("required revision has been compacted")
            }
            Op::Range(range) => Ok(self.read(op, range.revision, range.serializable)),
            Op::Compact(compact) if compact.revision <= self.compacted.get() => {
                Err("required revision has been compacted")
            }
            Op::Compact(compact) => {
                self.compacted.set(compact.revision);
                Ok(Reply::Compact(CompactionResponse { header: self.header() }))
            }
            Op::Put(put) if put.lease != 0 && !self.leases.borrow().contains_key(&put.lease) => {
                Err("requested lease not found")
            }
            Op::Put(_) | Op::Delete(_) | Op::Txn(_) => self.write(op),
            _ => self.lease(op),
        }
    }

    fn read(&self, op: &Op, revision: i64, serializable: bool) -> Reply {
        let newest = self.now.borrow().revision;
        let is_stale =
            serializable && self.rng.borrow_mut().bool() || self.strikes(Fault::StaleRead);
        let at = match revision {
            0 if is_stale => (newest - self.rng.borrow_mut().i64(0..9)).max(1),
            0 => newest,
            revision => revision,
        };
        let mut store = self.past.borrow()[&at].clone();
        if serializable && revision == 0 && self.strikes(Fault::TornRead) {
            store.pairs.pop_last();
        }
        let (mut reply, _) = store.run(op).unwrap();
        let revision = if revision == 0 { at } else { newest };
        with_header(&mut reply, Some(ResponseHeader { revision, ..ResponseHeader::default() }));
        reply
    }

    fn write(&self, op: &Op) -> Result<Reply, &'static str> {
        let mut op = op.clone();
        if let Op::Txn(txn) = &mut op {
            let leases = txn.success.iter().filter_map(|op| match &op.request {
                Some(Request::RequestPut(put)) => Some(put.lease),
                _ => None,
            });
            let known = self.leases.borrow();
            if leases.into_iter().any(|lease| lease != 0 && !known.contains_key(&lease)) {
                return Err("requested lease not found");
            }
            drop(known);
            if !txn.compare.is_empty() && self.strikes(Fault::LostUpdate) {
                txn.compare.clear();
            }
        }
        let (mut reply, events) = self.now.borrow().run(&op).unwrap();
        if self.strikes(Fault::LostWrite) {
            let mut header = self.header();
            header.as_mut().unwrap().revision += 1;
            with_header(&mut reply, header);
            return Ok(reply);
        }
        let twice = self.strikes(Fault::AppliedTwice);
        self.commit(events);
        with_header(&mut reply, self.header());
        if twice {
            let (_, events) = self.now.borrow().run(&op).unwrap();
            self.commit(events);
        }
        if self.strikes(Fault::RefusedApplied) { Err("refused") } else { Ok(reply) }
    }

    fn lease(&self, op: &Op) -> Result<Reply, &'static str> {
        let header = self.header();
        let mut leases = self.leases.borrow_mut();
        let end = |ttl: i64| now_instant() + Duration::from_secs(ttl as u64);
        match op {
            Op::Grant(grant) => {
                let id = self.next_lease.replace(self.next_lease.get() + 1);
                leases.insert(id, (grant.ttl, end(grant.ttl)));
                let reply = LeaseGrantResponse { header, id, ttl: grant.ttl, ..Default::default() };
                Ok(Reply::Grant(reply))
            }
            Op::KeepAlive(request) => {
                let lease = leases.get_mut(&request.id);
                let ttl = lease.map_or(0, |lease| {
                    lease.1 = end(lease.0);
                    lease.0
                });
                Ok(Reply::KeepAlive(LeaseKeepAliveResponse { header, id: request.id, ttl }))
            }
            Op::TimeToLive(request) => {
                let ttl = if leases.contains_key(&request.id) { 1 } else { -1 };
                let reply =
                    LeaseTimeToLiveResponse { header, id: request.id, ttl, ..Default::default() };
                Ok(Reply::TimeToLive(reply))
            }
            Op::Revoke(request) => {
                leases.remove(&request.id).ok_or("requested lease not found")?;
                drop(leases);
                let events = self.now.borrow().expiry(request.id);
                self.commit(events);
                Ok(Reply::Revoke(LeaseRevokeResponse { header: self.header() }))
            }
            other => panic!("{other:?} is not about leases"),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the time of the test, which is paused")]
fn now_instant() -> Instant {
    Instant::now()
}

fn with_header(reply: &mut Reply, header: Option<ResponseHeader>) {
    match reply {
        Reply::Range(reply) => reply.header = header,
        Reply::Put(reply) => reply.header = header,
        Reply::Delete(reply) => reply.header = header,
        Reply::Txn(reply) => reply.header = header,
        other => panic!("{other:?} has its header"),
    }
}

struct ToyDoor {
    toy: Rc<Toy>,
    rng: RefCell<Rng>,
}

impl ToyDoor {
    async fn delay(&self) {
        let time = Duration::from_micros(self.rng.borrow_mut().u64(100..20_000));
        tokio::time::sleep(time).await;
    }
}

impl Door for ToyDoor {
    type Watch = ToyWatch;

    fn now(&self) -> Duration {
        now_instant() - self.toy.start
    }

    async fn sleep(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    async fn call(&self, op: Op) -> Outcome {
        self.delay().await;
        let luck = self.rng.borrow_mut().u8(..30);
        if luck == 0 {
            return Outcome::Unknown("lost on the way".to_owned());
        }
        if luck == 1 {
            // It arrives late, when nobody waits any more.
            let (toy, later) = (Rc::clone(&self.toy), self.rng.borrow_mut().u64(1..3000));
            tokio::task::spawn_local(async move {
                tokio::time::sleep(Duration::from_millis(later)).await;
                toy.take(&op).ok();
            });
            return Outcome::Unknown("late".to_owned());
        }
        let taken = self.toy.take(&op);
        self.delay().await;
        match taken {
            _ if luck == 2 => Outcome::Unknown("the answer was lost".to_owned()),
            Ok(reply) => Outcome::Ok(reply),
            Err(text) => Outcome::Refused(text.to_owned()),
        }
    }

    fn watch(&self, request: WatchCreateRequest) -> ToyWatch {
        let mut waiting = VecDeque::new();
        let header = self.toy.header();
        let revision = header.as_ref().unwrap().revision;
        waiting.push_back(WatchResponse { header, created: true, ..WatchResponse::default() });
        let next = if request.start_revision == 0 { revision + 1 } else { request.start_revision };
        let life = self.rng.borrow_mut().usize(5..300);
        ToyWatch { toy: Rc::clone(&self.toy), request, next, waiting, life }
    }

    fn turn(&self) {}
}

struct ToyWatch {
    toy: Rc<Toy>,
    request: WatchCreateRequest,
    next: i64,
    waiting: VecDeque<WatchResponse>,
    life: usize,
}

impl ToyWatch {
    /// Events that are new, in one response.
    fn gather(&mut self) -> Option<WatchResponse> {
        let compacted = self.toy.compacted.get();
        if self.next < compacted {
            let header = Some(ResponseHeader::default());
            let compact_revision = compacted;
            return Some(WatchResponse {
                header,
                canceled: true,
                compact_revision,
                ..Default::default()
            });
        }
        let (toy, request) = (Rc::clone(&self.toy), &self.request);
        let all = toy.events.borrow();
        let wants = |event: &&Event| {
            let key = &event.kv.as_ref().unwrap().key;
            inside(key, &request.key, &request.range_end)
                && !request.filters.contains(&event.r#type)
        };
        let new = all.range(self.next..).flat_map(|(_, events)| events).filter(wants).take(50);
        let mut events: Vec<Event> = new.cloned().collect();
        let last = events.last()?.kv.as_ref().unwrap().mod_revision;
        // A revision is never cut.
        events.retain(|event| event.kv.as_ref().unwrap().mod_revision < last);
        events.extend(all[&last].iter().filter(wants).cloned());
        if !request.prev_kv {
            events.iter_mut().for_each(|event| event.prev_kv = None);
        }
        let is_some = !super::timeline::sees_all(&crate::support::history::WatchedStream {
            request: request.clone(),
            ..Default::default()
        });
        if is_some && toy.strikes(Fault::DroppedEvent) {
            events.remove(0);
        }
        if is_some && toy.strikes(Fault::RepeatedEvent) {
            events.extend(events.clone());
        }
        if toy.strikes(Fault::WrongPrev) {
            events[0].prev_kv = request.prev_kv.then(|| events[0].kv.clone().unwrap());
        }
        self.next = last + 1;
        let header = Some(ResponseHeader { revision: last, ..ResponseHeader::default() });
        Some(WatchResponse { header, events, ..WatchResponse::default() })
    }
}

impl WatchStream for ToyWatch {
    async fn next(&mut self) -> Option<WatchResponse> {
        self.life = self.life.checked_sub(1)?;
        loop {
            let toy = Rc::clone(&self.toy);
            let changed = toy.changed.notified();
            toy.expire();
            if let Some(response) = self.waiting.pop_front().or_else(|| self.gather()) {
                return Some(response);
            }
            changed.await;
        }
    }

    fn request_progress(&mut self) {
        while let Some(response) = self.gather() {
            let is_over = response.canceled;
            self.waiting.push_back(response);
            if is_over {
                return;
            }
        }
        let header = self.toy.header();
        self.next = header.as_ref().unwrap().revision + 1;
        self.waiting.push_back(WatchResponse { header, watch_id: -1, ..WatchResponse::default() });
    }
}

/// A run of the toy for some simulated time.
async fn play(fault: Fault, seed: u64, time: Duration) -> History {
    let toy = Toy::new(fault, seed);
    let workload = Workload::new(seed, Mix::default());
    let open = |number: usize| {
        let rng = RefCell::new(Rng::with_seed(seed ^ (number as u64) << 32));
        ToyDoor { toy: Rc::clone(&toy), rng }
    };
    let stop = async {
        tokio::time::sleep(time).await;
        workload.stop();
    };
    tokio::task::LocalSet::new()
        .run_until(futures_util::future::join(workload.run(open), stop))
        .await;
    workload.into_history()
}

fn patience() -> Patience {
    Patience { late: Duration::from_secs(4), ..Patience::default() }
}

fn rules(verdict: &Verdict) -> BTreeSet<&'static str> {
    verdict.violations.iter().map(|violation| violation.rule).collect()
}

#[tokio::test(start_paused = true)]
async fn a_good_cluster_passes() {
    let seed = seed();
    for seed in seed..seed + 4 {
        let history = play(Fault::None, seed, Duration::from_secs(20)).await;
        let verdict = judge(&history, patience());
        assert!(verdict.is_good(), "seed {seed}: {verdict}");
        assert!(history.calls.len() > 1000, "only {} calls", history.calls.len());
        eprintln!("{} calls; {verdict}", history.calls.len());
    }
}

/// Plays until all these rules were found broken; returns which were not, and the other rules.
async fn missed(
    fault: Fault,
    wanted: &[&'static str],
    seed: u64,
) -> (BTreeSet<&'static str>, BTreeSet<&'static str>) {
    let mut missing: BTreeSet<_> = wanted.iter().copied().collect();
    let mut others = BTreeSet::new();
    for seed in seed..seed + 8 {
        let history = play(fault, seed, Duration::from_secs(12)).await;
        let found = rules(&judge(&history, patience()));
        missing.retain(|rule| !found.contains(rule));
        others.extend(found);
        if missing.is_empty() {
            break;
        }
    }
    (missing, others)
}

/// Each fault is found, and called by its name.
#[tokio::test(start_paused = true)]
async fn a_broken_cluster_does_not_pass() {
    let watch = "watch: everything, in order, once, whole";
    let table: [(Fault, &[&str]); 13] = [
        (Fault::LostWrite, &["revisions: one write a revision"]),
        (Fault::AppliedTwice, &["revisions: nothing is applied twice"]),
        (
            Fault::StaleRead,
            &["revisions: what was known is not forgotten", "linearizable: each key is a register"],
        ),
        (Fault::TornRead, &["serializable: a read is the store at its revision"]),
        (
            Fault::LostUpdate,
            &["revisions: a write does and answers what it should", "append: lost update"],
        ),
        (Fault::RefusedApplied, &["revisions: what was refused is not applied"]),
        (Fault::DroppedEvent, &[watch]),
        (Fault::RepeatedEvent, &[watch]),
        (Fault::WrongPrev, &[watch]),
        (Fault::EarlyExpiry, &["lease: never ends early"]),
        (Fault::NoExpiry, &["lease: does not live on"]),
        (Fault::HalfExpiry, &["revisions: nobody made this change, and no lease ended whole"]),
        (
            Fault::CompactedRead,
            &["serializable: the past is refused when it is gone, and only then"],
        ),
    ];
    let seed = seed();
    for (fault, wanted) in table {
        let (missing, others) = missed(fault, wanted, seed).await;
        assert!(missing.is_empty(), "{fault:?}: {missing:?} not found, only {others:?}");
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// A call from one second to another; client and times are all that differ.
fn call(from: u32, to: u32, op: Op, outcome: Outcome) -> Call {
    Call { client: from as usize, op, called_at: from * SECOND, returned_at: to * SECOND, outcome }
}

fn found_value(key: &'static str, value: Option<&'static str>) -> RangeResponse {
    let pair = |value| KeyValue { key: key.into(), value, ..KeyValue::default() };
    let kvs: Vec<_> = value.map(|value| pair(Bytes::from(value))).into_iter().collect();
    RangeResponse { count: kvs.len() as i64, kvs, ..RangeResponse::default() }
}

/// A register history in short: `w1 0 5` writes 1 from second 0 to 5, `r1` reads it, `r-` reads that
/// nothing is there, `d` deletes, `c1>2` writes 2 if it finds 1; with `?` the outcome is unknown.
fn register(text: &'static str) -> History {
    let calls = text.split(", ").map(|line| {
        let words: Vec<&'static str> = line.split(' ').collect();
        let (from, to) = (words[1].parse().unwrap(), words[2].parse().unwrap());
        let (kind, value) = words[0].split_at(1);
        let (value, is_unknown) = (value.trim_end_matches('?'), value.ends_with('?'));
        let (op, reply) = match kind {
            "w" => {
                let put = PutRequest { prev_kv: false, ..request::put("x", value) };
                (Op::Put(put), Reply::Put(PutResponse::default()))
            }
            "d" => {
                let delete = DeleteRangeRequest { prev_kv: false, ..request::delete("x") };
                let reply = DeleteRangeResponse { deleted: 1, ..DeleteRangeResponse::default() };
                (Op::Delete(delete), Reply::Delete(reply))
            }
            "c" => {
                let (found, left) = value.split_once('>').unwrap();
                let put = PutRequest { prev_kv: false, ..request::put("x", left) };
                let compare = request::if_value("x", found.into());
                let response =
                    ResponseOp { response: Some(Response::ResponsePut(PutResponse::default())) };
                let reply =
                    TxnResponse { succeeded: true, responses: vec![response], header: None };
                let op = request::txn([compare], [Request::RequestPut(put)], []);
                (Op::Txn(op), Reply::Txn(reply))
            }
            _ => {
                let reply = found_value("x", (value != "-").then_some(value));
                (Op::Range(request::get("x")), Reply::Range(reply))
            }
        };
        let outcome = if is_unknown { Outcome::Unknown(String::new()) } else { Outcome::Ok(reply) };
        call(from, to, op, outcome)
    });
    History { calls: calls.collect(), ..History::default() }
}

#[test]
fn registers_are_told_apart() {
    let good = [
        "w1 0 1, r1 2 3",
        "w1 0 5, r- 1 2, r1 3 4",
        "w1 0 5, w2 0 5, r2 1 2, r1 3 4",
        "w1 0 1, w2? 2 3, r1 4 5, r2 6 7",
        "w1 0 1, w2? 2 3, r1 4 5",
        "w1 0 1, d? 2 3, r1 4 5, r- 6 7, w2 8 9, r2 10 11",
        "w1 0 1, d? 2 3, d? 2 3, r- 4 5, w2 6 7, r- 8 9, w3 10 11, r3 12 13",
        "w1? 0 1, w1? 2 3, r1 4 5, d 6 7, r1 8 9, w2 10 11, r2 12 13",
        "w1? 0 1, w1 2 3, r1 4 5, w2 6 7, r1 8 9",
        "w1 0 9, w2 0 9, w3 0 9, w4 0 9, r4 1 2, r2 3 4, r3 5 6, r1 7 8",
        "w1? 0 1, c1>2? 2 3, r2 4 5",
        "w1? 0 1, c1>2? 2 3, c2>3? 4 5, r3 6 7",
        "w1 0 1, w2? 2 3, c2>3? 4 5, r1 6 7",
        "w1? 0 1, c1>2? 2 3, c1>2? 2 3, r2 4 5, w4 6 7, r4 8 9",
    ];
    for text in good {
        let verdict = linearizable::judge(&register(text));
        assert!(verdict.is_good(), "{text}: {verdict}");
    }
    let bad = [
        "w1 0 1, r- 2 3",
        "w1 0 1, w2 2 3, r1 4 5",
        "w1 0 5, r1 1 2, r- 3 4",
        "r1 0 1, w1 2 3",
        "w1 0 5, w2 0 5, r2 1 2, r1 3 4, r2 5 6",
        "w1 0 1, w2? 2 3, r2 4 5, r1 6 7",
        "w1 0 1, d? 2 3, r- 4 5, w2 6 7, r- 8 9",
        "r2 0 1, w2? 2 3",
        "w1? 0 1, w1 2 3, d 4 5, r1 6 7, d 8 9, r1 10 11",
        "w1 0 1, d 2 3, r1 4 5",
        "r7 0 1",
        "c1>2? 0 1, r2 2 3",
        "c1>2? 0 1, r2 2 3, w1? 4 5",
        "w1? 0 1, c1>2? 2 3, r2 4 5, r1 6 7",
        "w1? 0 1, c1>2? 2 3, c1>3? 2 3, r2 4 5, r3 6 7",
    ];
    for text in bad {
        let verdict = linearizable::judge(&register(text));
        assert_eq!(verdict.violations.len(), 1, "{text}: {verdict}");
    }
}

/// Too many possible worlds are no pass.
#[test]
fn what_is_too_hard_is_undecided() {
    let open = (0..40).map(|number| format!("w{number} 0 99")).collect::<Vec<_>>().join(", ");
    let text = Box::leak(format!("{open}, r0 1 2, r1 3 4").into_boxed_str());
    let verdict = linearizable::judge(&register(text));
    assert_eq!((verdict.violations.len(), verdict.undecided.len()), (0, 1), "{verdict}");
}

/// A Txn on lists in short: `0-1 x:1;2 y? :` — seconds, then lists written (`:`) or read (`=`).
fn lists(lines: &[&'static str]) -> History {
    let take = |line: &&'static str| {
        let mut words = line.split(' ');
        let (from, to) = words.next().unwrap().split_once('-').unwrap();
        let outcome = to.trim_start_matches(|letter: char| letter.is_ascii_digit());
        let to = to.trim_end_matches(outcome).parse().unwrap();
        let (mut ops, mut responses) = (Vec::new(), Vec::new());
        for word in words {
            let at = word.find([':', '=']).unwrap();
            let (key, value) = (format!("a/{}", &word[..at]), &word[at + 1..]);
            if word[at..].starts_with(':') {
                ops.push(Request::RequestPut(request::put(key, value)));
                responses.push(Response::ResponsePut(PutResponse::default()));
            } else {
                let key: &'static str = Box::leak(key.into_boxed_str());
                let found = found_value(key, (!value.is_empty()).then_some(value));
                ops.push(Request::RequestRange(request::get(key)));
                responses.push(Response::ResponseRange(found));
            }
        }
        let responses =
            responses.into_iter().map(|response| ResponseOp { response: Some(response) });
        let (mut reply, succeeded) = (TxnResponse::default(), outcome != "!");
        if succeeded {
            reply = TxnResponse { succeeded, responses: responses.collect(), header: None };
        }
        let outcome = match outcome {
            "?" => Outcome::Unknown(String::new()),
            _ => Outcome::Ok(Reply::Txn(reply)),
        };
        call(from.parse().unwrap(), to, Op::Txn(request::txn([], ops, [])), outcome)
    };
    History { calls: lines.iter().map(take).collect(), ..History::default() }
}

#[test]
fn circles_of_txns_are_found_and_named() {
    let table: [(&str, &[&str]); 14] = [
        ("", &["0-1 x:1 y:1", "2-3 x:1;2 y=1", "4-5 x=1;2 y=1"]),
        // Not in the order of time, but all overlap.
        ("", &["0-9 x:1", "0-9 x:1;2", "0-9 x=", "0-9 x=1;2"]),
        ("", &["0-1? x:1", "2-3 x=", "4-5 x=1"]),
        ("G0", &["0-9 x:1 y:1;2", "0-9 x:1;2 y:1"]),
        ("G1a", &["0-1! x:1", "2-3 x=1"]),
        ("G1b", &["0-9 x:1,2", "0-9 x=1"]),
        ("G1c", &["0-9 x:1 y=1", "0-9 y:1 x=1"]),
        ("G-single", &["0-9 x:1 y:1", "0-9 x=1 y="]),
        ("G2", &["0-9 x= y:1", "0-9 y= x:1"]),
        ("G-single-realtime", &["0-1 x:1", "2-3 x="]),
        ("G1c-realtime", &["0-1 x=1", "2-3 x:1"]),
        ("lost update", &["0-9 x:1", "0-9 x:1;2", "0-9 x:1;3", "0-9 x=1;2"]),
        ("incompatible orders", &["0-9 x:1", "0-9 x:1;2", "0-9 x=2"]),
        ("what is read was written", &["0-9 x=1"]),
    ];
    for (wanted, lines) in table {
        let verdict = append::judge(&lists(lines));
        let found = rules(&verdict);
        match wanted {
            "" => assert!(verdict.is_good(), "{lines:?}: {verdict}"),
            _ => assert!(found.iter().any(|rule| rule.contains(wanted)), "{lines:?}: {verdict}"),
        }
    }
}

/// Not a test: how long each judge takes, in `cargo test --test it cost_of_judges -- --ignored`.
#[tokio::test(start_paused = true)]
#[ignore = "a measurement, not a test"]
async fn cost_of_judges() {
    let history = play(Fault::None, seed(), Duration::from_secs(300)).await;
    eprintln!("{} calls", history.calls.len());
    let measure = |name: &str, judge: &dyn Fn()| {
        let begin = quorate::clock::unix_ms();
        judge();
        eprintln!("{name}: {} ms", quorate::clock::unix_ms() - begin);
    };
    let (timeline, _) = Timeline::of(&history);
    let (writers, _) = revisions::judge(&history, &timeline);
    measure("timeline", &|| drop(Timeline::of(&history)));
    measure("revisions", &|| drop(revisions::judge(&history, &timeline)));
    measure("serializable", &|| drop(serializable::judge(&history, &timeline)));
    measure("watch", &|| drop(watch::judge(&history, &timeline)));
    measure("lease", &|| drop(lease::judge(&history, &timeline, &writers, patience())));
    measure("linearizable", &|| drop(linearizable::judge(&history)));
    measure("append", &|| drop(append::judge(&history)));
}
