//! Renewals as they lie in the storage: in the order of the log, not with their leases.
//!
//! A lease's own record tells its end as it was at some time; renewals since then stand by the
//! dozen in records of the entries that brought them. So a renewal costs eight bytes at the end of
//! the storage instead of a record in the midst of it.
//!
//! ```text
//! mrenew/ <index> <n>  →  <clock> <id> <id> …        up to IDS_MAX ids of one log entry
//!
//!   oldest ─────────── through ─────────── newest    when there are too many:
//!   └─ write the leases whose      └─ these stay     1. step by step, write such leases
//!      last renewal is here                          2. step by step, remove these records
//! ```
//! A lease that is renewed all the time has its last renewal among the newer ones, so that its own
//! record is hardly ever written.
//!
//! **Invariant:** the end of a lease is the latest that its own record and the renewals of its id
//! give. An older lease with the same id does no harm, for the clock never runs backwards: its
//! renewals are from before the grant.

use std::collections::VecDeque;
use std::ops::{Bound, ControlFlow};

use super::answer::LeaseTerm;
use super::lease::{Leases, end_of, stored};
use super::schema::{self, damaged};
use super::write::Pending;
use crate::storage::{Backend, StorageError};

/// Ids in one record: no entry of the storage may be long, see `records`.
const IDS_MAX: usize = 63;
/// Bytes of renewals from which on the older half is folded into the leases: so many at least,
const BYTES_MAX: usize = 2 * 1024 * 1024;
/// and so many for each lease. Some renewals of each fit then, of which the newest ones count.
const BYTES_MAX_PER_LEASE: usize = 32;
/// What a record costs beyond its ids, roughly.
const RECORD_OVERHEAD_BYTES: usize = 96;
/// Writes of one step of a fold, beside two for each new id: it ends before much is added.
const STEP_WRITES: usize = 128;
/// Leases that one step of a fold looks at for each of its writes.
const STEP_LOOKS_PER_WRITE: usize = 8;

/// The records of one log entry.
#[derive(Debug, Clone, Copy)]
struct Entry {
    index: u64,
    time_unix_ms: u64,
    records: u32,
    bytes: u32,
}

/// What renewals are stored.
#[derive(Debug)]
pub(super) struct Renewals {
    /// Oldest first.
    entries: VecDeque<Entry>,
    bytes: usize,
    bytes_max: usize,
    fold: Option<Fold>,
}

/// A fold of the oldest entries.
#[derive(Debug, Clone, Copy)]
struct Fold {
    /// The last of them.
    through: Entry,
    /// After which lease to go on; none before the first.
    after: Option<i64>,
    is_written: bool,
}

impl Default for Renewals {
    fn default() -> Self {
        Renewals { entries: VecDeque::new(), bytes: 0, bytes_max: BYTES_MAX, fold: None }
    }
}

impl Renewals {
    /// Stores that the log entry at `index` brought these renewals at `time_unix_ms`.
    pub(super) fn add(
        &mut self,
        index: u64,
        time_unix_ms: u64,
        renewed: &[LeaseTerm],
        pending: &mut Pending,
    ) {
        for renewed in renewed.chunks(IDS_MAX) {
            let number = match self.entries.back() {
                Some(last) if last.index == index => last.records,
                _ => 0,
            };
            let value = schema::encode_renewals(time_unix_ms, renewed.iter().map(|term| term.id));
            self.count(index, time_unix_ms, value.len());
            pending.facts.put(schema::renewals_key(index, number), value);
        }
    }

    /// Takes note of a stored record.
    fn count(&mut self, index: u64, time_unix_ms: u64, value_bytes: usize) {
        let bytes = value_bytes + RECORD_OVERHEAD_BYTES;
        self.bytes += bytes;
        let bytes = u32::try_from(bytes).expect("a record is short");
        match self.entries.back_mut() {
            Some(last) if last.index == index => {
                last.records += 1;
                last.bytes += bytes;
            }
            _ => self.entries.push_back(Entry { index, time_unix_ms, records: 1, bytes }),
        }
    }

    /// Bytes that are too many when there are so many leases.
    fn bytes_max(&self, leases: usize) -> usize {
        fail::fail_point!("fold_often", |_| 2000);
        self.bytes_max.max(BYTES_MAX_PER_LEASE.saturating_mul(leases))
    }

    /// The oldest entries that make up half of the bytes, if there are too many.
    fn due(&self, leases: usize) -> Option<Fold> {
        if self.bytes <= self.bytes_max(leases) {
            return None;
        }
        // Not the newest: its entry may still be growing.
        let older = self.entries.len().saturating_sub(1);
        let mut bytes = 0;
        let through = self.entries.iter().take(older).find(|entry| {
            bytes += entry.bytes as usize;
            bytes * 2 >= self.bytes
        });
        through.map(|&through| Fold { through, after: None, is_written: false })
    }

    /// Removes up to `writes_max` records of a fold, or a few more; true if none is left.
    fn remove(&mut self, through: Entry, writes_max: usize, pending: &mut Pending) -> bool {
        let mut writes = 0;
        while let Some(&first) = self.entries.front()
            && first.index <= through.index
        {
            if writes >= writes_max {
                return false;
            }
            for number in 0..first.records {
                pending.facts.remove(schema::renewals_key(first.index, number));
            }
            writes += first.records as usize;
            self.bytes -= first.bytes as usize;
            self.entries.pop_front();
        }
        true
    }
}

impl Leases {
    /// Goes on with a fold, or begins one if it is due, after `added` renewals were stored.
    pub(super) fn fold_renewals(&mut self, added: usize, pending: &mut Pending) {
        let due = || self.renewals.due(self.leases.len());
        let Some(mut fold) = self.renewals.fold.or_else(due) else { return };
        let writes_max = STEP_WRITES + 2 * added;
        if !fold.is_written {
            fail::fail_point!("fold_before_leases");
            self.write_renewed(&mut fold, writes_max, pending);
            fail::fail_point!("fold_after_leases");
            self.renewals.fold = Some(fold);
        } else if self.renewals.remove(fold.through, writes_max, pending) {
            fail::fail_point!("fold_after_removal");
            self.renewals.fold = None;
        }
    }

    /// Writes some of the leases that were renewed last by the entries of a fold.
    fn write_renewed(&self, fold: &mut Fold, writes_max: usize, pending: &mut Pending) {
        let first_ms = self.renewals.entries.front().map_or(0, |first| first.time_unix_ms);
        let last_ms = fold.through.time_unix_ms;
        let from = fold.after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut leases = self.leases.range((from, Bound::Unbounded));
        let mut writes = 0;
        for _ in 0..writes_max * STEP_LOOKS_PER_WRITE {
            let Some((&id, lease)) = leases.next() else {
                fold.is_written = true;
                return;
            };
            fold.after = Some(id);
            // Older ones have a record, newer ones a renewal that stays.
            let bounds = [first_ms, last_ms].map(|at_ms| end_of(at_ms, lease.ttl_seconds()));
            if (bounds[0]..=bounds[1]).contains(&lease.expires_at_ms()) {
                let (key, value) = stored(&lease.term(id));
                pending.facts.put(key, value);
                writes += 1;
                if writes == writes_max {
                    return;
                }
            }
        }
    }

    /// Renews the leases, which are read already, as `backend` tells.
    pub(super) fn read_renewals<B: Backend>(&mut self, backend: &B) -> Result<(), StorageError> {
        let (start, end) = schema::renewals_keys();
        let mut torn = false;
        backend.scan(start, end, &mut |key, value| {
            let Some((index, (time_unix_ms, ids))) =
                schema::renewals_index(key).zip(schema::decode_renewals(value))
            else {
                torn = true;
                return ControlFlow::Break(());
            };
            self.renewals.count(index, time_unix_ms, value.len());
            for id in ids {
                // Some are gone.
                self.renew(id, time_unix_ms);
            }
            ControlFlow::Continue(())
        })?;
        if torn { Err(damaged("a record of renewals is malformed")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pb::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest};
    use crate::pb::quorate::command::command::Body;
    use crate::pb::quorate::command::{Command, LeaseRenew};
    use crate::state::{Options, Position, State};
    use crate::storage::memory::Memory;

    fn open(backend: &Arc<Memory>) -> State<Memory> {
        State::open(Arc::clone(backend), Options { value_cache_bytes: 0 }).unwrap()
    }

    fn apply(state: &mut State<Memory>, time_unix_ms: u64, bodies: Vec<Body>) {
        let index = state.applied().map_or(1, |at| at.index + 1);
        let at = Position { index, term: 1, leader: 1 };
        let commands: Vec<Command> =
            bodies.into_iter().map(|body| Command { body: Some(body) }).collect();
        state.apply(at, time_unix_ms, &commands).unwrap();
    }

    fn draw(random: &mut fastrand::Rng, leases: i64) -> Body {
        let id = random.i64(1..=leases);
        match random.u32(..20) {
            0 => Body::LeaseRevoke(LeaseRevokeRequest { id }),
            1..5 => Body::LeaseGrant(LeaseGrantRequest { id, ttl: random.i64(1..9) }),
            _ => {
                let some = random.i64(1..150);
                let ids = (0..some).map(|_| random.i64(1..=leases)).collect();
                Body::LeaseRenew(LeaseRenew { ids })
            }
        }
    }

    fn stored_keys(backend: &Memory) -> usize {
        let (start, end) = schema::renewals_keys();
        let mut keys = 0;
        let mut visit = |_: &[u8], _: &[u8]| {
            keys += 1;
            ControlFlow::Continue(())
        };
        backend.scan(start, end, &mut visit).unwrap();
        keys
    }

    #[test]
    fn leases_read_back_after_every_entry_whatever_is_folded() {
        let seed = std::env::var("QUORATE_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        eprintln!("QUORATE_SEED={seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let backend = Arc::new(Memory::new());
        let (leases, bytes_max) = (1500, 20_000);
        let mut state = open(&backend);
        let (mut clock_ms, mut folds, mut keys_max) = (1000, 0, 0);
        for _ in 0..3000 {
            clock_ms += random.u64(..50);
            state.leases_mut().renewals.bytes_max = bytes_max;
            let was_folding = state.leases_mut().renewals.fold.is_some();
            let bodies = (0..random.u32(1..4)).map(|_| draw(&mut random, leases)).collect();
            apply(&mut state, clock_ms, bodies);
            let is_folding = state.leases_mut().renewals.fold.is_some();
            folds += u32::from(was_folding && !is_folding);
            let again = open(&backend);
            assert!(state.leases().eq(again.leases()), "what is stored tells the same leases");
            let keys = stored_keys(&backend);
            keys_max = keys_max.max(keys);
            let counted: u32 = again.leases.renewals.entries.iter().map(|one| one.records).sum();
            assert_eq!(keys, counted as usize);
            if random.u32(..100) == 0 {
                state = again;
            }
        }
        assert!(folds > 10, "{folds} folds");
        let bytes_max = bytes_max.max(BYTES_MAX_PER_LEASE * 1500);
        assert!(keys_max <= 3 * bytes_max / RECORD_OVERHEAD_BYTES, "{keys_max} records");
        eprintln!("{folds} folds, {keys_max} records at most");
    }

    #[test]
    fn a_lease_that_is_renewed_all_the_time_has_its_record_written_seldom() {
        let backend = Arc::new(Memory::new());
        let mut state = open(&backend);
        let ids: Vec<i64> = (1..=1000).collect();
        let grant = |&id: &i64| Body::LeaseGrant(LeaseGrantRequest { id, ttl: 10 });
        apply(&mut state, 0, ids.iter().map(grant).collect());
        state.leases_mut().renewals.bytes_max = 0;
        for round in 1..100 {
            let ids = ids.clone();
            apply(&mut state, round * 3000, vec![Body::LeaseRenew(LeaseRenew { ids })]);
        }
        let end_of_grant = schema::encode_lease(10, 10_000);
        for id in ids {
            let stored = backend.get(&schema::lease_key(id)).unwrap();
            assert_eq!(stored.as_ref(), Some(&end_of_grant));
        }
        assert!(open(&backend).leases().eq(state.leases()));
        assert!(stored_keys(&backend) <= 100, "old renewals go");
    }
}
