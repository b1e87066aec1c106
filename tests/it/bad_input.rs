//! Bytes on the client port that no honest client sends: they are dropped soon, cost little memory,
//! and do not keep others from being served. What a gRPC client can express at all (empty keys, too
//! large or malformed messages, unknown methods and enum values) is in the conformance corpus.
//!
//! | variable | meaning |
//! |---|---|
//! | `QUORATE_IDLE_CONNECTIONS` | how many connections say nothing; 2000 |
//! | `QUORATE_TEST_SERVER` | the binary to test instead of our own |

use std::ffi::OsString;
use std::time::Duration;

use futures_util::future::join_all;
use quorate::clock;
use quorate::pb::etcdserverpb::lease_client::LeaseClient;
use quorate::pb::etcdserverpb::{LeaseGrantRequest, LeaseKeepAliveRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::client::{channel, kv, put};
use crate::support::number;
use crate::support::server::{Launch, Server, program_under_test};

/// How long a member may take to answer an honest client meanwhile.
const SERVED_WITHIN: Duration = Duration::from_secs(10);

/// How long nonsense may stay connected: longer than the bounds in `limits.rs`.
const DROPPED_WITHIN: Duration = Duration::from_secs(45);

/// What the nonsense of one test may add to the memory of a member.
const GROWTH_BYTES_MAX: u64 = 128 << 20;

/// What every HTTP/2 client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

async fn connect(server: &Server) -> TcpStream {
    let address = server.endpoint().strip_prefix("http://").expect("a URL of this test");
    TcpStream::connect(address).await.expect("the member accepts")
}

/// Panics unless an honest client is served.
async fn assert_serves(server: &Server) {
    let mut kv = kv(channel(server.endpoint(), SERVED_WITHIN));
    kv.put(put("honest", "client")).await.expect("an honest client is served");
}

/// Resident memory of `server`.
fn memory(server: &Server) -> u64 {
    server.memory_bytes("VmRSS").expect("a running member has a size")
}

fn assert_small_growth(server: &Server, before: u64, what: &str) {
    let growth = memory(server).saturating_sub(before);
    eprintln!("{what}: {} MiB more", growth >> 20);
    assert!(growth < GROWTH_BYTES_MAX, "{what} cost {growth} bytes");
}

/// One HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head[..], &stream.to_be_bytes(), payload].concat()
}

const HEADERS: u8 = 1;
const END_HEADERS: u8 = 4;

/// The head of a gRPC call.
fn call_head() -> Vec<u8> {
    // HPACK without compression: POST and http by their index, the rest as plain text.
    let mut head = vec![0x83, 0x86];
    let path = b"/etcdserverpb.KV/Put";
    head.extend([0x04, path.len() as u8]);
    head.extend(path);
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
        head.push(0);
        for text in [name, value] {
            head.push(text.len() as u8);
            head.extend(text.as_bytes());
        }
    }
    head
}

/// The preface and empty settings.
fn greeting() -> Vec<u8> {
    const SETTINGS: u8 = 4;
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// The greeting, and the head of a gRPC call on stream 1.
fn open_call() -> Vec<u8> {
    [greeting(), frame(HEADERS, END_HEADERS, 1, &call_head())].concat()
}

/// Sends `bytes` and waits until the member closes the connection.
async fn assert_dropped(server: &Server, what: &str, bytes: &[u8]) {
    let mut stream = connect(server).await;
    // The member may close before it has read everything.
    stream.write_all(bytes).await.ok();
    let mut answer = Vec::new();
    let closed = tokio::time::timeout(DROPPED_WITHIN, stream.read_to_end(&mut answer)).await;
    assert!(closed.is_ok(), "{what}: still connected");
}

#[tokio::test]
async fn what_is_no_http_is_dropped() {
    let server = Server::start_alone(&program_under_test());
    let before = memory(&server);
    let mut noise = vec![0; 64 << 10];
    fastrand::fill(&mut noise);
    let giant_frame = [PREFACE, &[0xff; 9], &noise].concat();
    let endless_head = [&b"GET /health HTTP/1.1\r\n"[..], &b"a: b\r\n".repeat(100_000)].concat();
    let tls_hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &noise[..505]].concat();
    let cases: [(&str, &[u8]); 7] = [
        ("noise", &noise),
        ("a TLS client", &tls_hello),
        ("an HTTP/1 request line of noise", b"\x01\x02\x03 \xff\xfe HTTP/1.1\r\n\r\n"),
        ("an HTTP/1 head without end", &endless_head),
        ("half a preface", &PREFACE[..10]),
        ("noise after the preface", &giant_frame),
        ("a frame that is too large", &[PREFACE, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat()),
    ];
    let dropped = cases.map(|(what, bytes)| assert_dropped(&server, what, bytes));
    futures_util::future::join(join_all(dropped), assert_serves(&server)).await;
    assert_serves(&server).await;
    assert_small_growth(&server, before, "what is no HTTP");
}

/// The length in front of a gRPC message is a claim; nothing may be reserved for it.
#[tokio::test]
async fn a_message_that_claims_to_be_huge_is_refused_at_once() {
    const DATA: u8 = 0;
    const RST_STREAM: u8 = 3;
    const HEADERS: u8 = 1;
    let server = Server::start_alone(&program_under_test());
    let before = memory(&server);
    let claim = [0, 0xff, 0xff, 0xff, 0xff, b'x'];
    let mut streams = Vec::new();
    for _ in 0..100 {
        let mut stream = connect(&server).await;
        let call = [open_call(), frame(DATA, 0, 1, &claim)].concat();
        stream.write_all(&call).await.expect("the member reads a call");
        streams.push(stream);
    }
    for stream in &mut streams {
        let ended = async {
            loop {
                let mut head = [0; 9];
                stream.read_exact(&mut head).await.expect("the connection stays");
                let mut payload =
                    vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
                stream.read_exact(&mut payload).await.expect("a whole frame");
                let on_call = head[5..] == [0, 0, 0, 1];
                if on_call && (head[3] == RST_STREAM || (head[3] == HEADERS && head[4] & 1 == 1)) {
                    return;
                }
            }
        };
        let ended = tokio::time::timeout(SERVED_WITHIN, ended).await;
        assert!(ended.is_ok(), "the call is not refused");
    }
    assert_serves(&server).await;
    assert_small_growth(&server, before, "100 claims of 4 GiB");
}

/// A connection costs little while it is silent, and is closed after a while.
#[tokio::test]
async fn connections_that_say_nothing_cost_little_and_are_dropped() {
    let count = number("QUORATE_IDLE_CONNECTIONS", 2000) as usize;
    let server = Server::start_alone(&program_under_test());
    assert_serves(&server).await;
    let before = memory(&server);
    let mut silent = Vec::with_capacity(count);
    for _ in 0..count {
        silent.push(connect(&server).await);
    }
    let begun = clock::now();
    assert_serves(&server).await;
    assert_small_growth(&server, before, &format!("{count} silent connections"));
    let mut served = 0;
    let dropped = join_all(silent.iter_mut().map(|stream| async {
        let mut byte = [0];
        let read = tokio::time::timeout(DROPPED_WITHIN, stream.read(&mut byte)).await;
        // Either a clean end or a reset.
        assert!(read.is_ok_and(|read| read.unwrap_or(0) == 0), "a silent connection stays");
    }));
    let honest = async {
        loop {
            assert_serves(&server).await;
            served += 1;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::select! {
        _ = dropped => {}
        () = honest => {}
    }
    eprintln!("{count} dropped after {:?}, {served} honest clients served", begun.elapsed());
    assert_serves(&server).await;
}

/// Many large writes at once are taken or refused; the member's memory stays within its bounds.
#[tokio::test]
async fn a_flood_of_large_writes_is_bounded() {
    const WRITERS: usize = 150;
    let server = Server::start_alone(&program_under_test());
    let before = memory(&server);
    let flood = join_all((0..WRITERS).map(|writer| {
        let mut kv = kv(channel(server.endpoint(), Duration::from_secs(60)));
        async move { kv.put(put(format!("flood/{writer}"), vec![b'x'; 1_500_000])).await }
    }));
    let (answers, ()) = futures_util::future::join(flood, assert_serves(&server)).await;
    let refused = answers.iter().filter_map(|answer| answer.as_ref().err());
    let mut count = 0;
    for status in refused {
        assert_eq!(status.message(), "etcdserver: too many requests", "{status:?}");
        count += 1;
    }
    let growth = memory(&server).saturating_sub(before);
    eprintln!("{count} of {WRITERS} large writes refused, {} MiB more", growth >> 20);
    // All of them at once, the values that are kept in memory, and what the log keeps.
    assert!(growth < (WRITERS as u64 * 3 + 512) << 20, "the flood cost {growth} bytes");
    assert_serves(&server).await;
}

/// Many messages of a few bytes at once, each in a frame of its own, are a client in a hurry and no
/// attack: HTTP/2's guard against small frames must not end the connection.
#[tokio::test]
async fn a_burst_of_tiny_messages_does_not_end_the_connection() {
    const MESSAGES: usize = 60_000;
    let server = Server::start_alone(&program_under_test());
    let mut leases = LeaseClient::new(channel(server.endpoint(), Duration::from_secs(60)));
    leases.lease_grant(LeaseGrantRequest { id: 7, ttl: 600 }).await.expect("a lease");
    let burst = futures_util::stream::iter((0..MESSAGES).map(|_| LeaseKeepAliveRequest { id: 7 }));
    let answers = leases.lease_keep_alive(burst).await.expect("the stream opens");
    let mut answers = answers.into_inner();
    let mut count = 0;
    while let Some(answer) = answers.message().await.expect("the stream stays") {
        assert_eq!(answer.ttl, 600);
        count += 1;
    }
    assert_eq!(count, MESSAGES);
}

/// Calls that a client takes back before the member looks at them, as when all their deadlines pass
/// while the member stands still, must not end the connection: there are watches on it.
#[tokio::test]
async fn calls_that_are_taken_back_do_not_end_the_connection() {
    const RST_STREAM: u8 = 3;
    const PING: u8 = 6;
    const GOAWAY: u8 = 7;
    const ACK: u8 = 1;
    const CANCEL: u32 = 8;
    let server = Server::start_alone(&program_under_test());
    let head = call_head();
    let taken_back = (0..1000).flat_map(|call| {
        let stream = 2 * call + 1;
        let reset = frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
        [frame(HEADERS, END_HEADERS, stream, &head), reset].concat()
    });
    let mut bytes = greeting();
    bytes.extend(taken_back);
    bytes.extend(frame(PING, 0, 0, b"quorate!"));
    let mut stream = connect(&server).await;
    stream.write_all(&bytes).await.expect("the member takes it all");
    loop {
        let mut start = [0; 9];
        let read = tokio::time::timeout(SERVED_WITHIN, stream.read_exact(&mut start)).await;
        read.expect("the member answers").expect("the connection stays");
        let length = u32::from_be_bytes([0, start[0], start[1], start[2]]) as usize;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.expect("the rest of a frame");
        assert_ne!(start[3], GOAWAY, "{}", payload.escape_ascii());
        if start[3] == PING && start[4] == ACK {
            return;
        }
    }
}

/// The storage and the log need file descriptors, too: a member without any ended itself.
#[tokio::test]
async fn connections_leave_file_descriptors_to_the_member() {
    const DESCRIPTORS: u64 = 200;
    let program = program_under_test();
    let scratch = tempfile::tempdir().unwrap();
    let limited = format!("ulimit -n {DESCRIPTORS} && exec \"$0\" \"$@\"");
    let mut server = Server::launch(Launch {
        within: ["sh", "-c", &limited].map(OsString::from).to_vec(),
        ..Launch::alone(&program, scratch.path(), &[])
    });
    server.wait_until_ready();
    let mut kv = kv(channel(server.endpoint(), SERVED_WITHIN));
    kv.put(put("before", "")).await.expect("served");
    let mut streams = Vec::new();
    for _ in 0..2 * DESCRIPTORS {
        let mut stream = connect(&server).await;
        // One that says nothing would be dropped by itself.
        stream.write_all(&greeting()).await.ok();
        streams.push(stream);
    }
    let until = clock::now() + Duration::from_secs(4);
    while clock::now() < until {
        kv.put(put("meanwhile", "x".repeat(100_000))).await.expect("served");
    }
    assert!(server.ended().is_none(), "{}", server.last_words());
}
