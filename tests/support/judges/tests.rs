//! Judges judged: what a good toy of a cluster does passes, and each way of being broken is found.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;
use quorate::pb::etcdserverpb::{
    CompactionResponse, LeaseGrantResponse, LeaseKeepAliveResponse, LeaseRevokeResponse,
    LeaseTimeToLiveResponse, ResponseHeader, WatchCreateRequest, WatchResponse,
};
use quorate::pb::mvccpb::Event;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::lease::Patience;
use super::{Verdict, judge};
use crate::support::history::{History, Op, Outcome, Reply};
use crate::support::seed;
use crate::support::store::{Store, inside};
use crate::support::workload::{Door, Mix, WatchStream, Workload};

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
                Some(quorate::pb::etcdserverpb::request_op::Request::RequestPut(put)) => {
                    Some(put.lease)
                }
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

/// Plays until a judge finds something; returns the rules that were broken.
async fn found(fault: Fault, seed: u64) -> BTreeSet<&'static str> {
    for seed in seed..seed + 8 {
        let history = play(fault, seed, Duration::from_secs(30)).await;
        let verdict = judge(&history, patience());
        if !verdict.violations.is_empty() {
            return rules(&verdict);
        }
    }
    BTreeSet::new()
}

/// Each fault is found, and called by its name.
#[tokio::test(start_paused = true)]
async fn a_broken_cluster_does_not_pass() {
    let table = [
        (Fault::LostWrite, "revisions: one write a revision"),
        (Fault::AppliedTwice, "revisions: nothing is applied twice"),
        (Fault::StaleRead, "revisions: what was known is not forgotten"),
        (Fault::StaleRead, "linearizable: each key is a register"),
        (Fault::TornRead, "serializable: a read is the store at its revision"),
        (Fault::LostUpdate, "revisions: a write does and answers what it should"),
        (Fault::LostUpdate, "append: lost update"),
        (Fault::RefusedApplied, "revisions: what was refused is not applied"),
        (Fault::DroppedEvent, "watch: everything, in order, once, whole"),
        (Fault::RepeatedEvent, "watch: everything, in order, once, whole"),
        (Fault::WrongPrev, "watch: everything, in order, once, whole"),
        (Fault::EarlyExpiry, "lease: never ends early"),
        (Fault::NoExpiry, "lease: does not live on"),
        (Fault::HalfExpiry, "revisions: nobody made this change, and no lease ended whole"),
        (Fault::CompactedRead, "serializable: the past is refused when it is gone, and only then"),
    ];
    let seed = seed();
    for (fault, rule) in table {
        let found = found(fault, seed).await;
        assert!(found.contains(rule), "{fault:?} with {rule}: found {found:?}");
    }
}
