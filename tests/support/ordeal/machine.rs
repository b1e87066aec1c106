//! The machine around the members: commands, C programs, and what a run that was killed left behind.
//!
//! Everything that outlives a process carries the id of the process that made it, so that the next
//! run can tell what belongs to nobody any more.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Scratch directories and namespaces begin so; the id of the process that made them follows.
const PREFIX: &str = "quorate-ordeal-";

/// Bridges begin so; the process is told in their alias.
pub(crate) const BRIDGE_PREFIX: &str = "qo";

/// The alias of our bridges; the id of the process follows.
pub(crate) const ALIAS: &str = "quorate ordeal of process ";

/// The begin of names that this process gives.
pub(crate) fn own_prefix() -> String {
    format!("{PREFIX}{}-", std::process::id())
}

/// A scratch directory that a later run removes if this one cannot.
pub(crate) fn scratch() -> TempDir {
    tempfile::Builder::new().prefix(&own_prefix()).tempdir().expect("a scratch directory")
}

/// Runs a command to its end and returns its output, or what went wrong.
pub(crate) fn run<S: AsRef<OsStr>>(words: &[S]) -> Result<String, String> {
    let shown = || words.iter().map(|word| word.as_ref().display().to_string()).collect::<Vec<_>>();
    let (program, arguments) = words.split_first().expect("a command has a program");
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{}: {error}", shown().join(" ")))?;
    let text = |bytes: &[u8]| str::from_utf8(bytes).unwrap_or("(not text)").trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!("{}: {}: {}", shown().join(" "), output.status, text(&output.stderr)))
}

/// As [`run`] with the words of one line.
pub(crate) fn run_line(line: &str) -> Result<String, String> {
    run(&line.split(' ').collect::<Vec<_>>())
}

/// Compiles the C `source` with the compiler that also links Rust programs.
pub(crate) fn compile(dir: &Path, name: &str, source: &str, flags: &[&str]) -> PathBuf {
    let (from, to) = (dir.join(format!("{name}.c")), dir.join(name));
    fs::write(&from, source).expect("write a source file");
    let mut words = vec![OsStr::new("cc"), OsStr::new("-O2"), OsStr::new("-Wall")];
    words.extend(flags.iter().map(OsStr::new));
    words.extend([OsStr::new("-o"), to.as_os_str(), from.as_os_str()]);
    run(&words).expect("the C compiler that links Rust programs");
    to
}

/// Whether this process may make namespaces, links and mounts.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Removes what runs left behind whose process is gone.
pub(crate) fn sweep() {
    if is_root() {
        sweep_namespaces();
        sweep_bridges();
    }
    sweep_scratch();
}

fn sweep_namespaces() {
    for line in run_line("ip netns list").unwrap_or_default().lines() {
        let name = line.split(' ').next().unwrap_or_default();
        if !is_orphan(name) {
            continue;
        }
        // Members that were left behind run in nobody else's namespace.
        for pid in run(&["ip", "netns", "pids", name]).unwrap_or_default().lines() {
            if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
                kill_process(pid, Signal::KILL).ok();
            }
        }
        run(&["ip", "netns", "del", name]).ok();
    }
}

fn sweep_bridges() {
    let links = run_line("ip -j link show type bridge").unwrap_or_default();
    let links: serde_json::Value = serde_json::from_str(&links).unwrap_or_default();
    for link in links.as_array().into_iter().flatten() {
        let name = link["ifname"].as_str().unwrap_or_default();
        let process = link["ifalias"].as_str().and_then(|alias| alias.strip_prefix(ALIAS));
        if name.starts_with(BRIDGE_PREFIX) && process.is_some_and(is_gone) {
            run(&["ip", "link", "del", name]).ok();
        }
    }
}

fn sweep_scratch() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let entries = fs::read_dir(std::env::temp_dir()).expect("list the directory for scratch");
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if !is_orphan(name) {
            continue;
        }
        let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for place in places.filter(|place| Path::new(place).starts_with(&path)) {
            run(&["umount", "-l", place]).ok();
        }
        fs::remove_dir_all(&path).ok();
    }
}

/// Whether `name` is one of ours, of a process that is gone.
fn is_orphan(name: &str) -> bool {
    let rest = name.strip_prefix(PREFIX);
    rest.and_then(|rest| rest.split('-').next()).is_some_and(is_gone)
}

/// Whether a process has ended, though perhaps nobody has asked how.
fn is_gone(process: &str) -> bool {
    if process.parse::<u32>().is_err() {
        return false;
    }
    let Ok(stat) = fs::read_to_string(Path::new("/proc").join(process).join("stat")) else {
        return true;
    };
    // The name before the state may hold anything but a newline.
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X']))
}
