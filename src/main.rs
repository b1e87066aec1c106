//! The server binary: flags, then the server, then an exit code.

use std::io::Write;
use std::process::ExitCode;

use quorate::config::{Config, ConfigExit};
use quorate::logging;
use quorate::server::Server;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
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
