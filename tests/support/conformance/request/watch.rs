//! The messages that go up a watch stream.

use bytes::Bytes;
use prost::Message;
use quorate::pb::etcdserverpb::watch_request::RequestUnion;
use quorate::pb::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest,
};

use super::super::scope::Scope;
use super::Fields;

/// The names of the filters, from 0.
const FILTERS: [&str; 2] = ["NOPUT", "NODELETE"];

/// A message that begins a watcher.
pub(crate) fn create(fields: &mut Fields<'_>, scope: &Scope) -> Bytes {
    let filters = fields.take("filters").unwrap_or_default();
    let filter = |name: &str| -> i32 {
        let known = FILTERS.iter().position(|known| *known == name);
        let raw = || name.parse().unwrap_or_else(|_| panic!("`{name}` is not a filter"));
        known.and_then(|at| i32::try_from(at).ok()).unwrap_or_else(raw)
    };
    encode(RequestUnion::CreateRequest(WatchCreateRequest {
        key: fields.key("key", scope),
        range_end: fields.key("range_end", scope),
        start_revision: fields.number("start_revision", scope),
        progress_notify: fields.flag("progress_notify"),
        filters: filters.split(',').filter(|name| !name.is_empty()).map(filter).collect(),
        prev_kv: fields.flag("prev_kv"),
        watch_id: fields.number("watch_id", scope),
        fragment: fields.flag("fragment"),
    }))
}

/// A message that ends a watcher.
pub(crate) fn cancel(fields: &mut Fields<'_>, scope: &Scope) -> Bytes {
    let watch_id = fields.number("watch_id", scope);
    encode(RequestUnion::CancelRequest(WatchCancelRequest { watch_id }))
}

/// A message that asks how far the watchers have come.
pub(crate) fn progress() -> Bytes {
    encode(RequestUnion::ProgressRequest(WatchProgressRequest {}))
}

/// A message that begins the watcher `id` on one key.
pub(crate) fn create_on(key: &Bytes, id: i64) -> Bytes {
    encode(RequestUnion::CreateRequest(WatchCreateRequest {
        key: key.clone(),
        watch_id: id,
        ..WatchCreateRequest::default()
    }))
}

fn encode(request: RequestUnion) -> Bytes {
    WatchRequest { request_union: Some(request) }.encode_to_vec().into()
}
