//! `txn`: a small language on standard input.
//!
//! Three blocks of lines, each ended by an empty line: compares, requests if they all hold,
//! requests if one does not. A compare is `mod("key") > "0"`; a request is a line of `get`, `put`
//! or `del` with their flags.

use std::{
    ffi::OsString,
    io::{self, BufRead, Write},
};

use bytes::Bytes;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use quorate::pb::etcdserverpb::{
    Compare, RequestOp, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    kv_client::KvClient,
    request_op::Request as Operation,
};

use crate::{
    client::Repeat,
    client_and_format,
    error::Error,
    flags::{GlobalFlags, with_go_habits},
    go,
    kv::{self, DelArgs, GetArgs, PutArgs},
    print::Answer,
    printer,
};

/// Long help of `txn`.
pub(crate) const HELP: &str = "\
Runs several requests as one, depending on conditions.

The Txn is read from standard input, in three parts; an empty line ends each of them:
- conditions such as  ver(\"a\") = \"0\",  by mod, create, ver, val or lease; with =, !=, < or >
- what to do if all of them hold: lines of get, put and del
- what to do otherwise

This takes a lock that nobody holds, and else shows who does:

    create(\"lock\") = \"0\"

    put lock me

    get lock
";

/// Flags of `txn`.
#[derive(Args, Clone, Debug)]
pub(crate) struct TxnArgs {
    /// Ask for the conditions and requests line by line
    #[arg(short = 'i', long)]
    interactive: bool,
    /// None are accepted
    #[arg(hide = true)]
    arguments: Vec<OsString>,
}

/// A line of a request block.
#[derive(Parser)]
#[command(no_binary_name = true, infer_subcommands = true, disable_help_subcommand = true)]
struct Line {
    #[command(subcommand)]
    request: LineRequest,
}

#[derive(Subcommand)]
enum LineRequest {
    Get(GetArgs),
    Put(PutArgs),
    Del(DelArgs),
}

/// Runs `txn`.
pub(crate) async fn txn(
    args: &TxnArgs,
    flags: &GlobalFlags,
    out: &mut dyn Write,
) -> Result<(), Error> {
    if !args.arguments.is_empty() {
        return Err(Error::BadArgs("txn command does not accept argument".to_owned()));
    }
    let (client, format) = client_and_format(flags)?;
    let request = read_txn(&mut io::stdin().lock(), out, args.interactive)?;
    let limit = client.response_bytes_max;
    let response = client
        .call(Repeat::Never, &request, |session, request| async move {
            KvClient::new(session.channel).max_decoding_message_size(limit).txn(request).await
        })
        .await?;
    printer(format, flags, out).print(&Answer::Txn(&response))
}

/// Reads the three blocks from `input`.
pub(crate) fn read_txn(
    input: &mut dyn BufRead,
    out: &mut dyn Write,
    interactive: bool,
) -> Result<TxnRequest, Error> {
    let mut prompt = |text: &str| -> Result<(), Error> {
        if interactive {
            writeln!(out, "{text}")?;
            out.flush()?;
        }
        Ok(())
    };
    prompt("compares:")?;
    let compare = read_block(input, parse_compare)?;
    prompt("success requests (get, put, del):")?;
    let success = read_block(input, parse_request)?;
    prompt("failure requests (get, put, del):")?;
    let failure = read_block(input, parse_request)?;
    Ok(TxnRequest { compare, success, failure })
}

fn read_block<T>(
    input: &mut dyn BufRead,
    parse: impl Fn(&str) -> Result<T, Error>,
) -> Result<Vec<T>, Error> {
    let mut items = Vec::new();
    loop {
        let mut line = String::new();
        input.read_line(&mut line)?;
        if !line.ends_with('\n') {
            return Err(Error::InvalidInput("EOF".to_owned()));
        }
        match line.trim() {
            "" => return Ok(items),
            line => items.push(parse(line)?),
        }
    }
}

fn parse_request(line: &str) -> Result<RequestOp, Error> {
    let words = split_words(line)?;
    if words.len() < 2 {
        return Err(Error::InvalidInput(format!("invalid txn compare request: {line}")));
    }
    let invalid = |_| Error::InvalidInput(format!("invalid txn request: {line}"));
    let command = with_go_habits(Line::command());
    let matches = command.try_get_matches_from(words).map_err(invalid)?;
    let operation = match Line::from_arg_matches(&matches).map_err(invalid)?.request {
        LineRequest::Get(args) => Operation::RequestRange(kv::range_request(&args)?),
        // The lines themselves are standard input: no value can follow there.
        LineRequest::Put(args) => Operation::RequestPut(kv::put_request(&args, &mut io::empty())?),
        LineRequest::Del(args) => Operation::RequestDeleteRange(kv::delete_request(&args)?),
    };
    Ok(RequestOp { request: Some(operation) })
}

/// Splits a line at spaces; quotes at the start of a word hold it together.
///
/// Double quotes know Go's escapes, single quotes none. A quote that is never closed is dropped,
/// as in etcdctl.
pub(crate) fn split_words(line: &str) -> Result<Vec<OsString>, Error> {
    use std::os::unix::ffi::OsStringExt;

    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        let closed = match first {
            '"' => closing_double_quote(rest),
            '\'' => rest[1..].find('\'').map(|end| end + 1),
            _ => None,
        };
        let end = match (first, closed) {
            ('"', Some(end)) => {
                let (bytes, _) = go::unquote_prefix(rest)
                    .ok_or_else(|| Error::InvalidInput("invalid syntax".to_owned()))?;
                words.push(OsString::from_vec(bytes));
                end + 1
            }
            ('\'', Some(end)) => {
                words.push(OsString::from(&rest[1..end]));
                end + 1
            }
            ('"' | '\'', None) => 1,
            _ => {
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                words.push(OsString::from(&rest[..end]));
                end
            }
        };
        rest = rest[end..].trim_start();
    }
    Ok(words)
}

/// Where the quote that opens `text` is closed, escaped quotes passed over.
fn closing_double_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().skip(1).find_map(|(index, c)| {
        let closes = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        closes.then_some(index)
    })
}

/// The parts of a compare, as far as they could be read.
#[derive(Default)]
struct CompareParts {
    key: Vec<u8>,
    operator: String,
    value: Vec<u8>,
}

/// Reads `"key") operator "value"`; an error holds what was read before it.
fn scan_compare(text: &str) -> Result<CompareParts, CompareParts> {
    let mut parts = CompareParts::default();
    let Some((key, rest)) = go::unquote_prefix(text.trim_start()) else { return Err(parts) };
    parts.key = key;
    let rest = match rest.strip_prefix(')') {
        Some(rest) if rest.starts_with(char::is_whitespace) => rest.trim_start(),
        _ => return Err(parts),
    };
    let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
    parts.operator = rest[..end].to_owned();
    match go::unquote_prefix(rest[end..].trim_start()) {
        Some((value, _)) => parts.value = value,
        None => return Err(parts),
    }
    Ok(parts)
}

fn parse_compare(line: &str) -> Result<Compare, Error> {
    let Some((target, rest)) = line.split_once('(') else {
        return Err(Error::InvalidInput(format!("malformed comparison: {line}")));
    };
    let parts = scan_compare(rest).map_err(|parts| {
        let (key, value) = (go::quote(&parts.key), go::quote(&parts.value));
        let operator = &parts.operator;
        Error::InvalidInput(format!(
            "malformed comparison: {line}; got {target}({key}) {operator} {value}"
        ))
    })?;
    let number = |radix| {
        let text = std::str::from_utf8(&parts.value).map_err(|_| ());
        let number = text.and_then(|text| go::parse_int(text, radix).map_err(|_| ()));
        number.map_err(|()| Error::InvalidInput(format!("invalid txn compare request: {line}")))
    };
    let (target, union) = match target {
        "ver" | "version" => (CompareTarget::Version, TargetUnion::Version(number(10)?)),
        "c" | "create" => (CompareTarget::Create, TargetUnion::CreateRevision(number(10)?)),
        "m" | "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number(10)?)),
        "val" | "value" => {
            (CompareTarget::Value, TargetUnion::Value(Bytes::from(parts.value.clone())))
        }
        // etcdctl 3.7 panics here; lease IDs are hexadecimal everywhere else on the command line.
        "lease" => (CompareTarget::Lease, TargetUnion::Lease(number(16)?)),
        _ => {
            return Err(Error::InvalidInput(format!(
                "malformed comparison: {line} (unknown target {target})"
            )));
        }
    };
    let result = match parts.operator.as_str() {
        "=" => CompareResult::Equal,
        "!=" => CompareResult::NotEqual,
        ">" => CompareResult::Greater,
        "<" => CompareResult::Less,
        operator => {
            return Err(Error::InvalidInput(format!(
                "malformed comparison: {line} (unknown operator {operator})"
            )));
        }
    };
    Ok(Compare {
        result: result.into(),
        target: target.into(),
        key: parts.key.into(),
        target_union: Some(union),
        range_end: Bytes::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        let words = split_words(line).unwrap();
        words.into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    #[test]
    fn words_are_split_as_etcdctl_splits_them() {
        for (line, expected) in [
            ("put k v", &["put", "k", "v"][..]),
            ("put\tk  v ", &["put", "k", "v"]),
            (r#"put k "a b""#, &["put", "k", "a b"]),
            ("put k 'single q'", &["put", "k", "single q"]),
            (r#"put k "es\"c\n""#, &["put", "k", "es\"c\n"]),
            (r#"put k a"b"c"#, &["put", "k", r#"a"b"c"#]),
            (r#"put k "a"b"#, &["put", "k", "a", "b"]),
            (r#"put k "open"#, &["put", "k", "open"]),
            ("put k 'open", &["put", "k", "open"]),
            (r#"put k """#, &["put", "k", ""]),
            ("put k ''", &["put", "k", ""]),
        ] {
            assert_eq!(words(line), expected, "{line}");
        }
        assert_eq!(split_words(r#"put k "\q""#).unwrap_err().to_string(), "invalid syntax");
    }

    #[test]
    fn compares_are_read() {
        let compare = parse_compare(r#"mod("k\x31")  >  "-1" rest"#).unwrap();
        assert_eq!(compare.key, "k1");
        assert_eq!(compare.result(), CompareResult::Greater);
        assert_eq!(compare.target_union, Some(TargetUnion::ModRevision(-1)));
        let compare = parse_compare(r#"val(`k`) != "v""#).unwrap();
        assert_eq!(compare.target(), CompareTarget::Value);
        assert_eq!(compare.target_union, Some(TargetUnion::Value(Bytes::from_static(b"v"))));
        let compare = parse_compare(r#"lease("k") = "1f""#).unwrap();
        assert_eq!(compare.target_union, Some(TargetUnion::Lease(31)));
        for (target, expected) in [
            ("ver", CompareTarget::Version),
            ("version", CompareTarget::Version),
            ("c", CompareTarget::Create),
            ("create", CompareTarget::Create),
            ("m", CompareTarget::Mod),
            ("value", CompareTarget::Value),
        ] {
            let compare = parse_compare(&format!(r#"{target}("k") < "3""#)).unwrap();
            assert_eq!((compare.target(), compare.result()), (expected, CompareResult::Less));
        }
    }

    #[test]
    fn bad_compares_are_refused_in_etcdctls_words() {
        for (line, text) in [
            ("mod", "malformed comparison: mod"),
            (r#"mod(k) = "0""#, r#"malformed comparison: mod(k) = "0"; got mod("")  """#),
            (r#"mod("k") = 0"#, r#"malformed comparison: mod("k") = 0; got mod("k") = """#),
            (r#"mod("k")="0""#, r#"malformed comparison: mod("k")="0"; got mod("k")  """#),
            (r#"mod("k") ="0""#, r#"malformed comparison: mod("k") ="0"; got mod("k") ="0" """#),
            (r#"mod("k") = "x""#, r#"invalid txn compare request: mod("k") = "x""#),
            (r#"foo("k") = "0""#, r#"malformed comparison: foo("k") = "0" (unknown target foo)"#),
            (
                r#"mod("k") >= "0""#,
                r#"malformed comparison: mod("k") >= "0" (unknown operator >=)"#,
            ),
        ] {
            let error = parse_compare(line).unwrap_err();
            assert_eq!((error.to_string().as_str(), error.exit_code()), (text, 3));
        }
    }

    #[test]
    fn a_transaction_needs_three_ended_blocks() {
        let read = |text: &str| read_txn(&mut text.as_bytes(), &mut io::sink(), false);
        let txn =
            read("mod(\"k\") > \"0\"\r\n\r\nput k 'v w'\nge k\n\ndel --prefix k\n\n").unwrap();
        assert_eq!((txn.compare.len(), txn.success.len(), txn.failure.len()), (1, 2, 1));
        assert_eq!(read("\n\n").unwrap_err().to_string(), "EOF");
        assert_eq!(read("\n\n").unwrap_err().exit_code(), 3);
        for (line, code) in [("put", 3), ("put k", 128), ("foo k", 3), ("get k --bogus", 3)] {
            assert_eq!(read(&format!("\n{line}\n\n\n")).unwrap_err().exit_code(), code, "{line}");
        }
    }

    #[test]
    fn prompts_are_for_people() {
        let mut out = Vec::new();
        read_txn(&mut &b"\n\n\n"[..], &mut out, true).unwrap();
        let expected = "compares:\nsuccess requests (get, put, del):\n\
                        failure requests (get, put, del):\n";
        assert_eq!(out, expected.as_bytes());
    }
}
