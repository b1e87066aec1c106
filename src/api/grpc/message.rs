//! Messages behind their prefix: one byte of flags, four of length.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::BodyExt;
use prost::Message;

use super::super::status::{Code, Status};
use super::gzip;
use super::head::{Call, Encoding, quoted};
use super::requests::RequestBody;

/// Compression flag and length in front of every message.
pub(crate) const PREFIX_BYTES: usize = 5;

/// The flag of a message that is as it is.
pub(super) const FLAG_PLAIN: u8 = 0;
/// The flag of a message that is compressed in the encoding of the call.
pub(super) const FLAG_COMPRESSED: u8 = 1;

/// grpc-go's text for a message that is shorter than announced.
pub(super) const UNEXPECTED_EOF: &str = "unexpected EOF";

/// The request of a call.
#[derive(Debug)]
pub(crate) struct Received {
    /// The first message.
    pub(crate) message: Bytes,
    rest: Rest,
}

/// What comes behind the first message.
#[derive(Debug)]
enum Rest {
    /// Nothing, or too little to tell what it is.
    Nothing,
    /// A message that is cut.
    Cut,
    /// A message.
    Message,
}

impl Received {
    /// The message of a server stream. As in grpc-go, a unary call does not look at what follows.
    pub(crate) fn only(self) -> Result<Bytes, Status> {
        let text = match self.rest {
            Rest::Nothing => return Ok(self.message),
            Rest::Cut => UNEXPECTED_EOF,
            Rest::Message => {
                "cardinality violation: received multiple request messages for \
                 non-client-streaming RPC"
            }
        };
        Err(Status::new(Code::Internal, text))
    }
}

impl Call {
    /// Reads the message of a call that has one, of at most `bytes_max` bytes.
    pub(crate) async fn receive<B: RequestBody>(
        &self,
        mut body: B,
        bytes_max: usize,
    ) -> Result<Received, Status> {
        self.check_encoding()?;
        let mut first = Bytes::new();
        let mut rest: Option<BytesMut> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Status::new(Code::Cancelled, error.to_string()))?;
            let Ok(data) = frame.into_data() else { break };
            match &mut rest {
                Some(buffer) => buffer.extend_from_slice(&data),
                None if first.is_empty() => first = data,
                None => {
                    let mut buffer = BytesMut::with_capacity(first.len() + data.len());
                    buffer.extend_from_slice(&first);
                    buffer.extend_from_slice(&data);
                    rest = Some(buffer);
                }
            }
            let so_far = rest.as_deref().unwrap_or(&first);
            if let Some(announced) = announced_bytes(so_far) {
                check_size(announced, bytes_max)?;
                let whole = PREFIX_BYTES + announced;
                let is_last = body.is_end_stream() && so_far.len() >= whole;
                if is_last || so_far.len() >= whole + PREFIX_BYTES {
                    break;
                }
            }
        }
        let is_ended = body.is_end_stream();
        let bytes = rest.map_or(first, BytesMut::freeze);
        let (flag, framed) = unframe(bytes, is_ended)?;
        let message = self.decompress(flag, framed.message, bytes_max)?;
        Ok(Received { message, ..framed })
    }

    /// Refuses a call whose messages nobody here can read.
    pub(super) fn check_encoding(&self) -> Result<(), Status> {
        let Encoding::Unknown(name) = &self.encoding else { return Ok(()) };
        let name = quoted(name.as_bytes());
        let text = format!("grpc: Decompressor is not installed for grpc-encoding {name}");
        Err(Status::new(Code::Unimplemented, text))
    }

    pub(super) fn decompress(
        &self,
        flag: u8,
        message: Bytes,
        bytes_max: usize,
    ) -> Result<Bytes, Status> {
        let text = match (flag, &self.encoding) {
            (FLAG_PLAIN, _) => return Ok(message),
            (FLAG_COMPRESSED, Encoding::Gzip) => return gzip::decompress(&message, bytes_max),
            (FLAG_COMPRESSED, _) => {
                "grpc: compressed flag set with identity or empty encoding".to_owned()
            }
            (flag, _) => format!("grpc: received unexpected payload format {flag}"),
        };
        Err(Status::new(Code::Internal, text))
    }
}

/// Takes the first message out of what came, which may be less than it, and its flag.
fn unframe(mut bytes: Bytes, is_ended: bool) -> Result<(u8, Received), Status> {
    let Some(announced) = announced_bytes(&bytes) else {
        return Err(Status::new(Code::Unknown, "EOF"));
    };
    let flag = bytes.get_u8();
    bytes.advance(PREFIX_BYTES - 1);
    if bytes.len() < announced {
        return Err(Status::new(Code::Unknown, UNEXPECTED_EOF));
    }
    let behind = bytes.split_off(announced);
    let rest = match announced_bytes(&behind) {
        None => Rest::Nothing,
        Some(announced) if is_ended && behind.len() < PREFIX_BYTES + announced => Rest::Cut,
        Some(_) => Rest::Message,
    };
    Ok((flag, Received { message: bytes, rest }))
}

/// grpc-go has another code for a cut message on a stream than on a unary call.
pub(crate) fn as_in_streams(status: Status) -> Status {
    let code = if status.message == UNEXPECTED_EOF { Code::Internal } else { status.code };
    Status { code, ..status }
}

/// The length that the prefix announces, once it is there.
pub(super) fn announced_bytes(buffer: &[u8]) -> Option<usize> {
    let [_, length @ ..] = buffer.first_chunk::<PREFIX_BYTES>()?;
    Some(u32::from_be_bytes(*length) as usize)
}

/// grpc-go's refusal of a message above the limit.
pub(super) fn check_size(announced: usize, bytes_max: usize) -> Result<(), Status> {
    if announced <= bytes_max {
        return Ok(());
    }
    let text = format!("grpc: received message larger than max ({announced} vs. {bytes_max})");
    Err(Status::new(Code::ResourceExhausted, text))
}

/// grpc-go's refusal to send a unary answer of `bytes` if that is above the limit.
pub(crate) fn check_answer_size(bytes: usize, bytes_max: usize) -> Result<(), Status> {
    check_sent_size("grpc: ", bytes, bytes_max)
}

/// As [`check_answer_size`], with the text that grpc-go has for messages of a stream.
pub(crate) fn check_streamed_size(bytes: usize, bytes_max: usize) -> Result<(), Status> {
    check_sent_size("", bytes, bytes_max)
}

fn check_sent_size(begin: &str, bytes: usize, bytes_max: usize) -> Result<(), Status> {
    if bytes <= bytes_max {
        return Ok(());
    }
    let text = format!("{begin}trying to send message larger than max ({bytes} vs. {bytes_max})");
    Err(Status::new(Code::ResourceExhausted, text))
}

/// Decodes a request; grpc-go's text if it is malformed.
pub(crate) fn decode<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    // As in etcd: the text does not tell what is wrong.
    M::decode(message).map_err(|_| {
        let text =
            "grpc: error unmarshalling request: proto: cannot parse invalid wire-format data";
        Status::new(Code::Internal, text)
    })
}

/// As [`decode`], with the text that grpc-go has for messages of a stream.
pub(crate) fn decode_in_stream<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message).map_err(|_| {
        let text = "grpc: failed to unmarshal the received message: proto: cannot parse invalid \
                    wire-format data";
        Status::new(Code::Internal, text)
    })
}

/// Encodes `message` behind its prefix.
pub(crate) fn encode<M: Message>(message: &M) -> Bytes {
    let mut frame = FrameBuilder::with_capacity(message.encoded_len());
    message.encode_raw(frame.buffer());
    frame.finish()
}

/// Builds one framed message in place.
pub(crate) struct FrameBuilder {
    buffer: BytesMut,
}

impl FrameBuilder {
    /// Room for a message of `message_bytes`.
    pub(crate) fn with_capacity(message_bytes: usize) -> Self {
        let mut buffer = BytesMut::with_capacity(PREFIX_BYTES + message_bytes);
        buffer.put_bytes(0, PREFIX_BYTES);
        FrameBuilder { buffer }
    }

    /// Where the message goes.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Fills in the length.
    pub(crate) fn finish(mut self) -> Bytes {
        let prefix = plain_prefix(self.buffer.len() - PREFIX_BYTES);
        self.buffer[..PREFIX_BYTES].copy_from_slice(&prefix);
        self.buffer.freeze()
    }
}

/// What stands in front of an uncompressed message of `length` bytes.
///
/// A length that does not fit is cut: such a message is refused, and not sent.
pub(super) fn plain_prefix(length: usize) -> [u8; PREFIX_BYTES] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [FLAG_PLAIN, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest_of(frames: &'static [u8], is_ended: bool) -> Result<Bytes, Status> {
        unframe(Bytes::from_static(frames), is_ended)?.1.only()
    }

    #[test]
    fn a_server_stream_takes_one_message() {
        assert_eq!(rest_of(b"\0\0\0\0\x01a", true).unwrap(), "a");
        assert_eq!(rest_of(b"\0\0\0\0\x01a\0\0", true).unwrap(), "a");
        let two = rest_of(b"\0\0\0\0\x01a\0\0\0\0\x01b", true).unwrap_err();
        assert!(two.message.starts_with("cardinality violation"));
        let cut = rest_of(b"\0\0\0\0\x01a\0\0\0\0\x02b", true).unwrap_err();
        assert_eq!(cut, Status::new(Code::Internal, UNEXPECTED_EOF));
        let coming = rest_of(b"\0\0\0\0\x01a\0\0\0\0\x02b", false).unwrap_err();
        assert_eq!(coming, two);
    }

    #[test]
    fn a_frame_carries_its_length() {
        let mut frame = FrameBuilder::with_capacity(3);
        frame.buffer().put_slice(b"abc");
        assert_eq!(&frame.finish()[..], b"\0\0\0\0\x03abc");
    }

    #[test]
    fn a_message_above_the_limit_is_refused_as_by_grpc_go() {
        let status = check_size(11, 10).unwrap_err();
        assert_eq!(status.message, "grpc: received message larger than max (11 vs. 10)");
        assert_eq!(status.code, Code::ResourceExhausted);
    }

    /// An answer of 4 GiB and more ended the member.
    #[test]
    fn an_answer_above_the_limit_is_refused_as_by_grpc_go() {
        assert_eq!(check_answer_size(10, 10), Ok(()));
        let status = check_answer_size(11, 10).unwrap_err();
        let text = "trying to send message larger than max (11 vs. 10)";
        assert_eq!(status, Status::new(Code::ResourceExhausted, format!("grpc: {text}")));
        let streamed = check_streamed_size(11, 10).unwrap_err();
        assert_eq!(streamed, Status::new(Code::ResourceExhausted, text));
        assert_eq!(plain_prefix(u32::MAX as usize + 1), [0, 255, 255, 255, 255]);
    }
}
