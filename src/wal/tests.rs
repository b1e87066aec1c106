//! Crash, damage and full-disk tests of the log, on the simulated disk, against a model.

use std::collections::BTreeMap;
use std::sync::mpsc;

use parking_lot::Condvar;

use super::segment::Segment;
use super::sim::{Loss, SimDisk};
use super::*;

const IDENTITY: Identity = Identity { cluster_id: 0xc1, member_id: 0xa1 };

fn options(disk: &SimDisk) -> Options {
    let mut options = Options::on(Arc::new(disk.clone()), IDENTITY);
    options.segment_bytes = 8 * 1024;
    options.workers = Workers::OneThread;
    options
}

/// What the log should contain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model {
    vote: Vec<u8>,
    purged: Vec<u8>,
    first: u64,
    next: u64,
    entries: BTreeMap<u64, Vec<u8>>,
}

impl Model {
    fn apply(&mut self, kind: Kind, index: u64, payload: &[u8]) {
        match kind {
            Kind::Entry => {
                self.entries.insert(index, payload.to_vec());
                self.next = index + 1;
            }
            Kind::Vote => self.vote = payload.to_vec(),
            Kind::Truncate => {
                self.entries.split_off(&index);
                self.next = self.next.min(index).max(self.first);
            }
            Kind::Purge => {
                self.purged = payload.to_vec();
                self.first = index + 1;
                self.next = self.next.max(self.first);
                self.entries = self.entries.split_off(&self.first);
            }
            Kind::Committed => {}
        }
    }

    fn apply_op(&mut self, op: &Op) {
        self.apply(op.kind, op.index, &[op.head.as_ref(), op.tail.as_ref()].concat());
    }
}

/// Opens the log and returns it with what it replayed: its state, and the committed position.
fn open(disk: &SimDisk) -> Result<(Wal, Model, u64), WalError> {
    let (mut model, mut committed) = (Model::default(), 0);
    let wal = Wal::open(&options(disk), |record| {
        if record.kind == Kind::Committed {
            committed = u64::from_le_bytes(record.payload.try_into().unwrap());
        }
        model.apply(record.kind, record.index, record.payload);
        Ok(())
    })?;
    Ok((wal, model, committed))
}

/// Submits and waits.
fn commit(wal: &Wal, ops: Vec<Op>) -> Result<(), WalError> {
    let (sender, receiver) = mpsc::channel();
    wal.submit(ops, Some(Box::new(move |result| sender.send(result).unwrap())));
    receiver.recv().unwrap()
}

fn entry(index: u64, bytes: usize) -> Op {
    let head = Bytes::from(format!("entry {index} "));
    Op::entry(index, head, Bytes::from(vec![b'x'; bytes]))
}

fn seed() -> u64 {
    let seed = std::env::var("QUORATE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("QUORATE_SEED={seed}");
    seed
}

/// Groups of changes as raft may ask for them.
fn script(random: &mut fastrand::Rng, groups: usize) -> Vec<Vec<Op>> {
    let mut model = Model::default();
    let mut number = 0;
    let mut script = Vec::new();
    for _ in 0..groups {
        let mut group = Vec::new();
        for _ in 0..random.usize(1..6) {
            number += 1;
            let text = Bytes::from(format!("change {number}"));
            let op = match random.u32(0..20) {
                0 => Op::vote(text),
                1 if model.next > model.first => Op::truncate(
                    random.u64(model.first.max(model.next.saturating_sub(5))..model.next),
                ),
                2 if model.next > model.first => {
                    Op::purge(random.u64(model.first..model.next), text)
                }
                3 if random.u32(0..10) == 0 => Op::purge(model.next + random.u64(0..5), text),
                4 => Op::entry(model.next, text, Bytes::from(vec![7; random.usize(0..12_000)])),
                _ => Op::entry(model.next, text, Bytes::from(vec![8; random.usize(0..700)])),
            };
            model.apply_op(&op);
            group.push(op);
        }
        script.push(group);
    }
    script
}

/// Runs the script until the first error. Returns how many groups were acknowledged.
fn run(disk: &SimDisk, script: &[Vec<Op>]) -> usize {
    let Ok((wal, ..)) = open(disk) else { return 0 };
    for (done, group) in script.iter().enumerate() {
        wal.set_committed(Bytes::copy_from_slice(&(done as u64 + 1).to_le_bytes()));
        if commit(&wal, group.clone()).is_err() {
            return done;
        }
    }
    script.len()
}

/// Panics unless the log on `disk` is the script up to some change at or behind the last
/// acknowledged one.
fn check(disk: &SimDisk, script: &[Vec<Op>], acknowledged: usize, context: &str) {
    let (wal, found, committed) =
        open(disk).unwrap_or_else(|error| panic!("{context}: does not open: {error}"));
    let mut model = Model::default();
    for op in script[..acknowledged].iter().flatten() {
        model.apply_op(op);
    }
    let mut fits = model == found;
    for op in script.get(acknowledged).into_iter().flatten() {
        model.apply_op(op);
        fits |= model == found;
    }
    assert!(fits, "{context}: {acknowledged} groups acknowledged, found {found:?}");
    let range = acknowledged as u64..=acknowledged as u64 + 1;
    assert!(range.contains(&committed), "{context}: committed {committed}, not in {range:?}");
    let read = wal.read(found.first, u64::MAX, usize::MAX).unwrap();
    let read: BTreeMap<u64, Vec<u8>> = read.into_iter().map(|(i, e)| (i, e.to_vec())).collect();
    let from_first = found.entries.range(found.first..).next().is_none_or(|e| *e.0 == found.first);
    assert!(!from_first || read == found.entries, "{context}: reads differ from the replay");
    // It goes on from here.
    commit(&wal, vec![entry(found.next, 100), Op::vote(Bytes::from_static(b"after"))]).unwrap();
    drop(wal);
    let (_, again, _) = open(disk).unwrap();
    assert_eq!(again.vote, b"after", "{context}");
    assert_eq!(again.next, found.next + 1, "{context}");
}

/// The power goes off during each single operation on the disk, with everything, nothing or a
/// random half of the unflushed sectors lost. Every acknowledged change is there afterwards, and
/// what is there is a prefix of what was asked for.
#[test]
fn crash_at_every_operation_keeps_an_acknowledged_prefix() {
    let seed = seed();
    for round in 0..4 {
        let mut random = fastrand::Rng::with_seed(seed.wrapping_add(round));
        let script = script(&mut random, 40);
        let disk = SimDisk::new();
        assert_eq!(run(&disk, &script), script.len());
        check(&disk, &script, script.len(), "without a crash");
        for operation in 1..=disk.operations() {
            let disk = SimDisk::new();
            disk.crash_at(operation);
            let acknowledged = run(&disk, &script);
            for loss in [Loss::Everything, Loss::Nothing, Loss::Random, Loss::Random] {
                let after = disk.after_crash(loss, &mut random);
                let context = format!("round {round}, operation {operation}, {loss:?}");
                check(&after, &script, acknowledged, &context);
            }
        }
    }
}

/// The power goes off again and again, mostly during recovery.
#[test]
fn crash_during_recovery_loses_nothing() {
    let mut random = fastrand::Rng::with_seed(seed());
    let script = script(&mut random, 40);
    for _ in 0..60 {
        let mut disk = SimDisk::new();
        disk.crash_at(random.u64(20..200));
        let acknowledged = run(&disk, &script);
        for operation in 1..4 {
            disk = disk.after_crash(Loss::Random, &mut random);
            disk.crash_at(operation);
            drop(open(&disk));
        }
        let after = disk.after_crash(Loss::Random, &mut random);
        check(&after, &script, acknowledged, "after crashes during recovery");
    }
}

/// Random changes with orderly restarts in between.
#[test]
fn reopened_log_equals_the_model() {
    let mut random = fastrand::Rng::with_seed(seed());
    let script = script(&mut random, 400);
    let disk = SimDisk::new();
    let mut model = Model::default();
    for part in script.chunks(20) {
        let (wal, found, _) = open(&disk).unwrap();
        assert_eq!(found, model);
        for group in part {
            commit(&wal, group.clone()).unwrap();
            group.iter().for_each(|op| model.apply_op(op));
        }
    }
    let (_, found, _) = open(&disk).unwrap();
    assert_eq!(found, model);
}

/// Ten flushed groups of two entries in the first segment of a disk.
fn ten_groups() -> (SimDisk, String) {
    let disk = SimDisk::new();
    let (wal, ..) = open(&disk).unwrap();
    for group in 0..10 {
        commit(&wal, vec![entry(group * 2, 50), entry(group * 2 + 1, 50)]).unwrap();
    }
    drop(wal);
    (disk, Segment::name(1))
}

/// A bit flips anywhere in the log. In front of the last flushed batch that is refused, with the
/// name of the file and an offset in front of the damage; within it, it looks like a torn write.
#[test]
fn flipped_bit_is_refused_with_its_offset() {
    let (disk, name) = ten_groups();
    let record_bytes = record::record_bytes("entry 10 ".len() + 50);
    let end = disk.files()[&name].iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let last_batch = end - 2 * record_bytes;
    for at in 0..end {
        let bad = disk.after_crash(Loss::Nothing, &mut fastrand::Rng::with_seed(0));
        bad.tamper(&name, |bytes| bytes[at] ^= 1 << (at % 8));
        match open(&bad).map(|(_, model, _)| model.next) {
            Err(WalError::Damaged { file, offset, .. }) => {
                assert_eq!(file, format!("sim:/{name}"));
                assert!(offset as usize <= at && at < last_batch, "bit at {at}, error at {offset}");
                assert!(at < HEADER_BYTES || offset as usize + record_bytes > at - 16);
            }
            Err(WalError::NewerFormat { .. }) => assert!((8..12).contains(&at)),
            Ok(next) => assert!(at >= last_batch && next >= 18, "bit at {at} lost entries"),
            Err(error) => panic!("bit at {at}: {error}"),
        }
    }
}

/// Damage in a segment that has a successor is refused wherever it is.
#[test]
fn flipped_bit_in_an_older_segment_is_refused() {
    let disk = SimDisk::new();
    let (wal, ..) = open(&disk).unwrap();
    commit(&wal, vec![entry(0, 3000)]).unwrap();
    commit(&wal, vec![entry(1, 3000)]).unwrap();
    drop(wal);
    disk.tamper(&Segment::name(1), |bytes| bytes[5000] ^= 1);
    let refused = open(&disk).map(|_| ()).unwrap_err();
    let WalError::Damaged { file, offset, .. } = &refused else { panic!("{refused}") };
    assert_eq!((file.as_str(), *offset), ("sim:/0000000000000001.wal", HEADER_BYTES as u64));
    assert!(refused.to_string().contains("damaged at byte 4096"), "{refused}");
}

/// A file cut short in its last batch is an ordinary torn tail.
#[test]
fn truncated_tail_is_recovered() {
    let (disk, name) = ten_groups();
    let record_bytes = record::record_bytes("entry 10 ".len() + 50);
    disk.tamper(&name, |bytes| {
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        bytes.truncate(end - record_bytes / 2);
    });
    let (wal, found, _) = open(&disk).unwrap();
    assert_eq!(found.next, 19);
    commit(&wal, vec![entry(19, 100), entry(20, 3000)]).unwrap();
    drop(wal);
    assert_eq!(open(&disk).unwrap().1.next, 21);
}

/// Segments are reused after a purge, and what they held before never comes back.
#[test]
fn recycled_segment_does_not_resurrect_its_past() {
    let disk = SimDisk::new();
    let (mut wal, ..) = open(&disk).unwrap();
    let mut stale_seen = false;
    for index in 0..200 {
        commit(&wal, vec![entry(index, 500)]).unwrap();
        if index > 20 {
            commit(&wal, vec![Op::purge(index - 20, Bytes::new())]).unwrap();
        }
        if index % 9 == 0 {
            drop(wal);
            let files = disk.files();
            let last = files.iter().rfind(|file| Segment::parse_name(file.0).is_some()).unwrap().1;
            let text = last.windows(6).filter(|bytes| bytes == b"entry ").count();
            let model;
            (wal, model, _) = open(&disk).unwrap();
            assert_eq!(model.next, index + 1);
            stale_seen |= text > model.entries.len();
        }
        assert!(disk.files().len() <= 8, "old segments pile up: {:?}", disk.files().keys());
    }
    let entries = |file: &Vec<u8>| file.windows(6).filter(|bytes| bytes == b"entry ").count();
    stale_seen |= disk.files().values().map(entries).sum::<usize>() > 21;
    assert!(stale_seen, "no segment was reused");
}

/// Each way to point a member at the wrong files has its own error.
#[test]
fn foreign_and_missing_segments_are_refused() {
    let disk = SimDisk::new();
    let (wal, ..) = open(&disk).unwrap();
    for index in 0..6 {
        commit(&wal, vec![entry(index, 3000)]).unwrap();
    }
    drop(wal);
    let refused = |identity| {
        let mut options = options(&disk);
        options.identity = identity;
        Wal::open(&options, |_| Ok(())).map(|_| ()).unwrap_err()
    };
    let other = Identity { cluster_id: 2, ..IDENTITY };
    assert!(matches!(refused(other), WalError::OtherCluster { found: 0xc1, expected: 2, .. }));
    let other = Identity { member_id: 2, ..IDENTITY };
    assert!(matches!(refused(other), WalError::OtherMember { found: 0xa1, expected: 2, .. }));
    for (sequence, name) in [(1, 1), (3, 3)] {
        let disk = disk.after_crash(Loss::Nothing, &mut fastrand::Rng::with_seed(0));
        disk.remove(&Segment::name(name)).unwrap();
        let error = open(&disk).map(|_| ()).unwrap_err();
        let WalError::Missing { sequence: missing, .. } = error else { panic!("{error}") };
        assert_eq!(missing, sequence);
    }
    disk.tamper(&Segment::name(6), |bytes| bytes[8] = 2);
    assert!(matches!(open(&disk), Err(WalError::NewerFormat { found: 2, known: 1, .. })));
}

/// Completions of one flush run newest first; a queued truncation lowers the watermark at once.
#[test]
fn one_flush_completes_newest_first() {
    let disk = SimDisk::new();
    let (wal, ..) = open(&disk).unwrap();
    commit(&wal, vec![entry(0, 10), entry(1, 10)]).unwrap();
    assert_eq!(wal.durable_next(), 2);
    let (release, blocked) = mpsc::channel::<()>();
    let (started, is_blocked) = mpsc::channel();
    wal.submit(
        [entry(2, 10)],
        Some(Box::new(move |_| {
            started.send(()).unwrap();
            blocked.recv().unwrap();
        })),
    );
    is_blocked.recv().unwrap();
    let flushes = disk.operations();
    let (sender, order) = mpsc::channel();
    for number in 0..4_u64 {
        let sender = sender.clone();
        let ops = if number == 0 { Op::truncate(1) } else { entry(number, 10) };
        wal.submit(
            [ops],
            Some(Box::new(move |result| sender.send((number, result.is_ok())).unwrap())),
        );
    }
    drop(sender);
    assert_eq!(wal.durable_next(), 1);
    release.send(()).unwrap();
    assert_eq!(order.iter().collect::<Vec<_>>(), [(3, true), (2, true), (1, true), (0, true)]);
    assert_eq!(disk.operations(), flushes + 2, "one write and one flush");
    assert_eq!(wal.durable_next(), 4);
}

#[derive(Default)]
struct Watch(Mutex<Vec<&'static str>>, Condvar);

impl WalObserver for Watch {
    fn space_low(&self, low: bool) {
        self.0.lock().push(if low { "low" } else { "fine" });
        self.1.notify_all();
    }

    fn failed(&self, _error: &WalError) {
        self.0.lock().push("failed");
    }
}

/// A full disk warns while the current segment still has room, then writes wait, and go on when
/// there is space again. Nothing fails.
#[test]
fn full_disk_warns_waits_and_goes_on() {
    let disk = SimDisk::new();
    disk.limit_bytes(Some(12 * 1024));
    let watch = Arc::new(Watch::default());
    let mut options = options(&disk);
    options.workers = Workers::Threads;
    options.observer = Arc::clone(&watch) as Arc<dyn WalObserver>;
    let wal = Wal::open(&options, |_| Ok(())).unwrap();
    {
        let mut seen = watch.0.lock();
        while seen.is_empty() {
            watch.1.wait(&mut seen);
        }
    }
    assert!(wal.space_low());
    commit(&wal, vec![entry(0, 3000)]).unwrap();
    let (sender, receiver) = mpsc::channel();
    wal.submit([entry(1, 3000)], Some(Box::new(move |result| sender.send(result).unwrap())));
    assert!(receiver.try_recv().is_err());
    disk.limit_bytes(None);
    receiver.recv().unwrap().unwrap();
    assert_eq!(wal.durable_next(), 2);
    drop(wal);
    assert_eq!(*watch.0.lock(), ["low", "fine"]);
    assert_eq!(open(&disk).unwrap().1.next, 2);
}

/// A spare took the last space of a disk, and a state on the same disk failed.
#[test]
fn spare_leaves_space_for_the_state() {
    let disk = SimDisk::new();
    // The first segment has 8 KiB. A spare would fit, but leave only one more.
    disk.limit_bytes(Some(17 * 1024));
    let watch = Arc::new(Watch::default());
    let mut options = options(&disk);
    options.workers = Workers::Threads;
    options.observer = Arc::clone(&watch) as Arc<dyn WalObserver>;
    let wal = Wal::open(&options, |_| Ok(())).unwrap();
    while watch.0.lock().is_empty() && disk.files().len() < 2 {
        thread::yield_now();
    }
    assert_eq!(*watch.0.lock(), ["low"]);
    assert_eq!(disk.free_bytes().unwrap(), 9 * 1024);
    drop(wal);
}

/// An old segment had become a spare, or was removed, when the flush of its directory failed once.
/// Each retry then looked for its old name, and no segment could be made any more.
#[test]
fn failed_flush_of_the_directory_is_made_up_for() {
    // The second is larger than a segment: it gets a file that is removed, not reused.
    for (bytes, fails_after) in [(3000, 1), (12_000, 5)] {
        let disk = SimDisk::new();
        let (wal, ..) = open(&disk).unwrap();
        commit(&wal, vec![entry(0, bytes)]).unwrap();
        commit(&wal, vec![entry(1, 3000)]).unwrap();
        let before = disk.operations();
        disk.fail_sync_dir_at(before + fails_after);
        commit(&wal, vec![Op::purge(0, Bytes::new())]).unwrap();
        // A write, its flush, and for each old segment a change of its name and the flush of that.
        assert!(disk.operations() > before + fails_after, "the flush of the directory has failed");
        commit(&wal, vec![entry(2, 3000)]).unwrap();
        commit(&wal, vec![entry(3, 3000)]).unwrap();
        assert!(!wal.space_low());
        assert_eq!(disk.files().len(), 3, "an entry in each: {:?}", disk.files().keys());
        drop(wal);
        assert_eq!(open(&disk).unwrap().1.next, 4);
    }
}

/// Closing does not wait for space that never comes; whoever waited is told.
#[test]
fn full_disk_does_not_block_closing() {
    let disk = SimDisk::new();
    disk.limit_bytes(Some(12 * 1024));
    let mut options = options(&disk);
    options.workers = Workers::Threads;
    let wal = Wal::open(&options, |_| Ok(())).unwrap();
    let (sender, receiver) = mpsc::channel();
    let done: Callback = Box::new(move |result| sender.send(result).unwrap());
    wal.submit([entry(0, 3000), entry(1, 3000)], Some(done));
    drop(wal);
    assert!(matches!(receiver.recv().unwrap(), Err(WalError::Closed)));
    assert_eq!(open(&disk).unwrap().1.next, 1);
}

/// A member whose flush failed is restarted: what it reads then may be in the page cache alone.
#[test]
fn what_a_failed_flush_left_in_the_cache_is_written_again() {
    let disk = SimDisk::new();
    let mut random = fastrand::Rng::with_seed(7);
    let (wal, ..) = open(&disk).unwrap();
    commit(&wal, vec![entry(0, 100)]).unwrap();
    disk.fail_flush_at(disk.operations());
    commit(&wal, vec![entry(1, 3000), entry(2, 100)]).unwrap_err();
    drop(wal);
    let disk = disk.after_crash(Loss::Nothing, &mut random);
    let (wal, model, _) = open(&disk).unwrap();
    assert_eq!(model.next, 3, "they count again");
    commit(&wal, vec![entry(3, 100)]).unwrap();
    let disk = disk.after_crash(Loss::Everything, &mut random);
    assert_eq!(open(&disk).unwrap().1.next, 4);
}

/// Raft waits for its votes to be written, and a member stops only when raft does.
#[test]
fn full_disk_does_not_block_a_member_that_stops() {
    let disk = SimDisk::new();
    disk.limit_bytes(Some(12 * 1024));
    for workers in [Workers::Threads, Workers::OneThread] {
        let is_threads = matches!(workers, Workers::Threads);
        let mut options = options(&disk);
        options.workers = workers;
        let wal = Wal::open(&options, |_| Ok(())).unwrap();
        if is_threads {
            wal.begin_close();
            commit(&wal, vec![entry(0, 10)]).expect("there is room for this one");
        }
        let (sender, receiver) = mpsc::channel();
        let done: Callback = Box::new(move |result| sender.send(result).unwrap());
        wal.submit([entry(1, 3000), entry(2, 3000)], Some(done));
        wal.begin_close();
        assert!(matches!(receiver.recv().unwrap(), Err(WalError::Closed)));
    }
}

/// An entry larger than a segment gets one of its own.
#[test]
fn entry_larger_than_a_segment_is_stored() {
    let disk = SimDisk::new();
    let (wal, ..) = open(&disk).unwrap();
    commit(&wal, vec![entry(0, 100), entry(1, 5_000_000), entry(2, 100)]).unwrap();
    drop(wal);
    let (wal, model, _) = open(&disk).unwrap();
    assert_eq!(model.entries[&1].len(), 5_000_000 + "entry 1 ".len());
    assert_eq!(wal.read(1, 3, usize::MAX).unwrap().len(), 2);
    assert!(Wal::check_size(LOG_RECORD_BYTES_MAX + 1).is_err());
}

/// The bytes on disk are those of format 1, which every later release must read. Change this
/// fixture only together with the format version; `QUORATE_BLESS=1` writes it.
#[test]
fn format_1_is_written_and_read() {
    let disk = SimDisk::new();
    let (wal, ..) = open(&disk).unwrap();
    wal.set_committed(Bytes::copy_from_slice(&7_u64.to_le_bytes()));
    let small = |index| Op::entry(index, Bytes::from_static(b"he"), Bytes::from_static(b"ad"));
    let text = |text: &'static str| Bytes::from_static(text.as_bytes());
    commit(&wal, vec![Op::vote(text("vote")), small(0), small(1), small(2)]).unwrap();
    commit(&wal, vec![Op::truncate(2), small(2), Op::purge(0, text("purged"))]).unwrap();
    drop(wal);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/format-1/log.wal");
    let name = Segment::name(1);
    if std::env::var_os("QUORATE_BLESS").is_some() {
        std::fs::write(path, &disk.files()[&name]).unwrap();
    }
    let fixture = std::fs::read(path).unwrap();
    assert!(disk.files()[&name] == fixture, "the format has changed");
    let old = SimDisk::new();
    old.create(&name).unwrap();
    old.tamper(&name, |bytes| *bytes = fixture);
    let (_, model, committed) = open(&old).unwrap();
    assert_eq!(
        (model.vote.as_slice(), model.purged.as_slice(), committed),
        (&b"vote"[..], &b"purged"[..], 7)
    );
    assert_eq!(model.entries, BTreeMap::from([(1, b"head".to_vec()), (2, b"head".to_vec())]));
}
