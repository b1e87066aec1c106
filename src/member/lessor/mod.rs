//! The lessor: answers keep-alives and ends leases that have run out, on the leader only.
//!
//! The log knows when each lease was granted or renewed last. The leader answers a keep-alive from
//! memory while that is at most a second ago; otherwise the renewal goes into the next entry of
//! renewals, one of which is under way at a time, and the keep-alive is answered when it is applied.
//! So what was answered survives the leader: its successor lets every lease live a second longer.
//!
//! ```text
//!   keep-alive ─► fresh?  ──────────────► answer            (serving thread)
//!                   └─► waiting ─► one entry for many ─► answers      leader
//!                              └─► one call for many ─► answers       follower
//!   clock ─► table: ended? ─► LeaseExpire, a few in an entry ─► applied: gone
//! ```
//! What applying does to leases is told by [`Lessor::observe`], on every member. A lease whose end
//! is proposed is not renewed any more; its keep-alives wait until it is gone.
//!
//! - `table`: which lease ends when.
//! - `waiting`: keep-alives that wait, and how they are answered.
//!
//! **Invariants:** only the leader of a term that has applied an entry with its stamp of that term
//! answers from memory and ends leases, see [`crate::raft::ClusterClock`]; its proposals are never
//! forwarded. Renewals and ends pass the queue of the writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{Notify, oneshot};

use super::Error;
use super::shard::Shard;
use crate::pb::quorate::command::command::Body;
use crate::pb::quorate::command::{Command, Group, LeaseExpire, LeaseRenew, Proposal};
use crate::raft::{GroupId, Leadership, Node, WriteError};
use crate::state::{Applied, LeaseExpiry, LeaseTerm, Response};
use crate::{clock, limits, mutants, tasks};

mod table;
mod waiting;

use table::{KeepAliveNeeds, Table};
use waiting::{Answers, Waiting};

/// What a peer is told of a lease whose end has come: it asks again.
const ASK_AGAIN: i64 = -1;

/// No proposer has this epoch, so nobody else takes the outcomes of our groups for its own.
const EPOCH: u64 = 0;

/// The answer to a keep-alive: the TTL in seconds, 0 if there is no such lease.
pub(crate) type Renewal = Result<i64, Error>;

/// A keep-alive that was taken.
pub enum KeepAlive {
    /// It is answered.
    Now(i64),
    /// The answer comes.
    Later(oneshot::Receiver<Renewal>),
}

/// How often what happened to leases, since the member started.
#[derive(Debug, Default)]
pub struct LeaseCounts {
    /// Leases granted, as applied here.
    pub granted: AtomicU64,
    /// Leases revoked or expired, as applied here.
    pub revoked: AtomicU64,
    /// Keep-alives that this member answered as the leader.
    pub renewed: AtomicU64,
    /// Leases that this member ended as the leader.
    pub expired: AtomicU64,
}

/// See the head of this file.
pub(crate) struct Lessor {
    member_id: u64,
    request_timeout: Duration,
    inner: Mutex<Inner>,
    /// There are keep-alives that wait, or one of them may go on.
    renewals: Notify,
    /// So many keep-alives wait that an entry is worth it.
    full: Notify,
    /// The next lease to look at may be another one.
    looks: Notify,
    shards: Vec<Arc<Shard>>,
    counts: LeaseCounts,
}

#[derive(Default)]
struct Inner {
    /// On a leader.
    table: Option<Table>,
    /// The term that the table was made in.
    term: u64,
    waiting: Vec<Waiting>,
    /// Those whose leases are about to go, until when they rest.
    resting: (Vec<Waiting>, Option<Instant>),
    last_sequence: u64,
    /// The terms in our last applied entry of renewals, and its number.
    renewed: (u64, Vec<LeaseTerm>),
}

impl Inner {
    /// The answer to a keep-alive that nothing has to be written for.
    fn answer_now(&mut self, id: i64, shard: Option<usize>, now_ms: u64) -> Option<i64> {
        match self.table.as_mut()?.keep_alive(id, now_ms) {
            KeepAliveNeeds::Nothing(ttl_seconds) => Some(ttl_seconds),
            KeepAliveNeeds::End if shard.is_none() => Some(ASK_AGAIN),
            KeepAliveNeeds::End | KeepAliveNeeds::Renewal => None,
        }
    }

    fn wait(
        &mut self,
        id: i64,
        deadline: Instant,
        shard: Option<usize>,
    ) -> oneshot::Receiver<Renewal> {
        let (sender, receiver) = oneshot::channel();
        if self.waiting.len() + self.resting.0.len() < limits::LEASE_RENEWALS_WAITING_MAX {
            self.waiting.push(Waiting { id, deadline, shard, sender });
        } else {
            // The receiver is in our hands.
            sender.send(Err(Error::TooManyRequests)).ok();
        }
        receiver
    }

    /// Looks at these again after a while: the lease is about to go.
    fn rest(&mut self, mut those: Vec<Waiting>, now: Instant) {
        if !those.is_empty() {
            self.resting.0.append(&mut those);
            self.resting.1.get_or_insert(now + limits::LEASE_ENDING_POLL);
        }
    }

    /// Brings back those that have rested.
    fn wake_rested(&mut self, now: Instant) {
        if self.resting.1.is_some_and(|until| until <= now) {
            self.waiting.append(&mut self.resting.0);
            self.resting.1 = None;
        }
    }
}

impl Lessor {
    pub(crate) fn new(
        member_id: u64,
        request_timeout: Duration,
        shards: Vec<Arc<Shard>>,
    ) -> Arc<Lessor> {
        Arc::new(Lessor {
            member_id,
            request_timeout,
            inner: Mutex::default(),
            renewals: Notify::new(),
            full: Notify::new(),
            looks: Notify::new(),
            shards,
            counts: LeaseCounts::default(),
        })
    }

    /// Starts the lessor's loops on the current (raft) runtime.
    pub(crate) fn start(self: &Arc<Self>, node: &Arc<Node>) {
        tasks::spawn("lessor-leads", Arc::clone(self).follow_leadership(Arc::clone(node)));
        tasks::spawn("lessor-renews", Arc::clone(self).renew_waiting(Arc::clone(node)));
        tasks::spawn("lessor-expires", Arc::clone(self).expire_ended(Arc::clone(node)));
    }

    pub(crate) fn counts(&self) -> &LeaseCounts {
        &self.counts
    }

    /// Takes keep-alives of a client of serving thread `shard`, or of a peer.
    pub(crate) fn keep_alive(
        &self,
        ids: &[i64],
        shard: Option<usize>,
        node: &Node,
    ) -> Vec<KeepAlive> {
        let deadline = clock::now() + self.request_timeout;
        let mut inner = self.inner.lock();
        let waited = inner.waiting.len();
        let now_ms = node.clock_ms();
        // After the clock: what sets it back says first that the table is out of date.
        let is_current = node.shared().clock.is_shared(inner.term);
        let answer_now = |inner: &mut Inner, id| {
            if is_current { inner.answer_now(id, shard, now_ms) } else { None }
        };
        let taken = ids.iter().map(|&id| match answer_now(&mut inner, id) {
            Some(ttl_seconds) => KeepAlive::Now(ttl_seconds),
            None => KeepAlive::Later(inner.wait(id, deadline, shard)),
        });
        let taken: Vec<KeepAlive> = taken.collect();
        let waiting = inner.waiting.len();
        drop(inner);
        if waiting > waited {
            self.renewals.notify_one();
        }
        if (waited..waiting).contains(&(limits::LEASE_RENEW_FULL - 1)) {
            self.full.notify_one();
        }
        let answered = taken.iter().filter(|one| matches!(one, KeepAlive::Now(1..))).count();
        self.counts.renewed.fetch_add(answered as u64, Ordering::Relaxed);
        taken
    }

    /// How long a lease that the state has still lives, in milliseconds; none if this is no leader.
    pub(crate) fn remaining_ms(&self, id: i64, now_ms: u64) -> Option<u64> {
        self.inner.lock().table.as_ref()?.remaining_ms(id, now_ms)
    }

    /// Whether this member answers for leases.
    pub(crate) fn is_primary(&self) -> bool {
        self.inner.lock().table.is_some()
    }

    /// Learns what applying a group did to leases.
    pub(crate) fn observe(&self, group: GroupId, outcomes: &[Applied]) {
        let mut inner = self.inner.lock();
        for applied in outcomes {
            match &applied.outcome {
                Ok(Response::LeaseGrant(term)) => {
                    self.counts.granted.fetch_add(1, Ordering::Relaxed);
                    if inner.table.as_mut().is_some_and(|table| table.granted(term)) {
                        self.looks.notify_one();
                    }
                }
                Ok(Response::LeaseRevoke(id)) => {
                    self.counts.revoked.fetch_add(1, Ordering::Relaxed);
                    if let Some(table) = &mut inner.table {
                        table.removed(*id);
                    }
                }
                Ok(Response::LeaseRenew(terms)) => {
                    if let Some(table) = &mut inner.table {
                        terms.iter().for_each(|term| table.renewed(term));
                    }
                    if group.origin == self.member_id && group.epoch == EPOCH {
                        inner.renewed = (group.sequence, terms.clone());
                    }
                }
                Ok(Response::LeaseExpire(expiry)) => self.observe_expiry(&mut inner, *expiry),
                Ok(_) | Err(_) => {}
            }
        }
    }

    fn observe_expiry(&self, inner: &mut Inner, LeaseExpiry { id, is_expired }: LeaseExpiry) {
        if is_expired {
            self.counts.revoked.fetch_add(1, Ordering::Relaxed);
        }
        let Some(table) = &mut inner.table else { return };
        if is_expired {
            self.counts.expired.fetch_add(1, Ordering::Relaxed);
            table.removed(id);
        } else {
            table.stays(id);
        }
    }

    /// Has a table exactly while this member leads and its clock is that of its successors.
    async fn follow_leadership(self: Arc<Self>, node: Arc<Node>) {
        let mut leadership = node.watch_leadership();
        let mut applied = node.shared().applied();
        let mut held = None;
        loop {
            let now = *leadership.borrow_and_update();
            let is_everybody = mutants::is_on("mutant_expire_on_follower");
            let wanted = (now.is_leader || is_everybody).then_some(now.term);
            if held != wanted {
                held = None;
                self.set_table(None);
            }
            if held.is_none() && wanted.is_some() && self.promote(&node, now) {
                held = wanted;
            }
            let is_waiting = held != wanted;
            let may_stamp = node.stamp_ms().is_some();
            let more = tokio::select! {
                biased;
                changed = leadership.changed() => changed.is_ok(),
                () = self.share_clock(&node), if is_waiting && may_stamp => true,
                changed = applied.changed(), if is_waiting && !may_stamp => changed.is_ok(),
                () = self.keep_clock_shared(&node), if held.is_some() => true,
            };
            if !more {
                return;
            }
        }
    }

    /// Has an entry with our stamp applied, or returns after a while if that fails.
    async fn share_clock(&self, node: &Node) {
        if self.propose(node, Vec::new()).await.is_err() {
            tokio::time::sleep(limits::LEASE_ENDING_POLL).await;
        }
    }

    /// Shares the clock from time to time while nothing else does: a successor's clock stands as long
    /// behind ours as our last stamp is old when it is applied there, and each lease lives on by that.
    async fn keep_clock_shared(&self, node: &Node) {
        loop {
            tokio::time::sleep(limits::LEASE_STAMP_INTERVAL).await;
            let shared_at = node.shared().clock.shared_at();
            let age = shared_at.map(|at| clock::now().saturating_duration_since(at));
            let is_old = age.is_none_or(|age| age >= limits::LEASE_STAMP_INTERVAL);
            let has_leases =
                self.inner.lock().table.as_ref().is_some_and(|table| !table.is_empty());
            if is_old && has_leases {
                self.share_clock(node).await;
            }
        }
    }

    /// Begins to lead, unless no entry with our stamp of this term is applied yet.
    fn promote(&self, node: &Node, leadership: Leadership) -> bool {
        // On the raft thread, on which entries are applied: none comes between state and table.
        let table = {
            let is_any = mutants::is_on("mutant_expire_on_follower");
            if !is_any && !node.shared().clock.is_shared(leadership.term) {
                return false;
            }
            Table::new(node.shared().state.read().leases())
        };
        self.set_table(Some((leadership.term, table)));
        true
    }

    fn set_table(&self, table: Option<(u64, Table)>) {
        let (term, table) = table.map_or((0, None), |(term, table)| (term, Some(table)));
        let before = {
            let mut inner = self.inner.lock();
            inner.term = term;
            std::mem::replace(&mut inner.table, table)
        };
        drop(before);
        self.looks.notify_one();
        self.renewals.notify_one();
    }

    /// When a lease has to be looked at; none without a table of the term in which this member leads,
    /// for another leader may have promised more than an older table knows.
    fn next_look_ms(&self, node: &Node) -> Option<u64> {
        let inner = self.inner.lock();
        let is_current =
            inner.term == node.leadership().term || mutants::is_on("mutant_expire_on_follower");
        inner.table.as_ref().filter(|_| is_current)?.next_look_ms()
    }

    /// Renews what waits, one batch after the other.
    async fn renew_waiting(self: Arc<Self>, node: Arc<Node>) {
        loop {
            let woken = self.renewals.notified();
            let look_at = {
                let inner = self.inner.lock();
                let poll_at = clock::now() + limits::LEASE_ENDING_POLL;
                if inner.waiting.is_empty() { inner.resting.1 } else { Some(poll_at) }
            };
            match look_at {
                None => woken.await,
                // Either way there is something to look at.
                Some(at) => drop(tokio::time::timeout_at(at.into(), woken).await),
            }
            loop {
                let began = clock::now();
                self.fail_late(&node, began);
                let batch = self.take_batch(began, node.clock_ms());
                if batch.is_empty() {
                    break;
                }
                let is_crowd = batch.len() >= limits::LEASE_RENEW_CROWD;
                let renewed = self.renew_batch(&node, &batch).await;
                let is_done = renewed.is_some();
                self.answer(batch, renewed);
                if !is_done {
                    node.leader_news(limits::LEASE_ENDING_POLL).await;
                    break;
                }
                if is_crowd {
                    self.gather(began).await;
                }
            }
        }
    }

    /// Waits for more keep-alives after a batch that `began`, until there are many or it is time.
    async fn gather(&self, began: Instant) {
        let end = (began + limits::LEASE_RENEW_GATHER).into();
        while self.inner.lock().waiting.len() < limits::LEASE_RENEW_FULL {
            // A notice may be older than the batch.
            if tokio::time::timeout_at(end, self.full.notified()).await.is_err() {
                return;
            }
        }
    }

    /// The keep-alives that can be renewed now; those of ending leases rest.
    fn take_batch(&self, now: Instant, now_ms: u64) -> Vec<Waiting> {
        let mut inner = self.inner.lock();
        inner.wake_rested(now);
        let waiting = std::mem::take(&mut inner.waiting);
        let mut ending = Vec::new();
        let mut batch = Vec::with_capacity(waiting.len().min(limits::LEASE_RENEWALS_MAX));
        for one in waiting {
            let is_ending =
                inner.table.as_ref().is_some_and(|table| table.is_ending(one.id, now_ms));
            if is_ending && one.shard.is_none() {
                // A peer that gave up does not wait.
                one.sender.send(Ok(ASK_AGAIN)).ok();
            } else if is_ending {
                ending.push(one);
            } else if batch.len() == limits::LEASE_RENEWALS_MAX {
                inner.waiting.push(one);
            } else {
                batch.push(one);
            }
        }
        inner.rest(ending, now);
        batch
    }

    /// Renews the leases of a batch, here or at the leader; none if that failed.
    ///
    /// The TTLs come in the order of the ids; leases that are gone have none.
    async fn renew_batch(&self, node: &Node, batch: &[Waiting]) -> Option<Vec<(i64, i64)>> {
        let mut ids: Vec<i64> = batch.iter().map(|one| one.id).collect();
        ids.sort_unstable();
        ids.dedup();
        let is_mutant = mutants::is_on("mutant_expire_on_follower") && !node.is_leader();
        if !self.is_primary() || is_mutant {
            let ttls = node.forward_renewals(ids.clone(), self.request_timeout).await?;
            return (ttls.len() == ids.len()).then(|| ids.into_iter().zip(ttls).collect());
        }
        let commands = vec![Command { body: Some(Body::LeaseRenew(LeaseRenew { ids })) }];
        let sequence = self.write(node, commands).await.ok()?;
        let mut inner = self.inner.lock();
        let (number, terms) = std::mem::take(&mut inner.renewed);
        assert_eq!(number, sequence, "one entry of renewals is under way at a time");
        self.counts.renewed.fetch_add(terms.len() as u64, Ordering::Relaxed);
        Some(terms.into_iter().map(|term| (term.id, term.ttl_seconds)).collect())
    }

    /// Writes an entry of our own, never through another member; answers with its number.
    async fn write(&self, node: &Node, commands: Vec<Command>) -> Result<u64, WriteError> {
        let sequence = {
            let mut inner = self.inner.lock();
            inner.last_sequence += 1;
            inner.last_sequence
        };
        let groups = vec![Group { origin: self.member_id, epoch: EPOCH, sequence, commands }];
        if mutants::is_on("mutant_expire_on_follower") && !node.is_leader() {
            let group = groups.into_iter().next().expect("there is one");
            let forwarded = node.forward(group, clock::now() + self.request_timeout).await;
            return forwarded.map(|()| sequence);
        }
        self.propose(node, groups).await.map(|()| sequence)
    }

    async fn propose(&self, node: &Node, groups: Vec<Group>) -> Result<(), WriteError> {
        let time_unix_ms = node.stamp_ms().ok_or(WriteError::NotAppended)?;
        let proposal = Proposal { time_unix_ms, groups };
        let written = node.write(proposal.encode_to_vec().into());
        let written = tokio::time::timeout(self.request_timeout, written).await;
        written.unwrap_or(Err(WriteError::Unknown))
    }

    /// Answers a batch; without an outcome, and where the leader asks for it, it waits again.
    fn answer(&self, batch: Vec<Waiting>, renewed: Option<Vec<(i64, i64)>>) {
        let mut answers = Answers::new(self.shards.len());
        let (mut again, mut ending) = (Vec::new(), Vec::new());
        let ttl_of = |renewed: &[(i64, i64)], id| {
            renewed.binary_search_by_key(&id, |&(id, _)| id).map_or(0, |at| renewed[at].1)
        };
        for one in batch {
            match &renewed {
                Some(renewed) => match ttl_of(renewed, one.id) {
                    ASK_AGAIN => ending.push(one),
                    ttl_seconds => answers.add(one, Ok(ttl_seconds)),
                },
                // The peer asks who leads now.
                None if one.shard.is_none() => answers.add(one, Err(Error::LeaderChanged)),
                None => again.push(one),
            }
        }
        let mut inner = self.inner.lock();
        inner.waiting.append(&mut again);
        inner.rest(ending, clock::now());
        drop(inner);
        answers.deliver(&self.shards);
    }

    /// Fails what waits longer than the request timeout.
    fn fail_late(&self, node: &Node, now: Instant) {
        let late: Vec<Waiting> = {
            let mut inner = self.inner.lock();
            let Inner { waiting, resting, .. } = &mut *inner;
            let is_late = |one: &mut Waiting| one.deadline <= now;
            waiting.extract_if(.., is_late).chain(resting.0.extract_if(.., is_late)).collect()
        };
        if late.is_empty() {
            return;
        }
        let has_leader = node.leader().is_some();
        let mut answers = Answers::new(self.shards.len());
        for one in late {
            answers.add(one, Err(if has_leader { Error::Timeout } else { Error::NoLeader }));
        }
        answers.deliver(&self.shards);
    }

    /// Ends the leases that have run out, a few at a time.
    async fn expire_ended(self: Arc<Self>, node: Arc<Node>) {
        loop {
            let Some(next) = self.next_look_ms(&node) else {
                self.looks.notified().await;
                continue;
            };
            let wait_ms = next.saturating_sub(over_ms(&node));
            if wait_ms > 0 {
                let wait = Duration::from_millis(wait_ms).min(limits::LEASE_LOOK_MAX);
                // Either way there is something to look at.
                drop(tokio::time::timeout(wait, self.looks.notified()).await);
                continue;
            }
            if self.expire_some(&node).await {
                self.inner.lock().resting.1 = Some(clock::now());
                self.renewals.notify_one();
                tokio::time::sleep(limits::LEASE_EXPIRE_PAUSE).await;
            }
        }
    }

    /// Ends a batch of leases; `false` if none had ended.
    async fn expire_some(&self, node: &Node) -> bool {
        let ended = self.take_ended(node);
        if ended.is_empty() {
            return false;
        }
        let command = |&(id, expires_at_ms): &(i64, u64)| Command {
            body: Some(Body::LeaseExpire(LeaseExpire { id, expires_at_ms })),
        };
        let written = self.write(node, ended.iter().map(command).collect()).await;
        if written.is_err() {
            if let Some(table) = &mut self.inner.lock().table {
                ended.iter().for_each(|&(id, _)| table.stays(id));
            }
            // Without a quorum it would be refused again at once.
            node.leader_news(limits::LEASE_ENDING_POLL).await;
        }
        true
    }

    fn take_ended(&self, node: &Node) -> Vec<(i64, u64)> {
        let over_ms = over_ms(node);
        let state = node.shared().state.read();
        let mut inner = self.inner.lock();
        let Some(table) = &mut inner.table else { return Vec::new() };
        let (mut ended, mut weight) = (Vec::new(), 0);
        while weight < limits::LEASE_EXPIRE_BATCH {
            let Some((id, expires_at_ms)) = table.take_ended(over_ms) else { break };
            weight += 1 + state.lease(id).map_or(0, |lease| lease.keys().len());
            ended.push((id, expires_at_ms));
        }
        ended
    }
}

/// What ended by this time is over. The clock shows whole milliseconds, and so it did when a lease was
/// renewed: of the present one a part may be left.
fn over_ms(node: &Node) -> u64 {
    node.clock_ms().saturating_sub(1)
}

/// Whether a group did anything to leases.
pub(crate) fn concerns_leases(applied: &Applied) -> bool {
    matches!(
        applied.outcome,
        Ok(Response::LeaseGrant(_)
            | Response::LeaseRevoke(_)
            | Response::LeaseRenew(_)
            | Response::LeaseExpire(_))
    )
}
