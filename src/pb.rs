//! The messages of `proto/`, generated at build time. Every `bytes` field is a shared [`bytes::Bytes`].
#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from proto/, documented there"
)]

/// The stored pair and its event.
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}

/// Users, roles, permissions.
pub mod authpb {
    tonic::include_proto!("authpb");
}

/// The client API.
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}

/// Server-side locks.
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}

/// Server-side elections.
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}

/// Our own messages.
pub mod quorate {
    /// What raft orders.
    pub mod command {
        tonic::include_proto!("quorate.command");
    }
    /// What members say to each other.
    pub mod peer {
        tonic::include_proto!("quorate.peer");
    }
}
