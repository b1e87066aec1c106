//! One run: trouble while clients work, then everything heals, and the cluster has to work again.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use openraft::RaftLogReader;
use quorate::pb::etcdserverpb::{PutRequest, RangeRequest};
use quorate::raft::log_store::LogStore;
use tokio::time::{sleep, timeout};

use super::door::SimDoor;
use super::host::{Death, Host, World};
use super::invariants::{Checks, Seen};
use super::log::{EventLog, now};
use super::nemesis::{FaultCounts, Nemesis};
use super::net::Net;
use super::plan::Plan;
use crate::support::history::{History, Op, Outcome};
use crate::support::judges;
use crate::support::judges::lease::Patience;
use crate::support::workload::{Client, Workload};

/// How often the monitor looks at the members.
const LOOK: Duration = Duration::from_millis(250);

/// Clients of the liveness check have the numbers from here on.
const PROBE: usize = 900;

/// What came of one run.
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) simulated: Duration,
    pub(crate) violations: Vec<String>,
    pub(crate) log: String,
    pub(crate) calls: BTreeMap<&'static str, u64>,
    pub(crate) faults: FaultCounts,
    pub(crate) commits: u64,
    pub(crate) installs: u64,
    /// What watchers were sent.
    pub(crate) events: u64,
    pub(crate) frames: u64,
}

impl Report {
    /// The simulation itself panicked.
    pub(crate) fn panicked(seed: u64) -> Report {
        Report {
            seed,
            simulated: Duration::ZERO,
            violations: vec!["the simulation panicked, see above".to_owned()],
            log: String::new(),
            calls: BTreeMap::new(),
            faults: FaultCounts::new(),
            commits: 0,
            installs: 0,
            events: 0,
            frames: 0,
        }
    }
}

/// Runs `seed` to its end.
pub(crate) fn run(seed: u64) -> Report {
    in_world(Plan::of(seed), simulate)
}

/// What comes of `life` among the members of a new world, which ends with it.
pub(super) fn in_world<T>(
    plan: Plan,
    life: impl AsyncFnOnce(&Arc<World>, &Rc<[Arc<Host>]>) -> T,
) -> T {
    fastrand::seed(plan.seed);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let log = EventLog::new();
        let _listening = log.listen();
        log.say("plan", format_args!("{plan:?}"));
        let net = Net::new(plan.seed);
        net.set_default(plan.link);
        let checks = Checks::new(log.clone());
        let world = Arc::new(World { plan, log, net, checks });
        let hosts: Rc<[Arc<Host>]> =
            (0..world.plan.members).map(|number| Host::new(number, &world)).collect();
        for host in &*hosts {
            host.start().await;
        }
        let outcome = life(&world, &hosts).await;
        for host in &*hosts {
            host.crash(Death::Killed).await;
        }
        outcome
    })
}

async fn simulate(world: &Arc<World>, hosts: &Rc<[Arc<Host>]>) -> Report {
    let mut nemesis = Nemesis::new(world, hosts);
    let workload = Workload::new(world.plan.seed, world.plan.mix.clone());
    let clients = workload.run(|client| door(world, hosts, client));
    let is_healed = Cell::new(false);
    let course = async {
        nemesis.run(now() + world.plan.trouble).await;
        nemesis.heal().await;
        is_healed.set(true);
        is_alive(world, hosts, workload.history()).await;
        workload.stop();
    };
    let supervisor = async {
        loop {
            sleep(LOOK).await;
            for host in hosts.iter().filter(|_| is_healed.get()) {
                host.start().await;
            }
        }
    };
    let both = async { tokio::join!(biased; clients, course) };
    tokio::select! {
        biased;
        _ = both => {}
        () = supervisor => {}
        () = monitor(world, hosts) => {}
        () = sleep(world.plan.trouble + Duration::from_secs(200)) => {
            world.checks.violated("clients end (liveness)", "they do not come to an end");
        }
    }
    if world.checks.violations().is_empty() {
        agree(world, hosts).await;
    }
    judge(world, &workload.history().borrow());
    report(world, nemesis.counts().clone(), &workload.history().borrow())
}

pub(super) fn door(world: &Arc<World>, hosts: &Rc<[Arc<Host>]>, client: usize) -> SimDoor {
    let member = Cell::new(client % hosts.len());
    SimDoor { world: Arc::clone(world), hosts: Rc::clone(hosts), client, member }
}

fn report(world: &World, faults: FaultCounts, history: &History) -> Report {
    let mut calls = BTreeMap::new();
    for call in &history.calls {
        let outcome = match call.outcome {
            Outcome::Ok(_) => "ok",
            Outcome::Refused(_) => "refused",
            Outcome::Unknown(_) => "unknown",
        };
        *calls.entry(outcome).or_default() += 1;
    }
    world.log.say("end", format_args!("{calls:?} {faults:?} {:?}", world.net.counts()));
    Report {
        seed: world.plan.seed,
        simulated: world.log.now(),
        violations: world.checks.violations(),
        log: world.log.text(),
        calls,
        faults,
        commits: world.checks.commits(),
        installs: world.checks.installs(),
        events: history.events(),
        frames: world.net.counts().frames,
    }
}

/// Looks at all members a few times a second; returns at the first violation.
async fn monitor(world: &World, hosts: &[Arc<Host>]) {
    let mut seen = vec![0; hosts.len()];
    while world.checks.violations().is_empty() {
        sleep(LOOK).await;
        for (host, seen) in hosts.iter().zip(&mut seen) {
            let looked = host.with(|member, log| {
                let applied = member.state().applied().map_or(0, |at| at.index);
                // What came by snapshot may be ahead of the log.
                let is_in_log = log.first_index().is_some_and(|first| first <= applied)
                    && log.last_index().is_some_and(|last| last >= applied);
                let durable = log.durable_index().filter(|_| is_in_log);
                (applied, durable.unwrap_or(applied), log.clone())
            });
            let Some((applied, durable, log)) = looked else { continue };
            world.checks.applied(host.number, applied, durable);
            look_at_log(&world.checks, host.number, log, seen).await;
        }
    }
}

/// Shows the entries of `log` that are new, and some before them, which may have been replaced.
async fn look_at_log(checks: &Checks, member: usize, mut log: LogStore, seen: &mut u64) {
    let last = log.last_index().unwrap_or(0);
    let from = log.first_index().unwrap_or(0).max(seen.min(&mut last.clone()).saturating_sub(20));
    let entries = log.try_get_log_entries(from..=last).now_or_never();
    *seen = last;
    // Old entries are read as blocking work, for which nobody waits here.
    let Some(Ok(entries)) = entries else { return };
    let entries = entries.iter().map(|entry| Seen {
        index: entry.log_id.index,
        term: entry.log_id.leader_id.term,
        leader: entry.log_id.leader_id.node_id,
        digest: crc32c::crc32c(format!("{:?}", entry.payload).as_bytes()),
    });
    checks.logged(member, &entries.collect::<Vec<_>>());
}

/// Liveness: a put and a linearizable read succeed on every member, soon after all faults ended.
///
/// Source: Raft, section 5.6: as long as a majority is up and messages take less than the election
/// timeout, there is a steady leader.
async fn is_alive(world: &Arc<World>, hosts: &Rc<[Arc<Host>]>, history: &RefCell<History>) {
    let limit = world.plan.election_timeout * 20 + Duration::from_secs(15);
    for host in hosts.iter().filter(|host| !host.is_lost()) {
        let number = PROBE + host.number;
        let door = SimDoor { member: Cell::new(host.number), ..door(world, hosts, number) };
        let probe = Client { number, door, history };
        let worked = timeout(limit, works(&probe, host)).await;
        if worked.is_err() {
            let text = format!("{} does not serve within {limit:?}", host.name());
            world.checks.violated("progress after the faults (Raft, section 5.6)", text);
        }
    }
}

/// Tries until a put and a read have succeeded.
async fn works(probe: &Client<'_, SimDoor>, host: &Arc<Host>) {
    let key = bytes::Bytes::from(format!("probe/{}", host.number));
    let put = |attempt| {
        let (key, value) = (key.clone(), format!("probe-{attempt}").into());
        Op::Put(PutRequest { key, value, ..PutRequest::default() })
    };
    let get = |_| Op::Range(RangeRequest { key: key.clone(), ..RangeRequest::default() });
    let ops: [&dyn Fn(u32) -> Op; 2] = [&put, &get];
    for op in ops {
        for attempt in 0.. {
            if matches!(probe.call(op(attempt)).await, Outcome::Ok(_)) {
                break;
            }
            // One that has ended itself is started again, as a supervisor does.
            host.start().await;
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// All members come to the same state.
pub(super) async fn agree(world: &World, hosts: &[Arc<Host>]) {
    let alive = || hosts.iter().filter(|host| !host.is_lost());
    let position = |host: &Arc<Host>| host.with(|member, _| member.state().applied());
    let deadline = now() + Duration::from_secs(60);
    while now() < deadline {
        let mut positions = alive().map(position);
        let first = positions.next().flatten();
        if first.is_some() && positions.all(|position| position == first) {
            return same_hashes(world, alive());
        }
        sleep(Duration::from_millis(100)).await;
    }
    let positions: Vec<_> = alive().map(|host| (host.name(), position(host))).collect();
    let text = format!("members do not come to the same entry: {positions:?}");
    world.checks.violated("progress after the faults (Raft, section 5.6)", text);
}

/// As etcd's HashKV over all members at one revision.
fn same_hashes<'h>(world: &World, hosts: impl Iterator<Item = &'h Arc<Host>>) {
    let mut first = None;
    for host in hosts {
        let hash = host.with(|member, _| {
            let state = member.state();
            let mut job = quorate::state::HashJob::new(&state, 0).ok()?;
            loop {
                if let Some(answer) = job.step(&state, 1_000).ok()? {
                    return Some((state.revision(), answer.compact_revision, answer.hash));
                }
            }
        });
        let first = *first.get_or_insert((host.name(), hash));
        if first.1 != hash {
            let text = format!("{}: {:?}, {}: {hash:?}", first.0, first.1, host.name());
            world.checks.violated("equal hashes (etcd, HashKV)", text);
        }
    }
}

/// Judges what the clients saw.
fn judge(world: &World, history: &History) {
    let late = world.plan.trouble + Duration::from_secs(60);
    let verdict = judges::judge(history, Patience { late, ..Patience::default() });
    for violation in &verdict.violations {
        world.checks.violated("what clients may see", violation);
    }
    for text in &verdict.undecided {
        world.checks.violated("what clients may see: undecided", text);
    }
}
