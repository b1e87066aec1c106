//! Three candidates, one leader, and a judge who proves that there are never two.
//!
//!     leader_election http://HOST:PORT[,...] [ROUNDS]
//!
//! Each candidate campaigns with the stock `etcd-client` crate. While it leads it writes a ledger,
//! in a transaction that holds only if the key of its leadership still exists with the create
//! revision it was elected at. That revision is the fencing token: it is larger for every later
//! leader, so what a leader writes that has lost its lease unawares is refused, not just unlikely.
//!
//! Each round the leader is killed, without a chance to resign or to revoke its lease, so that the
//! next one takes over when the lease has expired: within its TTL and a second. The judge then reads
//! the ledger's whole history and checks that the tokens never decrease from one write to the next.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use etcd_client::{Client, Compare, CompareOp, EventType, PutOptions, Txn, TxnOp, WatchOptions};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Time to live of a candidate's lease, in seconds.
const TTL_SECONDS: i64 = 2;

/// How much longer than its lease a dead leader may be missed.
const TAKEOVER_EXTRA: Duration = Duration::from_secs(1);

/// Writes of a leader before it is killed.
const WRITES: usize = 20;

/// What candidates tell the main program.
struct Elected {
    candidate: usize,
    token: i64,
}

/// Where everything of this run is kept.
#[derive(Clone)]
struct Names {
    election: String,
    ledger: String,
}

/// Campaigns and, once elected, writes the ledger until it is refused.
async fn candidate(
    endpoints: Vec<String>,
    names: Names,
    number: usize,
    elected: mpsc::Sender<Elected>,
    progress: mpsc::Sender<i64>,
) -> Result<()> {
    let mut client = Client::connect(endpoints, None).await?;
    let lease = client.lease_grant(TTL_SECONDS, None).await?.id();
    let (mut keeper, mut renewals) = client.lease_keep_alive(lease).await?;
    let renew = async {
        loop {
            keeper.keep_alive().await?;
            match renewals.message().await? {
                Some(renewal) if renewal.ttl() > 0 => {}
                _ => return Err("the lease is gone".into()),
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let lead = async {
        let campaign = client.campaign(names.election, number.to_string(), lease).await?;
        let leader = campaign.leader().ok_or("elected without a key")?;
        let (key, token) = (leader.key().to_vec(), leader.rev());
        elected.send(Elected { candidate: number, token }).await?;
        loop {
            let still_leader = Compare::create_revision(key.clone(), CompareOp::Equal, token);
            let write = TxnOp::put(names.ledger.clone(), token.to_string(), None);
            let txn = Txn::new().when([still_leader]).and_then([write]);
            if !client.txn(txn).await?.succeeded() {
                return Err("no longer the leader".into());
            }
            progress.send(token).await?;
        }
    };
    tokio::select! {
        ended = renew => ended,
        ended = lead => ended,
    }
}

/// Reads the ledger's history from `revision` on and checks the tokens; returns how many leaders.
async fn judge(client: &mut Client, ledger: &str, revision: i64) -> Result<usize> {
    let last = client.get(ledger, None).await?;
    let last = last.kvs().first().ok_or("nobody has written the ledger")?.mod_revision();
    let options = WatchOptions::new().with_start_revision(revision);
    let mut stream = client.watch(ledger, Some(options)).await?;
    let (mut token, mut leaders, mut writes) = (0, 0, 0);
    while let Some(response) = stream.message().await? {
        for event in response.events() {
            let kv = event.kv().ok_or("an event without a pair")?;
            if event.event_type() != EventType::Put {
                return Err("the ledger was deleted".into());
            }
            let next: i64 = kv.value_str()?.parse()?;
            if next < token {
                return Err(format!("two leaders: {next} wrote after {token}").into());
            }
            leaders += usize::from(next > token);
            writes += 1;
            token = next;
            if kv.mod_revision() == last {
                println!("judge: {writes} writes by {leaders} leaders, never two at once");
                return Ok(leaders);
            }
        }
    }
    Err("the judge's stream has ended".into())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let endpoints = arguments.next().ok_or("usage: leader_election ENDPOINT[,...] [ROUNDS]")?;
    let endpoints: Vec<String> = endpoints.split(',').map(str::to_owned).collect();
    let rounds: usize = arguments.next().map_or(Ok(3), |text| text.parse())?;
    let run = std::process::id();
    let names = Names {
        election: format!("example/election/{run}"),
        ledger: format!("example/ledger/{run}"),
    };
    let mut client = Client::connect(endpoints.clone(), None).await?;
    let put = client.put("example/start", "", Some(PutOptions::new())).await?;
    let first = put.header().ok_or("no header")?.revision() + 1;

    let (elected, mut elections) = mpsc::channel(8);
    // Each write waits until it is counted: a killed leader leaves nothing behind in here.
    let (progress, mut writes) = mpsc::channel(1);
    let start = |number| {
        let work =
            candidate(endpoints.clone(), names.clone(), number, elected.clone(), progress.clone());
        tokio::spawn(async move {
            // Only a candidate that was not killed comes to this.
            let ended = work.await;
            if let Err(error) = &ended {
                println!("candidate {number} gave up: {error}");
            }
            ended
        })
    };
    let mut candidates: Vec<JoinHandle<Result<()>>> = (0..3).map(start).collect();
    let mut killed: Option<Instant> = None;
    for round in 0..=rounds {
        let patience = Duration::from_secs(TTL_SECONDS.unsigned_abs()) + TAKEOVER_EXTRA;
        let patience = if killed.is_some() { patience } else { Duration::from_secs(30) };
        let leader = timeout(patience, elections.recv()).await;
        let leader = leader.map_err(|_| "nobody took over in time")?.ok_or("no candidates")?;
        let took = killed.map_or(Duration::ZERO, |killed| killed.elapsed());
        println!(
            "round {round}: candidate {} leads, token {}, after {took:?}",
            leader.candidate, leader.token
        );
        let mut seen = 0;
        while seen < WRITES {
            let token = timeout(Duration::from_secs(30), writes.recv()).await?;
            seen += usize::from(token == Some(leader.token));
        }
        // Killed: neither resigned nor revoked, its connection simply goes away.
        candidates[leader.candidate].abort();
        killed = Some(Instant::now());
        candidates[leader.candidate] = start(leader.candidate);
    }
    candidates.iter().for_each(JoinHandle::abort);
    let leaders = judge(&mut client, &names.ledger, first).await?;
    client.delete(names.ledger, None).await?;
    match leaders == rounds + 1 {
        true => Ok(()),
        false => Err(format!("{leaders} leaders in {} rounds", rounds + 1).into()),
    }
}
