//! A segment: one preallocated file of the log, its header, and a reader of its records.
//!
//! The header carries a full checkpoint, so that all older segments may be dropped once their
//! entries are purged. It is durable *before* the file gets its final name: a file with the name
//! of a segment always has a valid header, and one without is damage, never a crash.

use std::sync::Arc;

use bytes::Bytes;

use super::disk::{Disk, DiskFile};
use super::error::WalError;
use super::record::{self, HEAD_BYTES, Head, NUMBER_MAX};

/// Bytes in front of the first record.
pub(super) const HEADER_BYTES: usize = 4096;
/// The format that this release writes.
pub(super) const FORMAT_VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"QUORAWAL";
const BLOBS_AT: usize = 72;
const CRC_AT: usize = HEADER_BYTES - 4;
const CHUNK_BYTES: usize = 256 * 1024;

/// Whose log it is. Another member's log must never be opened by mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster ID.
    pub cluster_id: u64,
    /// The member ID.
    pub member_id: u64,
}

/// Everything that the records before a segment amount to, but for the entries themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Checkpoint {
    /// Payload of the last vote; empty if there is none.
    pub(super) vote: Bytes,
    /// Payload of the last committed position; empty if there is none.
    pub(super) committed: Bytes,
    /// Payload of the last purge; empty if there is none.
    pub(super) purged: Bytes,
    /// The index after the last purged one; 0 if nothing is purged.
    pub(super) purged_next: u64,
}

/// The first block of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) identity: Identity,
    pub(super) sequence: u64,
    /// Number of the segment's first record.
    pub(super) first_lsn: u64,
    /// The index that the next appended entry would have had.
    pub(super) next_index: u64,
    /// Checksum of the last record of the segment before, 0 if there is none.
    pub(super) previous_crc: u32,
    pub(super) checkpoint: Checkpoint,
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&(HEADER_BYTES as u32).to_le_bytes());
        for word in [
            self.identity.cluster_id,
            self.identity.member_id,
            self.sequence,
            self.first_lsn,
            self.next_index,
            self.checkpoint.purged_next,
            u64::from(self.previous_crc),
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        assert_eq!(out.len(), BLOBS_AT);
        let checkpoint = &self.checkpoint;
        for blob in [&checkpoint.vote, &checkpoint.committed, &checkpoint.purged] {
            let bytes = u16::try_from(blob.len()).expect("votes and log ids are small");
            out.extend_from_slice(&bytes.to_le_bytes());
            out.extend_from_slice(blob);
        }
        assert!(out.len() <= CRC_AT, "votes and log ids are small");
        out.resize(CRC_AT, 0);
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(block: &[u8], file: &str) -> Result<Self, WalError> {
        let damaged = |what| WalError::Damaged { file: file.to_owned(), offset: 0, what };
        let (magic, rest) = block.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(damaged("the header is not that of a log segment"));
        }
        let found = u32::from_le_bytes(rest[..4].try_into().expect("four bytes"));
        if found > FORMAT_VERSION {
            let file = file.to_owned();
            return Err(WalError::NewerFormat { file, found, known: FORMAT_VERSION });
        }
        let (body, crc) = block.split_at(CRC_AT);
        if crc != crc32c::crc32c(body).to_le_bytes() {
            return Err(damaged("the checksum of the header is wrong"));
        }
        let word = |number: usize| {
            let at = 16 + number * 8;
            u64::from_le_bytes(block[at..at + 8].try_into().expect("eight bytes"))
        };
        let mut at = BLOBS_AT;
        let mut blob = || -> Option<Bytes> {
            let bytes = usize::from(u16::from_le_bytes(block.get(at..at + 2)?.try_into().ok()?));
            let blob = block.get(at + 2..at + 2 + bytes)?;
            at += 2 + bytes;
            Some(Bytes::copy_from_slice(blob))
        };
        let (Some(vote), Some(committed), Some(purged)) = (blob(), blob(), blob()) else {
            return Err(damaged("the header is malformed"));
        };
        // Segments and records are counted from 1, entries from 0.
        let counts = [word(2).wrapping_sub(1), word(3).wrapping_sub(1), word(4), word(5)];
        if counts.iter().any(|count| *count >= NUMBER_MAX) || word(5) > word(4) {
            return Err(damaged("the header is malformed"));
        }
        Ok(Self {
            identity: Identity { cluster_id: word(0), member_id: word(1) },
            sequence: word(2),
            first_lsn: word(3),
            next_index: word(4),
            previous_crc: word(6) as u32,
            checkpoint: Checkpoint { vote, committed, purged, purged_next: word(5) },
        })
    }
}

/// One open segment.
pub(super) struct Segment {
    pub(super) sequence: u64,
    pub(super) name: String,
    /// The name with its directory, for error texts.
    pub(super) path: String,
    pub(super) file: Arc<dyn DiskFile>,
    /// Size of the file; records end before it.
    pub(super) bytes: u64,
    /// What every checksum in it depends on.
    pub(super) seed: u32,
}

impl Segment {
    /// The file name of segment `sequence`.
    pub(super) fn name(sequence: u64) -> String {
        format!("{sequence:016x}.wal")
    }

    /// The sequence number in a file name, if it is the name of a segment.
    pub(super) fn parse_name(name: &str) -> Option<u64> {
        let digits = name.strip_suffix(".wal")?;
        let sequence = u64::from_str_radix(digits, 16).ok()?;
        (Self::name(sequence) == name).then_some(sequence)
    }

    /// Opens segment `sequence` and reads its header.
    pub(super) fn open(
        disk: &dyn Disk,
        sequence: u64,
        identity: Identity,
    ) -> Result<(Self, Header), WalError> {
        let name = Self::name(sequence);
        let path = disk.path(&name);
        let file = disk.open(&name).map_err(|error| WalError::io("open", &path, error))?;
        let bytes = file.bytes().map_err(|error| WalError::io("measure", &path, error))?;
        let damaged = |what| WalError::Damaged { file: path.clone(), offset: 0, what };
        if bytes < HEADER_BYTES as u64 {
            return Err(damaged("the file is shorter than its header"));
        }
        let mut block = vec![0; HEADER_BYTES];
        file.read_at(&mut block, 0).map_err(|error| WalError::io("read", &path, error))?;
        let header = Header::decode(&block, &path)?;
        if header.identity.cluster_id != identity.cluster_id {
            let (found, expected) = (header.identity.cluster_id, identity.cluster_id);
            return Err(WalError::OtherCluster { file: path, found, expected });
        }
        if header.identity.member_id != identity.member_id {
            let (found, expected) = (header.identity.member_id, identity.member_id);
            return Err(WalError::OtherMember { file: path, found, expected });
        }
        if header.sequence != sequence {
            return Err(damaged("the header is that of another segment"));
        }
        let seed = record::seed(sequence, identity);
        Ok((Self { sequence, name, path, file, bytes, seed }, header))
    }

    /// The error for unreadable bytes at `offset`.
    pub(super) fn damaged(&self, offset: u64, what: &'static str) -> WalError {
        WalError::Damaged { file: self.path.clone(), offset, what }
    }

    /// An operating-system error on this file.
    pub(super) fn io(&self, action: &'static str, error: std::io::Error) -> WalError {
        WalError::io(action, &self.path, error)
    }
}

/// A record whose checksum is right.
pub(super) struct Intact<'a> {
    pub(super) head: Head,
    pub(super) payload: &'a [u8],
    pub(super) crc: u32,
}

/// Reads a segment in chunks, so that memory is bounded by the largest record.
pub(super) struct Scanner<'a> {
    segment: &'a Segment,
    buffer: Vec<u8>,
    buffer_at: u64,
    chunk_bytes: usize,
}

impl<'a> Scanner<'a> {
    /// A reader of `segment` for long runs.
    pub(super) fn new(segment: &'a Segment) -> Self {
        Self::with_chunk(segment, CHUNK_BYTES)
    }

    /// A reader of `segment` that reads `chunk_bytes` at a time.
    pub(super) fn with_chunk(segment: &'a Segment, chunk_bytes: usize) -> Self {
        Self { segment, buffer: Vec::new(), buffer_at: 0, chunk_bytes }
    }

    /// The `count` bytes at `offset`, or `None` beyond the end of the file.
    pub(super) fn bytes(&mut self, offset: u64, count: usize) -> Result<Option<&[u8]>, WalError> {
        if offset + count as u64 > self.segment.bytes {
            return Ok(None);
        }
        let end = self.buffer_at + self.buffer.len() as u64;
        if offset < self.buffer_at || offset + count as u64 > end {
            let rest = usize::try_from(self.segment.bytes - offset).unwrap_or(usize::MAX);
            let wanted = count.max(self.chunk_bytes).min(rest);
            self.buffer.resize(wanted, 0);
            self.buffer_at = offset;
            let read = self.segment.file.read_at(&mut self.buffer, offset);
            read.map_err(|error| self.segment.io("read", error))?;
        }
        let start = (offset - self.buffer_at) as usize;
        Ok(Some(&self.buffer[start..start + count]))
    }

    /// The checksum in front of `offset`, which the record there continues.
    pub(super) fn crc_before(&mut self, offset: u64) -> Result<u32, WalError> {
        let bytes = self.bytes(offset - 4, 4)?.expect("a record has something in front of it");
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes were asked for")))
    }

    /// The head at `offset` if a record that fits the file can begin there.
    pub(super) fn head(&mut self, offset: u64) -> Result<Option<Head>, WalError> {
        let head = self.bytes(offset, HEAD_BYTES)?.and_then(Head::parse);
        Ok(head.filter(|head| offset + head.record_bytes() as u64 <= self.segment.bytes))
    }

    /// The intact record at `offset` that continues the checksum `previous`.
    pub(super) fn record(
        &mut self,
        offset: u64,
        previous: u32,
    ) -> Result<Option<Intact<'_>>, WalError> {
        let Some(head) = self.head(offset)? else { return Ok(None) };
        let seed = self.segment.seed;
        let Some(bytes) = self.bytes(offset, head.record_bytes())? else { return Ok(None) };
        let crc = record::verify(bytes, seed, previous);
        let payload = &bytes[HEAD_BYTES..HEAD_BYTES + head.payload_bytes];
        Ok(crc.map(|crc| Intact { head, payload, crc }))
    }
}
