//! Renewals of one lease, over as many streams as it takes.

use std::time::{Duration, Instant};

use quorate::pb::etcdserverpb::{
    LeaseKeepAliveRequest, LeaseKeepAliveResponse, lease_client::LeaseClient,
};
use tokio::{
    sync::mpsc,
    time::{sleep_until, timeout, timeout_at},
};
use tonic::{Status, Streaming};

use crate::{
    client::{Client, now},
    error::Error,
    watcher::outgoing,
};

/// Pause between a failed attempt and the next.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Shortest time that an answer is waited for before another member is asked.
const ANSWER_TIME_MIN: Duration = Duration::from_secs(1);

/// A lease that is renewed every third of its TTL.
pub(crate) struct KeepAlive<'a> {
    client: &'a Client,
    id: i64,
    ttl: Duration,
    /// When the lease has ended for sure if no renewal is answered before.
    deadline: Instant,
    next_at: Instant,
    open: Option<Open>,
    failed: Option<usize>,
}

struct Open {
    requests: mpsc::Sender<LeaseKeepAliveRequest>,
    responses: Streaming<LeaseKeepAliveResponse>,
    endpoint: usize,
}

impl<'a> KeepAlive<'a> {
    /// Prepares renewals of a lease that lives for `ttl` from now on, as far as we know.
    pub(crate) fn new(client: &'a Client, id: i64, ttl: Duration) -> Self {
        let now = now();
        Self { client, id, ttl, deadline: now + ttl, next_at: now, open: None, failed: None }
    }

    /// Renews until the lease is gone.
    pub(crate) async fn run(&mut self) {
        while self.next().await.is_some() {}
    }

    /// The answer to the next renewal, when it is due; nothing if the lease is gone.
    pub(crate) async fn next(&mut self) -> Option<LeaseKeepAliveResponse> {
        loop {
            let deadline = self.deadline;
            match timeout_at(deadline.into(), self.renew()).await {
                Err(_) => return None,
                Ok(Ok(response)) if response.ttl <= 0 => return None,
                Ok(Ok(response)) => {
                    self.ttl = Duration::from_secs(response.ttl.unsigned_abs());
                    let now = now();
                    self.next_at = now + self.ttl / 3;
                    self.deadline = now + self.ttl;
                    return Some(response);
                }
                Ok(Err(_)) => {
                    self.next_at = now() + RETRY_PAUSE;
                }
            }
        }
    }

    /// Renews once, now; also the answer that the lease is gone counts.
    pub(crate) async fn once(&mut self) -> Result<LeaseKeepAliveResponse, Error> {
        self.next_at = now();
        self.renew().await
    }

    async fn renew(&mut self) -> Result<LeaseKeepAliveResponse, Error> {
        sleep_until(self.next_at.into()).await;
        let patience = (self.ttl / 3).max(ANSWER_TIME_MIN);
        timeout(patience, self.exchange()).await.unwrap_or(Err(Error::Deadline))
    }

    async fn exchange(&mut self) -> Result<LeaseKeepAliveResponse, Error> {
        let request = LeaseKeepAliveRequest { id: self.id };
        let lost = || Error::from(Status::unavailable("the stream of renewals has ended"));
        let mut open = match self.open.take() {
            Some(open) => {
                open.requests.send(request).await.map_err(|_| lost())?;
                open
            }
            None => self.open(request).await?,
        };
        // Until the answer is there, the endpoint is one to avoid.
        self.failed = Some(open.endpoint);
        let response = open.responses.message().await?.ok_or_else(lost)?;
        self.failed = None;
        self.open = Some(open);
        Ok(response)
    }

    /// Opens a stream. The first request goes along: a server may answer nothing before it.
    async fn open(&mut self, request: LeaseKeepAliveRequest) -> Result<Open, Error> {
        let session = self.client.session(self.failed).await?;
        self.failed = Some(session.endpoint);
        let (requests, queue) = mpsc::channel(1);
        requests.try_send(request).expect("the queue is new and has room");
        let message = session.request(outgoing(queue));
        let mut lease = LeaseClient::new(session.channel.clone());
        let responses = lease.lease_keep_alive(message).await?.into_inner();
        Ok(Open { requests, responses, endpoint: session.endpoint })
    }
}
