//! Clients of a member that may be dead at the moment: lazy connections with short deadlines.

use std::time::Duration;

use quorate::pb::etcdserverpb::kv_client::KvClient;
use quorate::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate::pb::etcdserverpb::watch_client::WatchClient;
use quorate::pb::etcdserverpb::{
    HashKvRequest, PutRequest, RangeRequest, RangeResponse, ResponseHeader,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};

/// Largest answer that a client of the tests takes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A connection to `endpoint`, made when it is needed and again when it broke; each request on it
/// fails after `deadline`, and then its outcome is unknown.
pub(crate) fn channel(endpoint: &str, deadline: Duration) -> Channel {
    let endpoint = Endpoint::from_shared(endpoint.to_owned()).expect("a client URL is a URL");
    endpoint.connect_timeout(deadline).timeout(deadline).tcp_nodelay(true).connect_lazy()
}

/// The KV service behind `channel`.
pub(crate) fn kv(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// The maintenance service behind `channel`.
pub(crate) fn maintenance(channel: Channel) -> MaintenanceClient<Channel> {
    MaintenanceClient::new(channel)
}

/// A put of `key`.
pub(crate) fn put(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> PutRequest {
    PutRequest { key: key.into().into(), value: value.into().into(), ..PutRequest::default() }
}

/// A linearizable read of `key`.
pub(crate) fn get(key: impl Into<Vec<u8>>) -> RangeRequest {
    RangeRequest { key: key.into().into(), ..RangeRequest::default() }
}

/// The revision of a header.
pub(crate) fn revision(header: &Option<ResponseHeader>) -> i64 {
    header.as_ref().expect("an answer has a header").revision
}

/// All pairs whose keys begin with `prefix`, read linearizably page by page at one revision.
pub(crate) async fn read_all(endpoint: &str, prefix: &str) -> (i64, Vec<RangeResponse>) {
    let mut kv = kv(channel(endpoint, Duration::from_secs(60)));
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().expect("a prefix is not empty") += 1;
    let (mut pages, mut at_revision, mut from) = (Vec::new(), 0, prefix.as_bytes().to_vec());
    loop {
        let request = RangeRequest {
            key: from.into(),
            range_end: end.clone().into(),
            limit: 5000,
            revision: at_revision,
            ..RangeRequest::default()
        };
        let page = kv.range(request).await.expect("a ready member reads").into_inner();
        if at_revision == 0 {
            at_revision = revision(&page.header);
        }
        let next = page.more.then(|| {
            let last = page.kvs.last().expect("a page with more is not empty");
            [&last.key[..], &[0]].concat()
        });
        pages.push(page);
        match next {
            Some(next) => from = next,
            None => return (at_revision, pages),
        }
    }
}

/// What makes two members' data equal: hash, compact revision and the revision hashed at.
pub(crate) async fn hash(endpoint: &str, at_revision: i64) -> (u32, i64, i64) {
    let channel = channel(endpoint, Duration::from_secs(120));
    // A linearizable read first, so that the member has applied up to the revision.
    kv(channel.clone()).range(get("hash")).await.expect("a ready member reads");
    let request = HashKvRequest { revision: at_revision };
    let answer = maintenance(channel).hash_kv(request).await.expect("a ready member hashes");
    let answer = answer.into_inner();
    (answer.hash, answer.compact_revision, answer.hash_revision)
}

/// Panics unless all members have the same data up to one revision, which is returned.
pub(crate) async fn assert_same_data(endpoints: &[String]) -> i64 {
    let mut any = kv(channel(&endpoints[0], Duration::from_secs(60)));
    let answer = any.range(get("hash")).await.expect("a ready member reads").into_inner();
    let at_revision = revision(&answer.header);
    let mut hashes = Vec::new();
    for endpoint in endpoints {
        hashes.push(hash(endpoint, at_revision).await);
    }
    let same = hashes.iter().all(|hash| *hash == hashes[0]);
    assert!(same, "members differ at revision {at_revision}: {hashes:?}");
    at_revision
}

/// The Watch service behind `channel`.
pub(crate) fn watch(channel: Channel) -> WatchClient<Channel> {
    WatchClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// What the member at `endpoint` answers to an HTTP GET of `path`.
pub(crate) async fn http_get(endpoint: &str, path: &str) -> String {
    http_request(endpoint, "GET", path, "").await.1
}

/// Head and body of the answer to an HTTP/1 request with the header lines `more`, each with its end.
pub(crate) async fn http_request(
    endpoint: &str,
    method: &str,
    path: &str,
    more: &str,
) -> (String, String) {
    let address = endpoint.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.expect("a member listens");
    let request =
        format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\n{more}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.to_owned(), body.to_owned())
}
