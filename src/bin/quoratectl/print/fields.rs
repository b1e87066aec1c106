//! `-w fields`: one `"Name" : value` a line, texts quoted as Go quotes them.

use std::{
    fmt::Display,
    io::{self, Write},
};

use quorate::pb::{
    etcdserverpb::{
        AlarmMember, Member, ResponseHeader, TxnResponse, WatchResponse, response_op::Response,
    },
    mvccpb::KeyValue,
};

use super::{Answer, Printer, alarm_type, event_type, health_row};
use crate::{
    endpoint::{EndpointHash, EndpointStatus},
    go::quote,
};

pub(super) fn write(printer: &mut Printer<'_>, answer: &Answer<'_>) -> io::Result<()> {
    let mut fields = Fields { out: printer.out, hex: printer.hex };
    match answer {
        Answer::Txn(response) => fields.txn(response),
        Answer::MemberList(response) => {
            fields.header(response.header.as_ref())?;
            response.members.iter().try_for_each(|member| fields.member(member))
        }
        Answer::EndpointStatus(list) => list.iter().try_for_each(|item| fields.status(item)),
        Answer::EndpointHealth(list) => list.iter().try_for_each(|item| {
            let [endpoint, healthy, took, error] = &health_row(item)[..] else { return Ok(()) };
            fields.field("Endpoint", quote(endpoint.as_bytes()))?;
            fields.field("Health", healthy)?;
            fields.field("Took", took)?;
            fields.field("Error", error)?;
            fields.end()
        }),
        Answer::EndpointHashKv(list) => list.iter().try_for_each(|item| fields.hash(item)),
        Answer::Watch(response) => fields.watch(response),
        Answer::Alarm(response) => {
            fields.header(response.header.as_ref())?;
            response.alarms.iter().try_for_each(|member| fields.alarm(member))
        }
        Answer::LeaseGrant(_)
        | Answer::LeaseRevoke(..)
        | Answer::LeaseKeepAlive(_)
        | Answer::LeaseTimeToLive(..)
        | Answer::Leases(_) => fields.lease(answer),
        // Refused before, as by etcdctl.
        Answer::MoveLeader { .. } => Ok(()),
        Answer::Get(_) | Answer::Put(_) | Answer::Delete(_) => fields.keys(answer),
    }
}

struct Fields<'a> {
    out: &'a mut dyn Write,
    hex: bool,
}

impl Fields<'_> {
    fn field(&mut self, name: &str, value: impl Display) -> io::Result<()> {
        writeln!(self.out, "\"{name}\" : {value}")
    }

    fn id(&mut self, name: &str, id: u64) -> io::Result<()> {
        if self.hex { self.field(name, format_args!("{id:x}")) } else { self.field(name, id) }
    }

    fn end(&mut self) -> io::Result<()> {
        writeln!(self.out)
    }

    fn header(&mut self, header: Option<&ResponseHeader>) -> io::Result<()> {
        let header = header.copied().unwrap_or_default();
        self.id("ClusterID", header.cluster_id)?;
        self.id("MemberID", header.member_id)?;
        if header.revision > 0 {
            self.field("Revision", header.revision)?;
        }
        self.field("RaftTerm", header.raft_term)
    }

    fn pair(&mut self, prefix: &str, kv: &KeyValue) -> io::Result<()> {
        let mut field =
            |name: &str, value: &dyn Display| writeln!(self.out, "\"{prefix}{name}\" : {value}");
        field("Key", &quote(&kv.key))?;
        field("CreateRevision", &kv.create_revision)?;
        field("ModRevision", &kv.mod_revision)?;
        field("Version", &kv.version)?;
        field("Value", &quote(&kv.value))?;
        match self.hex {
            true => field("Lease", &format_args!("{:016x}", kv.lease)),
            false => field("Lease", &kv.lease),
        }
    }

    fn keys(&mut self, answer: &Answer<'_>) -> io::Result<()> {
        match answer {
            Answer::Get(response) => {
                self.header(response.header.as_ref())?;
                response.kvs.iter().try_for_each(|kv| self.pair("", kv))?;
                self.field("More", response.more)?;
                self.field("Count", response.count)
            }
            Answer::Put(response) => {
                self.header(response.header.as_ref())?;
                response.prev_kv.iter().try_for_each(|kv| self.pair("Prev", kv))
            }
            Answer::Delete(response) => {
                self.header(response.header.as_ref())?;
                self.field("Deleted", response.deleted)?;
                response.prev_kvs.iter().try_for_each(|kv| self.pair("Prev", kv))
            }
            _ => Ok(()),
        }
    }

    fn watch(&mut self, response: &WatchResponse) -> io::Result<()> {
        self.header(response.header.as_ref())?;
        for event in &response.events {
            self.field("Type", event_type(event))?;
            event.prev_kv.iter().try_for_each(|kv| self.pair("Prev", kv))?;
            self.pair("", &event.kv.clone().unwrap_or_default())?;
        }
        Ok(())
    }

    fn lease_id(&mut self, id: i64) -> io::Result<()> {
        if self.hex { self.field("ID", format_args!("{id:016x}")) } else { self.field("ID", id) }
    }

    fn lease(&mut self, answer: &Answer<'_>) -> io::Result<()> {
        match answer {
            Answer::LeaseGrant(response) => {
                self.header(response.header.as_ref())?;
                self.lease_id(response.id)?;
                self.field("TTL", response.ttl)
            }
            Answer::LeaseRevoke(_, response) => self.header(response.header.as_ref()),
            Answer::LeaseKeepAlive(response) => {
                self.header(response.header.as_ref())?;
                self.lease_id(response.id)?;
                self.field("TTL", response.ttl)
            }
            Answer::LeaseTimeToLive(response, _) => {
                self.header(response.header.as_ref())?;
                self.lease_id(response.id)?;
                self.field("TTL", response.ttl)?;
                self.field("GrantedTTL", response.granted_ttl)?;
                response.keys.iter().try_for_each(|key| self.field("Key", quote(key)))
            }
            Answer::Leases(response) => {
                self.header(response.header.as_ref())?;
                response.leases.iter().try_for_each(|lease| self.lease_id(lease.id))
            }
            _ => Ok(()),
        }
    }

    fn alarm(&mut self, member: &AlarmMember) -> io::Result<()> {
        self.id("MemberID", member.member_id)?;
        self.field("AlarmType", alarm_type(member))?;
        self.end()
    }

    fn txn(&mut self, response: &TxnResponse) -> io::Result<()> {
        self.header(response.header.as_ref())?;
        self.field("Succeeded", response.succeeded)?;
        for operation in &response.responses {
            match &operation.response {
                Some(Response::ResponseRange(response)) => self.keys(&Answer::Get(response))?,
                Some(Response::ResponsePut(response)) => self.keys(&Answer::Put(response))?,
                Some(Response::ResponseDeleteRange(response)) => {
                    self.keys(&Answer::Delete(response))?;
                }
                Some(Response::ResponseTxn(response)) => self.txn(response)?,
                None => {}
            }
        }
        Ok(())
    }

    fn member(&mut self, member: &Member) -> io::Result<()> {
        self.id("ID", member.id)?;
        self.field("Name", quote(member.name.as_bytes()))?;
        for url in &member.peer_ur_ls {
            self.field("PeerURL", quote(url.as_bytes()))?;
        }
        for url in &member.client_ur_ls {
            self.field("ClientURL", quote(url.as_bytes()))?;
        }
        self.field("IsLearner", member.is_learner)?;
        self.end()
    }

    fn status(&mut self, item: &EndpointStatus) -> io::Result<()> {
        let status = &item.status;
        let downgrade = status.downgrade_info.clone().unwrap_or_default();
        self.header(status.header.as_ref())?;
        self.field("Version", quote(status.version.as_bytes()))?;
        self.field("StorageVersion", quote(status.storage_version.as_bytes()))?;
        self.field("DBSize", status.db_size)?;
        self.field("DBSizeInUse", status.db_size_in_use)?;
        self.field("DBSizeQuota", status.db_size_quota)?;
        self.field("Leader", status.leader)?;
        self.field("IsLearner", status.is_learner)?;
        self.field("RaftIndex", status.raft_index)?;
        self.field("RaftTerm", status.raft_term)?;
        self.field("RaftAppliedIndex", status.raft_applied_index)?;
        self.field("Errors", format_args!("[{}]", status.errors.join(" ")))?;
        self.field("Endpoint", quote(item.endpoint.as_bytes()))?;
        self.field("DowngradeTargetVersion", quote(downgrade.target_version.as_bytes()))?;
        self.field("DowngradeEnabled", downgrade.enabled)?;
        self.end()
    }

    fn hash(&mut self, item: &EndpointHash) -> io::Result<()> {
        self.header(item.hash.header.as_ref())?;
        self.field("Endpoint", quote(item.endpoint.as_bytes()))?;
        self.field("Hash", item.hash.hash)?;
        self.field("HashRevision", item.hash.hash_revision)?;
        self.end()
    }
}
