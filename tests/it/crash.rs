//! kill -9 of real members under load: nothing acknowledged is lost, nothing happens twice, and the
//! cluster is back soon.
//!
//! | variable | meaning |
//! |---|---|
//! | `QUORATE_KILLS` | how often a member is killed; 5 |
//! | `QUORATE_SEED` | the seed that a failed run printed |
//! | `QUORATE_STRICT=1` | hold the cluster to [`UNAVAILABLE_MAX`] after each kill |
//! | `QUORATE_TEST_SERVER` | the binary to test instead of our own |

use std::time::{Duration, Instant};

use quorate::clock;

use crate::support::client::assert_same_data;
use crate::support::cluster::Cluster;
use crate::support::load::{Clients, Load};
use crate::support::server::program_under_test;
use crate::support::{BUSY, number, seed};

/// The longest time without any acknowledged write after the leader was killed, with default flags.
const UNAVAILABLE_MAX: Duration = Duration::from_secs(2);

/// How long the load may take to make progress after a crash, on a machine with other work.
const PROGRESS_PATIENCE: Duration = Duration::from_secs(60);

/// Kills the leader (or the only member) `QUORATE_KILLS` times while the load runs, each time at a
/// random moment, and starts it again. Returns when each kill was.
async fn kill_leaders(cluster: &mut Cluster, load: &Load, rng: &mut fastrand::Rng) -> Vec<Instant> {
    let mut kills = Vec::new();
    for round in 1..=number("QUORATE_KILLS", 5) {
        load.until_more(50, PROGRESS_PATIENCE).await;
        tokio::time::sleep(Duration::from_millis(rng.u64(0..700))).await;
        let leader = cluster.leader().await;
        let alone = cluster.members.len() == 1;
        let member = &mut cluster.members[leader];
        kills.push(clock::now());
        member.kill().await;
        if !alone {
            load.until_more(1, PROGRESS_PATIENCE).await;
            tokio::time::sleep(Duration::from_millis(rng.u64(0..700))).await;
        }
        member.restart();
        member.until_ready().await;
        load.until_more(1, PROGRESS_PATIENCE).await;
        let (now, killed) = (clock::now(), kills[kills.len() - 1]);
        let gap = load.longest_gap(killed, now);
        eprintln!("kill {round}: member {leader}, {} ms without a write", gap.as_millis());
    }
    kills
}

/// Prints the unavailability after each kill, and holds it to its bound if that is asked for.
fn report_gaps(load: &Load, kills: &[Instant], strict: bool) {
    let ends = kills.iter().skip(1).copied().chain([clock::now()]);
    let mut gaps: Vec<Duration> =
        kills.iter().zip(ends).map(|(kill, end)| load.longest_gap(*kill, end)).collect();
    gaps.sort_unstable();
    let (Some(longest), median) = (gaps.last(), gaps[gaps.len() / 2]) else { return };
    eprintln!(
        "{} kills, {} writes acknowledged, {} in doubt; longest gap after a kill: median {} ms, \
         maximum {} ms",
        kills.len(),
        load.acknowledged(),
        load.doubtful(),
        median.as_millis(),
        longest.as_millis()
    );
    if strict && std::env::var("QUORATE_STRICT").is_ok_and(|value| value == "1") {
        assert!(*longest <= UNAVAILABLE_MAX, "{longest:?} without any write");
    }
}

/// Runs the load and the kills side by side, then checks every member against the ledger.
async fn survive_kills(count: usize, clients: Clients) {
    let _busy = BUSY.lock().await;
    let mut rng = fastrand::Rng::with_seed(seed());
    let mut cluster = Cluster::start(&program_under_test(), count);
    let endpoints = cluster.endpoints();
    let load = Load::new(endpoints.clone(), clients, rng.u64(..));
    let kill = async {
        let kills = kill_leaders(&mut cluster, &load, &mut rng).await;
        load.until_more(50, PROGRESS_PATIENCE).await;
        load.stop();
        kills
    };
    let (kills, ()) = futures_util::future::join(kill, load.run()).await;
    for endpoint in &endpoints {
        load.check(endpoint).await;
    }
    let revision = assert_same_data(&endpoints).await;
    eprintln!("all members are equal at revision {revision}");
    report_gaps(&load, &kills, count > 1);
}

/// The promise of the product: an acknowledged write survives the leader, and reads after it see it.
#[tokio::test]
async fn a_cluster_whose_leader_is_killed_again_and_again_loses_nothing() {
    let clients = Clients { putters: 6, counters: 3 };
    survive_kills(3, clients).await;
}

/// One member alone has nobody to recover from: what it acknowledged must be on its own disk.
#[tokio::test]
async fn a_single_member_that_is_killed_again_and_again_loses_nothing() {
    let clients = Clients { putters: 6, counters: 3 };
    survive_kills(1, clients).await;
}
