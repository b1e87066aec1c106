//! Bugs that etcd had, named by the numbers of their issues: none of them may be one of ours.
//!
//! Some are the subject of other tests: 13766 (members differ after crashes under load), 14370 (a
//! member alone forgets a write) and 18055 (snapshots in quick succession) of `crash`, `snapshot` and
//! `sim`; 17529 (events lost when a stream starves) of `watch`; 19406 (latency while compacting) of
//! `benches/`.

use std::time::Duration;

use quorate::pb::etcdserverpb::request_op::Request;
use quorate::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    WatchCreateRequest,
};
use quorate::pb::mvccpb::event::EventType;
use rustix::process::Signal;

use crate::support::client::{assert_same_data, channel, get, kv, put, revision};
use crate::support::cluster::Cluster;
use crate::support::server::{Server, program_under_test};
use crate::support::watch::{Watch, create};
use crate::support::{BUSY, number};

/// For calls that are certain to be answered.
const DEADLINE: Duration = Duration::from_secs(60);

/// A key behind all keys that these tests write.
const END: &str = "~";

async fn write(endpoint: &str, key: &str) -> i64 {
    let answer = kv(channel(endpoint, DEADLINE)).put(put(key, "v")).await.expect("a put");
    revision(&answer.into_inner().header)
}

async fn delete(endpoint: &str, key: &str) -> i64 {
    let request = DeleteRangeRequest { key: key.to_owned().into(), ..Default::default() };
    let answer = kv(channel(endpoint, DEADLINE)).delete_range(request).await.expect("a delete");
    revision(&answer.into_inner().header)
}

async fn compact(endpoint: &str, at: i64) {
    let request = CompactionRequest { revision: at, physical: true };
    kv(channel(endpoint, DEADLINE)).compact(request).await.expect("a compaction");
}

async fn current(endpoint: &str) -> i64 {
    let answer = kv(channel(endpoint, DEADLINE)).range(get("none")).await.expect("a read");
    revision(&answer.into_inner().header)
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

/// 15220: a progress notice must not run ahead of events that are still to come.
#[tokio::test]
async fn progress_is_never_ahead_of_events() {
    let server = Server::start_alone(&program_under_test());
    let endpoint = server.endpoint();
    let count = number("QUORATE_PUTS", 2000) as usize;
    let mut watch = Watch::open(endpoint);
    watch.create(create("k", END, 1));
    assert!(watch.next().await.created);
    let client = kv(channel(endpoint, DEADLINE));
    let writers = futures_util::future::join_all((0..4).map(|writer| {
        let mut client = client.clone();
        async move {
            for number in 0..count / 4 {
                client.put(put(format!("k{writer}/{}", number % 7), "v")).await.expect("a put");
            }
        }
    }));
    let reader = async {
        let (mut events, mut notices, mut told) = (0, 0, 0);
        while events < count {
            watch.request_progress();
            let response = watch.next().await;
            let header = revision(&Some(response.header.expect("a header")));
            if response.events.is_empty() {
                notices += 1;
                told = header;
                continue;
            }
            events += response.events.len();
            let first = response.events[0].kv.as_ref().expect("a pair").mod_revision;
            assert!(first > told, "an event of revision {first} came after progress at {told}");
        }
        notices
    };
    let (_, notices) = tokio::join!(writers, reader);
    assert!(notices > 0, "no notice of progress came between the events");
}

/// 15271 and 20221: a watcher of the future gets nothing older, also on a member that lags behind.
#[tokio::test]
async fn a_watcher_of_the_future_sees_no_past() {
    let cluster = Cluster::start(&program_under_test(), 3);
    let leader = cluster.leader().await;
    let (ahead, behind) = (&cluster.members[leader], &cluster.members[(leader + 1) % 3]);
    let past = write(behind.endpoint(), "k").await;
    let start = past + 21;
    let mut watch = Watch::open(behind.endpoint());
    let options = WatchCreateRequest { progress_notify: true, ..create("k", END, start) };
    watch.create(options);
    assert!(watch.next().await.created);
    behind.signal(Signal::STOP);
    for _ in past + 1..start - 10 {
        write(ahead.endpoint(), "k").await;
    }
    behind.signal(Signal::CONT);
    for _ in start - 10..start + 3 {
        write(ahead.endpoint(), "k").await;
    }
    assert_eq!(watch.revisions(3).await, [start, start + 1, start + 2]);
}

/// 17247: what a Txn writes is told once, whatever it reads before and after.
#[tokio::test]
async fn a_txn_that_reads_and_writes_tells_each_event_once() {
    let server = Server::start_alone(&program_under_test());
    let endpoint = server.endpoint();
    let start = write(endpoint, "a").await + 1;
    let range = || {
        let (key, range_end) = ("a".into(), END.into());
        op(Request::RequestRange(RangeRequest { key, range_end, ..Default::default() }))
    };
    let puts = |key: &str| op(Request::RequestPut(put(key, "v")));
    let success = vec![range(), puts("b"), range(), puts("c"), range()];
    let txn = TxnRequest { success, ..Default::default() };
    kv(channel(endpoint, DEADLINE)).txn(txn).await.expect("a txn");
    let after = write(endpoint, "d").await;
    let mut watch = Watch::open(endpoint);
    watch.create(create("a", END, start));
    assert!(watch.next().await.created);
    assert_eq!(watch.revisions(3).await, [start, start, after]);
}

/// 17780: a crash around a compaction that removes the newest records leaves the revision where it was.
#[tokio::test]
async fn the_revision_does_not_fall_when_the_newest_records_are_compacted() {
    let _busy = BUSY.lock().await;
    let mut server = Server::start_alone(&program_under_test());
    for round in 0..3 {
        let key = format!("k{round}");
        write(server.endpoint(), &key).await;
        let last = delete(server.endpoint(), &key).await;
        compact(server.endpoint(), last).await;
        server.kill().await;
        server.restart();
        server.until_ready().await;
        assert!(current(server.endpoint()).await >= last, "the revision fell below {last}");
        assert!(write(server.endpoint(), "after").await > last);
    }
}

/// 18089 and 19179: the deletion at the compacted revision itself is still told.
#[tokio::test]
async fn a_deletion_at_the_compacted_revision_is_told() {
    let server = Server::start_alone(&program_under_test());
    let endpoint = server.endpoint();
    write(endpoint, "k").await;
    let deleted = delete(endpoint, "k").await;
    let next = write(endpoint, "l").await;
    compact(endpoint, deleted).await;
    let mut watch = Watch::open(endpoint);
    watch.create(create("k", END, deleted));
    assert!(watch.next().await.created);
    let mut events = Vec::new();
    while events.len() < 2 {
        events.extend(watch.next().await.events);
    }
    let told = |at: usize| (events[at].r#type(), events[at].kv.as_ref().unwrap().mod_revision);
    assert_eq!(told(0), (EventType::Delete, deleted));
    assert_eq!(told(1), (EventType::Put, next));
}

/// 18667: a Txn that reads a compacted revision fails on every member alike and changes nothing.
#[tokio::test]
async fn a_txn_that_reads_a_compacted_revision_changes_nothing() {
    let cluster = Cluster::start(&program_under_test(), 3);
    let leader = cluster.leader().await;
    let endpoints = cluster.endpoints();
    let first = write(&endpoints[leader], "k").await;
    let last = write(&endpoints[leader], "k").await;
    compact(&endpoints[leader], last).await;
    for endpoint in &endpoints {
        let read = RangeRequest { key: "k".into(), revision: first, ..Default::default() };
        let write = PutRequest { prev_kv: true, ..put("k", "new") };
        let ops = vec![op(Request::RequestPut(write)), op(Request::RequestRange(read))];
        let txn = TxnRequest { success: ops, ..Default::default() };
        let refused = kv(channel(endpoint, DEADLINE)).txn(txn).await.unwrap_err();
        assert_eq!(
            (refused.code(), refused.message()),
            (tonic::Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted")
        );
    }
    assert_eq!(assert_same_data(&endpoints).await, last);
}

/// 20418: a leader that was stopped and deposed must not answer a read with what it knew before.
#[tokio::test]
async fn a_leader_that_wakes_up_deposed_reads_nothing_stale() {
    let _busy = BUSY.lock().await;
    let cluster = Cluster::start(&program_under_test(), 3);
    let endpoints = cluster.endpoints();
    let leader = cluster.leader().await;
    let old = &cluster.members[leader];
    let connected = kv(channel(old.endpoint(), DEADLINE));
    write(old.endpoint(), "k").await;
    connected.clone().range(get("k")).await.expect("a read");
    old.signal(Signal::STOP);
    // These reads wait in the socket of the stopped leader.
    let reads = futures_util::future::join_all((0..20).map(|_| {
        let mut client = connected.clone();
        async move { client.range(get("k")).await }
    }));
    let reads = tokio::spawn(reads);
    // Only a new leader acknowledges this; a proposal to the old one may have to time out first.
    let other = &endpoints[(leader + 1) % 3];
    let written = loop {
        let mut client = kv(channel(other, DEADLINE));
        if let Ok(answer) = client.put(put("k", "new")).await {
            break revision(&answer.into_inner().header);
        }
    };
    old.signal(Signal::CONT);
    for read in reads.await.expect("the reads do not panic") {
        // An error is right, too.
        let Ok(answer) = read else { continue };
        let found = answer.into_inner().kvs[0].mod_revision;
        assert!(found >= written, "a read found revision {found} after {written} was acknowledged");
    }
    let found = kv(channel(old.endpoint(), DEADLINE)).range(get("k")).await.expect("a read");
    assert!(found.into_inner().kvs[0].mod_revision >= written);
}
