//! Whole clusters in one process, on simulated time, network and disks: one seed, one run.
//!
//! What is proved: under crashes, power loss, partitions, pauses, slow, full and failing disks no
//! invariant is violated (`invariants`), no client sees what the judges forbid
//! (`support/judges`), and once the faults end the cluster works again in bounded time.
//!
//! `cargo test --test it sim` runs fresh seeds for half a minute, and one seed twice.
//! `QUORATE_SIM_SEEDS=5000..7000 cargo test --release --test it sim` runs a range on all cores,
//! `QUORATE_SIM_SEEDS=5003` one seed. A seed that fails writes its log to `target/sim-<seed>.log`.

mod calls;
pub(crate) mod directed;
mod door;
mod host;
mod invariants;
mod log;
mod nemesis;
mod net;
mod plan;
mod run;
mod store;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use parking_lot::Mutex;
use quorate::clock;

use run::Report;

/// What all runs of a test came to.
#[derive(Default)]
struct Summary {
    runs: u64,
    simulated: Duration,
    calls: BTreeMap<&'static str, u64>,
    faults: BTreeMap<&'static str, u64>,
    commits: u64,
    installs: u64,
    events: u64,
    frames: u64,
    failed: Vec<u64>,
}

impl Summary {
    fn add(&mut self, report: &Report) {
        self.runs += 1;
        self.simulated += report.simulated;
        self.commits += report.commits;
        self.installs += report.installs;
        self.events += report.events;
        self.frames += report.frames;
        for (name, count) in &report.calls {
            *self.calls.entry(name).or_default() += count;
        }
        for (name, count) in &report.faults {
            *self.faults.entry(name).or_default() += count;
        }
    }

    fn print(&self, took: Duration) {
        let minutes = self.simulated.as_secs_f64() / 60.0;
        let speed = self.simulated.as_secs_f64() / took.as_secs_f64();
        eprintln!(
            "{} seeds, {minutes:.1} simulated minutes in {:.1} s ({speed:.0} times real time)",
            self.runs,
            took.as_secs_f64()
        );
        eprintln!("calls: {:?}", self.calls);
        eprintln!("faults: {:?}", self.faults);
        eprintln!(
            "entries applied: {}, snapshots installed: {}, events to watchers: {}, frames sent: {}",
            self.commits, self.installs, self.events, self.frames
        );
        eprintln!("failed seeds: {:?}", self.failed);
    }
}

/// No seed takes longer, in real time, on a machine that is busy: most take less than a second.
const REAL_TIME_MAX: Duration = Duration::from_secs(300);

/// Runs one seed on a thread of its own, so that runs share nothing.
pub(crate) fn run_seed(seed: u64) -> Report {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::Builder::new().name(format!("seed-{seed}")).stack_size(16 << 20);
    let run = thread.spawn(move || drop(sender.send(run::run(seed)))).unwrap();
    match receiver.recv_timeout(REAL_TIME_MAX) {
        Err(RecvTimeoutError::Timeout) => {
            // A thread cannot be ended from outside, and simulated time may stand still in it.
            eprintln!("seed {seed} has not ended after {REAL_TIME_MAX:?} of real time");
            eprintln!("  replay: QUORATE_SIM_SEEDS={seed} cargo test --release --test it sim");
            std::process::abort();
        }
        report => {
            // Its panic was printed when it came.
            drop(run.join());
            report.unwrap_or_else(|_| Report::panicked(seed))
        }
    }
}

/// Runs `seeds` as long as there is `time` to begin another.
fn run_all(seeds: &[u64], threads: usize, time: Duration) -> Summary {
    let summary = Mutex::new(Summary::default());
    let next = AtomicU64::new(0);
    let started = clock::now();
    let run_some = || {
        while clock::now() - started < time
            && let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize)
        {
            let report = run_seed(seed);
            let mut summary = summary.lock();
            summary.add(&report);
            if !report.violations.is_empty() {
                summary.failed.push(seed);
                tell(&report);
            } else if seeds.len() == 1 {
                keep(&report);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(run_some);
        }
    });
    let summary = summary.into_inner();
    summary.print(clock::now() - started);
    summary
}

/// Prints how to see a failure again, and keeps its log.
fn tell(report: &Report) {
    let seed = report.seed;
    eprintln!("seed {seed} fails:");
    for violation in &report.violations {
        eprintln!("  {violation}");
    }
    eprintln!("  replay: QUORATE_SIM_SEEDS={seed} cargo test --release --test it sim");
    keep(report);
}

/// Writes the log of a run to a file.
fn keep(report: &Report) {
    let path = format!("{}/sim-{}.log", log_dir(), report.seed);
    match std::fs::write(&path, &report.log) {
        Ok(()) => eprintln!("  log: {path}"),
        Err(error) => eprintln!("  its log cannot be kept in {path}: {error}"),
    }
}

fn log_dir() -> String {
    std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".to_owned())
}

/// The seeds that the environment asks for.
fn seeds_asked_for() -> Option<Vec<u64>> {
    let text = std::env::var("QUORATE_SIM_SEEDS").ok()?;
    let number = |text: &str| text.parse::<u64>().expect("QUORATE_SIM_SEEDS is N or N..M");
    Some(match text.split_once("..") {
        Some((first, end)) => Range { start: number(first), end: number(end) }.collect(),
        None => vec![number(&text)],
    })
}

/// How long the test begins new seeds when nobody asks for any.
const QUICK: Duration = Duration::from_secs(20);

/// A fresh seed of a short run.
fn fresh_seed() -> u64 {
    fastrand::u64(plan::SHORT..1 << 48)
}

#[test]
fn sim_of_seeds_violates_nothing() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let summary = match seeds_asked_for() {
        Some(seeds) => run_all(&seeds, cores, Duration::MAX),
        None => {
            let seeds: Vec<u64> = (0..100).map(|_| fresh_seed()).collect();
            run_all(&seeds, 1, QUICK)
        }
    };
    assert!(summary.failed.is_empty(), "see above");
    assert!(summary.runs > 0, "no seed was run");
}

/// Replaying a seed is worth something only if it does the same again.
#[test]
fn sim_of_one_seed_is_one_run() {
    let seed = fresh_seed();
    eprintln!("seed {seed}");
    let (first, second) = (run_seed(seed), run_seed(seed));
    for (number, (first, second)) in first.log.lines().zip(second.log.lines()).enumerate() {
        assert_eq!(first, second, "line {} of seed {seed}", number + 1);
    }
    assert_eq!(first.log.len(), second.log.len(), "seed {seed}");
}
