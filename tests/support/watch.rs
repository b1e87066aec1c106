//! A client's side of one watch stream.

use std::time::Duration;

use futures_util::stream;
use quorate::pb::etcdserverpb::watch_request::RequestUnion;
use quorate::pb::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use tokio::sync::mpsc;
use tonic::{Request, Status, Streaming};

use super::client;

/// How long an answer may take that is certain to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// One watch stream.
pub(crate) struct Watch {
    requests: Option<mpsc::UnboundedSender<WatchRequest>>,
    responses: Streaming<WatchResponse>,
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
    pub(crate) async fn open(endpoint: &str) -> Result<Watch, Status> {
        Watch::open_with(endpoint, false).await
    }

    /// As [`Watch::open`]; with `hasleader` if that is asked for.
    pub(crate) async fn open_with(endpoint: &str, has_leader: bool) -> Result<Watch, Status> {
        let (requests, mut received) = mpsc::unbounded_channel();
        let mut request = Request::new(stream::poll_fn(move |context| received.poll_recv(context)));
        if has_leader {
            request.metadata_mut().insert("hasleader", "true".parse().unwrap());
        }
        let mut client = client::watch(client::channel(endpoint, Duration::from_secs(5)));
        let responses = client.watch(request).await?.into_inner();
        Ok(Watch { requests: Some(requests), responses })
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
        self.responses.message().await?.ok_or_else(|| Status::ok("the stream has ended"))
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
