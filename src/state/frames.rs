//! Pairs framed as field 2 of `RangeResponse`, with places for those that are not in memory.
//!
//! The index knows how long every pair is. So a pair that has yet to be read gets its place at
//! once, and the answer is one buffer that is filled in, not a list that is joined.
//!
//! **Invariant:** above their bound they hold nothing, and only count what they would hold.

use bytes::Bytes;

use super::answer::EventKind;
use super::mvcc::entry::Version;
use super::mvcc::record::{self, Pair};
use super::revision::Revision;
use super::schema::damaged;
use crate::storage::StorageError;

/// Field 2 of `RangeResponse`, length-delimited.
const TAG_KVS: u8 = 0x12;

/// A pair that a read fetched from the storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColdPair {
    pub(super) revision: Revision,
    pub(super) kv: Bytes,
}

/// The framed pairs of an answer.
#[derive(Debug)]
pub(super) struct Frames {
    bytes: Vec<u8>,
    len: usize,
    cold: Vec<Place>,
    bytes_max: usize,
    /// Bytes that are not there because there would be more than `bytes_max`.
    left_out: usize,
}

/// Where a pair is missing.
#[derive(Debug)]
struct Place {
    at: usize,
    len: usize,
    revision: Revision,
}

impl Frames {
    /// None yet, and never more than `bytes_max`.
    pub(super) fn new(bytes_max: usize) -> Self {
        Frames { bytes: Vec::new(), len: 0, cold: Vec::new(), bytes_max, left_out: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn bytes_len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn left_out(&self) -> usize {
        self.left_out
    }

    pub(super) fn is_hot(&self) -> bool {
        self.cold.is_empty()
    }

    pub(super) fn into_bytes(self) -> Bytes {
        Bytes::from(self.bytes)
    }

    /// Appends an encoded pair.
    pub(super) fn push(&mut self, kv: &[u8]) {
        if self.begin(kv.len()) {
            self.bytes.extend_from_slice(kv);
        }
    }

    /// Appends a pair without value and lease, made from what the index knows.
    pub(super) fn push_key(&mut self, key: &[u8], version: &Version) {
        self.push_pair(&Pair {
            key,
            create_revision: version.create,
            mod_revision: version.main,
            version: version.number,
            ..Pair::default()
        });
    }

    /// Leaves a place for the pair of `version`.
    pub(super) fn push_cold(&mut self, version: &Version) {
        let len = version.len as usize;
        if self.begin(len) {
            let at = self.bytes.len();
            self.cold.push(Place { at, len, revision: version.revision() });
            self.bytes.resize(at + len, 0);
        }
    }

    /// Fills all places; `fetch` reads the storage value of a record.
    pub(super) fn fill(
        &mut self,
        mut fetch: impl FnMut(Revision) -> Result<Bytes, StorageError>,
    ) -> Result<Vec<ColdPair>, StorageError> {
        let mut fetched = Vec::with_capacity(self.cold.len());
        for Place { at, len, revision } in self.cold.drain(..) {
            let kv = put_pair(&fetch(revision)?, revision)?;
            if kv.len() != len {
                return Err(damaged(format!("the record at {} changed", revision.main)));
            }
            self.bytes[at..at + len].copy_from_slice(&kv);
            fetched.push(ColdPair { revision, kv });
        }
        Ok(fetched)
    }

    /// Sorts the pairs by value, stably, and cuts them to `limit`; all of them have to be there.
    pub(super) fn sort_by_value(
        &mut self,
        descending: bool,
        limit: usize,
        keys_only: bool,
    ) -> Result<(), StorageError> {
        assert!(self.is_hot() && self.left_out == 0, "all values are there to be compared");
        let unsorted = std::mem::replace(self, Frames::new(self.bytes_max));
        let mut pairs = unsorted.pairs().ok_or_else(|| damaged("a pair is malformed"))?;
        if descending {
            pairs.sort_by(|a, b| b.value.cmp(a.value));
        } else {
            pairs.sort_by_key(|pair| pair.value);
        }
        for pair in pairs.iter().take(limit) {
            // As in etcd: here a pair without its value keeps its lease.
            let value = if keys_only { &[] } else { pair.value };
            self.push_pair(&Pair { value, ..*pair });
        }
        Ok(())
    }

    fn push_pair(&mut self, pair: &Pair<'_>) {
        if self.begin(pair.encoded_len()) {
            pair.encode(&mut self.bytes);
        }
    }

    /// Begins a pair of `len` bytes; false if it is only counted.
    fn begin(&mut self, len: usize) -> bool {
        self.len += 1;
        let framed = 1 + record::varint_len(len as u64) + len;
        if self.left_out > 0 || framed > self.bytes_max - self.bytes.len() {
            self.left_out += std::mem::take(&mut self.bytes).len() + framed;
            self.cold = Vec::new();
            return false;
        }
        self.bytes.reserve(framed);
        self.bytes.push(TAG_KVS);
        record::put_varint(&mut self.bytes, len as u64);
        true
    }

    fn pairs(&self) -> Option<Vec<Pair<'_>>> {
        let mut pairs = Vec::with_capacity(self.len);
        let mut rest = &self.bytes[..];
        while let Some((&TAG_KVS, framed)) = rest.split_first() {
            let length = record::read_varint(framed)?;
            let (kv, after) = length.rest.split_at_checked(usize::try_from(length.value).ok()?)?;
            pairs.push(Pair::decode(kv)?);
            rest = after;
        }
        Some(pairs)
    }
}

/// The encoded pair in the storage value of the put at `revision`.
pub(super) fn put_pair(record: &Bytes, revision: Revision) -> Result<Bytes, StorageError> {
    match record::split(record) {
        Some((EventKind::Put, _)) => Ok(record.slice(1..)),
        Some((EventKind::Delete, _)) | None => {
            Err(damaged(format!("the record at {} is not a put", revision.main)))
        }
    }
}
