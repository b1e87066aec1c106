//! Go's conventions for text: quoting, numbers, durations, sizes.
//!
//! etcdctl prints and parses with Go's standard library, so its users see `1.5s`, `"\x00"` and
//! `2.1 GB`. The functions here are pure and know nothing about etcd.

use std::{fmt::Write as _, time::Duration};

/// Writes bytes as Go's `%q` does: a double-quoted string, unprintable parts escaped.
pub(crate) fn quote(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 2);
    out.push('"');
    for chunk in bytes.utf8_chunks() {
        chunk.valid().chars().for_each(|c| quote_char(&mut out, c));
        for byte in chunk.invalid() {
            push_escaped(&mut out, format_args!("\\x{byte:02x}"));
        }
    }
    out.push('"');
    out
}

fn push_escaped(out: &mut String, escape: std::fmt::Arguments<'_>) {
    out.write_fmt(escape).expect("a String accepts every write");
}

fn quote_char(out: &mut String, c: char) {
    match c {
        '"' | '\\' => out.extend(['\\', c]),
        '\x07' => out.push_str("\\a"),
        '\x08' => out.push_str("\\b"),
        '\x0c' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\x0b' => out.push_str("\\v"),
        '\0'..='\x1f' | '\x7f' => push_escaped(out, format_args!("\\x{:02x}", c as u32)),
        _ if is_printable(c) => out.push(c),
        '\0'..='\u{ffff}' => push_escaped(out, format_args!("\\u{:04x}", c as u32)),
        _ => push_escaped(out, format_args!("\\U{:08x}", c as u32)),
    }
}

/// Whether Go prints the character as itself.
///
/// `str::escape_debug` knows the same table, but would also escape a combining mark in front;
/// hence the letter before it.
fn is_printable(c: char) -> bool {
    let mut text = String::from("a");
    text.push(c);
    text.escape_debug().nth(1) == Some(c)
}

/// Reads a Go string literal at the start of `text`: its bytes and what follows it.
///
/// Double quotes know escapes, backquotes do not. `None` if there is no well-formed literal.
pub(crate) fn unquote_prefix(text: &str) -> Option<(Vec<u8>, &str)> {
    if let Some(raw) = text.strip_prefix('`') {
        let (literal, rest) = raw.split_once('`')?;
        return Some((literal.as_bytes().to_vec(), rest));
    }
    let mut rest = text.strip_prefix('"')?;
    let mut bytes = Vec::new();
    loop {
        let mut chars = rest.chars();
        match chars.next()? {
            '"' => return Some((bytes, chars.as_str())),
            '\n' => return None,
            '\\' => rest = unescape(chars.as_str(), &mut bytes)?,
            c => {
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                rest = chars.as_str();
            }
        }
    }
}

/// Reads what follows a backslash and returns what follows the escape.
fn unescape<'a>(text: &'a str, bytes: &mut Vec<u8>) -> Option<&'a str> {
    let kind = text.chars().next()?;
    let rest = &text[kind.len_utf8()..];
    let simple = match kind {
        'a' => 0x07,
        'b' => 0x08,
        'f' => 0x0c,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 0x0b,
        '\\' | '"' => kind as u8,
        'x' => u8::from_str_radix(digits(rest, 2, 16)?, 16).ok()?,
        '0'..='7' => u8::from_str_radix(digits(text, 3, 8)?, 8).ok()?,
        'u' | 'U' => {
            let length = if kind == 'u' { 4 } else { 8 };
            let code = u32::from_str_radix(digits(rest, length, 16)?, 16).ok()?;
            let c = char::from_u32(code)?;
            bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            return Some(&rest[length..]);
        }
        _ => return None,
    };
    bytes.push(simple);
    Some(match kind {
        'x' => &rest[2..],
        '0'..='7' => &text[3..],
        _ => rest,
    })
}

fn digits(text: &str, length: usize, radix: u32) -> Option<&str> {
    text.get(..length).filter(|digits| digits.chars().all(|c| c.is_digit(radix)))
}

/// Parses like `strconv.ParseUint(text, radix, 64)` with a radix that is not 0.
pub(crate) fn parse_uint(text: &str, radix: u32) -> Result<u64, String> {
    let refused = |reason| {
        let text = quote(text.as_bytes());
        format!("strconv.ParseUint: parsing {text}: {reason}")
    };
    if text.is_empty() || !text.chars().all(|c| c.is_digit(radix)) {
        return Err(refused("invalid syntax"));
    }
    u64::from_str_radix(text, radix).map_err(|_| refused("value out of range"))
}

/// Parses like `strconv.ParseInt(text, radix, 64)`; radix 0 takes it from a prefix such as `0x`.
pub(crate) fn parse_int(text: &str, radix: u32) -> Result<i64, String> {
    let (negative, unsigned) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let (digits, radix) = if radix == 0 { radix_prefix(unsigned) } else { (unsigned, radix) };
    let syntax = || format!("strconv.ParseInt: parsing {}: invalid syntax", quote(text.as_bytes()));
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(syntax());
    }
    let signed = if negative { format!("-{digits}") } else { digits.to_owned() };
    i64::from_str_radix(&signed, radix).map_err(|_| {
        format!("strconv.ParseInt: parsing {}: value out of range", quote(text.as_bytes()))
    })
}

fn radix_prefix(digits: &str) -> (&str, u32) {
    for (prefix, radix) in [("0x", 16), ("0X", 16), ("0b", 2), ("0B", 2), ("0o", 8), ("0O", 8)] {
        if let Some(rest) = digits.strip_prefix(prefix) {
            return (rest, radix);
        }
    }
    if digits.len() > 1 && digits.starts_with('0') { (&digits[1..], 8) } else { (digits, 10) }
}

/// Parses like `strconv.ParseBool`.
pub(crate) fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("strconv.ParseBool: parsing {}: invalid syntax", quote(text.as_bytes()))),
    }
}

/// Parses like `time.ParseDuration`; a negative duration becomes zero.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let quoted = quote(text.as_bytes());
    let invalid = || format!("time: invalid duration {quoted}");
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if unsigned == "0" {
        return Ok(Duration::ZERO);
    }
    if unsigned.is_empty() {
        return Err(invalid());
    }
    let mut rest = unsigned;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..end].parse().map_err(|_| invalid())?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let scale = match &rest[..end] {
            "" => return Err(format!("time: missing unit in duration {quoted}")),
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            unit => {
                let unit = quote(unit.as_bytes());
                return Err(format!("time: unknown unit {unit} in duration {quoted}"));
            }
        };
        seconds += number * scale;
        rest = &rest[end..];
    }
    let seconds = if text.starts_with('-') { 0.0 } else { seconds };
    Duration::try_from_secs_f64(seconds).map_err(|_| invalid())
}

/// Writes a duration as Go does: `1h2m3.5s`, `4.2ms`, `0s`.
pub(crate) fn format_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let fraction = |whole: u128, part: u128, width: usize| {
        let digits = format!("{part:0width$}");
        match digits.trim_end_matches('0') {
            "" => whole.to_string(),
            digits => format!("{whole}.{digits}"),
        }
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}µs", fraction(nanos / 1_000, nanos % 1_000, 3)),
        1_000_000..1_000_000_000 => {
            format!("{}ms", fraction(nanos / 1_000_000, nanos % 1_000_000, 6))
        }
        _ => {
            let seconds = nanos / 1_000_000_000;
            let tail = fraction(seconds % 60, nanos % 1_000_000_000, 9);
            match (seconds / 3600, seconds / 60 % 60) {
                (0, 0) => format!("{tail}s"),
                (0, minutes) => format!("{minutes}m{tail}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{tail}s"),
            }
        }
    }
}

/// Writes a size in decimal units with at most one digit after the point: `29 kB`, `2.1 GB`.
pub(crate) fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let mut exponent = 0;
    let mut scale = 1_u64;
    while bytes / scale >= 1000 {
        scale *= 1000;
        exponent += 1;
    }
    let tenths = (bytes as f64 / scale as f64 * 10.0 + 0.5).floor();
    let value = tenths / 10.0;
    let unit = UNITS[exponent];
    if value < 10.0 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_follows_go() {
        assert_eq!(quote(b"plain"), r#""plain""#);
        assert_eq!(quote(b"\xff\x00\x07\n\"\\\x7f"), r#""\xff\x00\a\n\"\\\x7f""#);
        let mixed = "é\u{301}\u{200b}\u{ad}😀\u{e000}\u{10ffff}";
        assert_eq!(
            quote(mixed.as_bytes()),
            "\"é\u{301}\\u200b\\u00ad😀\\ue000\\U0010ffff\"",
            "marks and symbols stay, format and private characters are escaped"
        );
    }

    #[test]
    fn unquoting_reads_one_literal_and_leaves_the_rest() {
        let (bytes, rest) = unquote_prefix(r#""a\x62\143\u00e9\U0001F600\"\n" tail"#).unwrap();
        assert_eq!(bytes, "abcé😀\"\n".as_bytes());
        assert_eq!(rest, " tail");
        assert_eq!(unquote_prefix("`a\\n`)").unwrap(), (b"a\\n".to_vec(), ")"));
        for bad in [r#""open"#, r#""\q""#, r#""\'""#, r#""\ud800""#, r#""\x4"#, "bare", "'k'", ""] {
            assert!(unquote_prefix(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn integers_follow_strconv() {
        assert_eq!(parse_int("-12", 10), Ok(-12));
        assert_eq!(parse_int("+7", 10), Ok(7));
        assert_eq!(parse_int("7fffffffffffffff", 16), Ok(i64::MAX));
        assert_eq!(parse_uint("ffffffffffffffff", 16), Ok(u64::MAX));
        assert!(parse_uint("+1", 16).is_err() && parse_uint("", 16).is_err());
        assert!(parse_uint("10000000000000000", 16).unwrap_err().ends_with("out of range"));
        assert_eq!(parse_int("0x10", 0), Ok(16));
        assert_eq!(parse_int("010", 0), Ok(8));
        assert_eq!(
            parse_int("x", 10).unwrap_err(),
            r#"strconv.ParseInt: parsing "x": invalid syntax"#
        );
        assert!(parse_int("99999999999999999999", 10).unwrap_err().ends_with("out of range"));
        assert!(parse_int("-", 10).is_err() && parse_int("+-1", 10).is_err());
    }

    #[test]
    fn durations_are_parsed_and_written_as_go_does() {
        for (text, millis) in [("5s", 5000), ("1m1.5s", 61_500), ("100ms", 100), ("0", 0)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(parse_duration("5").unwrap_err(), r#"time: missing unit in duration "5""#);
        assert_eq!(parse_duration("x").unwrap_err(), r#"time: invalid duration "x""#);
        assert_eq!(parse_duration("5x").unwrap_err(), r#"time: unknown unit "x" in duration "5x""#);
        for (nanos, text) in [
            (0, "0s"),
            (15, "15ns"),
            (4_200, "4.2µs"),
            (4_217_758, "4.217758ms"),
            (1_000_585_796, "1.000585796s"),
            (3_723_500_000_000, "1h2m3.5s"),
            (60_000_000_000, "1m0s"),
        ] {
            assert_eq!(format_duration(Duration::from_nanos(nanos)), text);
        }
    }

    #[test]
    fn sizes_round_to_two_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (9, "9 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (16_384, "16 kB"),
            (28_672, "29 kB"),
            (2_147_483_648, "2.1 GB"),
            (9_960, "10 kB"),
        ] {
            assert_eq!(format_bytes(bytes), text);
        }
    }
}
