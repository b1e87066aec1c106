//! Calls to the etcd door that end otherwise than with an answer: too large, too late, or without a
//! quorum. What etcd 3.7.1 answers was asked of it, or read in its source.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use quorate::pb::etcdserverpb::kv_client::KvClient;
use quorate::pb::etcdserverpb::lease_client::LeaseClient;
use quorate::pb::etcdserverpb::request_op;
use quorate::pb::etcdserverpb::watch_client::WatchClient;
use quorate::pb::etcdserverpb::watch_request::RequestUnion;
use quorate::pb::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest,
    WatchRequest,
};
use quorate::pb::v3electionpb::election_client::ElectionClient;
use quorate::pb::v3electionpb::{CampaignRequest, LeaderRequest};
use quorate::pb::v3lockpb::LockRequest;
use quorate::pb::v3lockpb::lock_client::LockClient;
use quorate::raft::Line;
use tokio::time::sleep;
use tonic::{Code, Request, Status};

use super::host::{Host, World};
use super::net::{FIRST_CLIENT, LeavesDeadline};
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

    /// Cuts off `member`, and waits until it knows that it has no leader.
    async fn isolate(&self, member: usize) {
        (0..3).filter(|other| *other != member).for_each(|other| {
            for (from, to) in [(member, other), (other, member)] {
                self.world.net.change(from, to, |link| link.is_blocked = true);
            }
        });
        let has_leader =
            || self.hosts[member].with(|member, _| member.node().has_leader()) == Some(true);
        while has_leader() {
            sleep(self.world.plan.heartbeat_interval).await;
        }
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

/// A call with a deadline that only the member looks at.
fn until<T>(timeout: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request.extensions_mut().insert(LeavesDeadline);
    request
}

fn late() -> (Code, String) {
    (Code::DeadlineExceeded, "context deadline exceeded".to_owned())
}

/// Whoever waited for a lock waited on behind their deadline, unless their client said that it is gone.
#[test]
fn calls_end_at_their_deadline() {
    const SOON: Duration = Duration::from_secs(2);
    calmly(
        |_| {},
        async |calm| {
            let member = calm.leader().await;
            let mut kv = KvClient::new(calm.line(member));
            let mut lock = LockClient::new(calm.line(member));
            let mut election = ElectionClient::new(calm.line(member));
            let name = || LockRequest { name: "k".into(), lease: 0 };
            lock.lock(until(SOON, name())).await.expect("a free lock");
            let begun = calm.world.log.now();
            assert_eq!(told(lock.lock(until(SOON, name())).await), late());
            let campaign = CampaignRequest { name: "k".into(), ..CampaignRequest::default() };
            assert_eq!(told(election.campaign(until(SOON, campaign)).await), late());
            let took = calm.world.log.now() - begun;
            assert!((2 * SOON..2 * SOON + Duration::from_millis(500)).contains(&took), "{took:?}");
            // Both leave the line.
            while kv.range(all()).await.unwrap().into_inner().count > 1 {
                sleep(calm.world.plan.heartbeat_interval).await;
            }

            let leader = LeaderRequest { name: "k".into() };
            let mut observed = election.observe(until(SOON, leader)).await.unwrap().into_inner();
            observed.message().await.unwrap().expect("the holder of the lock leads");
            assert_eq!(told(observed.message().await), late());
            let silent = until(SOON, futures_util::stream::pending());
            let mut watch = WatchClient::new(calm.line(member)).watch(silent).await;
            let watch = watch.as_mut().unwrap().get_mut();
            assert_eq!(told(watch.message().await), late());
            let silent = until(SOON, futures_util::stream::pending());
            let mut alive = LeaseClient::new(calm.line(member)).lease_keep_alive(silent).await;
            assert_eq!(told(alive.as_mut().unwrap().get_mut().message().await), late());

            calm.isolate(member).await;
            let put = PutRequest { key: "k".into(), ..PutRequest::default() };
            assert_eq!(told(kv.put(until(SOON, put)).await), late());
        },
    );
}

/// As etcd 3.7.1 answered, two of whose three members had been killed.
#[test]
fn without_a_quorum_calls_end_as_in_etcd() {
    calmly(
        |_| {},
        async |calm| {
            let member = calm.leader().await;
            calm.isolate(member).await;
            let timed_out = "etcdserver: request timed out".to_owned();
            let mut kv = KvClient::new(calm.line(member));
            let range = kv.range(until(Duration::from_secs(60), all())).await;
            assert_eq!(told(range), (Code::Unavailable, timed_out.clone()));
            let put = PutRequest { key: "k".into(), ..PutRequest::default() };
            let put = kv.put(until(Duration::from_secs(60), put)).await;
            assert_eq!(told(put), late());
            let mut election = ElectionClient::new(calm.line(member));
            let leader = LeaderRequest { name: "k".into() };
            let asked = election.leader(until(Duration::from_secs(60), leader.clone())).await;
            assert_eq!(told(asked), (Code::Unknown, timed_out));
            let observed = election.observe(until(Duration::from_secs(60), leader)).await;
            let ended = observed.unwrap().into_inner().message().await;
            assert!(ended.expect("the stream ends well").is_none());
        },
    );
}

/// A write that waits for a leader reaches no log, and says so with a code after which clients of etcd
/// send it again; it was answered as one whose outcome is unknown. As etcd 3.7.1 answered, two of whose
/// three members had been killed.
#[test]
fn a_write_that_found_no_leader_may_be_sent_again() {
    calmly(
        |_| {},
        async |calm| {
            let member = (calm.leader().await + 1) % 3;
            calm.isolate(member).await;
            let kv = KvClient::new(calm.line(member));
            let put = async || {
                let put = PutRequest { key: "k".into(), ..PutRequest::default() };
                told(kv.clone().put(until(Duration::from_secs(60), put)).await)
            };
            // The first may still have been sent to the leader.
            put().await;
            assert_eq!(put().await, late());
        },
    );
}
