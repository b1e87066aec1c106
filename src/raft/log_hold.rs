//! Keeps the log while a snapshot is on its way to another member.
//!
//! What follows the snapshot in the log is what its receiver needs next. Were it dropped in the
//! meantime, because sending took longer than the retention covers, the receiver would need another
//! snapshot, and never catch up while writes go on. As in etcd, dropping therefore pauses while a
//! snapshot is being sent, and for a while after it has arrived.
//!
//! **Invariant:** a member that cannot be reached holds nothing: the hold begins when the receiver
//! takes the first frame and ends with the call. So a dead member never fills the leader's disk.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::{clock, limits};

/// Counts the snapshots under way.
#[derive(Debug, Default)]
pub(crate) struct LogHold {
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    snapshots: usize,
    /// The receiver of a snapshot that has arrived may catch up until then.
    until: Option<Instant>,
}

impl LogHold {
    /// Whether the log must not be dropped at `now`.
    pub(crate) fn holds(&self, now: Instant) -> bool {
        let held = self.held.lock();
        held.snapshots > 0 || held.until.is_some_and(|until| now < until)
    }

    /// One snapshot more; begins with [`Transfer::begin`].
    pub(crate) fn transfer(self: &Arc<Self>) -> Arc<Transfer> {
        Arc::new(Transfer { hold: Arc::clone(self), begun: Mutex::new(false) })
    }
}

/// One snapshot on its way. Dropping the last handle ends it.
#[derive(Debug)]
pub(crate) struct Transfer {
    hold: Arc<LogHold>,
    begun: Mutex<bool>,
}

impl Transfer {
    /// The receiver takes frames: the log is held from now on.
    pub(crate) fn begin(&self) {
        let mut begun = self.begun.lock();
        if !*begun {
            *begun = true;
            self.hold.held.lock().snapshots += 1;
        }
    }

    /// The receiver has installed the snapshot and goes on with the log.
    pub(crate) fn arrived(&self) {
        self.hold.held.lock().until = Some(clock::now() + limits::SNAPSHOT_CATCHUP_TIME);
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if *self.begun.get_mut() {
            self.hold.held.lock().snapshots -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_held_from_the_first_frame_until_after_the_arrival() {
        let hold = Arc::new(LogHold::default());
        let now = clock::now();
        let transfer = hold.transfer();
        assert!(!hold.holds(now), "nobody has taken a frame");
        transfer.begin();
        transfer.begin();
        assert!(hold.holds(now));
        transfer.arrived();
        drop(transfer);
        assert!(hold.holds(now));
        assert!(!hold.holds(clock::now() + limits::SNAPSHOT_CATCHUP_TIME));
    }

    #[test]
    fn a_transfer_that_breaks_holds_nothing() {
        let hold = Arc::new(LogHold::default());
        let transfer = hold.transfer();
        transfer.begin();
        drop(transfer);
        assert!(!hold.holds(clock::now()));
    }
}
