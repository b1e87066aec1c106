//! A small disk: ext4 in a file, mounted by a loop device, with ballast to fill it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use super::machine::run;

/// Less free space than this is as good as none.
const GRAIN_BYTES: u64 = 64 << 10;

/// A mounted disk. Dropping it takes it away.
#[derive(Debug)]
pub(crate) struct Disk {
    place: PathBuf,
}

impl Disk {
    /// A new disk of `mib` MiB, whose files are all below `dir`; or why there can be none.
    pub(crate) fn mount(dir: &Path, mib: u64) -> Result<Disk, String> {
        let (image, place) = (dir.join("image"), dir.join("disk"));
        fs::create_dir_all(&place).expect("make a directory");
        let file = File::create(&image).expect("make a file");
        file.set_len(mib << 20).expect("a file with a hole");
        // No part kept for root, who we are.
        let make = ["mkfs.ext4".as_ref(), "-q".as_ref(), "-m".as_ref(), "0".as_ref()];
        run(&[&make[..], &[image.as_os_str()]].concat())?;
        let mount = ["mount".as_ref(), "-o".as_ref(), "loop".as_ref()];
        run(&[&mount[..], &[image.as_os_str(), place.as_os_str()]].concat())?;
        Ok(Disk { place })
    }

    /// Where files can be put.
    pub(crate) fn place(&self) -> &Path {
        &self.place
    }

    /// Takes all space but about `left` bytes.
    pub(crate) fn fill(&self, left: u64) {
        for number in 0_u64.. {
            let all = statvfs(&self.place).expect("a mounted disk tells its space");
            let free = all.f_bavail * all.f_frsize;
            let Some(bytes) = free.checked_sub(left + GRAIN_BYTES) else { return };
            // A file more, since others take space at the same time; half, if all is too much.
            let bytes = if number == 0 { bytes } else { bytes / 2 };
            let ballast = self.ballast().join(number.to_string());
            fs::create_dir_all(self.ballast()).ok();
            let Ok(file) = File::create(ballast) else { return };
            if bytes < GRAIN_BYTES || number > 20 {
                return;
            }
            fallocate(&file, FallocateFlags::empty(), 0, bytes).ok();
        }
    }

    /// Gives the space back; false if it was not taken.
    pub(crate) fn free(&self) -> bool {
        let was_full = self.ballast().exists();
        if was_full {
            fs::remove_dir_all(self.ballast()).expect("remove the ballast");
        }
        was_full
    }

    fn ballast(&self) -> PathBuf {
        self.place.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, because a member may still be ending.
        run(&["umount".as_ref(), "-l".as_ref(), self.place.as_os_str()]).ok();
    }
}
