//! How this member reaches the others: addresses from the membership, a channel a purpose, identity
//! on every call.
//!
//! Heartbeats and votes must not queue behind bulk data, so appends, heartbeats, votes and snapshots
//! have a connection each. Addresses are looked up whenever a channel is made, so that a
//! member that moved is found again without a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

use super::WriteError;
use super::line::Connector;
use super::traffic::PeerLine;
use crate::metrics::{Metrics, PeerMetrics};
use crate::pb::quorate::command::Group;
use crate::pb::quorate::peer::peer_client::PeerClient;
use crate::pb::quorate::peer::{
    LeaseRenewRequest, LeaseTimeToLiveReply, LeaseTimeToLiveRequest, ProposeRequest,
    ReadIndexRequest, Standing, StandingRequest,
};
use crate::{clock, limits};

/// Metadata keys that every call between members carries.
pub(crate) const CLUSTER_ID: &str = "quorate-cluster-id";
pub(crate) const FROM: &str = "quorate-from";
pub(crate) const TO: &str = "quorate-to";
/// Set on the status of a proposal that certainly reached no log.
pub(crate) const NOT_APPENDED: &str = "quorate-not-appended";

/// The other members: where they are, and channels for calls that belong to no raft stream.
pub struct Peers {
    cluster_id: u64,
    member_id: u64,
    connector: Arc<dyn Connector>,
    metrics: Arc<Metrics>,
    meters: RwLock<BTreeMap<u64, Arc<PeerMetrics>>>,
    addresses: RwLock<BTreeMap<u64, Vec<String>>>,
    channels: RwLock<BTreeMap<u64, (String, PeerLine)>>,
    vote_lines: Mutex<BTreeMap<u64, VoteLine>>,
    /// Members that could not be reached when last tried.
    away: Mutex<BTreeSet<u64>>,
}

/// A line for votes. It outlives the election that it was made for: where connecting takes longer
/// than a vote may take, the next one finds it connected.
struct VoteLine {
    url: String,
    line: PeerLine,
    made_at: Instant,
    /// The last vote that was sent on it has its answer.
    has_answered: bool,
}

impl VoteLine {
    /// Whether the next vote may go this way: a line that is silent for longer than it takes to
    /// connect may never speak again.
    fn is_of_use(&self, url: &str, now: Instant) -> bool {
        let is_young =
            now.saturating_duration_since(self.made_at) < limits::PEER_VOTE_LINE_PATIENCE;
        self.url == url && (self.has_answered || is_young)
    }
}

/// Why there is no channel to a member.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The membership does not name it.
    #[error("member {0:x} is not in the membership")]
    UnknownMember(u64),
    /// Its peer URL cannot be used.
    #[error("peer URL {url} of member {member:x}: {source}")]
    BadUrl {
        /// Whose URL it is.
        member: u64,
        /// The URL.
        url: String,
        /// What is wrong with it.
        #[source]
        source: tonic::transport::Error,
    },
}

impl Peers {
    /// Peers of `member_id`, none known yet.
    pub fn new(
        cluster_id: u64,
        member_id: u64,
        connector: Arc<dyn Connector>,
        metrics: Arc<Metrics>,
    ) -> Arc<Peers> {
        Arc::new(Peers {
            cluster_id,
            member_id,
            connector,
            metrics,
            meters: RwLock::default(),
            addresses: RwLock::default(),
            channels: RwLock::default(),
            vote_lines: Mutex::default(),
            away: Mutex::default(),
        })
    }

    /// This member's id.
    pub fn member_id(&self) -> u64 {
        self.member_id
    }

    /// The cluster's id.
    pub fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    /// Learns where members are, from a membership.
    pub fn learn<'a>(&self, members: impl Iterator<Item = (u64, &'a [String])>) {
        let mut addresses = self.addresses.write();
        for (id, urls) in members {
            self.metrics.knows_member(self.member_id, id);
            if id != self.member_id {
                self.meter(id);
            }
            addresses.insert(id, urls.to_vec());
        }
    }

    /// The counters of `target`.
    pub(super) fn meter(&self, target: u64) -> Arc<PeerMetrics> {
        self.meter_of_known(target).unwrap_or_else(|| {
            let meter = Arc::new(self.metrics.peer(self.member_id, target));
            Arc::clone(self.meters.write().entry(target).or_insert(meter))
        })
    }

    /// The counters of `member`, if it is in the membership or was ever asked something.
    pub(super) fn meter_of_known(&self, member: u64) -> Option<Arc<PeerMetrics>> {
        self.meters.read().get(&member).cloned()
    }

    /// A new lazy connection to `target`, for one purpose; `attempt` picks among its URLs.
    pub(crate) fn connect(&self, target: u64, attempt: usize) -> Result<PeerLine, PeerError> {
        let url = self.url(target, attempt)?;
        self.connect_to(target, &url)
    }

    fn connect_to(&self, target: u64, url: &str) -> Result<PeerLine, PeerError> {
        Ok(PeerLine::new(self.connector.connect(target, url)?, self.meter(target)))
    }

    fn url(&self, target: u64, attempt: usize) -> Result<String, PeerError> {
        let addresses = self.addresses.read();
        let urls = addresses.get(&target).filter(|urls| !urls.is_empty());
        let urls = urls.ok_or(PeerError::UnknownMember(target))?;
        Ok(urls[attempt % urls.len()].clone())
    }

    /// Tells the operator, once, that `target` cannot be reached.
    pub(crate) fn lost(&self, target: u64, status: &tonic::Status) {
        let meter = self.meter(target);
        meter.sent_failures.inc();
        if self.away.lock().insert(target) {
            meter.is_away();
            let member = format!("{target:x}");
            tracing::warn!(member, error = status.message(), "a member cannot be reached");
        }
    }

    /// Tells the operator, once, that `target` is back.
    pub(crate) fn found(&self, target: u64) {
        self.meter(target).is_here();
        if self.away.lock().remove(&target) {
            tracing::info!(member = format!("{target:x}"), "a member can be reached again");
        }
    }

    /// The shared connection for single calls to `target`.
    pub(crate) fn channel(&self, target: u64) -> Result<PeerLine, PeerError> {
        let url = self.url(target, 0)?;
        if let Some((connected, channel)) = self.channels.read().get(&target)
            && *connected == url
        {
            return Ok(channel.clone());
        }
        let channel = self.connect_to(target, &url)?;
        self.channels.write().insert(target, (url, channel.clone()));
        Ok(channel)
    }

    /// The line for the next vote that `target` is asked for.
    pub(crate) fn vote_line(&self, target: u64) -> Result<PeerLine, PeerError> {
        let (url, now) = (self.url(target, 0)?, clock::now());
        let mut lines = self.vote_lines.lock();
        if let Some(kept) = lines.get_mut(&target)
            && kept.is_of_use(&url, now)
        {
            kept.has_answered = false;
            return Ok(kept.line.clone());
        }
        let line = self.connect_to(target, &url)?;
        let made = VoteLine { url, line: line.clone(), made_at: now, has_answered: false };
        lines.insert(target, made);
        Ok(line)
    }

    /// `target` has answered on its line for votes.
    pub(crate) fn vote_line_answered(&self, target: u64) {
        if let Some(kept) = self.vote_lines.lock().get_mut(&target) {
            kept.has_answered = true;
        }
    }

    /// The line for votes to `target` is of no use any more.
    pub(crate) fn vote_line_broke(&self, target: u64) {
        self.vote_lines.lock().remove(&target);
    }

    /// A request of ours to `target`, with the identity of both.
    pub(crate) fn request<T>(&self, target: u64, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        self.identify(target, request.metadata_mut());
        request
    }

    fn identify(&self, target: u64, metadata: &mut MetadataMap) {
        metadata.insert(CLUSTER_ID, hex(self.cluster_id));
        metadata.insert(FROM, hex(self.member_id));
        metadata.insert(TO, hex(target));
    }

    /// Whether `metadata` comes from another member of this cluster and means this member.
    pub(crate) fn check(&self, metadata: &MetadataMap) -> Result<u64, tonic::Status> {
        let id = |key| {
            let text = metadata.get(key).and_then(|value| value.to_str().ok());
            text.and_then(|text| u64::from_str_radix(text, 16).ok())
        };
        let (Some(cluster), Some(from), Some(to)) = (id(CLUSTER_ID), id(FROM), id(TO)) else {
            return Err(tonic::Status::invalid_argument("the call carries no member identity"));
        };
        if cluster != self.cluster_id {
            return Err(tonic::Status::failed_precondition("etcdserver: cluster ID mismatch"));
        }
        if to != self.member_id || from == self.member_id {
            let text = format!("this is member {:x}, not {to:x}", self.member_id);
            return Err(tonic::Status::failed_precondition(text));
        }
        if let Some(meter) = self.meter_of_known(from) {
            meter.is_here();
        }
        Ok(from)
    }

    /// Asks `leader` for the index that a linearizable read must wait for.
    pub(crate) async fn read_index(
        &self,
        leader: u64,
        timeout: Duration,
    ) -> Result<u64, tonic::Status> {
        let mut client = PeerClient::new(self.channel(leader).map_err(unavailable)?);
        let mut request = self.request(leader, ReadIndexRequest {});
        request.set_timeout(timeout);
        Ok(client.read_index(request).await?.into_inner().index)
    }

    /// Has `leader` renew leases.
    pub(crate) async fn renew_leases(
        &self,
        leader: u64,
        ids: Vec<i64>,
        timeout: Duration,
    ) -> Result<Vec<i64>, tonic::Status> {
        let mut client = PeerClient::new(self.channel(leader).map_err(unavailable)?);
        let mut request = self.request(leader, LeaseRenewRequest { ids });
        request.set_timeout(timeout);
        Ok(client.lease_renew(request).await?.into_inner().ttls)
    }

    /// Asks `leader` how long a lease still lives.
    pub(crate) async fn lease_time_to_live(
        &self,
        leader: u64,
        request: LeaseTimeToLiveRequest,
        timeout: Duration,
    ) -> Result<LeaseTimeToLiveReply, tonic::Status> {
        let client = PeerClient::new(self.channel(leader).map_err(unavailable)?);
        let mut client = client.max_decoding_message_size(limits::PEER_MESSAGE_BYTES_MAX);
        let mut request = self.request(leader, request);
        request.set_timeout(timeout);
        Ok(client.lease_time_to_live(request).await?.into_inner())
    }

    /// Asks `target` what it knows of this member.
    pub(crate) async fn standing(
        &self,
        target: u64,
        timeout: Duration,
    ) -> Result<Standing, tonic::Status> {
        let mut client = PeerClient::new(self.channel(target).map_err(unavailable)?);
        let mut request = self.request(target, StandingRequest {});
        request.set_timeout(timeout);
        Ok(client.standing(request).await?.into_inner().standing())
    }

    /// Has `leader` propose `group`.
    pub(crate) async fn propose(
        &self,
        leader: u64,
        group: Group,
        timeout: Duration,
    ) -> Result<(), WriteError> {
        let channel = self.channel(leader).map_err(|_| WriteError::NotAppended)?;
        let mut client = PeerClient::new(channel)
            .max_decoding_message_size(limits::PEER_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(limits::PEER_MESSAGE_BYTES_MAX);
        let mut request = self.request(leader, ProposeRequest { group: Some(group) });
        request.set_timeout(timeout);
        match client.propose(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.metadata().contains_key(NOT_APPENDED) => {
                Err(WriteError::NotAppended)
            }
            Err(_) => Err(WriteError::Unknown),
        }
    }
}

pub(super) fn unavailable(error: PeerError) -> tonic::Status {
    tonic::Status::unavailable(error.to_string())
}

fn hex(id: u64) -> MetadataValue<Ascii> {
    format!("{id:x}").parse().expect("hexadecimal digits are ASCII")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::line::{Line, Tcp};
    use super::*;

    /// Counts the lines that are asked for.
    #[derive(Default)]
    struct Counted(AtomicUsize);

    impl Connector for Counted {
        fn connect(&self, member: u64, url: &str) -> Result<Line, PeerError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Tcp.connect(member, url)
        }
    }

    /// A cluster whose connections took longer than a vote may take never had a leader: each vote
    /// went on a line of its own.
    #[tokio::test(start_paused = true)]
    async fn the_next_vote_finds_the_line_of_the_last_one() {
        let counted = Arc::new(Counted::default());
        let connector = Arc::clone(&counted) as Arc<dyn Connector>;
        let peers = Peers::new(1, 2, connector, Arc::default());
        let urls = ["http://127.0.0.1:1".to_owned()];
        peers.learn(std::iter::once((3, &urls[..])));
        let lines_after_a_vote = || {
            peers.vote_line(3).unwrap();
            counted.0.load(Ordering::Relaxed)
        };
        assert_eq!([lines_after_a_vote(), lines_after_a_vote()], [1, 1], "it is still connecting");
        peers.vote_line_answered(3);
        tokio::time::advance(2 * limits::PEER_VOTE_LINE_PATIENCE).await;
        assert_eq!(lines_after_a_vote(), 1, "it answered the vote before");
        assert_eq!(lines_after_a_vote(), 2, "an old one that has fallen silent");
        peers.vote_line_broke(3);
        assert_eq!(lines_after_a_vote(), 3);
    }
}
