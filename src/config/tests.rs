//! The command line and environment as etcd 3.7.1 reads them. The texts were taken from its output.

use super::*;

const NONE: [(&str, &str); 0] = [];

fn parse(line: &str) -> Result<Parsed, ConfigExit> {
    Config::from_env(line.split_whitespace(), NONE)
}

fn parse_env(line: &str, env: &[(&str, &str)]) -> Result<Parsed, ConfigExit> {
    Config::from_env(line.split_whitespace(), env.iter().copied())
}

fn config(line: &str) -> Config {
    parse(line).unwrap().config
}

/// The first line of standard error without our prefix, and the exit code.
fn refusal(result: Result<Parsed, ConfigExit>) -> (u8, String) {
    let exit = result.unwrap_err();
    assert_eq!(exit.stdout, "");
    let line = exit.stderr.lines().next().unwrap_or_default();
    let line = line.strip_prefix("quorate: failed to verify flags: ").unwrap_or(line);
    (exit.code, line.to_owned())
}

#[test]
fn without_flags_it_is_the_single_member_of_etcd() {
    let Parsed { config, warnings } = parse("").unwrap();
    assert_eq!(warnings, [""; 0]);
    assert_eq!(config.name, "default");
    assert_eq!(config.data_dir, PathBuf::from("default.etcd"));
    assert_eq!(joined(&config.listen_client_urls), "http://localhost:2379");
    assert_eq!(joined(&config.advertise_client_urls), "http://localhost:2379");
    assert_eq!(joined(&config.listen_peer_urls), "http://localhost:2380");
    assert_eq!(config.initial_cluster.to_string(), "default=http://localhost:2380");
    assert_eq!(config.initial_cluster_state, ClusterState::New);
    assert_eq!(config.heartbeat_interval, Duration::from_millis(100));
    assert_eq!(config.election_timeout, Duration::from_millis(1000));
    assert_eq!(config.quota_backend_bytes, Some(QUOTA_BYTES_DEFAULT));
    assert_eq!(config.max_request_bytes, crate::limits::REQUEST_BYTES_MAX_DEFAULT);
    assert_eq!(config.max_txn_ops, crate::limits::TXN_OPS_MAX_DEFAULT);
    assert_eq!(config.snapshot_count, SNAPSHOT_COUNT_DEFAULT);
    assert_eq!(config.snapshot_catchup_entries, SNAPSHOT_CATCHUP_ENTRIES_DEFAULT);
    assert_eq!(config.warning_unary_request_duration, WARNING_UNARY_REQUEST_DEFAULT);
    assert_eq!(config.warning_apply_duration, Duration::from_millis(100));
    assert_eq!(config.max_concurrent_streams, u32::MAX);
    assert!(config.pre_vote && config.strict_reconfig_check);
    assert_eq!(config.log, LogSettings::default());
    assert_eq!(config.serving_threads, None);
    assert_eq!(config.check_bootstrap(), Ok(()));
    // What etcd 3.7.1 logged for the same start.
    assert_eq!(config.initial_member_id(), Some(MemberId(0x8e9e05c52164694d)));
    assert_eq!(config.initial_cluster_id(), ClusterId(0xcdf818194e3a8c32));
}

#[test]
fn go_syntax_is_followed() {
    assert_eq!(config("-name a --data-dir=d").name, "a");
    assert_eq!(config("--name a --name=b").name, "b", "the last duplicate wins");
    assert!(!config("--pre-vote=f").pre_vote);
    assert!(config("--pre-vote=false --pre-vote").pre_vote);
    assert_eq!(config("--name=x --").name, "x");
    assert_eq!(config("--name --weird").name, "--weird", "a value may start with a dash");
    for (line, code, message) in [
        ("--nosuch=1", 2, "flag provided but not defined: -nosuch"),
        ("--name", 2, "flag needs an argument: -name"),
        ("---x", 2, "bad flag syntax: ---x"),
        ("--=x", 2, "bad flag syntax: --=x"),
        ("-", 1, "\"-\" is not a valid flag"),
        ("-- foo", 1, "\"foo\" is not a valid flag"),
        ("--pre-vote false", 1, "\"false\" is not a valid flag"),
        ("--pre-vote=maybe", 2, "invalid boolean value \"maybe\" for -pre-vote: parse error"),
        (
            "--heartbeat-interval=-5",
            2,
            "invalid value \"-5\" for flag -heartbeat-interval: parse error",
        ),
        (
            "--heartbeat-interval=99999999999999999999",
            2,
            "invalid value \"99999999999999999999\" for flag -heartbeat-interval: value out of range",
        ),
        (
            "--initial-cluster-state=bogus",
            2,
            "invalid value \"bogus\" for flag -initial-cluster-state: invalid value",
        ),
        (
            "--v2-deprecation=not-yet",
            2,
            "invalid value \"not-yet\" for flag -v2-deprecation: invalid value \"not-yet\"",
        ),
        (
            "--listen-client-urls=http://127.0.0.1",
            2,
            "invalid value \"http://127.0.0.1\" for flag -listen-client-urls: URL address does not \
             have the form \"host:port\": http://127.0.0.1",
        ),
        (
            "--feature-gates=Nope=true",
            2,
            "invalid value \"Nope=true\" for flag -feature-gates: unrecognized feature gate: Nope",
        ),
        (
            "--log-level=loud",
            2,
            "invalid value \"loud\" for flag -log-level: unrecognized level: \"loud\"",
        ),
    ] {
        assert_eq!(refusal(parse(line)), (code, message.to_owned()), "{line}");
    }
    assert!(parse("--nosuch").unwrap_err().stderr.contains("Usage:"));
}

#[test]
fn help_and_version_are_printed_with_code_zero() {
    for line in ["-h", "--help", "-help", "--name x -h --nosuch"] {
        let exit = parse(line).unwrap_err();
        assert_eq!((exit.code, exit.stderr.as_str()), (0, ""));
        assert!(exit.stdout.contains("\n  --name 'default'\n"), "{}", exit.stdout);
        assert!(exit.stdout.contains("--enable-grpc-gateway 'true'*"), "{}", exit.stdout);
    }
    let exit = parse("--version=true --name=x").unwrap_err();
    assert_eq!(exit.code, 0);
    let lines: Vec<&str> = exit.stdout.lines().collect();
    assert_eq!(lines[0], "etcd Version: 3.7.1");
    assert!(lines[1].starts_with("Git SHA: "));
    assert!(lines[2].starts_with("Go Version: "));
    assert!(lines[3].starts_with("Go OS/Arch: linux/"));
    assert!(lines[4].starts_with("Quorate Version: "));
    assert_eq!(refusal(parse("--version --nosuch")).0, 2);
}

#[test]
fn settings_that_etcd_refuses_are_refused_alike() {
    for (line, message) in [
        ("--heartbeat-interval=0", "--heartbeat-interval must be >0 (set to 0ms)"),
        ("--election-timeout=0", "--election-timeout must be >0 (set to 0ms)"),
        (
            "--election-timeout=400",
            "--election-timeout[400ms] should be at least as 5 times as \
             --heartbeat-interval[100ms]",
        ),
        (
            "--election-timeout=60000",
            "--election-timeout[60000ms] is too long, and should be set less than 50000ms",
        ),
        (
            "--listen-client-urls=http://127.0.0.1:12379",
            "--advertise-client-urls is required when --listen-client-urls is set explicitly",
        ),
        (
            "--listen-peer-urls=http://example.com:2380",
            "expected IP in URL for binding (http://example.com:2380)",
        ),
        (
            "--initial-advertise-peer-urls=http://:2380",
            "--initial-advertise-peer-urls \"http://:2380\" must be \"host:port\" (unexpected \
             empty host (http://:2380))",
        ),
        (
            "--initial-cluster=garbage",
            "error setting up initial cluster: URL scheme must be http, https, unix, or unixs: ",
        ),
        ("--auto-compaction-mode=foo", "unknown auto-compaction-mode \"foo\""),
        ("--log-format=xml", "unknown log format: xml, supported values json, console"),
        ("--logger=foo", "unknown logger option \"foo\""),
        ("--log-outputs=stdout,default", "multi logoutput for \"default\" is not supported yet"),
        ("--log-outputs=", "open sink \"\": no such file or directory"),
    ] {
        assert_eq!(refusal(parse(line)), (1, message.to_owned()), "{line}");
    }
}

#[test]
fn initial_cluster_is_checked_only_for_a_bootstrap() {
    let bootstrap = |line: &str| config(line).check_bootstrap().map_err(|e| e.to_string());
    let me = "--name=n1 --initial-advertise-peer-urls=http://127.0.0.1:1";
    assert_eq!(bootstrap("--name=n1 --initial-cluster="), missing_name("n1"));
    assert_eq!(bootstrap("--name=n1 --initial-cluster=n2=http://h:1"), missing_name("n1"));
    for (cluster, refusal) in [
        ("n1=http://127.0.0.1:1,n2=http://127.0.0.1:2", None),
        (
            "n1=http://127.0.0.1:2",
            Some(
                "--initial-cluster has n1=http://127.0.0.1:2 but missing from \
                 --initial-advertise-peer-urls=http://127.0.0.1:1",
            ),
        ),
        (
            "n1=http://127.0.0.1:1,n1=http://127.0.0.1:2",
            Some(
                "--initial-cluster has n1=http://127.0.0.1:2 but missing from \
                 --initial-advertise-peer-urls=http://127.0.0.1:1",
            ),
        ),
        (
            "n1=http://127.0.0.1:1,n2=http://127.0.0.1:1",
            Some("initial cluster n1=http://127.0.0.1:1,n2=http://127.0.0.1:1 has duplicate url"),
        ),
    ] {
        let expected = refusal.map_or(Ok(()), |text| Err(text.to_owned()));
        assert_eq!(bootstrap(&format!("{me} --initial-cluster={cluster}")), expected);
    }
    let joins = "--name=n1 --initial-cluster-state=existing --initial-cluster=n1=http://h:2";
    assert_eq!(bootstrap(joins), Ok(()), "the running cluster knows the URLs");
}

fn missing_name(name: &str) -> Result<(), String> {
    Err(format!("couldn't find local name {name:?} in the initial cluster configuration"))
}

#[test]
fn initial_cluster_follows_name_and_advertised_urls() {
    let one = config("--name=a --initial-advertise-peer-urls=http://10.0.0.1:2380");
    assert_eq!(one.initial_cluster.to_string(), "a=http://10.0.0.1:2380");
    assert_eq!(one.data_dir, PathBuf::from("a.etcd"));
    let three = config(
        "--name=n1 --initial-advertise-peer-urls=http://10.0.0.1:2380 --initial-cluster=\
         n3=http://10.0.0.3:2380,n1=http://10.0.0.1:2380,n2=http://10.0.0.2:2380",
    );
    assert_eq!(three.check_bootstrap(), Ok(()));
    assert_eq!(three.initial_cluster_id(), ClusterId(0xcd11e86392339c47));
    assert_eq!(three.initial_cluster.members("etcd-cluster")[1].id, MemberId(0xee274cacce804b21));
}

#[test]
fn environment_fills_what_flags_leave_open() {
    let parsed = parse_env(
        "--name=n",
        &[
            ("ETCD_ELECTION_TIMEOUT", "2000"),
            ("ETCD_DATA_DIR", ""),
            ("ETCD_ROOT_PASSWORD", "secret"),
            ("ETCD_VERSION", "true"),
            ("ETCDCTL_API", "3"),
            ("PATH", "/bin"),
            ("ETCD_QUORATE_SERVING_THREADS", "3"),
        ],
    )
    .unwrap();
    assert_eq!(parsed.config.election_timeout, Duration::from_secs(2));
    assert_eq!(parsed.config.data_dir, PathBuf::from("n.etcd"));
    assert_eq!(parsed.config.serving_threads, Some(3));
    let expected = [
        "unrecognized environment variable ETCD_ROOT_PASSWORD",
        "cannot set special environment variable ETCD_VERSION",
    ];
    assert_eq!(parsed.warnings, expected, "and the value is never shown");
}

#[test]
fn flag_given_twice_over_env_and_command_line_is_fatal() {
    for value in ["x", ""] {
        let (code, text) = refusal(parse_env("--name=y", &[("ETCD_NAME", value)]));
        assert_eq!(code, 1);
        assert!(text.contains("variable is shadowed by corresponding command-line flag"), "{text}");
        assert!(text.ends_with("ETCD_NAME"), "{text}");
    }
    let bad = refusal(parse_env("", &[("ETCD_PRE_VOTE", "abc")]));
    assert_eq!(bad, (1, "invalid value \"abc\" for ETCD_PRE_VOTE: parse error".to_owned()));
}

#[test]
fn security_that_is_not_built_is_refused_not_ignored() {
    for line in [
        "--cert-file=c",
        "--client-cert-auth",
        "--peer-auto-tls=true",
        "--experimental-peer-skip-client-san-verification",
        "--listen-client-urls=https://127.0.0.1:1 --advertise-client-urls=https://127.0.0.1:1",
        "--initial-cluster=default=https://127.0.0.1:1",
        "--listen-peer-urls=unixs://s",
    ] {
        let (code, text) = refusal(parse(line));
        assert_eq!(code, 1, "{line}");
        assert!(text.contains("TLS is not built yet"), "{line}: {text}");
    }
    // Launchers set these to their defaults; that asks for nothing.
    let parsed = parse_env("--cert-file= --peer-auto-tls=false", &[("ETCD_AUTO_TLS", "false")]);
    assert_eq!(parsed.unwrap().warnings, [""; 0]);
}

#[test]
fn what_would_start_another_cluster_is_refused() {
    for (line, reason) in [
        ("--discovery-srv=example.com", "discovery is not built yet"),
        ("--discovery-endpoints=http://h:1", "discovery is not built yet"),
        ("--force-new-cluster", "is not built yet"),
        ("--config-file=/etc/etcd.yaml", "--config-file is not built yet"),
        ("--listen-peer-urls=unix://s", "Unix sockets are not built yet"),
        ("--quorate-wal-segment-bytes=5", "must be between 1048576 and"),
        (
            "--max-request-bytes=67108865",
            "--max-request-bytes must be between 0 and 67108864 (set to 67108865)",
        ),
    ] {
        let (code, text) = refusal(parse(line));
        assert_eq!(code, 1, "{line}");
        assert!(text.contains(reason), "{line}: {text}");
    }
    let (code, text) = refusal(parse("gateway start"));
    assert_eq!((code, text.as_str()), (2, "the subcommand gateway is not built yet"));
}

#[test]
fn other_flags_are_accepted_with_one_warning() {
    let parsed = parse(
        "--auto-compaction-retention=1 --unsafe-no-fsync --max-wals=3 --snapshot \
         --feature-gates=InitialCorruptCheck=true --enable-v2=false --proxy=off",
    )
    .unwrap();
    assert_eq!(
        parsed.warnings,
        [
            "--auto-compaction-retention is not built yet and has no effect",
            "--enable-v2 has no effect: the v2 API is gone since etcd 3.6",
            "--feature-gates is not built yet and has no effect",
            "--max-wals has no effect: the log is purged up to the last checkpoint by itself",
            "--proxy has no effect: the v2 proxy is gone since etcd 3.6",
            "--unsafe-no-fsync has no effect: Quorate always syncs its log",
        ]
    );
}

#[test]
fn old_names_set_the_present_flags() {
    let parsed = parse("--experimental-snapshot-catchup-entries=7").unwrap();
    assert_eq!(parsed.config.snapshot_catchup_entries, 7);
    assert_eq!(parsed.warnings.len(), 1);
    let both = "--experimental-snapshot-catchup-entries=7 --snapshot-catchup-entries=9 --quota-backend-bytes=-1";
    let parsed = parse(both).unwrap();
    assert_eq!(parsed.config.snapshot_catchup_entries, 9);
    assert_eq!(parsed.config.quota_backend_bytes, None);
}

#[test]
fn log_settings_are_read() {
    let log = config("--log-level=DEBUG --log-format=console --log-outputs=stdout,/tmp/x.log").log;
    assert_eq!(log.level, crate::logging::LogLevel::Debug);
    assert_eq!(log.format, LogFormat::Console);
    assert_eq!(log.outputs, [LogOutput::File("/tmp/x.log".into()), LogOutput::Stdout]);
}
