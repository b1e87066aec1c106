//! `lease grant`, `revoke`, `timetolive`, `list` and `keep-alive`.

use std::{ffi::OsString, io::Write, time::Duration};

use clap::{Args, Subcommand};
use quorate::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseLeasesRequest, LeaseRevokeRequest,
    LeaseRevokeResponse, LeaseTimeToLiveRequest, lease_client::LeaseClient,
};
use tokio::time::timeout;

use crate::{
    client::{Client, Repeat},
    client_and_format,
    error::Error,
    flags::GlobalFlags,
    go,
    keep_alive::KeepAlive,
    print::{Answer, Format},
    printer,
};

/// How long the first renewal of `keep-alive` may take, beyond the time to connect; the lease's
/// own TTL is known only afterwards.
const FIRST_RENEWAL_EXTRA: Duration = Duration::from_secs(1);

/// `lease` and its subcommand.
#[derive(Args, Clone, Debug)]
pub(crate) struct LeaseArgs {
    #[command(subcommand)]
    verb: LeaseVerb,
}

/// What to do with leases.
#[derive(Clone, Debug, Subcommand)]
enum LeaseVerb {
    /// Creates a lease
    Grant {
        /// Its time to live in seconds
        #[arg(value_name = "TTL")]
        arguments: Vec<OsString>,
    },
    /// Ends a lease and deletes its keys
    Revoke {
        /// Its hexadecimal ID
        #[arg(value_name = "LEASE_ID")]
        arguments: Vec<OsString>,
    },
    /// Shows how long a lease has to live
    Timetolive {
        /// Also show the keys that are tied to it
        #[arg(long)]
        keys: bool,
        /// Its hexadecimal ID
        #[arg(value_name = "LEASE_ID")]
        arguments: Vec<OsString>,
    },
    /// Shows all leases
    List {
        /// Ignored, as in etcdctl
        #[arg(hide = true)]
        arguments: Vec<OsString>,
    },
    /// Renews a lease until it is gone
    KeepAlive {
        /// Renew it once
        #[arg(long)]
        once: bool,
        /// Its hexadecimal ID
        #[arg(value_name = "LEASE_ID")]
        arguments: Vec<OsString>,
    },
}

/// Runs `lease`.
pub(crate) async fn run(
    args: &LeaseArgs,
    flags: &GlobalFlags,
    out: &mut dyn Write,
) -> Result<(), Error> {
    match &args.verb {
        LeaseVerb::Grant { arguments } => grant_verb(arguments, flags, out).await,
        LeaseVerb::Revoke { arguments } => revoke_verb(arguments, flags, out).await,
        LeaseVerb::Timetolive { keys, arguments } => {
            time_to_live(arguments, *keys, flags, out).await
        }
        LeaseVerb::List { .. } => list(flags, out).await,
        LeaseVerb::KeepAlive { once, arguments } => keep_alive(arguments, *once, flags, out).await,
    }
}

async fn grant_verb(
    arguments: &[OsString],
    flags: &GlobalFlags,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let ttl = only(arguments, "lease grant command needs TTL argument")?;
    let ttl = go::parse_int(&ttl.to_string_lossy(), 10)
        .map_err(|cause| Error::BadArgs(format!("bad TTL ({cause})")))?;
    let (client, format) = client_and_format(flags)?;
    let response = grant(&client, ttl)
        .await
        .map_err(|error| Error::General(format!("failed to grant lease ({error})")))?;
    printer(format, flags, out).print(&Answer::LeaseGrant(&response))
}

async fn revoke_verb(
    arguments: &[OsString],
    flags: &GlobalFlags,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let id = parse_id(only(arguments, "lease revoke command needs 1 argument")?)?;
    let (client, format) = client_and_format(flags)?;
    let response = revoke(&client, id)
        .await
        .map_err(|error| Error::General(format!("failed to revoke lease ({error})")))?;
    printer(format, flags, out).print(&Answer::LeaseRevoke(id, &response))
}

async fn time_to_live(
    arguments: &[OsString],
    keys: bool,
    flags: &GlobalFlags,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let id = only(arguments, "lease timetolive command needs lease ID as argument")?;
    let (client, format) = client_and_format(flags)?;
    let request = LeaseTimeToLiveRequest { id: parse_id(id)?, keys };
    let limit = client.response_bytes_max;
    let answer = client.call(Repeat::Safe, &request, |session, request| async move {
        let mut lease = LeaseClient::new(session.channel).max_decoding_message_size(limit);
        lease.lease_time_to_live(request).await
    });
    let response = answer.await.map_err(connection)?;
    printer(format, flags, out).print(&Answer::LeaseTimeToLive(&response, keys))
}

async fn list(flags: &GlobalFlags, out: &mut dyn Write) -> Result<(), Error> {
    let (client, format) = client_and_format(flags)?;
    let limit = client.response_bytes_max;
    let answer = client.call(Repeat::Safe, &LeaseLeasesRequest {}, |session, request| async move {
        let mut lease = LeaseClient::new(session.channel).max_decoding_message_size(limit);
        lease.lease_leases(request).await
    });
    let response = answer.await.map_err(connection)?;
    printer(format, flags, out).print(&Answer::Leases(&response))
}

async fn keep_alive(
    arguments: &[OsString],
    once: bool,
    flags: &GlobalFlags,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let id = parse_id(only(arguments, "lease keep-alive command needs lease ID as argument")?)?;
    let (client, format) = client_and_format(flags)?;
    let mut printer = printer(format, flags, out);
    let mut renewals = KeepAlive::new(&client, id, flags.dial_timeout + FIRST_RENEWAL_EXTRA);
    if once {
        let answer = timeout(flags.command_timeout, renewals.once()).await;
        let response = answer.unwrap_or(Err(Error::Deadline)).map_err(connection)?;
        if response.ttl <= 0 {
            let text = "etcdserver: requested lease not found".to_owned();
            return Err(connection(Error::General(text)));
        }
        return printer.print(&Answer::LeaseKeepAlive(&response));
    }
    while let Some(response) = renewals.next().await {
        printer.print(&Answer::LeaseKeepAlive(&response))?;
        printer.out.flush()?;
    }
    if format == Format::Simple {
        writeln!(printer.out, "lease {id:016x} expired or revoked.")?;
    }
    Ok(())
}

/// Creates a lease with an ID of the server's choice.
pub(crate) async fn grant(client: &Client, ttl: i64) -> Result<LeaseGrantResponse, Error> {
    let request = LeaseGrantRequest { ttl, id: 0 };
    client
        .call(Repeat::Never, &request, |session, request| async move {
            LeaseClient::new(session.channel).lease_grant(request).await
        })
        .await
}

/// Ends a lease and deletes its keys.
pub(crate) async fn revoke(client: &Client, id: i64) -> Result<LeaseRevokeResponse, Error> {
    let request = LeaseRevokeRequest { id };
    client
        .call(Repeat::Never, &request, |session, request| async move {
            LeaseClient::new(session.channel).lease_revoke(request).await
        })
        .await
}

/// The only argument, or what is wrong.
fn only<'a>(arguments: &'a [OsString], text: &str) -> Result<&'a OsString, Error> {
    match arguments {
        [argument] => Ok(argument),
        _ => Err(Error::BadArgs(text.to_owned())),
    }
}

fn parse_id(text: &OsString) -> Result<i64, Error> {
    go::parse_int(&text.to_string_lossy(), 16)
        .map_err(|cause| Error::BadArgs(format!("bad lease ID arg ({cause}), expecting ID in Hex")))
}

/// As in etcdctl: some verbs call every failure one of the connection.
fn connection(error: Error) -> Error {
    Error::Connection(Box::new(error))
}
