//! A value that many may watch: tokio's `watch`, but it wakes those who wait in the order in which
//! they began to.
//!
//! tokio's spreads them over several lists at random, against contention that we do not have; a
//! simulation that is replayed needs one order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::{RwLock, RwLockReadGuard};
use tokio::sync::Notify;

/// The value, to be looked at; holds up whoever wants to change it.
pub type Ref<'a, T> = RwLockReadGuard<'a, T>;

/// All senders are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody can change the watched value any more")]
pub struct Closed;

#[derive(Debug)]
struct Shared<T> {
    value: RwLock<T>,
    /// Raised, under the lock of the value, by each change that is told.
    version: AtomicU64,
    senders: AtomicUsize,
    receivers: AtomicUsize,
    changed: Notify,
}

/// Changes the value.
#[derive(Debug)]
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

/// Sees the value, and hears of changes.
#[derive(Debug)]
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

/// A sender and a receiver that has seen `value`.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

impl<T> Sender<T> {
    /// A sender without receivers.
    pub fn new(value: T) -> Self {
        let shared = Shared {
            value: RwLock::new(value),
            version: AtomicU64::new(0),
            senders: AtomicUsize::new(1),
            receivers: AtomicUsize::new(0),
            changed: Notify::new(),
        };
        Sender { shared: Arc::new(shared) }
    }

    /// A receiver that has seen the value as it is.
    pub fn subscribe(&self) -> Receiver<T> {
        self.shared.receivers.fetch_add(1, Ordering::Relaxed);
        let seen = self.shared.version.load(Ordering::Acquire);
        Receiver { shared: Arc::clone(&self.shared), seen }
    }

    /// The value as it is.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.shared.value.read()
    }

    /// Whether anybody watches.
    pub fn has_receivers(&self) -> bool {
        self.shared.receivers.load(Ordering::Relaxed) > 0
    }

    /// Puts `value` there and answers with the one before.
    pub fn send_replace(&self, value: T) -> T {
        let mut before = None;
        self.send_modify(|now| before = Some(std::mem::replace(now, value)));
        before.expect("the closure ran")
    }

    /// Changes the value.
    pub fn send_modify(&self, modify: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            modify(value);
            true
        });
    }

    /// Changes the value, which is told if `modify` says so.
    pub fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
        let is_modified = {
            let mut value = self.shared.value.write();
            let is_modified = modify(&mut value);
            if is_modified {
                self.shared.version.fetch_add(1, Ordering::Release);
            }
            is_modified
        };
        if is_modified {
            self.shared.changed.notify_waiters();
        }
        is_modified
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.shared.senders.fetch_add(1, Ordering::Relaxed);
        Sender { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.shared.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.changed.notify_waiters();
        }
    }
}

impl<T> Receiver<T> {
    /// The value as it is; a change that was not seen stays news.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.shared.value.read()
    }

    /// The value as it is, which is then seen.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let value = self.shared.value.read();
        self.seen = self.shared.version.load(Ordering::Acquire);
        value
    }

    /// Whether there is a change that was not seen.
    pub fn has_changed(&self) -> bool {
        self.shared.version.load(Ordering::Acquire) != self.seen
    }

    /// Takes the value as seen.
    pub fn mark_unchanged(&mut self) {
        self.seen = self.shared.version.load(Ordering::Acquire);
    }

    /// Waits for a change that was not seen, and sees it. Dropping the future loses nothing.
    ///
    /// # Errors
    /// When there can be none any more.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        self.shared.changed(&mut self.seen).await
    }

    /// Waits until the value is as wanted, sees it, and answers with just that value.
    ///
    /// # Errors
    /// When it cannot become so any more.
    pub async fn wait_for(
        &mut self,
        mut is_wanted: impl FnMut(&T) -> bool,
    ) -> Result<Ref<'_, T>, Closed> {
        let Receiver { shared, seen } = self;
        loop {
            {
                let value = shared.value.read();
                *seen = shared.version.load(Ordering::Acquire);
                if is_wanted(&value) {
                    return Ok(value);
                }
            }
            shared.changed(seen).await?;
        }
    }
}

impl<T> Shared<T> {
    async fn changed(&self, seen: &mut u64) -> Result<(), Closed> {
        loop {
            let changed = self.changed.notified();
            let version = self.version.load(Ordering::Acquire);
            if version != *seen {
                *seen = version;
                return Ok(());
            }
            if self.senders.load(Ordering::Acquire) == 0 {
                return Err(Closed);
            }
            changed.await;
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.shared.receivers.fetch_add(1, Ordering::Relaxed);
        Receiver { shared: Arc::clone(&self.shared), seen: self.seen }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.receivers.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[tokio::test]
    async fn receivers_hear_of_changes_and_of_the_end() {
        let (sender, mut receiver) = channel(1);
        assert!(receiver.changed().now_or_never().is_none());
        assert_eq!(sender.send_replace(2), 1);
        assert!(receiver.has_changed());
        assert_eq!(receiver.changed().now_or_never(), Some(Ok(())));
        assert!(!sender.send_if_modified(|_| false));
        assert!(!receiver.has_changed());
        sender.send_modify(|value| *value += 1);
        assert_eq!(*receiver.borrow(), 3);
        assert!(receiver.has_changed(), "only a look was taken");
        assert_eq!(*receiver.borrow_and_update(), 3);
        let mut late = sender.subscribe();
        let waiting = async { *late.wait_for(|value| *value == 9).await.unwrap() };
        let (waited, ()) = tokio::join!(biased; waiting, async {
            sender.send_replace(5);
            sender.send_replace(9);
        });
        assert_eq!(waited, 9);
        drop(sender);
        assert_eq!(receiver.changed().await, Ok(()), "the last change comes before the end");
        assert_eq!(receiver.changed().await, Err(Closed));
    }

    #[tokio::test]
    async fn those_who_wait_are_woken_in_order() {
        let sender = Sender::new(0);
        let woken = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let waiting = (0..20).map(|number| {
            let (mut receiver, woken) = (sender.subscribe(), Arc::clone(&woken));
            crate::tasks::spawn("waits", async move {
                receiver.changed().await.unwrap();
                woken.lock().push(number);
            })
        });
        let waiting: Vec<_> = waiting.collect();
        tokio::task::yield_now().await;
        sender.send_replace(1);
        futures_util::future::join_all(waiting).await;
        assert_eq!(*woken.lock(), (0..20).collect::<Vec<_>>());
    }
}
