//! The clock that all members share: it began as the first leader's wall clock and then only
//! advances by monotonic time.
//!
//! A leader stamps its entries with it. A follower sets its own copy by every entry it applies, so
//! that it never runs ahead of the leader's and follows its rate; when it comes to lead, it goes on
//! from the last entry plus the time since that was applied here. A wall clock that jumps moves
//! nothing, and the time in which no member ran does not count.
//!
//! **Invariant:** a leader's clock is never set by its own entries: each was stamped a moment before
//! it is applied, so the clock would lose that moment every time.

use std::time::Instant;

use parking_lot::Mutex;

/// This member's copy of the cluster's clock.
#[derive(Debug)]
pub struct ClusterClock {
    member_id: u64,
    set: Mutex<Option<Set>>,
}

/// What the clock showed at a moment of this machine.
#[derive(Debug, Clone, Copy)]
struct Set {
    at: Instant,
    clock_ms: u64,
}

impl Set {
    fn read(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.at).as_millis();
        self.clock_ms.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
    }
}

impl ClusterClock {
    /// The clock of `member_id`, which showed `state_ms` when the state was last changed; 0 if no
    /// entry was ever stamped.
    pub(crate) fn new(member_id: u64, state_ms: u64, now: Instant) -> Self {
        let set = (state_ms > 0).then_some(Set { at: now, clock_ms: state_ms });
        ClusterClock { member_id, set: Mutex::new(set) }
    }

    /// Milliseconds on the cluster's clock; `wall_ms` begins it.
    pub fn read(&self, now: Instant, wall_ms: impl FnOnce() -> u64) -> u64 {
        let mut set = self.set.lock();
        set.get_or_insert_with(|| Set { at: now, clock_ms: wall_ms() }).read(now)
    }

    /// An entry of `leader` was applied, after which the state's clock stands at `state_ms`.
    pub(crate) fn applied(&self, leader: u64, state_ms: u64, now: Instant) {
        let mut set = self.set.lock();
        let is_own = leader == self.member_id;
        // Not before the first stamp: entries of earlier releases may have none.
        let keeps = set.is_some_and(|set| is_own && set.read(now) >= state_ms);
        if !keeps && state_ms > 0 {
            *set = Some(Set { at: now, clock_ms: state_ms });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const WALL: fn() -> u64 = || 1_000_000;

    fn later(start: Instant, milliseconds: u64) -> Instant {
        start + Duration::from_millis(milliseconds)
    }

    #[test]
    fn the_first_leader_begins_with_its_wall_clock_and_keeps_its_rate() {
        let start = crate::clock::now();
        let clock = ClusterClock::new(1, 0, start);
        assert_eq!(clock.read(start, WALL), 1_000_000);
        // Its own entries are stamped before they are applied; that must not slow it down.
        for round in 1..=10 {
            let stamp = clock.read(later(start, round * 10), || 5);
            clock.applied(1, stamp, later(start, round * 10 + 9));
        }
        assert_eq!(clock.read(later(start, 110), || 5), 1_000_110);
    }

    #[test]
    fn a_follower_follows_its_leader_in_both_directions() {
        let start = crate::clock::now();
        let clock = ClusterClock::new(1, 500, start);
        assert_eq!(clock.read(later(start, 20), WALL), 520);
        clock.applied(2, 505, later(start, 30));
        assert_eq!(clock.read(later(start, 40), WALL), 515);
        clock.applied(2, 900, later(start, 50));
        assert_eq!(clock.read(later(start, 55), WALL), 905);
    }

    #[test]
    fn a_restarted_leader_does_not_fall_behind_its_own_log() {
        let start = crate::clock::now();
        let clock = ClusterClock::new(1, 500, start);
        clock.applied(1, 800, later(start, 10));
        assert_eq!(clock.read(later(start, 15), WALL), 805);
    }
}
