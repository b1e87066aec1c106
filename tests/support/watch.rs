//! A client's side of one watch stream.

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream;
use quorate::pb::etcdserverpb::watch_request::RequestUnion;
use quorate::pb::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::client;

/// How long an answer may take that is certain to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// One watch stream.
pub(crate) struct Watch {
    requests: Option<mpsc::UnboundedSender<WatchRequest>>,
    responses: Responses,
}

/// A server may send the head of its answer only together with the first response, as etcd does.
enum Responses {
    Awaited(BoxFuture<'static, Result<Response<Streaming<WatchResponse>>, Status>>),
    Open(Box<Streaming<WatchResponse>>),
}

/// A watch of one key, or of the range up to `end`.
pub(crate) fn create(key: &str, end: &str, start_revision: i64) -> WatchCreateRequest {
    WatchCreateRequest {
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
        start_revision,
        ..WatchCreateRequest::default()
    }
}

impl Watch {
    /// Opens a stream at the member at `endpoint`.
    ///
    /// Nothing is sent before the first response is asked for.
    pub(crate) fn open(endpoint: &str) -> Watch {
        Watch::open_with(endpoint, false)
    }

    /// As [`Watch::open`]; with `hasleader` if that is asked for.
    pub(crate) fn open_with(endpoint: &str, has_leader: bool) -> Watch {
        Watch::open_on(client::channel(endpoint, Duration::from_secs(5)), has_leader)
    }

    /// As [`Watch::open_with`], on a connection of the caller's.
    pub(crate) fn open_on(channel: Channel, has_leader: bool) -> Watch {
        let (requests, mut received) = mpsc::unbounded_channel();
        let mut request = Request::new(stream::poll_fn(move |context| received.poll_recv(context)));
        if has_leader {
            request.metadata_mut().insert("hasleader", "true".parse().unwrap());
        }
        let mut client = client::watch(channel);
        let awaited = Box::pin(async move { client.watch(request).await });
        Watch { requests: Some(requests), responses: Responses::Awaited(awaited) }
    }

    fn send(&self, request: RequestUnion) {
        let requests = self.requests.as_ref().expect("the stream is still open");
        // A stream that has ended says so when it is read.
        requests.send(WatchRequest { request_union: Some(request) }).ok();
    }

    /// Asks for a watcher.
    pub(crate) fn create(&self, request: WatchCreateRequest) {
        self.send(RequestUnion::CreateRequest(request));
    }

    /// Asks for the end of a watcher.
    pub(crate) fn cancel(&self, watch_id: i64) {
        self.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id }));
    }

    /// Asks for the progress of the stream.
    pub(crate) fn request_progress(&self) {
        self.send(RequestUnion::ProgressRequest(WatchProgressRequest {}));
    }

    /// Ends the client's side.
    pub(crate) fn half_close(&mut self) {
        self.requests = None;
    }

    /// The next response, or the status that ended the stream.
    pub(crate) async fn try_next(&mut self) -> Result<WatchResponse, Status> {
        if let Responses::Awaited(awaited) = &mut self.responses {
            self.responses = Responses::Open(Box::new(awaited.await?.into_inner()));
        }
        let Responses::Open(responses) = &mut self.responses else { unreachable!("it is open") };
        responses.message().await?.ok_or_else(|| Status::ok("the stream has ended"))
    }

    /// The next response, which must come.
    pub(crate) async fn next(&mut self) -> WatchResponse {
        let next = tokio::time::timeout(PATIENCE, self.try_next()).await;
        next.expect("a response in time").expect("the stream goes on")
    }

    /// Events of the following responses, until there are `count`; as mod revisions.
    pub(crate) async fn revisions(&mut self, count: usize) -> Vec<i64> {
        let mut revisions = Vec::new();
        while revisions.len() < count {
            let response = self.next().await;
            revisions.extend(
                response
                    .events
                    .iter()
                    .map(|event| event.kv.as_ref().expect("an event has a pair").mod_revision),
            );
        }
        revisions
    }
}
