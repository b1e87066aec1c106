//! Turns answers into lines that two honest servers print alike.

use bytes::Bytes;
use prost::Message;
use quorate::pb::etcdserverpb::response_op::Response as Op;
use quorate::pb::etcdserverpb::{
    AlarmResponse, AuthStatusResponse, CompactionResponse, DeleteRangeResponse, HashKvResponse,
    HashResponse, LeaseGrantResponse, LeaseRevokeResponse, MemberListResponse, PutResponse,
    RangeResponse, RangeStreamResponse, ResponseHeader, StatusResponse, TxnResponse,
};
use quorate::pb::mvccpb::KeyValue;
use tonic::{Code, Status};

mod coordination;
pub(crate) mod watch;

use super::client::HttpAnswer;
use super::request::{Shape, Step};
use super::scope::{Scope, show_bytes, show_text};

/// Who answered so far; every answer of a run comes from the same member.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Identity {
    cluster_id: u64,
    member_id: u64,
    raft_term: u64,
}

impl Identity {
    /// Checks the header of an answer against those before it; the complaint, if there is one.
    fn check(&mut self, header: &ResponseHeader) -> Option<&'static str> {
        let known = *self;
        *self = Identity {
            cluster_id: header.cluster_id,
            member_id: header.member_id,
            raft_term: header.raft_term,
        };
        if self.cluster_id == 0 || self.member_id == 0 || self.raft_term == 0 {
            return Some("INCOMPLETE-HEADER");
        }
        let first = known.cluster_id == 0;
        if !first && (self.cluster_id, self.member_id) != (known.cluster_id, known.member_id) {
            return Some("CHANGED-ID");
        }
        (self.raft_term < known.raft_term).then_some("TERM-WENT-BACK")
    }
}

/// Collects the lines of one case.
#[derive(Debug)]
pub(crate) struct Printer<'a> {
    scope: &'a Scope,
    identity: &'a mut Identity,
    hashes: Vec<u32>,
    lines: Vec<String>,
}

impl<'a> Printer<'a> {
    /// An empty page.
    pub(crate) fn new(scope: &'a Scope, identity: &'a mut Identity) -> Printer<'a> {
        Printer { scope, identity, hashes: Vec::new(), lines: Vec::new() }
    }

    /// The lines, with runs of equal lines written once with their count.
    pub(crate) fn finish(self) -> Vec<String> {
        let mut folded: Vec<(String, usize)> = Vec::new();
        for (index, line) in self.lines.iter().enumerate() {
            // A line with lines of its own below it stays visible.
            let is_parent = self.lines.get(index + 1).is_some_and(|next| depth(next) > depth(line));
            match folded.last_mut() {
                Some((last, count)) if last == line && !is_parent => *count += 1,
                _ => folded.push((line.clone(), 1)),
            }
        }
        let show = |(line, count): (String, usize)| match count {
            1 => line,
            _ => format!("{line}  x{count}"),
        };
        folded.into_iter().map(show).collect()
    }

    /// Prints the answer to `step`.
    pub(crate) fn answer(&mut self, step: &Step, answer: Result<Vec<Bytes>, Status>) {
        if step.shape == Shape::Grant
            && let Ok([message]) = answer.as_deref()
        {
            self.scope.learn_lease(decode::<LeaseGrantResponse>(message).id);
        }
        let messages = match answer {
            Ok(messages) => messages,
            Err(status) => return self.error(&status),
        };
        if step.quiet {
            return;
        }
        match (step.shape, messages.as_slice()) {
            (Shape::Stream, chunks) => self.stream(chunks),
            (Shape::Raw, messages) => self.raw(messages),
            (shape, [message]) => self.message(shape, message),
            (_, messages) => self.line(0, format!("PROTOCOL: {} messages", messages.len())),
        }
    }

    /// Prints a status that is not OK.
    fn error(&mut self, status: &Status) {
        // Go's protobuf writes some spaces as U+00A0, which ones depends on the build.
        let message = status.message().replace('\u{a0}', " ");
        self.line(0, format!("error {}: {message}", code_name(status.code())));
    }

    /// Prints the only message of a unary answer.
    fn message(&mut self, shape: Shape, message: &Bytes) {
        match shape {
            Shape::Range => self.range(0, &decode(message)),
            Shape::Put => self.put(0, &decode(message)),
            Shape::Delete => self.delete(0, &decode(message)),
            Shape::Txn => self.txn(0, &decode(message)),
            Shape::Compact => {
                let response: CompactionResponse = decode(message);
                let head = self.header(0, response.header.as_ref());
                self.line(0, format!("compact {head}"));
            }
            Shape::Grant => self.grant(&decode(message)),
            Shape::Revoke => {
                let response: LeaseRevokeResponse = decode(message);
                let head = self.header(0, response.header.as_ref());
                self.line(0, format!("revoke {head}"));
            }
            Shape::Status => self.status(&decode(message)),
            Shape::HashKv => self.hashkv(&decode(message)),
            Shape::Alarm => {
                let response: AlarmResponse = decode(message);
                let head = self.header(0, response.header.as_ref());
                self.line(0, format!("alarm {head}"));
                for alarm in &response.alarms {
                    let (member, kind) = (alarm.member_id, alarm.alarm().as_str_name());
                    self.line(1, format!("member {member} {kind}"));
                }
            }
            Shape::Members => self.members(&decode(message)),
            Shape::AuthStatus => {
                let response: AuthStatusResponse = decode(message);
                let head = self.header(0, response.header.as_ref());
                let (enabled, revision) = (response.enabled, response.auth_revision);
                self.line(0, format!("auth {head} enabled={enabled} authRevision={revision}"));
            }
            Shape::Hash => {
                let response: HashResponse = decode(message);
                let head = self.header(0, response.header.as_ref());
                let number = self.hash_number(response.hash);
                self.line(0, format!("hash {head} hash#{number}"));
            }
            Shape::Stream | Shape::Raw | Shape::Http | Shape::Watch => {
                unreachable!("printed by their own functions")
            }
            shape => self.coordination(shape, message),
        }
    }

    /// Prints a message of a call that goes on, with the name of the call.
    pub(crate) fn named_message(&mut self, name: &str, shape: Shape, message: &Bytes) {
        let before = self.lines.len();
        self.message(shape, message);
        self.lines[before] = format!("{name} {}", self.lines[before]);
    }

    /// Prints what the runner itself has to say.
    pub(crate) fn remark(&mut self, text: String) {
        self.line(0, text);
    }

    /// Prints how the call `name` ended.
    pub(crate) fn end(&mut self, name: &str, status: &Status) {
        if status.code() == Code::Ok {
            return self.line(0, format!("{name} end"));
        }
        self.error(status);
        let last = self.lines.last_mut().expect("an error is a line");
        *last = format!("{name} {last}");
    }

    fn line(&mut self, depth: usize, text: String) {
        self.lines.push(format!("{}{text}", "  ".repeat(depth)));
    }

    /// Prints a header: only its revision, unless something is wrong with the rest of it.
    ///
    /// As in etcd: the headers inside a Txn hold nothing but the revision.
    fn header(&mut self, depth: usize, header: Option<&ResponseHeader>) -> String {
        let Some(header) = header else { return "no-header".to_owned() };
        let revision = self.scope.show_revision(header.revision);
        let complaint = if depth == 0 {
            self.identity.check(header)
        } else {
            let empty = (header.cluster_id, header.member_id, header.raft_term) == (0, 0, 0);
            (!empty).then_some("INNER-HEADER-IS-NOT-EMPTY")
        };
        match complaint {
            None => revision,
            Some(complaint) => format!("{revision} {complaint}"),
        }
    }

    fn range(&mut self, depth: usize, response: &RangeResponse) {
        let head = self.header(depth, response.header.as_ref());
        self.range_body(depth, &format!("range {head}"), response);
    }

    fn range_body(&mut self, depth: usize, head: &str, response: &RangeResponse) {
        let more = if response.more { " more" } else { "" };
        self.line(depth, format!("{head} count={}{more}", response.count));
        for kv in &response.kvs {
            self.kv(depth + 1, "", kv);
        }
    }

    fn put(&mut self, depth: usize, response: &PutResponse) {
        let head = self.header(depth, response.header.as_ref());
        self.line(depth, format!("put {head}"));
        if let Some(kv) = &response.prev_kv {
            self.kv(depth + 1, "prev ", kv);
        }
    }

    fn delete(&mut self, depth: usize, response: &DeleteRangeResponse) {
        let head = self.header(depth, response.header.as_ref());
        self.line(depth, format!("delete {head} deleted={}", response.deleted));
        for kv in &response.prev_kvs {
            self.kv(depth + 1, "prev ", kv);
        }
    }

    fn txn(&mut self, depth: usize, response: &TxnResponse) {
        let head = self.header(depth, response.header.as_ref());
        let branch = if response.succeeded { "succeeded" } else { "failed" };
        self.line(depth, format!("txn {head} {branch}"));
        for operation in &response.responses {
            match &operation.response {
                None => self.line(depth + 1, "empty".to_owned()),
                Some(Op::ResponseRange(response)) => self.range(depth + 1, response),
                Some(Op::ResponsePut(response)) => self.put(depth + 1, response),
                Some(Op::ResponseDeleteRange(response)) => self.delete(depth + 1, response),
                Some(Op::ResponseTxn(response)) => self.txn(depth + 1, response),
            }
        }
    }

    fn kv(&mut self, depth: usize, word: &str, kv: &KeyValue) {
        let lease = match kv.lease {
            0 => String::new(),
            lease => format!(" lease={}", self.scope.show_lease(lease)),
        };
        let line = format!(
            "{word}{} = {} create={} mod={} version={}{lease}",
            self.scope.show_key(&kv.key),
            self.scope.show_value(&kv.value),
            self.scope.show_revision(kv.create_revision),
            self.scope.show_revision(kv.mod_revision),
            kv.version,
        );
        self.line(depth, line);
    }

    /// Prints the merged chunks of a RangeStream. Where chunks end is the server's affair, but
    /// header, count and more stand only in the last one.
    fn stream(&mut self, chunks: &[Bytes]) {
        let mut merged = RangeResponse::default();
        let mut early = false;
        for (index, chunk) in chunks.iter().enumerate() {
            let chunk: RangeStreamResponse = decode(chunk);
            let response = chunk.range_response.unwrap_or_default();
            let has_summary = response.header.is_some() || response.count != 0 || response.more;
            early |= has_summary && index + 1 < chunks.len();
            merged.kvs.extend(response.kvs);
            merged.header = response.header.or(merged.header);
            merged.count = response.count.max(merged.count);
            merged.more |= response.more;
        }
        let head = self.header(0, merged.header.as_ref());
        let early = if early { " SUMMARY-BEFORE-THE-LAST-CHUNK" } else { "" };
        self.range_body(0, &format!("stream {head}{early}"), &merged);
    }

    fn grant(&mut self, response: &LeaseGrantResponse) {
        let head = self.header(0, response.header.as_ref());
        let id = self.scope.show_lease(response.id);
        self.line(0, format!("grant {head} ID={id} TTL={}", response.ttl));
        if !response.error.is_empty() {
            self.line(1, format!("error {}", response.error));
        }
    }

    fn status(&mut self, response: &StatusResponse) {
        let head = self.header(0, response.header.as_ref());
        let minor = |version: &str| version.rsplitn(2, '.').last().unwrap_or_default().to_owned();
        let sane = |name: &str, ok: bool| if ok { String::new() } else { format!(" BAD-{name}") };
        let in_use = response.db_size_in_use > 0 && response.db_size_in_use <= response.db_size;
        let applied =
            response.raft_applied_index > 0 && response.raft_applied_index <= response.raft_index;
        self.line(
            0,
            format!(
                "status {head} version={}.x storageVersion={} dbSizeQuota={} isLearner={}{}{}{}{}{}",
                minor(&response.version),
                response.storage_version,
                response.db_size_quota,
                response.is_learner,
                sane("SIZE", response.db_size > 0),
                sane("SIZE-IN-USE", in_use),
                sane("LEADER", response.leader != 0),
                sane("TERM", response.raft_term > 0),
                sane("APPLIED-INDEX", applied),
            ),
        );
        if let Some(info) = &response.downgrade_info {
            let target = &info.target_version;
            self.line(1, format!("downgrade enabled={} target={target}", info.enabled));
        }
        for error in &response.errors {
            self.line(1, format!("error {error}"));
        }
    }

    /// A hash as the order in which it was first seen in this case: what counts is which hashes are
    /// equal.
    fn hash_number(&mut self, hash: u32) -> usize {
        let known = self.hashes.iter().position(|known| *known == hash);
        1 + known.unwrap_or_else(|| {
            self.hashes.push(hash);
            self.hashes.len() - 1
        })
    }

    fn hashkv(&mut self, response: &HashKvResponse) {
        let head = self.header(0, response.header.as_ref());
        let number = self.hash_number(response.hash);
        let compact = self.scope.show_compact_revision(response.compact_revision);
        let hashed = self.scope.show_revision(response.hash_revision);
        self.line(
            0,
            format!("hashkv {head} hash#{number} compact={compact} hash_revision={hashed}"),
        );
    }

    /// Prints what each member has; equal members fold into one line, so that their number does
    /// not matter.
    fn members(&mut self, response: &MemberListResponse) {
        let head = self.header(0, response.header.as_ref());
        let sorted = response.members.is_sorted_by_key(|member| member.id);
        self.line(0, format!("members {head} sorted={sorted}"));
        let mut lines: Vec<String> = Vec::new();
        for member in &response.members {
            let line = format!(
                "id={} name={} peerURLs={} clientURLs={} isLearner={}",
                member.id != 0,
                !member.name.is_empty(),
                member.peer_ur_ls.len(),
                member.client_ur_ls.len(),
                member.is_learner,
            );
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        for line in lines {
            self.line(1, line);
        }
    }

    /// Prints what an HTTP answer says about gRPC.
    pub(crate) fn http(&mut self, answer: Result<HttpAnswer, String>) {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return self.line(0, format!("http broken: {error}")),
        };
        self.line(0, format!("http {}", answer.status.as_u16()));
        for name in ["content-type", "grpc-encoding", "grpc-status", "grpc-message", "allow"] {
            // An empty message may be left out.
            let value = answer.fields.get(name).filter(|value| !value.is_empty());
            if let Some(value) = value {
                self.line(1, format!("{name} {}", show_text(value.as_bytes())));
            }
        }
        if !answer.body.is_empty() {
            self.line(1, format!("body of {} messages", count_frames(&answer.body)));
        }
    }

    fn raw(&mut self, messages: &[Bytes]) {
        self.line(0, format!("raw {} messages", messages.len()));
        for message in messages {
            self.line(1, show_bytes(message));
        }
    }
}

/// How many gRPC frames are in `body`; 0 if it is not made of frames.
fn count_frames(mut body: &[u8]) -> usize {
    let mut count = 0;
    while let [_flag, a, b, c, d, rest @ ..] = body {
        let length = u32::from_be_bytes([*a, *b, *c, *d]);
        match usize::try_from(length).ok().and_then(|length| rest.get(length..)) {
            None => return 0,
            Some(after) => body = after,
        }
        count += 1;
    }
    count
}

/// How many spaces a line is set in.
fn depth(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Decodes an answer.
fn decode<M: Message + Default>(bytes: &Bytes) -> M {
    M::decode(bytes.clone()).expect("a server sends well-formed messages")
}

/// The name of a code as in the gRPC specification's prose.
fn code_name(code: Code) -> String {
    // The variants of tonic's Code are named like that.
    format!("{code:?}")
}
