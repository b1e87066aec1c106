//! Txns over several lists, to each of which they append: what they read of each other shows an order,
//! and that order must have no circle.
//!
//! A list is the value of a key below `a/`: groups of elements, `1,2;3;4,5`. A Txn writes the whole list
//! with one group more, guarded by a compare; so each value tells what was there before, by whom, and in
//! which order. As with [`super::linearizable`] no revision is believed. Names as in Elle (Kingsbury
//! and Alvaro 2020) after Adya 1999: G0 a circle of writes, G1a a read of what was never committed, G1b of a
//! half of it, G1c a circle of writes and reads, G-single with one read that misses a write, G2 with more,
//! `-realtime` if a Txn that had ended is in it before one that began later.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use quorate::pb::etcdserverpb::request_op::Request;
use quorate::pb::etcdserverpb::response_op::Response;
use quorate::pb::etcdserverpb::{RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse};

use super::{Verdict, Violation};
use crate::support::history::{Call, History, Op, Outcome, Reply};

const SOURCE: &str = "Elle (Kingsbury, Alvaro 2020): strict serializability of list-append Txns";

/// Keys of lists begin so.
pub(crate) const PREFIX: &[u8] = b"a/";

/// A Txn, as far as lists are concerned.
#[derive(Debug)]
struct Txn<'h> {
    call: &'h Call,
    /// When it was over; never, if nobody was told.
    end: Option<Duration>,
    /// Keys and the lists found there.
    reads: Vec<(&'h Bytes, &'h [u8])>,
    /// Keys and the lists left there.
    writes: Vec<(&'h Bytes, &'h [u8])>,
}

/// Judges all Txns on lists.
pub(crate) fn judge(history: &History) -> Verdict {
    let mut verdict = Verdict::default();
    let observed = observed(history);
    let mut txns = Vec::new();
    for call in &history.calls {
        match take(call) {
            Taken::Nothing => {}
            Taken::Txn(txn) => txns.push(txn),
            Taken::Doubtful(txn) => {
                // What nobody saw may not have happened.
                let seen = |(key, list): &(&Bytes, &[u8])| observed.contains(&(*key, last(list)));
                if txn.writes.iter().any(seen) {
                    txns.push(txn);
                }
            }
            Taken::Never(txn) => {
                let seen =
                    txn.writes.iter().find(|(key, list)| observed.contains(&(*key, last(list))));
                if let Some((key, list)) = seen {
                    let text = format!(
                        "{list:?} of {key:?} was read, but never committed",
                        list = show(list)
                    );
                    let rule = "append: G1a, an aborted Txn is read";
                    verdict.violations.push(Violation::new(rule, SOURCE, text).of([call]));
                }
            }
        }
    }
    let orders = orders(&txns, &mut verdict);
    let graph = Graph::new(&txns, &orders, &mut verdict);
    graph.judge(&txns, &mut verdict);
    let (reads, writes) = txns
        .iter()
        .fold((0, 0), |(reads, writes), txn| (reads + txn.reads.len(), writes + txn.writes.len()));
    verdict.checked.push(format!(
        "{} Txns with {writes} appends and {reads} reads of {} lists for circles",
        txns.len(),
        orders.len()
    ));
    verdict
}

fn show(list: &[u8]) -> Bytes {
    Bytes::copy_from_slice(list)
}

/// The last group of a list.
fn last(list: &[u8]) -> &[u8] {
    list.rsplit(|byte| *byte == b';').next().unwrap_or(list)
}

/// The groups of a list; none of an empty one.
fn groups(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b';').filter(|group| !group.is_empty())
}

enum Taken<'h> {
    Nothing,
    Txn(Txn<'h>),
    Doubtful(Txn<'h>),
    /// It was refused, or took the other branch.
    Never(Txn<'h>),
}

fn take(call: &Call) -> Taken<'_> {
    let mut txn = Txn { call, end: None, reads: Vec::new(), writes: Vec::new() };
    match (&call.op, &call.outcome) {
        (op, _) if op.is_serializable() => return Taken::Nothing,
        (Op::Range(range), Outcome::Ok(Reply::Range(reply))) if range.revision == 0 => {
            txn.read(range, reply);
        }
        (Op::Txn(request), outcome) => match outcome {
            Outcome::Ok(Reply::Txn(reply)) if reply.succeeded => txn.run(request, reply),
            Outcome::Ok(Reply::Txn(reply)) => {
                let mut never = Txn { call, end: None, reads: Vec::new(), writes: Vec::new() };
                never.write(&request.success);
                txn.run(request, reply);
                if txn.reads.is_empty() && !never.writes.is_empty() {
                    return Taken::Never(never);
                }
            }
            Outcome::Ok(_) => {}
            Outcome::Unknown(_) | Outcome::Refused(_) => {
                txn.write(&request.success);
                let is_empty = txn.writes.is_empty();
                return match outcome {
                    _ if is_empty => Taken::Nothing,
                    Outcome::Unknown(_) => Taken::Doubtful(txn),
                    _ => Taken::Never(txn),
                };
            }
        },
        _ => {}
    }
    txn.end = Some(call.returned_at);
    if txn.reads.is_empty() && txn.writes.is_empty() { Taken::Nothing } else { Taken::Txn(txn) }
}

impl<'h> Txn<'h> {
    fn read(&mut self, range: &'h RangeRequest, reply: &'h RangeResponse) {
        if range.keys_only || range.count_only {
            return;
        }
        let key = &range.key;
        if key.starts_with(PREFIX) && range.range_end.is_empty() && reply.kvs.is_empty() {
            self.reads.push((key, b""));
        }
        let lists = reply.kvs.iter().filter(|kv| kv.key.starts_with(PREFIX));
        self.reads.extend(lists.map(|kv| (&kv.key, &kv.value[..])));
    }

    fn write(&mut self, ops: &'h [RequestOp]) {
        for op in ops {
            if let Some(Request::RequestPut(put)) = &op.request
                && put.key.starts_with(PREFIX)
            {
                self.writes.push((&put.key, &put.value[..]));
            }
        }
    }

    fn run(&mut self, request: &'h TxnRequest, reply: &'h TxnResponse) {
        let ops = if reply.succeeded { &request.success } else { &request.failure };
        for (op, response) in ops.iter().zip(&reply.responses) {
            if let (Some(Request::RequestRange(range)), Some(Response::ResponseRange(reply))) =
                (&op.request, &response.response)
            {
                self.read(range, reply);
            }
        }
        self.write(ops);
    }
}

/// All groups that somebody read or built upon.
fn observed(history: &History) -> HashSet<(&Bytes, &[u8])> {
    let mut lists = Vec::new();
    for call in &history.calls {
        let Some(reply) = call.outcome.reply() else { continue };
        let mut txn = Txn { call, end: None, reads: Vec::new(), writes: Vec::new() };
        match (&call.op, reply) {
            (Op::Range(range), Reply::Range(reply)) => txn.read(range, reply),
            (Op::Txn(request), Reply::Txn(reply)) => txn.run(request, reply),
            _ => {}
        }
        lists.append(&mut txn.reads);
        let before = |list: &'_ [u8]| list.len() - last(list).len();
        lists.extend(txn.writes.into_iter().map(|(key, list)| (key, &list[..before(list)])));
    }
    let mut longest = HashMap::<&Bytes, &[u8]>::new();
    for (key, list) in &lists {
        let known = longest.entry(key).or_default();
        if list.len() > known.len() {
            *known = list;
        }
    }
    let mut observed = HashSet::new();
    for (key, list) in &longest {
        observed.extend(groups(list).map(|group| (*key, group)));
    }
    // Nearly all are beginnings of the longest one.
    for (key, list) in lists {
        if !longest[key].starts_with(list) {
            observed.extend(groups(list).map(|group| (key, group)));
        }
    }
    observed
}

/// The groups of a list in order, with the places at which they stand.
#[derive(Default)]
struct Order<'h> {
    longest: &'h [u8],
    groups: Vec<&'h [u8]>,
    /// The lengths of its beginnings, in bytes.
    lengths: Vec<usize>,
    /// Who wrote each.
    writers: Vec<Option<usize>>,
}

/// The order of each list: its longest version, of which all others must be beginnings.
fn orders<'h>(txns: &[Txn<'h>], verdict: &mut Verdict) -> BTreeMap<&'h Bytes, Order<'h>> {
    let mut orders = BTreeMap::<&Bytes, Order<'_>>::new();
    for (key, list) in txns.iter().flat_map(|txn| txn.reads.iter().chain(&txn.writes)) {
        let order = orders.entry(key).or_default();
        if list.len() > order.longest.len() {
            order.longest = list;
        }
    }
    for order in orders.values_mut() {
        order.groups = groups(order.longest).collect();
        order.lengths = order.lengths();
        order.writers = vec![None; order.groups.len()];
    }
    for (number, txn) in txns.iter().enumerate() {
        let writes = txn.writes.iter().map(|list| (list, true));
        for ((key, list), is_write) in writes.chain(txn.reads.iter().map(|list| (list, false))) {
            let order = orders.get_mut(key).expect("it was entered above");
            if let Err(rule) = fits(order, list, is_write) {
                let (list, longest) = (show(list), show(order.longest));
                let text = format!("{key:?} was {list:?} for one, and {longest:?} for another");
                verdict.violations.push(Violation::new(rule, SOURCE, text).of([txn.call]));
            } else if is_write {
                let place = order.place(list).expect("it fits") - 1;
                if let Some(other) = order.writers[place].replace(number) {
                    let text = format!("{:?} of {key:?} was written twice", show(last(list)));
                    let rule = "append: lost update";
                    let both = [txns[other].call, txn.call];
                    verdict.violations.push(Violation::new(rule, SOURCE, text).of(both));
                }
            }
        }
    }
    orders
}

impl Order<'_> {
    fn lengths(&self) -> Vec<usize> {
        let ends = self.longest.iter().enumerate().filter(|(_, byte)| **byte == b';');
        ends.map(|(at, _)| at).chain([self.longest.len()]).collect()
    }

    /// How many groups a list has that is a beginning of the longest one.
    fn place(&self, list: &[u8]) -> Option<usize> {
        if list.is_empty() {
            return Some(0);
        }
        let place = self.lengths.binary_search(&list.len()).ok()?;
        self.longest.starts_with(list).then_some(place + 1)
    }
}

/// Whether `list` is a beginning of the longest one, and what it is if not.
fn fits(order: &Order<'_>, list: &[u8], is_write: bool) -> Result<(), &'static str> {
    if order.place(list).is_some() {
        return Ok(());
    }
    let mut places = groups(list).zip(&order.groups);
    match places.position(|(one, other)| one != *other) {
        None => Ok(()),
        Some(place) => {
            let (group, other) = (groups(list).nth(place), order.groups[place]);
            let is_part = |one: &[u8], whole: &[u8]| {
                one.len() < whole.len() && whole.split(|byte| *byte == b',').any(|part| part == one)
                    || whole.starts_with(one) && whole.get(one.len()) == Some(&b',')
            };
            let group = group.expect("it differs");
            if is_part(group, other) || is_part(other, group) {
                Err("append: G1b, a half of a Txn is read")
            } else if is_write {
                Err("append: lost update")
            } else {
                Err("append: incompatible orders")
            }
        }
    }
}

/// How one Txn comes before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Edge {
    /// It wrote what the other replaced.
    WriteWrite,
    /// It wrote what the other read.
    WriteRead,
    /// It read what the other replaced.
    ReadWrite,
    /// It had ended when the other began.
    RealTime,
}

/// Txns, and behind them moments of real time, with what comes after each.
struct Graph {
    txns: usize,
    after: Vec<Vec<(usize, Edge)>>,
}

impl Graph {
    fn new(txns: &[Txn<'_>], orders: &BTreeMap<&Bytes, Order<'_>>, verdict: &mut Verdict) -> Graph {
        let mut graph = Graph { txns: txns.len(), after: vec![Vec::new(); txns.len()] };
        for order in orders.values() {
            for pair in order.writers.windows(2) {
                if let [Some(one), Some(other)] = pair {
                    graph.add(*one, *other, Edge::WriteWrite);
                }
            }
        }
        for (number, txn) in txns.iter().enumerate() {
            for (key, list) in &txn.reads {
                let order = &orders[*key];
                let Some(length) = order.place(list) else { continue };
                if let Some(place) = length.checked_sub(1) {
                    match order.writers[place] {
                        Some(writer) => graph.add(writer, number, Edge::WriteRead),
                        None => {
                            let text = format!("nobody wrote {:?} of {key:?}", show(last(list)));
                            let rule = "append: what is read was written";
                            let wrong = Violation::new(rule, SOURCE, text).of([txn.call]);
                            verdict.violations.push(wrong);
                        }
                    }
                }
                if let Some(Some(next)) = order.writers.get(length) {
                    graph.add(number, *next, Edge::ReadWrite);
                }
            }
        }
        graph.add_real_time(txns);
        graph
    }

    fn add(&mut self, from: usize, to: usize, edge: Edge) {
        if from != to {
            self.after[from].push((to, edge));
        }
    }

    /// A moment for each end: what ended is before it, and it is before the next moment and before what
    /// begins until then.
    fn add_real_time(&mut self, txns: &[Txn<'_>]) {
        let mut ends: Vec<(Duration, usize)> =
            txns.iter().enumerate().filter_map(|(at, txn)| Some((txn.end?, at))).collect();
        ends.sort_unstable();
        for (place, (_, txn)) in ends.iter().enumerate() {
            let moment = self.after.len();
            self.after.push(Vec::new());
            self.add(*txn, moment, Edge::RealTime);
            if place > 0 {
                self.add(moment - 1, moment, Edge::RealTime);
            }
        }
        for (number, txn) in txns.iter().enumerate() {
            let before = ends.partition_point(|(end, _)| *end < txn.call.called_at);
            if before > 0 {
                self.add(self.txns + before - 1, number, Edge::RealTime);
            }
        }
    }

    /// Reports the simplest kind of circle that there is.
    fn judge(&self, txns: &[Txn<'_>], verdict: &mut Verdict) {
        let kinds = [Edge::WriteWrite, Edge::WriteRead, Edge::ReadWrite, Edge::RealTime];
        for kind in kinds {
            let Some(circle) = self.circle(kind) else { continue };
            let missed = circle.iter().filter(|(_, edge)| *edge == Edge::ReadWrite).count();
            let is_timed = kind == Edge::RealTime;
            let has_read = circle.iter().any(|(_, edge)| *edge == Edge::WriteRead);
            let rule = match (missed, is_timed) {
                (0, false) if !has_read => "append: G0, a circle of writes",
                (0, false) => "append: G1c, a circle of writes and reads",
                (1, false) => "append: G-single, a read misses a write",
                (_, false) => "append: G2, reads miss each other's writes",
                (0, true) => "append: G1c-realtime, a circle with real time",
                (1, true) => "append: G-single-realtime, a stale read",
                (_, true) => "append: G2-realtime, a circle with real time",
            };
            let names = circle.iter().map(|(at, edge)| match at {
                at if *at < self.txns => format!("{edge:?} from client {}", txns[*at].call.client),
                _ => format!("{edge:?}"),
            });
            let text = names.collect::<Vec<_>>().join(", ");
            let calls =
                circle.iter().filter(|(at, _)| *at < self.txns).map(|(at, _)| txns[*at].call);
            verdict.violations.push(Violation::new(rule, SOURCE, text).of(calls));
            return;
        }
    }

    /// A short circle of edges up to this kind: each node with the edge that leaves it.
    fn circle(&self, kind: Edge) -> Option<Vec<(usize, Edge)>> {
        let component = self.components(kind);
        let mut sizes = HashMap::<usize, usize>::new();
        component.iter().for_each(|number| *sizes.entry(*number).or_default() += 1);
        let start = (0..self.txns).find(|at| sizes[&component[*at]] > 1)?;
        // Breadth first back to the start, within its component.
        let mut from = HashMap::<usize, (usize, Edge)>::new();
        let mut todo = VecDeque::from([start]);
        while let Some(at) = todo.pop_front() {
            for &(next, edge) in &self.after[at] {
                if edge > kind || component[next] != component[start] || from.contains_key(&next) {
                    continue;
                }
                from.insert(next, (at, edge));
                todo.push_back(next);
            }
        }
        let mut circle = Vec::new();
        let mut at = start;
        loop {
            let (before, edge) = from[&at];
            circle.push((before, edge));
            at = before;
            if at == start {
                circle.reverse();
                return Some(circle);
            }
        }
    }

    /// The strongly connected component of each node (Tarjan 1972, without recursion).
    fn components(&self, kind: Edge) -> Vec<usize> {
        const NONE: usize = usize::MAX;
        let count = self.after.len();
        let (mut index, mut low) = (vec![NONE; count], vec![NONE; count]);
        let (mut component, mut stack) = (vec![NONE; count], Vec::new());
        let mut next_index = 0;
        for root in 0..count {
            if index[root] != NONE {
                continue;
            }
            let mut path = vec![(root, 0)];
            while let Some((at, edge)) = path.last_mut() {
                let node = *at;
                if *edge == 0 && index[node] == NONE {
                    (index[node], low[node]) = (next_index, next_index);
                    next_index += 1;
                    stack.push(node);
                }
                if let Some((next, with)) = self.after[node].get(*edge).copied() {
                    *edge += 1;
                    if with > kind {
                        continue;
                    }
                    if index[next] == NONE {
                        path.push((next, 0));
                    } else if component[next] == NONE {
                        low[node] = low[node].min(index[next]);
                    }
                    continue;
                }
                path.pop();
                if let Some((parent, _)) = path.last() {
                    low[*parent] = low[*parent].min(low[node]);
                }
                if low[node] == index[node] {
                    while let Some(member) = stack.pop() {
                        component[member] = node;
                        if member == node {
                            break;
                        }
                    }
                }
            }
        }
        component
    }
}
