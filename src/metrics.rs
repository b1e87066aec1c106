//! Metrics under etcd's names, for `/metrics`.
//!
//! The hot path touches plain counters that belong to known methods; names and labels are put
//! together only when somebody scrapes.

mod calls;
mod client;
mod peer;

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::MetricFamily;
use prometheus::{Encoder, Histogram, HistogramOpts, Registry, TextEncoder};

use self::calls::Calls;
pub use self::calls::MethodNumber;
use self::peer::PeerFamilies;
pub use self::peer::PeerMetrics;

/// Counters and histograms of one process.
pub struct Metrics {
    registry: Registry,
    calls: Calls,
    /// `etcd_server_health_success` and `etcd_server_health_failures`.
    pub health_checks: [AtomicU64; 2],
    /// `etcd_server_leader_changes_seen_total`.
    pub leader_changes: AtomicU64,
    /// `etcd_disk_wal_write_bytes_total`.
    pub wal_bytes: AtomicU64,
    wal_fsync: Histogram,
    backend_commit: Histogram,
    peers: PeerFamilies,
}

/// Values that are read from the member when somebody scrapes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gauges {
    /// Whether the member knows a leader.
    pub has_leader: bool,
    /// Whether the member leads.
    pub is_leader: bool,
    /// Whether the member does not vote.
    pub is_learner: bool,
    /// Committed and applied index.
    pub committed: u64,
    /// Applied index.
    pub applied: u64,
    /// Proposals under way.
    pub pending: u64,
    /// Bytes the storage takes on disk.
    pub db_bytes: u64,
    /// Bytes of it that hold live data.
    pub db_bytes_in_use: u64,
    /// `--quota-backend-bytes`.
    pub quota_bytes: u64,
    /// Live keys.
    pub keys: u64,
    /// The current revision.
    pub revision: u64,
    /// The compact revision.
    pub compact_revision: u64,
    /// This member's id.
    pub member_id: u64,
    /// Ranges read.
    pub ranges: u64,
    /// Keys put.
    pub puts: u64,
    /// Ranges deleted.
    pub deletes: u64,
    /// Transactions of more than one operation.
    pub txns: u64,
    /// Bytes of the pairs that were put, as they are encoded.
    pub put_bytes: u64,
    /// Records that compactions deleted.
    pub compacted: u64,
    /// When the last compaction ended, in seconds since the Unix epoch.
    pub compaction_last: u64,
    /// Entries that took long to apply.
    pub slow_applies: u64,
    /// Proposals without an answer.
    pub proposals_failed: u64,
    /// Read barriers without an index.
    pub read_indexes_failed: u64,
    /// Leases granted.
    pub leases_granted: u64,
    /// Leases revoked or expired.
    pub leases_revoked: u64,
    /// Keep-alives answered as the leader.
    pub leases_renewed: u64,
    /// Leases ended as the leader.
    pub leases_expired: u64,
    /// Open watch streams.
    pub watch_streams: u64,
    /// Watchers.
    pub watchers: u64,
    /// Watchers that are behind.
    pub slow_watchers: u64,
    /// Events that were sent.
    pub watch_events: u64,
    /// Events that wait to be sent.
    pub pending_events: u64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let registry = Registry::new();
        let process = ProcessCollector::for_self();
        registry.register(Box::new(process)).expect("each name is registered once");
        let wal_fsync = histogram(
            &registry,
            "etcd_disk_wal_fsync_duration_seconds",
            "The latency distributions of fsync called by WAL.",
        );
        let backend_commit = histogram(
            &registry,
            "etcd_disk_backend_commit_duration_seconds",
            "The latency distributions of checkpoints of the storage.",
        );
        let peers = PeerFamilies::new(&registry);
        Metrics {
            registry,
            calls: Calls::default(),
            health_checks: Default::default(),
            leader_changes: AtomicU64::new(0),
            wal_bytes: AtomicU64::new(0),
            wal_fsync,
            backend_commit,
            peers,
        }
    }

    /// `local`, this member, has found `member` in the membership; it may be itself.
    pub fn knows_member(&self, local: u64, member: u64) {
        self.peers.knows(local, member);
    }

    /// The counters that `local`, this member, has of `remote`.
    pub fn peer(&self, local: u64, remote: u64) -> PeerMetrics {
        self.peers.of(local, remote)
    }

    /// The place of the method at `path`; those that are not served share one.
    pub fn method(path: &str) -> MethodNumber {
        MethodNumber::of(path)
    }

    /// A client whose release is `version`, if it says so, made a call.
    pub fn called_by(&self, version: Option<&str>, is_stream: bool) {
        self.calls.here().clients.count(version.unwrap_or("unknown"), is_stream);
    }

    /// A call began.
    pub fn started(&self, method: MethodNumber) {
        self.calls.of(method).started.fetch_add(1, Relaxed);
    }

    /// A message came in.
    pub fn received(&self, method: MethodNumber, bytes: usize) {
        self.calls.of(method).received.fetch_add(1, Relaxed);
        self.calls.here().received_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// A message goes out, as soon as the client takes it.
    pub fn message_sent(&self, method: MethodNumber) {
        self.calls.of(method).sent.fetch_add(1, Relaxed);
    }

    /// Bytes of messages went out.
    pub fn bytes_sent(&self, bytes: usize) {
        self.calls.here().sent_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// A call ended; `code` is the number of the gRPC code.
    pub fn handled(&self, method: MethodNumber, code: usize) {
        self.calls.of(method).handled[code % calls::CODES].fetch_add(1, Relaxed);
    }

    /// The log was synced.
    pub fn wal_synced(&self, took: Duration, bytes: u64) {
        self.wal_fsync.observe(took.as_secs_f64());
        self.wal_bytes.fetch_add(bytes, Relaxed);
    }

    /// The storage made a checkpoint.
    pub fn backend_committed(&self, took: Duration) {
        self.backend_commit.observe(took.as_secs_f64());
    }

    /// The Prometheus text of everything.
    pub fn render(&self, gauges: &Gauges) -> String {
        let (mut encoded, families) = (Vec::new(), self.registry.gather());
        // Writing into memory cannot fail.
        drop(TextEncoder::new().encode(&families, &mut encoded));
        let mut text = String::from_utf8(encoded).unwrap_or_default();
        render_descriptors(&mut text, &families);
        self.calls.render(&mut text);
        render_gauges(&mut text, gauges);
        let counters = [
            ("etcd_server_health_success", &self.health_checks[0]),
            ("etcd_server_health_failures", &self.health_checks[1]),
            ("etcd_server_leader_changes_seen_total", &self.leader_changes),
        ];
        for (name, counter) in counters {
            single(&mut text, name, "counter", counter.load(Relaxed));
        }
        // As in etcd: a gauge by its type.
        let wal_bytes = self.wal_bytes.load(Relaxed);
        single(&mut text, "etcd_disk_wal_write_bytes_total", "gauge", wal_bytes);
        text
    }
}

/// etcd tells the open file descriptors under names of its own, too.
fn render_descriptors(text: &mut String, families: &[MetricFamily]) {
    for (known, name) in [("process_open_fds", "os_fd_used"), ("process_max_fds", "os_fd_limit")] {
        let family = families.iter().find(|family| family.name() == known);
        if let Some(metric) = family.and_then(|family| family.get_metric().first()) {
            single(text, name, "gauge", metric.get_gauge().get_value() as u64);
        }
    }
}

fn render_gauges(text: &mut String, gauges: &Gauges) {
    let plain = [
        ("etcd_server_has_leader", u64::from(gauges.has_leader)),
        ("etcd_server_is_leader", u64::from(gauges.is_leader)),
        ("etcd_server_is_learner", u64::from(gauges.is_learner)),
        ("etcd_server_proposals_committed_total", gauges.committed),
        ("etcd_server_proposals_applied_total", gauges.applied),
        ("etcd_server_proposals_pending", gauges.pending),
        ("etcd_server_quota_backend_bytes", gauges.quota_bytes),
        ("etcd_mvcc_db_total_size_in_bytes", gauges.db_bytes),
        ("etcd_mvcc_db_total_size_in_use_in_bytes", gauges.db_bytes_in_use),
        ("etcd_debugging_mvcc_keys_total", gauges.keys),
        ("etcd_debugging_mvcc_current_revision", gauges.revision),
        ("etcd_debugging_mvcc_compact_revision", gauges.compact_revision),
        ("etcd_debugging_mvcc_watch_stream_total", gauges.watch_streams),
        ("etcd_debugging_mvcc_watcher_total", gauges.watchers),
        ("etcd_debugging_mvcc_slow_watcher_total", gauges.slow_watchers),
        ("etcd_debugging_mvcc_pending_events_total", gauges.pending_events),
        ("etcd_debugging_mvcc_total_put_size_in_bytes", gauges.put_bytes),
        ("etcd_debugging_mvcc_db_compaction_last", gauges.compaction_last),
    ];
    for (name, value) in plain {
        single(text, name, "gauge", value);
    }
    let counters = [
        ("etcd_mvcc_range_total", gauges.ranges),
        ("etcd_mvcc_put_total", gauges.puts),
        ("etcd_mvcc_delete_total", gauges.deletes),
        ("etcd_mvcc_txn_total", gauges.txns),
        ("etcd_debugging_mvcc_db_compaction_keys_total", gauges.compacted),
        ("etcd_server_slow_apply_total", gauges.slow_applies),
        ("etcd_server_proposals_failed_total", gauges.proposals_failed),
        ("etcd_server_read_indexes_failed_total", gauges.read_indexes_failed),
        ("etcd_debugging_lease_granted_total", gauges.leases_granted),
        ("etcd_debugging_lease_revoked_total", gauges.leases_revoked),
        ("etcd_debugging_lease_renewed_total", gauges.leases_renewed),
        ("etcd_debugging_server_lease_expired_total", gauges.leases_expired),
    ];
    for (name, value) in counters {
        single(text, name, "counter", value);
    }
    single(text, "etcd_debugging_mvcc_events_total", "counter", gauges.watch_events);
    let labelled = [
        ("etcd_server_id", "server_id", format!("{:x}", gauges.member_id)),
        ("etcd_server_version", "server_version", crate::release::ETCD_VERSION.to_owned()),
        ("etcd_cluster_version", "cluster_version", "3.7".to_owned()),
    ];
    for (name, label, value) in labelled {
        push(text, format_args!("# TYPE {name} gauge\n{name}{{{label}=\"{value}\"}} 1\n"));
    }
}

fn single(text: &mut String, name: &str, kind: &str, value: u64) {
    push(text, format_args!("# TYPE {name} {kind}\n{name} {value}\n"));
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("writing into a string cannot fail");
}

/// A histogram with etcd's disk buckets: a millisecond, doubled thirteen times.
fn histogram(registry: &Registry, name: &str, help: &str) -> Histogram {
    let buckets = prometheus::exponential_buckets(0.001, 2.0, 14).expect("the bounds are positive");
    let options = HistogramOpts::new(name, help).buckets(buckets);
    let histogram = Histogram::with_opts(options).expect("the name is well formed");
    let collector: Box<dyn Collector> = Box::new(histogram.clone());
    registry.register(collector).expect("each name is registered once");
    histogram
}
