//! Locks and elections through real connections: whoever is first in line is served, once.
//!
//! | variable | meaning |
//! |---|---|
//! | `QUORATE_WAITERS` | how many clients wait for one lock; 1000 |
//! | `QUORATE_TEST_SERVER` | the binary to test instead of our own |

use std::pin::pin;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt, TryStreamExt, future, stream};
use quorate::clock;
use quorate::pb::etcdserverpb::lease_client::LeaseClient;
use quorate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use quorate::pb::etcdserverpb::{
    DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, RangeRequest, RangeResponse,
};
use quorate::pb::v3electionpb::election_client::ElectionClient;
use quorate::pb::v3electionpb::{
    CampaignRequest, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ResignRequest,
};
use quorate::pb::v3lockpb::lock_client::LockClient;
use quorate::pb::v3lockpb::{LockRequest, LockResponse, UnlockRequest};
use rustix::process::Signal;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::support::client::{channel, http_get, kv};
use crate::support::cluster::Cluster;
use crate::support::server::{Server, program_under_test};
use crate::support::{BUSY, number};

const DEADLINE: Duration = Duration::from_secs(300);

/// How often a condition is looked at that nobody announces.
const POLL: Duration = Duration::from_millis(10);

/// The TTL of leases that are not to end, in seconds.
const LONG: i64 = 600;

async fn grant(channel: &Channel, ttl: i64) -> i64 {
    let mut leases = LeaseClient::new(channel.clone());
    let granted = leases.lease_grant(LeaseGrantRequest { id: 0, ttl }).await;
    granted.expect("a lease is granted").into_inner().id
}

async fn lock(channel: &Channel, name: &str, lease: i64) -> Result<LockResponse, Status> {
    let request = LockRequest { name: name.to_owned().into(), lease };
    LockClient::new(channel.clone()).lock(request).await.map(tonic::Response::into_inner)
}

async fn unlock(channel: &Channel, key: impl Into<Vec<u8>>) {
    let request = UnlockRequest { key: key.into().into() };
    LockClient::new(channel.clone()).unlock(request).await.expect("an unlock");
}

fn key(name: &str, lease: i64) -> String {
    format!("{name}/{lease:x}")
}

/// The line at `name`, the first one in front.
async fn line(channel: &Channel, name: &str, keys_only: bool) -> RangeResponse {
    let request = RangeRequest {
        key: format!("{name}/").into(),
        range_end: format!("{name}0").into(),
        sort_order: SortOrder::Ascend.into(),
        sort_target: SortTarget::Create.into(),
        keys_only,
        count_only: !keys_only,
        ..RangeRequest::default()
    };
    kv(channel.clone()).range(request).await.expect("a Range").into_inner()
}

/// Waits until `count` stand in line at `name`, while `calls` go on and none of them ends.
async fn until_waiting<T: std::fmt::Debug>(
    channel: &Channel,
    (name, count): (&str, i64),
    calls: &mut FuturesUnordered<impl Future<Output = T>>,
) {
    loop {
        let mut look = pin!(line(channel, name, false));
        let found = if calls.is_empty() {
            look.await
        } else {
            tokio::select! {
                found = &mut look => found,
                early = calls.next() => panic!("{early:?} did not wait"),
            }
        };
        if found.count == count {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
}

#[tokio::test]
async fn a_lock_goes_from_member_to_member_in_order() {
    let cluster = Cluster::start(&program_under_test(), 3);
    let members: Vec<Channel> =
        cluster.endpoints().iter().map(|endpoint| channel(endpoint, DEADLINE)).collect();
    let name = "across";
    let mut waiting = FuturesUnordered::new();
    let mut order = Vec::new();
    for turn in 0..9_usize {
        let member = &members[turn % 3];
        let lease = grant(member, LONG).await;
        order.push(key(name, lease));
        if turn == 0 {
            lock(member, name, lease).await.expect("a free lock");
        } else {
            waiting.push(lock(member, name, lease));
        }
        until_waiting(&members[(turn + 1) % 3], (name, turn as i64 + 1), &mut waiting).await;
    }
    let mut held_at = 0;
    for (turn, held) in order.iter().enumerate() {
        unlock(&members[(turn + 1) % 3], held.as_str()).await;
        let Some(next) = waiting.next().await else { break };
        let next = next.expect("a lock");
        assert_eq!(next.key, order[turn + 1]);
        let revision = next.header.expect("a header").revision;
        assert!(revision > held_at, "taken at {revision}, before that at {held_at}");
        held_at = revision;
    }
    assert_eq!(line(&members[0], name, false).await.count, 0);
}

#[tokio::test]
async fn who_goes_away_leaves_the_line_and_wakes_nobody_early() {
    let cluster = Cluster::start(&program_under_test(), 3);
    let at = channel(&cluster.follower().await, DEADLINE);
    let name = "middle";
    let leases: Vec<i64> = stream::iter(0..4).then(|_| grant(&at, LONG)).collect().await;
    lock(&at, name, leases[0]).await.expect("a free lock");
    let mut first = FuturesUnordered::from_iter([lock(&at, name, leases[1])]);
    until_waiting(&at, (name, 2), &mut first).await;
    let mut middle = FuturesUnordered::from_iter([lock(&at, name, leases[2])]);
    until_waiting(&at, (name, 3), &mut middle).await;
    let mut last = FuturesUnordered::from_iter([lock(&at, name, leases[3])]);
    until_waiting(&at, (name, 4), &mut last).await;

    drop(middle);
    until_waiting(&at, (name, 3), &mut last).await;
    unlock(&at, key(name, leases[0])).await;
    let second = tokio::select! {
        second = first.next() => second.unwrap().expect("a lock"),
        early = last.next() => panic!("{early:?} before its turn"),
    };
    assert_eq!(second.key, key(name, leases[1]));
    // The holder's lease ends: that is as good as an unlock.
    let revoke = LeaseRevokeRequest { id: leases[1] };
    LeaseClient::new(at.clone()).lease_revoke(revoke).await.expect("a revoke");
    assert_eq!(last.next().await.unwrap().expect("a lock").key, key(name, leases[3]));
}

#[tokio::test]
async fn an_expired_holder_is_followed_and_an_expired_waiter_is_told() {
    let server = Server::start_alone(&program_under_test());
    let at = channel(server.endpoint(), DEADLINE);
    let name = "expiry";
    let (short, other, long) =
        (grant(&at, 3).await, grant(&at, LONG).await, grant(&at, LONG).await);
    lock(&at, name, short).await.expect("a free lock");
    let mut expiring = FuturesUnordered::from_iter([lock(&at, name, other)]);
    until_waiting(&at, (name, 2), &mut expiring).await;
    let mut last = FuturesUnordered::from_iter([lock(&at, name, long)]);
    until_waiting(&at, (name, 3), &mut last).await;
    let revoke = LeaseRevokeRequest { id: other };
    LeaseClient::new(at.clone()).lease_revoke(revoke).await.expect("a revoke");
    let (told, next) = future::join(expiring.next(), last.next()).await;
    let told = told.unwrap().expect_err("its key is gone");
    assert_eq!((told.code(), told.message()), (Code::Unknown, "mutex: session is expired"));
    assert_eq!(next.unwrap().expect("a lock").key, key(name, long));
    let unknown = lock(&at, name, short).await.expect_err("the lease is gone");
    assert_eq!(unknown.message(), "etcdserver: requested lease not found");
}

/// What the counter `name` of the member at `endpoint` says.
async fn counter(endpoint: &str, name: &str) -> u64 {
    let answer = http_get(endpoint, "/metrics").await;
    let line = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.expect("the counter is there").parse().expect("a number")
}

#[tokio::test]
async fn many_waiters_are_served_in_order_and_one_at_a_time() {
    const EVENTS: &str = "etcd_debugging_mvcc_events_total";
    let _busy = BUSY.lock().await;
    let server = Server::start_alone(&program_under_test());
    let at = channel(server.endpoint(), DEADLINE);
    let count = number("QUORATE_WAITERS", 1000);
    let name = "crowd";
    let leases: Vec<i64> =
        stream::iter(0..=count).map(|_| grant(&at, LONG)).buffered(100).collect().await;
    lock(&at, name, leases[0]).await.expect("a free lock");
    let mut waiting: FuturesUnordered<_> =
        leases[1..].iter().map(|lease| lock(&at, name, *lease)).collect();
    until_waiting(&at, (name, count as i64 + 1), &mut waiting).await;
    let before = counter(server.endpoint(), EVENTS).await;
    let standing = line(&at, name, true).await.kvs;
    let mut took: Vec<Duration> = Vec::new();
    for pair in standing.windows(2) {
        let began = clock::now();
        let (next, ()) = future::join(waiting.next(), unlock(&at, pair[0].key.clone())).await;
        assert_eq!(next.unwrap().expect("a lock").key, pair[1].key);
        took.push(clock::now() - began);
    }
    let told = counter(server.endpoint(), EVENTS).await - before;
    assert_eq!(told, count, "each hand-over wakes one waiter");
    took.sort();
    let (p50, p99) = (took[took.len() / 2], took[took.len() * 99 / 100]);
    eprintln!("{count} hand-overs: p50 {p50:?}, p99 {p99:?}, longest {:?}", took[took.len() - 1]);
}

#[tokio::test]
async fn a_member_with_waiters_stops_when_it_is_told() {
    let mut server = Server::start_alone(&program_under_test());
    let at = channel(server.endpoint(), DEADLINE);
    lock(&at, "stop", 0).await.expect("a free lock");
    let mut waiting = FuturesUnordered::from_iter([lock(&at, "stop", 0)]);
    until_waiting(&at, ("stop", 2), &mut waiting).await;
    server.signal(Signal::TERM);
    let (answer, _) =
        future::join(waiting.next(), server.until_exit(Duration::from_secs(20))).await;
    answer.unwrap().expect_err("the member is gone");
}

async fn campaign(channel: &Channel, lease: i64, value: &str) -> Result<LeaderKey, Status> {
    let (name, value) = ("office".into(), value.to_owned().into());
    let request = CampaignRequest { name, lease, value };
    let answer = ElectionClient::new(channel.clone()).campaign(request).await?.into_inner();
    Ok(answer.leader.expect("who campaigned leads"))
}

async fn resign(channel: &Channel, leader: LeaderKey) {
    let request = ResignRequest { leader: Some(leader) };
    ElectionClient::new(channel.clone()).resign(request).await.expect("a resignation");
}

fn told(response: LeaderResponse) -> (Vec<u8>, i64) {
    let kv = response.kv.expect("a leader has a key");
    assert!(response.header.expect("a header").revision >= kv.mod_revision);
    (kv.value.into(), kv.create_revision)
}

#[tokio::test]
async fn observers_on_every_member_see_each_leader_and_each_proclamation() {
    let cluster = Cluster::start(&program_under_test(), 3);
    let members: Vec<Channel> =
        cluster.endpoints().iter().map(|endpoint| channel(endpoint, DEADLINE)).collect();
    let at = &members[0];
    let observe = |member: &Channel| {
        let mut client = ElectionClient::new(member.clone());
        async move { client.observe(LeaderRequest { name: "office".into() }).await }
    };
    let streams = future::try_join_all(members.iter().map(observe)).await.expect("three streams");
    let mut streams: Vec<_> = streams.into_iter().map(tonic::Response::into_inner).collect();
    let mut expected = Vec::new();
    for turn in 0..5 {
        let (lease, next) = (grant(at, LONG).await, grant(at, LONG).await);
        let leader = campaign(at, lease, &format!("first {turn}")).await.expect("a leader");
        let successor = format!("next {turn}");
        let mut waiting = FuturesUnordered::from_iter([campaign(&members[1], next, &successor)]);
        until_waiting(at, ("office", 2), &mut waiting).await;
        let value = format!("proclaimed {turn}").into();
        let request = ProclaimRequest { leader: Some(leader.clone()), value };
        ElectionClient::new(at.clone()).proclaim(request).await.expect("a proclamation");
        expected.push((format!("first {turn}").into_bytes(), leader.rev));
        expected.push((format!("proclaimed {turn}").into_bytes(), leader.rev));
        for stream in &mut streams {
            let seen = [stream.message().await, stream.message().await];
            let seen = seen.map(|message| told(message.unwrap().unwrap()));
            assert_eq!(seen[..], expected[expected.len() - 2..]);
        }
        resign(at, leader).await;
        let leader = waiting.next().await.unwrap().expect("a leader");
        for stream in &mut streams {
            let seen = told(stream.try_next().await.unwrap().unwrap());
            assert_eq!(seen, (successor.clone().into_bytes(), leader.rev));
        }
        resign(at, leader).await;
    }
}

/// Other than in etcd, which says so.
#[tokio::test]
async fn a_candidate_without_its_key_is_not_told_that_it_leads() {
    let server = Server::start_alone(&program_under_test());
    let at = channel(server.endpoint(), DEADLINE);
    let (first, second) = (grant(&at, LONG).await, grant(&at, LONG).await);
    let leader = campaign(&at, first, "one").await.expect("a leader");
    let mut waiting = FuturesUnordered::from_iter([campaign(&at, second, "two")]);
    until_waiting(&at, ("office", 2), &mut waiting).await;
    let request = DeleteRangeRequest { key: key("office", second).into(), ..Default::default() };
    kv(at.clone()).delete_range(request).await.expect("a delete");
    resign(&at, leader).await;
    let refused = waiting.next().await.unwrap().expect_err("it does not lead");
    assert_eq!((refused.code(), refused.message()), (Code::Unknown, "election: not leader"));
}
