//! The bytes of one change: what lies in the storage and what clients are sent.
//!
//! A record's value is one byte of kind and the encoded `mvccpb.KeyValue`. The encoding is written
//! out by hand because it is the hottest loop of the state; a test holds it against prost.

use bytes::Bytes;

use super::super::answer::EventKind;
use super::super::revision::Revision;
use super::super::schema::{self, RECORD_KEY_BYTES};

const KIND_PUT: u8 = 0;
const KIND_TOMBSTONE: u8 = 1;

// Tags of mvccpb.KeyValue: field number << 3 | wire type.
const TAG_KEY: u8 = 0x0a;
const TAG_CREATE_REVISION: u8 = 0x10;
const TAG_MOD_REVISION: u8 = 0x18;
const TAG_VERSION: u8 = 0x20;
const TAG_VALUE: u8 = 0x2a;
const TAG_LEASE: u8 = 0x30;

/// A pair, borrowed from wherever it lies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pair<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) create_revision: i64,
    pub(crate) mod_revision: i64,
    pub(crate) version: i64,
    pub(crate) value: &'a [u8],
    pub(crate) lease: i64,
}

impl<'a> Pair<'a> {
    /// Whether a put, or else a tombstone, can have made this pair.
    pub(crate) fn is_sound(&self, is_put: bool) -> bool {
        let numbers = (self.create_revision, self.version);
        let fits = if is_put {
            // A generation begins with version 1; later revisions may write it once each.
            let writes_max = self.mod_revision.saturating_sub(self.create_revision);
            numbers.0 > 0 && (1..=writes_max.saturating_add(1)).contains(&numbers.1)
        } else {
            numbers == (0, 0) && self.lease == 0 && self.value.is_empty()
        };
        fits && !self.key.is_empty() && self.mod_revision > 0
    }

    /// How many bytes [`Pair::encode`] appends.
    pub(crate) fn encoded_len(&self) -> usize {
        bytes_len(self.key)
            + integer_len(self.create_revision)
            + integer_len(self.mod_revision)
            + integer_len(self.version)
            + bytes_len(self.value)
            + integer_len(self.lease)
    }

    /// Appends the pair as protobuf; as proto3 asks, empty fields are left out.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, TAG_KEY, self.key);
        put_integer(out, TAG_CREATE_REVISION, self.create_revision);
        put_integer(out, TAG_MOD_REVISION, self.mod_revision);
        put_integer(out, TAG_VERSION, self.version);
        put_bytes(out, TAG_VALUE, self.value);
        put_integer(out, TAG_LEASE, self.lease);
    }

    /// Reads what [`Pair::encode`] wrote; nothing else is accepted.
    pub(crate) fn decode(mut bytes: &'a [u8]) -> Option<Self> {
        let mut pair = Pair::default();
        while let Some((&tag, rest)) = bytes.split_first() {
            let number = read_varint(rest)?;
            bytes = number.rest;
            match tag {
                TAG_KEY | TAG_VALUE => {
                    let field = bytes.split_at_checked(usize::try_from(number.value).ok()?)?;
                    bytes = field.1;
                    let target = if tag == TAG_KEY { &mut pair.key } else { &mut pair.value };
                    *target = field.0;
                }
                TAG_CREATE_REVISION => pair.create_revision = number.value.cast_signed(),
                TAG_MOD_REVISION => pair.mod_revision = number.value.cast_signed(),
                TAG_VERSION => pair.version = number.value.cast_signed(),
                TAG_LEASE => pair.lease = number.value.cast_signed(),
                _ => return None,
            }
        }
        Some(pair)
    }
}

/// A change in its storage form: both parts share one allocation.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    /// The storage key.
    pub(crate) at: Bytes,
    /// The storage value: kind, then the encoded pair.
    pub(crate) value: Bytes,
}

impl Record {
    /// Encodes a change at `revision`.
    pub(crate) fn new(revision: Revision, kind: EventKind, pair: &Pair<'_>) -> Self {
        let mut bytes = Vec::with_capacity(RECORD_KEY_BYTES + 1 + pair.encoded_len());
        bytes.extend_from_slice(&schema::record_key(revision));
        bytes.push(match kind {
            EventKind::Put => KIND_PUT,
            EventKind::Delete => KIND_TOMBSTONE,
        });
        pair.encode(&mut bytes);
        let mut at = Bytes::from(bytes);
        let value = at.split_off(RECORD_KEY_BYTES);
        Record { at, value }
    }

    /// The encoded pair alone.
    pub(crate) fn kv(&self) -> Bytes {
        self.value.slice(1..)
    }
}

/// Splits a record's storage value into its kind and the encoded pair.
pub(crate) fn split(value: &[u8]) -> Option<(EventKind, &[u8])> {
    match value.split_first()? {
        (&KIND_PUT, kv) => Some((EventKind::Put, kv)),
        (&KIND_TOMBSTONE, kv) => Some((EventKind::Delete, kv)),
        _ => None,
    }
}

/// The key inside an encoded pair, sharing its bytes.
pub(crate) fn key_of(kv: &Bytes) -> Bytes {
    let pair = Pair::decode(kv).expect("the state encoded this pair");
    kv.slice_ref(pair.key)
}

/// Appends a protobuf varint.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// How many bytes [`put_varint`] appends.
pub(crate) fn varint_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// A number, and what follows it.
pub(crate) struct Varint<'a> {
    pub(crate) value: u64,
    pub(crate) rest: &'a [u8],
}

/// Reads a protobuf varint.
pub(crate) fn read_varint(bytes: &[u8]) -> Option<Varint<'_>> {
    let mut value = 0;
    for (at, &byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte < 0x80 {
            return Some(Varint { value, rest: &bytes[at + 1..] });
        }
    }
    None
}

fn put_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        out.push(tag);
        put_varint(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }
}

fn bytes_len(bytes: &[u8]) -> usize {
    if bytes.is_empty() { 0 } else { 1 + varint_len(bytes.len() as u64) + bytes.len() }
}

fn put_integer(out: &mut Vec<u8>, tag: u8, value: i64) {
    if value != 0 {
        out.push(tag);
        put_varint(out, value.cast_unsigned());
    }
}

fn integer_len(value: i64) -> usize {
    if value == 0 { 0 } else { 1 + varint_len(value.cast_unsigned()) }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::pb::mvccpb::KeyValue;

    fn pairs() -> Vec<KeyValue> {
        let mut pairs = Vec::new();
        for number in [0, 1, 127, 128, 16_383, 16_384, i64::MAX, -1] {
            for len in [0, 1, 127, 128, 20_000] {
                pairs.push(KeyValue {
                    key: Bytes::from(vec![7; len]),
                    create_revision: number,
                    mod_revision: number / 2,
                    version: number / 3,
                    value: Bytes::from(vec![9; len / 2]),
                    lease: number,
                });
            }
        }
        pairs
    }

    #[test]
    fn pair_encodes_as_prost_does() {
        for kv in pairs() {
            let pair = Pair {
                key: &kv.key,
                create_revision: kv.create_revision,
                mod_revision: kv.mod_revision,
                version: kv.version,
                value: &kv.value,
                lease: kv.lease,
            };
            let mut ours = Vec::new();
            pair.encode(&mut ours);
            assert_eq!(ours, kv.encode_to_vec());
            assert_eq!(ours.len(), pair.encoded_len());
            assert_eq!(Pair::decode(&ours), Some(pair));
        }
    }

    #[test]
    fn pair_refuses_torn_bytes() {
        let pair = Pair { key: b"key", value: b"value", mod_revision: 300, ..Pair::default() };
        let mut bytes = Vec::new();
        pair.encode(&mut bytes);
        for len in 1..bytes.len() {
            assert_ne!(Pair::decode(&bytes[..len]), Some(pair));
        }
        assert_eq!(Pair::decode(b"\x42\x00"), None);
    }

    #[test]
    fn record_shares_its_bytes() {
        let pair = Pair { key: b"key", mod_revision: 3, ..Pair::default() };
        let record = Record::new(Revision { main: 3, sub: 1 }, EventKind::Delete, &pair);
        assert_eq!(schema::record_revision(&record.at), Some(Revision { main: 3, sub: 1 }));
        assert_eq!(split(&record.value), Some((EventKind::Delete, &record.kv()[..])));
        assert_eq!(key_of(&record.kv()), &b"key"[..]);
        assert_eq!(split(b""), None);
        assert_eq!(split(b"\x09"), None);
    }
}
