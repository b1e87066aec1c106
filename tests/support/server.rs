//! One member as a process of its own: started with etcd's flags, killed when dropped.
//!
//! The same starter runs Quorate and a real etcd, because both take the same flags and both say
//! `ready to serve client requests` on stderr. Ports are chosen by the kernel: a listener is bound
//! to port 0, its port is read, and it is closed just before the member starts.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;

/// The line of stderr after which a member answers its clients.
const READY_LINE: &str = "ready to serve client requests";

/// How long a member may take to say that it is ready.
const READY_SECONDS_MAX: u64 = 60;

/// How many of the newest stderr lines are kept for the report of a failure.
const LOG_LINES_MAX: usize = 60;

/// The binary under test: `QUORATE_TEST_SERVER` if it is set, else our own.
pub(crate) fn program_under_test() -> PathBuf {
    match std::env::var_os("QUORATE_TEST_SERVER") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env!("CARGO_BIN_EXE_quorate")),
    }
}

/// A URL on the loopback address with a port that was free a moment ago.
fn free_url() -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind to port 0");
    let address = listener.local_addr().expect("a bound listener has an address");
    format!("http://{address}")
}

/// Where one member listens and what it is called.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The value of `--name`.
    pub(crate) name: String,
    /// Where clients connect.
    pub(crate) client_url: String,
    /// Where the other members connect.
    pub(crate) peer_url: String,
}

impl Place {
    /// A place with two free ports.
    pub(crate) fn free(name: &str) -> Place {
        Place { name: name.to_owned(), client_url: free_url(), peer_url: free_url() }
    }

    /// This member's part of `--initial-cluster`.
    fn initial(&self) -> String {
        format!("{}={}", self.name, self.peer_url)
    }
}

/// The flags of the member `place` in the cluster `all`.
fn flags(place: &Place, all: &[Place], data_dir: &Path) -> Vec<OsString> {
    let initial: Vec<String> = all.iter().map(Place::initial).collect();
    let pairs: [(&str, OsString); 8] = [
        ("--name", (&place.name).into()),
        ("--data-dir", data_dir.into()),
        ("--listen-client-urls", (&place.client_url).into()),
        ("--advertise-client-urls", (&place.client_url).into()),
        ("--listen-peer-urls", (&place.peer_url).into()),
        ("--initial-advertise-peer-urls", (&place.peer_url).into()),
        ("--initial-cluster", initial.join(",").into()),
        ("--initial-cluster-state", "new".into()),
    ];
    pairs.into_iter().flat_map(|(flag, value)| [OsString::from(flag), value]).collect()
}

/// A running member. Dropping it kills the process and removes its data.
#[derive(Debug)]
pub(crate) struct Server {
    place: Place,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    ready: Receiver<()>,
    _data_dir: TempDir,
}

impl Server {
    /// Starts `program` as the only member of a new cluster and waits until it serves.
    pub(crate) fn start_alone(program: &Path) -> Server {
        let place = Place::free("alone");
        let mut server = Server::spawn(program, &place, std::slice::from_ref(&place));
        server.wait_until_ready();
        server
    }

    /// Starts `program` as the member `place` of the cluster `all`, without waiting for it: a
    /// member of several is ready only when a majority runs.
    pub(crate) fn spawn(program: &Path, place: &Place, all: &[Place]) -> Server {
        let data_dir = tempfile::tempdir().expect("a scratch directory");
        let mut command = Command::new(program);
        command.args(flags(place, all, &data_dir.path().join("data")));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // As in etcd: a variable ETCD_X is the flag --x, so the variables of the test must not
        // reach the member.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("ETCD_")) {
                command.env_remove(name);
            }
        }
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
        let stderr = child.stderr.take().expect("stderr is piped");
        let log = Arc::new(Mutex::new(Vec::new()));
        let ready = drain(stderr, Arc::clone(&log));
        Server { place: place.clone(), child, log, ready, _data_dir: data_dir }
    }

    /// Waits until the member has said that it serves clients.
    ///
    /// Panics with the member's last words if it ends before, or takes too long.
    pub(crate) fn wait_until_ready(&mut self) {
        let problem = match self.ready.recv_timeout(Duration::from_secs(READY_SECONDS_MAX)) {
            Ok(()) => return,
            Err(RecvTimeoutError::Timeout) => "is not ready in time",
            Err(RecvTimeoutError::Disconnected) => "ended before it was ready",
        };
        panic!("member {} {problem}; its last words:\n{}", self.place.name, self.last_words());
    }

    /// The URL that clients use.
    pub(crate) fn endpoint(&self) -> &str {
        &self.place.client_url
    }

    /// The newest lines of the member's stderr.
    fn last_words(&self) -> String {
        self.log.lock().expect("the log reader does not panic").join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when the process is gone already, which is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Reads stderr to its end on a thread of its own, so that the member never blocks on a full pipe,
/// and sends one message when the member is ready. The channel closes when the member ends.
#[expect(clippy::disallowed_methods, reason = "a test reads a pipe; the thread ends with the pipe")]
fn drain(stderr: ChildStderr, log: Arc<Mutex<Vec<String>>>) -> Receiver<()> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || keep_newest_lines(stderr, &log, sender));
    receiver
}

/// The body of [`drain`]'s thread.
fn keep_newest_lines(stderr: ChildStderr, log: &Mutex<Vec<String>>, ready: Sender<()>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        if line.contains(READY_LINE) {
            // The test may have given up already; then nobody listens.
            ready.send(()).ok();
        }
        let mut lines = log.lock().expect("the test thread does not panic while it reads");
        if lines.len() == LOG_LINES_MAX {
            lines.remove(0);
        }
        lines.push(line);
    }
}
