//! openraft's own conformance suite on the real and on the simulated disk, and what it leaves out:
//! reopening, entries older than the memory window, hooks, retention.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use openraft::EntryPayload;
use openraft::storage::{
    EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot, SnapshotMeta,
};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::vote::leader_id_adv::LeaderId;

use super::*;
use crate::raft::types::ProposalBytes;
use crate::wal::sim::{Loss, SimDisk};
use crate::wal::{Identity, Options};

const IDENTITY: Identity = Identity { cluster_id: 0xc1, member_id: 0xa1 };

/// The least state machine that the suite accepts.
#[derive(Default)]
struct Machine {
    applied: Option<LogId>,
    membership: StoredMembership,
    snapshot: Arc<Mutex<Option<SnapshotMetaOf<TypeConfig>>>>,
}

struct Builder(SnapshotMetaOf<TypeConfig>, Arc<Mutex<Option<SnapshotMetaOf<TypeConfig>>>>);

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, ()>, io::Error> {
        *self.1.lock() = Some(self.0.clone());
        Ok(Snapshot { meta: self.0.clone(), snapshot: () })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = ();
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            self.applied = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = entry.payload {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let meta =
            SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        Builder(meta, Arc::clone(&self.snapshot))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig>,
        (): (),
    ) -> Result<(), io::Error> {
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        *self.snapshot.lock() = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<TypeConfig, ()>>, io::Error> {
        Ok(self.snapshot.lock().clone().map(|meta| Snapshot { meta, snapshot: () }))
    }
}

fn small(mut options: Options) -> Options {
    options.segment_bytes = 16 * 1024;
    options
}

struct OnRealDisk;

impl StoreBuilder<TypeConfig, LogStore, Machine, tempfile::TempDir> for OnRealDisk {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, LogStore, Machine), openraft::StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::at(dir.path(), IDENTITY).unwrap();
        Ok((dir, LogStore::open(small(options)).unwrap(), Machine::default()))
    }
}

struct OnSimDisk;

impl StoreBuilder<TypeConfig, LogStore, Machine> for OnSimDisk {
    async fn build(&self) -> Result<((), LogStore, Machine), openraft::StorageError<TypeConfig>> {
        let options = Options::on(Arc::new(SimDisk::new()), IDENTITY);
        // No window in memory: every durable entry is read back from the segments.
        let store = LogStore::open_with_ring(small(options), 0).unwrap();
        Ok(((), store, Machine::default()))
    }
}

#[tokio::test]
async fn openraft_suite_passes_on_a_real_disk() {
    Suite::test_all(OnRealDisk).await.unwrap();
}

#[tokio::test]
async fn openraft_suite_passes_without_a_memory_window() {
    Suite::test_all(OnSimDisk).await.unwrap();
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId { term, node_id: 1 }, index)
}

fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let proposal = Bytes::from(vec![index as u8; bytes]);
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(ProposalBytes(proposal)) }
}

async fn append(store: &mut LogStore, entries: Vec<Entry>) {
    let (sender, receiver) = TypeConfig::oneshot();
    store.append(entries, IOFlushed::signal(sender)).await.unwrap();
    receiver.await.unwrap().unwrap();
}

fn open(disk: &SimDisk, ring_bytes: usize) -> LogStore {
    LogStore::open_with_ring(small(Options::on(Arc::new(disk.clone()), IDENTITY)), ring_bytes)
        .unwrap()
}

/// Entries beyond the memory window, over many segments and a truncation, come back as they were,
/// whichever way they are asked for, also after a restart.
#[tokio::test]
async fn entries_older_than_the_window_are_read_back() {
    let disk = SimDisk::new();
    let mut store = open(&disk, 2000);
    let mut expected: Vec<Entry> = (0..300).map(|index| entry(1, index, 300)).collect();
    for chunk in expected.chunks(7) {
        append(&mut store, chunk.to_vec()).await;
    }
    store.truncate_after(Some(log_id(1, 149))).await.unwrap();
    expected.truncate(150);
    let rest: Vec<Entry> = (150..400).map(|index| entry(2, index, 300)).collect();
    append(&mut store, rest.clone()).await;
    expected.extend(rest);
    for _ in 0..2 {
        assert_eq!(store.try_get_log_entries(..).await.unwrap(), expected);
        assert_eq!(store.try_get_log_entries(140..=160).await.unwrap(), expected[140..=160]);
        let streamed: Vec<Entry> =
            Box::pin(store.entries_stream(10..390).await).try_collect().await.unwrap();
        assert_eq!(streamed, expected[10..390]);
        let keys = store.get_key_log_ids(log_id(1, 0)..=log_id(2, 399)).await.unwrap();
        assert_eq!(keys, [log_id(1, 149), log_id(2, 399)]);
        drop(store);
        store = open(&disk, 2000);
    }
}

/// A limited read is a prefix of about 1 MiB, of one entry if that is larger, and nothing at all
/// if its first entry is gone.
#[tokio::test]
async fn limited_read_returns_a_prefix() {
    let mut store = open(&SimDisk::new(), 64 * 1024 * 1024);
    let large = LOG_READ_BYTES_MAX / 2;
    append(&mut store, (0..8).map(|index| entry(1, index, large)).collect()).await;
    append(&mut store, vec![entry(1, 8, 3 * LOG_READ_BYTES_MAX)]).await;
    for window in [usize::MAX, 0] {
        store.inner.ring.lock().set_bytes_max(window);
        store.inner.ring.lock().evict(9);
        assert_eq!(store.limited_get_log_entries(0, 9).await.unwrap().len(), 2);
        assert_eq!(store.limited_get_log_entries(8, 9).await.unwrap().len(), 1);
        assert_eq!(store.limited_get_log_entries(3, 3).await.unwrap().len(), 0);
    }
    store.purge(log_id(1, 3)).await.unwrap();
    assert_eq!(store.limited_get_log_entries(3, 6).await.unwrap().len(), 0);
    assert_eq!(store.limited_get_log_entries(4, 6).await.unwrap().len(), 2);
}

/// The vote is durable when `save_vote` returns; the committed log id rides with it.
#[tokio::test]
async fn vote_and_bounds_survive_power_loss() {
    let disk = SimDisk::new();
    let mut store = open(&disk, 0);
    append(&mut store, (0..200).map(|index| entry(0, index, 300)).collect()).await;
    store.purge(log_id(0, 120)).await.unwrap();
    store.save_committed(Some(log_id(0, 150))).await.unwrap();
    let vote = Vote { leader_id: LeaderId { term: 0, node_id: 0 }, committed: true };
    store.save_vote(&vote).await.unwrap();
    store.save_committed(Some(log_id(0, 160))).await.unwrap();
    let disk = disk.after_crash(Loss::Everything, &mut fastrand::Rng::with_seed(1));
    let mut store = open(&disk, 0);
    assert_eq!(store.read_vote().await.unwrap(), Some(vote));
    assert_eq!(store.read_committed().await.unwrap(), Some(log_id(0, 150)));
    let state = store.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(log_id(0, 120)));
    assert_eq!(state.last_log_id, Some(log_id(0, 199)));
    assert_eq!(store.first_index(), Some(121));
    assert_eq!(store.durable_index(), Some(199));
}

/// The hook hears of a membership before `append` returns, and of the one before after a truncation.
#[tokio::test]
async fn membership_hook_follows_the_log() {
    let mut store = open(&SimDisk::new(), 0);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&heard);
    store.set_membership_hook(Box::new(move |stored| {
        sink.lock().push(stored.log_id().map(|log_id| log_id.index));
    }));
    let membership = |index| {
        let nodes = std::collections::BTreeMap::from([(1, Default::default())]);
        let membership = codec::Membership::new(vec![[1].into()], nodes).unwrap();
        Entry { log_id: log_id(1, index), payload: EntryPayload::Membership(membership) }
    };
    append(&mut store, vec![membership(0), entry(1, 1, 10), membership(2)]).await;
    store.truncate_after(Some(log_id(1, 1))).await.unwrap();
    store.truncate_after(None).await.unwrap();
    assert_eq!(*heard.lock(), [Some(0), Some(2), Some(0), None]);
}

/// Retention: what is to be purged so that a number of entries and of bytes stays.
#[tokio::test]
async fn purge_index_keeps_entries_and_bytes() {
    let mut store = open(&SimDisk::new(), 0);
    assert_eq!(store.purge_index_keeping(0, 0), None);
    append(&mut store, (0..1000).map(|index| entry(1, index, 1000)).collect()).await;
    assert_eq!(store.purge_index_keeping(1000, u64::MAX), None);
    assert_eq!(store.purge_index_keeping(10, u64::MAX), Some(989));
    assert_eq!(store.purge_index_keeping(0, u64::MAX), Some(999));
    let before = store.retained_bytes();
    let index = store.purge_index_keeping(1000, 500_000).unwrap();
    // Headers count, too: a quarter of these small segments.
    assert!((600..700).contains(&index), "{index}");
    store.purge(log_id(1, index)).await.unwrap();
    store.flush().await.unwrap();
    assert!(store.retained_bytes() <= 500_000 && before > 1_000_000);
    assert_eq!(store.purge_index_keeping(1000, 500_000), None);
}

/// Apply waits for the local flush: the watermark does not cover entries that are only queued.
#[tokio::test]
async fn durable_index_follows_the_flush() {
    let mut store = open(&SimDisk::new(), 0);
    assert_eq!(store.durable_index(), None);
    let (sender, receiver) = TypeConfig::oneshot();
    store.append(vec![entry(1, 0, 10), entry(1, 1, 10)], IOFlushed::signal(sender)).await.unwrap();
    store.wait_durable(1).await.unwrap();
    receiver.await.unwrap().unwrap();
    assert_eq!(store.durable_index(), Some(1));
    store.truncate_after(Some(log_id(1, 0))).await.unwrap();
    assert_eq!(store.durable_index(), Some(0));
}

/// After a failed flush everybody hears of it, now and later.
#[tokio::test]
async fn failed_flush_ends_the_log() {
    let disk = SimDisk::new();
    let mut store = open(&disk, 0);
    append(&mut store, vec![entry(1, 0, 10)]).await;
    let mut last = 0;
    loop {
        last += 1;
        disk.fail_flush_at(disk.operations() + 1);
        let (sender, receiver) = TypeConfig::oneshot();
        store.append(vec![entry(1, last, 10)], IOFlushed::signal(sender)).await.unwrap();
        // A new spare segment is flushed, too, by another thread, which may be the one that fails.
        if receiver.await.unwrap().is_err() {
            break;
        }
    }
    assert!(store.save_vote(&Vote::default_for_test()).await.is_err());
    assert!(store.wait_durable(last).await.is_err());
    assert!(store.failed().is_some());
    assert_eq!(store.durable_index(), Some(last - 1));
}

trait DefaultForTest {
    fn default_for_test() -> Self;
}

impl DefaultForTest for Vote {
    fn default_for_test() -> Self {
        Self { leader_id: LeaderId { term: 1, node_id: 1 }, committed: false }
    }
}

#[derive(Default)]
struct Flushes(std::sync::atomic::AtomicU64);

impl wal::WalObserver for Flushes {
    fn flushed(&self, _: wal::Flushed) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

/// `cargo test --release log_benchmark -- --ignored --nocapture`: producers of 300-byte entries,
/// each waiting for its own flush, on the disk that holds `TMPDIR`.
#[tokio::test]
#[ignore = "a measurement, not a test"]
#[expect(clippy::print_stdout, clippy::disallowed_methods, reason = "a measurement")]
async fn log_benchmark() {
    for (producers, together) in [(1, 1), (64, 1), (8, 64)] {
        let dir = tempfile::tempdir().unwrap();
        let flushes = Arc::new(Flushes::default());
        let mut options = Options::at(dir.path(), IDENTITY).unwrap();
        options.observer = Arc::clone(&flushes) as Arc<dyn wal::WalObserver>;
        let store = LogStore::open(options).unwrap();
        let entries = if producers == 1 { 10_000 } else { 400_000 };
        let next = Arc::new(tokio::sync::Mutex::new((store, 0)));
        let (started, cpu_started) = (std::time::Instant::now(), cpu_seconds());
        let produce = |_| {
            let next = Arc::clone(&next);
            async move {
                loop {
                    let (sender, receiver) = TypeConfig::oneshot();
                    {
                        let mut next = next.lock().await;
                        let (first, end) = (next.1, next.1 + together);
                        if first >= entries {
                            return;
                        }
                        next.1 = end;
                        let batch = (first..end).map(|index| entry(1, index, 300));
                        next.0.append(batch, IOFlushed::signal(sender)).await.unwrap();
                    }
                    receiver.await.unwrap().unwrap();
                }
            }
        };
        let all = stream::iter((0..producers).map(produce));
        all.buffer_unordered(producers).collect::<Vec<()>>().await;
        println!(
            "{producers} producers of {together}: {:.0} entries a second, {:.2} us CPU each (all \
             threads), {} flushes",
            entries as f64 / started.elapsed().as_secs_f64(),
            (cpu_seconds() - cpu_started) * 1e6 / entries as f64,
            flushes.0.load(std::sync::atomic::Ordering::Relaxed),
        );
    }
}

/// User and system time of this process, in steps of 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}
