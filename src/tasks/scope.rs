//! A scope: tasks that live, pause and die together, as the tasks of one process do.
//!
//! The simulation puts each member into one. A task is in the scope in which it was spawned; while
//! it is polled or dropped, the scope is the thread's current one, so that all it begins belongs to
//! the scope, too. Without a scope, as in every real member, nothing here costs more than a look at
//! a thread-local.
//!
//! **Invariant:** after [`Scope::kill`] no task of the scope is polled any more, and none begins.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::{AbortHandle, JoinHandle};

use super::{guarded, spawn_here};

thread_local! {
    static CURRENT: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

/// What a scope sees of the world, and how the world hears of its end.
pub trait Surroundings: Send + Sync + 'static {
    /// What the scope is called in logs.
    fn name(&self) -> &str;
    /// Its wall clock, in milliseconds since the Unix epoch.
    fn unix_ms(&self) -> u64;
    /// How long the next piece of blocking work takes.
    fn blocking_time(&self) -> Duration;
    /// A real member would have ended its process, for this reason. The scope is killed already.
    fn exited(&self, reason: &str);
}

/// Tasks that live, pause and die together.
#[derive(Clone)]
pub struct Scope {
    inner: Arc<Inner>,
}

struct Inner {
    surroundings: Arc<dyn Surroundings>,
    tasks: Mutex<Tasks>,
}

#[derive(Default)]
struct Tasks {
    running: BTreeMap<u64, AbortHandle>,
    last: u64,
    is_dead: bool,
    is_paused: bool,
    /// Who was woken while the scope was paused.
    woken: Vec<Waker>,
}

impl Scope {
    /// A scope without tasks.
    pub fn new(surroundings: Arc<dyn Surroundings>) -> Scope {
        Scope { inner: Arc::new(Inner { surroundings, tasks: Mutex::default() }) }
    }

    /// What it is called in logs.
    pub fn name(&self) -> &str {
        self.inner.surroundings.name()
    }

    /// The scope of the task that runs.
    pub fn current() -> Option<Scope> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// Does `work` inside of the scope.
    pub fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        struct Leave(Option<Scope>);
        impl Drop for Leave {
            fn drop(&mut self) {
                CURRENT.replace(self.0.take());
            }
        }
        let _leave = Leave(CURRENT.replace(Some(self.clone())));
        work()
    }

    /// Runs `future` inside of the scope; its panic ends the scope.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let id = {
            let mut tasks = self.inner.tasks.lock();
            tasks.last += 1;
            tasks.last
        };
        let future = Some(Box::pin(guarded(name, future)));
        let handle = spawn_here(Scoped { future, scope: self.clone(), id });
        let mut tasks = self.inner.tasks.lock();
        if tasks.is_dead {
            handle.abort();
        }
        tasks.running.insert(id, handle.abort_handle());
        handle
    }

    /// Does `work` as a task, after the time that blocking work takes.
    pub(super) fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let time = self.inner.surroundings.blocking_time();
        self.spawn("blocking", async move {
            if time.is_zero() {
                tokio::task::yield_now().await;
            } else {
                tokio::time::sleep(time).await;
            }
            work()
        })
    }

    /// The scope's wall clock, in milliseconds since the Unix epoch.
    pub fn unix_ms(&self) -> u64 {
        self.inner.surroundings.unix_ms()
    }

    /// What ends the process elsewhere ends the scope.
    pub fn exit(&self, reason: &str) {
        if self.kill() {
            self.inner.surroundings.exited(reason);
        }
    }

    /// Ends all tasks where they stand; false if that was done before.
    pub fn kill(&self) -> bool {
        let mut tasks = self.inner.tasks.lock();
        tasks.running.values().for_each(AbortHandle::abort);
        !std::mem::replace(&mut tasks.is_dead, true)
    }

    /// Resolves once all tasks have ended and what they held is dropped.
    pub async fn gone(&self) {
        while !self.inner.tasks.lock().running.is_empty() {
            tokio::task::yield_now().await;
        }
    }

    /// Whether it was killed, or has ended itself.
    pub fn is_dead(&self) -> bool {
        self.inner.tasks.lock().is_dead
    }

    /// Stops all tasks while time goes on, or lets them go on.
    pub fn pause(&self, is_paused: bool) {
        let mut tasks = self.inner.tasks.lock();
        tasks.is_paused = is_paused;
        let woken = if is_paused { Vec::new() } else { std::mem::take(&mut tasks.woken) };
        drop(tasks);
        woken.into_iter().for_each(Waker::wake);
    }

    /// Whether a task may go on now; else it is woken when the pause ends.
    fn lets(&self, context: &Context<'_>) -> bool {
        let mut tasks = self.inner.tasks.lock();
        if tasks.is_paused {
            tasks.woken.push(context.waker().clone());
        }
        !tasks.is_paused && !tasks.is_dead
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").finish_non_exhaustive()
    }
}

/// A task of a scope.
struct Scoped<F> {
    /// None only while it is dropped.
    future: Option<Pin<Box<F>>>,
    scope: Scope,
    id: u64,
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let scope = self.scope.clone();
        match &mut self.future {
            Some(future) if scope.lets(context) => scope.enter(|| future.as_mut().poll(context)),
            _ => Poll::Pending,
        }
    }
}

impl<F> Drop for Scoped<F> {
    fn drop(&mut self) {
        let future = self.future.take();
        self.scope.enter(|| drop(future));
        self.scope.inner.tasks.lock().running.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::tasks;

    #[derive(Default)]
    struct World(Mutex<Vec<String>>);

    impl Surroundings for World {
        fn name(&self) -> &str {
            "a"
        }

        fn unix_ms(&self) -> u64 {
            7
        }

        fn blocking_time(&self) -> Duration {
            Duration::from_millis(3)
        }

        fn exited(&self, reason: &str) {
            self.0.lock().push(reason.to_owned());
        }
    }

    fn counting(ticks: &Arc<AtomicU64>) -> impl Future<Output = ()> + Send + use<> {
        let ticks = Arc::clone(ticks);
        async move {
            loop {
                tokio::time::sleep(Duration::from_millis(10)).await;
                ticks.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn scope_holds_what_its_tasks_begin_until_it_is_killed() {
        let scope = Scope::new(Arc::new(World::default()));
        let ticks = Arc::new(AtomicU64::new(0));
        let counter = counting(&ticks);
        scope.enter(|| tasks::spawn("outer", async move { tasks::spawn("inner", counter).await }));
        tokio::time::sleep(Duration::from_millis(55)).await;
        assert_eq!(ticks.load(Ordering::Relaxed), 5);
        scope.pause(true);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(ticks.load(Ordering::Relaxed), 5, "a paused task does nothing");
        scope.pause(false);
        tokio::time::sleep(Duration::from_millis(15)).await;
        assert_eq!(ticks.load(Ordering::Relaxed), 7);
        assert!(scope.kill());
        scope.gone().await;
        drop(scope.enter(|| tasks::spawn("late", counting(&ticks))));
        scope.gone().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(ticks.load(Ordering::Relaxed), 7, "a killed scope does nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn panic_ends_the_scope_and_not_the_process() {
        let world = Arc::new(World::default());
        let scope = Scope::new(Arc::clone(&world) as _);
        let blocked = scope.enter(|| tasks::blocking(|| 5));
        assert_eq!(blocked.await.unwrap(), 5);
        scope.enter(|| tasks::worker("bad", async { panic!("of {}", "course") }));
        scope.gone().await;
        assert_eq!(*world.0.lock(), ["task bad panicked: of course"]);
        assert!(scope.is_dead());
    }
}
