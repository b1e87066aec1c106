//! `alarm list` and `alarm disarm`: what members complain about.

use std::{ffi::OsString, io::Write};

use clap::{Args, Subcommand};
use quorate::pb::etcdserverpb::{
    AlarmRequest, AlarmResponse, alarm_request::AlarmAction, maintenance_client::MaintenanceClient,
};

use crate::{
    client::{Client, Repeat},
    client_and_format,
    error::Error,
    flags::GlobalFlags,
    print::Answer,
    printer,
};

/// `alarm` and its subcommand.
#[derive(Args, Clone, Debug)]
pub(crate) struct AlarmArgs {
    #[command(subcommand)]
    verb: AlarmVerb,
}

/// What to do with alarms.
#[derive(Clone, Debug, Subcommand)]
enum AlarmVerb {
    /// Shows all alarms
    List {
        /// None are accepted
        #[arg(hide = true)]
        arguments: Vec<OsString>,
    },
    /// Clears all alarms
    Disarm {
        /// None are accepted
        #[arg(hide = true)]
        arguments: Vec<OsString>,
    },
}

/// Runs `alarm`.
pub(crate) async fn run(
    args: &AlarmArgs,
    flags: &GlobalFlags,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let (name, arguments) = match &args.verb {
        AlarmVerb::List { arguments } => ("list", arguments),
        AlarmVerb::Disarm { arguments } => ("disarm", arguments),
    };
    if !arguments.is_empty() {
        return Err(Error::BadArgs(format!("alarm {name} command accepts no arguments")));
    }
    let (client, format) = client_and_format(flags)?;
    let response = match args.verb {
        AlarmVerb::List { .. } => list(&client).await?,
        AlarmVerb::Disarm { .. } => disarm(&client).await?,
    };
    printer(format, flags, out).print(&Answer::Alarm(&response))
}

async fn list(client: &Client) -> Result<AlarmResponse, Error> {
    send(client, Repeat::Safe, AlarmRequest::default()).await
}

/// Clears one alarm after the other; as in etcdctl, the answer has no header.
async fn disarm(client: &Client) -> Result<AlarmResponse, Error> {
    let mut cleared = AlarmResponse::default();
    for member in list(client).await?.alarms {
        let request = AlarmRequest {
            action: AlarmAction::Deactivate.into(),
            member_id: member.member_id,
            alarm: member.alarm,
        };
        cleared.alarms.extend(send(client, Repeat::Never, request).await?.alarms);
    }
    Ok(cleared)
}

async fn send(
    client: &Client,
    repeat: Repeat,
    request: AlarmRequest,
) -> Result<AlarmResponse, Error> {
    client
        .call(repeat, &request, |session, request| async move {
            MaintenanceClient::new(session.channel).alarm(request).await
        })
        .await
}
