//! The configuration of a member: etcd's flags and variables, read once at start.
//!
//! ```text
//! arguments ─ flags (Go syntax) ─┐
//!                                ├─ Values ─ warnings, refusals ─ checks ─ Config
//! ETCD_* ────────────────────────┘   └ defaults from the table
//! ```
//!
//! A launcher written for etcd must work unchanged, so every flag that etcd has or had is known.
//! What works is in [`Config`]; what does not gets one warning; what would be unsafe to ignore (TLS
//! above all) is refused with one sentence. Names, defaults, checks and texts are etcd's.
//!
//! **Invariant:** reading is pure. It touches no file, clock, socket or global, and it never ends the
//! process: [`ConfigExit`] says what to print and with which code to exit.
//!
//! The checks that matter only to a member without data are apart, in [`Config::check_bootstrap`]:
//! as in etcd, a restart ignores what the flags say about the initial cluster.
//!
//! | file | holds |
//! |---|---|
//! | `table` | all flags: type, default, support, help |
//! | `flags` | Go's flag syntax, the environment, the merged values |
//! | `values` | Go's way to read numbers, durations, booleans, gates |
//! | `url`, `cluster` | URLs and `--initial-cluster` |
//! | `error`, `help` | refusals, `--help`, `--version` |

mod cluster;
mod error;
mod flags;
mod help;
mod table;
mod url;
mod values;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

pub use cluster::{InitialCluster, InitialMember};
pub use error::{ConfigError, ConfigExit};
pub use url::{Scheme, Url, UrlError};

use crate::identity::{ClusterId, MemberId};
use crate::limits::{
    ELECTION_MILLISECONDS_MAX, QUOTA_BYTES_DEFAULT, REQUEST_BYTES_MAX,
    REQUEST_BYTES_RECOMMENDED_MAX, SERVING_THREADS_MAX, SNAPSHOT_CATCHUP_ENTRIES_DEFAULT,
    SNAPSHOT_COUNT_DEFAULT, WAL_SEGMENT_BYTES_MAX, WAL_SEGMENT_BYTES_MIN,
    WARNING_UNARY_REQUEST_DEFAULT, WATCH_PROGRESS_DEFAULT, WATCH_PROGRESS_MIN,
};
use crate::logging::{LogFormat, LogOutput, LogSettings};
use flags::Values;

/// Everything that a member is told at start. Field names are the flags'.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// `--name`: unique in the cluster.
    pub name: String,
    /// `--data-dir`: `<name>.etcd` when not given.
    pub data_dir: PathBuf,
    /// `--wal-dir`: where the log goes; `None` means below the data directory.
    pub wal_dir: Option<PathBuf>,
    /// `--listen-client-urls`: addresses or `localhost`, http only.
    pub listen_client_urls: Vec<Url>,
    /// `--advertise-client-urls`: what MemberList tells clients.
    pub advertise_client_urls: Vec<Url>,
    /// `--listen-peer-urls`: addresses or `localhost`, http only.
    pub listen_peer_urls: Vec<Url>,
    /// `--listen-metrics-urls`: where operators get pages besides; addresses or `localhost`, http
    /// only.
    pub listen_metrics_urls: Vec<Url>,
    /// `--cors`: origins that browsers may come from; `None` means any.
    pub cors: Option<Vec<Url>>,
    /// `--initial-advertise-peer-urls`: where the others reach this member; its id is made of them.
    pub initial_advertise_peer_urls: Vec<Url>,
    /// `--initial-cluster`: this member alone when not given.
    pub initial_cluster: InitialCluster,
    /// `--initial-cluster-state`.
    pub initial_cluster_state: ClusterState,
    /// `--initial-cluster-token`.
    pub initial_cluster_token: String,
    /// `--heartbeat-interval`: at least 1 ms.
    pub heartbeat_interval: Duration,
    /// `--election-timeout`: 5 heartbeats to 50 s.
    pub election_timeout: Duration,
    /// `--initial-election-tick-advance`: shorten the first election wait.
    pub initial_election_tick_advance: bool,
    /// `--pre-vote`.
    pub pre_vote: bool,
    /// `--strict-reconfig-check`: refuse membership changes that would lose the quorum.
    pub strict_reconfig_check: bool,
    /// `--snapshot-count`: log entries between two snapshots, never 0.
    pub snapshot_count: u64,
    /// `--snapshot-catchup-entries`: entries kept behind a snapshot, never 0.
    pub snapshot_catchup_entries: u64,
    /// `--max-request-bytes`: a larger write is refused.
    pub max_request_bytes: usize,
    /// `--max-txn-ops`: a Txn with more operations is refused.
    pub max_txn_ops: usize,
    /// `--max-concurrent-streams` of one client connection.
    pub max_concurrent_streams: u32,
    /// `--quota-backend-bytes`: size at which writes stop; `None` means no limit.
    pub quota_backend_bytes: Option<u64>,
    /// `--grpc-keepalive-interval`: how often to ping an idle client; zero turns pings off.
    pub grpc_keepalive_interval: Duration,
    /// `--grpc-keepalive-timeout`: how long to wait for the answer; zero turns pings off.
    pub grpc_keepalive_timeout: Duration,
    /// `--warning-unary-request-duration`: slower requests are logged, never zero.
    pub warning_unary_request_duration: Duration,
    /// `--warning-apply-duration`: entries that take longer to apply are logged.
    pub warning_apply_duration: Duration,
    /// `--watch-progress-notify-interval`: how often idle watchers are told how far they are.
    pub watch_progress_notify_interval: Duration,
    /// `--log-level`, `--log-format`, `--log-outputs`.
    pub log: LogSettings,
    /// `--quorate-value-cache-bytes`: memory for recent values; 0 keeps none.
    pub value_cache_bytes: usize,
    /// `--quorate-wal-segment-bytes`: size of one file of the log.
    pub wal_segment_bytes: u64,
    /// `--quorate-serving-threads`: threads that serve connections; `None` means one a core.
    pub serving_threads: Option<usize>,
}

/// What a member without data does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterState {
    /// Makes a new cluster out of `--initial-cluster`.
    New,
    /// Joins a running cluster that has already added it.
    Existing,
}

/// A usable configuration, and what the operator should know about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The configuration.
    pub config: Config,
    /// Sentences to log as warnings once logging runs.
    pub warnings: Vec<String>,
}

impl Config {
    /// Reads the arguments (without the program's name) and the environment.
    pub fn from_env<A, E>(
        args: impl IntoIterator<Item = A>,
        env: impl IntoIterator<Item = (E, E)>,
    ) -> Result<Parsed, ConfigExit>
    where
        A: Into<OsString>,
        E: Into<OsString>,
    {
        let mut args = args.into_iter().map(Into::into).peekable();
        if let Some(word) = args.peek().and_then(|word: &OsString| word.to_str())
            && matches!(word, "gateway" | "grpc-proxy")
        {
            let reason = format!("the subcommand {word} is not built yet");
            return Err(ConfigExit::usage(&reason));
        }
        let mut values = Values::from_args(args)?;
        if values.bool("version") {
            return Err(help::version());
        }
        values.fill_from_env(env.into_iter().map(|(key, value)| (key.into(), value.into())))?;
        if !values.text("config-file").is_empty() {
            return Err(ConfigError::ConfigFile.into());
        }
        values.settle()?;
        let mut config = Self::from_values(&values)?;
        let mut warnings = values.into_warnings();
        config.check(&mut warnings)?;
        Ok(Parsed { config, warnings })
    }

    /// The member's id in the cluster that its flags describe. A member that joins a running
    /// cluster gets its id from there instead.
    pub fn initial_member_id(&self) -> Option<MemberId> {
        let urls = self.initial_cluster.peer_urls(&self.name)?;
        Some(MemberId::of_initial_member(urls, &self.initial_cluster_token))
    }

    /// The id of the cluster that its flags describe.
    pub fn initial_cluster_id(&self) -> ClusterId {
        self.initial_cluster.cluster_id(&self.initial_cluster_token)
    }

    /// Checks what only a member without data needs: that the initial cluster is one, and that
    /// this member is in it. Members with data ignore those flags, as in etcd.
    pub fn check_bootstrap(&self) -> Result<(), ConfigError> {
        let cluster = &self.initial_cluster;
        let Some(in_cluster) = cluster.peer_urls(&self.name) else {
            return Err(ConfigError::NameNotInCluster(self.name.clone()));
        };
        // As in etcd: who joins is matched by the running cluster, by all its URLs.
        if self.initial_cluster_state == ClusterState::New {
            self.check_advertised(in_cluster)?;
        }
        let mut urls: Vec<&Url> = cluster.all_urls().collect();
        urls.sort();
        if urls.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(ConfigError::DuplicateUrl(cluster.to_string()));
        }
        Ok(())
    }

    /// etcd also accepts a name on one side and its address on the other; we compare the text only,
    /// because the member's id depends on the text.
    fn check_advertised(&self, in_cluster: &[Url]) -> Result<(), ConfigError> {
        let advertised = &self.initial_advertise_peer_urls;
        if let Some(url) = in_cluster.iter().find(|url| !advertised.contains(url)) {
            return Err(ConfigError::MissingFromAdvertised {
                in_cluster: format!("{}={url}", self.name),
                advertised: joined(advertised),
            });
        }
        if let Some(url) = advertised.iter().find(|url| !in_cluster.contains(url)) {
            return Err(ConfigError::MissingFromCluster {
                advertised: format!("{}={url}", self.name),
                in_cluster: joined(in_cluster),
            });
        }
        Ok(())
    }

    fn from_values(values: &Values) -> Result<Self, ConfigError> {
        let name = values.text("name");
        let data_dir = Some(values.text("data-dir")).filter(|dir| !dir.is_empty());
        let wal_dir = Some(values.text("wal-dir")).filter(|dir| !dir.is_empty());
        let initial_advertise_peer_urls = values.urls("initial-advertise-peer-urls");
        let initial_cluster = if values.is_given("initial-cluster") {
            InitialCluster::parse(&values.text("initial-cluster"))
                .map_err(ConfigError::InitialCluster)?
        } else {
            // etcd does this only for a name other than `default`, and then refuses its own default.
            InitialCluster::of_one(&name, &initial_advertise_peer_urls)
        };
        if values.is_given("listen-client-urls") && !values.is_given("advertise-client-urls") {
            return Err(ConfigError::NoAdvertisedClientUrls);
        }
        check_words(values)?;
        Ok(Self {
            data_dir: data_dir.unwrap_or_else(|| format!("{name}.etcd")).into(),
            name,
            wal_dir: wal_dir.map(PathBuf::from),
            listen_client_urls: values.urls("listen-client-urls"),
            advertise_client_urls: values.urls("advertise-client-urls"),
            listen_peer_urls: values.urls("listen-peer-urls"),
            listen_metrics_urls: values.urls("listen-metrics-urls"),
            cors: cors(values)?,
            initial_advertise_peer_urls,
            initial_cluster,
            initial_cluster_state: match values.text("initial-cluster-state").as_str() {
                "existing" => ClusterState::Existing,
                _ => ClusterState::New,
            },
            initial_cluster_token: values.text("initial-cluster-token"),
            heartbeat_interval: Duration::from_millis(values.uint("heartbeat-interval")),
            election_timeout: Duration::from_millis(values.uint("election-timeout")),
            initial_election_tick_advance: values.bool("initial-election-tick-advance"),
            pre_vote: values.bool("pre-vote"),
            strict_reconfig_check: values.bool("strict-reconfig-check"),
            // As in etcd: where nothing would make no sense 0 means the default.
            snapshot_count: nonzero(values.uint("snapshot-count"), SNAPSHOT_COUNT_DEFAULT),
            snapshot_catchup_entries: nonzero(
                values.uint("snapshot-catchup-entries"),
                SNAPSHOT_CATCHUP_ENTRIES_DEFAULT,
            ),
            max_request_bytes: size(values.uint("max-request-bytes")),
            max_txn_ops: size(values.uint("max-txn-ops")),
            max_concurrent_streams: u32::try_from(values.uint("max-concurrent-streams"))
                .expect("the flag's kind has 32 bits"),
            quota_backend_bytes: match values.int("quota-backend-bytes") {
                0 => Some(QUOTA_BYTES_DEFAULT),
                bytes => u64::try_from(bytes).ok(),
            },
            grpc_keepalive_interval: values.duration("grpc-keepalive-interval"),
            grpc_keepalive_timeout: values.duration("grpc-keepalive-timeout"),
            warning_unary_request_duration: nonzero(
                values.duration("warning-unary-request-duration"),
                WARNING_UNARY_REQUEST_DEFAULT,
            ),
            warning_apply_duration: values.duration("warning-apply-duration"),
            watch_progress_notify_interval: nonzero(
                values.duration("watch-progress-notify-interval"),
                WATCH_PROGRESS_DEFAULT,
            ),
            log: log_settings(values)?,
            value_cache_bytes: size(values.uint("quorate-value-cache-bytes")),
            wal_segment_bytes: values.uint("quorate-wal-segment-bytes"),
            serving_threads: Some(size(values.uint("quorate-serving-threads"))).filter(|n| *n > 0),
        })
    }

    /// The checks that hold for every start, in etcd's order.
    fn check(&mut self, warnings: &mut Vec<String>) -> Result<(), ConfigError> {
        self.check_urls()?;
        self.check_clock()?;
        let bounds = [
            ("max-request-bytes", (0, REQUEST_BYTES_MAX as u64), self.max_request_bytes as u64),
            (
                "quorate-wal-segment-bytes",
                (WAL_SEGMENT_BYTES_MIN, WAL_SEGMENT_BYTES_MAX),
                self.wal_segment_bytes,
            ),
            (
                "quorate-serving-threads",
                (0, SERVING_THREADS_MAX),
                self.serving_threads.unwrap_or(0) as u64,
            ),
        ];
        for (name, (min, max), found) in bounds {
            if found < min || found > max {
                return Err(ConfigError::OutOfBounds { name, min, max, found });
            }
        }
        if self.watch_progress_notify_interval < WATCH_PROGRESS_MIN {
            self.watch_progress_notify_interval = WATCH_PROGRESS_MIN;
            warnings.push("--watch-progress-notify-interval is raised to 100ms".to_owned());
        }
        if self.max_request_bytes > REQUEST_BYTES_RECOMMENDED_MAX {
            warnings.push(format!(
                "--max-request-bytes {} exceeds the recommended {REQUEST_BYTES_RECOMMENDED_MAX}",
                self.max_request_bytes
            ));
        }
        let anywhere = |url: &Url| matches!(url.host(), "0.0.0.0" | "::");
        if let Some(url) = self.initial_advertise_peer_urls.iter().find(|url| anywhere(url)) {
            warnings.push(format!(
                "--initial-advertise-peer-urls {url} is no address that others can reach"
            ));
        }
        Ok(())
    }

    fn check_urls(&self) -> Result<(), ConfigError> {
        let listen = [
            ("listen-peer-urls", &self.listen_peer_urls),
            ("listen-client-urls", &self.listen_client_urls),
            ("listen-metrics-urls", &self.listen_metrics_urls),
        ];
        let advertised = [
            ("initial-advertise-peer-urls", &self.initial_advertise_peer_urls),
            ("advertise-client-urls", &self.advertise_client_urls),
        ];
        for (name, urls) in listen.into_iter().chain(advertised) {
            urls.iter().try_for_each(|url| check_scheme(name, url))?;
        }
        self.initial_cluster.all_urls().try_for_each(|url| check_scheme("initial-cluster", url))?;
        for (_, urls) in listen {
            if let Some(url) = urls.iter().find(|url| !url.is_bindable()) {
                return Err(ConfigError::NotBindable(url.clone()));
            }
        }
        for (name, urls) in advertised {
            if let Some(url) = urls.iter().find(|url| url.host().is_empty()) {
                let (urls, url) = (joined(urls), url.clone());
                return Err(ConfigError::EmptyHost { name, urls, url });
            }
        }
        Ok(())
    }

    fn check_clock(&self) -> Result<(), ConfigError> {
        let milliseconds = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let heartbeat = milliseconds(self.heartbeat_interval);
        let election = milliseconds(self.election_timeout);
        if heartbeat == 0 {
            return Err(ConfigError::ZeroMilliseconds { name: "heartbeat-interval" });
        }
        if election == 0 {
            return Err(ConfigError::ZeroMilliseconds { name: "election-timeout" });
        }
        if heartbeat.saturating_mul(5) > election {
            return Err(ConfigError::ElectionTooShort { election, heartbeat });
        }
        if election > ELECTION_MILLISECONDS_MAX {
            return Err(ConfigError::ElectionTooLong(election));
        }
        Ok(())
    }
}

/// As in etcd: `*` is anywhere, all else are URLs.
fn cors(values: &Values) -> Result<Option<Vec<Url>>, ConfigError> {
    match values.text("cors").as_str() {
        "*" => Ok(None),
        text => Url::parse_list(text).map(Some).map_err(ConfigError::Cors),
    }
}

fn check_scheme(name: &'static str, url: &Url) -> Result<(), ConfigError> {
    match url.scheme() {
        Scheme::Http => Ok(()),
        Scheme::Https | Scheme::Unixs => Err(ConfigError::TlsUrl { name, url: url.clone() }),
        Scheme::Unix => Err(ConfigError::UnixUrl { name, url: url.clone() }),
    }
}

/// Checks the flags whose text must be one of a few words, but which etcd refuses late.
fn check_words(values: &Values) -> Result<(), ConfigError> {
    let mode = values.text("auto-compaction-mode");
    if !matches!(mode.as_str(), "periodic" | "revision") {
        return Err(ConfigError::CompactionMode(mode));
    }
    let logger = values.text("logger");
    if logger != "zap" {
        return Err(ConfigError::Logger(logger));
    }
    Ok(())
}

fn log_settings(values: &Values) -> Result<LogSettings, ConfigError> {
    let format = match values.text("log-format").as_str() {
        "json" => LogFormat::Json,
        "console" => LogFormat::Console,
        other => return Err(ConfigError::LogFormat(other.to_owned())),
    };
    let text = values.text("log-outputs");
    let mut names: Vec<&str> = text.split(',').collect();
    names.sort_unstable();
    names.dedup();
    if names.len() > 1 && names.contains(&"default") {
        return Err(ConfigError::LogOutputDefaultAmongOthers);
    }
    let output = |name: &str| match name {
        "" => Err(ConfigError::LogOutputEmpty),
        "default" | "stderr" => Ok(LogOutput::Stderr),
        "stdout" => Ok(LogOutput::Stdout),
        path => Ok(LogOutput::File(path.into())),
    };
    let outputs = names.into_iter().map(output).collect::<Result<Vec<_>, _>>()?;
    Ok(LogSettings { level: values.level("log-level"), format, outputs })
}

fn nonzero<T: Default + PartialEq>(value: T, default: T) -> T {
    if value == T::default() { default } else { value }
}

fn size(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

fn joined(urls: &[Url]) -> String {
    urls.iter().map(Url::as_str).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests;
