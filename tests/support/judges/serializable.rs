//! Every read equals the store at its revision: the one asked for, or the one in its header.
//!
//! That holds for linearizable, serializable and past reads alike; how recent a linearizable one must be
//! is the business of `revisions`. Also: what was compacted is refused, and what was not is not.
//! Source: etcd API guarantees (serializable reads are stale but consistent); `RangeRequest.revision`.

use std::collections::BTreeMap;

use super::revisions::{Seen, bare};
use super::timeline::Timeline;
use super::{Verdict, Violation, show};
use crate::support::history::{Call, History, Op, Outcome, Reply};

const SOURCE: &str =
    "etcd API guarantees: a read shows the store at one revision, old as it may be";

/// Judges all reads.
pub(crate) fn judge(history: &History, timeline: &Timeline) -> Verdict {
    let mut verdict = Verdict::default();
    let mut reads = BTreeMap::<i64, Vec<&Call>>::new();
    for call in &history.calls {
        if let Some(revision) = read_at(call) {
            reads.entry(revision).or_default().push(call);
        }
    }
    let count: usize = reads.values().map(Vec::len).sum();
    let mut store = timeline.start();
    let mut check = |store: &crate::support::store::Store, calls: Vec<&Call>| {
        for call in calls {
            let wanted = store.run(&call.op).map(|(reply, _)| reply);
            let reply = call.outcome.reply().map(bare);
            if wanted.as_ref().ok() != reply.as_ref() {
                let wanted = wanted.map_or_else(|refusal| refusal, |reply| show::reply(&reply));
                let text = format!("at revision {} it is {wanted}", store.revision);
                let rule = "serializable: a read is the store at its revision";
                verdict.violations.push(Violation::new(rule, SOURCE, text).of([call]));
            }
        }
    };
    check(&store, reads.remove(&store.revision).unwrap_or_default());
    for (&revision, events) in timeline.events() {
        store.apply(revision, events);
        check(&store, reads.remove(&revision).unwrap_or_default());
    }
    verdict.checked.push(format!("{count} reads against the store at their revisions"));
    check_refusals(history, &mut verdict);
    verdict
}

/// The revision at which a call read, if it only read.
fn read_at(call: &Call) -> Option<i64> {
    let reply = call.outcome.reply()?;
    match (&call.op, reply) {
        (Op::Range(range), Reply::Range(_)) if range.revision > 0 => Some(range.revision),
        (Op::Range(_), Reply::Range(_)) => Some(reply.revision()),
        // A Txn that changed something is judged as a write, one that did not is a read.
        (Op::Txn(_), Reply::Txn(_)) | (Op::Delete(_), Reply::Delete(_)) => {
            (!super::revisions::changed(reply)).then_some(reply.revision())
        }
        _ => None,
    }
}

/// What was asked of the past is refused for a reason.
fn check_refusals(history: &History, verdict: &mut Verdict) {
    let seen = Seen::of(history);
    let compactions: Vec<(&Call, i64)> = history
        .calls
        .iter()
        .filter_map(|call| match &call.op {
            Op::Compact(compact) => Some((call, compact.revision)),
            _ => None,
        })
        .collect();
    let mut wrong = |text: String, call: &Call| {
        let rule = "serializable: the past is refused when it is gone, and only then";
        verdict.violations.push(Violation::new(rule, SOURCE, text).of([call]));
    };
    for call in &history.calls {
        let Op::Range(range) = &call.op else { continue };
        let at = range.revision;
        match &call.outcome {
            Outcome::Refused(text) if text.contains("compacted") => {
                let is_gone = |(compact, revision): &(&Call, i64)| {
                    *revision > at
                        && !matches!(compact.outcome, Outcome::Refused(_))
                        && compact.called_at <= call.returned_at
                };
                if !compactions.iter().any(is_gone) {
                    wrong(format!("nobody had compacted {at}"), call);
                }
            }
            Outcome::Refused(text) if text.contains("future") => {
                let known = seen.before(call.called_at);
                if !range.serializable && at <= known {
                    wrong(format!("{at} is not in the future: {known} was known"), call);
                }
            }
            Outcome::Ok(_) if at > 0 && !range.serializable => {
                let gone = compactions.iter().find(|(compact, revision)| {
                    *revision > at
                        && compact.outcome.reply().is_some()
                        && compact.returned_at < call.called_at
                });
                if let Some((_, revision)) = gone {
                    wrong(format!("{at} was compacted at {revision} before"), call);
                }
            }
            _ => {}
        }
    }
}
