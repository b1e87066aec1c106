//! The Watch service: one task a stream, between a client's requests and the member's deliveries.
//!
//! The task stops taking deliveries while the client does not read; then the stream's queue fills up
//! and its watchers fall behind, which is nobody else's business.

use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;

use super::grpc::{AnswerQueue, Answers, Call, RequestBody, Requests};
use super::status::{Code, Status};
use super::{Api, encode, grpc};
use crate::clock;
use crate::limits;
use crate::pb::etcdserverpb::watch_create_request::FilterType;
use crate::pb::etcdserverpb::watch_request::RequestUnion;
use crate::pb::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use crate::tasks;
use crate::watch::{self, Delivery, Frame, Keys, SharedEvent, WatchStream};

/// The id of a watcher that could not begin, as in etcd.
const INVALID_ID: i64 = -1;

/// The path of the method.
const PATH: &str = "/etcdserverpb.Watch/Watch";

impl Api {
    /// Opens a watch stream.
    pub(super) fn watch<B: RequestBody>(
        &self,
        call: &Call,
        body: B,
    ) -> Result<AnswerQueue, Status> {
        let (requests, answers, queue) = self.open(call, PATH, body)?;
        let stream = self.member.watch(&self.shard);
        let header = Header { revision: -1, bytes: Vec::new() };
        let client = Client { api: self.clone(), stream, answers, header, head: Vec::new() };
        tasks::spawn("watch-stream", client.run(requests, self.cut(call)));
        Ok(queue)
    }
}

/// One client's stream.
struct Client {
    api: Api,
    stream: WatchStream,
    answers: Answers,
    header: Header,
    /// Scratch space for the begin of a response.
    head: Vec<u8>,
}

/// The encoded header of the last response: watchers of one event share it.
struct Header {
    revision: i64,
    bytes: Vec<u8>,
}

impl Client {
    async fn run<B: RequestBody>(
        mut self,
        requests: Requests<B>,
        cut: impl Future<Output = Status>,
    ) {
        let Err(status) = self.serve(requests, cut).await;
        self.answers.end(status);
    }

    /// Serves the client until it is gone or has to go; tells what its stream ends with.
    async fn serve<B: RequestBody>(
        &mut self,
        mut requests: Requests<B>,
        cut: impl Future<Output = Status>,
    ) -> Result<Infallible, Status> {
        let mut cut = pin!(cut);
        let mut ticks = ticks(self.api.member.options().watch_progress_interval);
        // As in etcd: a client that has ended its side still gets events.
        let mut is_open = true;
        loop {
            tokio::select! {
                biased;
                status = &mut cut => return Err(status),
                room = self.answers.room() => if room.is_err() { return Err(canceled()) },
            }
            if self.send_waiting()? {
                // Who reads slowly is heard, too.
                if is_open && let Some(request) = requests.next().now_or_never() {
                    is_open = self.hear(request)?;
                }
                continue;
            }
            // Nothing is lost in a branch that is dropped: all of them can be asked again. Requests do
            // not hold up deliveries, of which all that wait are sent before the next one is taken.
            tokio::select! {
                biased;
                request = requests.next(), if is_open => is_open = self.hear(request)?,
                delivery = self.stream.next() => self.send(delivery)?,
                _ = ticks.tick() => self.stream.tick(),
                () = self.answers.gone() => return Err(canceled()),
                status = &mut cut => return Err(status),
            }
        }
    }

    /// Carries out what came from the client; false if that was its end.
    fn hear(&mut self, request: Option<Result<Bytes, Status>>) -> Result<bool, Status> {
        match request {
            Some(Ok(message)) => self.take(message).map(|()| true),
            Some(Err(status)) if status.code == Code::Cancelled => Err(canceled()),
            Some(Err(status)) => Err(status),
            None => Ok(false),
        }
    }

    /// Sends what waits while there is room; true if the room is used up.
    fn send_waiting(&mut self) -> Result<bool, Status> {
        while self.answers.has_room() {
            let Some(delivery) = self.stream.try_next() else { return Ok(false) };
            self.send(delivery)?;
        }
        Ok(true)
    }

    /// Carries out one request.
    fn take(&mut self, message: Bytes) -> Result<(), Status> {
        self.api.metrics.received(self.answers.method(), message.len());
        let request: WatchRequest = grpc::decode_in_stream(message)?;
        match request.request_union {
            Some(RequestUnion::CreateRequest(request)) => self.create(request),
            Some(RequestUnion::CancelRequest(request)) => self.cancel(request.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => {
                self.stream.request_progress(self.api.member.revisions().current);
            }
            None => {}
        }
        Ok(())
    }

    /// As in etcd: nothing is said of an id that does not exist.
    fn cancel(&self, watch_id: i64) {
        if self.stream.cancel(watch_id) {
            let header = Some(self.api.member.header(self.api.member.revisions().current));
            self.answer(WatchResponse { header, watch_id, canceled: true, ..Default::default() });
        }
    }

    fn create(&self, request: WatchCreateRequest) {
        let filters = |filter: FilterType| request.filters.contains(&i32::from(filter));
        let keys = Keys::new(&request.key, &request.range_end);
        let wanted = watch::WatchRequest::new(keys, request.start_revision)
            .with_id(request.watch_id)
            .without(filters(FilterType::Noput), filters(FilterType::Nodelete))
            .with_prev_kv(request.prev_kv)
            .with_progress(request.progress_notify)
            .with_fragments(request.fragment);
        let now = self.api.member.revisions();
        let header = Some(self.api.member.header(now.current));
        let response = WatchResponse { header, created: true, ..Default::default() };
        // What is delivered from now on is sent behind this answer.
        self.answer(match self.stream.create(wanted, now) {
            Ok(created) => WatchResponse { watch_id: created.id, ..response },
            Err(error) => WatchResponse {
                watch_id: INVALID_ID,
                canceled: true,
                cancel_reason: error.to_string(),
                ..response
            },
        });
    }

    fn answer(&self, response: WatchResponse) {
        self.answers.send(&grpc::encode(&response));
    }

    /// Refuses a delivery that is larger than any message. Other than in etcd, whose stream then says
    /// nothing more, the client hears of it.
    fn send(&mut self, delivery: Delivery) -> Result<(), Status> {
        match delivery {
            Delivery::Events { watch_id, revision, events, prev_after, fragment } => {
                let parts = Parts { watch_id, revision, prev_after };
                let events = events.as_slice();
                if fragment && events.len() > 1 {
                    return self.send_fragments(&parts, events);
                }
                return self.send_events(&parts, events, false);
            }
            Delivery::Progress { watch_id, revision } => {
                let header = Some(self.api.member.header(revision));
                self.answer(WatchResponse { header, watch_id, ..Default::default() });
            }
            Delivery::Compacted { watch_id, compact_revision } => {
                // As in etcd: the header of this answer has no revision.
                let header = Some(self.api.member.header(0));
                self.answer(WatchResponse {
                    header,
                    watch_id,
                    canceled: true,
                    compact_revision,
                    ..Default::default()
                });
            }
        }
        Ok(())
    }

    /// As in etcd: cuts what is too large for one message behind as many events as fit.
    fn send_fragments(&mut self, parts: &Parts, events: &[SharedEvent]) -> Result<(), Status> {
        let bytes_max = self.api.message_bytes_max;
        self.write_head(parts, true);
        let mut rest = events;
        let head = self.head.len();
        let size = |event: &SharedEvent| event.frame(parts.prev_after).bytes_len();
        if head + events.iter().map(size).sum::<usize>() < bytes_max {
            return self.send_events(parts, events, false);
        }
        while !rest.is_empty() {
            let mut bytes = head;
            let fits = |event: &&SharedEvent| {
                bytes += size(event);
                bytes < bytes_max
            };
            let count = rest.iter().take_while(fits).count().max(1);
            let (now, later) = rest.split_at(count);
            rest = later;
            self.send_events(parts, now, !rest.is_empty())?;
        }
        Ok(())
    }

    fn send_events(
        &mut self,
        parts: &Parts,
        events: &[SharedEvent],
        is_fragment: bool,
    ) -> Result<(), Status> {
        self.write_head(parts, is_fragment);
        if let [event] = events {
            return self.answers.send_parts(&self.head, event.frame(parts.prev_after).parts());
        }
        let frames: Vec<Frame<'_>> =
            events.iter().map(|event| event.frame(parts.prev_after)).collect();
        self.answers.send_parts(&self.head, frames.iter().flat_map(Frame::parts))
    }

    fn write_head(&mut self, parts: &Parts, is_fragment: bool) {
        let Header { revision, bytes } = &mut self.header;
        if *revision != parts.revision {
            *revision = parts.revision;
            bytes.clear();
            encode::put_header(bytes, &self.api.member.header(parts.revision));
        }
        self.head.clear();
        self.head.extend_from_slice(bytes);
        encode::put_watch(&mut self.head, parts.watch_id, is_fragment);
    }
}

/// What the messages of one delivery have in common.
struct Parts {
    watch_id: i64,
    revision: i64,
    prev_after: i64,
}

/// What a stream of a client that went away ends with.
fn canceled() -> Status {
    Status::new(Code::Cancelled, "etcdserver: watch canceled")
}

/// As in etcd: a tenth of the interval at most on top, so that streams do not tick together.
fn ticks(interval: Duration) -> tokio::time::Interval {
    let interval = interval + interval.mul_f64(fastrand::f64() / 10.0);
    let start = tokio::time::Instant::from_std(clock::now() + interval);
    let mut ticks = tokio::time::interval_at(start, interval.max(limits::WATCH_PROGRESS_MIN));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}
