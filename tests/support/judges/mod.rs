//! Judges: each reads a history and says what in it breaks a promise.
//!
//! All are pure. What really happened is taken from watchers of all keys ([`timeline`]): every revision
//! changes a key, so their events are the history of the store. [`revisions`] holds every write against
//! it, [`serializable`] every read, [`watch`] every watcher, [`lease`] every lease. [`linearizable`] and
//! [`append`] believe no revision: they look only at what clients wrote and read, and when.

use std::fmt;

use super::history::{Call, History};

pub(crate) mod append;
pub(crate) mod lease;
pub(crate) mod linearizable;
pub(crate) mod revisions;
pub(crate) mod serializable;
mod show;
pub(crate) mod timeline;
pub(crate) mod watch;

mod tests;

use lease::Patience;
use timeline::Timeline;

/// A violation names at most so many calls.
const CALLS_MAX: usize = 12;

/// A broken promise.
#[derive(Debug, Clone)]
pub(crate) struct Violation {
    /// The judge, and which of its rules.
    pub(crate) rule: &'static str,
    /// Where the rule comes from.
    pub(crate) source: &'static str,
    /// What was expected, and what was there.
    pub(crate) text: String,
    /// The calls involved.
    pub(crate) calls: Vec<String>,
}

impl Violation {
    /// A violation of `rule` without calls.
    pub(crate) fn new(rule: &'static str, source: &'static str, text: String) -> Violation {
        Violation { rule, source, text, calls: Vec::new() }
    }

    /// With the calls involved.
    pub(crate) fn of<'c>(mut self, calls: impl IntoIterator<Item = &'c Call>) -> Violation {
        self.calls.extend(calls.into_iter().take(CALLS_MAX).map(show::call));
        self
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.rule, self.text)?;
        for call in &self.calls {
            writeln!(f, "    {call}")?;
        }
        write!(f, "    (rule: {})", self.source)
    }
}

/// What all judges found.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) violations: Vec<Violation>,
    /// What was too hard to judge, or was not seen to its end: no pass.
    pub(crate) undecided: Vec<String>,
    /// What was checked, in words.
    pub(crate) checked: Vec<String>,
}

impl Verdict {
    /// Whether everything was judged and nothing is wrong.
    pub(crate) fn is_good(&self) -> bool {
        self.violations.is_empty() && self.undecided.is_empty()
    }

    fn add(&mut self, other: Verdict) {
        self.violations.extend(other.violations);
        self.undecided.extend(other.undecided);
        self.checked.extend(other.checked);
    }
}

impl fmt::Display for Verdict {
    /// The first violations of each rule, what is undecided, and what was checked.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = std::collections::BTreeMap::<_, usize>::new();
        for violation in &self.violations {
            let count = shown.entry(violation.rule).or_default();
            *count += 1;
            if *count <= 3 {
                writeln!(f, "VIOLATION {violation}")?;
            }
        }
        for (rule, count) in shown.iter().filter(|(_, count)| **count > 3) {
            writeln!(f, "… {} more of: {rule}", count - 3)?;
        }
        for text in &self.undecided {
            writeln!(f, "UNDECIDED {text}")?;
        }
        for text in &self.checked {
            writeln!(f, "checked {text}")?;
        }
        Ok(())
    }
}

/// What all judges find in `history`.
pub(crate) fn judge(history: &History, patience: Patience) -> Verdict {
    let (timeline, mut verdict) = Timeline::of(history);
    let (writers, found) = revisions::judge(history, &timeline);
    verdict.add(found);
    verdict.add(serializable::judge(history, &timeline));
    verdict.add(watch::judge(history, &timeline));
    verdict.add(lease::judge(history, &timeline, &writers, patience));
    verdict.add(linearizable::judge(history));
    verdict.add(append::judge(history));
    verdict
}
