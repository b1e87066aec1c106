//! A lease lives as long as its holder was told, and not much longer; its keys vanish together.
//!
//! Rules: nobody sees a lease end before its TTL has passed since its last acknowledged renewal was asked
//! for; nobody sees it live on, long after the last renewal that was asked for; a lease that ended is
//! not renewed. That all keys vanish at once, and no other, is checked in `revisions`.
//! Source: etcd API guarantees of leases (a lease is never expired before its TTL).

use std::collections::BTreeMap;
use std::time::Duration;

use super::revisions::{Seen, Writer, Writers};
use super::timeline::Timeline;
use super::{Verdict, Violation, show};
use crate::support::history::{Call, History, Op, Outcome, Reply};

const SOURCE: &str =
    "etcd API guarantees: a lease lives at least its TTL after its last keep-alive";

/// How exactly leases are to end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// How much too early may be: for clocks that round.
    pub(crate) early: Duration,
    /// How much later than its TTL a lease may end: elections, and the longest time without a leader.
    pub(crate) late: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { early: Duration::ZERO, late: Duration::from_secs(30) }
    }
}

/// What is known of one lease.
#[derive(Debug, Default)]
struct Lease<'h> {
    /// Acknowledged grant and renewals: when asked for, and the call.
    renewals: Vec<(Duration, &'h Call)>,
    /// The latest moment at which it may have been renewed, and the TTL.
    last: Duration,
    ttl: Duration,
    /// Somebody asked to revoke it.
    is_revoked: bool,
    /// Answers that it is not there.
    gone: Vec<&'h Call>,
    /// The revision at which it expired.
    expired_at: Option<i64>,
}

impl Lease<'_> {
    /// Until when it lives at least, as far as was told before `time`, and who was told.
    fn deadline(&self, time: Duration) -> Option<(Duration, &Call)> {
        let told = self.renewals.iter().filter(|(at, _)| *at < time);
        told.max_by_key(|(at, _)| *at).map(|(at, call)| (*at + self.ttl, *call))
    }
}

/// Judges all leases.
pub(crate) fn judge(
    history: &History,
    timeline: &Timeline,
    writers: &Writers<'_>,
    patience: Patience,
) -> Verdict {
    let mut leases = leases(history);
    for (revision, writer) in writers {
        if let Writer::Expiry(id) = writer {
            leases.entry(*id).or_default().expired_at = Some(*revision);
        }
    }
    let (seen, mut verdict) = (Seen::of(history), Verdict::default());
    for (id, lease) in &leases {
        check_early(*id, lease, &seen, patience, &mut verdict);
        check_revival(*id, lease, &seen, &mut verdict);
    }
    check_late(history, timeline, &leases, patience, &mut verdict);
    let expired = leases.values().filter(|lease| lease.expired_at.is_some()).count();
    let renewals: usize = leases.values().map(|lease| lease.renewals.len()).sum();
    verdict.checked.push(format!(
        "{} leases, {renewals} acknowledged renewals, {expired} ended with keys",
        leases.len()
    ));
    verdict
}

fn leases(history: &History) -> BTreeMap<i64, Lease<'_>> {
    let mut leases = BTreeMap::<i64, Lease<'_>>::new();
    for call in &history.calls {
        match (&call.op, &call.outcome) {
            (Op::Grant(_), Outcome::Ok(Reply::Grant(reply))) => {
                let lease = leases.entry(reply.id).or_default();
                lease.ttl = Duration::from_secs(reply.ttl.max(0) as u64);
                lease.renewals.push((call.called_at, call));
                lease.last = lease.last.max(call.returned_at);
            }
            (Op::KeepAlive(request), Outcome::Ok(Reply::KeepAlive(reply))) => {
                let lease = leases.entry(request.id).or_default();
                if reply.ttl > 0 {
                    lease.ttl = lease.ttl.max(Duration::from_secs(reply.ttl as u64));
                    lease.renewals.push((call.called_at, call));
                    lease.last = lease.last.max(call.returned_at);
                } else {
                    lease.gone.push(call);
                }
            }
            (Op::KeepAlive(request), Outcome::Unknown(_)) => {
                let lease = leases.entry(request.id).or_default();
                lease.last = lease.last.max(call.returned_at);
            }
            (Op::TimeToLive(request), Outcome::Ok(Reply::TimeToLive(reply))) if reply.ttl < 0 => {
                leases.entry(request.id).or_default().gone.push(call);
            }
            (Op::Revoke(request), Outcome::Ok(_) | Outcome::Unknown(_)) => {
                leases.entry(request.id).or_default().is_revoked = true;
            }
            _ => {}
        }
    }
    leases
}

/// Nobody sees it gone while it must live.
fn check_early(id: i64, lease: &Lease<'_>, seen: &Seen, patience: Patience, verdict: &mut Verdict) {
    let mut check = |gone_at: Duration, how: String| {
        let Some((deadline, told)) = lease.deadline(gone_at) else { return };
        if gone_at + patience.early < deadline {
            let text = format!("lease {id} must live until {deadline:?}; at {gone_at:?} {how}");
            let rule = "lease: never ends early";
            verdict.violations.push(Violation::new(rule, SOURCE, text).of([told]));
        }
    };
    if let Some(revision) = lease.expired_at
        && let Some(at) = seen.first(revision)
    {
        check(at, format!("its keys were gone (revision {revision})"));
    }
    if !lease.is_revoked {
        for call in &lease.gone {
            check(
                call.returned_at,
                format!("the answer was that it is gone: {}", show::op(&call.op)),
            );
        }
    }
}

/// Nobody is told that it lives after somebody knew that it ended.
fn check_revival(id: i64, lease: &Lease<'_>, seen: &Seen, verdict: &mut Verdict) {
    let Some(revision) = lease.expired_at else { return };
    let Some(gone_at) = seen.first(revision) else { return };
    for (called_at, call) in &lease.renewals {
        if *called_at > gone_at {
            let text = format!("lease {id} ended at revision {revision}, known at {gone_at:?}");
            let rule = "lease: what ended is not renewed";
            verdict.violations.push(Violation::new(rule, SOURCE, text).of([*call]));
        }
    }
}

/// Nobody sees its keys long after it should have ended.
fn check_late(
    history: &History,
    timeline: &Timeline,
    leases: &BTreeMap<i64, Lease<'_>>,
    patience: Patience,
    verdict: &mut Verdict,
) {
    let mut store = timeline.start();
    timeline.events().iter().for_each(|(revision, events)| store.apply(*revision, events));
    let mut calls: Vec<&Call> = history.calls.iter().filter(|call| is_recent(call)).collect();
    calls.sort_by_key(|call| call.called_at);
    // For each call the one with the oldest revision among it and those behind it.
    let mut oldest: Vec<&Call> = calls.clone();
    for at in (1..oldest.len()).rev() {
        if oldest[at].revision() < oldest[at - 1].revision() {
            oldest[at - 1] = oldest[at];
        }
    }
    for (id, lease) in leases {
        let left = store.pairs.values().any(|kv| kv.lease == *id);
        let end = match lease.expired_at {
            Some(revision) => revision,
            None if left && !lease.is_revoked => i64::MAX,
            None => continue,
        };
        let due = lease.last + lease.ttl + patience.late;
        let from = calls.partition_point(|call| call.called_at <= due);
        if let Some(call) = oldest.get(from)
            && call.revision().is_some_and(|revision| revision < end)
        {
            let text = format!("lease {id} was due at {due:?} at the latest, but its keys stay");
            let rule = "lease: does not live on";
            verdict.violations.push(Violation::new(rule, SOURCE, text).of([*call]));
        }
    }
}

/// Whether its header revision is at least that of its begin.
fn is_recent(call: &Call) -> bool {
    let is_ordered = matches!(call.op, Op::Range(_) | Op::Put(_) | Op::Txn(_) | Op::Delete(_));
    is_ordered && !call.op.is_serializable() && call.outcome.reply().is_some()
}
