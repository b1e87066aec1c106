//! Data directories that earlier releases wrote: this one opens them and has everything in them.
//!
//! `fixtures/format-N/` holds, for each cluster, a packed directory a member and a text of what was in
//! it when its members were killed. A real cluster is started on the unpacked directories and must
//! tell the same text; and what lies on the disk is read without it, to the millisecond of a lease.
//!
//! A member's id is made of its peer URL, and the others find it there, so a fixture keeps its URLs.
//! The peer URL of a member alone is never dialled. Those of the three are on addresses of the
//! loopback network that nothing else uses, and a lock lets one test at a time have them.
//!
//! | variable | meaning |
//! |---|---|
//! | `QUORATE_BLESS=1` | writes the fixtures of the newest format that are not there yet |
//! | `QUORATE_TEST_SERVER` | the binary to test instead of our own |

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use openraft::EntryPayload;
use openraft::storage::RaftLogReader;
use prost::Message;
use quorate::data_dir::DataDir;
use quorate::pb::etcdserverpb::cluster_client::ClusterClient;
use quorate::pb::etcdserverpb::lease_client::LeaseClient;
use quorate::pb::etcdserverpb::request_op::Request;
use quorate::pb::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest, LeaseKeepAliveRequest,
    LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, MemberListRequest, PutRequest,
    RangeRequest, RequestOp, TxnRequest,
};
use quorate::pb::mvccpb::KeyValue;
use quorate::pb::quorate::command::Proposal;
use quorate::raft::codec;
use quorate::raft::log_store::LogStore;
use quorate::state::{HashJob, Options, Position, State};
use quorate::storage::sled::{SledBackend, SledOptions};
use quorate::wal;

use crate::support::client::{channel, get, kv, maintenance, put, revision};
use crate::support::server::{Launch, Place, Server, program_under_test};

/// The format that this release writes.
const FORMAT: &str = "format-1";

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Small segments, and a log that is dropped early, so that state and log both count.
const FLAGS: [&str; 3] =
    ["--quorate-wal-segment-bytes=1048576", "--snapshot-count=20", "--snapshot-catchup-entries=5"];

/// A directory.
#[derive(Clone, PartialEq, Message)]
struct Packed {
    #[prost(message, repeated, tag = "1")]
    files: Vec<PackedFile>,
}

#[derive(Clone, PartialEq, Message)]
struct PackedFile {
    /// From the data directory on; a directory ends with a slash.
    #[prost(string, tag = "1")]
    path: String,
    #[prost(bytes = "bytes", tag = "2")]
    content: Bytes,
}

/// Where the fixtures are.
pub(super) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn pack(dir: &Path) -> Vec<u8> {
    let mut packed = Packed::default();
    collect(dir, dir, &mut packed);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(&packed.encode_to_vec()).unwrap();
    encoder.finish().unwrap()
}

fn collect(root: &Path, dir: &Path, packed: &mut Packed) {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            packed.files.push(PackedFile { path: format!("{name}/"), content: Bytes::new() });
            collect(root, &path, packed);
        } else {
            packed.files.push(PackedFile { path: name, content: fs::read(&path).unwrap().into() });
        }
    }
}

/// Writes a packed directory to `dir`.
pub(super) fn unpack(archive: &Path, dir: &Path) {
    let mut bytes = Vec::new();
    GzDecoder::new(fs::File::open(archive).unwrap()).read_to_end(&mut bytes).unwrap();
    fs::create_dir_all(dir).unwrap();
    for file in Packed::decode(&bytes[..]).unwrap().files {
        let path = dir.join(&file.path);
        if file.path.ends_with('/') {
            fs::create_dir_all(path).unwrap();
        } else {
            fs::write(path, file.content).unwrap();
        }
    }
}

/// The members of a fixture, in the order of their names.
fn places(names: &[&str]) -> Vec<Place> {
    let place = |(number, name): (usize, &&str)| Place {
        peer_url: format!("http://127.90.{}.{}:47113", names.len(), number + 1),
        ..Place::free(name)
    };
    names.iter().enumerate().map(place).collect()
}

/// The flags of one member whose data is in `dir`.
fn launch(place: &Place, all: &[Place], dir: &Path) -> Launch {
    let mut extra: Vec<String> = FLAGS.map(str::to_owned).into();
    if all.len() == 1 {
        extra.push("--listen-peer-urls=http://127.0.0.1:0".to_owned());
    }
    Launch {
        program: program_under_test(),
        place: place.clone(),
        all: all.to_vec(),
        data_dir: dir.join(&place.name),
        extra,
        environment: Vec::new(),
        within: Vec::new(),
    }
}

async fn start(all: &[Place], dir: &Path) -> Vec<Server> {
    let mut members: Vec<Server> =
        all.iter().map(|place| Server::launch(launch(place, all, dir))).collect();
    for member in &mut members {
        member.until_ready().await;
    }
    members
}

/// One test at a time on this machine has the addresses of the fixtures.
async fn lock() -> fs::File {
    let path = std::env::temp_dir().join("quorate-upgrade.lock");
    let file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    while rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    file
}

fn text_of(bytes: &[u8]) -> String {
    match str::from_utf8(bytes) {
        Ok(text) if bytes.len() <= 40 => text.escape_debug().to_string(),
        _ => format!("{} bytes with CRC32C {:08x}", bytes.len(), crc32c::crc32c(bytes)),
    }
}

fn pair(kv: &KeyValue) -> String {
    let (key, value) = (text_of(&kv.key), text_of(&kv.value));
    let lease = if kv.lease == 0 { String::new() } else { format!(", lease {}", kv.lease) };
    let (create, version) = (kv.create_revision, kv.version);
    format!("{key} = {value} (create {create}, mod {}, version {version}{lease})", kv.mod_revision)
}

/// What the member at `endpoint` tells.
async fn told(endpoint: &str) -> String {
    let mut text = String::new();
    let channel = channel(endpoint, PATIENCE);
    let mut kv = kv(channel.clone());
    let latest = revision(&kv.range(get("x")).await.unwrap().into_inner().header);
    writeln!(text, "revision {latest}").unwrap();
    for at in 1..=latest {
        let request = RangeRequest {
            key: "\0".into(),
            range_end: "\0".into(),
            revision: at,
            ..Default::default()
        };
        match kv.range(request).await {
            Ok(answer) => {
                let kvs = answer.into_inner().kvs;
                let is_shown = at == latest || kvs.len() < 12;
                let new = kvs.iter().filter(|kv| is_shown || kv.mod_revision == at);
                let new: Vec<String> = new.map(pair).collect();
                writeln!(text, "at {at}: {} keys; {}", kvs.len(), new.join("; ")).unwrap();
            }
            Err(status) => writeln!(text, "at {at}: {}", status.message()).unwrap(),
        }
        let mut maintenance = maintenance(channel.clone());
        if let Ok(hash) = maintenance.hash_kv(HashKvRequest { revision: at }).await {
            let hash = hash.into_inner();
            let (hash, compacted) = (hash.hash, hash.compact_revision);
            writeln!(text, "at {at}: hash {hash:08x}, compacted {compacted}").unwrap();
        }
    }
    let mut leases = LeaseClient::new(channel.clone());
    let all = leases.lease_leases(LeaseLeasesRequest {}).await.unwrap().into_inner().leases;
    let mut ids: Vec<i64> = all.iter().map(|lease| lease.id).collect();
    ids.sort_unstable();
    for id in ids {
        let request = LeaseTimeToLiveRequest { id, keys: true };
        let lease = leases.lease_time_to_live(request).await.unwrap().into_inner();
        assert!(lease.granted_ttl - lease.ttl < 3600, "lease {id} lives {} more", lease.ttl);
        let keys: Vec<String> = lease.keys.iter().map(|key| text_of(key)).collect();
        writeln!(text, "lease {id}: granted {}, keys {keys:?}", lease.granted_ttl).unwrap();
    }
    let request = MemberListRequest { linearizable: true };
    let list = ClusterClient::new(channel).member_list(request).await.unwrap().into_inner();
    writeln!(text, "cluster {:x}", list.header.unwrap().cluster_id).unwrap();
    for member in list.members {
        writeln!(text, "member {:x} {} {:?}", member.id, member.name, member.peer_ur_ls).unwrap();
    }
    text
}

/// What lies in the data directory `dir`: the state, and the log applied to it.
pub(super) async fn stored(dir: &Path) -> Result<String, Box<dyn Error>> {
    let data_dir = DataDir::open(dir, None)?;
    let identity = data_dir.identity().ok_or("nobody's data")?;
    let wal_identity =
        wal::Identity { cluster_id: identity.cluster_id.0, member_id: identity.member_id.0 };
    let mut log = LogStore::open(wal::Options::at(&data_dir.wal_dir(), wal_identity)?)?;
    let backend = SledBackend::open(data_dir.current_state_dir(), SledOptions::default())?;
    let options = Options { value_cache_bytes: 1 << 20 };
    let mut state = State::open(Arc::new(backend), options)?;
    let mut text = String::new();
    let found = state.applied().map_or(0, |at| at.index);
    let state_dir = data_dir.current_state_dir();
    let state_dir = state_dir.file_name().unwrap().to_str().unwrap();
    let (purged, last) = (log.purged_index(), log.last_index());
    // As the server does: they must leave no hole between them.
    if purged.is_some_and(|purged| found < purged) {
        return Err("the state lacks entries that the log has dropped".into());
    }
    writeln!(text, "{state_dir} up to {found}, log after {purged:?} up to {last:?}").unwrap();
    for entry in log.try_get_log_entries(found + 1..).await? {
        let at = Position {
            index: entry.log_id.index,
            term: entry.log_id.leader_id.term,
            leader: entry.log_id.leader_id.node_id,
        };
        match entry.payload {
            EntryPayload::Blank => state.apply_blank(at).unwrap(),
            EntryPayload::Normal(proposal) => {
                let proposal = Proposal::decode(proposal.0).unwrap();
                let commands = proposal.groups.iter().flat_map(|group| &group.commands);
                drop(state.apply(at, proposal.time_unix_ms, commands).unwrap());
            }
            EntryPayload::Membership(_) => unreachable!("the membership is in the state"),
        }
    }
    for term in state.leases() {
        writeln!(text, "lease {}: {} s, ends at {}", term.id, term.ttl_seconds, term.expires_at_ms)
            .unwrap();
    }
    let members: BTreeMap<u64, &str> =
        state.members().iter().map(|(id, member)| (*id, member.name.as_str())).collect();
    let membership = codec::decode_stored_membership(state.membership())?;
    let voters: Vec<u64> = membership.membership().voter_ids().collect();
    writeln!(text, "members {members:x?}, voters {voters:x?}").unwrap();
    let mut hash = HashJob::new(&state, 0).unwrap();
    let hash = loop {
        if let Some(answer) = hash.step(&state, 1000)? {
            break answer;
        }
    };
    writeln!(text, "{hash:?}, clock {}", state.time_unix_ms()).unwrap();
    Ok(text)
}

/// A bit of everything that a store can hold, through the member at `endpoint`.
async fn live(endpoint: &str) {
    let channel = channel(endpoint, PATIENCE);
    let (mut kv, mut leases) = (kv(channel.clone()), LeaseClient::new(channel));
    for id in 1..=70 {
        leases.lease_grant(LeaseGrantRequest { id, ttl: 4_000_000 + id }).await.unwrap();
    }
    for round in 0..5 {
        kv.put(put("history", format!("round {round}"))).await.unwrap();
    }
    kv.delete_range(DeleteRangeRequest { key: "history".into(), ..Default::default() })
        .await
        .unwrap();
    kv.put(put("history", "again")).await.unwrap();
    kv.put(put("binary\0\u{ff}", [0, 255, 1, 254])).await.unwrap();
    kv.put(put("empty", "")).await.unwrap();
    for length in [512, 513, 3000, 70_000] {
        kv.put(put(format!("long/{length}"), vec![b'l'; length])).await.unwrap();
    }
    for id in [3, 3, 5] {
        let key = format!("leased/{id}");
        kv.put(PutRequest { lease: id, ..put(key, "by a lease") }).await.unwrap();
    }
    kv.put(PutRequest { lease: 5, ..put("leased/too", "with 5") }).await.unwrap();
    let op = |request| RequestOp { request: Some(request) };
    let inner = TxnRequest {
        success: vec![op(Request::RequestPut(put("txn/c", "3")))],
        ..Default::default()
    };
    let delete = DeleteRangeRequest { key: "empty".into(), ..Default::default() };
    let success = vec![
        op(Request::RequestPut(put("txn/a", "1"))),
        op(Request::RequestPut(put("txn/b", "2"))),
        op(Request::RequestDeleteRange(delete)),
        op(Request::RequestTxn(inner)),
    ];
    kv.txn(TxnRequest { success, ..Default::default() }).await.unwrap();
    kv.compact(CompactionRequest { revision: 5, physical: true }).await.unwrap();
    leases.lease_revoke(LeaseRevokeRequest { id: 70 }).await.unwrap();
    leases.lease_revoke(LeaseRevokeRequest { id: 5 }).await.unwrap();
}

/// Renews all leases but the first, each a while after its grant.
async fn renew(endpoint: &str) {
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let mut leases = LeaseClient::new(channel(endpoint, PATIENCE));
    let ids = (2..70).filter(|id| *id != 5);
    let requests: Vec<_> = ids.map(|id| LeaseKeepAliveRequest { id }).collect();
    let count = requests.len();
    let requests = futures_util::stream::iter(requests);
    let mut answers = leases.lease_keep_alive(requests).await.unwrap().into_inner();
    for _ in 0..count {
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!(answer.ttl, 4_000_000 + answer.id);
    }
}

async fn write_more(endpoint: &str, from: usize, count: usize) {
    let mut kv = kv(channel(endpoint, PATIENCE));
    for number in from..from + count {
        let request = put(format!("more/{}", number % 7), format!("number {number}"));
        // The leader may just have been killed.
        while kv.put(request.clone()).await.is_err() {}
    }
}

/// Waits until the state of a member has a checkpoint.
async fn until_checkpoint(member: &Server) {
    let state = member.launched().data_dir.join("member/state/state-1/CHECKPOINT");
    let before = fs::read(&state).ok();
    while fs::read(&state).ok() == before {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Makes a fixture: lives, is killed, and is packed.
async fn bless(name: &str, all: &[Place]) {
    let scratch = tempfile::tempdir().unwrap();
    let mut members = start(all, scratch.path()).await;
    let endpoint = all[0].client_url.clone();
    live(&endpoint).await;
    if members.len() > 1 {
        // The last member misses so much that it gets a snapshot.
        let last = members.len() - 1;
        let mut written = 0;
        loop {
            members[last].kill().await;
            write_more(&endpoint, written, 60).await;
            written += 60;
            tokio::time::sleep(Duration::from_secs(2)).await;
            write_more(&endpoint, written, 5).await;
            written += 5;
            members[last].restart();
            members[last].until_ready().await;
            if members[last].line("applied snapshot").is_some() {
                break;
            }
        }
        // Now it can be compacted, which keeps the text short.
        let mut kv = kv(channel(&endpoint, PATIENCE));
        let latest = revision(&kv.range(get("x")).await.unwrap().into_inner().header);
        kv.compact(CompactionRequest { revision: latest - 5, physical: true }).await.unwrap();
    } else {
        write_more(&endpoint, 0, 10).await;
        until_checkpoint(&members[0]).await;
    }
    renew(&endpoint).await;
    write_more(&endpoint, 9000, 3).await;
    let text = told(&endpoint).await;
    for member in &members {
        // All of them have everything on their disks.
        assert_eq!(told(member.endpoint()).await, text);
    }
    for member in &mut members {
        member.kill().await;
    }
    let folder = folder().join(FORMAT);
    let mut text = format!("{text}\n");
    for place in all {
        let dir = scratch.path().join(&place.name);
        let packed = pack(&dir);
        fs::write(folder.join(format!("{name}-{}.gz", place.name)), &packed).unwrap();
        writeln!(text, "{}:\n{}", place.name, stored(&dir).await.unwrap()).unwrap();
        eprintln!("{name}-{}: {} bytes", place.name, packed.len());
    }
    fs::write(folder.join(format!("{name}.txt")), text).unwrap();
}

/// Starts a cluster on a fixture of each format that there ever was.
async fn check(name: &str, names: &[&str]) {
    let _lock = lock().await;
    let all = places(names);
    let text_file = folder().join(FORMAT).join(format!("{name}.txt"));
    if std::env::var_os("QUORATE_BLESS").is_some() && !text_file.exists() {
        bless(name, &all).await;
    }
    let mut formats: Vec<PathBuf> =
        fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    formats.sort();
    for format in formats.iter().filter(|format| format.join(format!("{name}.txt")).exists()) {
        let scratch = tempfile::tempdir().unwrap();
        let expected = fs::read_to_string(format.join(format!("{name}.txt"))).unwrap();
        let mut on_disk = String::new();
        for place in &all {
            let archive = format.join(format!("{name}-{}.gz", place.name));
            unpack(&archive, &scratch.path().join(&place.name));
            // A copy: reading a log leaves traces.
            let copy = scratch.path().join("copy").join(&place.name);
            unpack(&archive, &copy);
            writeln!(on_disk, "{}:\n{}", place.name, stored(&copy).await.unwrap()).unwrap();
        }
        let members = start(&all, scratch.path()).await;
        for member in &members {
            let told = told(member.endpoint()).await;
            assert_eq!(format!("{told}\n{on_disk}"), expected, "{format:?}");
        }
        // And life goes on.
        write_more(members[0].endpoint(), 0, 30).await;
    }
}

#[tokio::test]
async fn a_member_alone_opens_the_data_of_every_format() {
    check("alone", &["alone"]).await;
}

#[tokio::test]
async fn three_members_open_the_data_of_every_format() {
    check("three", &["a", "b", "c"]).await;
}
