//! `elect`: stands for an election, or shows its leaders as they change.

use std::{
    ffi::{OsStr, OsString},
    io::Write,
    os::unix::ffi::OsStrExt,
};

use bytes::Bytes;
use clap::Args;
use quorate::pb::{
    etcdserverpb::{RangeResponse, ResponseHeader, WatchCreateRequest},
    mvccpb::{KeyValue, event::EventType},
};

use crate::{
    candidate::{Candidate, TTL_SECONDS_DEFAULT, first_of, prefix_of, range},
    client::Client,
    client_and_format,
    error::Error,
    flags::GlobalFlags,
    kv::prefix_end,
    print::{Answer, Printer},
    printer,
    signals::Signals,
    watcher::{Leader, Watcher},
};

/// Flags and arguments of `elect`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ElectArgs {
    /// Show the leaders instead of becoming one
    #[arg(short = 'l', long)]
    listen: bool,
    /// The election's name, and what to announce as its leader
    #[arg(value_name = "NAME [PROPOSAL]")]
    arguments: Vec<OsString>,
}

/// Runs `elect`.
pub(crate) async fn elect(
    args: &ElectArgs,
    flags: &GlobalFlags,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let (name, proposal) = match args.arguments.as_slice() {
        [name] => (name, None),
        [name, proposal] => (name, Some(proposal)),
        _ => {
            let text = "elect takes one election name argument and an optional proposal argument";
            return Err(Error::BadArgs(text.to_owned()));
        }
    };
    let (client, format) = client_and_format(flags)?;
    let mut printer = printer(format, flags, out);
    match (proposal, args.listen) {
        (Some(proposal), false) => campaign(&client, name, proposal, &mut printer).await,
        (None, true) => listen(&client, name, &mut printer).await,
        (Some(_), true) => Err(Error::BadArgs("proposal given but -l is set".to_owned())),
        (None, false) => Err(Error::BadArgs("no proposal argument but -l not set".to_owned())),
    }
}

async fn campaign(
    client: &Client,
    name: &OsStr,
    proposal: &OsStr,
    printer: &mut Printer<'_>,
) -> Result<(), Error> {
    let candidate = Candidate::new(client, name, TTL_SECONDS_DEFAULT).await?;
    let proposal = Bytes::copy_from_slice(proposal.as_bytes());
    let result = lead(&candidate, proposal, printer).await;
    let left = candidate.leave().await;
    result.and(left)
}

async fn lead(
    candidate: &Candidate<'_>,
    proposal: Bytes,
    printer: &mut Printer<'_>,
) -> Result<(), Error> {
    let mut signals = Signals::install()?;
    let mut renewals = candidate.keep_alive();
    let mut expired = std::pin::pin!(renewals.run());
    let expiry = || Error::General("elect: session expired".to_owned());
    tokio::select! {
        header = candidate.wait_for_turn(proposal) => header?,
        () = &mut expired => return Err(expiry()),
        () = signals.next() => return Err(Error::General("context canceled".to_owned())),
    };
    let pair = candidate.read().await?;
    printer.print(&Answer::Get(&pair))?;
    printer.out.flush()?;
    tokio::select! {
        () = signals.next() => Ok(()),
        () = &mut expired => Err(expiry()),
    }
}

async fn listen(client: &Client, name: &OsStr, printer: &mut Printer<'_>) -> Result<(), Error> {
    let mut signals = Signals::install()?;
    let prefix = prefix_of(name);
    tokio::select! {
        result = observe(client, &prefix, printer) => result,
        () = signals.next() => Ok(()),
    }
}

/// Shows each leader, and each new proposal of a leader. Returns only with an error.
async fn observe(client: &Client, prefix: &Bytes, printer: &mut Printer<'_>) -> Result<(), Error> {
    let lost = || Error::General("elect: observer lost".to_owned());
    loop {
        let response = range(client, &first_of(prefix)).await.map_err(|_| lost())?;
        let mut header = response.header.unwrap_or_default();
        let first = response.kvs.into_iter().next();
        let leader = match first {
            Some(leader) => leader,
            None => {
                let (at, leader) =
                    first_put(client, prefix, header.revision).await.ok_or_else(lost)?;
                header = at;
                leader
            }
        };
        show(printer, header, &leader)?;
        let request = WatchCreateRequest {
            key: leader.key.clone(),
            start_revision: header.revision + 1,
            ..WatchCreateRequest::default()
        };
        let mut watcher = Watcher::new(client, request, Leader::Optional);
        let mut deleted = false;
        while !deleted {
            let response = watcher.next().await.map_err(|_| lost())?;
            // History was compacted meanwhile: look again.
            deleted = response.canceled;
            for event in response.events {
                match (event.r#type(), event.kv) {
                    (EventType::Put, Some(kv)) => {
                        show(printer, response.header.unwrap_or_default(), &kv)?;
                    }
                    (EventType::Put, None) => {}
                    (EventType::Delete, _) => {
                        deleted = true;
                        break;
                    }
                }
            }
        }
    }
}

/// The first key that is written to the line, with the header as of then.
async fn first_put(
    client: &Client,
    prefix: &Bytes,
    revision: i64,
) -> Option<(ResponseHeader, KeyValue)> {
    let request = WatchCreateRequest {
        key: prefix.clone(),
        range_end: prefix_end(prefix),
        start_revision: revision + 1,
        ..WatchCreateRequest::default()
    };
    let mut watcher = Watcher::new(client, request, Leader::Optional);
    loop {
        let response = watcher.next().await.ok()?;
        let mut puts = response.events.into_iter().filter(|e| e.r#type() == EventType::Put);
        if let Some(kv) = puts.next().and_then(|event| event.kv) {
            let header = response.header.unwrap_or_default();
            return Some((ResponseHeader { revision: kv.mod_revision, ..header }, kv));
        }
    }
}

fn show(printer: &mut Printer<'_>, header: ResponseHeader, kv: &KeyValue) -> Result<(), Error> {
    // As in etcdctl: an observation has no count.
    let response =
        RangeResponse { header: Some(header), kvs: vec![kv.clone()], more: false, count: 0 };
    printer.print(&Answer::Get(&response))?;
    printer.out.flush()?;
    Ok(())
}
