//! The data directory of one member: who may use it, whose it is, and which state is current.
//!
//! ```text
//! <data-dir>/member/LOCK          locked while a process uses the directory; holds its pid
//!                   IDENTITY      format, cluster id, member id, where the log is; written once
//!                   wal/          the log, unless --wal-dir puts it elsewhere
//!                   state/CURRENT names the state directory that counts, e.g. `state-3`
//!                   state/state-<n>/    state that can be rebuilt
//!                   state/state-<m>/    a snapshot being received, until CURRENT names it
//! <wal-dir>/{LOCK,IDENTITY,wal/}  the same guards around a log on its own disk
//! ```
//!
//! **Invariant:** a member never starts on files of another member, of another program or of a
//! newer format, nor with an empty log beside an existing identity. When in doubt it refuses and
//! says in one sentence what to do. `IDENTITY` and `CURRENT` are replaced whole (write a temporary
//! file, fsync it, rename, fsync the directory), so that a crash leaves the old or the new one.
//!
//! It must not look inside the log or the state: it only hands out their paths.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FlockOperation;
use thiserror::Error;

use crate::identity::{ClusterId, MemberId};

/// The newest layout of the data directory that this build reads, and the one it writes.
pub const FORMAT: u32 = 1;

const LOCK: &str = "LOCK";
const IDENTITY: &str = "IDENTITY";
const CURRENT: &str = "CURRENT";
const STATE_PREFIX: &str = "state-";

/// Whose data this is. Written once, when the member joins its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster that the member belongs to.
    pub cluster_id: ClusterId,
    /// The member itself.
    pub member_id: MemberId,
}

/// Why a data directory cannot be used. Each text says what the operator can do.
#[derive(Debug, Error)]
pub enum DataDirError {
    /// The file system refused.
    #[error("cannot use {path} ({source}); make it a directory that this user may read and write")]
    Io {
        /// The file or directory that was touched.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process holds the lock.
    #[error("{path} is in use by another process (pid {pid}); stop it or choose another directory")]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// What the lock file says about its holder.
        pid: String,
    },
    /// The directory was written by etcd.
    #[error(
        "{0} holds data of etcd, which Quorate does not read; choose another --data-dir and copy \
         the keys over with a client"
    )]
    OfEtcd(PathBuf),
    /// A newer Quorate has written the directory.
    #[error(
        "{path} has data format {found}, this build reads up to {FORMAT}; start a newer Quorate"
    )]
    NewerFormat {
        /// The identity file.
        path: PathBuf,
        /// The format it names.
        found: u32,
    },
    /// The directory belongs to somebody else.
    #[error(
        "{path} belongs to member {} of cluster {}, not to member {} of cluster {}; check \
         --data-dir, --name and --initial-cluster, or choose an empty directory",
        found.member_id, found.cluster_id, expected.member_id, expected.cluster_id
    )]
    OfAnother {
        /// The identity file.
        path: PathBuf,
        /// Whose it is.
        found: Identity,
        /// Who asked.
        expected: Identity,
    },
    /// `--wal-dir` was added, removed or pointed elsewhere since the member was made.
    #[error("the log of {path} is not where --wal-dir says ({reason}); set --wal-dir as before")]
    LogElsewhere {
        /// The identity file of the data directory.
        path: PathBuf,
        /// What was expected and what was found.
        reason: &'static str,
    },
    /// A file of ours is missing or does not parse.
    #[error(
        "{path} is damaged ({reason}); restore the data directory, or remove the member from the \
         cluster, add it again and start it with an empty directory"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// A locked data directory. Dropping it and its staging directories releases the lock, so keep it
/// as long as the member runs.
#[derive(Debug)]
pub struct DataDir {
    member: PathBuf,
    /// The parent of the log when `--wal-dir` is set.
    wal_home: Option<PathBuf>,
    identity: Option<Identity>,
    current: u64,
    /// States that snapshots took the place of, until they are removed.
    replaced: Vec<u64>,
    locks: Arc<Vec<File>>,
}

/// A fresh, empty directory that a snapshot is received into; see [`DataDir::flip_to`]. Dropping it
/// removes it, so drop it where that may block, and close the files in it before.
#[derive(Debug)]
pub struct StagingDir {
    generation: u64,
    path: PathBuf,
    /// CURRENT may name it.
    stays: bool,
    /// While it is there, no other process may make one of the same name.
    _locks: Arc<Vec<File>>,
}

impl StagingDir {
    /// Where to put the files.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for StagingDir {
    /// Gives back the space of a snapshot that came to nothing: the next one may be as large.
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            let path = self.path.display();
            tracing::warn!(%path, %error, "cannot remove a snapshot; the next start does");
        }
    }
}

impl DataDir {
    /// Opens or creates the directory, locks it, checks what it holds and removes what a crash left
    /// behind. Creates the directories it needs with mode 0700.
    pub fn open(data_dir: &Path, wal_dir: Option<&Path>) -> Result<Self, DataDirError> {
        let member = data_dir.join("member");
        create_private(data_dir)?;
        if member.join("snap").exists() {
            return Err(DataDirError::OfEtcd(data_dir.to_owned()));
        }
        create_private(&member)?;
        let mut locks = vec![lock(&member)?];
        if let Some(home) = wal_dir {
            create_private(home)?;
            locks.push(lock(home)?);
        }
        let wal_home = wal_dir.map(Path::to_owned);
        let identity = read_identity(&member, wal_home.as_deref())?;
        let current = open_state(&member.join("state"), identity.is_some())?;
        let (locks, replaced) = (Arc::new(locks), Vec::new());
        let dir = Self { member, wal_home, identity, current, replaced, locks };
        dir.check_log()?;
        create_private(&dir.wal_dir())?;
        remove_all_but(&dir.state_dir(), Some(&state_name(current)))?;
        Ok(dir)
    }

    /// Whose directory this is; `None` as long as nobody has claimed it.
    pub fn identity(&self) -> Option<Identity> {
        self.identity
    }

    /// Makes the directory that of `expected`, durably, or refuses when it is somebody else's.
    /// Call it before the log is opened.
    pub fn claim(&mut self, expected: Identity) -> Result<(), DataDirError> {
        if let Some(found) = self.identity {
            return same_or_refuse(&self.member.join(IDENTITY), found, expected);
        }
        // The log's side first: a crash in between leaves a directory that the same member can
        // claim again and any other cannot.
        if let Some(home) = &self.wal_home {
            match read_identity_file(&home.join(IDENTITY))? {
                Some(stored) => {
                    same_or_refuse(&home.join(IDENTITY), stored.identity, expected)?;
                }
                None => write_identity(home, expected, LogPlace::Outside)?,
            }
        }
        let place = if self.wal_home.is_some() { LogPlace::Outside } else { LogPlace::Inside };
        fail::fail_point!("claim_before_identity");
        write_identity(&self.member, expected, place)?;
        fail::fail_point!("claim_after_identity");
        self.identity = Some(expected);
        Ok(())
    }

    /// Where the log lives.
    pub fn wal_dir(&self) -> PathBuf {
        self.wal_home.as_ref().unwrap_or(&self.member).join("wal")
    }

    /// The state directory that counts. It exists; a new member's is empty.
    pub fn current_state_dir(&self) -> PathBuf {
        self.state_dir().join(state_name(self.current))
    }

    /// Makes an empty directory for a snapshot. It is removed when it is dropped, or after a crash
    /// at the next start, unless [`DataDir::flip_to`] adopts it.
    pub fn new_staging_dir(&self) -> Result<StagingDir, DataDirError> {
        let mut generation = self.current + 1;
        loop {
            let path = self.state_dir().join(state_name(generation));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {
                    fail::fail_point!("stage_after_mkdir");
                    let locks = Arc::clone(&self.locks);
                    return Ok(StagingDir { generation, path, stays: false, _locks: locks });
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => generation += 1,
                Err(source) => return Err(DataDirError::Io { path, source }),
            }
        }
    }

    /// Makes a verified staging directory the current state. Its files must be fsynced; they may
    /// stay open, since the directory keeps its name and only the pointer moves. The switch is
    /// durable and atomic. The previous state stays until [`DataDir::remove_stale_states`].
    pub fn flip_to(&mut self, mut staging: StagingDir) -> Result<(), DataDirError> {
        // Even if this fails: CURRENT may name it by then. If not, it goes at the next start.
        staging.stays = true;
        sync_dir(&staging.path)?;
        sync_dir(&self.state_dir())?;
        // A crash up to here leaves a directory that CURRENT does not name: removed at start.
        let name = state_name(staging.generation);
        fail::fail_point!("flip_before_pointer");
        replace_file(&self.state_dir(), CURRENT, &format!("{name}\n"))?;
        fail::fail_point!("flip_after_pointer");
        self.replaced.push(self.current);
        self.current = staging.generation;
        Ok(())
    }

    /// Removes every state that a snapshot has replaced. Call it when they are closed. Staging
    /// directories stay: whoever holds one may yet adopt it.
    pub fn remove_stale_states(&mut self) -> Result<(), DataDirError> {
        while let Some(generation) = self.replaced.last() {
            remove_state(&self.state_dir().join(state_name(*generation)))?;
            self.replaced.pop();
        }
        Ok(())
    }

    fn state_dir(&self) -> PathBuf {
        self.member.join("state")
    }

    /// A log without an identity, or an identity without its log, is somebody's lost data.
    fn check_log(&self) -> Result<(), DataDirError> {
        let path = self.wal_dir();
        match (self.identity.is_some(), path.exists()) {
            (true, false) => Err(DataDirError::Damaged { path, reason: "the log is missing" }),
            (false, true) if !is_empty(&path)? => {
                let reason = "there is a log, but no file IDENTITY says whose it is";
                Err(DataDirError::Damaged { path, reason })
            }
            _ => Ok(()),
        }
    }
}

/// Whether the log is below the data directory or behind `--wal-dir`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LogPlace {
    Inside,
    Outside,
}

impl LogPlace {
    fn word(self) -> &'static str {
        match self {
            Self::Inside => "inside",
            Self::Outside => "outside",
        }
    }
}

struct StoredIdentity {
    identity: Identity,
    log: LogPlace,
}

/// Reads the member's identity and checks that the log is where it was.
fn read_identity(member: &Path, wal_home: Option<&Path>) -> Result<Option<Identity>, DataDirError> {
    let path = member.join(IDENTITY);
    let Some(stored) = read_identity_file(&path)? else { return Ok(None) };
    let elsewhere = |reason| DataDirError::LogElsewhere { path: path.clone(), reason };
    match (stored.log, wal_home) {
        (LogPlace::Inside, None) => {}
        (LogPlace::Inside, Some(_)) => {
            return Err(elsewhere("the member was made without --wal-dir"));
        }
        (LogPlace::Outside, None) => return Err(elsewhere("the member was made with --wal-dir")),
        (LogPlace::Outside, Some(home)) => match read_identity_file(&home.join(IDENTITY))? {
            None => return Err(elsewhere("that directory holds no log of this member")),
            Some(log) => same_or_refuse(&home.join(IDENTITY), log.identity, stored.identity)?,
        },
    }
    Ok(Some(stored.identity))
}

fn same_or_refuse(path: &Path, found: Identity, expected: Identity) -> Result<(), DataDirError> {
    if found == expected {
        return Ok(());
    }
    Err(DataDirError::OfAnother { path: path.to_owned(), found, expected })
}

/// The text of an identity file: readable by people, guarded by a checksum over the lines above it.
fn encode_identity(identity: Identity, log: LogPlace) -> String {
    let Identity { cluster_id, member_id } = identity;
    let body = format!(
        "quorate-data {FORMAT}\ncluster {cluster_id}\nmember {member_id}\nlog {}\n",
        log.word()
    );
    format!("{body}crc32c {:08x}\n", crc32c::crc32c(body.as_bytes()))
}

fn write_identity(dir: &Path, identity: Identity, log: LogPlace) -> Result<(), DataDirError> {
    replace_file(dir, IDENTITY, &encode_identity(identity, log))
}

fn read_identity_file(path: &Path) -> Result<Option<StoredIdentity>, DataDirError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(at(path)(source)),
    };
    let damaged = |reason| DataDirError::Damaged { path: path.to_owned(), reason };
    let format = field(text.lines().next(), "quorate-data ")
        .and_then(|n| n.parse::<u32>().ok())
        .ok_or_else(|| damaged("the first line does not name a data format"))?;
    if format > FORMAT {
        return Err(DataDirError::NewerFormat { path: path.to_owned(), found: format });
    }
    let stored = decode_identity(&text).ok_or_else(|| damaged("it does not parse"))?;
    // Equal text means that the checksum is right as well.
    if encode_identity(stored.identity, stored.log) != text {
        return Err(damaged("its checksum is wrong"));
    }
    Ok(Some(stored))
}

fn decode_identity(text: &str) -> Option<StoredIdentity> {
    let mut lines = text.lines().skip(1);
    let cluster_id = field(lines.next(), "cluster ")?.parse().ok()?;
    let member_id = field(lines.next(), "member ")?.parse().ok()?;
    let log = match field(lines.next(), "log ")? {
        "inside" => LogPlace::Inside,
        "outside" => LogPlace::Outside,
        _ => return None,
    };
    Some(StoredIdentity { identity: Identity { cluster_id, member_id }, log })
}

fn field<'a>(line: Option<&'a str>, key: &str) -> Option<&'a str> {
    line?.strip_prefix(key)
}

/// Makes the state directory ready and returns the number of the current generation.
fn open_state(state: &Path, claimed: bool) -> Result<u64, DataDirError> {
    create_private(state)?;
    let path = state.join(CURRENT);
    let damaged = |reason| DataDirError::Damaged { path: path.clone(), reason };
    match fs::read_to_string(&path) {
        Ok(text) => {
            let name = text.strip_suffix('\n').unwrap_or_default();
            let generation = field(Some(name), STATE_PREFIX)
                .and_then(|n| n.parse().ok())
                .ok_or_else(|| damaged("it does not name a state directory"))?;
            if !state.join(name).is_dir() {
                return Err(damaged("the state directory it names is missing"));
            }
            Ok(generation)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound && claimed => {
            Err(damaged("the file is missing"))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            remove_all_but(state, None)?;
            create_private(&state.join("state-1"))?;
            fail::fail_point!("state_before_pointer");
            replace_file(state, CURRENT, "state-1\n")?;
            fail::fail_point!("state_after_pointer");
            Ok(1)
        }
        Err(source) => Err(at(&path)(source)),
    }
}

fn remove_all_but(state: &Path, keep: Option<&str>) -> Result<(), DataDirError> {
    for entry in fs::read_dir(state).map_err(at(state))? {
        let entry = entry.map_err(at(state))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let ours = name.starts_with(STATE_PREFIX);
        if ours && Some(name) != keep {
            remove_state(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_state(path: &Path) -> Result<(), DataDirError> {
    fail::fail_point!("stale_before_removal");
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        removed => removed.map_err(at(path))?,
    }
    fail::fail_point!("stale_after_removal");
    Ok(())
}

fn state_name(generation: u64) -> String {
    format!("{STATE_PREFIX}{generation}")
}

fn is_empty(dir: &Path) -> Result<bool, DataDirError> {
    Ok(fs::read_dir(dir).map_err(at(dir))?.next().is_none())
}

/// Takes the lock of a directory, which the system releases when this process ends in any way.
fn lock(dir: &Path) -> Result<File, DataDirError> {
    let path = dir.join(LOCK);
    let mut options = OpenOptions::new();
    let mut file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(at(&path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).map_err(at(&path))?;
            let pid = pid.trim();
            let pid = if pid.is_empty() { "unknown" } else { pid }.to_owned();
            return Err(DataDirError::Locked { path, pid });
        }
        Err(errno) => return Err(at(&path)(errno.into())),
    }
    file.set_len(0).map_err(at(&path))?;
    writeln!(file, "{}", std::process::id()).map_err(at(&path))?;
    Ok(file)
}

/// Creates a directory, and those above it, that only this user may enter; one that exists is left
/// as it is. Each new name is durable when this returns: a log in a directory whose own name was
/// lost with the power would be lost too.
fn create_private(path: &Path) -> Result<(), DataDirError> {
    if path.is_dir() {
        // Fails early and clearly on a directory that this user may not read.
        return fs::read_dir(path).map(drop).map_err(at(path));
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !parent.exists() {
        create_private(parent)?;
    }
    DirBuilder::new().mode(0o700).create(path).map_err(at(path))?;
    fail::fail_point!("mkdir_before_flush");
    sync_dir(parent)?;
    fail::fail_point!("mkdir_after_flush");
    Ok(())
}

/// Replaces `dir/name` so that a crash or power loss leaves either the old or the new text.
fn replace_file(dir: &Path, name: &str, text: &str) -> Result<(), DataDirError> {
    let temporary = dir.join(format!("{name}.tmp"));
    let mut file = File::create(&temporary).map_err(at(&temporary))?;
    fail::fail_point!("replace_after_create");
    file.write_all(text.as_bytes()).map_err(at(&temporary))?;
    file.sync_all().map_err(at(&temporary))?;
    let target = dir.join(name);
    fail::fail_point!("replace_before_name");
    fs::rename(&temporary, &target).map_err(at(&target))?;
    fail::fail_point!("replace_after_name");
    sync_dir(dir)
}

/// Makes the names in a directory durable.
fn sync_dir(dir: &Path) -> Result<(), DataDirError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(at(dir))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> DataDirError + use<> {
    let path = path.to_owned();
    move |source| DataDirError::Io { path, source }
}

#[cfg(test)]
mod tests;
