//! Auth while it is not enabled, which is always: users and roles are not built.
//!
//! A client that is given a user and a password logs in before anything else. etcd tells it that
//! nobody asks for that, and every client then goes on without; it could not connect otherwise.

use bytes::Bytes;

use super::status::{Code, Status};
use super::{Api, grpc};
use crate::pb::etcdserverpb::{
    AuthDisableRequest, AuthDisableResponse, AuthStatusRequest, AuthStatusResponse,
    AuthenticateRequest, ResponseHeader,
};

/// The auth revision of a store that never had users or roles. As in etcd.
const AUTH_REVISION: u64 = 1;

impl Api {
    /// Sends a client on that wants to log in. As in etcd, after a linearizable read.
    pub(super) async fn authenticate(&self, message: Bytes) -> Result<Bytes, Status> {
        let _: AuthenticateRequest = grpc::decode(message)?;
        self.member.read_barrier(&self.shard).await?;
        // The code and the text are what clients look for.
        Err(Status::new(Code::FailedPrecondition, "etcdserver: authentication is not enabled"))
    }

    /// Whether a token is asked for: never.
    pub(super) async fn auth_status(&self, message: Bytes) -> Result<Bytes, Status> {
        let _: AuthStatusRequest = grpc::decode(message)?;
        let header = Some(self.auth_header().await?);
        let (enabled, auth_revision) = (false, AUTH_REVISION);
        Ok(grpc::encode(&AuthStatusResponse { header, enabled, auth_revision }))
    }

    /// Leaves auth disabled. As in etcd, that is no error.
    pub(super) async fn auth_disable(&self, message: Bytes) -> Result<Bytes, Status> {
        let _: AuthDisableRequest = grpc::decode(message)?;
        let header = Some(self.auth_header().await?);
        Ok(grpc::encode(&AuthDisableResponse { header }))
    }

    /// The header of an answer that etcd would order among the writes.
    async fn auth_header(&self) -> Result<ResponseHeader, Status> {
        self.member.read_barrier(&self.shard).await?;
        let revision = self.member.state().revision();
        Ok(self.member.header(revision))
    }
}
