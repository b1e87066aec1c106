//! What clients do to a cluster, drawn from a seed, through whatever [`Door`] leads to it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, join, join_all};
use quorate::pb::etcdserverpb::{RangeRequest, WatchCreateRequest, WatchResponse};

use super::history::{Call, History, Op, Outcome, Reply, Watched};

mod holders;
mod lists;
mod pairs;
pub(crate) mod request;
mod watchers;

use watchers::Seat;

/// After a failure a client waits so long.
const FAILURE_PAUSE: Duration = Duration::from_millis(50);

/// The way of one client to the cluster: a simulated network or real connections.
///
/// The futures run on the thread of the test and need not be `Send`.
pub(crate) trait Door {
    /// A stream with one watcher.
    type Watch: WatchStream;

    /// The time since the begin of the run; one clock for all doors.
    fn now(&self) -> Duration;

    /// Waits on that clock.
    async fn sleep(&self, time: Duration);

    /// Asks the member at which the door stands, once: what failed is never tried again inside.
    /// Ends in bounded time.
    async fn call(&self, op: Op) -> Outcome;

    /// Opens a stream with one watcher at the member at which the door stands; a failure to open
    /// shows as a stream that ends.
    fn watch(&self, request: WatchCreateRequest) -> Self::Watch;

    /// Makes the door stand at another member.
    fn turn(&self);
}

/// A stream with one watcher; dropping it cancels the watcher.
pub(crate) trait WatchStream {
    /// The next response; `None` when the stream has ended or broken. Loses nothing when its future is
    /// dropped.
    async fn next(&mut self) -> Option<WatchResponse>;

    /// Asks for a progress mark.
    fn request_progress(&mut self);
}

/// A client: a door and the history that remembers what came of its calls.
pub(crate) struct Client<'h, D> {
    pub(crate) number: usize,
    pub(crate) door: D,
    pub(crate) history: &'h RefCell<History>,
}

impl<D: Door> Client<'_, D> {
    /// Calls and remembers. A call whose future is dropped is remembered as unknown.
    pub(crate) async fn call(&self, op: Op) -> Outcome {
        let called_at = self.door.now();
        let mut pending = Pending { client: self, op: Some(op.clone()), called_at };
        let outcome = self.door.call(op).await;
        pending.end(outcome.clone());
        outcome
    }
}

/// Remembers a call also when nobody waits for its end.
struct Pending<'c, 'h, D: Door> {
    client: &'c Client<'h, D>,
    op: Option<Op>,
    called_at: Duration,
}

impl<D: Door> Pending<'_, '_, D> {
    fn end(&mut self, outcome: Outcome) {
        if let Some(op) = self.op.take() {
            let (client, called_at) = (self.client.number, self.called_at);
            let returned_at = self.client.door.now();
            let call = Call { client, op, called_at, returned_at, outcome };
            self.client.history.borrow_mut().calls.push(call);
        }
    }
}

impl<D: Door> Drop for Pending<'_, '_, D> {
    fn drop(&mut self) {
        self.end(Outcome::Unknown("nobody waited for the answer".to_owned()));
    }
}

/// How many clients do what, and how fast.
#[derive(Debug, Clone)]
pub(crate) struct Mix {
    /// Members; door `n` stands at member `n` modulo this.
    pub(crate) members: usize,
    /// Clients that get, put, replace and delete a few hot keys.
    pub(crate) registers: usize,
    /// Clients that change several keys at once.
    pub(crate) txns: usize,
    /// Clients that append to several lists at once.
    pub(crate) appenders: usize,
    /// Clients that read ranges, stale and past ones as well.
    pub(crate) readers: usize,
    /// Clients that hold leases, and let them end.
    pub(crate) leases: usize,
    /// Clients that want the same lock.
    pub(crate) locks: usize,
    /// Watchers of some keys, beside those of all keys at each member.
    pub(crate) watchers: usize,
    /// Whether history is compacted, behind the watchers of all keys.
    pub(crate) compacts: bool,
    /// The longest pause between two calls of a client.
    pub(crate) pause_max: Duration,
    /// The TTL of the shortest leases, in seconds; at least as long as the server grants.
    pub(crate) ttl_seconds_min: i64,
    /// Now and then a value is this long.
    pub(crate) value_bytes_max: usize,
}

impl Default for Mix {
    /// A little of everything on three members.
    fn default() -> Mix {
        Mix {
            members: 3,
            registers: 3,
            txns: 2,
            appenders: 3,
            readers: 2,
            leases: 2,
            locks: 2,
            watchers: 3,
            compacts: true,
            pause_max: Duration::from_millis(10),
            ttl_seconds_min: 2,
            value_bytes_max: 3000,
        }
    }
}

/// Clients that run until they are told to stop.
///
/// `run` is driven by the test beside its faults; afterwards, with everything healed, `stop` lets the
/// clients end what they do and read everything at each member once more; when all watchers have seen
/// that, `run` returns. The history can be looked at any time, also when `run` was given up.
pub(crate) struct Workload {
    seed: u64,
    mix: Mix,
    stopped: Cell<bool>,
    /// The last revision that watchers have to see.
    last: Cell<Option<i64>>,
    history: RefCell<History>,
    /// For values and keys that nobody else has.
    next_number: Cell<u64>,
    /// Up to where each watcher of all keys has seen everything.
    floors: RefCell<BTreeMap<usize, i64>>,
    /// The newest revision that a client was told of.
    newest: Cell<i64>,
    /// The newest revision that was compacted, as far as a client was told.
    compacted: Cell<i64>,
    /// Which generation of each list is appended to.
    generations: RefCell<[u64; LISTS]>,
}

/// Lists that are appended to at a time.
const LISTS: usize = 3;

impl Workload {
    /// Clients as in `mix`, who draw what they do from `seed`.
    pub(crate) fn new(seed: u64, mix: Mix) -> Workload {
        Workload {
            seed,
            mix,
            stopped: Cell::new(false),
            last: Cell::new(None),
            history: RefCell::default(),
            next_number: Cell::new(0),
            floors: RefCell::default(),
            newest: Cell::new(0),
            compacted: Cell::new(0),
            generations: RefCell::default(),
        }
    }

    /// Runs all clients; `open(n)` makes the `n`th door, which stands at member `n` modulo members.
    pub(crate) async fn run<D: Door>(&self, open: impl Fn(usize) -> D) {
        let base = self.history.borrow().base.revision;
        let mut rng = Rng::with_seed(self.seed);
        let number = Cell::new(0);
        let next = || {
            let client = number.replace(number.get() + 1);
            Client { number: client, door: open(client), history: &self.history }
        };
        let mut clients: Vec<LocalBoxFuture<'_, ()>> = Vec::new();
        let mix = &self.mix;
        clients
            .extend((0..mix.registers).map(|_| self.registers(next(), rng.fork()).boxed_local()));
        clients.extend((0..mix.txns).map(|_| self.txns(next(), rng.fork()).boxed_local()));
        clients.extend((0..mix.appenders).map(|_| self.appends(next(), rng.fork()).boxed_local()));
        clients.extend((0..mix.readers).map(|_| self.reads(next(), rng.fork()).boxed_local()));
        clients.extend((0..mix.leases).map(|_| self.leases(next(), rng.fork()).boxed_local()));
        clients.extend((0..mix.locks).map(|_| self.locks(next(), rng.fork()).boxed_local()));
        let compactors = usize::from(mix.compacts);
        clients.extend((0..compactors).map(|_| self.compacts(next(), rng.fork()).boxed_local()));
        let mut watchers: Vec<LocalBoxFuture<'_, ()>> = Vec::new();
        for watcher in 0..mix.members + mix.watchers {
            self.history.borrow_mut().watches.push(Watched { watcher, streams: Vec::new() });
            let request = self.draw_watch(watcher < mix.members, &mut rng);
            let is_reference = watcher < mix.members;
            if is_reference {
                self.floors.borrow_mut().insert(watcher, base);
            }
            let seat = Seat { watcher, request, is_reference };
            watchers.push(self.watch(open(watcher), seat, rng.fork()).boxed_local());
        }
        let ended = async {
            join_all(clients).await;
            self.finish((0..mix.members).map(|_| next()).collect()).await;
        };
        join(ended, join_all(watchers)).await;
    }

    /// Lets `run` come to its end; everything is healed.
    pub(crate) fn stop(&self) {
        self.stopped.set(true);
    }

    /// What was seen so far.
    pub(crate) fn history(&self) -> &RefCell<History> {
        &self.history
    }

    /// Everything that was seen.
    pub(crate) fn into_history(self) -> History {
        self.history.into_inner()
    }

    /// A number that was not drawn before.
    fn number(&self) -> u64 {
        self.next_number.replace(self.next_number.get() + 1)
    }

    /// A value that nobody else writes.
    fn value(&self, rng: &mut Rng) -> Bytes {
        let mut value = format!("v{}", self.number());
        if rng.u8(..16) == 0 {
            let padding = rng.usize(..=self.mix.value_bytes_max);
            value.extend(std::iter::repeat_n('.', padding));
        }
        value.into()
    }

    /// Calls, goes to another member after a failure, and pauses.
    async fn call<D: Door>(&self, client: &Client<'_, D>, rng: &mut Rng, op: Op) -> Option<Reply> {
        let outcome = client.call(op).await;
        let reply = match outcome {
            Outcome::Ok(reply) => {
                self.newest.set(self.newest.get().max(reply.revision()));
                Some(reply)
            }
            Outcome::Refused(_) => None,
            Outcome::Unknown(_) => {
                client.door.turn();
                client.door.sleep(FAILURE_PAUSE).await;
                None
            }
        };
        client.door.sleep(self.mix.pause_max.mul_f64(rng.f64())).await;
        reply
    }

    /// Reads everything at every member, from its leader and from itself, until that succeeds.
    async fn finish<D: Door>(&self, clients: Vec<Client<'_, D>>) {
        for client in clients {
            for serializable in [false, true] {
                let all = RangeRequest { serializable, ..request::all() };
                while client.call(Op::Range(all.clone())).await.reply().is_none() {
                    client.door.sleep(FAILURE_PAUSE).await;
                }
            }
        }
        let history = self.history.borrow();
        self.last.set(history.calls.iter().filter_map(|call| call.revision()).max());
    }
}
