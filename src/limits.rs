//! Every bound of the system in one place, with what happens when it is reached.

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

/// Size in bytes of one segment of the log. A record that does not fit gets a segment of its own.
pub const LOG_SEGMENT_BYTES: u64 = 64 * 1024 * 1024;

/// Largest payload in bytes of one record of the log; a larger entry is refused when appended.
pub const LOG_RECORD_BYTES_MAX: usize = 128 * 1024 * 1024;

/// Bytes that wait for the log's writer before `append` waits too (a disk that hangs).
pub const LOG_QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bytes that the log's writer encodes before it writes; a larger batch takes several writes.
pub const LOG_WRITE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes of entries kept in memory; older ones are read back from the segments.
pub const LOG_RING_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Bytes of entries kept in memory right after a start.
pub const LOG_RING_START_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes of entries that one read for replication or apply returns, unless the first is larger.
pub const LOG_READ_BYTES_MAX: usize = 1024 * 1024;
