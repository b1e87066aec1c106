//! The command line as etcdctl reads it: global flags, environment variables, error texts.
//!
//! clap does the parsing; this file bends it to the conventions of Go's pflag where scripts could
//! notice: `--flag=false`, values that begin with a dash, `ETCDCTL_*` variables and their
//! conflicts, and the wording of mistakes.

use std::{
    ffi::{OsStr, OsString},
    time::Duration,
};

use clap::{
    Arg, ArgAction, ArgMatches, Args, Command,
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
};

use crate::{error::Error, go};

/// Flags that every command takes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalFlags {
    /// Members to talk to, as host:port or URLs, separated by commas
    #[arg(long, global = true, value_delimiter = ',', default_value = "127.0.0.1:2379")]
    pub(crate) endpoints: Vec<String>,
    /// How answers are printed: simple, fields, json, protobuf or table
    #[arg(short = 'w', long, global = true, default_value = "simple")]
    pub(crate) write_out: String,
    /// Show keys and values in hexadecimal
    #[arg(long, global = true)]
    pub(crate) hex: bool,
    /// Say on standard error what the client does
    #[arg(long, global = true)]
    pub(crate) debug: bool,
    /// How long a member may take to accept a connection
    #[arg(long, global = true, default_value = "2s", value_parser = go::parse_duration)]
    pub(crate) dial_timeout: Duration,
    /// How long a command may take once it is connected
    #[arg(long, global = true, default_value = "5s", value_parser = go::parse_duration)]
    pub(crate) command_timeout: Duration,
    /// How often an idle connection is probed
    #[arg(long, global = true, default_value = "2s", value_parser = go::parse_duration)]
    pub(crate) keepalive_time: Duration,
    /// How long a probe may stay unanswered before the connection is given up
    #[arg(long, global = true, default_value = "6s", value_parser = go::parse_duration)]
    pub(crate) keepalive_timeout: Duration,
    /// Refuse to send larger requests, in bytes; 0 stands for 2 MiB
    #[arg(long, global = true, default_value = "0", value_parser = parse_int)]
    pub(crate) max_request_bytes: i64,
    /// Refuse to take larger answers, in bytes; 0 takes any
    #[arg(long, global = true, default_value = "0", value_parser = parse_int)]
    pub(crate) max_recv_bytes: i64,
    /// Log in as NAME or NAME:PASSWORD; a missing password is asked for
    #[arg(long, global = true, default_value = "")]
    pub(crate) user: String,
    /// The password of a --user that was given without one
    #[arg(long, global = true, default_value = "", hide_env_values = true)]
    pub(crate) password: String,
    /// Show this JWT instead of logging in with --user
    #[arg(long, global = true, default_value = "")]
    pub(crate) auth_jwt_token: String,
    /// Connect without TLS
    #[arg(long, global = true, default_value = "true")]
    pub(crate) insecure_transport: bool,
    /// Trust any certificate a server shows; for tests only
    #[arg(long, global = true)]
    pub(crate) insecure_skip_tls_verify: bool,
    /// File with the authorities that server certificates must come from
    #[arg(long, global = true)]
    pub(crate) cacert: Option<String>,
    /// File with the certificate to show to servers
    #[arg(long, global = true)]
    pub(crate) cert: Option<String>,
    /// File with the private key of --cert
    #[arg(long, global = true)]
    pub(crate) key: Option<String>,
    /// Find members by the SRV records of this domain (not supported)
    #[arg(short = 'd', long, global = true, default_value = "")]
    pub(crate) discovery_srv: String,
    /// Suffix of the service name in those SRV records (not supported)
    #[arg(long, global = true, default_value = "")]
    pub(crate) discovery_srv_name: String,
    /// Also use members that the SRV records announce without TLS
    #[arg(long, global = true, default_value = "true")]
    pub(crate) insecure_discovery: bool,
}

/// An integer flag, in any radix that Go accepts.
pub(crate) fn parse_int(text: &str) -> Result<i64, String> {
    go::parse_int(text, 0)
}

/// Gives a command tree pflag's habits.
pub(crate) fn with_go_habits(command: Command) -> Command {
    command.args_override_self(true).mut_args(arg_with_go_habits).mut_subcommands(with_go_habits)
}

fn arg_with_go_habits(arg: Arg) -> Arg {
    if arg.is_positional() {
        return arg;
    }
    match arg.get_action() {
        // `--prefix`, `--prefix=true` and `--prefix=false`, but not `--prefix true`.
        ArgAction::SetTrue => {
            let arg =
                if arg.get_default_values().is_empty() { arg.default_value("false") } else { arg };
            arg.action(ArgAction::Set)
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .hide_default_value(true)
                .value_parser(go::parse_bool)
        }
        ArgAction::Set | ArgAction::Append => arg.allow_hyphen_values(true),
        _ => arg,
    }
}

/// Moves flags that stand before their verb behind it: in etcdctl `--rev=1 get k` reads at revision 1.
///
/// As there, a flag that only the verb knows takes the next word for its value, if it has no `=`, also
/// where it is a switch: `--prefix get k` has no verb `get`.
pub(crate) fn verb_first(command: &Command, arguments: Vec<OsString>) -> Vec<OsString> {
    let mut words = arguments.into_iter().peekable();
    let mut result: Vec<OsString> = words.by_ref().take(1).collect();
    let mut moved = Vec::new();
    while let Some(word) = words.next_if(|word| is_flag(word)) {
        let (is_global, takes_next) = flag_before_verb(command, &word.to_string_lossy());
        let flags = if is_global { &mut result } else { &mut moved };
        flags.push(word);
        if takes_next {
            flags.extend(words.next());
        }
    }
    let mut command = Some(command);
    while let Some(inner) = command.filter(|command| command.has_subcommands()) {
        let Some(verb) = words.next_if(|word| !is_flag(word)) else { break };
        command = inner.find_subcommand(&verb);
        result.push(verb);
    }
    result.into_iter().chain(moved).chain(words).collect()
}

/// A lone dash is a value, and two of them end the flags.
fn is_flag(word: &OsStr) -> bool {
    let word = word.as_encoded_bytes();
    word.len() > 1 && word[0] == b'-' && word != b"--"
}

/// Whether `word` is a flag of every verb, and whether its value is the next word.
fn flag_before_verb(command: &Command, word: &str) -> (bool, bool) {
    let is_help = word == "--help" || word == "-h";
    let takes_next = !word.contains('=') && (word.starts_with("--") || word.len() == 2);
    let global = match word.strip_prefix("--") {
        Some(long) => {
            let name = long.split('=').next();
            command.get_arguments().find(|arg| arg.get_long() == name)
        }
        None => command.get_arguments().find(|arg| arg.get_short() == word.chars().nth(1)),
    };
    let is_switch = global.is_some_and(Arg::is_require_equals_set);
    (is_help || global.is_some(), takes_next && !is_help && !is_switch)
}

/// Prefixes of environment variables; the first that is set wins.
const ENVIRONMENT_PREFIXES: [&str; 2] = ["QUORATECTL_", "ETCDCTL_"];

/// Variables that mean something to others and deserve no warning.
const ENVIRONMENT_IGNORED: [&str; 3] = ["API", "WATCH_KEY", "WATCH_RANGE_END"];

/// Adds flags from the environment to the command line.
///
/// As in etcdctl: a variable whose flag is also given is a conflict, an empty variable is unset,
/// one that cannot be parsed is passed over, and `version` reads none.
pub(crate) fn arguments_with_environment(
    command: &Command,
    arguments: Vec<OsString>,
    variables: &[(String, String)],
) -> Result<Vec<OsString>, Error> {
    let matches =
        command.clone().try_get_matches_from(&arguments).map_err(|error| usage(&error))?;
    if matches.subcommand_name() == Some("version") {
        return Ok(arguments);
    }
    let flags: Vec<&Arg> = command.get_arguments().filter(|arg| arg.is_global_set()).collect();
    warn_of_unknown(&flags, variables);
    let mut result = vec![arguments[0].clone()];
    for flag in flags {
        let Some((name, value)) = variable_of(flag, variables) else { continue };
        if leaf(&matches).value_source(flag.get_id().as_str()) == Some(ValueSource::CommandLine) {
            return Err(Error::General(format!(
                "conflicting environment variable {name} is shadowed by the corresponding \
                 command-line flag (either unset the environment variable or drop the flag)"
            )));
        }
        let argument = OsString::from(format!("--{}={value}", long_name(flag)));
        let trial = [OsString::new(), argument.clone(), OsString::from("version")];
        match command.clone().try_get_matches_from(trial) {
            Ok(_) => result.push(argument),
            Err(_) => eprintln!("Warning: ignoring invalid value {value:?} for {name}"),
        }
    }
    result.extend(arguments.into_iter().skip(1));
    Ok(result)
}

/// The matches of the innermost command, which hold the global flags wherever they were given.
fn leaf(matches: &ArgMatches) -> &ArgMatches {
    matches.subcommand().map_or(matches, |(_, inner)| leaf(inner))
}

fn long_name(flag: &Arg) -> &str {
    flag.get_long().expect("every global flag has a long name")
}

fn variable_of<'a>(flag: &Arg, variables: &'a [(String, String)]) -> Option<(&'a str, &'a str)> {
    let suffix = long_name(flag).to_uppercase().replace('-', "_");
    ENVIRONMENT_PREFIXES.iter().find_map(|prefix| {
        let found = variables.iter().find(|(name, value)| {
            name.strip_prefix(prefix) == Some(suffix.as_str()) && !value.is_empty()
        });
        found.map(|(name, value)| (name.as_str(), value.as_str()))
    })
}

fn warn_of_unknown(flags: &[&Arg], variables: &[(String, String)]) {
    for (name, _) in variables {
        let Some(suffix) = ENVIRONMENT_PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix))
        else {
            continue;
        };
        let long = suffix.to_lowercase().replace('_', "-");
        let known = flags.iter().any(|flag| long_name(flag) == long);
        if !known && !ENVIRONMENT_IGNORED.contains(&suffix) {
            eprintln!("Warning: unrecognized environment variable {name}");
        }
    }
}

/// Says in etcdctl's words what is wrong with a command line.
///
/// Help and version texts are no mistakes; `main` prints them before it comes to this.
pub(crate) fn usage(error: &clap::Error) -> Error {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    let argument = context(ContextKind::InvalidArg);
    let flag = argument.split([' ', '=', '[']).next().unwrap_or_default().trim_end_matches("...");
    let value = context(ContextKind::InvalidValue);
    let text = match error.kind() {
        ErrorKind::UnknownArgument if flag.starts_with("--") => format!("unknown flag: {flag}"),
        ErrorKind::UnknownArgument if flag.starts_with('-') => match flag.chars().nth(1) {
            Some(letter) => format!("unknown shorthand flag: '{letter}' in {flag}"),
            None => "unknown argument -".to_owned(),
        },
        ErrorKind::InvalidSubcommand => {
            let name = context(ContextKind::InvalidSubcommand);
            format!("unknown command {name:?} for \"quoratectl\"")
        }
        ErrorKind::ValueValidation => {
            let cause = std::error::Error::source(error).map(ToString::to_string);
            let cause = cause.unwrap_or_default();
            format!("invalid argument {} for \"{flag}\" flag: {cause}", go::quote(value.as_bytes()))
        }
        ErrorKind::InvalidValue | ErrorKind::WrongNumberOfValues if value.is_empty() => {
            format!("flag needs an argument: {flag}")
        }
        _ => error.render().to_string().trim_start_matches("error: ").trim_end().to_owned(),
    };
    Error::General(text)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches};

    use super::*;
    use crate::Cli;

    fn command() -> Command {
        with_go_habits(Cli::command())
    }

    fn parse(line: &[&str]) -> Result<Cli, String> {
        let matches = command()
            .try_get_matches_from(["quoratectl"].iter().chain(line))
            .map_err(|error| usage(&error).to_string())?;
        Cli::from_arg_matches(&matches).map_err(|error| error.to_string())
    }

    #[test]
    fn booleans_take_a_value_only_after_an_equals_sign() {
        assert!(parse(&["get", "k", "--hex"]).unwrap().flags.hex);
        assert!(!parse(&["get", "k", "--hex=0"]).unwrap().flags.hex);
        assert!(
            !parse(&["get", "k", "--insecure-transport=false"]).unwrap().flags.insecure_transport
        );
        assert_eq!(
            parse(&["get", "k", "--prefix=maybe"]).unwrap_err(),
            r#"invalid argument "maybe" for "--prefix" flag: strconv.ParseBool: parsing "maybe": invalid syntax"#
        );
    }

    #[test]
    fn the_last_of_repeated_flags_wins_and_endpoints_add_up() {
        let cli = parse(&["-w", "json", "get", "k", "-w=fields"]).unwrap();
        assert_eq!(cli.flags.write_out, "fields");
        let cli = parse(&["get", "k", "--endpoints=a:1,b:2", "--endpoints", "c:3"]).unwrap();
        assert_eq!(cli.flags.endpoints, ["a:1", "b:2", "c:3"]);
    }

    #[test]
    fn flags_may_stand_before_their_verb() {
        let first = |line: &str| {
            let words = line.split(' ').map(OsString::from).collect();
            let words = verb_first(&command(), words).into_iter();
            words.map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join(" ")
        };
        for (line, expected) in [
            ("q --rev=1 get k", "q get --rev=1 k"),
            ("q --consistency s -w json get a b", "q -w json get --consistency s a b"),
            ("q --hex --limit=2 get a", "q --hex get --limit=2 a"),
            ("q --endpoints a:1 lease grant 5", "q --endpoints a:1 lease grant 5"),
            ("q --cluster=true endpoint health", "q endpoint health --cluster=true"),
            ("q --prefix get k", "q k --prefix get"),
            ("q get k --rev=1", "q get k --rev=1"),
            ("q -- get k", "q -- get k"),
            ("q --help get", "q --help get"),
            ("q -wjson --rev", "q -wjson --rev"),
            ("q - get", "q - get"),
        ] {
            assert_eq!(first(line), expected, "of {line}");
        }
    }

    #[test]
    fn mistakes_are_worded_as_in_etcdctl() {
        for (line, text) in [
            (&["get", "k", "--bogus"][..], "unknown flag: --bogus"),
            (&["put", "k", "-1"], "unknown shorthand flag: '1' in -1"),
            (&["bogus"], "unknown command \"bogus\" for \"quoratectl\""),
            (&["get", "k", "--limit"], "flag needs an argument: --limit"),
            (
                &["get", "k", "--limit", "x"],
                r#"invalid argument "x" for "--limit" flag: strconv.ParseInt: parsing "x": invalid syntax"#,
            ),
            (
                &["get", "k", "--command-timeout=5"],
                r#"invalid argument "5" for "--command-timeout" flag: time: missing unit in duration "5""#,
            ),
        ] {
            assert_eq!(parse(line).unwrap_err(), text);
        }
    }

    fn with_environment(line: &[&str], variables: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let variables: Vec<_> =
            variables.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let line = ["quoratectl"].iter().chain(line).map(OsString::from).collect();
        let arguments = arguments_with_environment(&command(), line, &variables)
            .map_err(|error| error.to_string())?;
        Ok(arguments.into_iter().map(|argument| argument.into_string().unwrap()).collect())
    }

    #[test]
    fn variables_stand_in_for_flags_and_conflict_with_them() {
        let both = [("ETCDCTL_WRITE_OUT", "json"), ("QUORATECTL_WRITE_OUT", "fields")];
        assert_eq!(
            with_environment(&["get", "k"], &both).unwrap(),
            ["quoratectl", "--write-out=fields", "get", "k"]
        );
        let conflict = with_environment(&["get", "k", "-w", "json"], &both[..1]).unwrap_err();
        assert!(conflict.starts_with("conflicting environment variable ETCDCTL_WRITE_OUT"));
        let ignored = [("ETCDCTL_DIAL_TIMEOUT", "x"), ("ETCDCTL_HEX", ""), ("ETCDCTL_LIMIT", "1")];
        assert_eq!(with_environment(&["get", "k"], &ignored).unwrap(), ["quoratectl", "get", "k"]);
        assert!(with_environment(&["version", "-w", "json"], &both).is_ok());
    }
}
