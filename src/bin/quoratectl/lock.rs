//! `lock`: holds a name until told otherwise, or while a program runs.

use std::{ffi::OsString, io::Write, os::unix::ffi::OsStrExt};

use bytes::Bytes;
use clap::Args;
use quorate::pb::etcdserverpb::ResponseHeader;

use crate::{
    candidate::{Candidate, TTL_SECONDS_DEFAULT},
    client_and_format,
    error::Error,
    flags::{GlobalFlags, parse_int},
    print::{Answer, Printer},
    printer, program,
    signals::Signals,
};

/// Long help of `lock`.
pub(crate) const HELP: &str = "\
Takes a named lock and holds it, or runs a program under it.

Without COMMAND the lock's key is printed once the lock is held, and the lock is given back on SIGINT
or SIGTERM. With COMMAND the lock is held while it runs, and its exit code is passed on; the program
finds ETCD_LOCK_KEY and ETCD_LOCK_REV in its environment.

The key's create revision is a fencing token: it is larger for every later holder. Have what the lock
guards refuse smaller ones.";

/// Flags and arguments of `lock`.
#[derive(Args, Clone, Debug)]
pub(crate) struct LockArgs {
    /// Seconds that the lock outlives a holder that is gone
    #[arg(long, default_value = "10", value_parser = parse_int)]
    ttl: i64,
    /// The lock's name, and perhaps what to run under it
    #[arg(value_name = "NAME [COMMAND]")]
    arguments: Vec<OsString>,
}

/// Runs `lock`.
pub(crate) async fn lock(
    args: &LockArgs,
    flags: &GlobalFlags,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let Some((name, words)) = args.arguments.split_first() else {
        let text = "lock takes a lock name argument and an optional command to execute";
        return Err(Error::BadArgs(text.to_owned()));
    };
    let (client, format) = client_and_format(flags)?;
    let ttl = if args.ttl > 0 { args.ttl } else { TTL_SECONDS_DEFAULT };
    let candidate = Candidate::new(&client, name, ttl).await.map_err(plain)?;
    let result = hold(&candidate, words, &mut printer(format, flags, out)).await;
    let left = candidate.leave().await;
    result.and(left).map_err(plain)
}

/// As in etcdctl: a lock does not tell apart why it failed.
fn plain(error: Error) -> Error {
    match error {
        Error::Connection(error) => Error::General(error.to_string()),
        error => error,
    }
}

async fn hold(
    candidate: &Candidate<'_>,
    words: &[OsString],
    printer: &mut Printer<'_>,
) -> Result<(), Error> {
    let mut signals = Signals::install()?;
    let mut renewals = candidate.keep_alive();
    let expired = std::pin::pin!(renewals.run());
    let mut expired = futures_util::FutureExt::fuse(expired);
    let header = tokio::select! {
        header = candidate.wait_for_turn(Bytes::new()) => header?,
        () = &mut expired => return Err(Error::General("mutex: session is expired".to_owned())),
        () = signals.next() => return Err(Error::General("context canceled".to_owned())),
    };
    if !words.is_empty() {
        let variables = variables(candidate, header);
        let mut run = std::pin::pin!(program::run(words, &variables));
        return tokio::select! {
            result = &mut run => result,
            // As in etcdctl, the program is not disturbed.
            () = &mut expired => run.await,
        };
    }
    let pair = candidate.read().await?;
    if pair.kvs.is_empty() {
        return Err(Error::General("lock lost on init".to_owned()));
    }
    printer.print(&Answer::Get(&pair))?;
    printer.out.flush()?;
    tokio::select! {
        () = signals.next() => Ok(()),
        () = &mut expired => Err(Error::General("session expired".to_owned())),
    }
}

/// What the program learns; as in etcdctl, a variable that is set already wins.
fn variables(candidate: &Candidate<'_>, header: ResponseHeader) -> Vec<(&'static str, OsString)> {
    let key = std::ffi::OsStr::from_bytes(&candidate.key).to_owned();
    let revision = OsString::from(header.revision.to_string());
    let all = [("ETCD_LOCK_KEY", key), ("ETCD_LOCK_REV", revision)];
    all.into_iter().filter(|(name, _)| std::env::var_os(name).is_none()).collect()
}
