//! The simulated network: calls travel frame by frame, and anything may happen to them on the way.
//!
//! A call is an `http::Request` with a gRPC body, as tonic makes it; at the other end the member's own
//! service takes it. What the network does is what TCP and HTTP/2 let an application see: frames of
//! one stream keep their order and come late, streams overtake each other, a blocked link holds
//! everything back until it opens or the connection is given up, a broken connection ends its
//! streams, and a call may have been carried out although its answer is lost. Single calls that
//! change nothing twice are sometimes delivered twice. A proposal is not: one HTTP/2 stream is one
//! call, and no layer of ours repeats it.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use quorate::api::Api;
use quorate::pb::quorate::peer::peer_server::PeerServer;
use quorate::raft::peers::PeerError;
use quorate::raft::{Connector, Line, LineError, PeerService, Transport};
use quorate::tasks::{self, Scope, watch};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;

use super::log::now;

/// Members count from 0; clients have the numbers from here on.
pub(crate) const FIRST_CLIENT: usize = 100;

/// A connection is not waited for longer than this.
const CONNECT_TIME: Duration = Duration::from_secs(1);
/// Frames of one stream that are on their way.
const IN_FLIGHT_MAX: usize = 64;
/// Frames that are taken at once from a body that has them.
const READY_MAX: usize = 8;

/// One direction between two ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) is_blocked: bool,
    pub(crate) delay_min: Duration,
    pub(crate) delay_max: Duration,
    /// How many of a million frames break their stream, or lose their call.
    pub(crate) breaks_ppm: u32,
    /// How many of a million frames take very long.
    pub(crate) stragglers_ppm: u32,
    /// How many of a million single calls come twice.
    pub(crate) doubles_ppm: u32,
    /// Bytes a second, for a slow link.
    pub(crate) bytes_per_second: Option<u64>,
}

impl Default for Link {
    fn default() -> Link {
        Link {
            is_blocked: false,
            delay_min: Duration::from_micros(200),
            delay_max: Duration::from_millis(2),
            breaks_ppm: 0,
            stragglers_ppm: 0,
            doubles_ppm: 0,
            bytes_per_second: None,
        }
    }
}

/// What has happened so far, for the summary.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) calls: u64,
    pub(crate) frames: u64,
    pub(crate) broken: u64,
    pub(crate) stragglers: u64,
    pub(crate) doubles: u64,
}

/// Both ends' services at a member.
#[derive(Clone)]
pub(crate) struct Services {
    pub(crate) scope: Scope,
    pub(crate) peer: PeerServer<PeerService>,
    pub(crate) api: Arc<Api>,
}

enum End {
    /// The process serves.
    Serves(Services),
    /// The machine is on, nobody listens.
    Refuses,
    /// The machine is off.
    Silent,
}

/// The network of one simulation. Clones are the same.
#[derive(Clone)]
pub(crate) struct Net {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    /// A link or an end has changed.
    changed: Notify,
}

struct State {
    rng: Rng,
    links: BTreeMap<(usize, usize), Wire>,
    default: Link,
    ends: BTreeMap<usize, End>,
    counts: Counts,
}

#[derive(Debug, Clone, Copy)]
struct Wire {
    link: Link,
    blocked_since: Option<Instant>,
    /// Connections of before are broken.
    epoch: u64,
    free_at: Instant,
}

impl Net {
    pub(crate) fn new(seed: u64) -> Net {
        let state = State {
            rng: Rng::with_seed(seed),
            links: BTreeMap::new(),
            default: Link::default(),
            ends: BTreeMap::new(),
            counts: Counts::default(),
        };
        Net { inner: Arc::new(Inner { state: Mutex::new(state), changed: Notify::new() }) }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.inner.state.lock().counts
    }

    /// What every link is, unless it is changed.
    pub(crate) fn set_default(&self, link: Link) {
        self.inner.state.lock().default = link;
    }

    /// Changes one direction.
    pub(crate) fn change(&self, from: usize, to: usize, change: impl FnOnce(&mut Link)) {
        let mut state = self.inner.state.lock();
        let wire = state.wire(from, to);
        change(&mut wire.link);
        let since = wire.blocked_since.unwrap_or_else(now);
        wire.blocked_since = wire.link.is_blocked.then_some(since);
        drop(state);
        self.inner.changed.notify_waiters();
    }

    /// All links are as by default again.
    pub(crate) fn heal(&self) {
        let mut state = self.inner.state.lock();
        let default = state.default;
        for wire in state.links.values_mut() {
            wire.link = default;
            wire.blocked_since = None;
        }
        drop(state);
        self.inner.changed.notify_waiters();
    }

    /// Breaks all connections between two ends.
    pub(crate) fn cut(&self, one: usize, other: usize) {
        let mut state = self.inner.state.lock();
        state.wire(one, other).epoch += 1;
        state.wire(other, one).epoch += 1;
        drop(state);
        self.inner.changed.notify_waiters();
    }

    /// The process at `end` serves.
    pub(crate) fn serve(&self, end: usize, services: Services) {
        self.inner.state.lock().ends.insert(end, End::Serves(services));
    }

    /// The process at `end` is gone; a machine that is still on says so to those who ask.
    pub(crate) fn gone(&self, end: usize, is_machine_on: bool) {
        let gone = if is_machine_on { End::Refuses } else { End::Silent };
        self.inner.state.lock().ends.insert(end, gone);
        self.inner.changed.notify_waiters();
    }

    /// A line from `from` to `to`.
    pub(crate) fn line(&self, from: usize, to: usize) -> Line {
        Line::Other(Arc::new(Way { net: self.clone(), from, to }))
    }

    /// When something that leaves now arrives, if it does.
    fn passage(&self, from: usize, to: usize, bytes: usize) -> Passage {
        let mut state = self.inner.state.lock();
        state.counts.frames += 1;
        let moment = now();
        let link = state.wire(from, to).link;
        let is_lost = state.one_of(link.breaks_ppm);
        let is_straggler = state.one_of(link.stragglers_ppm);
        state.counts.broken += u64::from(is_lost);
        state.counts.stragglers += u64::from(is_straggler);
        let span = (link.delay_max - link.delay_min).as_micros() as u64;
        let mut delay = link.delay_min + Duration::from_micros(state.rng.u64(0..=span));
        if is_straggler {
            delay += Duration::from_millis(state.rng.u64(50..3000));
        }
        let mut due = moment + delay;
        if let Some(rate) = link.bytes_per_second {
            let wire = state.wire(from, to);
            let takes = Duration::from_micros(bytes as u64 * 1_000_000 / rate.max(1));
            wire.free_at = wire.free_at.max(moment) + takes;
            due = due.max(wire.free_at + delay);
        }
        Passage { due, is_lost }
    }

    fn epoch(&self, from: usize, to: usize) -> u64 {
        self.inner.state.lock().wire(from, to).epoch
    }

    fn draw(&self, range: std::ops::Range<u64>) -> u64 {
        self.inner.state.lock().rng.u64(range)
    }

    /// When the connection of a stream from `from` to `to` would be given up, as things are.
    fn given_up_at(&self, from: usize, to: usize, patience: Duration) -> Option<Instant> {
        let mut state = self.inner.state.lock();
        let there = state.wire(from, to).blocked_since;
        let back = state.wire(to, from).blocked_since;
        let since = there.into_iter().chain(back).min()?;
        since.checked_add(patience)
    }

    fn is_blocked(&self, from: usize, to: usize) -> bool {
        self.inner.state.lock().wire(from, to).link.is_blocked
    }

    /// Waits until `from` reaches `to`, but not longer than until the connection is given up.
    async fn opened(&self, from: usize, to: usize, patience: Duration) -> Result<(), Status> {
        loop {
            let changed = self.inner.changed.notified();
            if !self.is_blocked(from, to) {
                return Ok(());
            }
            let Some(until) = self.given_up_at(from, to, patience) else {
                changed.await;
                continue;
            };
            if timeout_at(until, changed).await.is_err() {
                return Err(Status::unavailable("simulated: the other end is out of reach"));
            }
        }
    }

    /// Takes something over, in its time.
    async fn cross(
        &self,
        way: (usize, usize),
        bytes: usize,
        patience: Duration,
    ) -> Result<(), Status> {
        let passage = self.passage(way.0, way.1, bytes);
        sleep_until(passage.due).await;
        self.opened(way.0, way.1, patience).await?;
        if passage.is_lost { Err(reset()) } else { Ok(()) }
    }

    /// Connects, and tells who serves there.
    async fn connect(&self, from: usize, to: usize) -> Result<Services, Status> {
        let there = timeout(CONNECT_TIME, self.cross((from, to), 100, Duration::MAX)).await;
        let services = match self.inner.state.lock().ends.get(&to) {
            Some(End::Serves(services)) => Some(services.clone()),
            Some(End::Refuses) => None,
            Some(End::Silent) | None => {
                return Err(Status::unavailable("simulated: connecting took too long"));
            }
        };
        there.map_err(|_| Status::unavailable("simulated: connecting took too long"))??;
        services.ok_or_else(|| Status::unavailable("simulated: connection refused"))
    }
}

struct Passage {
    due: Instant,
    is_lost: bool,
}

impl State {
    fn wire(&mut self, from: usize, to: usize) -> &mut Wire {
        let (link, free_at) = (self.default, now());
        let new = Wire { link, blocked_since: None, epoch: 0, free_at };
        self.links.entry((from, to)).or_insert(new)
    }

    fn one_of(&mut self, ppm: u32) -> bool {
        ppm > 0 && self.rng.u32(0..1_000_000) < ppm
    }
}

fn reset() -> Status {
    Status::unavailable("simulated: connection reset")
}

/// The network as one member sees it.
pub(crate) struct Plug {
    pub(crate) net: Net,
    pub(crate) from: usize,
}

/// The peer URL of a member.
pub(crate) fn peer_url(member: usize) -> String {
    format!("http://member-{member}:2380")
}

impl Connector for Plug {
    fn connect(&self, member: u64, url: &str) -> Result<Line, PeerError> {
        let to = url.strip_prefix("http://member-").and_then(|rest| rest.strip_suffix(":2380"));
        let to = to.and_then(|number| number.parse().ok());
        let to = to.ok_or(PeerError::UnknownMember(member))?;
        Ok(self.net.line(self.from, to))
    }
}

struct Way {
    net: Net,
    from: usize,
    to: usize,
}

impl Transport for Way {
    fn call(
        &self,
        request: Request<Body>,
    ) -> BoxFuture<'static, Result<Response<Body>, LineError>> {
        let (net, from, to) = (self.net.clone(), self.from, self.to);
        let leaves = request.extensions().get::<LeavesDeadline>().is_some();
        let limit = time_limit(&request).filter(|_| !leaves);
        let carried = carry(net, (from, to), request);
        Box::pin(async move {
            let answer = match limit {
                Some(limit) => timeout(limit, carried)
                    .await
                    .unwrap_or_else(|_| Err(Status::cancelled("Timeout expired"))),
                None => carried.await,
            };
            answer.map_err(LineError::from)
        })
    }
}

/// In a request: its client does not look at the clock, and leaves that to the member.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LeavesDeadline;

/// What the header `grpc-timeout` says.
fn time_limit(request: &Request<Body>) -> Option<Duration> {
    let text = request.headers().get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        _ => Duration::from_nanos(number),
    })
}

/// One call on one connection.
struct Stream {
    net: Net,
    from: usize,
    to: usize,
    epochs: (u64, u64),
    /// How long a blocked connection is kept.
    patience: Duration,
    /// The caller has lost interest.
    dropped: watch::Sender<bool>,
}

impl Stream {
    /// Resolves once the connection is broken.
    async fn broken(&self) {
        loop {
            let changed = self.net.inner.changed.notified();
            let epochs = (self.net.epoch(self.from, self.to), self.net.epoch(self.to, self.from));
            if epochs != self.epochs {
                return;
            }
            match self.net.given_up_at(self.from, self.to, self.patience) {
                Some(at) => {
                    if timeout_at(at, changed).await.is_err() {
                        return;
                    }
                }
                None => changed.await,
            }
        }
    }

    /// Takes an answer back; without one, the caller learns that the member has died.
    async fn back(&self, is_answered: bool) -> Result<(), Status> {
        let is_on = !matches!(self.net.inner.state.lock().ends.get(&self.to), Some(End::Silent));
        if is_answered || is_on {
            return self.net.cross((self.to, self.from), 100, self.patience).await;
        }
        sleep(self.patience).await;
        Ok(())
    }

    /// Resolves once the other end hears that the caller has lost interest.
    async fn cancelled(&self) {
        let mut dropped = self.dropped.subscribe();
        // The sender lives as long as `self`.
        drop(dropped.wait_for(|dropped| *dropped).await);
        drop(self.net.cross((self.from, self.to), 50, self.patience).await);
    }
}

/// Tells the other end when the caller drops the call.
struct Interest(Arc<Stream>);

impl Drop for Interest {
    fn drop(&mut self) {
        self.0.dropped.send_replace(true);
    }
}

async fn carry(
    net: Net,
    (from, to): (usize, usize),
    request: Request<Body>,
) -> Result<Response<Body>, Status> {
    net.inner.state.lock().counts.calls += 1;
    let services = net.connect(from, to).await?;
    let epochs = (net.epoch(from, to), net.epoch(to, from));
    let patience = Duration::from_millis(net.draw(2500..6000));
    let dropped = watch::Sender::new(false);
    let call = Arc::new(Stream { net, from, to, epochs, patience, dropped });
    let interest = Interest(Arc::clone(&call));
    let (head, body) = request.into_parts();
    let body = transfer(&call, (from, to), body);
    let double = body.copy().filter(|_| may_come_twice(head.uri.path()));
    let whole = Request::from_parts(head.clone(), body);
    let answer = deliver(&call, &services, whole);
    if let Some(copy) = double {
        send_twice(&call, &services, Request::from_parts(head, copy));
    }
    let broken = call.broken();
    let answered = async {
        let answer = answer.await;
        call.back(answer.is_ok()).await?;
        answer.map_err(|_| reset())
    };
    tokio::select! {
        biased;
        answer = answered => {
            let (head, body) = answer?.into_parts();
            // Whoever holds the answer's body holds the call.
            let body = Arrivals { _interest: Some(interest), ..body };
            Ok(Response::from_parts(head, Body::new(body)))
        }
        () = broken => Err(reset()),
    }
}

/// Votes and questions may be asked again without harm; proposals never are.
fn may_come_twice(path: &str) -> bool {
    ["/Vote", "/PreVote", "/ReadIndex", "/TransferLeader", "/LeaseTimeToLive", "/LeaseRenew"]
        .iter()
        .any(|method| path.starts_with("/quorate.peer.Peer/") && path.ends_with(method))
}

/// Maybe delivers a copy of a call somewhat later; nobody waits for the answer.
fn send_twice(call: &Arc<Stream>, services: &Services, copy: Request<Arrivals>) {
    let net = &call.net;
    let (is_double, pause) = {
        let mut state = net.inner.state.lock();
        let ppm = state.wire(call.from, call.to).link.doubles_ppm;
        let is_double = state.one_of(ppm);
        state.counts.doubles += u64::from(is_double);
        (is_double, Duration::from_millis(state.rng.u64(0..1500)))
    };
    if !is_double {
        return;
    }
    let (call, services) = (Arc::clone(call), services.clone());
    spawn_outside(async move {
        sleep(pause).await;
        let again = Arc::new(Stream {
            net: call.net.clone(),
            from: call.from,
            to: call.to,
            epochs: call.epochs,
            patience: call.patience,
            dropped: watch::Sender::new(false),
        });
        drop(deliver(&again, &services, copy).await);
    });
}

/// Has the member answer.
fn deliver(
    call: &Arc<Stream>,
    services: &Services,
    request: Request<Arrivals>,
) -> tokio::sync::oneshot::Receiver<Response<Arrivals>> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let (call, mut services) = (Arc::clone(call), services.clone());
    let scope = services.scope.clone();
    drop(scope.spawn("call", async move {
        let back = (call.to, call.from);
        let answered = async {
            let (head, body) = answer(&mut services, request).await.into_parts();
            let body = transfer(&call, back, body);
            Response::from_parts(head, body)
        };
        let cancelled = call.cancelled();
        let response = tokio::select! {
            biased;
            response = answered => response,
            () = cancelled => return,
        };
        // The caller may have gone.
        sender.send(response).ok();
    }));
    receiver
}

async fn answer(services: &mut Services, request: Request<Arrivals>) -> Response<Body> {
    if !request.uri().path().starts_with("/quorate.peer.Peer/") {
        return Arc::clone(&services.api).call(request).await.map(Body::new);
    }
    match services.peer.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// Sends a body along `way`: what is there now goes with the head, the rest follows frame by frame.
fn transfer(call: &Arc<Stream>, way: (usize, usize), mut body: Body) -> Arrivals {
    let mut ready = VecDeque::new();
    while ready.len() < READY_MAX {
        match body.frame().now_or_never() {
            Some(Some(Ok(frame))) => ready.push_back(frame),
            Some(Some(Err(_)) | None) => return Arrivals::whole(ready),
            None => break,
        }
        if body.is_end_stream() {
            return Arrivals::whole(ready);
        }
    }
    let (out, wire) = mpsc::channel(IN_FLIGHT_MAX);
    let (arrive, arrived) = mpsc::channel(IN_FLIGHT_MAX);
    // The sender's side belongs to the sender and ends with it.
    drop(tasks::spawn("body-out", send_frames(Arc::clone(call), way, body, out)));
    spawn_outside(carry_frames(Arc::clone(call), way, wire, arrive));
    Arrivals { ready, rest: Some(arrived), _interest: None }
}

enum Sent {
    Frame(Frame<Bytes>, Passage),
    End(Passage),
}

async fn send_frames(
    call: Arc<Stream>,
    way: (usize, usize),
    mut body: Body,
    out: mpsc::Sender<Sent>,
) {
    loop {
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            () = out.closed() => return,
        };
        let sent = match frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(50, Bytes::len);
                Sent::Frame(frame, call.net.passage(way.0, way.1, bytes))
            }
            Some(Err(_)) => return,
            None => Sent::End(call.net.passage(way.0, way.1, 10)),
        };
        let is_end = matches!(sent, Sent::End(_));
        if out.send(sent).await.is_err() || is_end {
            return;
        }
    }
}

/// The network's part of a stream: ends the stream with an error unless its end arrives.
async fn carry_frames(
    call: Arc<Stream>,
    way: (usize, usize),
    mut wire: mpsc::Receiver<Sent>,
    arrive: mpsc::Sender<Result<Frame<Bytes>, Status>>,
) {
    let carried = async {
        while let Some(sent) = wire.recv().await {
            let (frame, passage) = match sent {
                Sent::Frame(frame, passage) => (Some(frame), passage),
                Sent::End(passage) => (None, passage),
            };
            sleep_until(passage.due).await;
            call.net.opened(way.0, way.1, call.patience).await?;
            if passage.is_lost {
                return Err(reset());
            }
            let Some(frame) = frame else { return Ok(()) };
            if arrive.send(Ok(frame)).await.is_err() {
                return Ok(());
            }
        }
        // The sender has gone without a word; its machine may tell.
        let is_on = !matches!(call.net.inner.state.lock().ends.get(&way.0), Some(End::Silent));
        if is_on {
            call.net.cross(way, 50, call.patience).await?;
        } else {
            sleep(call.patience).await;
        }
        Err(reset())
    };
    let ended = tokio::select! {
        biased;
        ended = carried => ended,
        () = call.broken() => Err(reset()),
        () = arrive.closed() => Ok(()),
        () = call.cancelled() => Err(Status::cancelled("simulated: the caller has gone")),
    };
    if let Err(status) = ended {
        // The receiver may have gone.
        arrive.send(Err(status)).await.ok();
    }
}

/// What belongs to no member.
fn spawn_outside(future: impl Future<Output = ()> + Send + 'static) {
    #[expect(clippy::disallowed_methods, reason = "the network is no member's task")]
    drop(tokio::spawn(future));
}

/// A body as it comes out of the network.
struct Arrivals {
    ready: VecDeque<Frame<Bytes>>,
    rest: Option<mpsc::Receiver<Result<Frame<Bytes>, Status>>>,
    _interest: Option<Interest>,
}

impl Arrivals {
    fn whole(ready: VecDeque<Frame<Bytes>>) -> Arrivals {
        Arrivals { ready, rest: None, _interest: None }
    }

    /// A copy of a body that is there as a whole.
    fn copy(&self) -> Option<Arrivals> {
        if self.rest.is_some() {
            return None;
        }
        let data = |frame: &Frame<Bytes>| frame.data_ref().cloned().map(Frame::data);
        Some(Arrivals::whole(self.ready.iter().map(data).collect::<Option<_>>()?))
    }
}

impl http_body::Body for Arrivals {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(frame) = self.ready.pop_front() {
            return Poll::Ready(Some(Ok(frame)));
        }
        match &mut self.rest {
            Some(rest) => rest.poll_recv(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ready.is_empty() && self.rest.is_none()
    }
}
