//! The connection to a cluster: endpoints, failover, deadlines, credentials.
//!
//! As in etcd's client library: a call waits for the first endpoint that accepts a connection,
//! reads are repeated elsewhere when a member is unavailable, writes are never sent twice.

use std::{
    cell::RefCell,
    future::Future,
    time::{Duration, Instant},
};

use futures_util::stream::{FuturesUnordered, StreamExt};
use prost::Message;
use quorate::pb::etcdserverpb::{AuthenticateRequest, auth_client::AuthClient};
use tokio::time::timeout;
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

use crate::{error::Error, flags::GlobalFlags, terminal};

/// Pings more often than this break etcd's enforcement policy; grpc-go raises them silently too.
const KEEPALIVE_TIME_MIN: Duration = Duration::from_secs(10);

/// Pause between attempts to connect, to repeat a read or to resume a stream.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(25);

/// Attempts of one read, all endpoints together.
const READ_ATTEMPTS_MAX: usize = 100;

/// Default of `--max-request-bytes`.
const REQUEST_BYTES_MAX_DEFAULT: usize = 2 * 1024 * 1024;

/// Receive windows large enough that a big range is not paced by window updates.
const WINDOW_BYTES: u32 = 1024 * 1024;

/// Reads the one clock of this program; latencies and deadlines are differences of its values.
#[expect(clippy::disallowed_methods, reason = "a command-line tool measures real time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Whether a call may be sent a second time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Reads: repeating them changes nothing.
    Safe,
    /// Writes: an attempt whose answer is lost may have been applied.
    Never,
}

/// What a client needs to know about the cluster and about itself.
pub(crate) struct Client {
    endpoints: Vec<(String, Endpoint)>,
    credentials: Credentials,
    dial_timeout: Duration,
    command_timeout: Duration,
    request_bytes_max: usize,
    /// Largest answer that is accepted, in bytes; every generated client is told.
    pub(crate) response_bytes_max: usize,
    debug: bool,
    /// The connection of the last call, for the next one.
    cached: RefCell<Option<Session>>,
}

/// How the caller proves who it is.
#[derive(Clone)]
enum Credentials {
    Anonymous,
    Token(String),
    Password { user: String, password: String },
}

/// A connection to one member, with the token that its calls carry.
#[derive(Clone)]
pub(crate) struct Session {
    /// The HTTP/2 connection.
    pub(crate) channel: Channel,
    /// Which endpoint it leads to, by its place on the command line.
    pub(crate) endpoint: usize,
    token: Option<MetadataValue<Ascii>>,
}

impl Session {
    /// Wraps a message with what every call carries.
    pub(crate) fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("client-api-version", MetadataValue::from_static("3.7"));
        if let Some(token) = &self.token {
            metadata.insert("token", token.clone());
        }
        request
    }
}

impl Client {
    /// Prepares a client for the endpoints of the command line; connects to none of them yet.
    pub(crate) fn new(flags: &GlobalFlags) -> Result<Self, Error> {
        check_transport(flags)?;
        let addresses: Vec<&str> = flags
            .endpoints
            .iter()
            .map(|text| text.trim())
            .filter(|text| !text.is_empty())
            .collect();
        if addresses.is_empty() {
            return Err(Error::NoEndpoints);
        }
        let keepalive_time = flags.keepalive_time.max(KEEPALIVE_TIME_MIN);
        let mut endpoints = Vec::with_capacity(addresses.len());
        for address in addresses {
            let endpoint = parse_endpoint(address)?
                .connect_timeout(flags.dial_timeout)
                .http2_keep_alive_interval(keepalive_time)
                .keep_alive_timeout(flags.keepalive_timeout)
                .initial_stream_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES);
            endpoints.push((address.to_owned(), endpoint));
        }
        let limit = |bytes: i64, default| match usize::try_from(bytes) {
            Ok(0) | Err(_) => default,
            Ok(bytes) => bytes,
        };
        Ok(Self {
            endpoints,
            credentials: credentials(flags)?,
            dial_timeout: flags.dial_timeout,
            command_timeout: flags.command_timeout,
            request_bytes_max: limit(flags.max_request_bytes, REQUEST_BYTES_MAX_DEFAULT),
            response_bytes_max: limit(flags.max_recv_bytes, i32::MAX as usize),
            debug: flags.debug,
            cached: RefCell::new(None),
        })
    }

    /// Connects to one of the endpoints by number, wrapping around, and authenticates.
    pub(crate) async fn session_at(&self, number: usize) -> Result<Session, Error> {
        let index = number % self.endpoints.len();
        let channel = self.connect(index, Duration::ZERO).await;
        self.authenticated(index, channel).await
    }

    /// Runs one unary call within the command timeout.
    ///
    /// `send` is called with a fresh session for every attempt; the message is cloned into it.
    pub(crate) async fn call<Q, R, F>(
        &self,
        repeat: Repeat,
        message: &Q,
        send: impl Fn(Session, Request<Q>) -> F,
    ) -> Result<R, Error>
    where
        Q: Message + Clone,
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let attempts = self.attempts(repeat, message, send);
        timeout(self.command_timeout, attempts).await.unwrap_or(Err(Error::Deadline))
    }

    async fn attempts<Q, R, F>(
        &self,
        repeat: Repeat,
        message: &Q,
        send: impl Fn(Session, Request<Q>) -> F,
    ) -> Result<R, Error>
    where
        Q: Message + Clone,
        F: Future<Output = Result<Response<R>, Status>>,
    {
        self.check_size(message)?;
        let mut failed = None;
        for attempt in 1.. {
            let session = self.session(failed).await?;
            let endpoint = session.endpoint;
            let mut request = session.request(message.clone());
            // The server may stop working on what nobody waits for; our own timer is the judge.
            request.set_timeout(self.command_timeout);
            let status = match send(session, request).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status,
            };
            self.log(|| format!("{}: {status}", self.endpoints[endpoint].0));
            let repeatable = repeat == Repeat::Safe && is_unavailable(&status);
            if !repeatable || attempt >= READ_ATTEMPTS_MAX {
                return Err(status.into());
            }
            failed = Some(endpoint);
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        unreachable!("the loop has no end but its returns")
    }

    fn check_size(&self, message: &impl Message) -> Result<(), Error> {
        let bytes = message.encoded_len();
        if bytes <= self.request_bytes_max {
            return Ok(());
        }
        let limit = self.request_bytes_max;
        Err(Error::from(Status::resource_exhausted(format!(
            "trying to send message larger than max ({bytes} vs. {limit})"
        ))))
    }

    /// Logs in if there is a password, so that the time it takes is not part of the next call.
    pub(crate) async fn log_in(&self) -> Result<(), Error> {
        if let Credentials::Password { .. } = self.credentials {
            let session = timeout(self.command_timeout, self.session(None)).await;
            session.unwrap_or(Err(Error::Deadline))?;
        }
        Ok(())
    }

    /// The connection of the last call or, if there is none or it failed, a new one.
    pub(crate) async fn session(&self, failed: Option<usize>) -> Result<Session, Error> {
        let cached = self.cached.borrow().clone();
        if let (Some(session), None) = (cached, failed) {
            return Ok(session);
        }
        let session = self.connect_any(failed).await?;
        self.cached.replace(Some(session.clone()));
        Ok(session)
    }

    /// The first endpoint that accepts a connection, except, if there is a choice, a failed one.
    async fn connect_any(&self, failed: Option<usize>) -> Result<Session, Error> {
        let first = fastrand::usize(..self.endpoints.len());
        let mut races: FuturesUnordered<_> = (0..self.endpoints.len())
            .map(|offset| (first + offset) % self.endpoints.len())
            .filter(|index| Some(*index) != failed || self.endpoints.len() == 1)
            .map(|index| async move { (index, self.connect(index, RETRY_PAUSE).await) })
            .collect();
        let (index, channel) = races.next().await.ok_or(Error::NoEndpoints)?;
        self.authenticated(index, channel).await
    }

    /// Tries until it succeeds; the caller sets the deadline.
    async fn connect(&self, index: usize, pause: Duration) -> Channel {
        let (name, endpoint) = &self.endpoints[index];
        let mut pause = pause.max(RETRY_PAUSE);
        loop {
            match endpoint.connect().await {
                Ok(channel) => return channel,
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    self.log(|| format!("{name}: {error}: {}", cause.unwrap_or_default()));
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    async fn authenticated(&self, endpoint: usize, channel: Channel) -> Result<Session, Error> {
        let token = match &self.credentials {
            Credentials::Anonymous => None,
            Credentials::Token(token) => Some(token.clone()),
            Credentials::Password { user, password } => {
                let login = self.authenticate(channel.clone(), user, password);
                timeout(self.dial_timeout, login).await.unwrap_or(Err(Error::Deadline))?
            }
        };
        let token = token.map(MetadataValue::try_from).transpose();
        let token = token.map_err(|_| Error::BadArgs("the token is not printable".to_owned()))?;
        Ok(Session { channel, endpoint, token })
    }

    async fn authenticate(
        &self,
        channel: Channel,
        user: &str,
        password: &str,
    ) -> Result<Option<String>, Error> {
        let request = AuthenticateRequest { name: user.to_owned(), password: password.to_owned() };
        match AuthClient::new(channel).authenticate(request).await {
            Ok(response) => Ok(Some(response.into_inner().token)),
            // As in etcd: credentials are no mistake where nobody asks for them.
            Err(status) if status.message() == "etcdserver: authentication is not enabled" => {
                Ok(None)
            }
            Err(status) => Err(Error::Connection(Box::new(status.into()))),
        }
    }

    fn log(&self, text: impl FnOnce() -> String) {
        if self.debug {
            eprintln!("debug: {}", text());
        }
    }
}

/// Whether another member, or this one a little later, may well answer.
fn is_unavailable(status: &Status) -> bool {
    let broken = status.code() == Code::Unknown
        && std::error::Error::source(status)
            .is_some_and(|source| source.is::<tonic::transport::Error>());
    let learner = status.message() == "etcdserver: rpc not supported for learner";
    status.code() == Code::Unavailable || broken || learner
}

/// Refuses what would need TLS or DNS discovery, before anything secret is sent in the clear.
fn check_transport(flags: &GlobalFlags) -> Result<(), Error> {
    for (name, file) in [("cert", &flags.cert), ("key", &flags.key), ("cacert", &flags.cacert)] {
        if file.as_deref() == Some("") {
            return Err(Error::BadArgs(format!("empty string is passed to --{name} option")));
        }
    }
    if !flags.discovery_srv.is_empty() {
        return Err(Error::BadArgs("--discovery-srv is not supported, use --endpoints".to_owned()));
    }
    let tls = flags.cert.is_some()
        || flags.key.is_some()
        || flags.cacert.is_some()
        || flags.insecure_skip_tls_verify
        || !flags.insecure_transport;
    for endpoint in &flags.endpoints {
        // As in etcd's client: an explicit http:// drops the TLS settings.
        if endpoint.starts_with("https:") || (tls && !endpoint.starts_with("http:")) {
            return Err(Error::BadArgs(format!(
                "TLS is not supported yet, cannot connect securely to {endpoint:?}; \
                 use http:// and no TLS flags"
            )));
        }
    }
    Ok(())
}

/// Reads `host:port` or `http://host:port`.
fn parse_endpoint(text: &str) -> Result<Endpoint, Error> {
    let invalid = |reason: &str| {
        Error::BadArgs(format!("invalid endpoint {text:?}: {reason}, want host:port"))
    };
    let authority = match text.split_once("://") {
        Some(("http", rest)) => rest.split('/').next().unwrap_or_default(),
        Some((scheme, _)) => return Err(invalid(&format!("scheme {scheme:?} is not supported"))),
        None if text.starts_with("unix:") => return Err(invalid("unix sockets are not supported")),
        None => text,
    };
    let port = authority.rsplit_once(':').map(|(_, port)| port);
    if port.is_none_or(|port| port.parse::<u16>().is_err()) {
        return Err(invalid("the port is missing"));
    }
    Endpoint::from_shared(format!("http://{authority}"))
        .map_err(|error| invalid(&error.to_string()))
}

fn credentials(flags: &GlobalFlags) -> Result<Credentials, Error> {
    if !flags.auth_jwt_token.is_empty() {
        return Ok(Credentials::Token(flags.auth_jwt_token.clone()));
    }
    if flags.user.is_empty() {
        return Ok(Credentials::Anonymous);
    }
    let (user, password) = match flags.user.split_once(':') {
        _ if !flags.password.is_empty() => (flags.user.clone(), flags.password.clone()),
        Some((user, password)) => (user.to_owned(), password.to_owned()),
        None => (flags.user.clone(), terminal::ask_password()?),
    };
    if user.is_empty() || password.is_empty() {
        return Ok(Credentials::Anonymous);
    }
    Ok(Credentials::Password { user, password })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_addresses_with_an_optional_scheme() {
        for (text, uri) in [
            ("127.0.0.1:2379", "http://127.0.0.1:2379/"),
            ("http://localhost:1", "http://localhost:1/"),
            ("http://localhost:1/", "http://localhost:1/"),
            ("[::1]:2379", "http://[::1]:2379/"),
        ] {
            assert_eq!(parse_endpoint(text).unwrap().uri().to_string(), uri);
        }
        for bad in ["localhost", "foo bar:1", "ftp://h:1", "unix:/tmp/s", "h:port", "h:70000", ""] {
            assert!(parse_endpoint(bad).is_err(), "{bad}");
        }
    }
}
