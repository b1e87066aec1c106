//! Waiting in line for a name: what `lock` and `elect` have in common.
//!
//! As in etcd's concurrency packages, so that all of them stand in one line: each candidate writes
//! the key `<name>/<lease in hexadecimal>`, tied to its lease, and the oldest key has its turn. Who
//! is not first waits for the key right before its own to go, so that one of them wakes at a time.
//! The key's create revision grows from holder to holder, which makes it a fencing token: storage
//! that remembers the largest it has seen can refuse a holder that has lost its turn unawares.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, time::Duration};

use bytes::Bytes;
use quorate::pb::{
    etcdserverpb::{
        Compare, PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseHeader, TxnRequest,
        TxnResponse, WatchCreateRequest,
        compare::{CompareResult, CompareTarget, TargetUnion},
        kv_client::KvClient,
        range_request::{SortOrder, SortTarget},
        request_op::Request,
        response_op::Response,
    },
    mvccpb::event::EventType,
};

use crate::{
    client::{Client, Repeat},
    error::Error,
    keep_alive::KeepAlive,
    kv::prefix_end,
    lease,
    watcher::{End, Leader, Watcher},
};

/// TTL of a candidate's lease in seconds, unless the user knows better.
pub(crate) const TTL_SECONDS_DEFAULT: i64 = 60;

/// A lease and the key in the line that is tied to it.
pub(crate) struct Candidate<'a> {
    client: &'a Client,
    lease: i64,
    ttl: Duration,
    prefix: Bytes,
    /// The key in the line.
    pub(crate) key: Bytes,
}

/// The keys of a line all begin with this.
pub(crate) fn prefix_of(name: &OsStr) -> Bytes {
    [name.as_bytes(), b"/"].concat().into()
}

/// Asks for the oldest key of a line.
pub(crate) fn first_of(prefix: &Bytes) -> RangeRequest {
    RangeRequest {
        key: prefix.clone(),
        range_end: prefix_end(prefix),
        limit: 1,
        sort_order: SortOrder::Ascend.into(),
        sort_target: SortTarget::Create.into(),
        ..RangeRequest::default()
    }
}

/// One read, repeated where that helps.
pub(crate) async fn range(client: &Client, request: &RangeRequest) -> Result<RangeResponse, Error> {
    let limit = client.response_bytes_max;
    client
        .call(Repeat::Safe, request, |session, request| async move {
            KvClient::new(session.channel).max_decoding_message_size(limit).range(request).await
        })
        .await
}

impl<'a> Candidate<'a> {
    /// Takes a lease; the key is not written yet.
    pub(crate) async fn new(
        client: &'a Client,
        name: &OsStr,
        ttl_seconds: i64,
    ) -> Result<Self, Error> {
        let granted = lease::grant(client, ttl_seconds).await?;
        let prefix = prefix_of(name);
        let key = [&prefix[..], format!("{:x}", granted.id).as_bytes()].concat().into();
        let ttl = Duration::from_secs(granted.ttl.unsigned_abs());
        Ok(Self { client, lease: granted.id, ttl, prefix, key })
    }

    /// Renewals of the lease, to be run beside everything else.
    pub(crate) fn keep_alive(&self) -> KeepAlive<'a> {
        KeepAlive::new(self.client, self.lease, self.ttl)
    }

    /// Writes the key and waits for its turn. The header is that of the answer that made it sure.
    pub(crate) async fn wait_for_turn(&self, value: Bytes) -> Result<ResponseHeader, Error> {
        let response = self.enter(value).await?;
        let header = response.header.unwrap_or_default();
        let mut pairs = response.responses.into_iter().filter_map(|op| match op.response {
            Some(Response::ResponseRange(range)) => Some(range.kvs.into_iter().next()),
            _ => None,
        });
        let own_revision = match response.succeeded {
            true => header.revision,
            false => pairs.next().flatten().map_or(0, |kv| kv.create_revision),
        };
        let first = pairs.next().flatten();
        if first.is_none_or(|kv| kv.create_revision == own_revision) {
            return Ok(header);
        }
        self.wait_for_those_before(own_revision).await?;
        let own = self.read().await?;
        match own.kvs.is_empty() {
            true => Err(Error::General("mutex: session is expired".to_owned())),
            false => Ok(own.header.unwrap_or_default()),
        }
    }

    /// The own key as it is now.
    pub(crate) async fn read(&self) -> Result<RangeResponse, Error> {
        let request = RangeRequest { key: self.key.clone(), ..RangeRequest::default() };
        range(self.client, &request).await
    }

    /// Leaves the line: the lease ends and takes the key along.
    ///
    /// etcdctl deletes the key and lets the lease expire, which looks the same to all others.
    pub(crate) async fn leave(&self) -> Result<(), Error> {
        match lease::revoke(self.client, self.lease).await {
            Err(Error::Rpc(status)) if status.code() == tonic::Code::NotFound => Ok(()),
            result => result.map(|_| ()),
        }
    }

    async fn enter(&self, value: Bytes) -> Result<TxnResponse, Error> {
        let absent = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Create.into(),
            key: self.key.clone(),
            target_union: Some(TargetUnion::CreateRevision(0)),
            range_end: Bytes::new(),
        };
        let key = self.key.clone();
        let put = PutRequest { key, value, lease: self.lease, ..PutRequest::default() };
        let get = RangeRequest { key: self.key.clone(), ..RangeRequest::default() };
        let first = RequestOp { request: Some(Request::RequestRange(first_of(&self.prefix))) };
        let own = |request| RequestOp { request: Some(request) };
        let request = TxnRequest {
            compare: vec![absent],
            success: vec![own(Request::RequestPut(put)), first.clone()],
            failure: vec![own(Request::RequestRange(get)), first],
        };
        self.client
            .call(Repeat::Never, &request, |session, request| async move {
                KvClient::new(session.channel).txn(request).await
            })
            .await
    }

    /// Waits until no key of the line is older than this revision.
    async fn wait_for_those_before(&self, revision: i64) -> Result<(), Error> {
        let before = RangeRequest {
            sort_order: SortOrder::Descend.into(),
            max_create_revision: revision - 1,
            ..first_of(&self.prefix)
        };
        loop {
            let response = range(self.client, &before).await?;
            let Some(kv) = response.kvs.first() else { return Ok(()) };
            let revision = response.header.unwrap_or_default().revision;
            self.wait_for_deletion(kv.key.clone(), revision).await?;
        }
    }

    async fn wait_for_deletion(&self, key: Bytes, revision: i64) -> Result<(), Error> {
        let request = WatchCreateRequest {
            key,
            start_revision: revision + 1,
            ..WatchCreateRequest::default()
        };
        let mut watcher = Watcher::new(self.client, request, Leader::Optional);
        loop {
            let response = watcher.next().await.map_err(|end| match end {
                End::Failed(error) => error,
                End::Canceled => Error::General("lost watcher waiting for delete".to_owned()),
            })?;
            if response.events.iter().any(|event| event.r#type() == EventType::Delete) {
                return Ok(());
            }
            if response.canceled {
                // History was compacted meanwhile: the caller looks again.
                return Ok(());
            }
        }
    }
}
