//! Every flag that etcd has or had, with our own few: name, type, default, what we do with it, help.
//!
//! This is the one place to touch when a flag becomes real: change its support to `Built`, add a
//! field to `Config` and read it there. Names, types and defaults are etcd's 3.7.1.

use super::values::Kind;
use super::values::Kind::{
    Bool, Duration, FeatureGates, Int, Level, Nothing, OneOf, OneOfTold, Text, Uint, Uint32, Urls,
};

/// One flag.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flag {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// The default as text. `Values` reads it like a given value, so it must be valid.
    pub(super) default: &'static str,
    pub(super) support: Support,
    /// One sentence for `--help`; empty for flags that are not listed.
    pub(super) help: &'static str,
}

/// What we do with a flag that is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Support {
    /// It works.
    Built,
    /// Accepted; a warning says that it has no effect yet.
    Later,
    /// Accepted; a warning says why it will never have an effect.
    Inert(&'static str),
    /// Accepted with a warning as an older name of this flag.
    OldNameOf(&'static str),
    /// Refused with this reason unless set to its default: ignoring it would be unsafe.
    Refused(&'static str),
    /// Ignored without a word, as in etcd.
    Ignored,
}

use Support::{Built, Ignored, Inert, Later, OldNameOf, Refused};

const TLS: Support =
    Refused("TLS is not built yet; remove the TLS flags and use http:// URLs in a trusted network");
const DISCOVERY: Support =
    Refused("discovery is not built yet; list the members in --initial-cluster");
const NO_BBOLT: Support = Inert("there is no bbolt file to tune");
const NO_WAL_COUNT: Support = Inert("the log is purged up to the last checkpoint by itself");
const PROXY: Support = Inert("the v2 proxy is gone since etcd 3.6");

const fn flag(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    support: Support,
    help: &'static str,
) -> Flag {
    Flag { name, kind, default, support, help }
}

/// A flag that is not listed in the help.
const fn past(name: &'static str, kind: Kind, support: Support) -> Flag {
    let default = match kind {
        Bool => "false",
        Duration | Uint | Uint32 | Int => "0",
        _ => "",
    };
    Flag { name, kind, default, support, help: "" }
}

/// The flags in groups, in the order of the help text.
pub(super) const GROUPS: &[(&str, &[Flag])] = &[
    ("Member", MEMBER),
    ("Clustering", CLUSTERING),
    ("Security", SECURITY),
    ("Auth", AUTH),
    ("Monitoring", MONITORING),
    ("Logging", LOGGING),
    ("Tracing", TRACING),
    ("Features", FEATURES),
    ("Unsafe", UNSAFE),
    ("Quorate's own", OURS),
    ("", PAST),
];

#[rustfmt::skip]
const MEMBER: &[Flag] = &[
    flag("name", Text, "default", Built, "Name of this member, unique in the cluster."),
    flag("data-dir", Text, "", Built, "Where the member keeps its data (default ${name}.etcd)."),
    flag("wal-dir", Text, "", Built, "Where the log goes instead of the data directory."),
    flag("snapshot-count", Uint, "10000", Built, "Log entries between two snapshots."),
    flag("heartbeat-interval", Uint, "100", Built, "Milliseconds between two heartbeats."),
    flag("election-timeout", Uint, "1000", Built, "Milliseconds without a leader before an election."),
    flag("initial-election-tick-advance", Bool, "true", Built, "Shorten the first election wait at start."),
    flag("listen-peer-urls", Urls, "http://localhost:2380", Built, "Where to listen for other members."),
    flag("listen-client-urls", Urls, "http://localhost:2379", Built, "Where to listen for clients."),
    flag("listen-client-http-urls", Urls, "", Later, "Where to listen for HTTP-only clients."),
    flag("quota-backend-bytes", Int, "0", Built, "Size at which writes stop; 0 means 2 GiB, below 0 no limit."),
    flag("max-txn-ops", Uint, "128", Built, "Largest number of operations in a transaction."),
    flag("max-request-bytes", Uint, "1572864", Built, "Largest client request in bytes."),
    flag("max-concurrent-streams", Uint32, "4294967295", Built, "Streams that one client connection may open."),
    flag("grpc-keepalive-min-time", Duration, "5s", Inert("clients may ping as often as they like"), ""),
    flag("grpc-keepalive-interval", Duration, "2h", Built, "How often to ping an idle client; 0 turns it off."),
    flag("grpc-keepalive-timeout", Duration, "20s", Built, "How long to wait for the answer to a ping."),
    flag("snapshot-catchup-entries", Uint, "5000", Built, "Entries kept for slow members after a snapshot."),
    flag("socket-reuse-port", Bool, "false", Later, "Set SO_REUSEPORT on listeners."),
    flag("socket-reuse-address", Bool, "false", Later, "Set SO_REUSEADDR on listeners."),
    flag("enable-grpc-gateway", Bool, "true", Later, "Serve the JSON gateway."),
    flag("raft-read-timeout", Duration, "5s", Later, "Read timeout of connections between members."),
    flag("raft-write-timeout", Duration, "5s", Later, "Write timeout of connections between members."),
    flag("feature-gates", FeatureGates, "", Later, "Features to turn on or off, as Name=true,Other=false."),
    flag("max-wals", Uint, "5", NO_WAL_COUNT, ""),
    flag("max-snapshots", Uint, "5", Inert("one snapshot is kept"), ""),
    flag("memory-mlock", Bool, "false", NO_BBOLT, ""),
    flag("backend-bbolt-freelist-type", Text, "map", NO_BBOLT, ""),
    flag("backend-batch-interval", Duration, "0", NO_BBOLT, ""),
    flag("backend-batch-limit", Int, "0", NO_BBOLT, ""),
    flag("config-file", Text, "", Built, "Settings from a YAML file."),
    flag("version", Bool, "false", Built, "Print the version."),
];

#[rustfmt::skip]
const CLUSTERING: &[Flag] = &[
    flag("initial-advertise-peer-urls", Urls, "http://localhost:2380", Built, "Where other members reach this one."),
    flag("initial-cluster", Text, "", Built, "First members as name=url,… (default: this member alone)."),
    flag("initial-cluster-state", OneOf(&["new", "existing"]), "new", Built, "'new' to make a cluster, 'existing' to join one."),
    flag("initial-cluster-token", Text, "etcd-cluster", Built, "Keeps clusters made from the same URLs apart."),
    flag("advertise-client-urls", Urls, "http://localhost:2379", Built, "Where clients reach this member."),
    flag("strict-reconfig-check", Bool, "true", Built, "Refuse membership changes that would lose the quorum."),
    flag("pre-vote", Bool, "true", Built, "Ask before an election whether it could be won."),
    flag("auto-compaction-mode", Text, "periodic", Later, "'periodic' or 'revision'."),
    flag("auto-compaction-retention", Text, "0", Later, "How much history to keep; 0 keeps all."),
    flag("discovery-token", Text, "", DISCOVERY, ""),
    flag("discovery-endpoints", Text, "", DISCOVERY, ""),
    flag("discovery-srv", Text, "", DISCOVERY, ""),
    flag("discovery-srv-name", Text, "", DISCOVERY, ""),
    flag("discovery-fallback", OneOf(&["exit", "proxy"]), "exit", DISCOVERY, ""),
    past("discovery", Text, DISCOVERY),
    past("discovery-proxy", Text, DISCOVERY),
    flag("discovery-dial-timeout", Duration, "2s", Later, ""),
    flag("discovery-request-timeout", Duration, "5s", Later, ""),
    flag("discovery-keepalive-time", Duration, "2s", Later, ""),
    flag("discovery-keepalive-timeout", Duration, "6s", Later, ""),
    flag("discovery-insecure-transport", Bool, "true", Later, ""),
    flag("discovery-insecure-skip-tls-verify", Bool, "false", Later, ""),
    past("discovery-cert", Text, Later),
    past("discovery-key", Text, Later),
    past("discovery-cacert", Text, Later),
    past("discovery-user", Text, Later),
    past("discovery-password", Text, Later),
];

#[rustfmt::skip]
const SECURITY: &[Flag] = &[
    flag("cert-file", Text, "", TLS, ""),
    flag("key-file", Text, "", TLS, ""),
    flag("trusted-ca-file", Text, "", TLS, ""),
    flag("client-cert-auth", Bool, "false", TLS, ""),
    flag("client-cert-file", Text, "", TLS, ""),
    flag("client-key-file", Text, "", TLS, ""),
    flag("client-crl-file", Text, "", TLS, ""),
    flag("client-cert-allowed-hostname", Text, "", TLS, ""),
    flag("auto-tls", Bool, "false", TLS, ""),
    flag("peer-cert-file", Text, "", TLS, ""),
    flag("peer-key-file", Text, "", TLS, ""),
    flag("peer-trusted-ca-file", Text, "", TLS, ""),
    flag("peer-client-cert-auth", Bool, "false", TLS, ""),
    flag("peer-client-cert-file", Text, "", TLS, ""),
    flag("peer-client-key-file", Text, "", TLS, ""),
    flag("peer-crl-file", Text, "", TLS, ""),
    flag("peer-cert-allowed-cn", Text, "", TLS, ""),
    flag("peer-cert-allowed-hostname", Text, "", TLS, ""),
    flag("peer-auto-tls", Bool, "false", TLS, ""),
    flag("peer-skip-client-san-verification", Bool, "false", TLS, ""),
    flag("cipher-suites", Text, "", TLS, ""),
    flag("tls-min-version", Text, "TLS1.2", TLS, ""),
    flag("tls-max-version", Text, "", TLS, ""),
    flag("self-signed-cert-validity", Uint, "1", Later, ""),
    flag("cors", Text, "*", Built, "Origins that browsers may come from."),
    flag("host-whitelist", Text, "*", Later, "Host names that HTTP clients may use."),
];

#[rustfmt::skip]
const AUTH: &[Flag] = &[
    flag("auth-token", Text, "simple", Later, "'simple' or 'jwt,…'."),
    flag("bcrypt-cost", Uint, "10", Later, "Cost of hashing a password, 4 to 31."),
    flag("auth-token-ttl", Uint, "300", Later, "Seconds that a simple token lives."),
];

#[rustfmt::skip]
const MONITORING: &[Flag] = &[
    flag("enable-pprof", Bool, "false", Later, "Serve profiles under /debug/pprof/."),
    flag("metrics", Text, "basic", Later, "'basic', or 'extensive' for latency histograms of RPCs."),
    flag("listen-metrics-urls", Urls, "", Built, "Where to serve /metrics and health besides the client URLs."),
];

#[rustfmt::skip]
const LOGGING: &[Flag] = &[
    flag("logger", Text, "zap", Built, "Only 'zap', the shape of the log lines."),
    flag("log-outputs", Text, "default", Built, "Comma-separated: stderr, stdout or files; 'default' is stderr."),
    flag("log-level", Level, "info", Built, "debug, info, warn, error, panic or fatal."),
    flag("log-format", Text, "json", Built, "json or console."),
    flag("enable-log-rotation", Bool, "false", Later, "Rotate the log file."),
    flag("log-rotation-config-json", Text, "", Later, ""),
    flag("warning-unary-request-duration", Duration, "300ms", Built, "Warn about requests that take longer."),
];

#[rustfmt::skip]
const TRACING: &[Flag] = &[
    flag("enable-distributed-tracing", Bool, "false", Later, "Send traces to a collector."),
    flag("distributed-tracing-address", Text, "localhost:4317", Later, ""),
    flag("distributed-tracing-service-name", Text, "etcd", Later, ""),
    flag("distributed-tracing-instance-id", Text, "", Later, ""),
    flag("distributed-tracing-sampling-rate", Int, "0", Later, ""),
];

#[rustfmt::skip]
const FEATURES: &[Flag] = &[
    flag("corrupt-check-time", Duration, "0s", Later, "Time between two comparisons of the members' data."),
    flag("compact-hash-check-time", Duration, "1m", Later, "Time between two comparisons of compaction hashes."),
    flag("compaction-batch-limit", Int, "1000", Later, "Revisions dropped in one step of a compaction."),
    flag("compaction-sleep-interval", Duration, "10ms", Later, "Pause between two steps of a compaction."),
    flag("watch-progress-notify-interval", Duration, "10m", Built, "Time between two progress notices on idle watches."),
    flag("warning-apply-duration", Duration, "100ms", Built, "Warn when applying takes longer."),
    flag("max-learners", Int, "1", Later, "Largest number of learners."),
    flag("downgrade-check-time", Duration, "5s", Later, ""),
    flag("bootstrap-defrag-threshold-megabytes", Uint, "0", NO_BBOLT, ""),
];

const UNSAFE: &[Flag] = &[
    flag(
        "force-new-cluster",
        Bool,
        "false",
        Refused("making a cluster of one from old data is not built yet"),
        "",
    ),
    flag("unsafe-no-fsync", Bool, "false", Inert("Quorate always syncs its log"), ""),
];

#[rustfmt::skip]
const OURS: &[Flag] = &[
    flag("quorate-value-cache-bytes", Uint, "67108864", Built, "Memory for recent values."),
    flag("quorate-wal-segment-bytes", Uint, "67108864", Built, "Size of one file of the log."),
    flag("quorate-serving-threads", Uint, "0", Built, "Threads that serve connections; 0 is one a core."),
];

/// Flags that etcd 3.7 no longer has, or has without meaning. They come from older manifests.
#[rustfmt::skip]
const PAST: &[Flag] = &[
    past("experimental-initial-corrupt-check", Bool, Later),
    past("experimental-compact-hash-check-enabled", Bool, Later),
    past("experimental-compact-hash-check-time", Duration, OldNameOf("compact-hash-check-time")),
    past("experimental-corrupt-check-time", Duration, OldNameOf("corrupt-check-time")),
    past("experimental-compaction-batch-limit", Int, OldNameOf("compaction-batch-limit")),
    past("experimental-compaction-sleep-interval", Duration, OldNameOf("compaction-sleep-interval")),
    past("experimental-watch-progress-notify-interval", Duration, OldNameOf("watch-progress-notify-interval")),
    past("experimental-warning-apply-duration", Duration, OldNameOf("warning-apply-duration")),
    past("experimental-warning-unary-request-duration", Duration, OldNameOf("warning-unary-request-duration")),
    past("experimental-snapshot-catchup-entries", Uint, OldNameOf("snapshot-catchup-entries")),
    past("experimental-downgrade-check-time", Duration, OldNameOf("downgrade-check-time")),
    past("experimental-max-learners", Int, OldNameOf("max-learners")),
    past("experimental-memory-mlock", Bool, OldNameOf("memory-mlock")),
    past("experimental-bootstrap-defrag-threshold-megabytes", Uint, OldNameOf("bootstrap-defrag-threshold-megabytes")),
    past("experimental-peer-skip-client-san-verification", Bool, OldNameOf("peer-skip-client-san-verification")),
    past("experimental-enable-distributed-tracing", Bool, OldNameOf("enable-distributed-tracing")),
    past("experimental-distributed-tracing-address", Text, OldNameOf("distributed-tracing-address")),
    past("experimental-distributed-tracing-service-name", Text, OldNameOf("distributed-tracing-service-name")),
    past("experimental-distributed-tracing-instance-id", Text, OldNameOf("distributed-tracing-instance-id")),
    past("experimental-distributed-tracing-sampling-rate", Int, OldNameOf("distributed-tracing-sampling-rate")),
    past("experimental-enable-lease-checkpoint", Bool, Inert("remaining TTLs always survive a failover")),
    past("experimental-enable-lease-checkpoint-persist", Bool, Inert("remaining TTLs always survive a failover")),
    past("experimental-stop-grpc-service-on-defrag", Bool, Inert("there is nothing to defragment")),
    past("experimental-txn-mode-write-with-shared-buffer", Bool, NO_BBOLT),
    past("experimental-wait-cluster-ready-timeout", Duration, Later),
    past("experimental-set-member-localaddr", Bool, Later),
    past("experimental-enable-v2v3", Text, Inert("the v2 API is gone since etcd 3.6")),
    past("enable-v2", Bool, Inert("the v2 API is gone since etcd 3.6")),
    flag("v2-deprecation", OneOfTold(&["write-only", "write-only-drop-data", "gone"]), "write-only", Inert("the v2 store is gone"), ""),
    past("proxy", Text, PROXY),
    past("proxy-failure-wait", Uint, PROXY),
    past("proxy-refresh-interval", Uint, PROXY),
    past("proxy-dial-timeout", Uint, PROXY),
    past("proxy-write-timeout", Uint, PROXY),
    past("proxy-read-timeout", Uint, PROXY),
    past("cluster-active-size", Nothing, Ignored),
    past("cluster-remove-delay", Nothing, Ignored),
    past("cluster-sync-interval", Nothing, Ignored),
    past("config", Nothing, Ignored),
    past("force", Nothing, Ignored),
    past("max-result-buffer", Nothing, Ignored),
    past("max-retry-attempts", Nothing, Ignored),
    past("peer-heartbeat-interval", Nothing, Ignored),
    past("peer-election-timeout", Nothing, Ignored),
    past("retry-interval", Nothing, Ignored),
    past("snapshot", Nothing, Ignored),
    past("v", Nothing, Ignored),
    past("vv", Nothing, Ignored),
    past("test.coverprofile", Nothing, Ignored),
    past("test.outputdir", Nothing, Ignored),
];

/// Every flag, listed or not.
pub(super) fn all() -> impl Iterator<Item = &'static Flag> {
    GROUPS.iter().flat_map(|(_, flags)| flags.iter())
}

/// The flag of this name.
pub(super) fn find(name: &str) -> Option<&'static Flag> {
    all().find(|flag| flag.name == name)
}
