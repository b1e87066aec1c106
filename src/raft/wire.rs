//! openraft's requests and answers as messages of `proto/quorate/peer.proto`.
//!
//! openraft trusts its peers and asserts what they always keep. What breaks that is refused here.

use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};

use super::codec::{self, CodecError};
use super::types::{TypeConfig, Vote};
use crate::pb::quorate::peer as pb;

/// The vote of the leader `from`: what it sends as a leader it sends by a vote that a quorum granted.
pub(crate) fn leader_vote_from_pb(vote: Option<pb::Vote>, from: u64) -> Result<Vote, CodecError> {
    let vote = codec::vote_from_pb(vote.ok_or(CodecError::Absent("vote"))?);
    if !vote.committed || vote.leader_id.node_id != from {
        return Err(CodecError::Unsound("the vote is not that of a leader who sends it"));
    }
    Ok(vote)
}

/// Entries follow each other and `previous`, in terms that never fall and end with the leader's;
/// a term has one leader.
fn check_entries(
    vote: &Vote,
    previous: Option<&pb::LogId>,
    entries: &[pb::Entry],
) -> Result<(), CodecError> {
    let mut next = previous.map_or(Some(0), |previous| previous.index.checked_add(1));
    let mut leader = previous.map(|previous| (previous.term, previous.leader));
    let last = (vote.leader_id.term, vote.leader_id.node_id);
    let may_follow = |one: (u64, u64), other: (u64, u64)| one == other || one.0 < other.0;
    for entry in entries {
        let log_id = entry.log_id.as_ref().ok_or(CodecError::Absent("log_id"))?;
        if next != Some(log_id.index) {
            return Err(CodecError::Unsound("an entry does not follow the one before"));
        }
        let writer = (log_id.term, log_id.leader);
        let follows = leader.is_none_or(|leader| may_follow(leader, writer));
        if !follows || !may_follow(writer, last) {
            return Err(CodecError::Unsound("entries of terms that cannot follow each other"));
        }
        (leader, next) = (Some(writer), log_id.index.checked_add(1));
    }
    Ok(())
}

pub(crate) fn append_request_to_pb(request: AppendEntriesRequest<TypeConfig>) -> pb::AppendRequest {
    pb::AppendRequest {
        vote: Some(codec::vote_to_pb(&request.vote)),
        previous: request.prev_log_id.as_ref().map(codec::log_id_to_pb),
        entries: request.entries.iter().map(codec::entry_to_pb).collect(),
        committed: request.leader_commit.as_ref().map(codec::log_id_to_pb),
    }
}

pub(crate) fn append_request_from_pb(
    request: pb::AppendRequest,
    from: u64,
) -> Result<AppendEntriesRequest<TypeConfig>, CodecError> {
    let vote = leader_vote_from_pb(request.vote, from)?;
    check_entries(&vote, request.previous.as_ref(), &request.entries)?;
    let entries = request.entries.into_iter().map(codec::entry_from_pb);
    Ok(AppendEntriesRequest {
        vote,
        prev_log_id: request.previous.map(codec::log_id_from_pb),
        entries: entries.collect::<Result<_, _>>()?,
        leader_commit: request.committed.map(codec::log_id_from_pb),
    })
}

pub(crate) fn append_result_to_pb(result: &StreamAppendResult<TypeConfig>) -> pb::AppendResponse {
    let outcome = match result {
        Ok(matched) => {
            let log_id = matched.as_ref().map(codec::log_id_to_pb);
            pb::append_response::Outcome::Matched(pb::MaybeLogId { log_id })
        }
        Err(StreamAppendError::Conflict(at)) => {
            pb::append_response::Outcome::Conflict(codec::log_id_to_pb(at))
        }
        Err(StreamAppendError::HigherVote(vote)) => {
            pb::append_response::Outcome::HigherVote(codec::vote_to_pb(vote))
        }
    };
    pb::AppendResponse { outcome: Some(outcome) }
}

pub(crate) fn append_result_from_pb(
    response: pb::AppendResponse,
) -> Result<StreamAppendResult<TypeConfig>, CodecError> {
    Ok(match response.outcome.ok_or(CodecError::Absent("outcome"))? {
        pb::append_response::Outcome::Matched(matched) => {
            Ok(matched.log_id.map(codec::log_id_from_pb))
        }
        pb::append_response::Outcome::Conflict(at) => {
            Err(StreamAppendError::Conflict(codec::log_id_from_pb(at)))
        }
        pb::append_response::Outcome::HigherVote(vote) => {
            Err(StreamAppendError::HigherVote(codec::vote_from_pb(vote)))
        }
    })
}

pub(crate) fn vote_request_to_pb(request: &VoteRequest<TypeConfig>) -> pb::VoteRequest {
    pb::VoteRequest {
        vote: Some(codec::vote_to_pb(&request.vote)),
        last_log_id: request.last_log_id.as_ref().map(codec::log_id_to_pb),
        leadership_transfer: request.leadership_transfer,
    }
}

pub(crate) fn vote_request_from_pb(
    request: pb::VoteRequest,
    from: u64,
) -> Result<VoteRequest<TypeConfig>, CodecError> {
    let vote = codec::vote_from_pb(request.vote.ok_or(CodecError::Absent("vote"))?);
    if vote.committed || vote.leader_id.node_id != from {
        return Err(CodecError::Unsound("the vote is not that of a candidate who asks for it"));
    }
    let mut asked = VoteRequest::new(vote, request.last_log_id.map(codec::log_id_from_pb));
    asked.leadership_transfer = request.leadership_transfer;
    Ok(asked)
}

pub(crate) fn vote_response_to_pb(response: &VoteResponse<TypeConfig>) -> pb::VoteResponse {
    pb::VoteResponse {
        vote: Some(codec::vote_to_pb(&response.vote)),
        last_log_id: response.last_log_id.as_ref().map(codec::log_id_to_pb),
        granted: response.vote_granted,
    }
}

pub(crate) fn vote_response_from_pb(
    response: pb::VoteResponse,
) -> Result<VoteResponse<TypeConfig>, CodecError> {
    let vote = codec::vote_from_pb(response.vote.ok_or(CodecError::Absent("vote"))?);
    let last_log_id = response.last_log_id.map(codec::log_id_from_pb);
    Ok(VoteResponse::new(vote, last_log_id, response.granted))
}

pub(crate) fn transfer_request_to_pb(
    request: &TransferLeaderRequest<TypeConfig>,
) -> pb::TransferLeaderRequest {
    pb::TransferLeaderRequest {
        vote: Some(codec::vote_to_pb(request.from_leader())),
        to: *request.to_node_id(),
        last_log_id: request.last_log_id().map(codec::log_id_to_pb),
    }
}

pub(crate) fn transfer_request_from_pb(
    request: pb::TransferLeaderRequest,
    from: u64,
) -> Result<TransferLeaderRequest<TypeConfig>, CodecError> {
    let vote = leader_vote_from_pb(request.vote, from)?;
    let last_log_id = request.last_log_id.map(codec::log_id_from_pb);
    Ok(TransferLeaderRequest::new(vote, request.to, last_log_id))
}

pub(crate) fn transfer_reply_to_pb(
    response: &TransferLeaderResponse<TypeConfig>,
) -> pb::TransferLeaderReply {
    let (vote, accepted) = match response {
        Ok(()) => (None, true),
        Err(TransferLeaderError::VoteChanged { actual, .. }) => {
            (Some(codec::vote_to_pb(actual)), false)
        }
        Err(TransferLeaderError::LogNotFlushed { .. }) => (None, false),
    };
    pb::TransferLeaderReply { vote, accepted }
}

pub(crate) fn transfer_reply_from_pb(
    reply: pb::TransferLeaderReply,
    request: &TransferLeaderRequest<TypeConfig>,
) -> TransferLeaderResponse<TypeConfig> {
    if reply.accepted {
        return Ok(());
    }
    Err(match reply.vote {
        Some(vote) => TransferLeaderError::VoteChanged {
            expected: *request.from_leader(),
            actual: codec::vote_from_pb(vote),
        },
        None => TransferLeaderError::LogNotFlushed {
            expected: request.last_log_id().copied(),
            actual: None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEADER: u64 = 7;

    fn append(previous: Option<(u64, u64)>, entries: &[(u64, u64, u64)]) -> pb::AppendRequest {
        let entry = |&(term, leader, index)| pb::Entry {
            log_id: Some(pb::LogId { term, leader, index }),
            body: None,
        };
        pb::AppendRequest {
            vote: Some(pb::Vote { term: 5, candidate: LEADER, committed: true }),
            previous: previous.map(|(term, index)| pb::LogId { term, leader: LEADER, index }),
            entries: entries.iter().map(entry).collect(),
            committed: None,
        }
    }

    /// openraft panicked at each of the refused ones; a fuzzer found them.
    #[test]
    fn an_append_that_no_leader_sends_is_refused() {
        let is_taken = |request| append_request_from_pb(request, LEADER).is_ok();
        assert!(is_taken(append(None, &[(0, 1, 0), (3, 2, 1), (5, LEADER, 2)])));
        assert!(is_taken(append(Some((4, 9)), &[(4, LEADER, 10), (5, LEADER, 11)])));
        assert!(is_taken(append(Some((4, u64::MAX)), &[])));
        for (what, request) in [
            ("a hole", append(Some((4, 9)), &[(5, LEADER, 11)])),
            ("the same again", append(None, &[(5, LEADER, 0), (5, LEADER, 0)])),
            ("no begin", append(None, &[(5, LEADER, 1)])),
            ("a term that falls", append(Some((4, 9)), &[(3, LEADER, 10)])),
            ("a term to come", append(Some((4, 9)), &[(6, LEADER, 10)])),
            ("two leaders of a term", append(None, &[(3, 1, 0), (3, 2, 1)])),
            ("another leader of this term", append(None, &[(5, 1, 0)])),
            ("behind the last", append(Some((4, u64::MAX)), &[(5, LEADER, 0)])),
        ] {
            assert!(!is_taken(request), "{what}");
        }
    }

    #[test]
    fn a_vote_is_that_of_its_sender_and_fits_what_it_is_sent_for() {
        let vote = |committed| Some(pb::Vote { term: 5, candidate: LEADER, committed });
        assert!(leader_vote_from_pb(vote(true), LEADER).is_ok());
        assert!(leader_vote_from_pb(vote(false), LEADER).is_err());
        assert!(leader_vote_from_pb(vote(true), LEADER + 1).is_err());
        assert!(leader_vote_from_pb(None, LEADER).is_err());
        let asked = |committed| pb::VoteRequest { vote: vote(committed), ..Default::default() };
        assert!(vote_request_from_pb(asked(false), LEADER).is_ok());
        assert!(vote_request_from_pb(asked(true), LEADER).is_err());
        assert!(vote_request_from_pb(asked(false), LEADER + 1).is_err());
    }
}
