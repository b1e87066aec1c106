//! The handle that every door holds: propose, read, and know who this member is.
//!
//! Doors (the etcd API, later others) validate and translate; everything that makes a request
//! consistent happens here. A write goes through [`Member::propose`] and returns what the state
//! machine made of it. A linearizable read passes [`Member::read_barrier`] and then looks at
//! [`Member::state`]. Both are answered in batches per serving thread, see `shard`.
//!
//! **Invariant:** no door touches raft or changes the state by itself.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use parking_lot::RwLockReadGuard;
use tokio::sync::mpsc;

use crate::clock;
use crate::identity::{ClusterId, MemberId};
use crate::pb::etcdserverpb::request_op::Request;
use crate::pb::etcdserverpb::{RequestOp, ResponseHeader};
use crate::pb::quorate::command::{Command, Group, PublishMember, command::Body};
use crate::pb::quorate::peer::{LeaseTimeToLiveReply, LeaseTimeToLiveRequest};
use crate::raft::{Forwarded, GroupId, Node, Observer, Store, WriteError};
use crate::state::{Applied, ColdPair, Event, RequestError, Response};
use crate::watch::{Feed, Hub};
use crate::{limits, mutants, tasks};

mod compact;
mod counts;
mod error;
mod lease;
pub(crate) mod lessor;
mod propose;
mod read;
pub(crate) mod shard;
mod watch;

pub use counts::OperationCounts;
pub use error::Error;
pub use lessor::{KeepAlive, LeaseCounts};
pub use shard::{Reply, Shard};

use compact::Compactor;
use counts::Unanswered;
use lessor::Lessor;
use propose::{Proposer, ProposerOptions};
use read::Reads;
use shard::Delivery;
use watch::StateHistory;

/// Who this member is and within which bounds it works.
#[derive(Debug, Clone)]
pub struct MemberOptions {
    /// This member.
    pub member_id: MemberId,
    /// Its cluster.
    pub cluster_id: ClusterId,
    /// `--name`.
    pub name: String,
    /// `--advertise-client-urls`.
    pub client_urls: Vec<String>,
    /// `--max-request-bytes`.
    pub request_bytes_max: usize,
    /// The largest message of an answer.
    pub answer_bytes_max: usize,
    /// A unary call that takes longer is logged.
    pub warning_unary_request_duration: Duration,
    /// An entry that takes longer to apply is logged, and counted as slow.
    pub warning_apply_duration: Duration,
    /// `--max-txn-ops`.
    pub txn_ops_max: usize,
    /// The least TTL that a lease is granted, in seconds: three halves of an election timeout.
    pub lease_ttl_seconds_min: i64,
    /// `--quota-backend-bytes`, as Status reports it.
    pub quota_bytes: i64,
    /// `--watch-progress-notify-interval`.
    pub watch_progress_interval: Duration,
    /// `--election-timeout`.
    pub election_timeout: Duration,
    /// How long a request may take: 5 s and two election timeouts, as in etcd.
    pub request_timeout: Duration,
}

/// What a member is built from before raft starts: raft reports to it.
pub struct Seed {
    options: MemberOptions,
    counts: Arc<OperationCounts>,
    proposer: Arc<Proposer>,
    compactor: Arc<Compactor>,
    lessor: Arc<Lessor>,
    compactor_woken: mpsc::UnboundedReceiver<()>,
    feed: Arc<Feed>,
    shards: Vec<Arc<Shard>>,
    deliveries: Vec<mpsc::UnboundedReceiver<Delivery>>,
    on_fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Seed {
    /// Prepares a member with `shards` serving threads and a state at `revision`; `on_fatal` must
    /// end the process.
    pub fn new(
        options: MemberOptions,
        shards: usize,
        revision: i64,
        on_fatal: Arc<dyn Fn(&str) + Send + Sync>,
    ) -> Seed {
        let feed = Feed::new(shards, revision, limits::WATCH_WINDOW_BYTES_MAX);
        let hubs = (0..shards).map(|number| (number, Hub::new(&feed, number)));
        let (shards, deliveries): (Vec<_>, Vec<_>) =
            hubs.map(|(number, hub)| Shard::new(number, hub)).unzip();
        let proposer_options = ProposerOptions {
            member_id: options.member_id.0,
            request_bytes_max: options.request_bytes_max,
            request_timeout: options.request_timeout,
        };
        let proposer = Arc::new(Proposer::new(proposer_options, shards.clone()));
        let lessor = Lessor::new(options.member_id.0, options.request_timeout, shards.clone());
        let counts: Arc<OperationCounts> = Arc::default();
        let (compactor, compactor_woken) = Compactor::new(Arc::clone(&counts));
        Seed {
            options,
            counts,
            proposer,
            compactor,
            lessor,
            compactor_woken,
            feed,
            shards,
            deliveries,
            on_fatal,
        }
    }

    /// Whom raft tells what it applied.
    pub fn observer(&self) -> Arc<dyn Observer> {
        Arc::new(MemberObserver {
            counts: Arc::clone(&self.counts),
            proposer: Arc::clone(&self.proposer),
            compactor: Arc::clone(&self.compactor),
            lessor: Arc::clone(&self.lessor),
            feed: Arc::clone(&self.feed),
            shards: self.shards.clone(),
            warning_apply_duration: self.options.warning_apply_duration,
            on_fatal: Arc::clone(&self.on_fatal),
        })
    }

    /// Starts the member's loops on the current (raft) runtime.
    ///
    /// Returns it with one [`ShardSeat`] for each serving thread.
    pub fn start(self, node: Arc<Node>) -> (Arc<Member>, Vec<ShardSeat>) {
        let reads = Reads::new(self.shards.clone());
        let timeout = self.options.request_timeout;
        tasks::spawn("proposer", Arc::clone(&self.proposer).run(Arc::clone(&node)));
        tasks::spawn("reader", Arc::clone(&reads).run(Arc::clone(&node), timeout));
        self.lessor.start(&node);
        let on_fatal = Arc::clone(&self.on_fatal);
        let shared = Arc::clone(node.shared());
        Arc::clone(&self.compactor).start(self.compactor_woken, shared, move |error| {
            on_fatal(&error.to_string());
        });
        self.compactor.wake();
        let history = Arc::new(StateHistory {
            shared: Arc::clone(node.shared()),
            compactor: Arc::clone(&self.compactor),
            on_fatal: Arc::clone(&self.on_fatal),
        });
        let member = Arc::new(Member {
            options: self.options,
            feed: self.feed,
            history,
            node,
            counts: self.counts,
            proposer: self.proposer,
            compactor: self.compactor,
            lessor: self.lessor,
            reads,
        });
        tasks::spawn("sweeper", Arc::clone(&member).sweep());
        let seats = self.shards.into_iter().zip(self.deliveries);
        let seats = seats.map(|(shard, deliveries)| ShardSeat { shard, deliveries }).collect();
        (member, seats)
    }
}

/// A serving thread's place at the member.
pub struct ShardSeat {
    /// What requests of this thread pass to the member.
    pub shard: Arc<Shard>,
    deliveries: mpsc::UnboundedReceiver<Delivery>,
}

impl ShardSeat {
    /// Fires the completions for this thread; runs on it until the member is gone.
    pub async fn deliver(self, member: Arc<Member>) {
        let hub = Arc::clone(self.shard.hub());
        tasks::spawn("watch-catch-up", hub.catch_up(Arc::clone(&member.history) as _));
        self.shard.deliver_all(self.deliveries).await;
    }
}

struct MemberObserver {
    counts: Arc<OperationCounts>,
    proposer: Arc<Proposer>,
    compactor: Arc<Compactor>,
    lessor: Arc<Lessor>,
    feed: Arc<Feed>,
    shards: Vec<Arc<Shard>>,
    warning_apply_duration: Duration,
    on_fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Observer for MemberObserver {
    fn applied(&self, group: GroupId, outcomes: Vec<Applied>) {
        if outcomes.iter().any(|applied| matches!(applied.outcome, Ok(Response::Compact))) {
            self.compactor.wake();
        }
        self.counts.applied(outcomes.iter().filter_map(|applied| applied.outcome.as_ref().ok()));
        if outcomes.iter().any(lessor::concerns_leases) {
            self.lessor.observe(group, &outcomes);
        }
        self.proposer.complete(group, outcomes);
    }

    fn changed(&self, events: Vec<Event>) {
        self.counts.changed(&events);
        self.feed.publish(events, |hub, news| self.shards[hub].deliver(Delivery::Watch(news)));
    }

    /// Tells of what took long, in etcd's words, which operators look for.
    fn took(&self, commands: usize, took: Duration) {
        let expected = self.warning_apply_duration;
        if took > expected {
            self.counts.slow_applies.fetch_add(1, Relaxed);
            tracing::warn!(
                commands,
                took = ?took,
                expected_duration = ?expected,
                "apply request took too long"
            );
        }
    }

    fn installed(&self, revision: i64) {
        self.feed.resync(revision, |hub, news| self.shards[hub].deliver(Delivery::Watch(news)));
        self.compactor.wake();
    }

    fn leader_changed(&self, _leader: Option<u64>) {}

    fn fatal(&self, reason: &str) {
        (self.on_fatal)(reason);
    }
}

/// This member of the cluster.
pub struct Member {
    options: MemberOptions,
    feed: Arc<Feed>,
    history: Arc<StateHistory>,
    node: Arc<Node>,
    counts: Arc<OperationCounts>,
    proposer: Arc<Proposer>,
    compactor: Arc<Compactor>,
    lessor: Arc<Lessor>,
    reads: Arc<Reads>,
}

impl Member {
    /// Who this member is.
    pub fn options(&self) -> &MemberOptions {
        &self.options
    }

    /// This member's raft, for what Status and health report.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// How many operations it carried out.
    pub fn counts(&self) -> &OperationCounts {
        &self.counts
    }

    /// The header of an answer at `revision`.
    pub fn header(&self, revision: i64) -> ResponseHeader {
        ResponseHeader {
            cluster_id: self.options.cluster_id.0,
            member_id: self.options.member_id.0,
            revision,
            raft_term: self.node.leadership().term,
        }
    }

    /// The state as applied here; never hold it across an await.
    pub fn state(&self) -> RwLockReadGuard<'_, Store> {
        self.node.shared().state.read()
    }

    /// Has `command` ordered and applied; the outcome is this member's own.
    ///
    /// Dropping the future does not take the command back: its outcome is then unknown.
    ///
    /// # Errors
    /// See [`Error`]; a refusal by the state machine is inside the [`Applied`].
    pub async fn propose(&self, shard: &Shard, command: Body) -> Result<Applied, Error> {
        if self.node.shared().space_low() && adds_data(&command) {
            return Err(RequestError::NoSpace.into());
        }
        let command = Command { body: Some(command) };
        let receiver = self.proposer.submit(shard.id, command)?;
        if mutants::is_on("mutant_reply_before_commit") {
            let put = Response::Put(crate::state::PutAnswer::default());
            let revision = self.state().revision() + 1;
            return Ok(Applied { outcome: Ok(put), revision, events: Vec::new() });
        }
        let unanswered = Unanswered(&self.counts);
        let answer = receiver.await.unwrap_or(Err(Error::Stopped))?;
        unanswered.answered();
        Ok(answer)
    }

    /// Waits until a look at the state is linearizable.
    ///
    /// # Errors
    /// [`Error::Timeout`] or [`Error::TimeoutApplied`].
    pub async fn read_barrier(&self, shard: &Shard) -> Result<(), Error> {
        if self.node.reads_alone() || mutants::is_on("mutant_read_without_index") {
            return Ok(());
        }
        let result = match self.reads.join(shard.id).await {
            Ok(result) => result.map_err(Error::from),
            Err(_) => Err(Error::Stopped),
        };
        if result.is_err() {
            self.counts.read_indexes_failed.fetch_add(1, Relaxed);
        }
        result
    }

    /// Keeps pairs that a read fetched from the disk in memory, within the budget.
    pub fn warm(&self, pairs: Vec<ColdPair>) {
        self.node.shared().state.write().warm(pairs);
    }

    /// Groups of writes that wait for their outcomes.
    pub fn pending_proposals(&self) -> u64 {
        self.proposer.pending_groups() as u64
    }

    /// Resolves when this member has known no leader for three election timeouts, as in etcd.
    pub async fn leader_lost(&self) {
        let mut news = self.node.watch_contact();
        // The sender lives as long as the node.
        while news.wait_for(|has_leader| !has_leader).await.is_ok() {
            let found = news.wait_for(|has_leader| *has_leader);
            if tokio::time::timeout(3 * self.options.election_timeout, found).await.is_err() {
                return;
            }
        }
    }

    /// Waits until everything below `revision` is physically gone on this member.
    pub async fn compaction_finished(&self, revision: i64) {
        self.compactor.finished(revision).await;
    }

    /// Announces this member's name and client URLs through the log, until it succeeds or the member
    /// stops.
    pub async fn publish(&self, shard: &Shard) {
        let announcement = PublishMember {
            member_id: self.options.member_id.0,
            name: self.options.name.clone(),
            client_urls: self.options.client_urls.clone(),
        };
        let mut patience = limits::PUBLISH_RETRY;
        loop {
            let attempt = self.propose(shard, Body::PublishMember(announcement.clone()));
            match tokio::time::timeout(patience, attempt).await {
                Ok(Ok(_) | Err(Error::Stopped)) => return,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "cannot publish this member yet");
                    // Some refusals come at once.
                    tokio::time::sleep(limits::PUBLISH_RETRY).await;
                }
                // The entry may have come inside a snapshot, which tells no outcomes. To announce the
                // same again does no harm.
                Err(_) => patience *= 2,
            }
        }
    }

    /// Has the voter `target` lead; returns once it does.
    ///
    /// # Errors
    /// [`Error::NotLeader`], [`Error::BadLeaderTransferee`], or [`Error::TimeoutLeaderTransfer`] after
    /// the request timeout; then the target, or another member, may lead yet.
    pub async fn move_leader(&self, target: u64) -> Result<(), Error> {
        if !self.node.is_leader() {
            return Err(Error::NotLeader);
        }
        if !self.node.members().iter().any(|(id, _, votes)| *id == target && *votes) {
            return Err(Error::BadLeaderTransferee);
        }
        if target == self.options.member_id.0 {
            return Ok(());
        }
        let moved = async {
            self.node.caught_up(target).await;
            self.node.hand_over_to(target).await
        };
        match tokio::time::timeout(self.options.request_timeout, moved).await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(Error::TimeoutLeaderTransfer),
        }
    }

    /// Stops taking writes, gives leadership away and stops raft.
    pub async fn stop(&self, hand_over: Duration) {
        self.node.hand_over(hand_over).await;
        self.proposer.close();
        self.node.stop().await;
    }

    async fn sweep(self: Arc<Self>) {
        let leadership = self.node.watch_leadership();
        let mut leader = leadership.borrow().leader;
        let mut elected_at = None;
        loop {
            tokio::time::sleep(limits::SWEEP_INTERVAL).await;
            let now = clock::now();
            let before = std::mem::replace(&mut leader, leadership.borrow().leader);
            if leader.is_some() && leader != before {
                elected_at = Some(now);
            }
            // As in etcd: who asked when the old leader could just have failed, and a new one came.
            let failed = |deadline: Instant| {
                let began = deadline - self.options.request_timeout;
                elected_at
                    .is_some_and(|at| began < at && at < began + 2 * self.options.election_timeout)
            };
            let has_leader = self.node.leader().is_some();
            self.proposer.sweep(now, |late| {
                if late.is_in_no_log && !has_leader {
                    Error::TimeoutNoLeader
                } else if failed(late.deadline) {
                    Error::TimeoutLeaderFailure
                } else {
                    Error::Timeout
                }
            });
        }
    }
}

/// Whether `command` makes the store grow; deletes and compaction are taken on a full disk.
fn adds_data(command: &Body) -> bool {
    match command {
        Body::Put(_) | Body::LeaseGrant(_) => true,
        Body::Txn(request) => has_put(&request.success) || has_put(&request.failure),
        Body::DeleteRange(_)
        | Body::Compact(_)
        | Body::PublishMember(_)
        | Body::LeaseRevoke(_)
        | Body::LeaseRenew(_)
        | Body::LeaseExpire(_) => false,
    }
}

fn has_put(operations: &[RequestOp]) -> bool {
    operations.iter().any(|operation| match &operation.request {
        Some(Request::RequestPut(_)) => true,
        Some(Request::RequestTxn(nested)) => has_put(&nested.success) || has_put(&nested.failure),
        _ => false,
    })
}

impl Forwarded for Member {
    fn propose(&self, group: Group) -> BoxFuture<'_, Result<(), WriteError>> {
        Box::pin(async move {
            if !self.node.is_leader() {
                return Err(WriteError::NotAppended);
            }
            self.proposer.submit_foreign(group).await.unwrap_or(Err(WriteError::Unknown))
        })
    }

    fn read_index(&self) -> BoxFuture<'_, Option<u64>> {
        Box::pin(async move {
            if !self.node.is_leader() {
                return None;
            }
            self.reads.join_peer().await.ok()
        })
    }

    fn renew_leases(&self, ids: Vec<i64>) -> BoxFuture<'_, Option<Vec<i64>>> {
        Box::pin(self.renew_for_peer(ids))
    }

    fn lease_time_to_live(
        &self,
        request: LeaseTimeToLiveRequest,
    ) -> BoxFuture<'_, Option<LeaseTimeToLiveReply>> {
        Box::pin(self.time_to_live_for_peer(request))
    }
}
