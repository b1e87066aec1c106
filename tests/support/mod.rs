//! What the integration tests share: members as processes, clusters of them, and script runners.

pub(crate) mod cluster;
pub(crate) mod conformance;
pub(crate) mod server;
