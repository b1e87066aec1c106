//! `-w simple`: bare keys and values, and short sentences.

use std::io;

use quorate::pb::{
    etcdserverpb::{AlarmMember, LeaseTimeToLiveResponse, TxnResponse, response_op::Response},
    mvccpb::{Event, KeyValue},
};

use super::{Answer, Printer, alarm_type, event_type, hash_row, member_row, status_row};
use crate::{endpoint::EndpointHealth, go};

pub(super) fn write(printer: &mut Printer<'_>, answer: &Answer<'_>) -> io::Result<()> {
    match answer {
        Answer::Get(response) => pairs(printer, &response.kvs),
        Answer::Put(response) => {
            writeln!(printer.out, "OK")?;
            pairs(printer, response.prev_kv.as_slice())
        }
        Answer::Delete(response) => {
            writeln!(printer.out, "{}", response.deleted)?;
            pairs(printer, &response.prev_kvs)
        }
        Answer::Txn(response) => txn(printer, response),
        Answer::Watch(response) => response.events.iter().try_for_each(|e| event(printer, e)),
        Answer::LeaseGrant(response) => {
            let (id, ttl) = (response.id, response.ttl);
            writeln!(printer.out, "lease {id:016x} granted with TTL({ttl}s)")
        }
        Answer::LeaseRevoke(id, _) => writeln!(printer.out, "lease {id:016x} revoked"),
        Answer::LeaseKeepAlive(response) => {
            let (id, ttl) = (response.id, response.ttl);
            writeln!(printer.out, "lease {id:016x} keepalived with TTL({ttl})")
        }
        Answer::LeaseTimeToLive(response, keys) => time_to_live(printer, response, *keys),
        Answer::Leases(response) => {
            writeln!(printer.out, "found {} leases", response.leases.len())?;
            response.leases.iter().try_for_each(|lease| writeln!(printer.out, "{:016x}", lease.id))
        }
        Answer::Alarm(response) => response.alarms.iter().try_for_each(|a| alarm(printer, a)),
        Answer::MoveLeader { leader, target } => {
            writeln!(printer.out, "Leadership transferred from {leader:x} to {target:x}")
        }
        Answer::MemberList(response) => rows(printer, response.members.iter().map(member_row)),
        Answer::EndpointStatus(list) => rows(printer, list.iter().map(status_row)),
        Answer::EndpointHealth(list) => list.iter().try_for_each(|item| health(printer, item)),
        Answer::EndpointHashKv(list) => rows(printer, list.iter().map(hash_row)),
    }
}

fn pairs(printer: &mut Printer<'_>, kvs: &[KeyValue]) -> io::Result<()> {
    for kv in kvs {
        if !printer.value_only {
            line(printer, &kv.key)?;
        }
        line(printer, &kv.value)?;
    }
    Ok(())
}

fn line(printer: &mut Printer<'_>, bytes: &[u8]) -> io::Result<()> {
    if printer.hex {
        bytes.iter().try_for_each(|byte| write!(printer.out, "\\x{byte:02x}"))?;
    } else {
        printer.out.write_all(bytes)?;
    }
    printer.out.write_all(b"\n")
}

fn event(printer: &mut Printer<'_>, event: &Event) -> io::Result<()> {
    writeln!(printer.out, "{}", event_type(event))?;
    pairs(printer, event.prev_kv.as_slice())?;
    pairs(printer, &[event.kv.clone().unwrap_or_default()])
}

fn time_to_live(
    printer: &mut Printer<'_>,
    response: &LeaseTimeToLiveResponse,
    keys: bool,
) -> io::Result<()> {
    let LeaseTimeToLiveResponse { id, ttl, granted_ttl, .. } = response;
    if (*granted_ttl, *ttl) == (0, -1) {
        return writeln!(printer.out, "lease {id:016x} already expired");
    }
    let out = &mut printer.out;
    write!(out, "lease {id:016x} granted with TTL({granted_ttl}s), remaining({ttl}s)")?;
    if keys {
        out.write_all(b", attached keys([")?;
        out.write_all(&response.keys.join(&b' '))?;
        out.write_all(b"])")?;
    }
    writeln!(out)
}

/// As Go prints the message: fields with their default value are left out.
fn alarm(printer: &mut Printer<'_>, member: &AlarmMember) -> io::Result<()> {
    let mut fields = Vec::new();
    if member.member_id != 0 {
        fields.push(format!("memberID:{}", member.member_id));
    }
    if member.alarm != 0 {
        fields.push(format!("alarm:{}", alarm_type(member)));
    }
    writeln!(printer.out, "{}", fields.join(" "))
}

fn txn(printer: &mut Printer<'_>, response: &TxnResponse) -> io::Result<()> {
    writeln!(printer.out, "{}", if response.succeeded { "SUCCESS" } else { "FAILURE" })?;
    for operation in &response.responses {
        writeln!(printer.out)?;
        match &operation.response {
            Some(Response::ResponseRange(response)) => write(printer, &Answer::Get(response))?,
            Some(Response::ResponsePut(response)) => write(printer, &Answer::Put(response))?,
            Some(Response::ResponseDeleteRange(response)) => {
                write(printer, &Answer::Delete(response))?;
            }
            Some(Response::ResponseTxn(response)) => txn(printer, response)?,
            None => {}
        }
    }
    Ok(())
}

fn rows(printer: &mut Printer<'_>, rows: impl Iterator<Item = Vec<String>>) -> io::Result<()> {
    for row in rows {
        writeln!(printer.out, "{}", row.join(", "))?;
    }
    Ok(())
}

fn health(printer: &mut Printer<'_>, item: &EndpointHealth) -> io::Result<()> {
    let endpoint = &item.endpoint;
    if !item.error.is_empty() {
        eprintln!("{endpoint} is unhealthy: failed to commit proposal: {}", item.error);
        return Ok(());
    }
    let took = item.took.map(go::format_duration).unwrap_or_default();
    writeln!(printer.out, "{endpoint} is healthy: successfully committed proposal: took = {took}")
}
