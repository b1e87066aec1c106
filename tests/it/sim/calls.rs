//! Calls to the etcd door that end otherwise than with an answer: too large, too late, or without a
//! quorum. What etcd 3.7.1 answers was asked of it, or read in its source.

use std::rc::Rc;
use std::sync::Arc;

use quorate::pb::etcdserverpb::kv_client::KvClient;
use quorate::pb::etcdserverpb::request_op;
use quorate::pb::etcdserverpb::watch_client::WatchClient;
use quorate::pb::etcdserverpb::watch_request::RequestUnion;
use quorate::pb::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest,
    WatchRequest,
};
use quorate::raft::Line;
use tokio::time::sleep;
use tonic::{Code, Status};

use super::host::{Host, World};
use super::net::FIRST_CLIENT;
use super::plan::Plan;
use super::run::in_world;

/// A cluster of three that works.
struct Calm<'w> {
    world: &'w Arc<World>,
    hosts: &'w Rc<[Arc<Host>]>,
}

/// Runs `story` on a calm cluster, as `change` wants it.
fn calmly(change: impl FnOnce(&mut Plan), story: impl AsyncFnOnce(&Calm<'_>)) {
    let mut plan = Plan::calm(1);
    change(&mut plan);
    in_world(plan, async |world, hosts| story(&Calm { world, hosts }).await);
}

impl Calm<'_> {
    fn line(&self, member: usize) -> Line {
        self.world.net.line(FIRST_CLIENT, member)
    }

    /// The leader, once a key could be put there.
    async fn leader(&self) -> usize {
        loop {
            let leads = |host: &&Arc<Host>| host.with(|member, _| member.node().is_leader());
            let leader = self.hosts.iter().find(|host| leads(host) == Some(true));
            if let Some(leader) = leader.map(|host| host.number) {
                let put = PutRequest { key: "calm".into(), ..PutRequest::default() };
                if KvClient::new(self.line(leader)).put(put).await.is_ok() {
                    return leader;
                }
            }
            sleep(self.world.plan.heartbeat_interval).await;
        }
    }
}

fn all() -> RangeRequest {
    RangeRequest { key: "k".into(), range_end: "l".into(), ..RangeRequest::default() }
}

fn delete_all() -> DeleteRangeRequest {
    DeleteRangeRequest { key: "k".into(), range_end: "l".into(), prev_kv: true }
}

fn told<T: std::fmt::Debug>(result: Result<T, Status>) -> (Code, String) {
    let status = result.expect_err("no answer");
    (status.code(), status.message().to_owned())
}

/// An answer above 4 GiB ended the member, and one above 2 GiB was sent although nobody could take it.
#[test]
fn answers_that_are_too_large_are_refused() {
    const VALUE: usize = 1000;
    const BYTES_MAX: usize = 5 * VALUE;
    calmly(
        |plan| plan.answer_bytes_max = BYTES_MAX,
        async |calm| {
            let member = calm.leader().await;
            let mut kv = KvClient::new(calm.line(member));
            for number in 0..8 {
                let (key, value) = (format!("k{number}").into(), vec![b'v'; VALUE].into());
                kv.put(PutRequest { key, value, ..PutRequest::default() }).await.unwrap();
            }
            let serializable = RangeRequest { serializable: true, ..all() };
            let (code, text) = told(kv.range(serializable).await);
            assert_eq!(code, Code::ResourceExhausted);
            let size = text.strip_prefix("grpc: trying to send message larger than max (");
            let size = size.and_then(|text| text.strip_suffix(&format!(" vs. {BYTES_MAX})")));
            let size: usize = size.expect(&text).parse().unwrap();
            assert!((8 * VALUE..9 * VALUE).contains(&size), "{size}");
            let few = kv.range(RangeRequest { limit: 4, ..all() }).await.unwrap().into_inner();
            assert_eq!((few.kvs.len(), few.count), (4, 8));

            let twice = (0..2).map(|_| RangeRequest { limit: 4, ..all() });
            let twice = twice.map(request_op::Request::RequestRange);
            let success = twice.map(|request| RequestOp { request: Some(request) }).collect();
            let txn = TxnRequest { success, ..TxnRequest::default() };
            assert_eq!(told(kv.txn(txn).await).0, Code::ResourceExhausted);

            let parts = kv.range_stream(all()).await.unwrap().into_inner();
            assert_eq!(pairs(parts).await.unwrap(), 8, "a stream has as many messages as it needs");
            let sorted = RangeRequest { sort_target: 4, ..all() };
            let parts = kv.range_stream(sorted).await.unwrap().into_inner();
            let (code, text) = told(pairs(parts).await);
            assert_eq!(code, Code::ResourceExhausted);
            assert!(text.starts_with("trying to send message larger than max"), "{text}");

            let mut watch = watch_with_previous(calm.line(member)).await;
            watch.message().await.unwrap().expect("it is created");
            assert_eq!(told(kv.delete_range(delete_all()).await).0, Code::ResourceExhausted);
            assert_eq!(told(watch.message().await).0, Code::ResourceExhausted);
            // As in etcd: what cannot be told has happened.
            assert_eq!(kv.range(all()).await.unwrap().into_inner().count, 0);
        },
    );
}

async fn pairs(
    mut parts: tonic::Streaming<quorate::pb::etcdserverpb::RangeStreamResponse>,
) -> Result<usize, Status> {
    let mut pairs = 0;
    while let Some(part) = parts.message().await? {
        pairs += part.range_response.map_or(0, |part| part.kvs.len());
    }
    Ok(pairs)
}

async fn watch_with_previous(
    line: Line,
) -> tonic::Streaming<quorate::pb::etcdserverpb::WatchResponse> {
    let create = WatchCreateRequest {
        key: "k".into(),
        range_end: "l".into(),
        prev_kv: true,
        ..WatchCreateRequest::default()
    };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = futures_util::stream::iter([create]);
    WatchClient::new(line).watch(requests).await.unwrap().into_inner()
}
