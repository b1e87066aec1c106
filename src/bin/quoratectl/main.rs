//! `quoratectl`: the command-line client.
//!
//! It speaks the etcd v3 API, so it works on Quorate and on etcd alike, and it takes etcdctl's
//! verbs, flags, variables and formats, so that a script may exchange one for the other:
//! standard output and exit codes are the same to the byte (`tests/interop/ctl_compare.sh`
//! checks that). `bench` is our own addition.
//!
//! A verb turns its flags into a request ([`kv`], [`txn`], [`lease`], [`endpoint`], [`member`],
//! [`move_leader`], [`alarm`]), the [`client`] finds a member that answers, [`print`] writes the
//! answer in the wanted format.
//!
//! Three verbs go on until somebody ends them: [`watch`], [`lock`] and [`elect`]. They stand on a
//! [`watcher`] and a [`keep_alive`], which outlive the loss of their member, and the latter two on
//! the recipe in [`candidate`], so that they share their names with every other client of etcd.

mod alarm;
mod bench;
mod candidate;
mod client;
mod elect;
mod endpoint;
mod error;
mod flags;
#[cfg(test)]
#[path = "../../../tests/support/fuzz.rs"]
mod fuzz;
#[cfg(test)]
mod fuzz_tests;
mod go;
mod keep_alive;
mod kv;
mod lease;
mod lock;
mod member;
mod move_leader;
mod print;
mod program;
mod signals;
mod terminal;
mod txn;
mod watch;
mod watcher;

use std::{
    ffi::OsString,
    io::{self, BufWriter, Write},
    process::ExitCode,
};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{
    client::Client,
    error::Error,
    flags::GlobalFlags,
    print::{Format, Printer},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A command line client for Quorate and etcd.
#[derive(Debug, Parser)]
#[command(name = "quoratectl", infer_subcommands = true, subcommand_required = true)]
#[command(arg_required_else_help = true, disable_version_flag = true)]
struct Cli {
    #[command(flatten)]
    flags: GlobalFlags,
    #[command(subcommand)]
    verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Reads one key or an interval of keys
    Get(kv::GetArgs),
    /// Writes one key
    #[command(long_about = kv::PUT_HELP)]
    Put(kv::PutArgs),
    /// Deletes one key or an interval of keys, its end excluded
    Del(kv::DelArgs),
    /// Runs several requests as one, depending on conditions
    #[command(long_about = txn::HELP)]
    Txn(txn::TxnArgs),
    /// Shows the changes of keys as they happen
    #[command(long_about = watch::HELP)]
    Watch(watch::WatchArgs),
    /// Grants, renews, shows and revokes leases
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Lease(lease::LeaseArgs),
    /// Takes a named lock and holds it, or runs a program under it
    #[command(long_about = lock::HELP)]
    Lock(lock::LockArgs),
    /// Stands for an election, or shows who wins it
    Elect(elect::ElectArgs),
    /// Drops the history below a revision
    Compaction(kv::CompactionArgs),
    /// Asks single members about themselves
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Endpoint(endpoint::EndpointArgs),
    /// Shows who belongs to the cluster
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Member(member::MemberArgs),
    /// Has another member lead
    MoveLeader(move_leader::MoveLeaderArgs),
    /// Shows and clears alarms
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Alarm(alarm::AlarmArgs),
    /// Measures throughput and latency of an endpoint
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Bench(bench::BenchArgs),
    /// Prints the version of quoratectl
    Version {
        /// Ignored, as in etcdctl
        #[arg(hide = true)]
        arguments: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    let result = parse(&mut out).and_then(|cli| cli.map_or(Ok(()), |cli| run(cli, &mut out)));
    // What was written before a failure is part of the answer.
    let result = result.and_then(|()| Ok(out.flush()?));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let flushed = out.flush();
            if !error.is_silent() && flushed.is_ok() {
                eprintln!("Error: {error}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

/// The command line, or nothing if it only asked for help.
fn parse(out: &mut dyn Write) -> Result<Option<Cli>, Error> {
    let command = flags::with_go_habits(Cli::command());
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    if arguments.is_empty() {
        arguments.push(OsString::from("quoratectl"));
    }
    let arguments = flags::verb_first(&command, arguments);
    let parsed = command.clone().try_get_matches_from(&arguments);
    if let Err(error) = parsed {
        if error.use_stderr() && !is_missing_verb(&error) {
            return Err(flags::usage(&error));
        }
        write!(out, "{}", error.render())?;
        return Ok(None);
    }
    let variables: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let arguments = flags::arguments_with_environment(&command, arguments, &variables)?;
    let matches = command.try_get_matches_from(arguments).map_err(|error| flags::usage(&error))?;
    Cli::from_arg_matches(&matches).map(Some).map_err(|error| flags::usage(&error))
}

/// As in etcdctl, a verb without its subcommand is answered with help and exit code 0.
fn is_missing_verb(error: &clap::Error) -> bool {
    error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
}

fn run(cli: Cli, out: &mut dyn Write) -> Result<(), Error> {
    if let Verb::Version { .. } = cli.verb {
        writeln!(out, "quoratectl version: {}", env!("CARGO_PKG_VERSION"))?;
        writeln!(out, "API version: 3.7")?;
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(run_verb(cli, out));
    // A thread may still wait for a line of standard input; nobody waits for it any more.
    runtime.shutdown_background();
    result
}

async fn run_verb(cli: Cli, out: &mut dyn Write) -> Result<(), Error> {
    let flags = &cli.flags;
    match cli.verb {
        Verb::Get(args) => kv::get(&args, flags, out).await,
        Verb::Put(args) => kv::put(&args, flags, out).await,
        Verb::Del(args) => kv::del(&args, flags, out).await,
        Verb::Txn(args) => txn::txn(&args, flags, out).await,
        Verb::Watch(args) => watch::watch(&args, flags, out).await,
        Verb::Lease(args) => lease::run(&args, flags, out).await,
        Verb::Lock(args) => lock::lock(&args, flags, out).await,
        Verb::Elect(args) => elect::elect(&args, flags, out).await,
        Verb::Compaction(args) => kv::compaction(&args, flags, out).await,
        Verb::Endpoint(args) => endpoint::run(&args, flags, out).await,
        Verb::Member(args) => member::run(&args, flags, out).await,
        Verb::MoveLeader(args) => move_leader::move_leader(&args, flags, out).await,
        Verb::Alarm(args) => alarm::run(&args, flags, out).await,
        Verb::Bench(args) => bench::run(&args, flags, out).await,
        Verb::Version { .. } => Ok(()),
    }
}

/// A client and the wanted format, checked in etcdctl's order.
fn client_and_format(flags: &GlobalFlags) -> Result<(Client, Format), Error> {
    let format = Format::parse(&flags.write_out)?;
    Ok((Client::new(flags)?, format))
}

/// A printer on standard output with the global flags.
fn printer<'a>(format: Format, flags: &GlobalFlags, out: &'a mut dyn Write) -> Printer<'a> {
    Printer { format, hex: flags.hex, value_only: false, out }
}
