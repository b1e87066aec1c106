//! The summary of an ordeal: what was asked, what went wrong, how long nobody could write.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::Duration;

use super::faults::Kind;
use super::fleet::NoSpace;
use crate::support::history::{Call, History, Op, Outcome};

/// How many reasons of failures are shown.
const REASONS_SHOWN: usize = 8;

/// What one run did.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) members: usize,
    pub(crate) seed: u64,
    /// How long the faults and the load ran.
    pub(crate) took: Duration,
    pub(crate) phases: usize,
    pub(crate) faults: BTreeMap<Kind, usize>,
    pub(crate) no_space: NoSpace,
    /// The longest time from the end of all faults to a write at each member.
    pub(crate) longest_recovery: Duration,
    pub(crate) operations: BTreeMap<&'static str, Counts>,
    /// How often which text was the reason.
    pub(crate) reasons: BTreeMap<String, usize>,
    pub(crate) watch_streams: usize,
    pub(crate) events: usize,
    /// The longest time without an acknowledged write, faults and all, and when it began.
    pub(crate) longest_gap: (Duration, Duration),
}

/// How the operations of one kind ended.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    ok: usize,
    refused: usize,
    unknown: usize,
}

impl Report {
    /// Adds what `history` tells.
    pub(crate) fn read(&mut self, history: &History) {
        for call in &history.calls {
            let counts = self.operations.entry(kind(&call.op)).or_default();
            let (text, kind) = match &call.outcome {
                Outcome::Ok(_) => {
                    counts.ok += 1;
                    continue;
                }
                Outcome::Refused(text) => (text, "refused"),
                Outcome::Unknown(text) => (text, "unknown"),
            };
            let count = if kind == "refused" { &mut counts.refused } else { &mut counts.unknown };
            *count += 1;
            *self.reasons.entry(format!("{kind}: {text}")).or_default() += 1;
        }
        let streams = history.watches.iter().flat_map(|watched| &watched.streams);
        self.watch_streams = streams.clone().count();
        let responses = streams.flat_map(|stream| &stream.responses);
        self.events = responses.map(|(_, response)| response.events.len()).sum();
        self.longest_gap = longest_gap(&history.calls);
    }
}

/// Whether a call is an acknowledged write, for which a majority was needed: a leader may answer a
/// keep-alive alone.
pub(crate) fn is_acknowledged_write(call: &Call) -> bool {
    let is_keep_alive = matches!(call.op, Op::KeepAlive(_));
    matches!(call.outcome, Outcome::Ok(_)) && call.op.writes() && !is_keep_alive
}

fn longest_gap(calls: &[Call]) -> (Duration, Duration) {
    let writes = calls.iter().filter(|call| is_acknowledged_write(call));
    let mut times: Vec<Duration> = writes.map(|call| call.returned_at).collect();
    times.sort_unstable();
    let gaps = times.windows(2).map(|pair| (pair[1] - pair[0], pair[0]));
    gaps.max().unwrap_or_default()
}

fn kind(op: &Op) -> &'static str {
    match op {
        Op::Range(_) if op.is_serializable() => "read, serializable",
        Op::Range(range) if range.revision > 0 => "read, of the past",
        Op::Range(_) => "read, linearizable",
        Op::Put(_) => "put",
        Op::Delete(_) => "delete",
        Op::Txn(_) => "txn",
        Op::Compact(_) => "compact",
        Op::Grant(_) => "lease grant",
        Op::Revoke(_) => "lease revoke",
        Op::KeepAlive(_) => "lease keep-alive",
        Op::TimeToLive(_) => "lease time to live",
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (took, longest) = (self.took.as_secs(), self.longest_gap.0.as_secs_f64());
        let (members, seed, phases) = (self.members, self.seed, self.phases);
        writeln!(f, "{members} members, {took} s, {phases} phases, QUORATE_SEED={seed}")?;
        writeln!(f, "  {:<22} {:>9} {:>9} {:>9}", "operation", "done", "refused", "unknown")?;
        for (name, counts) in &self.operations {
            let Counts { ok, refused, unknown } = counts;
            writeln!(f, "  {name:<22} {ok:>9} {refused:>9} {unknown:>9}")?;
        }
        let mut reasons: Vec<_> = self.reasons.iter().collect();
        reasons.sort_by_key(|(_, count)| Reverse(**count));
        for (text, count) in reasons.into_iter().take(REASONS_SHOWN) {
            writeln!(f, "  {count:>9} {text}")?;
        }
        writeln!(f, "  watch: {} streams, {} events", self.watch_streams, self.events)?;
        let mut faults = String::new();
        for (kind, count) in &self.faults {
            write!(faults, "{}{kind} {count}", if faults.is_empty() { "" } else { ", " })?;
        }
        writeln!(f, "  faults: {faults}")?;
        let NoSpace { waited, ended } = self.no_space;
        writeln!(
            f,
            "  full disks: {waited} members waited for space, {ended} ended and came back"
        )?;
        writeln!(
            f,
            "  longest time without an acknowledged write: {longest:.1} s, faults of a majority included"
        )?;
        let recovery = self.longest_recovery.as_secs_f64();
        write!(
            f,
            "  longest time from the end of faults to a write at each member: {recovery:.1} s"
        )
    }
}
