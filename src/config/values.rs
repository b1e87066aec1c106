//! The types of flag values and Go's way to read them, with the texts of Go's `flag` package.

use std::time::Duration;

use thiserror::Error;

use super::url::{Url, UrlError};
use crate::logging::LogLevel;

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Any text.
    Text,
    /// `true` or `false`; the flag alone means `true`, a value needs `=`.
    Bool,
    /// An unsigned number, also as `0x…`, `0o…`, `0b…`.
    Uint,
    /// An unsigned number of 32 bits.
    Uint32,
    /// A signed number.
    Int,
    /// `1h2m3.5s`; never negative.
    Duration,
    /// Comma-separated URLs.
    Urls,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// One of these words; as in etcd, where two types do the same, the refusal says the wrong one twice.
    OneOfTold(&'static [&'static str]),
    /// A log level.
    Level,
    /// `Gate=true,Other=false` with known gates only.
    FeatureGates,
    /// A flag of etcd's past that takes nothing and means nothing.
    Nothing,
}

impl Kind {
    /// Whether the flag may stand alone and never takes the next argument.
    pub(super) fn stands_alone(self) -> bool {
        matches!(self, Self::Bool | Self::Nothing)
    }
}

/// A value that was read successfully.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Bool(bool),
    Uint(u64),
    Int(i64),
    Duration(Duration),
    Urls(Vec<Url>),
    Level(LogLevel),
    Nothing,
}

/// Why a value was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum ValueError {
    #[error("parse error")]
    Parse,
    #[error("value out of range")]
    Range,
    #[error("strconv.ParseUint: parsing {0:?}: value out of range")]
    Range32(String),
    #[error("the duration must not be negative")]
    Negative,
    #[error("invalid value")]
    NoSuchWord,
    #[error("invalid value {0:?}")]
    NoSuchWordTold(String),
    #[error("unrecognized level: {0:?}")]
    Level(String),
    #[error("missing bool value for {0}")]
    GateWithoutValue(String),
    #[error("invalid value of {pair}, err: strconv.ParseBool: parsing {value:?}: invalid syntax")]
    GateValue { pair: String, value: String },
    #[error("unrecognized feature gate: {0}")]
    UnknownGate(String),
    #[error(transparent)]
    Url(#[from] UrlError),
}

/// The gates that etcd 3.7 knows. An unknown one is refused, as in etcd.
const FEATURE_GATES: [&str; 11] = [
    "AllAlpha",
    "AllBeta",
    "CompactHashCheck",
    "FastLeaseKeepAlive",
    "InitialCorruptCheck",
    "LeaseCheckpoint",
    "LeaseCheckpointPersist",
    "PriorityRequest",
    "SetMemberLocalAddr",
    "StopGRPCServiceOnDefrag",
    "TxnModeWriteWithSharedBuffer",
];

/// Reads `text` as a value of `kind`.
pub(super) fn parse(kind: Kind, text: &str) -> Result<Value, ValueError> {
    Ok(match kind {
        Kind::Text => Value::Text(text.to_owned()),
        Kind::Bool => Value::Bool(parse_bool(text).ok_or(ValueError::Parse)?),
        Kind::Uint => Value::Uint(parse_uint(text)?),
        Kind::Uint32 => match parse_uint(text)? {
            n if n > u64::from(u32::MAX) => return Err(ValueError::Range32(text.to_owned())),
            n => Value::Uint(n),
        },
        Kind::Int => Value::Int(parse_int(text)?),
        Kind::Duration => Value::Duration(parse_duration(text)?),
        // As in etcd: an empty list leaves the default in place, see `Values::urls`.
        Kind::Urls if text.is_empty() => Value::Urls(Vec::new()),
        Kind::Urls => Value::Urls(Url::parse_list(text)?),
        Kind::OneOf(words) | Kind::OneOfTold(words) if words.contains(&text) => {
            Value::Text(text.to_owned())
        }
        Kind::OneOf(_) => return Err(ValueError::NoSuchWord),
        Kind::OneOfTold(_) => return Err(ValueError::NoSuchWordTold(text.to_owned())),
        Kind::Level => Value::Level(text.parse().map_err(|()| ValueError::Level(text.to_owned()))?),
        Kind::FeatureGates => {
            check_feature_gates(text)?;
            Value::Text(text.to_owned())
        }
        Kind::Nothing => Value::Nothing,
    })
}

fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Go's base rules: `0x`, `0o`, `0b` and a leading zero choose the base.
fn parse_uint(text: &str) -> Result<u64, ValueError> {
    let lower = text.to_ascii_lowercase();
    let (digits, base) = match lower.as_bytes() {
        [b'0', b'x', ..] => (&lower[2..], 16),
        [b'0', b'o', ..] => (&lower[2..], 8),
        [b'0', b'b', ..] => (&lower[2..], 2),
        [b'0', _, ..] => (&lower[1..], 8),
        _ => (lower.as_str(), 10),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(base)) {
        return Err(ValueError::Parse);
    }
    u64::from_str_radix(digits, base).map_err(|_| ValueError::Range)
}

fn parse_int(text: &str) -> Result<i64, ValueError> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let magnitude = i128::from(parse_uint(digits)?);
    let signed = if negative { -magnitude } else { magnitude };
    i64::try_from(signed).map_err(|_| ValueError::Range)
}

/// Go's `1h2m3.5s`. A bare number other than 0 is refused: it does not say its unit.
fn parse_duration(text: &str) -> Result<Duration, ValueError> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(ValueError::Parse);
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let (nanoseconds, tail) = parse_duration_part(rest).ok_or(ValueError::Parse)?;
        total = total.checked_add(nanoseconds).ok_or(ValueError::Parse)?;
        rest = tail;
    }
    if negative && total > 0 {
        return Err(ValueError::Negative);
    }
    // Go counts nanoseconds in 63 bits, 292 years.
    let nanoseconds = i64::try_from(total).map_err(|_| ValueError::Parse)?;
    Ok(Duration::from_nanos(nanoseconds.unsigned_abs()))
}

/// Reads one `number unit` and returns its nanoseconds and what follows.
fn parse_duration_part(text: &str) -> Option<(u128, &str)> {
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, rest) = text.split_at(number_end);
    let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(unit_end);
    let scale: u128 = match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let digits = |d: &str| if d.is_empty() { Some(0) } else { d.parse::<u64>().ok() };
    // More digits than this are below a nanosecond in every unit.
    let fraction = fraction.get(..fraction.len().min(15))?;
    let tenth_power = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let below_one = u128::from(digits(fraction)?) * scale / tenth_power;
    Some((u128::from(digits(whole)?) * scale + below_one, rest))
}

fn check_feature_gates(text: &str) -> Result<(), ValueError> {
    let pairs: Vec<&str> = text.split(',').map(str::trim).filter(|p| !p.is_empty()).collect();
    for pair in &pairs {
        let (gate, value) =
            pair.split_once('=').ok_or_else(|| ValueError::GateWithoutValue((*pair).to_owned()))?;
        let (gate, value) = (gate.trim(), value.trim());
        if parse_bool(value).is_none() {
            let (pair, value) = (format!("{gate}={value}"), value.to_owned());
            return Err(ValueError::GateValue { pair, value });
        }
        if !FEATURE_GATES.contains(&gate) {
            return Err(ValueError::UnknownGate(gate.to_owned()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_go() {
        for (text, expected) in [
            ("100", Ok(100)),
            ("0x10", Ok(16)),
            ("010", Ok(8)),
            ("0b101", Ok(5)),
            ("0", Ok(0)),
            ("", Err(ValueError::Parse)),
            ("-5", Err(ValueError::Parse)),
            ("+5", Err(ValueError::Parse)),
            ("0x", Err(ValueError::Parse)),
            ("18446744073709551615", Ok(u64::MAX)),
            ("18446744073709551616", Err(ValueError::Range)),
        ] {
            assert_eq!(parse(Kind::Uint, text), expected.map(Value::Uint), "{text:?}");
        }
        for (text, expected) in [
            ("-1", Ok(-1)),
            ("+1", Ok(1)),
            ("-9223372036854775808", Ok(i64::MIN)),
            ("-9223372036854775809", Err(ValueError::Range)),
            ("1.5", Err(ValueError::Parse)),
        ] {
            assert_eq!(parse(Kind::Int, text), expected.map(Value::Int), "{text:?}");
        }
        assert_eq!(parse(Kind::Uint32, "4294967295"), Ok(Value::Uint(4_294_967_295)));
        assert_eq!(
            parse(Kind::Uint32, "99999999999").unwrap_err().to_string(),
            "strconv.ParseUint: parsing \"99999999999\": value out of range"
        );
    }

    #[test]
    fn durations_follow_go() {
        let nanos = |n| Ok(Value::Duration(Duration::from_nanos(n)));
        for (text, expected) in [
            ("0", nanos(0)),
            ("300ms", nanos(300_000_000)),
            ("1h2m3.5s", nanos(3_723_500_000_000)),
            (".5s", nanos(500_000_000)),
            ("1.s", nanos(1_000_000_000)),
            ("1µs", nanos(1_000)),
            ("0.3333333333333333333h", nanos(1_199_999_999_999)),
            ("-0s", nanos(0)),
            ("5", Err(ValueError::Parse)),
            ("", Err(ValueError::Parse)),
            ("s", Err(ValueError::Parse)),
            (".s", Err(ValueError::Parse)),
            ("1d", Err(ValueError::Parse)),
            ("1s1", Err(ValueError::Parse)),
            ("1..5s", Err(ValueError::Parse)),
            ("9999999h", Err(ValueError::Parse)),
            ("-1s", Err(ValueError::Negative)),
        ] {
            assert_eq!(parse(Kind::Duration, text), expected, "{text:?}");
        }
    }

    #[test]
    fn gates_are_known_and_boolean() {
        let refusal = |text| parse(Kind::FeatureGates, text).unwrap_err().to_string();
        assert!(parse(Kind::FeatureGates, "InitialCorruptCheck=true, AllBeta=f,").is_ok());
        assert_eq!(refusal("Nope=true"), "unrecognized feature gate: Nope");
        assert_eq!(refusal("LeaseCheckpoint"), "missing bool value for LeaseCheckpoint");
        assert_eq!(
            refusal("InitialCorruptCheck=zzz"),
            "invalid value of InitialCorruptCheck=zzz, err: strconv.ParseBool: parsing \"zzz\": \
             invalid syntax"
        );
    }
}
