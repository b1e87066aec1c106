//! The files of a data directory besides the log, changed behind the member's back: it is refused,
//! or everything is there.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;

use crate::support::fuzz::fuzz;
use crate::upgrade::{folder, stored, unpack};

/// What is done to the files.
#[derive(Clone, PartialEq, Message)]
struct Damage {
    #[prost(message, repeated, tag = "1")]
    edits: Vec<Edit>,
}

#[derive(Clone, PartialEq, Message)]
struct Edit {
    /// Which file, in the order of their names.
    #[prost(uint32, tag = "1")]
    file: u32,
    #[prost(uint32, tag = "2")]
    kind: u32,
    #[prost(uint64, tag = "3")]
    at: u64,
    #[prost(bytes = "bytes", tag = "4")]
    bytes: Bytes,
}

impl Edit {
    fn apply(&self, files: &[PathBuf]) {
        let file = &files[self.file as usize % files.len()];
        let Ok(mut content) = fs::read(file) else { return };
        let at = usize::try_from(self.at).unwrap_or(usize::MAX) % (content.len() + 1);
        let end = (at + self.bytes.len()).min(content.len());
        match self.kind % 6 {
            0 => content[at..end].iter_mut().zip(&self.bytes).for_each(|(to, from)| *to ^= from),
            1 => content[at..end].copy_from_slice(&self.bytes[..end - at]),
            2 => content.truncate(at),
            3 => drop(content.splice(at..at, self.bytes.iter().copied())),
            4 => drop(content.drain(at..end)),
            _ => return drop(fs::remove_file(file)),
        }
        fs::write(file, content).unwrap();
    }
}

/// All files below `dir` but those of the log, by name.
fn files_below(dir: &Path, files: &mut Vec<PathBuf>) {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if !path.is_dir() {
            files.push(path);
        } else if path.file_name().unwrap() != "wal" {
            files_below(&path, files);
        }
    }
}

#[test]
fn fuzz_files() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let archive = folder().join("format-1/alone-alone.gz");
    let whole = tempfile::tempdir().unwrap();
    unpack(&archive, whole.path());
    let mut files = Vec::new();
    files_below(whole.path(), &mut files);
    let sizes: Vec<_> = files.iter().map(|file| fs::metadata(file).unwrap().len()).collect();
    let expected = runtime.block_on(stored(whole.path())).unwrap();
    // A flipped bit, a file cut in half, and a file gone; which file is drawn.
    let kinds = [(0, &b"\x10"[..]), (2, b""), (5, b"")];
    let samples = kinds.map(|(kind, bytes)| {
        let file = fastrand::usize(..files.len());
        let (at, bytes) = (sizes[file] / 2, Bytes::from_static(bytes));
        Damage { edits: vec![Edit { file: file as u32, kind, at, bytes }] }.encode_to_vec()
    });
    fuzz("files", "--test it fuzz_files", &samples, |input, _| {
        let Ok(damage) = Damage::decode(input) else { return };
        let dir = tempfile::tempdir().unwrap();
        unpack(&archive, dir.path());
        let mut files = Vec::new();
        files_below(dir.path(), &mut files);
        damage.edits.iter().take(20).for_each(|edit| edit.apply(&files));
        if let Ok(found) = runtime.block_on(stored(dir.path())) {
            assert_eq!(found, expected, "damage was not noticed");
        }
    });
}
