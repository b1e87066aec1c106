//! `quoratectl`'s verbs next to etcdctl's, and its benches, against whatever member is named.
//!
//! | variable | meaning |
//! |---|---|
//! | `ETCD_ENDPOINTS` | a member, of etcd or Quorate, whose keys and leases are ours |
//! | `QUORATE_TEST_SERVER` | the binary to start instead of our own, if no member is named |
//! | `ETCDCTL` | the etcdctl to compare with; without it only the benches run |

use std::env;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::server::{Server, program_under_test};

/// Where to run, and the process if it is ours to end.
fn member() -> (String, Option<Server>) {
    if let Ok(endpoints) = env::var("ETCD_ENDPOINTS") {
        return (endpoints, None);
    }
    let server = Server::start_alone(&program_under_test());
    (server.endpoint().to_owned(), Some(server))
}

fn skip(reason: &str) {
    eprintln!("skipped: {reason}");
}

fn output(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string().replace("\\n", "\n");
    assert!(
        output.status.success(),
        "{command:?} ended with {}\n{}\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    output
}

#[test]
fn coordination_looks_as_from_etcdctl() {
    let Some(etcdctl) = env::var_os("ETCDCTL") else { return skip("no ETCDCTL to compare with") };
    let (endpoints, _server) = member();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/ctl_coordination.sh");
    let quoratectl = env!("CARGO_BIN_EXE_quoratectl");
    let endpoint = endpoints.trim_start_matches("http://");
    output(Command::new(script).args([
        endpoint.as_ref(),
        etcdctl.as_os_str(),
        quoratectl.as_ref(),
    ]));
}

#[test]
fn benches_lose_nothing() {
    let (endpoints, _server) = member();
    let bench = |arguments: &str| -> serde_json::Value {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quoratectl"));
        command.args(["--endpoints", &endpoints, "-w", "json", "bench"]);
        let output = output(command.args(arguments.split(' ')));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let watch = bench("watch --watchers 100 --watched-keys 10 --key-space-size 20 --total 100");
    assert_eq!(watch["events_received"], 500);
    assert_eq!((&watch["events_lost"], &watch["events_disordered"]), (&0.into(), &0.into()));
    let lease = bench("lease --leases 20 --keep-alives 100 --clients 4");
    assert_eq!(lease["keep_alives"]["requests"], 100);
    assert_eq!(lease["revokes"]["requests"], 20);
    let range = bench("range --prefill --key-space-size 50 --range-keys 20 --limit 5 --total 10");
    assert_eq!(range["keys_read"], 50);
}
