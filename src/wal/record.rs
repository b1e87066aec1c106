//! One record of the log: its bytes, and the checksum that chains it to the record before.
//!
//! ```text
//! 0        4     5      8     16           24      32         n-4   n
//! | length | kind | zero | lsn | durable lsn | index | payload | crc |     n is a multiple of 8
//! ```
//!
//! The checksum stands last, so the four bytes in front of *any* record are the checksum of its
//! predecessor. A reader can therefore start in the middle, and recovery can recognise intact
//! records behind a damaged one. It is seeded with the segment's sequence number and identity, so
//! that what a recycled segment held before never validates.

use super::segment::Identity;

/// Bytes in front of the payload.
pub(super) const HEAD_BYTES: usize = 32;
/// Records start at multiples of this.
pub(super) const ALIGN: usize = 8;
const CRC_BYTES: usize = 4;
/// No log has so many records or entries; what says so was not written by us.
pub(super) const NUMBER_MAX: u64 = 1 << 62;

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Appends the entry `index`.
    Entry,
    /// Replaces the vote.
    Vote,
    /// Drops all entries from `index` on.
    Truncate,
    /// Drops all entries up to `index`, inclusive.
    Purge,
    /// Replaces the committed position; a hint that needs no flush of its own.
    Committed,
}

impl Kind {
    fn to_byte(self) -> u8 {
        match self {
            Self::Entry => 1,
            Self::Vote => 2,
            Self::Truncate => 3,
            Self::Purge => 4,
            Self::Committed => 5,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Entry),
            2 => Some(Self::Vote),
            3 => Some(Self::Truncate),
            4 => Some(Self::Purge),
            5 => Some(Self::Committed),
            _ => None,
        }
    }
}

/// The fixed part of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) payload_bytes: usize,
    /// Number of this record, counted from 1 over the life of the log.
    pub(super) lsn: u64,
    /// The last record that was known to be durable when this one was written.
    pub(super) durable_lsn: u64,
    /// The log index that the kind speaks of, or 0.
    pub(super) index: u64,
}

impl Head {
    /// Reads a head; `None` if no record can begin like this.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| {
            let word: [u8; 8] = bytes[at..at + 8].try_into().expect("eight bytes were cut");
            u64::from_le_bytes(word)
        };
        let first = word(0);
        if first >> 40 != 0 {
            return None;
        }
        let kind = Kind::from_byte((first >> 32) as u8)?;
        let payload_bytes = (first & u64::from(u32::MAX)) as usize;
        let (lsn, durable_lsn, index) = (word(8), word(16), word(24));
        let is_sound = durable_lsn < lsn && lsn < NUMBER_MAX && index < NUMBER_MAX;
        is_sound.then_some(Self { kind, payload_bytes, lsn, durable_lsn, index })
    }

    /// Bytes of the whole record.
    pub(super) fn record_bytes(&self) -> usize {
        record_bytes(self.payload_bytes)
    }
}

/// Bytes that a record with this payload takes in a segment.
pub(super) fn record_bytes(payload_bytes: usize) -> usize {
    (HEAD_BYTES + payload_bytes + CRC_BYTES).next_multiple_of(ALIGN)
}

/// What every checksum in one segment depends on.
pub(super) fn seed(sequence: u64, identity: Identity) -> u32 {
    let crc = crc32c::crc32c(&sequence.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &identity.cluster_id.to_le_bytes());
    crc32c::crc32c_append(crc, &identity.member_id.to_le_bytes())
}

/// The checksum of a record whose bytes in front of the checksum are `body`.
fn checksum(seed: u32, previous: u32, body: &[u8]) -> u32 {
    crc32c::crc32c_append(seed ^ previous, body)
}

/// Appends a record to `out` and returns its checksum. The payload is `head_part`, then `tail_part`.
pub(super) fn encode(out: &mut Vec<u8>, head: &Head, parts: [&[u8]; 2], chain: (u32, u32)) -> u32 {
    let start = out.len();
    let total = head.record_bytes();
    assert_eq!(head.payload_bytes, parts[0].len() + parts[1].len());
    let length = u32::try_from(head.payload_bytes).expect("the size of a payload is limited");
    out.reserve(total);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&[head.kind.to_byte(), 0, 0, 0]);
    out.extend_from_slice(&head.lsn.to_le_bytes());
    out.extend_from_slice(&head.durable_lsn.to_le_bytes());
    out.extend_from_slice(&head.index.to_le_bytes());
    out.extend_from_slice(parts[0]);
    out.extend_from_slice(parts[1]);
    out.resize(start + total - CRC_BYTES, 0);
    let (seed, previous) = chain;
    let crc = checksum(seed, previous, &out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
    crc
}

/// The checksum of the whole record `bytes`, if it is the one that its content and chain demand.
pub(super) fn verify(bytes: &[u8], seed: u32, previous: u32) -> Option<u32> {
    let (body, crc) = bytes.split_at(bytes.len() - CRC_BYTES);
    let crc = u32::from_le_bytes(crc.try_into().expect("four bytes were cut"));
    (checksum(seed, previous, body) == crc).then_some(crc)
}
