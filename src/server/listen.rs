//! Ports: bound once, then connections are dealt out to the serving threads in turn.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt;
use rustix::process::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::ServerError;
use super::http::Door;
use crate::config::{Config, Url};
use crate::pb::quorate::peer::peer_server::PeerServer;
use crate::raft::peers::Peers;
use crate::raft::{CountedService, PeerService};
use crate::{limits, tasks};

/// The bound ports.
pub(super) struct Listeners {
    pub(super) clients: Vec<StdListener>,
    pub(super) peers: Vec<StdListener>,
    /// Of `--listen-metrics-urls`.
    pub(super) operators: Vec<StdListener>,
}

/// A connection that was accepted.
pub(super) struct Connection {
    pub(super) stream: std::net::TcpStream,
    pub(super) door: Door,
}

impl Listeners {
    /// Binds all URLs to listen on, or names the one that cannot be bound.
    pub(super) fn bind(config: &Config) -> Result<Listeners, ServerError> {
        Ok(Listeners {
            clients: bind_all(&config.listen_client_urls)?,
            peers: bind_all(&config.listen_peer_urls)?,
            operators: bind_all(&config.listen_metrics_urls)?,
        })
    }
}

fn bind_all(urls: &[Url]) -> Result<Vec<StdListener>, ServerError> {
    let mut listeners = Vec::new();
    for url in urls {
        let failed = |source| ServerError::Listen { url: url.as_str().to_owned(), source };
        let addresses = addresses(url).map_err(failed)?;
        let listener = StdListener::bind(&addresses[..]).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// What to listen on for `url`, of which the first that works is taken, as Go chooses: of all
/// addresses of a name one of IPv4 if there is any, and for all of IPv4 all of IPv6, too.
fn addresses(url: &Url) -> io::Result<Vec<SocketAddr>> {
    let mut addresses: Vec<SocketAddr> = url.host_port().to_socket_addrs()?.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    if let Some(first) = addresses.first().filter(|at| at.ip() == Ipv4Addr::UNSPECIFIED) {
        let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, first.port()));
        addresses.insert(0, both);
    }
    Ok(addresses)
}

/// Sets up a connection of a client or a member.
fn set_up(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, limits::TCP_KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(stream, limits::TCP_KEEPALIVE)?;
    Ok(())
}

/// Deals connections out to the serving threads in turn.
///
/// Clients may not have the last file descriptors: the storage and the log need some to go on, and
/// would end the member without.
pub(super) struct Dealer {
    threads: Vec<mpsc::UnboundedSender<Connection>>,
    /// Connections with this file descriptor or a higher one are closed. The lowest that is free is
    /// always taken, so that this bounds how many are open.
    descriptor_max: u64,
    is_full: AtomicBool,
}

impl Dealer {
    pub(super) fn new() -> Self {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let reserve = limits::DESCRIPTORS_RESERVED.min(limit / 4);
        let descriptor_max = limit - reserve;
        Dealer { threads: Vec::new(), descriptor_max, is_full: AtomicBool::new(false) }
    }

    /// Adds a thread; it receives its connections here.
    pub(super) fn add(&mut self) -> mpsc::UnboundedReceiver<Connection> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.threads.push(sender);
        receiver
    }

    /// Begins to accept on all `listeners`.
    pub(super) fn accept(self: &Arc<Self>, listeners: Vec<StdListener>, door: Door) {
        for listener in listeners {
            tasks::spawn("accept", Arc::clone(self).accept_on(listener, door));
        }
    }

    async fn accept_on(self: Arc<Self>, listener: StdListener, door: Door) {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "cannot accept connections"),
        };
        for turn in 0usize.. {
            match listener.accept().await {
                Ok((stream, _peer)) => self.deal(turn, stream, door),
                Err(error) => {
                    // Out of file descriptors, most likely: those who are served go on.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(limits::ACCEPT_RETRY).await;
                }
            }
        }
    }

    fn deal(&self, turn: usize, stream: TcpStream, door: Door) {
        let is_full = stream.as_raw_fd() as u64 >= self.descriptor_max;
        if is_full != self.is_full.swap(is_full, Relaxed) && is_full {
            let limit = self.descriptor_max;
            tracing::warn!(
                limit,
                "clients have all file descriptors that they may; raise ulimit -n"
            );
        }
        if is_full {
            return;
        }
        if let Err(error) = set_up(&stream) {
            tracing::debug!(%error, "cannot set up a connection");
        }
        if let Ok(stream) = stream.into_std() {
            // A serving thread ends only with the process.
            drop(self.threads[turn % self.threads.len()].send(Connection { stream, door }));
        }
    }
}

/// Serves the other members on the current (raft) runtime.
pub(super) fn serve_peers(
    listeners: impl IntoIterator<Item = Vec<StdListener>>,
    service: &Arc<PeerService>,
    peers: &Arc<Peers>,
) {
    let service = PeerServer::from_arc(Arc::clone(service))
        .max_decoding_message_size(limits::PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(limits::PEER_MESSAGE_BYTES_MAX);
    let service = CountedService::new(service, Arc::clone(peers));
    for listener in listeners.into_iter().flatten() {
        tasks::spawn("peer-accept", accept_peers(listener, service.clone()));
    }
}

async fn accept_peers(listener: StdListener, service: CountedService<PeerServer<PeerService>>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "cannot accept members"),
    };
    loop {
        let Ok((stream, _peer)) = listener.accept().await else {
            tokio::time::sleep(limits::ACCEPT_RETRY).await;
            continue;
        };
        if set_up(&stream).is_err() {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A name that stands for `::1` first was listened on there only, and etcdctl's default address
    /// was refused.
    #[test]
    fn addresses_are_chosen_as_go_does() {
        let of = |url: &str| addresses(&Url::parse(url).unwrap()).unwrap();
        let texts = |url| of(url).iter().map(SocketAddr::to_string).collect::<Vec<_>>();
        assert_eq!(texts("http://0.0.0.0:2379"), ["[::]:2379", "0.0.0.0:2379"]);
        assert_eq!(texts("http://[::1]:2379"), ["[::1]:2379"]);
        assert_eq!(texts("http://localhost:2379")[0], "127.0.0.1:2379");
    }
}
