//! Stories with one fault each, told on purpose and not by chance.

use std::sync::Arc;
use std::time::Duration;

use quorate::clock;
use quorate::pb::etcdserverpb::{LeaseGrantRequest, LeaseKeepAliveRequest};
use tokio::time::sleep;

use super::host::{Death, Host, World};
use super::invariants::Checks;
use super::log::EventLog;
use super::net::Net;
use super::plan::Plan;
use super::run::door;
use crate::support::history::{Op, Outcome, Reply};
use crate::support::workload::Door;

/// Runs `story` with three members on quick disks and a quick network.
fn tell(story: impl AsyncFnOnce(Arc<World>, Vec<Arc<Host>>)) {
    let plan = Plan::calm(7);
    fastrand::seed(plan.seed);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let log = EventLog::new();
        let _listening = log.listen();
        let net = Net::new(plan.seed);
        net.set_default(plan.link);
        let checks = Checks::new(log.clone());
        let world = Arc::new(World { plan, log, net, checks });
        let hosts: Vec<Arc<Host>> =
            (0..world.plan.members).map(|number| Host::new(number, &world)).collect();
        for host in &hosts {
            host.start().await;
        }
        story(Arc::clone(&world), hosts.clone()).await;
        assert_eq!(world.checks.violations(), Vec::<String>::new());
        for host in &hosts {
            host.crash(Death::Killed).await;
        }
    });
}

/// The leader, once there is one.
async fn leader(hosts: &[Arc<Host>]) -> usize {
    let leads = |host: &Arc<Host>| host.with(|member, _| member.node().is_leader()) == Some(true);
    loop {
        match hosts.iter().position(leads) {
            Some(leader) => return leader,
            None => sleep(Duration::from_millis(20)).await,
        }
    }
}

/// In etcd a leader that waits for its disk sends no heartbeats and is replaced. Followers of ours
/// acknowledge what it sends, so without help it would lead on, and answer no keep-alive.
#[test]
fn sim_a_leader_whose_disk_hangs_is_replaced() {
    tell(async |world, hosts| {
        let first = leader(&hosts).await;
        let other = door(&world, &hosts.clone().into(), (first + 1) % 3);
        let grant = Op::Grant(LeaseGrantRequest { id: 5, ttl: 600 });
        assert!(matches!(other.call(grant).await, Outcome::Ok(_)));
        hosts[first].stall(Duration::from_secs(300));
        let (stalled, limit) = (clock::now(), world.plan.election_timeout * 10);
        loop {
            // Renewals that are a second old are answered from memory.
            sleep(Duration::from_secs(2)).await;
            let outcome = other.call(Op::KeepAlive(LeaseKeepAliveRequest { id: 5 })).await;
            if let Outcome::Ok(Reply::KeepAlive(answer)) = outcome {
                assert_eq!(answer.ttl, 600);
                break;
            }
            assert!(clock::now() - stalled < limit, "no keep-alive for {limit:?}");
        }
        let others: Vec<_> =
            (0..3).filter(|at| *at != first).map(|at| Arc::clone(&hosts[at])).collect();
        leader(&others).await;
        hosts[first].stall(Duration::ZERO);
    });
}
