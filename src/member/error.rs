//! Why an attempt at a member failed although the request itself may be fine.

use crate::state::RequestError;
use crate::storage::StorageError;

/// What a caller of [`super::Member`] gets instead of an answer; texts are etcd's.
///
/// After `Timeout`, `TimeoutLeaderFailure` and `LeaderChanged` of a write its outcome is unknown: it
/// may still be applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request itself was refused, on every member alike.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// No member leads.
    #[error("etcdserver: no leader")]
    NoLeader,
    /// The leader changed while the request was under way.
    #[error("etcdserver: leader changed")]
    LeaderChanged,
    /// No answer within the request timeout.
    #[error("etcdserver: request timed out")]
    Timeout,
    /// As `Timeout`, and the leader was lost meanwhile.
    #[error("etcdserver: request timed out, possibly due to previous leader failure")]
    TimeoutLeaderFailure,
    /// As `Timeout`, but the write is in no log, and no member leads: etcd's proposals wait for a
    /// leader until their context ends. Clients of etcd send the request again.
    #[error("context deadline exceeded")]
    TimeoutNoLeader,
    /// This member did not apply up to the read index in time.
    #[error("etcdserver: request timed out, waiting for the applied index took too long")]
    TimeoutApplied,
    /// Only a leader can do that.
    #[error("etcdserver: not leader")]
    NotLeader,
    /// Whoever shall lead is no member, or does not vote.
    #[error("etcdserver: bad leader transferee")]
    BadLeaderTransferee,
    /// The member that shall lead did not take over in time.
    #[error("etcdserver: request timed out, leader transfer took too long")]
    TimeoutLeaderTransfer,
    /// The member is stopping.
    #[error("etcdserver: server stopped")]
    Stopped,
    /// A bound of this member is reached; try again later.
    #[error("etcdserver: too many requests")]
    TooManyRequests,
    /// This member's storage failed; it is about to stop.
    #[error(transparent)]
    Storage(#[from] StorageError),
}
