//! Reads the log back at start: what is intact is replayed, what a crash tore is cut, what was
//! durable and is damaged stops the start.
//!
//! Records are only acknowledged after a flush, and a batch is only written after the flush of the
//! one before. So a crash can tear nothing but the last batch. Each record names the last record
//! that was durable when it was written: an unreadable record below that mark is damage to data
//! that somebody relies on, above it is the torn tail of a batch that nobody was told about.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::error::WalError;
use super::record::{ALIGN, Head, Kind};
use super::segment::{Checkpoint, HEADER_BYTES, Header, Intact, Scanner, Segment};
use super::sums::Sums;
use super::table::{Point, Table};
use super::writer::Cursor;
use super::{Options, Record};

/// Zeroed at least, when a tail is cut: more than one record's head.
const CUT_BYTES_MIN: u64 = 64 * 1024;

/// Records are written once more in pieces of this size.
const REWRITE_BYTES: usize = 1 << 20;

/// What looks like a longer record behind the end of the log is not read to see whether it is one.
const READ_WHOLE_BYTES_MAX: usize = 4096;

/// What the layer above does with a replayed record.
pub(super) type Visit<'a> = dyn FnMut(Record<'_>) -> Result<(), WalError> + 'a;

/// The log as it was found.
pub(super) struct Recovered {
    pub(super) table: Table,
    pub(super) cursor: Cursor,
}

/// Reads all segments among `names`; `None` if there is none.
pub(super) fn recover(
    options: &Options,
    names: &[String],
    visit: &mut Visit<'_>,
) -> Result<Option<Recovered>, WalError> {
    let mut segments = open_segments(options, names)?.into_iter().peekable();
    let Some((first, _)) = segments.peek() else { return Ok(None) };
    let mut replay = Replay::new(first, visit);
    let mut at = (0, 0);
    while let Some((segment, header)) = segments.next() {
        replay.enter(&segment, &header)?;
        at = replay.records(&segment)?;
        replay.table.segments.push_back(Arc::clone(&segment));
        if let Some((next, next_header)) = segments.peek() {
            replay.leave(&segment, at, next, next_header)?;
        }
    }
    let segment = Arc::clone(replay.table.segments.back().expect("there was a first segment"));
    let (offset, crc) = at;
    rewrite(&segment, replay.unproven_from, offset)?;
    cut_tail(&segment, offset, replay.next_lsn)?;
    replay.finish(segment, offset, crc).map(Some)
}

/// Opens the segments in order of their sequence numbers and refuses gaps.
fn open_segments(
    options: &Options,
    names: &[String],
) -> Result<Vec<(Arc<Segment>, Header)>, WalError> {
    let mut sequences: Vec<u64> =
        names.iter().filter_map(|name| Segment::parse_name(name)).collect();
    sequences.sort_unstable();
    for pair in sequences.windows(2) {
        if pair[0] + 1 != pair[1] {
            let file = options.disk.path(&Segment::name(pair[1]));
            return Err(WalError::Missing { file, sequence: pair[0] + 1 });
        }
    }
    let open = |sequence| {
        let (segment, header) = Segment::open(&*options.disk, sequence, options.identity)?;
        Ok((Arc::new(segment), header))
    };
    sequences.into_iter().map(open).collect()
}

struct Replay<'a, 'b> {
    visit: &'a mut Visit<'b>,
    table: Table,
    checkpoint: Checkpoint,
    next_lsn: u64,
    position_base: u64,
    /// Where, in the segment read last, the records begin of which none says that they were durable.
    unproven_from: u64,
    /// The entries below this index were in segments that are gone: they must have been purged.
    gone_next: u64,
    first: Arc<Segment>,
}

impl<'a, 'b> Replay<'a, 'b> {
    fn new(first: &Arc<Segment>, visit: &'a mut Visit<'b>) -> Self {
        Self {
            visit,
            table: Table::default(),
            checkpoint: Checkpoint::default(),
            next_lsn: 0,
            position_base: 0,
            unproven_from: 0,
            gone_next: 0,
            first: Arc::clone(first),
        }
    }

    /// Starts with the checkpoint of the oldest segment; the later ones repeat what was replayed.
    fn enter(&mut self, segment: &Arc<Segment>, header: &Header) -> Result<(), WalError> {
        if !Arc::ptr_eq(segment, &self.first) {
            return Ok(());
        }
        let found = &header.checkpoint;
        if found.purged_next > 0 {
            self.apply(Kind::Purge, found.purged_next - 1, &found.purged)?;
        }
        if !found.vote.is_empty() {
            self.apply(Kind::Vote, 0, &found.vote)?;
        }
        if !found.committed.is_empty() {
            self.apply(Kind::Committed, 0, &found.committed)?;
        }
        self.next_lsn = header.first_lsn;
        self.gone_next = header.next_index;
        self.table.next_index = header.next_index;
        Ok(())
    }

    /// Replays the intact records of a segment. Returns the offset and checksum where they end.
    fn records(&mut self, segment: &Segment) -> Result<(u64, u32), WalError> {
        let mut scanner = Scanner::new(segment);
        let mut offset = HEADER_BYTES as u64;
        let mut crc = scanner.crc_before(offset)?;
        let mut unproven = VecDeque::new();
        while let Some(Intact { head, payload, crc: next_crc }) = scanner.record(offset, crc)? {
            if head.lsn != self.next_lsn {
                break;
            }
            if head.kind == Kind::Entry {
                let position = self.position_base + offset;
                let (index, sequence) = (head.index, segment.sequence);
                let noted = self.table.append(Point { index, sequence, offset, position });
                noted.map_err(|_| segment.damaged(offset, "the entry does not follow the log"))?;
            }
            self.apply(head.kind, head.index, payload)?;
            while unproven.pop_front_if(|&mut (lsn, _)| lsn <= head.durable_lsn).is_some() {}
            unproven.push_back((head.lsn, offset));
            offset += head.record_bytes() as u64;
            crc = next_crc;
            self.next_lsn += 1;
        }
        self.unproven_from = unproven.front().map_or(offset, |&(_, from)| from);
        Ok((offset, crc))
    }

    fn apply(&mut self, kind: Kind, index: u64, payload: &[u8]) -> Result<(), WalError> {
        let blob = || Bytes::copy_from_slice(payload);
        match kind {
            Kind::Entry => {}
            Kind::Vote => self.checkpoint.vote = blob(),
            Kind::Committed => self.checkpoint.committed = blob(),
            Kind::Truncate => {
                self.table.truncate(index);
                self.gone_next = self.gone_next.min(index);
            }
            Kind::Purge => {
                if index < self.checkpoint.purged_next {
                    return Ok(());
                }
                self.checkpoint.purged = blob();
                self.checkpoint.purged_next = index + 1;
                self.table.purge(index + 1);
            }
        }
        (self.visit)(Record { kind, index, payload })
    }

    /// A segment with a successor was complete and durable before the successor was made.
    fn leave(
        &mut self,
        segment: &Segment,
        (offset, crc): (u64, u32),
        next: &Segment,
        header: &Header,
    ) -> Result<(), WalError> {
        if header.first_lsn != self.next_lsn || header.previous_crc != crc {
            let what = "a record is unreadable, and later segments exist";
            return Err(segment.damaged(offset, what));
        }
        if header.checkpoint != self.checkpoint {
            return Err(next.damaged(0, "the checkpoint contradicts the segments before"));
        }
        self.position_base += offset;
        Ok(())
    }

    fn finish(self, segment: Arc<Segment>, offset: u64, crc: u32) -> Result<Recovered, WalError> {
        if self.gone_next > self.checkpoint.purged_next {
            let sequence = self.first.sequence - 1;
            return Err(WalError::Missing { file: self.first.path.clone(), sequence });
        }
        let cursor = Cursor {
            segment,
            offset,
            crc,
            next_lsn: self.next_lsn,
            position_base: self.position_base,
            checkpoint: self.checkpoint,
        };
        Ok(Recovered { table: self.table, cursor })
    }
}

/// Writes the bytes between two offsets once more, as they are.
///
/// A flush that fails leaves what it did not write in the page cache, marked as if it were written: a
/// restarted member reads it there, and flushing again writes nothing.
fn rewrite(segment: &Segment, from: u64, to: u64) -> Result<(), WalError> {
    let mut bytes = vec![0; REWRITE_BYTES.min((to - from) as usize)];
    let mut at = from;
    while at < to {
        let bytes = &mut bytes[..REWRITE_BYTES.min((to - at) as usize)];
        segment.file.read_at(bytes, at).map_err(|error| segment.io("read", error))?;
        segment.file.write_at(bytes, at).map_err(|error| segment.io("write", error))?;
        at += bytes.len() as u64;
    }
    Ok(())
}

/// Decides what the bytes behind the last intact record are, and makes the end clean and durable.
fn cut_tail(segment: &Segment, offset: u64, next_lsn: u64) -> Result<(), WalError> {
    let mut scanner = Scanner::new(segment);
    let torn_head = scanner.head(offset)?.is_some_and(|head| head.lsn == next_lsn);
    let mut strays = Strays { segment, scanner, offset, next_lsn, sums: None };
    let mut remains_end = None;
    let mut at = offset + ALIGN as u64;
    while at + ALIGN as u64 <= segment.bytes {
        if let Some(head) = strays.at(at)? {
            if head.durable_lsn >= next_lsn {
                let what = "a record is unreadable, and a later one says that it was durable";
                return Err(segment.damaged(offset, what));
            }
            remains_end = Some(at + head.record_bytes() as u64);
        }
        at += ALIGN as u64;
    }
    if torn_head || remains_end.is_some() {
        let end = remains_end.unwrap_or(offset).max(offset + CUT_BYTES_MIN).min(segment.bytes);
        tracing::warn!(
            file = segment.path,
            offset,
            end,
            "cut the torn tail of the log, nobody was told of it"
        );
        let zeroes = vec![0; (end - offset) as usize];
        fail::fail_point!("cut_before_write");
        segment.file.write_at(&zeroes, offset).map_err(|error| segment.io("cut", error))?;
        fail::fail_point!("cut_after_write");
    }
    // After a crash of the process alone, intact records may still be in the page cache only.
    segment.file.sync().map_err(|error| segment.io("flush", error))?;
    fail::fail_point!("cut_after_flush");
    Ok(())
}

/// Looks for records behind the end of the log.
struct Strays<'a> {
    segment: &'a Segment,
    scanner: Scanner<'a>,
    /// Where the log ends.
    offset: u64,
    next_lsn: u64,
    sums: Option<Sums<'a>>,
}

impl Strays<'_> {
    /// The head of an intact record of this segment at `at` that belongs behind the cut.
    fn at(&mut self, at: u64) -> Result<Option<Head>, WalError> {
        let Some(head) = self.scanner.head(at)? else { return Ok(None) };
        // Records have at least this many bytes, which bounds the numbers that can follow.
        let furthest = self.next_lsn + at / super::record::HEAD_BYTES as u64;
        if head.lsn < self.next_lsn || head.lsn > furthest {
            return Ok(None);
        }
        if head.record_bytes() > READ_WHOLE_BYTES_MAX {
            let sums = match &mut self.sums {
                Some(sums) => sums,
                none => none.insert(Sums::read(self.segment, self.offset)?),
            };
            return Ok(sums.is_intact(at, &head)?.then_some(head));
        }
        let previous = self.scanner.crc_before(at)?;
        Ok(self.scanner.record(at, previous)?.map(|intact| intact.head))
    }
}
