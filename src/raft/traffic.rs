//! Counts the bytes that go between this member and the others.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Map};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use prometheus::IntCounter;
use tonic::codegen::Service;

use super::line::{Line, LineError};
use super::peers::{FROM, Peers};
use crate::metrics::PeerMetrics;

/// A body whose bytes are counted as they pass.
#[derive(Debug)]
pub struct Counted<B> {
    body: B,
    /// None if nobody knows whose they are.
    bytes: Option<IntCounter>,
}

impl<B> Counted<B> {
    fn new(body: B, bytes: Option<IntCounter>) -> Self {
        Counted { body, bytes }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Counted<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let (Some(Ok(frame)), Some(bytes)) = (&frame, &self.bytes)
            && let Some(data) = frame.data_ref()
        {
            bytes.inc_by(data.len() as u64);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A line to another member that counts what goes over it.
#[derive(Clone)]
pub(crate) struct PeerLine {
    line: Line,
    meter: Arc<PeerMetrics>,
}

impl PeerLine {
    pub(super) fn new(line: Line, meter: Arc<PeerMetrics>) -> Self {
        PeerLine { line, meter }
    }
}

type Answer<B, E> = Result<Response<B>, E>;
type CountAnswer<E> =
    Box<dyn FnOnce(Answer<tonic::body::Body, E>) -> Answer<Counted<tonic::body::Body>, E> + Send>;

/// Counts what comes in an answer.
fn count_answer<E>(bytes: Option<IntCounter>) -> CountAnswer<E> {
    Box::new(|answer| answer.map(|answer| answer.map(|body| Counted::new(body, bytes))))
}

impl Service<Request<tonic::body::Body>> for PeerLine {
    type Response = Response<Counted<tonic::body::Body>>;
    type Error = LineError;
    type Future =
        Map<<Line as Service<Request<tonic::body::Body>>>::Future, CountAnswer<LineError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), LineError>> {
        self.line.poll_ready(context)
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let sent = Some(self.meter.sent_bytes.clone());
        let request = request.map(|body| tonic::body::Body::new(Counted::new(body, sent)));
        self.line.call(request).map(count_answer(Some(self.meter.received_bytes.clone())))
    }
}

/// Serves the other members by `service` and counts what they send and get.
#[derive(Clone)]
pub struct CountedService<S> {
    service: S,
    peers: Arc<Peers>,
}

impl<S> CountedService<S> {
    /// Counts for those whom `peers` knows.
    pub fn new(service: S, peers: Arc<Peers>) -> Self {
        CountedService { service, peers }
    }
}

impl<S, B> Service<Request<B>> for CountedService<S>
where
    S: Service<Request<Counted<B>>, Response = Response<tonic::body::Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Response<Counted<tonic::body::Body>>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Answer<Counted<tonic::body::Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let from = request.headers().get(FROM).and_then(|id| id.to_str().ok());
        let from = from.and_then(|id| u64::from_str_radix(id, 16).ok());
        let meter = from.and_then(|from| self.peers.meter_of_known(from));
        let (sent, received) = match meter {
            Some(meter) => (Some(meter.sent_bytes.clone()), Some(meter.received_bytes.clone())),
            None => (None, None),
        };
        let request = request.map(|body| Counted::new(body, received));
        self.service.call(request).map(count_answer(sent)).boxed()
    }
}
