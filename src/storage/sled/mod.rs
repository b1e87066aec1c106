//! State on disk, in sled 1.0-alpha: an overlay in front, one writer thread behind.
//!
//! ```text
//! commit ──▶ overlay + queue ──▶ writer ──▶ sled leaves ──flush──▶ slabs, metadata ──▶ CHECKPOINT
//! get    ──▶ overlay, else sled (a pooled handle)                  (fsynced)          (fsynced)
//! scan   ──▶ overlay merged with sled, a chunk at a time
//! ```
//!
//! What sled alone does not give, and how this folder adds it:
//! - *No waiting.* sled blocks writers while it flushes. Commits go to a queue; the overlay makes
//!   them visible at once (`overlay`, `queue`).
//! - *One writer.* Concurrent batches can deadlock in sled; only `writer` writes.
//! - *An exact prefix.* Only `writer` flushes, between commits, and a flush is atomic in sled.
//! - *Bounded memory.* sled never evicts a leaf that was written since it was opened, so `writer`
//!   reopens it after [`SledOptions::reopen_bytes`] (`handles`).
//! - *No leaf for every record.* sled never merges sparse leaves; `pack` does.
//! - *Found damage.* `manifest` notes after each flush what the files must hold.
//!
//! **Invariant:** what opens is every commit up to some number, at least that of the manifest.

mod handles;
mod manifest;
mod overlay;
mod pack;
mod queue;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    fs, io,
    iter::Peekable,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64, atomic::Ordering, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
    vec,
};

use ::sled::InlineArray;
use bytes::Bytes;

use self::{
    handles::{Handles, close_database, open_database},
    manifest::Manifest,
    queue::Queue,
    writer::{Shared, Writer, disk_bytes},
};
use crate::storage::{Backend, Batch, StorageError};

/// Where the number of the last commit is kept: first of all keys, hidden from callers.
const SEQ_KEY: &[u8] = b"!seq";

/// sled's own directory below ours.
const DATABASE: &str = "sled";

/// A scan copies about this many bytes of pairs before it visits them with nothing locked.
const SCAN_CHUNK_BYTES: usize = 256 * 1024;

/// Pairs at most in such a chunk.
const SCAN_CHUNK_PAIRS: usize = 4096;

/// Chunks that a scan reads ahead of its visitor.
const SCAN_CHUNKS_AHEAD: usize = 2;

/// A scan gets every so manieth key once more: sled counts the reads of an iterator towards its
/// cache only in batches, which it forgets with the iterator, so that a scan would evict nothing.
const SCAN_TOUCH_EVERY: usize = 16;

/// What may be tuned.
#[derive(Debug, Clone)]
pub struct SledOptions {
    /// Bytes of leaves that sled keeps in memory after reading them from disk.
    pub cache_bytes: usize,
    /// Flush when the oldest unflushed commit is this old.
    pub flush_interval: Duration,
    /// Flush when this many writes are unflushed: bounds the length of a flush.
    pub flush_writes_max: usize,
    /// Flush when this many bytes are unflushed.
    pub flush_bytes_max: usize,
    /// Reopen sled after this many written bytes: it keeps all of them in memory until then. Where
    /// a reopen takes long, because the disk is slow, it may become three times as many.
    pub reopen_bytes: usize,
}

impl Default for SledOptions {
    fn default() -> Self {
        SledOptions {
            cache_bytes: 8 << 20,
            flush_interval: Duration::from_secs(1),
            flush_writes_max: 50_000,
            flush_bytes_max: 8 << 20,
            reopen_bytes: 16 << 20,
        }
    }
}

/// A directory that holds an ordered map of bytes.
pub struct SledBackend {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    dir: PathBuf,
}

impl SledBackend {
    /// Opens or creates the store in `dir`, which must have no other user.
    pub fn open(dir: impl AsRef<Path>, options: SledOptions) -> Result<Self, StorageError> {
        let dir = dir.as_ref();
        let database_dir = dir.join(DATABASE);
        let failed = |error| plain(format!("open the state in {}", dir.display()), error);
        fs::create_dir_all(dir).map_err(failed)?;
        let manifest = Manifest::load(dir)?;
        match &manifest {
            Some(manifest) => manifest.verify(&database_dir).map_err(failed)?,
            None => manifest::forget_torn_settings(&database_dir).map_err(failed)?,
        }
        fail::fail_point!("open_before_sync");
        manifest::sync_files(&database_dir).map_err(failed)?;
        fail::fail_point!("open_before_database");
        let database = open_database(&database_dir, &options)?;
        fail::fail_point!("open_after_database");
        let noted = note_opened(dir, &database_dir, &database, manifest.as_ref());
        let seq = match noted {
            Ok(seq) => seq,
            Err(error) => {
                // The first error is the one to tell.
                let _closed = close_database(database);
                return Err(failed(error));
            }
        };

        let size_bytes = disk_bytes(dir).map_err(failed)?;
        let shared = Arc::new(Shared {
            queue: Queue::new(seq),
            handles: Handles::new(&database),
            size_bytes: AtomicU64::new(size_bytes),
        });
        let writer = Writer::new(shared.clone(), database, (dir, &database_dir), options, seq);
        let thread = thread::Builder::new().name("storage-writer".to_owned());
        let writer = thread.spawn(move || writer.run()).map_err(failed)?;
        Ok(SledBackend { shared, writer: Some(writer), dir: dir.to_owned() })
    }

    fn failed(&self, error: io::Error) -> StorageError {
        let error = plain(format!("read the state in {}", self.dir.display()), error);
        self.shared.queue.fail(&error);
        error
    }

    /// Pairs of sled from `start` on, until the chunk is full.
    fn chunk(&self, start: &[u8], end: &[u8]) -> Result<Chunk, StorageError> {
        let read = self.shared.handles.with(|database| {
            let mut pairs = Vec::new();
            let mut bytes = 0;
            let mut next = None;
            // sled does not look for an upper bound where no key is left below it: such an iterator
            // goes through all leaves up to the last one before it ends.
            for pair in database.range(start..) {
                let (key, value) = pair?;
                if &*key >= end {
                    break;
                }
                bytes += key.len() + value.len();
                if pairs.len() % SCAN_TOUCH_EVERY == 0 {
                    database.get(&key)?;
                }
                pairs.push((key, value));
                if bytes >= SCAN_CHUNK_BYTES || pairs.len() >= SCAN_CHUNK_PAIRS {
                    // The next possible key.
                    next = pairs.last().map(|(last, _)| [&**last, &[0]].concat());
                    break;
                }
            }
            Ok(Chunk { pairs, next })
        });
        read.map_err(|error| self.failed(error))
    }

    /// Visits the chunks from `from` on while another thread reads ahead: decompressing a leaf costs
    /// about as much as taking it in.
    fn scan_ahead(
        &self,
        from: Vec<u8>,
        end: &[u8],
        merge: &mut Merge<'_>,
    ) -> Result<ControlFlow<()>, StorageError> {
        thread::scope(|scope| {
            let (sender, chunks) = mpsc::sync_channel(SCAN_CHUNKS_AHEAD);
            scope.spawn(move || {
                let mut from = Some(from);
                while let Some(start) = from.take() {
                    let chunk = self.chunk(&start, end);
                    from = chunk.as_ref().ok().and_then(|chunk| chunk.next.clone());
                    // The visitor may have had enough.
                    if sender.send(chunk).is_err() {
                        return;
                    }
                }
            });
            for chunk in chunks {
                if merge.chunk(&chunk?).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        })
    }
}

/// Some pairs of sled, in key order.
struct Chunk {
    pairs: Vec<(InlineArray, InlineArray)>,
    /// Where the next chunk begins, if there may be one.
    next: Option<Vec<u8>>,
}

/// Takes one pair; breaks when it has enough.
type Visit<'v> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'v;

/// A write that sled does not hold yet; none removes the key.
type Pending = (Bytes, Option<Bytes>);

/// Merges what sled holds with what is on its way there.
struct Merge<'v> {
    pending: Peekable<vec::IntoIter<Pending>>,
    visit: &'v mut Visit<'v>,
}

impl Merge<'_> {
    fn chunk(&mut self, chunk: &Chunk) -> ControlFlow<()> {
        for (key, value) in &chunk.pairs {
            while let Some((ahead, written)) = self.pending.next_if(|(ahead, _)| **ahead < **key) {
                if let Some(value) = written {
                    (self.visit)(&ahead, &value)?;
                }
            }
            match self.pending.next_if(|(ahead, _)| **ahead == **key) {
                Some((_, Some(written))) => (self.visit)(key, &written)?,
                Some((_, None)) => {}
                None if &**key == SEQ_KEY => {}
                None => (self.visit)(key, value)?,
            }
        }
        ControlFlow::Continue(())
    }

    /// What lies behind the last pair of sled.
    fn rest(&mut self) -> ControlFlow<()> {
        for (key, written) in self.pending.by_ref() {
            if let Some(value) = written {
                (self.visit)(&key, &value)?;
            }
        }
        ControlFlow::Continue(())
    }
}

impl Backend for SledBackend {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.shared.queue.check()?;
        if let Some(pending) = self.shared.queue.overlay().read().get(key) {
            return Ok(pending);
        }
        let read = self.shared.handles.with(|database| database.get(key));
        let value = read.map_err(|error| self.failed(error))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        self.shared.queue.check()?;
        if start >= end {
            return Ok(());
        }
        // The overlay first: what leaves it later is in sled by then, and is seen there.
        let pending = self.shared.queue.overlay().read().range(start, end);
        let mut merge = Merge { pending: pending.into_iter().peekable(), visit };
        let first = self.chunk(start, end)?;
        let next = first.next.clone();
        if merge.chunk(&first).is_break() {
            return Ok(());
        }
        if let Some(from) = next
            && self.scan_ahead(from, end, &mut merge)?.is_break()
        {
            return Ok(());
        }
        // Whether the caller had enough does not matter any more.
        match merge.rest() {
            ControlFlow::Continue(()) | ControlFlow::Break(()) => Ok(()),
        }
    }

    fn commit(&self, batch: Batch) -> Result<(), StorageError> {
        self.shared.queue.push(batch)
    }

    fn checkpoint(&self) -> Result<(), StorageError> {
        self.shared.queue.checkpoint()
    }

    fn backlog_bytes(&self) -> usize {
        self.shared.queue.backlog_bytes()
    }

    fn on_drain(&self, below_bytes: usize, wake: Box<dyn Fn() + Send + Sync>) {
        self.shared.queue.on_drain(below_bytes, wake);
    }

    fn size_bytes(&self) -> u64 {
        self.shared.size_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for SledBackend {
    /// Flushes what was committed, and closes.
    fn drop(&mut self) {
        self.shared.queue.stop();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            self.shared.handles.leak();
        }
    }
}

/// An error of `action` in the system's words: without the chain of sled's own source lines that
/// sled puts in front of them, and with advice where there is some.
fn plain(action: String, error: io::Error) -> StorageError {
    let text = error.to_string();
    let said = match text.rfind(" -> ") {
        Some(at) if text.starts_with("sled:") => &text[at + " -> ".len()..],
        _ => &text,
    };
    let advice = match error.kind() {
        io::ErrorKind::StorageFull => "; free some disk space and start the member again",
        _ => "",
    };
    StorageError::new(action, io::Error::new(error.kind(), format!("{said}{advice}")))
}

/// Checks that `database` holds what the manifest promises, and notes what it holds beyond that.
fn note_opened(
    dir: &Path,
    database_dir: &Path,
    database: &handles::Database,
    manifest: Option<&Manifest>,
) -> io::Result<u64> {
    let seq = check_seq(stored_seq(database)?, manifest)?;
    manifest::sync_names(dir, database_dir)?;
    fail::fail_point!("open_after_names");
    Manifest::observe(database_dir, seq)?.store(dir)?;
    Ok(seq)
}

fn stored_seq(database: &handles::Database) -> io::Result<u64> {
    let Some(value) = database.get(SEQ_KEY)? else { return Ok(0) };
    let bytes = <[u8; 8]>::try_from(&*value);
    bytes.map(u64::from_be_bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

fn check_seq(seq: u64, manifest: Option<&Manifest>) -> io::Result<u64> {
    let problem = match manifest {
        None if seq > 0 => "its CHECKPOINT file is missing",
        Some(manifest) if seq < manifest.seq() => "the state is older than its checkpoint",
        _ => return Ok(seq),
    };
    Err(io::Error::new(io::ErrorKind::InvalidData, problem))
}
