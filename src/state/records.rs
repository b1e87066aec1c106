//! Records as they lie in the storage: whole, or in pieces if they are long.
//!
//! The storage reads, compresses and writes its entries by the hundred, and keeps some hundreds of
//! such leaves in memory. Values of 64 KiB would make that 8 MiB for one read and gigabytes in all;
//! no entry is longer than [`PIECE_BYTES`] and a little, so neither depends on how long values are.
//!
//! ```text
//! r <main> <sub>             →  <kind> <encoded pair>                                short
//! r <main> <sub>             →  <kind | 0x80> <length: 4 bytes BE> <piece 0>         long
//! r <main> <sub> <n: 4 BE>   →  <piece n>, from 1 on
//! ```
//! The pieces of a record follow its head in key order, and come and go with it in one batch.

use std::ops::ControlFlow;

use bytes::{Bytes, BytesMut};

use super::revision::Revision;
use super::schema::{self, RECORD_KEY_BYTES, damaged};
use crate::storage::{Backend, Batch, StorageError};

/// Bytes of an encoded pair that one entry holds.
const PIECE_BYTES: usize = 512;
/// Set in the kind of a record that has pieces.
const IN_PIECES: u8 = 0x80;
/// Reserved for a long record before its pieces are there.
const RESERVED_BYTES_MAX: usize = 64 * 1024;
/// Kind and length, before the first piece.
const LONG_HEAD_BYTES: usize = 5;
/// The length of a piece's key.
const PIECE_KEY_BYTES: usize = RECORD_KEY_BYTES + 4;

/// What a storage key below the records' prefix names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Head(Revision),
    Piece(Revision, u32),
}

impl Name {
    fn of(key: &[u8]) -> Option<Name> {
        let (record, piece) = key.split_at_checked(RECORD_KEY_BYTES)?;
        let revision = schema::record_revision(record)?;
        if piece.is_empty() {
            return Some(Name::Head(revision));
        }
        Some(Name::Piece(revision, u32::from_be_bytes(piece.try_into().ok()?)))
    }
}

/// Whether `key` is one that a record, or a piece of one, can have.
pub(super) fn is_known(key: &[u8]) -> bool {
    Name::of(key).is_some()
}

fn piece_key(record: &[u8], number: usize) -> Bytes {
    let number = u32::try_from(number).expect("a request has fewer pieces");
    Bytes::from([record, &number.to_be_bytes()].concat())
}

/// Adds the record with the storage key `at`, whose value is kind and encoded pair.
pub(super) fn put(batch: &mut Batch, at: Bytes, value: Bytes) {
    if value.len() <= 1 + PIECE_BYTES {
        return batch.put(at, value);
    }
    let length = u32::try_from(value.len()).expect("a request is shorter");
    let mut head = BytesMut::with_capacity(LONG_HEAD_BYTES + PIECE_BYTES);
    head.extend_from_slice(&[value[0] | IN_PIECES]);
    head.extend_from_slice(&length.to_be_bytes());
    head.extend_from_slice(&value[1..=PIECE_BYTES]);
    batch.put(at.clone(), head);
    for (number, begin) in (1..value.len()).step_by(PIECE_BYTES).enumerate().skip(1) {
        let end = value.len().min(begin + PIECE_BYTES);
        batch.put(piece_key(&at, number), value.slice(begin..end));
    }
}

/// Whether a record whose pair takes `len` bytes has no pieces.
pub(super) fn is_short(len: u32) -> bool {
    len as usize <= PIECE_BYTES
}

/// Removes the record at `revision`, whose pair takes `len` bytes.
pub(super) fn remove(batch: &mut Batch, revision: Revision, len: u32) {
    let at = schema::record_key(revision);
    batch.remove(at.to_vec());
    for number in 1..(len as usize).div_ceil(PIECE_BYTES) {
        batch.remove(piece_key(&at, number));
    }
}

/// A long record of which some pieces are there.
struct Partial {
    revision: Revision,
    value: BytesMut,
    length: usize,
    pieces: u32,
}

impl Partial {
    /// Begins with the entry of a head; the record itself if it is short.
    fn begin(revision: Revision, entry: &[u8]) -> Option<Result<&[u8], Partial>> {
        let (kind, rest) = entry.split_first()?;
        if kind & IN_PIECES == 0 {
            return Some(Ok(entry));
        }
        let (length, piece) = rest.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        // The length is a claim until the pieces are there.
        let mut value = BytesMut::with_capacity(length.min(RESERVED_BYTES_MAX));
        value.extend_from_slice(&[kind & !IN_PIECES]);
        value.extend_from_slice(piece);
        (piece.len() == PIECE_BYTES && length > value.len()).then_some(Err(Partial {
            revision,
            value,
            length,
            pieces: 1,
        }))
    }

    /// Takes the next piece; false if it is not that.
    fn take(&mut self, revision: Revision, number: u32, piece: &[u8]) -> bool {
        let fits = self.value.len() + piece.len() <= self.length;
        if self.revision != revision || self.pieces != number || !fits {
            return false;
        }
        self.value.extend_from_slice(piece);
        self.pieces += 1;
        true
    }

    fn is_whole(&self) -> bool {
        self.value.len() == self.length
    }
}

/// Visits the records whose storage keys lie in `start..end`, in order, until `visit` breaks.
///
/// `start` must not lie between a head and its pieces.
pub(super) fn scan<B: Backend>(
    backend: &B,
    start: &[u8],
    end: &[u8],
    visit: &mut dyn FnMut(Revision, &[u8]) -> ControlFlow<()>,
) -> Result<(), StorageError> {
    let mut partial: Option<Partial> = None;
    let mut torn = None;
    let mut broken_off = false;
    backend.scan(start, end, &mut |key, entry| {
        let next = match (Name::of(key), &mut partial) {
            (Some(Name::Head(revision)), None) => match Partial::begin(revision, entry) {
                Some(Ok(value)) => Some(visit(revision, value)),
                Some(Err(begun)) => {
                    partial = Some(begun);
                    Some(ControlFlow::Continue(()))
                }
                None => None,
            },
            (Some(Name::Piece(revision, number)), Some(long)) => {
                long.take(revision, number, entry).then(|| {
                    let whole = partial.take_if(|long| long.is_whole());
                    whole.map_or(ControlFlow::Continue(()), |long| visit(revision, &long.value))
                })
            }
            _ => None,
        };
        let Some(flow) = next else {
            torn = Some(damaged(format!("the record at key {key:02x?} is malformed")));
            return ControlFlow::Break(());
        };
        broken_off = flow.is_break();
        flow
    })?;
    match torn {
        Some(error) => Err(error),
        None if partial.is_some() && !broken_off => Err(damaged("a record lacks its last pieces")),
        None => Ok(()),
    }
}

/// The record at `revision`: kind and encoded pair. None if it is not there, or is just going.
pub(super) fn get<B: Backend>(
    backend: &B,
    revision: Revision,
) -> Result<Option<Bytes>, StorageError> {
    let at = schema::record_key(revision);
    let Some(entry) = backend.get(&at)? else { return Ok(None) };
    let malformed = || damaged(format!("the record at revision {} is malformed", revision.main));
    let mut long = match Partial::begin(revision, &entry).ok_or_else(malformed)? {
        Ok(_) => return Ok(Some(entry)),
        Err(long) => long,
    };
    let mut is_sound = true;
    let (start, end) = (piece_key(&at, 0), [&at[..], &[u8::MAX; 5]].concat());
    backend.scan(&start, &end, &mut |key, piece| {
        is_sound = key.len() == PIECE_KEY_BYTES
            && Name::of(key).is_some_and(|name| match name {
                Name::Piece(revision, number) => long.take(revision, number, piece),
                Name::Head(_) => false,
            });
        if is_sound { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    // A compaction may have taken the pieces, or the first of them, since the head was read.
    Ok((is_sound && long.is_whole()).then(|| long.value.freeze()))
}

/// The record at `revision`, which must be there.
pub(super) fn read<B: Backend>(backend: &B, revision: Revision) -> Result<Bytes, StorageError> {
    let record = get(backend, revision)?;
    record.ok_or_else(|| damaged(format!("no record at revision {}", revision.main)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::Memory;

    fn record(main: i64, kv_len: usize) -> (Bytes, Bytes) {
        let at = Bytes::copy_from_slice(&schema::record_key(Revision::first(main)));
        let value: Vec<u8> = (0..=kv_len).map(|n| if n == 0 { 1 } else { n as u8 ^ 7 }).collect();
        (at, Bytes::from(value))
    }

    const LENGTHS: [usize; 9] = [0, 1, 511, 512, 513, 1023, 1024, 1025, 70_000];

    fn filled() -> Memory {
        let store = Memory::new();
        let mut batch = Batch::default();
        for (main, length) in (1..).zip(LENGTHS) {
            let (at, value) = record(main, length);
            put(&mut batch, at, value);
        }
        assert!(batch.writes.iter().all(|(key, value)| {
            is_known(key) && value.as_ref().is_some_and(|value| value.len() <= 512 + 5)
        }));
        store.commit(batch).unwrap();
        store
    }

    fn scanned(store: &Memory) -> Result<Vec<(i64, Bytes)>, StorageError> {
        let mut found = Vec::new();
        scan(store, b"r", b"s", &mut |revision, value| {
            found.push((revision.main, Bytes::copy_from_slice(value)));
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    #[test]
    fn long_records_come_back_whole() {
        let store = filled();
        let expected: Vec<_> =
            (1..).zip(LENGTHS).map(|(main, length)| (main, record(main, length).1)).collect();
        assert_eq!(scanned(&store).unwrap(), expected);
        for (main, value) in expected {
            assert_eq!(read(&store, Revision::first(main)).unwrap(), value);
        }
        assert_eq!(get(&store, Revision::first(99)).unwrap(), None);
    }

    #[test]
    fn remove_takes_every_piece() {
        let store = filled();
        let mut batch = Batch::default();
        for (main, length) in (1..).zip(LENGTHS) {
            let len = u32::try_from(length).unwrap();
            remove(&mut batch, Revision { main, sub: 0 }, len);
        }
        store.commit(batch).unwrap();
        store.scan(b"", b"\xff", &mut |key, _| panic!("{key:02x?} is left")).unwrap();
    }

    #[test]
    fn missing_piece_is_damage_to_a_scan_and_an_absent_record_to_a_read() {
        let last = i64::try_from(LENGTHS.len()).unwrap();
        let at = schema::record_key(Revision::first(last));
        for number in [1, 70, 136] {
            let store = filled();
            let mut batch = Batch::default();
            batch.remove(piece_key(&at, number));
            store.commit(batch).unwrap();
            assert!(scanned(&store).is_err());
            assert_eq!(get(&store, Revision::first(last)).unwrap(), None);
        }
    }
}
