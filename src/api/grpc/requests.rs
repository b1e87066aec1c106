//! The messages of a client on a stream, one after another.
//!
//! Limits, compression and the texts of errors are those of a unary call. Nothing is read ahead of
//! what was asked for but the rest of an HTTP/2 frame, so a client that sends faster than it is
//! served meets its flow-control window.

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;

use super::super::status::{Code, Status};
use super::head::Call;
use super::message::{self, PREFIX_BYTES, UNEXPECTED_EOF};

/// The body of a request: HTTP/2's, or what a simulated network hands over.
pub trait RequestBody:
    http_body::Body<Data = Bytes, Error: fmt::Display> + Send + Unpin + 'static
{
}

impl<B> RequestBody for B where
    B: http_body::Body<Data = Bytes, Error: fmt::Display> + Send + Unpin + 'static
{
}

/// What comes in on a bidi stream.
#[derive(Debug)]
pub(crate) struct Requests<B> {
    call: Call,
    /// None once the client has ended its side.
    body: Option<B>,
    buffer: BytesMut,
    bytes_max: usize,
    has_failed: bool,
}

impl<B: RequestBody> Requests<B> {
    pub(super) fn new(call: Call, body: B, bytes_max: usize) -> Self {
        let buffer = BytesMut::new();
        Requests { call, body: Some(body), buffer, bytes_max, has_failed: false }
    }

    /// The next message; none after the client ended its side, or after an error.
    ///
    /// Dropping the future loses nothing. An error is what the call must end with.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        if self.has_failed {
            return None;
        }
        let next = self.receive().await.transpose();
        self.has_failed = matches!(next, Some(Err(_)));
        next
    }

    async fn receive(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(framed) = take_message(&mut self.buffer, self.bytes_max)? {
                let (flag, message) = framed;
                return self.call.decompress(flag, message, self.bytes_max).map(Some);
            }
            let Some(body) = &mut self.body else { return self.ended() };
            match body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.buffer.extend_from_slice(&data),
                    // Trailers of a client say nothing.
                    Err(_) => self.body = None,
                },
                Some(Err(error)) => {
                    return Err(Status::new(Code::Cancelled, error.to_string()));
                }
                None => self.body = None,
            }
        }
    }

    /// As in grpc-go: less than a prefix at the end is nothing, less than a message is an error.
    fn ended(&self) -> Result<Option<Bytes>, Status> {
        if self.buffer.len() < PREFIX_BYTES {
            return Ok(None);
        }
        Err(Status::new(Code::Internal, UNEXPECTED_EOF))
    }
}

/// Takes one whole message and its flag off the front of `buffer`, if it is there.
fn take_message(buffer: &mut BytesMut, bytes_max: usize) -> Result<Option<(u8, Bytes)>, Status> {
    let Some(announced) = message::announced_bytes(buffer) else { return Ok(None) };
    message::check_size(announced, bytes_max)?;
    if buffer.len() < PREFIX_BYTES + announced {
        return Ok(None);
    }
    let flag = buffer[0];
    buffer.advance(PREFIX_BYTES);
    let message = buffer.split_to(announced).freeze();
    if buffer.is_empty() {
        // An idle stream keeps no buffer.
        *buffer = BytesMut::new();
    }
    Ok(Some((flag, message)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_whole_and_in_order() {
        let mut buffer = BytesMut::new();
        let mut taken = Vec::new();
        for byte in b"\0\0\0\0\x01a\x01\0\0\0\x02bc\0\0\0\0\0\0\0" {
            buffer.extend_from_slice(&[*byte]);
            taken.extend(take_message(&mut buffer, 2).unwrap());
        }
        let messages = [(0, Bytes::from("a")), (1, Bytes::from("bc")), (0, Bytes::new())];
        assert_eq!(taken, messages);
        assert_eq!(buffer.len(), 2);
    }

    #[test]
    fn a_message_above_the_limit_is_refused_before_it_is_there() {
        let mut buffer = BytesMut::from(&b"\0\0\0\0\x03"[..]);
        let status = take_message(&mut buffer, 2).unwrap_err();
        assert_eq!(status.code, Code::ResourceExhausted);
    }
}
