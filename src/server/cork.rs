//! Sends what a connection writes while it is polled once in one piece.
//!
//! The HTTP/2 library hands over each larger frame by itself, so that a small value more than doubles
//! the system calls of an answer. Here frames gather until the connection has nothing more to do.
//!
//! ```text
//! poll the connection ── write ──▶ held ──┐
//!                     ── write ──▶ held ──┤ as one piece, before the task sleeps
//!                     ── flush ──▶  –     ▼
//! then                ─────────────────▶ socket
//! ```
//! **Invariant:** before the task of a connection sleeps, all that was written is with the socket, or
//! the socket has been asked to wake the task when it takes more.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::limits;

thread_local! {
    /// Lent to the connection that is polled, so that those that rest hold no memory.
    static SPARE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A stream whose writes gather until [`Corked::poll_with`] has polled its connection.
#[derive(Debug)]
pub(super) struct Corked<S>(Arc<Mutex<Inner<S>>>);

#[derive(Debug)]
struct Inner<S> {
    stream: S,
    held: Vec<u8>,
    /// How much of `held` the stream has taken.
    taken: usize,
    /// Why the stream took no more; the connection hears of it when it flushes next.
    failed: Option<io::Error>,
}

impl<S> Clone for Corked<S> {
    fn clone(&self) -> Self {
        Corked(Arc::clone(&self.0))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Corked<S> {
    pub(super) fn new(stream: S) -> Self {
        Corked(Arc::new(Mutex::new(Inner { stream, held: Vec::new(), taken: 0, failed: None })))
    }

    /// Polls `connection`, which writes to this stream, and then sends what it wrote.
    pub(super) fn poll_with<F: Future>(
        &self,
        connection: Pin<&mut F>,
        context: &mut Context<'_>,
    ) -> Poll<F::Output> {
        let polled = connection.poll(context);
        let mut inner = self.0.lock();
        if let Poll::Ready(Err(error)) = inner.poll_send(context) {
            inner.release();
            inner.failed = Some(error);
            context.waker().wake_by_ref();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    /// Sends what is held.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.taken < self.held.len() {
            let stream = Pin::new(&mut self.stream);
            match ready!(stream.poll_write(context, &self.held[self.taken..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.taken += count,
            }
        }
        self.release();
        Poll::Ready(Ok(()))
    }

    fn release(&mut self) {
        self.taken = 0;
        if self.held.capacity() > 0 {
            self.held.clear();
            let held = std::mem::take(&mut self.held);
            SPARE.with_borrow_mut(|spare| *spare = held);
        }
    }

    fn hold(&mut self, pieces: &[IoSlice<'_>]) {
        if self.held.capacity() == 0 {
            self.held = SPARE.with_borrow_mut(std::mem::take);
        }
        if self.taken > limits::CORK_BYTES_MAX {
            // The stream takes some all the time, but never all.
            self.held.drain(..self.taken);
            self.taken = 0;
        }
        pieces.iter().for_each(|piece| self.held.extend_from_slice(piece));
    }

    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
        loop {
            let held = self.held.len() - self.taken;
            if bytes <= limits::CORK_COPY_BYTES_MAX && held + bytes <= limits::CORK_BYTES_MAX {
                self.hold(pieces);
                return Poll::Ready(Ok(bytes));
            }
            if held == 0 {
                return Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
            }
            let before = IoSlice::new(&self.held[self.taken..]);
            let all: Vec<IoSlice<'_>> =
                std::iter::once(before).chain(pieces.iter().copied()).collect();
            let sent = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, &all))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.taken += sent.min(held);
            if sent > held {
                self.release();
                return Poll::Ready(Ok(sent - held));
            }
            if self.taken == self.held.len() {
                self.release();
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Corked<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.lock().stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().poll_write(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().poll_write(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What is held goes out at the end of the poll.
    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.lock().failed.take().map_or(Ok(()), Err))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.lock();
        ready!(inner.poll_send(context))?;
        Pin::new(&mut inner.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Waker;

    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Takes at most so many bytes a write, and none each so manieth time.
    #[derive(Debug, Default)]
    struct Narrow {
        bytes_max: usize,
        refuses_every: usize,
        writes: usize,
        taken: Vec<u8>,
        is_broken: bool,
    }

    impl AsyncWrite for Narrow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            if self.is_broken {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            self.writes += 1;
            if self.refuses_every > 0 && self.writes.is_multiple_of(self.refuses_every) {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let count = bytes.len().min(self.bytes_max);
            self.taken.extend_from_slice(&bytes[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            pieces: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
            self.poll_write(context, &all)
        }

        fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncRead for Narrow {
        fn poll_read(
            self: Pin<&mut Self>,
            _context: &mut Context<'_>,
            _buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    async fn driven<F: Future>(corked: &Corked<Narrow>, connection: F) -> F::Output {
        let mut connection = std::pin::pin!(connection);
        poll_fn(|context| corked.poll_with(connection.as_mut(), context)).await
    }

    /// Each answer with a value of 256 bytes was a system call of its own.
    #[tokio::test]
    async fn what_is_written_in_one_poll_is_one_write() {
        let mut corked = Corked::new(Narrow { bytes_max: usize::MAX, ..Narrow::default() });
        let writer = corked.clone();
        driven(&writer, async {
            for _ in 0..20 {
                corked.write_all(&[7; 300]).await.unwrap();
                corked.flush().await.unwrap();
            }
            assert_eq!(corked.0.lock().stream.writes, 0, "not yet");
        })
        .await;
        let inner = writer.0.lock();
        assert_eq!((inner.stream.writes, inner.stream.taken.len()), (1, 6000));
        assert_eq!(inner.held.capacity(), 0, "a connection that rests holds nothing");
    }

    #[tokio::test]
    async fn all_arrives_in_order_whatever_the_stream_takes() {
        let seed = fastrand::u64(..);
        eprintln!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..200 {
            let bytes_max = random.usize(1..200_000);
            let narrow =
                Narrow { bytes_max, refuses_every: random.usize(2..5), ..Narrow::default() };
            let mut corked = Corked::new(narrow);
            let driver = corked.clone();
            let mut written = Vec::new();
            driven(&driver, async {
                for _ in 0..random.usize(1..30) {
                    let length = match random.u8(..4) {
                        0 => random.usize(1..100_000),
                        _ => random.usize(1..1000),
                    };
                    let piece: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
                    let (left, right) = piece.split_at(random.usize(..length));
                    let mut at = 0;
                    while at < length {
                        let pieces = [
                            IoSlice::new(&left[at.min(left.len())..]),
                            IoSlice::new(&right[at.saturating_sub(left.len())..]),
                        ];
                        at += corked.write_vectored(&pieces).await.unwrap();
                    }
                    written.extend(piece);
                    if random.bool() {
                        tokio::task::yield_now().await;
                    }
                }
                corked.shutdown().await.unwrap();
            })
            .await;
            assert!(driver.0.lock().stream.taken == written);
        }
    }

    /// A client that always leaves something unread made what was sent long ago stay in memory.
    #[tokio::test]
    async fn what_was_sent_is_not_held() {
        let narrow = Narrow { bytes_max: 900, refuses_every: 2, ..Narrow::default() };
        let mut corked = Corked::new(narrow);
        let driver = corked.clone();
        driven(&driver, async {
            corked.write_all(&[7; 30_000]).await.unwrap();
            for _ in 0..2000 {
                corked.write_all(&[7; 1000]).await.unwrap();
                tokio::task::yield_now().await;
                assert!(driver.0.lock().held.len() <= 3 * limits::CORK_BYTES_MAX);
            }
        })
        .await;
    }

    #[tokio::test]
    async fn a_connection_hears_that_nobody_takes_what_it_wrote() {
        let mut corked = Corked::new(Narrow { is_broken: true, ..Narrow::default() });
        let writer = corked.clone();
        let mut context = Context::from_waker(Waker::noop());
        let mut connection = std::pin::pin!(async {
            corked.write_all(b"lost").await.unwrap();
            corked.flush().await.unwrap();
            tokio::task::yield_now().await;
            corked.flush().await
        });
        assert!(writer.poll_with(connection.as_mut(), &mut context).is_pending());
        let Poll::Ready(heard) = writer.poll_with(connection.as_mut(), &mut context) else {
            panic!("it goes on");
        };
        assert_eq!(heard.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
