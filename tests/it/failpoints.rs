//! A crash before and after each durable step: a member ends there, its disk loses power, it starts
//! again and has everything that it acknowledged.
//!
//! The crashes need `cargo test --features failpoints --test it failpoints`. Without the feature only
//! the list of failpoints is checked.
//!
//! | variable | meaning |
//! |---|---|
//! | `QUORATE_FAILPOINT` | crash only at failpoints whose names have this in them |
//! | `QUORATE_FAILPOINT_ROUNDS` | how often to crash at each; 1 |
//! | `QUORATE_SEED` | the seed that a failed run printed |

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::support::failpoints::{FAILPOINTS, KNOBS};

/// Adds the failpoints in the sources below `dir`, other than those of deliberate bugs.
fn collect(dir: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let calls = text.split("fail_point!(").skip(1);
            let name = |call: &str| {
                Some(call.trim_start().strip_prefix('"')?.split_once('"')?.0.to_owned())
            };
            let found = calls.filter_map(name);
            names.extend(found.filter(|name| !name.starts_with("mutant_")));
        }
    }
}

#[test]
fn every_failpoint_is_in_the_list() {
    let mut found = BTreeSet::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    let listed = FAILPOINTS.iter().map(|point| point.name).chain(KNOBS).map(str::to_owned);
    let listed: BTreeSet<String> = listed.collect();
    let missing: Vec<_> = found.symmetric_difference(&listed).collect();
    assert!(missing.is_empty(), "only in src/, or only in support/failpoints.rs: {missing:?}");
    assert_eq!(listed.len(), FAILPOINTS.len() + KNOBS.len(), "a name is listed twice");
}

#[cfg(feature = "failpoints")]
mod crashes {
    use std::cell::{Cell, RefCell};
    use std::os::unix::process::ExitStatusExt as _;
    use std::panic::AssertUnwindSafe;
    use std::path::PathBuf;
    use std::time::Duration;

    use fastrand::Rng;
    use futures_util::FutureExt as _;
    use futures_util::future::{join3, join4};
    use quorate::clock;
    use quorate::pb::etcdserverpb::lease_client::LeaseClient;
    use quorate::pb::etcdserverpb::{
        LeaseGrantRequest, LeaseKeepAliveRequest, LeaseTimeToLiveRequest,
    };
    use rustix::process::Signal;

    use crate::support::client::{assert_same_data, channel};
    use crate::support::cluster::status;
    use crate::support::failpoints::{FAILPOINTS, Failpoint, Scene};
    use crate::support::load::{Clients, Load};
    use crate::support::power_loss::disk::Loss;
    use crate::support::power_loss::members::{Churn, Cluster, PATIENCE};
    use crate::support::{number, seed};

    /// The signal of a process that aborts.
    const ABORTED: i32 = 6;

    /// Leases of [`Scene::Leases`].
    const LEASES: i64 = 200;

    /// Everything around the members.
    struct Stage {
        cluster: Cluster,
        load: Load,
        churn: Churn,
        rng: Rng,
        stopped: Cell<bool>,
        granted: RefCell<Vec<i64>>,
    }

    impl Stage {
        fn new(scene: Scene, mut rng: Rng) -> Stage {
            let count = if matches!(scene, Scene::Receiver | Scene::Sender | Scene::Deposed) {
                3
            } else {
                1
            };
            let cluster = Cluster::new(count, &mut rng);
            let clients = Clients { putters: 4, counters: 2 };
            let load = Load::new(cluster.endpoints(), clients, rng.u64(..));
            let churn = Churn::new(cluster.endpoints());
            let (stopped, granted) = (Cell::new(false), RefCell::default());
            Stage { cluster, load, churn, rng, stopped, granted }
        }

        /// Members that are started as they are from now on.
        fn all(&self) -> Vec<usize> {
            (0..self.cluster.members.len()).collect()
        }

        /// Starts the members of `which`, writes `count` times, and checks.
        async fn write(&mut self, which: &[usize], count: usize) {
            self.cluster.start(which, &mut self.rng);
            let ready = self.cluster.ready(which).await;
            self.check(&ready).await;
            let seed = self.rng.u64(..);
            let enough = async {
                self.load.until_more(count, PATIENCE).await;
                self.stop();
            };
            join3(self.load.run(), self.churn.run(seed), enough).await;
        }

        fn stop(&self) {
            self.stopped.set(true);
            self.load.stop();
            self.churn.stop();
        }

        async fn check(&self, endpoints: &[String]) {
            for endpoint in endpoints {
                self.load.check(endpoint).await;
                self.churn.check(endpoint).await;
            }
            assert_same_data(endpoints).await;
            let mut leases = LeaseClient::new(channel(&endpoints[0], PATIENCE));
            let granted = self.granted.borrow().clone();
            for id in granted {
                let request = LeaseTimeToLiveRequest { id, keys: false };
                let answer = leases.lease_time_to_live(request).await.unwrap().into_inner();
                assert!(answer.ttl > 0, "lease {id:x} was granted and is lost");
            }
        }

        /// From now on the members of `which` crash at `point`.
        fn arm(&mut self, which: &[usize], point: &Failpoint) {
            let passes = self.rng.u32(..=point.passes_max);
            let mut actions = format!("{}={passes}*off->panic", point.name);
            if !point.with.is_empty() {
                actions = format!("{actions};{}", point.with);
            }
            for &at in which {
                let environment = &mut self.cluster.members[at].launch.environment;
                environment.push(("FAILPOINTS".into(), (&actions).into()));
            }
        }

        fn disarm(&mut self) {
            for member in &mut self.cluster.members {
                member.launch.environment.retain(|(name, _)| name != "FAILPOINTS");
            }
        }

        /// Writes until one of `which` has crashed at `point`; kills all, and cuts their power.
        async fn crash(
            &mut self,
            which: &[usize],
            point: &Failpoint,
            draw: fn(&mut Rng) -> Loss,
        ) -> Vec<Loss> {
            let seed = self.rng.u64(..);
            let Stage { cluster, load, churn, stopped, granted, .. } = self;
            let endpoint = cluster.members[0].endpoint();
            stopped.set(false);
            let crashed = async {
                let deadline = clock::now() + PATIENCE;
                while !which.iter().any(|&at| {
                    let server = cluster.members[at].running();
                    server.ended().is_some_and(|status| {
                        let words = server.last_words();
                        assert_eq!(status.signal(), Some(ABORTED), "{}: {words}", point.name);
                        true
                    })
                }) {
                    assert!(clock::now() < deadline, "no member has come to {}", point.name);
                    if point.scene == Scene::Deposed {
                        depose(cluster).await;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                cluster.kill().await;
                stopped.set(true);
                load.stop();
                churn.stop();
            };
            let leases = async {
                if point.scene == Scene::Leases {
                    keep_alive(&endpoint, stopped, granted).await;
                }
            };
            // The load first: it forgets at its start that it was stopped.
            join4(load.run(), churn.run(seed), leases, crashed).await;
            self.disarm();
            self.cluster.cut_to(draw, &mut self.rng)
        }
    }

    /// Grants leases and keeps them alive until told to stop or the member ends.
    async fn keep_alive(endpoint: &str, stopped: &Cell<bool>, granted: &RefCell<Vec<i64>>) {
        while !stopped.get() {
            let mut leases = LeaseClient::new(channel(endpoint, Duration::from_secs(5)));
            for id in 1..=LEASES {
                if granted.borrow().contains(&id) {
                    continue;
                }
                if leases.lease_grant(LeaseGrantRequest { id, ttl: 600 }).await.is_ok() {
                    granted.borrow_mut().push(id);
                }
            }
            let ids = granted.borrow().clone();
            let requests = ids.into_iter().map(|id| LeaseKeepAliveRequest { id });
            let requests = futures_util::stream::iter(requests);
            if let Ok(answers) = leases.lease_keep_alive(requests).await {
                let mut answers = answers.into_inner();
                while let Ok(Some(_)) = answers.message().await {}
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Changes the files of the killed member so that its next start has something to do.
    fn prepare(stage: &mut Stage, scene: Scene) {
        let data = stage.cluster.members[0].launch.data_dir.join("member");
        let mut image = stage.cluster.members[0].line.image();
        let is_segment = |path: &PathBuf| path.extension().is_some_and(|name| name == "wal");
        match scene {
            Scene::TornLog => {
                let last = image.keys().rfind(|path| is_segment(path)).unwrap().clone();
                tear(image.get_mut(&last).unwrap().as_mut().unwrap());
            }
            Scene::Leftovers => {
                image.insert(data.join("wal/77.tmp"), Some(vec![0; 5000]));
                image.insert(data.join("wal/78.spare"), Some(vec![0; 5000]));
            }
            Scene::StaleState => {
                let stale = data.join("state/state-7");
                image.insert(stale.clone(), None);
                image.insert(stale.join("CHECKPOINT"), Some(b"quorate".to_vec()));
            }
            Scene::BetweenLogs => {
                let log = data.join("state/state-1/sled/metadata/log_0000000000000001");
                let empty = image.remove(&log).expect("the storage has begun its log");
                assert_eq!(empty, Some(Vec::new()), "nothing was flushed");
            }
            _ => {}
        }
        stage.cluster.members[0].line.put(image);
    }

    /// Puts the head of a record behind the last one, as a torn write leaves it; see `wal/record.rs`.
    fn tear(segment: &mut [u8]) {
        const HEAD_BYTES: usize = 32;
        let word =
            |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let (mut at, mut number) = (4096, word(segment, 40));
        while word(segment, at) != 0 && word(segment, at + 8) == number {
            let payload_bytes = word(segment, at) as u32 as usize;
            at += (HEAD_BYTES + payload_bytes + 4).next_multiple_of(8);
            number += 1;
        }
        let entry = 1 << 32 | 100;
        for (place, value) in [entry, number, number - 1, 1].into_iter().enumerate() {
            segment[at + place * 8..][..8].copy_from_slice(&u64::to_le_bytes(value));
        }
    }

    /// A member whose storage has a snapshot of its metadata, and no log after it.
    async fn between_logs(stage: &mut Stage) {
        let first_flush =
            Failpoint { name: "state_before_flush", scene: Scene::First, passes_max: 0, with: "" };
        stage.arm(&[0], &first_flush);
        stage.cluster.start(&[0], &mut stage.rng);
        stage.crash(&[0], &first_flush, |_| Loss::Nothing).await;
        prepare(stage, Scene::BetweenLogs);
    }

    /// Gives the leader entries that nobody else has, while the load runs, lets the others elect
    /// another, and brings the old one back.
    async fn depose(cluster: &mut Cluster) {
        let Some(leader) = leader(&cluster.endpoints()).await else { return };
        let others: Vec<usize> = (0..cluster.members.len()).filter(|at| *at != leader).collect();
        // Ended, not paused: a process that goes on would find in its sockets what was sent meanwhile.
        for &at in &others {
            cluster.members[at].running().signal(Signal::TERM);
        }
        for &at in &others {
            cluster.members[at].running().until_exit(PATIENCE).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        cluster.members[leader].running().signal(Signal::STOP);
        others.iter().for_each(|&at| cluster.members[at].start());
        let endpoints: Vec<String> =
            others.iter().map(|&at| cluster.members[at].endpoint()).collect();
        let deadline = clock::now() + PATIENCE;
        // One of them may be the one that crashes.
        while !others.iter().any(|&at| cluster.members[at].running().ended().is_some())
            && self::leader(&endpoints).await.is_none()
        {
            assert!(clock::now() < deadline, "no other member leads");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        cluster.members[leader].running().signal(Signal::CONT);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    /// Which of the members leads, in its own opinion.
    async fn leader(endpoints: &[String]) -> Option<usize> {
        for (at, endpoint) in endpoints.iter().enumerate() {
            if let Some(status) = status(endpoint).await
                && status.header.is_some_and(|header| header.member_id == status.leader)
            {
                return Some(at);
            }
        }
        None
    }

    /// Brings the members to the moment before the crash; returns who is armed.
    async fn set(stage: &mut Stage, point: &Failpoint) -> Vec<usize> {
        match point.scene {
            Scene::First | Scene::Leases => {}
            Scene::Again | Scene::Leftovers | Scene::StaleState | Scene::TornLog => {
                stage.write(&[0], 100).await;
                stage.cluster.kill().await;
                stage.cluster.cut(&mut stage.rng);
                prepare(stage, point.scene);
            }
            Scene::BetweenLogs => between_logs(stage).await,
            Scene::Receiver | Scene::Sender => {
                stage.write(&[0, 1, 2], 20).await;
                stage.cluster.kill().await;
                stage.cluster.cut(&mut stage.rng);
                let armed = if point.scene == Scene::Receiver { vec![2] } else { vec![0, 1] };
                stage.arm(&armed, point);
                // For so long that log is dropped, which may be put off while the third is dialed.
                stage.write(&[0, 1], 4000).await;
                stage.cluster.start(&[2], &mut stage.rng);
                return armed;
            }
            Scene::Deposed => {
                let all = stage.all();
                stage.arm(&all, point);
                stage.cluster.start(&all, &mut stage.rng);
                return all;
            }
        }
        stage.arm(&[0], point);
        stage.cluster.start(&[0], &mut stage.rng);
        vec![0]
    }

    /// Crashes a member at `point`, starts all again, and checks.
    async fn crash_and_check(point: &Failpoint, seed: u64) {
        let mut stage = Stage::new(point.scene, Rng::with_seed(seed));
        let armed = set(&mut stage, point).await;
        let lost = stage.crash(&armed, point, Loss::draw).await;
        let all = stage.all();
        stage.write(&all, 30).await;
        stage.cluster.kill().await;
        stage.cluster.cut(&mut stage.rng);
        stage.cluster.start(&all, &mut stage.rng);
        let ready = stage.cluster.ready(&all).await;
        stage.check(&ready).await;
        eprintln!("{}: {} writes, lost {lost:?}", point.name, stage.load.acknowledged());
    }

    /// Crashes at each failpoint of `scenes`, and tells of all that went wrong.
    async fn crash_everywhere(scenes: &[Scene]) {
        let only = std::env::var("QUORATE_FAILPOINT").unwrap_or_default();
        let (seed, mut failed) = (seed(), Vec::new());
        for round in 0..number("QUORATE_FAILPOINT_ROUNDS", 1) {
            for (at, point) in FAILPOINTS.iter().enumerate() {
                if !scenes.contains(&point.scene) || !point.name.contains(&only) {
                    continue;
                }
                // Each its own, so that one alone can be run again.
                let own = seed.wrapping_add(round).wrapping_add(1_000_000 * at as u64);
                let crash = crash_and_check(point, own);
                if AssertUnwindSafe(crash).catch_unwind().await.is_err() {
                    let seed = seed.wrapping_add(round);
                    failed.push(format!("QUORATE_SEED={seed} QUORATE_FAILPOINT={}", point.name));
                }
            }
        }
        let again = "cargo test --features failpoints --test it failpoints";
        assert!(failed.is_empty(), "again, each with `{again}`: {failed:#?}");
    }

    #[tokio::test]
    async fn a_member_that_is_new() {
        crash_everywhere(&[Scene::First]).await;
    }

    #[tokio::test]
    async fn a_member_that_was_killed() {
        use Scene::{Again, BetweenLogs, Leases, Leftovers, StaleState, TornLog};
        crash_everywhere(&[Again, BetweenLogs, Leases, Leftovers, StaleState, TornLog]).await;
    }

    #[tokio::test]
    async fn one_of_three_members() {
        crash_everywhere(&[Scene::Receiver, Scene::Sender, Scene::Deposed]).await;
    }

    /// The log was purged up to what openraft took for a snapshot at the start: what had been applied
    /// again, and lay in memory only.
    #[tokio::test]
    async fn the_log_is_not_purged_before_the_state_is_durable() {
        let mut stage = Stage::new(Scene::First, Rng::with_seed(seed()));
        for _ in 0..2 {
            let never_flushed = ("FAILPOINTS".into(), "state_before_flush=pause".into());
            stage.cluster.members[0].launch.environment.push(never_flushed);
            stage.write(&[0], 200).await;
            stage.cluster.kill().await;
            stage.cluster.cut(&mut stage.rng);
            stage.disarm();
        }
        stage.write(&[0], 20).await;
    }
}
