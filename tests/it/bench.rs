//! What the state and the watchers cost. Not a test: `cargo test --release --test it bench -- --ignored --nocapture`.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use quorate::pb::etcdserverpb::{PutRequest, RangeRequest};
use quorate::pb::quorate::command::Command;
use quorate::pb::quorate::command::command::Body;
use quorate::state::{Options, Position, State};
use quorate::storage::{Backend, Batch, StorageError};
use quorate::watch::{Delivery, Feed, Hub, Keys, Revisions, WatchRequest, WatchStream};

/// A storage that forgets.
#[derive(Debug, Default)]
struct Nothing;

impl Backend for Nothing {
    fn get(&self, _key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        Ok(None)
    }

    fn scan(
        &self,
        _start: &[u8],
        _end: &[u8],
        _visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        Ok(())
    }

    fn commit(&self, batch: Batch) -> Result<(), StorageError> {
        drop(black_box(batch));
        Ok(())
    }

    fn checkpoint(&self) -> Result<(), StorageError> {
        Ok(())
    }

    fn backlog_bytes(&self) -> usize {
        0
    }

    fn size_bytes(&self) -> u64 {
        0
    }
}

const WATCHERS: u64 = 10_000;
const STREAMS: u64 = 100;
const WATCHED_KEYS: u64 = 100;

/// Half of the puts match; each of those has 100 watchers, as in `benches/compare.py`.
#[test]
#[ignore = "measures, proves nothing"]
fn bench_watch() {
    let options = Options { value_cache_bytes: 64 << 20 };
    let mut state = State::open(Arc::new(Nothing), options).unwrap();
    let feed = Feed::new(1, state.revision(), 8 << 20);
    let hub = Hub::new(&feed, 0);
    let streams: Vec<_> = (0..STREAMS).map(|_| WatchStream::open(&hub, 1 << 20)).collect();
    for (number, stream) in (0..WATCHERS).zip(streams.iter().cycle()) {
        let keys = Keys::new(&(number / STREAMS % WATCHED_KEYS).to_be_bytes(), b"");
        let now = Revisions { current: state.revision(), compact: 0 };
        stream.create(WatchRequest::new(keys, 0), now).unwrap();
    }
    let value = Bytes::from(vec![7; 256]);
    let (mut delivered, mut nanos, mut out) = (0, 0, Vec::new());
    for index in 1..=2000_u64 {
        let command = |number: u64| {
            let key = Bytes::from((number % (2 * WATCHED_KEYS)).to_be_bytes().to_vec());
            let put = PutRequest { key, value: value.clone(), ..Default::default() };
            Command { body: Some(Body::Put(put)) }
        };
        let commands: Vec<_> = (index * 16..index * 16 + 16).map(command).collect();
        let applied = state.apply(Position { index, term: 1, leader: 1 }, 0, &commands).unwrap();
        let events = applied.into_iter().flat_map(|applied| applied.events).collect();
        let start = now_nanos();
        feed.publish(events, |_, news| hub.take(news));
        for stream in &streams {
            while let Some(delivery) = stream.try_next() {
                delivered += write(black_box(delivery), &mut out);
            }
        }
        nanos += now_nanos() - start;
    }
    eprintln!("  {} ns an event, {delivered} delivered", nanos / delivered);
}

/// Copies what a client is sent; tells how many events that are.
fn write(delivery: Delivery, out: &mut Vec<u8>) -> u64 {
    let Delivery::Events { events, prev_after, .. } = delivery else { return 0 };
    out.clear();
    for event in events.as_slice() {
        for (copied, shared) in event.frame(prev_after).parts() {
            out.extend_from_slice(copied);
            out.extend_from_slice(shared);
        }
    }
    black_box(out);
    events.as_slice().len() as u64
}

/// Puts `count` keys of 8 bytes, 64 an entry; `scatter` spreads them over the key space.
fn put_all(state: &mut State<Nothing>, count: u64, scatter: u64) {
    let value = Bytes::from(vec![7; 256]);
    let last = state.applied().map_or(0, |position| position.index);
    let mut nanos = 0;
    for (index, first) in (last + 1..).zip((0..count).step_by(64)) {
        let command = |number: u64| {
            let key = Bytes::from(number.wrapping_mul(scatter).to_be_bytes().to_vec());
            let put = PutRequest { key, value: value.clone(), ..Default::default() };
            Command { body: Some(Body::Put(put)) }
        };
        let commands: Vec<_> = (first..(first + 64).min(count)).map(command).collect();
        let start = now_nanos();
        black_box(state.apply(Position { index, term: 1, leader: 1 }, 0, &commands).unwrap());
        nanos += now_nanos() - start;
    }
    eprintln!("  {} ns a put", nanos / count);
}

#[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
fn now_nanos() -> u64 {
    use std::sync::OnceLock;
    use std::time::Instant;
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn get_all(state: &State<Nothing>, count: u64, scatter: u64) {
    let key = |number: u64| Bytes::from((number * 7919 % count * scatter).to_be_bytes().to_vec());
    let request = |number| RangeRequest { key: key(number), ..Default::default() };
    let requests: Vec<_> = (0..100_000).map(request).collect();
    let start = now_nanos();
    let hot = requests.iter().map(|request| state.range(request).unwrap());
    let hot = hot.filter(|plan| black_box(plan).is_hot()).count();
    let nanos = (now_nanos() - start) / requests.len() as u64;
    eprintln!("  {nanos} ns a planned range, {hot} of {} hot", requests.len());
}

#[test]
#[ignore = "measures, proves nothing"]
fn bench() {
    for (name, scatter) in [("ascending", 1), ("scattered", 0x9e37_79b9_7f4a_7c15_u64)] {
        for cache in [0, 64 << 20, 1 << 30] {
            let before = resident_bytes();
            let options = Options { value_cache_bytes: cache };
            let mut state = State::open(Arc::new(Nothing), options).unwrap();
            eprintln!("1,000,000 keys, {name}, {} MiB of pairs in memory", cache >> 20);
            put_all(&mut state, 1_000_000, scatter);
            let used = resident_bytes().saturating_sub(before + state.cached_bytes() as u64);
            eprintln!("  {} bytes a key besides cached pairs", used / 1_000_000);
            if scatter == 1 {
                get_all(&state, 1_000_000, scatter);
            }
            put_all(&mut state, 1_000_000, scatter);
        }
    }
}
