//! Answers in the five formats of etcdctl, the same to the byte.
//!
//! | format     | meant for                        | knows                    |
//! |------------|----------------------------------|--------------------------|
//! | `simple`   | people and shell scripts         | everything               |
//! | `json`     | programs; Go's JSON of the types | everything               |
//! | `fields`   | `grep`; one `"Name" : value` each | all but `move-leader`    |
//! | `table`    | people                           | endpoints and members    |
//! | `protobuf` | programs; the wire message       | answers to a single call |

mod fields;
mod json;
mod simple;
mod table;

use std::io::Write;

use prost::Message;
use quorate::pb::etcdserverpb::{
    AlarmMember, AlarmResponse, AlarmType, DeleteRangeResponse, LeaseGrantResponse,
    LeaseKeepAliveResponse, LeaseLeasesResponse, LeaseRevokeResponse, LeaseTimeToLiveResponse,
    Member, MemberListResponse, PutResponse, RangeResponse, ResponseHeader, StatusResponse,
    TxnResponse, WatchResponse,
};
use quorate::pb::mvccpb::{Event, event::EventType};

use crate::{
    endpoint::{EndpointHash, EndpointHealth, EndpointStatus},
    error::Error,
    go,
};

/// A value of `--write-out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Bare values, one a line.
    Simple,
    /// One line of JSON.
    Json,
    /// One field a line.
    Fields,
    /// A table with borders.
    Table,
    /// The encoded message.
    Protobuf,
}

impl Format {
    /// Reads the value of `--write-out`.
    pub(crate) fn parse(name: &str) -> Result<Self, Error> {
        match name {
            "simple" => Ok(Self::Simple),
            "json" => Ok(Self::Json),
            "fields" => Ok(Self::Fields),
            "table" => Ok(Self::Table),
            "protobuf" => Ok(Self::Protobuf),
            _ => Err(Error::BadFeature("unsupported output format".to_owned())),
        }
    }
}

/// What a command has to show.
pub(crate) enum Answer<'a> {
    /// Of `get`.
    Get(&'a RangeResponse),
    /// Of `put`.
    Put(&'a PutResponse),
    /// Of `del`.
    Delete(&'a DeleteRangeResponse),
    /// Of `txn`.
    Txn(&'a TxnResponse),
    /// Of `watch`, once for every response.
    Watch(&'a WatchResponse),
    /// Of `lease grant`.
    LeaseGrant(&'a LeaseGrantResponse),
    /// Of `lease revoke`, with the lease's ID.
    LeaseRevoke(i64, &'a LeaseRevokeResponse),
    /// Of `lease keep-alive`, once for every renewal.
    LeaseKeepAlive(&'a LeaseKeepAliveResponse),
    /// Of `lease timetolive`; whether keys were asked for.
    LeaseTimeToLive(&'a LeaseTimeToLiveResponse, bool),
    /// Of `lease list`.
    Leases(&'a LeaseLeasesResponse),
    /// Of `alarm`.
    Alarm(&'a AlarmResponse),
    /// Of `move-leader`.
    MoveLeader {
        /// Who led.
        leader: u64,
        /// Who leads now.
        target: u64,
    },
    /// Of `member list`.
    MemberList(&'a MemberListResponse),
    /// Of `endpoint status`.
    EndpointStatus(&'a [EndpointStatus]),
    /// Of `endpoint health`.
    EndpointHealth(&'a [EndpointHealth]),
    /// Of `endpoint hashkv`.
    EndpointHashKv(&'a [EndpointHash]),
}

/// Where and how to show it.
pub(crate) struct Printer<'a> {
    /// `--write-out`.
    pub(crate) format: Format,
    /// `--hex`.
    pub(crate) hex: bool,
    /// `--print-value-only` of `get`.
    pub(crate) value_only: bool,
    /// Standard output.
    pub(crate) out: &'a mut dyn Write,
}

impl Printer<'_> {
    /// Writes one answer.
    pub(crate) fn print(&mut self, answer: &Answer<'_>) -> Result<(), Error> {
        match self.format {
            Format::Simple => simple::write(self, answer)?,
            Format::Json => {
                let text = json::render(answer, self.hex);
                writeln!(self.out, "{text}")?;
            }
            Format::Fields if matches!(answer, Answer::MoveLeader { .. }) => {
                return Err(unsupported("fields"));
            }
            Format::Fields => fields::write(self, answer)?,
            Format::Table => {
                let text = table::render(answer).ok_or_else(|| unsupported("table"))?;
                self.out.write_all(text.as_bytes())?;
            }
            Format::Protobuf => {
                let bytes = encode(answer).ok_or_else(|| unsupported("protobuf"))?;
                self.out.write_all(&bytes)?;
            }
        }
        Ok(())
    }
}

fn unsupported(format: &str) -> Error {
    Error::BadFeature(format!("{format} not supported as output format"))
}

fn encode(answer: &Answer<'_>) -> Option<Vec<u8>> {
    match answer {
        Answer::Get(response) => Some(response.encode_to_vec()),
        Answer::Put(response) => Some(response.encode_to_vec()),
        Answer::Delete(response) => Some(response.encode_to_vec()),
        Answer::Txn(response) => Some(response.encode_to_vec()),
        Answer::MemberList(response) => Some(response.encode_to_vec()),
        // As in etcdctl: what the client library adds for itself is left out.
        Answer::Watch(response) => {
            let response = WatchResponse {
                watch_id: 0,
                cancel_reason: String::new(),
                fragment: false,
                ..(*response).clone()
            };
            Some(response.encode_to_vec())
        }
        Answer::Alarm(response) => Some(response.encode_to_vec()),
        // The answer is an empty message.
        Answer::MoveLeader { .. } => Some(Vec::new()),
        // As in etcdctl, surprisingly: of these only the header.
        Answer::LeaseGrant(response) => encode_header(response.header.as_ref()),
        Answer::LeaseKeepAlive(response) => encode_header(response.header.as_ref()),
        Answer::LeaseTimeToLive(response, _) => encode_header(response.header.as_ref()),
        Answer::Leases(response) => encode_header(response.header.as_ref()),
        Answer::LeaseRevoke(..)
        | Answer::EndpointStatus(_)
        | Answer::EndpointHealth(_)
        | Answer::EndpointHashKv(_) => None,
    }
}

fn encode_header(header: Option<&ResponseHeader>) -> Option<Vec<u8>> {
    Some(header.copied().unwrap_or_default().encode_to_vec())
}

/// The type of an event as etcd calls it; a number if it has no name.
pub(crate) fn event_type(event: &Event) -> String {
    match EventType::try_from(event.r#type) {
        Ok(EventType::Put) => "PUT".to_owned(),
        Ok(EventType::Delete) => "DELETE".to_owned(),
        Err(_) => event.r#type.to_string(),
    }
}

/// The kind of an alarm as etcd calls it; a number if it has no name.
fn alarm_type(member: &AlarmMember) -> String {
    match AlarmType::try_from(member.alarm) {
        Ok(AlarmType::None) => "NONE".to_owned(),
        Ok(AlarmType::Nospace) => "NOSPACE".to_owned(),
        Ok(AlarmType::Corrupt) => "CORRUPT".to_owned(),
        Err(_) => member.alarm.to_string(),
    }
}

/// The columns of an endpoint's status, for `simple` and `table`.
fn status_row(item: &EndpointStatus) -> Vec<String> {
    let status = &item.status;
    let member_id = status.header.as_ref().map_or(0, |header| header.member_id);
    let downgrade = status.downgrade_info.clone().unwrap_or_default();
    vec![
        item.endpoint.clone(),
        format!("{member_id:x}"),
        status.version.clone(),
        status.storage_version.clone(),
        go::format_bytes(status.db_size.unsigned_abs()),
        go::format_bytes(status.db_size_in_use.unsigned_abs()),
        format!("{}%", unused_percent(status)),
        go::format_bytes(status.db_size_quota.unsigned_abs()),
        (status.leader == member_id).to_string(),
        status.is_learner.to_string(),
        status.raft_term.to_string(),
        status.raft_index.to_string(),
        status.raft_applied_index.to_string(),
        status.errors.join(", "),
        downgrade.target_version,
        downgrade.enabled.to_string(),
    ]
}

fn unused_percent(status: &StatusResponse) -> i64 {
    // etcdctl divides by zero here; an empty file has nothing unused.
    let used = i128::from(status.db_size_in_use) * 100;
    let percent = used.checked_div(i128::from(status.db_size)).unwrap_or(100);
    i64::try_from(100 - percent).unwrap_or(0)
}

/// The columns of an endpoint's health; `simple` words them differently.
fn health_row(item: &EndpointHealth) -> Vec<String> {
    vec![
        item.endpoint.clone(),
        item.healthy.to_string(),
        item.took.map(go::format_duration).unwrap_or_default(),
        item.error.clone(),
    ]
}

/// The columns of an endpoint's checksum.
fn hash_row(item: &EndpointHash) -> Vec<String> {
    vec![item.endpoint.clone(), item.hash.hash.to_string(), item.hash.hash_revision.to_string()]
}

/// The columns of a member.
fn member_row(member: &Member) -> Vec<String> {
    vec![
        format!("{:x}", member.id),
        if member.name.is_empty() { "unstarted" } else { "started" }.to_owned(),
        member.name.clone(),
        member.peer_ur_ls.join(","),
        member.client_ur_ls.join(","),
        member.is_learner.to_string(),
    ]
}
