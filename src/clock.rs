//! Where the process reads its clocks; everything below `member` gets `now` passed in.
//!
//! The monotonic clock is the runtime's, so that a test that pauses time sees one time everywhere.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::tasks::Scope;

/// The monotonic clock.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Milliseconds since the Unix epoch; 0 if the wall clock stands before it.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
pub fn unix_ms() -> u64 {
    if let Some(scope) = Scope::current() {
        return scope.unix_ms();
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
