//! The KV service: shape checks, then a proposal or a read, then the answer's bytes.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::grpc::Call;
use super::status::{Code, Status};
use super::{Api, encode, grpc};
use crate::limits;
use crate::member::{Error, Member};
use crate::metrics::Metrics;
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, ResponseHeader, TxnRequest,
};
use crate::pb::quorate::command::command::Body as Command;
use crate::state::{RangeAnswer, RangePlan, RequestError, Room, TxnAnswer, check, txn};
use crate::storage::StorageError;
use crate::tasks;

/// The path of the method.
pub(super) const RANGE_STREAM: &str = "/etcdserverpb.KV/RangeStream";

impl Api {
    pub(super) async fn put(&self, message: Bytes) -> Result<Bytes, Status> {
        let request: PutRequest = grpc::decode(message)?;
        check::put(&request)?;
        self.write(Command::Put(request)).await
    }

    pub(super) async fn delete_range(&self, message: Bytes) -> Result<Bytes, Status> {
        let request: DeleteRangeRequest = grpc::decode(message)?;
        check::delete_range(&request)?;
        self.write(Command::DeleteRange(request)).await
    }

    pub(super) async fn compact(&self, message: Bytes) -> Result<Bytes, Status> {
        let request: CompactionRequest = grpc::decode(message)?;
        check::compact(&request)?;
        let (revision, physical) = (request.revision, request.physical);
        let answer = self.write(Command::Compact(request)).await?;
        if physical {
            self.member.compaction_finished(revision).await;
        }
        Ok(answer)
    }

    /// A Txn goes through the log, unless it only reads.
    pub(super) async fn txn(&self, message: Bytes) -> Result<Bytes, Status> {
        let request: TxnRequest = grpc::decode(message)?;
        if check::txn_depth(&request) > limits::TXN_DEPTH_MAX {
            return Err(RequestError::TooManyOps.into());
        }
        check::txn(&request, self.member.options().txn_ops_max)?;
        if !txn::is_read_only(&request) {
            return self.write(Command::Txn(request)).await;
        }
        if !txn::is_serializable(&request) {
            self.member.read_barrier(&self.shard).await?;
        }
        let (answer, revision) = self.read_txn(request).await?;
        self.member.counts().txn_read(&answer);
        encode::txn(&self.member.header(revision), &answer, self.answer_bytes_max())
    }

    async fn read_txn(&self, request: TxnRequest) -> Result<(TxnAnswer, i64), Status> {
        let (member, bytes_max) = (self.member.clone(), self.answer_bytes_max());
        // Values that are not in memory come from the disk, which may take its time.
        let read = tasks::blocking(move || {
            let state = member.state();
            let revision = state.revision();
            let answer = state.read_txn(&request, bytes_max);
            answer.map(|answer| answer.map(|answer| (answer, revision)))
        });
        let answer = read.await.map_err(|panic| internal(&panic))?.map_err(Error::from)?;
        Ok(answer?)
    }

    pub(super) async fn write(&self, command: Command) -> Result<Bytes, Status> {
        let applied = self.member.propose(&self.shard, command).await?;
        let response = applied.outcome?;
        let header = self.member.header(applied.revision);
        encode::response(&header, &response, self.answer_bytes_max())
    }

    pub(super) async fn range(&self, message: Bytes) -> Result<Bytes, Status> {
        let request: RangeRequest = grpc::decode(message)?;
        check::range(&request)?;
        if !request.serializable {
            self.member.read_barrier(&self.shard).await?;
        }
        let bytes_max = self.answer_bytes_max();
        let (answer, revision) = self.read(&request, Room::Whole(bytes_max)).await?;
        self.member.counts().range_read();
        encode::range(&self.member.header(revision), &answer, bytes_max)
    }

    /// The answer to `request` from the state as it is here, and its revision.
    async fn read(&self, request: &RangeRequest, room: Room) -> Result<(RangeAnswer, i64), Status> {
        loop {
            let (found, revision) = self.read_memory(request, room)?;
            let answer = match found {
                Found::Answer(answer) => Some(answer),
                // Boxed: hardly any read has to wait for the disk.
                Found::Plan(plan) => Box::pin(self.finish(*plan)).await?,
            };
            if let Some(answer) = answer {
                return Ok((answer, revision));
            }
        }
    }

    /// What memory holds of the answer to `request`, and the state's revision.
    fn read_memory(&self, request: &RangeRequest, room: Room) -> Result<(Found, i64), Status> {
        let state = self.member.state();
        let plan = state.range_within(request, room)?;
        let found = if plan.is_hot() {
            Found::Answer(plan.finish(&**state.backend()).map_err(Error::from)?)
        } else {
            Found::Plan(Box::new(plan))
        };
        Ok((found, state.revision()))
    }

    /// The answer of `plan`: at once if all values are in memory, else off the serving thread. None
    /// if a snapshot took the place of the state that the plan is of: then the read begins again.
    pub(super) async fn finish(&self, plan: RangePlan) -> Result<Option<RangeAnswer>, Status> {
        if plan.is_hot() {
            let state = self.member.state();
            return Ok(Some(plan.finish(&**state.backend()).map_err(Error::from)?));
        }
        let member = self.member.clone();
        let read = tasks::blocking(move || read_cold(&member, plan));
        Ok(read.await.map_err(|panic| internal(&panic))?.map_err(Error::from)?)
    }

    /// A Range whose answer comes in parts; merging them gives what Range answers.
    pub(super) async fn range_stream(
        &self,
        call: &Call,
        message: Bytes,
    ) -> Result<mpsc::Receiver<Result<Bytes, Status>>, Status> {
        let request: RangeRequest = grpc::decode(message)?;
        check::range(&request)?;
        check_streamable(&request)?;
        if !request.serializable {
            self.member.read_barrier(&self.shard).await?;
        }
        let (parts, receiver) = mpsc::channel(limits::STREAM_PARTS_MAX);
        let (api, cut) = (self.clone(), self.cut(call));
        tasks::spawn("range-stream", async move {
            // Nothing is lost in a branch that is dropped: the call ends.
            let sent = tokio::select! {
                biased;
                sent = api.send_parts(request, &parts) => sent,
                status = cut => Err(status),
            };
            let code = sent.as_ref().map_or_else(|status| status.code, |()| Code::Ok);
            api.member.counts().range_read();
            api.metrics.handled(Metrics::method(RANGE_STREAM), code as usize);
            if let Err(status) = sent {
                // A client that went away needs no status.
                drop(parts.send(Err(status)).await);
            }
        });
        Ok(receiver)
    }

    async fn send_parts(
        &self,
        mut request: RangeRequest,
        parts: &mpsc::Sender<Result<Bytes, Status>>,
    ) -> Result<(), Status> {
        let latest = self.member.state().revision();
        let header = self.member.header(latest);
        if request.revision <= 0 {
            request.revision = latest;
        }
        if request.sort_target != SortTarget::Key as i32 {
            return self.send_sorted(&request, &header, parts).await;
        }
        let limit = (request.limit > 0).then_some(request.limit);
        let method = Metrics::method(RANGE_STREAM);
        let (mut keys, mut sent, mut total) = (limits::STREAM_FIRST_PART_KEYS, 0, None);
        loop {
            let left = limit.map(|limit| limit - sent);
            request.limit = left.map_or(keys, |left| left.min(keys));
            let part = Room::Part(self.part_bytes_max());
            let (mut answer, _) = self.read(&request, part).await?;
            sent += i64::try_from(answer.len).unwrap_or(i64::MAX);
            // Every part counts from its own first key; the answer tells the whole range's count.
            answer.count = *total.get_or_insert(answer.count);
            let last = request.count_only || !answer.more || limit == Some(sent);
            let part = encode::range_part(last.then_some(&header), &answer);
            self.metrics.message_sent(method);
            self.metrics.bytes_sent(part.len());
            if parts.send(Ok(part)).await.is_err() || last {
                return Ok(());
            }
            let Some(last_key) = encode::last_key(&answer) else { return Ok(()) };
            request.key = [&last_key[..], &[0]].concat().into();
            keys = next_part_keys(keys, answer.kvs.len(), self.part_bytes_max());
        }
    }

    /// Sends what can be sorted only as a whole, and is held in memory: no more than one message.
    async fn send_sorted(
        &self,
        request: &RangeRequest,
        header: &ResponseHeader,
        parts: &mpsc::Sender<Result<Bytes, Status>>,
    ) -> Result<(), Status> {
        let method = Metrics::method(RANGE_STREAM);
        let bytes_max = self.answer_bytes_max();
        let (mut answer, _) = self.read(request, Room::Whole(bytes_max)).await?;
        grpc::check_streamed_size(answer.kvs.len() + answer.left_out, bytes_max)?;
        let mut rest = std::mem::take(&mut answer.kvs);
        loop {
            answer.kvs = encode::split_pairs(&mut rest, self.part_bytes_max());
            let last = rest.is_empty();
            let part = encode::range_part(last.then_some(header), &answer);
            self.metrics.message_sent(method);
            self.metrics.bytes_sent(part.len());
            if parts.send(Ok(part)).await.is_err() || last {
                return Ok(());
            }
        }
    }

    fn part_bytes_max(&self) -> usize {
        self.member.options().request_bytes_max
    }
}

/// What was found in memory.
enum Found {
    /// All of the answer.
    Answer(RangeAnswer),
    /// Where to look for it.
    Plan(Box<RangePlan>),
}

/// Goes on with a plan that is long or needs values from the disk; the state is held only for
/// bounded steps. None if a snapshot took the place of the state that the plan is of.
fn read_cold(member: &Member, mut plan: RangePlan) -> Result<Option<RangeAnswer>, StorageError> {
    let backend = loop {
        let state = member.state();
        if !state.has_planned(&plan) {
            return Ok(None);
        }
        if plan.is_planned() {
            break Arc::clone(state.backend());
        }
        state.plan_more(&mut plan);
    };
    let (answer, read) = plan.finish_and_warm(&*backend)?;
    if !read.is_empty() {
        member.warm(read);
    }
    Ok(Some(answer))
}

/// As in etcd: parts double while they are small and halve when they grow too large.
fn next_part_keys(keys: i64, bytes: usize, bytes_max: usize) -> i64 {
    if bytes < bytes_max / 2 {
        keys * 2
    } else if bytes > bytes_max {
        (keys / 2).max(1)
    } else {
        keys
    }
}

/// As in etcd: only the natural order and no filters can be streamed, but another target passes if
/// no order is given.
fn check_streamable(request: &RangeRequest) -> Result<(), Status> {
    let is_ascending_key = request.sort_order == SortOrder::Ascend as i32
        && request.sort_target == SortTarget::Key as i32;
    if request.sort_order != SortOrder::None as i32 && !is_ascending_key {
        let text = "RangeStream does not support custom sort orders";
        return Err(Status::new(Code::Unimplemented, text));
    }
    let filtered = [
        request.min_mod_revision,
        request.max_mod_revision,
        request.min_create_revision,
        request.max_create_revision,
    ];
    if filtered.iter().any(|revision| *revision != 0) {
        let text = "RangeStream does not support revision filters";
        return Err(Status::new(Code::Unimplemented, text));
    }
    Ok(())
}

fn internal(panic: &tokio::task::JoinError) -> Status {
    Status::new(Code::Internal, panic.to_string())
}
