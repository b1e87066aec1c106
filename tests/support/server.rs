//! One member as a process of its own: started with etcd's flags, killed when dropped.
//!
//! The same starter runs Quorate and a real etcd, because both take the same flags and both say
//! `ready to serve client requests` on stderr. Each gets ports of its own that are free, from below
//! those that the kernel gives to outgoing connections: one of these could take a member's port before
//! it starts, or between a kill and the next start.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use quorate::clock;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// The line of stderr after which a member answers its clients.
const READY_LINE: &str = "ready to serve client requests";

/// How long a member may take to say that it is ready.
const READY_SECONDS_MAX: u64 = 60;

/// How many of the newest stderr lines are kept.
const LOG_LINES_MAX: usize = 5000;

/// How many of them the report of a failure shows.
const LAST_WORDS_MAX: usize = 60;

/// How often a condition is looked at that nobody announces.
const POLL: Duration = Duration::from_millis(10);

/// The binary under test: `QUORATE_TEST_SERVER` if it is set, else our own.
pub(crate) fn program_under_test() -> PathBuf {
    match std::env::var_os("QUORATE_TEST_SERVER") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(env!("CARGO_BIN_EXE_quorate")),
    }
}

/// The ports that members get; Linux gives outgoing connections those from 32768 on.
const PORTS: std::ops::Range<u32> = 10_000..32_768;

/// A URL on the loopback address with a port that is free and that nobody else here was given.
fn free_url() -> String {
    static NEXT: LazyLock<AtomicU32> = LazyLock::new(|| AtomicU32::new(fastrand::u32(PORTS)));
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed) % (PORTS.end - PORTS.start);
        let port = u16::try_from(PORTS.start + number).expect("ports have 16 bits");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return format!("http://127.0.0.1:{port}");
        }
    }
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

/// How a member is started, the first time and after each crash.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    /// The binary.
    pub(crate) program: PathBuf,
    /// The command that becomes the binary, as `nsenter` and `env` do; the binary's path and its
    /// flags follow. Usually nothing.
    pub(crate) within: Vec<OsString>,
    /// Which member it is.
    pub(crate) place: Place,
    /// All members of the new cluster, this one among them.
    pub(crate) all: Vec<Place>,
    /// The value of `--data-dir`.
    pub(crate) data_dir: PathBuf,
    /// More flags.
    pub(crate) extra: Vec<String>,
    /// More variables.
    pub(crate) environment: Vec<(OsString, OsString)>,
}

impl Launch {
    /// A member alone in its cluster.
    pub(crate) fn alone(program: &Path, data_dir: &Path, extra: &[&str]) -> Launch {
        let place = Place::free("alone");
        Launch {
            program: program.to_owned(),
            within: Vec::new(),
            all: vec![place.clone()],
            place,
            data_dir: data_dir.to_owned(),
            extra: extra.iter().map(|&flag| flag.to_owned()).collect(),
            environment: Vec::new(),
        }
    }

    fn flags(&self) -> Vec<OsString> {
        let place = &self.place;
        let initial: Vec<String> = self.all.iter().map(Place::initial).collect();
        let pairs: [(&str, OsString); 8] = [
            ("--name", (&place.name).into()),
            ("--data-dir", (&self.data_dir).into()),
            ("--listen-client-urls", (&place.client_url).into()),
            ("--advertise-client-urls", (&place.client_url).into()),
            ("--listen-peer-urls", (&place.peer_url).into()),
            ("--initial-advertise-peer-urls", (&place.peer_url).into()),
            ("--initial-cluster", initial.join(",").into()),
            ("--initial-cluster-state", "new".into()),
        ];
        let pairs = pairs.into_iter().flat_map(|(flag, value)| [OsString::from(flag), value]);
        pairs.chain(self.extra.iter().map(OsString::from)).collect()
    }

    fn spawn(&self) -> Child {
        let mut words =
            self.within.iter().map(OsString::as_os_str).chain([self.program.as_os_str()]);
        let mut command = Command::new(words.next().expect("the binary at least"));
        command.args(words).args(self.flags());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // As in etcd: a variable ETCD_X is the flag --x, so the variables of the test must not
        // reach the member.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("ETCD_")) {
                command.env_remove(name);
            }
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let program = self.program.display();
        command.spawn().unwrap_or_else(|error| panic!("cannot start {program}: {error}"))
    }
}

/// A member that was started. Dropping it kills the process and removes its data if it owns them.
#[derive(Debug)]
pub(crate) struct Server {
    launch: Launch,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    ready: Receiver<()>,
    _scratch: Option<TempDir>,
}

impl Server {
    /// Starts `program` as the only member of a new cluster and waits until it serves.
    pub(crate) fn start_alone(program: &Path) -> Server {
        let place = Place::free("alone");
        let mut server = Server::spawn(program, &place, std::slice::from_ref(&place), &[]);
        server.wait_until_ready();
        server
    }

    /// Starts `program` as the member `place` of the cluster `all` with the flags `extra`, without
    /// waiting for it: a member of several is ready only when a majority runs.
    pub(crate) fn spawn(program: &Path, place: &Place, all: &[Place], extra: &[&str]) -> Server {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let mut server = Server::launch(Launch {
            program: program.to_owned(),
            within: Vec::new(),
            place: place.clone(),
            all: all.to_vec(),
            data_dir: scratch.path().join("data"),
            extra: extra.iter().map(|&flag| flag.to_owned()).collect(),
            environment: Vec::new(),
        });
        server._scratch = Some(scratch);
        server
    }

    /// Starts a member on data that outlive it, without waiting for it.
    pub(crate) fn launch(launch: Launch) -> Server {
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut child = launch.spawn();
        let ready = drain(&mut child, Arc::clone(&log));
        Server { launch, child, log, ready, _scratch: None }
    }

    /// Starts the member again, after it ended, on the same ports and data; forgets its old lines.
    pub(crate) fn restart(&mut self) {
        assert!(self.ended().is_some(), "member {} still runs", self.launch.place.name);
        self.log = Arc::new(Mutex::new(Vec::new()));
        self.child = self.launch.spawn();
        self.ready = drain(&mut self.child, Arc::clone(&self.log));
    }

    /// Waits until the member has said that it serves clients.
    ///
    /// Panics with the member's last words if it ends before, or takes too long.
    pub(crate) fn wait_until_ready(&mut self) {
        match self.ready.recv_timeout(Duration::from_secs(READY_SECONDS_MAX)) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => self.fail("is not ready in time"),
            Err(RecvTimeoutError::Disconnected) => self.fail("ended before it was ready"),
        }
    }

    /// As [`Server::wait_until_ready`], while other tasks of this thread go on.
    pub(crate) async fn until_ready(&mut self) {
        let deadline = clock::now() + Duration::from_secs(READY_SECONDS_MAX);
        loop {
            match self.ready.try_recv() {
                Ok(()) => return,
                Err(TryRecvError::Empty) if clock::now() < deadline => {}
                Err(TryRecvError::Empty) => self.fail("is not ready in time"),
                Err(TryRecvError::Disconnected) => self.fail("ended before it was ready"),
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Sends SIGKILL and waits until the process is gone.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.until_exit(Duration::from_secs(20)).await;
    }

    /// Sends `signal`, for example to stop the process for a while.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("a child can be signalled");
    }

    /// How the process ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be asked")
    }

    /// Waits until the process ends by itself, and tells how.
    pub(crate) async fn until_exit(&mut self, patience: Duration) -> ExitStatus {
        let deadline = clock::now() + patience;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            self.check_time(deadline, "does not end");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until the member has said a line with `text`, and returns the line.
    pub(crate) async fn until_line(&self, text: &str, patience: Duration) -> String {
        let deadline = clock::now() + patience;
        loop {
            if let Some(line) = self.line(text) {
                return line;
            }
            self.check_time(deadline, &format!("does not say {text:?}"));
            tokio::time::sleep(POLL).await;
        }
    }

    fn check_time(&self, deadline: Instant, problem: &str) {
        if clock::now() >= deadline {
            self.fail(problem);
        }
    }

    /// A line with `text` that the member has said in this life.
    pub(crate) fn line(&self, text: &str) -> Option<String> {
        let log = self.log.lock().expect("the log reader does not panic");
        log.iter().find(|line| line.contains(text)).cloned()
    }

    /// The number in the line `field` of `/proc/<pid>/status` in bytes, for example `VmRSS`.
    pub(crate) fn memory_bytes(&self, field: &str) -> Option<u64> {
        let path = format!("/proc/{}/status", self.process_id());
        let status = std::fs::read_to_string(path).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    }

    /// The URL that clients use.
    pub(crate) fn endpoint(&self) -> &str {
        &self.launch.place.client_url
    }

    /// How it was started.
    pub(crate) fn launched(&self) -> &Launch {
        &self.launch
    }

    /// The id of the process, or of the one that ended last.
    pub(crate) fn process_id(&self) -> u32 {
        self.child.id()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn fail(&self, problem: &str) -> ! {
        let name = &self.launch.place.name;
        panic!("member {name} {problem}; its last words:\n{}", self.last_words());
    }

    /// The newest lines of the member's stderr.
    pub(crate) fn last_words(&self) -> String {
        let log = self.log.lock().expect("the log reader does not panic");
        log[log.len().saturating_sub(LAST_WORDS_MAX)..].join("\n")
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
fn drain(child: &mut Child, log: Arc<Mutex<Vec<String>>>) -> Receiver<()> {
    let stderr = child.stderr.take().expect("stderr is piped");
    let (sender, receiver) = channel();
    std::thread::spawn(move || keep_newest_lines(stderr, &log, sender));
    receiver
}

/// The body of [`drain`]'s thread.
fn keep_newest_lines(stderr: ChildStderr, log: &Mutex<Vec<String>>, ready: Sender<()>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        let mut lines = log.lock().expect("the test thread does not panic while it reads");
        if lines.len() == LOG_LINES_MAX {
            lines.remove(0);
        }
        let is_ready = line.contains(READY_LINE);
        lines.push(line);
        if is_ready {
            // The test may have given up already; then nobody listens.
            ready.send(()).ok();
        }
    }
}
