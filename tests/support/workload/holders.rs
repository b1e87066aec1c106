//! Clients that hold leases, and with them keys or a lock.

use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use quorate::pb::etcdserverpb::request_op::Request;
use quorate::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
    PutRequest, RangeRequest,
};

use super::request::{delete, end, get, if_created_at, put, txn};
use super::{Client, Door, Workload};
use crate::support::history::{Op, Reply};

/// The lock that everybody wants.
const LOCK: &str = "k/lock";

/// What the holder of the lock writes.
const WORK: &str = "k/work";

impl Workload {
    /// A lease, and how long it lives.
    async fn grant<D: Door>(
        &self,
        client: &Client<'_, D>,
        rng: &mut Rng,
    ) -> Option<(i64, Duration)> {
        let ttl = self.mix.ttl_seconds_min + rng.i64(0..3);
        let op = Op::Grant(LeaseGrantRequest { id: 0, ttl });
        match self.call(client, rng, op).await {
            Some(Reply::Grant(reply)) => Some((reply.id, Duration::from_secs(reply.ttl as u64))),
            _ => None,
        }
    }

    /// Keeps a lease alive; false if it is gone for certain.
    async fn keep_alive<D: Door>(&self, client: &Client<'_, D>, rng: &mut Rng, id: i64) -> bool {
        let op = Op::KeepAlive(LeaseKeepAliveRequest { id });
        !matches!(self.call(client, rng, op).await, Some(Reply::KeepAlive(reply)) if reply.ttl <= 0)
    }

    /// Holds keys with leases: keeps some alive, revokes some, and waits for others to end.
    pub(super) async fn leases<D: Door>(&self, client: Client<'_, D>, mut rng: Rng) {
        while !self.stopped.get() {
            let Some((id, ttl)) = self.grant(&client, &mut rng).await else { continue };
            let prefix = format!("l/{}/{}/", client.number, self.number());
            for number in 0..rng.u8(1..5) {
                let put = put(format!("{prefix}{number}"), self.value(&mut rng));
                let op = Op::Put(PutRequest { lease: id, ..put });
                self.call(&client, &mut rng, op).await;
            }
            for _ in 0..rng.u8(..5) {
                if self.stopped.get() {
                    return;
                }
                client.door.sleep(ttl.mul_f64(0.2 + 0.4 * rng.f64())).await;
                if rng.u8(..3) == 0 {
                    client.door.turn();
                }
                if !self.keep_alive(&client, &mut rng, id).await {
                    break;
                }
            }
            if rng.u8(..3) == 0 {
                self.call(&client, &mut rng, Op::Revoke(LeaseRevokeRequest { id })).await;
            }
            self.until_gone(&client, &mut rng, (&prefix, id)).await;
        }
    }

    /// Reads until all keys of a lease are gone.
    async fn until_gone<D: Door>(
        &self,
        client: &Client<'_, D>,
        rng: &mut Rng,
        (prefix, id): (&str, i64),
    ) {
        let keys = RangeRequest { range_end: end(prefix), ..get(prefix.to_owned()) };
        while !self.stopped.get() {
            client.door.sleep(Duration::from_millis(rng.u64(50..600))).await;
            if rng.u8(..3) == 0 {
                let op = Op::TimeToLive(LeaseTimeToLiveRequest { id, keys: rng.bool() });
                self.call(client, rng, op).await;
            }
            match self.call(client, rng, Op::Range(keys.clone())).await {
                Some(Reply::Range(reply)) if reply.kvs.is_empty() => return,
                _ => {}
            }
        }
    }

    /// Takes the lock, writes while it is held, and gives it back; or lets its lease end.
    pub(super) async fn locks<D: Door>(&self, client: Client<'_, D>, mut rng: Rng) {
        while !self.stopped.get() {
            let Some((id, ttl)) = self.grant(&client, &mut rng).await else { continue };
            let mine = self.value(&mut rng);
            let Some(created) = self.acquire(&client, &mut rng, (&mine, id)).await else {
                continue;
            };
            let mut left = rng.u8(1..12);
            while left > 0 && !self.stopped.get() {
                left -= 1;
                let then = Request::RequestPut(put(WORK, self.value(&mut rng)));
                let otherwise = Request::RequestRange(get(LOCK));
                let op = Op::Txn(txn([if_created_at(LOCK, created)], [then], [otherwise]));
                match self.call(&client, &mut rng, op).await {
                    Some(Reply::Txn(reply)) if !reply.succeeded => break,
                    _ => {}
                }
                client.door.sleep(ttl.mul_f64(0.3 * rng.f64())).await;
                if rng.bool() && !self.keep_alive(&client, &mut rng, id).await {
                    break;
                }
            }
            // Some holders just go away.
            if rng.u8(..3) > 0 {
                let then = Request::RequestDeleteRange(delete(LOCK));
                let op = Op::Txn(txn([if_created_at(LOCK, created)], [then], []));
                self.call(&client, &mut rng, op).await;
            }
        }
    }

    /// Tries to take the lock for some time; the revision at which it was taken.
    async fn acquire<D: Door>(
        &self,
        client: &Client<'_, D>,
        rng: &mut Rng,
        (mine, lease): (&Bytes, i64),
    ) -> Option<i64> {
        let take = Request::RequestPut(PutRequest { lease, ..put(LOCK, mine.clone()) });
        let look = Request::RequestRange(get(LOCK));
        match self.call(client, rng, Op::Txn(txn([if_created_at(LOCK, 0)], [take], [look]))).await {
            Some(Reply::Txn(reply)) if reply.succeeded => {
                reply.header.map(|header| header.revision)
            }
            Some(_) => {
                client.door.sleep(Duration::from_millis(rng.u64(20..400))).await;
                None
            }
            // Perhaps it is held after all.
            None => match self.call(client, rng, Op::Range(get(LOCK))).await {
                Some(Reply::Range(reply)) => {
                    let held = reply.kvs.iter().find(|kv| kv.value == *mine);
                    held.map(|kv| kv.create_revision)
                }
                _ => None,
            },
        }
    }
}
