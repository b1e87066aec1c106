//! Runs the cases of a topic against one endpoint.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use quorate::pb::etcdserverpb::{RangeRequest, RangeResponse};
use tonic::Code;

use super::call::{Call, Next};
use super::client::Client;
use super::print::Identity;
use super::request::{self, Shape};
use super::scope::Scope;
use super::script::{Case, Topic};
use super::session::Session;

/// How long one case may take.
const CASE_SECONDS_MAX: u64 = 60;

/// Methods that Quorate may still lack: without one of them a topic is skipped, without any other
/// the run fails. Whoever builds a service takes its line away.
const AWAITED: &[&str] = &["/etcdserverpb.Maintenance/Alarm"];

/// Whether a topic that needs `method` may be skipped.
fn may_lack(method: &str) -> bool {
    AWAITED.iter().any(|awaited| method.starts_with(awaited))
}

/// What one case printed.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// The lines of the answer.
    pub(crate) output: Vec<String>,
}

/// A member that scripts are run against.
#[derive(Debug)]
pub(crate) struct Target {
    client: Client,
    identity: Identity,
    nonce: u32,
    cases: u32,
}

impl Target {
    /// Connects to `endpoint`. The cases of this run use keys and leases that no other run uses.
    pub(crate) async fn connect(endpoint: &str) -> Target {
        let client = Client::connect(endpoint).await;
        // Below 2^31, so that lease ids made of it are positive.
        let nonce = fastrand::u32(1..1 << 31);
        Target { client, identity: Identity::default(), nonce, cases: 0 }
    }

    /// Runs every case of `topic` in order.
    ///
    /// # Errors
    /// Why the topic cannot be run here.
    pub(crate) async fn run(&mut self, topic: &Topic) -> Result<Vec<Outcome>, String> {
        if topic.needs_fresh_store() && self.revision().await != 1 {
            return Err("the store is not fresh".to_owned());
        }
        for (method, body) in topic.needed_methods() {
            if !self.is_served(method, Scope::new(self.nonce, 0, 0).bytes(body)).await {
                assert!(may_lack(method), "{}: {method} is not served", topic.path.display());
                return Err(format!("{method} is not served"));
            }
        }
        let mut outcomes = Vec::new();
        for case in &topic.cases {
            let deadline = Duration::from_secs(CASE_SECONDS_MAX);
            let outcome = tokio::time::timeout(deadline, self.run_case(case)).await;
            let place = format!("{}:{}", topic.path.display(), case.line);
            outcomes.push(outcome.unwrap_or_else(|_| panic!("{place}: no answer in time")));
        }
        Ok(outcomes)
    }

    /// Whether the server knows what the method `path` does with `body`.
    async fn is_served(&mut self, path: &str, body: Bytes) -> bool {
        // A watch stream does not end by itself: the first news of it are enough.
        let mut call = Call::open(&self.client, path, &[], Shape::Raw);
        call.send(body);
        call.close();
        !matches!(call.next().await, Next::End(status) if status.code() == Code::Unimplemented)
    }

    /// Runs one case.
    async fn run_case(&mut self, case: &Case) -> Outcome {
        self.cases += 1;
        let base = self.revision().await;
        let scope = Scope::new(self.nonce, self.cases, base);
        let mut session = Session::new(&mut self.client, &scope, &mut self.identity);
        for (line, below) in request::split(&case.requests()) {
            session.run(&line, &below).await;
        }
        Outcome { output: session.finish().await }
    }

    /// The current revision of the store.
    async fn revision(&mut self) -> i64 {
        let key = Bytes::from_static(b"\0");
        let request = RangeRequest { key, count_only: true, ..RangeRequest::default() };
        let body = request.encode_to_vec().into();
        let answer = self.client.call("/etcdserverpb.KV/Range", body, &[]).await;
        let messages = answer.expect("a server tells its revision");
        let response = RangeResponse::decode(messages[0].clone()).expect("a Range answer");
        response.header.expect("a Range answer has a header").revision
    }
}

/// The differences between what was expected and what came, as a text; empty if there are none.
pub(crate) fn difference(topic: &Topic, case: &Case, came: &[String]) -> String {
    let expected = case.expected();
    if expected == came {
        return String::new();
    }
    format!(
        "{}:{}: {}\n  requests:\n    {}\n  expected:\n    {}\n  came:\n    {}\n",
        topic.path.display(),
        case.line,
        case.name(),
        case.requests().join("\n    "),
        expected.join("\n    "),
        came.join("\n    "),
    )
}
