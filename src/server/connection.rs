//! One client connection: HTTP/2 with gRPC, or HTTP/1 with the plain pages of `http`, on one port;
//! or one of an operator, who gets pages only.

use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;

use ::http::{Request, Response, Version};
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use super::cork::Corked;
use super::http::{self as plain, Door, Pages};
use super::listen::Connection;
use crate::api::Api;
use crate::api::grpc::Body;
use crate::config::Config;
use crate::member::{Member, ShardSeat};
use crate::metrics::Metrics;
use crate::{limits, tasks};

/// What every connection of one serving thread shares.
pub(super) struct Context {
    api: Arc<Api>,
    pages: Pages,
    builder: auto::Builder<TokioExecutor>,
    /// For operators: HTTP/1 only.
    plain_builder: auto::Builder<TokioExecutor>,
}

impl Context {
    pub(super) fn new(
        config: &Config,
        member: &Arc<Member>,
        metrics: &Arc<Metrics>,
        seat: &ShardSeat,
    ) -> Context {
        let shard = Arc::clone(&seat.shard);
        let (member, metrics) = (Arc::clone(member), Arc::clone(metrics));
        let api = Api::new(Arc::clone(&member), Arc::clone(&shard), Arc::clone(&metrics));
        let origins = config.cors.as_deref().map(Arc::from);
        let pages = Pages { member, metrics, shard, origins };
        let builder = builder(config);
        let plain_builder = builder.clone().http1_only();
        Context { api: Arc::new(api), pages, builder, plain_builder }
    }

    fn answer(
        self: &Arc<Self>,
        door: Door,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Body>, Infallible>> + Send + use<> {
        // As in etcd: gRPC is whatever comes over HTTP/2; but plain pages are there for all.
        if request.version() == Version::HTTP_2 && !plain::serves(request.uri().path()) {
            return Arc::clone(&self.api).call(request).map(Ok).left_future();
        }
        let context = Arc::clone(self);
        let page = async move { Ok(context.pages.answer(door, &request).await) };
        page.boxed().right_future()
    }
}

fn builder(config: &Config) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEADER_READ_TIMEOUT)
        .keep_alive(true);
    let mut http2 = builder.http2();
    http2
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.max_concurrent_streams)
        .initial_stream_window_size(limits::CLIENT_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CLIENT_CONNECTION_WINDOW_BYTES)
        .max_header_list_size(limits::HEADER_LIST_BYTES_MAX)
        .max_pending_accept_reset_streams(limits::CLIENT_RESETS_MAX);
    if !config.grpc_keepalive_interval.is_zero() && !config.grpc_keepalive_timeout.is_zero() {
        http2
            .keep_alive_interval(config.grpc_keepalive_interval)
            .keep_alive_timeout(config.grpc_keepalive_timeout);
    }
    builder
}

/// Serves what the dealer hands to this thread until the member stops.
pub(super) async fn serve_all(
    context: Arc<Context>,
    mut connections: mpsc::UnboundedReceiver<Connection>,
    stopped: watch::Receiver<bool>,
) {
    let mut stop = stopped.clone();
    loop {
        let connection = tokio::select! {
            connection = connections.recv() => connection,
            () = until_stopped(&mut stop) => None,
        };
        let Some(Connection { stream, door }) = connection else { break };
        let Ok(stream) = TcpStream::from_std(stream) else { continue };
        tasks::spawn("connection", serve(Arc::clone(&context), stream, door, stopped.clone()));
    }
    // Answers under way go out while the runtime lives; the server ends it.
    std::future::pending().await
}

async fn until_stopped(stopped: &mut watch::Receiver<bool>) {
    // The sender goes away only with the process.
    drop(stopped.wait_for(|stopped| *stopped).await);
}

/// What every HTTP/2 client says first.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Waits until the client has said enough to tell its protocol; false if it leaves before.
///
/// hyper would wait for the rest of half a preface for ever.
async fn has_begun(stream: &TcpStream) -> bool {
    let mut start = [0; PREFACE.len()];
    loop {
        let Ok(count @ 1..) = stream.peek(&mut start).await else { return false };
        if count == PREFACE.len() || start[..count] != PREFACE[..count] {
            return true;
        }
        // The bytes are still there, so that to peek again at once would spin.
        tokio::time::sleep(limits::PREFACE_POLL).await;
    }
}

async fn serve(
    context: Arc<Context>,
    stream: TcpStream,
    door: Door,
    mut stopped: watch::Receiver<bool>,
) {
    // A connection that says nothing costs a file descriptor and is not kept.
    let speaks = tokio::time::timeout(limits::FIRST_BYTE_TIMEOUT, has_begun(&stream));
    if !matches!(speaks.await, Ok(true)) {
        return;
    }
    let builder = match door {
        Door::Clients => context.builder.clone(),
        Door::Operators => context.plain_builder.clone(),
    };
    let service = service_fn(move |request| context.answer(door, request));
    let stream = Corked::new(stream);
    let connection = builder.serve_connection(TokioIo::new(stream.clone()), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = poll_fn(|context| stream.poll_with(connection.as_mut(), context)) => ended,
        () = until_stopped(&mut stopped) => {
            connection.as_mut().graceful_shutdown();
            poll_fn(|context| stream.poll_with(connection.as_mut(), context)).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a client's connection ended");
    }
}
