//! The transaction in which keys change: everything in it happens at one revision.
//!
//! A Put, a DeleteRange, a Txn and the end of a lease all compile to it. All checks come before the first write, for
//! nothing can be taken back. So as in etcd a write whose answer is larger than any message happens, and
//! its client is told only that.

use bytes::Bytes;

use super::State;
use super::answer::{DeleteRangeAnswer, Event, EventKind, LeaseExpiry, PutAnswer, RangeAnswer};
use super::error::RequestError;
use super::key_range::KeyRange;
use super::mvcc::entry::Version;
use super::mvcc::index::{Walk, Written};
use super::mvcc::record::{self, Pair, Record};
use super::range::{RangePlan, Room, View, read_with};
use super::records;
use super::revision::Revision;
use super::schema;
use crate::limits::ANSWER_BYTES_MAX;
use crate::mutants;
use crate::pb::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest};
use crate::pb::quorate::command::LeaseExpire;
use crate::storage::{Backend, Batch, StorageError};

/// What the commands of one log entry have written so far.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Records, in revision order.
    pub(super) records: Batch,
    /// Facts of the state itself.
    pub(super) facts: Batch,
}

impl Pending {
    /// The value of a record of this entry.
    fn record(&self, revision: Revision) -> Option<Bytes> {
        let key = schema::record_key(revision);
        let writes = &self.records.writes;
        let at = writes.binary_search_by(|(other, _)| (**other).cmp(&key)).ok()?;
        writes[at].1.clone()
    }

    /// Everything in one batch.
    pub(super) fn into_batch(mut self) -> Batch {
        let mut batch = Batch::default();
        batch.writes.reserve(self.records.writes.len() + self.facts.writes.len());
        for (at, value) in self.records.writes {
            records::put(&mut batch, at, value.expect("a record is only written"));
        }
        batch.writes.append(&mut self.facts.writes);
        batch
    }
}

/// A transaction.
pub(super) struct WriteTxn<'a, B> {
    state: &'a mut State<B>,
    pending: &'a mut Pending,
    events: Vec<Event>,
    /// How many bytes of pairs the answer still takes.
    room: usize,
}

impl<'a, B: Backend> WriteTxn<'a, B> {
    pub(super) fn new(state: &'a mut State<B>, pending: &'a mut Pending) -> Self {
        WriteTxn { state, pending, events: Vec::new(), room: ANSWER_BYTES_MAX }
    }

    /// The revision that readers inside the transaction see.
    pub(super) fn revision(&self) -> i64 {
        self.state.revision() + i64::from(!self.events.is_empty())
    }

    /// What readers inside the transaction see.
    pub(super) fn view(&self) -> View<'_> {
        View { revision: self.revision(), ..self.state.view() }
    }

    /// Ends the transaction: its writes are the newest revision now.
    pub(super) fn finish(self) -> Vec<Event> {
        let revision = self.revision();
        self.state.set_revision(revision);
        self.events
    }

    /// Refuses a Put that fits its shape but not the keys and leases there are.
    pub(super) fn check_put(&self, request: &PutRequest) -> Result<(), RequestError> {
        if request.lease != 0 && self.state.lease(request.lease).is_none() {
            return Err(RequestError::LeaseNotFound);
        }
        let needs_key = request.ignore_value || request.ignore_lease;
        if needs_key && self.live(&request.key).is_none() {
            return Err(RequestError::KeyNotFound);
        }
        Ok(())
    }

    /// Writes one key. The request has passed all checks.
    pub(super) fn put(&mut self, request: &PutRequest) -> Result<PutAnswer, StorageError> {
        let is_read = request.prev_kv || request.ignore_value || request.ignore_lease;
        let before = if is_read { self.read(&request.key)? } else { None };
        let kept = before.as_deref().map(|kv| Pair::decode(kv).expect("we encoded this pair"));
        let (mut value, mut lease) = (&request.value[..], request.lease);
        if request.ignore_value {
            value = kept.expect("the key was checked to be there").value;
        }
        if request.ignore_lease {
            lease = kept.expect("the key was checked to be there").lease;
        }
        self.write_put(&request.key, value, lease);
        self.state.leases_mut().attach(&request.key, lease);
        let mut answer = PutAnswer::default();
        if let Some(kv) = before.filter(|_| request.prev_kv) {
            match self.take_room(kv.len()) {
                Ok(()) => answer.prev_kv = Some(kv),
                Err(left_out) => answer.left_out = left_out,
            }
        }
        Ok(answer)
    }

    /// Deletes the keys of a range, in key order.
    pub(super) fn delete_range(
        &mut self,
        request: &DeleteRangeRequest,
    ) -> Result<DeleteRangeAnswer, StorageError> {
        let range = KeyRange::new(&request.key, &request.range_end);
        let mut keys: Vec<Box<[u8]>> = Vec::new();
        let walk = Walk { live_only: true, backwards: false };
        self.state.index().visit(range, walk, |entry| {
            if entry.latest().is_live() {
                keys.push(entry.key().into());
            }
            std::ops::ControlFlow::Continue(())
        });
        let deleted = keys.len() as i64;
        let mut answer = DeleteRangeAnswer { deleted, ..DeleteRangeAnswer::default() };
        for key in &keys {
            if request.prev_kv
                && let Some(kv) = self.read(key)?
            {
                match self.take_room(kv.len()) {
                    Ok(()) => answer.prev_kvs.push(kv),
                    Err(left_out) => answer.left_out += left_out,
                }
            }
            self.delete_key(key);
        }
        Ok(answer)
    }

    /// Takes `bytes` of the room in the answer, which from the first that do not fit on has none; gives
    /// back those.
    fn take_room(&mut self, bytes: usize) -> Result<(), usize> {
        match self.room.checked_sub(bytes) {
            Some(room) => {
                self.room = room;
                Ok(())
            }
            None => {
                self.room = 0;
                Err(bytes)
            }
        }
    }

    /// Deletes `key`, which is live.
    fn delete_key(&mut self, key: &[u8]) {
        self.write_tombstone(key);
        self.state.leases_mut().detach(key);
    }

    /// Ends a lease and deletes its keys, in key order.
    pub(super) fn revoke_lease(&mut self, lease_id: i64) -> Result<(), RequestError> {
        let keys = self.state.leases_mut().remove(lease_id);
        let forgotten = usize::from(mutants::is_on("mutant_lease_leaves_a_key"));
        for key in keys.ok_or(RequestError::LeaseNotFound)?.into_iter().skip(forgotten) {
            self.delete_key(&key);
        }
        self.pending.facts.remove(schema::lease_key(lease_id));
        Ok(())
    }

    /// Ends a lease that has run out, unless it is not the one whose end was seen any more.
    pub(super) fn expire_lease(&mut self, request: &LeaseExpire) -> LeaseExpiry {
        let id = request.id;
        let lease = self.state.lease(id);
        let is_same = lease.is_some_and(|lease| lease.expires_at_ms() == request.expires_at_ms);
        LeaseExpiry { id, is_expired: is_same && self.revoke_lease(id).is_ok() }
    }

    /// Reads keys, seeing what the transaction wrote. The request has passed all checks.
    pub(super) fn range(&mut self, request: &RangeRequest) -> Result<RangeAnswer, StorageError> {
        let mut plan = RangePlan::new(self.view(), request, Room::Whole(self.room))
            .expect("ranges are checked before a transaction writes");
        while !plan.is_planned() {
            plan.step(self.view());
        }
        let (answer, _) = plan.finish_with(|revision| self.record(revision))?;
        self.room = if answer.left_out > 0 { 0 } else { self.room - answer.kvs.len() };
        Ok(answer)
    }

    /// The encoded pair that `key` has now.
    pub(super) fn read(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        read_with(self.view(), key, |revision| self.record(revision))
    }

    fn live(&self, key: &[u8]) -> Option<&Version> {
        self.state.index().get(key)?.live_at(i64::MAX)
    }

    /// The storage value of a record, of this log entry or an earlier one.
    pub(super) fn record(&self, revision: Revision) -> Result<Bytes, StorageError> {
        match self.pending.record(revision) {
            Some(record) => Ok(record),
            None => records::read(&**self.state.backend(), revision),
        }
    }

    /// Where the next write goes.
    fn next(&self) -> Revision {
        let sub = u32::try_from(self.events.len()).expect("a transaction has fewer writes");
        Revision { main: self.state.revision() + 1, sub }
    }

    fn write_put(&mut self, key: &[u8], value: &[u8], lease: i64) {
        let revision = self.next();
        let main = revision.main;
        let ((record, event), before) = self.state.index_mut().write(key, |before| {
            let create = if before.is_live() { before.create } else { main };
            let number = before.number + 1;
            let pair = Pair {
                key,
                create_revision: create,
                mod_revision: main,
                version: number,
                value,
                lease,
            };
            let record = Record::new(revision, EventKind::Put, &pair);
            let event = event(EventKind::Put, revision, &record, before, (create, number));
            let len = event.kv.len() as u32;
            let version = Version { main, create, number, sub: revision.sub, len };
            let cached = Some(Box::from(&event.kv[..]));
            Written { version, cached, answer: (record, event) }
        });
        self.pending.records.put(record.at, record.value);
        self.push_event(event, before);
    }

    fn push_event(&mut self, mut event: Event, before: Option<Box<[u8]>>) {
        event.prev_kv = before.filter(|_| event.prev.is_some()).map(Bytes::from);
        if event.prev.is_some_and(|prev| prev.main == event.revision.main) {
            // As in etcd: previous is what was there before the revision, not within it.
            let first = self.events.iter().find(|first| first.key == event.key);
            let first = first.expect("the pair was written by this transaction");
            (event.prev, event.prev_kv) = (first.prev, first.prev_kv.clone());
        }
        self.events.push(event);
    }

    fn write_tombstone(&mut self, key: &[u8]) {
        let revision = self.next();
        let main = revision.main;
        let ((record, event), before) = self.state.index_mut().write(key, |before| {
            assert!(before.is_live(), "only a live key is deleted");
            // As in etcd: the pair of a delete has only its key and mod revision.
            let pair = Pair { key, mod_revision: main, ..Pair::default() };
            let record = Record::new(revision, EventKind::Delete, &pair);
            let event = event(EventKind::Delete, revision, &record, before, (0, 0));
            let len = event.kv.len() as u32;
            let version = Version { main, create: 0, number: 0, sub: revision.sub, len };
            Written { version, cached: None, answer: (record, event) }
        });
        self.pending.records.put(record.at, record.value);
        self.push_event(event, before);
    }
}

fn event(
    kind: EventKind,
    revision: Revision,
    record: &Record,
    before: &Version,
    (create_revision, version): (i64, i64),
) -> Event {
    let kv = record.kv();
    Event {
        kind,
        key: record::key_of(&kv),
        kv,
        revision,
        create_revision,
        version,
        prev: before.is_live().then(|| before.revision()),
        prev_kv: None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::state::Options;
    use crate::storage::memory::Memory;

    /// A Txn or a deletion could gather the whole store many times, on every member.
    #[test]
    fn an_answer_has_room_for_so_many_pairs_in_all() {
        let options = Options { value_cache_bytes: 1 << 20 };
        let mut state = State::open(Arc::new(Memory::new()), options).unwrap();
        let mut pending = Pending::default();
        let mut txn = WriteTxn::new(&mut state, &mut pending);
        let value = Bytes::from(vec![b'v'; 1000]);
        for key in ["a", "b", "c"] {
            txn.write_put(key.as_bytes(), &value, 0);
        }
        let all = RangeRequest { key: "a".into(), range_end: "z".into(), ..Default::default() };
        let whole = txn.range(&all).unwrap();
        let pair = txn.read(b"a").unwrap().unwrap().len();

        txn.room = whole.kvs.len() + pair;
        assert_eq!(txn.range(&all).unwrap(), whole);
        let again = PutRequest { key: "a".into(), prev_kv: true, ..Default::default() };
        let put = txn.put(&again).unwrap();
        assert_eq!((put.prev_kv.map(|kv| kv.len()), put.left_out), (Some(pair), 0));
        let put = txn.put(&again).unwrap();
        assert_eq!(put.prev_kv, None);
        assert!(put.left_out > 0);
        let count = RangeRequest { count_only: true, ..all.clone() };
        assert_eq!(txn.range(&count).unwrap().left_out, 0);
        let read = txn.range(&all).unwrap();
        assert_eq!(read.kvs.len(), 0);
        assert!(read.left_out > 2 * pair);

        txn.room = 2 * pair;
        let delete = DeleteRangeRequest { key: "a".into(), range_end: "z".into(), prev_kv: true };
        let deleted = txn.delete_range(&delete).unwrap();
        assert_eq!((deleted.deleted, deleted.prev_kvs.len(), deleted.left_out), (3, 2, pair));
    }
}
