//! Flags, variables and URLs as an operator may mistype them: a configuration, or a refusal.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use quorate::config::{Config, InitialCluster, Url};

use crate::support::fuzz::fuzz;

/// One argument a line; a line with `ETCD_` is a variable.
fn samples() -> Vec<Vec<u8>> {
    let texts = [
        "--name=a\n--data-dir\n/tmp/x\n--listen-client-urls=http://127.0.0.1:2379,http://[::1]:2379\n\
         --advertise-client-urls\nhttp://a:2379\n--listen-peer-urls=http://0.0.0.0:2380\n\
         --initial-advertise-peer-urls=http://a:2380\n--initial-cluster\na=http://a:2380,b=http://b:2380\n\
         --initial-cluster-state=existing\n--initial-cluster-token=t",
        "--heartbeat-interval=100\n--election-timeout\n1000\n-snapshot-count=0\n--pre-vote=false\n\
         --quota-backend-bytes=0x10_000\n--max-request-bytes=1572864\n--grpc-keepalive-interval=2h0m0.5s\n\
         --max-txn-ops=128\n--feature-gates=A=true,B=false\n--log-level=debug\n--log-outputs=stderr,a",
        "ETCD_NAME=b\nETCD_UNKNOWN=1\nETCD_HEARTBEAT_INTERVAL=0b11\nETCD_PRE_VOTE=T\n--\nrest",
        "--quorate-value-cache-bytes=18446744073709551615\n--quorate-wal-segment-bytes=1e9\n\
         --warning-unary-request-duration=9223372036854775807ns\n--auto-compaction-retention=1.5h\n\
         --wal-dir=\n--unsafe-no-fsync\n--config-file=x\n--help",
        "gateway",
        "http://[fe80::1%25eth0]:80/a?b#c",
    ];
    texts.into_iter().map(|text| text.as_bytes().to_vec()).collect()
}

#[test]
fn fuzz_config() {
    fuzz("config", "--test it fuzz_config", &samples(), |input, _| {
        let lines = input.split(|byte| *byte == b'\n');
        let (variables, arguments): (Vec<_>, Vec<_>) =
            lines.partition(|line| line.starts_with(b"ETCD_"));
        let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let variables = variables.into_iter().map(|line| {
            let end = line.iter().position(|byte| *byte == b'=').unwrap_or(line.len());
            (text(&line[..end]), text(line.get(end + 1..).unwrap_or_default()))
        });
        if let Ok(parsed) = Config::from_env(arguments.into_iter().map(text), variables) {
            let config = parsed.config;
            let fits = config.check_bootstrap().is_ok();
            assert!(!fits || config.initial_member_id().is_some(), "who is {}?", config.name);
            assert_ne!(config.initial_cluster_id().to_string(), "");
            assert!(!config.listen_client_urls.is_empty() && !config.listen_peer_urls.is_empty());
        }
        for text in input.split(|byte| *byte == b'\n').flat_map(str::from_utf8) {
            if let Ok(url) = Url::parse(text) {
                assert_eq!(Url::parse(url.as_str()), Ok(url.clone()), "a URL reads back");
                assert_ne!(url.host_port(), "");
            }
            if let Ok(cluster) = InitialCluster::parse(text) {
                assert_eq!(InitialCluster::parse(&cluster.to_string()), Ok(cluster));
            }
        }
    });
}
