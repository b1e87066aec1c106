//! The peer port of a real member of three, whose other two are this test: messages that no member
//! sends. The member answers or drops them. A leader can make it stop, by a log that cannot be
//! applied, and then it says so; nobody can make it panic.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use quorate::data_dir::{DataDir, Identity};
use quorate::identity::{ClusterId, MemberId};
use quorate::pb::etcdserverpb::{LeaseGrantRequest, PutRequest};
use quorate::pb::quorate::command::command::Body;
use quorate::pb::quorate::command::{Command, Group, LeaseRenew, Proposal};
use quorate::pb::quorate::peer::snapshot_frame::Body as Frame;
use quorate::pb::quorate::peer::{
    AppendRequest, ConfirmRequest, Entry, LeaseRenewRequest, LeaseTimeToLiveRequest, LogId,
    Membership, Node, ProposeRequest, SnapshotFooter, SnapshotFrame, SnapshotHeader,
    SnapshotRecords, StoredMembership, TransferLeaderRequest, Vote, VoteRequest, VoterSet, entry,
};
use quorate::state::{Options, Position, SnapshotReader, State};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::support::conformance::client::{Client, Metadata};
use crate::support::fuzz::fuzz;
use crate::support::memory::Map;
use crate::support::server::{Launch, Place, Server, program_under_test};

/// How long a call is listened to; some would wait for ever.
const HEARD_FOR: Duration = Duration::from_millis(50);

/// How long an honest call may take.
const SERVED_WITHIN: Duration = Duration::from_secs(10);

const SERVICE: &str = "/quorate.peer.Peer/";

/// The members that this test plays, and the one that it talks to.
#[derive(Clone)]
struct Cluster {
    places: Vec<Place>,
    ids: Vec<u64>,
    cluster_id: u64,
}

impl Cluster {
    fn new() -> Cluster {
        let mut places: Vec<Place> = ["a", "b", "c"].map(Place::free).into();
        // Nobody listens there; so the ids of the senders stay what they are in the corpus.
        places[1].peer_url = "http://127.0.0.1:1".to_owned();
        places[2].peer_url = "http://127.0.0.1:2".to_owned();
        let ids = places
            .iter()
            .map(|place| MemberId::of_initial_member(&[&place.peer_url], "etcd-cluster"));
        let ids: Vec<MemberId> = ids.collect();
        let cluster_id = ClusterId::of_members(&ids).0;
        Cluster { places, ids: ids.into_iter().map(|id| id.0).collect(), cluster_id }
    }

    /// Makes `path` the directory of the first member, which would else ask the others whether it is
    /// new.
    fn claim(&self, path: &Path) {
        let mut data_dir = DataDir::open(path, None).expect("an empty directory");
        let (cluster_id, member_id) = (ClusterId(self.cluster_id), MemberId(self.ids[0]));
        data_dir.claim(Identity { cluster_id, member_id }).expect("it is nobody's");
    }

    /// What identifies a call of the second member to the first.
    fn identity(&self) -> Vec<Metadata> {
        let text = |id: u64| Bytes::from(format!("{id:x}"));
        [
            ("content-type", Bytes::from_static(b"application/grpc")),
            ("te", Bytes::from_static(b"trailers")),
            ("quorate-cluster-id", text(self.cluster_id)),
            ("quorate-from", text(self.ids[1])),
            ("quorate-to", text(self.ids[0])),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    fn vote(&self, term: u64) -> Option<Vote> {
        Some(Vote { term, candidate: self.ids[1], committed: true })
    }

    fn log_id(&self, term: u64, index: u64) -> Option<LogId> {
        Some(LogId { term, leader: if term == 0 { 0 } else { self.ids[1] }, index })
    }

    fn membership(&self) -> Membership {
        let node = |(place, id): (&Place, &u64)| Node {
            id: *id,
            name: place.name.clone(),
            peer_urls: vec![place.peer_url.clone()],
        };
        Membership {
            voter_sets: vec![VoterSet { ids: self.ids.clone() }],
            nodes: self.places.iter().zip(&self.ids).map(node).collect(),
        }
    }

    fn group(&self) -> Group {
        let put = PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
        let bodies = [
            Body::LeaseGrant(LeaseGrantRequest { id: 5, ttl: 60 }),
            Body::Put(put),
            Body::LeaseRenew(LeaseRenew { ids: vec![5] }),
        ];
        let commands = bodies.map(|body| Command { body: Some(body) }).into();
        Group { origin: self.ids[1], epoch: 1, sequence: 1, commands }
    }

    fn append(&self) -> Vec<u8> {
        let proposal = Proposal { time_unix_ms: 1000, groups: vec![self.group()] };
        let proposal = entry::Body::Proposal(proposal.encode_to_vec().into());
        let membership = || Some(entry::Body::Membership(self.membership()));
        let bodies = [membership(), None, Some(proposal), membership()];
        let entries = bodies.into_iter().zip(0..);
        let entries = entries.map(|(body, index)| {
            let term = if index == 0 { 0 } else { 5 };
            Entry { log_id: self.log_id(term, index), body }
        });
        AppendRequest {
            vote: self.vote(5),
            previous: None,
            entries: entries.collect(),
            committed: self.log_id(5, 2),
        }
        .encode_to_vec()
    }

    /// The frames of a state after its entry `index`.
    fn snapshot(&self, index: u64) -> Vec<Vec<u8>> {
        let mut state =
            State::open(Arc::new(Map::default()), Options { value_cache_bytes: 0 }).unwrap();
        let stored =
            StoredMembership { log_id: self.log_id(0, 0), membership: Some(self.membership()) };
        let at = |index| Position { index, term: 5, leader: self.ids[1] };
        state
            .apply_membership(
                Position { index: 0, term: 0, leader: 0 },
                stored.encode_to_vec().into(),
            )
            .unwrap();
        for index in 1..=index {
            state.apply(at(index), 1000, &self.group().commands).unwrap();
        }
        let mut reader = SnapshotReader::new(&state);
        let header = SnapshotHeader {
            vote: self.vote(5),
            last_log_id: self.log_id(5, index),
            membership: Some(stored),
            revision: state.revision(),
        };
        let mut frames = vec![Frame::Header(header)];
        let mut footer = SnapshotFooter::default();
        while let Some(chunk) = reader.next_chunk(&**state.backend(), 200).unwrap() {
            let mut pairs = Vec::new();
            for (key, value) in &chunk {
                for bytes in [key, value] {
                    prost::encoding::encode_varint(bytes.len() as u64, &mut pairs);
                    pairs.extend_from_slice(bytes);
                }
            }
            footer.checksum = crc32c::crc32c_append(footer.checksum, &pairs);
            let (sequence, checksum) = (footer.frames, footer.checksum);
            frames.push(Frame::Records(SnapshotRecords {
                sequence,
                pairs: pairs.into(),
                checksum,
            }));
            footer.frames += 1;
            footer.pairs += chunk.len() as u64;
        }
        frames.push(Frame::Footer(footer));
        let encode = |body| SnapshotFrame { body: Some(body) }.encode_to_vec();
        frames.into_iter().map(encode).collect()
    }

    /// Every method with its messages.
    fn calls(&self) -> Vec<(&'static str, Vec<Vec<u8>>)> {
        let mut poll = self.vote(4);
        poll.iter_mut().for_each(|vote| vote.committed = false);
        let vote =
            VoteRequest { vote: poll, last_log_id: self.log_id(5, 2), leadership_transfer: false };
        let transfer = TransferLeaderRequest {
            vote: self.vote(5),
            to: self.ids[0],
            last_log_id: self.log_id(5, 3),
        };
        vec![
            ("Append", vec![self.append(), self.append()]),
            ("Vote", vec![vote.encode_to_vec()]),
            ("PreVote", vec![vote.encode_to_vec()]),
            ("InstallSnapshot", self.snapshot(10)),
            ("TransferLeader", vec![transfer.encode_to_vec()]),
            ("ReadIndex", vec![Vec::new()]),
            (
                "Confirm",
                vec![ConfirmRequest { sequence: 1, vote: self.vote(5) }.encode_to_vec(); 3],
            ),
            ("Propose", vec![ProposeRequest { group: Some(self.group()) }.encode_to_vec()]),
            ("LeaseRenew", vec![LeaseRenewRequest { ids: vec![5, 6] }.encode_to_vec()]),
            ("LeaseTimeToLive", vec![LeaseTimeToLiveRequest { id: 5, keys: true }.encode_to_vec()]),
        ]
    }
}

/// The messages of a call, still encoded, so that one that is malformed leaves the others alone.
#[derive(Clone, PartialEq, Message)]
struct Call {
    #[prost(uint32, tag = "1")]
    method: u32,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    messages: Vec<Bytes>,
    /// Makes the checksums of a snapshot right again.
    #[prost(bool, tag = "3")]
    repaired: bool,
}

/// A snapshot whose checksums fit whatever is in it.
fn repair(messages: &mut [Bytes]) {
    let mut footer = SnapshotFooter::default();
    for message in messages {
        let Ok(mut frame) = SnapshotFrame::decode(message.clone()) else { continue };
        match &mut frame.body {
            Some(Frame::Records(records)) => {
                footer.checksum = crc32c::crc32c_append(footer.checksum, &records.pairs);
                (records.sequence, records.checksum) = (footer.frames, footer.checksum);
                footer.frames += 1;
                footer.pairs += pairs_in(&records.pairs);
            }
            Some(Frame::Footer(sent)) => *sent = footer,
            Some(Frame::Header(_)) | None => {}
        }
        *message = frame.encode_to_vec().into();
    }
}

fn pairs_in(mut bytes: &[u8]) -> u64 {
    let mut parts = 0;
    while let Ok(length) = prost::encoding::decode_varint(&mut bytes) {
        let Some(rest) = usize::try_from(length).ok().and_then(|length| bytes.get(length..)) else {
            break;
        };
        bytes = rest;
        parts += 1;
    }
    parts / 2
}

struct Victim {
    cluster: Cluster,
    server: Server,
    client: Client,
    _dir: TempDir,
}

impl Victim {
    fn new(runtime: &Runtime, cluster: Cluster) -> Victim {
        let program = program_under_test();
        // Nobody but this test campaigns.
        let extra = ["--election-timeout", "50000", "--heartbeat-interval", "1000"];
        let dir = tempfile::tempdir().expect("a scratch directory");
        let data_dir = dir.path().join("data");
        cluster.claim(&data_dir);
        let launch = Launch {
            place: cluster.places[0].clone(),
            all: cluster.places.clone(),
            ..Launch::alone(&program, &data_dir, &extra)
        };
        let server = Server::launch(launch);
        let url = cluster.places[0].peer_url.clone();
        let client = runtime.block_on(async {
            let listening = server.until_line("serving peer", SERVED_WITHIN);
            drop(timeout(Duration::from_millis(1), listening).await);
            let deadline = quorate::clock::now() + SERVED_WITHIN;
            let address = url.strip_prefix("http://").unwrap();
            while tokio::net::TcpStream::connect(address).await.is_err() {
                assert!(quorate::clock::now() < deadline, "{}", server.last_words());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Client::connect(&url).await
        });
        let victim = Victim { cluster, server, client, _dir: dir };
        victim.assert_answers(runtime);
        victim
    }

    /// An honest question is answered.
    fn assert_answers(&self, runtime: &Runtime) {
        let calls = self.cluster.calls();
        let (_, messages) = calls.iter().find(|(name, _)| *name == "PreVote").unwrap();
        let answer = self.call(runtime, "PreVote", messages, SERVED_WITHIN);
        let answer = answer.expect("the member answers");
        assert!(answer.starts_with("0 "), "{answer}\n{}", self.server.last_words());
    }

    /// Status and length of the answer, if one comes.
    fn call(
        &self,
        runtime: &Runtime,
        method: &str,
        messages: &[impl AsRef<[u8]>],
        patience: Duration,
    ) -> Option<String> {
        let mut body = Vec::new();
        for message in messages {
            let message = message.as_ref();
            body.push(0);
            body.extend((message.len() as u32).to_be_bytes());
            body.extend(message);
        }
        let path = format!("{SERVICE}{method}");
        let identity = self.cluster.identity();
        let mut client = self.client.clone();
        let call = client.http("POST", &path, body.into(), &identity);
        let answer = runtime.block_on(async { timeout(patience, call).await }).ok()?.ok()?;
        let field = |name| answer.fields.get(name).map(|value| format!("{value:?}"));
        let code = field("grpc-status").unwrap_or_default().replace('"', "");
        Some(format!("{code} {:?}, {:?}", answer.body, field("grpc-message")))
    }
}

#[test]
fn fuzz_peer_messages() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cluster = Cluster::new();
    let methods = cluster.calls();
    let sample = |(method, (_, messages)): (u32, &(&str, Vec<Vec<u8>>))| Call {
        method,
        messages: messages.iter().cloned().map(Bytes::from).collect(),
        repaired: true,
    };
    let samples: Vec<Vec<u8>> =
        (0..).zip(&methods).map(|one| sample(one).encode_to_vec()).collect();
    let mut victim = Victim::new(&runtime, cluster.clone());
    for (name, messages) in &methods {
        let answer = victim.call(&runtime, name, messages, Duration::from_secs(1));
        eprintln!("{name}: {answer:?}");
    }
    let mut inputs = 0_u32;
    fuzz("peer_messages", "--test it fuzz_peer_messages", &samples, |input, _| {
        let Ok(mut call) = Call::decode(input) else { return };
        let (name, _) = methods[call.method as usize % methods.len()];
        if call.repaired && name == "InstallSnapshot" {
            repair(&mut call.messages);
        }
        victim.call(&runtime, name, &call.messages, HEARD_FOR);
        inputs += 1;
        if inputs.is_multiple_of(32) && victim.server.ended().is_none() {
            victim.assert_answers(&runtime);
        }
        if let Some(status) = victim.server.ended() {
            let words = victim.server.last_words();
            let is_panic =
                words.contains("panicked") || status.code().is_none_or(|code| code == 101);
            assert!(!is_panic, "{name} made the member panic, {status}:\n{words}");
            eprintln!("{name} stopped the member: {}", words.lines().last().unwrap_or_default());
            inputs = 0;
        }
        if inputs.is_multiple_of(256) {
            // A vote of a high term leaves nothing to be said to this one.
            runtime.block_on(victim.server.kill());
            victim = Victim::new(&runtime, cluster.clone());
        }
    });
}
