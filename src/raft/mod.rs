//! Consensus: the only folder that names openraft.
//!
//! A member's writes become entries of one replicated log. openraft decides (elections, what is
//! committed, whom to send what); this folder gives it a disk ([`log_store`] over [`crate::wal`]), a
//! network (`network`, `service`) and a state machine, and gives the rest of the member a small
//! [`Node`]: propose an entry, run a read round, hand leadership over.
//!
//! ```text
//!   member ── write/read_index ──► Node ──► openraft ──► LogStore ──► wal
//!      ▲                                      │  ▲
//!      │ Observer                             ▼  └── Network / PeerService ── other members
//!      └────────────────────────────── StateMachine ──► state::State
//! ```
//!
//! Outcomes of commands do not travel through openraft. Every member applies every entry, computes
//! every outcome, and tells its [`Observer`], which knows the clients that wait.
//!
//! **Invariants:** nothing is applied that is not on this member's disk; a write is retried only if
//! it certainly reached no log; every call between members carries and checks their identity.

use std::time::Duration;

use crate::state::{Applied, Event, State};
use crate::storage::Backend;

mod checkpoints;
mod cluster_clock;
pub mod codec;
mod confirm;
mod contact;
mod home;
mod line;
mod log_hold;
pub mod log_store;
mod network;
mod newcomer;
mod node;
pub mod peers;
mod ring;
mod runtime;
mod service;
mod shared;
mod slow_disk;
mod snapshot;
mod state_machine;
mod traffic;
pub mod types;
mod wire;

pub use cluster_clock::ClusterClock;
pub use home::{SledHome, Stage, StateHome};
pub use line::{Connector, Line, LineError, Tcp, Transport};
pub use newcomer::is_new;
pub use node::{Leadership, Node, NodeOptions, NodeParts, StartError};
pub use service::{Forwarded, PeerService};
pub use shared::{Shared, SoleVoter};
pub use snapshot::{Live, SnapshotData, Staged};
pub use traffic::{Counted, CountedService};

/// The state as a member keeps it.
pub type Store = State<Box<dyn Backend>>;

/// Names a group of commands: who gathered it, in which life, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupId {
    /// The member whose clients wait.
    pub origin: u64,
    /// The origin's life.
    pub epoch: u64,
    /// The group's number in that life.
    pub sequence: u64,
}

/// Who wants to know what raft does. Called on the raft thread; must not block.
pub trait Observer: Send + Sync + 'static {
    /// A group was applied, with one outcome for each of its commands.
    fn applied(&self, group: GroupId, outcomes: Vec<Applied>);
    /// The events of one entry, in order, after the outcomes of its commands were reported.
    fn changed(&self, events: Vec<Event>);
    /// Applying `commands`, those of one entry, took so long, with all that goes with it.
    fn took(&self, commands: usize, took: Duration);
    /// The state was replaced by a snapshot, and is at `revision` now.
    fn installed(&self, revision: i64);
    /// Another member leads, or none.
    fn leader_changed(&self, leader: Option<u64>);
    /// The node cannot go on; the process must exit.
    fn fatal(&self, reason: &str);
}

/// Why an entry was not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteError {
    /// It certainly reached no log; it may be proposed again.
    NotAppended,
    /// It may or may not be applied one day.
    Unknown,
    /// This member is stopping.
    Stopped,
}
