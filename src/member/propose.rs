//! Writes on their way into the log: queued, grouped, proposed or forwarded, and answered.
//!
//! Requests of all serving threads meet in one queue. A loop on the raft thread takes all that is
//! there (no timer forms a batch), makes it one group and has it proposed: here if this member
//! leads, else by the leader. Every member applies every entry and so computes every outcome; the
//! one whose clients wait recognises its group by (origin, epoch, sequence) and hands the outcomes
//! to the waiting slots. A follower's client is therefore answered from the follower's own state.
//!
//! **Invariant:** a group is proposed again only when the attempt before it certainly never reached
//! a log. In any doubt it is left to be applied or to time out, so nothing is ever applied twice.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{Notify, Semaphore, oneshot};

use super::Error;
use super::shard::{Delivery, Reply, ReplySlot, Shard};
use crate::clock;
use crate::limits;
use crate::mutants;
use crate::pb::quorate::command::command::Body;
use crate::pb::quorate::command::{Command, Group, Proposal};
use crate::raft::{GroupId, Node, WriteError};
use crate::state::{Applied, RequestError};
use crate::tasks;

/// Queues writes and finds the slots that wait for their outcomes.
pub(crate) struct Proposer {
    member_id: u64,
    /// Drawn at start: outcomes of an older life of this member find no slots here.
    epoch: u64,
    request_bytes_max: usize,
    request_timeout: Duration,
    queue: Mutex<Queue>,
    queued: Notify,
    in_flight: Arc<Semaphore>,
    pending: Mutex<BTreeMap<u64, Pending>>,
    shards: Vec<Arc<Shard>>,
}

#[derive(Default)]
struct Queue {
    own: VecDeque<Queued>,
    /// What goes before all others, however long they wait.
    urgent: VecDeque<Queued>,
    own_bytes: usize,
    foreign: VecDeque<Foreign>,
    last_sequence: u64,
    closed: bool,
}

impl Queue {
    /// The command that goes next.
    fn next(&self) -> Option<&Queued> {
        self.urgent.front().or_else(|| self.own.front())
    }

    fn take_next(&mut self) -> Option<Queued> {
        self.urgent.pop_front().or_else(|| self.take_own())
    }

    fn take_own(&mut self) -> Option<Queued> {
        let next = self.own.pop_front()?;
        self.own_bytes -= next.bytes;
        Some(next)
    }
}

/// As in etcd: ending a lease is never put off, so that a member that has too much to do loses some.
fn is_urgent(command: &Command) -> bool {
    matches!(command.body, Some(Body::LeaseRevoke(_)))
}

struct Queued {
    command: Command,
    bytes: usize,
    slot: ReplySlot,
    deadline: Instant,
}

/// A group that a follower forwarded.
struct Foreign {
    group: Group,
    done: oneshot::Sender<Result<(), WriteError>>,
}

/// A group under way: its slots in the order of its commands.
struct Pending {
    slots: Vec<ReplySlot>,
    deadline: Instant,
    /// Between two attempts, the first of which certainly brought it to no log.
    is_in_no_log: bool,
}

/// A command that has waited for too long.
pub(crate) struct Late {
    pub(crate) deadline: Instant,
    /// It is in no log, and will not be.
    pub(crate) is_in_no_log: bool,
}

/// What one attempt carries to the log.
struct Attempt {
    proposal: Proposal,
    own_sequence: Option<u64>,
    foreign: Vec<oneshot::Sender<Result<(), WriteError>>>,
    deadline: Instant,
}

/// How a proposer is set up.
pub(crate) struct ProposerOptions {
    pub(crate) member_id: u64,
    pub(crate) request_bytes_max: usize,
    pub(crate) request_timeout: Duration,
}

impl Proposer {
    pub(crate) fn new(options: ProposerOptions, shards: Vec<Arc<Shard>>) -> Self {
        Proposer {
            member_id: options.member_id,
            epoch: fastrand::u64(1..),
            request_bytes_max: options.request_bytes_max,
            request_timeout: options.request_timeout,
            queue: Mutex::default(),
            queued: Notify::new(),
            in_flight: Arc::new(Semaphore::new(limits::PROPOSALS_IN_FLIGHT_MAX)),
            pending: Mutex::default(),
            shards,
        }
    }

    /// Queues `command`; its outcome comes through the receiver.
    ///
    /// Dropping the receiver does not take the command back.
    pub(crate) fn submit(
        &self,
        shard: usize,
        command: Command,
    ) -> Result<oneshot::Receiver<Reply>, Error> {
        let bytes = command.encoded_len();
        if bytes + limits::COMMAND_OVERHEAD_BYTES > self.request_bytes_max {
            return Err(RequestError::RequestTooLarge.into());
        }
        let (sender, receiver) = oneshot::channel();
        let deadline = clock::now() + self.request_timeout;
        {
            let mut queue = self.queue.lock();
            if queue.closed {
                return Err(Error::Stopped);
            }
            let slot = ReplySlot { shard, sender };
            let queued = Queued { command, bytes, slot, deadline };
            if is_urgent(&queued.command) {
                if queue.urgent.len() >= limits::PROPOSALS_QUEUED_MAX {
                    return Err(Error::TooManyRequests);
                }
                queue.urgent.push_back(queued);
            } else {
                if queue.own_bytes + bytes > limits::PROPOSALS_QUEUED_BYTES_MAX
                    || queue.own.len() >= limits::PROPOSALS_QUEUED_MAX
                {
                    return Err(Error::TooManyRequests);
                }
                queue.own_bytes += bytes;
                queue.own.push_back(queued);
            }
        }
        self.queued.notify_one();
        Ok(receiver)
    }

    /// Queues a follower's group; resolves once it is applied here or is known not to be.
    pub(crate) fn submit_foreign(&self, group: Group) -> oneshot::Receiver<Result<(), WriteError>> {
        let (done, receiver) = oneshot::channel();
        self.queue.lock().foreign.push_back(Foreign { group, done });
        self.queued.notify_one();
        receiver
    }

    /// Takes what is queued to the log until the member stops.
    pub(crate) async fn run(self: Arc<Self>, node: Arc<Node>) {
        loop {
            self.queued.notified().await;
            loop {
                let permit = Arc::clone(&self.in_flight)
                    .acquire_owned()
                    .await
                    .expect("the semaphore is never closed");
                let Some(attempt) = self.next_attempt() else { break };
                let (proposer, node) = (Arc::clone(&self), Arc::clone(&node));
                tasks::spawn("proposal", async move {
                    proposer.drive(&node, attempt).await;
                    drop(permit);
                });
            }
        }
    }

    /// Everything that is queued, within the bounds of one entry.
    fn next_attempt(&self) -> Option<Attempt> {
        let mut queue = self.queue.lock();
        let mut groups = Vec::with_capacity(1);
        let (mut commands, mut slots, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(next) = queue.next() {
            let full = bytes + next.bytes > limits::PROPOSAL_BYTES_MAX
                || commands.len() >= limits::PROPOSAL_COMMANDS_MAX;
            if full && !commands.is_empty() {
                break;
            }
            let Some(next) = queue.take_next() else { break };
            bytes += next.bytes;
            commands.push(next.command);
            slots.push(next.slot);
        }
        let mut own_sequence = None;
        let deadline = clock::now() + self.request_timeout;
        if !commands.is_empty() {
            queue.last_sequence += 1;
            let sequence = queue.last_sequence;
            own_sequence = Some(sequence);
            let pending = Pending { slots, deadline, is_in_no_log: false };
            self.pending.lock().insert(sequence, pending);
            let (origin, epoch) = (self.member_id, self.epoch);
            groups.push(Group { origin, epoch, sequence, commands });
        }
        let mut foreign = Vec::new();
        while bytes < limits::PROPOSAL_BYTES_MAX {
            let Some(next) = queue.foreign.pop_front() else { break };
            bytes += next.group.encoded_len();
            groups.push(next.group);
            foreign.push(next.done);
        }
        if groups.is_empty() {
            return None;
        }
        let more = queue.next().is_some() || !queue.foreign.is_empty();
        if more {
            self.queued.notify_one();
        }
        let proposal = Proposal { time_unix_ms: 0, groups };
        Some(Attempt { proposal, own_sequence, foreign, deadline })
    }

    /// Brings one attempt to the log, here or at the leader, again while that is certainly safe.
    async fn drive(&self, node: &Node, mut attempt: Attempt) {
        loop {
            let result = match node.next_stamp_ms(attempt.deadline).await {
                Some(time_unix_ms) => {
                    attempt.proposal.time_unix_ms = time_unix_ms;
                    node.write(attempt.proposal.encode_to_vec().into()).await
                }
                None => self.forward(node, &mut attempt).await,
            };
            match result {
                Ok(()) => return answer_foreign(&mut attempt, Ok(())),
                Err(WriteError::NotAppended) => {
                    answer_foreign(&mut attempt, Err(WriteError::NotAppended));
                    let Some(sequence) = attempt.own_sequence else { return };
                    attempt.proposal.groups.truncate(1);
                    self.rest(sequence);
                    node.leader_news(limits::PROPOSE_RETRY).await;
                    if !self.go_on(sequence) {
                        return;
                    }
                }
                Err(WriteError::Unknown)
                    if !node.is_leader() && mutants::is_on("mutant_forward_twice") =>
                {
                    node.leader_news(limits::PROPOSE_RETRY).await;
                }
                Err(WriteError::Unknown) => {
                    return answer_foreign(&mut attempt, Err(WriteError::Unknown));
                }
                Err(WriteError::Stopped) => {
                    answer_foreign(&mut attempt, Err(WriteError::Stopped));
                    return self.fail(attempt.own_sequence, || Error::Stopped);
                }
            }
        }
    }

    /// An attempt has certainly brought our group `sequence` to no log.
    fn rest(&self, sequence: u64) {
        if let Some(pending) = self.pending.lock().get_mut(&sequence) {
            pending.is_in_no_log = true;
        }
    }

    /// Whether our group `sequence` may be attempted again: those that wait for it may have been told
    /// that it is in no log.
    fn go_on(&self, sequence: u64) -> bool {
        let mut pending = self.pending.lock();
        let Some(group) = pending.get_mut(&sequence) else { return false };
        group.is_in_no_log = false;
        true
    }

    /// Has the leader propose our group; groups of others go back to where they came from.
    async fn forward(&self, node: &Node, attempt: &mut Attempt) -> Result<(), WriteError> {
        answer_foreign(attempt, Err(WriteError::NotAppended));
        if attempt.own_sequence.is_none() {
            return Err(WriteError::NotAppended);
        }
        attempt.proposal.groups.truncate(1);
        let Some(group) = attempt.proposal.groups.first() else {
            return Err(WriteError::NotAppended);
        };
        node.forward(group.clone(), attempt.deadline).await
    }

    /// Hands the outcomes of a group to the slots that wait for them, one delivery a thread.
    pub(crate) fn complete(&self, group: GroupId, applied: Vec<Applied>) {
        if group.origin != self.member_id || group.epoch != self.epoch {
            return;
        }
        let Some(pending) = self.pending.lock().remove(&group.sequence) else { return };
        assert_eq!(pending.slots.len(), applied.len(), "one outcome for each command");
        let outcomes = applied.into_iter().map(Ok);
        self.deliver(pending.slots.into_iter().zip(outcomes));
    }

    fn deliver(&self, replies: impl Iterator<Item = (ReplySlot, Reply)>) {
        let mut deliveries: Vec<Vec<_>> = self.shards.iter().map(|_| Vec::new()).collect();
        for (slot, reply) in replies {
            deliveries[slot.shard].push((slot.sender, reply));
        }
        for (shard, replies) in self.shards.iter().zip(deliveries) {
            if !replies.is_empty() {
                shard.deliver(Delivery::Replies(replies));
            }
        }
    }

    /// Fails the slots of our group `sequence`, if it is still pending.
    fn fail(&self, sequence: Option<u64>, error: impl Fn() -> Error) {
        let pending = sequence.and_then(|sequence| self.pending.lock().remove(&sequence));
        if let Some(pending) = pending {
            self.deliver(pending.slots.into_iter().map(|slot| (slot, Err(error()))));
        }
    }

    /// Fails what waits longer than the request timeout, with what `error` makes of it. Called a few
    /// times a second.
    pub(crate) fn sweep(&self, now: Instant, error: impl Fn(Late) -> Error) {
        let mut expired: Vec<(ReplySlot, Late)> = Vec::new();
        {
            let mut pending = self.pending.lock();
            while let Some(group) = pending.first_entry()
                && group.get().deadline <= now
            {
                let Pending { slots, deadline, is_in_no_log } = group.remove();
                let late = |slot| (slot, Late { deadline, is_in_no_log });
                expired.extend(slots.into_iter().map(late));
            }
        }
        {
            let mut late = |Queued { slot, deadline, .. }: Queued| {
                expired.push((slot, Late { deadline, is_in_no_log: true }));
            };
            let mut queue = self.queue.lock();
            while queue.next().is_some_and(|first| first.deadline <= now) {
                let Some(first) = queue.take_next() else { break };
                late(first);
            }
            while queue.own.front().is_some_and(|first| first.deadline <= now) {
                let Some(first) = queue.take_own() else { break };
                late(first);
            }
        }
        self.deliver(expired.into_iter().map(|(slot, late)| (slot, Err(error(late)))));
    }

    /// Refuses new commands; those under way may still finish.
    pub(crate) fn close(&self) {
        self.queue.lock().closed = true;
    }

    /// Commands that wait for an outcome.
    pub(crate) fn pending_groups(&self) -> usize {
        self.pending.lock().len()
    }
}

fn answer_foreign(attempt: &mut Attempt, result: Result<(), WriteError>) {
    for done in attempt.foreign.drain(..) {
        // A follower whose call was dropped learns the outcome by applying.
        done.send(result).ok();
    }
}
