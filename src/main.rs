//! The server binary: flags, then the server, then an exit code.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use quorate::config::{Config, ConfigExit};
use quorate::logging;
use quorate::server::Server;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    hide_sync_program();
    arm_failpoints();
    let parsed = match Config::from_env(std::env::args_os().skip(1), std::env::vars_os()) {
        Ok(parsed) => parsed,
        Err(exit) => return leave(&exit),
    };
    if let Err(error) = logging::init(&parsed.config.log) {
        return complain(&error);
    }
    for warning in &parsed.warnings {
        tracing::warn!("{warning}");
    }
    match Server::open(parsed.config).and_then(Server::run) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            ExitCode::FAILURE
        }
    }
}

/// Ends the process at the failpoints that the variable `FAILPOINTS` sets to `panic`: at once and
/// without a clean-up, as kill -9 would. Other actions do what they say.
#[cfg(feature = "failpoints")]
fn arm_failpoints() {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        told(panic);
        if panic.payload_as_str().is_some_and(|text| text.starts_with("failpoint ")) {
            std::process::abort();
        }
    }));
    // Its end would disarm them.
    std::mem::forget(fail::FailScenario::setup());
}

#[cfg(not(feature = "failpoints"))]
fn arm_failpoints() {}

/// Where no program is.
const NO_PROGRAMS: &str = "/nonexistent";

/// Begins again with an empty search path, unless that is so already.
///
/// sled runs the program `sync` whenever it opens, also when we reopen it under load. That flushes
/// every file system of the machine and may take many seconds. Our storage syncs sled's own files
/// itself, and nothing else here runs programs. Replacing the process keeps its id.
fn hide_sync_program() {
    if std::env::var_os("PATH").is_some_and(|path| path == NO_PROGRAMS) {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| program.clone().into());
    let mut again = Command::new(program);
    again.arg0(name).args(arguments).env("PATH", NO_PROGRAMS);
    // Returns only if it failed; then sled's `sync` is merely slow.
    drop(again.exec());
}

/// `--help`, `--version` and refused flags end here.
fn leave(exit: &ConfigExit) -> ExitCode {
    // A closed pipe is no reason for another error.
    drop(std::io::stdout().write_all(exit.stdout.as_bytes()));
    drop(std::io::stderr().write_all(exit.stderr.as_bytes()));
    ExitCode::from(exit.code)
}

fn complain(error: &dyn std::error::Error) -> ExitCode {
    drop(writeln!(std::io::stderr(), "quorate: {error}"));
    ExitCode::FAILURE
}
