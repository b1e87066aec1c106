//! How many operations this member carried out: what it applied, inside Txns too, and what it read.
//!
//! The rule is etcd's: a failed operation counts nothing, and a transaction is what does more than
//! one thing.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::state::{Event, EventKind, Response, TxnAnswer};

/// Operations since the member started.
#[derive(Debug, Default)]
pub struct OperationCounts {
    /// Ranges read.
    pub ranges: AtomicU64,
    /// Keys put.
    pub puts: AtomicU64,
    /// Ranges deleted.
    pub deletes: AtomicU64,
    /// Transactions of more than one operation.
    pub txns: AtomicU64,
    /// Bytes of the pairs that were put, as they are encoded.
    pub put_bytes: AtomicU64,
    /// Records that compactions deleted.
    pub compacted: AtomicU64,
    /// When the last compaction ended, in seconds since the Unix epoch; 0 if none has.
    pub compaction_last: AtomicU64,
    /// Entries that took longer than `--warning-apply-duration` to apply.
    pub slow_applies: AtomicU64,
    /// Proposals of this member's clients that got no answer, or not before the client gave up.
    pub proposals_failed: AtomicU64,
    /// Reads of this member's clients that got no index to read at.
    pub read_indexes_failed: AtomicU64,
}

/// A proposal that waits for its answer; dropped without one, it has failed.
pub(super) struct Unanswered<'a>(pub(super) &'a OperationCounts);

impl Unanswered<'_> {
    /// There is an answer.
    pub(super) fn answered(self) {
        std::mem::forget(self);
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.proposals_failed.fetch_add(1, Relaxed);
    }
}

/// The operations of some answers.
#[derive(Default)]
struct Sum {
    ranges: u64,
    puts: u64,
    deletes: u64,
}

impl Sum {
    fn add(&mut self, response: &Response) {
        match response {
            Response::Range(_) => self.ranges += 1,
            Response::Put(_) => self.puts += 1,
            Response::DeleteRange(_) => self.deletes += 1,
            Response::Txn(answer) => {
                answer.responses.iter().for_each(|inner| self.add(&inner.response));
            }
            _ => {}
        }
    }

    fn total(&self) -> u64 {
        self.ranges + self.puts + self.deletes
    }
}

impl OperationCounts {
    /// Counts what applied commands did.
    pub(super) fn applied<'r>(&self, responses: impl Iterator<Item = &'r Response>) {
        let (mut all, mut txns) = (Sum::default(), 0);
        for response in responses {
            let before = all.total();
            all.add(response);
            txns += u64::from(all.total() - before > 1);
        }
        self.count(&all, txns);
    }

    /// Counts what applied commands wrote.
    pub(super) fn changed(&self, events: &[Event]) {
        let puts = events.iter().filter(|event| event.kind == EventKind::Put);
        let bytes: u64 = puts.map(|event| event.kv.len() as u64).sum();
        self.put_bytes.fetch_add(bytes, Relaxed);
    }

    /// Counts a Range that was read here.
    pub fn range_read(&self) {
        self.ranges.fetch_add(1, Relaxed);
    }

    /// Counts a Txn that was read here.
    pub fn txn_read(&self, answer: &TxnAnswer) {
        let mut sum = Sum::default();
        answer.responses.iter().for_each(|inner| sum.add(&inner.response));
        self.count(&sum, u64::from(sum.total() > 1));
    }

    fn count(&self, sum: &Sum, txns: u64) {
        let counters = [
            (&self.ranges, sum.ranges),
            (&self.puts, sum.puts),
            (&self.deletes, sum.deletes),
            (&self.txns, txns),
        ];
        for (counter, more) in counters {
            if more > 0 {
                counter.fetch_add(more, Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{DeleteRangeAnswer, OpResponse, PutAnswer};

    fn txn(responses: Vec<Response>) -> Response {
        let inner = |response| OpResponse { revision: 0, response };
        let responses = responses.into_iter().map(inner).collect();
        Response::Txn(TxnAnswer { succeeded: true, responses })
    }

    #[test]
    fn what_a_txn_does_counts_one_by_one() {
        let put = || Response::Put(PutAnswer::default());
        let delete = Response::DeleteRange(DeleteRangeAnswer::default());
        let counts = OperationCounts::default();
        let applied = [
            put(),
            txn(vec![put()]),
            txn(vec![delete, txn(vec![put()])]),
            txn(Vec::new()),
            Response::Compact,
        ];
        counts.applied(applied.iter());
        let seen = [&counts.ranges, &counts.puts, &counts.deletes, &counts.txns];
        assert_eq!(seen.map(|counter| counter.load(Relaxed)), [0, 3, 1, 1]);
    }
}
