//! Writers that remember what they were told, and the check that it is all there, once.
//!
//! A putter writes each of its keys once, so a write that is applied twice shows as version 2. A
//! counter raises shared numbers by compare-and-swap on what it read, so that two clients told of
//! the same value, or a read that misses what somebody was told before, show at once. Everything
//! runs on the thread of the test; nothing here is `Send`.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use quorate::clock;
use quorate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use quorate::pb::etcdserverpb::kv_client::KvClient;
use quorate::pb::etcdserverpb::request_op::Request;
use quorate::pb::etcdserverpb::{Compare, RequestOp, TxnRequest};
use tonic::transport::Channel;

use super::client::{channel, get, kv, put, read_all, revision};

/// After it a client asks another member; the outcome of what it asked is then unknown.
const DEADLINE: Duration = Duration::from_millis(500);

/// A client that failed asks again after this.
const RETRY: Duration = Duration::from_millis(20);

/// Counters that all counting clients share.
const COUNTERS: usize = 3;

/// How many clients do what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clients {
    /// Clients that write a new key each time.
    pub(crate) putters: usize,
    /// Clients that raise shared counters.
    pub(crate) counters: usize,
}

/// What the clients were told.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Keys whose write was acknowledged, and at which revision.
    puts: BTreeMap<String, i64>,
    /// Keys whose write may or may not have happened.
    doubtful: BTreeSet<String>,
    counters: BTreeMap<String, Counter>,
    /// When each acknowledgement came, in order.
    acks: Vec<Instant>,
}

#[derive(Debug, Default)]
struct Counter {
    /// Values that somebody was told to have reached, and the revisions of those writes.
    reached: BTreeMap<i64, i64>,
    /// Increments that may or may not have happened.
    doubtful: usize,
}

/// A running load.
#[derive(Debug)]
pub(crate) struct Load {
    endpoints: Vec<String>,
    clients: Clients,
    seed: u64,
    stopped: Cell<bool>,
    ledger: RefCell<Ledger>,
    /// The next key of each putter.
    next: RefCell<Vec<u64>>,
}

impl Load {
    /// A load of `clients` on the members at `endpoints`; [`Load::run`] runs it.
    pub(crate) fn new(endpoints: Vec<String>, clients: Clients, seed: u64) -> Load {
        let (stopped, ledger) = (Cell::new(false), RefCell::default());
        let next = RefCell::new(vec![0; clients.putters]);
        Load { endpoints, clients, seed, stopped, ledger, next }
    }

    /// Writes until [`Load::stop`]; may be called again after that, and goes on.
    pub(crate) async fn run(&self) {
        self.stopped.set(false);
        let putters = join_all((0..self.clients.putters).map(|client| self.put_keys(client)));
        let counters = join_all((0..self.clients.counters).map(|client| self.count(client)));
        futures_util::future::join(putters, counters).await;
    }

    /// Ends the clients after the requests that are under way.
    pub(crate) fn stop(&self) {
        self.stopped.set(true);
    }

    /// How many writes were acknowledged.
    pub(crate) fn acknowledged(&self) -> usize {
        self.ledger.borrow().acks.len()
    }

    /// How many writes have an unknown outcome.
    pub(crate) fn doubtful(&self) -> usize {
        let ledger = self.ledger.borrow();
        ledger.doubtful.len() + ledger.counters.values().map(|count| count.doubtful).sum::<usize>()
    }

    /// Waits until `count` more writes are acknowledged.
    pub(crate) async fn until_more(&self, count: usize, patience: Duration) {
        let (enough, deadline) = (self.acknowledged() + count, clock::now() + patience);
        while self.acknowledged() < enough {
            assert!(clock::now() < deadline, "no writes are acknowledged for {patience:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The longest time between two acknowledgements of which the later is in `from..to`.
    pub(crate) fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        let ledger = self.ledger.borrow();
        let pairs = ledger.acks.windows(2).filter(|pair| pair[1] >= from && pair[1] < to);
        pairs.map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    fn connect(&self) -> Vec<KvClient<Channel>> {
        self.endpoints.iter().map(|endpoint| kv(channel(endpoint, DEADLINE))).collect()
    }

    async fn put_keys(&self, client: usize) {
        let mut rng = fastrand::Rng::with_seed(self.seed ^ client as u64);
        let (mut members, mut at) = (self.connect(), client);
        while !self.stopped.get() {
            let number = self.next.borrow()[client];
            self.next.borrow_mut()[client] += 1;
            let key = format!("load/put/{client:02}/{number:08}");
            let value = vec![b'v'; rng.usize(8..600)];
            let count = members.len();
            let answer = members[at % count].put(put(key.clone(), value)).await;
            match answer {
                Ok(answer) => {
                    let at_revision = revision(&answer.into_inner().header);
                    let mut ledger = self.ledger.borrow_mut();
                    ledger.puts.insert(key, at_revision);
                    ledger.acks.push(clock::now());
                }
                Err(_) => {
                    self.ledger.borrow_mut().doubtful.insert(key);
                    at += 1;
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn count(&self, client: usize) {
        let mut rng = fastrand::Rng::with_seed(self.seed ^ (1000 + client as u64));
        let (mut members, mut at) = (self.connect(), client);
        while !self.stopped.get() {
            let key = format!("load/count/{}", rng.usize(..COUNTERS));
            let count = members.len();
            if self.increment(&mut members[at % count], &key).await.is_none() {
                at += 1;
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Reads the counter `key` and raises it by one if nobody else does; `None` after a failure.
    async fn increment(&self, member: &mut KvClient<Channel>, key: &str) -> Option<()> {
        let told = self.told(key);
        let read = member.range(get(key)).await.ok()?.into_inner();
        let (value, at_revision) = match read.kvs.first() {
            Some(kv) => (number(&kv.value), kv.mod_revision),
            None => (0, 0),
        };
        assert!(value >= told, "a linearizable read of {key} gave {value} after {told}");
        let answer = member.txn(replace(key, at_revision, value + 1)).await;
        let mut ledger = self.ledger.borrow_mut();
        let counter = ledger.counters.entry(key.to_owned()).or_default();
        match answer {
            Ok(answer) => {
                let answer = answer.into_inner();
                if answer.succeeded {
                    let twice = counter.reached.insert(value + 1, revision(&answer.header));
                    assert!(twice.is_none(), "two clients raised {key} to {}", value + 1);
                    ledger.acks.push(clock::now());
                }
                Some(())
            }
            Err(_) => {
                counter.doubtful += 1;
                None
            }
        }
    }

    /// The highest value of `key` that somebody was told of.
    fn told(&self, key: &str) -> i64 {
        let ledger = self.ledger.borrow();
        let last = ledger.counters.get(key).and_then(|counter| counter.reached.last_key_value());
        last.map_or(0, |(value, _)| *value)
    }

    /// Panics unless the member at `endpoint` holds every acknowledged write, and none twice.
    pub(crate) async fn check(&self, endpoint: &str) {
        self.check_puts(endpoint).await;
        self.check_counters(endpoint).await;
    }

    async fn check_puts(&self, endpoint: &str) {
        let (_, pages) = read_all(endpoint, "load/put/").await;
        let ledger = self.ledger.borrow();
        let mut missing = ledger.puts.clone();
        for kv in pages.iter().flat_map(|page| &page.kvs) {
            let key = str::from_utf8(&kv.key).expect("the keys of the load are ASCII");
            assert_eq!(kv.version, 1, "{endpoint}: {key} was written once, but applied again");
            match missing.remove(key) {
                Some(told) => assert_eq!(kv.mod_revision, told, "{endpoint}: revision of {key}"),
                None => assert!(ledger.doubtful.contains(key), "{endpoint}: nobody wrote {key}"),
            }
        }
        let (count, first) = (missing.len(), missing.first_key_value());
        assert!(missing.is_empty(), "{endpoint}: {count} acknowledged writes are lost: {first:?}…");
        let revisions: BTreeSet<i64> = ledger.puts.values().copied().collect();
        assert_eq!(revisions.len(), ledger.puts.len(), "two writes were told the same revision");
    }

    async fn check_counters(&self, endpoint: &str) {
        let (_, pages) = read_all(endpoint, "load/count/").await;
        let ledger = self.ledger.borrow();
        let found: BTreeMap<&str, _> = pages
            .iter()
            .flat_map(|page| &page.kvs)
            .map(|kv| (str::from_utf8(&kv.key).expect("the keys of the load are ASCII"), kv))
            .collect();
        for (key, counter) in &ledger.counters {
            let told = counter.reached.len() as i64;
            let (value, version) =
                found.get(&**key).map_or((0, 0), |kv| (number(&kv.value), kv.version));
            assert_eq!(value, version, "{endpoint}: {key} rises by one with every write");
            let possible = told..=told + counter.doubtful as i64;
            assert!(possible.contains(&value), "{endpoint}: {key} is {value}, not in {possible:?}");
        }
    }
}

fn number(value: &[u8]) -> i64 {
    let text = str::from_utf8(value).expect("a counter is text");
    text.parse().expect("a counter is a number")
}

/// A txn that sets `key` to `value` if it was last changed at `at_revision` (0: does not exist).
fn replace(key: &str, at_revision: i64, value: i64) -> TxnRequest {
    let compare = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key.as_bytes().to_vec().into(),
        target_union: Some(TargetUnion::ModRevision(at_revision)),
        ..Compare::default()
    };
    let request = Some(Request::RequestPut(put(key, value.to_string())));
    TxnRequest {
        compare: vec![compare],
        success: vec![RequestOp { request }],
        ..TxnRequest::default()
    }
}
