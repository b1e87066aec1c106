//! Opening a state: the index is rebuilt from the records.
//!
//! One scan finds the versions of every key and keeps their pairs in memory as far as the budget
//! goes, and which keys hang on which lease. Nothing else is kept of a former life, so a crash has nothing to repair.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use prost::Message;

use super::answer::EventKind;
use super::compact::{COMPACT_REVISION_NONE, Compaction};
use super::lease::Leases;
use super::mvcc::entry::Version;
use super::mvcc::index::{Index, Written};
use super::mvcc::record::{self, Pair};
use super::pins::Pins;
use super::records;
use super::revision::Revision;
use super::schema::{self, Progress, damaged};
use super::{Options, State};
use crate::pb::quorate::command::PublishMember;
use crate::storage::{Backend, Batch, StorageError};

/// The revision of a store in which nothing has changed yet. As in etcd.
const REVISION_FRESH: i64 = 1;

impl<B: Backend> State<B> {
    /// Opens the state that `backend` holds, or a fresh one.
    pub fn open(backend: Arc<B>, options: Options) -> Result<Self, StorageError> {
        ensure_format(&*backend)?;
        let progress = backend.get(schema::POSITION)?;
        let progress = progress.map(|value| Progress::decode(&value)).transpose()?;
        let compact = backend.get(schema::COMPACT)?;
        let compact = compact.map(|value| schema::decode_compact(&value)).transpose()?;
        let compact = compact.unwrap_or((COMPACT_REVISION_NONE, COMPACT_REVISION_NONE));
        let revision = progress.map_or(REVISION_FRESH, |progress| progress.revision);
        let compaction = Compaction::read(compact, revision)?;
        let mut leases = Leases::read(&*backend)?;
        let index = read_index(&*backend, options, revision, &mut leases)?;
        leases.finish_reading()?;
        Ok(State {
            index,
            revision,
            applied: progress.map(|progress| progress.position),
            time_unix_ms: progress.map_or(0, |progress| progress.time_unix_ms),
            membership: backend.get(schema::MEMBERSHIP)?.unwrap_or_default(),
            members: read_members(&*backend)?,
            leases,
            compaction,
            pins: Pins::default(),
            backend,
        })
    }
}

fn ensure_format<B: Backend>(backend: &B) -> Result<(), StorageError> {
    match backend.get(schema::FORMAT)? {
        Some(format) if *format == [schema::FORMAT_NUMBER] => Ok(()),
        Some(format) => Err(damaged(format!(
            "the data was written in format {:?}, this release reads format {}",
            &format[..],
            schema::FORMAT_NUMBER
        ))),
        None => {
            let mut batch = Batch::default();
            batch.put(schema::FORMAT, vec![schema::FORMAT_NUMBER]);
            backend.commit(batch)
        }
    }
}

fn read_members<B: Backend>(backend: &B) -> Result<BTreeMap<u64, PublishMember>, StorageError> {
    let (start, end) = schema::member_keys();
    let mut members = BTreeMap::new();
    let mut torn = false;
    backend.scan(start, end, &mut |_, value| match PublishMember::decode(value) {
        Ok(member) => {
            members.insert(member.member_id, member);
            ControlFlow::Continue(())
        }
        Err(_) => {
            torn = true;
            ControlFlow::Break(())
        }
    })?;
    if torn { Err(damaged("a published member is malformed")) } else { Ok(members) }
}

/// Records that are sorted by key before they enter the index: neighbours touch the same leaf.
const SORTED_RECORDS: usize = 1 << 16;
/// Bytes of such records, so that large pairs are not held beside the budget of memory.
const SORTED_BYTES: usize = 4 << 20;

/// A record on its way into the index.
struct Found {
    key: Box<[u8]>,
    version: Version,
    /// The pair, unless the record is a tombstone.
    kv: Option<Box<[u8]>>,
    /// The lease that the record attaches its key to; 0 for none.
    lease: i64,
}

fn read_index<B: Backend>(
    backend: &B,
    options: Options,
    revision: i64,
    leases: &mut Leases,
) -> Result<Index, StorageError> {
    // Half of the budget: reading everything takes memory of its own.
    let mut index = Index::new(options.value_cache_bytes / 2);
    let mut torn = None;
    let mut newest = REVISION_FRESH;
    let mut found = Vec::new();
    let mut found_bytes = 0;
    let bounds = (schema::record_key(Revision::default()), schema::RECORDS_END);
    records::scan(backend, &bounds.0, bounds.1, &mut |at, value| {
        let record = Some(at).filter(|at| at.main <= revision);
        newest = at.main;
        let Some(record) = record.and_then(|at| read_record(at, value)) else {
            torn = Some(damaged(format!("the record at revision {} is malformed", at.main)));
            return ControlFlow::Break(());
        };
        leases.restore(&record.key, record.lease);
        found.push(record);
        found_bytes += value.len();
        if found.len() == SORTED_RECORDS || found_bytes >= SORTED_BYTES {
            add_records(&mut index, &mut found);
            found_bytes = 0;
        }
        ControlFlow::Continue(())
    })?;
    add_records(&mut index, &mut found);
    index.set_cached_bytes_max(options.value_cache_bytes);
    if torn.is_none() && newest != revision {
        // The newest change is never compacted, be it a tombstone.
        torn = Some(damaged(format!("the records end at revision {newest} of {revision}")));
    }
    torn.map_or(Ok(index), Err)
}

fn read_record(at: Revision, value: &[u8]) -> Option<Found> {
    let (kind, kv) = record::split(value)?;
    let pair = Pair::decode(kv)?;
    let is_put = kind == EventKind::Put;
    if pair.mod_revision != at.main || !pair.is_sound(is_put) {
        return None;
    }
    let version = Version {
        main: at.main,
        sub: at.sub,
        create: pair.create_revision,
        number: pair.version,
        len: u32::try_from(kv.len()).ok()?,
    };
    let (key, lease) = (pair.key.into(), pair.lease);
    Some(Found { key, version, kv: is_put.then(|| kv.into()), lease })
}

/// Moves `found` into the index; what the budget of memory does not hold is dropped again.
fn add_records(index: &mut Index, found: &mut Vec<Found>) {
    // A stable sort: the versions of one key stay in the order of their revisions.
    found.sort_by(|a, b| a.key.cmp(&b.key));
    for Found { key, version, kv, .. } in found.drain(..) {
        index.write(&key, |_| Written { version, cached: kv, answer: () });
    }
    index.evict();
}
