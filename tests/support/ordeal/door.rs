//! The way of a workload's client to real members: one connection to each, made anew after silence.
//!
//! A call is sent once. It is `Refused` only if the member said so or the connection could never be
//! made; in every other failure the outcome is `Unknown`.

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::time::{Duration, Instant};

use futures_util::stream;
use quorate::clock;
use quorate::pb::etcdserverpb::lease_client::LeaseClient;
use quorate::pb::etcdserverpb::{WatchCreateRequest, WatchResponse};
use tonic::transport::{Channel, Endpoint};
use tonic::{ConnectError, Response, Status};

use crate::support::client;
use crate::support::history::{Op, Outcome, Reply};
use crate::support::watch::Watch;
use crate::support::workload::{Door, WatchStream};

/// Why a call was never sent.
const NO_CONNECTION: &str = "no connection";

/// After it a client gives a call up.
const DEADLINE: Duration = Duration::from_secs(1);

/// A watch stream to a machine that does not answer the kernel's probes has ended; a process that was
/// killed while its cable was out cannot say so itself.
const PROBE_EVERY: Duration = Duration::from_secs(1);
const PROBES: u32 = 4;

/// A door to the members at some endpoints.
#[derive(Debug)]
pub(crate) struct RealDoor {
    endpoints: Vec<String>,
    start: Instant,
    at: Cell<usize>,
    /// The connection to the member at which the door stands.
    channel: RefCell<Channel>,
}

impl RealDoor {
    /// A door at the member `at` modulo members; times are since `start`.
    pub(crate) fn new(endpoints: &[String], at: usize, start: Instant) -> RealDoor {
        let at = at % endpoints.len();
        let channel = RefCell::new(client::channel(&endpoints[at], DEADLINE));
        RealDoor { endpoints: endpoints.to_vec(), start, at: Cell::new(at), channel }
    }

    fn stand_at(&self, at: usize) {
        self.at.set(at % self.endpoints.len());
        self.channel.replace(client::channel(&self.endpoints[self.at.get()], DEADLINE));
    }

    async fn ask(channel: Channel, op: Op) -> Result<Reply, Status> {
        let mut kv = client::kv(channel.clone());
        let mut lease = LeaseClient::new(channel);
        Ok(match op {
            Op::Range(ask) => Reply::Range(kv.range(ask).await?.into_inner()),
            Op::Put(ask) => Reply::Put(kv.put(ask).await?.into_inner()),
            Op::Delete(ask) => Reply::Delete(kv.delete_range(ask).await?.into_inner()),
            Op::Txn(ask) => Reply::Txn(kv.txn(ask).await?.into_inner()),
            Op::Compact(ask) => Reply::Compact(kv.compact(ask).await?.into_inner()),
            Op::Grant(ask) => Reply::Grant(lease.lease_grant(ask).await?.into_inner()),
            Op::Revoke(ask) => Reply::Revoke(lease.lease_revoke(ask).await?.into_inner()),
            Op::TimeToLive(ask) => {
                Reply::TimeToLive(lease.lease_time_to_live(ask).await?.into_inner())
            }
            Op::KeepAlive(ask) => {
                let asks = stream::iter([ask]);
                let mut answers = lease.lease_keep_alive(asks).await.map(Response::into_inner)?;
                let answer = answers.message().await?;
                Reply::KeepAlive(answer.ok_or_else(|| Status::unavailable("the stream ended"))?)
            }
        })
    }
}

impl Door for RealDoor {
    type Watch = RealWatch;

    fn now(&self) -> Duration {
        clock::now() - self.start
    }

    async fn sleep(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    async fn call(&self, op: Op) -> Outcome {
        let channel = self.channel.borrow().clone();
        // The deadline of the connection ends with the head of an answer; this one does not.
        match tokio::time::timeout(DEADLINE * 2, RealDoor::ask(channel, op)).await {
            Ok(Ok(reply)) => Outcome::Ok(reply),
            Ok(Err(status)) if was_never_sent(&status) => {
                Outcome::Refused(NO_CONNECTION.to_owned())
            }
            Ok(Err(status)) => {
                let outcome = Outcome::failed(status.code(), status.message());
                if let Outcome::Unknown(_) = outcome {
                    // It may stand on packets that nobody will send again for a long time.
                    self.stand_at(self.at.get());
                }
                outcome
            }
            Err(_) => {
                self.stand_at(self.at.get());
                Outcome::Unknown("no answer in time".to_owned())
            }
        }
    }

    fn watch(&self, request: WatchCreateRequest) -> RealWatch {
        let endpoint = Endpoint::from_shared(self.endpoints[self.at.get()].clone());
        let endpoint = endpoint.expect("a client URL is a URL").connect_timeout(DEADLINE);
        let endpoint = endpoint.tcp_keepalive(Some(PROBE_EVERY));
        let endpoint = endpoint.tcp_keepalive_interval(Some(PROBE_EVERY));
        let endpoint = endpoint.tcp_keepalive_retries(Some(PROBES));
        let watch = Watch::open_on(endpoint.tcp_nodelay(true).connect_lazy(), false);
        watch.create(request);
        RealWatch { watch: Some(watch) }
    }

    fn turn(&self) {
        self.stand_at(self.at.get() + 1);
    }
}

/// Whether the request of a failed call certainly reached nobody.
fn was_never_sent(status: &Status) -> bool {
    let mut cause: Option<&dyn Error> = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A watch stream to one member.
pub(crate) struct RealWatch {
    /// `None` once it has ended.
    watch: Option<Watch>,
}

impl WatchStream for RealWatch {
    async fn next(&mut self) -> Option<WatchResponse> {
        let response = self.watch.as_mut()?.try_next().await.ok();
        if response.is_none() {
            self.watch = None;
        }
        response
    }

    fn request_progress(&mut self) {
        if let Some(watch) = &self.watch {
            watch.request_progress();
        }
    }
}
