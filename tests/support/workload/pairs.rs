//! Clients of plain keys: hot registers, several keys at once, and readers of ranges and of the past.

use bytes::Bytes;
use fastrand::Rng;
use quorate::pb::etcdserverpb::request_op::Request;
use quorate::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest,
};

use super::request::{
    all, below, delete, end, get, if_changed_at, if_created_at, if_value, put, txn,
};
use super::{Client, Door, Workload};
use crate::support::history::{Op, Reply};

/// Hot keys.
const REGISTERS: usize = 5;

/// Keys that Txns change together.
const ACCOUNTS: usize = 6;

fn register(rng: &mut Rng) -> String {
    format!("r/{}", rng.usize(..REGISTERS))
}

fn account(rng: &mut Rng) -> String {
    format!("t/{}", rng.usize(..ACCOUNTS))
}

impl Workload {
    /// Gets, puts, replaces and deletes a few hot keys.
    pub(super) async fn registers<D: Door>(&self, client: Client<'_, D>, mut rng: Rng) {
        let mut last = None::<(String, Bytes)>;
        while !self.stopped.get() {
            let key = register(&mut rng);
            let op = match (rng.u8(..20), &last) {
                (0..6, _) => Op::Range(get(key.clone())),
                (6, _) => Op::Range(RangeRequest { serializable: true, ..get(key.clone()) }),
                (7, _) => Op::Range(below("r/")),
                (8, _) => Op::Delete(delete(key.clone())),
                (9, _) => Op::Delete(DeleteRangeRequest { range_end: end("r/"), ..delete("r/3") }),
                (10, _) => self.create(&key, &mut rng),
                (11..15, Some((key, value))) => {
                    let then = Request::RequestPut(put(key.clone(), self.value(&mut rng)));
                    let otherwise = Request::RequestRange(get(key.clone()));
                    let holds = if_value(key.clone(), value.clone());
                    Op::Txn(txn([holds], [then], [otherwise]))
                }
                _ => {
                    let prev_kv = rng.bool();
                    Op::Put(PutRequest { prev_kv, ..put(key.clone(), self.value(&mut rng)) })
                }
            };
            if let Some(Reply::Range(reply)) = self.call(&client, &mut rng, op).await
                && let [kv] = &reply.kvs[..]
            {
                last = Some((key, kv.value.clone()));
            }
        }
    }

    /// Creates a key if it is not there, else reads it.
    fn create(&self, key: &str, rng: &mut Rng) -> Op {
        let key = key.to_owned();
        let then = Request::RequestPut(put(key.clone(), self.value(rng)));
        let otherwise = Request::RequestRange(get(key.clone()));
        Op::Txn(txn([if_created_at(key, 0)], [then], [otherwise]))
    }

    /// Reads several keys and changes them together, if nobody else did.
    pub(super) async fn txns<D: Door>(&self, client: Client<'_, D>, mut rng: Rng) {
        while !self.stopped.get() {
            let (one, other) = (account(&mut rng), account(&mut rng));
            if one == other {
                continue;
            }
            let read = [&one, &other].map(|key| Request::RequestRange(get(key.clone())));
            let Some(Reply::Txn(reply)) =
                self.call(&client, &mut rng, Op::Txn(txn([], read.clone(), []))).await
            else {
                continue;
            };
            let found = reply.responses.iter().map(changed_at);
            let keys = [&one, &other].map(|key| Bytes::from(key.clone()));
            let compares = keys.into_iter().zip(found).map(|(key, at)| if_changed_at(key, at));
            let compares: Vec<_> = compares.collect();
            let then = self.changes(&one, &other, &mut rng);
            let op = Op::Txn(TxnRequest { compare: compares, ..txn([], then, read) });
            self.call(&client, &mut rng, op).await;
            if rng.u8(..6) == 0 {
                self.call(&client, &mut rng, Op::Range(below("t/"))).await;
            }
        }
    }

    /// What a Txn does to two keys.
    fn changes(&self, one: &str, other: &str, rng: &mut Rng) -> Vec<Request> {
        let (one, other) = (one.to_owned(), other.to_owned());
        let first = Request::RequestPut(put(one.clone(), self.value(rng)));
        let last = match rng.u8(..5) {
            0 => Request::RequestDeleteRange(delete(other.clone())),
            1 => {
                let inner = Request::RequestPut(put(other.clone(), self.value(rng)));
                let holds = if_changed_at(other.clone(), 0);
                Request::RequestTxn(txn([holds], [inner], [Request::RequestRange(get(other))]))
            }
            _ => Request::RequestPut(put(other, self.value(rng))),
        };
        vec![first, last, Request::RequestRange(get(one))]
    }

    /// Reads ranges of all sorts: now, stale, and in the past.
    pub(super) async fn reads<D: Door>(&self, client: Client<'_, D>, mut rng: Rng) {
        while !self.stopped.get() {
            let prefix = ["r/", "t/", "l/", "k/", ""][rng.usize(..5)];
            let range = if prefix.is_empty() { all() } else { below(prefix) };
            let from = self.compacted.get().max(1);
            let newest = self.newest.get().max(from);
            let past = match rng.u8(..5) {
                // What is gone, and what is still to come.
                0 => from - rng.i64(1..5),
                1 => newest + rng.i64(0..3),
                _ => rng.i64(from..=newest),
            };
            let range = RangeRequest {
                serializable: rng.bool(),
                revision: if rng.u8(..3) == 0 { past.max(1) } else { 0 },
                limit: if rng.u8(..4) == 0 { rng.i64(1..4) } else { 0 },
                count_only: rng.u8(..8) == 0,
                keys_only: rng.u8(..8) == 0,
                sort_order: if rng.u8(..4) == 0 { rng.i32(0..3) } else { 0 },
                sort_target: rng.i32(0..4),
                ..range
            };
            self.call(&client, &mut rng, Op::Range(range)).await;
            if rng.u8(..4) == 0 {
                client.door.turn();
            }
        }
    }

    /// Compacts now and then, up to what watchers of all keys have seen.
    pub(super) async fn compacts<D: Door>(&self, client: Client<'_, D>, mut rng: Rng) {
        while !self.stopped.get() {
            client.door.sleep(self.mix.pause_max * rng.u32(50..500)).await;
            let seen = self.floors.borrow().values().min().copied().unwrap_or(0);
            let revision = seen - rng.i64(0..300);
            if revision > self.compacted.get() {
                let op = Op::Compact(CompactionRequest { revision, physical: rng.bool() });
                if self.call(&client, &mut rng, op).await.is_some() {
                    self.compacted.set(revision);
                }
            }
        }
    }
}

/// The mod revision of the one key of a read; 0 if it is not there.
fn changed_at(op: &quorate::pb::etcdserverpb::ResponseOp) -> i64 {
    match &op.response {
        Some(quorate::pb::etcdserverpb::response_op::Response::ResponseRange(reply)) => {
            reply.kvs.first().map_or(0, |kv| kv.mod_revision)
        }
        _ => 0,
    }
}
