//! Why a member refuses its configuration, and how the process ends then.

use thiserror::Error;

use super::help;
use super::url::{Url, UrlError};

/// Settings that cannot be used. The texts are etcd's where etcd refuses the same.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "each variant's text is its documentation")]
pub enum ConfigError {
    #[error("{0:?} is not a valid flag")]
    NotAFlag(String),
    #[error("invalid value {text:?} for {key}: {reason}")]
    EnvValue { key: String, text: String, reason: String },
    // etcd's text closes one parenthesis too many; tools may look for it, so it stays.
    #[error(
        "conflicting environment variable is shadowed by corresponding command-line flag (either \
         unset environment variable or disable flag)): {0}"
    )]
    ShadowedEnv(String),
    #[error("--{name} cannot be used: {reason}")]
    Unsupported { name: &'static str, reason: &'static str },
    #[error("TLS is not built yet; use an http:// URL in place of {url} in --{name}")]
    TlsUrl { name: &'static str, url: Url },
    #[error("Unix sockets are not built yet; use an http:// URL in place of {url} in --{name}")]
    UnixUrl { name: &'static str, url: Url },
    #[error("--config-file is not built yet; give the settings as flags or ETCD_* variables")]
    ConfigFile,
    #[error("expected IP in URL for binding ({0})")]
    NotBindable(Url),
    #[error("--{name} {urls:?} must be \"host:port\" (unexpected empty host ({url}))")]
    EmptyHost { name: &'static str, urls: String, url: Url },
    #[error("--{name} must be >0 (set to 0ms)")]
    ZeroMilliseconds { name: &'static str },
    #[error(
        "--election-timeout[{election}ms] should be at least as 5 times as \
         --heartbeat-interval[{heartbeat}ms]"
    )]
    ElectionTooShort { election: u64, heartbeat: u64 },
    #[error("--election-timeout[{0}ms] is too long, and should be set less than 50000ms")]
    ElectionTooLong(u64),
    #[error("--advertise-client-urls is required when --listen-client-urls is set explicitly")]
    NoAdvertisedClientUrls,
    #[error("unknown auto-compaction-mode {0:?}")]
    CompactionMode(String),
    #[error("unknown logger option {0:?}")]
    Logger(String),
    #[error("unknown log format: {0}, supported values json, console")]
    LogFormat(String),
    #[error("multi logoutput for \"default\" is not supported yet")]
    LogOutputDefaultAmongOthers,
    #[error("open sink \"\": no such file or directory")]
    LogOutputEmpty,
    #[error("--{name} must be between {min} and {max} (set to {found})")]
    OutOfBounds { name: &'static str, min: u64, max: u64, found: u64 },
    #[error("--cors must be '*' or URLs: {0}")]
    Cors(UrlError),
    #[error("error setting up initial cluster: {0}")]
    InitialCluster(UrlError),
    #[error("couldn't find local name {0:?} in the initial cluster configuration")]
    NameNotInCluster(String),
    #[error("initial cluster {0} has duplicate url")]
    DuplicateUrl(String),
    #[error(
        "--initial-cluster has {in_cluster} but missing from \
         --initial-advertise-peer-urls={advertised}"
    )]
    MissingFromAdvertised { in_cluster: String, advertised: String },
    #[error(
        "--initial-advertise-peer-urls has {advertised} but missing from \
         --initial-cluster={in_cluster}"
    )]
    MissingFromCluster { advertised: String, in_cluster: String },
}

/// The process ends here: print both texts, then exit with the code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigExit {
    /// 0 when help or version was asked for, 1 for settings that cannot be used, 2 for flags that
    /// cannot be read; as in etcd.
    pub code: u8,
    /// What goes to standard output.
    pub stdout: String,
    /// What goes to standard error.
    pub stderr: String,
}

impl ConfigExit {
    /// A flag that cannot be read: the reason, then how the program is used.
    pub(super) fn usage(message: &str) -> Self {
        let stderr = format!("{message}\n{}", help::USAGE);
        Self { code: 2, stdout: String::new(), stderr }
    }

    /// Something was asked for and printed; all is well.
    pub(super) fn printed(stdout: String) -> Self {
        Self { code: 0, stdout, stderr: String::new() }
    }
}

impl From<ConfigError> for ConfigExit {
    fn from(error: ConfigError) -> Self {
        let stderr = format!("quorate: failed to verify flags: {error}\n");
        Self { code: 1, stdout: String::new(), stderr }
    }
}
