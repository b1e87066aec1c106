//! What this member answers to the others: the `Peer` service.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status, Streaming};

use super::node::Node;
use super::peers::{NOT_APPENDED, Peers};
use super::snapshot::receive_snapshot;
use super::{WriteError, codec, wire};
use crate::pb::quorate::command::Group;
use crate::pb::quorate::peer::peer_server::Peer;
use crate::pb::quorate::peer::{
    AppendRequest, AppendResponse, ConfirmReply, ConfirmRequest, LeaseRenewReply,
    LeaseRenewRequest, LeaseTimeToLiveReply, LeaseTimeToLiveRequest, ProposeReply, ProposeRequest,
    ReadIndexReply, ReadIndexRequest, SnapshotFrame, SnapshotReply, Standing, StandingReply,
    StandingRequest, TransferLeaderReply, TransferLeaderRequest, VoteRequest, VoteResponse,
};

/// What the raft layer needs from the member to answer its peers.
pub trait Forwarded: Send + Sync + 'static {
    /// Proposes a follower's group; done once it is applied on this member.
    fn propose(&self, group: Group) -> BoxFuture<'_, Result<(), WriteError>>;
    /// The index that a linearizable read must wait for, from a read round shared with others.
    fn read_index(&self) -> BoxFuture<'_, Option<u64>>;
    /// Renews leases for a follower; one answer for each, none if this member does not lead.
    fn renew_leases(&self, ids: Vec<i64>) -> BoxFuture<'_, Option<Vec<i64>>>;
    /// How long a lease still lives, for a follower; none if this member does not lead.
    fn lease_time_to_live(
        &self,
        request: LeaseTimeToLiveRequest,
    ) -> BoxFuture<'_, Option<LeaseTimeToLiveReply>>;
}

/// The `Peer` service of one member.
///
/// It may be served before the member has any data, so that members of a new cluster learn from each
/// other that it is new; all but `Standing` is refused until [`PeerService::begin`].
pub struct PeerService {
    peers: Arc<Peers>,
    running: OnceLock<Running>,
}

/// What answers once raft runs.
struct Running {
    node: Arc<Node>,
    forwarded: Arc<dyn Forwarded>,
}

impl PeerService {
    /// Serves the member that `peers` belong to. A member with data must not be served until it begins.
    pub fn new(peers: Arc<Peers>) -> Arc<Self> {
        Arc::new(PeerService { peers, running: OnceLock::new() })
    }

    /// From now on `node` answers; forwarded requests go to `forwarded`.
    ///
    /// # Panics
    /// If it has begun.
    pub fn begin(&self, node: Arc<Node>, forwarded: Arc<dyn Forwarded>) {
        let is_first = self.running.set(Running { node, forwarded }).is_ok();
        assert!(is_first, "a member begins once");
    }

    /// The member that calls, if it is one of ours, and who answers it.
    fn check<T>(&self, request: &Request<T>) -> Result<(u64, &Running), Status> {
        let from = self.peers.check(request.metadata())?;
        let running = self.running.get();
        Ok((from, running.ok_or_else(|| Status::unavailable("the member is starting"))?))
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    type AppendStream = Pin<Box<dyn Stream<Item = Result<AppendResponse, Status>> + Send>>;

    async fn append(
        &self,
        request: Request<Streaming<AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let (sender, running) = self.check(&request)?;
        // A broken stream ends the session; the leader opens another.
        let broken = self.peers.meter(sender).received_failures.clone();
        let from = (request.into_inner(), Arc::clone(&running.node), broken, true);
        let requests =
            stream::unfold(from, move |(mut messages, node, broken, is_first)| async move {
                let message = messages.message().await.inspect_err(|_| broken.inc()).ok()??;
                let request = wire::append_request_from_pb(message, sender).ok()?;
                node.contact().heard();
                if is_first {
                    // What came on streams that have ended may still wait for the disk. No more is read
                    // meanwhile, or a leader that tries again and again would fill the memory.
                    node.idle().await.ok()?;
                }
                Some((request, (messages, node, broken, false)))
            });
        let answers = running.node.raft().stream_append(requests);
        let responses = answers.map(|answer| match answer {
            Ok(result) => Ok(wire::append_result_to_pb(&result)),
            Err(fatal) => Err(Status::unavailable(fatal.to_string())),
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn vote(&self, request: Request<VoteRequest>) -> Result<Response<VoteResponse>, Status> {
        let (from, running) = self.check(&request)?;
        let asked = wire::vote_request_from_pb(request.into_inner(), from).map_err(malformed)?;
        let answer = running.node.raft().vote(asked).await.map_err(unavailable)?;
        Ok(Response::new(wire::vote_response_to_pb(&answer)))
    }

    async fn pre_vote(
        &self,
        request: Request<VoteRequest>,
    ) -> Result<Response<VoteResponse>, Status> {
        let (from, running) = self.check(&request)?;
        let asked = wire::vote_request_from_pb(request.into_inner(), from).map_err(malformed)?;
        let answer = running.node.raft().pre_vote(asked).await.map_err(unavailable)?;
        Ok(Response::new(wire::vote_response_to_pb(&answer)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotFrame>>,
    ) -> Result<Response<SnapshotReply>, Status> {
        let (from, running) = self.check(&request)?;
        let vote = receive_snapshot(&running.node, from, request.into_inner()).await?;
        Ok(Response::new(SnapshotReply { vote: Some(codec::vote_to_pb(&vote)) }))
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderReply>, Status> {
        let (from, running) = self.check(&request)?;
        let asked =
            wire::transfer_request_from_pb(request.into_inner(), from).map_err(malformed)?;
        let answer =
            running.node.raft().handle_transfer_leader(asked).await.map_err(unavailable)?;
        Ok(Response::new(wire::transfer_reply_to_pb(&answer)))
    }

    async fn read_index(
        &self,
        request: Request<ReadIndexRequest>,
    ) -> Result<Response<ReadIndexReply>, Status> {
        let (_, running) = self.check(&request)?;
        match running.forwarded.read_index().await {
            Some(index) => Ok(Response::new(ReadIndexReply { index })),
            None => Err(Status::unavailable("etcdserver: not leader")),
        }
    }

    type ConfirmStream = Pin<Box<dyn Stream<Item = Result<ConfirmReply, Status>> + Send>>;

    async fn confirm(
        &self,
        request: Request<Streaming<ConfirmRequest>>,
    ) -> Result<Response<Self::ConfirmStream>, Status> {
        let (from, running) = self.check(&request)?;
        let answers = running.node.answer_confirmations(from, request.into_inner());
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_renew(
        &self,
        request: Request<LeaseRenewRequest>,
    ) -> Result<Response<LeaseRenewReply>, Status> {
        let (_, running) = self.check(&request)?;
        match running.forwarded.renew_leases(request.into_inner().ids).await {
            Some(ttls) => Ok(Response::new(LeaseRenewReply { ttls })),
            None => Err(Status::unavailable("etcdserver: not leader")),
        }
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveReply>, Status> {
        let (_, running) = self.check(&request)?;
        match running.forwarded.lease_time_to_live(request.into_inner()).await {
            Some(reply) => Ok(Response::new(reply)),
            None => Err(Status::unavailable("etcdserver: not leader")),
        }
    }

    async fn standing(
        &self,
        request: Request<StandingRequest>,
    ) -> Result<Response<StandingReply>, Status> {
        let from = self.peers.check(request.metadata())?;
        let standing = match self.running.get() {
            Some(running) => running.node.standing_of(from).await,
            None => Standing::Blank,
        };
        Ok(Response::new(StandingReply { standing: standing.into() }))
    }

    async fn propose(
        &self,
        request: Request<ProposeRequest>,
    ) -> Result<Response<ProposeReply>, Status> {
        let (_, running) = self.check(&request)?;
        let group = request.into_inner().group;
        let group = group.ok_or_else(|| Status::invalid_argument("no group"))?;
        match running.forwarded.propose(group).await {
            Ok(()) => Ok(Response::new(ProposeReply {})),
            Err(WriteError::NotAppended) => {
                let mut status = Status::unavailable("etcdserver: not leader");
                status
                    .metadata_mut()
                    .insert(NOT_APPENDED, tonic::metadata::MetadataValue::from_static("1"));
                Err(status)
            }
            Err(WriteError::Unknown | WriteError::Stopped) => {
                Err(Status::unavailable("etcdserver: leader changed"))
            }
        }
    }
}

fn malformed(error: codec::CodecError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn unavailable(error: impl std::error::Error) -> Status {
    Status::unavailable(error.to_string())
}
