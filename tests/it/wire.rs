//! The bytes that members say to each other and to their logs: an old member must understand a new
//! one, and a new one an old log. `fixtures/format-1/wire.txt` has one of each message with every
//! field set. Lines may be added there, with `QUORATE_BLESS=1`; none may change.

use std::fmt::{Debug, Write as _};
use std::path::Path;

use prost::Message;
use quorate::pb::etcdserverpb::compare::TargetUnion;
use quorate::pb::etcdserverpb::request_op::Request;
use quorate::pb::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest,
    PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use quorate::pb::quorate::command::command::Body;
use quorate::pb::quorate::command::{
    Command, Group, LeaseExpire, LeaseRenew, Proposal, PublishMember,
};
use quorate::pb::quorate::peer::append_response::Outcome;
use quorate::pb::quorate::peer::snapshot_frame::Body as Frame;
use quorate::pb::quorate::peer::{
    AppendRequest, AppendResponse, ConfirmReply, ConfirmRequest, Entry, LeaseRenewReply,
    LeaseRenewRequest, LeaseTime, LeaseTimeToLiveReply, LeaseTimeToLiveRequest, LogId, MaybeLogId,
    Membership, Node, ProposeRequest, ReadIndexReply, SnapshotFooter, SnapshotFrame,
    SnapshotHeader, SnapshotRecords, SnapshotReply, StoredMembership, TransferLeaderReply,
    TransferLeaderRequest, Vote, VoteRequest, VoteResponse, VoterSet, entry,
};

/// Messages on their way into a text of lines, each read back from what the fixture says.
struct Lines {
    fixture: String,
    added: String,
}

impl Lines {
    fn message<M: Message + Default + PartialEq + Debug>(&mut self, name: &str, message: &M) {
        let hex: String =
            message.encode_to_vec().iter().map(|byte| format!("{byte:02x}")).collect();
        let head = format!("{name} ");
        match self.fixture.lines().find_map(|line| line.strip_prefix(&head)) {
            Some(known) => {
                assert_eq!(hex, known, "{name} is written in another way");
                let byte = |at: usize| u8::from_str_radix(&known[at..at + 2], 16).unwrap();
                let bytes: Vec<u8> = (0..known.len()).step_by(2).map(byte).collect();
                assert_eq!(
                    &M::decode(&bytes[..]).unwrap(),
                    message,
                    "{name} is read in another way"
                );
            }
            None => writeln!(self.added, "{name} {hex}").unwrap(),
        }
    }
}

const LOG_ID: LogId = LogId { term: 300, leader: 0xfedc_ba98_7654_3210, index: 1 << 40 };
const VOTE: Vote = Vote { term: 301, candidate: 0xfedc_ba98_7654_3210, committed: true };

fn membership() -> Membership {
    let node = |id| Node {
        id,
        name: format!("member{id}"),
        peer_urls: vec![format!("http://{id}:2380"), "http://[::1]:1".into()],
    };
    let voter_sets = vec![VoterSet { ids: vec![1, u64::MAX] }, VoterSet { ids: vec![1] }];
    Membership { voter_sets, nodes: vec![node(1), node(u64::MAX)] }
}

fn bodies() -> Vec<(&'static str, Body)> {
    let put = PutRequest {
        key: "key".into(),
        value: "value".into(),
        lease: -7,
        prev_kv: true,
        ignore_value: true,
        ignore_lease: true,
    };
    let delete = DeleteRangeRequest { key: "a".into(), range_end: "b".into(), prev_kv: true };
    let range = RangeRequest {
        key: "a".into(),
        range_end: "b".into(),
        limit: 3,
        revision: 4,
        sort_order: 2,
        sort_target: 3,
        serializable: true,
        keys_only: true,
        count_only: true,
        min_mod_revision: 5,
        max_mod_revision: 6,
        min_create_revision: 7,
        max_create_revision: 8,
    };
    let compare = |target, target_union| Compare {
        result: 3,
        target,
        key: "k".into(),
        range_end: "l".into(),
        target_union: Some(target_union),
    };
    let op = |request| RequestOp { request: Some(request) };
    let txn = TxnRequest {
        compare: vec![
            compare(0, TargetUnion::Version(1)),
            compare(1, TargetUnion::CreateRevision(2)),
            compare(2, TargetUnion::ModRevision(3)),
            compare(3, TargetUnion::Value("v".into())),
            compare(4, TargetUnion::Lease(5)),
        ],
        success: vec![
            op(Request::RequestRange(range)),
            op(Request::RequestPut(put.clone())),
            op(Request::RequestDeleteRange(delete.clone())),
        ],
        failure: vec![op(Request::RequestTxn(TxnRequest::default()))],
    };
    let member = PublishMember {
        member_id: 0xfedc_ba98_7654_3210,
        name: "m".into(),
        client_urls: vec!["http://m:2379".into()],
    };
    vec![
        ("put", Body::Put(put)),
        ("delete_range", Body::DeleteRange(delete)),
        ("txn", Body::Txn(txn)),
        ("compact", Body::Compact(CompactionRequest { revision: 9, physical: true })),
        ("publish_member", Body::PublishMember(member)),
        ("lease_grant", Body::LeaseGrant(LeaseGrantRequest { id: -7, ttl: 60 })),
        ("lease_revoke", Body::LeaseRevoke(LeaseRevokeRequest { id: -7 })),
        ("lease_renew", Body::LeaseRenew(LeaseRenew { ids: vec![-7, 7] })),
        ("lease_expire", Body::LeaseExpire(LeaseExpire { id: -7, expires_at_ms: 1 << 41 })),
    ]
}

fn group() -> Group {
    let commands = vec![Command { body: Some(bodies().swap_remove(0).1) }];
    Group { origin: 0xfedc_ba98_7654_3210, epoch: 1 << 63, sequence: 300, commands }
}

fn raft_messages(lines: &mut Lines) {
    let (vote, log_id) = (Some(VOTE), Some(LOG_ID));
    let entries = vec![
        Entry { log_id, body: None },
        Entry { log_id, body: Some(entry::Body::Proposal("proposal".into())) },
        Entry { log_id, body: Some(entry::Body::Membership(membership())) },
    ];
    let append = AppendRequest { vote, previous: log_id, entries, committed: log_id };
    lines.message("append_request", &append);
    for (name, outcome) in [
        ("matched_nothing", Outcome::Matched(MaybeLogId { log_id: None })),
        ("matched", Outcome::Matched(MaybeLogId { log_id })),
        ("conflict", Outcome::Conflict(LOG_ID)),
        ("higher_vote", Outcome::HigherVote(VOTE)),
    ] {
        let response = AppendResponse { outcome: Some(outcome) };
        lines.message(&format!("append_response_{name}"), &response);
    }
    let asked = VoteRequest { vote, last_log_id: log_id, leadership_transfer: true };
    lines.message("vote_request", &asked);
    lines.message("vote_response", &VoteResponse { vote, last_log_id: log_id, granted: true });
    let transfer = TransferLeaderRequest { vote, to: 3, last_log_id: log_id };
    lines.message("transfer_leader_request", &transfer);
    lines.message("transfer_leader_reply", &TransferLeaderReply { vote, accepted: true });
    lines.message("read_index_reply", &ReadIndexReply { index: 1 << 40 });
    lines.message("confirm_request", &ConfirmRequest { sequence: 300, vote });
    let reply = ConfirmReply { sequence: 300, holds: true, read_index: Some(0) };
    lines.message("confirm_reply", &reply);
}

fn snapshot_messages(lines: &mut Lines) {
    let stored = StoredMembership { log_id: Some(LOG_ID), membership: Some(membership()) };
    lines.message("stored_membership", &stored);
    let header = SnapshotHeader {
        vote: Some(VOTE),
        last_log_id: Some(LOG_ID),
        membership: Some(stored),
        revision: 1 << 40,
    };
    let records = SnapshotRecords { sequence: 1, pairs: "\u{1}k\u{1}v".into(), checksum: 1 << 31 };
    let footer = SnapshotFooter { frames: 2, pairs: 3, checksum: 1 << 31 };
    for (name, body) in [
        ("header", Frame::Header(header)),
        ("records", Frame::Records(records)),
        ("footer", Frame::Footer(footer)),
    ] {
        let frame = SnapshotFrame { body: Some(body) };
        lines.message(&format!("snapshot_{name}"), &frame);
    }
    lines.message("snapshot_reply", &SnapshotReply { vote: Some(VOTE) });
}

fn member_messages(lines: &mut Lines) {
    for (name, body) in bodies() {
        lines.message(&format!("command_{name}"), &Command { body: Some(body) });
    }
    let proposal = Proposal { time_unix_ms: 1 << 41, groups: vec![group()] };
    lines.message("proposal", &proposal);
    lines.message("propose_request", &ProposeRequest { group: Some(group()) });
    lines.message("lease_renew_request", &LeaseRenewRequest { ids: vec![-7, 7] });
    lines.message("lease_renew_reply", &LeaseRenewReply { ttls: vec![60, 0, -1] });
    let asked = LeaseTimeToLiveRequest { id: -7, keys: true };
    lines.message("lease_time_to_live_request", &asked);
    let time = LeaseTime {
        remaining_seconds: 59,
        granted_seconds: 60,
        keys: vec!["a".into(), "b".into()],
    };
    let reply = LeaseTimeToLiveReply { time: Some(time) };
    lines.message("lease_time_to_live_reply", &reply);
}

#[test]
fn messages_of_format_1_are_written_and_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1/wire.txt");
    let fixture = std::fs::read_to_string(&path).unwrap_or_default();
    let mut lines = Lines { fixture, added: String::new() };
    raft_messages(&mut lines);
    snapshot_messages(&mut lines);
    member_messages(&mut lines);
    if std::env::var_os("QUORATE_BLESS").is_some() {
        std::fs::write(path, lines.fixture + &lines.added).unwrap();
    } else {
        assert_eq!(lines.added, "", "messages without a fixture");
    }
}
