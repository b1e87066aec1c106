//! `get`, `put`, `del` and `compaction`: flags to requests, requests to answers.
//!
//! The conversions are separate from the calls because a line of `txn` uses the same flags.

use std::{
    ffi::OsString,
    io::{Read, Write},
    os::unix::ffi::OsStrExt,
    time::Duration,
};

use bytes::Bytes;
use clap::Args;
use quorate::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse,
    kv_client::KvClient,
    range_request::{SortOrder, SortTarget},
};

use crate::{
    client::{Client, Repeat},
    client_and_format,
    error::Error,
    flags::{GlobalFlags, parse_int},
    go,
    print::{Answer, Format},
    printer,
};

/// Long help of `put`.
pub(crate) const PUT_HELP: &str = "\
Writes one key.

Without VALUE the value comes from standard input, unless --ignore-value keeps the old one.
Put `--` before KEY if VALUE begins with a dash: `put -- KEY -1`.";

/// Flags and arguments of `get`.
#[derive(Args, Clone, Debug)]
pub(crate) struct GetArgs {
    /// l reads what is committed anywhere, s what the member has, perhaps late
    #[arg(long, default_value = "l")]
    consistency: String,
    /// Direction of sorting: ASCEND, which is the default, or DESCEND
    #[arg(long, default_value = "", hide_default_value = true)]
    order: String,
    /// What to sort by: KEY, VALUE, VERSION, CREATE or MODIFY
    #[arg(long, default_value = "", hide_default_value = true)]
    sort_by: String,
    /// Stop after this many keys; 0 does not stop
    #[arg(long, default_value = "0", value_parser = parse_int)]
    limit: i64,
    /// Take all keys that begin with KEY
    #[arg(long)]
    prefix: bool,
    /// Take KEY and all keys behind it in byte order
    #[arg(long)]
    from_key: bool,
    /// Read the store as it was at this revision; 0 is now
    #[arg(long, default_value = "0", value_parser = parse_int)]
    rev: i64,
    /// Leave the values out
    #[arg(long)]
    keys_only: bool,
    /// Only say how many keys there are
    #[arg(long)]
    count_only: bool,
    /// Leave the keys out, in the format simple
    #[arg(long)]
    print_value_only: bool,
    /// Skip keys created before this revision
    #[arg(long, default_value = "0", value_parser = parse_int)]
    min_create_rev: i64,
    /// Skip keys created after this revision
    #[arg(long, default_value = "0", value_parser = parse_int)]
    max_create_rev: i64,
    /// Skip keys last changed before this revision
    #[arg(long, default_value = "0", value_parser = parse_int)]
    min_mod_rev: i64,
    /// Skip keys last changed after this revision
    #[arg(long, default_value = "0", value_parser = parse_int)]
    max_mod_rev: i64,
    /// Have the answer sent in pieces, by RangeStream
    #[arg(long)]
    stream: bool,
    /// The key, and perhaps where the interval ends
    #[arg(value_name = "KEY [RANGE_END]")]
    arguments: Vec<OsString>,
}

/// Flags and arguments of `put`.
#[derive(Args, Clone, Debug)]
pub(crate) struct PutArgs {
    /// Tie the key to the lease with this hexadecimal id
    #[arg(long, default_value = "0")]
    lease: String,
    /// Also print what was there before
    #[arg(long)]
    prev_kv: bool,
    /// Leave the value as it is
    #[arg(long)]
    ignore_value: bool,
    /// Leave the lease as it is
    #[arg(long)]
    ignore_lease: bool,
    /// The key and its new value
    #[arg(value_name = "KEY VALUE")]
    arguments: Vec<OsString>,
}

/// Flags and arguments of `del`.
#[derive(Args, Clone, Debug)]
pub(crate) struct DelArgs {
    /// Delete all keys that begin with KEY
    #[arg(long)]
    prefix: bool,
    /// Also print what was deleted
    #[arg(long)]
    prev_kv: bool,
    /// Delete KEY and all keys behind it in byte order
    #[arg(long)]
    from_key: bool,
    /// Delete an interval at once, without time to think again
    #[arg(long)]
    range: bool,
    /// The key, and perhaps where the interval ends
    #[arg(value_name = "KEY [RANGE_END]")]
    arguments: Vec<OsString>,
}

/// Flags and arguments of `compaction`.
#[derive(Args, Clone, Debug)]
pub(crate) struct CompactionArgs {
    /// Return when the old revisions are gone from the disk, too
    #[arg(long)]
    physical: bool,
    /// The oldest revision that stays readable
    #[arg(value_name = "REVISION")]
    arguments: Vec<OsString>,
}

/// Runs `get`.
pub(crate) async fn get(
    args: &GetArgs,
    flags: &GlobalFlags,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let request = range_request(args)?;
    let (client, format) = client_and_format(flags)?;
    let response = range(&client, &request, args.stream).await?;
    // As in etcdctl, these are noticed after the fact.
    if args.count_only && format != Format::Fields {
        let text = "--count-only is only for `--write-out=fields`";
        return Err(Error::BadArgs(text.to_owned()));
    }
    if args.print_value_only && format != Format::Simple {
        let text = "print-value-only is only for `--write-out=simple`";
        return Err(Error::BadArgs(text.to_owned()));
    }
    let mut printer = printer(format, flags, out);
    printer.value_only = args.print_value_only;
    printer.print(&Answer::Get(&response))
}

async fn range(
    client: &Client,
    request: &RangeRequest,
    stream: bool,
) -> Result<RangeResponse, Error> {
    let limit = client.response_bytes_max;
    let unary = |session: crate::client::Session, request| async move {
        KvClient::new(session.channel).max_decoding_message_size(limit).range(request).await
    };
    let streamed = |session: crate::client::Session, request| async move {
        let mut kv = KvClient::new(session.channel).max_decoding_message_size(limit);
        let mut parts = kv.range_stream(request).await?.into_inner();
        let mut whole = RangeResponse::default();
        while let Some(part) = parts.message().await? {
            merge(&mut whole, part.range_response.unwrap_or_default());
        }
        Ok(tonic::Response::new(whole))
    };
    if stream {
        client.call(Repeat::Safe, request, streamed).await
    } else {
        client.call(Repeat::Safe, request, unary).await
    }
}

/// Adds a part of a streamed answer as protobuf merges messages: lists grow, the last set field
/// wins.
fn merge(whole: &mut RangeResponse, part: RangeResponse) {
    whole.kvs.extend(part.kvs);
    whole.header = part.header.or(whole.header.take());
    whole.more |= part.more;
    if part.count != 0 {
        whole.count = part.count;
    }
}

/// Runs `put`.
pub(crate) async fn put(
    args: &PutArgs,
    flags: &GlobalFlags,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let request = put_request(args, &mut std::io::stdin().lock())?;
    let (client, format) = client_and_format(flags)?;
    let limit = client.response_bytes_max;
    let response = client
        .call(Repeat::Never, &request, |session, request| async move {
            KvClient::new(session.channel).max_decoding_message_size(limit).put(request).await
        })
        .await?;
    printer(format, flags, out).print(&Answer::Put(&response))
}

/// Runs `del`.
pub(crate) async fn del(
    args: &DelArgs,
    flags: &GlobalFlags,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let request = delete_request(args)?;
    let (client, format) = client_and_format(flags)?;
    let limit = client.response_bytes_max;
    let response = client
        .call(Repeat::Never, &request, |session, request| async move {
            let mut kv = KvClient::new(session.channel).max_decoding_message_size(limit);
            kv.delete_range(request).await
        })
        .await?;
    printer(format, flags, out).print(&Answer::Delete(&response))
}

/// Runs `compaction`.
pub(crate) async fn compaction(
    args: &CompactionArgs,
    flags: &GlobalFlags,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let [revision] = args.arguments.as_slice() else {
        return Err(Error::BadArgs("compaction command needs 1 argument".to_owned()));
    };
    let text = revision.to_string_lossy();
    let revision = go::parse_int(&text, 10).map_err(Error::General)?;
    let request = CompactionRequest { revision, physical: args.physical };
    let (client, _) = client_and_format(flags)?;
    client
        .call(Repeat::Never, &request, |session, request| async move {
            KvClient::new(session.channel).compact(request).await
        })
        .await?;
    writeln!(out, "compacted revision {revision}")?;
    Ok(())
}

const PREFIX_AND_FROM_KEY: &str =
    "`--prefix` and `--from-key` cannot be set at the same time, choose one";
const RANGE_END_TOO_MANY: &str =
    "too many arguments, only accept one argument when `--prefix` or `--from-key` is set";

/// The request that the flags of `get` describe.
pub(crate) fn range_request(args: &GetArgs) -> Result<RangeRequest, Error> {
    let Some(key) = args.arguments.first() else {
        return Err(Error::BadArgs(
            "get command needs one argument as key and an optional argument as range_end"
                .to_owned(),
        ));
    };
    if args.prefix && args.from_key {
        return Err(Error::BadArgs(PREFIX_AND_FROM_KEY.to_owned()));
    }
    if args.keys_only && args.count_only {
        let text = "`--keys-only` and `--count-only` cannot be set at the same time, choose one";
        return Err(Error::BadArgs(text.to_owned()));
    }
    let serializable = is_serializable(&args.consistency)?;
    let range_end = args.arguments.get(1);
    if range_end.is_some() && (args.prefix || args.from_key) {
        return Err(Error::BadArgs(RANGE_END_TOO_MANY.to_owned()));
    }
    let (sort_order, sort_target) = sort(&args.order, &args.sort_by)?;
    check_revisions("Create", args.min_create_rev, args.max_create_rev)?;
    check_revisions("Mod", args.min_mod_rev, args.max_mod_rev)?;
    let (key, range_end) = key_range(key, range_end, args.prefix, args.from_key);
    Ok(RangeRequest {
        key,
        range_end,
        limit: args.limit,
        revision: args.rev.max(0),
        sort_order: sort_order.into(),
        sort_target: sort_target.into(),
        serializable,
        keys_only: args.keys_only,
        count_only: args.count_only,
        min_mod_revision: args.min_mod_rev.max(0),
        max_mod_revision: args.max_mod_rev.max(0),
        min_create_revision: args.min_create_rev.max(0),
        max_create_revision: args.max_create_rev.max(0),
    })
}

/// Whether `--consistency` asks for a local read.
pub(crate) fn is_serializable(consistency: &str) -> Result<bool, Error> {
    match consistency {
        "s" => Ok(true),
        "l" => Ok(false),
        other => {
            let other = go::quote(other.as_bytes());
            Err(Error::BadFeature(format!("unknown consistency flag {other}")))
        }
    }
}

fn check_revisions(kind: &str, min: i64, max: i64) -> Result<(), Error> {
    if max > 0 && min > max {
        let text = format!("getMin{kind}Rev(={min}) > getMax{kind}Rev(={max})");
        return Err(Error::BadFeature(text));
    }
    Ok(())
}

fn sort(order: &str, target: &str) -> Result<(SortOrder, SortTarget), Error> {
    let sort_order = match order.to_uppercase().as_str() {
        "" => SortOrder::None,
        "ASCEND" => SortOrder::Ascend,
        "DESCEND" => SortOrder::Descend,
        _ => return Err(Error::BadFeature(format!("bad sort order {order}"))),
    };
    let sort_target = match target.to_uppercase().as_str() {
        "" | "KEY" => SortTarget::Key,
        "CREATE" => SortTarget::Create,
        "MODIFY" => SortTarget::Mod,
        "VALUE" => SortTarget::Value,
        "VERSION" => SortTarget::Version,
        _ => return Err(Error::BadFeature(format!("bad sort target {target}"))),
    };
    // As in etcd's client: keys come in ascending order anyway, and unsorted lets the limit
    // apply before everything is fetched.
    if (sort_order, sort_target) == (SortOrder::Ascend, SortTarget::Key) {
        return Ok((SortOrder::None, sort_target));
    }
    Ok((sort_order, sort_target))
}

/// The interval that a key and its flags mean.
pub(crate) fn key_range(
    key: &OsString,
    range_end: Option<&OsString>,
    prefix: bool,
    from_key: bool,
) -> (Bytes, Bytes) {
    let key = bytes_of(key);
    match range_end {
        Some(end) => (key, bytes_of(end)),
        None if (prefix || from_key) && key.is_empty() => {
            (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"))
        }
        None if prefix => {
            let end = prefix_end(&key);
            (key, end)
        }
        None if from_key => (key, Bytes::from_static(b"\0")),
        None => (key, Bytes::new()),
    }
}

fn bytes_of(argument: &OsString) -> Bytes {
    Bytes::copy_from_slice(argument.as_bytes())
}

/// The first key after all keys with this prefix; `\0`, which means no end, if there is none.
pub(crate) fn prefix_end(prefix: &[u8]) -> Bytes {
    let length = prefix.iter().rposition(|byte| *byte < 0xff).map_or(0, |last| last + 1);
    let mut end = prefix[..length].to_vec();
    match end.last_mut() {
        Some(last) => *last += 1,
        None => end.push(0),
    }
    end.into()
}

/// The request that the flags of `put` describe; `stdin` may hold the value.
pub(crate) fn put_request(args: &PutArgs, stdin: &mut dyn Read) -> Result<PutRequest, Error> {
    let arguments = || {
        let text = "put command needs 1 argument and input from stdin or 2 arguments";
        Error::BadArgs(text.to_owned())
    };
    let key = bytes_of(args.arguments.first().ok_or_else(arguments)?);
    if args.ignore_value && args.arguments.len() > 1 {
        let text = "put command needs only 1 argument when 'ignore-value' is set";
        return Err(Error::BadArgs(text.to_owned()));
    }
    let value = match args.arguments.get(1) {
        _ if args.ignore_value => Bytes::new(),
        Some(value) => bytes_of(value),
        None => {
            let mut value = Vec::new();
            let read = stdin.read_to_end(&mut value);
            if read.is_err() || value.is_empty() {
                return Err(arguments());
            }
            value.into()
        }
    };
    let lease = go::parse_int(&args.lease, 16)
        .map_err(|cause| Error::BadArgs(format!("bad lease ID ({cause}), expecting ID in Hex")))?;
    Ok(PutRequest {
        key,
        value,
        lease,
        prev_kv: args.prev_kv,
        ignore_value: args.ignore_value,
        ignore_lease: args.ignore_lease,
    })
}

/// The request that the flags of `del` describe.
///
/// As in etcdctl, a range without `--range` waits two seconds for second thoughts.
pub(crate) fn delete_request(args: &DelArgs) -> Result<DeleteRangeRequest, Error> {
    let (key, range_end) = match args.arguments.as_slice() {
        [key] => (key, None),
        [key, end] => (key, Some(end)),
        _ => {
            return Err(Error::BadArgs(
                "del command needs one argument as key and an optional argument as range_end"
                    .to_owned(),
            ));
        }
    };
    if args.prefix && args.from_key {
        return Err(Error::BadArgs(PREFIX_AND_FROM_KEY.to_owned()));
    }
    if let Some(end) = range_end {
        if args.prefix || args.from_key {
            return Err(Error::BadArgs(RANGE_END_TOO_MANY.to_owned()));
        }
        if !args.range {
            let (from, to) = (go::quote(key.as_bytes()), go::quote(end.as_bytes()));
            eprintln!(
                "Warning: Keys between {from} and {to} will be deleted. Please interrupt the \
                 command within next 2 seconds to cancel. You can provide `--range` flag to \
                 avoid the delay."
            );
            std::thread::sleep(Duration::from_secs(2));
        }
    }
    let (key, range_end) = key_range(key, range_end, args.prefix, args.from_key);
    Ok(DeleteRangeRequest { key, range_end, prev_kv: args.prev_kv })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{Cli, Verb};

    fn get_args(line: &[&str]) -> GetArgs {
        let line = ["quoratectl", "get"].iter().chain(line);
        match Cli::try_parse_from(line).unwrap().verb {
            Verb::Get(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn interval(line: &[&str]) -> (Vec<u8>, Vec<u8>) {
        let request = range_request(&get_args(line)).unwrap();
        (request.key.to_vec(), request.range_end.to_vec())
    }

    #[test]
    fn prefix_end_carries_over_high_bytes() {
        for (prefix, end) in [
            (&b"a"[..], &b"b"[..]),
            (b"a\xff", b"b"),
            (b"a\xff\xff", b"b"),
            (b"ab", b"ac"),
            (b"\xff", b"\0"),
            (b"\xff\xff", b"\0"),
            (b"", b"\0"),
        ] {
            assert_eq!(prefix_end(prefix), end, "{prefix:?}");
        }
    }

    #[test]
    fn keys_and_flags_become_intervals() {
        let pair = |key: &[u8], end: &[u8]| (key.to_vec(), end.to_vec());
        assert_eq!(interval(&["k"]), pair(b"k", b""));
        assert_eq!(interval(&["k", "l"]), pair(b"k", b"l"));
        assert_eq!(interval(&["k", "l", "ignored"]), pair(b"k", b"l"));
        assert_eq!(interval(&["--prefix", "k"]), pair(b"k", b"l"));
        assert_eq!(interval(&["--prefix", ""]), pair(b"\0", b"\0"));
        assert_eq!(interval(&["--from-key", "k"]), pair(b"k", b"\0"));
        assert_eq!(interval(&["--from-key", ""]), pair(b"\0", b"\0"));
    }

    #[test]
    fn ascending_keys_are_asked_for_unsorted() {
        assert_eq!(sort("ascend", "").unwrap(), (SortOrder::None, SortTarget::Key));
        assert_eq!(sort("Descend", "key").unwrap(), (SortOrder::Descend, SortTarget::Key));
        assert_eq!(sort("", "modify").unwrap(), (SortOrder::None, SortTarget::Mod));
        assert_eq!(sort("up", "").unwrap_err().to_string(), "bad sort order up");
        assert_eq!(sort("", "x").unwrap_err().exit_code(), 4);
    }

    #[test]
    fn a_missing_value_comes_from_standard_input() {
        let args = PutArgs {
            lease: "1f".to_owned(),
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
            arguments: vec![OsString::from("k")],
        };
        let request = put_request(&args, &mut &b"piped\n"[..]).unwrap();
        assert_eq!((request.value.as_ref(), request.lease), (&b"piped\n"[..], 31));
        assert_eq!(put_request(&args, &mut &b""[..]).unwrap_err().exit_code(), 128);
        let bad = PutArgs { lease: "zz".to_owned(), ..args };
        assert_eq!(
            put_request(&bad, &mut &b"v"[..]).unwrap_err().to_string(),
            r#"bad lease ID (strconv.ParseInt: parsing "zz": invalid syntax), expecting ID in Hex"#
        );
    }
}
