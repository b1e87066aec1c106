//! Runs a script on a fresh state: blocks of commands, `---`, what came of them.
//!
//! ```text
//! put K=V [prev] [lease=N] [ignore_value] [ignore_lease]
//! delete K [END] [prev]
//! range K [END] [limit=N] [rev=N] [sort=ascend|descend] [by=version|create|mod|value] [keys]
//!       [count] [min_mod=N] [max_mod=N] [min_create=N] [max_create=N]
//! txn [if C [and C…]] then { OP ; … } [else { OP ; … }]      C: target(K[,END]) = < > or != V
//! grant ID TTL     revoke ID     renew ID…     expire ID END     leases     clock MS
//! compact N      sweep N (steps of N)      reopen      hash [N]      history N      records
//! ```
//! `\0` in a key is the zero byte.

use std::fmt::Write;
use std::iter::Peekable;
use std::str::SplitWhitespace;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use quorate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use quorate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use quorate::pb::etcdserverpb::request_op::Request;
use quorate::pb::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest,
    PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest,
};
use quorate::pb::mvccpb::KeyValue;
use quorate::pb::quorate::command::command::Body;
use quorate::pb::quorate::command::{Command, LeaseExpire, LeaseRenew};
use quorate::state::{
    CompactStep, Event, EventKind, HashJob, History, HistoryStep, LeaseTerm, Options, Position,
    RangeAnswer, Response, State, TxnAnswer,
};

use super::memory::Map;

type Words<'a> = Peekable<SplitWhitespace<'a>>;

/// The script with its outputs as they are now.
pub(crate) fn run(script: &str) -> String {
    let mut state = open(Arc::default());
    let mut output = String::new();
    for block in script.split("\n\n") {
        let input = block.split("---").next().unwrap().trim_end();
        let commands = input.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let results: String = commands.map(|line| execute(&mut state, line)).collect();
        let gap = if output.is_empty() { "" } else { "\n" };
        let rule = if results.is_empty() { "" } else { "---\n" };
        write!(output, "{gap}{input}\n{rule}{results}").unwrap();
    }
    output
}

fn open(backend: Arc<Map>) -> State<Map> {
    State::open(backend, Options { value_cache_bytes: 64 }).unwrap()
}

fn execute(state: &mut State<Map>, line: &str) -> String {
    let mut words = line.split_whitespace().peekable();
    let number = |words: &mut Words<'_>| words.nth(1).map_or(0, |word| word.parse().unwrap());
    match *words.peek().unwrap() {
        "range" => range(state, op(&mut words)),
        "compact" => {
            let request = CompactionRequest { revision: number(&mut words), physical: false };
            apply(state, Body::Compact(request))
        }
        "sweep" => {
            let step = number(&mut words) as usize;
            while state.compact_step(step).unwrap() == CompactStep::More {}
            format!("records {}\n", records(state).join(" "))
        }
        "records" => format!("records {}\n", records(state).join(" ")),
        "reopen" => {
            *state = open(Arc::new(state.backend().copy()));
            String::new()
        }
        "clock" => {
            let index = state.applied().map_or(1, |position| position.index + 1);
            let at = Position { index, term: 1, leader: 1 };
            state.apply(at, number(&mut words) as u64, []).unwrap();
            String::new()
        }
        "leases" => leases(state),
        "grant" | "revoke" | "renew" | "expire" => apply(state, lease_command(&mut words)),
        "hash" => hash(state, number(&mut words)),
        "history" => history(state, number(&mut words)),
        _ => match op(&mut words) {
            Request::RequestPut(put) => apply(state, Body::Put(put)),
            Request::RequestDeleteRange(delete) => apply(state, Body::DeleteRange(delete)),
            Request::RequestTxn(txn) => apply(state, Body::Txn(txn)),
            Request::RequestRange(_) => unreachable!("ranges are read above"),
        },
    }
}

fn apply(state: &mut State<Map>, body: Body) -> String {
    let index = state.applied().map_or(1, |position| position.index + 1);
    let command = Command { body: Some(body) };
    let applied = state.apply(Position { index, term: 1, leader: 1 }, 0, [&command]).unwrap();
    let applied = &applied[0];
    let mut output: String = applied.events.iter().map(event).collect();
    match &applied.outcome {
        Ok(response) => output += &self::response(response, ""),
        Err(refusal) => writeln!(output, "refused  {refusal}").unwrap(),
    }
    if applied.events.is_empty() {
        writeln!(output, "still rev {}", applied.revision).unwrap();
    }
    output
}

fn lease_command(words: &mut Words<'_>) -> Body {
    let name = words.next().unwrap();
    let numbers: Vec<i64> = words.map(|word| word.parse().unwrap()).collect();
    match (name, &numbers[..]) {
        ("grant", &[id, ttl]) => Body::LeaseGrant(LeaseGrantRequest { id, ttl }),
        ("revoke", &[id]) => Body::LeaseRevoke(LeaseRevokeRequest { id }),
        ("expire", &[id, end]) => Body::LeaseExpire(LeaseExpire { id, expires_at_ms: end as u64 }),
        ("renew", _) => Body::LeaseRenew(LeaseRenew { ids: numbers }),
        _ => panic!("wrong arguments for {name}"),
    }
}

fn leases(state: &State<Map>) -> String {
    let mut output = String::new();
    for term in state.leases() {
        let keys: String = state
            .lease(term.id)
            .unwrap()
            .keys()
            .fold(String::new(), |all, key| format!("{all} {}", key.escape_ascii()));
        writeln!(output, "{}:{keys}", self::term(&term)).unwrap();
    }
    if output.is_empty() { "no leases\n".into() } else { output }
}

fn term(term: &LeaseTerm) -> String {
    format!("lease {} for {} s, to {}", term.id, term.ttl_seconds, term.expires_at_ms)
}

fn event(event: &Event) -> String {
    let kv = KeyValue::decode(event.kv.clone()).unwrap();
    assert_eq!((&kv.key, kv.mod_revision), (&event.key, event.revision.main));
    let key = kv.key.escape_ascii();
    let rev = format!("rev {}.{}", event.revision.main, event.revision.sub);
    let prev = event.prev.map_or(String::new(), |prev| format!(", was rev {}", prev.main));
    match event.kind {
        EventKind::Put => {
            let (create, version) = (kv.create_revision, kv.version);
            assert_eq!((create, version), (event.create_revision, event.version));
            let value = kv.value.escape_ascii();
            let lease = lease_of(&kv);
            format!("{rev}  PUT {key}={value} (create {create}, version {version}{lease}{prev})\n")
        }
        EventKind::Delete => format!("{rev}  DELETE {key}{prev}\n"),
    }
}

fn lease_of(kv: &KeyValue) -> String {
    if kv.lease == 0 { String::new() } else { format!(", lease {}", kv.lease) }
}

fn response(response: &Response, indent: &str) -> String {
    match response {
        Response::Put(put) => {
            put.prev_kv.iter().map(|kv| format!("{indent}prev {}\n", pair(kv))).collect()
        }
        Response::DeleteRange(delete) => {
            let mut output = format!("{indent}deleted {}\n", delete.deleted);
            for kv in &delete.prev_kvs {
                writeln!(output, "{indent}prev {}", pair(kv)).unwrap();
            }
            output
        }
        Response::Range(range) => answer(range, indent),
        Response::Txn(txn) => txn_answer(txn, indent),
        Response::LeaseGrant(granted) => format!("granted {}\n", term(granted)),
        Response::LeaseRevoke(id) => format!("revoked lease {id}\n"),
        Response::LeaseRenew(renewed) => {
            renewed.iter().map(|lease| format!("renewed {}\n", term(lease))).collect()
        }
        Response::LeaseExpire(expiry) => {
            let what = if expiry.is_expired { "is gone" } else { "stays" };
            format!("lease {} {what}\n", expiry.id)
        }
        Response::Compact | Response::PublishMember => String::new(),
    }
}

fn txn_answer(txn: &TxnAnswer, indent: &str) -> String {
    let branch = if txn.succeeded { "then" } else { "else" };
    let mut output = format!("{indent}{branch}\n");
    for op in &txn.responses {
        let name = match &op.response {
            Response::Put(_) => "put",
            Response::DeleteRange(_) => "delete",
            Response::Range(_) => "range",
            Response::Txn(_) => "txn",
            _ => unreachable!("not in a txn"),
        };
        writeln!(output, "{indent}  {name} at rev {}", op.revision).unwrap();
        output += &response(&op.response, &format!("{indent}    "));
    }
    output
}

fn pair(kv: &Bytes) -> String {
    show(&KeyValue::decode(kv.clone()).unwrap())
}

fn show(kv: &KeyValue) -> String {
    let (key, value) = (kv.key.escape_ascii(), kv.value.escape_ascii());
    let (create, changed, version) = (kv.create_revision, kv.mod_revision, kv.version);
    let lease = lease_of(kv);
    format!("{key}={value} (create {create}, mod {changed}, version {version}{lease})")
}

fn answer(range: &RangeAnswer, indent: &str) -> String {
    let kvs = RangeResponse::decode(range.kvs.clone()).unwrap().kvs;
    assert_eq!(kvs.len(), range.len);
    let mut output = String::new();
    for kv in &kvs {
        writeln!(output, "{indent}{}", show(kv)).unwrap();
    }
    let more = if range.more { ", more" } else { "" };
    writeln!(output, "{indent}count {}{more}", range.count).unwrap();
    output
}

fn range(state: &mut State<Map>, request: Request) -> String {
    let Request::RequestRange(request) = request else { unreachable!("called for a range") };
    let mut plan = match state.range(&request) {
        Ok(plan) => plan,
        Err(refusal) => return format!("refused  {refusal}\n"),
    };
    while !plan.is_planned() {
        state.plan_more(&mut plan);
    }
    let (range, cold) = plan.finish_and_warm(&**state.backend()).unwrap();
    state.warm(cold);
    answer(&range, "")
}

fn records(state: &State<Map>) -> Vec<String> {
    let pairs = state.backend().pairs.lock();
    let records = pairs.iter().filter(|(key, _)| key[0] == b'r');
    records
        .map(|(key, value)| {
            let main = i64::from_be_bytes(key[1..9].try_into().unwrap());
            let kv = KeyValue::decode(&value[1..]).unwrap();
            let sign = if kv.version == 0 { "-" } else { "" };
            format!("{main}:{sign}{}", kv.key.escape_ascii())
        })
        .collect()
}

fn hash(state: &State<Map>, revision: i64) -> String {
    let mut job = match HashJob::new(state, revision) {
        Ok(job) => job,
        Err(refusal) => return format!("refused  {refusal}\n"),
    };
    loop {
        if let Some(hash) = job.step(state, 2).unwrap() {
            let span = (hash.compact_revision, hash.hash_revision);
            return format!("hash {:08x} from {} to {}\n", hash.hash, span.0, span.1);
        }
    }
}

fn history(state: &State<Map>, start: i64) -> String {
    let mut history = match History::new(state, start) {
        Ok(history) => history,
        Err(refusal) => return format!("refused  {refusal}\n"),
    };
    let mut output = String::new();
    let step = HistoryStep { events_max: 2, bytes_max: 1 << 20 };
    while let Some(mut events) = history.next_events(&**state.backend(), step).unwrap() {
        History::find_prev(state, &mut events);
        output.extend(events.iter().map(event));
    }
    output
}

/// Reads one operation; what follows it stays.
fn op(words: &mut Words<'_>) -> Request {
    match words.next().unwrap() {
        "put" => Request::RequestPut(put(words)),
        "delete" => {
            let mut delete = DeleteRangeRequest { key: key(words), ..Default::default() };
            while let Some(word) = option(words) {
                match word {
                    "prev" => delete.prev_kv = true,
                    end => delete.range_end = bytes(end),
                }
            }
            Request::RequestDeleteRange(delete)
        }
        "range" => Request::RequestRange(range_request(words)),
        "txn" => Request::RequestTxn(txn(words)),
        other => panic!("unknown command {other}"),
    }
}

fn put(words: &mut Words<'_>) -> PutRequest {
    let (key, value) = words.next().unwrap().split_once('=').unwrap();
    let mut put = PutRequest { key: bytes(key), value: bytes(value), ..Default::default() };
    while let Some(word) = option(words) {
        match word.split_once('=').unwrap_or((word, "")) {
            ("prev", _) => put.prev_kv = true,
            ("ignore_value", _) => put.ignore_value = true,
            ("ignore_lease", _) => put.ignore_lease = true,
            ("lease", lease) => put.lease = lease.parse().unwrap(),
            other => panic!("unknown option {other:?}"),
        }
    }
    put
}

fn range_request(words: &mut Words<'_>) -> RangeRequest {
    let mut range = RangeRequest { key: key(words), ..Default::default() };
    while let Some(word) = option(words) {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let number = || value.parse::<i64>().unwrap();
        match name {
            "keys" => range.keys_only = true,
            "count" => range.count_only = true,
            "limit" => range.limit = number(),
            "rev" => range.revision = number(),
            "min_mod" => range.min_mod_revision = number(),
            "max_mod" => range.max_mod_revision = number(),
            "min_create" => range.min_create_revision = number(),
            "max_create" => range.max_create_revision = number(),
            "sort" => {
                let order = SortOrder::from_str_name(&value.to_uppercase());
                range.sort_order = order.map_or(9, i32::from);
            }
            "by" => {
                let target = SortTarget::from_str_name(&value.to_uppercase());
                range.sort_target = target.map_or(9, i32::from);
            }
            end => range.range_end = bytes(end),
        }
    }
    range
}

fn txn(words: &mut Words<'_>) -> TxnRequest {
    let mut txn = TxnRequest::default();
    if words.next_if_eq(&"if").is_some() {
        txn.compare.push(compare(words));
        while words.next_if_eq(&"and").is_some() {
            txn.compare.push(compare(words));
        }
    }
    if words.next_if_eq(&"then").is_some() {
        txn.success = branch(words);
    }
    if words.next_if_eq(&"else").is_some() {
        txn.failure = branch(words);
    }
    txn
}

fn branch(words: &mut Words<'_>) -> Vec<RequestOp> {
    assert_eq!(words.next(), Some("{"));
    let mut ops = Vec::new();
    while words.next_if_eq(&"}").is_none() {
        ops.push(RequestOp { request: Some(op(words)) });
        words.next_if_eq(&";");
    }
    ops
}

fn compare(words: &mut Words<'_>) -> Compare {
    let (target, range) = words.next().unwrap().strip_suffix(')').unwrap().split_once('(').unwrap();
    let (key, end) = range.split_once(',').unwrap_or((range, ""));
    let result = match words.next().unwrap() {
        "=" => CompareResult::Equal.into(),
        ">" => CompareResult::Greater.into(),
        "<" => CompareResult::Less.into(),
        "!=" => CompareResult::NotEqual.into(),
        _ => 9,
    };
    let wanted = words.next().unwrap();
    let number = || wanted.parse::<i64>().unwrap();
    let (target, union) = match target {
        "version" => (CompareTarget::Version.into(), Some(TargetUnion::Version(number()))),
        "create" => (CompareTarget::Create.into(), Some(TargetUnion::CreateRevision(number()))),
        "mod" => (CompareTarget::Mod.into(), Some(TargetUnion::ModRevision(number()))),
        "value" => (CompareTarget::Value.into(), Some(TargetUnion::Value(bytes(wanted)))),
        "lease" => (CompareTarget::Lease.into(), Some(TargetUnion::Lease(number()))),
        _ => (9, None),
    };
    Compare { result, target, key: bytes(key), target_union: union, range_end: bytes(end) }
}

fn option<'a>(words: &mut Words<'a>) -> Option<&'a str> {
    words.next_if(|word| !matches!(*word, ";" | "}"))
}

fn key(words: &mut Words<'_>) -> Bytes {
    bytes(words.next().unwrap())
}

fn bytes(word: &str) -> Bytes {
    Bytes::from(word.trim_matches('\'').replace("\\0", "\0"))
}
