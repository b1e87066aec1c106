//! What the state machine, the snapshot code and the node hold in common.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::cluster_clock::ClusterClock;
use super::log_hold::LogHold;
use super::log_store::LogStore;
use super::types::StoredMembership;
use super::{Observer, StateHome, Store};
use crate::clock;
use crate::limits;
use crate::state::{Options, Position};
use crate::storage::Backend;
use crate::tasks::watch;

/// The state and everything around it that outlives a single call.
pub struct Shared {
    /// The replicated state. Write-locked only to apply, to install a snapshot and for bounded
    /// steps of background work.
    pub state: RwLock<Store>,
    /// How a state is opened, for installing snapshots.
    pub state_options: Options,
    /// What time it is for the cluster.
    pub clock: ClusterClock,
    pub(crate) log: LogStore,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) home: Arc<dyn StateHome>,
    /// Held while a snapshot comes in: one at a time.
    pub(crate) receiving: tokio::sync::Mutex<()>,
    /// The storage of the state that a snapshot replaced, until its files are removed.
    pub(crate) replaced: Mutex<Option<Weak<Box<dyn Backend>>>>,
    pub(crate) drained: Arc<Notify>,
    /// Keeps the log for the receivers of snapshots.
    pub(crate) log_hold: Arc<LogHold>,
    applied: watch::Sender<u64>,
    /// Index up to which the state is durable for certain: the log may be dropped up to it.
    checkpointed: AtomicU64,
    sole_voter: Arc<SoleVoter>,
}

/// What a [`Shared`] is made of.
pub(crate) struct SharedParts {
    pub(crate) state: Store,
    pub(crate) state_options: Options,
    pub(crate) log: LogStore,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) home: Arc<dyn StateHome>,
    pub(crate) sole_voter: Arc<SoleVoter>,
}

impl Shared {
    pub(crate) fn new(parts: SharedParts) -> Arc<Shared> {
        let index = parts.state.applied().map_or(0, |at| at.index);
        let drained = Arc::new(Notify::new());
        let state_ms = parts.state.time_unix_ms();
        let member_id = parts.sole_voter.member_id;
        let shared = Arc::new(Shared {
            state: RwLock::new(parts.state),
            state_options: parts.state_options,
            clock: ClusterClock::new(member_id, state_ms, clock::now()),
            log: parts.log,
            observer: parts.observer,
            home: parts.home,
            receiving: tokio::sync::Mutex::new(()),
            replaced: Mutex::new(None),
            drained,
            log_hold: Arc::default(),
            applied: watch::Sender::new(index),
            // What the storage opens with is durable.
            checkpointed: AtomicU64::new(index),
            sole_voter: parts.sole_voter,
        });
        shared.watch_backlog();
        shared
    }

    /// Has the storage tell us when its queue is short again.
    pub(crate) fn watch_backlog(&self) {
        let drained = Arc::clone(&self.drained);
        let wake = Box::new(move || drained.notify_one());
        self.state.read().backend().on_drain(limits::STORAGE_BACKLOG_BYTES_MAX / 2, wake);
    }

    /// Waits while the storage has too much left to write.
    pub(crate) async fn backlog_drained(&self) {
        loop {
            let backlog = self.state.read().backend().backlog_bytes();
            if backlog <= limits::STORAGE_BACKLOG_BYTES_MAX {
                return;
            }
            self.drained.notified().await;
        }
    }

    /// Publishes that everything up to `at` is applied.
    pub(crate) fn advanced(&self, at: Position) {
        self.sole_voter.applied(at);
        self.clock.advanced(at.leader, at.term);
        self.applied.send_replace(at.index);
    }

    /// Takes note that the state up to entry `index` is durable.
    pub(crate) fn checkpointed(&self, index: u64) {
        self.checkpointed.fetch_max(index, Ordering::AcqRel);
    }

    /// The index up to which the state is durable, as far as is known.
    pub(crate) fn checkpointed_index(&self) -> u64 {
        self.checkpointed.load(Ordering::Acquire)
    }

    /// True while the disk has no room for more log.
    pub fn space_low(&self) -> bool {
        self.log.space_low()
    }

    /// The index up to which the state is applied, and news of it.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// The index up to which the state is applied.
    pub fn applied_index(&self) -> u64 {
        *self.applied.borrow()
    }
}

/// Knows when this member is the only voter and has applied all that it ever acknowledged.
///
/// Then a read of the applied state is linearizable without asking anybody: nobody else can commit
/// a write, and this member answers a write only after applying it. The log store reports each
/// membership entry *before* it can be replicated, so the permission ends before any other member
/// could act on a new membership.
#[derive(Debug)]
pub struct SoleVoter {
    member_id: u64,
    /// The term in the vote that was stored when the process began; entries of later terms that
    /// this member leads prove that everything before them is applied.
    boot_term: AtomicU64,
    membership: Mutex<EffectiveMembership>,
    granted: AtomicBool,
}

#[derive(Debug, Default)]
struct EffectiveMembership {
    /// Whether anything is known: before that, and after a truncation that took the membership
    /// away, nobody reads alone.
    known: bool,
    index: u64,
    only_me: bool,
}

impl SoleVoter {
    /// Of `member_id`; nothing is known yet.
    pub fn new(member_id: u64) -> Self {
        SoleVoter {
            member_id,
            boot_term: AtomicU64::new(0),
            membership: Mutex::default(),
            granted: AtomicBool::new(false),
        }
    }

    pub(crate) fn booted_at(&self, term: u64) {
        self.boot_term.store(term, Ordering::Release);
    }

    /// The membership that raft recovered at start; the log's own reports are newer and win.
    pub(crate) fn membership_recovered(&self, stored: &StoredMembership) {
        if !self.membership.lock().known {
            self.membership_changed(stored);
        }
    }

    /// A membership took effect in the log, applied or not.
    pub(crate) fn membership_changed(&self, stored: &StoredMembership) {
        let mut membership = self.membership.lock();
        self.granted.store(false, Ordering::SeqCst);
        membership.known = true;
        membership.index = stored.log_id().as_ref().map_or(0, |log_id| log_id.index());
        let voters: BTreeSet<u64> = stored.voter_ids().collect();
        membership.only_me = voters.len() == 1 && voters.contains(&self.member_id);
    }

    /// The entry at `at` is applied.
    fn applied(&self, at: Position) {
        if self.granted.load(Ordering::Relaxed) {
            return;
        }
        let membership = self.membership.lock();
        let own_term = at.leader == self.member_id
            && at.term > self.boot_term.load(Ordering::Acquire)
            && at.index >= membership.index;
        if membership.only_me && own_term {
            self.granted.store(true, Ordering::SeqCst);
        }
    }

    /// Whether the applied state may be read at once.
    pub fn granted(&self) -> bool {
        self.granted.load(Ordering::SeqCst)
    }
}
