//! Three and five members as real processes, under everything that goes wrong in a machine room, with
//! a workload whose history is judged.
//!
//! Phases follow each other: faults drawn from the seed, some one at a time, most of them mixed; then
//! everything is healed, each member must take a write within a bound, and all must have the same data.
//! `support/ordeal` says how the faults are done. Those of the network and full disks need root and
//! namespaces; without, they are skipped with a sentence.
//!
//! | variable | meaning |
//! |---|---|
//! | `QUORATE_ORDEAL_MINUTES` | minutes in all, half with three members and half with five; else seconds |
//! | `QUORATE_ORDEAL_FAULTS` | only faults whose names contain one of these, as in `clock,full disk` |
//! | `QUORATE_SEED` | the seed that a failed run printed: the same faults and clients, not the same moments |
//! | `QUORATE_TEST_SERVER` | the binary to test instead of our own |

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures_util::future::join3;
use quorate::clock;
use quorate::pb::etcdserverpb::HashKvRequest;

use crate::support::client::{channel, get, kv, maintenance, put, revision};
use crate::support::history::{History, Op, Outcome};
use crate::support::judges::judge;
use crate::support::judges::lease::Patience;
use crate::support::ordeal::door::RealDoor;
use crate::support::ordeal::faults::{Fault, Kind, Nemesis, plan};
use crate::support::ordeal::fleet::Fleet;
use crate::support::ordeal::machine::run;
use crate::support::ordeal::network::{Badness, Cut};
use crate::support::ordeal::report::{Report, is_acknowledged_write};
use crate::support::workload::{Client, Door, Mix, Workload};
use crate::support::{BUSY, number, seed};

/// How long after all faults ended each member may take until it takes a write.
const RECOVERY_MAX: Duration = Duration::from_secs(60);

/// How long one fault that leaves a healthy majority may keep all clients from writing.
const OUTAGE_MAX: Duration = Duration::from_secs(30);

/// How often the members are asked for a common hash, while compactions go on.
const HASH_TRIES_MAX: usize = 50;

/// Clients of our own, beside those of the workload.
const ALIVE_CLIENT: usize = 9_000;
const BULK_CLIENT: usize = 9_900;

/// What fills the log while a disk is full.
const BULK_BYTES: usize = 16_000;
const BULK_PAUSE: Duration = Duration::from_millis(15);

/// How much time there is, and how it is spent.
struct Pace {
    /// After it no phase begins.
    all: Duration,
    /// How long the faults of a phase go on.
    span: Duration,
    /// How many kinds of faults are mixed.
    kinds: usize,
    /// Whether phases with one kind of fault alternate with mixed ones.
    has_solos: bool,
    pause_max: Duration,
}

impl Pace {
    fn of(seconds: u64) -> Pace {
        match number("QUORATE_ORDEAL_MINUTES", 0) {
            0 => Pace {
                all: Duration::from_secs(seconds),
                span: Duration::from_millis(2500),
                kinds: 5,
                has_solos: false,
                pause_max: Duration::from_millis(40),
            },
            minutes => Pace {
                all: Duration::from_secs(minutes * 60 / 2),
                span: Duration::from_secs(8),
                kinds: 3,
                has_solos: true,
                pause_max: Duration::from_millis(25),
            },
        }
    }
}

/// One run.
struct Ordeal {
    fleet: Fleet,
    nemesis: Nemesis,
    rng: Rng,
    pace: Pace,
    endpoints: Vec<String>,
    start: Instant,
    phases: usize,
    longest_recovery: Duration,
}

impl Ordeal {
    /// All phases.
    async fn run(&mut self, workload: &Workload) {
        let mut kinds = Kind::all(self.fleet.network.is_some());
        if let Ok(wanted) = std::env::var("QUORATE_ORDEAL_FAULTS") {
            let is_wanted =
                |kind: &Kind| wanted.split(',').any(|word| kind.to_string().contains(word));
            kinds.retain(is_wanted);
            self.pace.kinds = self.pace.kinds.min(kinds.len());
        }
        let (mut mixed, mut solo) = (Vec::new(), Vec::new());
        while clock::now() - self.start < self.pace.all {
            let is_solo = self.pace.has_solos && self.phases % 2 == 1;
            let deck = if is_solo { &mut solo } else { &mut mixed };
            let count = if is_solo { 1 } else { self.pace.kinds };
            if deck.len() < count {
                deck.extend(kinds.iter().copied());
                self.rng.shuffle(deck);
            }
            let drawn: Vec<Kind> = deck.drain(..count).collect();
            let plan = plan(&mut self.rng, self.endpoints.len(), &drawn, self.pace.span);
            self.phase(workload, is_solo, plan).await;
        }
    }

    async fn phase(&mut self, workload: &Workload, is_solo: bool, plan: Vec<Fault>) {
        self.phases += 1;
        let shown: Vec<String> = plan.iter().map(Fault::to_string).collect();
        self.nemesis.say(format_args!("phase {}: {}", self.phases, shown.join("; ")));
        let must_go_on = is_solo && plan.iter().all(|fault| fault.kind.leaves_majority());
        let start = self.start;
        let goes_on = |since: Instant| has_written(workload.history(), since - start);
        let goes_on: Option<&dyn Fn(Instant) -> bool> =
            if must_go_on { Some(&goes_on) } else { None };
        self.nemesis.suffer(&mut self.fleet, plan, goes_on, OUTAGE_MAX).await;
        let healed_at = clock::now();
        self.fleet.heal().await;
        self.check_alive(workload, healed_at).await;
        let recovery = clock::now() - healed_at;
        self.longest_recovery = self.longest_recovery.max(recovery);
        let same_at = self.check_same().await;
        self.nemesis.say(format_args!(
            "healed: a write at each member after {:.1} s, all equal at revision {same_at}",
            recovery.as_secs_f64()
        ));
    }

    /// Each member takes a write within a bound.
    async fn check_alive(&mut self, workload: &Workload, healed_at: Instant) {
        for at in 0..self.endpoints.len() {
            let door = RealDoor::new(&self.endpoints, at, self.start);
            let client = Client { number: ALIVE_CLIENT + at, door, history: workload.history() };
            for attempt in 0.. {
                let value = format!("phase {} attempt {attempt}", self.phases);
                let ask = Op::Put(put(format!("alive/{at}"), value));
                let outcome = client.call(ask).await;
                if let Outcome::Ok(_) = outcome {
                    break;
                }
                let patience = (clock::now() - healed_at) < RECOVERY_MAX;
                let words = || self.fleet.last_words();
                assert!(
                    patience,
                    "violation: member {at} takes no writes: {outcome:?}\n{}",
                    words()
                );
                client.door.sleep(Duration::from_millis(50)).await;
                // A state that met the full disk may find out only now.
                self.fleet.until_ready().await;
            }
        }
    }

    /// All members have the same data up to a revision.
    async fn check_same(&self) -> i64 {
        let mut problem = String::new();
        for _ in 0..HASH_TRIES_MAX {
            match hashes(&self.endpoints).await {
                Ok((at_revision, hashes)) => {
                    let (first, is_same) = (hashes[0], |hash: &(u32, i64)| *hash == hashes[0]);
                    if hashes.iter().all(is_same) {
                        return at_revision;
                    }
                    let is_comparable = hashes.iter().all(|(_, compacted)| *compacted == first.1);
                    assert!(
                        !is_comparable,
                        "violation: members differ at {at_revision}: {hashes:?}"
                    );
                    problem = format!("{hashes:?}");
                }
                // For example because it is compacted by now.
                Err(status) => problem = status.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the members cannot be compared: {problem}");
    }
}

/// The hash and the compact revision of each member at one revision.
async fn hashes(endpoints: &[String]) -> Result<(i64, Vec<(u32, i64)>), tonic::Status> {
    let deadline = Duration::from_secs(20);
    let mut hashes = Vec::new();
    let mut at_revision = 0;
    for endpoint in endpoints {
        let channel = channel(endpoint, deadline);
        // A linearizable read, so that the member has applied up to the revision.
        let read = kv(channel.clone()).range(get("alive/0")).await?.into_inner();
        if at_revision == 0 {
            at_revision = revision(&read.header);
        }
        let ask = HashKvRequest { revision: at_revision };
        let answer = maintenance(channel).hash_kv(ask).await?.into_inner();
        hashes.push((answer.hash, answer.compact_revision));
    }
    Ok((at_revision, hashes))
}

/// Whether a write was acknowledged after `since`.
fn has_written(history: &RefCell<History>, since: Duration) -> bool {
    let history = history.borrow();
    let recent = history.calls.iter().rev().take_while(|call| call.returned_at > since);
    recent.into_iter().any(is_acknowledged_write)
}

/// Writes much while a disk is full, so that the log needs space.
async fn write_bulk(client: Client<'_, RealDoor>, wanted: &Cell<bool>, is_over: &Cell<bool>) {
    for number in 0_u64.. {
        if is_over.get() {
            return;
        }
        if wanted.get() {
            let mut value = format!("bulk {number} ").into_bytes();
            value.resize(BULK_BYTES, b'.');
            let ask = Op::Put(put(format!("bulk/{}", number % 8), value));
            if !matches!(client.call(ask).await, Outcome::Ok(_)) {
                client.door.turn();
            }
        }
        client.door.sleep(BULK_PAUSE).await;
    }
}

async fn endure(members: usize, seconds: u64) {
    let _busy = BUSY.lock().await;
    let seed = seed();
    let mut rng = Rng::with_seed(seed);
    let pace = Pace::of(seconds);
    let fleet = Fleet::start(members).await;
    let (endpoints, start) = (fleet.endpoints(), clock::now());
    let mix = Mix { members, pause_max: pace.pause_max, ..Mix::default() };
    let workload = Workload::new(rng.u64(..), mix);
    let (wants_bulk, is_over) = (Rc::new(Cell::new(false)), Cell::new(false));
    let nemesis = Nemesis::new(start, rng.fork(), Rc::clone(&wants_bulk));
    let open = |number| RealDoor::new(&endpoints, number, start);
    let history = workload.history();
    let bulk = Client { number: BULK_CLIENT, door: open(0), history };
    let endpoints = endpoints.clone();
    let longest_recovery = Duration::ZERO;
    let mut ordeal =
        Ordeal { fleet, nemesis, rng, pace, endpoints, start, phases: 0, longest_recovery };
    let trouble = async {
        ordeal.run(&workload).await;
        is_over.set(true);
        workload.stop();
    };
    let bulk = write_bulk(bulk, &wants_bulk, &is_over);
    join3(trouble, bulk, workload.run(open)).await;
    let mut report = Report {
        members,
        seed,
        took: clock::now() - start,
        phases: ordeal.phases,
        faults: ordeal.nemesis.done,
        no_space: ordeal.fleet.no_space,
        longest_recovery: ordeal.longest_recovery,
        operations: BTreeMap::new(),
        reasons: BTreeMap::new(),
        watch_streams: 0,
        events: 0,
        longest_gap: Default::default(),
    };
    let history = workload.history().borrow();
    report.read(&history);
    let late = RECOVERY_MAX + OUTAGE_MAX;
    let verdict = judge(&history, Patience { early: Duration::ZERO, late });
    eprintln!("{report}\n{verdict}");
    assert!(verdict.is_good(), "the judges are not content, see above");
}

#[tokio::test]
async fn three_members_keep_their_promises_in_an_ordeal() {
    endure(3, 15).await;
}

#[tokio::test]
async fn five_members_keep_their_promises_in_an_ordeal() {
    endure(5, 8).await;
}

/// Runs a command as if it were the member `at`; how long it took, and what it said.
fn meddled(fleet: &Fleet, at: usize, words: &[&str]) -> (Duration, String) {
    let all: Vec<OsString> =
        fleet.meddle_with(at).into_iter().chain(words.iter().map(OsString::from)).collect();
    let begin = clock::now();
    let output = run(&all).unwrap_or_else(|error| panic!("{error}"));
    (clock::now() - begin, output)
}

/// The outcome of a put at one member, and how long it took.
async fn put_at(endpoint: &str) -> (Duration, Result<(), tonic::Status>) {
    let begin = clock::now();
    let answer = kv(channel(endpoint, Duration::from_secs(2))).put(put("bites", "x")).await;
    (clock::now() - begin, answer.map(drop))
}

/// An ordeal that hurts nobody proves nothing.
#[tokio::test]
async fn what_an_ordeal_breaks_is_broken() {
    let _busy = BUSY.lock().await;
    let mut fleet = Fleet::start(3).await;
    let seconds = |fleet: &Fleet| meddled(fleet, 0, &["date", "+%s"]).1.parse::<i64>().unwrap();
    let before = seconds(&fleet);
    fleet.members[0].page.shift_clock(-7_200_000);
    assert!((-7200..-7100).contains(&(seconds(&fleet) - before)), "the clock was not shifted");
    fleet.members[0].page.slow_flushes(Duration::from_millis(300));
    let to = tempfile::NamedTempFile::new().expect("a scratch file");
    let to = format!("of={}", to.path().display());
    let flush = ["dd", "if=/dev/zero", &to, "count=1", "conv=fsync"];
    assert!(meddled(&fleet, 0, &flush).0 >= Duration::from_millis(300), "flushes are not slow");
    if fleet.network.is_some() {
        fleet.heal().await;
        the_network_breaks(&mut fleet).await;
        assert!(fleet.fill_disk(1, 0));
        let disk = fleet.members[1].disk.as_ref().expect("there is root").place().to_owned();
        let more = std::fs::write(disk.join("more"), vec![1; 8 << 20]);
        assert_eq!(more.expect_err("it is full").kind(), ErrorKind::StorageFull);
    }
    fleet.heal().await;
    let (_, answer) = put_at(&fleet.endpoints()[0]).await;
    answer.expect("all is healed");
}

async fn the_network_breaks(fleet: &mut Fleet) {
    let leader = fleet.leader().await;
    let endpoint = fleet.endpoints()[leader].clone();
    let others: Vec<usize> = (0..3).filter(|at| *at != leader).collect();
    let delay_us = 150_000;
    let badness = Badness { delay_us, jitter_us: 0, lost_permille: 0, twice_permille: 0 };
    fleet.network().spoil(leader, &others, badness);
    let (took, answer) = put_at(&endpoint).await;
    assert!(took >= Duration::from_micros(delay_us), "{took:?}: {answer:?}");
    fleet.network().mend(leader);
    for how in [Cut::Silent, Cut::Refused] {
        others.iter().for_each(|&to| fleet.network().cut(leader, to, how));
        // What was on its way may still arrive.
        put_at(&endpoint).await.1.ok();
        put_at(&endpoint).await.1.expect_err("nobody hears the member");
        fleet.heal().await;
    }
    fleet.network().plug(leader, false);
    put_at(&endpoint).await.1.expect_err("the cable is out");
}
