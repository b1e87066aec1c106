//! What the storage costs: CPU a write, memory, disk, scans and cold reads.
//!
//! ```text
//! cargo bench --bench storage -- window [seconds] [live] [batch]   plateau of memory and disk
//! cargo bench --bench storage -- fill [records] [batch]            then reopen, scan, cold gets
//! cargo bench --bench storage -- read [dir] [records]              of a `fill` with BENCH_KEEP=1
//! cargo bench --bench storage -- sparse [seconds]                  a record in 100 lives for ever
//! cargo bench --bench storage -- idle                              an empty store
//! cargo bench --bench storage -- generator                         what the bench itself costs
//! ```
//! Records are like revisions: key `r` + revision, value of 130 bytes, half of it random. Options
//! of the store come from `CACHE_MIB`, `REOPEN_MIB` and `FLUSH_WRITES`, the value's size from
//! `VALUE_BYTES`, and `RATE` limits `window` to so many revisions a second.
#![expect(clippy::print_stdout, reason = "a bench reports on stdout")]
#![expect(clippy::disallowed_methods, reason = "a bench measures time")]
#![expect(clippy::unwrap_used, reason = "a bench may panic")]

use std::{
    env, fs,
    ops::ControlFlow,
    path::Path,
    sync::OnceLock,
    time::{Duration, Instant},
};

use quorate::{
    limits::STORAGE_BACKLOG_BYTES_MAX,
    storage::{
        Backend, Batch,
        sled::{SledBackend, SledOptions},
    },
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let words: Vec<String> = env::args().skip(1).filter(|word| word != "--bench").collect();
    let number = |at: usize, default: u64| {
        words.get(at).and_then(|word| word.parse().ok()).unwrap_or(default)
    };
    let mut dir =
        tempfile::tempdir_in(env::var("BENCH_DIR").unwrap_or_else(|_| "/tmp".into())).unwrap();
    dir.disable_cleanup(env::var_os("BENCH_KEEP").is_some());
    match words.first().map(String::as_str) {
        Some("window") => window(dir.path(), number(1, 60), number(2, 200_000), number(3, 64)),
        Some("fill") => fill(dir.path(), number(1, 1_000_000), number(2, 64)),
        Some("sparse") => sparse(dir.path(), number(1, 30)),
        Some("generator") => {
            let mut random = fastrand::Rng::with_seed(1);
            let meter = Meter::start();
            for revision in 1..=1_000_000 {
                let mut writes = Batch::default();
                writes.put(key(revision), value(&mut random));
            }
            report("the bench itself", 1_000_000, &meter, dir.path());
        }
        Some("read") => {
            let dir = Path::new(&words[1]);
            report("start", 0, &Meter::start(), dir);
            let store = open(dir);
            report("open", 0, &Meter::start(), dir);
            scan(&store, dir);
            cold_gets(&store, number(2, 1_000_000), &mut fastrand::Rng::with_seed(1));
            report("after cold gets", 0, &Meter::start(), dir);
        }
        Some("idle") | None => {
            let _store = open(dir.path());
            report("idle", 0, &Meter::start(), dir.path());
        }
        Some(other) => println!("unknown: {other}"),
    }
}

fn open(dir: &Path) -> SledBackend {
    let mut options = SledOptions::default();
    if let Some(mib) = env_number("CACHE_MIB") {
        options.cache_bytes = mib << 20;
    }
    if let Some(writes) = env_number("FLUSH_WRITES") {
        options.flush_writes_max = writes;
    }
    if let Some(mib) = env_number("REOPEN_MIB") {
        options.reopen_bytes = mib << 20;
    }
    SledBackend::open(dir, options).unwrap()
}

/// New revisions in, old ones out, `live` of them at a time.
fn window(dir: &Path, seconds: u64, live: u64, batch: u64) {
    let store = open(dir);
    let mut random = fastrand::Rng::with_seed(1);
    let mut meter = Meter::start();
    let (mut revision, mut written) = (0, 0);
    let (mut commits, mut gets) = (Latency::default(), Latency::default());
    let rate = env_number("RATE").unwrap_or(usize::MAX);
    let begun = Instant::now();
    let mut next_report = 10;
    while begun.elapsed().as_secs() < seconds {
        let mut writes = Batch::default();
        for _ in 0..batch {
            revision += 1;
            writes.put(key(revision), value(&mut random));
            if revision > live {
                writes.remove(key(revision - live));
            }
        }
        written += writes.writes.len() as u64;
        writes.put("mapplied", revision.to_be_bytes().to_vec());
        pause(&store);
        while revision as f64 > rate as f64 * begun.elapsed().as_secs_f64() {
            std::thread::sleep(Duration::from_millis(1));
        }
        commits.note(|| store.commit(writes).unwrap());
        if revision % 1024 == 0 && revision > live {
            let read = key(random.u64(revision - live + 1..=revision));
            gets.note(|| assert!(store.get(&read).unwrap().is_some()));
        }
        if begun.elapsed().as_secs() >= next_report {
            next_report += 10;
            report(&format!("{revision:>11} revisions"), written, &meter, dir);
            meter = Meter::start();
            written = 0;
        }
    }
    store.checkpoint().unwrap();
    let mut count = 0;
    store
        .scan(b"r", b"s", &mut |_, _| {
            count += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(count, live.min(revision));
    commits.print("commits");
    gets.print("gets in between");
    report("end", written, &meter, dir);
}

/// One record in a hundred is never removed: its leaf stays, nearly empty.
fn sparse(dir: &Path, seconds: u64) {
    let store = open(dir);
    let mut random = fastrand::Rng::with_seed(1);
    let meter = Meter::start();
    let begun = Instant::now();
    let (mut revision, mut written) = (0, 0);
    while begun.elapsed().as_secs() < seconds {
        let mut writes = Batch::default();
        for _ in 0..64 {
            revision += 1;
            writes.put(key(revision), value(&mut random));
            if revision > 100_000 && revision % 100 != 0 {
                writes.remove(key(revision - 100_000));
            }
        }
        written += writes.writes.len() as u64;
        commit(&store, writes);
    }
    store.checkpoint().unwrap();
    report(&format!("{revision:>11} revisions"), written, &meter, dir);
    drop(store);
    let store = open(dir);
    report("reopened", 0, &meter, dir);
    scan(&store, dir);
}

/// Writes `records`, then reopens, scans all of them and reads some that are not in memory.
fn fill(dir: &Path, records: u64, batch: u64) {
    let mut store = open(dir);
    let mut random = fastrand::Rng::with_seed(1);
    let meter = Meter::start();
    let mut revision = 0;
    while revision < records {
        let mut writes = Batch::default();
        for _ in 0..batch {
            revision += 1;
            writes.put(key(revision), value(&mut random));
        }
        writes.put("mapplied", revision.to_be_bytes().to_vec());
        commit(&store, writes);
    }
    store.checkpoint().unwrap();
    report(&format!("fill, batch {batch}"), records, &meter, dir);
    drop(store);
    let meter = Meter::start();
    store = open(dir);
    report("reopen", 0, &meter, dir);
    scan(&store, dir);
    drop(store);
    store = open(dir);
    cold_gets(&store, records, &mut random);
    report("after cold gets", 0, &Meter::start(), dir);
}

fn scan(store: &SledBackend, dir: &Path) {
    let meter = Meter::start();
    let mut count = 0;
    store
        .scan(b"r", b"s", &mut |_, _| {
            count += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    report("scan", count, &meter, dir);
}

fn cold_gets(store: &SledBackend, records: u64, random: &mut fastrand::Rng) {
    let mut gets = Latency::default();
    for _ in 0..20_000 {
        let read = key(random.u64(1..=records));
        gets.note(|| assert!(store.get(&read).unwrap().is_some()));
    }
    gets.print("cold gets");
}

/// How long calls took.
#[derive(Default)]
struct Latency {
    nanoseconds: Vec<u32>,
}

impl Latency {
    fn note(&mut self, call: impl FnOnce()) {
        let begun = Instant::now();
        call();
        self.nanoseconds.push(begun.elapsed().as_nanos().try_into().unwrap_or(u32::MAX));
    }

    fn print(&mut self, what: &str) {
        self.nanoseconds.sort_unstable();
        let last = self.nanoseconds.len().saturating_sub(1);
        let at = |permille: usize| {
            self.nanoseconds.get(last * permille / 1000).map_or(0.0, |ns| f64::from(*ns) / 1e3)
        };
        let (p50, p99, max) = (at(500), at(990), at(1000));
        println!("{what}: p50 {p50:.1} us, p99 {p99:.1} us, max {max:.1} us");
    }
}

fn commit(store: &SledBackend, writes: Batch) {
    pause(store);
    store.commit(writes).unwrap();
}

/// Waits while the backlog is large.
fn pause(store: &SledBackend) {
    while store.backlog_bytes() > STORAGE_BACKLOG_BYTES_MAX {
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn key(revision: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(13);
    key.push(b'r');
    key.extend_from_slice(&revision.to_be_bytes());
    key.extend_from_slice(&[0; 4]);
    key
}

fn value(random: &mut fastrand::Rng) -> Vec<u8> {
    static BYTES: OnceLock<usize> = OnceLock::new();
    let bytes = *BYTES.get_or_init(|| env_number("VALUE_BYTES").unwrap_or(130));
    let mut value = vec![b'x'; bytes];
    random.fill(&mut value[..bytes / 2]);
    value
}

fn env_number(name: &str) -> Option<usize> {
    env::var(name).ok()?.parse().ok()
}

/// Wall clock and CPU since some moment.
struct Meter {
    begun: Instant,
    cpu_ticks: u64,
}

impl Meter {
    fn start() -> Self {
        Meter { begun: Instant::now(), cpu_ticks: cpu_ticks() }
    }
}

fn report(what: &str, items: u64, meter: &Meter, dir: &Path) {
    let seconds = meter.begun.elapsed().as_secs_f64();
    let cpu_us = (cpu_ticks() - meter.cpu_ticks) as f64 * 10_000.0;
    let each = if items == 0 { 0.0 } else { cpu_us / items as f64 };
    println!(
        "{what:<24} {seconds:>6.2} s, {:>8.0} a second, CPU {each:>5.2} us each, RSS {:>6.1} MiB (peak {:.1}), disk {:>6.1} MiB",
        items as f64 / seconds,
        resident_bytes("VmRSS:") as f64 / 1048576.0,
        resident_bytes("VmHWM:") as f64 / 1048576.0,
        disk_bytes(dir) as f64 / 1048576.0,
    );
}

fn cpu_ticks() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit(')').next().unwrap();
    let words: Vec<&str> = after_name.split_whitespace().collect();
    words[11].parse::<u64>().unwrap() + words[12].parse::<u64>().unwrap()
}

/// A figure of this process from the kernel; reading the peak resets it.
fn resident_bytes(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    if name == "VmHWM:" {
        fs::write("/proc/self/clear_refs", "5").unwrap();
    }
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let mut sum = 0;
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        sum += if metadata.is_dir() { disk_bytes(&entry.path()) } else { metadata.blocks() * 512 };
    }
    sum
}
