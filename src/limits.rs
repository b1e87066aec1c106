//! Every bound of the system in one place, with what happens when it is reached.

use std::time::Duration;

/// Largest number of commands in one raft entry; more wait for the next entry.
pub const PROPOSAL_COMMANDS_MAX: usize = 1024;

/// Aim for the encoded size of one raft entry in bytes; a single larger command still fits alone.
pub const PROPOSAL_BYTES_MAX: usize = 512 * 1024;

/// Default of `--max-request-bytes`: a larger write is refused with etcd's text.
pub const REQUEST_BYTES_MAX_DEFAULT: usize = 1_572_864;

/// What gRPC framing may add above `--max-request-bytes` (as in etcd).
pub const GRPC_OVERHEAD_BYTES: usize = 512 * 1024;

/// Default of `--max-txn-ops`: a Txn with more compares or operations is refused.
pub const TXN_OPS_MAX_DEFAULT: usize = 128;

/// The etcd release whose surface we are; reported in Status, `/version` and `--version`.
pub const ETCD_VERSION: &str = "3.7.1";

/// Default of `--quota-backend-bytes`: above it writes are refused with NOSPACE.
pub const QUOTA_BYTES_DEFAULT: u64 = 2 * 1024 * 1024 * 1024;

/// Above this `--max-request-bytes` gets a warning (as in etcd).
pub const REQUEST_BYTES_RECOMMENDED_MAX: usize = 10 * 1024 * 1024;

/// Default of `--snapshot-count`: log entries between two snapshots.
pub const SNAPSHOT_COUNT_DEFAULT: u64 = 10_000;

/// Default of `--snapshot-catchup-entries`: entries kept for slow members behind a snapshot.
pub const SNAPSHOT_CATCHUP_ENTRIES_DEFAULT: u64 = 5_000;

/// Largest `--election-timeout` in milliseconds; more is refused at start (as in etcd).
pub const ELECTION_MILLISECONDS_MAX: u64 = 50_000;

/// Default of `--warning-unary-request-duration`: slower requests are logged.
pub const WARNING_UNARY_REQUEST_DEFAULT: Duration = Duration::from_millis(300);

/// Smallest `--quorate-wal-segment-bytes`; less is refused at start.
pub const WAL_SEGMENT_BYTES_MIN: u64 = 1024 * 1024;

/// Largest `--quorate-wal-segment-bytes`; more is refused at start.
pub const WAL_SEGMENT_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Largest `--quorate-serving-threads`; more is refused at start.
pub const SERVING_THREADS_MAX: u64 = 1024;
