//! Golden scripts on a state: each shows commands and what came of them, so that it reads as a story.
//!
//! `UPDATE_GOLDENFILES=1` writes the outputs anew; say in the commit why they changed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::script;

fn scripts(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts").join(folder);
    let mut files: Vec<_> =
        fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

fn run(folder: &str) {
    for file in scripts(folder) {
        let before = fs::read_to_string(&file).unwrap();
        let after = script::run(&before);
        if std::env::var("UPDATE_GOLDENFILES").is_ok() {
            fs::write(&file, after).unwrap();
        } else {
            assert_eq!(before, after, "{} tells another story now", file.display());
        }
    }
}

#[test]
fn mvcc() {
    run("mvcc");
}

#[test]
fn range() {
    run("range");
}

#[test]
fn txn() {
    run("txn");
}

#[test]
fn lease() {
    run("lease");
}

#[test]
fn compact() {
    run("compact");
}
