//! What clients do to a cluster, drawn from a seed, through whatever [`Door`] leads to it.

#![allow(dead_code, reason = "the generators come next")]

use std::cell::{Cell, RefCell};
use std::time::Duration;

use fastrand::Rng;
use futures_util::future::join_all;
use quorate::pb::etcdserverpb::{PutRequest, RangeRequest, WatchCreateRequest, WatchResponse};

use super::history::{Call, History, Op, Outcome};

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
    /// Clients that get, put, replace and delete a few hot keys.
    pub(crate) registers: usize,
    /// The longest pause between two calls of a client.
    pub(crate) pause_max: Duration,
}

impl Default for Mix {
    fn default() -> Mix {
        Mix { registers: 4, pause_max: Duration::from_millis(5) }
    }
}

/// Clients that run until they are told to stop.
///
/// `run` is driven by the test beside its faults; afterwards, with everything healed, `stop` lets the
/// clients end what they do, read everything once more, and `run` returns. The history can be looked
/// at any time, also when `run` was given up.
pub(crate) struct Workload {
    seed: u64,
    mix: Mix,
    stopped: Cell<bool>,
    history: RefCell<History>,
}

impl Workload {
    /// Clients as in `mix`, who draw what they do from `seed`.
    pub(crate) fn new(seed: u64, mix: Mix) -> Workload {
        let history = RefCell::default();
        Workload { seed, mix, stopped: Cell::new(false), history }
    }

    /// Runs all clients; `open(n)` makes the `n`th door, which stands at member `n` modulo members.
    pub(crate) async fn run<D: Door>(&self, open: impl Fn(usize) -> D) {
        let clients = (0..self.mix.registers).map(|number| {
            let client = Client { number, door: open(number), history: &self.history };
            let rng = Rng::with_seed(self.seed.wrapping_add(number as u64));
            self.registers(client, rng)
        });
        join_all(clients).await;
    }

    /// Lets `run` come to its end; everything is healed.
    pub(crate) fn stop(&self) {
        self.stopped.set(true);
    }

    /// What was seen so far.
    pub(crate) fn history(&self) -> &RefCell<History> {
        &self.history
    }

    async fn registers<D: Door>(&self, client: Client<'_, D>, mut rng: Rng) {
        for number in 0_u64.. {
            if self.stopped.get() {
                return;
            }
            let key = format!("r/{}", rng.usize(..5)).into();
            let op = if rng.bool() {
                let value = format!("{}.{number}", client.number).into();
                Op::Put(PutRequest { key, value, ..PutRequest::default() })
            } else {
                Op::Range(RangeRequest { key, ..RangeRequest::default() })
            };
            if let Outcome::Unknown(_) = client.call(op).await {
                client.door.turn();
            }
            client.door.sleep(self.mix.pause_max.mul_f64(rng.f64())).await;
        }
    }
}
