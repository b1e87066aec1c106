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

use std::fs;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use fastrand::Rng;
use futures_util::FutureExt as _;
use futures_util::future::join3;

use quorate::storage::sled::{SledBackend, SledOptions};
use quorate::storage::{Backend as _, Batch};

use crate::support::client::assert_same_data;
use crate::support::load::{Clients, Load};
use crate::support::power_loss::PowerLine;
use crate::support::power_loss::disk::{Image, Loss};
use crate::support::power_loss::members::{Churn, Cluster, PATIENCE};
use crate::support::server::Server;
use crate::support::{BUSY, number, seed};

/// So many cycles begin with what the one before left; then members begin with empty disks.
const CYCLES_A_LIFE: u64 = 20;

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
                load.until_more(100, 3 * PATIENCE).await;
                cluster.members[late].start();
                tokio::time::sleep(wait[1]).await;
            }
            cluster.kill().await;
            load.stop();
            churn.stop();
        };
        // The load first: it forgets at its start that it was stopped.
        join3(load.run(), churn.run(seed), kill).await;
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

/// Revisions that are live at a time in the small store.
const LIVE: u64 = 2000;

fn record(number: u64) -> (Vec<u8>, Vec<u8>) {
    let length = number as usize * 37 % 400;
    let value = number.to_be_bytes().into_iter().cycle().take(length).collect();
    ([b"r", &number.to_be_bytes()[..]].concat(), value)
}

/// Whether a record is never removed: those around it are, so that leaves become sparse.
fn is_lasting(number: u64) -> bool {
    number.is_multiple_of(40)
}

/// How many commits the store holds, after a check that it holds exactly those.
fn count_commits(store: &SledBackend) -> u64 {
    let count = store.get(b"count").unwrap();
    let count = count.map_or(0, |value| u64::from_be_bytes(value[..].try_into().unwrap()));
    let is_there = |number: &u64| *number + LIVE > count || is_lasting(*number);
    let mut expected = (1..=count).filter(is_there).map(record);
    let mut visit = |key: &[u8], value: &[u8]| {
        let (expected_key, expected_value) = expected.next().expect("a record too many");
        assert!(key == expected_key && value == expected_value, "a wrong record of {count}");
        ControlFlow::Continue(())
    };
    store.scan(b"r", b"s", &mut visit).unwrap();
    assert_eq!(expected.next(), None, "records of {count} are missing");
    count
}

/// A storage that is written to, flushed, packed and reopened all the time. Not a test of its own.
#[test]
#[ignore = "a program that another test starts"]
fn a_small_store() {
    let Some(root) = std::env::var_os("QUORATE_POWER_ROOT") else { return };
    let eager =
        SledOptions { flush_writes_max: 500, reopen_bytes: 200_000, ..SledOptions::default() };
    let store = SledBackend::open(PathBuf::from(root).join("store"), eager).unwrap();
    let mut count = count_commits(&store);
    let say = |what: &str, count: u64| {
        writeln!(std::io::stderr(), "{what} {count}").unwrap();
    };
    say("opened", count);
    loop {
        for _ in 0..400 {
            count += 1;
            let mut batch = Batch::default();
            let (key, value) = record(count);
            batch.put(key, value);
            if count > LIVE && !is_lasting(count - LIVE) {
                batch.remove(record(count - LIVE).0);
            }
            batch.put("count", count.to_be_bytes().to_vec());
            store.commit(batch).unwrap();
        }
        store.checkpoint().unwrap();
        say("checkpoint", count);
    }
}

/// The last number that the small store said after `word`.
fn last_said(said: &str, word: &str) -> Option<u64> {
    said.lines().rev().find_map(|line| line.strip_prefix(word)?.trim().parse().ok())
}

/// The storage without a log in front: whatever is lost, an exact prefix of the commits opens that
/// is no shorter than the last checkpoint.
#[test]
fn the_storage_opens_as_a_prefix_when_the_power_is_cut() {
    let (seed, cycles) = (seed(), 2 * number("QUORATE_POWER_CYCLES", 8));
    let (mut rng, mut checkpoint, mut opened) = (Rng::with_seed(seed), 0, 0);
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("root");
    fs::create_dir(&root).unwrap();
    let mut line = PowerLine::new(&root, &scratch.path().join("journal"), 2000);
    for cycle in 1..=cycles {
        let said_in = scratch.path().join("said");
        let mut program = Command::new(std::env::current_exe().unwrap());
        program.args(["--exact", "power_loss::a_small_store", "--ignored", "--nocapture"]);
        program.envs(line.environment()).env("PATH", "/nonexistent").stdout(Stdio::null());
        program.stderr(fs::File::create(&said_in).unwrap());
        let mut running = program.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(rng.u64(..900)));
        let ended = running.try_wait().unwrap();
        running.kill().ok();
        running.wait().unwrap();
        let said = fs::read_to_string(&said_in).unwrap();
        if let Some(count) = last_said(&said, "opened") {
            opened += 1;
            assert!(count >= checkpoint, "cycle {cycle}: {count} after checkpoint {checkpoint}");
        }
        assert!(ended.is_none(), "cycle {cycle}: the store ended by itself: {said}");
        checkpoint = last_said(&said, "checkpoint").unwrap_or(checkpoint);
        line.cut(Loss::draw(&mut rng), &mut rng);
    }
    eprintln!("{cycles} power cuts, {opened} opens, {checkpoint} commits in the last checkpoint");
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
