//! A member that was away for too long catches up by a streamed snapshot, under load, whoever of
//! the two sides is killed in the middle, and neither side needs memory in proportion to the state.
//!
//! | variable | meaning |
//! |---|---|
//! | `QUORATE_SNAPSHOT_MIB` | size of the state in MiB; 64 |
//! | `QUORATE_SEED` | the seed that a failed run printed |
//! | `QUORATE_TEST_SERVER` | the binary to test instead of our own |

use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

use futures_util::future::{join, join_all};
use quorate::{clock, limits};

use crate::support::client::{assert_same_data, channel, kv, put};
use crate::support::cluster::Cluster;
use crate::support::load::{Clients, Load};
use crate::support::server::{Server, program_under_test};
use crate::support::{BUSY, number, seed};

/// What sender and receiver may need on top of what they had, however large the state is.
const GROWTH_BYTES_MAX: u64 = 200 << 20;

/// Small bounds, so that the log is really dropped and nothing but a snapshot helps; and a small
/// cache of values, which a member that opens a state fills at once and which is no part of sending.
const FLAGS: [&str; 4] = [
    "--quorate-wal-segment-bytes=1048576",
    "--snapshot-count=50",
    "--snapshot-catchup-entries=50",
    "--quorate-value-cache-bytes=16777216",
];

/// Size of one value of the state.
const VALUE_BYTES: usize = 64 << 10;

/// Values on their way at once while the state is written.
const WRITERS: usize = 8;

/// How long the state may take to be written, sent or dropped from the log: a second a MiB, on a
/// machine that does other work, and a minute.
fn patience() -> Duration {
    Duration::from_secs(60 + state_mib())
}

fn state_mib() -> u64 {
    number("QUORATE_SNAPSHOT_MIB", 64)
}

/// Writes the state through the member at `endpoint`: random bytes, which no store can compress.
async fn fill(endpoint: &str, seed: u64) {
    let count = (state_mib() << 20) as usize / VALUE_BYTES;
    let next = Cell::new(0);
    let writer = |_| async {
        let mut kv = kv(channel(endpoint, Duration::from_secs(30)));
        while next.get() < count {
            let key = next.replace(next.get() + 1);
            let mut value = vec![0; VALUE_BYTES];
            fastrand::Rng::with_seed(seed ^ key as u64).fill(&mut value);
            kv.put(put(format!("fill/{key:08}"), value)).await.expect("two members take writes");
        }
    };
    join_all((0..WRITERS).map(writer)).await;
}

/// Bytes of the log's segments of `member`.
fn log_bytes(member: &Server) -> u64 {
    let dir = member.launched().data_dir.join("member/wal");
    let files = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("list {dir:?}: {error}"));
    // A segment may be renamed between the listing and the question.
    let sizes = files.filter_map(|file| file.ok()?.metadata().ok());
    sizes.map(|metadata| metadata.len()).sum()
}

/// Waits until `member` has dropped the log that it does not need.
async fn until_purged(member: &Server) {
    let (bytes_max, deadline) = ((state_mib() << 20) / 4, clock::now() + patience());
    while log_bytes(member) > bytes_max {
        let bytes = log_bytes(member);
        assert!(clock::now() < deadline, "the log still has {bytes} bytes: it is not purged");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Forgets the peak of the memory of `member` and returns its present size.
fn watch_memory(member: &Server) -> u64 {
    let pid = member.process_id();
    std::fs::write(Path::new("/proc").join(pid.to_string()).join("clear_refs"), "5")
        .expect("the peak of one's own process can be reset");
    member.memory_bytes("VmRSS").expect("a running member has a size")
}

/// The growth of `member` from `before` to its peak since [`watch_memory`].
fn growth(member: &Server, before: u64) -> u64 {
    let peak = member.memory_bytes("VmHWM").expect("a running member has a peak");
    peak.saturating_sub(before)
}

/// The scene of the three acts: who leads, and who was away.
struct Scene<'a> {
    cluster: Cluster,
    load: &'a Load,
    rng: fastrand::Rng,
    /// How long the first snapshot took.
    transfer: Duration,
    /// By how much the sender and the receiver of the first snapshot grew.
    growths: [u64; 2],
}

impl Scene<'_> {
    /// A member that does not lead, and the leader.
    async fn follower_and_leader(&self) -> (usize, usize) {
        let leader = self.cluster.leader().await;
        ((leader + 1) % self.cluster.members.len(), leader)
    }

    /// Lets the log go on until the member that is away can no longer follow it.
    async fn leave_behind(&self) {
        // Behind the last snapshot the log is kept for a while.
        tokio::time::sleep(limits::SNAPSHOT_CATCHUP_TIME).await;
        self.load.until_more(400, patience()).await;
        // More than one round of purging, each of which needs some entries and half a second.
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(600)).await;
            self.load.until_more(60, patience()).await;
        }
    }

    /// A random part of the time that the first snapshot took.
    async fn some_of_the_transfer(&mut self) {
        let part = self.rng.f64() * 0.7;
        tokio::time::sleep(self.transfer.mul_f64(part)).await;
    }

    /// Nobody is killed; memory is measured.
    async fn undisturbed(&mut self) {
        let (away, leader) = self.follower_and_leader().await;
        self.cluster.members[away].kill().await;
        fill(self.cluster.members[leader].endpoint(), self.rng.u64(..)).await;
        until_purged(&self.cluster.members[leader]).await;
        let sender_before = watch_memory(&self.cluster.members[leader]);
        self.cluster.members[away].restart();
        let [receiver, sender] =
            self.cluster.members.get_disjoint_mut([away, leader]).expect("two members");
        receiver.until_line("receiving database snapshot", patience()).await;
        let (begun, receiver_before) = (clock::now(), watch_memory(receiver));
        receiver.until_line("applied snapshot", patience()).await;
        self.transfer = clock::now() - begun;
        let (sent, received) = (growth(sender, sender_before), growth(receiver, receiver_before));
        sender.until_line("sent database snapshot", Duration::from_secs(5)).await;
        receiver.until_ready().await;
        eprintln!(
            "a snapshot of {} MiB took {:?}; the sender grew by {} MiB from {}, the receiver by \
             {} MiB from {}",
            state_mib(),
            self.transfer,
            sent >> 20,
            sender_before >> 20,
            received >> 20,
            receiver_before >> 20
        );
        self.growths = [sent, received];
    }

    /// The receiver dies in the middle and begins again.
    async fn receiver_killed(&mut self) {
        let (away, _) = self.follower_and_leader().await;
        self.cluster.members[away].kill().await;
        self.leave_behind().await;
        self.cluster.members[away].restart();
        let receiver = &self.cluster.members[away];
        receiver.until_line("receiving database snapshot", patience()).await;
        self.some_of_the_transfer().await;
        let receiver = &mut self.cluster.members[away];
        receiver.kill().await;
        eprintln!("receiver killed, finished before: {}", receiver.line("applied snap").is_some());
        receiver.restart();
        receiver.until_ready().await;
        self.load.until_more(10, patience()).await;
    }

    /// The sender dies in the middle; its successor sends another snapshot.
    async fn sender_killed(&mut self) {
        let (away, leader) = self.follower_and_leader().await;
        self.cluster.members[away].kill().await;
        self.leave_behind().await;
        self.cluster.members[away].restart();
        self.cluster.members[away].until_line("receiving database snapshot", patience()).await;
        self.some_of_the_transfer().await;
        self.cluster.members[leader].kill().await;
        let receiver = &mut self.cluster.members[away];
        eprintln!("sender killed, finished before: {}", receiver.line("applied snap").is_some());
        receiver.until_line("applied snapshot", patience()).await;
        receiver.until_ready().await;
        self.load.until_more(10, patience()).await;
        self.cluster.members[leader].restart();
        self.cluster.members[leader].until_ready().await;
    }
}

/// Three acts on one cluster, because writing the state takes the longest.
#[tokio::test]
async fn a_member_left_behind_catches_up_by_snapshot_whoever_is_killed() {
    let _busy = BUSY.lock().await;
    let mut rng = fastrand::Rng::with_seed(seed());
    let cluster = Cluster::start_with(&program_under_test(), 3, &FLAGS);
    let endpoints = cluster.endpoints();
    let clients = Clients { putters: 2, counters: 1 };
    let load = Load::new(endpoints.clone(), clients, rng.u64(..));
    let acts = async {
        let mut scene =
            Scene { cluster, load: &load, rng, transfer: Duration::ZERO, growths: [0; 2] };
        scene.undisturbed().await;
        scene.receiver_killed().await;
        scene.sender_killed().await;
        load.stop();
        scene
    };
    let (scene, ()) = join(acts, load.run()).await;
    for endpoint in &endpoints {
        load.check(endpoint).await;
    }
    assert_same_data(&endpoints).await;
    let [sent, received] = scene.growths;
    assert!(sent < GROWTH_BYTES_MAX, "the sender grew by {sent} bytes");
    assert!(received < GROWTH_BYTES_MAX, "the receiver grew by {received} bytes");
}

/// The entry in which a starting member announces itself may come back to it inside a snapshot, where
/// no outcomes are told; it must not wait for one until the request times out.
#[tokio::test]
async fn a_member_that_needs_a_snapshot_at_its_start_serves_soon() {
    let _busy = BUSY.lock().await;
    // A request then times out after 13 seconds.
    let flags = ["--snapshot-count=50", "--snapshot-catchup-entries=10", "--election-timeout=4000"];
    let mut cluster = Cluster::start_with(&program_under_test(), 3, &flags);
    let leader = cluster.leader().await;
    let away = (leader + 1) % 3;
    cluster.members[away].kill().await;
    let endpoint = cluster.members[leader].endpoint().to_owned();
    let writer = |writer| {
        let mut kv = kv(channel(&endpoint, Duration::from_secs(30)));
        async move {
            for number in 0..400 {
                let put = put(format!("away/{writer}/{number}"), "x");
                kv.put(put).await.expect("two members take writes");
            }
        }
    };
    join_all((0..WRITERS).map(writer)).await;
    let begin = clock::now();
    cluster.members[away].restart();
    cluster.members[away].until_ready().await;
    let (took, member) = (clock::now() - begin, &cluster.members[away]);
    assert!(member.line("applied snapshot").is_some(), "{}", member.last_words());
    assert!(took < Duration::from_secs(9), "ready after {took:?}:\n{}", member.last_words());
}
