//! Power loss: members lose everything that they had not synced, and miss nothing they acknowledged.
//!
//! A member alone, and three at once, run under load below a file layer (`support/power_loss`) and
//! are killed at random moments, also while they start and recover. Their disks are set to what a
//! real disk might hold then; they must start again and have it all.
//!
//! | variable | meaning |
//! |---|---|
//! | `QUORATE_POWER_CYCLES` | power cuts of each test; 8 |
//! | `QUORATE_SEED` | the seed that a failed run printed; each cycle draws from it and its number |
//! | `QUORATE_TEST_SERVER` | the binary to test instead of our own |
//!
//! After a failure the files of the members, their journals and what they were started on are kept;
//! where, is printed.

use std::cell::Cell;
use std::fs;
use std::io::Write as _;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use fastrand::Rng;
use futures_util::FutureExt as _;
use futures_util::future::join4;
use quorate::pb::etcdserverpb::request_op::Request;
use quorate::pb::etcdserverpb::{CompactionRequest, RequestOp, TxnRequest};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::client::{assert_same_data, channel, get, kv, put, read_all, revision};
use crate::support::load::{Clients, Load};
use crate::support::power_loss::PowerLine;
use crate::support::power_loss::disk::{Image, Loss};
use crate::support::server::{Launch, Place, Server, program_under_test};
use crate::support::{BUSY, number, seed};

/// How long a member may take to start, to stop or to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// So many cycles begin with what the one before left; then members begin with empty disks.
const CYCLES_A_LIFE: u64 = 20;

/// Everything that touches the disk happens often.
const FLAGS: [&str; 5] = [
    "--quorate-wal-segment-bytes=1048576",
    "--snapshot-count=100",
    "--snapshot-catchup-entries=20",
    "--heartbeat-interval=50",
    "--election-timeout=500",
];

/// Syncs take up to this.
const SYNC_US_MAX: u32 = 4000;

/// Keys that are always written together.
const CHURN_KEYS: usize = 30;

/// A member whose power can be cut.
struct Member {
    launch: Launch,
    line: PowerLine,
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

    fn start(&mut self) {
        self.server = Some(Server::launch(self.launch.clone()));
    }

    fn running(&mut self) -> &mut Server {
        self.server.as_mut().expect("it was started")
    }

    fn endpoint(&self) -> String {
        self.launch.place.client_url.clone()
    }
}

/// Members that lose their power together.
struct Cluster {
    members: Vec<Member>,
    scratch: TempDir,
}

impl Cluster {
    fn new(count: usize, rng: &mut Rng) -> Cluster {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let places: Vec<Place> =
            (1..=count).map(|number| Place::free(&format!("member{number}"))).collect();
        let home = scratch.path().canonicalize().expect("it was made just now");
        let members = places.iter().map(|place| Member::new(&home, place, &places, rng)).collect();
        Cluster { members, scratch }
    }

    fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(Member::endpoint).collect()
    }

    /// Starts the members of `which` in a random order.
    fn start(&mut self, which: &[usize], rng: &mut Rng) {
        let mut order = which.to_vec();
        rng.shuffle(&mut order);
        order.iter().for_each(|&at| self.members[at].start());
    }

    /// Waits until the members of `which` serve; refusing to start is a failure.
    async fn ready(&mut self, which: &[usize]) -> Vec<String> {
        for &at in which {
            self.members[at].running().until_ready().await;
        }
        let endpoints: Vec<String> = which.iter().map(|&at| self.members[at].endpoint()).collect();
        for endpoint in &endpoints {
            until_reads(endpoint).await;
        }
        endpoints
    }

    /// Kills all that runs at once.
    async fn kill(&mut self) {
        let mut running: Vec<&mut Server> =
            self.members.iter_mut().filter_map(|member| member.server.as_mut()).collect();
        for server in &mut running {
            if server.ended().is_none() {
                server.signal(Signal::KILL);
            }
        }
        for server in running {
            server.until_exit(PATIENCE).await;
        }
    }

    /// Sets the disks of the killed members to what is left; returns how much was lost.
    fn cut(&mut self, rng: &mut Rng) -> Vec<Loss> {
        let killed = self.members.iter_mut().filter(|member| member.server.is_some());
        let cut = killed.map(|member| {
            let loss = Loss::draw(rng);
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
async fn until_reads(endpoint: &str) {
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
struct Churn {
    endpoints: Vec<String>,
    tried: Cell<u64>,
    acknowledged: Cell<u64>,
    stopped: Cell<bool>,
}

impl Churn {
    fn new(endpoints: Vec<String>) -> Churn {
        let number = || Cell::new(0);
        Churn { endpoints, tried: number(), acknowledged: number(), stopped: Cell::new(false) }
    }

    /// Writes until [`Churn::stop`].
    async fn run(&self, seed: u64) {
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
                    if number % 5 == 0 {
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

    fn stop(&self) {
        self.stopped.set(true);
    }

    /// Panics unless the keys were written together and not before the last acknowledged time.
    async fn check(&self, endpoint: &str) {
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

/// Cluster, load and what was counted.
struct Run {
    cluster: Cluster,
    load: Load,
    churn: Churn,
    starting: usize,
    refused: usize,
    acknowledged: usize,
}

impl Run {
    fn new(count: usize, rng: &mut Rng) -> Run {
        let cluster = Cluster::new(count, rng);
        let load = Load::new(cluster.endpoints(), Clients { putters: 4, counters: 2 }, rng.u64(..));
        let churn = Churn::new(cluster.endpoints());
        Run { cluster, load, churn, starting: 0, refused: 0, acknowledged: 0 }
    }

    /// Starts, checks, writes and loses power at a random moment of that.
    async fn cycle(&mut self, rng: &mut Rng) -> String {
        let all: Vec<usize> = (0..self.cluster.members.len()).collect();
        // Who comes later must catch up, perhaps by a snapshot.
        let late = (all.len() > 1 && rng.bool()).then(|| rng.usize(..all.len()));
        let first: Vec<usize> = all.iter().copied().filter(|at| Some(*at) != late).collect();
        self.cluster.start(&first, rng);
        if rng.u8(..5) < 2 {
            let wait = Duration::from_millis(rng.u64(..700));
            tokio::time::sleep(wait).await;
            self.cluster.kill().await;
            let lost = self.cluster.cut(rng);
            self.starting += 1;
            return format!("{wait:?} after the start, lost {lost:?}");
        }
        let ready = self.cluster.ready(&first).await;
        self.check(&ready).await;
        let wait = [Duration::from_millis(rng.u64(..1500)), Duration::from_millis(rng.u64(..1500))];
        self.write_until_killed(late, wait, rng.u64(..)).await;
        let lost = self.cluster.cut(rng);
        self.refuse_damage(rng).await;
        format!("{wait:?} after the check, late {late:?}, lost {lost:?}")
    }

    /// Runs the load, starts the member that is `late` after a while, and kills all after another.
    async fn write_until_killed(&mut self, late: Option<usize>, wait: [Duration; 2], seed: u64) {
        let Run { cluster, load, churn, .. } = self;
        let before = load.acknowledged();
        let kill = async {
            tokio::time::sleep(wait[0]).await;
            if let Some(late) = late {
                load.until_more(150, PATIENCE).await;
                cluster.members[late].start();
                tokio::time::sleep(wait[1]).await;
            }
            cluster.kill().await;
            load.stop();
            churn.stop();
        };
        join4(kill, load.run(), churn.run(seed), async {}).await;
        self.acknowledged += load.acknowledged() - before;
    }

    /// Panics unless the members at `endpoints` hold everything, and all the same.
    async fn check(&self, endpoints: &[String]) {
        for endpoint in endpoints {
            self.load.check(endpoint).await;
            self.churn.check(endpoint).await;
        }
        assert_same_data(endpoints).await;
    }

    /// Now and then flips a bit of what is durable in the log of a member: that start, and no other,
    /// must be refused.
    async fn refuse_damage(&mut self, rng: &mut Rng) {
        if rng.u8(..4) > 0 {
            return;
        }
        let at = rng.usize(..self.cluster.members.len());
        let member = &mut self.cluster.members[at];
        let intact = member.line.image();
        let Some(damaged) = damaged(&intact, rng) else { return };
        member.line.put(damaged);
        let mut server = Server::launch(member.launch.clone());
        let status = server.until_exit(PATIENCE).await;
        assert_eq!(status.code(), Some(1), "a damaged log: {}", server.last_words());
        let line = server.until_line("cannot start", PATIENCE).await;
        for word in ["log segment", "is damaged at byte", "Remove it from the cluster"] {
            assert!(line.contains(word), "{word:?} is not in: {line}");
        }
        self.refused += 1;
        member.line.put(intact);
    }
}

/// The image with a flipped bit in the log, where others rely on it: in a segment with a successor.
fn damaged(intact: &Image, rng: &mut Rng) -> Option<Image> {
    let mut damaged = intact.clone();
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "wal");
    let segments: Vec<&PathBuf> = intact.keys().filter(|path| is_segment(path)).collect();
    let (_, closed) = segments.split_last()?;
    let segment = rng.choice(closed)?;
    let bytes = damaged.get_mut(*segment)?.as_mut()?;
    // A segment is more than half full before the next begins.
    let at = rng.usize(..bytes.len() / 4);
    bytes[at] ^= 1 << rng.u8(..8);
    Some(damaged)
}

/// Cuts the power of `count` members again and again.
async fn survive_power_cuts(count: usize, test: &str) {
    let _busy = BUSY.lock().await;
    let (seed, cycles) = (seed(), number("QUORATE_POWER_CYCLES", 8));
    eprintln!(
        "QUORATE_SEED={seed} QUORATE_POWER_CYCLES={cycles} cargo test --test it power_loss::{test}"
    );
    let (mut starting, mut refused, mut acknowledged, mut done) = (0, 0, 0, 0);
    while done < cycles {
        let mut run = Run::new(count, &mut Rng::with_seed(seed.wrapping_add(done)));
        for _ in 0..CYCLES_A_LIFE.min(cycles - done) {
            done += 1;
            let mut rng = Rng::with_seed(seed.wrapping_add(done));
            let said = run.cycle(&mut rng).await;
            eprintln!("cycle {done}: {said}");
        }
        let all: Vec<usize> = (0..count).collect();
        run.cluster.start(&all, &mut Rng::with_seed(seed));
        let ready = run.cluster.ready(&all).await;
        run.check(&ready).await;
        starting += run.starting;
        refused += run.refused;
        acknowledged += run.acknowledged;
    }
    eprintln!(
        "{done} power cuts of {count} members, {starting} of them during a start; {acknowledged} \
         acknowledged writes, all there; {refused} starts on a damaged log, all refused"
    );
}

#[tokio::test]
async fn a_member_alone_loses_nothing_when_the_power_is_cut() {
    survive_power_cuts(1, "a_member_alone").await;
}

#[tokio::test]
async fn three_members_lose_nothing_when_all_lose_power_at_once() {
    survive_power_cuts(3, "three_members").await;
}

/// The test of the test: below a log whose syncs do nothing, acknowledged writes are lost, and that
/// is found out.
#[tokio::test]
async fn a_disk_that_ignores_syncs_of_the_log_is_found_out() {
    let _busy = BUSY.lock().await;
    let mut rng = Rng::with_seed(seed());
    let mut run = Run::new(1, &mut rng);
    run.cluster.members[0].line.lie_about("/wal");
    run.cluster.start(&[0], &mut rng);
    run.cluster.ready(&[0]).await;
    run.write_until_killed(None, [Duration::from_millis(700); 2], rng.u64(..)).await;
    run.cluster.members[0].line.cut(Loss::Everything, &mut rng);
    run.cluster.start(&[0], &mut rng);
    let again = async {
        let ready = run.cluster.ready(&[0]).await;
        run.check(&ready).await;
    };
    let found_out = AssertUnwindSafe(again).catch_unwind().await;
    assert!(found_out.is_err(), "{} writes survived without a sync", run.acknowledged);
}

/// The variable that says which small program [`a_small_program`] is.
const PROGRAM: &str = "QUORATE_POWER_PROGRAM";

/// What a small program forgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forgets {
    Nothing,
    SyncOfFile,
    SyncOfDirectory,
    Rename,
}

/// Replaces the file `text` by longer and longer texts. Not a test of its own: the test below starts
/// it as another process.
#[test]
#[ignore = "a program that another test starts"]
fn a_small_program() {
    let Ok(forgets) = std::env::var(PROGRAM) else { return };
    let root = PathBuf::from(std::env::var_os("QUORATE_POWER_ROOT").expect("the test sets it"));
    let is = |what: Forgets| forgets == format!("{what:?}");
    for number in 1..=SMALL_TEXTS {
        let name = if is(Forgets::Rename) { "text" } else { "text.tmp" };
        let mut file = fs::File::create(root.join(name)).unwrap();
        file.write_all(&small_text(number)).unwrap();
        if !is(Forgets::SyncOfFile) {
            file.sync_data().unwrap();
        }
        if !is(Forgets::Rename) {
            fs::rename(root.join(name), root.join("text")).unwrap();
        }
        if !is(Forgets::SyncOfDirectory) {
            fs::File::open(&root).unwrap().sync_all().unwrap();
        }
    }
    // Without the rename there is a moment, here the last, in which neither text is there.
    if is(Forgets::Rename) {
        let mut file = fs::File::create(root.join("text")).unwrap();
        file.write_all(&small_text(SMALL_TEXTS + 1)).unwrap();
    }
}

/// How often the small program replaces its file.
const SMALL_TEXTS: usize = 5;

fn small_text(number: usize) -> Vec<u8> {
    vec![b'0' + number as u8; 1000 * number]
}

/// A model that forgives everything would prove nothing.
#[test]
fn a_program_that_forgets_a_sync_loses_data_and_a_careful_one_does_not() {
    for forgets in
        [Forgets::Nothing, Forgets::SyncOfFile, Forgets::SyncOfDirectory, Forgets::Rename]
    {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("root");
        fs::create_dir(&root).unwrap();
        let mut line = PowerLine::new(&root, &scratch.path().join("journal"), 1);
        let mut program = Command::new(std::env::current_exe().unwrap());
        program.args(["--exact", "power_loss::a_small_program", "--ignored"]);
        program.env(PROGRAM, format!("{forgets:?}")).envs(line.environment());
        assert!(program.stdout(Stdio::null()).status().unwrap().success());
        line.ended();
        let text = root.canonicalize().unwrap().join("text");
        let mut kept = 0;
        for seed in 0..200 {
            let rng = &mut Rng::with_seed(seed);
            let loss = Loss::draw(rng);
            let left = line.draw(loss, rng);
            if left.get(&text) == Some(&Some(small_text(SMALL_TEXTS))) {
                kept += 1;
            }
        }
        eprintln!("{forgets:?}: {kept} of 200 power cuts lose nothing");
        assert_eq!(kept == 200, forgets == Forgets::Nothing, "{forgets:?}: {kept} of 200");
        assert!(kept > 0 || forgets == Forgets::Rename, "{forgets:?}: the disk keeps nothing");
    }
}
