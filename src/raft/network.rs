//! openraft's side of the network: appends as one pipelined stream a peer, votes, snapshots, transfer.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
use prost::Message;
use tokio::sync::Semaphore;

use super::checkpoints::LogFloor;
use super::codec;
use super::peers::Peers;
use super::snapshot::{SnapshotData, send_snapshot};
use super::traffic::PeerLine;
use super::types::{MemberNode, Snapshot, TypeConfig, Vote};
use super::wire;
use crate::clock;
use crate::limits;
use crate::metrics::PeerMetrics;
use crate::pb::quorate::peer::peer_client::PeerClient;
use crate::pb::quorate::peer::snapshot_frame::Body;
use crate::pb::quorate::peer::{AppendRequest, AppendResponse, SnapshotFrame};

type AppendStream<'s> = BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>;

/// Makes a client for each member and purpose.
pub(crate) struct Network {
    peers: Arc<Peers>,
    log_floor: Arc<LogFloor>,
}

impl Network {
    pub(crate) fn new(peers: Arc<Peers>, log_floor: Arc<LogFloor>) -> Self {
        Network { peers, log_floor }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = PeerLink;

    async fn new_client(&mut self, target: u64, node: &MemberNode) -> PeerLink {
        self.peers.learn(std::iter::once((target, node.peer_urls.as_slice())));
        let (peers, log_floor) = (Arc::clone(&self.peers), Arc::clone(&self.log_floor));
        let meter = self.peers.meter(target);
        PeerLink { peers, log_floor, target, meter, channel: None, failures: 0, is_here: None }
    }
}

/// One connection to one member. openraft asks for one for appends, one for heartbeats and one for
/// snapshots, and anew for each vote: votes have a line that [`Peers`] keeps.
pub(crate) struct PeerLink {
    peers: Arc<Peers>,
    log_floor: Arc<LogFloor>,
    target: u64,
    meter: Arc<PeerMetrics>,
    channel: Option<PeerLine>,
    failures: usize,
    /// Whether the last call was answered; not known before the first.
    is_here: Option<bool>,
}

impl PeerLink {
    fn client(&mut self) -> Result<PeerClient<PeerLine>, Unreachable<TypeConfig>> {
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
        self.is_here = Some(false);
        self.peers.lost(self.target, status);
        if status.code() == tonic::Code::Unavailable {
            Unreachable::new(status).into()
        } else {
            NetworkError::new(status).into()
        }
    }

    /// The other end has answered.
    fn answered(&mut self) {
        if self.is_here != Some(true) {
            self.is_here = Some(true);
            self.peers.found(self.target);
        }
    }

    async fn ask_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
        pre_vote: bool,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let line = self.peers.vote_line(self.target).map_err(|error| Unreachable::new(&error))?;
        let mut client = PeerClient::new(line);
        let mut call = self.peers.request(self.target, wire::vote_request_to_pb(&request));
        call.set_timeout(option.hard_ttl());
        let answer = if pre_vote { client.pre_vote(call).await } else { client.vote(call).await };
        match answer {
            Ok(response) => {
                self.answered();
                self.peers.vote_line_answered(self.target);
                wire::vote_response_from_pb(response.into_inner())
                    .map_err(|error| NetworkError::new(&error).into())
            }
            Err(status) => {
                if status.code() == tonic::Code::Unavailable {
                    self.peers.vote_line_broke(self.target);
                }
                Err(self.failed(&status))
            }
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

/// Appends that wait for their acknowledgement, oldest first.
#[derive(Debug, Default)]
struct Unacknowledged(VecDeque<Sent>);

/// One append under way.
#[derive(Debug)]
struct Sent {
    /// Since when it has had the link for itself.
    since: Instant,
    bytes: usize,
    /// It brings nothing and waits for nothing: how long it takes is how long the way is.
    is_probe: bool,
}

impl Unacknowledged {
    fn sent(&mut self, bytes: usize, is_empty: bool, now: Instant) {
        let is_probe = is_empty && self.0.is_empty();
        self.0.push_back(Sent { since: now, bytes, is_probe });
    }

    /// The oldest has arrived. The next one had to wait behind it, so its time begins only now.
    fn acknowledged(&mut self, now: Instant) -> Option<Sent> {
        let arrived = self.0.pop_front();
        if let Some(next) = self.0.front_mut() {
            next.since = now;
        }
        arrived
    }

    /// Whether even a slow link would have brought the oldest by `now`.
    fn is_overdue(&self, now: Instant) -> bool {
        self.0.front().is_some_and(|Sent { since, bytes, .. }| {
            let allowance = limits::APPEND_ACK_TIMEOUT + crossing_time(*bytes);
            now.saturating_duration_since(*since) > allowance
        })
    }
}

/// How long the slowest link that is served takes for `bytes`.
fn crossing_time(bytes: usize) -> Duration {
    Duration::from_millis(bytes as u64 * 1000 / limits::PEER_BYTES_PER_SECOND_MIN)
}

impl NetStreamAppend<TypeConfig> for PeerLink {
    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<AppendStream<'s>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
    {
        Box::pin(async move {
            // openraft waits after a failure, but within its stream only. So there must be something
            // to send before the call is made, or a member that is away is called without a pause.
            let Some(first) = input.next().await else { return Ok(stream::empty().boxed()) };
            let input = stream::iter([first]).chain(input);
            let mut client = self.client()?;
            let sent = Arc::new(Mutex::new(Unacknowledged::default()));
            let window = Arc::new(Window::new());
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

/// How much may be sent ahead of the acknowledgements: messages, and their bytes.
struct Window {
    messages: Semaphore,
    bytes: Semaphore,
}

impl Window {
    fn new() -> Window {
        let messages = Semaphore::new(limits::APPENDS_IN_FLIGHT_MAX);
        Window { messages, bytes: Semaphore::new(limits::APPEND_BYTES_IN_FLIGHT_MAX) }
    }

    /// A message that is larger than the whole window has it for itself.
    fn share(bytes: usize) -> usize {
        bytes.min(limits::APPEND_BYTES_IN_FLIGHT_MAX)
    }

    /// Waits until a message of `bytes` may be sent; `None` once nobody acknowledges any more.
    async fn enter(&self, bytes: usize) -> Option<()> {
        let share = u32::try_from(Window::share(bytes)).ok()?;
        self.bytes.acquire_many(share).await.ok()?.forget();
        Some(())
    }

    /// The message of `bytes` has arrived.
    fn leave(&self, bytes: usize) {
        self.messages.add_permits(1);
        self.bytes.add_permits(Window::share(bytes));
    }
}

/// Turns openraft's requests into messages, as far ahead as the window allows.
fn encode_appends<S>(
    input: S,
    sent: Arc<Mutex<Unacknowledged>>,
    window: Arc<Window>,
) -> impl Stream<Item = AppendRequest> + Send + 'static
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
{
    stream::unfold((input, sent, window), |(mut input, sent, window)| async move {
        // The permits come back with the acknowledgement.
        window.messages.acquire().await.ok()?.forget();
        let request = wire::append_request_to_pb(input.next().await?);
        // Only adds up lengths; nothing is encoded here.
        let bytes = request.encoded_len();
        window.enter(bytes).await?;
        sent.lock().sent(bytes, request.entries.is_empty(), clock::now());
        Some((request, (input, sent, window)))
    })
}

/// The follower's answers, in the order of the requests.
struct Acknowledgements<'s> {
    link: &'s mut PeerLink,
    responses: tonic::Streaming<AppendResponse>,
    sent: Arc<Mutex<Unacknowledged>>,
    window: Arc<Window>,
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
                    let now = clock::now();
                    let arrived = self.sent.lock().acknowledged(now);
                    if let Some(Sent { since, bytes, is_probe }) = arrived {
                        self.window.leave(bytes);
                        if is_probe {
                            let took = now.saturating_duration_since(since);
                            self.link.meter.round_trips.observe(took.as_secs_f64());
                        }
                    }
                    self.link.answered();
                    let result = append_result(response);
                    if let Ok(Ok(Some(matched))) = &result
                        && self.link.log_floor.is_above(matched.index)
                    {
                        return Some(Err(NetworkError::new(&too_slow()).into()));
                    }
                    return Some(result);
                }
                Ok(Ok(None)) => return None,
                Ok(Err(status)) => return Some(Err(self.link.failed(&status))),
                Err(_) => {
                    let is_overdue = self.sent.lock().is_overdue(clock::now());
                    if is_overdue {
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

fn too_slow() -> tonic::Status {
    tonic::Status::aborted("the member is too far behind to go on with the log")
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
        let give_up_at = Arc::new(Mutex::new(clock::now() + limits::SNAPSHOT_FRAME_TIMEOUT));
        let taken = Arc::clone(&give_up_at);
        let frames = frames.inspect(move |frame| *taken.lock() = clock::now() + patience(frame));
        let call = self.peers.request(self.target, frames);
        let mut cancel = pin!(cancel);
        let answer = tokio::select! {
            biased;
            // Dropping the call closes the stream; the receiver discards what it staged.
            closed = cancel.as_mut() => return Err(StreamingError::Closed(closed)),
            answer = client.install_snapshot(call) => Some(answer),
            () = passed(&give_up_at) => None,
        };
        match answer {
            Some(Ok(reply)) => match reply.into_inner().vote {
                Some(vote) => {
                    transfer.arrived();
                    Ok(SnapshotResponse::new(codec::vote_from_pb(vote)))
                }
                None => Err(NetworkError::from_string("empty answer").into()),
            },
            Some(Err(status)) => Err(self.failed(&status).into()),
            None => {
                let member = format!("{:x}", self.target);
                tracing::warn!(member, "the receiver of a database snapshot makes no progress");
                // The next attempt holds the log again; in between it can be dropped.
                drop(transfer);
                let pause = tokio::time::timeout(limits::SNAPSHOT_STALLED_PAUSE, cancel);
                match pause.await {
                    Ok(closed) => Err(StreamingError::Closed(closed)),
                    Err(_) => Err(self.failed(&no_progress()).into()),
                }
            }
        }
    }
}

/// How long the receiver of `frame` may take until it asks for the next one, or answers the last.
fn patience(frame: &SnapshotFrame) -> Duration {
    match &frame.body {
        Some(Body::Footer(_)) => limits::SNAPSHOT_INSTALL_TIMEOUT,
        Some(Body::Records(records)) => {
            limits::SNAPSHOT_FRAME_TIMEOUT + crossing_time(records.pairs.len())
        }
        Some(Body::Header(_)) | None => limits::SNAPSHOT_FRAME_TIMEOUT,
    }
}

/// Resolves once `deadline` has passed, which may move meanwhile.
async fn passed(deadline: &Mutex<Instant>) {
    loop {
        let until = *deadline.lock();
        if until <= clock::now() {
            return;
        }
        tokio::time::sleep_until(until.into()).await;
    }
}

fn no_progress() -> tonic::Status {
    tonic::Status::unavailable("the member takes no more of the snapshot")
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::quorate::peer::{SnapshotFooter, SnapshotRecords};

    const SLACK: Duration = limits::APPEND_ACK_TIMEOUT;
    const MOMENT: Duration = Duration::from_millis(1);
    const MIB: usize = 1 << 20;

    #[test]
    fn a_small_append_is_overdue_after_the_timeout() {
        let now = clock::now();
        let mut sent = Unacknowledged::default();
        assert!(!sent.is_overdue(now + SLACK * 100), "nothing is waited for");
        sent.sent(60, false, now);
        assert!(!sent.is_overdue(now + SLACK));
        assert!(sent.is_overdue(now + SLACK + MOMENT));
        sent.acknowledged(now + SLACK);
        assert!(!sent.is_overdue(now + SLACK * 100), "all have arrived");
    }

    /// What brings entries waits for the follower's disk; what goes behind others, for those.
    #[test]
    fn only_a_heartbeat_by_itself_tells_how_long_the_way_is() {
        let now = clock::now();
        let mut sent = Unacknowledged::default();
        for (is_empty, is_probe) in [(true, true), (true, false), (false, false)] {
            sent.sent(60, is_empty, now);
            assert_eq!(sent.0.back().map(|sent| sent.is_probe), Some(is_probe));
        }
        while sent.acknowledged(now).is_some() {}
        sent.sent(60, false, now);
        assert!(sent.acknowledged(now).is_some_and(|sent| !sent.is_probe));
    }

    /// A message that a slow link could not bring within the timeout was sent again for ever.
    #[test]
    fn a_large_append_may_take_as_long_as_a_slow_link_needs() {
        let now = clock::now();
        let mut sent = Unacknowledged::default();
        sent.sent(2 * MIB, false, now);
        assert_eq!(crossing_time(2 * MIB), Duration::from_secs(32));
        assert!(!sent.is_overdue(now + SLACK + Duration::from_secs(32)));
        assert!(sent.is_overdue(now + SLACK + Duration::from_secs(32) + MOMENT));
    }

    #[test]
    fn appends_that_wait_behind_each_other_are_not_overdue_while_they_arrive() {
        let mut now = clock::now();
        let mut sent = Unacknowledged::default();
        for _ in 0..limits::APPENDS_IN_FLIGHT_MAX {
            sent.sent(MIB, false, now);
        }
        for _ in 0..limits::APPENDS_IN_FLIGHT_MAX {
            now += crossing_time(MIB);
            assert!(!sent.is_overdue(now));
            sent.acknowledged(now);
        }
    }

    #[test]
    fn the_receiver_has_more_time_after_the_last_frame() {
        let frame = |body| patience(&SnapshotFrame { body: Some(body) });
        let pairs = vec![0_u8; 512 * 1024].into();
        let records = Body::Records(SnapshotRecords { pairs, ..Default::default() });
        assert_eq!(frame(records), limits::SNAPSHOT_FRAME_TIMEOUT + Duration::from_secs(8));
        let footer = Body::Footer(SnapshotFooter::default());
        assert_eq!(frame(footer), limits::SNAPSHOT_INSTALL_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_moves_is_waited_for() {
        let begun = clock::now();
        let deadline = Mutex::new(begun + Duration::from_secs(20));
        let moved = async {
            tokio::time::sleep(Duration::from_secs(19)).await;
            *deadline.lock() = begun + Duration::from_secs(50);
        };
        tokio::join!(passed(&deadline), moved);
        assert_eq!(clock::now().duration_since(begun).as_secs(), 50);
    }
}
