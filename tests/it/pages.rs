//! What a member tells operators over plain HTTP, and how it is found.

use std::time::Duration;

use quorate::pb::etcdserverpb::cluster_client::ClusterClient;
use quorate::pb::etcdserverpb::{
    DeleteRangeRequest, MemberListRequest, RequestOp, TxnRequest, request_op::Request,
};

use crate::support::client::{channel, get, http_get, kv, put};
use crate::support::server::{Place, Server, program_under_test};

const DEADLINE: Duration = Duration::from_secs(10);

/// What the metric `name` says.
async fn metric(endpoint: &str, name: &str) -> f64 {
    let answer = http_get(endpoint, "/metrics").await;
    let line = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name}")).parse().expect("a number")
}

#[tokio::test]
async fn probes_answer_as_those_of_etcd() {
    let server = Server::start_alone(&program_under_test());
    let at = server.endpoint();
    for path in ["/livez", "/readyz", "/livez/serializable_read", "/readyz?exclude=nothing"] {
        assert_eq!(http_get(at, path).await, "ok\n", "{path}");
    }
    let all = "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n\
               [+]non_learner ok\nok\n";
    assert_eq!(http_get(at, "/readyz?verbose").await, all);
    let one = "[+]linearizable_read ok\nok\n";
    assert_eq!(http_get(at, "/readyz/linearizable_read?verbose=true").await, one);
    assert_eq!(http_get(at, "/readyz/none").await, "404 page not found\n");
}

/// Kubernetes writes by Txn only; its puts were not counted.
#[tokio::test]
async fn operations_are_counted_inside_transactions_too() {
    let server = Server::start_alone(&program_under_test());
    let at = server.endpoint();
    let before = metric(at, "etcd_mvcc_put_total").await;
    let mut kv = kv(channel(at, DEADLINE));
    let delete = DeleteRangeRequest { key: "b".into(), ..DeleteRangeRequest::default() };
    let operations = [
        Request::RequestPut(put("a", "1")),
        Request::RequestDeleteRange(delete),
        Request::RequestRange(get("a")),
    ];
    let success = operations.map(|request| RequestOp { request: Some(request) }).to_vec();
    kv.txn(TxnRequest { success, ..TxnRequest::default() }).await.unwrap();
    kv.put(put("a", "2")).await.unwrap();
    kv.put(put("", "refused")).await.unwrap_err();
    assert_eq!(metric(at, "etcd_mvcc_put_total").await - before, 2.0);
    assert_eq!(metric(at, "etcd_mvcc_delete_total").await, 1.0);
    assert_eq!(metric(at, "etcd_mvcc_txn_total").await, 1.0);
    assert!(metric(at, "etcd_mvcc_range_total").await >= 1.0);
    // What `etcdctl check datascale` reads.
    assert!(metric(at, "process_resident_memory_bytes").await > 1e6);
}

/// Members of `--initial-cluster` were without a name until they started.
#[tokio::test]
async fn a_member_that_never_started_has_its_name() {
    let program = program_under_test();
    let places = ["a", "b", "never"].map(Place::free);
    let mut members = [0, 1].map(|at| Server::spawn(&program, &places[at], &places, &[]));
    members.iter_mut().for_each(Server::wait_until_ready);
    let mut cluster = ClusterClient::new(channel(members[0].endpoint(), DEADLINE));
    let list = cluster.member_list(MemberListRequest { linearizable: true }).await.unwrap();
    let list = list.into_inner().members;
    let mut names: Vec<&str> = list.iter().map(|member| &*member.name).collect();
    names.sort_unstable();
    assert_eq!(names, ["a", "b", "never"]);
}

/// kubeadm has members asked there, and took one without the port for dead.
#[tokio::test]
async fn metrics_have_a_port_of_their_own() {
    let (program, place) = (program_under_test(), Place::free("alone"));
    let metrics = Place::free("metrics").client_url;
    let flag = format!("--listen-metrics-urls={metrics}");
    let all = std::slice::from_ref(&place);
    let mut server = Server::spawn(&program, &place, all, &[&flag]);
    server.wait_until_ready();
    for at in [metrics.as_str(), server.endpoint()] {
        assert_eq!(http_get(at, "/livez").await, "ok\n", "{at}");
        assert_eq!(http_get(at, "/health").await, "{\"health\":\"true\",\"reason\":\"\"}", "{at}");
        assert_eq!(metric(at, "etcd_server_has_leader").await, 1.0, "{at}");
    }
    assert_eq!(http_get(&metrics, "/version").await, "404 page not found\n");
    let refused = kv(channel(&metrics, DEADLINE)).range(get("a")).await;
    assert!(refused.is_err(), "keys are not served there");
}
