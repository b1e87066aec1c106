//! The composition root: opens what is on disk, starts the threads, serves, and stops in order.
//!
//! ```text
//!   serving threads (one a core)      raft thread                  log writer, storage writer
//!   hyper HTTP/2 ─ api ─ member ────► proposer ─ openraft ─ apply   (own threads)
//!          ◄──────── batches of replies ─────────┘
//! ```
//!
//! Client connections are dealt out to single-threaded runtimes, so that a request never changes
//! threads on its way through HTTP/2; only batches do, between the serving threads and raft.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{oneshot, watch};

use crate::config::{ClusterState, Config};
use crate::data_dir::{DataDir, Identity};
use crate::identity::MemberId;
use crate::member::{Member, MemberOptions, Seed, ShardSeat};
use crate::metrics::Metrics;
use crate::raft::peers::Peers;
use crate::raft::types::MemberNode;
use crate::raft::{Node, NodeOptions, NodeParts, PeerService, Tcp, is_new};
use crate::{limits, tasks};

mod connection;
mod cork;
mod http;
mod listen;
mod open;
mod probes;

use http::Door;
pub use open::OpenError;

/// A member that has bound its ports and locked its data directory, about to run.
pub struct Server {
    config: Config,
    identity: Identity,
    data_dir: DataDir,
    listeners: listen::Listeners,
}

/// Why a server could not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Something on disk cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A port cannot be listened on.
    #[error("cannot listen on {url}: {source}; is another server running there?")]
    Listen {
        /// The address as configured.
        url: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The data directory is empty, and the member is not new.
    // The beginning is etcd's text.
    #[error(
        "member {member_id} has already been bootstrapped, and {path} is empty: it would have \
         forgotten what it acknowledged. Put its data directory back; or remove the member from the \
         cluster and add it again"
    )]
    DataLost {
        /// The member.
        member_id: MemberId,
        /// Its data directory.
        path: PathBuf,
    },
    /// The flags contradict each other or the data.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// Raft could not start.
    #[error(transparent)]
    Raft(#[from] crate::raft::StartError),
    /// The system refused a thread or a runtime.
    #[error("cannot start a runtime: {0}")]
    Runtime(#[source] std::io::Error),
}

impl Server {
    /// Binds the ports and locks the data directory; nothing runs yet.
    ///
    /// # Errors
    /// A port in use, a directory that is locked, foreign or of a newer format.
    pub fn open(config: Config) -> Result<Server, ServerError> {
        raise_file_limit();
        let listeners = listen::Listeners::bind(&config)?;
        let (data_dir, identity) = open_data_dir(&config)?;
        Ok(Server { config, identity, data_dir, listeners })
    }

    /// Opens log and state, and runs until a signal or a failure ends the member.
    ///
    /// # Errors
    /// Whatever keeps the member from starting.
    pub fn run(self) -> Result<ExitCode, ServerError> {
        let raft_runtime = single_threaded()?;
        let shards = self.config.serving_threads.unwrap_or_else(default_serving_threads);
        raft_runtime.block_on(self.run_on_raft_thread(shards))
    }

    async fn run_on_raft_thread(self, shards: usize) -> Result<ExitCode, ServerError> {
        let Server { config, identity, mut data_dir, listeners } = self;
        let mut signals = Signals::new().map_err(ServerError::Runtime)?;
        let metrics = Arc::new(Metrics::new());
        let (cluster_id, member_id) = (identity.cluster_id.0, identity.member_id.0);
        let peers = Peers::new(cluster_id, member_id, Arc::new(Tcp), Arc::clone(&metrics));
        let peer_service = PeerService::new(Arc::clone(&peers));
        let mut peer_listeners = Some(listeners.peers);
        if data_dir.identity().is_none() {
            // Members of a new cluster ask each other, so this one has to answer while it asks.
            listen::serve_peers(peer_listeners.take(), &peer_service, &peers);
            tokio::select! {
                admitted = check_is_new(&config, identity, &peers) => admitted?,
                () = signals.first() => return Ok(ExitCode::SUCCESS),
            }
            data_dir.claim(identity).map_err(OpenError::from)?;
        }
        let parts = open::open(&config, data_dir, identity, &metrics)?;
        let (fatal, mut failed) = watch::channel(None::<String>);
        let on_fatal = Arc::new(move |reason: &str| {
            fatal.send_replace(Some(reason.to_owned()));
        });
        let revision = parts.state.revision();
        let seed = Seed::new(member_options(&config, identity), shards, revision, on_fatal);
        let node_parts = NodeParts {
            log: parts.log,
            state: parts.state,
            home: parts.home,
            peers: Arc::clone(&peers),
            observer: seed.observer(),
            sole_voter: parts.sole_voter,
        };
        let node = Node::start(node_options(&config, identity), node_parts).await?;
        let (member, seats) = seed.start(Arc::clone(&node));
        peer_service.begin(Arc::clone(&node), Arc::clone(&member) as _);
        listen::serve_peers(peer_listeners, &peer_service, &peers);
        bootstrap(&config, &node).await?;

        let (stop, stopped) = watch::channel(false);
        let (ready, published) = oneshot::channel();
        let serving = ServingThreads { config: &config, member: &member, metrics: &metrics };
        let threads = Arc::new(serving.start(seats, &stopped, ready)?);
        // Who asks how the member is may do so while it waits for the others.
        if !listeners.operators.is_empty() {
            tracing::info!("serving metrics");
            threads.accept(listeners.operators, Door::Operators);
        }
        let accepting = async {
            if published.await.is_ok() {
                tracing::info!("ready to serve client requests");
                threads.accept(listeners.clients, Door::Clients);
                std::future::pending().await
            }
        };
        let code = tokio::select! {
            () = accepting => ExitCode::FAILURE,
            () = signals.first() => ExitCode::SUCCESS,
            reason = failure(&mut failed) => {
                tracing::error!(%reason, "the member cannot go on and exits");
                // Nothing may be acknowledged any more, so nothing is stopped gently.
                std::process::exit(EXIT_STORAGE_FAILED)
            }
        };
        stop.send_replace(true);
        member.stop(hand_over_time(&config)).await;
        Ok(code)
    }
}

/// Exit code after a failure of the local storage.
const EXIT_STORAGE_FAILED: i32 = 3;

async fn failure(failed: &mut watch::Receiver<Option<String>>) -> String {
    match failed.wait_for(Option::is_some).await {
        Ok(reason) => reason.clone().unwrap_or_default(),
        Err(_) => std::future::pending().await,
    }
}

fn hand_over_time(config: &Config) -> Duration {
    config.election_timeout + config.election_timeout / 2
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        use tokio::signal::unix::{SignalKind, signal};
        let terminate = signal(SignalKind::terminate())?;
        Ok(Signals { terminate, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn first(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => tracing::info!("received SIGTERM; stopping"),
            _ = self.interrupt.recv() => tracing::info!("received SIGINT; stopping"),
        }
    }
}

fn open_data_dir(config: &Config) -> Result<(DataDir, Identity), ServerError> {
    let data_dir =
        DataDir::open(&config.data_dir, config.wal_dir.as_deref()).map_err(OpenError::from)?;
    let identity = match data_dir.identity() {
        Some(identity) => identity,
        None => {
            config.check_bootstrap()?;
            let member_id = config
                .initial_member_id()
                .ok_or(crate::config::ConfigError::NameNotInCluster(config.name.clone()))?;
            Identity { cluster_id: config.initial_cluster_id(), member_id }
        }
    };
    check_same_member(config, identity)?;
    Ok((data_dir, identity))
}

/// A member without data must be new to its cluster, see [`crate::raft::is_new`].
async fn check_is_new(
    config: &Config,
    identity: Identity,
    peers: &Peers,
) -> Result<(), ServerError> {
    let members = initial_members(config);
    peers.learn(members.iter().map(|(id, node)| (*id, node.peer_urls.as_slice())));
    let others = members.keys().copied().filter(|id| *id != identity.member_id.0);
    let others: Vec<u64> = others.collect();
    if is_new(peers, &others, 2 * config.election_timeout).await {
        return Ok(());
    }
    let (member_id, path) = (identity.member_id, config.data_dir.clone());
    Err(ServerError::DataLost { member_id, path })
}

/// The members of `--initial-cluster`, by id.
fn initial_members(config: &Config) -> BTreeMap<u64, MemberNode> {
    let members = config.initial_cluster.members(&config.initial_cluster_token).into_iter();
    members
        .map(|member| {
            let peer_urls = member.peer_urls.iter().map(|url| url.as_str().to_owned());
            (member.id.0, MemberNode { name: member.name, peer_urls: peer_urls.collect() })
        })
        .collect()
}

/// A data directory of another member or cluster must not be started under this configuration.
///
/// As in etcd the stored membership counts and `--initial-cluster` is otherwise ignored; but flags
/// that name another member of the same cluster's flags, or another cluster, are a mistake.
fn check_same_member(config: &Config, stored: Identity) -> Result<(), ServerError> {
    let Some(member_id) = config.initial_member_id() else { return Ok(()) };
    let expected = Identity { cluster_id: config.initial_cluster_id(), member_id };
    if config.initial_cluster_state == ClusterState::New && expected != stored {
        let path = config.data_dir.clone();
        return Err(OpenError::from(crate::data_dir::DataDirError::OfAnother {
            path,
            found: stored,
            expected,
        })
        .into());
    }
    Ok(())
}

/// A new cluster begins with the members of `--initial-cluster`.
async fn bootstrap(config: &Config, node: &Arc<Node>) -> Result<(), ServerError> {
    if config.initial_cluster_state == ClusterState::New && !node.is_initialized().await? {
        node.initialize(initial_members(config)).await?;
    }
    node.elect_if_alone().await;
    Ok(())
}

fn member_options(config: &Config, identity: Identity) -> MemberOptions {
    MemberOptions {
        member_id: identity.member_id,
        cluster_id: identity.cluster_id,
        name: config.name.clone(),
        client_urls: config.advertise_client_urls.iter().map(|url| url.as_str().into()).collect(),
        request_bytes_max: config.max_request_bytes,
        answer_bytes_max: limits::ANSWER_BYTES_MAX,
        warning_unary_request_duration: config.warning_unary_request_duration,
        warning_apply_duration: config.warning_apply_duration,
        txn_ops_max: config.max_txn_ops,
        lease_ttl_seconds_min: least_lease_ttl_seconds(config),
        quota_bytes: config.quota_backend_bytes.map_or(0, u64::cast_signed),
        watch_progress_interval: config.watch_progress_notify_interval,
        election_timeout: config.election_timeout,
        // As in etcd: five seconds for the disk and the network, and two elections.
        request_timeout: Duration::from_secs(5) + 2 * config.election_timeout,
    }
}

/// As in etcd: three halves of an election timeout, in whole heartbeats, rounded up to seconds.
fn least_lease_ttl_seconds(config: &Config) -> i64 {
    let heartbeat = config.heartbeat_interval.as_millis().max(1);
    let heartbeats = config.election_timeout.as_millis() / heartbeat * 3 / 2;
    i64::try_from((heartbeats * heartbeat).div_ceil(1000)).unwrap_or(i64::MAX).max(1)
}

fn node_options(config: &Config, identity: Identity) -> NodeOptions {
    NodeOptions {
        member_id: identity.member_id.0,
        heartbeat_interval: config.heartbeat_interval,
        election_timeout: config.election_timeout,
        catchup_entries: config.snapshot_catchup_entries,
        snapshot_count: config.snapshot_count,
        log_retained_bytes_max: limits::LOG_RETAINED_BYTES_MAX,
        state_options: open::state_options(config),
    }
}

/// The threads that serve client connections.
struct ServingThreads<'a> {
    config: &'a Config,
    member: &'a Arc<Member>,
    metrics: &'a Arc<Metrics>,
}

impl ServingThreads<'_> {
    /// Starts one thread a seat; the first announces the member and then says so on `ready`.
    fn start(
        &self,
        seats: Vec<ShardSeat>,
        stopped: &watch::Receiver<bool>,
        ready: oneshot::Sender<()>,
    ) -> Result<listen::Dealer, ServerError> {
        let mut dealer = listen::Dealer::new();
        let mut ready = Some(ready);
        for (number, seat) in seats.into_iter().enumerate() {
            let runtime = single_threaded()?;
            let connections = dealer.add();
            let context = connection::Context::new(self.config, self.member, self.metrics, &seat);
            let (member, stopped) = (Arc::clone(self.member), stopped.clone());
            let ready = ready.take();
            tasks::thread(format!("serve-{number}"), move || {
                runtime.block_on(async move {
                    let shard = Arc::clone(&seat.shard);
                    tasks::spawn("deliver", seat.deliver(Arc::clone(&member)));
                    if let Some(ready) = ready {
                        tasks::spawn("publish", async move {
                            member.publish(&shard).await;
                            // The server may be stopping already.
                            ready.send(()).ok();
                        });
                    }
                    connection::serve_all(Arc::new(context), connections, stopped).await;
                });
            });
        }
        Ok(dealer)
    }
}

fn single_threaded() -> Result<Runtime, ServerError> {
    Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(limits::BLOCKING_THREADS_MAX)
        .thread_keep_alive(Duration::from_secs(10))
        .build()
        .map_err(ServerError::Runtime)
}

fn default_serving_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Lets this process open as many files and connections as the system allows, as Go programs do.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
