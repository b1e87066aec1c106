//! What the integration tests share: members as processes, clusters of them, and script runners.

use tokio::sync::Mutex;

pub(crate) mod chance;
pub(crate) mod client;
pub(crate) mod cluster;
pub(crate) mod conformance;
pub(crate) mod load;
pub(crate) mod server;

/// Held by tests that keep the whole machine busy or measure time: one after the other.
pub(crate) static BUSY: Mutex<()> = Mutex::const_new(());
