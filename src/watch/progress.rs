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
        match &mut stream.wanted_progress {
            // Who asks again and again is answered nevertheless.
            Some((_, last)) => *last = revision,
            none => {
                *none = Some((revision, revision));
                self.progress.push(at);
            }
        }
        self.settle_progress();
    }

    /// What waits to be told of a stream must not overtake a new watcher from revision `from` on: it
    /// is told later.
    pub(super) fn take_back_progress(&mut self, at: u32, from: i64) {
        let stream = self.stream_mut(at);
        let (mut bytes, mut told) = (0, None);
        stream.queue.retain(|queued| match queued.delivery {
            Delivery::Progress { watch_id: WHOLE_STREAM, revision } if revision >= from => {
                bytes += queued.bytes;
                told = Some(revision);
                false
            }
            _ => true,
        });
        stream.bytes -= bytes;
        self.unblock(at);
        if let Some(revision) = told {
            self.want_progress(at, revision);
        }
    }

    /// Tells the progress of the streams that are as far as they wanted to be.
    pub(super) fn settle_progress(&mut self) {
        if self.progress.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut self.progress);
        for at in waiting {
            let told = self.next - 1;
            let wanted = self.stream(at).wanted_progress.filter(|(_, last)| *last > told);
            match self.progress_of(at) {
                Standing::Behind => {
                    self.progress.push(at);
                    continue;
                }
                Standing::Level => {
                    let delivery = Delivery::Progress { watch_id: WHOLE_STREAM, revision: told };
                    self.push(at, None, delivery);
                }
                Standing::NotBegun => {
                    self.stream_mut(at).wanted_progress = None;
                    continue;
                }
            }
            self.stream_mut(at).wanted_progress = wanted.map(|(_, last)| (last, last));
            self.progress.extend(wanted.map(|_| at));
        }
    }

    fn progress_of(&self, at: u32) -> Standing {
        let stream = self.stream(at);
        let wanted = stream.wanted_progress.map_or(0, |(first, _)| first);
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
