//! Ports: bound once, then connections are dealt out to the serving threads in turn.

use std::net::{TcpListener as StdListener, ToSocketAddrs};
use std::sync::Arc;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::ServerError;
use crate::config::{Config, Url};
use crate::pb::quorate::peer::peer_server::PeerServer;
use crate::raft::PeerService;
use crate::{limits, tasks};

/// The bound ports.
pub(super) struct Listeners {
    pub(super) clients: Vec<StdListener>,
    pub(super) peers: Vec<StdListener>,
}

impl Listeners {
    /// Binds all client and peer URLs, or names the one that cannot be bound.
    pub(super) fn bind(config: &Config) -> Result<Listeners, ServerError> {
        Ok(Listeners {
            clients: bind_all(&config.listen_client_urls)?,
            peers: bind_all(&config.listen_peer_urls)?,
        })
    }
}

fn bind_all(urls: &[Url]) -> Result<Vec<StdListener>, ServerError> {
    let mut listeners = Vec::new();
    for url in urls {
        let failed = |source| ServerError::Listen { url: url.as_str().to_owned(), source };
        let addresses = url.host_port().to_socket_addrs().map_err(failed)?;
        // `localhost` may stand for several addresses; like Go, the first that works is taken.
        let listener = StdListener::bind(&addresses.collect::<Vec<_>>()[..]).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Deals connections out to the serving threads in turn.
pub(super) struct Dealer {
    threads: Vec<mpsc::UnboundedSender<std::net::TcpStream>>,
}

impl Dealer {
    pub(super) fn new() -> Self {
        Dealer { threads: Vec::new() }
    }

    /// Adds a thread; it receives its connections here.
    pub(super) fn add(&mut self) -> mpsc::UnboundedReceiver<std::net::TcpStream> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.threads.push(sender);
        receiver
    }

    /// Accepts on all `listeners` for ever.
    pub(super) async fn accept(self, listeners: Vec<StdListener>) {
        let dealer = Arc::new(self);
        for listener in listeners {
            tasks::spawn("accept", Arc::clone(&dealer).accept_on(listener));
        }
        std::future::pending().await
    }

    async fn accept_on(self: Arc<Self>, listener: StdListener) {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "cannot accept connections"),
        };
        for turn in 0usize.. {
            match listener.accept().await {
                Ok((stream, _peer)) => self.deal(turn, stream),
                Err(error) => {
                    // Out of file descriptors, most likely: those who are served go on.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(limits::ACCEPT_RETRY).await;
                }
            }
        }
    }

    fn deal(&self, turn: usize, stream: tokio::net::TcpStream) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        if let Ok(stream) = stream.into_std() {
            // A serving thread ends only with the process.
            drop(self.threads[turn % self.threads.len()].send(stream));
        }
    }
}

/// Serves the other members on the current (raft) runtime.
pub(super) fn serve_peers(listeners: Vec<StdListener>, service: PeerService) {
    let service = PeerServer::new(service)
        .max_decoding_message_size(limits::PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(limits::PEER_MESSAGE_BYTES_MAX);
    for listener in listeners {
        tasks::spawn("peer-accept", accept_peers(listener, service.clone()));
    }
}

async fn accept_peers(listener: StdListener, service: PeerServer<PeerService>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "cannot accept members"),
    };
    loop {
        let Ok((stream, _peer)) = listener.accept().await else {
            tokio::time::sleep(limits::ACCEPT_RETRY).await;
            continue;
        };
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        let service = TowerToHyperService::new(service.clone());
        tasks::spawn("peer-connection", async move {
            let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            builder
                .timer(hyper_util::rt::TokioTimer::new())
                .initial_stream_window_size(limits::PEER_STREAM_WINDOW_BYTES)
                .initial_connection_window_size(limits::PEER_CONNECTION_WINDOW_BYTES)
                .keep_alive_interval(limits::PEER_KEEPALIVE_INTERVAL)
                .keep_alive_timeout(limits::PEER_KEEPALIVE_TIMEOUT);
            if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "a member's connection ended");
            }
        });
    }
}
