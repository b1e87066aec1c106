//! Upkeep of a cluster by its operators.

use std::time::Duration;

use quorate::pb::etcdserverpb::{HashKvRequest, HashRequest, MoveLeaderRequest};
use tonic::Code;

use crate::support::client::{channel, kv, maintenance, put};
use crate::support::cluster::{Cluster, status};
use crate::support::server::{Server, program_under_test};

const DEADLINE: Duration = Duration::from_secs(30);

/// MoveLeader was not served; whoever takes a machine down moves leadership away first.
#[tokio::test]
async fn leadership_goes_where_it_is_told() {
    let cluster = Cluster::start(&program_under_test(), 3);
    let endpoints = cluster.endpoints();
    let leader = cluster.leader().await;
    let target = (leader + 1) % 3;
    let mut ids = Vec::new();
    for endpoint in &endpoints {
        let status = status(endpoint).await.expect("a member answers");
        ids.push(status.header.expect("a header").member_id);
    }
    let refusal = async |at: usize, target_id: u64| {
        let mut client = maintenance(channel(&endpoints[at], DEADLINE));
        let refused = client.move_leader(MoveLeaderRequest { target_id }).await;
        let refused = refused.expect_err("it is refused");
        (refused.code(), refused.message().to_owned())
    };
    let not_leader = (Code::FailedPrecondition, "etcdserver: not leader".to_owned());
    assert_eq!(refusal(target, ids[target]).await, not_leader);
    let nobody = (Code::FailedPrecondition, "etcdserver: bad leader transferee".to_owned());
    assert_eq!(refusal(leader, 7).await, nobody);

    let mut client = maintenance(channel(&endpoints[leader], DEADLINE));
    let itself = MoveLeaderRequest { target_id: ids[leader] };
    client.move_leader(itself).await.expect("it leads already");
    let request = MoveLeaderRequest { target_id: ids[target] };
    let answer = client.move_leader(request).await.expect("the target takes over").into_inner();
    // As in etcd.
    assert_eq!(answer.header, None);
    assert_eq!(cluster.leader().await, target);
    kv(channel(&endpoints[leader], DEADLINE)).put(put("a", "1")).await.expect("it goes on");
}

/// Members are compared by it, so it is the one of HashKV and not, as etcd's, one of a file.
#[tokio::test]
async fn the_whole_history_has_a_hash() {
    let server = Server::start_alone(&program_under_test());
    kv(channel(server.endpoint(), DEADLINE)).put(put("a", "1")).await.expect("a write");
    let mut client = maintenance(channel(server.endpoint(), DEADLINE));
    let hash = client.hash(HashRequest {}).await.expect("a hash").into_inner();
    let same = client.hash_kv(HashKvRequest { revision: 2 }).await.expect("a hash").into_inner();
    assert_eq!((hash.hash, hash.header.expect("a header").revision), (same.hash, 2));
}
