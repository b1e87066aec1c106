//! One watcher on a stream of its own, which outlives the loss of its member.
//!
//! A broken stream is opened again, on another member if there is one, and the watcher goes on
//! behind the last revision it knows: no event is lost or shown twice.

use futures_util::stream::{self, Stream};
use quorate::pb::etcdserverpb::{
    WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
    watch_client::WatchClient, watch_request::RequestUnion,
};
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming, metadata::MetadataValue};

use crate::{
    client::{Client, RETRY_PAUSE},
    error::Error,
};

/// Requests that wait to be sent; a watcher sends one and then perhaps asks for progress.
const REQUESTS_MAX: usize = 16;

/// Whether a watcher ends when its member has no leader.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leader {
    /// It ends at once instead of waiting with old news.
    Required,
    /// It waits.
    Optional,
}

/// Why a watcher has ended.
pub(crate) enum End {
    /// The server canceled it, and has said why if there is a reason.
    Canceled,
    /// It was refused, or its stream failed for good.
    Failed(Error),
}

/// A watcher of one key or interval.
pub(crate) struct Watcher<'a> {
    client: &'a Client,
    /// What to ask for at the next opening; the start revision moves with the events.
    request: WatchCreateRequest,
    leader: Leader,
    open: Option<Open>,
    /// The endpoint that failed last.
    failed: Option<usize>,
    /// Progress was asked for while there was no stream.
    wants_progress: bool,
    canceled: bool,
}

struct Open {
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
    endpoint: usize,
}

/// The requests of a channel as the stream that tonic sends.
pub(crate) fn outgoing<T>(mut requests: mpsc::Receiver<T>) -> impl Stream<Item = T> {
    stream::poll_fn(move |context| requests.poll_recv(context))
}

fn wrap(request: RequestUnion) -> WatchRequest {
    WatchRequest { request_union: Some(request) }
}

impl<'a> Watcher<'a> {
    /// Prepares a watcher; it begins with the first call of [`Watcher::next`].
    pub(crate) fn new(client: &'a Client, request: WatchCreateRequest, leader: Leader) -> Self {
        Self {
            client,
            request,
            leader,
            open: None,
            failed: None,
            wants_progress: false,
            canceled: false,
        }
    }

    /// Asks how far the watcher has come; the answer is one of the next responses.
    pub(crate) async fn request_progress(&mut self) {
        let request = wrap(RequestUnion::ProgressRequest(WatchProgressRequest {}));
        self.wants_progress = match &self.open {
            Some(open) => open.requests.send(request).await.is_err(),
            None => true,
        };
    }

    /// The next response with events, progress or the reason of a cancelation.
    ///
    /// May be dropped and called again without losing anything.
    pub(crate) async fn next(&mut self) -> Result<WatchResponse, End> {
        if self.canceled {
            return Err(End::Canceled);
        }
        loop {
            if self.open.is_none() {
                self.open().await?;
            }
            let Some(open) = &mut self.open else { continue };
            match open.responses.message().await {
                Ok(Some(response)) => {
                    if let Some(response) = self.take(response).await? {
                        return Ok(response);
                    }
                }
                Ok(None) => self.lose(),
                Err(status) if self.is_final(&status) => return Err(End::Failed(status.into())),
                Err(_) => self.lose(),
            }
        }
    }

    /// Opens the stream and asks for the watcher.
    async fn open(&mut self) -> Result<(), End> {
        let pause = self.failed.is_some();
        if pause {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        let session = self.client.session(self.failed).await.map_err(End::Failed)?;
        let (requests, queue) = mpsc::channel(REQUESTS_MAX);
        let create = wrap(RequestUnion::CreateRequest(self.request.clone()));
        requests.try_send(create).expect("the queue is new and has room");
        let mut message = session.request(outgoing(queue));
        if self.leader == Leader::Required {
            message.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        }
        let mut watch = WatchClient::new(session.channel.clone())
            .max_decoding_message_size(self.client.response_bytes_max);
        match watch.watch(message).await {
            Ok(response) => {
                let responses = response.into_inner();
                self.open = Some(Open { requests, responses, endpoint: session.endpoint });
            }
            Err(status) if self.is_final(&status) => return Err(End::Failed(status.into())),
            Err(_) => self.failed = Some(session.endpoint),
        }
        Ok(())
    }

    fn lose(&mut self) {
        self.failed = self.open.take().map(|open| open.endpoint);
    }

    /// Notes how far a response leads; gives it back if it is news for the caller.
    async fn take(&mut self, response: WatchResponse) -> Result<Option<WatchResponse>, End> {
        let revision = response.header.map_or(0, |header| header.revision);
        if response.created && response.canceled {
            return Err(End::Failed(Error::General(response.cancel_reason)));
        }
        if response.created {
            self.failed = None;
            if self.request.start_revision == 0 {
                self.request.start_revision = revision + 1;
            }
            if std::mem::take(&mut self.wants_progress) {
                self.request_progress().await;
            }
            return Ok(None);
        }
        if response.canceled && response.compact_revision == 0 {
            return Err(End::Canceled);
        }
        self.canceled = response.canceled;
        let last = response.events.last().and_then(|event| event.kv.as_ref());
        let reached = last.map_or(revision, |kv| kv.mod_revision);
        self.request.start_revision = self.request.start_revision.max(reached + 1);
        Ok(Some(response))
    }

    /// Whether a new stream would fail in the same way.
    fn is_final(&self, status: &Status) -> bool {
        if status.message() == "etcdserver: no leader" {
            return self.leader == Leader::Required;
        }
        let transport = std::error::Error::source(status).is_some();
        !transport && !matches!(status.code(), Code::Unavailable | Code::Internal)
    }
}
