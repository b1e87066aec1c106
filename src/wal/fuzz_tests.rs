//! Recovery of logs whose checksums are right and whose words are not, and of tails that somebody
//! filled with what looks like records.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::record::{self, Head, Kind};
use super::segment::{Checkpoint, HEADER_BYTES, Header, Segment};
use super::sim::SimDisk;
use super::{Disk, Identity, Options, Wal, WalError, Workers};
use crate::fuzz::fuzz;

const IDENTITY: Identity = Identity { cluster_id: 1, member_id: 2 };

/// A segment, before its checksums.
#[derive(Clone, PartialEq, Message)]
struct Words {
    #[prost(uint64, tag = "1")]
    sequence: u64,
    #[prost(uint64, tag = "2")]
    first_lsn: u64,
    #[prost(uint64, tag = "3")]
    next_index: u64,
    #[prost(uint64, tag = "4")]
    purged_next: u64,
    #[prost(bytes = "bytes", tag = "5")]
    vote: Bytes,
    #[prost(bytes = "bytes", tag = "6")]
    purged: Bytes,
    #[prost(message, repeated, tag = "7")]
    records: Vec<RecordWords>,
}

#[derive(Clone, PartialEq, Message)]
struct RecordWords {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(uint64, tag = "2")]
    lsn: u64,
    #[prost(uint64, tag = "3")]
    durable_lsn: u64,
    #[prost(uint64, tag = "4")]
    index: u64,
    #[prost(bytes = "bytes", tag = "5")]
    payload: Bytes,
}

const KINDS: [Kind; 5] = [Kind::Entry, Kind::Vote, Kind::Truncate, Kind::Purge, Kind::Committed];

fn sample() -> Words {
    let kinds = [0, 1, 0, 0, 2, 0, 4, 3, 0, 0];
    let indexes = [5, 0, 6, 7, 6, 6, 0, 5, 7, 8];
    let record = |(number, (kind, index)): (usize, (u32, u64))| RecordWords {
        kind,
        lsn: 10 + number as u64,
        durable_lsn: 9 + number as u64 / 2,
        index,
        payload: Bytes::from(vec![b'p'; 3 * number]),
    };
    Words {
        sequence: 3,
        first_lsn: 10,
        next_index: 5,
        purged_next: 5,
        vote: "vote".into(),
        purged: "purged".into(),
        records: kinds.into_iter().zip(indexes).enumerate().map(record).collect(),
    }
}

/// The segment's file, with every checksum right.
fn file(words: &Words) -> Option<(String, Vec<u8>)> {
    if words.vote.len() + words.purged.len() > 3000 {
        return None;
    }
    let header = Header {
        identity: IDENTITY,
        sequence: words.sequence,
        first_lsn: words.first_lsn,
        next_index: words.next_index,
        previous_crc: 0,
        checkpoint: Checkpoint {
            vote: words.vote.clone(),
            committed: Bytes::new(),
            purged: words.purged.clone(),
            purged_next: words.purged_next,
        },
    };
    let mut bytes = header.encode();
    let seed = record::seed(words.sequence, IDENTITY);
    let mut crc = u32::from_le_bytes(bytes[HEADER_BYTES - 4..].try_into().unwrap());
    for words in &words.records {
        let head = Head {
            kind: KINDS[words.kind as usize % KINDS.len()],
            payload_bytes: words.payload.len(),
            lsn: words.lsn,
            durable_lsn: words.durable_lsn,
            index: words.index,
        };
        crc = record::encode(&mut bytes, &head, [&words.payload, &[]], (seed, crc));
    }
    bytes.resize(bytes.len() + 4096, 0);
    Some((Segment::name(words.sequence), bytes))
}

fn open(name: &str, bytes: Vec<u8>) -> Result<(Wal, u64), WalError> {
    let disk = SimDisk::new();
    drop(disk.create(name).unwrap());
    disk.tamper(name, |content| *content = bytes);
    let mut options = Options::on(Arc::new(disk), IDENTITY);
    (options.segment_bytes, options.workers) = (64 * 1024, Workers::OneThread);
    let mut records = 0;
    let wal = Wal::open(&options, |_| {
        records += 1;
        Ok(())
    })?;
    Ok((wal, records))
}

#[test]
fn fuzz_log_words() {
    let samples = [sample().encode_to_vec()];
    let (name, bytes) = file(&sample()).unwrap();
    // The checkpoint's purge and vote, and the records.
    assert_eq!(open(&name, bytes).unwrap().1, 12);
    fuzz("log_words", "--lib fuzz_log_words", &samples, |input, _| {
        let Some((name, bytes)) = Words::decode(input).ok().and_then(|words| file(&words)) else {
            return;
        };
        // It opens, or says why not.
        if let Ok((wal, _)) = open(&name, bytes) {
            drop(wal.read(0, u64::MAX, 1 << 20));
            drop(wal.read(5, 9, 1 << 20));
            wal.index_keeping(100);
            wal.retained_bytes();
        }
    });
}

/// A record of the log as it would follow the sample, in all but its checksum.
fn fake_head(payload_bytes: usize, lsn: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let head = Head { kind: Kind::Entry, payload_bytes: 0, lsn, durable_lsn: lsn - 1, index: lsn };
    record::encode(&mut bytes, &head, [&[], &[]], (0, 0));
    bytes[..4].copy_from_slice(&(payload_bytes as u32).to_le_bytes());
    bytes.truncate(record::HEAD_BYTES);
    bytes
}

/// A client that fills a segment with heads of long records, which come to lie behind the end of
/// the log when the file is used again, kept the member from starting: it read what each of them
/// claimed to be. With a segment of 64 MiB that took hours.
#[test]
fn a_tail_full_of_long_heads_is_passed_over_in_time() {
    const TAIL_BYTES: usize = 8 << 20;
    let (name, mut bytes) = file(&sample()).unwrap();
    let mut lsn = 0;
    while bytes.len() < TAIL_BYTES {
        lsn += 1;
        let payload_bytes = TAIL_BYTES - bytes.len();
        bytes.extend(fake_head(payload_bytes, 20 + lsn % 100));
    }
    bytes.resize(bytes.len() + 64, 0);
    let begun = crate::clock::now();
    let (_wal, records) = open(&name, bytes).unwrap();
    eprintln!("{lsn} heads in {:?}", begun.elapsed());
    assert_eq!(records, 12);
    assert!(begun.elapsed() < std::time::Duration::from_secs(60));
}

/// A long record behind a damaged one is found all the same, wherever it begins.
#[test]
fn a_long_record_behind_damage_is_found() {
    for padding in 0..600 {
        let mut words = sample();
        let long = |lsn, durable_lsn, length: usize| RecordWords {
            kind: 1,
            lsn,
            durable_lsn,
            index: 0,
            payload: Bytes::from(vec![b'l'; length]),
        };
        words.records.push(long(20, 19, 8 * padding));
        words.records.push(long(21, 20, 9000 + padding));
        let (name, mut bytes) = file(&words).unwrap();
        let damaged = bytes.len() - 4096 - record::record_bytes(9000 + padding) - 40;
        bytes[damaged] ^= 1;
        let refused = open(&name, bytes).err();
        assert!(matches!(refused, Some(WalError::Damaged { .. })), "{padding}: {refused:?}");
    }
}
