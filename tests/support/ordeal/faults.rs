//! What goes wrong, when and to whom: drawn from a seed, then done to a fleet.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use quorate::clock;

use super::fleet::Fleet;
use super::network::{Badness, Cut};

/// Writes that are acknowledged later than this after the begin of a fault were not under way before.
const NOTICED_AFTER: Duration = Duration::from_millis(500);

/// Everything that can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// kill -9 of the leader.
    KillLeader,
    /// kill -9 of another member.
    KillFollower,
    /// kill -9 of all members at once; they come back in random order.
    KillAll,
    /// SIGSTOP, then SIGCONT.
    Pause,
    /// SIGTERM of each member, one after the other, in random order.
    Restarts,
    /// Some members and the others do not reach each other.
    Split,
    /// As `Split`, and sending fails at once instead of vanishing.
    SplitRefused,
    /// What one member sends does not reach some others; it hears them.
    OneWay,
    /// Two members do not reach each other; both reach the rest.
    Partial,
    /// A cable goes out and in, several times.
    Flap,
    /// Packets of one member take long.
    Delay,
    /// Packets of one member are lost, doubled and out of order.
    BadWire,
    /// One member can send only a little.
    SlowLink,
    /// The wall clock of one member jumps, and jumps back.
    ClockJump,
    /// The disk of one member fills up.
    FullDisk,
    /// Flushes of one member take long.
    SlowDisk,
}

impl Kind {
    /// All kinds that a fleet can suffer.
    pub(crate) fn all(has_network: bool) -> Vec<Kind> {
        use Kind::*;
        let process = vec![KillLeader, KillFollower, KillAll, Pause, Restarts, ClockJump, SlowDisk];
        let rest = [Split, SplitRefused, OneWay, Partial, Flap, Delay, BadWire, SlowLink, FullDisk];
        let rest = if has_network { &rest[..] } else { &[] };
        process.into_iter().chain(rest.iter().copied()).collect()
    }

    /// Whether a majority of healthy members is left that reach each other and their clients.
    pub(crate) fn leaves_majority(self) -> bool {
        self != Kind::KillAll
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::KillLeader => "kill -9 of the leader",
            Kind::KillFollower => "kill -9 of a follower",
            Kind::KillAll => "kill -9 of all",
            Kind::Pause => "SIGSTOP and SIGCONT",
            Kind::Restarts => "graceful restart",
            Kind::Split => "partition, silent",
            Kind::SplitRefused => "partition, refused",
            Kind::OneWay => "one-way partition",
            Kind::Partial => "partial partition",
            Kind::Flap => "link out and in",
            Kind::Delay => "delay",
            Kind::BadWire => "loss and disorder",
            Kind::SlowLink => "slow link",
            Kind::ClockJump => "clock jump",
            Kind::FullDisk => "full disk",
            Kind::SlowDisk => "slow disk",
        })
    }
}

/// One fault of a plan.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    /// When it begins, after the begin of its phase.
    at: Duration,
    /// How long it lasts.
    lasts: Duration,
    /// Whom it meets first; `None` for the leader of that moment.
    first: Option<usize>,
    /// All members in an order of this fault's own.
    order: Vec<usize>,
    /// How bad it is, from 0 to 1.
    badness: f64,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whom = self.first.map_or("leader".to_owned(), |first| format!("member {first}"));
        let (at, lasts) = (self.at.as_secs_f64(), self.lasts.as_secs_f64());
        write!(f, "{at:.1}+{lasts:.1} s {} ({whom}, {:.2})", self.kind, self.badness)
    }
}

/// Draws the faults of one phase: each of `kinds` within `span`.
pub(crate) fn plan(rng: &mut Rng, members: usize, kinds: &[Kind], span: Duration) -> Vec<Fault> {
    let mut faults = Vec::new();
    for &kind in kinds {
        let begin = span.mul_f64(0.4 * rng.f64() * f64::from(kinds.len() > 1));
        let lasts = (span - begin).mul_f64(0.5 + 0.5 * rng.f64());
        let mut order: Vec<usize> = (0..members).collect();
        rng.shuffle(&mut order);
        let hits_leader = kind == Kind::KillLeader || (kind != Kind::KillFollower && rng.bool());
        let first = (!hits_leader).then(|| order[0]);
        let fault = Fault { kind, at: begin, lasts, first, order, badness: rng.f64() };
        // Some are a series of short ones.
        let pieces = match kind {
            Kind::Restarts => members,
            Kind::Flap => rng.usize(2..6),
            _ => 1,
        };
        let piece = lasts / u32::try_from(pieces).expect("few pieces");
        for number in 0..pieces {
            let mut part = fault.clone();
            part.at = begin + piece * u32::try_from(number).expect("few pieces");
            part.lasts = if pieces == 1 { lasts } else { piece / 2 };
            if kind == Kind::Restarts {
                part.first = Some(fault.order[number]);
            }
            faults.push(part);
        }
    }
    faults.sort_by_key(|fault| fault.at);
    faults
}

/// What ends a fault.
#[derive(Debug)]
enum Undo {
    Revive(Vec<usize>),
    Resume(usize),
    Join(Vec<(usize, usize)>),
    Reach(Vec<usize>),
    Plug(usize),
    Unthrottle(usize),
    Mend(usize),
    SetClock(usize),
    Free(usize),
    Fast(usize),
}

/// What does a plan to a fleet, and counts.
#[derive(Debug)]
pub(crate) struct Nemesis {
    start: Instant,
    rng: Rng,
    /// How many faults of each kind were done.
    pub(crate) done: BTreeMap<Kind, usize>,
    /// Whether somebody should write much, so that a full disk is noticed.
    wants_bulk: Rc<Cell<bool>>,
}

impl Nemesis {
    /// One that tells times since `start`.
    pub(crate) fn new(start: Instant, rng: Rng, wants_bulk: Rc<Cell<bool>>) -> Nemesis {
        Nemesis { start, rng, done: BTreeMap::new(), wants_bulk }
    }

    /// Tells what happens now.
    pub(crate) fn say(&self, text: impl fmt::Display) {
        eprintln!("{:8.2} s  {text}", (clock::now() - self.start).as_secs_f64());
    }

    /// Does the faults of `plan`, each at its time, and undoes each when its time is over.
    ///
    /// With `goes_on`, which tells whether somebody could write after a moment, no fault is undone
    /// before somebody could write during it; panics if that takes longer than `outage_max`.
    pub(crate) async fn suffer(
        &mut self,
        fleet: &mut Fleet,
        plan: Vec<Fault>,
        goes_on: Option<&dyn Fn(Instant) -> bool>,
        outage_max: Duration,
    ) {
        let begin = clock::now();
        let mut undoes: Vec<(Duration, Undo)> = Vec::new();
        let mut plan = plan.into_iter().peekable();
        let mut begun_at = Duration::ZERO;
        loop {
            undoes.sort_by_key(|(at, _)| *at);
            let next_fault = plan.peek().map(|fault| fault.at);
            let next_undo = undoes.first().map(|(at, _)| *at);
            let Some(next) = next_fault.into_iter().chain(next_undo).min() else { return };
            tokio::time::sleep((begin + next).saturating_duration_since(clock::now())).await;
            fleet.look_around();
            if next_undo == Some(next) {
                let (_, undo) = undoes.remove(0);
                if let Some(goes_on) = goes_on {
                    let since = clock::now().min(begin + begun_at + NOTICED_AFTER);
                    until(|| goes_on(since), since + outage_max).await;
                }
                self.say(format_args!("end: {undo:?}"));
                self.undo(fleet, undo).await;
            } else if let Some(fault) = plan.next() {
                let (kind, ends) = (fault.kind, fault.at + fault.lasts);
                begun_at = fault.at;
                if let Some(undo) = self.begin(fleet, fault).await {
                    *self.done.entry(kind).or_default() += 1;
                    undoes.push((ends, undo));
                }
            }
        }
    }

    /// Does a fault; `None` if it meets a member that is down already.
    async fn begin(&mut self, fleet: &mut Fleet, fault: Fault) -> Option<Undo> {
        let leader = fleet.leader().await;
        let at = match fault.first {
            // A follower must not be the leader of the moment.
            Some(first) if fault.kind == Kind::KillFollower && first == leader => fault.order[1],
            Some(first) => first,
            None => leader,
        };
        self.say(format_args!("{} at member {at} (member {leader} leads)", fault.kind));
        match fault.kind {
            Kind::KillLeader
            | Kind::KillFollower
            | Kind::KillAll
            | Kind::Restarts
            | Kind::Pause => begin_process(fleet, &fault, at).await,
            Kind::ClockJump => {
                // Mostly minutes, sometimes years, in both directions.
                let range = if fault.badness < 0.8 { 3_600_000.0 } else { 1e11 };
                let sign = if self.rng.bool() { 1.0 } else { -1.0 };
                fleet.members[at].page.shift_clock((sign * range * self.rng.f64()) as i64);
                Some(Undo::SetClock(at))
            }
            Kind::SlowDisk => {
                let longer = Duration::from_millis(30).mul_f64(1.0 + 30.0 * fault.badness);
                fleet.members[at].page.slow_flushes(longer);
                Some(Undo::Fast(at))
            }
            Kind::FullDisk => {
                let is_full = fleet.fill_disk(at, (fault.badness * f64::from(256 << 10)) as u64);
                self.wants_bulk.set(is_full);
                is_full.then_some(Undo::Free(at))
            }
            _ => Some(begin_network(fleet, &fault, at)),
        }
    }

    async fn undo(&self, fleet: &mut Fleet, undo: Undo) {
        match undo {
            Undo::Revive(members) => {
                for at in members {
                    fleet.revive(at).await;
                }
            }
            Undo::Resume(at) => {
                fleet.pause(at, false);
            }
            Undo::SetClock(at) => fleet.members[at].page.shift_clock(0),
            Undo::Fast(at) => fleet.members[at].page.slow_flushes(Duration::ZERO),
            Undo::Free(at) => {
                self.wants_bulk.set(false);
                fleet.free_disk(at);
                fleet.revive(at).await;
            }
            Undo::Join(pairs) => {
                pairs.into_iter().for_each(|(from, to)| fleet.network().join(from, to));
            }
            Undo::Reach(members) => {
                members.into_iter().for_each(|at| fleet.network().isolate(at, false));
            }
            Undo::Plug(at) => fleet.network().plug(at, true),
            Undo::Unthrottle(at) => fleet.network().throttle(at, None),
            Undo::Mend(at) => fleet.network().mend(at),
        }
    }
}

/// Waits until `is_so`; panics at the deadline.
async fn until(is_so: impl Fn() -> bool, deadline: Instant) {
    while !is_so() {
        assert!(clock::now() < deadline, "violation: one fault keeps everybody from writing");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Signals to processes.
async fn begin_process(fleet: &mut Fleet, fault: &Fault, at: usize) -> Option<Undo> {
    match fault.kind {
        Kind::Restarts => fleet.ask_to_stop(at).then(|| Undo::Revive(vec![at])),
        Kind::Pause => fleet.pause(at, true).then_some(Undo::Resume(at)),
        Kind::KillAll => {
            for &at in &fault.order {
                fleet.kill(at).await;
            }
            Some(Undo::Revive(fault.order.clone()))
        }
        _ => fleet.kill(at).await.then(|| Undo::Revive(vec![at])),
    }
}

/// What breaks between members.
fn begin_network(fleet: &mut Fleet, fault: &Fault, at: usize) -> Undo {
    let others: Vec<usize> = fault.order.iter().copied().filter(|other| *other != at).collect();
    let network = fleet.network();
    match fault.kind {
        Kind::Split | Kind::SplitRefused => {
            let how = if fault.kind == Kind::Split { Cut::Silent } else { Cut::Refused };
            // The smaller side: at least the one member, never a majority.
            let with = ((fault.order.len() - 1) / 2 - 1).min((fault.badness * 2.0) as usize);
            let (mates, rest) = others.split_at(with);
            let side: Vec<usize> = mates.iter().copied().chain([at]).collect();
            let pairs = side.iter().flat_map(|&a| rest.iter().flat_map(move |&b| [(a, b), (b, a)]));
            let pairs: Vec<(usize, usize)> = pairs.collect();
            pairs.iter().for_each(|&(from, to)| network.cut(from, to, how));
            Undo::Join(pairs)
        }
        Kind::OneWay => {
            let some = 1 + (fault.badness * others.len() as f64) as usize % others.len();
            let pairs: Vec<(usize, usize)> = others[..some].iter().map(|&to| (at, to)).collect();
            pairs.iter().for_each(|&(from, to)| network.cut(from, to, Cut::Silent));
            Undo::Join(pairs)
        }
        Kind::Partial => {
            let pair = vec![at, others[0]];
            pair.iter().for_each(|&at| network.isolate(at, true));
            Undo::Reach(pair)
        }
        Kind::Flap => {
            network.plug(at, false);
            Undo::Plug(at)
        }
        Kind::SlowLink => {
            network.throttle(at, Some(128 + (fault.badness * 4000.0) as u64));
            Undo::Unthrottle(at)
        }
        _ => {
            network.spoil(at, &others, wire(fault));
            Undo::Mend(at)
        }
    }
}

/// How bad the wire of a fault is.
fn wire(fault: &Fault) -> Badness {
    let scaled = |most: f64| (fault.badness * most) as u64;
    if fault.kind == Kind::Delay {
        let delay_us = 5_000 + scaled(250_000.0);
        return Badness { delay_us, jitter_us: delay_us / 4, lost_permille: 0, twice_permille: 0 };
    }
    let (lost_permille, twice_permille) = (5 + scaled(200.0), 5 + scaled(100.0));
    Badness { delay_us: 500, jitter_us: 5_000, lost_permille, twice_permille }
}
