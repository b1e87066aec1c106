//! The Lease service: grants and revokes go through the log, keep-alives to the lessor.

use std::collections::VecDeque;
use std::pin::pin;

use bytes::Bytes;
use futures_util::future::{self, FutureExt};
use prost::Message;

use super::grpc::{AnswerQueue, Answers, Call, FrameBuilder, RequestBody, Requests};
use super::status::{Code, Status};
use super::{Api, encode, grpc};
use crate::limits;
use crate::member::{Error, KeepAlive};
use crate::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseStatus, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse, ResponseHeader,
};
use crate::pb::quorate::command::command::Body as Command;
use crate::pb::quorate::peer;
use crate::tasks;

/// The path of the one method here that streams.
pub(super) const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

impl Api {
    pub(super) async fn lease_grant(&self, message: Bytes) -> Result<Bytes, Status> {
        let request: LeaseGrantRequest = grpc::decode(message)?;
        let applied = self.member.grant_lease(&self.shard, &request).await?;
        let response = applied.outcome?;
        encode::response(&self.member.header(applied.revision), &response, self.answer_bytes_max())
    }

    pub(super) async fn lease_revoke(&self, message: Bytes) -> Result<Bytes, Status> {
        let request: LeaseRevokeRequest = grpc::decode(message)?;
        self.write(Command::LeaseRevoke(request)).await
    }

    pub(super) async fn lease_time_to_live(&self, message: Bytes) -> Result<Bytes, Status> {
        let LeaseTimeToLiveRequest { id, keys } = grpc::decode(message)?;
        let request = peer::LeaseTimeToLiveRequest { id, keys };
        let time = self.member.lease_time_to_live(&self.shard, request).await?;
        let header = Some(self.member.header(self.member.state().revision()));
        Ok(grpc::encode(&match time {
            Some(peer::LeaseTime { remaining_seconds, granted_seconds, keys }) => {
                let (ttl, granted_ttl) = (remaining_seconds, granted_seconds);
                LeaseTimeToLiveResponse { header, id, ttl, granted_ttl, keys }
            }
            // As in etcd: an unknown lease is not an error here.
            None => LeaseTimeToLiveResponse { header, id, ttl: -1, ..Default::default() },
        }))
    }

    /// As in etcd: this member's own view, in the order in which the leases end.
    pub(super) fn lease_leases(&self, message: Bytes) -> Result<Bytes, Status> {
        let _: LeaseLeasesRequest = grpc::decode(message)?;
        let (ids, revision) = {
            let state = self.member.state();
            (state.lease_ids_by_end(), state.revision())
        };
        Ok(grpc::encode(&LeaseLeasesResponse {
            header: Some(self.member.header(revision)),
            leases: ids.into_iter().map(|id| LeaseStatus { id }).collect(),
        }))
    }

    /// Opens a stream of keep-alives.
    pub(super) fn lease_keep_alive<B: RequestBody>(
        &self,
        call: &Call,
        body: B,
    ) -> Result<AnswerQueue, Status> {
        let (requests, answers, queue) = self.open(call, KEEP_ALIVE, body)?;
        let stream = KeepAliveStream { api: self.clone(), answers, owed: VecDeque::new() };
        tasks::spawn("keep-alive", stream.serve(requests, self.cut(call)));
        Ok(queue)
    }
}

/// A stream of keep-alives; the answers go out in the order of the requests.
struct KeepAliveStream {
    api: Api,
    answers: Answers,
    owed: VecDeque<Owed>,
}

/// An answer that is still to be sent.
struct Owed {
    /// As in etcd: from before the renewal, so that it is not above that of a later expiry.
    header: ResponseHeader,
    id: i64,
    keep_alive: KeepAlive,
}

/// What a stream does next.
enum Next {
    Request(Option<Result<Bytes, Status>>),
    Renewed(Result<i64, Error>),
    Cut(Status),
    Gone,
}

impl KeepAliveStream {
    /// Serves until the client ends its side, is gone, or a request fails.
    async fn serve<B: RequestBody>(
        mut self,
        mut requests: Requests<B>,
        cut: impl Future<Output = Status>,
    ) {
        let mut cut = pin!(cut);
        let mut is_open = true;
        let status = loop {
            if let Err(status) = self.send_ready() {
                break status;
            }
            if !is_open && self.owed.is_empty() {
                break Status::new(Code::Ok, "");
            }
            let has_room = self.answers.has_room();
            let reads = is_open && has_room && self.owed.len() < limits::LEASE_STREAM_PENDING_MAX;
            let next = tokio::select! {
                biased;
                request = requests.next(), if reads => Next::Request(request),
                renewed = front(&mut self.owed) => Next::Renewed(renewed),
                room = self.answers.room(), if !has_room => match room {
                    Ok(()) => continue,
                    Err(_) => Next::Gone,
                },
                () = self.answers.gone(), if has_room => Next::Gone,
                status = &mut cut => Next::Cut(status),
            };
            match next {
                Next::Request(Some(Ok(message))) => {
                    match self.take_with_more(message, &mut requests) {
                        Ok(has_more) => is_open = has_more,
                        Err(status) => break status,
                    }
                }
                Next::Request(Some(Err(status))) => break status,
                Next::Request(None) => is_open = false,
                Next::Renewed(Ok(ttl_seconds)) => {
                    if let Some(first) = self.owed.front_mut() {
                        first.keep_alive = KeepAlive::Now(ttl_seconds);
                    }
                }
                Next::Renewed(Err(error)) => break error.into(),
                Next::Cut(status) => break status,
                Next::Gone => return,
            }
        };
        self.answers.end(status);
    }

    /// Takes a request and those behind it that are there already; whether more may come.
    fn take_with_more<B: RequestBody>(
        &mut self,
        first: Bytes,
        requests: &mut Requests<B>,
    ) -> Result<bool, Status> {
        let mut ids = Vec::new();
        let mut next = Some(Some(Ok(first)));
        let ended = loop {
            match next {
                Some(Some(Ok(message))) => {
                    self.api.metrics.received(self.answers.method(), message.len());
                    match grpc::decode_in_stream(message) {
                        Ok(LeaseKeepAliveRequest { id }) => ids.push(id),
                        Err(status) => break Err(status),
                    }
                }
                Some(Some(Err(status))) => break Err(status),
                Some(None) => break Ok(false),
                None => break Ok(true),
            }
            if self.owed.len() + ids.len() >= limits::LEASE_STREAM_PENDING_MAX {
                break Ok(true);
            }
            next = requests.next().now_or_never();
        };
        let member = &self.api.member;
        let header = member.header(member.state().revision());
        let taken = member.keep_alive(&self.api.shard, &ids);
        let owed = |(id, keep_alive)| Owed { header, id, keep_alive };
        self.owed.extend(ids.into_iter().zip(taken).map(owed));
        ended
    }

    /// Sends the answers that are there, up to the first that is not.
    fn send_ready(&mut self) -> Result<(), Status> {
        while let Some(first) = self.owed.front_mut() {
            let ttl = match &mut first.keep_alive {
                KeepAlive::Now(ttl_seconds) => *ttl_seconds,
                KeepAlive::Later(receiver) => match receiver.try_recv() {
                    Ok(renewed) => renewed?,
                    Err(tokio::sync::oneshot::error::TryRecvError::Empty) => return Ok(()),
                    Err(tokio::sync::oneshot::error::TryRecvError::Closed) => {
                        return Err(Error::Stopped.into());
                    }
                },
            };
            let header = Some(first.header);
            let response = LeaseKeepAliveResponse { header, id: first.id, ttl };
            let mut frame = FrameBuilder::with_capacity(response.encoded_len());
            response.encode_raw(frame.buffer());
            self.answers.send(&frame.finish());
            self.owed.pop_front();
        }
        Ok(())
    }
}

/// The answer that is owed next, when it is there; for ever if none is owed.
async fn front(owed: &mut VecDeque<Owed>) -> Result<i64, Error> {
    match owed.front_mut().map(|first| &mut first.keep_alive) {
        Some(KeepAlive::Now(ttl_seconds)) => Ok(*ttl_seconds),
        Some(KeepAlive::Later(receiver)) => receiver.await.unwrap_or(Err(Error::Stopped)),
        None => future::pending().await,
    }
}
