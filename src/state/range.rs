//! Reading keys: what a Range answers, worked out in bounded steps.
//!
//! ```text
//! State::range     plan the first keys: count, order, what is in memory     read lock
//! State::plan_more … until planned; the revision stays what it was          read lock, each time
//! finish           fetch what was not in memory, sort by value              no lock
//! State::warm      keep what was fetched, if it still is the newest         write lock
//! ```
//! A small range of pairs in memory is planned whole by the first call and needs nothing more. A
//! plan that needs more pins its revision against physical compaction.
//!
//! An answer larger than any message is refused by whoever would send it, with the size that it would
//! have. So above the bound a plan lets go of what it gathered and only counts on.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::answer::RangeAnswer;
use super::error::RequestError;
use super::frames::{ColdPair, Frames, put_pair};
use super::key_range::KeyRange;
use super::mvcc::entry::{Entry, Version};
use super::mvcc::index::{Index, Walk};
use super::pins::Pin;
use super::revision::Revision;
use super::{State, check, records};
use crate::limits::{ANSWER_BYTES_MAX, RANGE_STEP_BYTES_MAX, RANGE_STEP_KEYS_MAX};
use crate::pb::etcdserverpb::RangeRequest;
use crate::pb::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::storage::{Backend, StorageError};

/// The index at the moment of a read.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) index: &'a Index,
    /// The current revision; inside a Txn that wrote, the one it makes.
    pub(super) revision: i64,
    pub(super) compact_revision: i64,
}

/// How much one answer takes.
#[derive(Debug, Clone, Copy)]
pub enum Room {
    /// The answer whole, if its pairs have no more bytes than this.
    Whole(usize),
    /// Whole pairs until they have as many bytes, and at least one; `more` tells of the rest. As with
    /// `Whole` where a sort comes first.
    Part(usize),
}

/// A Range on its way to an answer.
#[derive(Debug)]
pub struct RangePlan {
    revision: i64,
    form: Form,
    stage: Stage,
    count: i64,
    /// Whether `count` is final, or grows with each key that is looked at.
    is_counted: bool,
    more: bool,
    /// Keys that passed the filter, to be sorted.
    items: Vec<Item>,
    frames: Frames,
    /// The answer takes no more pairs once it has so many bytes.
    part_bytes: usize,
    pin: Option<Pin>,
}

/// Where a plan stands.
#[derive(Debug)]
enum Stage {
    /// Looking at keys, from here on.
    Take(Rest),
    /// They are sorted; collecting their pairs, from this item on.
    Collect(usize),
    /// There is nothing more to ask of the index.
    Planned,
}

/// The keys that a plan has yet to look at.
#[derive(Debug)]
struct Rest {
    start: Vec<u8>,
    end: Option<Vec<u8>>,
}

/// A key that waits to be sorted.
#[derive(Debug)]
struct Item {
    key: Box<[u8]>,
    version: Version,
}

impl<B: Backend> State<B> {
    /// Begins to answer `request`; see the head of this file for how to go on.
    ///
    /// The answer's header revision is [`State::revision`] at the time of this call.
    pub fn range(&self, request: &RangeRequest) -> Result<RangePlan, RequestError> {
        self.range_within(request, Room::Whole(ANSWER_BYTES_MAX))
    }

    /// As [`State::range`], for an answer that has `room`.
    pub fn range_within(
        &self,
        request: &RangeRequest,
        room: Room,
    ) -> Result<RangePlan, RequestError> {
        let mut plan = RangePlan::new(self.view(), request, room)?;
        if !plan.is_hot() {
            plan.pin = Some(self.pins().pin(plan.revision));
        }
        Ok(plan)
    }

    /// Whether this state began `plan`, and not one that a snapshot has replaced since.
    pub fn has_planned(&self, plan: &RangePlan) -> bool {
        plan.pin.as_ref().is_some_and(|pin| pin.is_of(self.pins()))
    }

    /// Goes on with a plan that is not planned yet.
    ///
    /// It must be this state's own ([`State::has_planned`]): another one may have dropped what the
    /// plan has yet to see.
    pub fn plan_more(&self, plan: &mut RangePlan) {
        assert!(self.has_planned(plan), "a plan that goes on is pinned");
        plan.step(self.view());
    }

    /// Keeps pairs that a read fetched from the storage in memory, within the budget.
    pub fn warm(&mut self, pairs: Vec<ColdPair>) {
        for pair in pairs {
            self.index_mut().warm(pair.revision, &pair.kv);
        }
        self.index_mut().evict();
    }

    /// The encoded pair that `key` has now.
    pub(super) fn read(&self, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        read_with(self.view(), key, |revision| records::read(&**self.backend(), revision))
    }
}

impl RangePlan {
    /// Plans the first step.
    pub(super) fn new(
        view: View<'_>,
        request: &RangeRequest,
        room: Room,
    ) -> Result<Self, RequestError> {
        check::range(request)?;
        let (bytes_max, part_bytes) = match room {
            Room::Whole(bytes_max) => (bytes_max, usize::MAX),
            Room::Part(bytes) => (ANSWER_BYTES_MAX, bytes.max(1)),
        };
        let revision = readable(view, request.revision)?;
        let range = KeyRange::new(&request.key, &request.range_end);
        let is_counted = revision == view.revision;
        let mut plan = RangePlan {
            revision,
            form: Form::new(request),
            stage: Stage::Planned,
            count: if is_counted { view.index.count(range) } else { 0 },
            is_counted,
            more: false,
            items: Vec::new(),
            frames: Frames::new(bytes_max),
            part_bytes,
            pin: None,
        };
        if !is_counted || (plan.count > 0 && !plan.form.count_only) {
            plan.take(view, range);
        }
        Ok(plan)
    }

    /// Whether the index has told everything; if not, [`State::plan_more`] is next.
    pub fn is_planned(&self) -> bool {
        matches!(self.stage, Stage::Planned)
    }

    /// Whether [`RangePlan::finish`] is next and will not read from the storage.
    pub fn is_hot(&self) -> bool {
        self.is_planned() && self.frames.is_hot()
    }

    /// Completes the answer with the pairs that were not in memory. May block on the storage.
    pub fn finish<B: Backend>(self, backend: &B) -> Result<RangeAnswer, StorageError> {
        self.finish_and_warm(backend).map(|(answer, _)| answer)
    }

    /// As [`RangePlan::finish`]; also gives back what it read, for [`State::warm`].
    pub fn finish_and_warm<B: Backend>(
        self,
        backend: &B,
    ) -> Result<(RangeAnswer, Vec<ColdPair>), StorageError> {
        self.finish_with(|revision| records::read(backend, revision))
    }

    /// Completes the answer; `fetch` reads a record's value.
    pub(super) fn finish_with(
        mut self,
        fetch: impl FnMut(Revision) -> Result<Bytes, StorageError>,
    ) -> Result<(RangeAnswer, Vec<ColdPair>), StorageError> {
        assert!(self.is_planned(), "a plan is finished when it is planned");
        let fetched = self.frames.fill(fetch)?;
        let left_out = self.frames.left_out();
        match self.form.order {
            Order::By { target: SortTarget::Value, descending } if left_out == 0 => {
                self.frames.sort_by_value(descending, self.form.limit, self.form.keys_only)?;
            }
            Order::By { .. } | Order::Tree { .. } => {}
        }
        let len = self.frames.len();
        let kvs = self.frames.into_bytes();
        Ok((RangeAnswer { kvs, len, count: self.count, more: self.more, left_out }, fetched))
    }

    /// Takes the plan one bounded step further.
    pub(super) fn step(&mut self, view: View<'_>) {
        match std::mem::replace(&mut self.stage, Stage::Planned) {
            Stage::Take(Rest { start, end }) => {
                self.take(view, KeyRange::Span { start: &start, end: end.as_deref() });
            }
            Stage::Collect(from) => self.collect(view, from),
            Stage::Planned => {}
        }
    }

    /// Looks at the keys of `range` until it has enough of them or of this step.
    fn take(&mut self, view: View<'_>, range: KeyRange<'_>) {
        let backwards = self.form.order == Order::Tree { backwards: true };
        let walk = Walk { backwards, live_only: self.revision == view.revision };
        let mut stopped = None;
        let mut keys = 0;
        let bytes_max = self.frames.bytes_len() + RANGE_STEP_BYTES_MAX;
        view.index.visit(range, walk, |entry| {
            if keys == RANGE_STEP_KEYS_MAX || self.frames.bytes_len() >= bytes_max {
                stopped = Some(entry.key().to_vec());
                return ControlFlow::Break(());
            }
            keys += 1;
            self.consider(entry)
        });
        match (stopped, range) {
            (Some(key), KeyRange::Span { start, end }) => {
                let mut rest = Rest { start: key, end: end.map(<[u8]>::to_vec) };
                if backwards {
                    rest.start.push(0);
                    rest = Rest { start: start.to_vec(), end: Some(rest.start) };
                }
                self.stage = Stage::Take(rest);
            }
            (None, _) | (Some(_), KeyRange::Key(_)) => self.arrange(view),
        }
    }

    /// Takes one key if it is live, wanted and not too many; breaks when it needs no more.
    fn consider(&mut self, entry: &Entry) -> ControlFlow<()> {
        let Some(version) = entry.live_at(self.revision) else {
            return ControlFlow::Continue(());
        };
        let full = if self.is_counted {
            ControlFlow::Break(())
        } else {
            self.count += 1;
            ControlFlow::Continue(())
        };
        if self.form.count_only || !self.form.filter.passes(version) {
            return ControlFlow::Continue(());
        }
        match self.form.order {
            Order::Tree { .. } if self.is_full() => {
                self.more = true;
                return full;
            }
            Order::Tree { .. } => self.push(entry.key(), version, Some(entry)),
            Order::By { .. } if self.items.len() == self.form.taken_max => return full,
            Order::By { .. } => {
                self.items.push(Item { key: entry.key().into(), version: *version });
            }
        }
        ControlFlow::Continue(())
    }

    fn is_full(&self) -> bool {
        self.frames.len() == self.form.limit || self.frames.bytes_len() >= self.part_bytes
    }

    /// All keys are taken: sorts them and cuts to the limit what can be cut without values.
    fn arrange(&mut self, view: View<'_>) {
        let Order::By { target, descending } = self.form.order else {
            return;
        };
        self.more = self.items.len() > self.form.limit;
        let rank: fn(&Item) -> i64 = match target {
            SortTarget::Version => |item| item.version.number,
            SortTarget::Create => |item| item.version.create,
            SortTarget::Mod => |item| item.version.main,
            SortTarget::Key | SortTarget::Value => |_| 0,
        };
        // Stable both ways: keys of one rank stay in key order.
        if descending {
            self.items.sort_by_key(|item| std::cmp::Reverse(rank(item)));
        } else {
            self.items.sort_by_key(rank);
        }
        if target != SortTarget::Value {
            self.items.truncate(self.form.limit);
        }
        self.collect(view, 0);
    }

    /// Collects the pairs of sorted keys.
    fn collect(&mut self, view: View<'_>, from: usize) {
        let items = std::mem::take(&mut self.items);
        let bytes_max = self.frames.bytes_len() + RANGE_STEP_BYTES_MAX;
        let mut next = from;
        for item in items.iter().skip(from).take(RANGE_STEP_KEYS_MAX) {
            if self.frames.bytes_len() >= bytes_max {
                break;
            }
            self.push(&item.key, &item.version, view.index.get(&item.key));
            next += 1;
        }
        if next < items.len() {
            self.stage = Stage::Collect(next);
            self.items = items;
        }
    }

    /// Appends one pair, or the place for it if it is not in memory.
    fn push(&mut self, key: &[u8], version: &Version, entry: Option<&Entry>) {
        // As in etcd: without values the index answers, which does not know the lease.
        if self.form.keys_only && !self.form.is_by_value() {
            return self.frames.push_key(key, version);
        }
        let same = |entry: &&Entry| entry.latest().revision() == version.revision();
        match entry.filter(same).and_then(Entry::cached) {
            Some(kv) => self.frames.push(kv),
            None => self.frames.push_cold(version),
        }
    }
}

/// The encoded pair that `key` has now; `fetch` reads a record's value.
pub(super) fn read_with(
    view: View<'_>,
    key: &[u8],
    fetch: impl FnOnce(Revision) -> Result<Bytes, StorageError>,
) -> Result<Option<Bytes>, StorageError> {
    let entry = view.index.get(key).filter(|entry| entry.latest().is_live());
    let Some(entry) = entry else {
        return Ok(None);
    };
    if let Some(kv) = entry.cached() {
        return Ok(Some(Bytes::copy_from_slice(kv)));
    }
    let revision = entry.latest().revision();
    put_pair(&fetch(revision)?, revision).map(Some)
}

/// The revision to read at, if it can be read.
fn readable(view: View<'_>, revision: i64) -> Result<i64, RequestError> {
    if revision > view.revision {
        return Err(RequestError::FutureRev);
    }
    let revision = if revision <= 0 { view.revision } else { revision };
    if revision < view.compact_revision {
        return Err(RequestError::Compacted);
    }
    Ok(revision)
}

/// What the request asks for besides keys and revision.
#[derive(Debug, Clone, Copy)]
struct Form {
    order: Order,
    filter: Filter,
    /// Pairs in the answer.
    limit: usize,
    /// Keys to take before sorting.
    taken_max: usize,
    keys_only: bool,
    count_only: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// As the tree has them: take until the limit is full.
    Tree { backwards: bool },
    /// Take them all, then sort.
    By { target: SortTarget, descending: bool },
}

impl Form {
    fn new(request: &RangeRequest) -> Self {
        let limit = usize::try_from(request.limit).ok().filter(|&limit| limit > 0);
        let limit = limit.unwrap_or(usize::MAX);
        let filter = Filter::new(request);
        let mut taken_max = usize::MAX;
        let order = match (request.sort_order(), request.sort_target()) {
            (SortOrder::None | SortOrder::Ascend, SortTarget::Key) => {
                Order::Tree { backwards: false }
            }
            (SortOrder::Descend, SortTarget::Key) => Order::Tree { backwards: true },
            (SortOrder::None, target) => {
                // As in etcd: without an order the limit cuts in key order, and what is left is
                // sorted together with the one key that tells that there is more.
                if filter.is_open() {
                    taken_max = limit.saturating_add(1);
                }
                Order::By { target, descending: false }
            }
            (SortOrder::Ascend, target) => Order::By { target, descending: false },
            (SortOrder::Descend, target) => Order::By { target, descending: true },
        };
        let (keys_only, count_only) = (request.keys_only, request.count_only);
        Form { order, filter, limit, taken_max, keys_only, count_only }
    }

    fn is_by_value(&self) -> bool {
        matches!(self.order, Order::By { target: SortTarget::Value, .. })
    }
}

/// Bounds of the revisions of a pair.
#[derive(Debug, Clone, Copy)]
struct Filter {
    mod_min: i64,
    mod_max: i64,
    create_min: i64,
    create_max: i64,
}

impl Filter {
    /// As in etcd: a bound of 0 is no bound.
    fn new(request: &RangeRequest) -> Self {
        let or = |bound, none| if bound == 0 { none } else { bound };
        Filter {
            mod_min: or(request.min_mod_revision, i64::MIN),
            mod_max: or(request.max_mod_revision, i64::MAX),
            create_min: or(request.min_create_revision, i64::MIN),
            create_max: or(request.max_create_revision, i64::MAX),
        }
    }

    fn passes(&self, version: &Version) -> bool {
        (self.mod_min..=self.mod_max).contains(&version.main)
            && (self.create_min..=self.create_max).contains(&version.create)
    }

    fn is_open(&self) -> bool {
        (self.mod_min, self.create_min) == (i64::MIN, i64::MIN)
            && (self.mod_max, self.create_max) == (i64::MAX, i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pb::etcdserverpb::PutRequest;
    use crate::pb::quorate::command::{Command, command::Body};
    use crate::state::{Options, Position, Response};
    use crate::storage::memory::Memory;

    fn state_of_one() -> State<Memory> {
        let options = Options { value_cache_bytes: 0 };
        let mut state = State::open(Arc::new(Memory::new()), options).unwrap();
        let put = PutRequest { key: "a".into(), value: "1".into(), ..PutRequest::default() };
        let commands = [Command { body: Some(Body::Put(put)) }];
        state.apply(Position { index: 1, term: 1, leader: 1 }, 0, &commands).unwrap();
        state
    }

    fn put(state: &mut State<Memory>, index: u64, key: &str, value_bytes: usize) {
        let value = vec![b'v'; value_bytes].into();
        let put = PutRequest { key: key.to_owned().into(), value, ..PutRequest::default() };
        apply(state, index, Body::Put(put));
    }

    fn apply(state: &mut State<Memory>, index: u64, body: Body) -> Response {
        let at = Position { index, term: 1, leader: 1 };
        let mut applied = state.apply(at, 0, &[Command { body: Some(body) }]).unwrap();
        applied.pop().unwrap().outcome.unwrap()
    }

    fn read(state: &State<Memory>, request: &RangeRequest, room: Room) -> RangeAnswer {
        let mut plan = state.range_within(request, room).unwrap();
        while !plan.is_planned() {
            state.plan_more(&mut plan);
        }
        plan.finish(&**state.backend()).unwrap()
    }

    /// The whole store was gathered in memory before its size was looked at.
    #[test]
    fn above_its_bound_an_answer_holds_nothing_and_tells_its_size() {
        for value_cache_bytes in [0, 1 << 20] {
            let options = Options { value_cache_bytes };
            let mut state = State::open(Arc::new(Memory::new()), options).unwrap();
            for (index, key) in ["a", "b", "c", "d"].iter().enumerate() {
                put(&mut state, index as u64 + 1, key, 1000);
            }
            let all = RangeRequest { key: "a".into(), range_end: "z".into(), ..Default::default() };
            let whole = read(&state, &all, Room::Whole(usize::MAX));
            let bytes = whole.kvs.len();
            assert_eq!(read(&state, &all, Room::Whole(bytes)), whole);
            let by_value = SortTarget::Value.into();
            for sort_target in [all.sort_target, SortTarget::Mod.into(), by_value] {
                let request = RangeRequest { sort_target, ..all.clone() };
                let mut plan = state.range_within(&request, Room::Whole(bytes - 1)).unwrap();
                while !plan.is_planned() {
                    state.plan_more(&mut plan);
                }
                assert!(plan.is_hot(), "nothing is fetched for an answer that is refused");
                let answer = plan.finish(&**state.backend()).unwrap();
                assert_eq!((answer.kvs.len(), answer.left_out), (0, bytes));
                assert_eq!((answer.count, answer.len), (4, 4));
            }
            let part = read(&state, &all, Room::Part(bytes / 2));
            assert_eq!((part.len, part.more, part.count, part.left_out), (2, true, 4, 0));
            let part = read(&state, &all, Room::Part(0));
            assert_eq!((part.len, part.more), (1, true));
            let part = read(&state, &all, Room::Part(bytes));
            assert_eq!(part, whole);
        }
    }

    /// A plan that went on in the state of a snapshot missed what that one had compacted.
    #[test]
    fn a_plan_knows_the_state_that_began_it() {
        let (state, replacement) = (state_of_one(), state_of_one());
        let request = RangeRequest { key: "a".into(), ..RangeRequest::default() };
        let plan = state.range(&request).unwrap();
        assert!(!plan.is_hot());
        assert!(state.has_planned(&plan));
        assert!(!replacement.has_planned(&plan));
    }
}
