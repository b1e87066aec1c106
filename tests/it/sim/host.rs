//! One simulated machine: a disk, a member that lives on it from time to time, and its clocks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use parking_lot::Mutex;
use quorate::api::Api;
use quorate::identity::{ClusterId, MemberId};
use quorate::limits;
use quorate::member::{Member, MemberOptions, Seed, Shard};
use quorate::metrics::Metrics;
use quorate::pb::quorate::peer::peer_server::PeerServer;
use quorate::raft::log_store::LogStore;
use quorate::raft::peers::Peers;
use quorate::raft::types::MemberNode;
use quorate::raft::{Node, NodeOptions, NodeParts, PeerService, SoleVoter, Store};
use quorate::state::{Options, State};
use quorate::tasks::{self, Scope, Surroundings};
use quorate::wal::sim::{Loss, SimDisk};
use quorate::wal::{self, WalError, WalObserver, Workers};
use tokio::time::Instant;

use super::invariants::Checks;
use super::log::{EventLog, now};
use super::net::{Net, Plug, Services, peer_url};
use super::plan::Plan;
use super::store::Vault;

/// The id of a simulated member.
pub(crate) fn member_id(member: usize) -> u64 {
    0xa0 + member as u64
}

pub(crate) const CLUSTER_ID: u64 = 0xc0;

/// When the simulated world began, in milliseconds since the Unix epoch.
const BEGIN_MS: u64 = 1_800_000_000_000;

/// What all hosts share.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) log: EventLog,
    pub(crate) net: Net,
    pub(crate) checks: Arc<Checks>,
}

/// One simulated machine.
pub(crate) struct Host {
    pub(crate) number: usize,
    world: Arc<World>,
    body: Arc<Body>,
    inner: Mutex<Inner>,
}

struct Inner {
    disk: SimDisk,
    vault: Vault,
    rng: Rng,
    life: Option<Life>,
    /// A member has used the disk and how it ended is not settled.
    is_used: bool,
    /// It cannot be started again: what it acknowledged is damaged.
    is_lost: bool,
}

/// A running member.
struct Life {
    scope: Scope,
    member: Arc<Member>,
    shard: Arc<Shard>,
    log: LogStore,
}

impl Drop for Life {
    fn drop(&mut self) {
        self.scope.kill();
    }
}

/// What errors say of a full disk.
pub(crate) const NO_ROOM: &[&str] = &["StorageFull", "no storage space"];

/// What errors say of a flush that was made to fail.
pub(crate) const FLUSH_FAILED: &[&str] = &["simulated flush error"];

/// What errors say of a log in which a bit was flipped.
pub(crate) const DAMAGED: &[&str] = &["is damaged"];

/// How a member ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Death {
    /// The process is killed; the machine goes on.
    Killed,
    /// The power goes off; what was not flushed is lost or not.
    PowerLost,
}

impl Host {
    pub(crate) fn new(number: usize, world: &Arc<World>) -> Arc<Host> {
        let seed = world.plan.seed.wrapping_mul(31).wrapping_add(number as u64);
        let body = Body {
            name: format!("m{number}"),
            world: Arc::clone(world),
            number,
            rng: Mutex::new(Rng::with_seed(seed)),
            wall_offset_ms: AtomicI64::new(0),
            stalled_until: Mutex::new(None),
            excuses: Mutex::default(),
        };
        let inner = Inner {
            disk: SimDisk::new(),
            vault: Vault::new(number, &world.checks),
            rng: Rng::with_seed(!seed),
            life: None,
            is_used: false,
            is_lost: false,
        };
        let (world, body) = (Arc::clone(world), Arc::new(body));
        Arc::new(Host { number, world, body, inner: Mutex::new(inner) })
    }

    pub(crate) fn name(&self) -> &str {
        &self.body.name
    }

    /// Whether a member lives here.
    pub(crate) fn is_up(&self) -> bool {
        self.inner.lock().life.as_ref().is_some_and(|life| !life.scope.is_dead())
    }

    /// Whether it can never be started again.
    pub(crate) fn is_lost(&self) -> bool {
        self.inner.lock().is_lost
    }

    /// Its disk, as long as it is not started anew.
    pub(crate) fn disk(&self) -> SimDisk {
        self.inner.lock().disk.clone()
    }

    /// From now on the member may end itself, or refuse to start, if it names one of `reasons`: its
    /// disk is bad.
    pub(crate) fn excuse(&self, reasons: &[&'static str]) {
        self.body.excuses.lock().extend(reasons);
    }

    /// Does `look` with the member, if one lives here.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&Arc<Member>, &LogStore) -> T) -> Option<T> {
        let inner = self.inner.lock();
        let life = inner.life.as_ref().filter(|life| !life.scope.is_dead())?;
        Some(life.scope.enter(|| look(&life.member, &life.log)))
    }

    /// Starts a member, if none lives here.
    pub(crate) async fn start(self: &Arc<Self>) {
        self.bury().await;
        if self.is_up() || self.is_lost() {
            return;
        }
        let scope = Scope::new(Arc::clone(&self.body) as _);
        let (disk, vault) = {
            let mut inner = self.inner.lock();
            inner.is_used = true;
            (inner.disk.clone(), inner.vault.clone())
        };
        self.world.log.say(self.name(), "starts");
        let boot =
            boot(Arc::clone(&self.world), self.number, Arc::clone(&self.body), (disk, vault));
        let booted = scope.enter(|| tasks::spawn("boot", boot)).await;
        match booted {
            Ok(Ok((member, shard, log, services))) => {
                self.world.net.serve(self.number, services);
                let life = Life { scope, member, shard, log };
                life.scope.enter(|| {
                    let (member, shard) = (Arc::clone(&life.member), Arc::clone(&life.shard));
                    drop(tasks::spawn("publish", async move { member.publish(&shard).await }));
                });
                self.inner.lock().life = Some(life);
            }
            Ok(Err(refusal)) => {
                scope.kill();
                scope.gone().await;
                self.lose(Death::Killed);
                self.refused(&refusal);
            }
            // It ended itself while it started, which it has said.
            Err(_) => {
                scope.gone().await;
                self.lose(Death::Killed);
            }
        }
    }

    /// A member that does not start with what its life before left.
    fn refused(&self, refusal: &str) {
        self.world.log.say(self.name(), format_args!("does not start: {refusal}"));
        if !self.body.is_excused(refusal) {
            let rule = "a crash leaves nothing that stops a start (src/wal/mod.rs, src/storage)";
            self.world.checks.violated(rule, format!("{}: {refusal}", self.name()));
        }
        // A full disk gets room again, and a flush fails once; the next start may succeed.
        let mut passing = NO_ROOM.iter().chain(FLUSH_FAILED);
        if !passing.any(|reason| refusal.contains(reason)) {
            self.inner.lock().is_lost = true;
        }
    }

    /// Ends the member as if by `death`.
    pub(crate) async fn crash(&self, death: Death) {
        if !self.is_up() {
            return self.bury().await;
        }
        self.world.log.say(self.name(), format_args!("{death:?}"));
        self.lose(death);
        self.bury().await;
    }

    /// The disk of a member that has just ended.
    fn lose(&self, death: Death) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let loss = match death {
            Death::Killed => Loss::Nothing,
            Death::PowerLost if inner.rng.u8(..4) == 0 => Loss::Everything,
            Death::PowerLost => Loss::Random,
        };
        if let Some(life) = &inner.life {
            life.scope.kill();
        }
        inner.is_used = false;
        inner.disk = inner.disk.after_crash(loss, &mut inner.rng);
        inner.vault.crash(Some(&mut inner.rng));
        self.world.net.gone(self.number, death == Death::Killed);
    }

    /// Drops what is left of a member that has ended.
    async fn bury(&self) {
        let life = {
            let mut inner = self.inner.lock();
            let is_dead = inner.life.as_ref().is_some_and(|life| life.scope.is_dead());
            if is_dead { inner.life.take() } else { None }
        };
        let Some(life) = life else { return };
        let scope = life.scope.clone();
        scope.enter(|| drop(life));
        scope.gone().await;
        // It may have ended itself, of which the disk does not know yet.
        if self.is_used() {
            self.lose(Death::Killed);
        }
    }

    fn is_used(&self) -> bool {
        self.inner.lock().is_used
    }

    /// Stops the member as SIGTERM does.
    pub(crate) async fn stop(&self) {
        let Some(member) = self.with(|member, _| Arc::clone(member)) else { return };
        self.world.log.say(self.name(), "stops gracefully");
        let scope = self.inner.lock().life.as_ref().map(|life| life.scope.clone());
        let Some(scope) = scope else { return };
        let hand_over = self.world.plan.election_timeout * 3 / 2;
        let stopping = async move { member.stop(hand_over).await };
        let stopped = scope.enter(|| tasks::spawn("stop", stopping));
        if tokio::time::timeout(Duration::from_secs(20), stopped).await.is_err() {
            let rule = "a member stops in time (src/server/mod.rs)";
            self.world.checks.violated(rule, format!("{} does not stop", self.name()));
        }
        if !scope.is_dead() {
            self.inner.lock().vault.crash(None);
            self.lose(Death::Killed);
        }
        self.bury().await;
    }

    /// Lets the member stand still while time goes on, or go on.
    pub(crate) fn pause(&self, is_paused: bool) {
        if let Some(life) = &self.inner.lock().life {
            life.scope.pause(is_paused);
        }
    }

    /// Moves the wall clock.
    pub(crate) fn jump(&self, milliseconds: i64) {
        self.body.wall_offset_ms.fetch_add(milliseconds, Ordering::Relaxed);
    }

    /// Flushes take until then at least.
    pub(crate) fn stall(&self, time: Duration) {
        *self.body.stalled_until.lock() = Some(now() + time);
    }
}

/// The machine as its member sees it.
pub(crate) struct Body {
    name: String,
    number: usize,
    world: Arc<World>,
    rng: Mutex<Rng>,
    wall_offset_ms: AtomicI64,
    stalled_until: Mutex<Option<Instant>>,
    /// What the disk was made to do to the member, in the words of its errors.
    excuses: Mutex<Vec<&'static str>>,
}

impl Body {
    fn draw(&self, max: Duration) -> Duration {
        let micros = u64::try_from(max.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.rng.lock().u64(..=micros))
    }

    /// Whether an error names what the disk was made to do.
    fn is_excused(&self, error: &str) -> bool {
        let excuses = self.excuses.lock();
        !error.contains("panicked") && excuses.iter().any(|excuse| error.contains(excuse))
    }

    /// How long the next flush takes.
    fn flush_time(&self) -> Duration {
        let stall = self.stalled_until.lock().map(|until| until - now());
        self.draw(self.world.plan.flush_max).max(stall.unwrap_or_default())
    }
}

impl Surroundings for Body {
    fn name(&self) -> &str {
        &self.name
    }

    fn unix_ms(&self) -> u64 {
        let passed = self.world.log.now().as_millis();
        let now = BEGIN_MS + u64::try_from(passed).unwrap_or(u64::MAX);
        now.saturating_add_signed(self.wall_offset_ms.load(Ordering::Relaxed))
    }

    fn blocking_time(&self) -> Duration {
        self.draw(self.world.plan.blocking_max)
    }

    fn exited(&self, reason: &str) {
        self.world.net.gone(self.number, true);
        self.world.log.say(&self.name, format_args!("ends itself: {reason}"));
        if !self.is_excused(reason) {
            let rule = "a member whose disk is well does not end itself (src/lib.rs, 9)";
            self.world.checks.violated(rule, format!("{}: {reason}", self.name));
        }
    }
}

/// What the log of a simulated member tells.
struct LogObserver {
    body: Arc<Body>,
}

impl WalObserver for LogObserver {
    fn space_low(&self, low: bool) {
        self.body.world.log.say(&self.body.name, format_args!("space for the log is low: {low}"));
    }

    fn failed(&self, error: &WalError) {
        if let Some(scope) = Scope::current() {
            scope.exit(&format!("the log failed: {error}"));
        }
    }
}

type Booted = (Arc<Member>, Arc<Shard>, LogStore, Services);

/// What `server` does for a real member, without ports.
async fn boot(
    world: Arc<World>,
    number: usize,
    body: Arc<Body>,
    (disk, vault): (SimDisk, Vault),
) -> Result<Booted, String> {
    let scope = Scope::current().expect("a member boots in its scope");
    let plan = &world.plan;
    let log = open_log(plan, number, &body, disk)?;
    let state = open_state(plan, &vault).map_err(|error| error.to_string())?;
    let applied = state.applied().map(|at| at.index);
    check_together(&log, applied)?;
    world.checks.opened(number, applied);
    let at_fatal = scope.clone();
    let on_fatal = Arc::new(move |reason: &str| at_fatal.exit(reason));
    let seed = Seed::new(member_options(plan, number), 1, state.revision(), on_fatal);
    let plug = Plug { net: world.net.clone(), from: number };
    let id = member_id(number);
    let peers = Peers::new(CLUSTER_ID, id, Arc::new(plug), Arc::default());
    let service = PeerService::new(Arc::clone(&peers));
    let parts = NodeParts {
        log: log.clone(),
        state,
        home: Arc::new(vault),
        peers,
        observer: seed.observer(),
        sole_voter: Arc::new(SoleVoter::new(id)),
    };
    let node =
        Node::start(node_options(plan, id), parts).await.map_err(|error| error.to_string())?;
    let (member, seats) = seed.start(Arc::clone(&node));
    if !node.is_initialized().await.map_err(|error| error.to_string())? {
        let members = (0..plan.members).map(|number| {
            let (name, peer_urls) = (format!("m{number}"), vec![peer_url(number)]);
            (member_id(number), MemberNode { name, peer_urls })
        });
        let members: BTreeMap<u64, MemberNode> = members.collect();
        node.initialize(members).await.map_err(|error| error.to_string())?;
    }
    node.elect_if_alone().await;
    service.begin(Arc::clone(&node), Arc::clone(&member) as _);
    let peer = PeerServer::from_arc(service)
        .max_decoding_message_size(limits::PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(limits::PEER_MESSAGE_BYTES_MAX);
    let seat = seats.into_iter().next().expect("there is one serving thread");
    let shard = Arc::clone(&seat.shard);
    drop(tasks::spawn("deliver", seat.deliver(Arc::clone(&member))));
    let api = Api::new(Arc::clone(&member), Arc::clone(&shard), Arc::new(Metrics::new()));
    let api = Arc::new(api);
    let services = Services { scope, peer, api };
    Ok((member, shard, log, services))
}

fn open_log(
    plan: &Plan,
    number: usize,
    body: &Arc<Body>,
    disk: SimDisk,
) -> Result<LogStore, String> {
    let identity = wal::Identity { cluster_id: CLUSTER_ID, member_id: member_id(number) };
    let mut options = wal::Options::on(Arc::new(disk), identity);
    options.segment_bytes = plan.segment_bytes;
    options.observer = Arc::new(LogObserver { body: Arc::clone(body) });
    let pace = Arc::clone(body);
    options.workers = Workers::Tasks(Arc::new(move || pace.flush_time()));
    LogStore::open_with_ring(options, plan.ring_bytes).map_err(|error| error.to_string())
}

fn open_state(plan: &Plan, vault: &Vault) -> Result<Store, quorate::storage::StorageError> {
    let options = Options { value_cache_bytes: plan.value_cache_bytes };
    State::open(Arc::new(vault.open()), options)
}

/// As `server::open`: no hole between log and state, and no state beside a new log.
fn check_together(log: &LogStore, applied: Option<u64>) -> Result<(), String> {
    let applied = applied.unwrap_or(0);
    if log.is_fresh() && applied > 0 {
        return Err(format!("the log is empty, the state holds entries up to {applied}"));
    }
    match log.purged_index() {
        Some(purged) if applied < purged => {
            Err(format!("the state ends at {applied}, the log begins behind {purged}"))
        }
        _ => Ok(()),
    }
}

fn member_options(plan: &Plan, number: usize) -> MemberOptions {
    MemberOptions {
        member_id: MemberId(member_id(number)),
        cluster_id: ClusterId(CLUSTER_ID),
        name: format!("m{number}"),
        client_urls: vec![format!("http://member-{number}:2379")],
        request_bytes_max: limits::REQUEST_BYTES_MAX_DEFAULT,
        answer_bytes_max: plan.answer_bytes_max,
        warning_apply_duration: Duration::from_millis(100),
        warning_unary_request_duration: limits::WARNING_UNARY_REQUEST_DEFAULT,
        txn_ops_max: limits::TXN_OPS_MAX_DEFAULT,
        lease_ttl_seconds_min: 1,
        quota_bytes: 0,
        watch_progress_interval: Duration::from_secs(10),
        election_timeout: plan.election_timeout,
        request_timeout: Duration::from_secs(5) + 2 * plan.election_timeout,
    }
}

fn node_options(plan: &Plan, member_id: u64) -> NodeOptions {
    NodeOptions {
        member_id,
        heartbeat_interval: plan.heartbeat_interval,
        election_timeout: plan.election_timeout,
        catchup_entries: plan.catchup_entries,
        snapshot_count: plan.snapshot_count,
        log_retained_bytes_max: plan.log_retained_bytes_max,
        state_options: Options { value_cache_bytes: plan.value_cache_bytes },
    }
}
