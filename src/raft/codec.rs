//! openraft's types to and from the messages of `proto/quorate/peer.proto`.
//!
//! The same bytes go over the wire and into the log. They are ours, not openraft's: a release that
//! changes its types must not change our disks.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};
use openraft::EntryPayload;
use openraft::vote::leader_id_adv::LeaderId;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, message};

use super::types::{Entry, LogId, MemberNode, ProposalBytes, StoredMembership, Vote};
use crate::pb::quorate::peer as pb;

/// openraft's membership with our types.
pub type Membership = openraft::Membership<u64, MemberNode>;

const LOG_ID_TAG: u32 = 1;
const PROPOSAL_TAG: u32 = 2;

/// A message that is not what its sender could have meant.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CodecError {
    /// Not the protobuf message it should be.
    #[error(transparent)]
    Malformed(#[from] prost::DecodeError),
    /// A field without which the message has no meaning is absent.
    #[error("{0} is missing")]
    Absent(&'static str),
    /// Well formed, but no member that works sends it; openraft would panic at some of it.
    #[error("no member sends this: {0}")]
    Unsound(&'static str),
    /// A voter without an address, or no voter at all.
    #[error("membership is invalid: {0}")]
    Membership(String),
}

/// A log id as its message.
pub fn log_id_to_pb(log_id: &LogId) -> pb::LogId {
    pb::LogId { term: log_id.leader_id.term, leader: log_id.leader_id.node_id, index: log_id.index }
}

/// A log id from its message.
pub fn log_id_from_pb(message: pb::LogId) -> LogId {
    let leader_id = LeaderId { term: message.term, node_id: message.leader };
    LogId::new(leader_id, message.index)
}

/// A vote as its message.
pub fn vote_to_pb(vote: &Vote) -> pb::Vote {
    pb::Vote {
        term: vote.leader_id.term,
        candidate: vote.leader_id.node_id,
        committed: vote.committed,
    }
}

/// A vote from its message.
pub fn vote_from_pb(message: pb::Vote) -> Vote {
    let leader_id = LeaderId { term: message.term, node_id: message.candidate };
    Vote { leader_id, committed: message.committed }
}

/// A membership as its message.
pub fn membership_to_pb(membership: &Membership) -> pb::Membership {
    let voter_set = |ids: &BTreeSet<u64>| pb::VoterSet { ids: ids.iter().copied().collect() };
    let node = |(id, node): (&u64, &MemberNode)| pb::Node {
        id: *id,
        name: node.name.clone(),
        peer_urls: node.peer_urls.clone(),
    };
    pb::Membership {
        voter_sets: membership.get_joint_config().iter().map(voter_set).collect(),
        nodes: membership.nodes().map(node).collect(),
    }
}

/// A membership from its message. The empty membership of an uninitialized member is accepted.
pub fn membership_from_pb(message: pb::Membership) -> Result<Membership, CodecError> {
    let nodes: BTreeMap<u64, MemberNode> = message
        .nodes
        .into_iter()
        .map(|node| (node.id, MemberNode { name: node.name, peer_urls: node.peer_urls }))
        .collect();
    let voter_sets: Vec<BTreeSet<u64>> =
        message.voter_sets.into_iter().map(|set| set.ids.into_iter().collect()).collect();
    if voter_sets.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(voter_sets, nodes).map_err(|error| CodecError::Membership(error.to_string()))
}

/// A membership with its log id as its message.
pub fn stored_membership_to_pb(stored: &StoredMembership) -> pb::StoredMembership {
    pb::StoredMembership {
        log_id: stored.log_id().as_ref().map(log_id_to_pb),
        membership: Some(membership_to_pb(stored.membership())),
    }
}

/// A membership with its log id from its message.
pub fn stored_membership_from_pb(
    message: pb::StoredMembership,
) -> Result<StoredMembership, CodecError> {
    let membership = membership_from_pb(message.membership.unwrap_or_default())?;
    Ok(StoredMembership::new(message.log_id.map(log_id_from_pb), membership))
}

/// An entry as its message; the proposal is shared, not copied.
pub fn entry_to_pb(entry: &Entry) -> pb::Entry {
    let body = match &entry.payload {
        EntryPayload::Blank => None,
        EntryPayload::Normal(proposal) => Some(pb::entry::Body::Proposal(proposal.0.clone())),
        EntryPayload::Membership(membership) => {
            Some(pb::entry::Body::Membership(membership_to_pb(membership)))
        }
    };
    pb::Entry { log_id: Some(log_id_to_pb(&entry.log_id)), body }
}

/// An entry from its message.
pub fn entry_from_pb(message: pb::Entry) -> Result<Entry, CodecError> {
    let log_id = log_id_from_pb(message.log_id.ok_or(CodecError::Absent("log_id"))?);
    let payload = match message.body {
        None => EntryPayload::Blank,
        Some(pb::entry::Body::Proposal(bytes)) => EntryPayload::Normal(ProposalBytes(bytes)),
        Some(pb::entry::Body::Membership(membership)) => {
            EntryPayload::Membership(membership_from_pb(membership)?)
        }
    };
    Ok(Entry { log_id, payload })
}

/// Encodes an entry in two parts: what `out` gets, and the proposal, which is shared.
///
/// One after the other they are the encoding of [`entry_to_pb`]: a proposal comes last in it.
pub fn encode_entry_parts(entry: &Entry, out: &mut BytesMut) -> (Bytes, Bytes) {
    let tail = match &entry.payload {
        EntryPayload::Normal(ProposalBytes(bytes)) => {
            message::encode(LOG_ID_TAG, &log_id_to_pb(&entry.log_id), out);
            encode_key(PROPOSAL_TAG, WireType::LengthDelimited, out);
            encode_varint(bytes.len() as u64, out);
            bytes.clone()
        }
        EntryPayload::Blank | EntryPayload::Membership(_) => {
            out.put(entry_to_pb(entry).encode_to_vec().as_slice());
            Bytes::new()
        }
    };
    (out.split().freeze(), tail)
}

/// Decodes an entry; the proposal is a slice of `bytes`.
pub fn decode_entry(bytes: Bytes) -> Result<Entry, CodecError> {
    entry_from_pb(pb::Entry::decode(bytes)?)
}

/// A membership with its log id as bytes, for the state.
pub fn encode_stored_membership(stored: &StoredMembership) -> Bytes {
    stored_membership_to_pb(stored).encode_to_vec().into()
}

/// A membership with its log id from its bytes.
pub fn decode_stored_membership(bytes: Bytes) -> Result<StoredMembership, CodecError> {
    stored_membership_from_pb(pb::StoredMembership::decode(bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_id(term: u64, node_id: u64, index: u64) -> LogId {
        LogId::new(LeaderId { term, node_id }, index)
    }

    fn entries() -> Vec<Entry> {
        let node = |name: &str| MemberNode {
            name: name.to_owned(),
            peer_urls: vec![format!("http://{name}:2380"), "http://[::1]:1".to_owned()],
        };
        let nodes: BTreeMap<u64, MemberNode> =
            [(1, node("a")), (u64::MAX, node("b")), (3, node("c"))].into();
        let joint = vec![BTreeSet::from([1, u64::MAX]), BTreeSet::from([1])];
        let membership = Membership::new(joint, nodes).unwrap();
        let proposal =
            |bytes: &'static [u8]| EntryPayload::Normal(ProposalBytes(Bytes::from_static(bytes)));
        vec![
            Entry { log_id: log_id(0, 0, 0), payload: EntryPayload::Blank },
            Entry { log_id: log_id(7, u64::MAX, 9), payload: EntryPayload::Membership(membership) },
            Entry { log_id: log_id(1 << 40, 3, u64::MAX), payload: proposal(b"put a b") },
            Entry { log_id: log_id(1, 3, 5), payload: proposal(b"") },
        ]
    }

    /// The hand-made encoding in two parts is the one that protobuf makes, and it comes back.
    #[test]
    fn entry_in_parts_equals_its_message() {
        let mut out = BytesMut::new();
        for entry in entries() {
            let (head, tail) = encode_entry_parts(&entry, &mut out);
            let parts = [head.as_ref(), tail.as_ref()].concat();
            assert_eq!(parts, entry_to_pb(&entry).encode_to_vec());
            assert_eq!(decode_entry(Bytes::from(parts)).unwrap(), entry);
        }
    }

    #[test]
    fn votes_and_memberships_survive_the_round_trip() {
        let vote = Vote { leader_id: LeaderId { term: 5, node_id: u64::MAX }, committed: true };
        assert_eq!(vote_from_pb(vote_to_pb(&vote)), vote);
        let empty = StoredMembership::default();
        assert_eq!(stored_membership_from_pb(stored_membership_to_pb(&empty)).unwrap(), empty);
    }

    #[test]
    fn entry_without_log_id_is_refused() {
        let bytes = pb::Entry::default().encode_to_vec();
        assert!(matches!(decode_entry(Bytes::from(bytes)), Err(CodecError::Absent("log_id"))));
    }
}
