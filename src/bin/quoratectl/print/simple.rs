//! `-w simple`: bare keys and values, and short sentences.

use std::io;

use quorate::pb::{
    etcdserverpb::{TxnResponse, response_op::Response},
    mvccpb::KeyValue,
};

use super::{Answer, Printer, hash_row, member_row, status_row};
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
