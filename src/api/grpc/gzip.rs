//! Compressed messages, for clients that ask for them.
//!
//! A small message can stand for a huge one, so the limit of a request holds for what comes out,
//! and decompression stops there.

use std::io::{Error, ErrorKind, Read, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

use super::super::status::{Code, Status};
use super::message::{FLAG_COMPRESSED, FLAG_PLAIN, PREFIX_BYTES};

/// The smallest gzip file has a header of this size.
const HEADER_BYTES: usize = 10;
/// How every gzip file begins, with the one method of compression that there is.
const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];

/// The message inside a compressed one, of at most `bytes_max` bytes.
pub(super) fn decompress(message: &[u8], bytes_max: usize) -> Result<Bytes, Status> {
    if let Some(problem) = header_problem(message) {
        let text = format!("grpc: failed to decompress the message: {problem}");
        return Err(Status::new(Code::Internal, text));
    }
    let mut out = Vec::new();
    let mut bounded = MultiGzDecoder::new(message).take(bytes_max as u64 + 1);
    if let Err(error) = bounded.read_to_end(&mut out) {
        let text = format!("grpc: failed to read decompressed data: {}", problem(&error));
        return Err(Status::new(Code::Internal, text));
    }
    if out.len() > bytes_max {
        let text =
            format!("grpc: received message after decompression larger than max {bytes_max}");
        return Err(Status::new(Code::ResourceExhausted, text));
    }
    Ok(out.into())
}

/// What is wrong with the begin of a message, in Go's words.
fn header_problem(message: &[u8]) -> Option<&'static str> {
    if message.is_empty() {
        return Some("EOF");
    }
    if message.len() < HEADER_BYTES {
        return Some("unexpected EOF");
    }
    (!message.starts_with(&MAGIC)).then_some("gzip: invalid header")
}

/// What is wrong behind the begin, in Go's words as far as they are known.
fn problem(error: &Error) -> String {
    if error.kind() == ErrorKind::UnexpectedEof {
        return "unexpected EOF".to_owned();
    }
    match error.to_string().as_str() {
        "invalid gzip header" => "gzip: invalid header".to_owned(),
        "corrupt gzip stream does not have a matching checksum" => {
            "gzip: invalid checksum".to_owned()
        }
        other => other.to_owned(),
    }
}

/// A framed message in gzip.
pub(super) fn compress(frame: &[u8]) -> Bytes {
    assert_eq!(frame[0], FLAG_PLAIN, "a message is compressed once");
    let mut prefix = vec![0; PREFIX_BYTES];
    prefix[0] = FLAG_COMPRESSED;
    let mut encoder = GzEncoder::new(prefix, Compression::default());
    let compressed = encoder.write_all(&frame[PREFIX_BYTES..]).and_then(|()| encoder.finish());
    let mut out = compressed.expect("a Vec takes every write");
    let length = u32::try_from(out.len() - PREFIX_BYTES);
    let length =
        length.expect("messages above 2 GiB are refused, and gzip adds less than one in 1000");
    out[1..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back() {
        let frame = compress(b"\0\0\0\0\x05hello");
        assert_eq!(frame[0], FLAG_COMPRESSED);
        assert_eq!(frame[1..PREFIX_BYTES], (frame.len() as u32 - 5).to_be_bytes());
        assert_eq!(decompress(&frame[PREFIX_BYTES..], 5).unwrap(), "hello");
    }

    #[test]
    fn a_bomb_is_refused_at_the_limit() {
        let mut bomb = vec![0; PREFIX_BYTES + (64 << 20)];
        bomb[1..PREFIX_BYTES].copy_from_slice(&(64_u32 << 20).to_be_bytes());
        let bomb = compress(&bomb);
        assert!(bomb.len() < 100_000);
        let status = decompress(&bomb[PREFIX_BYTES..], 1 << 20).unwrap_err();
        assert_eq!(status.code, Code::ResourceExhausted);
    }

    #[test]
    fn a_cut_or_wrong_message_is_refused() {
        let frame = compress(b"\0\0\0\0\x05hello");
        let whole = &frame[PREFIX_BYTES..];
        for end in 0..whole.len() {
            let status = decompress(&whole[..end], 100).unwrap_err();
            assert!(status.message.ends_with("EOF"), "{end}: {status}");
        }
        let mut wrong = whole.to_vec();
        let checksum = wrong.len() - 8;
        wrong[checksum] ^= 1;
        assert!(decompress(&wrong, 100).unwrap_err().message.ends_with("gzip: invalid checksum"));
        assert!(
            decompress(b"no gzip at all", 9).unwrap_err().message.ends_with("gzip: invalid header")
        );
    }
}
