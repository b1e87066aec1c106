//! Watches: who wants to know which change, and how it reaches them.
//!
//! The apply thread publishes the events of each log entry once and never waits. Each serving thread
//! has a [`Hub`] with the watchers of its own connections, matches without contention, and wakes
//! each of its streams once a batch.
//!
//! ```text
//!  apply thread ── Feed::publish ─┬─ window of recent events (shared, within a budget)
//!                                 └─ News ──▶ Hub ── Group ──▶ queues of streams ──▶ WatchStream
//!                                              │ ▲
//!                   watchers that are behind ──┘ └── window, or storage off the thread (catch-up)
//! ```
//! A watcher is *synced* if it has all events below the hub's next revision; then events come to it as they
//! are published. Otherwise it is *unsynced*: it begins in the past, its stream did not take an event
//! because its queue was full, it needs a previous pair that is not in memory, its thread was late and
//! news were skipped, or a snapshot replaced the state. Unsynced watchers catch up together in bounded chunks, and join.
//!
//! **Invariants:** a watcher gets every event of its range from its start on, in the order of revisions, once,
//! and all events of one revision in one delivery, until it is canceled or compaction overtakes it. Nobody
//! waits for a slow stream. What a watcher costs does not depend on those that do not match. What waits for a
//! stream or for a thread is bounded by what it takes in memory.
//!
//! - `event`: a change as all its watchers share it. `feed`: publishing, and the window.
//! - `group`, `interval`: from a key to the watchers that want it.
//! - `hub`: the watchers of one thread. `catch_up`: those that are behind. `stream`: what one client
//!   holds. `progress`: telling how far it is.

mod catch_up;
mod event;
mod feed;
mod group;
mod hub;
mod interval;
mod progress;
mod stream;

#[cfg(test)]
mod tests;

pub use catch_up::{Read, Source};
pub use event::{Batch, Events, Frame, SharedEvent};
pub use feed::{Counters, Feed, News, Totals};
pub use group::Keys;
pub use hub::Hub;
pub use stream::{CreateError, Created, Delivery, Revisions, WatchRequest, WatchStream};
