//! `bench watch`: how long after a write begins its events arrive, and whether all of them do.
//!
//! Watchers are spread evenly over the watched keys and over the streams. Every value begins with
//! the number of its put, so that an event leads to the moment when its put was begun. The puts
//! that nobody watches are those of keys beyond the watched ones.

use std::{
    cell::RefCell,
    io::Write,
    time::{Duration, Instant},
};

use bytes::Bytes;
use clap::Args;
use futures_util::stream::{FuturesUnordered, StreamExt};
use quorate::pb::etcdserverpb::{
    PutRequest, WatchCreateRequest, WatchRequest, WatchResponse, kv_client::KvClient,
    watch_client::WatchClient, watch_request::RequestUnion,
};
use serde_json::json;
use tokio::{
    sync::{Notify, mpsc},
    time::{sleep_until, timeout},
};
use tonic::Streaming;

use super::{
    connect, parse_positive,
    report::{Errors, Latencies},
};
use crate::{
    client::{Client, Session, now},
    error::Error,
    flags::{GlobalFlags, parse_int},
    go,
    print::Format,
    watcher::outgoing,
};

/// The part of a value that says which put it is from, in bytes.
const NUMBER_BYTES: usize = 8;

/// How many watchers and how much for them to see.
#[derive(Args, Clone, Debug)]
pub(super) struct WatchLoadArgs {
    /// Number of watchers of all streams together
    #[arg(long, default_value = "1000", value_parser = parse_positive)]
    watchers: usize,
    /// Number of streams that the watchers share
    #[arg(long, default_value = "10", value_parser = parse_positive)]
    streams: usize,
    /// Number of connections that the streams share; the puts have one more
    #[arg(long, default_value = "1", value_parser = parse_positive)]
    conns: usize,
    /// Number of different keys that are watched
    #[arg(long, default_value = "1", value_parser = parse_positive)]
    watched_keys: usize,
    /// Number of different keys that are written (default: those watched)
    #[arg(long, value_parser = parse_positive)]
    key_space_size: Option<usize>,
    /// Number of puts
    #[arg(long, default_value = "1000", value_parser = parse_positive)]
    total: usize,
    /// Puts per second (0 is no limit)
    #[arg(long, default_value = "0", value_parser = parse_int)]
    rate: i64,
    /// Number of clients that put, each with one request in flight
    #[arg(long, default_value = "1", value_parser = parse_positive)]
    clients: usize,
    /// Size of a key in bytes; keys are numbers with leading zeros
    #[arg(long, default_value = "8", value_parser = parse_positive)]
    key_size: usize,
    /// Size of a value in bytes
    #[arg(long, default_value = "256", value_parser = parse_positive)]
    val_size: usize,
    /// Also ask for what was there before
    #[arg(long)]
    prev_kv: bool,
    /// How long to wait for events after the last put
    #[arg(long, default_value = "10s", value_parser = go::parse_duration)]
    drain: Duration,
}

/// A measurement under way; all of it on one thread.
struct Run<'a> {
    args: &'a WatchLoadArgs,
    start: Instant,
    timeout: Duration,
    shared: RefCell<Shared>,
    /// Something was received when all puts were done.
    received: Notify,
}

struct Shared {
    /// When each put was begun, by its number.
    begun: Vec<Instant>,
    puts: Latencies,
    events: Latencies,
    /// Events that the acknowledged puts owe to the watchers.
    expected: u64,
    /// Events that came again or too late, by the revisions of a watcher.
    disordered: u64,
    /// Events of writes that are not ours.
    foreign: u64,
    /// The last revision that each watcher has seen.
    seen: Vec<i64>,
    errors: Errors,
}

/// Runs `bench watch`.
pub(super) async fn run(
    args: &WatchLoadArgs,
    client: &Client,
    flags: &GlobalFlags,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), Error> {
    check(args)?;
    let sessions = connect(client, args.conns + 1, flags.command_timeout).await?;
    let (put_session, stream_sessions) = sessions.split_last().expect("there is one at least");
    let streams = args.streams.min(args.watchers);
    let began = now();
    let mut opened = Vec::with_capacity(streams);
    for number in 0..streams {
        let session = &stream_sessions[number % stream_sessions.len()];
        let watchers: Vec<usize> = (number..args.watchers).step_by(streams).collect();
        opened.push((open(session, args, &watchers).await?, watchers));
    }
    let setup = began.elapsed();
    let run = Run {
        args,
        start: now(),
        timeout: flags.command_timeout,
        shared: RefCell::new(Shared::new(args)),
        received: Notify::new(),
    };
    let mut readers: FuturesUnordered<_> =
        opened.into_iter().map(|(stream, watchers)| run.read(stream, watchers)).collect();
    let elapsed = {
        let mut driver = std::pin::pin!(run.drive(put_session));
        loop {
            tokio::select! {
                elapsed = &mut driver => break elapsed,
                Some(()) = readers.next() => {}
            }
        }
    };
    drop(readers);
    run.shared.into_inner().write(out, args, format, (setup, elapsed))
}

fn check(args: &WatchLoadArgs) -> Result<(), Error> {
    let keys = args.watched_keys.max(args.key_space_size.unwrap_or(0));
    let digits = (keys - 1).to_string().len();
    if args.key_size < digits {
        return Err(Error::BadArgs(format!("--key-size does not fit, want {digits} or more")));
    }
    if args.val_size < NUMBER_BYTES {
        return Err(Error::BadArgs(format!("--val-size wants {NUMBER_BYTES} or more")));
    }
    Ok(())
}

fn key(args: &WatchLoadArgs, index: usize) -> Bytes {
    format!("{index:0width$}", width = args.key_size).into()
}

/// Opens a stream with these watchers and waits until all of them are there.
async fn open(
    session: &Session,
    args: &WatchLoadArgs,
    watchers: &[usize],
) -> Result<Streaming<WatchResponse>, Error> {
    let (requests, queue) = mpsc::channel(watchers.len());
    for (number, watcher) in watchers.iter().enumerate() {
        let request = WatchCreateRequest {
            key: key(args, watcher % args.watched_keys),
            prev_kv: args.prev_kv,
            // From 1 on: 0 lets the server choose.
            watch_id: i64::try_from(number + 1).unwrap_or(i64::MAX),
            ..WatchCreateRequest::default()
        };
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) };
        requests.try_send(request).expect("the queue has room for all of them");
    }
    let mut watch =
        WatchClient::new(session.channel.clone()).max_decoding_message_size(i32::MAX as usize);
    // As any client: the stream of requests stays open as long as that of responses.
    let requests_end = outgoing(queue).chain(futures_util::stream::pending());
    drop(requests);
    let mut stream = watch.watch(session.request(requests_end)).await?.into_inner();
    for _ in watchers {
        let response = stream.message().await?;
        let created = response.is_some_and(|response| response.created && !response.canceled);
        if !created {
            return Err(Error::General("a watcher was not created".to_owned()));
        }
    }
    Ok(stream)
}

impl Run<'_> {
    /// Puts everything, waits for what is still on its way, and says how long the puts took.
    async fn drive(&self, session: &Session) -> Duration {
        let puts: FuturesUnordered<_> =
            (0..self.args.clients).map(|_| self.put_client(session)).collect();
        puts.collect::<()>().await;
        let elapsed = self.start.elapsed();
        let all = async {
            while !self.shared.borrow().is_complete() {
                self.received.notified().await;
            }
        };
        // What is missing then is reported as lost.
        let _in_time = timeout(self.args.drain, all).await;
        elapsed
    }

    async fn put_client(&self, session: &Session) {
        let mut kv = KvClient::new(session.channel.clone());
        let space = self.args.key_space_size.unwrap_or(self.args.watched_keys);
        loop {
            let number = self.shared.borrow().begun.len();
            if number >= self.args.total {
                return;
            }
            // Reserved before the wait, so that no other client takes the same number.
            self.shared.borrow_mut().begun.push(self.start);
            if self.args.rate > 0 {
                let turn = Duration::from_secs_f64(number as f64 / self.args.rate as f64);
                sleep_until((self.start + turn).into()).await;
            }
            let mut value = vec![b'.'; self.args.val_size];
            value[..NUMBER_BYTES].copy_from_slice(&(number as u64).to_be_bytes());
            let index = number % space;
            let request = PutRequest {
                key: key(self.args, index),
                value: value.into(),
                ..PutRequest::default()
            };
            let begun = now();
            self.shared.borrow_mut().begun[number] = begun;
            let answer = timeout(self.timeout, kv.put(session.request(request))).await;
            let shared = &mut *self.shared.borrow_mut();
            match answer {
                Ok(Ok(_)) => {
                    shared.puts.record(begun.elapsed());
                    shared.expected += watchers_of(self.args, index);
                }
                Ok(Err(status)) => shared.errors.count(Error::from(status).to_string()),
                Err(_) => shared.errors.count(Error::Deadline.to_string()),
            }
        }
    }

    async fn read(&self, mut stream: Streaming<WatchResponse>, watchers: Vec<usize>) {
        loop {
            match stream.message().await {
                Ok(Some(response)) => self.shared.borrow_mut().take(&response, &watchers, now()),
                Ok(None) => return self.end("a stream has ended".to_owned()),
                Err(status) => return self.end(Error::from(status).to_string()),
            }
            self.received.notify_one();
        }
    }

    fn end(&self, text: String) {
        self.shared.borrow_mut().errors.count(text);
    }
}

/// How many watchers look at the key with this index.
fn watchers_of(args: &WatchLoadArgs, index: usize) -> u64 {
    if index >= args.watched_keys {
        return 0;
    }
    let extra = usize::from(index < args.watchers % args.watched_keys);
    (args.watchers / args.watched_keys + extra) as u64
}

impl Shared {
    fn new(args: &WatchLoadArgs) -> Self {
        Self {
            begun: Vec::with_capacity(args.total),
            puts: Latencies::new(),
            events: Latencies::new(),
            expected: 0,
            disordered: 0,
            foreign: 0,
            seen: vec![0; args.watchers],
            errors: Errors::default(),
        }
    }

    fn is_complete(&self) -> bool {
        self.events.len() >= self.expected
    }

    /// Counts the events of a response that has just arrived.
    fn take(&mut self, response: &WatchResponse, watchers: &[usize], arrived: Instant) {
        if response.canceled {
            return self.errors.count(format!("canceled: {}", response.cancel_reason));
        }
        let number = usize::try_from(response.watch_id - 1).ok();
        let Some(&watcher) = number.and_then(|number| watchers.get(number)) else {
            return self.errors.count("a response for an unknown watcher".to_owned());
        };
        for kv in response.events.iter().filter_map(|event| event.kv.as_ref()) {
            let number = kv.value.first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
            let number = number.and_then(|number| usize::try_from(number).ok());
            let Some(begun) = number.and_then(|number| self.begun.get(number)) else {
                self.foreign += 1;
                continue;
            };
            if kv.mod_revision <= self.seen[watcher] {
                self.disordered += 1;
                continue;
            }
            self.seen[watcher] = kv.mod_revision;
            self.events.record(arrived.saturating_duration_since(*begun));
        }
    }

    fn write(
        self,
        out: &mut dyn Write,
        args: &WatchLoadArgs,
        format: Format,
        (setup, elapsed): (Duration, Duration),
    ) -> Result<(), Error> {
        let lost = self.expected.saturating_sub(self.events.len());
        let seconds = elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        let streams = args.streams.min(args.watchers);
        if format == Format::Json {
            let report = json!({
                "workload": "watch",
                "watchers": args.watchers,
                "streams": streams,
                "connections": args.conns,
                "watched_keys": args.watched_keys,
                "key_space_size": args.key_space_size.unwrap_or(args.watched_keys),
                "clients": args.clients,
                "value_size": args.val_size,
                "setup_seconds": setup.as_secs_f64(),
                "seconds": seconds,
                "puts_per_second": self.puts.len() as f64 / seconds,
                "puts": self.puts.to_json(),
                "events": self.events.to_json(),
                "events_expected": self.expected,
                "events_received": self.events.len(),
                "events_lost": lost,
                "events_disordered": self.disordered,
                "events_foreign": self.foreign,
                "errors": self.errors.to_json(),
            });
            writeln!(out, "{report}")?;
        } else {
            writeln!(
                out,
                "watch: {} watchers of {} keys, {streams} streams, {} connections, set up in {:.2} s",
                args.watchers,
                args.watched_keys,
                args.conns,
                setup.as_secs_f64(),
            )?;
            writeln!(
                out,
                "events: {} of {} in {seconds:.2} s, {lost} lost, {} disordered, {} foreign",
                self.events.len(),
                self.expected,
                self.disordered,
                self.foreign
            )?;
            self.puts.write_line(out, "puts")?;
            self.events.write_line(out, "events from the put's start")?;
            self.errors.write_lines(out)?;
        }
        match lost + self.disordered {
            0 if self.puts.len() > 0 => Ok(()),
            0 => Err(Error::General("no request succeeded".to_owned())),
            _ => Err(Error::General(format!("{lost} lost, {} disordered", self.disordered))),
        }
    }
}
