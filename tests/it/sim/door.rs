//! The way of a simulated client to the members: tonic's clients over the simulated network.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream;
use quorate::pb::etcdserverpb::kv_client::KvClient;
use quorate::pb::etcdserverpb::lease_client::LeaseClient;
use quorate::pb::etcdserverpb::watch_client::WatchClient;
use quorate::pb::etcdserverpb::watch_request::RequestUnion;
use quorate::pb::etcdserverpb::{
    LeaseKeepAliveRequest, LeaseKeepAliveResponse, WatchCreateRequest, WatchProgressRequest,
    WatchRequest, WatchResponse,
};
use quorate::raft::Line;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tonic::{Code, Request, Status};

use super::host::{Host, World};
use super::net::FIRST_CLIENT;
use crate::support::history::{Op, Outcome, Reply};
use crate::support::workload::{Door, WatchStream};

/// Responses of a watch that may wait for the client; then the stream pauses.
const WATCH_RESPONSES_MAX: usize = 16;

/// One client's way.
pub(crate) struct SimDoor {
    pub(crate) world: Arc<World>,
    pub(crate) hosts: Rc<[Arc<Host>]>,
    pub(crate) client: usize,
    pub(crate) member: Cell<usize>,
}

impl SimDoor {
    fn line(&self) -> Line {
        // Where a member is lost for good, its clients go to the next.
        let next = self.hosts.iter().cycle().skip(self.member.get()).take(self.hosts.len());
        let host = next.clone().find(|host| !host.is_lost());
        let member = host.map_or(self.member.get(), |host| host.number);
        self.world.net.line(FIRST_CLIENT + self.client, member)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.world.plan.patience);
        request
    }

    async fn ask(&self, op: Op) -> Result<Reply, Status> {
        let mut kv = KvClient::new(self.line());
        let mut lease = LeaseClient::new(self.line());
        Ok(match op {
            Op::Range(op) => Reply::Range(kv.range(self.request(op)).await?.into_inner()),
            Op::Put(op) => Reply::Put(kv.put(self.request(op)).await?.into_inner()),
            Op::Delete(op) => Reply::Delete(kv.delete_range(self.request(op)).await?.into_inner()),
            Op::Txn(op) => Reply::Txn(kv.txn(self.request(op)).await?.into_inner()),
            Op::Compact(op) => Reply::Compact(kv.compact(self.request(op)).await?.into_inner()),
            Op::Grant(op) => Reply::Grant(lease.lease_grant(self.request(op)).await?.into_inner()),
            Op::Revoke(op) => {
                Reply::Revoke(lease.lease_revoke(self.request(op)).await?.into_inner())
            }
            Op::KeepAlive(op) => Reply::KeepAlive(self.keep_alive(lease, op).await?),
            Op::TimeToLive(op) => {
                Reply::TimeToLive(lease.lease_time_to_live(self.request(op)).await?.into_inner())
            }
        })
    }

    async fn keep_alive(
        &self,
        mut lease: LeaseClient<Line>,
        op: LeaseKeepAliveRequest,
    ) -> Result<LeaseKeepAliveResponse, Status> {
        let only = stream::iter([op]);
        let asked = async {
            let mut answers = lease.lease_keep_alive(only).await?.into_inner();
            let answer = answers.message().await?;
            answer.ok_or_else(|| Status::unknown("the stream ended without an answer"))
        };
        let asked = tokio::time::timeout(self.world.plan.patience, asked).await;
        asked.unwrap_or_else(|_| Err(Status::cancelled("Timeout expired")))
    }
}

impl Door for SimDoor {
    type Watch = SimWatch;

    fn now(&self) -> Duration {
        self.world.log.now()
    }

    async fn sleep(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    async fn call(&self, op: Op) -> Outcome {
        // A client never waits for ever, whatever the member does.
        let asked = tokio::time::timeout(self.world.plan.patience * 2, self.ask(op)).await;
        match asked {
            Ok(Ok(reply)) => Outcome::Ok(reply),
            Ok(Err(status)) if never_left(&status) => Outcome::Refused(status.message().to_owned()),
            Ok(Err(status)) => Outcome::failed(status.code(), status.message()),
            Err(_) => Outcome::failed(Code::DeadlineExceeded, "no answer"),
        }
    }

    fn watch(&self, request: WatchCreateRequest) -> SimWatch {
        let (sender, responses) = mpsc::channel(WATCH_RESPONSES_MAX);
        let (requests, to_send) = mpsc::unbounded_channel();
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) };
        // The receiver is in our hands.
        requests.send(create).ok();
        let follow = follow(WatchClient::new(self.line()), to_send, sender);
        #[expect(clippy::disallowed_methods, reason = "a client is no member's task")]
        let task = tokio::spawn(follow).abort_handle();
        SimWatch { responses, requests, task }
    }

    fn turn(&self) {
        self.member.set((self.member.get() + 1) % self.hosts.len());
    }
}

/// Whether the call certainly reached nobody.
fn never_left(status: &Status) -> bool {
    ["simulated: connection refused", "simulated: connecting took too long"]
        .contains(&status.message())
}

async fn follow(
    mut client: WatchClient<Line>,
    to_send: mpsc::UnboundedReceiver<WatchRequest>,
    responses: mpsc::Sender<WatchResponse>,
) {
    let requests = stream::unfold(to_send, |mut to_send| async {
        let request = to_send.recv().await?;
        Some((request, to_send))
    });
    let Ok(opened) = client.watch(requests).await else { return };
    let mut opened = opened.into_inner();
    while let Ok(Some(response)) = opened.message().await {
        if responses.send(response).await.is_err() {
            return;
        }
    }
}

/// A stream with one watcher.
pub(crate) struct SimWatch {
    responses: mpsc::Receiver<WatchResponse>,
    requests: mpsc::UnboundedSender<WatchRequest>,
    task: AbortHandle,
}

impl WatchStream for SimWatch {
    async fn next(&mut self) -> Option<WatchResponse> {
        self.responses.recv().await
    }

    fn request_progress(&mut self) {
        let progress = RequestUnion::ProgressRequest(WatchProgressRequest {});
        // A stream that has ended shows that by itself.
        self.requests.send(WatchRequest { request_union: Some(progress) }).ok();
    }
}

impl Drop for SimWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
