//! A model of a disk: what was promised to be durable, and what may or may not have got there.
//!
//! It promises no more than POSIX: the bytes and the size of a file are durable after a sync of the
//! file, its name after a sync of the directory, and nothing orders two changes but a sync in
//! between. Real file systems promise more; a program that relies on it is found out here.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fastrand::Rng;

use super::journal::Record;

/// What a disk writes in one step.
const SECTOR_BYTES: u64 = 512;

/// What a power loss does to changes that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// All are gone.
    Everything,
    /// All got to the disk in time: as if only the process had been killed.
    Nothing,
    /// The disk got them in order, up to some moment.
    Tail,
    /// Any of them, in any order, and of writes any sectors.
    Any,
}

impl Loss {
    /// One of them.
    pub(crate) fn draw(rng: &mut Rng) -> Loss {
        match rng.u8(..10) {
            0..3 => Loss::Everything,
            3 => Loss::Nothing,
            4..6 => Loss::Tail,
            _ => Loss::Any,
        }
    }
}

type FileId = usize;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Dir,
    File(FileId),
}

/// A change of bytes that is not durable yet, and the number of its record.
#[derive(Clone, Debug)]
enum Bytes {
    Size(u64),
    Write(u64, Vec<u8>),
}

#[derive(Clone, Debug, Default)]
struct File {
    durable: Vec<u8>,
    pending: Vec<(usize, Bytes)>,
}

/// A change of names that is not durable yet.
#[derive(Clone, Debug)]
enum Name {
    Set(PathBuf, Node),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf, Node),
}

impl Name {
    fn dir(&self) -> &Path {
        let (Name::Set(path, _) | Name::Remove(path) | Name::Rename(path, ..)) = self;
        path.parent().expect("below the root")
    }
}

type Names = BTreeMap<PathBuf, Node>;

/// The content of a directory: `None` for directories in it.
pub(crate) type Image = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// See the head of this file.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    root: PathBuf,
    files: Vec<File>,
    inodes: HashMap<u64, FileId>,
    /// The names as the program sees them.
    seen: Names,
    durable: Names,
    pending: Vec<(usize, Name)>,
    syncs: HashMap<u64, (usize, Synced)>,
    /// Number of the next record.
    next: usize,
}

#[derive(Clone, Debug)]
enum Synced {
    File(FileId),
    Dir(PathBuf),
}

impl Disk {
    /// A disk on which everything below `root` is durable.
    pub(crate) fn of(root: &Path) -> Disk {
        let mut disk = Disk {
            root: root.to_owned(),
            files: Vec::new(),
            inodes: HashMap::new(),
            seen: Names::new(),
            durable: Names::new(),
            pending: Vec::new(),
            syncs: HashMap::new(),
            next: 0,
        };
        for (path, content) in read_image(root) {
            let node = match content {
                None => Node::Dir,
                Some(durable) => {
                    let inode = fs::metadata(&path).expect("it was read just now").ino();
                    let id = disk.new_file(inode);
                    disk.files[id].durable = durable;
                    Node::File(id)
                }
            };
            disk.durable.insert(path, node);
        }
        disk.seen = disk.durable.clone();
        disk
    }

    fn new_file(&mut self, inode: u64) -> FileId {
        self.files.push(File::default());
        self.inodes.insert(inode, self.files.len() - 1);
        self.files.len() - 1
    }

    /// Takes in what the program did. Syncs for which `lies` holds are not carried out.
    pub(crate) fn replay(&mut self, records: &[Record], lies: &dyn Fn(&Path) -> bool) {
        for (at, record) in records.iter().enumerate() {
            if let Some(Record::Failed { bytes: done }) = records.get(at + 1) {
                // Of a failed change nothing happened, of a short write its first bytes.
                if let Record::Write { inode, at, data } = record {
                    let data = data[..*done as usize].to_vec();
                    self.take(&Record::Write { inode: *inode, at: *at, data }, lies);
                }
            } else {
                self.take(record, lies);
            }
            self.next += 1;
        }
    }

    fn take(&mut self, record: &Record, lies: &dyn Fn(&Path) -> bool) {
        match record {
            Record::Create { path, inode } => {
                let id = self.new_file(*inode);
                self.name(Name::Set(path.clone(), Node::File(id)));
            }
            Record::Size { inode, bytes } => self.bytes(*inode, Bytes::Size(*bytes)),
            Record::Write { inode, at, data } => {
                self.bytes(*inode, Bytes::Write(*at, data.clone()));
            }
            Record::SyncFile { inode, number } => {
                let id = self.file(*inode);
                let path = self.seen.iter().find(|(_, node)| **node == Node::File(id));
                if !path.is_some_and(|(path, _)| lies(path)) {
                    self.syncs.insert(*number, (self.next, Synced::File(id)));
                }
            }
            Record::SyncDir { path, number } => {
                if !lies(path) {
                    self.syncs.insert(*number, (self.next, Synced::Dir(path.clone())));
                }
            }
            Record::Synced { number } => self.synced(*number),
            Record::MakeDir(path) => self.name(Name::Set(path.clone(), Node::Dir)),
            Record::Rename(from, to) => {
                assert_eq!(from.parent(), to.parent(), "no file moves to another directory");
                let node = self.seen[from];
                assert_ne!(node, Node::Dir, "no directory is renamed");
                self.name(Name::Rename(from.clone(), to.clone(), node));
            }
            Record::Unlink(path) | Record::RemoveDir(path) => self.name(Name::Remove(path.clone())),
            Record::Failed { .. } => {}
        }
    }

    fn file(&self, inode: u64) -> FileId {
        *self.inodes.get(&inode).unwrap_or_else(|| panic!("inode {inode} was never named"))
    }

    fn bytes(&mut self, inode: u64, change: Bytes) {
        let id = self.file(inode);
        self.files[id].pending.push((self.next, change));
    }

    fn name(&mut self, change: Name) {
        apply_name(&mut self.seen, &change);
        self.pending.push((self.next, change));
    }

    /// A sync has returned: what was changed before it began is durable.
    fn synced(&mut self, number: u64) {
        let Some((begun, what)) = self.syncs.remove(&number) else { return };
        match what {
            Synced::File(id) => {
                let File { durable, pending } = &mut self.files[id];
                let count = pending.iter().take_while(|(at, _)| *at < begun).count();
                for (_, change) in pending.drain(..count) {
                    apply_bytes(durable, &change);
                }
            }
            Synced::Dir(dir) => {
                let is_durable = |(at, name): &(usize, Name)| *at < begun && name.dir() == dir;
                for (_, change) in self.pending.iter().filter(|change| is_durable(change)) {
                    apply_name(&mut self.durable, change);
                }
                self.pending.retain(|change| !is_durable(change));
            }
        }
    }

    /// What is on the disk when the power is lost now.
    pub(crate) fn cut(&self, loss: Loss, rng: &mut Rng) -> Image {
        let moment = rng.usize(..=self.next);
        let mut names = self.durable.clone();
        let chance = [0.1, 0.5, 0.9][rng.usize(..3)];
        for (at, change) in &self.pending {
            let is_kept = match loss {
                Loss::Everything => false,
                Loss::Nothing => true,
                Loss::Tail => *at < moment,
                Loss::Any => rng.f64() < chance,
            };
            if is_kept {
                apply_name(&mut names, change);
            }
        }
        let mut image = Image::new();
        for (path, node) in &names {
            // What lies in a directory that was lost is lost; parents come before their children.
            let parent = path.parent().expect("below the root");
            let is_there = parent == self.root || image.get(parent).is_some_and(Option::is_none);
            if is_there {
                let content = match node {
                    Node::Dir => None,
                    Node::File(id) => Some(self.files[*id].cut(loss, moment, rng)),
                };
                image.insert(path.clone(), content);
            }
        }
        image
    }

    /// Panics unless the files below `root` are what this disk says, as the layer would have missed
    /// a change otherwise. The last one may have been recorded and not made, or made in part.
    pub(crate) fn assert_complete(&self, root: &Path, last: Option<&Record>) {
        let (expected, found) = (self.cut(Loss::Nothing, &mut Rng::with_seed(0)), read_image(root));
        let last_inode = match last {
            Some(Record::Write { inode, .. } | Record::Size { inode, .. }) => Some(*inode),
            _ => None,
        };
        let is_last = |path: &Path| match last {
            Some(Record::Rename(from, to)) => path == from || path == to,
            Some(Record::Unlink(name) | Record::RemoveDir(name) | Record::MakeDir(name)) => {
                path == name
            }
            _ => {
                last_inode.is_some() && fs::metadata(path).map(|file| file.ino()).ok() == last_inode
            }
        };
        for (path, content) in &expected {
            match found.get(path) {
                _ if is_last(path) => {}
                None => panic!("the layer has missed the end of {path:?}"),
                Some(found) => {
                    assert!(found == content, "the layer has missed a change of {path:?}")
                }
            }
        }
        for (path, content) in &found {
            // A file is recorded after it was made.
            let is_empty = content.as_ref().is_some_and(Vec::is_empty);
            let is_known = expected.contains_key(path) || is_last(path) || is_empty;
            assert!(is_known, "the layer has missed the making of {path:?}");
        }
    }
}

impl File {
    fn cut(&self, loss: Loss, moment: usize, rng: &mut Rng) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        let chance = [0.1, 0.5, 0.9][rng.usize(..3)];
        for (at, change) in &self.pending {
            match loss {
                Loss::Everything => {}
                Loss::Nothing => apply_bytes(&mut bytes, change),
                Loss::Tail if *at < moment => apply_bytes(&mut bytes, change),
                Loss::Tail => {}
                Loss::Any if rng.f64() < chance => match change {
                    Bytes::Write(at, data) if rng.bool() => tear(&mut bytes, *at, data, rng),
                    whole => apply_bytes(&mut bytes, whole),
                },
                // The size of a file may get to the disk before what lies in it.
                Loss::Any => match change {
                    Bytes::Write(at, data) if rng.u8(..4) == 0 => {
                        lengthen(&mut bytes, at + data.len() as u64);
                    }
                    _ => {}
                },
            }
        }
        bytes
    }
}

fn apply_name(names: &mut Names, change: &Name) {
    match change {
        Name::Set(path, node) => {
            names.insert(path.clone(), *node);
        }
        Name::Remove(path) => {
            names.remove(path);
        }
        Name::Rename(from, to, node) => {
            // Unless another change of the old name was kept in between.
            if names.get(from) == Some(node) {
                names.remove(from);
            }
            names.insert(to.clone(), *node);
        }
    }
}

fn apply_bytes(bytes: &mut Vec<u8>, change: &Bytes) {
    match change {
        Bytes::Size(size) => bytes.resize(*size as usize, 0),
        Bytes::Write(at, data) => {
            lengthen(bytes, at + data.len() as u64);
            bytes[*at as usize..][..data.len()].copy_from_slice(data);
        }
    }
}

fn lengthen(bytes: &mut Vec<u8>, size: u64) {
    bytes.resize(bytes.len().max(size as usize), 0);
}

/// Writes some of the sectors.
fn tear(bytes: &mut Vec<u8>, at: u64, data: &[u8], rng: &mut Rng) {
    let end = at + data.len() as u64;
    lengthen(bytes, end);
    let mut from = at;
    while from < end {
        let to = ((from / SECTOR_BYTES + 1) * SECTOR_BYTES).min(end);
        if rng.bool() {
            let sector = &data[(from - at) as usize..(to - at) as usize];
            bytes[from as usize..to as usize].copy_from_slice(sector);
        }
        from = to;
    }
}

/// Everything below `root`.
pub(crate) fn read_image(root: &Path) -> Image {
    let mut image = Image::new();
    let entries = fs::read_dir(root).unwrap_or_else(|error| panic!("list {root:?}: {error}"));
    for entry in entries {
        let path = entry.expect("a listed file").path();
        if path.is_dir() {
            image.append(&mut read_image(&path));
            image.insert(path, None);
        } else {
            let content = fs::read(&path).unwrap_or_else(|error| panic!("read {path:?}: {error}"));
            image.insert(path, Some(content));
        }
    }
    image
}

/// Replaces everything below `root`.
pub(crate) fn write_image(root: &Path, image: &Image) {
    if root.exists() {
        fs::remove_dir_all(root).expect("remove what was there");
    }
    fs::create_dir(root).expect("make the directory");
    for (path, content) in image {
        match content {
            None => fs::create_dir(path).expect("make a directory"),
            Some(content) => fs::write(path, content).expect("write a file"),
        }
    }
}
