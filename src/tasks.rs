//! The one place where tasks and threads begin: each has a name, and a panic in any stops the process.
//!
//! A member that lost one of its loops would answer wrongly or never; it is safer dead, for its
//! peers go on and a supervisor starts it again.

use std::future::Future;
use std::panic::{self, AssertUnwindSafe};
use std::thread;

use futures_util::FutureExt;
use tokio::task::JoinHandle;

/// Runs `future` on the current runtime under `name`; its panic ends the process.
pub fn spawn<F>(name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    #[expect(clippy::disallowed_methods, reason = "this is the one place that spawns tasks")]
    tokio::spawn(async move {
        match AssertUnwindSafe(future).catch_unwind().await {
            Ok(output) => output,
            Err(_) => stop(name),
        }
    })
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

/// Ends the process after a panic, which the panic hook has printed already.
fn stop(name: &str) -> ! {
    tracing::error!(task = name, "a task panicked; the member stops");
    std::process::exit(EXIT_PANIC)
}

/// Exit code after a panic, as the Rust runtime's own.
const EXIT_PANIC: i32 = 101;
