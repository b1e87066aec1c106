//! The one place where tasks and threads begin: each has a name, and a panic in any stops the process.
//!
//! A member that lost one of its loops would answer wrongly or never; it is safer dead, for its
//! peers go on and a supervisor starts it again.
//!
//! A simulation runs several members in one process. What begins inside of a [`Scope`] belongs to it:
//! blocking work and workers are tasks there, and what would end the process ends the scope.

use std::any::Any;
use std::future::Future;
use std::panic::{self, AssertUnwindSafe};
use std::thread;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::runtime::Builder;
use tokio::task::JoinHandle;

mod scope;
pub mod watch;

pub use scope::{Scope, Surroundings};

/// Runs `future` on the current runtime under `name`; its panic ends the process.
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match Scope::current() {
        Some(scope) => scope.spawn(name, future),
        None => spawn_here(guarded(name, future)),
    }
}

/// Runs `work` where it may block, and resolves to what it returns.
pub fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    match Scope::current() {
        Some(scope) => scope.blocking(work),
        None => tokio::task::spawn_blocking(work),
    }
}

/// Runs `future` on an own thread called `name`, where it may block; its panic ends the process.
///
/// # Panics
/// If the system refuses another thread.
pub fn worker(name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
    if let Some(scope) = Scope::current() {
        drop(scope.spawn(name, future));
        return;
    }
    let runtime = Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime without IO needs nothing from the system");
    drop(thread(name, move || runtime.block_on(future)));
}

/// Lets a worker rest, to the microsecond.
pub async fn rest(pause: Duration) {
    if Scope::current().is_some() {
        tokio::time::sleep(pause).await;
    } else {
        thread::sleep(pause);
    }
}

/// Runs `work` on an own thread called `name`; its panic ends the process.
///
/// # Panics
/// If the system refuses another thread.
pub fn thread<T: Send + 'static>(
    name: impl Into<String>,
    work: impl FnOnce() -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let name = name.into();
    let reason = name.clone();
    thread::Builder::new()
        .name(name)
        .spawn(move || match panic::catch_unwind(AssertUnwindSafe(work)) {
            Ok(output) => output,
            Err(_) => stop(&reason),
        })
        .expect("the system allows another thread")
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that spawns tasks")]
fn spawn_here<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future)
}

async fn guarded<F: Future>(name: &'static str, future: F) -> F::Output {
    match AssertUnwindSafe(future).catch_unwind().await {
        Ok(output) => output,
        Err(panic) => match Scope::current() {
            Some(scope) => {
                scope.exit(&format!("task {name} panicked: {}", said(&*panic)));
                std::future::pending().await
            }
            None => stop(name),
        },
    }
}

/// What a panic said.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text")
}

/// Ends the process after a panic, which the panic hook has printed already.
fn stop(name: &str) -> ! {
    tracing::error!(task = name, "a task panicked; the member stops");
    std::process::exit(EXIT_PANIC)
}

/// Exit code after a panic, as the Rust runtime's own.
const EXIT_PANIC: i32 = 101;
