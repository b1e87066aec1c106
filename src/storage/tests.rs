//! One suite for every backend: whatever the disk does, it must look like [`Memory`].

use std::{ops::ControlFlow, sync::Arc};

use super::{Backend, Batch, memory::Memory, sled::SledBackend, sled::SledOptions};

/// Every pair of the store.
pub(super) fn all(store: &dyn Backend) -> Vec<(Vec<u8>, Vec<u8>)> {
    pairs(store, b"", b"\xff\xff")
}

fn pairs(store: &dyn Backend, start: &[u8], end: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut pairs = Vec::new();
    let mut visit = |key: &[u8], value: &[u8]| {
        pairs.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    };
    store.scan(start, end, &mut visit).unwrap();
    pairs
}

/// The seed of a random test, from `QUORATE_SEED` if set; printed so that a failure can be rerun.
pub(super) fn seed() -> u64 {
    let seed = std::env::var("QUORATE_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("QUORATE_SEED={seed}");
    seed
}

fn with_each_backend(test: impl Fn(&dyn Backend)) {
    test(&Memory::new());
    let dir = tempfile::tempdir().unwrap();
    test(&SledBackend::open(dir.path(), SledOptions::default()).unwrap());
}

#[test]
fn commit_when_returned_is_visible_and_later_writes_win() {
    with_each_backend(|store| {
        let mut batch = Batch::default();
        batch.put("a", "1");
        batch.put("b", "1");
        batch.put("a", "2");
        batch.remove("b");
        store.commit(batch).unwrap();
        assert_eq!(store.get(b"a").unwrap().unwrap(), "2");
        assert_eq!(store.get(b"b").unwrap(), None);
        store.checkpoint().unwrap();
        assert_eq!(all(store), vec![(b"a".to_vec(), b"2".to_vec())]);
    });
}

#[test]
fn scan_when_bounded_or_broken_off_visits_exactly_that() {
    with_each_backend(|store| {
        for settled in [true, false] {
            let mut batch = Batch::default();
            for i in 0..10_000_u32 {
                if (i % 2 == 0) == settled {
                    batch.put(i.to_be_bytes().to_vec(), "value");
                }
            }
            store.commit(batch).unwrap();
            if settled {
                store.checkpoint().unwrap();
            }
        }
        let found = pairs(store, &7_u32.to_be_bytes(), &9_003_u32.to_be_bytes());
        let expected: Vec<_> = (7..9_003_u32).map(|i| i.to_be_bytes().to_vec()).collect();
        assert_eq!(found.into_iter().map(|(key, _)| key).collect::<Vec<_>>(), expected);
        assert!(pairs(store, b"b", b"a").is_empty());
        let mut left = 5;
        let mut visit = |_: &[u8], _: &[u8]| {
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        store.scan(b"", b"\xff", &mut visit).unwrap();
        assert_eq!(left, 0);
    });
}

#[test]
fn random_batches_look_the_same_in_every_backend_and_after_reopening() {
    let mut random = fastrand::Rng::with_seed(seed());
    let dir = tempfile::tempdir().unwrap();
    let options =
        SledOptions { reopen_bytes: 100_000, flush_writes_max: 2_000, ..SledOptions::default() };
    let memory = Memory::new();
    for _ in 0..3 {
        let store = SledBackend::open(dir.path(), options.clone()).unwrap();
        assert_eq!(all(&store), all(&memory));
        for _ in 0..300 {
            let mut batch = Batch::default();
            for _ in 0..random.usize(0..100) {
                let key = random.u16(0..5_000).to_be_bytes().to_vec();
                match random.u8(0..3) {
                    0 => batch.remove(key),
                    _ => batch.put(key, vec![random.u8(..); random.usize(0..300)]),
                }
            }
            memory.commit(batch.clone()).unwrap();
            store.commit(batch).unwrap();
            let key = random.u16(0..5_000).to_be_bytes();
            assert_eq!(store.get(&key).unwrap(), memory.get(&key).unwrap());
            if random.u8(0..20) == 0 {
                let (a, b) = (random.u16(..).to_be_bytes(), random.u16(..).to_be_bytes());
                assert_eq!(pairs(&store, &a, &b), pairs(&memory, &a, &b));
            }
        }
        assert_eq!(all(&store), all(&memory));
    }
}

#[test]
fn readers_when_a_counter_rises_never_see_it_fall() {
    let dir = tempfile::tempdir().unwrap();
    let options =
        SledOptions { reopen_bytes: 200_000, flush_writes_max: 1_000, ..SledOptions::default() };
    let store = Arc::new(SledBackend::open(dir.path(), options).unwrap());
    let read = |store: &SledBackend| {
        let value = store.get(b"counter").unwrap();
        value.map_or(0, |value| u64::from_be_bytes(value[..].try_into().unwrap()))
    };
    const COMMITS: u64 = 20_000;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut last = 0;
                while last < COMMITS {
                    let now = read(&store);
                    assert!(now >= last, "{now} after {last}");
                    // A commit is visible as a whole once its counter is.
                    if now > 0 {
                        assert!(store.get(&now.to_be_bytes()).unwrap().is_some());
                    }
                    last = now;
                }
            });
        }
        for i in 1..=COMMITS {
            let mut batch = Batch::default();
            batch.put(i.to_be_bytes().to_vec(), vec![1; 100]);
            batch.put("counter", i.to_be_bytes().to_vec());
            store.commit(batch).unwrap();
            assert_eq!(read(&store), i);
        }
    });
}
