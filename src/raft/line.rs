//! A line to another member: a connection in production, a simulated network in the simulation.

use std::error::Error;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::{BoxFuture, Either, MapErr};
use futures_util::{FutureExt, TryFutureExt};
use http::{Request, Response};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::transport::channel::{Channel, ResponseFuture};
use tonic::transport::{self, Endpoint};

use super::peers::PeerError;
use crate::limits;

/// What may go wrong with a call; tonic makes a status of it.
pub type LineError = Box<dyn Error + Send + Sync>;

/// How members reach each other.
pub trait Connector: Send + Sync + 'static {
    /// A lazy line to `member` at `url`.
    ///
    /// # Errors
    /// If the URL cannot be used.
    fn connect(&self, member: u64, url: &str) -> Result<Line, PeerError>;
}

/// A network that is not the system's.
pub trait Transport: Send + Sync + 'static {
    /// Takes a call to the other end of the line.
    fn call(&self, request: Request<Body>)
    -> BoxFuture<'static, Result<Response<Body>, LineError>>;
}

/// A line to another member, or to anything that speaks gRPC.
#[derive(Clone)]
pub enum Line {
    /// HTTP/2 over TCP.
    Tcp(Channel),
    /// Something else.
    Other(Arc<dyn Transport>),
}

impl Service<Request<Body>> for Line {
    type Response = Response<Body>;
    type Error = LineError;
    type Future = Either<
        MapErr<ResponseFuture, fn(transport::Error) -> LineError>,
        BoxFuture<'static, Result<Response<Body>, LineError>>,
    >;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), LineError>> {
        match self {
            Line::Tcp(channel) => channel.poll_ready(context).map_err(LineError::from),
            Line::Other(_) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self {
            Line::Tcp(channel) => {
                let error: fn(transport::Error) -> LineError = LineError::from;
                channel.call(request).map_err(error).left_future()
            }
            Line::Other(transport) => transport.call(request).right_future(),
        }
    }
}

/// HTTP/2 over TCP.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tcp;

impl Connector for Tcp {
    fn connect(&self, member: u64, url: &str) -> Result<Line, PeerError> {
        let bad = |source| PeerError::BadUrl { member, url: url.to_owned(), source };
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(bad)?;
        let channel = endpoint
            .connect_timeout(limits::PEER_CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(limits::PEER_KEEPALIVE_INTERVAL)
            .keep_alive_timeout(limits::PEER_KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(limits::PEER_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(limits::PEER_CONNECTION_WINDOW_BYTES)
            .connect_lazy();
        Ok(Line::Tcp(channel))
    }
}
