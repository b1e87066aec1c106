//! `move-leader`: has another member lead, before work on the machine of the one that does.

use std::{ffi::OsString, io::Write};

use clap::Args;
use quorate::pb::etcdserverpb::{
    MoveLeaderRequest, StatusRequest, maintenance_client::MaintenanceClient,
};

use crate::{
    client::{Client, Repeat},
    error::Error,
    flags::GlobalFlags,
    go,
    print::{Answer, Format},
    printer,
};

/// Arguments of `move-leader`.
#[derive(Args, Clone, Debug)]
pub(crate) struct MoveLeaderArgs {
    /// The hexadecimal ID of the member that shall lead
    #[arg(hide = true)]
    arguments: Vec<OsString>,
}

/// Runs `move-leader`: the leader among the endpoints is asked.
pub(crate) async fn move_leader(
    args: &MoveLeaderArgs,
    flags: &GlobalFlags,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let format = Format::parse(&flags.write_out)?;
    let [target] = &args.arguments[..] else {
        return Err(Error::BadArgs("move-leader command needs 1 argument".to_owned()));
    };
    let target = go::parse_uint(&target.to_string_lossy(), 16).map_err(Error::BadArgs)?;
    let (client, leader) = find_leader(flags).await?;
    let request = MoveLeaderRequest { target_id: target };
    client
        .call(Repeat::Never, &request, |session, request| async move {
            MaintenanceClient::new(session.channel).move_leader(request).await
        })
        .await?;
    printer(format, flags, out).print(&Answer::MoveLeader { leader, target })
}

/// A client of the endpoint that leads, and its member ID.
async fn find_leader(flags: &GlobalFlags) -> Result<(Client, u64), Error> {
    for endpoint in &flags.endpoints {
        let client =
            Client::new(&GlobalFlags { endpoints: vec![endpoint.clone()], ..flags.clone() })?;
        let status = client.call(Repeat::Safe, &StatusRequest {}, |session, request| async move {
            MaintenanceClient::new(session.channel).status(request).await
        });
        let status = status.await?;
        let member = status.header.unwrap_or_default().member_id;
        if member == status.leader {
            return Ok((client, member));
        }
    }
    let endpoints = flags.endpoints.join(" ");
    Err(Error::BadArgs(format!("no leader endpoint given at [{endpoints}]")))
}
