//! Why the log cannot be opened, or can no longer be written.
//!
//! Every variant is the operator's business: the text says which file, where, and what to do. The
//! errors are cloneable because one failed flush is told to everybody who waits for it.

use std::io;
use std::sync::Arc;

/// A failure of the log. All of them stop this member.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WalError {
    /// The operating system refused an operation. After a failed write or flush the log is dead:
    /// the kernel may have dropped the dirty pages, so a retry could report success for lost data.
    #[error("log: cannot {action} {file}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory it was tried on.
        file: String,
        /// What the operating system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// Acknowledged data cannot be read back.
    #[error(
        "log segment {file} is damaged at byte {offset}: {what}. Acknowledged entries would be \
         lost, so this member does not start. Remove it from the cluster, delete its data \
         directory and add it again; a single member must be restored from a snapshot"
    )]
    Damaged {
        /// The damaged segment.
        file: String,
        /// Offset of the first unreadable byte range.
        offset: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// A segment that must exist does not.
    #[error(
        "log: segment {sequence} is missing before {file}. Put it back, or remove this member from \
         the cluster, delete its data directory and add it again"
    )]
    Missing {
        /// The first segment that follows the gap.
        file: String,
        /// The sequence number that is missing.
        sequence: u64,
    },
    /// A later release wrote this log.
    #[error(
        "log segment {file} has format {found}, this release reads up to {known}. Start the \
         release that wrote it, or a later one"
    )]
    NewerFormat {
        /// The segment.
        file: String,
        /// Its format version.
        found: u32,
        /// The newest version this release reads.
        known: u32,
    },
    /// The log of another cluster.
    #[error(
        "log segment {file} belongs to cluster {found:x}, this member is of cluster {expected:x}. \
         Check --data-dir and --initial-cluster-token"
    )]
    OtherCluster {
        /// The segment.
        file: String,
        /// The cluster that wrote it.
        found: u64,
        /// The cluster of this member.
        expected: u64,
    },
    /// The log of another member of this cluster.
    #[error(
        "log segment {file} belongs to member {found:x}, this is member {expected:x}. Check \
         --data-dir and --name"
    )]
    OtherMember {
        /// The segment.
        file: String,
        /// The member that wrote it.
        found: u64,
        /// This member.
        expected: u64,
    },
    /// An entry above [`crate::limits::LOG_RECORD_BYTES_MAX`].
    #[error("log: an entry of {bytes} bytes is larger than the limit of {bytes_max} bytes")]
    TooLarge {
        /// Size of the entry.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// An entry that would leave a hole or overwrite another.
    #[error("log: entry {index} does not follow the log, which goes on at {expected}")]
    OutOfOrder {
        /// The index of the refused entry.
        index: u64,
        /// The index that would fit.
        expected: u64,
    },
    /// An intact record whose payload the layer above cannot read.
    #[error("log: the {what} at index {index} is intact but cannot be decoded: {reason}")]
    Undecodable {
        /// What kind of record it is.
        what: &'static str,
        /// Its log index, 0 if it has none.
        index: u64,
        /// What the decoder said.
        reason: String,
    },
    /// The log has been closed.
    #[error("log: closed")]
    Closed,
}

impl WalError {
    /// Wraps what the operating system said about `file`.
    pub(super) fn io(action: &'static str, file: &str, source: io::Error) -> Self {
        Self::Io { action, file: file.to_owned(), source: Arc::new(source) }
    }
}

impl From<WalError> for io::Error {
    fn from(error: WalError) -> Self {
        Self::other(error)
    }
}
