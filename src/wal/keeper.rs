//! Keeps an empty, zero-filled file ready to become the next segment, and disposes of old ones.
//!
//! A thread of its own does it, so that neither zero-filling 64 MiB nor unlinking a file is ever in
//! the way of an acknowledgement. This is also where a full disk shows first: the log goes on in
//! its current segment while `space_low` warns, and the writer waits only if that segment is full
//! before space has been found.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::bell::Bell;
use super::disk::{Disk, DiskFile};
use super::error::WalError;
use super::segment::Segment;
use super::{Options, WalObserver, Workers};

/// Files kept for reuse; more old segments than this are removed.
const SPARES_MAX: usize = 2;
const ZEROES: usize = 16 * 1024;
const SYNC_BYTES: u64 = 4 * 1024 * 1024;
const RETRY: Duration = Duration::from_secs(1);
/// What making a spare leaves free, or a quarter of the spare if that is less.
const RESERVE_BYTES_MAX: u64 = 16 * 1024 * 1024;
const SUFFIX_READY: &str = ".spare";
const SUFFIX_UNFINISHED: &str = ".tmp";

/// A file that may become a segment. Its content is durable, but stale or zero.
pub(super) struct Spare {
    pub(super) name: String,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) bytes: u64,
}

/// What has become of an old segment.
enum Disposed {
    Reused(Spare),
    Removed,
}

struct State {
    spares: Vec<Spare>,
    unused: VecDeque<Arc<Segment>>,
    /// Has left `unused` and given up its name, but not durably yet.
    disposed: Option<Disposed>,
    /// Size that the writer waits for; 0 if it does not wait.
    wanted_bytes: u64,
    /// For the names of spares.
    next_number: u64,
    /// Nobody will free space any more: do not wait for it.
    closing: bool,
    closed: bool,
}

/// See the head of this file.
pub(super) struct Keeper {
    disk: Arc<dyn Disk>,
    observer: Arc<dyn WalObserver>,
    segment_bytes: u64,
    workers: Workers,
    space_low: AtomicBool,
    state: Mutex<State>,
    changed: Bell,
}

impl Keeper {
    /// Removes unfinished files from before and takes over the finished ones.
    pub(super) fn open(options: &Options, names: &[String]) -> Result<Arc<Self>, WalError> {
        let disk = Arc::clone(&options.disk);
        let mut state = State {
            spares: Vec::new(),
            unused: VecDeque::new(),
            disposed: None,
            wanted_bytes: 0,
            next_number: 0,
            closing: false,
            closed: false,
        };
        for name in names {
            let failed = |error| WalError::io("take over", &disk.path(name), error);
            if let Some(number) = name.strip_suffix(SUFFIX_READY) {
                state.next_number = state.next_number.max(number.parse().map_or(0, |n: u64| n + 1));
                let file = disk.open(name).map_err(failed)?;
                let bytes = file.bytes().map_err(failed)?;
                if bytes == options.segment_bytes && state.spares.len() < SPARES_MAX {
                    state.spares.push(Spare { name: name.clone(), file, bytes });
                    continue;
                }
            }
            if name.ends_with(SUFFIX_READY) || name.ends_with(SUFFIX_UNFINISHED) {
                fail::fail_point!("leftover_before_removal");
                disk.remove(name).map_err(failed)?;
                fail::fail_point!("leftover_after_removal");
            }
        }
        Ok(Arc::new(Self {
            disk,
            observer: Arc::clone(&options.observer),
            segment_bytes: options.segment_bytes,
            workers: options.workers.clone(),
            space_low: AtomicBool::new(false),
            state: Mutex::new(state),
            changed: Bell::new(matches!(options.workers, Workers::Tasks(_))),
        }))
    }

    /// True while the next segment cannot be made.
    pub(super) fn space_low(&self) -> bool {
        self.space_low.load(Ordering::Relaxed)
    }

    /// The thread: works until closed.
    pub(super) fn run(&self) {
        loop {
            let worked = self.work();
            let mut state = self.state.lock();
            if state.closed {
                return;
            }
            if worked.is_err() && state.closing {
                state.closed = true;
                self.changed.ring();
                return;
            }
            if worked.is_err() {
                self.changed.threads().wait_for(&mut state, RETRY);
            } else if state.unused.is_empty() && !Self::lacks_spare(&state) {
                self.changed.wait(&mut state);
            }
        }
    }

    /// The same as a task.
    pub(super) async fn run_as_task(&self) {
        loop {
            let worked = self.work();
            if self.state.lock().closed {
                return;
            }
            match worked {
                Ok(()) => self.changed.rung().await,
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    }

    /// Waits, as a task, until [`Keeper::take`] finds a file of at least `bytes`, or nobody will free
    /// space any more.
    pub(super) async fn ready(&self, bytes: u64) {
        self.state.lock().wanted_bytes = bytes;
        while self.work().is_err() && !self.state.lock().closing {
            tokio::time::sleep(RETRY).await;
        }
    }

    /// The writer is about to end: a full disk now ends it, too.
    pub(super) fn begin_close(&self) {
        self.state.lock().closing = true;
        self.changed.ring();
    }

    /// Ends the thread, and a writer that waits for space.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.ring();
    }

    /// Makes the file for the first segment, before there is a thread to do it.
    pub(super) fn make_first(&self) -> Result<(), WalError> {
        self.make_spare()
            .map_err(|error| WalError::io("make a segment in", &self.disk.path(""), error))
    }

    /// Takes old segments; they become spares or are removed.
    pub(super) fn dispose(&self, unused: Vec<Arc<Segment>>) {
        if unused.is_empty() {
            return;
        }
        self.state.lock().unused.extend(unused);
        self.changed.ring();
        if matches!(self.workers, Workers::OneThread) {
            // As in the thread, a failure here costs disk space, not data; the next call retries.
            self.dispose_all().ok();
        }
    }

    /// A file of at least `bytes`. Waits while the disk is full; fails only if the log is closed.
    pub(super) fn take(&self, bytes: u64) -> Result<Spare, WalError> {
        let mut state = self.state.lock();
        loop {
            if let Some(at) = state.spares.iter().position(|spare| spare.bytes >= bytes) {
                state.wanted_bytes = 0;
                let spare = state.spares.swap_remove(at);
                self.changed.ring();
                return Ok(spare);
            }
            if state.closed {
                return Err(WalError::Closed);
            }
            state.wanted_bytes = bytes;
            self.changed.ring();
            if matches!(self.workers, Workers::Threads) {
                self.changed.wait(&mut state);
            } else {
                drop(state);
                let worked = self.work();
                state = self.state.lock();
                match worked {
                    Ok(()) => {}
                    Err(_) if state.closing => return Err(WalError::Closed),
                    Err(error) => {
                        return Err(WalError::io("make a segment in", &self.disk.path(""), error));
                    }
                }
            }
        }
    }

    fn lacks_spare(state: &State) -> bool {
        let enough = |spare: &Spare| spare.bytes >= state.wanted_bytes;
        !state.spares.iter().any(enough)
    }

    /// Disposes of what is unused, then makes a spare if there is none.
    fn work(&self) -> io::Result<()> {
        let worked = self.dispose_all().and_then(|()| self.make_spare());
        let low = worked.is_err();
        if self.space_low.swap(low, Ordering::Relaxed) != low {
            self.observer.space_low(low);
        }
        worked
    }

    /// Oldest first and each made durable, so that a crash never leaves a gap in the sequence.
    fn dispose_all(&self) -> io::Result<()> {
        while self.take_name()? {
            self.disk.sync_dir()?;
            fail::fail_point!("segment_after_disposal");
            let mut state = self.state.lock();
            if let Some(Disposed::Reused(spare)) = state.disposed.take() {
                state.spares.push(spare);
            }
            self.changed.ring();
        }
        Ok(())
    }

    /// Takes the name from the oldest unused segment; false if there is none. A change that is not
    /// durable yet, since a flush failed, is not made again: the old name is gone.
    fn take_name(&self) -> io::Result<bool> {
        let mut state = self.state.lock();
        if state.disposed.is_some() {
            return Ok(true);
        }
        let Some(segment) = state.unused.front().cloned() else { return Ok(false) };
        let number = state.next_number;
        state.next_number += 1;
        let keep = state.spares.len() < SPARES_MAX && segment.bytes == self.segment_bytes;
        drop(state);
        // Two owners: the queue and this function. Any other still reads the old entries.
        let disposed = if keep && Arc::strong_count(&segment) == 2 {
            let name = format!("{number}{SUFFIX_READY}");
            fail::fail_point!("spare_before_reuse");
            self.disk.rename(&segment.name, &name)?;
            fail::fail_point!("spare_after_reuse");
            let (file, bytes) = (Arc::clone(&segment.file), segment.bytes);
            Disposed::Reused(Spare { name, file, bytes })
        } else {
            fail::fail_point!("segment_before_removal");
            self.disk.remove(&segment.name)?;
            fail::fail_point!("segment_after_removal");
            Disposed::Removed
        };
        let mut state = self.state.lock();
        state.unused.pop_front();
        state.disposed = Some(disposed);
        Ok(true)
    }

    fn make_spare(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        if !Self::lacks_spare(&state) {
            return Ok(());
        }
        let bytes = self.segment_bytes.max(state.wanted_bytes);
        let number = state.next_number;
        state.next_number += 1;
        drop(state);
        // The state lies on the same disk, as a rule. Taking its last space in advance, if only for a
        // moment, would end the member.
        let reserve = (bytes / 4).min(RESERVE_BYTES_MAX);
        if self.disk.free_bytes()? < bytes + reserve {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        let unfinished = format!("{number}{SUFFIX_UNFINISHED}");
        let name = format!("{number}{SUFFIX_READY}");
        let file = match self.zero_filled(&unfinished, bytes) {
            Ok(file) => file,
            Err(error) => {
                // Give back the blocks it got, so that others find some room.
                self.disk.remove(&unfinished).ok();
                return Err(error);
            }
        };
        fail::fail_point!("spare_before_name");
        self.disk.rename(&unfinished, &name)?;
        fail::fail_point!("spare_after_name");
        self.state.lock().spares.push(Spare { name, file, bytes });
        self.changed.ring();
        Ok(())
    }

    /// Written, not just allocated: a flush into it then never has to convert extents.
    fn zero_filled(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        fail::fail_point!("spare_before_create");
        let file = self.disk.create(name)?;
        fail::fail_point!("spare_after_create");
        let zeroes = vec![0; ZEROES.min(usize::try_from(bytes).unwrap_or(ZEROES))];
        let mut at = 0;
        while at < bytes {
            let count = (bytes - at).min(zeroes.len() as u64);
            file.write_at(&zeroes[..count as usize], at)?;
            at += count;
            // In small portions, so that the flushes of the log do not queue up behind this one.
            if at % SYNC_BYTES == 0 || at == bytes {
                file.sync()?;
            }
        }
        Ok(file)
    }
}
