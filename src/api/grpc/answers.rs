//! The answers on a stream: written by a task, taken by the connection, bounded in bytes.
//!
//! Small messages are written one behind the other into one buffer, so that all that is there when
//! the connection can send goes out as one frame of HTTP/2, and a message costs little more than
//! the copy of its bytes. Writer and connection live on one thread: the lock is never fought for.
//!
//! **Invariant:** the messages go out whole and in order, and after them the status.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{BufMut, Bytes, BytesMut};
use http_body::Frame;
use parking_lot::Mutex;

use super::super::status::{Code, Status};
use super::message::{self, PREFIX_BYTES};
use super::{Bounds, gzip, ok_trailers, status_headers};
use crate::metrics::{MethodNumber, Metrics};

/// A buffer of small messages from this size on is a chunk of its own.
const CHUNK_BYTES: usize = 32 * 1024;

/// Shared bytes from this size on are sent as they are instead of being copied.
const COPIED_BYTES_MAX: usize = 8 * 1024;

/// The writing side of a stream. Dropping it ends the stream with [`Code::Cancelled`].
#[derive(Debug)]
pub(crate) struct Answers {
    outbox: Arc<Mutex<Outbox>>,
    method: MethodNumber,
}

/// The connection's side.
#[derive(Debug)]
pub struct AnswerQueue {
    outbox: Arc<Mutex<Outbox>>,
}

/// What is counted when it goes out.
pub(crate) struct Meter {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) method: MethodNumber,
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meter").field("method", &self.method).finish_non_exhaustive()
    }
}

/// What is written and not yet taken.
#[derive(Debug)]
struct Outbox {
    chunks: VecDeque<Bytes>,
    /// Messages behind the chunks.
    tail: BytesMut,
    bytes: usize,
    bytes_max: usize,
    /// The largest message that is sent.
    message_bytes_max: usize,
    is_gzip: bool,
    status: Option<Status>,
    /// Whether the connection has taken the status or is gone.
    is_closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    meter: Meter,
}

/// The client is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

/// Both sides of a stream of answers within `bounds`.
pub(super) fn answers(bounds: Bounds, is_gzip: bool, meter: Meter) -> (Answers, AnswerQueue) {
    let method = meter.method;
    let outbox = Arc::new(Mutex::new(Outbox {
        chunks: VecDeque::new(),
        tail: BytesMut::new(),
        bytes: 0,
        bytes_max: bounds.answers_bytes_max,
        message_bytes_max: bounds.answer_bytes_max,
        is_gzip,
        status: None,
        is_closed: false,
        reader: None,
        writer: None,
        meter,
    }));
    (Answers { outbox: Arc::clone(&outbox), method }, AnswerQueue { outbox })
}

impl Answers {
    /// Under which number the stream is counted.
    pub(crate) fn method(&self) -> MethodNumber {
        self.method
    }

    /// Sends a message that carries its prefix already, as [`super::encode`] gives it.
    ///
    /// Always takes it: it is for the caller to ask for [`Answers::room`] before.
    pub(crate) fn send(&self, frame: &[u8]) {
        let mut outbox = self.outbox.lock();
        if outbox.is_gzip {
            let frame = gzip::compress(frame);
            outbox.put(&frame);
        } else {
            outbox.put(frame);
        }
        outbox.sent();
    }

    /// Sends the message that `head` and `parts` make up, one after another, without a prefix.
    ///
    /// Each part is some bytes to be copied, and others that are shared if they are many. A message that
    /// is too large is refused: the stream should end with that.
    pub(crate) fn send_parts<'a>(
        &self,
        head: &[u8],
        parts: impl Iterator<Item = (&'a [u8], &'a Bytes)> + Clone,
    ) -> Result<(), Status> {
        let part_bytes = |(copied, shared): (&[u8], &Bytes)| copied.len() + shared.len();
        let length = head.len() + parts.clone().map(part_bytes).sum::<usize>();
        let mut outbox = self.outbox.lock();
        message::check_streamed_size(length, outbox.message_bytes_max)?;
        let prefix = message::plain_prefix(length);
        if outbox.is_gzip {
            let mut frame = Vec::with_capacity(PREFIX_BYTES + length);
            frame.extend_from_slice(&prefix);
            frame.extend_from_slice(head);
            for (copied, shared) in parts {
                frame.extend_from_slice(copied);
                frame.extend_from_slice(shared);
            }
            let frame = gzip::compress(&frame);
            outbox.put(&frame);
        } else {
            outbox.reserve(PREFIX_BYTES + length);
            outbox.put(&prefix);
            outbox.put(head);
            for (copied, shared) in parts {
                outbox.put(copied);
                outbox.put_shared(shared);
            }
        }
        outbox.sent();
        Ok(())
    }

    /// Whether there is room for another message.
    pub(crate) fn has_room(&self) -> bool {
        let outbox = self.outbox.lock();
        outbox.bytes < outbox.bytes_max
    }

    /// Waits until the connection has taken enough to make room.
    pub(crate) async fn room(&self) -> Result<(), Gone> {
        poll_fn(|context| {
            let mut outbox = self.outbox.lock();
            if outbox.is_closed {
                return Poll::Ready(Err(Gone));
            }
            if outbox.bytes < outbox.bytes_max {
                return Poll::Ready(Ok(()));
            }
            outbox.writer = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Resolves when the client is gone. One task may wait for this and for room at a time.
    pub(crate) async fn gone(&self) {
        poll_fn(|context| {
            let mut outbox = self.outbox.lock();
            if outbox.is_closed {
                return Poll::Ready(());
            }
            outbox.writer = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Ends the stream with `status` behind all that was sent; [`Code::Ok`] is a good end.
    pub(crate) fn end(self, status: Status) {
        self.outbox.lock().end(status);
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        let mut outbox = self.outbox.lock();
        if outbox.status.is_none() {
            outbox.end(Status::new(Code::Cancelled, "context canceled"));
        }
    }
}

impl Outbox {
    fn reserve(&mut self, bytes: usize) {
        if self.tail.capacity() == 0 {
            self.tail.reserve(bytes.clamp(512, CHUNK_BYTES));
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        self.tail.put_slice(bytes);
        if self.tail.len() >= CHUNK_BYTES {
            self.close_tail();
        }
    }

    fn put_shared(&mut self, bytes: &Bytes) {
        if bytes.len() < COPIED_BYTES_MAX {
            return self.put(bytes);
        }
        self.close_tail();
        self.bytes += bytes.len();
        self.chunks.push_back(bytes.clone());
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }

    /// A message is complete.
    fn sent(&mut self) {
        if self.is_closed {
            // Nobody will take it.
            self.chunks.clear();
            self.tail.clear();
            self.bytes = 0;
            return;
        }
        self.meter.metrics.message_sent(self.meter.method);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn end(&mut self, status: Status) {
        if !self.is_closed {
            self.meter.metrics.handled(self.meter.method, status.code as usize);
        }
        self.status = Some(status);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn take(&mut self) -> Option<Bytes> {
        if self.chunks.is_empty() {
            self.close_tail();
        }
        let chunk = self.chunks.pop_front()?;
        self.bytes -= chunk.len();
        self.meter.metrics.bytes_sent(chunk.len());
        // Not at once, so that the writer has something to do when it wakes.
        if self.bytes <= self.bytes_max / 2
            && let Some(writer) = self.writer.take()
        {
            writer.wake();
        }
        Some(chunk)
    }
}

impl AnswerQueue {
    /// The next part of the body; none behind the trailers.
    pub(super) fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        let mut outbox = self.outbox.lock();
        if let Some(chunk) = outbox.take() {
            return Poll::Ready(Some(Frame::data(chunk)));
        }
        if outbox.is_closed {
            return Poll::Ready(None);
        }
        let Some(status) = &outbox.status else {
            outbox.reader = Some(context.waker().clone());
            return Poll::Pending;
        };
        let trailers = if status.code == Code::Ok { ok_trailers() } else { status_headers(status) };
        outbox.is_closed = true;
        Poll::Ready(Some(Frame::trailers(trailers)))
    }
}

impl Drop for AnswerQueue {
    fn drop(&mut self) {
        let mut outbox = self.outbox.lock();
        if !outbox.is_closed && outbox.status.is_none() {
            let meter = &outbox.meter;
            meter.metrics.handled(meter.method, Code::Cancelled as usize);
        }
        outbox.is_closed = true;
        outbox.chunks = VecDeque::new();
        outbox.tail = BytesMut::new();
        if let Some(writer) = outbox.writer.take() {
            writer.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn pair(bytes_max: usize) -> (Answers, AnswerQueue) {
        let meter = Meter { metrics: Arc::new(Metrics::new()), method: Metrics::method("/a/b") };
        let bounds = Bounds {
            request_bytes_max: 0,
            answer_bytes_max: 2 * COPIED_BYTES_MAX,
            answers_bytes_max: bytes_max,
        };
        answers(bounds, false, meter)
    }

    fn next(queue: &mut AnswerQueue) -> Poll<Option<Frame<Bytes>>> {
        queue.poll_frame(&mut Context::from_waker(Waker::noop()))
    }

    fn data(queue: &mut AnswerQueue) -> Bytes {
        match next(queue) {
            Poll::Ready(Some(frame)) => frame.into_data().expect("no trailers yet"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn small_messages_go_out_together_and_then_the_status() {
        let (answers, mut queue) = pair(100);
        answers.send(b"\0\0\0\0\x01a");
        answers.send_parts(b"b", [(&b"c"[..], &Bytes::from("d"))].into_iter()).unwrap();
        assert_eq!(data(&mut queue), "\0\0\0\0\x01a\0\0\0\0\x03bcd");
        assert!(next(&mut queue).is_pending());
        answers.end(Status::new(Code::Unavailable, "x"));
        match next(&mut queue) {
            Poll::Ready(Some(frame)) => {
                assert_eq!(frame.trailers_ref().unwrap()["grpc-status"], "14");
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(next(&mut queue), Poll::Ready(None)));
    }

    #[test]
    fn large_parts_are_shared() {
        let (answers, mut queue) = pair(100);
        let large = Bytes::from(vec![7; COPIED_BYTES_MAX]);
        let parts = [(&b"i"[..], &large), (&b"j"[..], &Bytes::from("t"))];
        answers.send_parts(b"h", parts.into_iter()).unwrap();
        assert_eq!(data(&mut queue).len(), PREFIX_BYTES + 2);
        assert_eq!(data(&mut queue).as_ptr(), large.as_ptr());
        assert_eq!(data(&mut queue), "jt");
    }

    /// Events of one revision that came to more than 4 GiB ended the member.
    #[test]
    fn a_message_that_is_too_large_is_not_sent() {
        let (answers, mut queue) = pair(100);
        let half = Bytes::from(vec![7; COPIED_BYTES_MAX]);
        let parts = [(&b""[..], &half), (&b""[..], &half)];
        let refused = answers.send_parts(b"h", parts.into_iter()).unwrap_err();
        let text = "trying to send message larger than max (16385 vs. 16384)";
        assert_eq!(refused, Status::new(Code::ResourceExhausted, text));
        assert!(next(&mut queue).is_pending());
    }

    #[test]
    fn room_comes_back_when_half_is_taken_and_ends_with_the_client() {
        let (answers, mut queue) = pair(10);
        answers.send(&[0; 10]);
        assert!(!answers.has_room());
        data(&mut queue);
        assert!(answers.has_room());
        answers.send(&[0; 10]);
        drop(queue);
        let mut room = Box::pin(answers.room());
        let polled = room.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(polled, Poll::Ready(Err(Gone)));
    }
}
