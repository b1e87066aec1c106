//! What a data directory accepts, refuses and keeps over crashes between two steps.

use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::*;

const ME: Identity = Identity { cluster_id: ClusterId(0xc1), member_id: MemberId(0xa1) };
const OTHER: Identity = Identity { cluster_id: ClusterId(0xc1), member_id: MemberId(0xb2) };

fn open(dir: &TempDir) -> Result<DataDir, DataDirError> {
    DataDir::open(&dir.path().join("data"), None)
}

fn claimed(dir: &TempDir) -> DataDir {
    let mut opened = open(dir).unwrap();
    opened.claim(ME).unwrap();
    opened
}

fn text_of<T: std::fmt::Debug>(result: Result<T, DataDirError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn new_directory_is_private_and_remembers_its_member() {
    let dir = TempDir::new().unwrap();
    let first = open(&dir).unwrap();
    assert_eq!(first.identity(), None);
    assert!(first.wal_dir().is_dir());
    assert!(first.current_state_dir().ends_with("data/member/state/state-1"));
    for path in ["data", "data/member", "data/member/wal", "data/member/state/state-1"] {
        let mode = dir.path().join(path).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{path}");
    }
    drop(first);
    drop(claimed(&dir));
    let mut again = open(&dir).unwrap();
    assert_eq!(again.identity(), Some(ME));
    again.claim(ME).unwrap();
}

#[test]
fn missing_directories_above_are_created() {
    let dir = TempDir::new().unwrap();
    let deep = dir.path().join("a/b/c");
    let data = DataDir::open(&deep, Some(&deep.join("wal/here"))).unwrap();
    assert!(data.wal_dir().is_dir());
    assert_eq!(dir.path().join("a/b").metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn second_user_is_refused_with_the_pid_of_the_first() {
    let dir = TempDir::new().unwrap();
    let held = open(&dir).unwrap();
    let text = text_of(open(&dir));
    assert!(text.contains("in use by another process"), "{text}");
    assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
    drop(held);
    open(&dir).unwrap();
}

#[test]
fn directory_of_another_member_is_refused() {
    let dir = TempDir::new().unwrap();
    let text = text_of(claimed(&dir).claim(OTHER));
    assert!(text.contains("belongs to member a1 of cluster c1, not to member b2"), "{text}");
}

#[test]
fn directory_of_etcd_is_refused() {
    let dir = TempDir::new().unwrap();
    fs::create_dir_all(dir.path().join("data/member/snap")).unwrap();
    fs::write(dir.path().join("data/member/snap/db"), b"bolt").unwrap();
    assert!(text_of(open(&dir)).contains("holds data of etcd"));
    assert!(!dir.path().join("data/member/LOCK").exists(), "nothing is written into it");
}

#[test]
fn file_in_place_of_the_directory_is_refused() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("data"), b"").unwrap();
    let text = text_of(open(&dir));
    assert!(text.contains("make it a directory that this user may read and write"), "{text}");
}

#[test]
fn newer_format_is_refused_before_anything_else_is_read() {
    let dir = TempDir::new().unwrap();
    drop(claimed(&dir));
    fs::write(dir.path().join("data/member/IDENTITY"), "quorate-data 2\nsomething new\n").unwrap();
    let text = text_of(open(&dir));
    assert!(text.contains("data format 2") && text.contains("start a newer Quorate"), "{text}");
}

#[test]
fn every_changed_byte_of_the_identity_is_noticed() {
    let dir = TempDir::new().unwrap();
    drop(claimed(&dir));
    let path = dir.path().join("data/member/IDENTITY");
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&path, &bad).unwrap();
        assert!(open(&dir).is_err(), "byte {at} of {}", good.escape_ascii());
    }
    for len in 0..good.len() {
        fs::write(&path, &good[..len]).unwrap();
        assert!(open(&dir).is_err(), "cut at {len}");
    }
    fs::write(&path, &good).unwrap();
    open(&dir).unwrap();
}

#[test]
fn log_without_identity_and_identity_without_log_are_refused() {
    let dir = TempDir::new().unwrap();
    drop(claimed(&dir));
    let member = dir.path().join("data/member");
    fs::write(member.join("wal/1.wal"), b"data").unwrap();
    drop(open(&dir).unwrap());
    fs::rename(member.join("IDENTITY"), member.join("hidden")).unwrap();
    assert!(text_of(open(&dir)).contains("no file IDENTITY says whose it is"));
    fs::rename(member.join("hidden"), member.join("IDENTITY")).unwrap();
    fs::remove_dir_all(member.join("wal")).unwrap();
    assert!(text_of(open(&dir)).contains("the log is missing"));
}

#[test]
fn log_on_its_own_disk_is_guarded_too() {
    let dir = TempDir::new().unwrap();
    let (data, wal) = (dir.path().join("data"), dir.path().join("wal"));
    let mut first = DataDir::open(&data, Some(&wal)).unwrap();
    first.claim(ME).unwrap();
    assert_eq!(first.wal_dir(), wal.join("wal"));
    drop(first);

    assert!(text_of(DataDir::open(&data, None)).contains("was made with --wal-dir"));
    let elsewhere = dir.path().join("elsewhere");
    let text = text_of(DataDir::open(&data, Some(&elsewhere)));
    assert!(text.contains("holds no log of this member"), "{text}");
    let mut thief = DataDir::open(&dir.path().join("thief"), Some(&wal)).unwrap();
    assert!(text_of(thief.claim(OTHER)).contains("belongs to member a1"));
    drop(thief);
    assert_eq!(DataDir::open(&data, Some(&wal)).unwrap().identity(), Some(ME));

    let plain = TempDir::new().unwrap();
    drop(claimed(&plain));
    let text = text_of(DataDir::open(&plain.path().join("data"), Some(&wal)));
    assert!(text.contains("was made without --wal-dir"), "{text}");
}

#[test]
fn flip_moves_the_pointer_and_removal_follows() {
    let dir = TempDir::new().unwrap();
    let mut data = claimed(&dir);
    let old = data.current_state_dir();
    let (first, second) = (data.new_staging_dir().unwrap(), data.new_staging_dir().unwrap());
    assert_ne!(first.path(), second.path(), "each snapshot gets a directory of its own");
    let flipped = second.path().to_owned();
    fs::write(flipped.join("f"), b"second").unwrap();
    data.flip_to(second).unwrap();
    assert_eq!(data.current_state_dir(), flipped);
    assert!(flipped.join("f").exists(), "the files keep their place");
    assert!(old.exists(), "the old state may still be open");
    data.remove_stale_states().unwrap();
    assert!(!old.exists());
    assert!(first.path().exists(), "who holds it may adopt it yet");
    drop((data, first));
    assert_eq!(open(&dir).unwrap().current_state_dir(), flipped);
}

#[test]
fn crash_before_the_pointer_moves_keeps_the_old_state() {
    let dir = TempDir::new().unwrap();
    let data = claimed(&dir);
    fs::write(data.current_state_dir().join("f"), b"old").unwrap();
    let state = dir.path().join("data/member/state");
    // As after a crash in `flip_to`, before the new CURRENT has its name.
    let staged = ["state-2", "state-3"].map(|name| state.join(name));
    staged.iter().for_each(|path| fs::create_dir(path).unwrap());
    fs::write(state.join("CURRENT.tmp"), "stat").unwrap();
    drop(data);
    let data = open(&dir).unwrap();
    assert_eq!(fs::read(data.current_state_dir().join("f")).unwrap(), b"old");
    assert!(staged.iter().all(|path| !path.exists()));
}

/// Each snapshot that broke off kept its directory until the next start: they filled the disk.
#[test]
fn staging_directory_that_is_not_adopted_goes_when_it_is_dropped() {
    let dir = TempDir::new().unwrap();
    let mut data = claimed(&dir);
    let state = dir.path().join("data/member/state");
    let names = || {
        let entries = fs::read_dir(&state).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    for _ in 0..3 {
        let staging = data.new_staging_dir().unwrap();
        fs::write(staging.path().join("f"), b"half").unwrap();
        drop(staging);
        assert_eq!(names(), ["CURRENT", "state-1"]);
    }
    // Whether CURRENT names it is not known after an error of the flip.
    let staging = data.new_staging_dir().unwrap();
    fs::create_dir(state.join("CURRENT.tmp")).unwrap();
    data.flip_to(staging).unwrap_err();
    assert_eq!(names(), ["CURRENT", "CURRENT.tmp", "state-1", "state-2"]);
}

#[test]
fn missing_pointer_is_healed_only_while_nobody_owns_the_directory() {
    let dir = TempDir::new().unwrap();
    drop(open(&dir).unwrap());
    let current = dir.path().join("data/member/state/CURRENT");
    fs::remove_file(&current).unwrap();
    drop(claimed(&dir));
    fs::remove_file(&current).unwrap();
    assert!(text_of(open(&dir)).contains("CURRENT is damaged (the file is missing)"));
    fs::write(&current, "state-9\n").unwrap();
    assert!(text_of(open(&dir)).contains("the state directory it names is missing"));
}
