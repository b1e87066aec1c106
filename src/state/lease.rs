//! Leases: how long each lives, and which keys go with it.
//!
//! A lease ends at a time of the state's clock, and each renewal moves that end. The state itself
//! ends no lease: a leader that sees the end pass proposes it, and names the end that it saw, so
//! that a renewal which the log orders before wins.
//!
//! Which keys hang on a lease is told by their newest pairs and found again when a state is opened.
//!
//! **Invariant:** an attached key is live, and its pair names its lease.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use super::State;
use super::answer::LeaseTerm;
use super::error::RequestError;
use super::renewals::Renewals;
use super::schema::{self, damaged};
use super::snapshot::StoredPair;
use super::write::Pending;
use crate::limits::LEASE_TTL_SECONDS_MAX;
use crate::pb::etcdserverpb::LeaseGrantRequest;
use crate::storage::{Backend, StorageError};

/// One lease.
#[derive(Debug)]
pub struct Lease {
    ttl_seconds: i64,
    expires_at_ms: u64,
    /// When its end was set last, counted over all leases.
    set: u64,
    keys: BTreeSet<Arc<[u8]>>,
}

impl Lease {
    /// What it was granted for, in seconds.
    pub fn ttl_seconds(&self) -> i64 {
        self.ttl_seconds
    }

    /// When it ends on the state's clock, in milliseconds, unless it is renewed.
    pub fn expires_at_ms(&self) -> u64 {
        self.expires_at_ms
    }

    /// The keys that go with it, in order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.keys.iter().map(|key| &**key)
    }

    /// What it has now; `id` is its own.
    pub(super) fn term(&self, id: i64) -> LeaseTerm {
        LeaseTerm { id, ttl_seconds: self.ttl_seconds, expires_at_ms: self.expires_at_ms }
    }

    /// Lives for a whole TTL from `now_ms` on, or as long as it did.
    fn renew(&mut self, now_ms: u64, set: u64) {
        self.expires_at_ms = self.expires_at_ms.max(end_of(now_ms, self.ttl_seconds));
        self.set = set;
    }
}

/// All leases.
#[derive(Debug, Default)]
pub(super) struct Leases {
    pub(super) leases: BTreeMap<i64, Lease>,
    /// The lease of each attached key.
    attached: BTreeMap<Arc<[u8]>, i64>,
    /// How many ends were set.
    sets: u64,
    pub(super) renewals: Renewals,
}

impl Leases {
    /// Adds a lease without keys.
    fn add(&mut self, term: LeaseTerm) {
        let LeaseTerm { id, ttl_seconds, expires_at_ms } = term;
        self.sets += 1;
        let lease = Lease { ttl_seconds, expires_at_ms, set: self.sets, keys: BTreeSet::new() };
        self.leases.insert(id, lease);
    }

    /// Renews a lease if it is there, and tells how long it lives now.
    pub(super) fn renew(&mut self, id: i64, now_ms: u64) -> Option<LeaseTerm> {
        let lease = self.leases.get_mut(&id)?;
        self.sets += 1;
        lease.renew(now_ms, self.sets);
        Some(lease.term(id))
    }

    /// Attaches `key`, which is being put, to a lease that is there, or to none if the id is 0.
    pub(super) fn attach(&mut self, key: &[u8], lease_id: i64) {
        if lease_id == 0 {
            return self.detach(key);
        }
        if self.attached.get(key) == Some(&lease_id) {
            return;
        }
        self.detach(key);
        let key: Arc<[u8]> = key.into();
        let lease = self.leases.get_mut(&lease_id).expect("a put names a lease that is there");
        lease.keys.insert(Arc::clone(&key));
        self.attached.insert(key, lease_id);
    }

    /// Takes `key` off its lease, if it has one.
    pub(super) fn detach(&mut self, key: &[u8]) {
        if self.attached.is_empty() {
            return;
        }
        let Some(lease_id) = self.attached.remove(key) else { return };
        if let Some(lease) = self.leases.get_mut(&lease_id) {
            lease.keys.remove(key);
        }
    }

    /// Drops a lease; its keys, in order, must be deleted at once.
    pub(super) fn remove(&mut self, lease_id: i64) -> Option<BTreeSet<Arc<[u8]>>> {
        self.leases.remove(&lease_id).map(|lease| lease.keys)
    }

    /// The leases in `backend`, still without their keys.
    pub(super) fn read<B: Backend>(backend: &B) -> Result<Self, StorageError> {
        let (start, end) = schema::lease_keys();
        let mut leases = Leases::default();
        let mut torn = false;
        backend.scan(start, end, &mut |key, value| {
            let Some((id, (ttl_seconds, expires_at_ms))) =
                schema::lease_id(key).zip(schema::decode_lease(value))
            else {
                torn = true;
                return ControlFlow::Break(());
            };
            leases.add(LeaseTerm { id, ttl_seconds, expires_at_ms });
            ControlFlow::Continue(())
        })?;
        if torn {
            return Err(damaged("a lease is malformed"));
        }
        leases.read_renewals(backend)?;
        Ok(leases)
    }

    /// Takes note of a record, in revision order: the newest one of a key decides.
    pub(super) fn restore(&mut self, key: &[u8], lease_id: i64) {
        if lease_id == 0 {
            self.attached.remove(key);
        } else {
            self.attached.insert(key.into(), lease_id);
        }
    }

    /// Gives the leases their keys, after all records were shown.
    pub(super) fn finish_reading(&mut self) -> Result<(), StorageError> {
        for (key, lease_id) in &self.attached {
            let lease = self.leases.get_mut(lease_id);
            let lease =
                lease.ok_or_else(|| damaged(format!("a key's lease {lease_id:x} is not there")))?;
            lease.keys.insert(Arc::clone(key));
        }
        Ok(())
    }
}

/// A lease as it is stored.
pub(super) fn stored(term: &LeaseTerm) -> StoredPair {
    (schema::lease_key(term.id), schema::encode_lease(term.ttl_seconds, term.expires_at_ms))
}

impl<B: Backend> State<B> {
    /// The lease with this id.
    pub fn lease(&self, lease_id: i64) -> Option<&Lease> {
        self.leases.leases.get(&lease_id)
    }

    /// All leases in the order of their ids.
    pub fn leases(&self) -> impl Iterator<Item = LeaseTerm> {
        self.leases.leases.iter().map(|(&id, lease)| lease.term(id))
    }

    /// The ids of all leases in the order in which they end; of one millisecond, that in which their
    /// ends were set, as far as this process has seen it.
    pub fn lease_ids_by_end(&self) -> Vec<i64> {
        let ends =
            self.leases.leases.iter().map(|(&id, lease)| (lease.expires_at_ms, lease.set, id));
        let mut ends: Vec<_> = ends.collect();
        ends.sort_unstable();
        ends.into_iter().map(|(_, _, id)| id).collect()
    }

    pub(super) fn leases_mut(&mut self) -> &mut Leases {
        &mut self.leases
    }

    pub(super) fn grant_lease(
        &mut self,
        request: &LeaseGrantRequest,
        pending: &mut Pending,
    ) -> Result<LeaseTerm, RequestError> {
        let &LeaseGrantRequest { id, ttl: ttl_seconds } = request;
        if id == 0 {
            // As in etcd: the id of no lease is none that can be granted.
            return Err(RequestError::LeaseNotFound);
        }
        if ttl_seconds > LEASE_TTL_SECONDS_MAX {
            return Err(RequestError::LeaseTtlTooLarge);
        }
        if self.leases.leases.contains_key(&id) {
            return Err(RequestError::LeaseExists);
        }
        // The least TTL is a setting of the proposer; here it only has to be a time.
        let ttl_seconds = ttl_seconds.max(1);
        let expires_at_ms = end_of(self.time_unix_ms, ttl_seconds);
        let term = LeaseTerm { id, ttl_seconds, expires_at_ms };
        self.leases.add(term);
        let (key, value) = stored(&term);
        pending.facts.put(key, value);
        Ok(term)
    }

    /// Renews those of the leases that are there.
    pub(super) fn renew_leases(&mut self, ids: &[i64], pending: &mut Pending) -> Vec<LeaseTerm> {
        let mut renewed = Vec::with_capacity(ids.len());
        for &id in ids {
            renewed.extend(self.leases.renew(id, self.time_unix_ms));
        }
        let index = self.applied.expect("an entry is being applied").index;
        let leases = &mut self.leases;
        leases.renewals.add(index, self.time_unix_ms, &renewed, pending);
        leases.fold_renewals(renewed.len(), pending);
        renewed
    }
}

/// When a lease ends that lives for a whole TTL from `now_ms` on.
pub(super) fn end_of(now_ms: u64, ttl_seconds: i64) -> u64 {
    now_ms.saturating_add(ttl_seconds.unsigned_abs().saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::quorate::command::command::Body;
    use crate::pb::quorate::command::{Command, LeaseRenew};
    use crate::state::{Options, Position};
    use crate::storage::memory::Memory;

    /// LeaseLeases told leases that were granted within a millisecond in the order of their ids;
    /// etcd, which counts nanoseconds, in that of their grants.
    #[test]
    fn leases_of_one_millisecond_end_in_the_order_of_their_grants_and_renewals() {
        let options = Options { value_cache_bytes: 0 };
        let mut state = State::open(Arc::new(Memory::new()), options).unwrap();
        let grant = |id| Body::LeaseGrant(LeaseGrantRequest { id, ttl: 30 });
        let renew = |id| Body::LeaseRenew(LeaseRenew { ids: vec![id] });
        let shorter = Body::LeaseGrant(LeaseGrantRequest { id: 9, ttl: 10 });
        let bodies = [grant(7), grant(3), grant(5), renew(3), shorter];
        let commands = bodies.map(|body| Command { body: Some(body) });
        state.apply(Position { index: 1, term: 1, leader: 1 }, 1_000, &commands).unwrap();
        assert_eq!(state.lease_ids_by_end(), [9, 7, 5, 3]);
    }
}
