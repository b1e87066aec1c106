//! `member list`: who the members are.

use std::{ffi::OsString, io::Write};

use clap::{Args, Subcommand};
use quorate::pb::etcdserverpb::{
    MemberListRequest, MemberListResponse, cluster_client::ClusterClient,
};

use crate::{
    client::{Client, Repeat},
    client_and_format,
    error::Error,
    flags::GlobalFlags,
    kv::is_serializable,
    print::Answer,
    printer,
};

/// `member` and its subcommand.
#[derive(Args, Clone, Debug)]
pub(crate) struct MemberArgs {
    #[command(subcommand)]
    verb: MemberVerb,
}

/// What to do with members.
#[derive(Clone, Debug, Subcommand)]
enum MemberVerb {
    /// Shows every member with its addresses
    List {
        /// l asks the cluster, s only the member that answers
        #[arg(long, default_value = "l")]
        consistency: String,
        /// Ignored, as in etcdctl
        #[arg(hide = true)]
        arguments: Vec<OsString>,
    },
}

/// Runs `member`.
pub(crate) async fn run(
    args: &MemberArgs,
    flags: &GlobalFlags,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let MemberVerb::List { consistency, .. } = &args.verb;
    let linearizable = !is_serializable(consistency)?;
    let (client, format) = client_and_format(flags)?;
    let response = list(&client, linearizable).await?;
    printer(format, flags, out).print(&Answer::MemberList(&response))
}

/// Asks for the members; a linearizable list needs a leader.
pub(crate) async fn list(client: &Client, linearizable: bool) -> Result<MemberListResponse, Error> {
    let request = MemberListRequest { linearizable };
    client
        .call(Repeat::Safe, &request, |session, request| async move {
            ClusterClient::new(session.channel).member_list(request).await
        })
        .await
}
