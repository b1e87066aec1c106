//! The conformance corpus: the same scripts give the same answers here and on a real etcd.
//!
//! The scripts hold what etcd 3.7.1 answered, so the usual run needs no etcd. The environment says
//! which servers take part:
//!
//! | variable | meaning |
//! |---|---|
//! | `QUORATE_ENDPOINT` | a running Quorate; without it one is started |
//! | `QUORATE_TEST_SERVER` | the binary to start instead of our own |
//! | `ETCD_ENDPOINT` | a running etcd that may be written to |
//! | `ETCD_SERVER` | an etcd binary to start, if there is no `ETCD_ENDPOINT` |
//! | `UPDATE_GOLDENFILES=1` | record the answers of the etcd |
//! | `QUORATE_COMPATIBILITY_TABLE=1` | write the table of the README from both servers |

use std::env;
use std::path::{Path, PathBuf};

use tokio::sync::Mutex;

use crate::support::cluster::Cluster;
use crate::support::conformance::run::{Target, difference};
use crate::support::conformance::script::Topic;
use crate::support::conformance::table::{self, Row};
use crate::support::server::{Server, program_under_test};

/// Held by every test here: a case expects that nobody else raises the revision of its server.
static SERIAL: Mutex<()> = Mutex::const_new(());

/// A server that scripts are run against, and the process if it is ours to end.
struct Place {
    endpoint: String,
    _process: Option<Server>,
}

impl Place {
    /// The server at the URL in the variable `endpoint`, or else a new process of `program`.
    fn find(endpoint: &str, program: impl FnOnce() -> Option<PathBuf>) -> Option<Place> {
        if let Ok(endpoint) = env::var(endpoint) {
            return Some(Place { endpoint, _process: None });
        }
        let process = Server::start_alone(&program()?);
        Some(Place { endpoint: process.endpoint().to_owned(), _process: Some(process) })
    }

    /// The Quorate under test.
    fn quorate() -> Place {
        Place::find("QUORATE_ENDPOINT", || Some(program_under_test())).expect("there is a program")
    }

    /// The real etcd, if the environment names one.
    fn etcd() -> Option<Place> {
        Place::find("ETCD_ENDPOINT", || env::var_os("ETCD_SERVER").map(PathBuf::from))
    }
}

/// A path below the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Every topic, in the order in which they run.
fn topics() -> Vec<Topic> {
    Topic::load_all(&repository("tests/scripts/conformance"))
}

/// Whether the variable `name` asks for something.
fn is_asked(name: &str) -> bool {
    env::var(name).is_ok_and(|value| value == "1")
}

/// Says on stderr why a test does nothing.
fn skip(reason: &str) {
    eprintln!("skipped: {reason}");
}

/// Runs every topic against `endpoint` and panics with all differences to the recorded answers.
///
/// A real etcd is held to its own answers, even where we differ on purpose.
async fn compare_with_recorded(endpoint: &str, is_etcd: bool) {
    let mut target = Target::connect(endpoint).await;
    let (mut cases, mut differences) = (0, Vec::new());
    for mut topic in topics() {
        for case in topic.cases.iter_mut().filter(|_| is_etcd) {
            case.deviation = None;
        }
        let outcomes = match target.run(&topic).await {
            Ok(outcomes) => outcomes,
            Err(reason) => {
                skip(&format!("{}: {reason}", topic.path.display()));
                continue;
            }
        };
        for (case, outcome) in topic.cases.iter().zip(outcomes) {
            cases += 1;
            let difference = difference(&topic, case, &outcome.output);
            if !difference.is_empty() {
                differences.push(difference);
            }
        }
    }
    let different = differences.len();
    assert!(different == 0, "{different} of {cases} differ:\n{}", differences.join("\n"));
}

/// One member answers every script as etcd did.
#[tokio::test]
async fn a_member_alone_answers_as_etcd_did() {
    let _serial = SERIAL.lock().await;
    if is_asked("UPDATE_GOLDENFILES") {
        return skip("the answers are being recorded");
    }
    compare_with_recorded(&Place::quorate().endpoint, false).await;
}

/// A follower of three members answers every script as etcd did: forwarding changes nothing.
#[tokio::test]
async fn a_follower_of_three_answers_as_etcd_did() {
    let _serial = SERIAL.lock().await;
    if is_asked("UPDATE_GOLDENFILES") {
        return skip("the answers are being recorded");
    }
    let cluster = Cluster::start(&program_under_test(), 3);
    compare_with_recorded(&cluster.follower().await, false).await;
}

/// The recorded answers are what etcd answers; with `UPDATE_GOLDENFILES=1` they become so.
#[tokio::test]
async fn the_recorded_answers_are_those_of_etcd() {
    let _serial = SERIAL.lock().await;
    let is_update = is_asked("UPDATE_GOLDENFILES");
    let Some(etcd) = Place::etcd() else {
        assert!(!is_update, "answers are recorded from an etcd: set ETCD_SERVER or ETCD_ENDPOINT");
        return skip("no ETCD_SERVER and no ETCD_ENDPOINT");
    };
    if !is_update {
        return compare_with_recorded(&etcd.endpoint, true).await;
    }
    let mut target = Target::connect(&etcd.endpoint).await;
    for mut topic in topics() {
        let outcomes = target.run(&topic).await.expect("recording begins with a fresh store");
        for (case, outcome) in topic.cases.iter_mut().zip(outcomes) {
            case.recorded = outcome.output;
        }
        topic.save();
    }
}

/// With `QUORATE_COMPATIBILITY_TABLE=1` the README says how the two servers compare.
#[tokio::test]
async fn the_compatibility_table_is_written_on_request() {
    let _serial = SERIAL.lock().await;
    if !is_asked("QUORATE_COMPATIBILITY_TABLE") {
        return skip("no QUORATE_COMPATIBILITY_TABLE=1");
    }
    assert!(
        env::var_os("QUORATE_TEST_SERVER").is_none(),
        "the table is about our own binary: unset QUORATE_TEST_SERVER"
    );
    let etcd = Place::etcd().expect("the table needs an etcd: set ETCD_SERVER or ETCD_ENDPOINT");
    let quorate = Place::quorate();
    let mut theirs = Target::connect(&etcd.endpoint).await;
    let mut ours = Target::connect(&quorate.endpoint).await;
    let mut rows = Vec::new();
    for topic in topics() {
        let theirs = theirs.run(&topic).await.expect("the etcd is fresh and serves every method");
        rows.push(match ours.run(&topic).await {
            Ok(ours) => Row::compare(&topic, &theirs, &ours),
            Err(reason) => Row::missing(&topic, &reason),
        });
    }
    table::write(&repository("README.md"), &rows);
}
