//! The one table from errors to gRPC codes and texts, as etcd's `rpctypes` has them.

use std::borrow::Cow;
use std::fmt;

pub use tonic::Code;

use crate::member::Error;
use crate::state::RequestError;

/// What a call that fails answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The gRPC code, on which clients decide to retry.
    pub code: Code,
    /// The text, on which etcd's clients decide what happened.
    pub message: Cow<'static, str>,
}

impl Status {
    /// A status of `code` with `message`.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Status { code, message: message.into() }
    }

    /// What a call ends with whose deadline has passed.
    pub(crate) fn late() -> Self {
        Status::new(Code::DeadlineExceeded, "context deadline exceeded")
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.code, self.message)
    }
}

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Self {
        Status::new(request_error_code(&error), error.to_string())
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Request(refusal) => request_error_code(refusal),
            Error::NoLeader
            | Error::LeaderChanged
            | Error::Timeout
            | Error::TimeoutLeaderFailure
            | Error::TimeoutApplied
            | Error::Stopped => Code::Unavailable,
            Error::TimeoutNoLeader => Code::DeadlineExceeded,
            Error::NotLeader | Error::BadLeaderTransferee => Code::FailedPrecondition,
            // As in etcd: declared with other codes, but Unknown on the wire.
            Error::TooManyRequests | Error::TimeoutLeaderTransfer => Code::Unknown,
            Error::Storage(_) => Code::Unavailable,
        };
        Status::new(code, error.to_string())
    }
}

/// The code of a deterministic refusal.
fn request_error_code(error: &RequestError) -> Code {
    match error {
        RequestError::EmptyKey
        | RequestError::KeyNotFound
        | RequestError::ValueProvided
        | RequestError::LeaseProvided
        | RequestError::TooManyOps
        | RequestError::DuplicateKey
        | RequestError::InvalidSortOption
        | RequestError::RequestTooLarge => Code::InvalidArgument,
        RequestError::Compacted | RequestError::FutureRev | RequestError::LeaseTtlTooLarge => {
            Code::OutOfRange
        }
        RequestError::LeaseNotFound => Code::NotFound,
        RequestError::LeaseExists => Code::FailedPrecondition,
        RequestError::NoSpace => Code::ResourceExhausted,
    }
}
