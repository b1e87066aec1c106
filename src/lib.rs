//! Quorate: a strongly consistent, replicated key-value store that speaks the etcd v3 API.
//!
//! This is the library behind two programs: `quorate`, the server, and `quoratectl`, the client. It is
//! a crate of its own so that the tests can reach in; it promises no stable interface. What is
//! built, what is not, and why things are as they are stands in `ARCHITECTURE.md`.
//!
//! # Map
//!
//! Imports point downwards only, which `tests/tidy.rs` checks.
//!
//! | module | what it is |
//! |---|---|
//! | [`server`] | opens the files, binds the ports, starts the threads, stops in order |
//! | [`api`] | the etcd door: gRPC calls in, answers, codes and texts out |
//! | [`member`] | the handle that every door holds: propose, pass a read barrier, look at the state |
//! | [`raft`] | consensus: openraft with our disk, network and state machine; snapshots |
//! | [`watch`] | who wants to know which change, and how it reaches them |
//! | [`wal`] | the durable log, the one thing that answers stand on |
//! | [`state`] | the pure core: what one log entry changes, and what can be read |
//! | [`storage`] | ordered bytes on disk, which log and peers can restore |
//!
//! Beside them: [`config`] reads etcd's flags, [`data_dir`] guards the files, [`identity`] computes etcd's
//! ids, [`limits`] names every bound, [`tasks`] starts every thread and task, [`clock`] reads every clock,
//! [`logging`] and [`metrics`] report in etcd's shapes, [`release`] says which etcd we stand in for,
//! [`pb`] holds the messages of `proto/`, and [`mutants`] breaks promises for tests that must notice.
//!
//! # The life of a Put
//!
//! ```text
//!  api       Api::call ─ decode, check the shape
//!  member    Member::propose ─ queue ─ all that waits becomes one group      (a follower's goes to
//!  raft      Node::write ─ openraft ─┬─ LogStore ─ wal: one write, one flush    the leader)
//!                                    └─ Network ─ the other members' logs
//!            ... a majority has it on disk, and so have we ...
//!            StateMachine ─ State::apply ─ index, storage batch, answers
//!            Observer ─ the member whose clients wait finds its group
//!  member    Shard ─ one batch of replies a serving thread
//!  api       encode ─ the answer's frame and the trailers
//! ```
//!
//! A linearizable read goes [`Member::read_barrier`], [`Member::state`], [`State::range`], and never
//! through the log. A serializable one leaves out the barrier.
//!
//! # What always holds
//!
//! 1. **An answer means on disk at a majority.** Only the log is acknowledged from; a failed flush ends the
//!    process and is never tried again ([`wal`]).
//! 2. **A member applies only what its own disk has**, so its state never runs ahead of its log ([`raft`]).
//! 3. **The same log gives the same bytes and the same answers everywhere**, refusals included. Time comes
//!    in with the entry ([`state`]).
//! 4. **An entry's position commits in one batch with what it changed.** After any crash the storage is an
//!    exact prefix of the commits, and the log goes on where it ends ([`storage`]).
//! 5. **Nothing is applied twice**: a write is proposed again only if it certainly reached no log
//!    ([`member`]).
//! 6. **A linearizable read sees every write that was answered before it began**, on every member
//!    ([`member`], [`raft::SoleVoter`]).
//! 7. **Applying waits for nobody**: no client, reader or peer, only its own storage ([`raft`]).
//! 8. **Everything that can grow has a bound**, and somebody who is told when it is reached ([`limits`]).
//! 9. **In doubt it stops.** Damage to what was acknowledged is refused at start with the file and the
//!    remedy; a member that cannot go on ends its process ([`tasks`], [`data_dir`]).
//!
//! [`Member::read_barrier`]: member::Member::read_barrier
//! [`Member::state`]: member::Member::state
//! [`State::range`]: state::State::range

pub mod api;
pub mod clock;
pub mod config;
pub mod data_dir;
pub mod identity;
pub mod limits;
pub mod logging;
pub mod member;
pub mod metrics;
pub mod mutants;
pub mod pb;
pub mod raft;
pub mod release;
pub mod server;
pub mod state;
pub mod storage;
pub mod tasks;
pub mod wal;
pub mod watch;

#[cfg(test)]
#[path = "../tests/support/fuzz.rs"]
mod fuzz;
