//! Election's Observe: a stream of whoever leads, and of what they proclaim.
//!
//! It tells the present leader, then every value of that leader's key until the key is gone, then the
//! next leader. As in etcd a leader that came and went between two looks may be left out, and a member
//! that cannot look, because there is no quorum, ends the stream without an error.

use bytes::Bytes;
use prost::Message;
use tokio::sync::mpsc;

use super::Api;
use super::election::Found;
use super::grpc::{self, Call};
use super::line::Line;
use super::status::{Code, Status};
use crate::limits;
use crate::metrics::{MethodNumber, Metrics};
use crate::pb::mvccpb::KeyValue;
use crate::pb::v3electionpb::{LeaderRequest, LeaderResponse};
use crate::state::{Event, EventKind};
use crate::tasks;
use crate::watch::{Delivery, Keys, SharedEvent, WatchRequest, WatchStream};

/// The path of the method.
pub(super) const PATH: &str = "/v3electionpb.Election/Observe";

type Parts = mpsc::Sender<Result<Bytes, Status>>;

impl Api {
    /// Opens a stream of leaders.
    pub(super) fn observe(
        &self,
        call: &Call,
        message: Bytes,
    ) -> Result<mpsc::Receiver<Result<Bytes, Status>>, Status> {
        let LeaderRequest { name } = grpc::decode(message)?;
        let (parts, receiver) = mpsc::channel(limits::STREAM_PARTS_MAX);
        let (api, line) = (self.clone(), Line::new(&name));
        let (method, told) = (Metrics::method(PATH), Default::default());
        let observer = Observer { api, method, line, parts: parts.clone(), told };
        tasks::spawn("observe", observer.run(parts, self.cut(call)));
        Ok(receiver)
    }
}

/// One client's view of an election.
struct Observer {
    api: Api,
    method: MethodNumber,
    line: Line,
    parts: Parts,
    /// The key and mod revision of what was sent last.
    told: (Bytes, i64),
}

/// The client went away.
struct Gone;

/// Why observing ends.
enum End {
    Gone,
    /// The member cannot tell any more who leads.
    Blind,
    Cut(Status),
}

impl From<Gone> for End {
    fn from(_: Gone) -> Self {
        End::Gone
    }
}

impl Observer {
    /// Observes until the client is gone, or the member cannot tell any more.
    async fn run(mut self, parts: Parts, cut: impl Future<Output = Status>) {
        let metrics = self.api.metrics.clone();
        // Nothing is lost in a branch that is dropped: the call ends.
        let end = tokio::select! {
            biased;
            end = self.observe() => end,
            status = cut => End::Cut(status),
            () = parts.closed() => End::Gone,
        };
        let status = match end {
            End::Gone => Status::new(Code::Cancelled, "context canceled"),
            End::Blind => {
                // The end of the parts is a good end.
                metrics.handled(self.method, Code::Ok as usize);
                return;
            }
            End::Cut(status) => status,
        };
        metrics.handled(self.method, status.code as usize);
        // A client that went away needs no status.
        parts.send(Err(status)).await.ok();
    }

    async fn observe(&mut self) -> End {
        loop {
            let next = match self.api.find_leader(&self.line).await {
                Ok(Found { revision, leader: Some(leader) }) => self.follow(revision, leader).await,
                Ok(Found { revision, leader: None }) => self.first_put(revision).await,
                Err(_) => return End::Blind,
            };
            match next {
                Ok(()) => {}
                Err(Gone) => return End::Gone,
            }
        }
    }

    /// Tells of `leader` and of all it proclaims, until its key is gone.
    async fn follow(&mut self, revision: i64, leader: KeyValue) -> Result<(), Gone> {
        let keys = Keys::new(&leader.key, b"");
        self.tell(revision, leader).await?;
        let Some(stream) = self.watch(keys, revision) else { return Ok(()) };
        loop {
            let Delivery::Events { revision, events, .. } = stream.next().await else {
                return Ok(());
            };
            for event in events.as_slice() {
                match event.event() {
                    Event { kind: EventKind::Delete, .. } => return Ok(()),
                    event => self.tell(revision, pair(event)).await?,
                }
            }
        }
    }

    /// Waits until somebody leads after `revision`, and tells who.
    async fn first_put(&mut self, revision: i64) -> Result<(), Gone> {
        let Some(stream) = self.watch(self.line.keys(), revision) else { return Ok(()) };
        loop {
            let Delivery::Events { events, .. } = stream.next().await else { return Ok(()) };
            let mut events = events.as_slice().iter().map(SharedEvent::event);
            if let Some(put) = events.find(|event| event.kind == EventKind::Put) {
                return self.follow(put.revision.main, pair(put)).await;
            }
        }
    }

    /// Watches `keys` from after `revision` on.
    fn watch(&self, keys: Option<Keys>, revision: i64) -> Option<WatchStream> {
        let stream = self.api.member.watch(&self.api.shard);
        let request = WatchRequest::new(keys, revision + 1);
        stream.create(request, self.api.member.revisions()).is_ok().then_some(stream)
    }

    /// Sends `leader`, unless it was sent already.
    async fn tell(&mut self, revision: i64, leader: KeyValue) -> Result<(), Gone> {
        let now = (leader.key.clone(), leader.mod_revision);
        if now == self.told {
            return Ok(());
        }
        self.told = now;
        let header = Some(self.api.member.header(revision));
        let message = grpc::encode(&LeaderResponse { header, kv: Some(leader) });
        self.api.metrics.message_sent(self.method);
        self.api.metrics.bytes_sent(message.len());
        self.parts.send(Ok(message)).await.map_err(|_| Gone)
    }
}

fn pair(event: &Event) -> KeyValue {
    KeyValue::decode(event.kv.clone()).expect("the state encoded this pair")
}
