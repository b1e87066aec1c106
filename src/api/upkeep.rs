//! Maintenance, Cluster and health, as far as they are built: Status, Hash, HashKV, Alarm,
//! MoveLeader, MemberList, and all of health.

use bytes::Bytes;
use prost::Message;
use tokio::sync::mpsc;

use super::grpc::Call;
use super::status::{Code, Status};
use super::{Api, grpc};
use crate::limits;
use crate::member::Error;
use crate::pb::etcdserverpb::alarm_request::AlarmAction;
use crate::pb::etcdserverpb::{
    AlarmRequest, AlarmResponse, DowngradeInfo, HashKvRequest, HashKvResponse, HashRequest,
    HashResponse, Member as MemberMessage, MemberListRequest, MemberListResponse,
    MoveLeaderRequest, MoveLeaderResponse, ResponseHeader, StatusRequest, StatusResponse,
};
use crate::release;
use crate::state::{HashAnswer, HashJob};
use crate::storage::Backend;
use crate::tasks;

/// `ServingStatus.SERVING` of grpc.health.v1.
const HEALTH_SERVING: i32 = 1;

/// `ServingStatus.SERVICE_UNKNOWN` of grpc.health.v1.
const HEALTH_SERVICE_UNKNOWN: i32 = 3;

/// Asks for the health of one service.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// The health of a service.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// The health of all services that have one.
#[derive(Clone, PartialEq, Message)]
struct HealthListResponse {
    #[prost(message, repeated, tag = "1")]
    statuses: Vec<NamedHealth>,
}

/// One entry of the map in the answer.
#[derive(Clone, PartialEq, Message)]
struct NamedHealth {
    // Go writes also an empty key of a map.
    #[prost(string, optional, tag = "1")]
    service: Option<String>,
    #[prost(message, optional, tag = "2")]
    health: Option<HealthCheckResponse>,
}

impl Api {
    /// This member's own view; works without a leader.
    pub(super) fn status(&self, message: Bytes) -> Result<Bytes, Status> {
        let _: StatusRequest = grpc::decode(message)?;
        let node = self.member.node();
        let (leadership, leader) = (node.leadership(), node.leader());
        let (revision, size) = {
            let state = self.member.state();
            (state.revision(), state.backend().size_bytes())
        };
        let mut errors = Vec::new();
        if leader.is_none() {
            errors.push(Error::NoLeader.to_string());
        }
        Ok(grpc::encode(&StatusResponse {
            header: Some(self.member.header(revision)),
            version: release::ETCD_VERSION.to_owned(),
            db_size: size.cast_signed(),
            // Nothing has to be defragmented, so all of it is in use.
            db_size_in_use: size.cast_signed(),
            db_size_quota: self.member.options().quota_bytes,
            leader: leader.unwrap_or(0),
            raft_index: node.committed_index(),
            raft_term: leadership.term,
            raft_applied_index: node.shared().applied_index(),
            errors,
            is_learner: leadership.is_learner,
            storage_version: release::STORAGE_VERSION.to_owned(),
            downgrade_info: Some(DowngradeInfo { enabled: false, target_version: String::new() }),
        }))
    }

    /// The checksum of the history up to a revision, equal on all members.
    pub(super) async fn hash_kv(&self, message: Bytes) -> Result<Bytes, Status> {
        let request: HashKvRequest = grpc::decode(message)?;
        let answer = self.hash_at(request.revision).await?;
        let revision = self.member.state().revision();
        Ok(grpc::encode(&HashKvResponse {
            header: Some(self.member.header(revision)),
            hash: answer.hash,
            compact_revision: answer.compact_revision,
            hash_revision: answer.hash_revision,
        }))
    }

    /// The checksum of all history. etcd's is of its file, and differs among members.
    pub(super) async fn hash(&self, message: Bytes) -> Result<Bytes, Status> {
        let _: HashRequest = grpc::decode(message)?;
        let HashAnswer { hash, hash_revision, .. } = self.hash_at(0).await?;
        Ok(grpc::encode(&HashResponse { header: Some(self.member.header(hash_revision)), hash }))
    }

    async fn hash_at(&self, revision: i64) -> Result<HashAnswer, Status> {
        let member = self.member.clone();
        let job = HashJob::new(&member.state(), revision)?;
        let hashed = tasks::blocking(move || {
            let mut job = job;
            loop {
                let state = member.state();
                if !job.is_of(&state) {
                    job = HashJob::new(&state, revision)?;
                }
                let step = job.step(&state, limits::HASH_STEP_RECORDS).map_err(Error::from);
                drop(state);
                if let Some(answer) = step? {
                    return Ok::<_, Status>(answer);
                }
            }
        });
        hashed.await.map_err(|panic| Status::new(Code::Internal, panic.to_string()))?
    }

    /// Has another member lead.
    pub(super) async fn move_leader(&self, message: Bytes) -> Result<Bytes, Status> {
        let request: MoveLeaderRequest = grpc::decode(message)?;
        self.member.move_leader(request.target_id).await?;
        // As in etcd: no header.
        Ok(grpc::encode(&MoveLeaderResponse { header: None }))
    }

    /// The members as raft and their own announcements know them.
    pub(super) async fn member_list(&self, message: Bytes) -> Result<Bytes, Status> {
        let request: MemberListRequest = grpc::decode(message)?;
        if request.linearizable {
            self.member.read_barrier(&self.shard).await?;
        }
        let state = self.member.state();
        let mut members: Vec<MemberMessage> = Vec::new();
        for (id, node, votes) in self.member.node().members() {
            let announced = state.members().get(&id);
            members.push(MemberMessage {
                id,
                // As in etcd: who was there from the start has a name before it first starts.
                name: announced.map_or(node.name, |announced| announced.name.clone()),
                peer_ur_ls: node.peer_urls,
                client_ur_ls: announced.map_or(Vec::new(), |it| it.client_urls.clone()),
                is_learner: !votes,
            });
        }
        members.sort_by_key(|member| member.id);
        // As in etcd: headers of the Cluster service carry no revision.
        let header = ResponseHeader { revision: 0, ..self.member.header(0) };
        Ok(grpc::encode(&MemberListResponse { header: Some(header), members }))
    }

    /// The alarms that are raised: none, for none can be raised yet.
    pub(super) async fn alarm(&self, message: Bytes) -> Result<Bytes, Status> {
        let request: AlarmRequest = grpc::decode(message)?;
        if request.action != i32::from(AlarmAction::Get) {
            return Err(Status::new(Code::Unimplemented, "alarms cannot be changed yet"));
        }
        self.member.read_barrier(&self.shard).await?;
        let revision = self.member.state().revision();
        let header = Some(self.member.header(revision));
        Ok(grpc::encode(&AlarmResponse { header, alarms: Vec::new() }))
    }

    /// grpc.health.v1: the server as a whole, which has no name, is serving; nothing else is known.
    pub(super) fn health_check(message: Bytes) -> Result<Bytes, Status> {
        let request: HealthCheckRequest = grpc::decode(message)?;
        if !request.service.is_empty() {
            return Err(Status::new(Code::NotFound, "unknown service"));
        }
        Ok(grpc::encode(&HealthCheckResponse { status: HEALTH_SERVING }))
    }

    /// grpc.health.v1: every service that has a health, which is the server as a whole.
    pub(super) fn health_list() -> Bytes {
        let health = Some(HealthCheckResponse { status: HEALTH_SERVING });
        let all = NamedHealth { service: Some(String::new()), health };
        grpc::encode(&HealthListResponse { statuses: vec![all] })
    }

    /// grpc.health.v1, as a stream: the health of a service now, and nothing more, for it stays as it
    /// is until the member stops.
    pub(super) fn health_watch(
        &self,
        call: &Call,
        message: Bytes,
    ) -> Result<mpsc::Receiver<Result<Bytes, Status>>, Status> {
        let request: HealthCheckRequest = grpc::decode(message)?;
        let is_known = request.service.is_empty();
        let status = if is_known { HEALTH_SERVING } else { HEALTH_SERVICE_UNKNOWN };
        let (parts, receiver) = mpsc::channel(1);
        let first = grpc::encode(&HealthCheckResponse { status });
        let cut = self.cut(call);
        tasks::spawn("health-watch", async move {
            // A client that went away needs no answer.
            drop(parts.send(Ok(first)).await);
            let status = tokio::select! {
                () = parts.closed() => return,
                status = cut => status,
            };
            drop(parts.send(Err(status)).await);
        });
        Ok(receiver)
    }
}
