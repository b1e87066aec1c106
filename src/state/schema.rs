//! What lies where in the storage: the keys of records and of the state's own facts.
//!
//! ```text
//! r <main: 8 bytes BE> <sub: 4 bytes BE>  →  <kind: 1 byte> <encoded mvccpb.KeyValue>, see `records`
//! mcompact                                →  requested, finished        (i64 BE each)
//! mlease/ <id: 8 bytes BE>                →  granted TTL in seconds, end on the clock in ms (8 BE each)
//! mformat                                 →  the number of this layout  (1 byte)
//! mmember/ <id: 8 bytes BE>               →  encoded quorate.command.PublishMember
//! mmembership                             →  raft's membership, opaque to the state
//! mposition                               →  index, term, leader, clock, revision (u64 BE each)
//! mrenew/ <index: 8 BE> <n: 4 BE>         →  clock, ids of leases renewed (8 BE each), see `renewals`
//! ```
//! Records are in revision order, so history is a scan. Everything that one log entry changes is
//! committed in one batch together with `mposition`.

use std::io;

use bytes::Bytes;

use super::records;
use super::revision::{Position, Revision};
use crate::storage::StorageError;

/// The layout that this release reads and writes.
pub(super) const FORMAT_NUMBER: u8 = 1;
pub(super) const FORMAT: &[u8] = b"mformat";
pub(super) const POSITION: &[u8] = b"mposition";
pub(super) const MEMBERSHIP: &[u8] = b"mmembership";
pub(super) const COMPACT: &[u8] = b"mcompact";
const LEASE_PREFIX: &[u8] = b"mlease/";
const LEASE_END: &[u8] = b"mlease0";
const MEMBER_PREFIX: &[u8] = b"mmember/";
const MEMBER_END: &[u8] = b"mmember0";

const RENEWALS_PREFIX: &[u8] = b"mrenew/";
const RENEWALS_END: &[u8] = b"mrenew0";

/// The first byte of every record's key.
pub(super) const RECORD_PREFIX: u8 = b'r';
/// The first key after all records.
pub(super) const RECORDS_END: &[u8] = b"s";
/// The length of a record's key.
pub(super) const RECORD_KEY_BYTES: usize = 13;

/// The storage key of the record at `revision`.
pub(super) fn record_key(revision: Revision) -> [u8; RECORD_KEY_BYTES] {
    let mut key = [RECORD_PREFIX; RECORD_KEY_BYTES];
    key[1..9].copy_from_slice(&revision.main.to_be_bytes());
    key[9..].copy_from_slice(&revision.sub.to_be_bytes());
    key
}

/// The revision that a record's storage key names.
pub(super) fn record_revision(key: &[u8]) -> Option<Revision> {
    let (main, sub) = key.strip_prefix(&[RECORD_PREFIX])?.split_first_chunk::<8>()?;
    let main = i64::from_be_bytes(*main);
    let sub = u32::from_be_bytes(sub.try_into().ok()?);
    Some(Revision { main, sub })
}

/// The storage key of what a member published about itself.
pub(super) fn member_key(member_id: u64) -> Bytes {
    let mut key = MEMBER_PREFIX.to_vec();
    key.extend_from_slice(&member_id.to_be_bytes());
    Bytes::from(key)
}

/// All storage keys that [`member_key`] can give.
pub(super) const fn member_keys() -> (&'static [u8], &'static [u8]) {
    (MEMBER_PREFIX, MEMBER_END)
}

/// The storage key of a lease.
pub(super) fn lease_key(lease_id: i64) -> Bytes {
    let mut key = [0; LEASE_PREFIX.len() + 8];
    key[..LEASE_PREFIX.len()].copy_from_slice(LEASE_PREFIX);
    key[LEASE_PREFIX.len()..].copy_from_slice(&lease_id.to_be_bytes());
    Bytes::copy_from_slice(&key)
}

/// The lease that a storage key names.
pub(super) fn lease_id(key: &[u8]) -> Option<i64> {
    let id = key.strip_prefix(LEASE_PREFIX)?.try_into().ok()?;
    Some(i64::from_be_bytes(id))
}

/// All storage keys that [`lease_key`] can give.
pub(super) const fn lease_keys() -> (&'static [u8], &'static [u8]) {
    (LEASE_PREFIX, LEASE_END)
}

/// The value of a lease.
pub(super) fn encode_lease(ttl_seconds: i64, expires_at_ms: u64) -> Bytes {
    let mut value = [0; 16];
    value[..8].copy_from_slice(&ttl_seconds.to_be_bytes());
    value[8..].copy_from_slice(&expires_at_ms.to_be_bytes());
    Bytes::copy_from_slice(&value)
}

/// The inverse of [`encode_lease`].
pub(super) fn decode_lease(bytes: &[u8]) -> Option<(i64, u64)> {
    let [ttl_seconds, expires_at_ms] = words::<2>(bytes)?;
    Some((ttl_seconds.cast_signed(), expires_at_ms)).filter(|(ttl_seconds, _)| *ttl_seconds > 0)
}

/// The storage key of the record number `number` of what the log entry at `index` renewed.
pub(super) fn renewals_key(index: u64, number: u32) -> Bytes {
    Bytes::from([RENEWALS_PREFIX, &index.to_be_bytes(), &number.to_be_bytes()].concat())
}

/// The log index that a storage key of [`renewals_key`] names.
pub(super) fn renewals_index(key: &[u8]) -> Option<u64> {
    let (index, number) = key.strip_prefix(RENEWALS_PREFIX)?.split_first_chunk::<8>()?;
    (number.len() == 4).then(|| u64::from_be_bytes(*index))
}

/// All storage keys that [`renewals_key`] can give.
pub(super) const fn renewals_keys() -> (&'static [u8], &'static [u8]) {
    (RENEWALS_PREFIX, RENEWALS_END)
}

/// The value of a record of renewals.
pub(super) fn encode_renewals(time_unix_ms: u64, ids: impl ExactSizeIterator<Item = i64>) -> Bytes {
    let mut value = Vec::with_capacity(8 + 8 * ids.len());
    value.extend_from_slice(&time_unix_ms.to_be_bytes());
    ids.for_each(|id| value.extend_from_slice(&id.to_be_bytes()));
    Bytes::from(value)
}

/// The inverse of [`encode_renewals`].
pub(super) fn decode_renewals(bytes: &[u8]) -> Option<(u64, impl Iterator<Item = i64>)> {
    let (time_unix_ms, ids) = bytes.split_first_chunk::<8>()?;
    let (ids, rest) = ids.as_chunks::<8>();
    let ids = ids.iter().map(|id| i64::from_be_bytes(*id));
    rest.is_empty().then(|| (u64::from_be_bytes(*time_unix_ms), ids))
}

/// No log and no store gets this far: a million changes a second take 146,000 years.
const COUNT_MAX: u64 = 1 << 62;

/// How far the log is applied, what the clock said, and the revision that came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) position: Position,
    pub(super) time_unix_ms: u64,
    pub(super) revision: i64,
}

impl Progress {
    pub(super) fn encode(&self) -> Bytes {
        let position = self.position;
        let revision = u64::try_from(self.revision).expect("revisions are positive");
        let words = [position.index, position.term, position.leader, self.time_unix_ms, revision];
        Bytes::from(words.map(u64::to_be_bytes).concat())
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StorageError> {
        let words = words::<5>(bytes).ok_or_else(|| damaged("mposition is malformed"))?;
        let [index, term, leader, time_unix_ms, revision] = words;
        if index >= COUNT_MAX || !(1..COUNT_MAX).contains(&revision) {
            return Err(damaged("mposition is malformed"));
        }
        let revision = revision.cast_signed();
        Ok(Progress { position: Position { index, term, leader }, time_unix_ms, revision })
    }
}

/// Whether `key` is one that this layout has.
pub(super) fn is_known(key: &[u8]) -> bool {
    records::is_known(key)
        || [FORMAT, POSITION, MEMBERSHIP, COMPACT].contains(&key)
        || lease_id(key).is_some()
        || renewals_index(key).is_some()
        || key.strip_prefix(MEMBER_PREFIX).is_some_and(|id| id.len() == 8)
}

/// The value of `mcompact`.
pub(super) fn encode_compact(requested: i64, finished: i64) -> Bytes {
    Bytes::from([requested.to_be_bytes(), finished.to_be_bytes()].concat())
}

/// The inverse of [`encode_compact`].
pub(super) fn decode_compact(bytes: &[u8]) -> Result<(i64, i64), StorageError> {
    let [requested, finished] =
        words::<2>(bytes).ok_or_else(|| damaged("mcompact is malformed"))?;
    Ok((requested.cast_signed(), finished.cast_signed()))
}

fn words<const N: usize>(bytes: &[u8]) -> Option<[u64; N]> {
    let (chunks, rest) = bytes.as_chunks::<8>();
    let chunks: &[[u8; 8]; N] = chunks.try_into().ok()?;
    rest.is_empty().then(|| chunks.map(u64::from_be_bytes))
}

/// The storage holds something that no version of this program wrote.
pub(super) fn damaged(what: impl Into<String>) -> StorageError {
    StorageError::new("reading the state", io::Error::new(io::ErrorKind::InvalidData, what.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_keys_sort_by_revision_and_read_back() {
        let revisions = [(1, 0), (1, 1), (1, 256), (2, 0), (255, 9), (256, 0), (i64::MAX, 7)];
        let revisions = revisions.map(|(main, sub)| Revision { main, sub });
        let keys = revisions.map(record_key);
        assert!(keys.is_sorted());
        assert_eq!(keys.map(|key| record_revision(&key)), revisions.map(Some));
        assert_eq!(record_revision(b"r123"), None);
        assert_eq!(record_revision(&keys[0][1..]), None);
    }

    #[test]
    fn progress_reads_back() {
        let position = Position { index: 7, term: 2, leader: u64::MAX };
        let progress = Progress { position, time_unix_ms: 99, revision: 12 };
        assert_eq!(Progress::decode(&progress.encode()).unwrap(), progress);
        assert!(Progress::decode(b"short").is_err());
        assert_eq!(decode_lease(&encode_lease(7, u64::MAX)), Some((7, u64::MAX)));
        assert_eq!([-1, 7].map(|id| lease_id(&lease_key(id))), [Some(-1), Some(7)]);
        assert!(is_known(&lease_key(3)) && !is_known(b"mlease/short"));
        assert!(is_known(&renewals_key(3, 1)) && !is_known(b"mrenew/12345678"));
        assert_eq!(renewals_index(&renewals_key(u64::MAX, 1)), Some(u64::MAX));
        let renewals = encode_renewals(9, [-1, 7].into_iter());
        let (time_unix_ms, ids) = decode_renewals(&renewals).unwrap();
        assert_eq!((time_unix_ms, ids.collect()), (9, vec![-1, 7]));
        assert!(decode_renewals(&renewals[1..]).is_none());
        assert_eq!(decode_compact(&encode_compact(-1, 5)).unwrap(), (-1, 5));
    }

    /// These bytes are on disks. Later releases may add keys, and must read these.
    #[test]
    fn keys_and_values_of_format_1_stay_as_they_are() {
        let text = |bytes: &[u8]| -> String {
            bytes
                .iter()
                .flat_map(|byte| std::ascii::escape_default(*byte))
                .map(char::from)
                .collect()
        };
        let position = Position { index: 258, term: 3, leader: 0xfedc_ba98_7654_3210 };
        let progress = Progress { position, time_unix_ms: 1_795_000_000_123, revision: 260 };
        let written: [(&[u8], &str); 9] = [
            (
                &record_key(Revision { main: 258, sub: 7 }),
                r"r\x00\x00\x00\x00\x00\x00\x01\x02\x00\x00\x00\x07",
            ),
            (&lease_key(-2), r"mlease/\xff\xff\xff\xff\xff\xff\xff\xfe"),
            (
                &encode_lease(60, 1_795_000_060_123),
                r#"\x00\x00\x00\x00\x00\x00\x00<\x00\x00\x01\xa1\xeeWH\xdb"#,
            ),
            (&renewals_key(258, 1), r"mrenew/\x00\x00\x00\x00\x00\x00\x01\x02\x00\x00\x00\x01"),
            (
                &encode_renewals(1_795_000_000_123, [-2, 5].into_iter()),
                r#"\x00\x00\x01\xa1\xeeV^{\xff\xff\xff\xff\xff\xff\xff\xfe\x00\x00\x00\x00\x00\x00\x00\x05"#,
            ),
            (&member_key(258), r"mmember/\x00\x00\x00\x00\x00\x00\x01\x02"),
            (
                &encode_compact(258, -1),
                r#"\x00\x00\x00\x00\x00\x00\x01\x02\xff\xff\xff\xff\xff\xff\xff\xff"#,
            ),
            (
                &progress.encode(),
                r#"\x00\x00\x00\x00\x00\x00\x01\x02\x00\x00\x00\x00\x00\x00\x00\x03\xfe\xdc\xba\x98vT2\x10\x00\x00\x01\xa1\xeeV^{\x00\x00\x00\x00\x00\x00\x01\x04"#,
            ),
            (
                &[FORMAT, POSITION, MEMBERSHIP, COMPACT].join(&b' '),
                "mformat mposition mmembership mcompact",
            ),
        ];
        for (bytes, expected) in written {
            assert_eq!(text(bytes), expected);
        }
    }
}
