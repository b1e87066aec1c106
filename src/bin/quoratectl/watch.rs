//! `watch`: shows events, and perhaps runs a program for each.
//!
//! Interactively it reads lines, each of them another `watch` with its own flags, or `progress`.

use std::{
    cell::RefCell,
    ffi::OsString,
    io::Write,
    io::{self, BufRead},
    os::unix::ffi::OsStrExt,
};

use clap::{Args, CommandFactory, FromArgMatches, Parser};
use futures_util::stream::{FuturesUnordered, StreamExt};
use quorate::pb::etcdserverpb::{ResponseHeader, WatchCreateRequest, WatchResponse};
use tokio::sync::watch::{Receiver, channel};

use crate::{
    client::Client,
    client_and_format,
    error::Error,
    flags::{self, GlobalFlags, parse_int},
    go,
    kv::key_range,
    print::{Answer, Printer, event_type},
    printer, program,
    txn::split_words,
    watcher::{End, Leader, Watcher},
};

/// Long help of `watch`.
pub(crate) const HELP: &str = "\
Shows the changes of keys as they happen.

KEY and RANGE_END may also come from ETCDCTL_WATCH_KEY and ETCDCTL_WATCH_RANGE_END. What follows `--`
is a program that is run for every event; it finds ETCD_WATCH_REVISION, ETCD_WATCH_EVENT_TYPE,
ETCD_WATCH_KEY and ETCD_WATCH_VALUE in its environment.

With --interactive the watchers are read from standard input, one a line, each with its own flags:

    watch --prefix config/ -- ./reload
    watch --rev 7 leader
    progress
";

/// Flags and arguments of `watch`.
#[derive(Args, Clone, Debug)]
pub(crate) struct WatchArgs {
    /// Read watchers from standard input
    #[arg(short = 'i', long)]
    interactive: bool,
    /// Watch all keys that begin with KEY
    #[arg(long)]
    prefix: bool,
    /// Begin with the changes of this revision; 0 is from now on
    #[arg(long, default_value = "0", value_parser = parse_int)]
    rev: i64,
    /// Also show what was there before
    #[arg(long)]
    prev_kv: bool,
    /// Have the server say now and then how far it is
    #[arg(long)]
    progress_notify: bool,
    /// The key, and perhaps where the interval ends
    #[arg(value_name = "KEY [RANGE_END]")]
    arguments: Vec<OsString>,
    /// What to run for every event
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// A line of the interactive mode.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Line {
    #[command(flatten)]
    args: WatchArgs,
}

/// What the environment says to watch.
#[derive(Clone, Debug, Default)]
struct Environment {
    key: OsString,
    range_end: OsString,
}

impl Environment {
    fn read() -> Result<Self, Error> {
        let variable = |name: &str| {
            let names =
                ["QUORATECTL_WATCH_", "ETCDCTL_WATCH_"].map(|prefix| prefix.to_owned() + name);
            names.iter().find_map(std::env::var_os).unwrap_or_default()
        };
        let this = Self { key: variable("KEY"), range_end: variable("RANGE_END") };
        if this.key.is_empty() && !this.range_end.is_empty() {
            let range_end = go::quote(this.range_end.as_bytes());
            return Err(Error::BadArgs(format!(
                "ETCDCTL_WATCH_KEY is empty but got ETCDCTL_WATCH_RANGE_END={range_end}"
            )));
        }
        Ok(this)
    }
}

/// Runs `watch`.
pub(crate) async fn watch(
    args: &WatchArgs,
    flags: &GlobalFlags,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let environment = Environment::read()?;
    if args.interactive {
        let (client, format) = client_and_format(flags)?;
        let screen = RefCell::new(printer(format, flags, out));
        return interact(&client, &environment, &screen).await;
    }
    let separated = std::env::args_os().any(|argument| argument == "--");
    check(args, &environment, separated)?;
    let request = create_request(args, &environment).map_err(Error::BadArgs)?;
    let (client, format) = client_and_format(flags)?;
    let screen = RefCell::new(printer(format, flags, out));
    let (_progress, ticks) = channel(());
    let watcher = Watcher::new(&client, request, Leader::Required);
    follow(watcher, &args.command, ticks, &screen).await?;
    Err(Error::Interrupted("watch is canceled by the server".to_owned()))
}

/// Finds what is wrong with the arguments before anything is sent.
fn check(args: &WatchArgs, environment: &Environment, separated: bool) -> Result<(), Error> {
    let cause = if separated && args.command.is_empty() {
        " (found separator --, but no commands)"
    } else if !separated && args.arguments.is_empty() && environment.key.is_empty() {
        ""
    } else if !args.arguments.is_empty() && !environment.key.is_empty() {
        " (found conflicting environment key)"
    } else {
        return Ok(());
    };
    Err(Error::BadArgs(format!("bad number of arguments{cause}")))
}

fn create_request(
    args: &WatchArgs,
    environment: &Environment,
) -> Result<WatchCreateRequest, String> {
    let from_environment = [environment.key.clone(), environment.range_end.clone()];
    let words = match (environment.key.is_empty(), environment.range_end.is_empty()) {
        (true, _) => &args.arguments[..],
        (false, true) => &from_environment[..1],
        (false, false) => &from_environment[..],
    };
    // As in etcdctl: of three arguments and more only the first counts.
    let (key, range_end) = match words {
        [] => return Err("bad number of arguments".to_owned()),
        [_, _] if args.prefix => {
            return Err("`range_end` and `--prefix` are mutually exclusive".to_owned());
        }
        [key, end] => (key, Some(end)),
        [key, ..] => (key, None),
    };
    let (key, range_end) = key_range(key, range_end, args.prefix, false);
    Ok(WatchCreateRequest {
        key,
        range_end,
        start_revision: args.rev,
        progress_notify: args.progress_notify,
        prev_kv: args.prev_kv,
        ..WatchCreateRequest::default()
    })
}

/// Shows what a watcher sees until it ends; every tick asks for its progress.
async fn follow(
    mut watcher: Watcher<'_>,
    command: &[OsString],
    mut ticks: Receiver<()>,
    screen: &RefCell<Printer<'_>>,
) -> Result<(), Error> {
    loop {
        let next = tokio::select! {
            next = watcher.next() => next,
            Ok(()) = ticks.changed() => {
                watcher.request_progress().await;
                continue;
            }
        };
        match next {
            Ok(response) => show(&response, command, screen).await?,
            Err(End::Canceled) => return Ok(()),
            Err(End::Failed(error)) => {
                eprintln!("watch was canceled ({error})");
                let header = Some(ResponseHeader::default());
                let last = WatchResponse { header, canceled: true, ..WatchResponse::default() };
                return screen.borrow_mut().print(&Answer::Watch(&last));
            }
        }
    }
}

async fn show(
    response: &WatchResponse,
    command: &[OsString],
    screen: &RefCell<Printer<'_>>,
) -> Result<(), Error> {
    let revision = response.header.map_or(0, |header| header.revision);
    {
        let printer = &mut *screen.borrow_mut();
        if response.canceled {
            eprintln!(
                "watch was canceled (etcdserver: mvcc: required revision has been compacted)"
            );
        } else if response.events.is_empty() {
            writeln!(printer.out, "progress notify: {revision}")?;
        }
        printer.print(&Answer::Watch(response))?;
        printer.out.flush()?;
    }
    if command.is_empty() {
        return Ok(());
    }
    for event in &response.events {
        let kv = event.kv.clone().unwrap_or_default();
        let variables = [
            ("ETCD_WATCH_REVISION", revision.to_string()),
            ("ETCD_WATCH_EVENT_TYPE", go::quote(event_type(event).as_bytes())),
            ("ETCD_WATCH_KEY", go::quote(&kv.key)),
            ("ETCD_WATCH_VALUE", go::quote(&kv.value)),
        ]
        .map(|(name, value)| (name, OsString::from(value)));
        if let Err(error) = program::run(command, &variables).await {
            eprintln!("command {} error ({error})", program::quoted(command));
            return Err(Error::Reported);
        }
    }
    Ok(())
}

/// Reads watchers line by line while those that were read before go on.
async fn interact(
    client: &Client,
    environment: &Environment,
    screen: &RefCell<Printer<'_>>,
) -> Result<(), Error> {
    let (progress, ticks) = channel(());
    let mut watchers = FuturesUnordered::new();
    loop {
        #[expect(clippy::disallowed_methods, reason = "a client is never simulated")]
        let mut reading = tokio::task::spawn_blocking(read_line);
        let line = loop {
            tokio::select! {
                line = &mut reading => break line.map_err(io::Error::other)??,
                Some(ended) = watchers.next() => ended?,
            }
        };
        let Some(line) = line else {
            let text = "error reading watch request line: EOF".to_owned();
            return Err(Error::InvalidInput(text));
        };
        match parse_line(&line, environment)? {
            Entry::Watch(request, command) => {
                let watcher = Watcher::new(client, request, Leader::Required);
                let ticks = ticks.clone();
                watchers.push(async move { follow(watcher, &command, ticks, screen).await });
            }
            Entry::Progress => {
                // The watchers that were just read have not begun, but will see the tick.
                let _sent = progress.send(());
            }
            Entry::Invalid(text) => eprintln!("{text}"),
        }
    }
}

/// A line of standard input without its end; one that is not ended does not count.
fn read_line() -> io::Result<Option<String>> {
    let mut line = Vec::new();
    io::stdin().lock().read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Ok(None);
    }
    String::from_utf8(line).map(Some).map_err(io::Error::other)
}

/// What a line asks for.
#[derive(Debug)]
enum Entry {
    /// Another watcher, with what to run for its events.
    Watch(WatchCreateRequest, Vec<OsString>),
    /// The progress of all watchers.
    Progress,
    /// Nothing; this is why.
    Invalid(String),
}

/// Reads a line. As in etcdctl, some mistakes end the program and others do not.
fn parse_line(line: &str, environment: &Environment) -> Result<Entry, Error> {
    let words = split_words(line)?;
    let Some((verb, words)) = words.split_first() else {
        let text = format!("Invalid command: {line} (watch and progress supported)");
        return Ok(Entry::Invalid(text));
    };
    match verb.to_str() {
        Some("watch") => {}
        Some("progress") => return Ok(Entry::Progress),
        _ => return Ok(Entry::Invalid(format!("Invalid command {line} (only support watch)"))),
    }
    if words.is_empty() && environment.key.is_empty() {
        let text = format!("Invalid command {line} (command type or key is not provided)");
        return Ok(Entry::Invalid(text));
    }
    let command = flags::with_go_habits(Line::command());
    let bad = |error: clap::Error| Error::BadArgs(flags::usage(&error).to_string());
    let matches = command.try_get_matches_from(words).map_err(bad)?;
    let args = Line::from_arg_matches(&matches).map_err(bad)?.args;
    check(&args, environment, words.iter().any(|word| word == "--"))?;
    Ok(match create_request(&args, environment) {
        Ok(request) => Entry::Watch(request, args.command),
        Err(text) => Entry::Invalid(format!("Invalid command {line} ({text})")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(line: &str) -> Result<Entry, Error> {
        parse_line(line, &Environment::default())
    }

    #[test]
    fn a_line_has_its_own_flags_and_command() {
        let line = r#"watch --prefix "a b" --rev 7 --prev-kv -- sh -c 'exit 3'"#;
        let Entry::Watch(request, command) = entry(line).unwrap() else { panic!("no watcher") };
        assert_eq!((request.key.as_ref(), request.range_end.as_ref()), (&b"a b"[..], &b"a c"[..]));
        assert_eq!((request.start_revision, request.prev_kv), (7, true));
        assert_eq!(command, ["sh", "-c", "exit 3"]);
        assert!(matches!(entry("progress").unwrap(), Entry::Progress));
    }

    #[test]
    fn some_mistakes_end_the_program_and_others_do_not() {
        for (line, text) in [
            ("", "Invalid command:  (watch and progress supported)"),
            ("foo k", "Invalid command foo k (only support watch)"),
            ("watch", "Invalid command watch (command type or key is not provided)"),
            (
                "watch a b --prefix",
                "Invalid command watch a b --prefix (`range_end` and `--prefix` are mutually exclusive)",
            ),
        ] {
            let Entry::Invalid(found) = entry(line).unwrap() else { panic!("{line} is valid") };
            assert_eq!(found, text);
        }
        for (line, text) in [
            ("watch --prefix", "bad number of arguments"),
            ("watch k --", "bad number of arguments (found separator --, but no commands)"),
            ("watch k --bogus", "unknown flag: --bogus"),
            ("watch k -w json", "unknown shorthand flag: 'w' in -w"),
        ] {
            let error = entry(line).unwrap_err();
            assert_eq!((error.to_string().as_str(), error.exit_code()), (text, 128), "{line}");
        }
    }

    #[test]
    fn the_environment_names_the_interval() {
        let environment = Environment { key: "a".into(), range_end: "c".into() };
        let Entry::Watch(request, _) = parse_line("watch --rev 3", &environment).unwrap() else {
            panic!("no watcher");
        };
        assert_eq!((request.key.as_ref(), request.range_end.as_ref()), (&b"a"[..], &b"c"[..]));
        assert_eq!(
            parse_line("watch k", &environment).unwrap_err().to_string(),
            "bad number of arguments (found conflicting environment key)"
        );
    }
}
