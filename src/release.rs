//! Which software this is, and which etcd it stands in for.

/// The etcd release whose API this server speaks, as Status and `/version` report it.
pub const ETCD_VERSION: &str = "3.7.1";

/// The cluster version that `/version` reports.
pub const CLUSTER_VERSION: &str = "3.7.0";

/// The storage version that Status reports.
pub const STORAGE_VERSION: &str = "3.7.0";

/// Quorate's own release.
pub const QUORATE_VERSION: &str = env!("CARGO_PKG_VERSION");
