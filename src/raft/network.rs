//! openraft's side of the network: appends as one pipelined stream a peer, votes, snapshots, transfer.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use futures_util::{Stream, StreamExt, stream};
use openraft::RaftNetworkFactory;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use parking_lot::Mutex;

use super::codec;
use super::line::Line;
use super::peers::Peers;
use super::snapshot::{SnapshotData, send_snapshot};
use super::types::{MemberNode, Snapshot, TypeConfig, Vote};
use super::wire;
use crate::clock;
use crate::limits;
use crate::pb::quorate::peer::AppendResponse;
use crate::pb::quorate::peer::peer_client::PeerClient;

type AppendStream<'s> = BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>;

/// Makes a client for each member and purpose.
pub(crate) struct Network {
    peers: Arc<Peers>,
}

impl Network {
    pub(crate) fn new(peers: Arc<Peers>) -> Self {
        Network { peers }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = PeerLink;

    async fn new_client(&mut self, target: u64, node: &MemberNode) -> PeerLink {
        self.peers.learn(std::iter::once((target, node.peer_urls.as_slice())));
        PeerLink { peers: Arc::clone(&self.peers), target, channel: None, failures: 0 }
    }
}

/// One connection to one member. openraft asks for one for appends, one for heartbeats and one
/// for snapshots.
pub(crate) struct PeerLink {
    peers: Arc<Peers>,
    target: u64,
    channel: Option<Line>,
    failures: usize,
}

impl PeerLink {
    fn client(&mut self) -> Result<PeerClient<Line>, Unreachable<TypeConfig>> {
        let channel = match &self.channel {
            Some(channel) => channel.clone(),
            None => {
                let made = self.peers.connect(self.target, self.failures);
                let channel = made.map_err(|error| Unreachable::new(&error))?;
                self.channel.insert(channel).clone()
            }
        };
        Ok(PeerClient::new(channel)
            .max_decoding_message_size(limits::PEER_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(limits::PEER_MESSAGE_BYTES_MAX))
    }

    /// Forgets the connection, so that the next call looks the address up again.
    fn failed(&mut self, status: &tonic::Status) -> RPCError<TypeConfig> {
        self.channel = None;
        self.failures += 1;
        if status.code() == tonic::Code::Unavailable {
            Unreachable::new(status).into()
        } else {
            NetworkError::new(status).into()
        }
    }

    async fn ask_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
        pre_vote: bool,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let mut client = self.client()?;
        let mut call = self.peers.request(self.target, wire::vote_request_to_pb(&request));
        call.set_timeout(option.hard_ttl());
        let answer = if pre_vote { client.pre_vote(call).await } else { client.vote(call).await };
        match answer {
            Ok(response) => wire::vote_response_from_pb(response.into_inner())
                .map_err(|error| NetworkError::new(&error).into()),
            Err(status) => Err(self.failed(&status)),
        }
    }
}

impl NetVote<TypeConfig> for PeerLink {
    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(request, option, false).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask_vote(request, option, true).await
    }
}

impl NetBackoff<TypeConfig> for PeerLink {
    fn backoff(&self) -> Option<Backoff> {
        None
    }
}

/// Appends that wait for their acknowledgement: when each was sent.
type Unacknowledged = Arc<Mutex<VecDeque<Instant>>>;

impl NetStreamAppend<TypeConfig> for PeerLink {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<AppendStream<'s>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        Box::pin(async move {
            let mut client = self.client()?;
            let sent = Unacknowledged::default();
            let window = Arc::new(tokio::sync::Semaphore::new(limits::APPENDS_IN_FLIGHT_MAX));
            let requests = encode_appends(input, Arc::clone(&sent), Arc::clone(&window));
            let call = self.peers.request(self.target, requests);
            let opened =
                tokio::time::timeout(limits::APPEND_ACK_TIMEOUT, client.append(call)).await;
            let responses = match opened {
                Ok(Ok(response)) => response.into_inner(),
                Ok(Err(status)) => return Err(self.failed(&status)),
                Err(_) => return Err(self.failed(&no_acknowledgement())),
            };
            let link = Acknowledgements { link: self, responses, sent, window };
            let answers = stream::unfold(Some(link), |link| async move {
                let mut link = link?;
                let answer = link.next().await?;
                let go_on = matches!(answer, Ok(Ok(_)));
                Some((answer, go_on.then_some(link)))
            });
            Ok(answers.boxed())
        })
    }
}

/// Turns openraft's requests into messages, at most [`limits::APPENDS_IN_FLIGHT_MAX`] ahead.
fn encode_appends<S>(
    input: S,
    sent: Unacknowledged,
    window: Arc<tokio::sync::Semaphore>,
) -> impl Stream<Item = crate::pb::quorate::peer::AppendRequest> + Send + 'static
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
{
    stream::unfold((input, sent, window), |(mut input, sent, window)| async move {
        // The permit comes back with the acknowledgement.
        window.acquire().await.ok()?.forget();
        let request = input.next().await?;
        sent.lock().push_back(clock::now());
        Some((wire::append_request_to_pb(request), (input, sent, window)))
    })
}

/// The follower's answers, in the order of the requests.
struct Acknowledgements<'s> {
    link: &'s mut PeerLink,
    responses: tonic::Streaming<AppendResponse>,
    sent: Unacknowledged,
    window: Arc<tokio::sync::Semaphore>,
}

impl Acknowledgements<'_> {
    /// The next answer; an error once the oldest request waits too long, `None` at the end.
    async fn next(
        &mut self,
    ) -> Option<Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>> {
        loop {
            let wait =
                tokio::time::timeout(limits::APPEND_ACK_TIMEOUT / 4, self.responses.message());
            match wait.await {
                Ok(Ok(Some(response))) => {
                    self.sent.lock().pop_front();
                    self.window.add_permits(1);
                    return Some(append_result(response));
                }
                Ok(Ok(None)) => return None,
                Ok(Err(status)) => return Some(Err(self.link.failed(&status))),
                Err(_) => {
                    let oldest = self.sent.lock().front().copied();
                    let overdue = oldest.is_some_and(|sent| {
                        clock::now().saturating_duration_since(sent) > limits::APPEND_ACK_TIMEOUT
                    });
                    if overdue {
                        return Some(Err(self.link.failed(&no_acknowledgement())));
                    }
                }
            }
        }
    }
}

fn no_acknowledgement() -> tonic::Status {
    tonic::Status::unavailable("the member acknowledges no appends")
}

fn append_result(
    response: AppendResponse,
) -> Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>> {
    wire::append_result_from_pb(response).map_err(|error| NetworkError::new(&error).into())
}

impl NetSnapshot<TypeConfig> for PeerLink {
    type SnapshotData = SnapshotData;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let mut client = self.client()?;
        let (frames, transfer) = send_snapshot(vote, snapshot)?;
        let call = self.peers.request(self.target, frames);
        tokio::select! {
            biased;
            // Dropping the call closes the stream; the receiver discards what it staged.
            closed = cancel => Err(StreamingError::Closed(closed)),
            answer = client.install_snapshot(call) => match answer {
                Ok(reply) => match reply.into_inner().vote {
                    Some(vote) => {
                        transfer.arrived();
                        Ok(SnapshotResponse::new(codec::vote_from_pb(vote)))
                    }
                    None => Err(NetworkError::from_string("empty answer").into()),
                },
                Err(status) => Err(match self.failed(&status) {
                    RPCError::Unreachable(error) => error.into(),
                    _ => NetworkError::new(&status).into(),
                }),
            },
        }
    }
}

impl NetTransferLeader<TypeConfig> for PeerLink {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let mut client = self.client()?;
        let message = wire::transfer_request_to_pb(&request);
        let mut call = self.peers.request(self.target, message);
        call.set_timeout(option.hard_ttl());
        match client.transfer_leader(call).await {
            Ok(reply) => Ok(wire::transfer_reply_from_pb(reply.into_inner(), &request)),
            Err(status) => Err(self.failed(&status)),
        }
    }
}
