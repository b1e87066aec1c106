//! `-w json`: the JSON that Go makes of the protobuf types.
//!
//! Numbers stay numbers, bytes are base64, and a field with its default value is left out, so the
//! shapes differ from the JSON gateway's. Texts escape `<`, `>` and `&` as Go does.

use std::fmt::{Display, Write as _};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use quorate::pb::{
    etcdserverpb::{
        AlarmResponse, DeleteRangeResponse, LeaseTimeToLiveResponse, Member, MemberListResponse,
        PutResponse, RangeResponse, ResponseHeader, ResponseOp, StatusResponse, TxnResponse,
        WatchResponse, response_op::Response,
    },
    mvccpb::{Event, KeyValue},
};

use super::Answer;
use crate::{
    endpoint::{EndpointHash, EndpointHealth, EndpointStatus},
    go,
};

/// One line, without its end.
pub(super) fn render(answer: &Answer<'_>, hex: bool) -> String {
    match answer {
        Answer::Get(response) => object(|o| get(o, response)),
        Answer::Put(response) => object(|o| put(o, response)),
        Answer::Delete(response) => object(|o| delete(o, response)),
        Answer::Txn(response) => object(|o| txn(o, response)),
        Answer::Watch(response) => object(|o| watch(o, response)),
        Answer::LeaseGrant(response) => object(|o| {
            header_fields(o, response.header.as_ref());
            o.raw("ID", response.id);
            o.raw("TTL", response.ttl);
            o.raw("Error", string(&response.error));
        }),
        Answer::LeaseRevoke(_, response) => object(|o| header(o, response.header.as_ref())),
        Answer::LeaseKeepAlive(response) => object(|o| {
            header_fields(o, response.header.as_ref());
            o.raw("ID", response.id);
            o.raw("TTL", response.ttl);
        }),
        Answer::LeaseTimeToLive(response, _) => object(|o| time_to_live(o, response)),
        Answer::Leases(response) => object(|o| {
            header_fields(o, response.header.as_ref());
            let leases = response.leases.iter().map(|lease| object(|o| o.raw("id", lease.id)));
            o.raw("leases", format_args!("[{}]", leases.collect::<Vec<_>>().join(",")));
        }),
        Answer::Alarm(response) => object(|o| alarm(o, response)),
        Answer::MoveLeader { .. } => object(|_| {}),
        Answer::MemberList(response) if hex => object(|o| members_hex(o, response)),
        Answer::MemberList(response) => object(|o| {
            header(o, response.header.as_ref());
            o.list("members", &response.members, member);
        }),
        Answer::EndpointStatus(list) => array(list, endpoint_status),
        Answer::EndpointHealth(list) => array(list, endpoint_health),
        Answer::EndpointHashKv(list) => array(list, endpoint_hash),
    }
}

/// A JSON object being written; setters leave out defaults.
struct Object {
    text: String,
}

fn object(fill: impl FnOnce(&mut Object)) -> String {
    let mut object = Object { text: String::from("{") };
    fill(&mut object);
    object.text.push('}');
    object.text
}

/// As in Go, a list that was never filled is `null`.
fn array<T>(items: &[T], fill: impl Fn(&mut Object, &T)) -> String {
    if items.is_empty() {
        return "null".to_owned();
    }
    let items: Vec<String> = items.iter().map(|item| object(|o| fill(o, item))).collect();
    format!("[{}]", items.join(","))
}

impl Object {
    fn raw(&mut self, name: &str, value: impl Display) {
        let comma = if self.text.len() > 1 { "," } else { "" };
        write!(self.text, "{comma}\"{name}\":{value}").expect("a String accepts every write");
    }

    fn number<N: Display + Default + PartialEq>(&mut self, name: &str, value: N) {
        if value != N::default() {
            self.raw(name, value);
        }
    }

    fn flag(&mut self, name: &str, value: bool) {
        if value {
            self.raw(name, value);
        }
    }

    fn text(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.raw(name, string(value));
        }
    }

    fn bytes(&mut self, name: &str, value: &[u8]) {
        if !value.is_empty() {
            self.raw(name, format_args!("\"{}\"", STANDARD.encode(value)));
        }
    }

    fn texts(&mut self, name: &str, values: &[String]) {
        if !values.is_empty() {
            let values: Vec<String> = values.iter().map(|value| string(value)).collect();
            self.raw(name, format_args!("[{}]", values.join(",")));
        }
    }

    fn object(&mut self, name: &str, fill: impl FnOnce(&mut Object)) {
        self.raw(name, object(fill));
    }

    fn list<T>(&mut self, name: &str, items: &[T], fill: impl Fn(&mut Object, &T)) {
        if !items.is_empty() {
            self.raw(name, array(items, fill));
        }
    }
}

/// A JSON string as Go's encoder writes it.
fn string(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    let mut out = String::with_capacity(quoted.len());
    for c in quoted.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out
}

fn header(object: &mut Object, header: Option<&ResponseHeader>) {
    let Some(header) = header else { return };
    object.object("header", |o| header_fields(o, Some(header)));
}

fn header_fields(object: &mut Object, header: Option<&ResponseHeader>) {
    let header = header.copied().unwrap_or_default();
    object.number("cluster_id", header.cluster_id);
    object.number("member_id", header.member_id);
    object.number("revision", header.revision);
    object.number("raft_term", header.raft_term);
}

fn pair(object: &mut Object, kv: &KeyValue) {
    object.bytes("key", &kv.key);
    object.number("create_revision", kv.create_revision);
    object.number("mod_revision", kv.mod_revision);
    object.number("version", kv.version);
    object.bytes("value", &kv.value);
    object.number("lease", kv.lease);
}

fn get(object: &mut Object, response: &RangeResponse) {
    header(object, response.header.as_ref());
    object.list("kvs", &response.kvs, pair);
    object.flag("more", response.more);
    object.number("count", response.count);
}

fn put(object: &mut Object, response: &PutResponse) {
    header(object, response.header.as_ref());
    if let Some(kv) = &response.prev_kv {
        object.object("prev_kv", |o| pair(o, kv));
    }
}

fn delete(object: &mut Object, response: &DeleteRangeResponse) {
    header(object, response.header.as_ref());
    object.number("deleted", response.deleted);
    object.list("prev_kvs", &response.prev_kvs, pair);
}

/// The client library's type, not the message: other names, and nothing is left out.
fn watch(object: &mut Object, response: &WatchResponse) {
    object.object("Header", |o| header_fields(o, response.header.as_ref()));
    object.raw("Events", array(&response.events, event));
    object.raw("CompactRevision", response.compact_revision);
    object.raw("Canceled", response.canceled);
    object.raw("Created", response.created);
    object.raw("CancelReason", string(&response.cancel_reason));
}

fn event(object: &mut Object, event: &Event) {
    object.number("type", event.r#type);
    if let Some(kv) = &event.kv {
        object.object("kv", |o| pair(o, kv));
    }
    if let Some(kv) = &event.prev_kv {
        object.object("prev_kv", |o| pair(o, kv));
    }
}

fn time_to_live(object: &mut Object, response: &LeaseTimeToLiveResponse) {
    header_fields(object, response.header.as_ref());
    object.raw("id", response.id);
    object.raw("ttl", response.ttl);
    object.raw("granted-ttl", response.granted_ttl);
    let keys = response.keys.iter().map(|key| format!("\"{}\"", STANDARD.encode(key)));
    let keys = keys.collect::<Vec<_>>().join(",");
    match response.keys.is_empty() {
        true => object.raw("keys", "null"),
        false => object.raw("keys", format_args!("[{keys}]")),
    }
}

fn alarm(object: &mut Object, response: &AlarmResponse) {
    header(object, response.header.as_ref());
    object.list("alarms", &response.alarms, |o, member| {
        o.number("memberID", member.member_id);
        o.number("alarm", member.alarm);
    });
}

fn txn(object: &mut Object, response: &TxnResponse) {
    header(object, response.header.as_ref());
    object.flag("succeeded", response.succeeded);
    object.list("responses", &response.responses, |o, operation| {
        o.object("Response", |o| response_op(o, operation));
    });
}

fn response_op(object: &mut Object, operation: &ResponseOp) {
    match &operation.response {
        Some(Response::ResponseRange(response)) => {
            object.object("response_range", |o| get(o, response));
        }
        Some(Response::ResponsePut(response)) => {
            object.object("response_put", |o| put(o, response));
        }
        Some(Response::ResponseDeleteRange(response)) => {
            object.object("response_delete_range", |o| delete(o, response));
        }
        Some(Response::ResponseTxn(response)) => {
            object.object("response_txn", |o| txn(o, response));
        }
        None => {}
    }
}

fn member(object: &mut Object, member: &Member) {
    object.number("ID", member.id);
    member_names(object, member);
}

fn member_names(object: &mut Object, member: &Member) {
    object.text("name", &member.name);
    object.texts("peerURLs", &member.peer_ur_ls);
    object.texts("clientURLs", &member.client_ur_ls);
    object.flag("isLearner", member.is_learner);
}

/// With `--hex`, IDs are texts, and they and the list are never left out.
fn members_hex(object: &mut Object, response: &MemberListResponse) {
    let header = response.header.unwrap_or_default();
    object.object("header", |o| {
        o.raw("cluster_id", format_args!("\"{:x}\"", header.cluster_id));
        o.raw("member_id", format_args!("\"{:x}\"", header.member_id));
        o.number("revision", header.revision);
        o.number("raft_term", header.raft_term);
    });
    let members = match response.members.is_empty() {
        true => "[]".to_owned(),
        false => array(&response.members, |o, member| {
            o.raw("ID", format_args!("\"{:x}\"", member.id));
            member_names(o, member);
        }),
    };
    object.raw("members", members);
}

fn endpoint_status(object: &mut Object, item: &EndpointStatus) {
    object.raw("Endpoint", string(&item.endpoint));
    object.object("Status", |o| status(o, &item.status));
}

fn status(object: &mut Object, status: &StatusResponse) {
    header(object, status.header.as_ref());
    object.text("version", &status.version);
    object.number("dbSize", status.db_size);
    object.number("leader", status.leader);
    object.number("raftIndex", status.raft_index);
    object.number("raftTerm", status.raft_term);
    object.number("raftAppliedIndex", status.raft_applied_index);
    object.texts("errors", &status.errors);
    object.number("dbSizeInUse", status.db_size_in_use);
    object.flag("isLearner", status.is_learner);
    object.text("storageVersion", &status.storage_version);
    object.number("dbSizeQuota", status.db_size_quota);
    if let Some(downgrade) = &status.downgrade_info {
        object.object("downgradeInfo", |o| {
            o.flag("enabled", downgrade.enabled);
            o.text("targetVersion", &downgrade.target_version);
        });
    }
}

fn endpoint_health(object: &mut Object, item: &EndpointHealth) {
    object.raw("endpoint", string(&item.endpoint));
    object.raw("health", item.healthy);
    object.raw("took", string(&item.took.map(go::format_duration).unwrap_or_default()));
    object.text("error", &item.error);
}

fn endpoint_hash(object: &mut Object, item: &EndpointHash) {
    object.raw("Endpoint", string(&item.endpoint));
    object.object("HashKV", |o| {
        header(o, item.hash.header.as_ref());
        o.number("hash", item.hash.hash);
        o.number("compact_revision", item.hash.compact_revision);
        o.number("hash_revision", item.hash.hash_revision);
    });
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn kv(key: &'static [u8], value: &'static [u8]) -> KeyValue {
        KeyValue {
            key: Bytes::from_static(key),
            value: Bytes::from_static(value),
            create_revision: 5,
            mod_revision: 6,
            version: 2,
            lease: 0,
        }
    }

    #[test]
    fn defaults_are_left_out() {
        let header = ResponseHeader { cluster_id: u64::MAX, revision: 6, ..Default::default() };
        let response = RangeResponse {
            header: Some(header),
            kvs: vec![kv(b"foo", b"bar"), kv(b"", b"")],
            more: false,
            count: 2,
        };
        assert_eq!(
            render(&Answer::Get(&response), false),
            concat!(
                r#"{"header":{"cluster_id":18446744073709551615,"revision":6},"kvs":["#,
                r#"{"key":"Zm9v","create_revision":5,"mod_revision":6,"version":2,"value":"YmFy"},"#,
                r#"{"create_revision":5,"mod_revision":6,"version":2}],"count":2}"#
            )
        );
        assert_eq!(render(&Answer::Put(&PutResponse::default()), false), "{}");
        assert_eq!(render(&Answer::EndpointStatus(&[]), false), "null");
    }

    #[test]
    fn a_transaction_wraps_each_response() {
        let nested = TxnResponse { succeeded: true, ..Default::default() };
        let response = TxnResponse {
            succeeded: false,
            responses: vec![
                ResponseOp { response: Some(Response::ResponseTxn(nested)) },
                ResponseOp { response: None },
            ],
            ..Default::default()
        };
        assert_eq!(
            render(&Answer::Txn(&response), false),
            r#"{"responses":[{"Response":{"response_txn":{"succeeded":true}}},{"Response":{}}]}"#
        );
    }

    #[test]
    fn strings_are_escaped_as_in_go() {
        assert_eq!(
            string("<a&\"b\">\u{2028}\n\u{1}"),
            r#""\u003ca\u0026\"b\"\u003e\u2028\n\u0001""#
        );
    }
}
