//! What the head of a call says: how the message is encoded and whether the call is gRPC at all.
//!
//! Every call pays for this, so it is one pass over the few headers that calls have, without an
//! allocation. Nothing here is looked at twice. Order and texts of the refusals are grpc-go's.

use std::time::{Duration, Instant};

use http::request::Parts;
use http::{HeaderValue, Method, StatusCode};

use super::super::status::{Code, Status};

const GRPC: &[u8] = b"application/grpc";

/// How messages of a call are compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// They are not.
    Identity,
    /// By gzip; the answer comes in gzip, too.
    Gzip,
    /// In a way that nobody here knows.
    Unknown(HeaderValue),
}

/// The head of one call.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(super) encoding: Encoding,
    /// The content type to answer with, if it is more than plain gRPC.
    pub(super) content_type: Option<HeaderValue>,
    /// The release that the client says it has.
    version: Option<HeaderValue>,
    /// Whether the client wants nothing from a member that has no leader.
    pub(crate) needs_leader: bool,
    /// When nobody waits for the answer any more, if the client said so.
    pub(crate) deadline: Option<Instant>,
}

/// A request that is refused below gRPC: clients that know only HTTP understand it, too.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(super) http: StatusCode,
    pub(super) status: Status,
    pub(super) content_type: Option<HeaderValue>,
}

impl Call {
    /// Reads the head of a request; asks for the time only if there is a timeout.
    pub(crate) fn read(head: &Parts, now: impl Fn() -> Instant) -> Result<Call, Refusal> {
        let mut call = Call {
            encoding: Encoding::Identity,
            content_type: None,
            version: None,
            needs_leader: false,
            deadline: None,
        };
        let mut timeout = None;
        let mut leader_asked = false;
        let mut content_type = None;
        let mut malformed = None;
        for (name, value) in &head.headers {
            match name.as_str() {
                "content-type" => content_type = Some(value),
                "grpc-encoding" => call.encoding = encoding(value),
                "grpc-timeout" => match read_timeout(value.as_bytes()) {
                    Ok(read) => timeout = Some(read),
                    Err(problem) => malformed = Some(problem),
                },
                "client-api-version" => {
                    call.version.get_or_insert_with(|| value.clone());
                }
                // As in etcd: of several values the first counts.
                "hasleader" if !leader_asked => {
                    leader_asked = true;
                    call.needs_leader = value.as_bytes() == b"true";
                }
                name if name.ends_with("-bin") => {
                    malformed = check_binary(name, value.as_bytes()).err().or(malformed);
                }
                _ => {}
            }
        }
        call.content_type = answered_type(content_type)?;
        let refusal = if let Some(text) = malformed {
            (StatusCode::BAD_REQUEST, text)
        } else if head.method != Method::POST {
            let method = quoted(head.method.as_str().as_bytes());
            let text =
                format!("Received a HEADERS frame with :method {method} which should be POST");
            (StatusCode::METHOD_NOT_ALLOWED, text)
        } else if timeout == Some(Duration::ZERO) {
            let (http, status) = (StatusCode::OK, Status::late());
            return Err(Refusal { http, status, content_type: call.content_type });
        } else {
            // Beyond the end of time is never.
            call.deadline = timeout.and_then(|timeout| now().checked_add(timeout));
            return Ok(call);
        };
        let (http, text) = refusal;
        let status = Status::new(Code::Internal, text);
        Err(Refusal { http, status, content_type: call.content_type })
    }

    /// The release of the client, if it says one.
    ///
    /// # Errors
    /// As in etcd: it is counted under a label, which must be text.
    pub(crate) fn version(&self) -> Result<Option<&str>, Status> {
        let version = self.version.as_ref().map(|version| std::str::from_utf8(version.as_bytes()));
        version.transpose().map_err(|_| {
            Status::new(Code::InvalidArgument, "etcdserver: invalid client api version")
        })
    }
}

fn encoding(value: &HeaderValue) -> Encoding {
    match value.as_bytes() {
        b"" | b"identity" => Encoding::Identity,
        b"gzip" => Encoding::Gzip,
        _ => Encoding::Unknown(value.clone()),
    }
}

/// The type of the answer: the subtype of the request comes back, whatever it is.
fn answered_type(asked: Option<&HeaderValue>) -> Result<Option<HeaderValue>, Refusal> {
    let asked = asked.map_or(&b""[..], HeaderValue::as_bytes);
    match asked.strip_prefix(GRPC) {
        Some([] | [b'+' | b';']) => Ok(None),
        Some([b'+' | b';', subtype @ ..]) => {
            let answered = [GRPC, b"+", subtype].concat();
            Ok(Some(HeaderValue::from_bytes(&answered).expect("it was part of a header value")))
        }
        Some(_) | None => {
            let text = format!("invalid gRPC request content-type {}", quoted(asked));
            let status = Status::new(Code::InvalidArgument, text);
            Err(Refusal { http: StatusCode::UNSUPPORTED_MEDIA_TYPE, status, content_type: None })
        }
    }
}

/// What `grpc-timeout` says with up to eight digits and a unit.
fn read_timeout(timeout: &[u8]) -> Result<Duration, String> {
    let problem = match timeout {
        [digits @ .., unit @ (b'H' | b'M' | b'S' | b'm' | b'u' | b'n')]
            if (1..=8).contains(&digits.len()) =>
        {
            if digits.iter().all(u8::is_ascii_digit) {
                let number = digits.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
                return Ok(match unit {
                    b'H' => Duration::from_secs(number * 3600),
                    b'M' => Duration::from_secs(number * 60),
                    b'S' => Duration::from_secs(number),
                    b'm' => Duration::from_millis(number),
                    b'u' => Duration::from_micros(number),
                    _ => Duration::from_nanos(number),
                });
            }
            format!("strconv.ParseUint: parsing {}: invalid syntax", quoted(digits))
        }
        [] | [_] => format!("transport: timeout string is too short: {}", quoted(timeout)),
        [..] if timeout.len() > 9 => {
            format!("transport: timeout string is too long: {}", quoted(timeout))
        }
        [..] => format!("transport: timeout unit is not recognized: {}", quoted(timeout)),
    };
    Err(format!("malformed grpc-timeout: {problem}"))
}

/// Whether metadata whose name says that it is binary is base64, with or without padding.
fn check_binary(name: &str, value: &[u8]) -> Result<(), String> {
    let padding = match value {
        [.., b'=', b'='] if value.len().is_multiple_of(4) => 2,
        [.., b'='] if value.len().is_multiple_of(4) => 1,
        _ => 0,
    };
    let digits = &value[..value.len() - padding];
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    let wrong = digits.iter().position(|byte| !is_digit(byte));
    // One digit beyond full groups of four is less than a byte.
    let lonely = (digits.len() % 4 == 1).then(|| digits.len() - 1);
    let Some(at) = wrong.or(lonely) else { return Ok(()) };
    let value = quoted(value);
    Err(format!(
        "malformed binary metadata {value} in header \"{name}\": illegal base64 data at input byte {at}"
    ))
}

/// A text in quotes as Go's `%q` writes it.
pub(super) fn quoted(text: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in text.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '"' | '\\' => out.extend(['\\', character]),
                '\t' => out.push_str("\\t"),
                _ if character.is_control() => {
                    out.push_str(&format!("\\x{:02x}", character as u32))
                }
                _ => out.push(character),
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn read(headers: &[(&str, &[u8])]) -> Result<Call, Refusal> {
        let mut request = http::Request::post("/a/b");
        for &(name, value) in headers {
            request = request.header(name, value);
        }
        Call::read(&request.body(()).unwrap().into_parts().0, clock::now)
    }

    #[test]
    fn subtypes_come_back_and_other_types_are_refused() {
        let answered =
            |asked: &[u8]| read(&[("content-type", asked)]).map(|call| call.content_type);
        assert_eq!(answered(b"application/grpc"), Ok(None));
        assert_eq!(answered(b"application/grpc+"), Ok(None));
        let subtype = Some(HeaderValue::from_static("application/grpc+proto"));
        assert_eq!(answered(b"application/grpc+proto"), Ok(subtype.clone()));
        assert_eq!(answered(b"application/grpc;proto"), Ok(subtype));
        let refusal = answered(b"application/grpc-web").unwrap_err();
        assert_eq!(refusal.http, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }

    #[test]
    fn timeouts_are_digits_and_a_unit() {
        for (good, nanoseconds) in [
            (&b"1n"[..], 1),
            (b"20u", 20_000),
            (b"3m", 3_000_000),
            (b"4S", 4_000_000_000),
            (b"1M", 60_000_000_000),
            (b"1H", 3_600_000_000_000),
            (b"99999999H", 359_999_996_400_000_000_000),
            (b"0S", 0),
        ] {
            assert_eq!(read_timeout(good).unwrap().as_nanos(), nanoseconds);
        }
        for (bad, problem) in [
            (&b""[..], "string is too short: \"\""),
            (b"S", "string is too short: \"S\""),
            (b"123456789S", "string is too long"),
            (b"12", "unit is not recognized: \"12\""),
            (b"-1S", "parsing \"-1\": invalid syntax"),
        ] {
            assert!(read_timeout(bad).unwrap_err().contains(problem));
        }
    }

    #[test]
    fn a_call_without_time_is_refused() {
        let grpc: (&str, &[u8]) = ("content-type", b"application/grpc");
        assert_eq!(read(&[grpc]).unwrap().deadline, None);
        assert!(read(&[grpc, ("grpc-timeout", b"99999999H")]).unwrap().deadline.is_some());
        let refusal = read(&[grpc, ("grpc-timeout", b"0m")]).unwrap_err();
        assert_eq!((refusal.http, refusal.status), (StatusCode::OK, Status::late()));
    }

    #[test]
    fn binary_metadata_is_base64() {
        for good in [&b""[..], b"AAEC", b"AAE=", b"AAE", b"AA==", b"AA", b"+/+/"] {
            assert_eq!(check_binary("x-bin", good), Ok(()));
        }
        for (bad, at) in [(&b"!!!"[..], 0), (b"AA!A", 2), (b"A", 0), (b"AAAAA", 4), (b"AA=", 2)] {
            assert!(check_binary("x-bin", bad).unwrap_err().ends_with(&format!("byte {at}")));
        }
    }

    #[test]
    fn quotes_escape_what_is_not_text() {
        assert_eq!(quoted(b"a\"\\\t\xff\xc3\xa4\x01"), "\"a\\\"\\\\\\t\\xff\u{e4}\\x01\"");
    }
}
