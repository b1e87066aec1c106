//! Snapshots: nothing is copied to make one, and neither side holds more than a few frames of it.
//!
//! The leader captures the applied position and pins compaction at its revision, then streams the
//! records as they stand in storage, in checksummed frames. The receiver writes them into a fresh
//! state directory beside its own, verifies count and checksums, makes it durable, opens it, and
//! only then flips one pointer. A crash or a broken stream at any moment before that leaves the old
//! state as it was; what is half received is deleted at once, or after a crash at the next start.

use std::io;
use std::ops::Deref;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{Stream, stream};
use openraft::errors::{NetworkError, StreamingError};
use prost::encoding::{decode_varint, encode_varint};
use tokio::runtime::Handle;
use tonic::{Status, Streaming};

use super::log_hold::{LogHold, Transfer};
use super::node::Node;
use super::shared::Shared;
use super::types::{Snapshot, SnapshotMeta, StoredMembership, TypeConfig, Vote};
use super::{Stage, StateHome, Store, codec, state_machine, wire};
use crate::pb::quorate::peer::snapshot_frame::Body;
use crate::pb::quorate::peer::{SnapshotFooter, SnapshotFrame, SnapshotHeader, SnapshotRecords};
use crate::state::{SnapshotReader, SnapshotWriter, State};
use crate::storage::{Backend, StorageError};
use crate::{clock, limits, mutants, tasks};

/// What openraft passes around as a snapshot.
pub enum SnapshotData {
    /// The log up to it may be purged; there is nothing to read.
    Checkpoint,
    /// The leader's: reads the state as of one revision.
    Live(Box<Live>),
    /// The follower's: received, verified and durable.
    Staged(Box<Staged>),
}

/// A view of the state to send.
pub struct Live {
    reader: SnapshotReader,
    backend: Arc<Box<dyn Backend>>,
    log_hold: Arc<LogHold>,
}

/// A state that waits to take the place of the old one.
pub struct Staged(Aside<Complete>);

/// A whole snapshot, verified and opened.
struct Complete {
    state: Store,
    // Behind the storage, which is closed before its directory is removed.
    adopt: Adopt,
}

/// Makes a staged storage the current one. Dropped instead, it removes the storage's directory.
type Adopt = Box<dyn FnOnce() -> Result<(), StorageError> + Send + Sync>;

/// What is dropped where that may block, whoever drops it: a staged storage ends its writer thread
/// with a flush, and its files are removed.
struct Aside<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> Aside<T> {
    fn new(value: T) -> Self {
        Aside(Some(value))
    }

    fn into_inner(mut self) -> T {
        self.0.take().expect("only taken at the end")
    }
}

impl<T: Send + 'static> Deref for Aside<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("only taken at the end")
    }
}

impl<T: Send + 'static> Drop for Aside<T> {
    fn drop(&mut self) {
        let Some(value) = self.0.take() else { return };
        // Without a runtime there is nobody to hold up.
        if Handle::try_current().is_ok() {
            drop(tasks::blocking(move || drop(value)));
        }
    }
}

/// Makes everything applied so far durable; the result tells openraft what it may purge.
pub(crate) async fn checkpoint(shared: &Arc<Shared>) -> Result<Snapshot, io::Error> {
    let (meta, backend) = {
        let state = shared.state.read();
        (meta_of(&state)?, Arc::clone(state.backend()))
    };
    fail::fail_point!("checkpoint_before");
    let skips = mutants::is_on("mutant_purge_beyond_checkpoint");
    let done = tasks::blocking(move || if skips { Ok(()) } else { backend.checkpoint() }).await;
    done.map_err(io::Error::other)?.map_err(state_machine::storage_failed)?;
    fail::fail_point!("checkpoint_after");
    shared.checkpointed(meta.last_log_id.as_ref().map_or(0, |log_id| log_id.index()));
    Ok(Snapshot { meta, snapshot: SnapshotData::Checkpoint })
}

/// The state as it is now, to be sent to a follower.
pub(crate) fn current(shared: &Shared) -> Option<Snapshot> {
    let state = shared.state.read();
    state.applied()?;
    let meta = meta_of(&state).ok()?;
    let backend = Arc::clone(state.backend());
    let log_hold = Arc::clone(&shared.log_hold);
    let live = Live { reader: SnapshotReader::new(&state), backend, log_hold };
    Some(Snapshot { meta, snapshot: SnapshotData::Live(Box::new(live)) })
}

fn meta_of(state: &Store) -> Result<SnapshotMeta, io::Error> {
    let membership = state.membership();
    let last_membership = if membership.is_empty() {
        StoredMembership::default()
    } else {
        codec::decode_stored_membership(membership).map_err(io::Error::other)?
    };
    let last_log_id = state.applied().map(state_machine::log_id);
    Ok(SnapshotMeta { last_log_id, last_membership })
}

/// Puts a staged state in the place of the current one.
pub(crate) async fn install(
    shared: &Arc<Shared>,
    meta: &SnapshotMeta,
    data: SnapshotData,
) -> Result<(), io::Error> {
    let SnapshotData::Staged(staged) = data else {
        return Err(io::Error::other("only a received snapshot can be installed"));
    };
    let Staged(staged) = *staged;
    assert_eq!(
        staged.state.applied().map(|at| at.index),
        meta.last_log_id.as_ref().map(|log_id| log_id.index()),
        "a snapshot holds what its metadata says"
    );
    fail::fail_point!("snapshot_before_flip");
    let shared_for_flip = Arc::clone(shared);
    let flipped = tasks::blocking(move || {
        let Complete { state, adopt } = staged.into_inner();
        adopt().map_err(io::Error::other)?;
        fail::fail_point!("snapshot_after_flip");
        let (at, revision) = (state.applied(), state.revision());
        let state_ms = state.time_unix_ms();
        let old = std::mem::replace(&mut *shared_for_flip.state.write(), state);
        *shared_for_flip.replaced.lock() = Some(Arc::downgrade(old.backend()));
        shared_for_flip.clock.replaced(state_ms, clock::now());
        drop(old);
        Ok::<_, io::Error>((at, revision))
    });
    let (at, revision) = flipped.await.map_err(io::Error::other)??;
    shared.watch_backlog();
    if let Some(at) = at {
        shared.checkpointed(at.index);
        shared.advanced(at);
    }
    mutants::arm("mutant_apply_twice_after_snapshot", "mutant_apply_twice_now");
    if !mutants::is_on("mutant_no_resync_after_snapshot") {
        shared.observer.installed(revision);
    }
    fail::fail_point!("snapshot_after_install");
    tracing::info!(index = at.map(|at| at.index), "applied snapshot");
    Ok(())
}

/// The frames of `snapshot`, read as the receiver takes them, and the transfer, to be kept until
/// the receiver has answered.
pub(crate) fn send_snapshot(
    vote: Vote,
    snapshot: Snapshot,
) -> Result<
    (impl Stream<Item = SnapshotFrame> + Send + 'static, Arc<Transfer>),
    StreamingError<TypeConfig>,
> {
    let SnapshotData::Live(live) = snapshot.snapshot else {
        return Err(NetworkError::from_string("this snapshot has nothing to send").into());
    };
    let header = SnapshotHeader {
        vote: Some(codec::vote_to_pb(&vote)),
        last_log_id: snapshot.meta.last_log_id.as_ref().map(codec::log_id_to_pb),
        membership: Some(codec::stored_membership_to_pb(&snapshot.meta.last_membership)),
        revision: live.reader.revision(),
    };
    tracing::info!(revision = header.revision, "sending database snapshot");
    let transfer = live.log_hold.transfer();
    let begun = Arc::clone(&transfer);
    let sender = Sender { live, footer: SnapshotFooter::default(), done: false };
    let first = SnapshotFrame { body: Some(Body::Header(header)) };
    let frames = stream::unfold((Some(first), Some(sender)), move |to_send| {
        begun.begin();
        next_to_send(to_send)
    });
    Ok((frames, transfer))
}

/// What is still to send: the first frame, then what the sender reads.
type ToSend = (Option<SnapshotFrame>, Option<Sender>);

async fn next_to_send((first, sender): ToSend) -> Option<(SnapshotFrame, ToSend)> {
    if let Some(first) = first {
        return Some((first, (None, sender)));
    }
    let sender = sender?;
    let read = tasks::blocking(move || sender.next()).await;
    match read {
        Ok(Ok((frame, sender))) => Some((frame, (None, sender))),
        // The stream ends without a footer, so the receiver refuses it and openraft tries again.
        Ok(Err(error)) => {
            tracing::error!(%error, "cannot read the snapshot to send");
            None
        }
        Err(_) => None,
    }
}

/// The state of a snapshot on its way out.
struct Sender {
    live: Box<Live>,
    footer: SnapshotFooter,
    done: bool,
}

impl Sender {
    /// The next frame, and the sender unless that was the footer.
    fn next(mut self) -> Result<(SnapshotFrame, Option<Sender>), StorageError> {
        fail::fail_point!("snapshot_before_frame");
        let backend = Arc::clone(&self.live.backend);
        let chunk = self.live.reader.next_chunk(&*backend, limits::SNAPSHOT_FRAME_BYTES)?;
        let Some(chunk) = chunk else {
            self.done = true;
            tracing::info!(pairs = self.footer.pairs, "sent database snapshot");
            return Ok((SnapshotFrame { body: Some(Body::Footer(self.footer)) }, None));
        };
        let mut pairs = BytesMut::with_capacity(limits::SNAPSHOT_FRAME_BYTES + 4096);
        for (key, value) in &chunk {
            put_bytes(&mut pairs, key);
            put_bytes(&mut pairs, value);
        }
        let checksum = crc32c::crc32c_append(self.footer.checksum, &pairs);
        let records =
            SnapshotRecords { sequence: self.footer.frames, pairs: pairs.freeze(), checksum };
        self.footer.frames += 1;
        self.footer.pairs += chunk.len() as u64;
        self.footer.checksum = checksum;
        Ok((SnapshotFrame { body: Some(Body::Records(records)) }, Some(self)))
    }
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    encode_varint(bytes.len() as u64, out);
    out.put_slice(bytes);
}

fn take_bytes(from: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(decode_varint(from).ok()?).ok()?;
    (length <= from.remaining()).then(|| from.split_to(length))
}

/// Receives a snapshot of the leader `from`, installs it, and returns the vote to answer with.
pub(crate) async fn receive_snapshot(
    node: &Node,
    from: u64,
    mut frames: Streaming<SnapshotFrame>,
) -> Result<Vote, Status> {
    let shared = node.shared();
    let _one_at_a_time = shared.receiving.lock().await;
    let Some(SnapshotFrame { body: Some(Body::Header(header)) }) = next_frame(&mut frames).await?
    else {
        return Err(Status::invalid_argument("a snapshot begins with its header"));
    };
    tracing::info!(revision = header.revision, "receiving database snapshot");
    let (vote, meta) = read_header(&header, from)?;
    let mut incoming = {
        let home = Arc::clone(&shared.home);
        blocking(move || Incoming::begin(&*home).map(Aside::new)).await?
    };
    let footer = loop {
        match next_frame(&mut frames).await?.and_then(|frame| frame.body) {
            Some(Body::Records(records)) => {
                let take = move || incoming.into_inner().take(records).map(Aside::new);
                incoming = blocking(take).await?;
            }
            Some(Body::Footer(footer)) => break footer,
            _ => return Err(Status::aborted("the snapshot ended before its footer")),
        }
    };
    let options = shared.state_options;
    let told = meta.clone();
    let finish = move || incoming.into_inner().finish(&footer, &told, options);
    let staged = blocking(finish).await?;
    let data = SnapshotData::Staged(Box::new(staged));
    let installed = node.raft().install_full_snapshot(vote, Snapshot { meta, snapshot: data });
    let response = installed.await.map_err(|fatal| Status::unavailable(fatal.to_string()))?;
    tasks::spawn("remove-stale-state", remove_stale(Arc::clone(shared)));
    Ok(response.vote)
}

/// Gives back the space of the state that a snapshot replaced, once its last reader is gone.
async fn remove_stale(shared: Arc<Shared>) {
    let _no_snapshot_comes_in = shared.receiving.lock().await;
    let Some(replaced) = shared.replaced.lock().take() else { return };
    while replaced.strong_count() > 0 {
        tokio::time::sleep(limits::CHECKPOINT_POLL).await;
    }
    let home = Arc::clone(&shared.home);
    let removed = tasks::blocking(move || home.remove_replaced()).await;
    if !matches!(removed, Ok(Ok(()))) {
        tracing::warn!("cannot remove the replaced state; the next start does");
    }
}

async fn next_frame(
    frames: &mut Streaming<SnapshotFrame>,
) -> Result<Option<SnapshotFrame>, Status> {
    let next = tokio::time::timeout(limits::SNAPSHOT_FRAME_TIMEOUT, frames.message());
    next.await.map_err(|_| Status::deadline_exceeded("the sender of the snapshot is silent"))?
}

fn read_header(header: &SnapshotHeader, from: u64) -> Result<(Vote, SnapshotMeta), Status> {
    let malformed = || Status::invalid_argument("malformed snapshot header");
    let vote = wire::leader_vote_from_pb(header.vote, from).map_err(|_| malformed())?;
    let membership = header.membership.clone().ok_or_else(malformed)?;
    let last_membership = codec::stored_membership_from_pb(membership).map_err(|_| malformed())?;
    let last_log_id = header.last_log_id.map(codec::log_id_from_pb);
    Ok((vote, SnapshotMeta { last_log_id, last_membership }))
}

/// Runs `work` where it may block; its error refuses the snapshot.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, Status> {
    match tasks::blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Status::internal(error.to_string())),
        Err(panic) => Err(Status::internal(panic.to_string())),
    }
}

/// A snapshot on its way in.
struct Incoming {
    backend: Arc<Box<dyn Backend>>,
    // Behind the storage, which is closed before its directory is removed.
    adopt: Adopt,
    footer: SnapshotFooter,
}

impl Incoming {
    fn begin(home: &dyn StateHome) -> Result<Incoming, StorageError> {
        let Stage { backend, adopt } = home.stage()?;
        fail::fail_point!("snapshot_after_begin");
        Ok(Incoming { backend: Arc::new(backend), adopt, footer: SnapshotFooter::default() })
    }

    /// Verifies one frame and writes its pairs.
    fn take(mut self, records: SnapshotRecords) -> Result<Incoming, StorageError> {
        let checksum = crc32c::crc32c_append(self.footer.checksum, &records.pairs);
        if checksum != records.checksum || records.sequence != self.footer.frames {
            return Err(damaged("a frame"));
        }
        let mut rest = records.pairs;
        let mut pairs = Vec::new();
        while rest.has_remaining() {
            let pair = take_bytes(&mut rest).and_then(|key| Some((key, take_bytes(&mut rest)?)));
            pairs.push(pair.ok_or_else(|| damaged("a pair"))?);
        }
        self.footer.frames += 1;
        self.footer.pairs += pairs.len() as u64;
        self.footer.checksum = checksum;
        fail::fail_point!("snapshot_before_chunk");
        SnapshotWriter::new(&*self.backend).write_chunk(pairs)?;
        fail::fail_point!("snapshot_after_chunk");
        if self.backend.backlog_bytes() > limits::SNAPSHOT_BACKLOG_BYTES_MAX {
            self.backend.checkpoint()?;
        }
        Ok(self)
    }

    /// Verifies the whole, makes it durable and opens it.
    fn finish(
        self,
        footer: &SnapshotFooter,
        told: &SnapshotMeta,
        options: crate::state::Options,
    ) -> Result<Staged, StorageError> {
        fail::fail_point!("snapshot_before_verify");
        if self.footer != *footer {
            return Err(damaged("the footer"));
        }
        fail::fail_point!("snapshot_before_flush");
        SnapshotWriter::new(&*self.backend).finish()?;
        fail::fail_point!("snapshot_after_flush");
        let state = State::open(self.backend, options)?;
        // No checksum covers the header.
        if !meta_of(&state).is_ok_and(|meta| meta == *told) {
            return Err(damaged("the header"));
        }
        Ok(Staged(Aside::new(Complete { state, adopt: self.adopt })))
    }
}

fn damaged(what: &str) -> StorageError {
    let source = io::Error::new(io::ErrorKind::InvalidData, "checksum or count does not match");
    StorageError::new(format!("receiving a snapshot: {what}"), source)
}

#[cfg(test)]
mod tests;
