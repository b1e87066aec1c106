//! The etcd door: gRPC calls in, the member's answers out, etcd's codes and texts.
//!
//! One table from method paths to handlers. A handler decodes, checks the shape, asks the
//! [`Member`], and encodes; it keeps no state between calls. What is not in the table is answered
//! with grpc-go's `Unimplemented`, and so are services that are declared in `proto/` but not built.
//!
//! **Invariant:** nothing here changes the state or decides an order; a refused request changes
//! nothing.

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use tokio::sync::mpsc;

use crate::clock;
use crate::limits;
use crate::member::{Error, Member, Shard};
use crate::metrics::{MethodNumber, Metrics};

mod auth;
mod deadline;
mod election;
mod encode;
pub mod grpc;
mod kv;
mod lease;
mod line;
mod lock;
mod observe;
pub mod status;
mod upkeep;
mod watch;

use deadline::Deadlines;
use grpc::{AnswerQueue, Answers, Body, Bounds, Call, Meter, RequestBody, Requests};
use status::{Code, Status};

/// The etcd API as one serving thread offers it.
#[derive(Clone)]
pub struct Api {
    member: Arc<Member>,
    shard: Arc<Shard>,
    metrics: Arc<Metrics>,
    deadlines: Arc<Deadlines>,
    message_bytes_max: usize,
}

impl Api {
    /// The API of `member` on the thread of `shard`.
    pub fn new(member: Arc<Member>, shard: Arc<Shard>, metrics: Arc<Metrics>) -> Self {
        let message_bytes_max = member.options().request_bytes_max + limits::GRPC_OVERHEAD_BYTES;
        Api { member, shard, metrics, deadlines: Arc::default(), message_bytes_max }
    }

    /// The serving thread.
    pub fn shard(&self) -> &Arc<Shard> {
        &self.shard
    }

    /// Answers one gRPC call.
    ///
    /// Each call is a task of its own, and what it holds while it waits is moved several times: that
    /// decides what a small call costs.
    pub fn call<B: RequestBody>(
        self: Arc<Self>,
        request: Request<B>,
    ) -> impl Future<Output = Response<Body>> + Send + use<B> {
        let (head, body) = request.into_parts();
        let call = match Call::read(&head, clock::now) {
            Ok(call) => call,
            Err(refusal) => return std::future::ready(refusal.answer()).left_future(),
        };
        let uri = head.uri;
        // Not an async fn: that would hold its arguments twice.
        async move { self.serve(&call, uri.path(), body).await }.right_future()
    }

    async fn serve<B: RequestBody>(&self, call: &Call, path: &str, body: B) -> Response<Body> {
        let method = Metrics::method(path);
        self.metrics.started(method);
        let begun = clock::now();
        let handled = pin!(self.handle(call, method, path, body));
        let handled = self.deadlines.keep(call.deadline, handled).await;
        let handled = handled.unwrap_or_else(|passed| Err(passed.into()));
        if let Ok(Answer::Unary(_)) | Err(_) = &handled {
            self.warn_if_slow(path, begun);
        }
        match handled {
            Ok(Answer::Unary(message)) => {
                self.metrics.handled(method, Code::Ok as usize);
                self.metrics.message_sent(method);
                self.metrics.bytes_sent(message.len());
                call.answer(message)
            }
            Ok(Answer::Stream(messages)) => call.answer_stream(messages),
            Ok(Answer::Open(queue)) => call.answer_open(queue),
            Err(status) => {
                self.metrics.handled(method, status.code as usize);
                call.refuse(&status)
            }
        }
    }

    /// Logs a call at `path` that took long, in etcd's words, which operators look for.
    fn warn_if_slow(&self, path: &str, begun: Instant) {
        let spent = clock::now().saturating_duration_since(begun);
        if spent > self.member.options().warning_unary_request_duration {
            tracing::warn!(method = path, time_spent = ?spent, "request stats");
        }
    }

    /// Opens a bidi call at `path`: a task takes requests and answers, the connection the queue.
    fn open<B: RequestBody>(
        &self,
        call: &Call,
        path: &'static str,
        body: B,
    ) -> Result<(Requests<B>, Answers, AnswerQueue), Status> {
        let bounds = Bounds {
            request_bytes_max: self.message_bytes_max,
            answer_bytes_max: self.answer_bytes_max(),
            answers_bytes_max: limits::STREAM_ANSWERS_BYTES_MAX,
        };
        let meter = Meter { metrics: Arc::clone(&self.metrics), method: Metrics::method(path) };
        let opened = call.open(body, bounds, meter)?;
        self.admit(call, true)?;
        Ok(opened)
    }

    /// Counts a call and refuses one that wants a leader where there is none.
    fn admit(&self, call: &Call, is_stream: bool) -> Result<(), Status> {
        self.metrics.called_by(call.version()?, is_stream);
        if call.needs_leader && !self.member.node().has_leader() {
            return Err(Error::NoLeader.into());
        }
        Ok(())
    }

    /// Why a stream ends that neither its client nor its handler ends: its deadline has passed, or it
    /// wants a leader and there is none.
    fn cut(&self, call: &Call) -> impl Future<Output = Status> + Send + use<> {
        let (member, deadlines) = (Arc::clone(&self.member), Arc::clone(&self.deadlines));
        let (needs_leader, deadline) = (call.needs_leader, call.deadline);
        async move {
            tokio::select! {
                biased;
                () = member.leader_lost(), if needs_leader => Error::NoLeader.into(),
                () = deadlines.passed(deadline), if deadline.is_some() => Status::late(),
                else => std::future::pending().await,
            }
        }
    }

    /// From the path to the answer: the method is known before anything is read.
    async fn handle<B: RequestBody>(
        &self,
        call: &Call,
        counted: MethodNumber,
        path: &str,
        body: B,
    ) -> Result<Answer, Status> {
        if let Some(method) = OpenMethod::find(path) {
            let queue = match method {
                OpenMethod::Watch => self.watch(call, body),
            };
            return queue.map(Answer::Open);
        }
        let method = Method::find(path).ok_or_else(|| unknown_method(path))?;
        if matches!(method, Method::LeaseKeepAlive) {
            return self.lease_keep_alive(call, body).map(Answer::Open);
        }
        let received = call.receive(body, self.message_bytes_max).await;
        let message = if method.is_stream() {
            received.map_err(grpc::as_in_streams)?.only()?
        } else {
            received?.message
        };
        self.metrics.received(counted, message.len());
        self.admit(call, method.is_stream())?;
        let answered = match method {
            Method::Range => self.range(message).await,
            Method::Put => self.put(message).await,
            Method::Txn => self.txn(message).await,
            Method::DeleteRange => self.delete_range(message).await,
            Method::Compact => self.compact(message).await,
            Method::Status => self.status(message),
            Method::HashKv => self.hash_kv(message).await,
            Method::Hash => self.hash(message).await,
            Method::MoveLeader => Box::pin(self.move_leader(message)).await,
            Method::Alarm => self.alarm(message).await,
            Method::MemberList => self.member_list(message).await,
            Method::HealthCheck => Api::health_check(message),
            Method::HealthList => Ok(Api::health_list()),
            Method::Authenticate => self.authenticate(message).await,
            Method::AuthStatus => self.auth_status(message).await,
            Method::AuthDisable => self.auth_disable(message).await,
            Method::LeaseGrant => self.lease_grant(message).await,
            Method::LeaseRevoke => self.lease_revoke(message).await,
            Method::LeaseTimeToLive => Box::pin(self.lease_time_to_live(message)).await,
            Method::LeaseLeases => self.lease_leases(message),
            Method::LeaseKeepAlive => unreachable!("opened above"),
            Method::RangeStream => {
                let parts = self.range_stream(call, message).await?;
                return Ok(Answer::Stream(parts));
            }
            // Boxed: what waits long must not make the future of every small request larger.
            Method::Lock => Box::pin(self.lock(message)).await,
            Method::Unlock => self.unlock(message).await,
            Method::Campaign => Box::pin(self.campaign(message)).await,
            Method::Proclaim => Box::pin(self.proclaim(message)).await,
            Method::Leader => Box::pin(self.leader(message)).await,
            Method::Resign => Box::pin(self.resign(message)).await,
            Method::Observe => return self.observe(call, message).map(Answer::Stream),
            Method::HealthWatch => return self.health_watch(call, message).map(Answer::Stream),
        };
        let answer = answered?;
        grpc::check_answer_size(answer.len() - grpc::PREFIX_BYTES, self.answer_bytes_max())?;
        Ok(Answer::Unary(answer))
    }

    fn answer_bytes_max(&self) -> usize {
        self.member.options().answer_bytes_max
    }
}

/// What a call that succeeds sends.
enum Answer {
    /// One framed message.
    Unary(Bytes),
    /// Framed messages as they come.
    Stream(mpsc::Receiver<Result<Bytes, Status>>),
    /// Framed messages of a call whose other direction stays open, too.
    Open(AnswerQueue),
}

/// The methods that are served.
#[derive(Debug, Clone, Copy)]
enum Method {
    Range,
    RangeStream,
    Put,
    DeleteRange,
    Txn,
    Compact,
    Status,
    Hash,
    HashKv,
    MoveLeader,
    Alarm,
    MemberList,
    HealthCheck,
    HealthList,
    HealthWatch,
    Authenticate,
    AuthStatus,
    AuthDisable,
    LeaseGrant,
    LeaseRevoke,
    LeaseKeepAlive,
    LeaseTimeToLive,
    LeaseLeases,
    Lock,
    Unlock,
    Campaign,
    Proclaim,
    Leader,
    Observe,
    Resign,
}

impl Method {
    /// Whether more than one message may come back.
    fn is_stream(self) -> bool {
        matches!(self, Method::RangeStream | Method::Observe | Method::HealthWatch)
    }

    /// The method at `path`.
    fn find(path: &str) -> Option<Method> {
        Some(match path {
            "/etcdserverpb.KV/Range" => Method::Range,
            kv::RANGE_STREAM => Method::RangeStream,
            "/etcdserverpb.KV/Put" => Method::Put,
            "/etcdserverpb.KV/DeleteRange" => Method::DeleteRange,
            "/etcdserverpb.KV/Txn" => Method::Txn,
            "/etcdserverpb.KV/Compact" => Method::Compact,
            "/etcdserverpb.Maintenance/Status" => Method::Status,
            "/etcdserverpb.Maintenance/Hash" => Method::Hash,
            "/etcdserverpb.Maintenance/MoveLeader" => Method::MoveLeader,
            "/etcdserverpb.Maintenance/HashKV" => Method::HashKv,
            "/etcdserverpb.Maintenance/Alarm" => Method::Alarm,
            "/etcdserverpb.Cluster/MemberList" => Method::MemberList,
            "/grpc.health.v1.Health/Check" => Method::HealthCheck,
            "/grpc.health.v1.Health/List" => Method::HealthList,
            "/grpc.health.v1.Health/Watch" => Method::HealthWatch,
            "/etcdserverpb.Auth/Authenticate" => Method::Authenticate,
            "/etcdserverpb.Auth/AuthStatus" => Method::AuthStatus,
            "/etcdserverpb.Auth/AuthDisable" => Method::AuthDisable,
            "/etcdserverpb.Lease/LeaseGrant" => Method::LeaseGrant,
            "/etcdserverpb.Lease/LeaseRevoke" => Method::LeaseRevoke,
            lease::KEEP_ALIVE => Method::LeaseKeepAlive,
            "/etcdserverpb.Lease/LeaseTimeToLive" => Method::LeaseTimeToLive,
            "/etcdserverpb.Lease/LeaseLeases" => Method::LeaseLeases,
            "/v3lockpb.Lock/Lock" => Method::Lock,
            "/v3lockpb.Lock/Unlock" => Method::Unlock,
            "/v3electionpb.Election/Campaign" => Method::Campaign,
            "/v3electionpb.Election/Proclaim" => Method::Proclaim,
            "/v3electionpb.Election/Leader" => Method::Leader,
            observe::PATH => Method::Observe,
            "/v3electionpb.Election/Resign" => Method::Resign,
            _ => return None,
        })
    }
}

/// The methods whose both directions stay open.
#[derive(Debug, Clone, Copy)]
enum OpenMethod {
    Watch,
}

impl OpenMethod {
    /// The method at `path`.
    fn find(path: &str) -> Option<OpenMethod> {
        match path {
            "/etcdserverpb.Watch/Watch" => Some(OpenMethod::Watch),
            _ => None,
        }
    }
}

/// Services that a client may ask for; the difference shows in grpc-go's texts.
const SERVICES: [&str; 9] = [
    "etcdserverpb.KV",
    "etcdserverpb.Watch",
    "etcdserverpb.Lease",
    "etcdserverpb.Cluster",
    "etcdserverpb.Auth",
    "etcdserverpb.Maintenance",
    "v3lockpb.Lock",
    "v3electionpb.Election",
    "grpc.health.v1.Health",
];

fn unknown_method(path: &str) -> Status {
    let text = match path.strip_prefix('/').and_then(|path| path.rsplit_once('/')) {
        Some((service, method)) if SERVICES.contains(&service) => {
            format!("unknown method {method} for service {service}")
        }
        Some((service, _)) => format!("unknown service {service}"),
        None => format!("malformed method name: \"{path}\""),
    };
    Status::new(Code::Unimplemented, text)
}
