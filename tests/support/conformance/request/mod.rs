//! Turns the lines of a case into requests.

use bytes::Bytes;
use prost::Message;
use quorate::pb::etcdserverpb::compare::TargetUnion;
use quorate::pb::etcdserverpb::request_op::Request as Op;
use quorate::pb::etcdserverpb::{
    AlarmRequest, CompactionRequest, Compare, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest,
    LeaseRevokeRequest, MemberListRequest, PutRequest, RangeRequest, RequestOp, StatusRequest,
    TxnRequest,
};

mod coordination;
pub(crate) mod watch;

use super::client::Metadata;
use super::scope::Scope;

/// How many spaces set a line of a Txn below its Txn.
const INDENT: usize = 2;

/// One request of a case, ready to send.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// The HTTP method; POST for gRPC.
    pub(crate) method: String,
    /// The gRPC method.
    pub(crate) path: String,
    /// The encoded message.
    pub(crate) body: Bytes,
    /// What the answer decodes to.
    pub(crate) shape: Shape,
    /// Metadata of the request.
    pub(crate) metadata: Vec<Metadata>,
    /// Whether only an error is printed.
    pub(crate) quiet: bool,
}

/// The message that an answer is printed as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Range,
    Stream,
    Put,
    Delete,
    Txn,
    Compact,
    Grant,
    Revoke,
    Status,
    HashKv,
    Members,
    Alarm,
    KeepAlive,
    TimeToLive,
    Leases,
    Watch,
    Lock,
    Unlock,
    Campaign,
    Proclaim,
    Leader,
    Observe,
    Resign,
    AuthStatus,
    Hash,
    /// Bytes, as they are.
    Raw,
    /// An HTTP answer; the request is one too.
    Http,
}

/// The lines of a case, each with those that are set below it.
pub(crate) fn split(lines: &[&str]) -> Vec<(String, Vec<String>)> {
    let lines = repeat(lines);
    let mut all = Vec::new();
    let mut rest = lines.as_slice();
    while let [first, after @ ..] = rest {
        let (below, next) = split_below(after);
        all.push((first.clone(), below.to_vec()));
        rest = next;
    }
    all
}

/// Writes a line with `times=N` out N times, with `%` as the number of the repeat.
fn repeat(lines: &[&str]) -> Vec<String> {
    let mut all = Vec::new();
    for line in lines {
        let Some((before, after)) = line.split_once(" times=") else {
            all.push((*line).to_owned());
            continue;
        };
        let (count, after) = after.split_once(' ').unwrap_or((after, ""));
        let count: usize = count.parse().expect("times is a number");
        let line = format!("{before} {after}");
        all.extend((0..count).map(|number| line.trim_end().replace('%', &format!("{number:03}"))));
    }
    all
}

/// The lines that are set below the one before them, without one level of indent, and the others.
fn split_below(lines: &[String]) -> (&[String], &[String]) {
    let below = lines.iter().take_while(|line| line.starts_with(' ')).count();
    lines.split_at(below)
}

/// The words of one line.
pub(crate) struct Fields<'a> {
    line: &'a str,
    words: Vec<&'a str>,
}

impl<'a> Fields<'a> {
    /// Splits `line`, whose first word has been taken away.
    pub(super) fn new(line: &'a str) -> Fields<'a> {
        Fields { line, words: line.split_whitespace().collect() }
    }

    /// Takes the value of the field `name`; a bare name is `true`.
    pub(super) fn take(&mut self, name: &str) -> Option<&'a str> {
        let at = self.words.iter().position(|word| word.split('=').next() == Some(name))?;
        let word = self.words.remove(at);
        Some(word.split_once('=').map_or("true", |(_, value)| value))
    }

    /// Takes the only word, a count.
    pub(super) fn count(&mut self) -> usize {
        let word = self.words.pop().unwrap_or("1");
        word.parse().unwrap_or_else(|_| panic!("`{word}` is not a count, in: {}", self.line))
    }

    pub(super) fn key(&mut self, name: &str, scope: &Scope) -> Bytes {
        self.take(name).map(|text| scope.key(text)).unwrap_or_default()
    }

    pub(super) fn bytes(&mut self, name: &str, scope: &Scope) -> Bytes {
        self.take(name).map(|text| scope.bytes(text)).unwrap_or_default()
    }

    pub(super) fn number(&mut self, name: &str, scope: &Scope) -> i64 {
        self.take(name).map(|text| scope.number(text)).unwrap_or_default()
    }

    pub(super) fn flag(&mut self, name: &str) -> bool {
        match self.take(name) {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => panic!("`{other}` is not a flag, in: {}", self.line),
        }
    }

    /// An enum: one of `names`, which stand for 0, 1, 2…, or a raw number.
    pub(super) fn choice(&mut self, name: &str, names: &[&str]) -> i32 {
        let Some(text) = self.take(name) else { return 0 };
        let known = names.iter().position(|known| *known == text);
        match known.and_then(|at| i32::try_from(at).ok()).or_else(|| text.parse().ok()) {
            Some(number) => number,
            None => panic!("`{text}` is not one of {names:?}, in: {}", self.line),
        }
    }

    /// Takes the metadata fields.
    pub(super) fn metadata(&mut self, scope: &Scope) -> Vec<Metadata> {
        let is_metadata = |word: &&str| word.starts_with("meta.");
        let (metadata, words) = self.words.iter().copied().partition(is_metadata);
        self.words = words;
        let entry = |word: &str| {
            let (name, value) = word["meta.".len()..].split_once('=').expect("meta.NAME=VALUE");
            (name.to_owned(), scope.bytes(value))
        };
        let words: Vec<&str> = metadata;
        words.into_iter().map(entry).collect()
    }

    /// Refuses fields that nobody took.
    pub(super) fn finish(&self) {
        assert!(self.words.is_empty(), "unknown {:?} in: {}", self.words, self.line);
    }
}

/// Reads one request with the lines below it.
pub(crate) fn step(line: &str, below: &[String], scope: &Scope) -> Step {
    let (quiet, line) = match line.strip_prefix("quiet ") {
        Some(rest) => (true, rest),
        None => (false, line),
    };
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    let mut fields = Fields::new(rest);
    let metadata = fields.metadata(scope);
    let quiet = quiet || verb == "wipe";
    let method = fields.take("method").unwrap_or("POST").to_owned();
    let (path, body, shape) = match verb {
        "raw" => raw(&mut fields, scope),
        "http" => {
            let path = fields.take("path").expect("http needs a path").to_owned();
            (path, fields.bytes("body", scope), Shape::Http)
        }
        "txn" => {
            let body = txn(below, scope).encode_to_vec();
            ("/etcdserverpb.KV/Txn".to_owned(), body.into(), Shape::Txn)
        }
        _ => {
            let (path, body, shape) = plain(verb, &mut fields, scope);
            (path.to_owned(), body.into(), shape)
        }
    };
    fields.finish();
    Step { method, path, body, shape, metadata, quiet }
}

/// Reads a request that has no lines below it.
fn plain(verb: &str, fields: &mut Fields<'_>, scope: &Scope) -> (&'static str, Vec<u8>, Shape) {
    let f = fields;
    match verb {
        "range" => ("/etcdserverpb.KV/Range", range(f, scope).encode_to_vec(), Shape::Range),
        "stream" => {
            ("/etcdserverpb.KV/RangeStream", range(f, scope).encode_to_vec(), Shape::Stream)
        }
        "put" => ("/etcdserverpb.KV/Put", put(f, scope).encode_to_vec(), Shape::Put),
        "delete" => {
            ("/etcdserverpb.KV/DeleteRange", delete(f, scope).encode_to_vec(), Shape::Delete)
        }
        "wipe" => ("/etcdserverpb.KV/DeleteRange", everything().encode_to_vec(), Shape::Delete),
        "compact" => {
            let revision = f.number("revision", scope);
            let request = CompactionRequest { revision, physical: f.flag("physical") };
            ("/etcdserverpb.KV/Compact", request.encode_to_vec(), Shape::Compact)
        }
        "grant" => {
            let request =
                LeaseGrantRequest { ttl: f.number("TTL", scope), id: f.number("ID", scope) };
            ("/etcdserverpb.Lease/LeaseGrant", request.encode_to_vec(), Shape::Grant)
        }
        "revoke" => {
            let request = LeaseRevokeRequest { id: f.number("ID", scope) };
            ("/etcdserverpb.Lease/LeaseRevoke", request.encode_to_vec(), Shape::Revoke)
        }
        "status" => {
            ("/etcdserverpb.Maintenance/Status", StatusRequest {}.encode_to_vec(), Shape::Status)
        }
        "hashkv" => {
            let request = HashKvRequest { revision: f.number("revision", scope) };
            ("/etcdserverpb.Maintenance/HashKV", request.encode_to_vec(), Shape::HashKv)
        }
        "members" => {
            let request = MemberListRequest { linearizable: f.flag("linearizable") };
            ("/etcdserverpb.Cluster/MemberList", request.encode_to_vec(), Shape::Members)
        }
        "alarm" => {
            ("/etcdserverpb.Maintenance/Alarm", alarm(f, scope).encode_to_vec(), Shape::Alarm)
        }
        _ => coordination::plain(verb, f, scope),
    }
}

fn alarm(fields: &mut Fields<'_>, scope: &Scope) -> AlarmRequest {
    AlarmRequest {
        action: fields.choice("action", &["GET", "ACTIVATE", "DEACTIVATE"]),
        member_id: fields.number("memberID", scope).cast_unsigned(),
        alarm: fields.choice("alarm", &["NONE", "NOSPACE", "CORRUPT"]),
    }
}

/// Reads a request that is given as bytes.
fn raw(fields: &mut Fields<'_>, scope: &Scope) -> (String, Bytes, Shape) {
    let path = fields.take("path").expect("raw needs a path").to_owned();
    let shape = match fields.take("as") {
        None => Shape::Raw,
        Some("range") => Shape::Range,
        Some("stream") => Shape::Stream,
        Some("put") => Shape::Put,
        Some("delete") => Shape::Delete,
        Some("txn") => Shape::Txn,
        Some("authstatus") => Shape::AuthStatus,
        Some("hash") => Shape::Hash,
        Some(other) => panic!("raw cannot print `{other}`"),
    };
    (path, fields.bytes("body", scope), shape)
}

/// The request that deletes every key of the store.
fn everything() -> DeleteRangeRequest {
    let open = Bytes::from_static(b"\0");
    DeleteRangeRequest { key: open.clone(), range_end: open, prev_kv: false }
}

fn range(fields: &mut Fields<'_>, scope: &Scope) -> RangeRequest {
    RangeRequest {
        key: fields.key("key", scope),
        range_end: fields.key("range_end", scope),
        limit: fields.number("limit", scope),
        revision: fields.number("revision", scope),
        sort_order: fields.choice("sort_order", &["NONE", "ASCEND", "DESCEND"]),
        sort_target: fields.choice("sort_target", &["KEY", "VERSION", "CREATE", "MOD", "VALUE"]),
        serializable: fields.flag("serializable"),
        keys_only: fields.flag("keys_only"),
        count_only: fields.flag("count_only"),
        min_mod_revision: fields.number("min_mod_revision", scope),
        max_mod_revision: fields.number("max_mod_revision", scope),
        min_create_revision: fields.number("min_create_revision", scope),
        max_create_revision: fields.number("max_create_revision", scope),
    }
}

fn put(fields: &mut Fields<'_>, scope: &Scope) -> PutRequest {
    PutRequest {
        key: fields.key("key", scope),
        value: fields.bytes("value", scope),
        lease: fields.number("lease", scope),
        prev_kv: fields.flag("prev_kv"),
        ignore_value: fields.flag("ignore_value"),
        ignore_lease: fields.flag("ignore_lease"),
    }
}

fn delete(fields: &mut Fields<'_>, scope: &Scope) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: fields.key("key", scope),
        range_end: fields.key("range_end", scope),
        prev_kv: fields.flag("prev_kv"),
    }
}

/// Reads the lines below a `txn`.
fn txn(lines: &[String], scope: &Scope) -> TxnRequest {
    let lines: Vec<String> = lines.iter().map(|line| line[INDENT..].to_owned()).collect();
    let mut request = TxnRequest::default();
    let mut rest = lines.as_slice();
    while let [line, after @ ..] = rest {
        let (below, next) = split_below(after);
        let (word, line) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "if" => request.compare.push(compare(line, scope)),
            "then" => request.success.push(operation(line, below, scope)),
            "else" => request.failure.push(operation(line, below, scope)),
            _ => panic!("`{word}` is not if, then or else"),
        }
        rest = next;
    }
    request
}

/// Reads one operation of a Txn.
fn operation(line: &str, below: &[String], scope: &Scope) -> RequestOp {
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    let mut fields = Fields::new(rest);
    let request = match verb {
        "empty" => None,
        "range" => Some(Op::RequestRange(range(&mut fields, scope))),
        "put" => Some(Op::RequestPut(put(&mut fields, scope))),
        "delete" => Some(Op::RequestDeleteRange(delete(&mut fields, scope))),
        "txn" => Some(Op::RequestTxn(txn(below, scope))),
        _ => panic!("`{verb}` is not an operation of a Txn"),
    };
    fields.finish();
    RequestOp { request }
}

/// Reads one condition of a Txn. The operand may be of another kind than the target.
fn compare(line: &str, scope: &Scope) -> Compare {
    let mut fields = Fields::new(line);
    let operand = if let Some(text) = fields.take("version") {
        Some(TargetUnion::Version(scope.number(text)))
    } else if let Some(text) = fields.take("create_revision") {
        Some(TargetUnion::CreateRevision(scope.number(text)))
    } else if let Some(text) = fields.take("mod_revision") {
        Some(TargetUnion::ModRevision(scope.number(text)))
    } else if let Some(text) = fields.take("value") {
        Some(TargetUnion::Value(scope.bytes(text)))
    } else {
        fields.take("lease").map(|text| TargetUnion::Lease(scope.number(text)))
    };
    let compare = Compare {
        result: fields.choice("result", &["EQUAL", "GREATER", "LESS", "NOT_EQUAL"]),
        target: fields.choice("target", &["VERSION", "CREATE", "MOD", "VALUE", "LEASE"]),
        key: fields.key("key", scope),
        range_end: fields.key("range_end", scope),
        target_union: operand,
    };
    fields.finish();
    compare
}
