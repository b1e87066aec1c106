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

/// Backlog of the storage above which apply pauses until it has drained; bounds memory while the
/// disk is slow or a flush is under way.
pub const STORAGE_BACKLOG_BYTES_MAX: usize = 4 << 20;
