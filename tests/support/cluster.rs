//! Several members on this machine, each a process, as one new cluster.

use std::path::Path;

use quorate::pb::etcdserverpb::{StatusRequest, maintenance_client::MaintenanceClient};

use super::server::{Place, Server};

/// A running cluster. Dropping it kills every member.
#[derive(Debug)]
pub(crate) struct Cluster {
    members: Vec<Server>,
}

impl Cluster {
    /// Starts `count` members of `program` and waits until each one serves.
    pub(crate) fn start(program: &Path, count: usize) -> Cluster {
        let places: Vec<Place> =
            (1..=count).map(|number| Place::free(&format!("member{number}"))).collect();
        let mut members: Vec<Server> =
            places.iter().map(|place| Server::spawn(program, place, &places)).collect();
        for member in &mut members {
            member.wait_until_ready();
        }
        Cluster { members }
    }

    /// The client URL of a member that is not the leader.
    ///
    /// Panics if each member takes itself for the leader, which is a broken cluster.
    pub(crate) async fn follower(&self) -> String {
        for member in &self.members {
            let endpoint = member.endpoint().to_owned();
            let mut client =
                MaintenanceClient::connect(endpoint.clone()).await.expect("a ready member accepts");
            let status =
                client.status(StatusRequest {}).await.expect("a ready member has a status");
            let status = status.into_inner();
            let header = status.header.expect("a status has a header");
            if status.leader != 0 && status.leader != header.member_id {
                return endpoint;
            }
        }
        panic!("no member of {} is a follower", self.members.len());
    }
}
