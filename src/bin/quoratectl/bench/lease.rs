//! `bench lease`: what it takes to grant leases, to keep them alive, and to revoke them.
//!
//! Three phases, one after the other, each a closed loop over the same clients. A client renews on
//! a stream of its own with one renewal in flight, taking the leases in turn.

use std::{
    cell::RefCell,
    io::Write,
    time::{Duration, Instant},
};

use clap::Args;
use futures_util::stream::{FuturesUnordered, StreamExt};
use quorate::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseRevokeRequest,
    lease_client::LeaseClient,
};
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{sleep_until, timeout},
};
use tonic::{Status, Streaming};

use super::{
    connect, parse_positive,
    report::{Errors, Latencies},
};
use crate::{
    client::{Client, Session, now},
    error::Error,
    flags::{GlobalFlags, parse_int},
    print::Format,
    watcher::outgoing,
};

/// How many leases and renewals.
#[derive(Args, Clone, Debug)]
pub(super) struct LeaseLoadArgs {
    /// Number of leases
    #[arg(long, default_value = "1000", value_parser = parse_positive)]
    leases: usize,
    /// Number of renewals of all leases together; 0 leaves them out
    #[arg(long, default_value = "10000", value_parser = parse_int)]
    keep_alives: i64,
    /// Time to live of a lease in seconds
    #[arg(long, default_value = "60", value_parser = parse_int)]
    ttl: i64,
    /// Number of clients, each with one request in flight
    #[arg(long, default_value = "1", value_parser = parse_positive)]
    clients: usize,
    /// Number of connections that the clients share
    #[arg(long, default_value = "1", value_parser = parse_positive)]
    conns: usize,
    /// Requests per second in each phase (0 is no limit)
    #[arg(long, default_value = "0", value_parser = parse_int)]
    rate: i64,
    /// Leave the leases to expire instead of revoking them
    #[arg(long)]
    keep: bool,
}

/// What a phase does with each lease.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Grant,
    KeepAlive,
    Revoke,
}

/// One phase; all of it on one thread.
struct Phase<'a> {
    kind: Kind,
    total: usize,
    args: &'a LeaseLoadArgs,
    start: Instant,
    timeout: Duration,
    shared: RefCell<Shared>,
}

#[derive(Default)]
struct Shared {
    started: usize,
    leases: Vec<i64>,
    latencies: Option<Latencies>,
    errors: Errors,
}

/// What came of a phase.
struct Outcome {
    name: &'static str,
    seconds: f64,
    latencies: Latencies,
}

/// Runs `bench lease`.
pub(super) async fn run(
    args: &LeaseLoadArgs,
    client: &Client,
    flags: &GlobalFlags,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let sessions = connect(client, args.conns, flags.command_timeout).await?;
    let keep_alives = usize::try_from(args.keep_alives).unwrap_or(0);
    let plan = [
        ("grants", Kind::Grant, args.leases),
        ("keep_alives", Kind::KeepAlive, keep_alives),
        ("revokes", Kind::Revoke, if args.keep { 0 } else { args.leases }),
    ];
    let mut shared = Shared::default();
    let mut outcomes = Vec::new();
    for (name, kind, total) in plan {
        let total = if kind == Kind::Revoke { total.min(shared.leases.len()) } else { total };
        if total == 0 || (kind != Kind::Grant && shared.leases.is_empty()) {
            continue;
        }
        shared.started = 0;
        shared.latencies = Some(Latencies::new());
        let start = now();
        let timeout = flags.command_timeout;
        let phase = Phase { kind, total, args, start, timeout, shared: RefCell::new(shared) };
        let clients: FuturesUnordered<_> = (0..args.clients)
            .map(|number| phase.client(&sessions[number % sessions.len()]))
            .collect();
        clients.collect::<()>().await;
        let seconds = start.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
        shared = phase.shared.into_inner();
        let latencies = shared.latencies.take().unwrap_or_else(Latencies::new);
        outcomes.push(Outcome { name, seconds, latencies });
    }
    write(out, args, format, &outcomes, &shared.errors)?;
    match outcomes.iter().any(|outcome| outcome.latencies.len() > 0) {
        true => Ok(()),
        false => Err(Error::General("no request succeeded".to_owned())),
    }
}

fn write(
    out: &mut dyn Write,
    args: &LeaseLoadArgs,
    format: Format,
    outcomes: &[Outcome],
    errors: &Errors,
) -> Result<(), Error> {
    if format == Format::Json {
        let mut report = json!({
            "workload": "lease",
            "leases": args.leases,
            "ttl": args.ttl,
            "clients": args.clients,
            "connections": args.conns,
            "errors": errors.to_json(),
        });
        for Outcome { name, seconds, latencies } in outcomes {
            let mut phase = latencies.to_json();
            if phase.is_object() {
                phase["seconds"] = (*seconds).into();
                phase["requests_per_second"] = (latencies.len() as f64 / seconds).into();
            }
            report[*name] = phase;
        }
        writeln!(out, "{report}")?;
        return Ok(());
    }
    let LeaseLoadArgs { leases, ttl, clients, conns, .. } = args;
    writeln!(out, "lease: {leases} leases of {ttl} s, {clients} clients, {conns} connections")?;
    for Outcome { name, seconds, latencies } in outcomes {
        let per_second = latencies.len() as f64 / seconds;
        writeln!(out, "{name}: {} in {seconds:.2} s, {per_second:.0} a second", latencies.len())?;
        latencies.write_line(out, name)?;
    }
    errors.write_lines(out)?;
    Ok(())
}

impl Phase<'_> {
    async fn client(&self, session: &Session) {
        let mut lease = LeaseClient::new(session.channel.clone());
        let mut renewals: Option<Renewals> = None;
        while let Some(number) = self.next_turn().await {
            let sent = now();
            let attempt = async {
                match self.kind {
                    Kind::Grant => self.grant(&mut lease, session).await,
                    Kind::KeepAlive => self.keep_alive(&mut renewals, session, number).await,
                    Kind::Revoke => {
                        let id = self.lease(number);
                        let request = session.request(LeaseRevokeRequest { id });
                        lease.lease_revoke(request).await.map(|_| ())
                    }
                }
            };
            let answer = timeout(self.timeout, attempt).await;
            let latency = sent.elapsed();
            let shared = &mut *self.shared.borrow_mut();
            match answer {
                Ok(Ok(())) => {
                    if let Some(latencies) = &mut shared.latencies {
                        latencies.record(latency);
                    }
                }
                Ok(Err(status)) => {
                    renewals = None;
                    shared.errors.count(Error::from(status).to_string());
                }
                Err(_) => {
                    renewals = None;
                    shared.errors.count(Error::Deadline.to_string());
                }
            }
        }
    }

    async fn next_turn(&self) -> Option<usize> {
        let number = {
            let shared = &mut *self.shared.borrow_mut();
            if shared.started >= self.total {
                return None;
            }
            shared.started += 1;
            shared.started - 1
        };
        if self.args.rate > 0 {
            let turn = Duration::from_secs_f64(number as f64 / self.args.rate as f64);
            sleep_until((self.start + turn).into()).await;
        }
        Some(number)
    }

    fn lease(&self, number: usize) -> i64 {
        let leases = &self.shared.borrow().leases;
        leases[number % leases.len()]
    }

    async fn grant(
        &self,
        lease: &mut LeaseClient<tonic::transport::Channel>,
        session: &Session,
    ) -> Result<(), Status> {
        let request = session.request(LeaseGrantRequest { ttl: self.args.ttl, id: 0 });
        let granted = lease.lease_grant(request).await?.into_inner();
        self.shared.borrow_mut().leases.push(granted.id);
        Ok(())
    }

    async fn keep_alive(
        &self,
        renewals: &mut Option<Renewals>,
        session: &Session,
        number: usize,
    ) -> Result<(), Status> {
        let id = self.lease(number);
        let lost = || Status::unavailable("the stream of renewals has ended");
        let open = match renewals {
            Some(open) => {
                let request = LeaseKeepAliveRequest { id };
                open.requests.send(request).await.map_err(|_| lost())?;
                open
            }
            None => renewals.insert(Renewals::open(session, id).await?),
        };
        match open.responses.message().await?.ok_or_else(lost)? {
            response if response.id != id => Err(Status::internal("renewals out of order")),
            response if response.ttl <= 0 => Err(Status::not_found("a lease is gone")),
            _ => Ok(()),
        }
    }
}

/// A stream of renewals.
struct Renewals {
    requests: mpsc::Sender<LeaseKeepAliveRequest>,
    responses: Streaming<LeaseKeepAliveResponse>,
}

impl Renewals {
    /// Opens a stream with its first request: a server may answer nothing before it.
    async fn open(session: &Session, id: i64) -> Result<Self, Status> {
        let (requests, queue) = mpsc::channel(1);
        let first = LeaseKeepAliveRequest { id };
        requests.try_send(first).expect("the queue is new and has room");
        let mut lease = LeaseClient::new(session.channel.clone());
        let responses =
            lease.lease_keep_alive(session.request(outgoing(queue))).await?.into_inner();
        Ok(Self { requests, responses })
    }
}
