//! What this member and another one exchange, under etcd's names.

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

/// The counters of one other member.
#[derive(Debug)]
pub struct PeerMetrics {
    /// `etcd_network_peer_sent_bytes_total`: bytes of gRPC messages, as they are framed.
    pub sent_bytes: IntCounter,
    /// `etcd_network_peer_received_bytes_total`.
    pub received_bytes: IntCounter,
    /// `etcd_network_peer_sent_failures_total`: calls to it that failed.
    pub sent_failures: IntCounter,
    /// `etcd_network_peer_received_failures_total`: its streams that broke.
    pub received_failures: IntCounter,
    /// `etcd_network_peer_round_trip_time_seconds`: of heartbeats, so only a leader has some.
    pub round_trips: Histogram,
    active: IntGauge,
    disconnected: IntCounter,
}

impl PeerMetrics {
    /// It answers, or calls: `etcd_network_active_peers` is 1.
    pub fn is_here(&self) {
        self.active.set(1);
    }

    /// It cannot be reached any more.
    pub fn is_away(&self) {
        self.active.set(0);
        self.disconnected.inc();
    }
}

/// The counters of all other members.
#[derive(Debug)]
pub(super) struct PeerFamilies {
    sent_bytes: IntCounterVec,
    received_bytes: IntCounterVec,
    sent_failures: IntCounterVec,
    received_failures: IntCounterVec,
    round_trips: HistogramVec,
    known: IntGaugeVec,
    active: IntGaugeVec,
    disconnected: IntCounterVec,
}

impl PeerFamilies {
    pub(super) fn new(registry: &Registry) -> Self {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels);
            registered(registry, counters.expect("the name is well formed"))
        };
        let gauges = |name: &str, help: &str| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), &["Local", "Remote"]);
            registered(registry, gauges.expect("the name is well formed"))
        };
        // etcd's buckets: a tenth of a millisecond, doubled fifteen times.
        let buckets = prometheus::exponential_buckets(0.0001, 2.0, 16).expect("positive bounds");
        let round_trips = HistogramOpts::new(
            "etcd_network_peer_round_trip_time_seconds",
            "Round-Trip-Time histogram between peers",
        );
        let round_trips = HistogramVec::new(round_trips.buckets(buckets), &["To"]);
        PeerFamilies {
            sent_bytes: counters(
                "etcd_network_peer_sent_bytes_total",
                "The total number of bytes sent to peers.",
                &["To"],
            ),
            received_bytes: counters(
                "etcd_network_peer_received_bytes_total",
                "The total number of bytes received from peers.",
                &["From"],
            ),
            sent_failures: counters(
                "etcd_network_peer_sent_failures_total",
                "The total number of send failures from peers.",
                &["To"],
            ),
            received_failures: counters(
                "etcd_network_peer_received_failures_total",
                "The total number of receive failures from peers.",
                &["From"],
            ),
            round_trips: registered(registry, round_trips.expect("the name is well formed")),
            known: gauges("etcd_network_known_peers", "The current number of known peers."),
            active: gauges(
                "etcd_network_active_peers",
                "The current number of active peer connections.",
            ),
            disconnected: counters(
                "etcd_network_disconnected_peers_total",
                "The total number of disconnected peers.",
                &["Local", "Remote"],
            ),
        }
    }

    /// `member` is in the membership, as `local` knows it.
    pub(super) fn knows(&self, local: u64, member: u64) {
        let (local, member) = (format!("{local:x}"), format!("{member:x}"));
        self.known.with_label_values(&[&local, &member]).set(1);
    }

    /// The counters of `remote` as `local` sees it.
    pub(super) fn of(&self, local: u64, remote: u64) -> PeerMetrics {
        let (local, remote) = (format!("{local:x}"), format!("{remote:x}"));
        let (one, both) = ([remote.as_str()], [local.as_str(), remote.as_str()]);
        PeerMetrics {
            sent_bytes: self.sent_bytes.with_label_values(&one),
            received_bytes: self.received_bytes.with_label_values(&one),
            sent_failures: self.sent_failures.with_label_values(&one),
            received_failures: self.received_failures.with_label_values(&one),
            round_trips: self.round_trips.with_label_values(&one),
            active: self.active.with_label_values(&both),
            disconnected: self.disconnected.with_label_values(&both),
        }
    }
}

fn registered<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> C {
    registry.register(Box::new(collector.clone())).expect("each name is registered once");
    collector
}
