//! Stories with one fault each, told on purpose and not by chance.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use quorate::clock;
use quorate::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest,
    RangeRequest, WatchCreateRequest,
};
use quorate::pb::quorate::peer::peer_client::PeerClient;
use quorate::pb::quorate::peer::{ConfirmRequest, Vote};
use tokio::time::{sleep, timeout};
use tonic::Request;

use super::host::{CLUSTER_ID, Host, World, member_id};
use super::plan::Plan;
use super::run::{agree, door, in_world};
use crate::support::history::{Op, Outcome, Reply};
use crate::support::workload::{Door, WatchStream};

/// No story takes longer, in simulated time.
const STORY_MAX: Duration = Duration::from_secs(600);

/// A cluster of three on quick disks and a quick network, whose log is short.
struct Scene {
    world: Arc<World>,
    hosts: Rc<[Arc<Host>]>,
}

/// Tells `story` as of `seed`; what it violates.
fn tell(seed: u64, story: impl AsyncFnOnce(&Scene)) -> Vec<String> {
    in_world(Plan::calm(seed), async |world, hosts| {
        let scene = Scene { world: Arc::clone(world), hosts: Rc::clone(hosts) };
        if timeout(STORY_MAX, story(&scene)).await.is_err() {
            scene.violated("stories end (liveness)", format!("not within {STORY_MAX:?}"));
        }
        scene.world.checks.violations()
    })
}

impl Scene {
    /// The leader among `members`, once there is one.
    async fn leader(&self, members: impl Iterator<Item = usize> + Clone) -> usize {
        loop {
            let leads = |at: &usize| {
                self.hosts[*at].with(|member, _| member.node().is_leader()) == Some(true)
            };
            match members.clone().find(leads) {
                Some(leader) => return leader,
                None => sleep(Duration::from_millis(20)).await,
            }
        }
    }

    fn violated(&self, rule: &str, what: String) {
        self.world.checks.violated(rule, what);
    }

    /// Stops or allows all that goes between two members.
    fn block(&self, one: usize, other: usize, is_blocked: bool) {
        for (from, to) in [(one, other), (other, one)] {
            self.world.net.change(from, to, |link| link.is_blocked = is_blocked);
        }
    }

    /// Asks the member `at` until it does what `op` says.
    async fn done(&self, at: usize, op: Op) -> i64 {
        let door = door(&self.world, &self.hosts, at);
        loop {
            if let Outcome::Ok(reply) = door.call(op.clone()).await {
                return reply.header().expect("a reply has a header").revision;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Puts `count` keys with values of `bytes` at the member `at`.
    async fn put(&self, at: usize, count: u64, bytes: usize) -> BTreeSet<i64> {
        let mut revisions = BTreeSet::new();
        for number in 0..count {
            let (key, value) = (format!("k{number}").into(), vec![b'v'; bytes].into());
            let put = PutRequest { key, value, ..PutRequest::default() };
            revisions.insert(self.done(at, Op::Put(put)).await);
        }
        revisions
    }

    /// Reads until the watcher has told the revisions in `missing`.
    async fn hears(&self, watch: &mut impl WatchStream, mut missing: BTreeSet<i64>) {
        let all = async {
            while !missing.is_empty() {
                let Some(response) = watch.next().await else { return };
                for event in response.events {
                    missing.remove(&event.kv.expect("an event has a pair").mod_revision);
                }
            }
        };
        // Whether in time or not, what is missing tells.
        drop(timeout(Duration::from_secs(60), all).await);
        if let Some(first) = missing.first() {
            let text = format!("{} events are missing, first {first}", missing.len());
            self.violated("watch: gapless (etcd, Watch API guarantees)", text);
        }
    }
}

fn watch_all() -> WatchCreateRequest {
    WatchCreateRequest { key: "k".into(), range_end: "l".into(), ..WatchCreateRequest::default() }
}

/// In etcd a leader that waits for its disk sends no heartbeats and is replaced. Followers of ours
/// acknowledge what it sends, so without help it would lead on, and answer no keep-alive.
fn disk_of_the_leader_hangs(seed: u64) -> Vec<String> {
    tell(seed, async |scene| {
        let first = scene.leader(0..3).await;
        let other = (first + 1) % 3;
        scene.done(other, Op::Grant(LeaseGrantRequest { id: 5, ttl: 600 })).await;
        scene.hosts[first].stall(Duration::from_secs(300));
        // Renewals that are a second old are answered from memory.
        sleep(Duration::from_secs(2)).await;
        let (begun, limit) = (clock::now(), scene.world.plan.election_timeout * 10);
        scene.done(other, Op::KeepAlive(LeaseKeepAliveRequest { id: 5 })).await;
        let took = clock::now() - begun;
        if took > limit {
            scene.violated("a leader whose disk hangs is replaced", format!("{took:?}"));
        }
        scene.leader((0..3).filter(|at| *at != first)).await;
        scene.hosts[first].stall(Duration::ZERO);
    })
}

/// A stream whose client does not read falls behind, and has lost nothing when it reads again.
fn watcher_does_not_read(seed: u64) -> Vec<String> {
    tell(seed, async |scene| {
        let at = scene.leader(0..3).await;
        let mut watch = door(&scene.world, &scene.hosts, at).watch(watch_all());
        watch.next().await.expect("it is created");
        let told = scene.put(at, 200, 64 << 10).await;
        scene.hears(&mut watch, told).await;
    })
}

/// A member that was cut off gets the state by snapshot; its watchers do not notice.
fn snapshot_comes_below_a_watcher(seed: u64) -> Vec<String> {
    tell(seed, async |scene| {
        let leader = scene.leader(0..3).await;
        let left = (leader + 1) % 3;
        let mut watch = door(&scene.world, &scene.hosts, left).watch(watch_all());
        watch.next().await.expect("it is created");
        (0..3).filter(|at| *at != left).for_each(|at| scene.block(left, at, true));
        let told = scene.put(leader, 200, 1000).await;
        // Log is dropped from time to time.
        sleep(Duration::from_secs(60)).await;
        scene.world.net.heal();
        scene.hears(&mut watch, told).await;
        assert!(scene.world.log.text().contains("applied snapshot"), "there was no snapshot");
    })
}

/// Keys that are gone do not come back on a member that gets a snapshot while others compact.
fn compaction_meets_a_snapshot(seed: u64) -> Vec<String> {
    tell(seed, async |scene| {
        let leader = scene.leader(0..3).await;
        let left = (leader + 1) % 3;
        (0..3).filter(|at| *at != left).for_each(|at| scene.block(left, at, true));
        scene.put(leader, 200, 1000).await;
        let (key, range_end) = (Bytes::from("k"), Bytes::from("l"));
        let delete = DeleteRangeRequest { key, range_end, ..DeleteRangeRequest::default() };
        let revision = scene.done(leader, Op::Delete(delete)).await;
        sleep(Duration::from_secs(60)).await;
        scene.world.net.heal();
        let slow = Some(scene.world.plan.seed % 7 * 2_000 + 4_000);
        let from = scene.leader((0..3).filter(|at| *at != left)).await;
        scene.world.net.change(from, left, |link| link.bytes_per_second = slow);
        while !scene.world.log.text().contains("sending database snapshot") {
            sleep(Duration::from_millis(50)).await;
        }
        sleep(Duration::from_secs(1)).await;
        scene.done(from, Op::Compact(CompactionRequest { revision, physical: false })).await;
        sleep(Duration::from_secs(5)).await;
        scene.world.net.heal();
        agree(&scene.world, &scene.hosts).await;
        assert!(scene.world.log.text().contains("applied snapshot"), "there was no snapshot");
    })
}

/// A leader that was cut off and deposed is connected to one voter again, which has another leader.
fn deposed_leader_reads(seed: u64) -> Vec<String> {
    tell(seed, async |scene| {
        let old = scene.leader(0..3).await;
        scene.put(old, 1, 10).await;
        (0..3).filter(|at| *at != old).for_each(|at| scene.block(old, at, true));
        let new = scene.leader((0..3).filter(|at| *at != old)).await;
        let written = scene.put(new, 1, 10).await;
        let written = *written.first().expect("one put");
        let third = 3 - old - new;
        let reads = async {
            let door = door(&scene.world, &scene.hosts, old);
            for _ in 0..200 {
                let get = RangeRequest { key: "k0".into(), ..RangeRequest::default() };
                if let Outcome::Ok(Reply::Range(read)) = door.call(Op::Range(get)).await {
                    let found = read.kvs[0].mod_revision;
                    if found < written {
                        let text = format!("revision {found} after {written} was acknowledged");
                        scene.violated("reads are linearizable (Raft, section 6.4)", text);
                        return;
                    }
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        let connect = async {
            sleep(Duration::from_millis(100)).await;
            scene.block(old, third, false);
            sleep(Duration::from_secs(5)).await;
            scene.world.net.heal();
        };
        tokio::join!(biased; reads, connect);
    })
}

/// A voter that has another leader does not confirm the one before, whom that would let read what is
/// stale.
fn deposed_leader_asks(seed: u64) -> Vec<String> {
    tell(seed, async |scene| {
        let old = scene.leader(0..3).await;
        let node = |at: usize| scene.hosts[at].with(|member, _| member.node().leadership().term);
        let term = node(old).expect("it is up");
        (0..3).filter(|at| *at != old).for_each(|at| scene.block(old, at, true));
        let new = scene.leader((0..3).filter(|at| *at != old)).await;
        scene.put(new, 1, 10).await;
        scene.world.net.heal();
        let third = 3 - old - new;
        let vote = Some(Vote { term, candidate: member_id(old), committed: true });
        let mut question = Request::new(stream::iter([ConfirmRequest { sequence: 1, vote }]));
        let ids = [CLUSTER_ID, member_id(old), member_id(third)];
        for (name, id) in ["quorate-cluster-id", "quorate-from", "quorate-to"].into_iter().zip(ids)
        {
            question.metadata_mut().insert(name, format!("{id:x}").parse().expect("it is ASCII"));
        }
        let mut line = PeerClient::new(scene.world.net.line(old, third));
        let answers = line.confirm(question).await.expect("a voter answers");
        let answer = answers.into_inner().message().await.expect("an answer");
        if answer.expect("one answer").holds {
            let text = format!("m{third} confirms the leader of term {term}");
            scene.violated(
                "a voter confirms only the vote that it holds (src/raft/confirm.rs)",
                text,
            );
        }
    })
}

/// A leader that was cut off leads again, after one that was behind its clock and wrote nothing, but
/// answered a keep-alive from memory.
fn leader_ahead_of_a_promise_returns(seed: u64) -> Vec<String> {
    const TTL_SECONDS: i64 = 20;
    tell(seed, async |scene| {
        let cut_off = |at: usize, is_blocked: bool| {
            (0..3).filter(|other| *other != at).for_each(|other| {
                scene.block(at, other, is_blocked);
            });
        };
        let first = scene.leader(0..3).await;
        let others = (0..3).filter(|at| *at != first);
        scene.done(first, Op::Grant(LeaseGrantRequest { id: 5, ttl: TTL_SECONDS })).await;
        let (key, value) = (Bytes::from("k"), Bytes::from("v"));
        let put = PutRequest { key: key.clone(), value, lease: 5, ..PutRequest::default() };
        scene.done(first, Op::Put(put.clone())).await;
        // An entry that the others have and that is committed by the next leader, seconds later.
        for other in others.clone() {
            scene.world.net.change(other, first, |link| link.is_blocked = true);
        }
        let door_of_first = door(&scene.world, &scene.hosts, first);
        let stays = timeout(Duration::from_millis(100), door_of_first.call(Op::Put(put)));
        drop(stays.await);
        (0..3).for_each(|at| cut_off(at, true));
        sleep(Duration::from_secs(4)).await;
        scene.world.net.heal();
        cut_off(first, true);
        let second = scene.leader(others).await;
        let asked = clock::now();
        scene.done(second, Op::KeepAlive(LeaseKeepAliveRequest { id: 5 })).await;
        let lives_until = asked + Duration::from_secs(TTL_SECONDS.unsigned_abs());
        let term_led = |at: usize| {
            let leadership = scene.hosts[at].with(|member, _| member.node().leadership());
            leadership.filter(|now| now.is_leader).map_or(0, |now| now.term)
        };
        let mut leader = second;
        while leader != first {
            scene.world.net.heal();
            cut_off(leader, true);
            let term = term_led(leader);
            while term_led(leader) <= term {
                sleep(Duration::from_millis(20)).await;
                leader = (0..3).max_by_key(|at| term_led(*at)).expect("there are three");
            }
        }
        scene.world.net.heal();
        while clock::now() < lives_until {
            let get = RangeRequest { key: key.clone(), ..RangeRequest::default() };
            if let Outcome::Ok(Reply::Range(read)) = door_of_first.call(Op::Range(get)).await
                && read.kvs.is_empty()
                && clock::now() < lives_until
            {
                let early = lives_until - clock::now();
                scene.violated("a lease never ends early", format!("{early:?} too early"));
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    })
}

/// A keep-alive comes to a follower when its lease has ended, and the leader cannot write the end.
fn end_of_a_lease_is_waited_for(seed: u64) -> Vec<String> {
    tell(seed, async |scene| {
        let leader = scene.leader(0..3).await;
        let follower = (leader + 1) % 3;
        scene.done(leader, Op::Grant(LeaseGrantRequest { id: 5, ttl: 3 })).await;
        let stall = |time| {
            (0..3).filter(|at| *at != leader).for_each(|at| scene.hosts[at].stall(time));
        };
        stall(Duration::from_secs(300));
        sleep(Duration::from_secs(5)).await;
        let calls = scene.world.net.counts().calls;
        let door = door(&scene.world, &scene.hosts, follower);
        let answer = door.call(Op::KeepAlive(LeaseKeepAliveRequest { id: 5 }));
        drop(timeout(Duration::from_secs(10), answer).await);
        let calls = scene.world.net.counts().calls - calls;
        if calls > 1000 {
            let text = format!("{calls} calls in 10 s");
            scene.violated("a follower asks for an ending lease now and then", text);
        }
        stall(Duration::ZERO);
    })
}

/// A member that was cut off leads after a long time in which nothing else was written.
fn quiet_time_counts(seed: u64) -> Vec<String> {
    const TTL: Duration = Duration::from_secs(60);
    tell(seed, async |scene| {
        let leader = scene.leader(0..3).await;
        let left = (leader + 1) % 3;
        let cut_off = |at: usize| {
            (0..3).filter(|other| *other != at).for_each(|other| scene.block(at, other, true));
        };
        cut_off(left);
        scene.done(leader, Op::Grant(LeaseGrantRequest { id: 5, ttl: 60 })).await;
        let granted = clock::now();
        let (key, value) = (Bytes::from("k"), Bytes::from("v"));
        let put = PutRequest { key: key.clone(), value, lease: 5, ..PutRequest::default() };
        scene.done(leader, Op::Put(put)).await;
        sleep(Duration::from_secs(40)).await;
        scene.world.net.heal();
        sleep(Duration::from_secs(3)).await;
        cut_off(leader);
        let next = scene.leader((0..3).filter(|at| *at != leader)).await;
        loop {
            let get = RangeRequest { key: key.clone(), ..RangeRequest::default() };
            let read = door(&scene.world, &scene.hosts, next).call(Op::Range(get)).await;
            if matches!(read, Outcome::Ok(Reply::Range(read)) if read.kvs.is_empty()) {
                return;
            }
            let late = (clock::now() - granted).saturating_sub(TTL);
            if late > Duration::from_secs(5) {
                let text = format!("{late:?} after its end it is there");
                return scene.violated("a lease ends (remaining TTL survives)", text);
            }
            sleep(Duration::from_millis(50)).await;
        }
    })
}

/// A follower acknowledges in time whatever it is sent, but its link is slower than the writes. The
/// leader kept its log for it, without bound.
fn slow_follower_holds_no_log(seed: u64) -> Vec<String> {
    const ROUNDS: usize = 60;
    tell(seed, async |scene| {
        let leader = scene.leader(0..3).await;
        let slow = (leader + 1) % 3;
        scene.world.net.change(leader, slow, |link| link.bytes_per_second = Some(128 << 10));
        // Four times as much as the link brings.
        let mut longest = 0;
        for _ in 0..ROUNDS {
            let begun = clock::now();
            let written = scene.put(leader, 32, 16 << 10).await;
            // A snapshot is small.
            let revision = *written.last().expect("they are acknowledged");
            let compact = CompactionRequest { revision, physical: false };
            scene.done(leader, Op::Compact(compact)).await;
            sleep((begun + Duration::from_secs(1)).saturating_duration_since(clock::now())).await;
            let retained = scene.hosts[leader].with(|_, log| log.retained_bytes());
            longest = longest.max(retained.unwrap_or_default());
        }
        // Nothing is dropped while the follower gets a snapshot, and half a minute after.
        if longest > 36 << 20 {
            let text = format!("{longest} bytes of {} were kept", ROUNDS * 32 * (16 << 10));
            scene.violated("the log is dropped, however slow a follower is", text);
        }
        scene.world.net.heal();
    })
}

/// A story: what it violates with a seed.
type Story = fn(u64) -> Vec<String>;

/// All stories.
pub(crate) const STORIES: [(&str, Story); 10] = [
    ("disk_of_the_leader_hangs", disk_of_the_leader_hangs),
    ("watcher_does_not_read", watcher_does_not_read),
    ("snapshot_comes_below_a_watcher", snapshot_comes_below_a_watcher),
    ("compaction_meets_a_snapshot", compaction_meets_a_snapshot),
    ("deposed_leader_reads", deposed_leader_reads),
    ("deposed_leader_asks", deposed_leader_asks),
    ("leader_ahead_of_a_promise_returns", leader_ahead_of_a_promise_returns),
    ("end_of_a_lease_is_waited_for", end_of_a_lease_is_waited_for),
    ("quiet_time_counts", quiet_time_counts),
    ("slow_follower_holds_no_log", slow_follower_holds_no_log),
];

#[test]
fn sim_stories_end_well() {
    for (name, story) in STORIES {
        for seed in 1..=2 {
            assert_eq!(story(seed), Vec::<String>::new(), "{name}, seed {seed}");
        }
    }
}
