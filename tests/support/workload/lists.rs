//! Clients that append to several lists at once, for the judge of Txns.

use bytes::Bytes;
use fastrand::Rng;
use quorate::pb::etcdserverpb::TxnRequest;
use quorate::pb::etcdserverpb::request_op::Request;
use quorate::pb::etcdserverpb::response_op::Response;

use super::request::{get, if_changed_at, put, txn};
use super::{Client, Door, LISTS, Workload};
use crate::support::history::{Op, Reply};

/// A list this long is left alone; the next one begins.
const LIST_BYTES_MAX: usize = 200;

impl Workload {
    /// Reads some lists, appends to some of them if none has changed, and reads the others.
    pub(super) async fn appends<D: Door>(&self, client: Client<'_, D>, mut rng: Rng) {
        while !self.stopped.get() {
            let keys = self.draw_lists(&mut rng);
            let reads = keys.iter().map(|(_, key)| Request::RequestRange(get(key.clone())));
            let reads: Vec<Request> = reads.collect();
            let op = Op::Txn(txn([], reads.clone(), []));
            let Some(Reply::Txn(reply)) = self.call(&client, &mut rng, op).await else { continue };
            let (mut compare, mut then) = (Vec::new(), Vec::new());
            for (((list, key), read), op) in keys.iter().zip(&reads).zip(&reply.responses) {
                let Some(Response::ResponseRange(found)) = &op.response else { continue };
                let pair = found.kvs.first();
                compare.push(if_changed_at(key.clone(), pair.map_or(0, |kv| kv.mod_revision)));
                let before = pair.map(|kv| &kv.value[..]).unwrap_or_default();
                if before.len() > LIST_BYTES_MAX {
                    self.generations.borrow_mut()[*list] += 1;
                }
                if rng.u8(..3) < 2 {
                    let value = self.appended(before, &mut rng);
                    then.push(Request::RequestPut(put(key.clone(), value)));
                } else {
                    then.push(read.clone());
                }
            }
            let op = Op::Txn(TxnRequest { compare, ..txn([], then, reads) });
            self.call(&client, &mut rng, op).await;
        }
    }

    /// Some lists, with their keys.
    fn draw_lists(&self, rng: &mut Rng) -> Vec<(usize, Bytes)> {
        let mut lists: Vec<usize> = (0..LISTS).collect();
        rng.shuffle(&mut lists);
        lists.truncate(rng.usize(1..=LISTS));
        let generations = self.generations.borrow();
        let key = |list: &usize| Bytes::from(format!("a/{list}/{}", generations[*list]));
        lists.iter().map(|list| (*list, key(list))).collect()
    }

    fn appended(&self, before: &[u8], rng: &mut Rng) -> Vec<u8> {
        let mut value = before.to_vec();
        if !value.is_empty() {
            value.push(b';');
        }
        value.extend(self.number().to_string().into_bytes());
        if rng.bool() {
            value.extend(format!(",{}", self.number()).into_bytes());
        }
        value
    }
}
