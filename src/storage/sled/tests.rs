//! What survives: kills, power loss, and damage to sled's files. The oracle is the same for all:
//! the store holds exactly the commits `1..=n`, with `n` at least the last checkpoint, or it says
//! that it cannot be read.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{SledBackend, SledOptions, pack::leaf_visits};
use crate::storage::{Backend, Batch, StorageError, tests::seed};

/// How many revisions are live at a time.
const LIVE: u64 = 3_000;

/// How often the child is killed; `QUORATE_KILLS` asks for more.
fn kills() -> usize {
    std::env::var("QUORATE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(12)
}

/// Flushes and reopens often, so that a kill hits them.
fn eager() -> SledOptions {
    SledOptions { flush_writes_max: 700, reopen_bytes: 300_000, ..SledOptions::default() }
}

/// Flushes at checkpoints only.
fn lazy() -> SledOptions {
    SledOptions { flush_interval: std::time::Duration::from_secs(3600), ..SledOptions::default() }
}

fn key(commit: u64) -> Vec<u8> {
    [b"r".as_slice(), &commit.to_be_bytes()].concat()
}

fn value(commit: u64) -> Vec<u8> {
    let length = commit as usize * 37 % 400 + if commit.is_multiple_of(997) { 100_000 } else { 0 };
    commit.to_be_bytes().into_iter().cycle().take(length).collect()
}

/// Whether revision `n` is never removed: what is around it is, so that its leaf becomes sparse.
fn lasting(n: u64) -> bool {
    n.is_multiple_of(40)
}

/// Commit `n` of the numbered history: adds revision `n`, removes an old one, counts.
fn numbered(n: u64) -> Batch {
    let mut batch = Batch::default();
    batch.put(key(n), value(n));
    if n > LIVE && !lasting(n - LIVE) {
        batch.remove(key(n - LIVE));
    }
    batch.put("mcount", n.to_be_bytes().to_vec());
    batch
}

/// The number of commits in the store, after checking that it holds exactly these.
fn checked_count(store: &SledBackend) -> Result<u64, StorageError> {
    let count = store.get(b"mcount")?;
    let count = count.map_or(0, |value| u64::from_be_bytes(value[..].try_into().unwrap()));
    let oldest = count.saturating_sub(LIVE) + 1;
    let mut expected = (1..=count).filter(|n| *n >= oldest || lasting(*n));
    let mut visit = |found: &[u8], stored: &[u8]| {
        let expected = expected.next().expect("there is more than there should be");
        assert_eq!(found, key(expected), "of {count} commits");
        assert_eq!(stored, value(expected), "of commit {expected}");
        ControlFlow::Continue(())
    };
    store.scan(b"r", b"s", &mut visit)?;
    assert_eq!(expected.next(), None, "the last commits are missing");
    Ok(count)
}

fn open_and_count(dir: &Path) -> Result<u64, StorageError> {
    checked_count(&SledBackend::open(dir, lazy())?)
}

/// sled's own iterators read all leaves behind the end of their range.
#[test]
fn a_scan_reads_no_leaf_behind_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledBackend::open(dir.path(), lazy()).unwrap();
    (1..=10_000).for_each(|n| {
        let mut batch = Batch::default();
        batch.put(key(n), value(n));
        store.commit(batch).unwrap();
    });
    store.checkpoint().unwrap();
    let visits = || store.shared.handles.with(|database| Ok(leaf_visits(database))).unwrap();
    let scanned = |start: &[u8], end: &[u8]| {
        let (mut pairs, before) = (0, visits());
        let mut visit = |_: &[u8], _: &[u8]| {
            pairs += 1;
            ControlFlow::Continue(())
        };
        store.scan(start, end, &mut visit).unwrap();
        (pairs, visits() - before)
    };
    let (pairs, leaves) = scanned(b"a", b"b");
    assert_eq!(pairs, 0);
    assert!(leaves <= 2, "an empty scan looked at {leaves} leaves");
    let (pairs, leaves) = scanned(&key(100), &key(110));
    assert_eq!(pairs, 10);
    assert!(leaves <= 4, "a scan of 10 records looked at {leaves} leaves");
}

/// Not a test by itself: the process that the next test kills.
#[test]
fn crash_child() {
    let Some(dir) = std::env::var_os("QUORATE_CRASH_DIR") else { return };
    let store = SledBackend::open(PathBuf::from(dir), eager()).unwrap();
    let mut count = checked_count(&store).unwrap();
    loop {
        for _ in 0..500 {
            count += 1;
            store.commit(numbered(count)).unwrap();
        }
        store.checkpoint().unwrap();
        writeln!(std::io::stdout(), "checkpoint {count}").unwrap();
    }
}

#[test]
fn kill_at_any_moment_leaves_an_exact_prefix_not_behind_the_checkpoint() {
    let mut random = fastrand::Rng::with_seed(seed());
    let dir = tempfile::tempdir().unwrap();
    let mut last_checkpoint = 0;
    for _ in 0..kills() {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "storage::sled::tests::crash_child", "--nocapture"])
            .env("QUORATE_CRASH_DIR", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut checkpoints = lines.filter_map(|line| {
            line.unwrap().split_once("checkpoint ").and_then(|(_, count)| count.parse().ok())
        });
        for _ in 0..random.usize(1..12) {
            last_checkpoint = checkpoints.next().expect("the child goes on until it is killed");
        }
        for _ in 0..random.usize(0..20_000) {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        last_checkpoint = checkpoints.last().unwrap_or(last_checkpoint);
        let count = open_and_count(dir.path()).unwrap();
        assert!(count >= last_checkpoint, "{count} is behind the checkpoint {last_checkpoint}");
    }
}

/// A closed store with `commits` numbered commits.
fn build(dir: &Path, commits: std::ops::RangeInclusive<u64>) {
    let store = SledBackend::open(dir, lazy()).unwrap();
    commits.for_each(|n| store.commit(numbered(n)).unwrap());
    store.checkpoint().unwrap();
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

fn copy(from: &Path, to: &Path) {
    for file in files_below(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&file, target).unwrap();
    }
}

#[test]
fn damage_to_any_file_is_an_error_or_harmless() {
    let original = tempfile::tempdir().unwrap();
    build(original.path(), 1..=5_000);
    build(original.path(), 5_001..=6_000);
    let mut found = 0;
    for file in files_below(original.path()) {
        let bytes = fs::read(&file).unwrap();
        let name = file.strip_prefix(original.path()).unwrap();
        let mut damaged = vec![None];
        if !bytes.is_empty() {
            damaged.push(Some(bytes[..bytes.len() / 2].to_vec()));
            damaged.push(Some(Vec::new()));
            for at in [0, bytes.len() / 2, bytes.len() - 1] {
                let mut flipped = bytes.clone();
                flipped[at] ^= 4;
                damaged.push(Some(flipped));
            }
        }
        for (kind, content) in damaged.into_iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            copy(original.path(), dir.path());
            match &content {
                Some(content) => fs::write(dir.path().join(name), content).unwrap(),
                None => fs::remove_file(dir.path().join(name)).unwrap(),
            }
            match open_and_count(dir.path()) {
                Ok(count) => assert_eq!(count, 6_000, "{} with damage {kind}", name.display()),
                Err(error) => {
                    assert!(error.to_string().contains(dir.path().to_str().unwrap()), "{error}");
                    found += 1;
                }
            }
        }
    }
    assert!(found > 10, "only {found} damages were found");
}

/// When sled is closed it moves records together, and aborts the process if a read failed before:
/// for example that of the last commit's number, while it is opened.
#[test]
fn damage_found_while_opening_is_an_error_and_not_an_abort() {
    let original = tempfile::tempdir().unwrap();
    build(original.path(), 1..=4_000);
    for n in 1..10 {
        build(original.path(), 4_000 + 30 * n - 29..=4_000 + 30 * n);
    }
    let mut found = 0;
    for file in files_below(&original.path().join("sled/slabs")) {
        let bytes = fs::read(&file).unwrap();
        let name = file.strip_prefix(original.path()).unwrap();
        for half in [0..bytes.len() / 2, bytes.len() / 2..bytes.len()] {
            let mut flipped = bytes.clone();
            flipped[half].iter_mut().for_each(|byte| *byte ^= 4);
            let dir = tempfile::tempdir().unwrap();
            copy(original.path(), dir.path());
            fs::write(dir.path().join(name), flipped).unwrap();
            match open_and_count(dir.path()) {
                Ok(count) => assert_eq!(count, 4_270, "{} is damaged", name.display()),
                Err(error) => {
                    assert!(error.to_string().contains(dir.path().to_str().unwrap()), "{error}");
                    found += 1;
                }
            }
        }
    }
    assert!(found > 0, "no damage was found");
}

/// A process that another thread starts holds this one's locks for a moment. A reopen that met such
/// a moment failed, the writer ended, and what was not flushed was gone after a clean close.
#[test]
fn open_when_the_lock_is_held_for_a_moment_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), 1..=10);
    let database = fs::File::open(dir.path().join("sled")).unwrap();
    // Another test's child may hold it for that very moment.
    database.lock().unwrap();
    let (sender, opened) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| sender.send(open_and_count(dir.path())).unwrap());
        let early = opened.recv_timeout(std::time::Duration::from_millis(300));
        assert!(early.is_err(), "opened in spite of the lock: {early:?}");
        database.unlock().unwrap();
        assert_eq!(opened.recv().unwrap().unwrap(), 10);
    });
}

/// A flush writes leaves, syncs them, appends to the metadata log, syncs that: before the second
/// sync any subset of the pages may be on disk, and the store must still be the one before.
#[test]
fn power_loss_within_a_flush_leaves_the_state_before_or_after() {
    let mut random = fastrand::Rng::with_seed(seed());
    let (before, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = SledBackend::open(after.path(), lazy()).unwrap();
    for n in 1..=4_000 {
        store.commit(numbered(n)).unwrap();
    }
    store.checkpoint().unwrap();
    copy(after.path(), before.path());
    for n in 4_001..=4_800 {
        store.commit(numbered(n)).unwrap();
    }
    store.checkpoint().unwrap();
    for round in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        copy(before.path(), dir.path());
        let log_too = round % 2 == 1;
        for file in files_below(after.path()) {
            let name = file.strip_prefix(after.path()).unwrap();
            let (old, new) = (fs::read(before.path().join(name)), fs::read(&file).unwrap());
            let mut mixed = old.unwrap_or_default();
            if name.starts_with("sled/slabs") {
                mix_pages(&mut mixed, &new, || log_too || random.bool());
            } else if name.starts_with("sled/metadata") && log_too && new.len() > mixed.len() {
                let cut = random.usize(mixed.len()..=new.len());
                mixed.extend_from_slice(&new[mixed.len()..cut]);
                mixed.resize(random.usize(cut..=new.len()), 0); // Its length got further.
            } else {
                continue;
            }
            fs::write(dir.path().join(name), mixed).unwrap();
        }
        let count = open_and_count(dir.path()).unwrap();
        assert!(count == 4_000 || (log_too && count == 4_800), "round {round}: {count}");
    }
}

fn mix_pages(mixed: &mut Vec<u8>, new: &[u8], mut take_new: impl FnMut() -> bool) {
    for (page, content) in new.chunks(4096).enumerate() {
        if take_new() {
            let at = page * 4096;
            mixed.resize(mixed.len().max(at + content.len()), 0);
            mixed[at..at + content.len()].copy_from_slice(content);
        }
    }
}

#[test]
fn error_while_reading_is_remembered_and_close_does_not_hang() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), 1..=1_000);
    let store = SledBackend::open(dir.path(), lazy()).unwrap();
    for file in files_below(&dir.path().join("sled/slabs")) {
        fs::write(file, b"").unwrap();
    }
    assert!(store.get(&key(500)).is_err());
    assert!(store.get(&key(500)).is_err());
    assert!(store.commit(numbered(1_001)).is_err());
    assert!(store.checkpoint().is_err());
}

#[test]
fn drain_when_the_backlog_falls_calls_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledBackend::open(dir.path(), lazy()).unwrap();
    let (wake, woken) = std::sync::mpsc::channel();
    store.on_drain(10_000, Box::new(move || wake.send(()).unwrap()));
    let mut big = Batch::default();
    big.put("key", vec![0; 20_000]);
    store.commit(big).unwrap();
    woken.recv().unwrap();
    assert!(store.backlog_bytes() < 10_000);
    store.checkpoint().unwrap();
    assert!(store.size_bytes() > 0);
}

/// Found by the kill test: sled removed its only snapshot when it was killed while recovering, at
/// the moment when there is no log, and opened almost empty the time after. See `manifest::prepare`.
#[test]
fn open_after_a_kill_between_two_logs_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    build(dir.path(), 1..=1_000);
    for _ in 0..3 {
        assert_eq!(open_and_count(dir.path()).unwrap(), 1_000);
        for file in files_below(&dir.path().join("sled/metadata")) {
            if file.file_name().unwrap().to_str().unwrap().starts_with("log_") {
                assert_eq!(fs::metadata(&file).unwrap().len(), 0, "nothing was written");
                fs::remove_file(file).unwrap();
            }
        }
    }
}

/// sled writes its settings without a sync: a member that lost its power during its first start
/// refused every start after that.
#[test]
fn open_after_a_power_loss_while_the_store_was_made_begins_again() {
    for torn in [&[][..], &[0; 64], &[1, 0, 128]] {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("sled/metadata")).unwrap();
        fs::write(dir.path().join("sled/durability_cookie"), torn).unwrap();
        build(dir.path(), 1..=20);
        assert_eq!(open_and_count(dir.path()).unwrap(), 20);
        // What was used is not made again.
        fs::write(dir.path().join("sled/durability_cookie"), torn).unwrap();
        open_and_count(dir.path()).unwrap_err();
    }
}

#[test]
fn leaves_when_most_of_their_records_are_removed_are_packed() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledBackend::open(dir.path(), SledOptions::default()).unwrap();
    (1..=50_000).for_each(|n| store.commit(numbered(n)).unwrap());
    store.checkpoint().unwrap();
    checked_count(&store).unwrap();
    let (records, leaves) = leaves(&store);
    assert!(leaves < records / 8, "{records} records in {leaves} leaves");
}

/// How many records and leaves there are.
fn leaves(store: &SledBackend) -> (usize, usize) {
    let count = |database: &super::handles::Database| {
        let before = leaf_visits(database);
        let records = database.iter().count();
        Ok((records, leaf_visits(database) - before))
    };
    store.shared.handles.with(count).unwrap()
}
