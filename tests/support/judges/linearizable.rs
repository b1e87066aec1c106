//! Is each key, taken alone, a register on which all calls can be put in one order that respects time?
//!
//! This judge believes no revision and no watcher, only what was written, what was read, and when. A
//! history is linearizable if each of its keys is (Herlihy and Wing 1990, locality). The search is Wing
//! and Gong's in Lowe's breadth-first form ("Testing for linearizability", 2016): walk along the ends of
//! calls and keep each possible pair of (calls under way that took effect already, value).
//!
//! Values are mostly written once each, which keeps it easy. A write of unknown outcome whose value somebody
//! read took effect before that, and so did the one whose value it found itself, and so on. One whose value
//! nobody needs may be left out, for no answer that is looked at here depends on it. Deletes of unknown
//! outcome may take effect at any later time, or never.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use bytes::Bytes;
use quorate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use quorate::pb::etcdserverpb::request_op::Request;
use quorate::pb::etcdserverpb::response_op::Response;
use quorate::pb::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse,
    RequestOp, TxnRequest, TxnResponse,
};

use super::{Verdict, Violation};
use crate::support::history::{Call, History, Op, Outcome, Reply};
use crate::support::store::inside;

const SOURCE: &str = "Herlihy and Wing 1990: linearizability of each register";

/// Possible worlds of one key beyond which it is too hard to judge.
const WORLDS_MAX: usize = 200_000;

/// More calls under way at one time are too many.
const SLOTS_MAX: usize = 128;

/// A range read of more keys than this is not taken apart.
const KEYS_MAX: usize = 64;

/// A value of a key, or that it does not exist.
type Value = Option<Bytes>;

/// What a call means for one key.
#[derive(Debug, Clone, Default)]
struct Access {
    /// The value that it found, if that is known.
    found: Option<Value>,
    /// The value that it left behind, if it wrote.
    left: Option<Value>,
}

/// A call on one key, with the time in which it took effect.
#[derive(Debug, Clone)]
struct Step<'h> {
    call: &'h Call,
    access: Access,
    begin: Duration,
    end: Duration,
}

/// What is known of one key.
#[derive(Debug, Default)]
struct Register<'h> {
    steps: Vec<Step<'h>>,
    /// Writes of unknown outcome, by the value they leave.
    doubtful: Vec<Step<'h>>,
    /// Begins of deletes of unknown outcome.
    doubtful_deletes: Vec<Duration>,
    /// It had a lease, which may end any time.
    is_leased: bool,
}

/// Judges every key.
pub(crate) fn judge(history: &History) -> Verdict {
    let mut registers = registers(history);
    let mut verdict = Verdict::default();
    let mut steps = 0;
    let base: BTreeMap<_, _> = history.base.kvs.iter().map(|kv| (&kv.key, &kv.value)).collect();
    for (key, register) in &mut registers {
        register.settle();
        steps += register.steps.len();
        let start = base.get(key).map(|value| (*value).clone());
        match search(register, start) {
            Ok(()) => {}
            Err(Failure::TooHard) => {
                verdict.undecided.push(format!("linearizability of {key:?}: too many worlds"));
            }
            Err(Failure::No(violation)) => {
                let text = format!("{key:?}: {}", violation.text);
                verdict.violations.push(Violation { text, ..*violation });
            }
        }
    }
    let count = registers.len();
    verdict.checked.push(format!("{count} registers with {steps} steps without their revisions"));
    verdict
}

/// Takes all calls apart by keys.
fn registers(history: &History) -> BTreeMap<Bytes, Register<'_>> {
    let mut registers = BTreeMap::<Bytes, Register<'_>>::new();
    for call in &history.calls {
        for key in written(&call.op) {
            registers.entry(key).or_default();
        }
        if let Some(Reply::Range(reply)) = call.outcome.reply() {
            for kv in &reply.kvs {
                registers.entry(kv.key.clone()).or_default();
            }
        }
    }
    let keys: Vec<Bytes> = registers.keys().cloned().collect();
    for call in &history.calls {
        match &call.outcome {
            Outcome::Refused(_) => {}
            Outcome::Ok(reply) if !call.op.is_serializable() => {
                let mut parts = Parts { keys: &keys, found: BTreeMap::new() };
                parts.take(&call.op, reply);
                for (key, access) in parts.found {
                    let Some(register) = registers.get_mut(&key) else { continue };
                    let (begin, end) = (call.called_at, call.returned_at);
                    register.steps.push(Step { call, access, begin, end });
                }
            }
            Outcome::Ok(_) => {}
            Outcome::Unknown(_) => doubt(call, &keys, &mut registers),
        }
        for key in leased(&call.op) {
            registers.get_mut(&key).expect("it is written").is_leased = true;
        }
    }
    registers
}

/// Each operation of a call, those in Txns as well.
fn operations<'o>(op: &'o Op, visit: &mut dyn FnMut(Single<'o>)) {
    match op {
        Op::Put(put) => visit(Single::Put(put)),
        Op::Delete(delete) => visit(Single::Delete(delete)),
        Op::Txn(txn) => txn_operations(txn, visit),
        Op::Range(_) | Op::Compact(_) | Op::Grant(_) | Op::Revoke(_) => {}
        Op::KeepAlive(_) | Op::TimeToLive(_) => {}
    }
}

fn txn_operations<'o>(txn: &'o TxnRequest, visit: &mut dyn FnMut(Single<'o>)) {
    for RequestOp { request } in txn.success.iter().chain(&txn.failure) {
        match request {
            Some(Request::RequestPut(put)) => visit(Single::Put(put)),
            Some(Request::RequestDeleteRange(delete)) => visit(Single::Delete(delete)),
            Some(Request::RequestTxn(txn)) => txn_operations(txn, visit),
            Some(Request::RequestRange(_)) | None => {}
        }
    }
}

/// An operation that writes.
enum Single<'o> {
    Put(&'o PutRequest),
    Delete(&'o DeleteRangeRequest),
}

fn written(op: &Op) -> Vec<Bytes> {
    let mut keys = Vec::new();
    operations(op, &mut |single| match single {
        Single::Put(put) => keys.push(put.key.clone()),
        Single::Delete(_) => {}
    });
    keys
}

fn leased(op: &Op) -> Vec<Bytes> {
    let mut keys = Vec::new();
    operations(op, &mut |single| match single {
        Single::Put(put) if put.lease != 0 => keys.push(put.key.clone()),
        Single::Put(_) | Single::Delete(_) => {}
    });
    keys
}

/// Remembers what a call may do at any later time.
fn doubt<'h>(call: &'h Call, keys: &[Bytes], registers: &mut BTreeMap<Bytes, Register<'h>>) {
    let (begin, end) = (call.called_at, Duration::MAX);
    operations(&call.op, &mut |single| match single {
        Single::Put(put) => {
            let found = match &call.op {
                Op::Txn(txn) => expected(txn, &put.key),
                _ => None,
            };
            let access = Access { found, left: Some(Some(put.value.clone())) };
            let register = registers.get_mut(&put.key).expect("it is written");
            register.doubtful.push(Step { call, access, begin, end });
        }
        Single::Delete(delete) => {
            for key in keys_in(keys, &delete.key, &delete.range_end) {
                let register = registers.get_mut(key).expect("it is one of the keys");
                register.doubtful_deletes.push(begin);
            }
        }
    });
}

fn keys_in<'k>(
    keys: &'k [Bytes],
    start: &'k Bytes,
    end: &'k [u8],
) -> impl Iterator<Item = &'k Bytes> {
    let from = keys.partition_point(|key| key < start);
    keys[from..].iter().take_while(move |key| inside(key, start, end))
}

/// The value that `key` has when the compares of a Txn hold, if that follows.
fn expected(txn: &TxnRequest, key: &Bytes) -> Option<Value> {
    let is_about = |compare: &&quorate::pb::etcdserverpb::Compare| {
        compare.key == key && compare.range_end.is_empty()
    };
    txn.compare.iter().filter(is_about).find_map(|compare| {
        if compare.result != i32::from(CompareResult::Equal) {
            return None;
        }
        match (CompareTarget::try_from(compare.target).ok()?, compare.target_union.as_ref()?) {
            (CompareTarget::Value, TargetUnion::Value(value)) => Some(Some(value.clone())),
            (CompareTarget::Version, TargetUnion::Version(0))
            | (CompareTarget::Create, TargetUnion::CreateRevision(0))
            | (CompareTarget::Mod, TargetUnion::ModRevision(0)) => Some(None),
            _ => None,
        }
    })
}

/// What one call tells of each key.
struct Parts<'k> {
    keys: &'k [Bytes],
    found: BTreeMap<Bytes, Access>,
}

impl Parts<'_> {
    fn saw(&mut self, key: &Bytes, value: Value) {
        let access = self.found.entry(key.clone()).or_default();
        // What it wrote itself before is no news.
        if access.left.is_none() && access.found.is_none() {
            access.found = Some(value);
        }
    }

    fn left(&mut self, key: &Bytes, value: Value) {
        self.found.entry(key.clone()).or_default().left = Some(value);
    }

    fn take(&mut self, op: &Op, reply: &Reply) {
        match (op, reply) {
            (Op::Range(range), Reply::Range(reply)) => self.take_range(range, reply),
            (Op::Put(put), Reply::Put(reply)) => self.take_put(put, reply),
            (Op::Delete(delete), Reply::Delete(reply)) => self.take_delete(delete, reply),
            (Op::Txn(txn), Reply::Txn(reply)) => self.take_txn(txn, reply),
            _ => {}
        }
    }

    fn take_range(&mut self, range: &RangeRequest, reply: &RangeResponse) {
        let is_whole = range.revision == 0
            && range.limit == 0
            && !range.keys_only
            && !range.count_only
            && [range.min_mod_revision, range.max_mod_revision] == [0; 2]
            && [range.min_create_revision, range.max_create_revision] == [0; 2];
        let (keys, start, end) = (self.keys, &range.key, &range.range_end);
        if !is_whole || keys_in(keys, start, end).nth(KEYS_MAX).is_some() {
            return;
        }
        let found: BTreeMap<_, _> = reply.kvs.iter().map(|kv| (&kv.key, &kv.value)).collect();
        for key in keys_in(keys, start, end) {
            self.saw(key, found.get(key).map(|value| (*value).clone()));
        }
    }

    fn take_put(&mut self, put: &PutRequest, reply: &PutResponse) {
        if put.prev_kv {
            self.saw(&put.key, reply.prev_kv.as_ref().map(|kv| kv.value.clone()));
        }
        self.left(&put.key, Some(put.value.clone()));
    }

    fn take_delete(&mut self, delete: &DeleteRangeRequest, reply: &DeleteRangeResponse) {
        let found: BTreeMap<_, _> = reply.prev_kvs.iter().map(|kv| (&kv.key, &kv.value)).collect();
        for key in keys_in(self.keys, &delete.key, &delete.range_end) {
            if delete.prev_kv || reply.deleted == 0 {
                self.saw(key, found.get(key).map(|value| (*value).clone()));
            }
            self.left(key, None);
        }
    }

    fn take_txn(&mut self, txn: &TxnRequest, reply: &TxnResponse) {
        if reply.succeeded {
            for compare in &txn.compare {
                if let Some(value) = expected(txn, &compare.key) {
                    self.saw(&compare.key, value);
                }
            }
        }
        let ops = if reply.succeeded { &txn.success } else { &txn.failure };
        for (op, response) in ops.iter().zip(&reply.responses) {
            match (&op.request, &response.response) {
                (Some(Request::RequestRange(range)), Some(Response::ResponseRange(reply))) => {
                    self.take_range(range, reply);
                }
                (Some(Request::RequestPut(put)), Some(Response::ResponsePut(reply))) => {
                    self.take_put(put, reply);
                }
                (
                    Some(Request::RequestDeleteRange(delete)),
                    Some(Response::ResponseDeleteRange(reply)),
                ) => self.take_delete(delete, reply),
                (Some(Request::RequestTxn(txn)), Some(Response::ResponseTxn(reply))) => {
                    self.take_txn(txn, reply);
                }
                _ => {}
            }
        }
    }
}

impl Register<'_> {
    /// Decides which writes of unknown outcome took effect, and until when.
    ///
    /// That works where a value tells its writer; other writes may take effect at any time.
    fn settle(&mut self) {
        let mut needed_by = HashMap::<&Bytes, Duration>::new();
        for step in &self.steps {
            if let Some(Some(value)) = &step.access.found {
                let end = needed_by.entry(value).or_insert(step.end);
                *end = step.end.min(*end);
            }
        }
        let mut writers = HashMap::<&Bytes, usize>::new();
        let all = self.steps.iter().chain(&self.doubtful);
        for value in all.filter_map(|step| step.access.left.as_ref()?.as_ref()) {
            *writers.entry(value).or_default() += 1;
        }
        // When a doubtful write is over, if anybody needs its value.
        let over_by = |needed_by: &HashMap<&Bytes, Duration>, step: &Step<'_>| {
            let value = step.access.left.as_ref()?.as_ref()?;
            let needed_by = *needed_by.get(value)?;
            Some(if writers[value] == 1 { needed_by } else { Duration::MAX })
        };
        let mut is_settled = false;
        while !is_settled {
            is_settled = true;
            for step in &self.doubtful {
                let Some(end) = over_by(&needed_by, step) else { continue };
                let Some(Some(value)) = &step.access.found else { continue };
                if needed_by.get(value).is_none_or(|known| end < *known) {
                    needed_by.insert(value, end);
                    is_settled = false;
                }
            }
        }
        let happened = self
            .doubtful
            .iter()
            .filter_map(|step| Some(Step { end: over_by(&needed_by, step)?, ..step.clone() }));
        let happened: Vec<Step<'_>> = happened.collect();
        self.steps.extend(happened);
        self.doubtful_deletes.sort_unstable();
    }
}

/// Why a register is not shown to be linearizable.
enum Failure {
    TooHard,
    No(Box<Violation>),
}

/// Calls under way that took effect already, as bits by slot; and the value.
type World = (u128, u32);

/// Possible worlds, each with the least number of doubtful deletes that lead to it.
type Worlds = HashMap<World, usize>;

/// A step with its values as numbers; 0 is "does not exist".
#[derive(Clone, Copy)]
struct Move {
    found: Option<u32>,
    left: Option<u32>,
}

/// Calls under way, by slot.
type Slots = Vec<Option<(usize, Move)>>;

fn search(register: &Register<'_>, start: Value) -> Result<(), Failure> {
    let mut numbers = HashMap::<Bytes, u32>::new();
    let mut number = |value: &Value| match value {
        None => 0,
        Some(value) => {
            let next = numbers.len() as u32 + 1;
            *numbers.entry(value.clone()).or_insert(next)
        }
    };
    let start = number(&start);
    let moves: Vec<Move> = register
        .steps
        .iter()
        .map(|step| Move {
            found: step.access.found.as_ref().map(&mut number),
            left: step.access.left.as_ref().map(&mut number),
        })
        .collect();
    // Begins before ends of the same moment: those overlap.
    let begins = register.steps.iter().enumerate().map(|(at, step)| (step.begin, false, at));
    let ends = register.steps.iter().enumerate().filter(|(_, step)| step.end < Duration::MAX);
    let ends = ends.map(|(at, step)| (step.end, true, at));
    let mut events: Vec<_> = begins.chain(ends).collect();
    events.sort_unstable();
    let mut slots = Slots::new();
    let mut slot_of = vec![0; moves.len()];
    let mut worlds = Worlds::from([((0, start), 0)]);
    for (time, is_end, at) in events {
        if !is_end {
            let slot = slots.iter().position(Option::is_none).unwrap_or(slots.len());
            if slot == slots.len() {
                slots.push(None);
            }
            if slot == SLOTS_MAX {
                return Err(Failure::TooHard);
            }
            (slots[slot], slot_of[at]) = (Some((at, moves[at])), slot);
            continue;
        }
        let deletes = if register.is_leased {
            usize::MAX
        } else {
            register.doubtful_deletes.partition_point(|begin| *begin <= time)
        };
        let after = end(&worlds, &slots, slot_of[at], deletes)?;
        if after.is_empty() {
            let under_way: Vec<usize> = slots.iter().flatten().map(|(at, _)| *at).collect();
            return Err(Failure::No(Box::new(explain(
                register, &worlds, &numbers, at, &under_way,
            ))));
        }
        worlds = after;
        slots[slot_of[at]] = None;
    }
    Ok(())
}

/// The worlds in which the call in `slot` took effect, after it ended.
fn end(worlds: &Worlds, slots: &Slots, slot: usize, deletes: usize) -> Result<Worlds, Failure> {
    let bit = 1 << slot;
    let mut after = Worlds::new();
    let mut seen = Worlds::new();
    let mut todo: Vec<(World, usize)> =
        worlds.iter().map(|(world, used)| (*world, *used)).collect();
    let keep = |worlds: &mut Worlds, world: World, used: usize| match worlds.get_mut(&world) {
        Some(least) if *least <= used => false,
        Some(least) => {
            *least = used;
            true
        }
        None => {
            worlds.insert(world, used);
            true
        }
    };
    while let Some(((done, value), used)) = todo.pop() {
        let done = done | reads(slots, done, value);
        if done & bit != 0 {
            keep(&mut after, (done & !bit, value), used);
            continue;
        }
        if !keep(&mut seen, (done, value), used) {
            continue;
        }
        if seen.len() > WORLDS_MAX {
            return Err(Failure::TooHard);
        }
        for (number, (_, step)) in slots.iter().enumerate().filter_map(|(at, s)| Some((at, (*s)?)))
        {
            let is_open = done & (1 << number) == 0;
            if is_open && step.found.is_none_or(|found| found == value) {
                todo.push(((done | 1 << number, step.left.unwrap_or(value)), used));
            }
        }
        if value != 0 && used < deletes {
            todo.push(((done, 0), used.saturating_add(1)));
        }
    }
    Ok(after)
}

/// Reads that can take effect now: there is never a reason to wait.
fn reads(slots: &Slots, done: u128, value: u32) -> u128 {
    let fits = |step: &Move| step.left.is_none() && step.found == Some(value);
    let slots = slots.iter().enumerate().filter_map(|(at, slot)| Some((at, (*slot)?.1)));
    let now = slots.filter(|(at, step)| done & (1 << at) == 0 && fits(step));
    now.fold(0, |bits, (at, _)| bits | 1 << at)
}

fn explain(
    register: &Register<'_>,
    worlds: &Worlds,
    numbers: &HashMap<Bytes, u32>,
    at: usize,
    under_way: &[usize],
) -> Violation {
    let names: HashMap<u32, &Bytes> = numbers.iter().map(|(value, at)| (*at, value)).collect();
    let possible: BTreeSet<u32> = worlds.keys().map(|(_, value)| *value).collect();
    let possible: Vec<_> = possible.iter().take(9).map(|value| names.get(value)).collect();
    let text = format!(
        "the first call cannot be put anywhere: when it ended, with the others under way, the value \
         could have been one of {possible:?}"
    );
    let others = under_way.iter().filter(|other| **other != at).take(5);
    let calls = std::iter::once(&at).chain(others).map(|at| register.steps[*at].call);
    Violation::new("linearizable: each key is a register", SOURCE, text).of(calls)
}
