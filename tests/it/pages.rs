//! What a member tells operators over plain HTTP, and how it is found.

use std::time::Duration;

use quorate::pb::etcdserverpb::cluster_client::ClusterClient;
use quorate::pb::etcdserverpb::{
    DeleteRangeRequest, MemberListRequest, RequestOp, TxnRequest, request_op::Request,
};

use crate::support::client::{channel, get, http_get, http_request, kv, put};
use crate::support::cluster::{Cluster, status};
use crate::support::server::{Launch, Place, Server, program_under_test};

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

/// What the line `name` of an answer's head says, or nothing.
fn field<'a>(head: &'a str, name: &str) -> &'a str {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
}

/// `/health` was JSON by its type, `/version` took every method, and OPTIONS was refused: curl -i of
/// the pages of etcd 3.7.1 says otherwise.
#[tokio::test]
async fn pages_take_the_methods_of_etcd() {
    let server = Server::start_alone(&program_under_test());
    let (text, json) = ("text/plain; charset=utf-8", "application/json");
    let refused = ("405", text, "GET", "nosniff");
    let cases = [
        ("GET", "/health", ("200", text, "", "")),
        ("HEAD", "/health", refused),
        ("POST", "/health", refused),
        ("OPTIONS", "/health", ("200", "", "", "")),
        ("GET", "/version", ("200", json, "", "")),
        ("HEAD", "/version", refused),
        ("POST", "/version", refused),
        ("PUT", "/version", refused),
        ("DELETE", "/version", refused),
        ("OPTIONS", "/version", ("200", "", "", "")),
        ("POST", "/readyz", refused),
        ("GET", "/livez", ("200", text, "", "nosniff")),
        ("POST", "/metrics", ("200", "text/plain; version=0.0.4; charset=utf-8", "", "")),
        ("GET", "/nope", ("404", text, "", "nosniff")),
        ("OPTIONS", "/nope", ("200", "", "", "")),
    ];
    for (method, path, expected) in cases {
        let (head, body) = http_request(server.endpoint(), method, path, "").await;
        let status = head.split(' ').nth(1).unwrap_or_default();
        let [kind, allow, sniff] =
            ["content-type", "allow", "x-content-type-options"].map(|name| field(&head, name));
        assert_eq!((status, kind, allow, sniff), expected, "{method} {path}: {head}");
        assert_eq!(field(&head, "access-control-allow-origin"), "*", "{method} {path}");
        assert_eq!(body.is_empty(), matches!(method, "HEAD" | "OPTIONS"), "{method} {path}");
    }
}

/// `--cors` had no effect, so that browsers from anywhere would have been let in.
#[tokio::test]
async fn browsers_come_from_where_they_may() {
    let (program, place) = (program_under_test(), Place::free("alone"));
    let extra = ["--cors=http://a.example:80,http://b.example:8080"];
    let mut server = Server::spawn(&program, &place, std::slice::from_ref(&place), &extra);
    server.wait_until_ready();
    for (origin, allowed) in [("http://b.example:8080", true), ("http://c.example:8080", false)] {
        let more = format!("origin: {origin}\r\n");
        let (head, _) = http_request(server.endpoint(), "GET", "/version", &more).await;
        let expected = if allowed { origin } else { "" };
        assert_eq!(field(&head, "access-control-allow-origin"), expected);
    }
}

/// kubeadm probes a member at `--listen-metrics-urls`; the flag had no effect.
#[tokio::test]
async fn pages_for_operators_have_their_own_port() {
    let (program, place) = (program_under_test(), Place::free("alone"));
    let at = Place::free("metrics").client_url;
    let extra = [format!("--listen-metrics-urls={at}")];
    let mut server =
        Server::spawn(&program, &place, std::slice::from_ref(&place), &[extra[0].as_str()]);
    server.wait_until_ready();
    for endpoint in [&*at, server.endpoint()] {
        let health = http_get(endpoint, "/health").await;
        assert_eq!(health, r#"{"health":"true","reason":""}"#);
        assert_eq!(http_get(endpoint, "/livez").await, "ok\n");
        assert_eq!(http_get(endpoint, "/readyz").await, "ok\n");
        assert_eq!(metric(endpoint, "etcd_server_has_leader").await, 1.0);
    }
    assert_eq!(http_get(&at, "/version").await, "404 page not found\n");
    let (head, _) = http_request(&at, "OPTIONS", "/health", "").await;
    assert!(head.starts_with("HTTP/1.1 405"), "{head}");
    let mut kv = kv(channel(&at, DEADLINE));
    kv.put(put("a", "1")).await.expect_err("no gRPC there");
}

/// Who asks how a member is wants to know it above all while it waits for the others.
#[tokio::test]
async fn operators_need_not_wait_for_a_quorum() {
    let (program, places) = (program_under_test(), ["a", "b", "never"].map(Place::free));
    let at = Place::free("metrics").client_url;
    let flag = format!("--listen-metrics-urls={at}");
    let mut members =
        [0, 1].map(|member| Server::spawn(&program, &places[member], &places, &[&*flag][member..]));
    members.iter_mut().for_each(Server::wait_until_ready);
    for member in &mut members {
        member.kill().await;
    }
    let [member, _] = &mut members;
    member.restart();
    member.until_line("serving metrics", DEADLINE).await;
    assert_eq!(http_get(&at, "/livez").await, "ok\n");
    assert_eq!(metric(&at, "etcd_server_is_leader").await, 0.0);
    let (head, body) = http_request(&at, "GET", "/health", "").await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert!(body.starts_with(r#"{"health":"false","reason":""#), "{body}");
    assert_eq!(member.line("ready to serve client requests"), None);
}

/// Of what dashboards of etcd ask for is there what a member counts.
#[tokio::test]
async fn metrics_of_dashboards_are_there() {
    let server = Server::start_alone(&program_under_test());
    let at = server.endpoint();
    let mut kv = kv(channel(at, DEADLINE));
    kv.put(put("a", "1234")).await.unwrap();
    kv.put(put("a", "5678")).await.unwrap();
    let call = |name: &str| {
        format!(
            "{name}{{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}}"
        )
    };
    for name in ["started", "msg_received", "msg_sent"] {
        let name = call(&format!("grpc_server_{name}_total"));
        assert_eq!(metric(at, &name).await, 2.0, "{name}");
    }
    for name in [
        "etcd_server_proposals_failed_total",
        "etcd_server_read_indexes_failed_total",
        "etcd_debugging_mvcc_db_compaction_keys_total",
    ] {
        assert_eq!(metric(at, name).await, 0.0, "{name}");
    }
    assert!(metric(at, "etcd_debugging_mvcc_total_put_size_in_bytes").await >= 10.0);
    for name in ["os_fd_used", "os_fd_limit"] {
        assert!(metric(at, name).await > 0.0, "{name}");
    }
    let unknown =
        "etcd_server_client_requests_total{client_api_version=\"unknown\",type=\"unary\"}";
    assert!(metric(at, unknown).await >= 2.0);
    let never = "grpc_server_handled_total{grpc_code=\"Unavailable\",grpc_method=\"Watch\",\
                 grpc_service=\"etcdserverpb.Watch\",grpc_type=\"bidi_stream\"}";
    assert_eq!(metric(at, never).await, 0.0);
    let text = http_get(at, "/metrics").await;
    assert!(text.contains("# TYPE etcd_disk_wal_write_bytes_total gauge\n"));
}

/// As in etcd: a write that nobody could commit has failed, also if its client gave up first.
#[tokio::test]
async fn writes_without_a_quorum_are_counted_as_failed() {
    let (program, places) = (program_under_test(), ["a", "b", "never"].map(Place::free));
    let mut members = [0, 1].map(|at| Server::spawn(&program, &places[at], &places, &[]));
    members.iter_mut().for_each(Server::wait_until_ready);
    let [member, other] = &mut members;
    other.kill().await;
    let mut kv = kv(channel(member.endpoint(), Duration::from_millis(500)));
    kv.put(put("a", "1")).await.expect_err("nobody commits it");
    let counted = async {
        while metric(member.endpoint(), "etcd_server_proposals_failed_total").await < 1.0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, counted).await.expect("it is counted");
}

/// What `name` says once it fulfils `is_right`.
async fn settled(endpoint: &str, name: &str, is_right: impl Fn(f64) -> bool) {
    let asked = async {
        loop {
            let answer = http_get(endpoint, "/metrics").await;
            let line = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            if line.is_some_and(|value| is_right(value.parse().expect("a number"))) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let asked = tokio::time::timeout(DEADLINE, asked).await;
    asked.unwrap_or_else(|_| panic!("{name} does not become what it should be"));
}

/// Dashboards and alerts of etcd ask how members reach each other.
#[tokio::test]
async fn members_count_what_they_exchange() {
    let mut cluster = Cluster::start(&program_under_test(), 3);
    let (leader, endpoints) = (cluster.leader().await, cluster.endpoints());
    let follower = (leader + 1) % 3;
    let mut ids = Vec::new();
    for endpoint in &endpoints {
        let status = status(endpoint).await.expect("a member answers");
        ids.push(status.header.expect("a status has a header").member_id);
    }
    let mut kv = kv(channel(&endpoints[leader], DEADLINE));
    kv.put(put("a", "v".repeat(10_000))).await.unwrap();
    let (at, to, from) = (&*endpoints[leader], ids[follower], ids[leader]);
    let is_much = |bytes| bytes >= 10_000.0;
    settled(at, &format!("etcd_network_peer_sent_bytes_total{{To=\"{to:x}\"}}"), is_much).await;
    let received = format!("etcd_network_peer_received_bytes_total{{From=\"{from:x}\"}}");
    settled(&endpoints[follower], &received, is_much).await;
    let round_trips = format!("etcd_network_peer_round_trip_time_seconds_count{{To=\"{to:x}\"}}");
    settled(at, &round_trips, |count| count > 0.0).await;
    let pair = format!("{{Local=\"{from:x}\",Remote=\"{to:x}\"}}");
    settled(at, &format!("etcd_network_known_peers{pair}"), |known| known == 1.0).await;
    settled(at, &format!("etcd_network_active_peers{pair}"), |active| active == 1.0).await;
    cluster.members[follower].kill().await;
    settled(at, &format!("etcd_network_active_peers{pair}"), |active| active == 0.0).await;
    settled(at, &format!("etcd_network_disconnected_peers_total{pair}"), |lost| lost >= 1.0).await;
    let failures = format!("etcd_network_peer_sent_failures_total{{To=\"{to:x}\"}}");
    settled(at, &failures, |failures| failures >= 1.0).await;
}

/// `--warning-apply-duration` was taken and did nothing.
#[tokio::test]
async fn applies_that_take_long_are_logged_and_counted() {
    let dir = tempfile::tempdir().expect("a directory of its own");
    let flags = ["--warning-apply-duration=1ns"];
    let mut server = Server::launch(Launch::alone(&program_under_test(), dir.path(), &flags));
    server.until_ready().await;
    server.until_line("apply request took too long", DEADLINE).await;
    assert!(metric(server.endpoint(), "etcd_server_slow_apply_total").await >= 1.0);
}

/// `--warning-unary-request-duration` was taken and did nothing.
#[tokio::test]
async fn calls_that_take_long_are_logged() {
    let dir = tempfile::tempdir().expect("a directory of its own");
    let flags = ["--warning-unary-request-duration=1ns"];
    let mut server = Server::launch(Launch::alone(&program_under_test(), dir.path(), &flags));
    server.until_ready().await;
    kv(channel(server.endpoint(), DEADLINE)).put(put("a", "1")).await.unwrap();
    let line = server.until_line("request stats", DEADLINE).await;
    assert!(line.contains("/etcdserverpb.KV/Put"), "{line}");
}
