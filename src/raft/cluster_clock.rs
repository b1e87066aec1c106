//! The clock that all members share: it began as the first leader's wall clock and then only
//! advances by monotonic time.
//!
//! A leader stamps its entries with it. A follower sets its own copy by every entry it applies, so
//! that it never runs ahead of the leader's and follows its rate; when it comes to lead, it goes on
//! from the last entry plus the time since that was applied here. A wall clock that jumps moves
//! nothing, and the time in which no member ran does not count.
//!
//! The first entry of a term has no stamp, and members that applied the same entries read different
//! times: the sooner one applied the last stamp, the further ahead it is. So what a leader promises by
//! its clock holds for its successors only once an entry that it stamped itself is applied
//! ([`ClusterClock::is_shared`]): whoever leads after it has applied that too, later.
//!
//! **Invariants:** a leader stamps nothing before it has applied an entry of its term, and with it all
//! that came before; else an old entry would set its clock back, and its own stamps forward again. A
//! leader's clock is never set by its own entries: each was stamped a moment before it is applied, so
//! the clock would lose that moment every time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

/// This member's copy of the cluster's clock.
#[derive(Debug)]
pub struct ClusterClock {
    member_id: u64,
    set: Mutex<Option<Set>>,
    /// The term of the last entry of our own that was applied since the start; 0 if none was.
    own_term: AtomicU64,
    /// The term of the last stamped entry that was applied since the start, if it was our own, else 0.
    shared_term: AtomicU64,
    /// When such an entry was applied last.
    shared_at: Mutex<Option<Instant>>,
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
        ClusterClock {
            member_id,
            set: Mutex::new(set),
            own_term: AtomicU64::new(0),
            shared_term: AtomicU64::new(0),
            shared_at: Mutex::new(None),
        }
    }

    /// Milliseconds on the cluster's clock, as far as this member knows; 0 if it never began.
    pub fn read(&self, now: Instant) -> u64 {
        self.set.lock().map_or(0, |set| set.read(now))
    }

    /// The time for an entry of the leader of `term`, which this member is; `wall_ms` begins the clock.
    /// None before the member has applied an entry of its term.
    pub fn stamp(&self, term: u64, now: Instant, wall_ms: impl FnOnce() -> u64) -> Option<u64> {
        if self.own_term.load(Ordering::Acquire) != term {
            return None;
        }
        let mut set = self.set.lock();
        Some(set.get_or_insert_with(|| Set { at: now, clock_ms: wall_ms() }).read(now))
    }

    /// Everything up to an entry of `leader` in `term` is applied.
    pub(crate) fn advanced(&self, leader: u64, term: u64) {
        if leader == self.member_id {
            self.own_term.store(term, Ordering::Release);
        }
    }

    /// Whether no later leader's clock is ahead of this member's, which leads in `term`.
    pub(crate) fn is_shared(&self, term: u64) -> bool {
        self.shared_term.load(Ordering::Acquire) == term
    }

    /// When an entry with our own stamp was applied last; none if that was not since the start.
    pub(crate) fn shared_at(&self) -> Option<Instant> {
        *self.shared_at.lock()
    }

    /// A state that stands at `state_ms` took the place of ours.
    pub(crate) fn replaced(&self, state_ms: u64, now: Instant) {
        self.shared_term.store(0, Ordering::Release);
        *self.set.lock() = (state_ms > 0).then_some(Set { at: now, clock_ms: state_ms });
    }

    /// A stamped entry that `leader` made in `term` was applied, after which the state's clock stands
    /// at `state_ms`.
    pub(crate) fn applied(&self, leader: u64, term: u64, state_ms: u64, now: Instant) {
        let is_own = leader == self.member_id;
        // First: whoever reads a clock that was set back must see that it is not ours any more.
        self.shared_term.store(if is_own { term } else { 0 }, Ordering::Release);
        if is_own {
            *self.shared_at.lock() = Some(now);
        }
        let mut set = self.set.lock();
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
        assert_eq!(clock.read(start), 0);
        assert_eq!(clock.stamp(1, start, WALL), None, "it has not applied an entry of its term");
        clock.advanced(1, 1);
        assert_eq!(clock.stamp(1, start, WALL), Some(1_000_000));
        // Its own entries are stamped before they are applied; that must not slow it down.
        for round in 1..=10 {
            let stamp = clock.stamp(1, later(start, round * 10), || 5).expect("it leads");
            clock.applied(1, 1, stamp, later(start, round * 10 + 9));
        }
        assert_eq!(clock.read(later(start, 110)), 1_000_110);
    }

    #[test]
    fn a_follower_follows_its_leader_in_both_directions() {
        let start = crate::clock::now();
        let clock = ClusterClock::new(1, 500, start);
        assert_eq!(clock.read(later(start, 20)), 520);
        clock.applied(2, 1, 505, later(start, 30));
        assert_eq!(clock.read(later(start, 40)), 515);
        clock.applied(2, 1, 900, later(start, 50));
        assert_eq!(clock.read(later(start, 55)), 905);
    }

    #[test]
    fn a_restarted_leader_does_not_fall_behind_its_own_log() {
        let start = crate::clock::now();
        let clock = ClusterClock::new(1, 500, start);
        clock.applied(1, 1, 800, later(start, 10));
        assert_eq!(clock.read(later(start, 15)), 805);
    }

    /// Found by seed 5024 of the simulation: the clock leapt, and a lease ended too early.
    #[test]
    fn a_new_leader_stamps_nothing_before_it_has_caught_up() {
        let start = crate::clock::now();
        let clock = ClusterClock::new(1, 0, start);
        clock.applied(2, 3, 5000, start);
        // It is elected a while later, with an entry of the old leader still to apply.
        assert_eq!(clock.stamp(4, later(start, 1500), WALL), None);
        clock.applied(2, 3, 5600, later(start, 1600));
        clock.advanced(2, 3);
        assert_eq!(clock.stamp(4, later(start, 1600), WALL), None);
        clock.advanced(1, 4);
        let stamp = clock.stamp(4, later(start, 1610), WALL);
        assert_eq!(stamp, Some(5610));
        clock.applied(1, 4, 5610, later(start, 1700));
        assert_eq!(clock.read(later(start, 1700)), 5700);
        assert_eq!(clock.stamp(5, later(start, 1700), WALL), None, "that is another term");
    }

    /// A member that has applied nothing yet must not take the wall's time for the cluster's.
    #[test]
    fn a_look_at_the_clock_does_not_begin_it() {
        let start = crate::clock::now();
        let clock = ClusterClock::new(1, 0, start);
        assert_eq!(clock.read(start), 0);
        clock.applied(1, 1, 700, later(start, 5));
        assert_eq!(clock.read(later(start, 10)), 705);
    }
    /// Found by seed 9812: a leader that came back was ahead of the one whose promises it had to keep.
    #[test]
    fn a_clock_is_shared_once_its_stamp_is_applied() {
        let start = crate::clock::now();
        let (first, second) = (ClusterClock::new(1, 0, start), ClusterClock::new(2, 0, start));
        // The last entry of the first leader is committed by the second one, seconds later.
        first.applied(1, 1, 5000, start);
        second.applied(1, 1, 5000, later(start, 3000));
        second.advanced(2, 2);
        assert!(!second.is_shared(2));
        let stamp = second.stamp(2, later(start, 3000), WALL).expect("it leads");
        second.applied(2, 2, stamp, later(start, 3001));
        first.applied(2, 2, stamp, later(start, 3002));
        assert!(second.is_shared(2));
        assert!(first.read(later(start, 4000)) <= second.read(later(start, 4000)));
        // A deposed leader that catches up is set back, and must not answer by that.
        second.applied(1, 3, stamp + 5, later(start, 5000));
        assert!(!second.is_shared(2));
    }

    #[test]
    fn a_snapshot_brings_its_clock() {
        let start = crate::clock::now();
        let clock = ClusterClock::new(1, 9000, start);
        clock.replaced(7000, start);
        assert_eq!(clock.read(later(start, 5)), 7005);
    }
}
