//! Every bound of the system in one place, with what happens when it is reached.

use std::time::Duration;

/// Largest number of commands in one raft entry; more wait for the next entry.
pub const PROPOSAL_COMMANDS_MAX: usize = 1024;

/// Aim for the encoded size of one raft entry in bytes; a single larger command still fits alone.
pub const PROPOSAL_BYTES_MAX: usize = 512 * 1024;

/// Default of `--max-request-bytes`: a larger write is refused with etcd's text.
pub const REQUEST_BYTES_MAX_DEFAULT: usize = 1_572_864;

/// Largest `--max-request-bytes`; more is refused at start, other than in etcd: a larger command would
/// find no place in the queue, and one beyond [`LOG_RECORD_BYTES_MAX`] none in the log.
pub const REQUEST_BYTES_MAX: usize = 64 * 1024 * 1024;

const _: () = assert!(REQUEST_BYTES_MAX <= PROPOSALS_QUEUED_BYTES_MAX);
// An entry is full, and then a forwarded group with the largest command comes on top.
const _: () = assert!(PROPOSAL_BYTES_MAX + REQUEST_BYTES_MAX < LOG_RECORD_BYTES_MAX);
const _: () = assert!(LOG_RECORD_BYTES_MAX <= PEER_MESSAGE_BYTES_MAX / 2);

/// What gRPC framing may add above `--max-request-bytes` (as in etcd).
pub const GRPC_OVERHEAD_BYTES: usize = 512 * 1024;

/// Largest message of an answer, as in etcd: whoever counts lengths in 32 bits with a sign takes no
/// larger one. A call whose answer would be larger is refused, and so is a watch stream.
pub const ANSWER_BYTES_MAX: usize = i32::MAX as usize;

/// Default of `--max-txn-ops`: a Txn with more compares or operations is refused.
pub const TXN_OPS_MAX_DEFAULT: usize = 128;

/// Txns inside each other; deeper ones are refused by the door. Whoever reads messages stops at 100
/// levels: a Txn takes two, and in an entry that a member forwards six more lie around its request.
pub const TXN_DEPTH_MAX: usize = 40;

/// Longest TTL of a lease in seconds; a longer one is refused (as in etcd).
pub const LEASE_TTL_SECONDS_MAX: i64 = 9_000_000_000;

/// A keep-alive is answered from memory while the lease's last replicated renewal is not older, and
/// a new leader lets each lease live for so much longer, because the old one may have done so.
pub const LEASE_SLACK: Duration = Duration::from_secs(1);

/// A leader with leases stamps an entry at least this often, so that its successor's clock is not
/// further behind.
pub const LEASE_STAMP_INTERVAL: Duration = Duration::from_secs(1);

/// While many keep-alives come, their renewals are gathered for this long into one entry.
pub const LEASE_RENEW_GATHER: Duration = Duration::from_millis(4);

/// So many renewals in one entry are many; fewer are written as soon as the entry before them is.
pub const LEASE_RENEW_CROWD: usize = 4;

/// As many keep-alives are worth an entry at once.
pub const LEASE_RENEW_FULL: usize = 64;

/// Leases in one entry of renewals, and in one call to the leader; more wait for the next.
pub const LEASE_RENEWALS_MAX: usize = 10_000;

/// Keep-alives that wait for a renewal; beyond it they get `too many requests`.
pub const LEASE_RENEWALS_WAITING_MAX: usize = 200_000;

/// Keep-alives of leases that are about to go are looked at again after this.
pub const LEASE_ENDING_POLL: Duration = Duration::from_millis(50);

/// Leases and keys that one entry of expiries ends; a lease with more keys still goes whole. Small,
/// because writes wait while such an entry is applied.
pub const LEASE_EXPIRE_BATCH: usize = 128;

/// Between two entries of expiries writes have the log to themselves for this long.
pub const LEASE_EXPIRE_PAUSE: Duration = Duration::from_millis(5);

/// Longest sleep before the leases are looked at again; timers of years are not worth their trouble.
pub const LEASE_LOOK_MAX: Duration = Duration::from_secs(3600);

/// Answers that one keep-alive stream owes; then it reads no more requests.
pub const LEASE_STREAM_PENDING_MAX: usize = 4096;

/// What a log entry adds around one command; etcd counts its own envelope likewise.
pub const COMMAND_OVERHEAD_BYTES: usize = 16;

/// Entries that one member has under way at once; more commands wait and share the next entry.
pub const PROPOSALS_IN_FLIGHT_MAX: usize = 4;

/// Commands that wait for an entry; beyond it a write gets `too many requests`.
pub const PROPOSALS_QUEUED_MAX: usize = 100_000;

/// Bytes of commands that wait for an entry; beyond it a write gets `too many requests`.
pub const PROPOSALS_QUEUED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A starting member announces itself again after this, and then each time after twice as long, until
/// it knows that the announcement was applied; as long as a request takes to time out at most.
pub const PUBLISH_RETRY: Duration = Duration::from_secs(1);

/// How long a write that certainly reached no log waits for news of a leader before it tries again.
pub const PROPOSE_RETRY: Duration = Duration::from_millis(100);

/// How often requests are checked for having waited too long.
pub const SWEEP_INTERVAL: Duration = Duration::from_millis(250);

/// A read round that failed is tried again after this.
pub const READ_RETRY: Duration = Duration::from_millis(50);

/// Largest message between members: a full entry with room for the largest request.
pub const PEER_MESSAGE_BYTES_MAX: usize = 1 << 30;

/// A member that does not accept a connection within this is unreachable.
pub const PEER_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection for votes that has not answered yet is tried again for so long.
pub const PEER_VOTE_LINE_PATIENCE: Duration = Duration::from_secs(5);

/// How long another member may take to tell a member without data whether it is new.
pub const STANDING_TIMEOUT: Duration = Duration::from_secs(2);

/// How long such a member pauses until it asks again.
pub const STANDING_RETRY: Duration = Duration::from_millis(100);

/// How often it tells the operator that it waits.
pub const STANDING_NEWS_INTERVAL: Duration = Duration::from_secs(5);

/// HTTP/2 pings to other members, also on idle connections.
pub const PEER_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);

/// A connection whose ping stays unanswered for this is dropped.
pub const PEER_KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Flow-control window of one stream between members.
pub const PEER_STREAM_WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// Flow-control window of one connection between members.
pub const PEER_CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// An append that a follower has not acknowledged for this, and for the time that its bytes take,
/// breaks the stream, so that a hung follower never holds the log back without bound.
pub const APPEND_ACK_TIMEOUT: Duration = Duration::from_secs(3);

/// The slowest link between members: bytes get so much more time than a message without any.
pub const PEER_BYTES_PER_SECOND_MIN: u64 = 64 * 1024;

/// Appends under way to one follower; more wait in openraft.
pub const APPENDS_IN_FLIGHT_MAX: usize = 64;

/// Bytes of them, or one message that is larger.
pub const APPEND_BYTES_IN_FLIGHT_MAX: usize = 16 * 1024 * 1024;

/// Bytes that may wait for the storage; beyond it applying pauses, and with it, soon, proposing.
pub const STORAGE_BACKLOG_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Size of a snapshot frame on the wire.
pub const SNAPSHOT_FRAME_BYTES: usize = 512 * 1024;

/// Bytes of a snapshot that wait for the receiver's storage; beyond it they are flushed before the
/// next frame is taken, so that leaves do not pile up in memory.
pub const SNAPSHOT_BACKLOG_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A sender of a snapshot that is silent for this is given up, and so is a receiver that takes no
/// frame for this and for the time that the last one's bytes take.
pub const SNAPSHOT_FRAME_TIMEOUT: Duration = Duration::from_secs(20);

/// The receiver of a snapshot has this long to verify and open it after it took the last frame; then
/// the sender begins again.
pub const SNAPSHOT_INSTALL_TIMEOUT: Duration = Duration::from_secs(300);

/// After a receiver was given up, its next snapshot waits for this, so that the log is dropped at
/// least once in between: longer than [`CHECKPOINT_POLL`].
pub const SNAPSHOT_STALLED_PAUSE: Duration = Duration::from_secs(1);

/// While a snapshot is being sent, and for this long after it arrived, no log is dropped, so that
/// its receiver can go on with the log; etcd waits as long. Meanwhile the log grows on the disk.
pub const SNAPSHOT_CATCHUP_TIME: Duration = Duration::from_secs(30);

/// How often it is checked whether a checkpoint is due.
pub const CHECKPOINT_POLL: Duration = Duration::from_millis(500);

/// Longest time between two checkpoints of a state that changes.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(30);

/// Log kept for followers that lag; beyond it they get a snapshot.
pub const LOG_RETAINED_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// How long a voter may take to confirm a vote for a read round before heartbeats are sent instead.
pub const CONFIRM_TIMEOUT: Duration = Duration::from_millis(50);

/// Ids of watchers ended by compaction that a watch stream keeps taken until they are canceled.
pub const WATCH_ENDED_IDS_MAX: usize = 4096;

/// One attempt at a read round; etcd asks again after the same time.
pub const READ_ROUND_TIMEOUT: Duration = Duration::from_millis(500);

/// Others have the state for so long between two steps of a compaction.
pub const COMPACTION_PAUSE: Duration = Duration::from_micros(200);

/// From so many revisions a second on a compaction is in a hurry, or history would outgrow it.
pub const COMPACTION_BRISK_WRITES: u64 = 10_000;

/// A compaction waits while the storage has more left to write, but not longer than two pauses for each
/// step.
pub const COMPACTION_BACKLOG_BYTES_MAX: usize = 1024 * 1024;

/// How often it looks whether the storage has.
pub const COMPACTION_PAUSE_LONG: Duration = Duration::from_millis(2);

/// Records that one step of a hash looks at while it holds the state.
pub const HASH_STEP_RECORDS: usize = 1000;

/// Parts of a streamed answer that wait for the client; then reading pauses.
pub const STREAM_PARTS_MAX: usize = 2;

/// TTL of the lease that Lock and Election grant to a caller without one, in seconds (as in etcd).
pub const LINE_LEASE_TTL_SECONDS: i64 = 60;

/// How often a member tries to take back the place in line of a client that went away; then the
/// place lasts as long as its lease.
pub const LINE_LEAVE_ATTEMPTS_MAX: u32 = 20;

/// The pause between two such attempts.
pub const LINE_LEAVE_PAUSE: Duration = Duration::from_millis(250);

/// Bytes of answers on one bidi stream that wait for the client; then its handler pauses.
pub const STREAM_ANSWERS_BYTES_MAX: usize = 128 * 1024;

/// Bytes of recent events kept in memory for watchers that are behind; older ones are read from the
/// storage. As many may wait for a serving thread that is late, so that they take no more memory;
/// beyond it its watchers fall behind and catch up.
pub const WATCH_WINDOW_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Bytes that wait in the queue of one watch stream; beyond it its watchers fall behind and catch up
/// when the client has read half of it.
pub const WATCH_QUEUE_BYTES_MAX: usize = 1024 * 1024;

/// Watchers that catch up together.
pub const WATCH_CHUNK_WATCHERS_MAX: usize = 512;

/// Events after which one step of catching up stops; all events of a revision stay together.
pub const WATCH_CHUNK_EVENTS_MAX: usize = 1000;

/// Bytes of pairs and previous pairs after which one step of catching up stops.
pub const WATCH_CHUNK_BYTES_MAX: usize = 512 * 1024;

/// Default of `--watch-progress-notify-interval`.
pub const WATCH_PROGRESS_DEFAULT: Duration = Duration::from_secs(600);

/// Smallest `--watch-progress-notify-interval`; less is raised to it, with a warning (as in etcd).
pub const WATCH_PROGRESS_MIN: Duration = Duration::from_millis(100);

/// Keys in the first part of a RangeStream, as in etcd.
pub const STREAM_FIRST_PART_KEYS: i64 = 10;

/// Cache of the storage below the state, in bytes; hot values are kept by the state itself.
pub const STORAGE_CACHE_BYTES: usize = 8 * 1024 * 1024;

/// Threads that may block on cold reads, for each serving thread.
pub const BLOCKING_THREADS_MAX: usize = 16;

/// After a failed accept.
pub const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// A connection that has not sent enough to tell its protocol for this is dropped.
pub const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a connection that sent part of a preface is looked at.
pub const PREFACE_POLL: Duration = Duration::from_millis(50);

/// An HTTP/1 request whose head is not complete after this is dropped.
pub const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Flow-control window of a client's call.
pub const CLIENT_STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

/// Flow-control window of a client's connection. Large, because h2 ends a connection on which the
/// overhead of small frames that are not read yet is over half of it, at about 240 bytes each: a
/// burst of 30,000 keep-alives still fits.
pub const CLIENT_CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// Bytes of answers that gather while a connection is polled, before some are sent.
pub const CORK_BYTES_MAX: usize = 64 * 1024;

/// More than this in one piece is not copied to gather it: that would cost as much as to send it.
pub const CORK_COPY_BYTES_MAX: usize = 4 * 1024;

/// Calls of a connection that its client took back before they were looked at; with more it is closed.
/// A client whose calls all ran into their deadline while the member stood still is no attack; but each
/// may hold a head of [`HEADER_LIST_BYTES_MAX`].
pub const CLIENT_RESETS_MAX: usize = 1024;

/// File descriptors that connections of clients leave to everything else, or a quarter if there are
/// few.
pub const DESCRIPTORS_RESERVED: u64 = 256;

/// A connection that is silent for so long is asked whether its other end is still there, and again
/// after so long. As in etcd.
pub const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

/// Largest head of a request.
pub const HEADER_LIST_BYTES_MAX: u32 = 64 * 1024;

/// Keys that a Range looks at before it lets go of the state for a moment.
pub const RANGE_STEP_KEYS_MAX: usize = 4096;

/// Aim for the bytes that a Range copies before it lets go of the state for a moment.
pub const RANGE_STEP_BYTES_MAX: usize = 1024 * 1024;

/// Size in bytes of one segment of the log. A record that does not fit gets a segment of its own.
pub const LOG_SEGMENT_BYTES: u64 = 64 * 1024 * 1024;

/// Largest payload in bytes of one record of the log; a larger entry is refused when appended.
pub const LOG_RECORD_BYTES_MAX: usize = 128 * 1024 * 1024;

/// Bytes that wait for the log's writer before `append` waits too (a disk that hangs).
pub const LOG_QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bytes that the log's writer encodes before it writes; a larger batch takes several writes.
pub const LOG_WRITE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes of entries kept in memory; older ones are read back from the segments.
pub const LOG_RING_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes of entries kept in memory right after a start.
pub const LOG_RING_START_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes of entries that one read for replication or apply returns, unless the first is larger.
pub const LOG_READ_BYTES_MAX: usize = 1024 * 1024;

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
