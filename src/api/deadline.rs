//! The ends that clients set to their calls with `grpc-timeout`.
//!
//! Most calls with a deadline are answered long before it, so it costs next to nothing to have one. A
//! call is asked first; only one that has to wait takes a seat among those of its serving thread, and
//! leaves it when it is answered. One task for all of them sleeps until the first deadline, and stays
//! armed when that call has long been answered: so a call arms no timer of the runtime, for which the
//! thread would have to be woken by a system call whenever it is the first to come due.
//!
//! Other than grpc-go, which resets the stream, a call that is late ends with a status: every client
//! makes `DeadlineExceeded` of it, also one that did not look at the clock itself.
//!
//! **Invariant:** a handler whose deadline has passed is dropped. What it began goes on or is taken
//! back as if its client had gone away.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::status::Status;
use crate::{clock, tasks};

/// The deadlines of one serving thread.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    waiting: Mutex<Waiting>,
    /// A call waits for a time before the one for which the task sleeps.
    earlier: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Whom to wake, by when and by a number of their own.
    calls: BTreeMap<(Instant, u64), Waker>,
    last_number: u64,
    /// When the task wakes; none if there is no task.
    armed: Option<Instant>,
}

/// The deadline was there first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Passed;

impl From<Passed> for Status {
    fn from(_: Passed) -> Self {
        Status::late()
    }
}

impl Deadlines {
    /// What `future` comes to, if it does before `deadline`.
    ///
    /// It is not dropped here: whoever holds it has to do that.
    pub(super) async fn keep<T>(
        self: &Arc<Self>,
        deadline: Option<Instant>,
        mut future: Pin<&mut impl Future<Output = T>>,
    ) -> Result<T, Passed> {
        let Some(deadline) = deadline else { return Ok(future.await) };
        let mut seat: Option<Seat> = None;
        std::future::poll_fn(|context| {
            if let Poll::Ready(output) = future.as_mut().poll(context) {
                return Poll::Ready(Ok(output));
            }
            if clock::now() >= deadline {
                return Poll::Ready(Err(Passed));
            }
            let waker = context.waker();
            if !seat.as_ref().is_some_and(|seat| seat.waker.will_wake(waker)) {
                seat = Some(self.sit(deadline, waker.clone()));
            }
            Poll::Pending
        })
        .await
    }

    /// Resolves when `deadline` has passed, and never without one.
    pub(super) async fn passed(self: &Arc<Self>, deadline: Option<Instant>) {
        let never = std::pin::pin!(std::future::pending::<()>());
        // It cannot be but the deadline.
        self.keep(deadline, never).await.ok();
    }

    fn sit(self: &Arc<Self>, deadline: Instant, waker: Waker) -> Seat {
        let mut waiting = self.waiting.lock();
        waiting.last_number += 1;
        let key = (deadline, waiting.last_number);
        waiting.calls.insert(key, waker.clone());
        match waiting.armed {
            None => {
                waiting.armed = Some(deadline);
                tasks::spawn("deadlines", Arc::clone(self).run());
            }
            Some(armed) if deadline < armed => self.earlier.notify_one(),
            Some(_) => {}
        }
        drop(waiting);
        Seat { deadlines: Arc::clone(self), key, waker }
    }

    /// Wakes each call when its deadline passes, until none waits.
    async fn run(self: Arc<Self>) {
        while let Some(next) = self.wake_late(clock::now()) {
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                () = self.earlier.notified() => {}
            }
        }
    }

    /// Wakes those whose deadline has passed; tells the next one.
    fn wake_late(&self, now: Instant) -> Option<Instant> {
        let mut waiting = self.waiting.lock();
        while let Some(first) = waiting.calls.first_entry()
            && first.key().0 <= now
        {
            first.remove().wake();
        }
        waiting.armed = waiting.calls.first_key_value().map(|(key, _)| key.0);
        waiting.armed
    }
}

/// A call that waits.
struct Seat {
    deadlines: Arc<Deadlines>,
    key: (Instant, u64),
    waker: Waker,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let waker = self.deadlines.waiting.lock().calls.remove(&self.key);
        // Not under the lock: what it drops may have a seat, too.
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_is_late_is_told_and_nobody_else() {
        let deadlines = Arc::new(Deadlines::default());
        let start = clock::now();
        let after = |seconds| Some(start + Duration::from_secs(seconds));
        let (slow, quick) = (pin!(sleep(Duration::from_secs(9))), pin!(std::future::ready(1)));
        assert_eq!(
            deadlines.keep(Some(start), quick).await,
            Ok(1),
            "an answer that is there counts"
        );
        assert!(deadlines.waiting.lock().armed.is_none(), "and needs no timer");

        let sooner = async {
            deadlines.passed(after(2)).await;
            assert_eq!(clock::now() - start, Duration::from_secs(2));
        };
        let (late, ()) = tokio::join!(deadlines.keep(after(5), slow), sooner);
        assert_eq!((late, clock::now() - start), (Err(Passed), Duration::from_secs(5)));

        let slow = pin!(sleep(Duration::from_secs(1)));
        assert_eq!(deadlines.keep(after(u64::from(u32::MAX)), slow).await, Ok(()));
        assert!(deadlines.waiting.lock().calls.is_empty());
    }
}
