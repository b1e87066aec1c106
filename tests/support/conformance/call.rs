//! A call that goes on while a case does other things: a stream in both directions, or a request
//! whose answer is not due yet.
//!
//! A task of its own moves messages from the wire into memory, so that a case which reads slowly
//! holds up nobody else on the connection. Dropping a call cancels it.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::poll_fn;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::client::{Client, Metadata};
use super::print::watch::WatchLog;
use super::request::Shape;

/// How long the next message of a call may take to come.
const MESSAGE_PATIENCE: Duration = Duration::from_secs(10);

/// What comes next on a call.
#[derive(Clone, Debug)]
pub(crate) enum Next {
    /// A message.
    Message(Bytes),
    /// The status after the last message; it is told again and again.
    End(Status),
    /// Nothing in time.
    Nothing,
}

/// One call of a case.
#[derive(Debug)]
pub(crate) struct Call {
    /// What its answers are printed as.
    pub(crate) shape: Shape,
    /// What its watchers were sent so far.
    pub(crate) watched: WatchLog,
    requests: Option<UnboundedSender<Bytes>>,
    answers: UnboundedReceiver<Result<Bytes, Status>>,
    put_back: VecDeque<Bytes>,
    end: Option<Status>,
    _pump: JoinSet<()>,
}

impl Call {
    /// Begins a call of the method `path`; requests are sent with [`Call::send`].
    pub(crate) fn open(client: &Client, path: &str, metadata: &[Metadata], shape: Shape) -> Call {
        let (requests, mut queue) = unbounded_channel();
        let (answer, answers) = unbounded_channel();
        let mut client = client.clone();
        let (path, metadata) = (path.to_owned(), metadata.to_vec());
        let mut pump = JoinSet::new();
        pump.spawn(async move {
            let queue = poll_fn(move |context| queue.poll_recv(context));
            let end = client.exchange(&path, queue, &metadata, &answer).await;
            let status = end.err().unwrap_or_else(|| Status::new(Code::Ok, ""));
            // The case may have dropped the call meanwhile.
            answer.send(Err(status)).ok();
        });
        Call {
            shape,
            watched: WatchLog::default(),
            requests: Some(requests),
            answers,
            put_back: VecDeque::new(),
            end: None,
            _pump: pump,
        }
    }

    /// Sends one message, unless the call has ended.
    pub(crate) fn send(&self, message: Bytes) {
        let requests = self.requests.as_ref().expect("a case does not send after `close`");
        requests.send(message).ok();
    }

    /// Ends our half of the call.
    pub(crate) fn close(&mut self) {
        self.requests = None;
    }

    /// Whether both halves are open, as far as we know.
    pub(crate) fn is_open(&self) -> bool {
        self.requests.is_some() && self.end.is_none()
    }

    /// Whether the case knows all of it, the end included.
    pub(crate) fn has_ended(&self) -> bool {
        self.end.is_some() && self.put_back.is_empty()
    }

    /// Waits for the next message or the end.
    pub(crate) async fn next(&mut self) -> Next {
        self.next_within(MESSAGE_PATIENCE).await
    }

    /// As [`Call::next`], with another patience.
    pub(crate) async fn next_within(&mut self, patience: Duration) -> Next {
        if let Some(message) = self.put_back.pop_front() {
            return Next::Message(message);
        }
        if let Some(status) = &self.end {
            return Next::End(status.clone());
        }
        match timeout(patience, self.answers.recv()).await {
            Ok(Some(Ok(message))) => Next::Message(message),
            Ok(Some(Err(status))) => {
                self.end = Some(status.clone());
                Next::End(status)
            }
            Ok(None) => unreachable!("the pump says how a call ended"),
            Err(_) => Next::Nothing,
        }
    }

    /// The next message or the end, if it has come already.
    pub(crate) fn next_now(&mut self) -> Next {
        if let Some(message) = self.put_back.pop_front() {
            return Next::Message(message);
        }
        match self.answers.try_recv() {
            Ok(Ok(message)) => Next::Message(message),
            Ok(Err(status)) => {
                self.end = Some(status.clone());
                Next::End(status)
            }
            Err(_) => self.end.clone().map_or(Next::Nothing, Next::End),
        }
    }

    /// Gives messages back, to be told again in this order before all others.
    pub(crate) fn put_back(&mut self, messages: Vec<Bytes>) {
        for message in messages.into_iter().rev() {
            self.put_back.push_front(message);
        }
    }

    /// Whether the end has come. A message that came stays to be read.
    pub(crate) fn has_answered(&mut self) -> bool {
        match self.next_now() {
            Next::Message(message) => {
                self.put_back(vec![message]);
                true
            }
            Next::End(_) => true,
            Next::Nothing => false,
        }
    }
}
