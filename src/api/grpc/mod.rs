//! gRPC on hyper's HTTP/2, as thin as the protocol allows.
//!
//! The framing of a call is most of what a small request costs, so there is no middleware stack,
//! no boxed future and no interceptor here: one frame in, one frame and the trailers out. Codes and
//! texts of framing errors are those of grpc-go, which etcd's users see.
//!
//! - `head`: what the headers of a call say.
//! - `message`: messages and their prefix.
//! - `gzip`: messages that are compressed.
//! - `requests`, `answers`: both directions of a stream that stays open.
//! - here: answers as bodies.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::mpsc;

use super::status::Status;

mod answers;
mod gzip;
mod head;
mod message;
mod requests;

pub use answers::AnswerQueue;
pub(crate) use answers::{Answers, Meter};
pub(crate) use head::{Call, Encoding, Refusal};
pub(crate) use message::{
    FrameBuilder, PREFIX_BYTES, as_in_streams, check_answer_size, check_streamed_size, decode,
    decode_in_stream, encode,
};
pub use requests::RequestBody;
pub(crate) use requests::Requests;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

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
    /// The same in gzip.
    GzipStream(mpsc::Receiver<Result<Bytes, Status>>),
    /// What a bidi stream answers.
    Answers(AnswerQueue),
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
            Body::Stream(messages) => {
                let message = ready!(messages.poll_recv(context));
                Poll::Ready(Some(Ok(self.next_frame(message, |message| message))))
            }
            Body::GzipStream(messages) => {
                let message = ready!(messages.poll_recv(context));
                Poll::Ready(Some(Ok(self.next_frame(message, |message| gzip::compress(&message)))))
            }
            Body::Answers(queue) => queue.poll_frame(context).map(|frame| frame.map(Ok)),
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

impl Body {
    /// What a stream sends next: a message, or the trailers, after which it is empty.
    fn next_frame(
        &mut self,
        message: Option<Result<Bytes, Status>>,
        encode: impl FnOnce(Bytes) -> Bytes,
    ) -> Frame<Bytes> {
        let trailers = match message {
            Some(Ok(message)) => return Frame::data(encode(message)),
            Some(Err(status)) => status_headers(&status),
            None => ok_trailers(),
        };
        *self = Body::Empty;
        Frame::trailers(trailers)
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

/// What a stream may take and keep.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// The largest message that is taken.
    pub(crate) request_bytes_max: usize,
    /// The largest message that is sent.
    pub(crate) answer_bytes_max: usize,
    /// About how much may wait to be sent.
    pub(crate) answers_bytes_max: usize,
}

const PLAIN_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");

impl Call {
    /// A successful unary answer; `message` carries its prefix already.
    pub(crate) fn answer(&self, message: Bytes) -> Response<Body> {
        match self.encoding {
            Encoding::Gzip => self.with_body(Body::Unary(Some(gzip::compress(&message)))),
            Encoding::Identity | Encoding::Unknown(_) => self.with_body(Body::Unary(Some(message))),
        }
    }

    /// A streamed answer.
    pub(crate) fn answer_stream(
        &self,
        messages: mpsc::Receiver<Result<Bytes, Status>>,
    ) -> Response<Body> {
        match self.encoding {
            Encoding::Gzip => self.with_body(Body::GzipStream(messages)),
            Encoding::Identity | Encoding::Unknown(_) => self.with_body(Body::Stream(messages)),
        }
    }

    /// Opens both directions of a call.
    ///
    /// The queue is for [`Call::answer_open`]; whoever keeps the other two serves the call.
    pub(crate) fn open<B: RequestBody>(
        &self,
        body: B,
        bounds: Bounds,
        meter: Meter,
    ) -> Result<(Requests<B>, Answers, AnswerQueue), Status> {
        self.check_encoding()?;
        let requests = Requests::new(self.clone(), body, bounds.request_bytes_max);
        let is_gzip = self.encoding == Encoding::Gzip;
        let (answers, queue) = answers::answers(bounds, is_gzip, meter);
        Ok((requests, answers, queue))
    }

    /// The answer to a call that stays open.
    pub(crate) fn answer_open(&self, queue: AnswerQueue) -> Response<Body> {
        self.with_body(Body::Answers(queue))
    }

    fn with_body(&self, body: Body) -> Response<Body> {
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, self.content_type.clone().unwrap_or(PLAIN_TYPE));
        if self.encoding == Encoding::Gzip {
            headers.insert(GRPC_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }

    /// A call that failed: the status stands in the head, there is no body.
    pub(crate) fn refuse(&self, status: &Status) -> Response<Body> {
        refuse(status, self.content_type.as_ref())
    }
}

impl Refusal {
    /// The answer, also for those who do not speak gRPC.
    pub(crate) fn answer(&self) -> Response<Body> {
        let mut response = refuse(&self.status, self.content_type.as_ref());
        *response.status_mut() = self.http;
        response
    }
}

fn refuse(status: &Status, content_type: Option<&HeaderValue>) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.headers_mut() = status_headers(status);
    response.headers_mut().insert(CONTENT_TYPE, content_type.cloned().unwrap_or(PLAIN_TYPE));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent_encode("etcdserver: 100% é"), "etcdserver: 100%25 %C3%A9");
    }
}
