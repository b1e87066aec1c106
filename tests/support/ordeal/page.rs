//! What `meddle.c` does to one member: the page that it looks at, written here.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where in the page the numbers stand.
const CLOCK_AT: u64 = 0;
const FLUSH_AT: u64 = 8;
const PAGE_BYTES: u64 = 16;

/// The page of one member. It must never get shorter while a member runs.
#[derive(Debug)]
pub(crate) struct Page {
    path: PathBuf,
    file: File,
}

impl Page {
    /// A page on which nothing is meddled with.
    pub(crate) fn new(dir: &Path) -> Page {
        let path = dir.join("page");
        let file = File::create(&path).expect("make a file");
        file.set_len(PAGE_BYTES).expect("make a file longer");
        Page { path, file }
    }

    /// The command that loads `library` with this page into what follows.
    pub(crate) fn within(&self, library: &Path) -> Vec<OsString> {
        let setting = |name: &str, path: &Path| {
            let mut setting = OsString::from(name);
            setting.push(path);
            setting
        };
        let (load, page) =
            (setting("LD_PRELOAD=", library), setting("QUORATE_MEDDLE=", &self.path));
        vec!["env".into(), load, page]
    }

    /// Shifts the wall clock by `milliseconds` from the machine's.
    pub(crate) fn shift_clock(&self, milliseconds: i64) {
        self.write(CLOCK_AT, milliseconds * 1_000_000);
    }

    /// Makes every flush take `longer`.
    pub(crate) fn slow_flushes(&self, longer: Duration) {
        self.write(FLUSH_AT, i64::try_from(longer.as_nanos()).expect("not for years"));
    }

    fn write(&self, at: u64, number: i64) {
        self.file.write_all_at(&number.to_ne_bytes(), at).expect("write a page");
    }
}
