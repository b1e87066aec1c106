//! The client port of a real member: messages and frames that no honest client sends. The member
//! answers or drops them, serves others meanwhile, and does not grow.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use quorate::limits::TXN_DEPTH_MAX;
use quorate::pb::etcdserverpb::request_op::Request;
use quorate::pb::etcdserverpb::{
    AlarmRequest, CompactionRequest, Compare, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest,
    LeaseKeepAliveRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, MemberListRequest,
    PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCancelRequest, WatchCreateRequest,
    WatchProgressRequest, WatchRequest, watch_request,
};
use quorate::pb::quorate::command::command::Body;
use quorate::pb::quorate::command::{Command, Group, Proposal};
use quorate::pb::quorate::peer::ProposeRequest;
use quorate::pb::v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest};
use quorate::pb::v3lockpb::{LockRequest, UnlockRequest};
use quorate::state::check;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::support::client::{channel, get, kv, put};
use crate::support::conformance::client::Client;
use crate::support::fuzz::fuzz;
use crate::support::server::{Server, program_under_test};

/// How long an honest client may have to wait.
const SERVED_WITHIN: Duration = Duration::from_secs(10);

/// How long a call of this file is listened to; some would wait for ever.
const HEARD_FOR: Duration = Duration::from_millis(20);

/// What one target may add to the memory of a member.
const GROWTH_BYTES_MAX: u64 = 256 << 20;

/// A member, and the runtime that talks to it.
struct Victim {
    server: Server,
    runtime: Runtime,
    memory_before: u64,
    inputs: u32,
}

impl Victim {
    fn new() -> Victim {
        let server = Server::start_alone(&program_under_test());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let mut victim = Victim { server, runtime: runtime.unwrap(), memory_before: 0, inputs: 0 };
        victim.assert_serves();
        victim.memory_before = victim.server.memory_bytes("VmRSS").unwrap();
        victim
    }

    fn assert_serves(&mut self) {
        if let Some(status) = self.server.ended() {
            panic!("the member ended with {status}:\n{}", self.server.last_words());
        }
        let endpoint = self.server.endpoint();
        let served = self.runtime.block_on(async {
            kv(channel(endpoint, SERVED_WITHIN)).put(put("honest", "client")).await
        });
        served.expect("an honest client is served");
    }

    /// After each input: looks now and then, since a look costs more than an input.
    fn checked(&mut self) {
        self.inputs += 1;
        if self.inputs.is_multiple_of(32) || std::env::var_os("QUORATE_FUZZ_INPUT").is_some() {
            self.assert_serves();
        } else if let Some(status) = self.server.ended() {
            panic!("the member ended with {status}:\n{}", self.server.last_words());
        }
    }

    fn assert_well(mut self) {
        self.assert_serves();
        let grown = self.server.memory_bytes("VmRSS").unwrap().saturating_sub(self.memory_before);
        assert!(grown < GROWTH_BYTES_MAX, "the member grew by {grown} bytes");
    }
}

/// Every method with a sample of its request.
fn requests() -> Vec<(&'static str, Vec<u8>)> {
    let range = RangeRequest { key: "a".into(), range_end: "\0".into(), ..Default::default() };
    let put =
        PutRequest { key: "a".into(), value: "1".into(), prev_kv: true, ..Default::default() };
    let op = |request| RequestOp { request: Some(request) };
    let txn = TxnRequest {
        compare: Vec::new(),
        success: vec![
            op(Request::RequestPut(put.clone())),
            op(Request::RequestRange(range.clone())),
            op(Request::RequestTxn(TxnRequest::default())),
        ],
        failure: Vec::new(),
    };
    let watch = |request| WatchRequest { request_union: Some(request) }.encode_to_vec();
    let create = WatchCreateRequest {
        key: "a".into(),
        range_end: "b".into(),
        start_revision: 1,
        progress_notify: true,
        filters: vec![0],
        prev_kv: true,
        watch_id: 7,
        fragment: true,
    };
    let leader = LeaderKey { name: "e".into(), key: "e/1".into(), rev: 2, lease: 1 };
    vec![
        ("/etcdserverpb.KV/Range", range.encode_to_vec()),
        ("/etcdserverpb.KV/RangeStream", range.encode_to_vec()),
        ("/etcdserverpb.KV/Put", put.encode_to_vec()),
        ("/etcdserverpb.KV/Txn", txn.encode_to_vec()),
        (
            "/etcdserverpb.KV/DeleteRange",
            DeleteRangeRequest { key: "b".into(), ..Default::default() }.encode_to_vec(),
        ),
        (
            "/etcdserverpb.KV/Compact",
            CompactionRequest { revision: 2, physical: true }.encode_to_vec(),
        ),
        ("/etcdserverpb.Watch/Watch", watch(watch_request::RequestUnion::CreateRequest(create))),
        (
            "/etcdserverpb.Watch/Watch",
            watch(watch_request::RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 7 })),
        ),
        (
            "/etcdserverpb.Watch/Watch",
            watch(watch_request::RequestUnion::ProgressRequest(WatchProgressRequest {})),
        ),
        ("/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest { id: 0, ttl: 3 }.encode_to_vec()),
        ("/etcdserverpb.Lease/LeaseRevoke", LeaseRevokeRequest { id: 5 }.encode_to_vec()),
        ("/etcdserverpb.Lease/LeaseKeepAlive", LeaseKeepAliveRequest { id: 5 }.encode_to_vec()),
        (
            "/etcdserverpb.Lease/LeaseTimeToLive",
            LeaseTimeToLiveRequest { id: 5, keys: true }.encode_to_vec(),
        ),
        ("/etcdserverpb.Lease/LeaseLeases", Vec::new()),
        (
            "/etcdserverpb.Cluster/MemberList",
            MemberListRequest { linearizable: true }.encode_to_vec(),
        ),
        ("/etcdserverpb.Maintenance/Status", Vec::new()),
        ("/etcdserverpb.Maintenance/HashKV", HashKvRequest { revision: 1 }.encode_to_vec()),
        (
            "/etcdserverpb.Maintenance/Alarm",
            AlarmRequest { action: 0, member_id: 1, alarm: 1 }.encode_to_vec(),
        ),
        ("/v3lockpb.Lock/Lock", LockRequest { name: "l".into(), lease: 0 }.encode_to_vec()),
        ("/v3lockpb.Lock/Unlock", UnlockRequest { key: "l/1".into() }.encode_to_vec()),
        (
            "/v3electionpb.Election/Campaign",
            CampaignRequest { name: "e".into(), lease: 0, value: "v".into() }.encode_to_vec(),
        ),
        (
            "/v3electionpb.Election/Proclaim",
            ProclaimRequest { leader: Some(leader), value: "w".into() }.encode_to_vec(),
        ),
        ("/v3electionpb.Election/Leader", LeaderRequest { name: "e".into() }.encode_to_vec()),
        ("/v3electionpb.Election/Observe", LeaderRequest { name: "e".into() }.encode_to_vec()),
        ("/grpc.health.v1.Health/Check", Vec::new()),
    ]
}

/// A call: the first byte chooses the method, the rest is messages with gRPC's prefixes.
fn calls() -> Vec<Vec<u8>> {
    let framed = |(number, (_, body)): (usize, (&str, Vec<u8>))| {
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[number as u8, 0][..], &length, &body].concat()
    };
    requests().into_iter().enumerate().map(framed).collect()
}

#[test]
fn fuzz_requests() {
    let methods = requests();
    let mut victim = Victim::new();
    let endpoint = victim.server.endpoint().to_owned();
    let client = victim.runtime.block_on(Client::connect(&endpoint));
    fuzz("requests", "--test it fuzz_requests", &calls(), |input, random| {
        let Some((first, body)) = input.split_first() else { return };
        let (path, _) = &methods[usize::from(*first) % methods.len()];
        let mut client = client.clone();
        let mut headers = vec![
            ("content-type".to_owned(), Bytes::from_static(b"application/grpc")),
            ("te".to_owned(), Bytes::from_static(b"trailers")),
        ];
        if random.u32(..8) == 0 {
            headers.push(("grpc-encoding".to_owned(), Bytes::from_static(b"gzip")));
        }
        let call = client.http("POST", path, Bytes::copy_from_slice(body), &headers);
        // Whatever comes, also nothing.
        drop(victim.runtime.block_on(async { timeout(HEARD_FOR, call).await }));
        victim.checked();
    });
    victim.assert_well();
}

/// One HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head[..], &stream.to_be_bytes(), payload].concat()
}

/// What clients say on a new connection, in HTTP/2 and HTTP/1.
fn conversations() -> Vec<Vec<u8>> {
    let mut head = vec![0x83, 0x86, 0x04, 20];
    head.extend(b"/etcdserverpb.KV/Put");
    for (name, value) in [
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("grpc-timeout", "1S"),
        ("hasleader", "true"),
        ("x-bin", "AAEC"),
    ] {
        head.push(0);
        for text in [name, value] {
            head.push(text.len() as u8);
            head.extend(text.as_bytes());
        }
    }
    let body =
        PutRequest { key: "k".into(), value: "v".into(), ..Default::default() }.encode_to_vec();
    let message = [&[0, 0, 0, 0, body.len() as u8][..], &body].concat();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let call = [
        &preface[..],
        &frame(4, 0, 0, &[0, 3, 0, 0, 0, 100, 0, 4, 0, 1, 0, 0]),
        &frame(8, 0, 0, &[0, 1, 0, 0]),
        &frame(1, 4, 1, &head),
        &frame(0, 0, 1, &message[..3]),
        &frame(6, 0, 0, b"12345678"),
        &frame(0, 1, 1, &message[3..]),
        &frame(1, 4, 3, &head),
        &frame(3, 0, 3, &[0, 0, 0, 8]),
        &frame(7, 0, 0, &[0; 8]),
    ];
    let http1 = [
        &b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"[..],
        b"GET /metrics HTTP/1.0\r\n\r\n",
        b"POST /version HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nContent-Length: 3\r\nHost: a\r\n\r\nabc",
        b"CONNECT a:1 HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nHost: a\r\n\r\n",
    ];
    http1.into_iter().map(<[u8]>::to_vec).chain([call.concat()]).collect()
}

#[test]
fn fuzz_connections() {
    let mut victim = Victim::new();
    let address = victim.server.endpoint().strip_prefix("http://").unwrap().to_owned();
    fuzz("connections", "--test it fuzz_connections", &conversations(), |input, random| {
        let cut = random.usize(..=input.len());
        let talk = async {
            let mut stream = TcpStream::connect(&address).await.expect("the member accepts");
            // In two pieces; the member may close before the second.
            stream.write_all(&input[..cut]).await.ok();
            tokio::task::yield_now().await;
            stream.write_all(&input[cut..]).await.ok();
            let mut answer = Vec::new();
            drop(timeout(HEARD_FOR / 4, stream.read_to_end(&mut answer)).await);
        };
        victim.runtime.block_on(talk);
        victim.checked();
    });
    victim.assert_well();
}

fn nested(depth: usize) -> TxnRequest {
    let op = |request| vec![RequestOp { request: Some(request) }];
    let put = PutRequest { key: "nested".into(), value: "v".into(), ..Default::default() };
    let mut txn = TxnRequest { success: op(Request::RequestPut(put)), ..Default::default() };
    for _ in 1..depth {
        txn = TxnRequest { success: op(Request::RequestTxn(txn)), ..Default::default() };
    }
    txn
}

#[test]
fn the_deepest_txn_can_be_read_wherever_it_lies() {
    let mut txn = nested(TXN_DEPTH_MAX);
    assert_eq!(check::txn_depth(&txn), TXN_DEPTH_MAX);
    let compare = Compare { key: "k".into(), ..Default::default() };
    txn.compare.push(compare);
    let command = Command { body: Some(Body::Txn(txn)) };
    let group = Group { commands: vec![command], ..Default::default() };
    let forwarded = ProposeRequest { group: Some(group) };
    assert_eq!(ProposeRequest::decode(&forwarded.encode_to_vec()[..]).unwrap(), forwarded);
    let proposal = Proposal { time_unix_ms: 0, groups: forwarded.group.into_iter().collect() };
    assert_eq!(Proposal::decode(&proposal.encode_to_vec()[..]).unwrap(), proposal);
}

/// A Txn in a Txn in a Txn: what the door could still decode was too deep for those who read it
/// in an entry of the log, where it lies a few levels deeper. All members ended, also when started
/// again, and nothing helped.
#[tokio::test]
async fn a_txn_as_deep_as_the_door_lets_it_in_can_be_applied() {
    let mut server = Server::start_alone(&program_under_test());
    let mut kv = kv(channel(server.endpoint(), SERVED_WITHIN));
    let mut taken = Vec::new();
    for depth in 1..=70 {
        match kv.txn(nested(depth)).await {
            Ok(_) => taken.push(depth),
            Err(status) => assert_ne!(status.code(), tonic::Code::Unavailable, "{depth}: {status}"),
        }
        assert_eq!(server.ended(), None, "{depth}:\n{}", server.last_words());
    }
    assert_eq!(taken.last(), Some(&TXN_DEPTH_MAX));
    server.kill().await;
    server.restart();
    server.until_ready().await;
    kv.range(get("nested")).await.expect("the member serves again");
}
