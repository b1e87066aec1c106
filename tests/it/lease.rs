//! Leases as clients see them: keys go when they must, never before, whoever leads meanwhile.
//!
//! | variable | meaning |
//! |---|---|
//! | `QUORATE_KILLS` | how many leaders are killed after keep-alives; 2 |
//! | `QUORATE_LEASES` | how many leases end at once; 1000 |
//! | `QUORATE_STRICT=1` | puts may take three times as long meanwhile, not ten times, and all leases go within 2 s |
//! | `QUORATE_TEST_SERVER` | the binary to test instead of our own |

use std::cell::Cell;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use quorate::clock;
use quorate::pb::etcdserverpb::lease_client::LeaseClient;
use quorate::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseRevokeRequest, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, PutRequest, RangeRequest,
};
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use crate::support::client::{self, channel, kv, put, revision};
use crate::support::cluster::Cluster;
use crate::support::server::{Server, program_under_test};
use crate::support::{BUSY, number};

const DEADLINE: Duration = Duration::from_secs(10);

/// How often a condition is looked at that nobody announces.
const POLL: Duration = Duration::from_millis(10);

fn leases(endpoint: &str) -> LeaseClient<Channel> {
    LeaseClient::new(channel(endpoint, DEADLINE))
}

/// Grants a lease and puts `keys` on it.
async fn grant(endpoint: &str, id: i64, ttl: i64, keys: &[&str]) {
    let channel = channel(endpoint, DEADLINE);
    let granted =
        LeaseClient::new(channel.clone()).lease_grant(LeaseGrantRequest { id, ttl }).await;
    let granted = granted.expect("a lease is granted").into_inner();
    assert_eq!((granted.id, granted.ttl), (id, ttl));
    for key in keys {
        let request = PutRequest { lease: id, ..put(*key, "x") };
        kv(channel.clone()).put(request).await.expect("a put on a lease");
    }
}

async fn time_to_live(endpoint: &str, id: i64) -> LeaseTimeToLiveResponse {
    let request = LeaseTimeToLiveRequest { id, keys: true };
    let answer = leases(endpoint).lease_time_to_live(request).await;
    answer.expect("a leader knows the time").into_inner()
}

/// How many keys begin with `prefix` on this very member, and its revision.
async fn count(endpoint: &str, prefix: &str) -> Option<(i64, i64)> {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().expect("a prefix is not empty") += 1;
    let request = RangeRequest {
        key: prefix.as_bytes().to_vec().into(),
        range_end: end.into(),
        serializable: true,
        ..RangeRequest::default()
    };
    let answer = kv(channel(endpoint, DEADLINE)).range(request).await.ok()?.into_inner();
    Some((answer.count, revision(&answer.header)))
}

/// Waits until no key begins with `prefix` on this member, and tells when that was seen.
async fn until_gone(endpoint: &str, prefix: &str, keys: i64) -> Instant {
    let deadline = clock::now() + Duration::from_secs(60);
    loop {
        match count(endpoint, prefix).await {
            Some((0, _)) => return clock::now(),
            Some((left, at)) => assert_eq!(left, keys, "a lease goes as a whole, revision {at}"),
            None => {}
        }
        assert!(clock::now() < deadline, "the keys {prefix}… do not go");
        tokio::time::sleep(POLL).await;
    }
}

/// One stream of keep-alives.
struct KeepAlives {
    requests: mpsc::Sender<LeaseKeepAliveRequest>,
    answers: Streaming<LeaseKeepAliveResponse>,
}

impl KeepAlives {
    async fn open(endpoint: &str) -> KeepAlives {
        let (requests, receiver) = mpsc::channel(100);
        let requests_stream = stream::unfold(receiver, |mut receiver| async move {
            Some((receiver.recv().await?, receiver))
        });
        let answers = leases(endpoint).lease_keep_alive(requests_stream).await;
        KeepAlives { requests, answers: answers.expect("a stream opens").into_inner() }
    }

    async fn send(&self, id: i64) {
        self.requests.send(LeaseKeepAliveRequest { id }).await.expect("the stream is open");
    }

    /// The next answer's lease and TTL.
    async fn next(&mut self) -> (i64, i64) {
        let answer = self.answers.message().await.expect("no error").expect("an answer");
        assert!(revision(&answer.header) > 0);
        (answer.id, answer.ttl)
    }
}

/// Attaching, time to live, listing, keep-alive, revoke, expiry: each through every member.
#[tokio::test]
async fn leases_work_through_every_member() {
    let cluster = Cluster::start(&program_under_test(), 3);
    cluster.leader().await;
    let endpoints = cluster.endpoints();
    for (at, endpoint) in endpoints.iter().enumerate() {
        let id = at as i64 + 1;
        grant(endpoint, id, 600 - at as i64, &[&format!("{at}/b"), &format!("{at}/a")]).await;
        grant(endpoint, id + 10, 2, &[&format!("{at}/x"), &format!("{at}/y")]).await;
    }
    for (at, endpoint) in endpoints.iter().enumerate() {
        let id = at as i64 + 1;
        let mut stream = KeepAlives::open(endpoint).await;
        for known in [id, 77, id] {
            stream.send(known).await;
        }
        let granted = 600 - at as i64;
        assert_eq!(stream.next().await, (id, granted));
        assert_eq!(stream.next().await, (77, 0));
        assert_eq!(stream.next().await, (id, granted));
        let KeepAlives { requests, mut answers } = stream;
        drop(requests);
        assert!(answers.message().await.expect("half-close ends well").is_none());

        for other in &endpoints {
            let time = time_to_live(other, id).await;
            assert_eq!(time.granted_ttl, granted);
            assert!((granted - 60..=granted).contains(&time.ttl), "{time:?}");
            assert_eq!(time.keys, [format!("{at}/a"), format!("{at}/b")]);
        }
        assert_eq!(time_to_live(endpoint, 77).await.ttl, -1);
        until_gone(endpoint, &format!("{at}/x"), 1).await;
        assert_eq!(count(endpoint, &format!("{at}/y")).await.map(|seen| seen.0), Some(0));
    }
    let listed = leases(&endpoints[0]).lease_leases(LeaseLeasesRequest {}).await;
    let listed = listed.expect("a list").into_inner().leases;
    assert_eq!(listed.len(), 3, "the short ones are gone");
    for (at, endpoint) in endpoints.iter().enumerate() {
        let revoke = |id| LeaseRevokeRequest { id };
        let id = at as i64 + 1;
        leases(endpoint).lease_revoke(revoke(id)).await.expect("a revoke");
        let again = leases(endpoint).lease_revoke(revoke(id)).await.unwrap_err();
        assert_eq!(again.code(), Code::NotFound);
        assert_eq!(count(endpoint, &format!("{at}/")).await.map(|seen| seen.0), Some(0));
    }
    client::assert_same_data(&endpoints).await;
}

/// A lease outlives its member: what is left of its time is left after a start.
#[tokio::test]
async fn a_restart_keeps_leases_and_their_time() {
    let scratch = tempfile::tempdir().unwrap();
    let launch = crate::support::server::Launch::alone(
        &program_under_test(),
        &scratch.path().join("data"),
        &[],
    );
    let mut server = Server::launch(launch);
    server.until_ready().await;
    let endpoint = server.endpoint().to_owned();
    grant(&endpoint, 1, 600, &["long"]).await;
    grant(&endpoint, 2, 3, &["short/1", "short/2"]).await;
    let granted = clock::now();
    server.kill().await;
    server.restart();
    server.until_ready().await;
    let time = time_to_live(&endpoint, 1).await;
    assert!((540..=600).contains(&time.ttl), "{time:?}");
    assert_eq!(time.keys, ["long"]);
    let gone = until_gone(&endpoint, "short/", 2).await;
    assert!(gone >= granted + Duration::from_secs(3), "gone before its time");
    assert_eq!(time_to_live(&endpoint, 2).await.ttl, -1);
}

/// What is known of one lease when its leader is killed.
struct Kept {
    id: i64,
    ttl: i64,
    /// When the last keep-alive that was answered had been sent, and when the answer was here.
    sent: Instant,
    answered: Instant,
}

/// Leaders are killed right after they answered keep-alives, `QUORATE_KILLS` times: no lease ends
/// before its TTL after that is over, and none lives two seconds and an election longer.
#[tokio::test]
async fn a_killed_leader_neither_shortens_nor_prolongs_leases() {
    let _busy = BUSY.lock().await;
    let mut cluster = Cluster::start(&program_under_test(), 3);
    for round in 0..number("QUORATE_KILLS", 2) {
        let leader = cluster.leader().await;
        let endpoint = cluster.members[leader].endpoint().to_owned();
        let kept = keep_some_alive(&endpoint, round as i64).await;
        cluster.members[leader].kill().await;
        let killed = clock::now();
        let survivors: Vec<String> = (0..3)
            .filter(|at| *at != leader)
            .map(|at| cluster.members[at].endpoint().to_owned())
            .collect();
        let election = async {
            loop {
                let key = client::get("election");
                if kv(channel(&survivors[0], DEADLINE)).range(key).await.is_ok() {
                    return clock::now() - killed;
                }
            }
        };
        let gone = kept.iter().enumerate().map(|(at, one)| {
            let endpoint = survivors[at % 2].clone();
            async move { until_gone(&endpoint, &format!("{}/", one.id), 3).await }
        });
        let (election, gone) = tokio::join!(election, futures_util::future::join_all(gone));
        for (one, gone) in kept.iter().zip(gone) {
            let lived = gone - one.answered;
            let (id, ttl) = (one.id, Duration::from_secs(one.ttl as u64));
            assert!(gone >= one.sent + ttl, "lease {id} of {ttl:?} lived only {lived:?}");
            let bound = ttl + Duration::from_secs(2) + election;
            assert!(lived <= bound, "lease {id} lived {lived:?}, more than {bound:?}");
            eprintln!(
                "round {round}: lease {id} of {ttl:?} lived {lived:?}, election {election:?}"
            );
        }
        cluster.members[leader].restart();
        cluster.members[leader].until_ready().await;
    }
    client::assert_same_data(&cluster.endpoints()).await;
}

/// Leases of several TTLs with three keys each, kept alive for more than a second up to now: some
/// of the last answers come from the log, some from memory.
async fn keep_some_alive(endpoint: &str, round: i64) -> Vec<Kept> {
    let began = clock::now();
    let mut kept: Vec<Kept> = (0..8)
        .map(|at| Kept {
            id: 100 * (round + 1) + at,
            ttl: 2 + at / 2,
            sent: began,
            answered: began,
        })
        .collect();
    let granted = kept.iter().map(|Kept { id, ttl, .. }| async move {
        let keys = ["a", "b", "c"].map(|key| format!("{id}/{key}"));
        grant(endpoint, *id, *ttl, &keys.each_ref().map(String::as_str)).await;
    });
    futures_util::future::join_all(granted).await;
    let mut stream = KeepAlives::open(endpoint).await;
    let until = clock::now() + Duration::from_millis(1300 + 170 * (round as u64 % 6));
    while clock::now() < until {
        for one in &mut kept {
            let sent = clock::now();
            stream.send(one.id).await;
            assert_eq!(stream.next().await, (one.id, one.ttl));
            (one.sent, one.answered) = (sent, clock::now());
        }
    }
    kept
}

/// Latencies of puts, each with the moment it began.
type Latencies = Vec<(Instant, Duration)>;

/// Puts one key after the other until `done`.
async fn put_until(endpoint: &str, writer: usize, done: &Cell<bool>) -> Latencies {
    let mut kv = kv(channel(endpoint, DEADLINE));
    let mut latencies = Vec::new();
    while !done.get() {
        let began = clock::now();
        kv.put(put(format!("put/{writer}"), "x")).await.expect("a put during the storm");
        latencies.push((began, clock::now() - began));
    }
    latencies
}

/// The time that 99 of 100 puts that began in a span did not exceed, and how many there were.
fn p99(latencies: &Latencies, from: Instant, to: Instant) -> (Duration, usize) {
    let in_span = latencies.iter().filter(|(began, _)| (from..to).contains(began));
    let mut in_span: Vec<Duration> = in_span.map(|(_, latency)| *latency).collect();
    in_span.sort_unstable();
    assert!(in_span.len() > 100, "only {} puts in a span", in_span.len());
    (in_span[in_span.len() * 99 / 100], in_span.len())
}

/// `QUORATE_LEASES` leases with a key each end at once: all keys go, and puts hardly notice.
#[tokio::test]
async fn leases_that_end_at_once_do_not_hold_up_puts() {
    let _busy = BUSY.lock().await;
    let count = number("QUORATE_LEASES", 1000) as i64;
    let server = Server::start_alone(&program_under_test());
    let endpoint = server.endpoint();
    let ttl = 4 + count / 500;
    let channel = channel(endpoint, Duration::from_secs(60));
    let granted = stream::iter(1..=count).for_each_concurrent(64, |id| {
        let channel = channel.clone();
        async move {
            let request = LeaseGrantRequest { id, ttl };
            LeaseClient::new(channel.clone()).lease_grant(request).await.expect("a grant");
            let request = PutRequest { lease: id, ..put(format!("lease/{id}"), "x") };
            kv(channel).put(request).await.expect("a put on a lease");
        }
    });
    granted.await;
    let mut stream = KeepAlives::open(endpoint).await;
    let requests = stream.requests.clone();
    let send = async {
        for id in 1..=count {
            requests.send(LeaseKeepAliveRequest { id }).await.expect("the stream is open");
        }
    };
    let receive = async {
        for id in 1..=count {
            assert_eq!(stream.next().await, (id, ttl));
        }
    };
    tokio::join!(send, receive);
    let renewed = clock::now();

    let done = Cell::new(false);
    let writers = futures_util::future::join_all((0..8).map(|at| put_until(endpoint, at, &done)));
    let storm = async {
        tokio::time::sleep_until((renewed + Duration::from_secs(ttl as u64 - 1)).into()).await;
        let mut first = None;
        loop {
            let (left, _) = self::count(endpoint, "lease/").await.expect("a count");
            first = first.or_else(|| (left < count).then(clock::now));
            if left == 0 {
                done.set(true);
                return (first.expect("it began"), clock::now());
            }
            tokio::time::sleep(POLL).await;
        }
    };
    let (latencies, (first, last)) = tokio::join!(writers, storm);
    let latencies = latencies.concat();
    // It was noticed a moment after it began.
    let first = first - 3 * POLL;
    let (quiet, quiet_puts) = p99(&latencies, renewed, first);
    let (stormy, stormy_puts) = p99(&latencies, first, last);
    eprintln!(
        "{count} leases went in {:?}; p99 of {quiet_puts} puts before: {quiet:?}, of {stormy_puts} \
         during it: {stormy:?}",
        last - first
    );
    // On a machine that does other work the tail is not ours alone.
    let is_strict = number("QUORATE_STRICT", 0) == 1;
    let times = if is_strict { 3 } else { 10 };
    let late = (last - renewed).saturating_sub(Duration::from_secs(ttl as u64));
    assert!(!is_strict || late <= Duration::from_secs(2), "the last lease went {late:?} late");
    let bound = times * quiet.max(Duration::from_millis(5));
    assert!(stormy <= bound, "{stormy:?} is over {bound:?}");
}
