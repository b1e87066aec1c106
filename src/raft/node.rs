//! This member's raft: started, asked, and stopped here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, InitializeError, RaftError};
use openraft::impls::ProgressResponder;
use openraft::{Config, LinearizerOption, Raft, RaftLogReader, ServerState, SnapshotPolicy};

use super::checkpoints::LogFloor;
use super::confirm::Confirmations;
use super::contact::Contact;
use super::log_store::LogStore;
use super::network::Network;
use super::peers::Peers;
use super::shared::{Shared, SharedParts, SoleVoter};
use super::state_machine::StateMachine;
use super::types::{MemberNode, ProposalBytes, TypeConfig};
use super::{Observer, StateHome, Store, WriteError};
use crate::clock;
use crate::mutants;
use crate::pb::quorate::command::Group;
use crate::pb::quorate::peer::{LeaseTimeToLiveReply, LeaseTimeToLiveRequest};
use crate::state::Options;
use crate::tasks::{self, watch};

type OurRaft = Raft<TypeConfig, StateMachine>;

/// How a node is set up.
pub struct NodeOptions {
    /// This member's id.
    pub member_id: u64,
    /// `--heartbeat-interval`.
    pub heartbeat_interval: Duration,
    /// `--election-timeout`, in etcd's sense: a follower campaigns after one to two of them.
    pub election_timeout: Duration,
    /// Log entries to keep for followers that lag (`--snapshot-catchup-entries`).
    pub catchup_entries: u64,
    /// `--snapshot-count`: entries between two checkpoints.
    pub snapshot_count: u64,
    /// Bytes of log to keep for followers that lag.
    pub log_retained_bytes_max: u64,
    /// How the state is opened.
    pub state_options: Options,
}

/// What a node is made of.
pub struct NodeParts {
    /// The opened log.
    pub log: LogStore,
    /// The opened state.
    pub state: Store,
    /// Where the state lies, and one that a snapshot brings.
    pub home: Arc<dyn StateHome>,
    /// Where the other members are.
    pub peers: Arc<Peers>,
    /// Who wants to know what is applied.
    pub observer: Arc<dyn Observer>,
    /// Tells when reads need no round; the log store reports memberships to it.
    pub sole_voter: Arc<SoleVoter>,
}

/// Who leads, as far as this member knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Leadership {
    /// This member's term.
    pub term: u64,
    /// The leader it follows, or itself.
    pub leader: Option<u64>,
    /// Whether this member leads.
    pub is_leader: bool,
    /// Whether this member does not vote.
    pub is_learner: bool,
}

/// This member's raft.
pub struct Node {
    pub(super) raft: OurRaft,
    pub(super) shared: Arc<Shared>,
    peers: Arc<Peers>,
    sole_voter: Arc<SoleVoter>,
    leadership: watch::Sender<Leadership>,
    leader_changes: AtomicU64,
    /// What fails from now on is no reason to end the process.
    is_stopping: AtomicBool,
    confirmations: Confirmations,
    contact: Contact,
    pub(super) log_floor: Arc<LogFloor>,
    pub(super) options: NodeOptions,
}

impl Node {
    /// Recovers and starts the node on the current runtime.
    ///
    /// # Errors
    /// What openraft says if log and state do not fit together.
    pub async fn start(options: NodeOptions, parts: NodeParts) -> Result<Arc<Node>, StartError> {
        let config = Arc::new(raft_config(&options)?);
        let NodeParts { log, state, home, peers, observer, sole_voter } = parts;
        let boot_term = boot_term(&log).await?;
        sole_voter.booted_at(boot_term);
        let reported = Arc::clone(&sole_voter);
        log.set_membership_hook(Box::new(move |stored| reported.membership_changed(stored)));
        let shared = Shared::new(SharedParts {
            state,
            state_options: options.state_options,
            log: log.clone(),
            observer,
            home,
            sole_voter: Arc::clone(&sole_voter),
        });
        let log_floor = Arc::new(LogFloor::default());
        let network = Network::new(Arc::clone(&peers), Arc::clone(&log_floor));
        let machine = StateMachine::new(Arc::clone(&shared));
        let raft = Raft::new(options.member_id, config, network, log, machine)
            .await
            .map_err(|fatal| StartError(fatal.to_string()))?;
        let recovered = raft.with_raft_state(|state| state.membership_state.effective().clone());
        let recovered = recovered.await.map_err(|fatal| StartError(fatal.to_string()))?;
        sole_voter.membership_recovered(&recovered);
        let leadership = watch::Sender::new(Leadership::default());
        let leader_changes = AtomicU64::new(0);
        let contact = Contact::new();
        let node = Arc::new(Node {
            raft,
            shared,
            peers,
            sole_voter,
            leadership,
            leader_changes,
            is_stopping: AtomicBool::new(false),
            confirmations: Confirmations::default(),
            contact,
            log_floor,
            options,
        });
        tasks::spawn("raft-status", Arc::clone(&node).follow_status());
        tasks::spawn("leader-contact", Arc::clone(&node).follow_contact());
        tasks::spawn("disk-watch", Arc::clone(&node).watch_disk());
        tasks::spawn("checkpoints", Arc::clone(&node).checkpoint_and_purge());
        Ok(node)
    }

    /// Forms a new cluster of `members`; every initial member calls this with the same list.
    pub async fn initialize(&self, members: BTreeMap<u64, MemberNode>) -> Result<(), StartError> {
        match self.raft.initialize(members).await {
            // The cluster is formed already, by an earlier start or by another member.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(StartError(error.to_string())),
        }
    }

    /// Whether this member belongs to a formed cluster.
    pub async fn is_initialized(&self) -> Result<bool, StartError> {
        self.raft.is_initialized().await.map_err(|fatal| StartError(fatal.to_string()))
    }

    /// Lets a sole voter lead without waiting for an election timeout: nobody could object.
    pub async fn elect_if_alone(&self) {
        let metrics = self.raft.server_metrics();
        let alone = {
            let metrics = metrics.borrow_watched();
            metrics.membership_config.voter_ids().eq([self.options.member_id])
        };
        if alone && let Err(fatal) = self.raft.trigger().elect(false).await {
            tracing::warn!(%fatal, "cannot campaign");
        }
    }

    pub(crate) fn raft(&self) -> &OurRaft {
        &self.raft
    }

    /// The state and its surroundings.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// This member's id.
    pub(super) fn member_id(&self) -> u64 {
        self.options.member_id
    }

    /// How long followers wait for a leader, at least.
    pub(super) fn election_timeout(&self) -> Duration {
        self.options.election_timeout
    }

    /// How read rounds ask other voters.
    pub(super) fn confirmations(&self) -> &Confirmations {
        &self.confirmations
    }

    /// The other members.
    pub fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// The cluster's clock in milliseconds, as far as this member knows; 0 if it never began.
    pub fn clock_ms(&self) -> u64 {
        if mutants::is_on("mutant_wall_clock") {
            return clock::unix_ms();
        }
        self.shared.clock.read(clock::now())
    }

    /// The time for an entry to propose; none while this member does not lead, or has yet to apply what
    /// came before its term.
    pub fn stamp_ms(&self) -> Option<u64> {
        let leadership = self.leadership();
        if !leadership.is_leader {
            return None;
        }
        if mutants::is_on("mutant_wall_clock") {
            return Some(clock::unix_ms());
        }
        self.shared.clock.stamp(leadership.term, clock::now(), clock::unix_ms)
    }

    /// As [`Node::stamp_ms`], but a new leader's is waited for until it has caught up, or `deadline`.
    pub async fn next_stamp_ms(&self, deadline: Instant) -> Option<u64> {
        if let Some(stamp) = self.stamp_ms() {
            return Some(stamp);
        }
        let (mut applied, mut news) = (self.shared.applied(), self.leadership.subscribe());
        let mut stamp = self.stamp_ms();
        while stamp.is_none() && self.is_leader() {
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(deadline.into()) => return None,
                // Either way it is looked at again; both senders live as long as `self`.
                _ = applied.changed() => {}
                _ = news.changed() => {}
            }
            stamp = self.stamp_ms();
        }
        stamp
    }

    /// Who leads.
    pub fn leadership(&self) -> Leadership {
        *self.leadership.borrow()
    }

    /// News of who leads.
    pub fn watch_leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    pub(crate) fn contact(&self) -> &Contact {
        &self.contact
    }

    /// News of whether this member is in touch with a leader, or, if it leads, with a majority.
    pub fn watch_contact(&self) -> watch::Receiver<bool> {
        self.contact.subscribe()
    }

    /// Whether this member knows a leader and is in touch with it, or with a majority if it leads.
    pub fn has_leader(&self) -> bool {
        let leadership = self.leadership();
        let patience = self.options.election_timeout;
        if !leadership.is_leader {
            return leadership.leader.is_some() && self.contact.is_fresh(patience);
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let is_alone = metrics.membership_config.voter_ids().eq([self.options.member_id]);
        let acked = metrics.last_quorum_acked.as_deref();
        is_alone || acked.is_some_and(|acked| acked.elapsed() <= patience)
    }

    /// The leader, if this member is in touch with it: etcd names none when the last one is silent.
    pub fn leader(&self) -> Option<u64> {
        self.leadership().leader.filter(|_| self.has_leader())
    }

    /// Looks from time to time whether the leader is still there.
    async fn follow_contact(self: Arc<Self>) {
        let mut leadership = self.leadership.subscribe();
        loop {
            self.contact.publish(self.has_leader());
            let pause = self.options.election_timeout / 4;
            // A change is news at once; an end of the sender is the end of the node.
            if let Ok(Err(_)) = tokio::time::timeout(pause, leadership.changed()).await {
                return;
            }
        }
    }

    /// Whether this member leads.
    pub fn is_leader(&self) -> bool {
        self.leadership.borrow().is_leader
    }

    /// How often another leader was seen.
    pub fn leader_changes(&self) -> u64 {
        self.leader_changes.load(Ordering::Relaxed)
    }

    /// Whether reads of the applied state are linearizable without a round.
    pub fn reads_alone(&self) -> bool {
        self.sole_voter.granted()
    }

    /// The highest index known to be committed.
    pub fn committed_index(&self) -> u64 {
        let metrics = self.raft.data_metrics();
        let metrics = metrics.borrow_watched();
        metrics.local_committed.as_ref().map_or(0, |id| id.index())
    }

    /// Waits until raft has taken up all that it was given.
    pub(super) async fn idle(&self) -> Result<(), Fatal<TypeConfig>> {
        self.raft.with_raft_state(|_| ()).await
    }

    /// The last entry of this member's log.
    pub(super) fn last_log_index(&self) -> Option<u64> {
        self.raft.metrics().borrow_watched().last_log_index
    }

    /// Whether this member leads and `follower` has acknowledged part of its log.
    pub(super) fn has_acknowledged(&self, follower: u64) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let replication = metrics.replication.as_ref();
        replication.and_then(|all| all.get(&follower)).is_some_and(Option::is_some)
    }

    /// Ids and nodes of all members, and whether each votes.
    pub fn members(&self) -> Vec<(u64, MemberNode, bool)> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let membership = &metrics.membership_config;
        let voters: Vec<u64> = membership.voter_ids().collect();
        let nodes = membership.nodes();
        nodes.map(|(id, node)| (*id, node.clone(), voters.contains(id))).collect()
    }

    /// Proposes one entry here; resolves once it is applied on this member.
    ///
    /// Dropping the future does not take the entry back.
    pub async fn write(&self, proposal: Bytes) -> Result<(), WriteError> {
        let (responder, done) = ProgressResponder::complete_only();
        let sent = self.raft.client_write_ff(ProposalBytes(proposal), Some(responder)).await;
        sent.map_err(|_| WriteError::Stopped)?;
        tokio::select! {
            biased;
            written = done => match written {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(ClientWriteError::ForwardToLeader(_))) => Err(WriteError::NotAppended),
                Ok(Err(_)) | Err(_) => Err(WriteError::Unknown),
            },
            // A deposed leader's entry may be committed by its successor or be overwritten.
            () = self.leader_is_not(self.options.member_id) => Err(WriteError::Unknown),
        }
    }

    /// Has the leader propose `group`.
    pub async fn forward(&self, group: Group, deadline: Instant) -> Result<(), WriteError> {
        // What is sent to a leader that is silent may still reach it: better it waits here.
        let Some(leader) = self.leader().filter(|_| !self.is_leader()) else {
            return Err(WriteError::NotAppended);
        };
        let left = deadline.saturating_duration_since(clock::now());
        tokio::select! {
            biased;
            answer = self.peers.propose(leader, group, left) => answer,
            // A leader that hangs must not hold up what its successor could take.
            () = self.leader_is_not(leader) => Err(WriteError::Unknown),
        }
    }

    /// Resolves once another member than `member` leads.
    async fn leader_is_not(&self, member: u64) {
        let mut news = self.leadership.subscribe();
        // The sender lives as long as `self`.
        drop(news.wait_for(|now| now.leader.is_some_and(|leader| leader != member)).await);
    }

    /// Has the leader renew leases; one answer for each, see `peer.proto`.
    pub async fn forward_renewals(&self, ids: Vec<i64>, timeout: Duration) -> Option<Vec<i64>> {
        let leadership = self.leadership();
        let leader = leadership.leader.filter(|_| !leadership.is_leader)?;
        tokio::select! {
            biased;
            answer = self.peers.renew_leases(leader, ids, timeout) => answer.ok(),
            () = self.leader_is_not(leader) => None,
        }
    }

    /// Asks the leader how long a lease still lives.
    pub async fn forward_time_to_live(
        &self,
        request: LeaseTimeToLiveRequest,
        timeout: Duration,
    ) -> Option<LeaseTimeToLiveReply> {
        let leadership = self.leadership();
        let leader = leadership.leader.filter(|_| !leadership.is_leader)?;
        tokio::select! {
            biased;
            answer = self.peers.lease_time_to_live(leader, request, timeout) => answer.ok(),
            () = self.leader_is_not(leader) => None,
        }
    }

    /// Waits until leadership changes, but not longer than `timeout`.
    pub async fn leader_news(&self, timeout: Duration) {
        let mut news = self.leadership.subscribe();
        // Either way the caller looks again.
        drop(tokio::time::timeout(timeout, news.changed()).await);
    }

    /// One read round: the index that was committed at some moment during the call.
    pub async fn read_index(&self, timeout: Duration) -> Option<u64> {
        let leadership = self.leadership();
        if !leadership.is_leader {
            let leader = leadership.leader?;
            return match self.index_by_asking(leader).await {
                Some(index) => Some(index),
                None => self.peers.read_index(leader, timeout).await.ok(),
            };
        }
        if let Some(index) = self.confirmed_index().await {
            return Some(index);
        }
        // Zero age: only acknowledgements of messages sent after this call count (Raft, section 6.4).
        let option = LinearizerOption::new(Some(Duration::ZERO), true).with_wait_timeout(timeout);
        match self.raft.get_read_linearizer(option).await {
            Ok(linearizer) => Some(linearizer.read_log_id().index()),
            Err(error) => {
                tracing::debug!(%error, "read round failed");
                None
            }
        }
    }

    /// Asks another voter to take over, and waits until one leads or `timeout` is over.
    pub async fn hand_over(&self, timeout: Duration) {
        if !self.is_leader() {
            return;
        }
        let Some(target) = self.best_successor() else { return };
        if tokio::time::timeout(timeout, self.hand_over_to(target)).await.is_err() {
            tracing::warn!("no other member took leadership over in time");
        }
    }

    /// Asks the voter `target` to take over, and waits until it leads; false if it cannot be asked.
    ///
    /// From then on this leader proposes nothing: without the target another voter is elected.
    pub async fn hand_over_to(&self, target: u64) -> bool {
        tracing::info!(to = format!("{target:x}"), "handing leadership over");
        if self.raft.trigger().transfer_leader(target).await.is_err() {
            return false;
        }
        let mut news = self.leadership.subscribe();
        news.wait_for(|now| now.leader == Some(target)).await.is_ok()
    }

    /// Waits until `follower` has what this leader's log has now: it could not be elected before.
    pub async fn caught_up(&self, follower: u64) {
        let mut metrics = self.raft.metrics();
        let last = metrics.borrow_watched().last_log_index;
        loop {
            let matched = metrics.borrow_and_update().replication.as_ref().and_then(|all| {
                all.get(&follower).and_then(|matched| matched.as_ref().map(|id| id.index()))
            });
            // An end of the sender is the end of raft.
            if matched >= last || metrics.changed().await.is_err() {
                return;
            }
        }
    }

    /// The voter whose log is longest.
    pub(super) fn best_successor(&self) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let voters: Vec<u64> = metrics.membership_config.voter_ids().collect();
        let replication = metrics.replication.as_ref()?;
        replication
            .iter()
            .filter(|(id, matched)| {
                voters.contains(id) && **id != self.options.member_id && matched.is_some()
            })
            .max_by_key(|(_, matched)| matched.as_ref().map(|log_id| log_id.index()))
            .map(|(id, _)| *id)
    }

    /// Stops the node and waits until its last write is on disk, unless that has no space.
    pub async fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        // Raft itself may be waiting for its vote to be written.
        self.shared.log.begin_close();
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "raft ended badly");
        }
    }

    /// Mirrors openraft's view of leadership and ends the process if raft cannot go on.
    async fn follow_status(self: Arc<Self>) {
        let mut metrics = self.raft.server_metrics();
        let mut running = self.raft.metrics();
        loop {
            let now = {
                let metrics = metrics.borrow_and_update();
                let membership = &metrics.membership_config;
                let me = self.options.member_id;
                let nodes = membership.nodes();
                self.peers.learn(nodes.map(|(id, node)| (*id, node.peer_urls.as_slice())));
                Leadership {
                    term: metrics.vote.leader_id.term,
                    leader: metrics.current_leader,
                    is_leader: metrics.state == ServerState::Leader,
                    is_learner: membership.nodes().any(|(id, _)| *id == me)
                        && !membership.voter_ids().any(|id| id == me),
                }
            };
            self.publish(now);
            let fatal = running.borrow_and_update().running_state.clone().err();
            if let Some(fatal) = fatal {
                return self.end(&fatal);
            }
            if metrics.changed().await.is_err() {
                let fatal = running.borrow_watched().running_state.clone().err();
                return self.end(&fatal.unwrap_or(Fatal::Stopped));
            }
        }
    }

    fn publish(&self, now: Leadership) {
        let before = self.leadership.send_replace(now);
        if before.leader != now.leader {
            let leader = now.leader.map(|id| format!("{id:x}"));
            tracing::info!(leader, term = now.term, "raft leader changed");
            if now.leader.is_some() {
                self.leader_changes.fetch_add(1, Ordering::Relaxed);
            }
            self.shared.observer.leader_changed(now.leader);
        }
    }

    /// A failed storage or a broken invariant: going on would risk the promises.
    fn end(&self, fatal: &Fatal<TypeConfig>) {
        let is_stopping = self.is_stopping.load(Ordering::Relaxed);
        if !matches!(fatal, Fatal::Stopped) && !is_stopping {
            tracing::error!(%fatal, "raft stopped; the member exits");
            self.shared.observer.fatal(&fatal.to_string());
        }
    }
}

/// The term of the vote that an earlier life of this member left.
async fn boot_term(log: &LogStore) -> Result<u64, StartError> {
    let vote = log.clone().read_vote().await.map_err(|error| StartError(error.to_string()))?;
    Ok(vote.map_or(0, |vote| vote.leader_id.term))
}

/// The node could not start.
#[derive(Debug, thiserror::Error)]
#[error("raft: {0}")]
pub struct StartError(String);

/// etcd's two timing flags in openraft's terms.
///
/// etcd waits one to two election timeouts before it campaigns. openraft waits for the lease of the
/// last leader (the maximum) plus a random time between minimum and maximum, so four to six tenths
/// of the flag give one to 1.2 of it.
fn raft_config(options: &NodeOptions) -> Result<Config, StartError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let election = millis(options.election_timeout);
    let election_timeout_max = election * 6 / 10;
    let config = Config {
        cluster_name: "quorate".to_owned(),
        heartbeat_interval: millis(options.heartbeat_interval),
        election_timeout_min: election * 4 / 10,
        election_timeout_max,
        enable_pre_vote: Some(true),
        // With asynchronous flushes a restored leader could give one log id to two entries.
        enable_leader_restore: Some(mutants::is_on("mutant_restore_leader")),
        quorum_loss_probe_interval: Some(election_timeout_max * 5 / 2),
        max_payload_entries: 1024,
        max_append_entries: Some(4096),
        api_channel_size: Some(8192),
        snapshot_policy: SnapshotPolicy::Never,
        // Purging is decided by bytes and entries in `checkpoint_and_purge`, never as a side effect.
        max_in_snapshot_log_to_keep: u64::MAX / 4,
        purge_batch_size: 1,
        install_snapshot_timeout: 60_000,
        ..Config::default()
    };
    config.validate().map_err(|error| StartError(error.to_string()))
}
