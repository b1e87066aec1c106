//! Auth, as far as it goes without users: clients with a name and a password are told that they need
//! none, and then go on without.

use bytes::Bytes;

use super::status::{Code, Status};
use super::{Api, grpc};
use crate::pb::etcdserverpb::{
    AuthDisableRequest, AuthDisableResponse, AuthStatusRequest, AuthStatusResponse,
    AuthenticateRequest, ResponseHeader,
};

/// The revision of etcd's store of users before anything is changed in it.
const AUTH_REVISION: u64 = 1;

impl Api {
    /// Refused with the text on which etcd's clients go on without a token.
    pub(super) fn authenticate(message: Bytes) -> Result<Bytes, Status> {
        let _: AuthenticateRequest = grpc::decode(message)?;
        let text = "etcdserver: authentication is not enabled";
        Err(Status::new(Code::FailedPrecondition, text))
    }

    /// Auth is off, and never was on.
    pub(super) fn auth_status(&self, message: Bytes) -> Result<Bytes, Status> {
        let _: AuthStatusRequest = grpc::decode(message)?;
        let header = Some(self.auth_header());
        let answer = AuthStatusResponse { header, enabled: false, auth_revision: AUTH_REVISION };
        Ok(grpc::encode(&answer))
    }

    /// As in etcd: to turn off what is off is no error.
    pub(super) fn auth_disable(&self, message: Bytes) -> Result<Bytes, Status> {
        let _: AuthDisableRequest = grpc::decode(message)?;
        Ok(grpc::encode(&AuthDisableResponse { header: Some(self.auth_header()) }))
    }

    fn auth_header(&self) -> ResponseHeader {
        let revision = self.member.state().revision();
        self.member.header(revision)
    }
}
