//! Read indexes without heartbeats: a leader's word counts once enough voters confirm its vote.
//!
//! A read index is safe if the leader still led at some moment after the read began (Raft, section
//! 6.4). Heartbeats to everybody prove it. So does a quorum of voters who, asked after that moment, hold the
//! vote by which it leads: none of them has helped to elect another. The one who asks is such a
//! voter itself. Of three members a follower's question therefore needs no third one, and the
//! leader's own reads need one answer of two.
//!
//! The questions of one member to another share one stream, so that a round costs two small frames
//! and not a call with its headers. What is not confirmed at once goes the way of heartbeats.
//!
//! **Invariant:** a vote is looked up, by whoever vouches for it, after the read began. The leader asks
//! its raft core, which alone knows what is committed. The others look at the vote they promised last;
//! no answer of theirs has told anybody of a later one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use futures_util::{Stream, StreamExt, stream};
use openraft::RaftState;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tonic::{Status, Streaming};

use super::codec;
use super::node::Node;
use super::peers::Peers;
use super::types::{TypeConfig, Vote};
use crate::limits;
use crate::mutants;
use crate::pb::quorate::peer::peer_client::PeerClient;
use crate::pb::quorate::peer::{ConfirmReply, ConfirmRequest};
use crate::tasks;

/// What a leader can promise if its leadership is confirmed.
struct Claim {
    vote: Vote,
    /// Everything acknowledged so far is at or below it.
    index: u64,
    voters: BTreeSet<u64>,
}

impl Claim {
    /// The claim of `member`; none if it does not lead, has committed nothing in its term, or the
    /// membership is changing.
    fn of(member: u64, state: &RaftState<TypeConfig>) -> Option<Claim> {
        let vote = *state.vote_ref();
        let committed = state.local_committed()?;
        let leads = vote.committed && vote.leader_id.node_id == member;
        let own_term = committed.committed_leader_id().term == vote.leader_id.term;
        let membership = state.membership_state.effective().membership().clone();
        let [voters] = membership.get_joint_config().as_slice() else { return None };
        let voters = voters.clone();
        (leads && own_term && voters.contains(&member)).then_some(Claim {
            vote,
            index: committed.index(),
            voters,
        })
    }

    /// Voters besides the leader whose word is needed.
    fn needed(&self) -> usize {
        self.voters.len() / 2
    }
}

/// The streams on which this member asks the others.
#[derive(Default)]
pub(crate) struct Confirmations {
    lines: Mutex<BTreeMap<u64, Line>>,
    /// Whom the leader asks first; moves on when somebody does not answer.
    first: AtomicUsize,
}

/// One stream of questions.
struct Line {
    questions: mpsc::UnboundedSender<ConfirmRequest>,
    waiting: Arc<Mutex<Waiting>>,
}

/// Questions without an answer yet; as many as there are read rounds in flight.
#[derive(Default)]
struct Waiting {
    last: u64,
    closed: bool,
    answers: BTreeMap<u64, oneshot::Sender<ConfirmReply>>,
}

impl Confirmations {
    /// Asks `member` whether it holds `vote`; none if it does not answer in time.
    async fn ask(&self, peers: &Arc<Peers>, member: u64, vote: &Vote) -> Option<ConfirmReply> {
        let answer = self.send(peers, member, vote)?;
        tokio::time::timeout(limits::CONFIRM_TIMEOUT, answer).await.ok()?.ok()
    }

    fn send(
        &self,
        peers: &Arc<Peers>,
        member: u64,
        vote: &Vote,
    ) -> Option<oneshot::Receiver<ConfirmReply>> {
        let mut lines = self.lines.lock();
        let line = lines.entry(member).or_insert_with(|| Line::open(peers, member));
        let (sender, receiver) = oneshot::channel();
        let sequence = {
            let mut waiting = line.waiting.lock();
            if waiting.closed {
                drop(waiting);
                lines.remove(&member);
                return None;
            }
            // Who gave up does not count.
            waiting.answers.retain(|_, answer| !answer.is_closed());
            waiting.last += 1;
            let sequence = waiting.last;
            waiting.answers.insert(sequence, sender);
            sequence
        };
        let vote = Some(codec::vote_to_pb(vote));
        line.questions.send(ConfirmRequest { sequence, vote }).ok()?;
        Some(receiver)
    }
}

impl Line {
    fn open(peers: &Arc<Peers>, member: u64) -> Line {
        let (questions, outgoing) = mpsc::unbounded_channel();
        let waiting = Arc::<Mutex<Waiting>>::default();
        let (peers, answered) = (Arc::clone(peers), Arc::clone(&waiting));
        tasks::spawn("confirmations", async move {
            if let Err(status) = converse(&peers, member, outgoing, &answered).await {
                tracing::debug!(%status, member = format!("{member:x}"), "read rounds interrupted");
            }
            let mut waiting = answered.lock();
            waiting.closed = true;
            waiting.answers.clear();
        });
        Line { questions, waiting }
    }
}

async fn converse(
    peers: &Arc<Peers>,
    member: u64,
    outgoing: mpsc::UnboundedReceiver<ConfirmRequest>,
    waiting: &Mutex<Waiting>,
) -> Result<(), Status> {
    let mut client = PeerClient::new(peers.channel(member).map_err(super::peers::unavailable)?);
    let questions = stream::unfold(outgoing, |mut outgoing| async {
        let question = outgoing.recv().await?;
        Some((question, outgoing))
    });
    let mut answers = client.confirm(peers.request(member, questions)).await?.into_inner();
    while let Some(reply) = answers.message().await? {
        if let Some(answer) = waiting.lock().answers.remove(&reply.sequence) {
            // The round may have timed out.
            answer.send(reply).ok();
        }
    }
    Ok(())
}

impl Node {
    /// The read index of a leader that few voters confirm; none if it takes heartbeats to know.
    pub(super) async fn confirmed_index(&self) -> Option<u64> {
        let me = self.member_id();
        let claim = self.raft().with_raft_state(move |state| Claim::of(me, state)).await.ok()??;
        let confirmations = self.confirmations();
        let others: Vec<u64> = claim.voters.iter().copied().filter(|id| *id != me).collect();
        let first = confirmations.first.load(Ordering::Relaxed);
        let asked = (0..claim.needed()).map(|n| others[(first + n) % others.len()]);
        let answers = asked.map(|member| confirmations.ask(self.peers(), member, &claim.vote));
        let confirmed = join_all(answers).await;
        if confirmed.iter().all(|reply| reply.is_some_and(|reply| reply.holds)) {
            return Some(claim.index);
        }
        confirmations.first.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// The read index from `leader`, whom this voter confirms by asking.
    pub(super) async fn index_by_asking(&self, leader: u64) -> Option<u64> {
        let vote = self.shared().log.promised_vote()?;
        if vote.leader_id.node_id != leader {
            return None;
        }
        self.confirmations().ask(self.peers(), leader, &vote).await?.read_index
    }

    /// Answers the questions of member `from`.
    pub(super) fn answer_confirmations(
        self: &Arc<Self>,
        from: u64,
        questions: Streaming<ConfirmRequest>,
    ) -> impl Stream<Item = Result<ConfirmReply, Status>> + Send + 'static {
        let node = Arc::clone(self);
        questions.then(move |question| {
            let node = Arc::clone(&node);
            async move { node.confirm(from, question?).await }
        })
    }

    async fn confirm(&self, from: u64, question: ConfirmRequest) -> Result<ConfirmReply, Status> {
        let asked = question.vote.map(codec::vote_from_pb);
        let asked = asked.ok_or_else(|| Status::invalid_argument("a question without a vote"))?;
        let holds = move |vote: &Vote| {
            vote.leader_id == asked.leader_id || mutants::is_on("mutant_confirm_any_vote")
        };
        let me = self.member_id();
        if asked.leader_id.node_id != me {
            let holds = self.shared().log.promised_vote().is_some_and(|vote| holds(&vote));
            return Ok(ConfirmReply { sequence: question.sequence, holds, read_index: None });
        }
        let looked_up = self.raft().with_raft_state(move |state| {
            let holds = holds(state.vote_ref());
            let claim = if holds { Claim::of(me, state) } else { None };
            let sufficient = |claim: &Claim| claim.voters.contains(&from) && claim.needed() == 1;
            (holds, claim.filter(sufficient).map(|claim| claim.index))
        });
        let (holds, read_index) =
            looked_up.await.map_err(|fatal| Status::unavailable(fatal.to_string()))?;
        Ok(ConfirmReply { sequence: question.sequence, holds, read_index })
    }
}
