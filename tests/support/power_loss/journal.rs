//! The records that `file_layer.c` writes, read back.

use std::path::{Path, PathBuf};

/// The first bytes of every record.
const MAGIC: u32 = 0x4a52_5750;

/// Bytes in front of a record's path and data.
const HEAD_BYTES: usize = 32;

/// One thing that the program did. Files are named by their inode, directories by their path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// Made an empty file.
    Create {
        /// Its name.
        path: PathBuf,
        /// Its inode, which may have been that of a file that is gone.
        inode: u64,
    },
    /// Cut or lengthened a file.
    Size {
        /// Which file.
        inode: u64,
        /// Its new size.
        bytes: u64,
    },
    /// Wrote to a file.
    Write {
        /// Which file.
        inode: u64,
        /// Where.
        at: u64,
        /// What.
        data: Vec<u8>,
    },
    /// Began to make a file durable.
    SyncFile {
        /// Which file.
        inode: u64,
        /// What [`Record::Synced`] calls it.
        number: u64,
    },
    /// Began to make the names in a directory durable.
    SyncDir {
        /// Which directory.
        path: PathBuf,
        /// What [`Record::Synced`] calls it.
        number: u64,
    },
    /// The sync returned to the program.
    Synced {
        /// Which one.
        number: u64,
    },
    /// Made a directory.
    MakeDir(PathBuf),
    /// Gave a file another name, in one step.
    Rename(PathBuf, PathBuf),
    /// Took the name of a file away.
    Unlink(PathBuf),
    /// Removed an empty directory.
    RemoveDir(PathBuf),
    /// What the record before says did not happen, or a write did only up to `bytes`.
    Failed {
        /// How much of a write happened.
        bytes: u64,
    },
}

/// All whole records of `journal`: at its end there may be half of one that was never carried out.
///
/// Panics if the program did something that the layer does not understand.
pub(crate) fn parse(mut journal: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    while let Some((head, rest)) = journal.split_at_checked(HEAD_BYTES) {
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap());
        assert_eq!(word(0), MAGIC, "a record begins with its mark");
        let (path_bytes, data_bytes) = (word(24) as usize, word(28) as usize);
        let Some((path, rest)) = rest.split_at_checked(path_bytes) else { break };
        let Some((data, rest)) = rest.split_at_checked(data_bytes) else { break };
        records.push(record(word(4), (long(8), long(16)), text(path), data));
        journal = rest;
    }
    records
}

fn record(kind: u32, (inode, a): (u64, u64), path: &str, data: &[u8]) -> Record {
    match kind {
        1 => Record::Create { path: path.into(), inode },
        2 => Record::Size { inode, bytes: a },
        3 => Record::Write { inode, at: a, data: data.to_vec() },
        4 if inode == 0 => Record::SyncDir { path: path.into(), number: a },
        4 => Record::SyncFile { inode, number: a },
        5 => Record::Synced { number: a },
        6 => Record::MakeDir(path.into()),
        7 => Record::Rename(path.into(), Path::new(text(data)).into()),
        8 => Record::Unlink(path.into()),
        9 => Record::RemoveDir(path.into()),
        10 => Record::Failed { bytes: a },
        11 => panic!("the layer must learn what this does to files: {path}"),
        _ => panic!("unknown kind of record {kind}"),
    }
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).expect("paths of the tests are text")
}
