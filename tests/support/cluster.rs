//! Several members on this machine, each a process, as one new cluster.

use std::path::Path;
use std::time::Duration;

use quorate::clock;
use quorate::pb::etcdserverpb::{StatusRequest, StatusResponse};

use super::client;
use super::server::{Place, Server};

/// How long a cluster may take to have a leader that its members know.
const LEADER_PATIENCE: Duration = Duration::from_secs(30);

/// A running cluster. Dropping it kills every member.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// The members, in the order of their names.
    pub(crate) members: Vec<Server>,
}

impl Cluster {
    /// Starts `count` members of `program` and waits until each one serves.
    pub(crate) fn start(program: &Path, count: usize) -> Cluster {
        Cluster::start_with(program, count, &[])
    }

    /// As [`Cluster::start`], with more flags for each member.
    pub(crate) fn start_with(program: &Path, count: usize, extra: &[&str]) -> Cluster {
        let places: Vec<Place> =
            (1..=count).map(|number| Place::free(&format!("member{number}"))).collect();
        let mut members: Vec<Server> =
            places.iter().map(|place| Server::spawn(program, place, &places, extra)).collect();
        for member in &mut members {
            member.wait_until_ready();
        }
        Cluster { members }
    }

    /// The client URLs of all members.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| member.endpoint().to_owned()).collect()
    }

    /// The client URL of a member that is not the leader.
    pub(crate) async fn follower(&self) -> String {
        let leader = self.leader().await;
        let follower = self.members.iter().enumerate().find(|(at, _)| *at != leader);
        let (_, follower) = follower.expect("a cluster has more members than its leader");
        follower.endpoint().to_owned()
    }

    /// Which member leads, in the leader's own opinion and that of at least one other.
    pub(crate) async fn leader(&self) -> usize {
        let deadline = clock::now() + LEADER_PATIENCE;
        loop {
            let mut known = Vec::new();
            for (at, member) in self.members.iter().enumerate() {
                if let Some(status) = status(member.endpoint()).await {
                    let id = status.header.expect("a status has a header").member_id;
                    known.push((at, id, status.leader));
                }
            }
            let leads = |&&(_, id, leader): &&(usize, u64, u64)| {
                let followers = known.iter().filter(|(_, _, other)| *other == id).count();
                id == leader && (followers > 1 || self.members.len() == 1)
            };
            if let Some((at, _, _)) = known.iter().find(leads) {
                return *at;
            }
            assert!(clock::now() < deadline, "no leader in time, members say {known:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// What the member at `endpoint` says of itself, if it answers soon.
pub(crate) async fn status(endpoint: &str) -> Option<StatusResponse> {
    let mut client = client::maintenance(client::channel(endpoint, Duration::from_millis(500)));
    client.status(StatusRequest {}).await.ok().map(tonic::Response::into_inner)
}
