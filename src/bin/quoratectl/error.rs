//! Why a command fails, and with which exit code: those of etcdctl, because scripts test them.

use std::io;

use tonic::{Code, Status};

/// A command that failed. `Display` is what follows `Error: ` on standard error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The server or the connection refused; etcd's own texts are shown bare.
    #[error("{}", status_text(.0))]
    Rpc(Box<Status>),
    /// Nobody answered within the command timeout.
    #[error("context deadline exceeded")]
    Deadline,
    /// The client could not be set up, most often because authentication failed.
    #[error("{0}")]
    Connection(#[source] Box<Error>),
    /// There is nobody to talk to.
    #[error("etcdclient: no available endpoints")]
    NoEndpoints,
    /// Standard input holds something other than a transaction.
    #[error("{0}")]
    InvalidInput(String),
    /// A flag has a value that it does not know, or one that the command cannot honour.
    #[error("{0}")]
    BadFeature(String),
    /// The arguments do not fit the command.
    #[error("{0}")]
    BadArgs(String),
    /// The command line cannot be parsed, or the answer is bad news.
    #[error("{0}")]
    General(String),
    /// What should have gone on was ended from outside.
    #[error("{0}")]
    Interrupted(String),
    /// A program that was run for the user failed; its exit code becomes ours.
    #[error("{text}")]
    Program {
        /// What became of it, in Go's words.
        text: String,
        /// The exit code to pass on.
        code: u8,
    },
    /// Part of the command failed and has said so already.
    #[error("already reported")]
    Reported,
    /// Standard input or output failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Error {
    /// The process exit code, as in etcdctl.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Rpc(_) | Self::Deadline | Self::General(_) | Self::Reported => 1,
            Self::Connection(_) | Self::NoEndpoints => 2,
            Self::InvalidInput(_) => 3,
            Self::BadFeature(_) => 4,
            Self::Interrupted(_) => 5,
            Self::Program { code, .. } => *code,
            // What a shell reports for a process killed by SIGPIPE, which is how etcdctl ends.
            Self::Io(error) if error.kind() == io::ErrorKind::BrokenPipe => 141,
            Self::Io(_) => 6,
            Self::BadArgs(_) => 128,
        }
    }

    /// Whether `main` has nothing to add on standard error.
    pub(crate) fn is_silent(&self) -> bool {
        match self {
            Self::Reported => true,
            Self::Io(error) => error.kind() == io::ErrorKind::BrokenPipe,
            _ => false,
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        // tonic's own timer and the server's both mean that our deadline has passed.
        let ours = status.code() == Code::Cancelled && status.message() == "Timeout expired";
        if ours || status.code() == Code::DeadlineExceeded {
            return Self::Deadline;
        }
        Self::Rpc(Box::new(status))
    }
}

/// Texts that etcd's servers send but its client library does not know, so that they are shown
/// with their code.
const TEXTS_UNKNOWN_TO_CLIENTS: [&str; 6] = [
    "etcdserver: invalid client api version",
    "etcdserver: permission not given",
    "etcdserver: request timed out, waiting for the applied index took too long",
    "etcdserver: watch canceled",
    "etcdserver: request canceled",
    "etcdserver: unknown method",
];

fn status_text(status: &Status) -> String {
    let text = status.message();
    if text.starts_with("etcdserver: ") && !TEXTS_UNKNOWN_TO_CLIENTS.contains(&text) {
        return text.to_owned();
    }
    format!("rpc error: code = {:?} desc = {text}", status.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_texts_are_bare_and_others_carry_their_code() {
        let known = Error::from(Status::invalid_argument("etcdserver: key is not provided"));
        assert_eq!(known.to_string(), "etcdserver: key is not provided");
        let other = Error::from(Status::unknown("not a primary lessor"));
        assert_eq!(other.to_string(), "rpc error: code = Unknown desc = not a primary lessor");
        assert_eq!(Error::from(Status::cancelled("Timeout expired")).exit_code(), 1);
    }
}
