//! Telling how far watchers are: on demand for a whole stream, now and then for quiet watchers.
//!
//! **Invariant:** when a revision is told, every event up to it is in the stream's queue before.

use super::hub::{Board, Watcher};
use super::stream::Delivery;

/// The id under which the progress of all watchers of a stream is told, as in etcd.
const WHOLE_STREAM: i64 = -1;

/// How far a watcher is, seen from the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Level,
    Behind,
    NotBegun,
}

impl Board {
    /// Has the progress of a whole stream told once it has all events up to `revision`.
    pub(super) fn want_progress(&mut self, at: u32, revision: i64) {
        let stream = self.stream_mut(at);
        // As in etcd: without watchers there is no progress.
        if stream.ids.is_empty() {
            return;
        }
        if stream.wanted_progress.replace(revision).is_none() {
            self.progress.push(at);
        }
        self.settle_progress();
    }

    /// Tells the progress of the streams that are as far as they wanted to be.
    pub(super) fn settle_progress(&mut self) {
        if self.progress.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut self.progress);
        for at in waiting {
            let told = self.next - 1;
            match self.progress_of(at) {
                Standing::Behind => {
                    self.progress.push(at);
                    continue;
                }
                Standing::Level => {
                    let delivery = Delivery::Progress { watch_id: WHOLE_STREAM, revision: told };
                    self.push(at, None, delivery);
                }
                Standing::NotBegun => {}
            }
            self.stream_mut(at).wanted_progress = None;
        }
    }

    fn progress_of(&self, at: u32) -> Standing {
        let stream = self.stream(at);
        let wanted = stream.wanted_progress.unwrap_or_default();
        if stream.ids.is_empty() {
            return Standing::NotBegun;
        }
        if stream.unsynced > 0 || stream.is_blocked || self.next <= wanted {
            return Standing::Behind;
        }
        let standings = stream.ids.values().map(|slot| self.standing(self.watcher(*slot)));
        standings.max().unwrap_or(Standing::NotBegun)
    }

    /// Whether all events below the hub's next revision are with the watcher's stream.
    fn standing(&self, watcher: &Watcher) -> Standing {
        if watcher.start >= self.next {
            // As in etcd: nothing is told of a time before the watcher's start.
            Standing::NotBegun
        } else if watcher.has_ended || watcher.is_synced && watcher.next <= self.next {
            Standing::Level
        } else {
            Standing::Behind
        }
    }

    /// Tells quiet watchers that asked for it how far they are.
    pub(super) fn tick(&mut self, at: u32) {
        let stream = self.stream(at);
        if stream.is_blocked {
            return;
        }
        let slots: Vec<u32> = stream.ids.values().copied().collect();
        let revision = self.next - 1;
        for slot in slots {
            let watcher = self.watcher(slot);
            if !watcher.options.progress_notify || watcher.has_ended {
                continue;
            }
            if watcher.is_quiet && self.standing(watcher) == Standing::Level {
                let (watch_id, of) = (watcher.id, Some((slot, watcher.generation)));
                self.push(at, of, Delivery::Progress { watch_id, revision });
            }
            self.watcher_mut(slot).is_quiet = true;
        }
    }
}
