//! What goes wrong, when: a schedule of faults drawn from the seed.
//!
//! Several faults may be in force at once; each ends by itself after a while, and [`Nemesis::heal`]
//! ends all. The network may be split in any way, but members whose log was damaged on purpose are
//! never a majority, for then acknowledged writes are gone by design.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;

use super::host::{DAMAGED, Death, FLUSH_FAILED, Host, NO_ROOM, World};
use super::log::now;
use super::net::Link;

/// How often each kind of fault happened.
pub(crate) type FaultCounts = BTreeMap<&'static str, u64>;

/// See the head of this file.
pub(crate) struct Nemesis<'w> {
    world: &'w World,
    hosts: &'w [Arc<Host>],
    rng: Rng,
    remedies: Vec<(Instant, Remedy)>,
    /// Whose log has a flipped bit.
    damaged: BTreeSet<usize>,
    counts: FaultCounts,
}

/// What ends a fault.
#[derive(Debug, Clone, Copy)]
enum Remedy {
    Start(usize),
    Resume(usize),
    Links,
    Space(usize),
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Kill,
    PowerLoss,
    AllLosePower,
    KillAll,
    Restart,
    Pause,
    Jump,
    Split,
    Isolate,
    OneWay,
    Pair,
    Slow,
    Cut,
    Stall,
    Full,
    FlushFails,
    BitFlip,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Fault::Kill => "kill",
            Fault::PowerLoss => "power loss",
            Fault::AllLosePower => "power loss of all",
            Fault::KillAll => "kill of all",
            Fault::Restart => "graceful restart",
            Fault::Pause => "pause",
            Fault::Jump => "clock jump",
            Fault::Split => "partition",
            Fault::Isolate => "isolation",
            Fault::OneWay => "one-way partition",
            Fault::Pair => "partial partition",
            Fault::Slow => "slow link",
            Fault::Cut => "connection cut",
            Fault::Stall => "disk stall",
            Fault::Full => "full disk",
            Fault::FlushFails => "flush error",
            Fault::BitFlip => "bit flip",
        }
    }
}

impl<'w> Nemesis<'w> {
    pub(crate) fn new(world: &'w World, hosts: &'w [Arc<Host>]) -> Nemesis<'w> {
        let rng = Rng::with_seed(world.plan.seed ^ 0x6e65_6d65);
        Nemesis {
            world,
            hosts,
            rng,
            remedies: Vec::new(),
            damaged: BTreeSet::new(),
            counts: FaultCounts::new(),
        }
    }

    pub(crate) fn counts(&self) -> &FaultCounts {
        &self.counts
    }

    /// Makes trouble until `until`.
    pub(crate) async fn run(&mut self, until: Instant) {
        let mut next = now() + self.upto(self.world.plan.calm_max);
        let kinds = self.kinds();
        while now() < until {
            let due = self.remedies.iter().map(|(at, _)| *at).min();
            let wake = due.map_or(next, |due| due.min(next)).min(until);
            tokio::time::sleep_until(wake).await;
            self.apply_remedies(now()).await;
            if now() >= next && !kinds.is_empty() {
                let fault = kinds[self.rng.usize(..kinds.len())];
                self.cause(fault).await;
                next = now() + self.upto(self.world.plan.calm_max);
            }
            if kinds.is_empty() {
                next = until;
            }
        }
    }

    /// Ends every fault and starts whoever can be started.
    pub(crate) async fn heal(&mut self) {
        self.world.log.say("nemesis", "heals everything");
        self.remedies.clear();
        self.world.net.heal();
        for host in self.hosts {
            host.pause(false);
            host.stall(Duration::ZERO);
            host.disk().limit_bytes(None);
            host.disk().fail_flush_at(u64::MAX);
        }
        for host in self.hosts {
            host.start().await;
        }
    }

    fn kinds(&self) -> Vec<Fault> {
        let faults = self.world.plan.faults;
        let mut kinds = Vec::new();
        let mut add = |is_on: bool, some: &[Fault]| {
            if is_on {
                kinds.extend_from_slice(some);
            }
        };
        add(faults.process, &[Fault::Kill, Fault::Kill, Fault::Restart, Fault::KillAll]);
        add(faults.power, &[Fault::PowerLoss, Fault::PowerLoss, Fault::AllLosePower]);
        add(faults.pauses, &[Fault::Pause, Fault::Pause]);
        add(faults.clocks, &[Fault::Jump]);
        add(faults.network, &[Fault::Split, Fault::Isolate, Fault::OneWay, Fault::Pair]);
        add(faults.network, &[Fault::Slow, Fault::Cut]);
        add(faults.slow_disks, &[Fault::Stall, Fault::Stall]);
        add(faults.full_disks, &[Fault::Full]);
        add(faults.bad_disks, &[Fault::FlushFails, Fault::BitFlip]);
        kinds
    }

    fn count(&mut self, fault: Fault) {
        *self.counts.entry(fault.name()).or_default() += 1;
    }

    fn upto(&mut self, max: Duration) -> Duration {
        Duration::from_micros(self.rng.u64(..=max.as_micros() as u64))
    }

    fn someone(&mut self) -> usize {
        self.rng.usize(..self.hosts.len())
    }

    fn later(&mut self, max: Duration, remedy: Remedy) {
        let at = now() + self.upto(max);
        self.remedies.push((at, remedy));
    }

    async fn apply_remedies(&mut self, now: Instant) {
        let (due, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.remedies).into_iter().partition(|(at, _)| *at <= now);
        self.remedies = rest;
        for (_, remedy) in due {
            self.world.log.say("nemesis", format_args!("ends {remedy:?}"));
            match remedy {
                Remedy::Start(host) => self.hosts[host].start().await,
                Remedy::Resume(host) => self.hosts[host].pause(false),
                Remedy::Links => self.world.net.heal(),
                Remedy::Space(host) => self.hosts[host].disk().limit_bytes(None),
            }
        }
    }

    async fn cause(&mut self, fault: Fault) {
        let victim = self.someone();
        let world = self.world;
        world.log.say("nemesis", format_args!("{} (m{victim})", fault.name()));
        if !matches!(fault, Fault::BitFlip) {
            self.count(fault);
        }
        let down_max = world.plan.election_timeout * 4;
        match fault {
            Fault::Kill => self.end(victim, Death::Killed, down_max).await,
            Fault::PowerLoss => self.end(victim, Death::PowerLost, down_max).await,
            Fault::KillAll | Fault::AllLosePower => {
                let is_kill = matches!(fault, Fault::KillAll);
                let death = if is_kill { Death::Killed } else { Death::PowerLost };
                for host in 0..self.hosts.len() {
                    self.end(host, death, down_max).await;
                }
            }
            Fault::Restart => {
                self.hosts[victim].pause(false);
                self.hosts[victim].stop().await;
                self.later(down_max, Remedy::Start(victim));
            }
            Fault::Pause => {
                self.hosts[victim].pause(true);
                self.later(down_max, Remedy::Resume(victim));
            }
            Fault::Jump => self.hosts[victim].jump(self.rng.i64(-100_000..100_000)),
            Fault::Split | Fault::Isolate | Fault::OneWay | Fault::Pair | Fault::Slow => {
                self.disturb(fault, victim);
                self.later(world.plan.election_timeout * 12, Remedy::Links);
            }
            Fault::Cut => {
                let other = self.someone();
                world.net.cut(victim, other);
            }
            Fault::Stall => {
                let time = self.upto(world.plan.election_timeout * 4);
                self.hosts[victim].stall(time);
            }
            Fault::Full => self.fill(victim),
            Fault::FlushFails => {
                self.hosts[victim].excuse(FLUSH_FAILED);
                let disk = self.hosts[victim].disk();
                disk.fail_flush_at(disk.operations() + self.rng.u64(1..50));
                self.later(down_max * 2, Remedy::Start(victim));
            }
            Fault::BitFlip => self.damage(victim).await,
        }
    }

    async fn end(&mut self, host: usize, death: Death, down_max: Duration) {
        self.hosts[host].crash(death).await;
        self.later(down_max, Remedy::Start(host));
    }

    fn disturb(&mut self, fault: Fault, victim: usize) {
        let members = self.hosts.len();
        let sides: Vec<bool> = (0..members).map(|_| self.rng.bool()).collect();
        let friend = self.rng.usize(..members);
        let slow = Some(self.rng.u64(2_000..200_000));
        for from in 0..members {
            for to in 0..members {
                let meets = match fault {
                    Fault::Split => sides[from] != sides[to],
                    Fault::OneWay => from == victim && to != victim,
                    Fault::Pair => [(victim, friend), (friend, victim)].contains(&(from, to)),
                    _ => (from == victim) != (to == victim),
                };
                let change = |link: &mut Link| match fault {
                    Fault::Slow => link.bytes_per_second = slow,
                    _ => link.is_blocked = true,
                };
                if meets {
                    self.world.net.change(from, to, change);
                }
            }
        }
    }

    fn fill(&mut self, victim: usize) {
        // Whether a batch that needs two segments at once still finds room is not promised.
        self.hosts[victim].excuse(NO_ROOM);
        let disk = self.hosts[victim].disk();
        let used: usize = disk.files().values().map(Vec::len).sum();
        disk.limit_bytes(Some(used as u64));
        self.later(self.world.plan.election_timeout * 10, Remedy::Space(victim));
        self.later(self.world.plan.election_timeout * 10, Remedy::Start(victim));
    }

    /// Flips a bit in the log of a member that is down.
    async fn damage(&mut self, victim: usize) {
        // The majority must stay whole, also of those who have not noticed yet.
        let is_too_much = (self.damaged.len() + 1) * 2 >= self.hosts.len();
        if is_too_much || !self.damaged.insert(victim) {
            return;
        }
        self.hosts[victim].crash(Death::Killed).await;
        let disk = self.hosts[victim].disk();
        let files = disk.files();
        let segments: Vec<_> = files.iter().filter(|(name, _)| name.ends_with(".wal")).collect();
        // Not the last: damage in the last batch cannot be told from a torn write.
        if let Some((name, bytes)) = segments.first().filter(|_| segments.len() > 1) {
            let bit = self.rng.usize(..bytes.len() * 8);
            self.world.log.say("nemesis", format_args!("flips bit {bit} of {name}"));
            self.count(Fault::BitFlip);
            self.hosts[victim].excuse(DAMAGED);
            disk.tamper(name, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
        }
        self.later(self.world.plan.election_timeout * 4, Remedy::Start(victim));
    }
}
