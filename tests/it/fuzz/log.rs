//! The segments of the log, changed behind its back. What opens is what was written up to some
//! record, and no intact record behind it says that more was durable. Else it is refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use quorate::wal::sim::SimDisk;
use quorate::wal::{Disk, Identity, Kind, Op, Options, Record, Wal};

use crate::support::fuzz::fuzz;

const IDENTITY: Identity = Identity { cluster_id: 7, member_id: 9 };
const HEADER_BYTES: usize = 4096;
const SEGMENT_BYTES: u64 = 8192;

/// A directory without its zeroes.
#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(message, repeated, tag = "1")]
    files: Vec<File>,
}

#[derive(Clone, PartialEq, Message)]
struct File {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint64, tag = "2")]
    bytes: u64,
    #[prost(message, repeated, tag = "3")]
    runs: Vec<Run>,
}

/// Bytes that are not all zero.
#[derive(Clone, PartialEq, Message)]
struct Run {
    #[prost(uint64, tag = "1")]
    offset: u64,
    #[prost(bytes = "bytes", tag = "2")]
    bytes: Bytes,
}

type Files = BTreeMap<String, Vec<u8>>;

fn image(files: &Files) -> Image {
    let runs = |content: &[u8]| {
        let chunks = content.chunks(32).enumerate();
        let chunks = chunks.filter(|(_, chunk)| chunk.iter().any(|byte| *byte != 0));
        chunks
            .map(|(number, chunk)| Run {
                offset: number as u64 * 32,
                bytes: Bytes::copy_from_slice(chunk),
            })
            .collect()
    };
    let file = |(name, content): (&String, &Vec<u8>)| File {
        name: name.clone(),
        bytes: content.len() as u64,
        runs: runs(content),
    };
    Image { files: files.iter().map(file).collect() }
}

fn files(image: &Image) -> Files {
    let content = |file: &File| {
        let mut content = vec![0; file.bytes.min(2 * SEGMENT_BYTES) as usize];
        for run in &file.runs {
            let start = (run.offset as usize).min(content.len());
            let end = start.saturating_add(run.bytes.len()).min(content.len());
            content[start..end].copy_from_slice(&run.bytes[..end - start]);
        }
        content
    };
    image.files.iter().map(|file| (file.name.clone(), content(file))).collect()
}

/// What replaying amounts to.
#[derive(Debug, Clone, Default, PartialEq)]
struct Held {
    entries: BTreeMap<u64, Vec<u8>>,
    vote: Vec<u8>,
    committed: Vec<u8>,
    purged: Vec<u8>,
}

impl Held {
    fn note(&mut self, kind: Kind, index: u64, payload: &[u8]) {
        match kind {
            Kind::Entry => drop(self.entries.insert(index, payload.to_vec())),
            Kind::Vote => self.vote = payload.to_vec(),
            Kind::Committed => self.committed = payload.to_vec(),
            Kind::Truncate => drop(self.entries.split_off(&index)),
            Kind::Purge => {
                self.entries = self.entries.split_off(&(index + 1));
                self.purged = payload.to_vec();
            }
        }
    }
}

/// A record as the format has it.
struct Written {
    file: String,
    offset: usize,
    end: usize,
    lsn: u64,
    durable_lsn: u64,
    kind: Kind,
    index: u64,
    payload: Vec<u8>,
}

/// All records, by the format's description.
fn written(files: &Files) -> Vec<Written> {
    let mut all = Vec::new();
    for (file, bytes) in files.iter().filter(|(name, _)| name.ends_with(".wal")) {
        let mut offset = HEADER_BYTES;
        while offset + 36 <= bytes.len() {
            let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            let first = word(offset);
            let length = (first & u64::from(u32::MAX)) as usize;
            let kinds = [Kind::Entry, Kind::Vote, Kind::Truncate, Kind::Purge, Kind::Committed];
            let Some(number) = ((first >> 32) as usize).checked_sub(1) else { break };
            let (lsn, durable_lsn) = (word(offset + 8), word(offset + 16));
            if lsn == 0 {
                break;
            }
            let end = offset + (36 + length).next_multiple_of(8);
            all.push(Written {
                file: file.clone(),
                offset,
                end,
                lsn,
                durable_lsn,
                kind: kinds[number],
                index: word(offset + 24),
                payload: bytes[offset + 32..offset + 32 + length].to_vec(),
            });
            offset = end;
        }
    }
    all.sort_by_key(|record| record.lsn);
    all
}

fn options(disk: &SimDisk) -> Options {
    let mut options = Options::on(Arc::new(disk.clone()), IDENTITY);
    options.segment_bytes = SEGMENT_BYTES;
    options.background = false;
    options
}

/// A log of a few segments with everything in it that there is.
fn pristine() -> Files {
    let disk = SimDisk::new();
    let wal = Wal::open(&options(&disk), |_| Ok(())).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let payload =
        |index: u64| Bytes::from(vec![b'a' + (index % 26) as u8; 20 + index as usize % 90]);
    let flush = |ops: Vec<Op>| runtime.block_on(wal.flush(ops)).unwrap();
    flush(vec![Op::vote(Bytes::from_static(b"vote one"))]);
    let mut index = 1;
    for batch in 0..40_u64 {
        let count = 1 + batch % 4;
        flush(
            (index..index + count)
                .map(|at| Op::entry(at, payload(at), Bytes::from("tail")))
                .collect(),
        );
        index += count;
        match batch {
            9 => {
                index -= 3;
                flush(vec![Op::truncate(index), Op::vote(Bytes::from_static(b"vote two"))]);
            }
            15 | 25 => wal.set_committed(Bytes::from(format!("committed {index}"))),
            20 => flush(vec![Op::purge(8, Bytes::from_static(b"purged eight"))]),
            _ => {}
        }
    }
    // Not what dropping the log still writes.
    disk.files().into_iter().filter(|(name, _)| name.ends_with(".wal")).collect()
}

#[test]
fn fuzz_log() {
    let pristine = pristine();
    let records = written(&pristine);
    assert!(pristine.len() >= 2 && records.len() > 80, "{} records", records.len());
    // What the log held after each record.
    let mut held = vec![Held::default()];
    for record in &records {
        let mut next = held.last().unwrap().clone();
        next.note(record.kind, record.index, &record.payload);
        held.push(next);
    }
    let first_lsn = records[0].lsn;
    let samples = [image(&pristine).encode_to_vec()];
    fuzz("log", "--test it fuzz_log", &samples, |input, _| {
        let Ok(image) = Image::decode(input) else { return };
        let files = files(&image);
        let disk = SimDisk::new();
        for (name, content) in &files {
            drop(disk.create(name).unwrap());
            disk.tamper(name, |bytes| bytes.clone_from(content));
        }
        let mut found = Held::default();
        let opened = Wal::open(&options(&disk), |Record { kind, index, payload }| {
            found.note(kind, index, payload);
            Ok(())
        });
        let Ok(wal) = opened else { return };
        let no_segment = !files.keys().any(|name| {
            name.strip_suffix(".wal")
                .is_some_and(|digits| digits.len() == 16 && u64::from_str_radix(digits, 16).is_ok())
        });
        if no_segment {
            // The directory of a new member; that it is not one is known elsewhere.
            return assert_eq!(found, Held::default());
        }
        let at = held.iter().rposition(|held| *held == found);
        let at = at.unwrap_or_else(|| panic!("the log holds what it never held: {found:?}"));
        let next_lsn = first_lsn + at as u64;
        let lost = records.iter().find(|record| {
            let same = |bytes: &Vec<u8>| {
                let was = &pristine[&record.file][record.offset - 4..record.end];
                bytes.get(record.offset - 4..record.end) == Some(was)
            };
            record.durable_lsn >= next_lsn && files.get(&record.file).is_some_and(same)
        });
        if let Some(lost) = lost {
            panic!("opened before record {next_lsn}, but {} says that it was durable", lost.lsn);
        }
        // What was found can be read back, and the log goes on.
        for (index, payload) in &found.entries {
            let read = wal.read(*index, index + 1, 1).unwrap();
            assert_eq!(read, [(*index, Bytes::from(payload.clone()))]);
        }
        let next = found.entries.keys().last().map_or(100, |last| last + 1);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(wal.flush([Op::entry(next, Bytes::from("next"), Bytes::new())])).unwrap();
        drop(wal);
        let mut again = found.clone();
        again.note(Kind::Entry, next, b"next");
        let mut found = Held::default();
        let reopened = Wal::open(&options(&disk), |Record { kind, index, payload }| {
            found.note(kind, index, payload);
            Ok(())
        });
        drop(reopened.unwrap());
        assert_eq!(found, again);
    });
}
