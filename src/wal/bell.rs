//! Wakes one of the log's workers: a thread, or in a simulation a task.

use parking_lot::{Condvar, MutexGuard};
use tokio::sync::Notify;

/// See the head of this file.
#[derive(Default)]
pub(super) struct Bell {
    threads: Condvar,
    /// The worker is a task.
    task: Option<Notify>,
}

impl Bell {
    pub(super) fn new(for_a_task: bool) -> Self {
        Self { threads: Condvar::new(), task: for_a_task.then(Notify::new) }
    }

    /// Wakes whoever waits.
    pub(super) fn ring(&self) {
        match &self.task {
            Some(task) => task.notify_one(),
            None => {
                self.threads.notify_all();
            }
        }
    }

    /// What the threads wait with.
    pub(super) fn threads(&self) -> &Condvar {
        &self.threads
    }

    /// Waits as a thread.
    pub(super) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        self.threads.wait(guard);
    }

    /// Waits as the one task; a ring from before counts.
    pub(super) async fn rung(&self) {
        match &self.task {
            Some(task) => task.notified().await,
            None => std::future::pending().await,
        }
    }
}
