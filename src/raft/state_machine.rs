//! Applies committed entries to the state and hands outcomes to the member.
//!
//! **Invariant:** an entry is applied only after it is on this member's own disk, so that the state
//! never runs ahead of the log. Nothing here waits for a client, a watcher or a peer; the one thing
//! it waits for is its own storage.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use prost::Message;

use super::shared::Shared;
use super::snapshot::{self, SnapshotData};
use super::types::{LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use super::{GroupId, codec};
use crate::clock;
use crate::mutants;
use crate::pb::quorate::command::Proposal;
use crate::pb::quorate::peer as pb;
use crate::state::{Event, Position};
use crate::storage::StorageError;

/// The state machine that openraft drives.
pub(crate) struct StateMachine {
    shared: Arc<Shared>,
}

impl StateMachine {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        StateMachine { shared }
    }

    /// Applies one proposal and hands each group's outcomes to the observer.
    fn apply_proposal(&self, at: Position, encoded: Bytes) -> io::Result<()> {
        let proposal = Proposal::decode(encoded).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("log entry {}: {error}", at.index))
        })?;
        let began = clock::now();
        let times = if mutants::is_on("mutant_apply_twice_now") { 2 } else { 1 };
        let commands = proposal.groups.iter().flat_map(|group| &group.commands);
        let commands = std::iter::repeat_n(commands, times).flatten();
        let (mut applied, state_ms) = {
            let mut state = self.shared.state.write();
            let applied = state.apply(at, proposal.time_unix_ms, commands);
            (applied.map_err(storage_failed)?, state.time_unix_ms())
        };
        let now = clock::now();
        self.shared.clock.applied(at.leader, at.term, state_ms, now);
        self.shared.observer.took(applied.len(), now.saturating_duration_since(began));
        let events = applied.iter_mut().flat_map(|applied| std::mem::take(&mut applied.events));
        let events: Vec<Event> = events.collect();
        let mut applied = applied.into_iter();
        for group in &proposal.groups {
            let id = GroupId { origin: group.origin, epoch: group.epoch, sequence: group.sequence };
            let outcomes = applied.by_ref().take(group.commands.len()).collect();
            self.shared.observer.applied(id, outcomes);
        }
        if !events.is_empty() {
            self.shared.observer.changed(events);
        }
        Ok(())
    }
}

/// The position of `log_id` in the state's words.
pub(crate) fn position(log_id: &LogId) -> Position {
    Position {
        index: log_id.index(),
        term: log_id.committed_leader_id().term,
        leader: log_id.committed_leader_id().node_id,
    }
}

/// The log id of `at`.
pub(crate) fn log_id(at: Position) -> LogId {
    codec::log_id_from_pb(pb::LogId { term: at.term, leader: at.leader, index: at.index })
}

pub(crate) fn storage_failed(error: StorageError) -> io::Error {
    io::Error::other(error)
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let state = self.shared.state.read();
        let applied = state.applied().map(log_id);
        let membership = state.membership();
        let membership = if membership.is_empty() {
            StoredMembership::default()
        } else {
            codec::decode_stored_membership(membership).map_err(io::Error::other)?
        };
        Ok((applied, membership))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let log_id = entry.log_id();
            let at = position(&log_id);
            if !mutants::is_on("mutant_apply_before_durable") {
                self.shared.log.wait_durable(at.index).await.map_err(io::Error::other)?;
            }
            self.shared.backlog_drained().await;
            match entry.payload {
                EntryPayload::Blank => {
                    self.shared.state.write().apply_blank(at).map_err(storage_failed)?;
                }
                EntryPayload::Normal(proposal) => self.apply_proposal(at, proposal.0)?,
                EntryPayload::Membership(membership) => {
                    let stored = StoredMembership::new(Some(log_id), membership);
                    let encoded = codec::encode_stored_membership(&stored);
                    let mut state = self.shared.state.write();
                    state.apply_membership(at, encoded).map_err(storage_failed)?;
                }
            }
            self.shared.advanced(at);
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { shared: Arc::clone(&self.shared) }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        data: SnapshotData,
    ) -> Result<(), io::Error> {
        snapshot::install(&self.shared, meta, data).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(snapshot::current(&self.shared))
    }
}

/// "Builds" a snapshot: makes the state durable, so that the log up to it may be purged.
pub(crate) struct SnapshotBuilder {
    shared: Arc<Shared>,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        snapshot::checkpoint(&self.shared).await
    }
}
