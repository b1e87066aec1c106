//! The one thread that writes: takes all that is queued, writes once, flushes once, completes.
//!
//! There is no timer. While a flush runs, the next batch gathers; so batches grow with the load and
//! a lone write waits for nobody. Completions run newest first, because openraft's are a watermark:
//! the newest wakes the core, the older ones then change nothing.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::error::WalError;
use super::keeper::Keeper;
use super::record::{self, Head, Kind};
use super::segment::{Checkpoint, HEADER_BYTES, Header, Identity, Segment};
use super::table::Point;
use super::{Batch, Flushed, Op, Options, Shared};
use crate::limits::LOG_WRITE_BYTES_MAX;
use crate::mutants;

/// A buffer larger than this is given back after the batch that needed it.
const BUFFER_KEPT_BYTES: usize = 1024 * 1024;

/// Where the next record goes.
pub(super) struct Cursor {
    pub(super) segment: Arc<Segment>,
    /// Offset behind the last record.
    pub(super) offset: u64,
    /// Checksum of the last record, or of the header.
    pub(super) crc: u32,
    pub(super) next_lsn: u64,
    /// Bytes of log in the segments before this one.
    pub(super) position_base: u64,
    pub(super) checkpoint: Checkpoint,
}

/// See the head of this file.
pub(super) struct Writer {
    shared: Arc<Shared>,
    keeper: Arc<Keeper>,
    disk: Arc<dyn super::Disk>,
    identity: Identity,
    cursor: Cursor,
    /// Encoded records that end at the cursor and are not written yet.
    buffer: Vec<u8>,
    durable_lsn: u64,
    /// Something was written since the last flush.
    dirty: bool,
    /// A purge was written since the last flush.
    purged: bool,
    records: usize,
    bytes: usize,
}

impl Writer {
    pub(super) fn new(
        options: &Options,
        shared: Arc<Shared>,
        keeper: Arc<Keeper>,
        cursor: Cursor,
    ) -> Self {
        Self {
            shared,
            keeper,
            disk: Arc::clone(&options.disk),
            identity: options.identity,
            durable_lsn: cursor.next_lsn - 1,
            cursor,
            buffer: Vec::new(),
            dirty: false,
            purged: false,
            records: 0,
            bytes: 0,
        }
    }

    /// The thread: writes batches until the log is closed and drained, or fails.
    pub(super) fn run(mut self) {
        let mut batch = Batch::default();
        while self.shared.take(&mut batch) {
            let written = self.write(&mut batch);
            match written {
                Ok(durable_next) => self.shared.complete(&mut batch, durable_next),
                Err(error) => {
                    self.shared.fail(&mut batch, &error);
                    break;
                }
            }
        }
    }

    /// The same as a task; between write and flush it waits as long as `pace` says.
    pub(super) async fn run_as_task(mut self, pace: Arc<dyn Fn() -> Duration + Send + Sync>) {
        let mut batch = Batch::default();
        while self.shared.taken(&mut batch).await {
            if let Some(bytes) = self.wanted_bytes(&batch) {
                self.keeper.ready(bytes).await;
            }
            let staged = self.stage(&mut batch);
            tokio::time::sleep(pace()).await;
            match staged.and_then(|()| self.finish()) {
                Ok(durable_next) => self.shared.complete(&mut batch, durable_next),
                Err(error) => {
                    self.shared.fail(&mut batch, &error);
                    break;
                }
            }
        }
        self.keeper.close();
    }

    /// How large a file the next segment must be, if `batch` needs one.
    fn wanted_bytes(&self, batch: &Batch) -> Option<u64> {
        let bytes = |op: &Op| record::record_bytes(op.payload_bytes()) as u64;
        let largest = batch.ops.iter().map(bytes).max().unwrap_or(0);
        let committed = batch.committed.as_ref().map_or(0, |payload| payload.len());
        let committed = record::record_bytes(committed) as u64;
        let all = batch.ops.iter().map(bytes).sum::<u64>() + committed;
        let is_full = self.cursor.offset + all > self.cursor.segment.bytes;
        is_full.then_some(HEADER_BYTES as u64 + largest.max(committed))
    }

    /// Makes a batch durable. Returns the index after the last durable entry.
    fn write(&mut self, batch: &mut Batch) -> Result<u64, WalError> {
        self.stage(batch)?;
        self.finish()
    }

    /// Writes a batch.
    fn stage(&mut self, batch: &mut Batch) -> Result<(), WalError> {
        for op in batch.ops.drain(..) {
            self.encode(op)?;
        }
        if let Some(committed) = batch.committed.take() {
            self.encode(Op::committed(committed))?;
        }
        self.write_buffer()
    }

    /// Makes what is written durable. Returns the index after the last durable entry.
    fn finish(&mut self) -> Result<u64, WalError> {
        self.flush()?;
        let mut table = self.shared.table.lock();
        let durable_next = table.next_index;
        let unused = if mem::take(&mut self.purged) { table.take_unused() } else { Vec::new() };
        drop(table);
        if !unused.is_empty() {
            fail::fail_point!("log_before_dispose");
        }
        self.keeper.dispose(unused);
        Ok(durable_next)
    }

    fn encode(&mut self, op: Op) -> Result<(), WalError> {
        let payload_bytes = op.payload_bytes();
        let bytes = record::record_bytes(payload_bytes) as u64;
        if self.cursor.offset + bytes > self.cursor.segment.bytes {
            self.next_segment(bytes)?;
        }
        self.note(&op)?;
        let cursor = &mut self.cursor;
        let head = Head {
            kind: op.kind,
            payload_bytes,
            lsn: cursor.next_lsn,
            durable_lsn: self.durable_lsn,
            index: op.index,
        };
        let chain = (cursor.segment.seed, cursor.crc);
        cursor.crc = record::encode(&mut self.buffer, &head, [&op.head, &op.tail], chain);
        cursor.next_lsn += 1;
        cursor.offset += bytes;
        self.records += 1;
        if self.buffer.len() >= LOG_WRITE_BYTES_MAX {
            self.write_buffer()?;
        }
        Ok(())
    }

    /// Takes note of what the record at the cursor is going to say.
    fn note(&mut self, op: &Op) -> Result<(), WalError> {
        let cursor = &mut self.cursor;
        let checkpoint = &mut cursor.checkpoint;
        match op.kind {
            Kind::Entry => {
                let point = Point {
                    index: op.index,
                    sequence: cursor.segment.sequence,
                    offset: cursor.offset,
                    position: cursor.position_base + cursor.offset,
                };
                let noted = self.shared.table.lock().append(point);
                noted.map_err(|expected| WalError::OutOfOrder { index: op.index, expected })?;
            }
            Kind::Vote => checkpoint.vote = op.payload(),
            Kind::Committed => checkpoint.committed = op.payload(),
            Kind::Truncate => {
                self.shared.table.lock().truncate(op.index);
                // A truncation may free segments, too.
                self.purged = true;
            }
            Kind::Purge => {
                if op.index < checkpoint.purged_next {
                    return Ok(());
                }
                checkpoint.purged = op.payload();
                checkpoint.purged_next = op.index + 1;
                self.shared.table.lock().purge(checkpoint.purged_next);
                self.purged = true;
            }
        }
        Ok(())
    }

    fn write_buffer(&mut self) -> Result<(), WalError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let segment = &self.cursor.segment;
        let at = self.cursor.offset - self.buffer.len() as u64;
        self.dirty = true;
        fail::fail_point!("log_before_write");
        segment.file.write_at(&self.buffer, at).map_err(|error| segment.io("write", error))?;
        fail::fail_point!("log_after_write");
        self.bytes += self.buffer.len();
        self.buffer.clear();
        if self.buffer.capacity() > BUFFER_KEPT_BYTES {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// Makes all records in front of the cursor durable.
    fn flush(&mut self) -> Result<(), WalError> {
        self.write_buffer()?;
        if !self.dirty {
            return Ok(());
        }
        fail::fail_point!("log_before_flush");
        let segment = &self.cursor.segment;
        let started = now();
        if !mutants::is_on("mutant_skip_fsync") {
            segment.file.sync().map_err(|error| segment.io("flush", error))?;
        }
        let took = now().saturating_duration_since(started);
        fail::fail_point!("log_after_flush");
        self.dirty = false;
        self.durable_lsn = self.cursor.next_lsn - 1;
        self.shared.position(self.cursor.position_base + self.cursor.offset);
        let records = mem::take(&mut self.records);
        let bytes = mem::take(&mut self.bytes);
        self.shared.observer.flushed(Flushed { took, records, bytes });
        Ok(())
    }

    /// Goes on in a fresh segment that has room for a record of `record_bytes`.
    fn next_segment(&mut self, record_bytes: u64) -> Result<(), WalError> {
        self.flush()?;
        let header = Header {
            identity: self.identity,
            sequence: self.cursor.segment.sequence + 1,
            first_lsn: self.cursor.next_lsn,
            next_index: self.shared.table.lock().next_index,
            previous_crc: self.cursor.crc,
            checkpoint: self.cursor.checkpoint.clone(),
        };
        let created = create_segment(&*self.disk, &self.keeper, &header, record_bytes)?;
        let (segment, crc) = created;
        self.shared.table.lock().segments.push_back(Arc::clone(&segment));
        self.cursor.position_base += self.cursor.offset;
        self.cursor.segment = segment;
        self.cursor.offset = HEADER_BYTES as u64;
        self.cursor.crc = crc;
        Ok(())
    }
}

/// Makes a segment out of a spare file, durably. Returns it with the checksum of its header.
pub(super) fn create_segment(
    disk: &dyn super::Disk,
    keeper: &Keeper,
    header: &Header,
    record_bytes: u64,
) -> Result<(Arc<Segment>, u32), WalError> {
    let spare = keeper.take(HEADER_BYTES as u64 + record_bytes)?;
    let name = Segment::name(header.sequence);
    let path = disk.path(&name);
    let block = header.encode();
    let failed = |error| WalError::io("make", &path, error);
    // The name comes last: a segment that is there has its header.
    fail::fail_point!("segment_before_header");
    spare.file.write_at(&block, 0).map_err(failed)?;
    fail::fail_point!("segment_before_flush");
    spare.file.sync().map_err(failed)?;
    fail::fail_point!("segment_before_name");
    disk.rename(&spare.name, &name).map_err(failed)?;
    fail::fail_point!("segment_after_name");
    disk.sync_dir().map_err(failed)?;
    fail::fail_point!("segment_after_flush");
    let crc = u32::from_le_bytes(block[HEADER_BYTES - 4..].try_into().expect("four bytes"));
    let segment = Segment {
        sequence: header.sequence,
        name,
        path,
        file: spare.file,
        bytes: spare.bytes,
        seed: record::seed(header.sequence, header.identity),
    };
    Ok((Arc::new(segment), crc))
}

#[expect(clippy::disallowed_methods, reason = "measures a flush for the metrics, decides nothing")]
fn now() -> Instant {
    Instant::now()
}

impl Op {
    fn payload_bytes(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    fn payload(&self) -> Bytes {
        assert!(self.tail.is_empty(), "only entries have a tail");
        self.head.clone()
    }
}

/// Nothing has been flushed yet.
impl Default for Flushed {
    fn default() -> Self {
        Self { took: Duration::ZERO, records: 0, bytes: 0 }
    }
}
