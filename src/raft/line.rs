//! A line to another member: a connection in production, a simulated network in the simulation.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, MapErr};
use futures_util::{FutureExt, TryFutureExt};
use http::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use tokio::net::TcpStream;
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
            .http2_keep_alive_interval(limits::PEER_KEEPALIVE_INTERVAL)
            .keep_alive_timeout(limits::PEER_KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(limits::PEER_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(limits::PEER_CONNECTION_WINDOW_BYTES)
            .connect_with_connector_lazy(Dialer);
        Ok(Line::Tcp(channel))
    }
}

/// Opens connections to other members.
#[derive(Debug, Clone, Copy)]
struct Dialer;

impl Service<Uri> for Dialer {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let at = url.authority().map(ToString::to_string);
        let dialed = async move {
            let at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
            let stream = TcpStream::connect(at).await?;
            refuse_itself(&stream)?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(stream))
        };
        dialed.boxed()
    }
}

/// Who dials a port of this machine that nobody listens on may be given that port for its own end,
/// and is then connected to itself: TCP takes it for both sides dialing at once. Closing such a
/// connection as usual would keep the member that belongs there from its port for a minute.
fn refuse_itself(stream: &TcpStream) -> io::Result<()> {
    if stream.local_addr()? != stream.peer_addr()? {
        return Ok(());
    }
    sockopt::set_socket_linger(stream, Some(Duration::ZERO))?;
    Err(io::Error::from(io::ErrorKind::ConnectionRefused))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use tokio::net::TcpSocket;

    /// A member that was killed could not start again: its port belonged to a connection of its peer
    /// with itself.
    #[tokio::test]
    async fn a_connection_with_itself_frees_its_port() {
        let itself = TcpSocket::new_v4().unwrap();
        itself.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = itself.local_addr().unwrap();
        let stream = itself.connect(port).await.expect("TCP allows it");
        let refused = refuse_itself(&stream).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        drop(stream);
        let listener = TcpListener::bind(port).expect("the port is free again");
        let other = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        refuse_itself(&other).expect("that is another one");
    }
}
