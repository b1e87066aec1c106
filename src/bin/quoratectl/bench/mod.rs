//! `bench`: a closed-loop load generator for any etcd endpoint.
//!
//! Each of `--clients` sends one request, waits for its answer, and sends the next. The clients
//! share `--conns` HTTP/2 connections and one thread, so that the generator takes little from a
//! server on the same machine. Latency runs from the moment a client sends to the moment it has
//! the answer; with `--rate` a client waits for its turn first, and that wait is not counted.
//!
//! The same seed gives the same keys and values in the same order per client.
//!
//! Watchers and leases are measured in their own ways, see [`watch`] and [`lease`].

mod lease;
mod report;
mod watch;
mod workload;

use std::{
    cell::RefCell,
    io::Write,
    time::{Duration, Instant},
};

use clap::{Args, Subcommand};
use futures_util::stream::{FuturesUnordered, StreamExt};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use quorate::pb::etcdserverpb::kv_client::KvClient;
use tokio::time::{sleep_until, timeout};
use tonic::transport::Channel;

use self::{
    report::Report,
    workload::{Operation, Script},
};
use crate::{
    client::{Client, Session, now},
    client_and_format,
    error::Error,
    flags::{GlobalFlags, parse_int},
    go,
    print::Format,
};

/// `bench` and its subcommand.
#[derive(Args, Clone, Debug)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    workload: Workload,
}

/// What the requests are.
#[derive(Clone, Debug, Subcommand)]
enum Workload {
    /// Writes one key per request
    Put(LoadArgs),
    /// Reads one key per request
    Get(LoadArgs),
    /// Reads and writes one key per request
    Mixed(LoadArgs),
    /// Compares, writes and reads one key in a transaction per request
    Txn(LoadArgs),
    /// Reads an interval of keys per request
    Range(RangeArgs),
    /// Writes keys that many watchers see
    Watch(watch::WatchLoadArgs),
    /// Grants leases, keeps them alive, and revokes them
    Lease(lease::LeaseLoadArgs),
}

/// What an interval looks like.
#[derive(Args, Clone, Debug)]
struct RangeArgs {
    /// Number of neighbouring keys in an interval
    #[arg(long, default_value = "1000", value_parser = parse_positive)]
    range_keys: usize,
    /// Stop after this many keys; 0 does not stop
    #[arg(long, default_value = "0", value_parser = parse_int)]
    limit: i64,
    /// Leave the values out
    #[arg(long)]
    keys_only: bool,
    /// Only ask how many keys there are
    #[arg(long)]
    count_only: bool,
    #[command(flatten)]
    load: LoadArgs,
}

/// How much of it, and on which keys.
#[derive(Args, Clone, Debug)]
struct LoadArgs {
    /// Number of clients, each with one request in flight
    #[arg(long, default_value = "1", value_parser = parse_positive)]
    clients: usize,
    /// Number of connections that the clients share
    #[arg(long, default_value = "1", value_parser = parse_positive)]
    conns: usize,
    /// Number of requests of all clients together
    #[arg(long, default_value = "10000", value_parser = parse_positive)]
    total: usize,
    /// Run for this long instead of a number of requests
    #[arg(long, value_parser = go::parse_duration)]
    duration: Option<Duration>,
    /// Size of a key in bytes; keys are numbers with leading zeros
    #[arg(long, default_value = "8", value_parser = parse_positive)]
    key_size: usize,
    /// Size of a value in bytes
    #[arg(long, default_value = "256", value_parser = parse_int)]
    val_size: i64,
    /// Number of different keys
    #[arg(long, default_value = "10000", value_parser = parse_positive)]
    key_space_size: usize,
    /// Use the keys in order instead of at random
    #[arg(long)]
    sequential_keys: bool,
    /// Write every key once before the measurement
    #[arg(long)]
    prefill: bool,
    /// Linearizable(l) or Serializable(s) reads
    #[arg(long, default_value = "l")]
    consistency: String,
    /// Requests per second of all clients together (0 is no limit)
    #[arg(long, default_value = "0", value_parser = parse_int)]
    rate: i64,
    /// Percentage of reads in `mixed`
    #[arg(long, default_value = "90", value_parser = parse_int)]
    read_percent: i64,
    /// Seed of keys and values (default: random, see the report)
    #[arg(long, value_parser = parse_int)]
    seed: Option<i64>,
}

fn parse_positive(text: &str) -> Result<usize, String> {
    let number = parse_int(text)?;
    usize::try_from(number)
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| format!("want a number above zero, got {number}"))
}

/// Runs `bench`.
pub(crate) async fn run(
    args: &BenchArgs,
    flags: &GlobalFlags,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let (client, format) = client_and_format(flags)?;
    if !matches!(format, Format::Simple | Format::Json) {
        return Err(Error::BadFeature("bench writes simple or json".to_owned()));
    }
    let (name, load) = match &args.workload {
        Workload::Put(load) => ("put", load),
        Workload::Get(load) => ("get", load),
        Workload::Mixed(load) => ("mixed", load),
        Workload::Txn(load) => ("txn", load),
        Workload::Range(args) => ("range", &args.load),
        Workload::Watch(args) => return watch::run(args, &client, flags, format, out).await,
        Workload::Lease(args) => return lease::run(args, &client, flags, format, out).await,
    };
    let script = Script::new(&args.workload, load)?;
    let sessions = connect(&client, load.conns, flags.command_timeout).await?;
    if load.prefill {
        prefill(&sessions, &script, load, flags.command_timeout).await?;
    }
    let start = now();
    let run = Run {
        script: &script,
        load,
        start,
        end: load.duration.map(|duration| start + duration),
        timeout: flags.command_timeout,
        progress: progress(load),
        shared: RefCell::new(Shared { started: 0, report: Report::new() }),
    };
    let clients: FuturesUnordered<_> = (0..load.clients)
        .map(|number| run.client(number, &sessions[number % sessions.len()]))
        .collect();
    clients.collect::<()>().await;
    let elapsed = start.elapsed();
    run.progress.finish_and_clear();
    let report = run.shared.into_inner().report;
    let settings = report::Settings {
        workload: name,
        clients: load.clients,
        connections: load.conns,
        key_size: load.key_size,
        value_size: load.val_size,
        key_space_size: load.key_space_size,
        seed: script.seed,
    };
    match format {
        Format::Json => writeln!(out, "{}", report.to_json(&settings, elapsed))?,
        _ => report.write_text(out, &settings, elapsed)?,
    }
    match report.has_answers() {
        true => Ok(()),
        false => Err(Error::General("no request succeeded".to_owned())),
    }
}

async fn connect(
    client: &Client,
    connections: usize,
    deadline: Duration,
) -> Result<Vec<Session>, Error> {
    let mut sessions = Vec::with_capacity(connections);
    for number in 0..connections {
        let session = timeout(deadline, client.session_at(number)).await;
        sessions.push(session.unwrap_or(Err(Error::Deadline))?);
    }
    Ok(sessions)
}

async fn prefill(
    sessions: &[Session],
    script: &Script,
    load: &LoadArgs,
    deadline: Duration,
) -> Result<(), Error> {
    const IN_FLIGHT: usize = 64;

    let mut rng = fastrand::Rng::with_seed(script.seed);
    let puts = (0..load.key_space_size).map(|index| {
        let session = &sessions[index % sessions.len()];
        let request = session.request(script.put(index, &mut rng));
        let mut kv = KvClient::new(session.channel.clone());
        async move { timeout(deadline, kv.put(request)).await }
    });
    let mut answers = futures_util::stream::iter(puts).buffer_unordered(IN_FLIGHT);
    while let Some(answer) = answers.next().await {
        answer.map_err(|_| Error::Deadline)??;
    }
    Ok(())
}

/// A bar on standard error, hidden unless that is a terminal.
fn progress(load: &LoadArgs) -> ProgressBar {
    const REDRAWS_PER_SECOND: u8 = 5;

    let length = if load.duration.is_none() { Some(load.total as u64) } else { None };
    let target = ProgressDrawTarget::stderr_with_hz(REDRAWS_PER_SECOND);
    let bar = ProgressBar::with_draw_target(length, target);
    let template = match length {
        Some(_) => "{bar:40} {pos}/{len} {per_sec} {eta}",
        None => "{spinner} {elapsed} {pos} {per_sec}",
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// One measurement.
struct Run<'a> {
    script: &'a Script,
    load: &'a LoadArgs,
    start: Instant,
    /// When no client begins another request; `None` counts requests instead.
    end: Option<Instant>,
    /// After this long a request counts as failed.
    timeout: Duration,
    progress: ProgressBar,
    /// All clients run on one thread and never hold this over an await.
    shared: RefCell<Shared>,
}

struct Shared {
    /// Requests begun so far, which is the number of the next one.
    started: usize,
    report: Report,
}

impl Run<'_> {
    /// One client's loop.
    async fn client(&self, number: usize, session: &Session) {
        let mut rng = fastrand::Rng::with_seed(self.script.seed.wrapping_add(number as u64));
        let mut kv =
            KvClient::new(session.channel.clone()).max_decoding_message_size(i32::MAX as usize);
        while let Some(sequence) = self.next_turn().await {
            let operation = self.script.operation(sequence, &mut rng);
            let is_read = operation.is_read();
            let sent = now();
            let answer = timeout(self.timeout, send(&mut kv, session, operation)).await;
            let latency = sent.elapsed();
            let report = &mut self.shared.borrow_mut().report;
            match answer {
                Ok(Ok(keys)) if is_read => report.read(keys, latency),
                Ok(Ok(_)) => report.written(latency),
                Ok(Err(status)) => report.failed(Error::from(status).to_string()),
                Err(_) => report.failed(Error::Deadline.to_string()),
            }
            self.progress.inc(1);
        }
    }

    /// The number of the next request, when it is time for it; nothing at the end.
    async fn next_turn(&self) -> Option<usize> {
        let sequence = {
            let mut shared = self.shared.borrow_mut();
            if self.end.is_none() && shared.started >= self.load.total {
                return None;
            }
            shared.started += 1;
            shared.started - 1
        };
        if self.load.rate > 0 {
            let turn =
                self.start + Duration::from_secs_f64(sequence as f64 / self.load.rate as f64);
            if self.end.is_some_and(|end| turn >= end) {
                return None;
            }
            sleep_until(turn.into()).await;
        }
        match self.end {
            Some(end) if now() >= end => None,
            _ => Some(sequence),
        }
    }
}

/// Sends one request; the answer is how many keys a read found.
async fn send(
    kv: &mut KvClient<Channel>,
    session: &Session,
    operation: Operation,
) -> Result<usize, tonic::Status> {
    match operation {
        Operation::Put(request) => kv.put(session.request(request)).await.map(|_| 0),
        Operation::Get(request) => {
            let count_only = request.count_only;
            let response = kv.range(session.request(request)).await?.into_inner();
            match count_only {
                true => Ok(usize::try_from(response.count).unwrap_or_default()),
                false => Ok(response.kvs.len()),
            }
        }
        Operation::Txn(request) => kv.txn(session.request(request)).await.map(|_| 0),
    }
}
