//! When each lease ends, as the leader knows it: pure, told what was applied and what time it is.
//!
//! A lease ends when its last replicated term is over, or a TTL after the last keep-alive that was
//! answered from memory, which is up to [`crate::limits::LEASE_SLACK`] later. A new leader cannot
//! know of the latter and adds the slack to every lease.

use std::collections::{BTreeSet, HashMap};

use crate::limits::LEASE_SLACK;
use crate::mutants;
use crate::state::LeaseTerm;

/// The slack on the clock.
const SLACK_MS: u64 = LEASE_SLACK.as_millis() as u64;

/// The leases of a leader and the order in which they end.
#[derive(Debug, Default)]
pub(super) struct Table {
    leases: HashMap<i64, Tracked>,
    /// At what time to look at which lease; a lease that was renewed is looked at in vain once.
    looks: BTreeSet<(u64, i64)>,
}

/// One lease. Times are on the cluster's clock in milliseconds.
#[derive(Debug, Clone, Copy)]
struct Tracked {
    ttl_seconds: i64,
    /// The end of its last replicated term.
    expires_at_ms: u64,
    /// When it really ends: not before that.
    ends_at_ms: u64,
    /// When it is looked at; none while its end is being proposed.
    look_at_ms: Option<u64>,
}

/// What a keep-alive needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeepAliveNeeds {
    /// Nothing more: the lease has this TTL in seconds from now on.
    Nothing(i64),
    /// Its end has come; it waits for that.
    End,
    /// A renewal in the log, which also tells whether the lease is there.
    Renewal,
}

impl Table {
    /// The table of a new leader.
    pub(super) fn new(terms: impl Iterator<Item = LeaseTerm>) -> Self {
        let mut looks = Vec::new();
        let track = |term: LeaseTerm| {
            let ends_at_ms = term.expires_at_ms.saturating_add(SLACK_MS);
            looks.push((ends_at_ms, term.id));
            let LeaseTerm { id, ttl_seconds, expires_at_ms } = term;
            let look_at_ms = Some(ends_at_ms);
            (id, Tracked { ttl_seconds, expires_at_ms, ends_at_ms, look_at_ms })
        };
        let leases = terms.map(track).collect();
        Table { leases, looks: looks.into_iter().collect() }
    }

    /// Whether there are no leases.
    pub(super) fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// A lease was granted; `true` if it is the next to look at.
    pub(super) fn granted(&mut self, term: &LeaseTerm) -> bool {
        let &LeaseTerm { id, ttl_seconds, expires_at_ms } = term;
        let look_at_ms = Some(expires_at_ms);
        let lease = Tracked { ttl_seconds, expires_at_ms, ends_at_ms: expires_at_ms, look_at_ms };
        self.removed(id);
        self.leases.insert(id, lease);
        self.looks.insert((expires_at_ms, id));
        self.looks.first() == Some(&(expires_at_ms, id))
    }

    /// A renewal was applied.
    pub(super) fn renewed(&mut self, term: &LeaseTerm) {
        if let Some(lease) = self.leases.get_mut(&term.id) {
            lease.expires_at_ms = term.expires_at_ms;
            // Not earlier: an old leader may have promised more from memory.
            lease.ends_at_ms = lease.ends_at_ms.max(term.expires_at_ms);
        }
    }

    /// A lease is gone.
    pub(super) fn removed(&mut self, id: i64) {
        let gone = self.leases.remove(&id);
        if let Some(look_at_ms) = gone.and_then(|lease| lease.look_at_ms) {
            self.looks.remove(&(look_at_ms, id));
        }
    }

    /// The end of a lease did not come about; it is looked at again.
    pub(super) fn stays(&mut self, id: i64) {
        if let Some(lease) = self.leases.get_mut(&id)
            && lease.look_at_ms.is_none()
        {
            lease.look_at_ms = Some(lease.ends_at_ms);
            self.looks.insert((lease.ends_at_ms, id));
        }
    }

    /// A keep-alive came; if it needs nothing more the lease lives for a TTL from `now_ms` on.
    pub(super) fn keep_alive(&mut self, id: i64, now_ms: u64) -> KeepAliveNeeds {
        // An unknown lease may have been granted by a leader that we have not heard of.
        let Some(lease) = self.leases.get_mut(&id) else { return KeepAliveNeeds::Renewal };
        if lease.look_at_ms.is_none() || lease.ends_at_ms <= now_ms {
            return KeepAliveNeeds::End;
        }
        let ttl_ms = lease.ttl_seconds.unsigned_abs().saturating_mul(1000);
        let ends_at_ms = now_ms.saturating_add(ttl_ms);
        // The age of the last replicated renewal, told by how much of its term is over.
        let is_old = ends_at_ms.saturating_sub(lease.expires_at_ms) > SLACK_MS;
        if is_old && !mutants::is_on("mutant_renew_in_memory_only") {
            return KeepAliveNeeds::Renewal;
        }
        lease.ends_at_ms = lease.ends_at_ms.max(ends_at_ms);
        KeepAliveNeeds::Nothing(lease.ttl_seconds)
    }

    /// Whether the end of a lease has come, though it is still there.
    pub(super) fn is_ending(&self, id: i64, now_ms: u64) -> bool {
        let lease = self.leases.get(&id);
        lease.is_some_and(|lease| lease.look_at_ms.is_none() || lease.ends_at_ms <= now_ms)
    }

    /// How long a lease still lives, in milliseconds.
    pub(super) fn remaining_ms(&self, id: i64, now_ms: u64) -> Option<u64> {
        self.leases.get(&id).map(|lease| lease.ends_at_ms.saturating_sub(now_ms))
    }

    /// When a lease has to be looked at.
    pub(super) fn next_look_ms(&self) -> Option<u64> {
        self.looks.first().map(|&(at_ms, _)| at_ms)
    }

    /// A lease that has ended and the end of its last term; it counts as ending from now on.
    pub(super) fn take_ended(&mut self, now_ms: u64) -> Option<(i64, u64)> {
        loop {
            let (at_ms, id) = *self.looks.first()?;
            if at_ms > now_ms {
                return None;
            }
            self.looks.pop_first();
            let lease = self.leases.get_mut(&id).expect("a removed lease is not looked at");
            if lease.ends_at_ms <= now_ms {
                lease.look_at_ms = None;
                return Some((id, lease.expires_at_ms));
            }
            lease.look_at_ms = Some(lease.ends_at_ms);
            self.looks.insert((lease.ends_at_ms, id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn term(id: i64, renewed_at_ms: u64) -> LeaseTerm {
        LeaseTerm { id, ttl_seconds: 10, expires_at_ms: renewed_at_ms + 10_000 }
    }

    #[test]
    fn a_keep_alive_is_free_while_the_renewal_is_fresh() {
        let mut table = Table::default();
        assert!(table.granted(&term(1, 0)));
        assert!(!table.granted(&term(2, 500)));
        assert_eq!(table.keep_alive(1, 1000), KeepAliveNeeds::Nothing(10));
        assert_eq!(table.keep_alive(1, 1001), KeepAliveNeeds::Renewal);
        assert_eq!(table.keep_alive(9, 0), KeepAliveNeeds::Renewal);
        // It was promised to live until 11,000.
        assert_eq!(table.take_ended(10_999), Some((2, 10_500)));
        assert_eq!(table.take_ended(10_999), None);
        assert_eq!(table.next_look_ms(), Some(11_000));
        assert_eq!(table.keep_alive(2, 10_999), KeepAliveNeeds::End);
        assert_eq!(table.keep_alive(1, 11_000), KeepAliveNeeds::End);
        assert_eq!(table.take_ended(11_000), Some((1, 10_000)));
    }

    #[test]
    fn a_new_leader_adds_the_slack_and_a_renewal_takes_nothing_back() {
        let mut table = Table::new([term(1, 0), term(2, 300)].into_iter());
        assert_eq!(table.remaining_ms(1, 1000), Some(10_000));
        table.renewed(&term(1, 400));
        assert_eq!(table.remaining_ms(1, 1000), Some(10_000));
        table.renewed(&term(1, 5000));
        assert_eq!(table.remaining_ms(1, 1000), Some(14_000));
        assert_eq!(table.take_ended(11_299), None);
        assert_eq!(table.take_ended(11_300), Some((2, 10_300)));
        table.removed(2);
        assert!(!table.is_ending(2, 20_000));
        assert_eq!(table.next_look_ms(), Some(15_000));
        table.removed(1);
        assert_eq!(table.next_look_ms(), None);
    }

    #[test]
    fn an_end_that_did_not_come_about_is_looked_at_again() {
        let mut table = Table::default();
        table.granted(&term(1, 0));
        assert_eq!(table.take_ended(10_000), Some((1, 10_000)));
        assert_eq!(table.take_ended(10_000), None);
        table.renewed(&term(1, 9000));
        assert!(table.is_ending(1, 10_000));
        table.stays(1);
        table.stays(1);
        assert!(!table.is_ending(1, 10_000));
        assert_eq!(table.next_look_ms(), Some(19_000));
    }
}
