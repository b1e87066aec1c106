//! The `CHECKPOINT` file: what sled's files must at least hold, so that damage is found at open.
//!
//! sled keeps one checksum per leaf, but if a metadata file is missing, cut or flipped it stops
//! reading there and silently opens older, or mixes old metadata with newer leaves. So after every
//! flush the writer notes the number of the last commit in it, and which metadata files exist and
//! how long they are. At open every frame up to those lengths must check out, and the recovered
//! store must hold that commit. What was written after the note is not covered: that is the torn
//! tail of a crash, which sled cuts.
//!
//! sled's metadata folder holds one `snapshot_<id>` and the logs after it, `log_<id+1>` and so on.
//! A log is a row of frames: 6 bytes length and 2 bytes of its CRC-32, the payload, a CRC-32 of
//! everything before. A background thread folds full logs into a new snapshot.
//!
//! ```text
//! quorate checkpoint 1
//! seq 4711
//! snapshot 12
//! log 13 88211
//! crc32c 9ab0c1d2
//! ```

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use crate::storage::StorageError;

const FILE: &str = "CHECKPOINT";
const FILE_TEMPORARY: &str = "CHECKPOINT.tmp";
const HEAD: &str = "quorate checkpoint 1";

/// Where sled keeps its settings, and how long they are without their checksum.
const SETTINGS: &str = "durability_cookie";
const SETTINGS_BYTES: usize = 60;

/// Where sled keeps its metadata below its own directory.
const METADATA: &str = "metadata";

/// What sled's metadata folder holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Files {
    /// The newest snapshot.
    snapshot: Option<u64>,
    /// Id and length of the logs after it, by id.
    logs: Vec<(u64, u64)>,
}

/// A durable note of what sled held after a flush.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manifest {
    seq: u64,
    files: Files,
}

impl Manifest {
    /// Notes that the database in `database_dir` holds every commit up to `seq` durably.
    ///
    /// Must not run while a flush does.
    pub(super) fn observe(database_dir: &Path, seq: u64) -> io::Result<Manifest> {
        Ok(Manifest { seq, files: Files::list(database_dir)? })
    }

    /// Makes this the note in `dir`, durably.
    pub(super) fn store(&self, dir: &Path) -> io::Result<()> {
        let temporary = dir.join(FILE_TEMPORARY);
        let mut file = File::create(&temporary)?;
        file.write_all(self.encode().as_bytes())?;
        fail::fail_point!("note_before_sync");
        file.sync_all()?;
        fail::fail_point!("note_before_name");
        fs::rename(&temporary, dir.join(FILE))?;
        fail::fail_point!("note_after_name");
        File::open(dir)?.sync_all()
    }

    /// The note in `dir`, if there is one.
    pub(super) fn load(dir: &Path) -> Result<Option<Manifest>, StorageError> {
        let path = dir.join(FILE);
        let action = || format!("read {}", path.display());
        match fs::read_to_string(&path) {
            Ok(text) => match Manifest::decode(&text) {
                Some(manifest) => Ok(Some(manifest)),
                None => Err(StorageError::new(action(), damage("the file is damaged".to_owned()))),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StorageError::new(action(), error)),
        }
    }

    /// The last commit that the store must hold.
    pub(super) fn seq(&self) -> u64 {
        self.seq
    }

    /// Checks sled's metadata files in `database_dir` against the note, before sled opens them.
    pub(super) fn verify(&self, database_dir: &Path) -> io::Result<()> {
        let found = Files::list(database_dir)?;
        let Some(snapshot) = found.snapshot else {
            return Err(damage("its metadata snapshot is missing".to_owned()));
        };
        if self.files.snapshot.is_some_and(|noted| noted > snapshot) {
            return Err(damage(format!("its metadata snapshot {snapshot} is older than noted")));
        }
        for (after, (id, _)) in found.logs.iter().enumerate() {
            if *id != snapshot + 1 + after as u64 {
                let missing = snapshot + 1 + after as u64;
                return Err(damage(format!("its metadata log {missing} is missing, {id} is not")));
            }
        }
        for (id, length) in self.files.logs.iter().filter(|(id, _)| *id > snapshot) {
            verify_log(&database_dir.join(METADATA).join(log_name(*id)), *length)?;
        }
        Ok(())
    }

    fn encode(&self) -> String {
        let mut text = format!("{HEAD}\nseq {}\n", self.seq);
        if let Some(id) = self.files.snapshot {
            text += &format!("snapshot {id}\n");
        }
        for (id, length) in &self.files.logs {
            text += &format!("log {id} {length}\n");
        }
        let sum = crc32c::crc32c(text.as_bytes());
        text + &format!("crc32c {sum:08x}\n")
    }

    fn decode(text: &str) -> Option<Manifest> {
        let body = &text[..text.find("crc32c ")?];
        let mut manifest = Manifest { seq: 0, files: Files { snapshot: None, logs: Vec::new() } };
        let mut lines = body.lines();
        lines.next().filter(|head| *head == HEAD)?;
        for line in lines {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["seq", seq] => manifest.seq = seq.parse().ok()?,
                ["snapshot", id] => manifest.files.snapshot = Some(id.parse().ok()?),
                ["log", id, length] => {
                    manifest.files.logs.push((id.parse().ok()?, length.parse().ok()?));
                }
                _ => return None,
            }
        }
        // Encoding again proves the checksum, and that nothing was left out.
        (manifest.encode() == text).then_some(manifest)
    }
}

impl Files {
    fn list(database_dir: &Path) -> io::Result<Files> {
        loop {
            // A log may be folded into a snapshot while we look: look again.
            if let Some(files) = Files::list_once(&database_dir.join(METADATA))? {
                return Ok(files);
            }
        }
    }

    fn list_once(metadata_dir: &Path) -> io::Result<Option<Files>> {
        let mut files = Files { snapshot: None, logs: Vec::new() };
        let entries = match fs::read_dir(metadata_dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(files)),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| !name.ends_with(".tmp")) else { continue };
            let id = |text: &str| {
                let unknown = || damage(format!("unknown file metadata/{name}"));
                u64::from_str_radix(text, 16).ok().filter(|_| text.len() == 16).ok_or_else(unknown)
            };
            if let Some(text) = name.strip_prefix("snapshot_") {
                files.snapshot = files.snapshot.max(Some(id(text)?));
            } else if let Some(text) = name.strip_prefix("log_") {
                match entry.metadata() {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    metadata => files.logs.push((id(text)?, metadata?.len())),
                }
            }
        }
        files.logs.retain(|(id, _)| files.snapshot.is_none_or(|snapshot| *id > snapshot));
        files.logs.sort_unstable();
        Ok(Some(files))
    }
}

fn log_name(id: u64) -> String {
    format!("log_{id:016x}")
}

/// Checks that `path` begins with whole, undamaged frames of `length` bytes together.
fn verify_log(path: &Path, length: u64) -> io::Result<()> {
    let name = path.display();
    let bytes = match fs::read(path) {
        // sled makes the name of a new log durable with the first frame in it.
        Err(error) if error.kind() == io::ErrorKind::NotFound && length == 0 => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(damage(format!("{name} is missing")));
        }
        bytes => bytes?,
    };
    let Some(mut rest) = usize::try_from(length).ok().and_then(|length| bytes.get(..length)) else {
        return Err(damage(format!("{name} is shorter than noted")));
    };
    while !rest.is_empty() {
        match frame_bytes(rest) {
            Some(frame) => rest = &rest[frame..],
            None => return Err(damage(format!("{name} is damaged"))),
        }
    }
    Ok(())
}

/// The length of the undamaged frame that `bytes` begins with.
fn frame_bytes(bytes: &[u8]) -> Option<usize> {
    let head: [u8; 8] = bytes.get(..8)?.try_into().ok()?;
    let mut length = [0; 8];
    length[..6].copy_from_slice(&head[..6]);
    let sum = u16::from_le_bytes([head[6], head[7]]);
    if crc32fast::hash(&head[..6]) as u16 != sum {
        return None;
    }
    let end = usize::try_from(u64::from_le_bytes(length)).ok()?.checked_add(8)?;
    let sum: [u8; 4] = bytes.get(end..end.checked_add(4)?)?.try_into().ok()?;
    (crc32fast::hash(&bytes[..end]) ^ 0xAF == u32::from_le_bytes(sum)).then_some(end + 4)
}

/// Removes sled's settings from a store that lost its power while it was made.
///
/// sled writes them without a sync, and refuses to open when they are torn. As long as there is no
/// note beside the store it was never opened to the end and holds nothing; sled makes them again.
pub(super) fn forget_torn_settings(database_dir: &Path) -> io::Result<()> {
    let path = database_dir.join(SETTINGS);
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        bytes => bytes?,
    };
    let whole = bytes.split_last_chunk::<4>().is_some_and(|(settings, sum)| {
        settings.len() == SETTINGS_BYTES && (crc32fast::hash(settings) ^ 0xAF).to_le_bytes() == *sum
    });
    if whole { Ok(()) } else { fs::remove_file(&path) }
}

/// Makes sled's metadata folder fit for recovery; to be called before every open.
///
/// If sled is killed while it recovers, after it has removed the old logs and before it has made a
/// new one, the next recovery writes its new snapshot under the name of the old one and then
/// removes "the old one": everything is lost, and found out only at the open after that. An empty
/// log gives the new snapshot another name.
pub(super) fn prepare(database_dir: &Path) -> io::Result<()> {
    let files = Files::list(database_dir)?;
    if let (Some(snapshot), true) = (files.snapshot, files.logs.is_empty()) {
        let metadata_dir = database_dir.join(METADATA);
        fail::fail_point!("prepare_before_log");
        File::create_new(metadata_dir.join(log_name(snapshot + 1)))?;
        fail::fail_point!("prepare_after_log");
        File::open(metadata_dir)?.sync_all()?;
    }
    Ok(())
}

/// Makes what a killed process left in the page cache durable before anything is built on it.
///
/// sled wants the same and runs the program `sync`, which flushes every file system of the machine;
/// the server hides that program from it, see `main`.
pub(super) fn sync_files(database_dir: &Path) -> io::Result<()> {
    for directory in [METADATA, "slabs"].map(|name| database_dir.join(name)) {
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            File::open(entry?.path())?.sync_all()?;
        }
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// Makes the names below `dir` and `database_dir` durable: sled does not sync all of them itself.
pub(super) fn sync_names(dir: &Path, database_dir: &Path) -> io::Result<()> {
    File::open(database_dir.join(SETTINGS))?.sync_all()?;
    File::open(database_dir.join(METADATA))?.sync_all()?;
    File::open(database_dir)?.sync_all()?;
    File::open(dir)?.sync_all()?;
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

fn damage(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
