//! Watches through real connections: the rules of the API on one member, and the promises on three.
//!
//! | variable | meaning |
//! |---|---|
//! | `QUORATE_WATCH_EVENTS` | how many events the recorded history delivers; 20,000 |
//! | `QUORATE_WATCH_KILLS` | how often a member is killed meanwhile; 4 |
//! | `QUORATE_SEED` | the seed that a failed run printed |
//! | `QUORATE_TEST_SERVER` | the binary to test instead of our own |

use std::cell::Cell;
use std::time::Duration;

use futures_util::future::{join, join_all, join3};
use quorate::pb::etcdserverpb::request_op::Request;
use quorate::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, RequestOp, StatusRequest, TxnRequest, WatchCreateRequest,
};
use rustix::process::Signal;

use crate::support::client::{
    assert_same_data, channel, get, http_get, kv, maintenance, put, revision,
};
use crate::support::cluster::Cluster;
use crate::support::server::{Server, program_under_test};
use crate::support::watch::{Watch, create};
use crate::support::watch_history::{History, Recorder};
use crate::support::{BUSY, number, seed};

const DEADLINE: Duration = Duration::from_secs(10);

async fn write(endpoint: &str, key: &str, value: &str) -> i64 {
    let mut kv = kv(channel(endpoint, DEADLINE));
    revision(&kv.put(put(key, value)).await.expect("a put").into_inner().header)
}

fn delete(key: &str, end: &str) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
        ..DeleteRangeRequest::default()
    }
}

/// Creates one watcher and takes the answer; returns its id.
async fn begin(watch: &mut Watch, request: WatchCreateRequest) -> i64 {
    watch.create(request);
    let created = watch.next().await;
    assert!(created.created && !created.canceled, "{created:?}");
    created.watch_id
}

#[tokio::test]
async fn watchers_begin_and_end_as_in_etcd() {
    let server = Server::start_alone(&program_under_test());
    let at = server.endpoint();
    let mut watch = Watch::open(at);
    assert_eq!(begin(&mut watch, create("a", "", 0)).await, 0);
    let first = write(at, "a", "1").await;
    let event = watch.next().await;
    assert_eq!((revision(&event.header), event.watch_id, event.events.len()), (first, 0, 1));
    let chosen = WatchCreateRequest { watch_id: 7, ..create("a", "c", first) };
    assert_eq!(begin(&mut watch, chosen.clone()).await, 7);
    assert_eq!(watch.revisions(1).await, [first]);
    for (request, reason) in [
        (chosen, "mvcc: duplicate watch ID provided on the WatchStream"),
        (create("b", "a", 0), "mvcc: watcher range is empty"),
        (create("b", "", -1), "etcdserver: mvcc: required revision has been compacted"),
    ] {
        watch.create(request);
        let refused = watch.next().await;
        assert_eq!((refused.watch_id, refused.created, refused.canceled), (-1, true, true));
        assert_eq!(refused.cancel_reason, reason);
    }
    watch.cancel(99);
    watch.cancel(0);
    let canceled = watch.next().await;
    assert_eq!((canceled.watch_id, canceled.canceled), (0, true));
    write(at, "a", "2").await;
    assert_eq!(watch.next().await.watch_id, 7);
    watch.request_progress();
    let progress = watch.next().await;
    assert_eq!((progress.watch_id, revision(&progress.header)), (-1, first + 1));
    watch.half_close();
    write(at, "b", "").await;
    assert_eq!(watch.revisions(1).await, [first + 2]);
}

#[tokio::test]
async fn a_compacted_start_is_created_and_then_canceled() {
    let server = Server::start_alone(&program_under_test());
    let at = server.endpoint();
    for number in 0..5 {
        write(at, "a", &number.to_string()).await;
    }
    let mut kv = kv(channel(at, DEADLINE));
    kv.compact(CompactionRequest { revision: 4, physical: true }).await.unwrap();
    let mut watch = Watch::open(at);
    let id = begin(&mut watch, create("a", "", 2)).await;
    let canceled = watch.next().await;
    assert_eq!((canceled.watch_id, canceled.canceled), (id, true));
    assert_eq!((canceled.compact_revision, revision(&canceled.header)), (4, 0));
    assert_eq!(canceled.cancel_reason, "");
    begin(&mut watch, WatchCreateRequest { prev_kv: true, ..create("a", "", 4) }).await;
    let response = watch.next().await;
    let prevs: Vec<Option<i64>> = response
        .events
        .iter()
        .map(|event| event.prev_kv.as_ref().map(|kv| kv.mod_revision))
        .collect();
    assert_eq!(prevs, [None, Some(4), Some(5)]);
}

#[tokio::test]
async fn filters_fragments_and_progress_notices() {
    let flags = ["--watch-progress-notify-interval=100ms", "--max-request-bytes=100000"];
    let cluster = Cluster::start_with(&program_under_test(), 1, &flags);
    let at = cluster.members[0].endpoint();
    let mut watch = Watch::open(at);
    let noput = WatchCreateRequest { filters: vec![0], ..create("a", "\0", 0) };
    begin(&mut watch, noput).await;
    let first = write(at, "a", "1").await;
    let mut client = kv(channel(at, DEADLINE));
    client.delete_range(delete("a", "")).await.unwrap();
    let deleted = watch.next().await;
    assert_eq!((revision(&deleted.header), deleted.events[0].r#type), (first + 1, 1));
    let notified = WatchCreateRequest { progress_notify: true, ..create("quiet", "", 0) };
    let id = begin(&mut watch, notified).await;
    let progress = watch.next().await;
    assert_eq!((progress.watch_id, revision(&progress.header)), (id, first + 1));
    assert!(progress.events.is_empty());
    drop(watch);

    let value = "x".repeat(60_000);
    for number in 0..20 {
        write(at, &format!("big{number}"), &value).await;
    }
    let mut watch = Watch::open(at);
    let from_big = WatchCreateRequest { fragment: true, ..create("big", "bih", first + 2) };
    begin(&mut watch, from_big).await;
    let (mut events, mut fragments) = (0, 0);
    while events < 20 {
        let response = watch.next().await;
        events += response.events.len();
        fragments += usize::from(response.fragment);
        let bytes: usize =
            response.events.iter().map(|it| it.kv.as_ref().unwrap().value.len()).sum();
        assert!(bytes < 100_000 + 512 * 1024, "{bytes} bytes in one message");
    }
    eprintln!("{fragments} fragments");
}

#[tokio::test]
async fn one_reader_that_does_not_read_delays_nobody_and_loses_nothing() {
    let server = Server::start_alone(&program_under_test());
    let at = server.endpoint();
    let mut slow = Watch::open(at);
    begin(&mut slow, WatchCreateRequest { prev_kv: true, ..create("k", "l", 0) }).await;
    let mut quick = Watch::open(at);
    begin(&mut quick, create("k", "l", 0)).await;
    let count = number("QUORATE_SLOW_EVENTS", 2000) as usize;
    let value = "v".repeat(4000);
    let client = kv(channel(at, DEADLINE));
    let writer = |from: usize| {
        let (mut client, value) = (client.clone(), value.clone());
        async move {
            for key in (from..count).step_by(8) {
                client.put(put(format!("k{}", key % 100), value.clone())).await.unwrap();
            }
        }
    };
    let writers = join_all((0..8).map(writer));
    let (_, revisions) = join(writers, quick.revisions(count)).await;
    assert!(revisions.is_sorted() && revisions.len() == count);
    assert_eq!(slow.revisions(count).await, revisions);
    let next = write(at, "k", "").await;
    assert_eq!(slow.revisions(1).await, [next]);
}

#[tokio::test]
async fn many_watchers_on_one_stream_and_on_every_member() {
    let cluster = Cluster::start(&program_under_test(), 3);
    let endpoints = cluster.endpoints();
    let mut watches = Vec::new();
    for endpoint in &endpoints {
        let mut watch = Watch::open(endpoint);
        for number in 0..1000 {
            // Half of them match.
            let key = if number % 2 == 0 { "hit".to_owned() } else { format!("miss{number}") };
            begin(&mut watch, create(&key, "", 0)).await;
        }
        watches.push(watch);
    }
    let follower = cluster.follower().await;
    let first = write(&follower, "hit", "1").await;
    write(&endpoints[0], "hit", "2").await;
    for watch in &mut watches {
        let mut revisions = watch.revisions(1000).await;
        revisions.sort_unstable();
        assert_eq!(revisions, [vec![first; 500], vec![first + 1; 500]].concat());
        for id in (0..1000).step_by(2) {
            watch.cancel(id);
        }
        for _ in 0..500 {
            assert!(watch.next().await.canceled);
        }
    }
}

#[tokio::test]
async fn hasleader_ends_a_stream_when_the_majority_is_gone() {
    let mut cluster = Cluster::start(&program_under_test(), 3);
    let leader = cluster.leader().await;
    let left = (leader + 1) % 3;
    let endpoint = cluster.members[left].endpoint().to_owned();
    let mut guarded = Watch::open_with(&endpoint, true);
    begin(&mut guarded, create("a", "", 0)).await;
    let mut plain = Watch::open(&endpoint);
    begin(&mut plain, create("a", "", 0)).await;
    for at in (0..3).filter(|at| *at != left) {
        cluster.members[at].kill().await;
    }
    let ended = tokio::time::timeout(Duration::from_secs(30), guarded.try_next()).await;
    let status = ended.expect("the stream ends").unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (tonic::Code::Unavailable, "etcdserver: no leader")
    );
    let refused = Watch::open_with(&endpoint, true).try_next().await.unwrap_err();
    assert_eq!(refused.message(), "etcdserver: no leader");
    let status = maintenance(channel(&endpoint, DEADLINE)).status(StatusRequest {}).await.unwrap();
    let status = status.into_inner();
    assert_eq!((status.leader, status.errors), (0, vec!["etcdserver: no leader".to_owned()]));
    let health = http_get(&endpoint, "/health").await;
    assert_eq!(health, "{\"health\":\"false\",\"reason\":\"RAFT NO LEADER\"}\n");
    assert_eq!(http_get(&endpoint, "/livez?verbose").await, "[+]serializable_read ok\nok\n");
    let ready = http_get(&endpoint, "/readyz?exclude=data_corruption").await;
    let failed =
        "[+]serializable_read ok\n[-]linearizable_read failed: etcdserver: request timed out\n";
    assert_eq!(ready, format!("{failed}[+]non_learner ok\n\n"));
    cluster.members[leader].restart();
    cluster.members[leader].until_ready().await;
    write(&endpoint, "a", "").await;
    assert_eq!(plain.revisions(1).await.len(), 1);
}

/// A follower that was stopped while the log went on gets a snapshot; its watchers must not notice.
#[tokio::test]
async fn watchers_of_a_member_that_installs_a_snapshot_miss_nothing() {
    let _busy = BUSY.lock().await;
    let flags = [
        "--quorate-wal-segment-bytes=1048576",
        "--snapshot-count=50",
        "--snapshot-catchup-entries=50",
    ];
    let cluster = Cluster::start_with(&program_under_test(), 3, &flags);
    let leader = cluster.leader().await;
    let (left, other) = ((leader + 1) % 3, &cluster.members[leader]);
    let left = &cluster.members[left];
    let mut watch = Watch::open(left.endpoint());
    let first = write(left.endpoint(), "k", "").await;
    begin(&mut watch, WatchCreateRequest { prev_kv: true, ..create("k", "l", first) }).await;
    left.signal(Signal::STOP);
    let value = "v".repeat(50_000);
    let mut client = kv(channel(other.endpoint(), DEADLINE));
    let mut last = first;
    for number in 0..1500 {
        let answer = client.put(put(format!("k{}", number % 20), value.clone())).await.unwrap();
        last = revision(&answer.into_inner().header);
        if number % 10 == 0 {
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    }
    left.signal(Signal::CONT);
    let revisions = watch.revisions((last - first + 1) as usize).await;
    assert_eq!(revisions, (first..=last).collect::<Vec<i64>>());
    let next = write(left.endpoint(), "k", "").await;
    assert_eq!(watch.revisions(1).await, [next]);
    left.until_line("applied snapshot", DEADLINE).await;
}

/// The shared state of the parts of a recorded run.
struct Run {
    endpoints: Vec<String>,
    stop: Cell<bool>,
    delivered: Cell<u64>,
    /// The last revision, once the writers have ended.
    last: Cell<Option<i64>>,
    compactions: Cell<u64>,
    resumes: Cell<u64>,
}

fn draw_key(rng: &mut fastrand::Rng) -> String {
    format!("w/{}", char::from(rng.u8(b'a'..=b't')))
}

fn op(rng: &mut fastrand::Rng) -> Request {
    let key = draw_key(rng);
    match rng.u8(..5) {
        0 => Request::RequestDeleteRange(delete(&key, "")),
        _ => Request::RequestPut(put(key, rng.u64(..).to_string())),
    }
}

impl Run {
    fn endpoint(&self, rng: &mut fastrand::Rng) -> &str {
        &self.endpoints[rng.usize(..self.endpoints.len())]
    }

    /// Writes until the run stops; whether a write succeeds does not matter.
    async fn write(&self, mut rng: fastrand::Rng) {
        let clients: Vec<_> = self
            .endpoints
            .iter()
            .map(|endpoint| kv(channel(endpoint, Duration::from_secs(3))))
            .collect();
        while !self.stop.get() {
            let mut kv = clients[rng.usize(..clients.len())].clone();
            let count = rng.usize(1..4);
            let mut keys = Vec::new();
            let mut success = Vec::new();
            for _ in 0..count {
                let op = op(&mut rng);
                let key = match &op {
                    Request::RequestPut(put) => put.key.clone(),
                    Request::RequestDeleteRange(delete) => delete.key.clone(),
                    Request::RequestRange(_) | Request::RequestTxn(_) => {
                        unreachable!("only writes")
                    }
                };
                if !keys.contains(&key) {
                    keys.push(key);
                    success.push(RequestOp { request: Some(op) });
                }
            }
            let txn = TxnRequest { success, ..TxnRequest::default() };
            let done = kv.txn(txn).await;
            if done.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// Compacts now and then, close to the newest revision.
    async fn compact(&self, mut rng: fastrand::Rng) {
        while !self.stop.get() {
            tokio::time::sleep(Duration::from_millis(rng.u64(200..1500))).await;
            let mut kv = kv(channel(self.endpoint(&mut rng), Duration::from_secs(3)));
            let Ok(answer) = kv.range(get("w/a")).await else { continue };
            let revision = revision(&answer.into_inner().header) - rng.i64(0..2000);
            let compact = CompactionRequest { revision, physical: rng.bool() };
            if revision > 0 && kv.compact(compact).await.is_ok() {
                self.compactions.set(self.compactions.get() + 1);
            }
        }
    }

    /// Watches until everything was seen, on one stream after another.
    async fn watch(&self, mut recorder: Recorder, mut rng: fastrand::Rng) -> Recorder {
        loop {
            if self.last.get().is_some_and(|last| recorder.floor() >= last) {
                return recorder;
            }
            let mut watch = Watch::open(self.endpoint(&mut rng));
            watch.create(WatchCreateRequest {
                prev_kv: recorder.prev_kv,
                ..create(&recorder.key, &recorder.end, recorder.floor() + 1)
            });
            self.resumes.set(self.resumes.get() + 1);
            let life = rng.usize(200..5000);
            for _ in 0..life {
                if self.last.get().is_some_and(|last| recorder.floor() >= last) {
                    break;
                }
                let next = tokio::time::timeout(Duration::from_millis(300), watch.try_next());
                match next.await {
                    Err(_) => watch.request_progress(),
                    Ok(Err(_)) => {
                        // The member may be gone.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        break;
                    }
                    Ok(Ok(response)) if response.created => {}
                    Ok(Ok(response)) => {
                        let events = response.events.len() as u64;
                        recorder.take(&response);
                        self.delivered.set(self.delivered.get() + events);
                        if response.canceled {
                            break;
                        }
                    }
                }
                if rng.u8(..) == 0 {
                    watch.request_progress();
                }
                if rng.u16(..2000) == 0 {
                    // A reader that pauses.
                    tokio::time::sleep(Duration::from_millis(rng.u64(100..2000))).await;
                }
            }
        }
    }

    /// Kills members until enough was delivered, then lets the writers end.
    async fn drive(&self, cluster: &mut Cluster, mut rng: fastrand::Rng) {
        let events = number("QUORATE_WATCH_EVENTS", 20_000);
        let kills = number("QUORATE_WATCH_KILLS", 4);
        let mut killed = 0;
        while self.delivered.get() < events || killed < kills {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if killed < kills && self.delivered.get() >= events * killed / (kills + 1) {
                killed += 1;
                let at = rng.usize(..self.endpoints.len());
                let member = &mut cluster.members[at];
                member.kill().await;
                tokio::time::sleep(Duration::from_millis(rng.u64(0..1500))).await;
                member.restart();
                member.until_ready().await;
            }
        }
        self.stop.set(true);
        let mut kv = kv(channel(&self.endpoints[0], Duration::from_secs(30)));
        tokio::time::sleep(Duration::from_secs(4)).await;
        let last = revision(&kv.put(put("w/end", "")).await.expect("a put").into_inner().header);
        self.last.set(Some(last));
    }
}

#[tokio::test]
async fn what_watchers_see_under_kills_and_compaction_keeps_every_promise() {
    let _busy = BUSY.lock().await;
    let mut rng = fastrand::Rng::with_seed(seed());
    let mut cluster = Cluster::start(&program_under_test(), 3);
    let run = Run {
        endpoints: cluster.endpoints(),
        stop: Cell::new(false),
        delivered: Cell::new(0),
        last: Cell::new(None),
        compactions: Cell::new(0),
        resumes: Cell::new(0),
    };
    let mut watchers = Vec::new();
    for number in 0..10 {
        let prev_kv = rng.bool();
        let recorder = match number {
            0..4 => Recorder::new("\0", "\0", prev_kv, 2),
            4..7 => Recorder::new("w/d", "w/m", prev_kv, 2),
            _ => Recorder::new(&draw_key(&mut rng), "", prev_kv, 2),
        };
        watchers.push(run.watch(recorder, rng.fork()));
    }
    let writers = join_all((0..6).map(|_| run.write(rng.fork())));
    let driver = join3(writers, run.compact(rng.fork()), run.drive(&mut cluster, rng.fork()));
    let (recorders, _) = join(join_all(watchers), driver).await;
    let last = run.last.get().expect("the driver has ended");
    let events: usize = recorders.iter().map(Recorder::events).sum();
    eprintln!(
        "{events} events of {last} revisions to {} watchers, {} resumes, {} compactions",
        recorders.len(),
        run.resumes.get(),
        run.compactions.get()
    );
    History::of(&recorders).check(&recorders, last);
    assert_same_data(&run.endpoints).await;
}

/// CPU time of a member so far, in microseconds.
fn cpu_micros(server: &Server) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.process_id())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    ticks * 10_000
}

/// Not a test: what an event costs the server and how late it comes, with 100 watchers on each of 100
/// streams, half of them on keys that change. `QUORATE_TEST_SERVER` measures another server.
#[tokio::test]
#[ignore = "a measurement, not a test"]
async fn cost_of_events() {
    let server = Server::start_alone(&program_under_test());
    let at = server.endpoint();
    let before = server.memory_bytes("VmRSS").unwrap_or_default();
    let mut watches = Vec::new();
    for stream in 0..100 {
        let mut watch = Watch::open(at);
        for number in 0..100 {
            let key =
                if number % 2 == 0 { "hit".to_owned() } else { format!("miss{stream}/{number}") };
            begin(&mut watch, create(&key, "", 0)).await;
        }
        watches.push(watch);
    }
    let after = server.memory_bytes("VmRSS").unwrap_or_default();
    eprintln!("memory: {} bytes a watcher", after.saturating_sub(before) / 10_000);
    let puts = number("QUORATE_PUTS", 100) as usize;
    let cpu = cpu_micros(&server);
    let begun = quorate::clock::now();
    let mut client = kv(channel(at, DEADLINE));
    let mut latencies = Vec::new();
    for _ in 0..puts {
        let started = quorate::clock::now();
        let put = client.put(put("hit", "v".repeat(100)));
        let readers = join_all(watches.iter_mut().map(|watch| async move {
            watch.revisions(50).await;
            quorate::clock::now()
        }));
        let (_, times) = join(put, readers).await;
        latencies.extend(times.iter().map(|at| (*at - started).as_micros() as u64));
    }
    latencies.sort_unstable();
    let events = puts as u64 * 5000;
    eprintln!(
        "{events} events in {:?}: {:.2} us of server CPU each; latency of a stream's last event p50 {} us, p99 {} us",
        quorate::clock::now() - begun,
        (cpu_micros(&server) - cpu) as f64 / events as f64,
        latencies[latencies.len() / 2],
        latencies[latencies.len() * 99 / 100],
    );
}
