//! Members whose power can be cut, all at once, and a load that keeps their disks busy.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::time::Duration;

use fastrand::Rng;
use futures_util::future::join_all;
use quorate::pb::etcdserverpb::request_op::Request;
use quorate::pb::etcdserverpb::{CompactionRequest, RequestOp, TxnRequest};
use rustix::process::Signal;
use tempfile::TempDir;

use super::PowerLine;
use super::disk::Loss;
use crate::support::client::{channel, get, kv, put, read_all, revision};
use crate::support::server::{Launch, Place, Server, program_under_test};

/// How long a member may take to start, to stop or to answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Everything that touches the disk happens often.
const FLAGS: [&str; 3] =
    ["--quorate-wal-segment-bytes=1048576", "--snapshot-count=50", "--snapshot-catchup-entries=10"];

/// Syncs take up to this.
const SYNC_US_MAX: u32 = 4000;

/// Keys that are always written together.
const CHURN_KEYS: usize = 30;

/// A member whose power can be cut.
pub(crate) struct Member {
    /// How it is started.
    pub(crate) launch: Launch,
    /// Its disk.
    pub(crate) line: PowerLine,
    server: Option<Server>,
}

impl Member {
    fn new(scratch: &Path, place: &Place, all: &[Place], rng: &mut Rng) -> Member {
        let root = scratch.join(&place.name);
        fs::create_dir(&root).expect("make the directory");
        let journal = scratch.join(format!("{}.journal", place.name));
        let line = PowerLine::new(&root, &journal, rng.u32(1..SYNC_US_MAX));
        let launch = Launch {
            all: all.to_vec(),
            place: place.clone(),
            environment: line.environment(),
            ..Launch::alone(&program_under_test(), &root.join("data"), &FLAGS)
        };
        Member { launch, line, server: None }
    }

    /// Starts it, without waiting.
    pub(crate) fn start(&mut self) {
        self.server = Some(Server::launch(self.launch.clone()));
    }

    /// The process, which may have ended.
    pub(crate) fn running(&mut self) -> &mut Server {
        self.server.as_mut().expect("it was started")
    }

    /// The URL that clients use.
    pub(crate) fn endpoint(&self) -> String {
        self.launch.place.client_url.clone()
    }
}

/// Members that lose their power together.
pub(crate) struct Cluster {
    /// By their names.
    pub(crate) members: Vec<Member>,
    scratch: TempDir,
}

impl Cluster {
    /// `count` members of a new cluster, none of them started.
    pub(crate) fn new(count: usize, rng: &mut Rng) -> Cluster {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let places: Vec<Place> =
            (1..=count).map(|number| Place::free(&format!("member{number}"))).collect();
        let home = scratch.path().canonicalize().expect("it was made just now");
        let members = places.iter().map(|place| Member::new(&home, place, &places, rng)).collect();
        Cluster { members, scratch }
    }

    /// The client URLs of all members.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(Member::endpoint).collect()
    }

    /// Starts the members of `which` in a random order.
    pub(crate) fn start(&mut self, which: &[usize], rng: &mut Rng) {
        let mut order = which.to_vec();
        rng.shuffle(&mut order);
        order.iter().for_each(|&at| self.members[at].start());
    }

    /// Waits until the members of `which` serve; refusing to start is a failure.
    pub(crate) async fn ready(&mut self, which: &[usize]) -> Vec<String> {
        let members = self.members.iter_mut().enumerate().filter(|(at, _)| which.contains(at));
        join_all(members.map(|(_, member)| member.running().until_ready())).await;
        let endpoints: Vec<String> = which.iter().map(|&at| self.members[at].endpoint()).collect();
        for endpoint in &endpoints {
            until_reads(endpoint).await;
        }
        endpoints
    }

    /// Kills all that run at once; none may have refused to start, or given up.
    pub(crate) async fn kill(&mut self) {
        let mut running: Vec<&mut Server> =
            self.members.iter_mut().filter_map(|member| member.server.as_mut()).collect();
        for server in &mut running {
            match server.ended() {
                None => server.signal(Signal::KILL),
                Some(status) => {
                    assert_eq!(status.code(), None, "it ended by itself: {}", server.last_words());
                }
            }
        }
        for server in running {
            server.until_exit(PATIENCE).await;
        }
    }

    /// Sets the disks of the killed members to what is left; returns how much was lost.
    pub(crate) fn cut(&mut self, rng: &mut Rng) -> Vec<Loss> {
        self.cut_to(Loss::draw, rng)
    }

    /// The same, with another draw of how much is lost.
    pub(crate) fn cut_to(&mut self, draw: fn(&mut Rng) -> Loss, rng: &mut Rng) -> Vec<Loss> {
        let killed = self.members.iter_mut().filter(|member| member.server.is_some());
        let cut = killed.map(|member| {
            let loss = draw(rng);
            member.line.cut(loss, rng);
            member.server = None;
            loss
        });
        cut.collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.scratch.disable_cleanup(true);
            eprintln!("the members' files are kept in {}", self.scratch.path().display());
        }
    }
}

/// Waits until a linearizable read at `endpoint` succeeds.
pub(crate) async fn until_reads(endpoint: &str) {
    let mut kv = kv(channel(endpoint, Duration::from_secs(5)));
    for _ in 0..200 {
        if kv.range(get("ready")).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{endpoint} does not read");
}

/// Keys that are written together, over and over, and whose past is dropped: what is on disk is
/// removed, packed and reused all the time.
pub(crate) struct Churn {
    endpoints: Vec<String>,
    tried: Cell<u64>,
    acknowledged: Cell<u64>,
    stopped: Cell<bool>,
}

impl Churn {
    /// For clients of the members at `endpoints`.
    pub(crate) fn new(endpoints: Vec<String>) -> Churn {
        let number = || Cell::new(0);
        Churn { endpoints, tried: number(), acknowledged: number(), stopped: Cell::new(false) }
    }

    /// Writes until [`Churn::stop`].
    pub(crate) async fn run(&self, seed: u64) {
        self.stopped.set(false);
        let mut rng = Rng::with_seed(seed);
        let deadline = Duration::from_secs(2);
        let members = self.endpoints.iter().map(|endpoint| kv(channel(endpoint, deadline)));
        let mut members: Vec<_> = members.collect();
        while !self.stopped.get() {
            let number = self.tried.get() + 1;
            self.tried.set(number);
            let at = rng.usize(..members.len());
            match members[at].txn(write_all(number, &mut rng)).await {
                Ok(answer) => {
                    self.acknowledged.set(number);
                    let at_revision = revision(&answer.into_inner().header);
                    if number.is_multiple_of(5) {
                        let physical = rng.bool();
                        let compact = CompactionRequest { revision: at_revision - 2, physical };
                        // Somebody else may have compacted further, or nobody may answer.
                        members[at].compact(compact).await.ok();
                    }
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Ends it after the request that is under way.
    pub(crate) fn stop(&self) {
        self.stopped.set(true);
    }

    /// Panics unless the keys were written together and not before the last acknowledged time.
    pub(crate) async fn check(&self, endpoint: &str) {
        let (_, pages) = read_all(endpoint, "churn/").await;
        let kvs: Vec<_> = pages.iter().flat_map(|page| &page.kvs).collect();
        let (told, tried) = (self.acknowledged.get(), self.tried.get());
        if kvs.is_empty() {
            assert_eq!(told, 0, "{endpoint}: all keys that were written together are lost");
            return;
        }
        assert_eq!(kvs.len(), CHURN_KEYS, "{endpoint}: keys were not written together");
        let same = kvs.iter().all(|kv| kv.mod_revision == kvs[0].mod_revision);
        assert!(same, "{endpoint}: keys were not written together");
        for kv in kvs {
            let found = u64::from_be_bytes(kv.value[..8].try_into().unwrap());
            assert!((told..=tried).contains(&found), "{endpoint}: {found} not in {told}..={tried}");
        }
    }
}

/// A txn that writes `number` to all keys of [`Churn`].
fn write_all(number: u64, rng: &mut Rng) -> TxnRequest {
    let mut noise = vec![0; rng.usize(..4000)];
    rng.fill(&mut noise);
    let value = [&number.to_be_bytes()[..], &noise].concat();
    let put = |key| put(format!("churn/{key:03}"), value.clone());
    let request = |key| RequestOp { request: Some(Request::RequestPut(put(key))) };
    TxnRequest { success: (0..CHURN_KEYS).map(request).collect(), ..TxnRequest::default() }
}
