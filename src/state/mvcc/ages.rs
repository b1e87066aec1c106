//! Create revisions of live keys: their bounds in a subtree, and what a search wants of them.
//!
//! Bounds cannot be taken apart: when a key that is one of them goes, its subtree finds them anew,
//! from at most as many entries or children as a node has.

/// The lowest and the highest create revision of live keys; nothing if there are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ages {
    min: i64,
    max: i64,
}

impl Default for Ages {
    fn default() -> Self {
        Ages { min: i64::MAX, max: i64::MIN }
    }
}

impl Ages {
    /// Those of one live key.
    pub(super) fn of(create: i64) -> Self {
        Ages { min: create, max: create }
    }

    /// Those of both.
    pub(super) fn and(self, other: Self) -> Self {
        Ages { min: self.min.min(other.min), max: self.max.max(other.max) }
    }

    /// Whether these may be wrong when a key with the bounds `gone` is not there any more.
    pub(super) fn lean_on(&self, gone: Self) -> bool {
        gone.min <= self.min || gone.max >= self.max
    }

    fn is_empty(&self) -> bool {
        self.min > self.max
    }
}

/// Which live key is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Age {
    /// The one that was created first.
    Oldest,
    /// The one that was created last, but before this revision.
    YoungestBefore(i64),
}

impl Age {
    /// How good a key is that was created at `create`, greater is better; none if it does not count.
    pub(super) fn score(self, create: i64) -> Option<i64> {
        match self {
            Age::Oldest => Some(-create),
            Age::YoungestBefore(revision) => (create < revision).then_some(create),
        }
    }

    /// No key of a subtree with the bounds `ages` is better than this.
    pub(super) fn score_max(self, ages: &Ages) -> Option<i64> {
        if ages.is_empty() {
            return None;
        }
        match self {
            Age::Oldest => Some(-ages.min),
            Age::YoungestBefore(revision) => {
                (ages.min < revision).then_some(ages.max.min(revision - 1))
            }
        }
    }
}
