//! Plain HTTP on the client port: `/health`, `/livez`, `/readyz`, `/version`, `/metrics`. On a port for
//! metrics there is neither `/version` nor anything for scripts of other origins. Methods, codes and
//! content types are etcd's.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde::Serialize;

use super::listen::Door;
use super::probes;
use crate::api::grpc::Body;
use crate::member::{Error, Member, Shard};
use crate::metrics::{Gauges, Metrics};
use crate::release;
use crate::storage::Backend;

/// The content type of plain text.
pub(super) const TEXT: &str = "text/plain; charset=utf-8";

/// Whether there is a page at `path`.
pub(super) fn serves(path: &str) -> bool {
    matches!(path, "/health" | "/version" | "/metrics") || probes::checks_at(path).is_some()
}

/// Answers one request that is not gRPC.
pub(super) async fn answer(
    member: &Member,
    metrics: &Metrics,
    shard: &Arc<Shard>,
    request: &Request<Incoming>,
    door: Door,
) -> Response<Body> {
    let is_get = request.method() == Method::GET;
    if door == Door::Clients && request.method() == Method::OPTIONS {
        return any_origin();
    }
    match request.uri().path() {
        "/version" if door == Door::Metrics => not_found(),
        "/health" | "/version" if !is_get => not_allowed(),
        "/health" => health(member, metrics, shard, request).await,
        "/version" => with(StatusCode::OK, "application/json", version()),
        "/metrics" => {
            let text = metrics.render(&gauges(member, metrics));
            with(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
        }
        path => match probes::checks_at(path) {
            Some(_) if !is_get => not_allowed(),
            Some(checks) => probes::answer(member, shard, request, checks).await,
            None => not_found(),
        },
    }
}

fn not_found() -> Response<Body> {
    with(StatusCode::NOT_FOUND, TEXT, "404 page not found\n")
}

/// What a browser asks before a script of another origin may do something: by default all may.
fn any_origin() -> Response<Body> {
    let mut response = Response::new(Body::Full(None));
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "accept, content-type, authorization"),
        (header::ACCESS_CONTROL_ALLOW_METHODS, "POST, GET, OPTIONS, PUT, DELETE"),
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[derive(Serialize)]
struct Health<'a> {
    health: &'a str,
    reason: &'a str,
}

/// As in etcd: healthy is who has a leader and can read; `?serializable=true` asks only for a read.
async fn health(
    member: &Member,
    metrics: &Metrics,
    shard: &Arc<Shard>,
    request: &Request<Incoming>,
) -> Response<Body> {
    let query = request.uri().query().unwrap_or_default();
    let serializable = query.split('&').any(|pair| pair == "serializable=true");
    let failed = if serializable {
        None
    } else if !member.node().has_leader() {
        Some("RAFT NO LEADER".to_owned())
    } else {
        let read = member.read_barrier(shard).await;
        read.err().map(|error: Error| format!("RANGE ERROR:{error}"))
    };
    metrics.health_checks[usize::from(failed.is_some())].fetch_add(1, Relaxed);
    let (code, health, reason) = match &failed {
        None => (StatusCode::OK, "true", ""),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, "false", reason.as_str()),
    };
    let text = serde_json::to_string(&Health { health, reason });
    // As in etcd, which leaves it to Go to guess the type.
    with(code, TEXT, text.expect("two strings are JSON"))
}

#[derive(Serialize)]
struct Version {
    etcdserver: &'static str,
    etcdcluster: &'static str,
    storage: &'static str,
}

fn version() -> String {
    let version = Version {
        etcdserver: release::ETCD_VERSION,
        etcdcluster: release::CLUSTER_VERSION,
        storage: release::STORAGE_VERSION,
    };
    serde_json::to_string(&version).expect("three strings are JSON")
}

fn gauges(member: &Member, metrics: &Metrics) -> Gauges {
    let node = member.node();
    let leadership = node.leadership();
    let state = member.state();
    let db_bytes = state.backend().size_bytes();
    let counts = member.counts();
    let leases = member.lease_counts();
    let watches = member.watch_totals();
    metrics.leader_changes.store(node.leader_changes(), Relaxed);
    Gauges {
        has_leader: node.has_leader(),
        is_leader: leadership.is_leader,
        is_learner: leadership.is_learner,
        committed: node.committed_index(),
        applied: node.shared().applied_index(),
        pending: member.pending_proposals(),
        db_bytes,
        db_bytes_in_use: db_bytes,
        quota_bytes: member.options().quota_bytes.max(0).cast_unsigned(),
        keys: state.keys().max(0).cast_unsigned(),
        revision: state.revision().cast_unsigned(),
        compact_revision: state.compact_revision().max(0).cast_unsigned(),
        member_id: member.options().member_id.0,
        ranges: counts.ranges.load(Relaxed),
        puts: counts.puts.load(Relaxed),
        deletes: counts.deletes.load(Relaxed),
        txns: counts.txns.load(Relaxed),
        leases_granted: leases.granted.load(Relaxed),
        leases_revoked: leases.revoked.load(Relaxed),
        leases_renewed: leases.renewed.load(Relaxed),
        leases_expired: leases.expired.load(Relaxed),
        watch_streams: watches.streams,
        watchers: watches.watchers,
        slow_watchers: watches.slow_watchers,
        watch_events: watches.events,
        pending_events: watches.pending_events,
    }
}

fn not_allowed() -> Response<Body> {
    let mut response = with(StatusCode::METHOD_NOT_ALLOWED, TEXT, "Method Not Allowed\n");
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
    response
}

pub(super) fn with(
    code: StatusCode,
    content_type: &'static str,
    text: impl Into<Bytes>,
) -> Response<Body> {
    let mut response = Response::new(Body::Full(Some(text.into())));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
