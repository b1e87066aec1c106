//! One case in progress: its lines are carried out one by one, while calls of its own go on.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use quorate::clock;
use quorate::pb::etcdserverpb::{
    LeaseKeepAliveRequest, LeaseRevokeRequest, PutRequest, RangeRequest, RangeResponse,
    WatchResponse,
};
use tonic::Status;

use super::call::{Call, Next};
use super::client::Client;
use super::print::{Identity, Printer};
use super::request::{self, Fields, Shape, Step};
use super::scope::Scope;

/// How long a key may take to come or go.
const KEY_PATIENCE: Duration = Duration::from_secs(20);

/// How often a key is looked at that is waited for.
const POLL: Duration = Duration::from_millis(10);

/// How long `none` waits for what must not come.
const SILENCE: Duration = Duration::from_millis(300);

/// The watcher with which the end of a case finds out whether a stream has more to say.
const FENCE_WATCHER: i64 = 1 << 40;

/// A case in progress.
pub(crate) struct Session<'a> {
    client: &'a mut Client,
    scope: &'a Scope,
    printer: Printer<'a>,
    calls: BTreeMap<String, Call>,
    leases: bool,
}

impl<'a> Session<'a> {
    /// A case that has not begun.
    pub(crate) fn new(
        client: &'a mut Client,
        scope: &'a Scope,
        identity: &'a mut Identity,
    ) -> Session<'a> {
        let printer = Printer::new(scope, identity);
        Session { client, scope, printer, calls: BTreeMap::new(), leases: false }
    }

    /// Carries out one line with the lines below it.
    pub(crate) async fn run(&mut self, line: &str, below: &[String]) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "open" => self.open(rest),
            "start" => self.start(rest, below),
            "await" => self.until_key(&mut Fields::new(rest)).await,
            name if name.starts_with(|first: char| first.is_ascii_uppercase()) => {
                let mut call = self.calls.remove(name).unwrap_or_else(|| panic!("no call: {line}"));
                let (action, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                let mut fields = Fields::new(rest);
                if self.go_on(name, &mut call, action, &mut fields).await {
                    self.calls.insert(name.to_owned(), call);
                }
                fields.finish();
            }
            _ => {
                let step = request::step(line, below, self.scope);
                self.request(&step).await;
            }
        }
    }

    /// Sends one request and prints its answer.
    async fn request(&mut self, step: &Step) {
        self.leases |= matches!(step.shape, Shape::Grant | Shape::Lock | Shape::Campaign);
        let (path, body) = (&step.path, step.body.clone());
        if step.shape == Shape::Http {
            let answer = self.client.http(&step.method, path, body, &step.metadata).await;
            self.printer.http(answer);
        } else {
            let answer = self.client.call(path, body, &step.metadata).await;
            self.printer.answer(step, answer);
        }
    }

    /// Opens a stream: `open NAME [keepalive]`.
    fn open(&mut self, rest: &str) {
        let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let mut fields = Fields::new(rest);
        let metadata = fields.metadata(self.scope);
        let (path, shape) = match fields.flag("keepalive") {
            true => ("/etcdserverpb.Lease/LeaseKeepAlive", Shape::KeepAlive),
            false => ("/etcdserverpb.Watch/Watch", Shape::Watch),
        };
        fields.finish();
        let call = Call::open(self.client, path, &metadata, shape);
        self.calls.insert(name.to_owned(), call);
    }

    /// Begins a request whose answer is read later: `start NAME VERB…`.
    fn start(&mut self, rest: &str, below: &[String]) {
        let (name, line) = rest.split_once(' ').expect("start NAME VERB");
        let step = request::step(line, below, self.scope);
        self.leases |= matches!(step.shape, Shape::Grant | Shape::Lock | Shape::Campaign);
        let mut call = Call::open(self.client, &step.path, &step.metadata, step.shape);
        call.send(step.body);
        call.close();
        self.calls.insert(name.to_owned(), call);
    }

    /// Does something with a call; whether it goes on after that.
    async fn go_on(
        &mut self,
        name: &str,
        call: &mut Call,
        action: &str,
        fields: &mut Fields<'_>,
    ) -> bool {
        match action {
            "create" => self.create(name, call, fields).await,
            "cancel" => call.send(request::watch::cancel(fields, self.scope)),
            "progress" => call.send(request::watch::progress()),
            "renew" => {
                let request = LeaseKeepAliveRequest { id: fields.number("ID", self.scope) };
                call.send(request.encode_to_vec().into());
            }
            "send" => call.send(fields.bytes("body", self.scope)),
            "close" => call.close(),
            "read" => self.read(name, call, fields).await,
            "events" => self.events(name, call, fields).await,
            "none" => self.none(name, call).await,
            "end" => self.end(name, call).await,
            "pending" => {
                let state = if call.has_answered() { "HAS-ANSWERED" } else { "pending" };
                self.printer.remark(format!("{name} {state}"));
            }
            "join" | "drop" => {
                if action == "join" {
                    self.end(name, call).await;
                }
                return false;
            }
            _ => panic!("`{action}` is nothing that a call can do"),
        }
        true
    }

    /// Begins a watcher and waits until the server says so, unless the line has the word `async`.
    async fn create(&mut self, name: &str, call: &mut Call, fields: &mut Fields<'_>) {
        let (quiet, is_async) = (fields.flag("quiet"), fields.flag("async"));
        call.send(request::watch::create(fields, self.scope));
        if is_async {
            return;
        }
        let mut others = Vec::new();
        let created = loop {
            match call.next().await {
                Next::Message(message) if decode(&message).created => break Ok(message),
                Next::Message(message) => others.push(message),
                other => break Err(other),
            }
        };
        call.put_back(others);
        match created {
            Ok(message) if quiet && !decode(&message).canceled => call.watched.note(&message),
            Ok(message) => self.print(name, call, &[message]),
            Err(other) => self.print_stop(name, &other),
        }
    }

    /// Reads that many messages: `NAME read COUNT`.
    async fn read(&mut self, name: &str, call: &mut Call, fields: &mut Fields<'_>) {
        let count = fields.count();
        let mut messages = Vec::new();
        let mut stop = None;
        while messages.len() < count && stop.is_none() {
            match call.next().await {
                Next::Message(message) => messages.push(message),
                other => stop = Some(other),
            }
        }
        self.print(name, call, &messages);
        if let Some(stop) = stop {
            self.print_stop(name, &stop);
        }
    }

    /// Reads until that many events came, in however many responses: `NAME events COUNT`.
    async fn events(&mut self, name: &str, call: &mut Call, fields: &mut Fields<'_>) {
        let count = fields.count();
        let (mut messages, mut seen) = (Vec::new(), 0);
        let mut stop = None;
        while seen < count && stop.is_none() {
            match call.next().await {
                Next::Message(message) => {
                    seen += decode(&message).events.len();
                    messages.push(message);
                }
                other => stop = Some(other),
            }
        }
        self.printer.watch_events(name, &messages, &mut call.watched);
        if let Some(stop) = stop {
            self.print_stop(name, &stop);
        }
    }

    /// Waits a moment for what must not come.
    async fn none(&mut self, name: &str, call: &mut Call) {
        match call.next_within(SILENCE).await {
            Next::Message(message) => self.print(name, call, &[message]),
            Next::End(status) => self.printer.end(name, &status),
            Next::Nothing => self.printer.remark(format!("{name} nothing")),
        }
    }

    /// Reads up to the end and prints how it ended.
    async fn end(&mut self, name: &str, call: &mut Call) {
        let mut messages = Vec::new();
        let end = loop {
            match call.next().await {
                Next::Message(message) => messages.push(message),
                other => break other,
            }
        };
        self.print(name, call, &messages);
        let is_unary = !matches!(call.shape, Shape::Watch | Shape::KeepAlive | Shape::Observe);
        // The end of a unary answer is no news.
        if !(is_unary && matches!(&end, Next::End(status) if status.code() == tonic::Code::Ok)) {
            self.print_stop(name, &end);
        }
    }

    fn print(&mut self, name: &str, call: &mut Call, messages: &[Bytes]) {
        if call.shape == Shape::Watch {
            return self.printer.watch_responses(name, messages, &mut call.watched);
        }
        for message in messages {
            self.printer.named_message(name, call.shape, message);
        }
    }

    /// Prints that something else came than the message that was waited for.
    fn print_stop(&mut self, name: &str, stop: &Next) {
        match stop {
            Next::End(status) => self.printer.end(name, status),
            _ => self.printer.remark(format!("{name} NO-ANSWER-IN-TIME")),
        }
    }

    /// Waits until a key is there, `await key=…`, or not, `await gone=…`; meanwhile `renew=…` keeps
    /// a lease alive.
    async fn until_key(&mut self, fields: &mut Fields<'_>) {
        let renewed = fields.take("renew").map(|text| self.scope.number(text));
        let is_wanted = fields.take("gone").map(|text| (self.scope.key(text), 0));
        let (key, count) = is_wanted.unwrap_or_else(|| (fields.key("key", self.scope), 1));
        let deadline = clock::now() + KEY_PATIENCE;
        while self.count(&key).await != count {
            if clock::now() >= deadline {
                let key = self.scope.show_key(&key);
                return self.printer.remark(format!("await: {key} NOT-IN-TIME"));
            }
            if let Some(id) = renewed {
                let body = LeaseKeepAliveRequest { id }.encode_to_vec();
                let answer =
                    self.client.call("/etcdserverpb.Lease/LeaseKeepAlive", body.into(), &[]);
                answer.await.expect("a lease can be kept alive");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// 1 if the key is there, else 0.
    async fn count(&mut self, key: &Bytes) -> i64 {
        let request = RangeRequest { key: key.clone(), count_only: true, ..Default::default() };
        let body = request.encode_to_vec().into();
        let answer = self.client.call("/etcdserverpb.KV/Range", body, &[]).await;
        let messages = answer.expect("a key can be read");
        RangeResponse::decode(messages[0].clone()).expect("a Range answer").count
    }

    /// Ends the case: whatever its calls have not told yet is printed, its leases are revoked.
    pub(crate) async fn finish(mut self) -> Vec<String> {
        for (name, mut call) in std::mem::take(&mut self.calls) {
            if call.shape == Shape::Watch && call.is_open() {
                self.fence(&name, &mut call).await;
                continue;
            }
            if call.has_ended() {
                continue;
            }
            match call.next_now() {
                Next::Message(message) => {
                    self.printer.remark(format!("{name} unread:"));
                    self.print(&name, &mut call, &[message]);
                }
                Next::End(status) => self.printer.end(&name, &status),
                Next::Nothing if matches!(call.shape, Shape::Watch | Shape::KeepAlive) => {}
                Next::Nothing if call.shape == Shape::Observe => {}
                Next::Nothing => self.printer.remark(format!("{name} WAS-NOT-JOINED")),
            }
        }
        if self.leases {
            for id in self.scope.all_leases() {
                let body = LeaseRevokeRequest { id }.encode_to_vec().into();
                // Most of them are gone, or never were.
                let answer = self.client.call("/etcdserverpb.Lease/LeaseRevoke", body, &[]).await;
                drop::<Result<_, Status>>(answer);
            }
        }
        self.printer.finish()
    }

    /// Prints what a watch stream has not told yet: all that comes before the event of a last put.
    async fn fence(&mut self, name: &str, call: &mut Call) {
        let key = self.scope.fence_key();
        call.send(request::watch::create_on(&key, FENCE_WATCHER));
        let mut unread = Vec::new();
        loop {
            match call.next().await {
                Next::Message(message) if is_of_fence(&message) => break,
                Next::Message(message) => unread.push(message),
                stop => return self.print_stop(name, &stop),
            }
        }
        let put = PutRequest { key: key.clone(), ..PutRequest::default() }.encode_to_vec();
        let answer = self.client.call("/etcdserverpb.KV/Put", put.into(), &[]).await;
        answer.expect("a key can be put");
        loop {
            match call.next().await {
                Next::Message(message) if is_of_fence(&message) => break,
                Next::Message(message) => unread.push(message),
                stop => return self.print_stop(name, &stop),
            }
        }
        let unread: Vec<Bytes> =
            unread.into_iter().filter_map(|message| without_fence(message, &key)).collect();
        if !unread.is_empty() {
            self.printer.remark(format!("{name} unread:"));
            self.print(name, call, &unread);
        }
    }
}

/// Decodes what a watch stream sent.
fn decode(message: &Bytes) -> WatchResponse {
    WatchResponse::decode(message.clone()).expect("a server sends well-formed messages")
}

fn is_of_fence(message: &Bytes) -> bool {
    decode(message).watch_id == FENCE_WATCHER
}

/// The response without the events of the fence; none if nothing else is in it.
fn without_fence(message: Bytes, key: &Bytes) -> Option<Bytes> {
    let mut response = decode(&message);
    let events = response.events.len();
    response.events.retain(|event| event.kv.as_ref().is_none_or(|kv| kv.key != *key));
    if response.events.len() == events {
        return Some(message);
    }
    (!response.events.is_empty()).then(|| response.encode_to_vec().into())
}
