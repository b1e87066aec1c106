//! The logical clock of the store, and the position of an entry in the log.

/// The place of one change: the revision of its transaction and its rank within it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// Counts the transactions that changed something; what clients call the revision.
    pub main: i64,
    /// Counts the changes inside one transaction, from 0.
    pub sub: u32,
}

impl Revision {
    /// The first place of revision `main`.
    pub const fn first(main: i64) -> Self {
        Revision { main, sub: 0 }
    }
}

/// A raft log id in the state's words: unique in the history of a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Position {
    /// The place in the log.
    pub index: u64,
    /// The term of the leader that proposed the entry.
    pub term: u64,
    /// The member that proposed it.
    pub leader: u64,
}
