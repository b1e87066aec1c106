//! Power loss: a program runs, is killed, and finds on its disk what a real disk could have kept.
//!
//! ```text
//!  member ──► file_layer.so ──► files below the root
//!                  └──────────► journal: every change and sync, in order
//!  kill -9:   Disk::of(files before) + journal  ──cut──►  files after
//! ```
//!
//! `file_layer.c` is compiled by the test with the linker's compiler and loaded in front of the C
//! library with `LD_PRELOAD`. It records what is written, named, removed and synced. From that
//! [`disk::Disk`] knows what was durable when the process died, and draws what else got to the
//! disk. A sync never reaches the real disk: it only takes a random time.
//!
//! After each run the model without any loss must be, to the byte, what really lies there. So a
//! call that the layer does not know fails the test.
//!
//! [`PowerLine`] is all that a test needs: one for each program.

pub(crate) mod disk;
pub(crate) mod journal;
pub(crate) mod members;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use fastrand::Rng;

use self::disk::{Disk, Image, Loss, read_image, write_image};

/// What the program does to files below one directory, and what is left when its power is lost.
#[derive(Debug)]
pub(crate) struct PowerLine {
    root: PathBuf,
    journal: PathBuf,
    sync_us: u32,
    disk: Disk,
    /// What was there when the program was started last, and before that, to be looked at after a
    /// failure.
    started_on: [Image; 2],
    /// Part of the names of files whose syncs the disk ignores.
    lie: Option<&'static str>,
}

impl PowerLine {
    /// For a program that keeps its files below the directory `root`, which exists; records go to
    /// the file `journal` outside of it, and each sync takes up to `sync_us` microseconds.
    pub(crate) fn new(root: &Path, journal: &Path, sync_us: u32) -> PowerLine {
        let root = root.canonicalize().expect("the root exists");
        let (disk, started_on) = (Disk::of(&root), [read_image(&root), Image::new()]);
        PowerLine { root, journal: journal.to_owned(), sync_us, disk, started_on, lie: None }
    }

    /// From now on the disk says that it has synced what has `part` in its path, and has not.
    pub(crate) fn lie_about(&mut self, part: &'static str) {
        self.lie = Some(part);
    }

    /// The variables that the program must be started with.
    pub(crate) fn environment(&self) -> Vec<(OsString, OsString)> {
        let variable = |name: &str, value: OsString| (OsString::from(name), value);
        vec![
            variable("LD_PRELOAD", layer().into()),
            variable("QUORATE_POWER_ROOT", self.root.clone().into()),
            variable("QUORATE_POWER_JOURNAL", self.journal.clone().into()),
            variable("QUORATE_POWER_SYNC_US", self.sync_us.to_string().into()),
        ]
    }

    /// To be called once when the program has ended: takes in what it did.
    pub(crate) fn ended(&mut self) {
        let records = journal::parse(&fs::read(&self.journal).unwrap_or_default());
        let lie = self.lie;
        let lies = |path: &Path| lie.is_some_and(|part| path.to_str().unwrap().contains(part));
        self.disk.replay(&records, &lies);
        self.disk.assert_complete(&self.root, records.last());
    }

    /// What may be on the disk if the power was lost when the program ended.
    pub(crate) fn draw(&self, loss: Loss, rng: &mut Rng) -> Image {
        self.disk.cut(loss, rng)
    }

    /// What lies on the disk now.
    pub(crate) fn image(&self) -> Image {
        read_image(&self.root)
    }

    /// Replaces all files by those of `image`, and makes them durable; then the program may be
    /// started again.
    pub(crate) fn put(&mut self, image: Image) {
        write_image(&self.root, &image);
        self.started_on.swap(0, 1);
        self.started_on[0] = image;
        self.disk = Disk::of(&self.root);
        if self.journal.exists() {
            let before = self.journal.with_extension("journal-before");
            fs::rename(&self.journal, before).expect("put the journal away");
        }
    }

    /// When the program was killed: cuts the power of its disk and puts in place what is left.
    pub(crate) fn cut(&mut self, loss: Loss, rng: &mut Rng) {
        self.ended();
        let left = self.draw(loss, rng);
        self.put(left);
    }
}

impl Drop for PowerLine {
    /// After a failure keeps what the program was started on last.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (image, name) in self.started_on.iter().zip(["started-on", "started-on-before"]) {
                let kept = self.journal.with_extension(name);
                let moved = |path: &Path| kept.join(path.strip_prefix(&self.root).unwrap());
                let image = image.iter().map(|(path, node)| (moved(path), node.clone()));
                write_image(&kept, &image.collect());
            }
        }
    }
}

/// The compiled layer, made once by each process of tests.
fn layer() -> &'static Path {
    static LAYER: OnceLock<PathBuf> = OnceLock::new();
    LAYER.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let path = dir.join("file_layer.so");
        // Another process of tests may be at it too.
        let unfinished = dir.join(format!("file_layer.{}.so", std::process::id()));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/power_loss/file_layer.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o"]).arg(&unfinished);
        let output = compiler.args([source, "-ldl", "-lpthread"]).output();
        let output = output.expect("Rust links with cc, so it is there");
        let said = output.stderr.escape_ascii();
        assert!(output.status.success(), "cc cannot compile {source}: {said}");
        fs::rename(&unfinished, &path).expect("name the layer");
        path
    })
}
