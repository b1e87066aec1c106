//! The etcd door: gRPC calls in, the member's answers out, etcd's codes and texts.
//!
//! One table from method paths to handlers. A handler decodes, checks the shape, asks the
//! [`Member`], and encodes; it keeps no state between calls. What is not in the table is answered
//! with grpc-go's `Unimplemented`, and so are services that are declared in `proto/` but not built.
//!
//! **Invariant:** nothing here changes the state or decides an order; a refused request changes
//! nothing.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response};
use hyper::body::Incoming;

use crate::limits;
use crate::member::{Member, Shard};
use crate::metrics::Metrics;

mod encode;
pub mod grpc;
mod kv;
pub mod status;
mod upkeep;

use grpc::Body;
use status::{Code, Status};

/// The etcd API as one serving thread offers it.
#[derive(Clone)]
pub struct Api {
    member: Arc<Member>,
    shard: Arc<Shard>,
    metrics: Arc<Metrics>,
    message_bytes_max: usize,
}

impl Api {
    /// The API of `member` on the thread of `shard`.
    pub fn new(member: Arc<Member>, shard: Arc<Shard>, metrics: Arc<Metrics>) -> Self {
        let message_bytes_max = member.options().request_bytes_max + limits::GRPC_OVERHEAD_BYTES;
        Api { member, shard, metrics, message_bytes_max }
    }

    /// The serving thread.
    pub fn shard(&self) -> &Arc<Shard> {
        &self.shard
    }

    /// Answers one gRPC call.
    pub async fn call(&self, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        if head.method != Method::POST {
            let mut response = Response::new(Body::Empty);
            *response.status_mut() = http::StatusCode::METHOD_NOT_ALLOWED;
            return response;
        }
        let message = match grpc::read_message(body, self.message_bytes_max).await {
            Ok(message) => message,
            Err(status) => return self.refuse(head.uri.path(), &status),
        };
        let path = head.uri.path();
        self.metrics.received(message.len());
        let answered = match path {
            "/etcdserverpb.KV/Range" => self.range(message).await,
            "/etcdserverpb.KV/Put" => self.put(message).await,
            "/etcdserverpb.KV/Txn" => self.txn(message).await,
            "/etcdserverpb.KV/DeleteRange" => self.delete_range(message).await,
            "/etcdserverpb.KV/Compact" => self.compact(message).await,
            "/etcdserverpb.Maintenance/Status" => self.status(message),
            "/etcdserverpb.Maintenance/HashKV" => self.hash_kv(message).await,
            "/etcdserverpb.Cluster/MemberList" => self.member_list(message).await,
            "/grpc.health.v1.Health/Check" => Api::health_check(&message),
            "/etcdserverpb.KV/RangeStream" => {
                return match self.range_stream(message).await {
                    Ok(parts) => grpc::answer_stream(parts),
                    Err(status) => self.refuse(path, &status),
                };
            }
            _ => Err(unknown_method(path)),
        };
        match answered {
            Ok(answer) => self.answer(path, answer),
            Err(status) => self.refuse(path, &status),
        }
    }

    fn answer(&self, path: &str, answer: Bytes) -> Response<Body> {
        self.metrics.handled(path, Code::Ok as usize, answer.len());
        grpc::answer(answer)
    }

    fn refuse(&self, path: &str, status: &Status) -> Response<Body> {
        self.metrics.handled(path, status.code as usize, 0);
        grpc::refuse(status)
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
