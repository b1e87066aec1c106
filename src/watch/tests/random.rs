//! Random traffic against a plain list of all events.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use super::{Member, delete, put};
use crate::pb::etcdserverpb::CompactionRequest;
use crate::pb::quorate::command::command::Body;
use crate::state::{CompactStep, Event, EventKind};
use crate::watch::{Delivery, Keys, WatchRequest, WatchStream};

/// Random changes, watchers, slow readers, compactions and snapshots, and a thread that is late;
/// every watcher must get exactly what a list of all events says, before it is told of progress.
#[test]
fn random_traffic_reaches_every_watcher_once_and_in_order() {
    let seed = std::env::var("QUORATE_SEED")
        .map_or_else(|_| fastrand::u64(..), |text| text.parse().unwrap());
    eprintln!("QUORATE_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..60 {
        random_life(&mut rng);
    }
}

struct Seen {
    keys: Keys,
    start: i64,
    events: Vec<(i64, u32)>,
}

impl Seen {
    /// It has what it should have up to `revision`.
    fn compare(&self, all: &[Event], revision: i64) {
        let is_wanted = |event: &&Event| {
            (self.start..=revision).contains(&event.revision.main) && self.keys.contains(&event.key)
        };
        let wanted = all.iter().filter(is_wanted);
        let wanted: Vec<(i64, u32)> =
            wanted.map(|event| (event.revision.main, event.revision.sub)).collect();
        assert_eq!(self.events, wanted, "watcher of {:?} from {}", self.keys, self.start);
    }
}

fn random_life(rng: &mut fastrand::Rng) {
    let member = Member::new(rng.usize(0..4000), rng.usize(0..40));
    let streams: Vec<WatchStream> =
        (0..3).map(|_| WatchStream::open(&member.hub, rng.usize(100..3000))).collect();
    let mut all: Vec<Event> = Vec::new();
    let mut seen: BTreeMap<(usize, i64), Seen> = BTreeMap::new();
    let key = |rng: &mut fastrand::Rng| char::from(rng.u8(b'a'..b'h')).to_string();
    for _ in 0..300 {
        match rng.u8(..20) {
            0..8 => {
                let bodies = (0..rng.usize(1..4)).map(|_| match rng.u8(..4) {
                    0 => delete(&key(rng), &key(rng)),
                    _ => put(&key(rng), "value"),
                });
                all.extend(member.change(bodies.collect()));
            }
            8 => {
                for _ in 0..rng.usize(1..4) {
                    all.extend(member.apply(vec![put(&key(rng), "unpublished")]));
                }
                member.feed.resync(member.now().current, |_, news| member.post(news));
            }
            9..12 => {
                let stream = rng.usize(..3);
                let end = if rng.bool() { String::new() } else { key(rng) };
                let from = key(rng);
                let Some(keys) = Keys::new(from.as_bytes(), end.as_bytes()) else { continue };
                let start = rng.i64(0..=member.now().current + 2);
                let request = WatchRequest::new(Some(keys.clone()), start).with_prev_kv(rng.bool());
                let created = streams[stream].create(request, member.now()).unwrap();
                let start = if start == 0 { created.revision + 1 } else { start };
                seen.insert((stream, created.id), Seen { keys, start, events: vec![] });
            }
            12 if rng.u8(..4) == 0 => {
                let now = member.now();
                let revision = rng.i64(now.compact.max(0)..=now.current);
                let compact = CompactionRequest { revision, physical: false };
                member.apply(vec![Body::Compact(compact)]);
                while member.state.lock().compact_step(10).unwrap() == CompactStep::More {}
            }
            12 => {
                let late = rng.u8(..3) > 0;
                member.is_busy.store(late, Relaxed);
                member.take_news(if late { rng.usize(..9) } else { usize::MAX });
            }
            13 => streams[rng.usize(..3)].request_progress(member.now().current),
            14..16 => member.settle(),
            _ => {
                let stream = rng.usize(..3);
                for _ in 0..rng.usize(1..20) {
                    let Some(delivery) = streams[stream].try_next() else { break };
                    see(&mut seen, &all, stream, delivery);
                }
            }
        }
    }
    member.is_busy.store(false, Relaxed);
    member.take_news(usize::MAX);
    for _ in 0..1000 {
        member.settle();
        for (number, stream) in streams.iter().enumerate() {
            while let Some(delivery) = stream.try_next() {
                see(&mut seen, &all, number, delivery);
            }
        }
    }
    assert_eq!(member.feed.totals().slow_watchers, 0);
    seen.values().for_each(|seen| seen.compare(&all, i64::MAX));
}

fn see(seen: &mut BTreeMap<(usize, i64), Seen>, all: &[Event], stream: usize, delivery: Delivery) {
    match delivery {
        Delivery::Events { watch_id, revision, events, prev_after, .. } => {
            let seen = seen.get_mut(&(stream, watch_id)).unwrap();
            for event in events.as_slice() {
                let event = event.event();
                assert!(event.revision.main <= revision);
                seen.events.push((event.revision.main, event.revision.sub));
                let is_plain =
                    event.is_create() || event.kind == EventKind::Put && event.version == 1;
                assert!(
                    event.revision.main <= prev_after
                        || is_plain
                        || event.prev.is_none()
                        || event.prev_kv.is_some()
                );
            }
        }
        Delivery::Compacted { watch_id, .. } => {
            seen.remove(&(stream, watch_id)).unwrap();
        }
        Delivery::Progress { revision, .. } => {
            let of_stream = seen.iter().filter(|((number, _), _)| *number == stream);
            of_stream.for_each(|(_, seen)| seen.compare(all, revision));
        }
    }
}
