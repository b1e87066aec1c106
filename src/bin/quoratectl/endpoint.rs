//! `endpoint status`, `health` and `hashkv`: questions to each endpoint by itself.

use std::{ffi::OsString, io::Write, time::Duration};

use clap::{Args, Subcommand};
use futures_util::stream::{FuturesUnordered, StreamExt};
use quorate::pb::etcdserverpb::{
    AlarmRequest, AlarmType, HashKvRequest, HashKvResponse, RangeRequest, StatusRequest,
    StatusResponse, kv_client::KvClient, maintenance_client::MaintenanceClient,
};
use tonic::Code;

use crate::{
    client::{Client, Repeat, now},
    client_and_format,
    error::Error,
    flags::{GlobalFlags, parse_int},
    member,
    print::Answer,
    printer,
};

/// `endpoint` and its subcommand.
#[derive(Args, Clone, Debug)]
pub(crate) struct EndpointArgs {
    /// Ask every member of the cluster, not only those in --endpoints
    #[arg(long, global = true)]
    cluster: bool,
    #[command(subcommand)]
    verb: EndpointVerb,
}

/// What to ask.
#[derive(Clone, Debug, Subcommand)]
enum EndpointVerb {
    /// Shows release, size, role and raft progress of each member
    Status {
        /// Ignored, as in etcdctl
        #[arg(hide = true)]
        arguments: Vec<OsString>,
    },
    /// Tests whether each member answers a read
    Health {
        /// Ignored, as in etcdctl
        #[arg(hide = true)]
        arguments: Vec<OsString>,
    },
    /// Shows the checksum of the history that each member has
    Hashkv {
        /// Checksum the history up to this revision; 0 is all of it
        #[arg(long, default_value = "0", value_parser = parse_int)]
        rev: i64,
        /// Ignored, as in etcdctl
        #[arg(hide = true)]
        arguments: Vec<OsString>,
    },
}

/// What an endpoint says of itself.
pub(crate) struct EndpointStatus {
    /// The endpoint as it was given.
    pub(crate) endpoint: String,
    /// Its answer.
    pub(crate) status: StatusResponse,
}

/// Whether an endpoint can serve a linearizable read.
pub(crate) struct EndpointHealth {
    /// The endpoint as it was given.
    pub(crate) endpoint: String,
    /// It answered, and no alarm is raised.
    pub(crate) healthy: bool,
    /// How long the read took, also if it failed; `None` if it was never sent.
    pub(crate) took: Option<Duration>,
    /// Why it is not healthy, else empty.
    pub(crate) error: String,
}

/// The checksum of an endpoint's history.
pub(crate) struct EndpointHash {
    /// The endpoint as it was given.
    pub(crate) endpoint: String,
    /// Its answer.
    pub(crate) hash: HashKvResponse,
}

/// Runs `endpoint`.
pub(crate) async fn run(
    args: &EndpointArgs,
    flags: &GlobalFlags,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let (client, format) = client_and_format(flags)?;
    let endpoints = match args.cluster {
        true => cluster_endpoints(&client).await?,
        false => flags.endpoints.clone(),
    };
    let mut clients = Vec::with_capacity(endpoints.len());
    for endpoint in endpoints {
        let flags = GlobalFlags { endpoints: vec![endpoint.clone()], ..flags.clone() };
        clients.push((endpoint, Client::new(&flags)?));
    }
    let mut printer = printer(format, flags, out);
    match args.verb {
        EndpointVerb::Status { .. } => {
            let (list, failure) = statuses(&clients).await;
            printer.print(&Answer::EndpointStatus(&list))?;
            failure.map_or(Ok(()), |_| Err(Error::Reported))
        }
        EndpointVerb::Health { .. } => {
            let list = healths(&clients).await;
            printer.print(&Answer::EndpointHealth(&list))?;
            match list.iter().all(|health| health.error.is_empty()) {
                true => Ok(()),
                false => Err(Error::General("unhealthy cluster".to_owned())),
            }
        }
        EndpointVerb::Hashkv { rev, .. } => {
            let (list, failure) = hashes(&clients, rev).await;
            printer.print(&Answer::EndpointHashKv(&list))?;
            failure.map_or(Ok(()), Err)
        }
    }
}

async fn cluster_endpoints(client: &Client) -> Result<Vec<String>, Error> {
    let list = member::list(client, true).await.map_err(|error| {
        Error::General(format!("failed to fetch endpoints from etcd cluster member list: {error}"))
    })?;
    Ok(list.members.into_iter().flat_map(|member| member.client_ur_ls).collect())
}

async fn statuses(clients: &[(String, Client)]) -> (Vec<EndpointStatus>, Option<Error>) {
    let (mut list, mut failure) = (Vec::new(), None);
    for (endpoint, client) in clients {
        let answer = client.call(Repeat::Safe, &StatusRequest {}, |session, request| async move {
            MaintenanceClient::new(session.channel).status(request).await
        });
        match answer.await {
            Ok(status) => list.push(EndpointStatus { endpoint: endpoint.clone(), status }),
            Err(error) => {
                eprintln!("Failed to get the status of endpoint {endpoint} ({error})");
                failure = Some(error);
            }
        }
    }
    (list, failure)
}

async fn hashes(clients: &[(String, Client)], revision: i64) -> (Vec<EndpointHash>, Option<Error>) {
    let (mut list, mut failure) = (Vec::new(), None);
    for (endpoint, client) in clients {
        let request = HashKvRequest { revision };
        let answer = client.call(Repeat::Safe, &request, |session, request| async move {
            MaintenanceClient::new(session.channel).hash_kv(request).await
        });
        match answer.await {
            Ok(hash) => list.push(EndpointHash { endpoint: endpoint.clone(), hash }),
            Err(error) => {
                eprintln!("Failed to get the hash of endpoint {endpoint} ({error})");
                failure = Some(error);
            }
        }
    }
    (list, failure)
}

/// Asks all endpoints at once; the list is in the order of their answers.
async fn healths(clients: &[(String, Client)]) -> Vec<EndpointHealth> {
    let questions: FuturesUnordered<_> =
        clients.iter().map(|(endpoint, client)| health(endpoint.clone(), client)).collect();
    questions.collect().await
}

async fn health(endpoint: String, client: &Client) -> EndpointHealth {
    // As in etcdctl, a failed login is not timed.
    if let Err(error) = client.log_in().await {
        return EndpointHealth { endpoint, healthy: false, took: None, error: error.to_string() };
    }
    let start = now();
    let request = RangeRequest { key: "health".into(), ..RangeRequest::default() };
    let answer = client.call(Repeat::Safe, &request, |session, request| async move {
        KvClient::new(session.channel).range(request).await
    });
    let error = match answer.await {
        Ok(_) => String::new(),
        // The refusal itself went through a linearizable read, so the cluster works.
        Err(Error::Rpc(status)) if status.code() == Code::PermissionDenied => String::new(),
        Err(error) => error.to_string(),
    };
    let took = Some(start.elapsed());
    let error = if error.is_empty() { alarms(client).await } else { error };
    EndpointHealth { endpoint, healthy: error.is_empty(), took, error }
}

/// The active alarms in words, or nothing.
async fn alarms(client: &Client) -> String {
    let request = AlarmRequest::default();
    let answer = client.call(Repeat::Safe, &request, |session, request| async move {
        MaintenanceClient::new(session.channel).alarm(request).await
    });
    let Ok(response) = answer.await else { return "Unable to fetch the alarm list".to_owned() };
    if response.alarms.is_empty() {
        return String::new();
    }
    let names = response.alarms.iter().map(|member| match AlarmType::try_from(member.alarm) {
        Ok(AlarmType::Nospace) => "NOSPACE ",
        Ok(AlarmType::Corrupt) => "CORRUPT ",
        _ => "UNKNOWN ",
    });
    "Active Alarm(s): ".to_owned() + &names.collect::<String>()
}
