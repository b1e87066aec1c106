//! Revisions that somebody still reads.
//!
//! A long read works in steps and lets go of the state in between. Its pin holds back the physical
//! deletion of what it has yet to read; it does not hold back the compaction itself, so other
//! reads below the compact revision are refused at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// The pinned revisions of one state, with how often each is pinned.
#[derive(Debug, Clone, Default)]
pub(super) struct Pins {
    counts: Arc<Mutex<BTreeMap<i64, usize>>>,
}

impl Pins {
    /// Keeps everything that can be read at or above revision `main` until the pin is dropped.
    ///
    /// To be called while the state cannot change.
    pub(super) fn pin(&self, main: i64) -> Pin {
        *self.counts.lock().entry(main).or_default() += 1;
        Pin { pins: self.clone(), main }
    }

    /// The lowest pinned revision.
    pub(super) fn lowest(&self) -> Option<i64> {
        self.counts.lock().keys().next().copied()
    }
}

/// One reader's hold on a revision.
#[derive(Debug)]
pub(super) struct Pin {
    pins: Pins,
    main: i64,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut counts = self.pins.counts.lock();
        let count = counts.get_mut(&self.main).expect("a pin is counted until it is dropped");
        *count -= 1;
        if *count == 0 {
            counts.remove(&self.main);
        }
    }
}
