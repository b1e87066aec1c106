//! Whether this member is in touch with a leader, or, if it leads, with a majority.
//!
//! openraft goes on naming the last leader when it falls silent, and a leader that lost its majority
//! goes on naming itself. etcd knows no leader then, and clients that ask for one want to hear that.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::clock;
use crate::tasks::watch;

/// When the leader was heard, and what follows from it.
#[derive(Debug)]
pub(crate) struct Contact {
    heard: Mutex<Instant>,
    has_leader: watch::Sender<bool>,
}

impl Contact {
    pub(crate) fn new() -> Self {
        Contact { heard: Mutex::new(clock::now()), has_leader: watch::Sender::new(false) }
    }

    /// A leader has sent something.
    pub(crate) fn heard(&self) {
        *self.heard.lock() = clock::now();
    }

    /// Whether a leader was heard within `patience`.
    pub(crate) fn is_fresh(&self, patience: Duration) -> bool {
        clock::now().saturating_duration_since(*self.heard.lock()) <= patience
    }

    pub(crate) fn publish(&self, has_leader: bool) {
        self.has_leader
            .send_if_modified(|before| std::mem::replace(before, has_leader) != has_leader);
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<bool> {
        self.has_leader.subscribe()
    }
}
