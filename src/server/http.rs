//! Plain HTTP: `/health`, `/livez`, `/readyz`, `/version`, `/metrics`.
//!
//! Methods, types and texts are etcd's. Clients get all pages at their port, browsers of allowed
//! origins among them; whoever watches the member gets what it needs at `--listen-metrics-urls`, too.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde::Serialize;

use super::probes;
use crate::api::grpc::Body;
use crate::config::Url;
use crate::member::{Error, Member, Shard};
use crate::metrics::{Gauges, Metrics};
use crate::release;
use crate::storage::Backend;

/// The content type of plain text.
pub(super) const TEXT: &str = "text/plain; charset=utf-8";

/// Which kind of port a request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// `--listen-client-urls`: gRPC and all pages.
    Clients,
    /// `--listen-metrics-urls`: metrics and health, over HTTP/1.
    Operators,
}

/// Whether there is a page at `path`.
pub(super) fn serves(path: &str) -> bool {
    matches!(path, "/health" | "/version" | "/metrics") || probes::checks_at(path).is_some()
}

/// The pages of a member as one serving thread offers them.
#[derive(Clone)]
pub(super) struct Pages {
    pub(super) member: Arc<Member>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) shard: Arc<Shard>,
    /// `--cors`: where browsers may come from; none is anywhere.
    pub(super) origins: Option<Arc<[Url]>>,
}

impl Pages {
    /// Answers one request that is not gRPC.
    pub(super) async fn answer(&self, door: Door, request: &Request<Incoming>) -> Response<Body> {
        if door == Door::Operators {
            return self.page(door, request).await;
        }
        // As in etcd: a browser may ask what it may do on any page, also on those that are not there.
        let mut response = match *request.method() {
            Method::OPTIONS => Response::new(Body::Empty),
            _ => self.page(door, request).await,
        };
        if let Some(origin) = self.allowed_origin(request) {
            let methods = HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE");
            let fields = HeaderValue::from_static("accept, content-type, authorization");
            let headers = response.headers_mut();
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, fields);
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        }
        response
    }

    /// What a browser is told about where it may come from.
    fn allowed_origin(&self, request: &Request<Incoming>) -> Option<HeaderValue> {
        let Some(origins) = &self.origins else { return Some(HeaderValue::from_static("*")) };
        let origin = request.headers().get(header::ORIGIN)?;
        origins.iter().any(|known| known.as_str() == origin).then(|| origin.clone())
    }

    async fn page(&self, door: Door, request: &Request<Incoming>) -> Response<Body> {
        let is_get = request.method() == Method::GET;
        match request.uri().path() {
            // As in etcd: whatever the method.
            "/metrics" => {
                let text = self.metrics.render(&gauges(&self.member, &self.metrics));
                with(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
            }
            "/health" if is_get => self.health(request).await,
            "/version" if door == Door::Operators => not_found(),
            "/version" if is_get => with(StatusCode::OK, "application/json", version()),
            "/health" | "/version" => not_allowed(),
            path => match probes::checks_at(path) {
                Some(checks) if is_get => {
                    probes::answer(&self.member, &self.shard, request, checks).await
                }
                Some(_) => not_allowed(),
                None => not_found(),
            },
        }
    }

    /// As in etcd: healthy is who has a leader and can read; `?serializable=true` asks only for a
    /// read. The answer is JSON and says that it is text.
    async fn health(&self, request: &Request<Incoming>) -> Response<Body> {
        let query = request.uri().query().unwrap_or_default();
        let serializable = query.split('&').any(|pair| pair == "serializable=true");
        let failed = if serializable {
            None
        } else if !self.member.node().has_leader() {
            Some("RAFT NO LEADER".to_owned())
        } else {
            let read = self.member.read_barrier(&self.shard).await;
            read.err().map(|error: Error| format!("RANGE ERROR:{error}"))
        };
        self.metrics.health_checks[usize::from(failed.is_some())].fetch_add(1, Relaxed);
        let text = |health, reason| {
            let text = serde_json::to_string(&Health { health, reason });
            text.expect("two strings are JSON")
        };
        match &failed {
            None => with(StatusCode::OK, TEXT, text("true", "")),
            Some(reason) => error(StatusCode::SERVICE_UNAVAILABLE, &text("false", reason)),
        }
    }
}

#[derive(Serialize)]
struct Health<'a> {
    health: &'a str,
    reason: &'a str,
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
        put_bytes: counts.put_bytes.load(Relaxed),
        compacted: counts.compacted.load(Relaxed),
        compaction_last: counts.compaction_last.load(Relaxed),
        slow_applies: counts.slow_applies.load(Relaxed),
        proposals_failed: counts.proposals_failed.load(Relaxed),
        read_indexes_failed: counts.read_indexes_failed.load(Relaxed),
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
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
    response
}

fn not_found() -> Response<Body> {
    error(StatusCode::NOT_FOUND, "404 page not found")
}

/// An answer that is an error, as Go's HTTP server writes it.
fn error(code: StatusCode, text: &str) -> Response<Body> {
    let mut response = with(code, TEXT, format!("{text}\n"));
    forbid_sniffing(&mut response);
    response
}

/// Has browsers take the content for what it says it is.
pub(super) fn forbid_sniffing(response: &mut Response<Body>) {
    let sniffing = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, sniffing);
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
