//! gRPC on hyper's HTTP/2, as thin as the protocol allows.
//!
//! The framing of a call is most of what a small request costs, so there is no middleware stack,
//! no boxed future and no interceptor here: one frame in, one frame and the trailers out. Codes and
//! texts of framing errors are those of grpc-go, which etcd's users see.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use prost::Message;
use tokio::sync::mpsc;

use super::status::{Code, Status};

/// Compression flag and length in front of every message.
pub(crate) const PREFIX_BYTES: usize = 5;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// The body of every answer on the client port.
pub enum Body {
    /// Nothing but the head.
    Empty,
    /// Plain HTTP content.
    Full(Option<Bytes>),
    /// One gRPC message, then an OK status.
    Unary(Option<Bytes>),
    /// The trailers after a unary message.
    Trailers(Option<Box<HeaderMap>>),
    /// Framed gRPC messages as they come; a status ends them, the channel's end means OK.
    Stream(mpsc::Receiver<Result<Bytes, Status>>),
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Body::Empty => Poll::Ready(None),
            Body::Full(content) => Poll::Ready(content.take().map(|bytes| Ok(Frame::data(bytes)))),
            Body::Unary(message) => {
                let frame = message.take().map(|bytes| Ok(Frame::data(bytes)));
                *self = Body::Trailers(Some(Box::new(ok_trailers())));
                Poll::Ready(frame)
            }
            Body::Trailers(trailers) => {
                Poll::Ready(trailers.take().map(|map| Ok(Frame::trailers(*map))))
            }
            Body::Stream(messages) => match messages.poll_recv(context) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Some(Ok(message))) => Poll::Ready(Some(Ok(Frame::data(message)))),
                Poll::Ready(end) => {
                    let trailers = match end {
                        Some(Err(status)) => status_headers(&status),
                        _ => ok_trailers(),
                    };
                    *self = Body::Empty;
                    Poll::Ready(Some(Ok(Frame::trailers(trailers))))
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Body::Empty | Body::Full(None) | Body::Trailers(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Empty => SizeHint::with_exact(0),
            Body::Full(content) => {
                SizeHint::with_exact(content.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            _ => SizeHint::default(),
        }
    }
}

fn ok_trailers() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}

fn status_headers(status: &Status) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(GRPC_STATUS, HeaderValue::from(status.code as i32));
    if !status.message.is_empty() {
        let text = percent_encode(&status.message);
        let value = HeaderValue::from_str(&text).expect("percent-encoded text is visible ASCII");
        headers.insert(GRPC_MESSAGE, value);
    }
    headers
}

/// `grpc-message` as the gRPC protocol wants it: everything but visible ASCII is escaped, and `%`.
fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'$' | b'&'..=b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

/// A successful unary answer; `message` carries its prefix already.
pub(crate) fn answer(message: Bytes) -> Response<Body> {
    with_body(Body::Unary(Some(message)))
}

/// A streamed answer.
pub(crate) fn answer_stream(messages: mpsc::Receiver<Result<Bytes, Status>>) -> Response<Body> {
    with_body(Body::Stream(messages))
}

fn with_body(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(http::header::CONTENT_TYPE, CONTENT_TYPE);
    response
}

/// A call that failed: the status stands in the head, there is no body.
pub(crate) fn refuse(status: &Status) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.headers_mut() = status_headers(status);
    response.headers_mut().insert(http::header::CONTENT_TYPE, CONTENT_TYPE);
    response
}

/// Reads the one message of a unary call, of at most `bytes_max` bytes.
pub(crate) async fn read_message(mut body: Incoming, bytes_max: usize) -> Result<Bytes, Status> {
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
        if let Some(announced) = announced_bytes(so_far)? {
            check_size(announced, bytes_max)?;
            if so_far.len() >= PREFIX_BYTES + announced && body_is_done(&body) {
                break;
            }
            if so_far.len() > PREFIX_BYTES + announced {
                return Err(Status::new(
                    Code::Internal,
                    "grpc: more than one message in a unary call",
                ));
            }
        }
    }
    let mut message = rest.map_or(first, BytesMut::freeze);
    let Some(announced) = announced_bytes(&message)? else {
        return Err(Status::new(Code::Internal, "grpc: the request carries no message"));
    };
    if message.len() - PREFIX_BYTES < announced {
        return Err(Status::new(Code::Internal, "unexpected EOF"));
    }
    message.advance(PREFIX_BYTES);
    message.truncate(announced);
    Ok(message)
}

fn body_is_done(body: &Incoming) -> bool {
    body.is_end_stream()
}

/// The length that the prefix announces, once it is there.
pub(crate) fn announced_bytes(buffer: &[u8]) -> Result<Option<usize>, Status> {
    let Some(prefix) = buffer.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
    if prefix[0] != 0 {
        let text = "grpc: Decompressor is not installed for grpc-encoding";
        return Err(Status::new(Code::Unimplemented, text));
    }
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    Ok(Some(length as usize))
}

/// grpc-go's refusal of a message above the limit.
pub(crate) fn check_size(announced: usize, bytes_max: usize) -> Result<(), Status> {
    if announced <= bytes_max {
        return Ok(());
    }
    let text = format!("grpc: received message larger than max ({announced} vs. {bytes_max})");
    Err(Status::new(Code::ResourceExhausted, text))
}

/// Decodes a request; grpc-go's text if it is malformed.
pub(crate) fn decode<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message).map_err(|error| {
        Status::new(Code::Internal, format!("grpc: error unmarshalling request: {error}"))
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
        let length = u32::try_from(self.buffer.len() - PREFIX_BYTES)
            .expect("an answer is bounded below 4 GiB");
        self.buffer[1..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
        self.buffer.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent_encode("etcdserver: 100% é"), "etcdserver: 100%25 %C3%A9");
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
}
