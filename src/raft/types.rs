//! The type parameters with which we use openraft.

use std::fmt;

use bytes::Bytes;

/// One member as raft knows it: the identity that the membership log carries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberNode {
    /// `--name` of the member; empty until it has started.
    pub name: String,
    /// Where the other members reach it.
    pub peer_urls: Vec<String>,
}

impl fmt::Display for MemberNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.peer_urls.join(","))
    }
}

/// The payload of a normal entry: an encoded [`crate::pb::quorate::command::Proposal`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProposalBytes(pub Bytes);

impl fmt::Display for ProposalBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

openraft::declare_raft_types!(
    /// Quorate's raft. Outcomes do not travel through openraft: the state machine hands them to
    /// the member that proposed, see [`crate::pb::quorate::command::Group`].
    pub TypeConfig:
        D = ProposalBytes,
        R = (),
        NodeId = u64,
        Node = MemberNode,
        AsyncRuntime = super::runtime::Runtime,
);

/// openraft's log id with our types.
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
/// openraft's vote with our types.
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
/// openraft's entry with our types.
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
/// openraft's membership with its log id, with our types.
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
/// openraft's snapshot with our types.
pub type Snapshot =
    openraft::type_config::alias::SnapshotOf<TypeConfig, super::snapshot::SnapshotData>;
/// openraft's snapshot metadata with our types.
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;
