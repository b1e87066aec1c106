//! Revisions that somebody still reads.
//!
//! A long read works in steps and lets go of the state in between. Its pin holds back the physical
//! deletion of what it has yet to read; it does not hold back the compaction itself, so other
//! reads below the compact revision are refused at once.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

/// What to call when a deletion may go further.
pub(super) type Wake = Box<dyn FnOnce() + Send>;

/// The pinned revisions of one state.
#[derive(Clone, Default)]
pub(super) struct Pins {
    pinned: Arc<Mutex<Pinned>>,
}

#[derive(Default)]
struct Pinned {
    /// How often each revision is pinned.
    counts: BTreeMap<i64, usize>,
    wake: Option<Wake>,
}

impl Pins {
    /// Keeps everything that can be read at or above revision `main` until the pin is dropped.
    ///
    /// To be called while the state cannot change.
    pub(super) fn pin(&self, main: i64) -> Pin {
        *self.pinned.lock().counts.entry(main).or_default() += 1;
        Pin { pins: self.clone(), main }
    }

    /// The lowest pinned revision.
    pub(super) fn lowest(&self) -> Option<i64> {
        self.pinned.lock().counts.keys().next().copied()
    }

    /// Calls `wake` once the lowest pinned revision rises, or at once if none is pinned.
    pub(super) fn when_raised(&self, wake: Wake) {
        let mut pinned = self.pinned.lock();
        if pinned.counts.is_empty() {
            drop(pinned);
            return wake();
        }
        pinned.wake = Some(wake);
    }
}

impl fmt::Debug for Pins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pins").field(&self.pinned.lock().counts).finish()
    }
}

/// One reader's hold on a revision.
#[derive(Debug)]
pub(super) struct Pin {
    pins: Pins,
    main: i64,
}

impl Pin {
    /// Whether it is one of `pins`.
    pub(super) fn is_of(&self, pins: &Pins) -> bool {
        Arc::ptr_eq(&self.pins.pinned, &pins.pinned)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pinned = self.pins.pinned.lock();
        let lowest = pinned.counts.keys().next().copied();
        let count = pinned.counts.get_mut(&self.main);
        let count = count.expect("a pin is counted until it is dropped");
        *count -= 1;
        if *count > 0 {
            return;
        }
        pinned.counts.remove(&self.main);
        if lowest == Some(self.main)
            && let Some(wake) = pinned.wake.take()
        {
            drop(pinned);
            wake();
        }
    }
}
