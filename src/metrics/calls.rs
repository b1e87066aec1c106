//! What is counted of each call.
//!
//! A counter that several processors write to costs more than all else that is done to count, so each
//! serving thread has its own, which are added up when somebody scrapes.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use super::client::{self, Clients};
use super::{push, single};

/// Methods counted one by one; the rest share the last counter.
const METHODS: [(&str, &str); 32] = [
    ("etcdserverpb.KV", "Range"),
    ("etcdserverpb.KV", "Put"),
    ("etcdserverpb.KV", "Txn"),
    ("etcdserverpb.KV", "DeleteRange"),
    ("etcdserverpb.KV", "Compact"),
    ("etcdserverpb.Maintenance", "Status"),
    ("etcdserverpb.Maintenance", "HashKV"),
    ("etcdserverpb.Maintenance", "Alarm"),
    ("etcdserverpb.Cluster", "MemberList"),
    ("grpc.health.v1.Health", "Check"),
    ("grpc.health.v1.Health", "Watch"),
    ("etcdserverpb.KV", "RangeStream"),
    ("etcdserverpb.Lease", "LeaseGrant"),
    ("etcdserverpb.Lease", "LeaseRevoke"),
    ("etcdserverpb.Lease", "LeaseKeepAlive"),
    ("etcdserverpb.Lease", "LeaseTimeToLive"),
    ("etcdserverpb.Lease", "LeaseLeases"),
    ("etcdserverpb.Watch", "Watch"),
    ("v3lockpb.Lock", "Lock"),
    ("v3lockpb.Lock", "Unlock"),
    ("v3electionpb.Election", "Campaign"),
    ("v3electionpb.Election", "Proclaim"),
    ("v3electionpb.Election", "Leader"),
    ("v3electionpb.Election", "Observe"),
    ("v3electionpb.Election", "Resign"),
    ("etcdserverpb.Auth", "Authenticate"),
    ("etcdserverpb.Auth", "AuthStatus"),
    ("etcdserverpb.Auth", "AuthDisable"),
    ("etcdserverpb.Maintenance", "Hash"),
    ("etcdserverpb.Maintenance", "MoveLeader"),
    ("grpc.health.v1.Health", "List"),
    ("other", "other"),
];

/// The gRPC codes as grpc-go's metrics name them.
const CODES_BY_NUMBER: [&str; CODES] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

pub(super) const CODES: usize = 17;

/// A method's place among the counters: it is looked for once a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MethodNumber(usize);

impl MethodNumber {
    /// The place of the method at `path`.
    pub(super) fn of(path: &str) -> Self {
        let known = METHODS.iter().position(|(service, method)| {
            let path = path.strip_prefix('/').and_then(|path| path.strip_prefix(service));
            path.and_then(|path| path.strip_prefix('/')) == Some(method)
        });
        MethodNumber(known.unwrap_or(METHODS.len() - 1))
    }
}

/// What is counted of the calls of one method.
#[derive(Debug, Default)]
pub(super) struct MethodCalls {
    pub(super) started: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) handled: [AtomicU64; CODES],
}

/// What one thread counted, or a few of them.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct ThreadCalls {
    methods: [MethodCalls; METHODS.len()],
    pub(super) received_bytes: AtomicU64,
    pub(super) sent_bytes: AtomicU64,
    pub(super) clients: Clients,
}

/// Sets of counters: threads beyond so many share them.
const SETS: usize = 16;

/// All calls.
#[derive(Debug)]
pub(super) struct Calls(Box<[ThreadCalls]>);

impl Default for Calls {
    fn default() -> Self {
        Calls((0..SETS).map(|_| ThreadCalls::default()).collect())
    }
}

impl Calls {
    /// The counters of the calling thread.
    pub(super) fn here(&self) -> &ThreadCalls {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static NUMBER: usize = THREADS.fetch_add(1, Relaxed);
        }
        &self.0[NUMBER.with(|number| *number) % SETS]
    }

    /// The counters of `method` on the calling thread.
    pub(super) fn of(&self, method: MethodNumber) -> &MethodCalls {
        &self.here().methods[method.0]
    }

    fn sum(&self, counter: impl Fn(&ThreadCalls) -> &AtomicU64) -> u64 {
        self.0.iter().map(|calls| counter(calls).load(Relaxed)).sum()
    }

    /// Appends the Prometheus text.
    pub(super) fn render(&self, text: &mut String) {
        client::render(self.0.iter().map(|calls| &calls.clients), text);
        let received = self.sum(|calls| &calls.received_bytes);
        single(text, "etcd_network_client_grpc_received_bytes_total", "counter", received);
        let sent = self.sum(|calls| &calls.sent_bytes);
        single(text, "etcd_network_client_grpc_sent_bytes_total", "counter", sent);
        type Counter = fn(&MethodCalls) -> &AtomicU64;
        let counters: [(&str, Counter); 3] = [
            ("grpc_server_started_total", |calls| &calls.started),
            ("grpc_server_msg_received_total", |calls| &calls.received),
            ("grpc_server_msg_sent_total", |calls| &calls.sent),
        ];
        for (name, counter) in counters {
            push(text, format_args!("# TYPE {name} counter\n"));
            for (at, method) in METHODS.iter().enumerate() {
                let (labels, count) =
                    (labels(method), self.sum(|calls| counter(&calls.methods[at])));
                push(text, format_args!("{name}{{{labels}}} {count}\n"));
            }
        }
        push(text, format_args!("# TYPE grpc_server_handled_total counter\n"));
        for (at, method) in METHODS.iter().enumerate() {
            let labels = labels(method);
            // As in etcd: also those that never came, so that rates and alerts have a beginning.
            for (number, code) in CODES_BY_NUMBER.iter().enumerate() {
                let count = self.sum(|calls| &calls.methods[at].handled[number]);
                push(
                    text,
                    format_args!(
                        "grpc_server_handled_total{{grpc_code=\"{code}\",{labels}}} {count}\n"
                    ),
                );
            }
        }
    }
}

/// The labels of a method's counters.
fn labels((service, method): &(&str, &str)) -> String {
    let kind = match *method {
        "Watch" if *service == "grpc.health.v1.Health" => "server_stream",
        "Watch" | "LeaseKeepAlive" => "bidi_stream",
        "Observe" | "RangeStream" => "server_stream",
        _ => "unary",
    };
    format!("grpc_method=\"{method}\",grpc_service=\"{service}\",grpc_type=\"{kind}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_threads_count_is_added_up() {
        let calls = Calls::default();
        let put = MethodNumber::of("/etcdserverpb.KV/Put");
        std::thread::scope(|scope| {
            for _ in 0..3 * SETS {
                scope.spawn(|| {
                    calls.of(put).started.fetch_add(2, Relaxed);
                    calls.here().clients.count("3.7", false);
                });
            }
        });
        let mut text = String::new();
        calls.render(&mut text);
        let line = "grpc_server_started_total{grpc_method=\"Put\",\
                    grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"} 96\n";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("client_api_version=\"3.7\",type=\"unary\"} 48\n"), "{text}");
    }
}
