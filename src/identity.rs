//! Who a member is and which cluster it belongs to: etcd's two 64-bit ids.
//!
//! Both are hashes, so that every member of a new cluster computes the same ids from the same flags
//! without asking anybody. They must stay exactly etcd's: operators paste them between tools, and a
//! removed id may never come back. This module only computes; where ids are kept is `data_dir`.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use sha1::{Digest, Sha1};

/// One member of a cluster, for ever: a removed id is never given out again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

/// One cluster. Members refuse to talk to a peer that carries another one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u64);

impl MemberId {
    /// The id of a member that is named in the initial cluster; `token` is `--initial-cluster-token`.
    /// The order of the URLs does not matter.
    pub fn of_initial_member<U: AsRef<str>>(peer_urls: &[U], token: &str) -> Self {
        Self(first_eight_bytes(hash_of_urls(peer_urls).chain_update(token)))
    }

    /// The id of a member that is added to a running cluster at `unix_seconds`, so that the same
    /// URLs added a second later make a different member.
    pub fn of_added_member<U: AsRef<str>>(peer_urls: &[U], unix_seconds: u64) -> Self {
        // As in etcd: at runtime the token is left out and the time takes its place.
        let hash = hash_of_urls(peer_urls).chain_update(unix_seconds.to_string());
        Self(first_eight_bytes(hash))
    }
}

impl ClusterId {
    /// The id of the cluster that starts with these members, in any order.
    pub fn of_members(members: &[MemberId]) -> Self {
        let mut sorted = members.to_vec();
        sorted.sort_unstable();
        let hash = sorted.iter().fold(Sha1::new(), |h, m| h.chain_update(m.0.to_be_bytes()));
        Self(first_eight_bytes(hash))
    }
}

fn hash_of_urls<U: AsRef<str>>(peer_urls: &[U]) -> Sha1 {
    let mut sorted: Vec<&str> = peer_urls.iter().map(AsRef::as_ref).collect();
    sorted.sort_unstable();
    sorted.iter().fold(Sha1::new(), |hash, url| hash.chain_update(url))
}

fn first_eight_bytes(hash: Sha1) -> u64 {
    let digest = hash.finalize();
    digest.iter().take(8).fold(0, |id, byte| id << 8 | u64::from(*byte))
}

/// Formatting shared by the two ids: lower-case hex without leading zeros, as etcd prints them.
macro_rules! hex_text {
    ($id:ident) => {
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:x}", self.0)
            }
        }

        impl fmt::Debug for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($id), "({:x})"), self.0)
            }
        }

        impl FromStr for $id {
            type Err = ParseIntError;

            fn from_str(hex: &str) -> Result<Self, ParseIntError> {
                u64::from_str_radix(hex, 16).map(Self)
            }
        }
    };
}

hex_text!(MemberId);
hex_text!(ClusterId);

#[cfg(test)]
mod tests {
    use super::*;

    /// The ids that etcd 3.7.1 logged as `starting local member` and `added member` when started
    /// with the same URLs and token.
    #[test]
    fn initial_ids_are_those_of_etcd() {
        let cases: [(&[&str], &str, u64, u64); 3] = [
            (&["http://localhost:2380"], "etcd-cluster", 0x8e9e05c52164694d, 0xcdf818194e3a8c32),
            (&["http://10.0.0.1:2380"], "tkn-7", 0x85852b388ee780fe, 0x9494d31dba7dbb90),
            (
                &["http://10.0.0.2:2380", "http://10.0.0.1:2380"],
                "etcd-cluster",
                0xfd1df2497732e6e6,
                0x1ee65e7033f30b5f,
            ),
        ];
        for (urls, token, member, cluster) in cases {
            let id = MemberId::of_initial_member(urls, token);
            assert_eq!(id, MemberId(member));
            assert_eq!(ClusterId::of_members(&[id]), ClusterId(cluster));
        }
    }

    #[test]
    fn cluster_of_three_has_the_id_of_etcd_in_any_order() {
        let ids = ["http://10.0.0.3:2380", "http://10.0.0.1:2380", "http://10.0.0.2:2380"]
            .map(|url| MemberId::of_initial_member(&[url], "etcd-cluster"));
        let observed = [0xfe9c64eaf3991d47, 0x3ebc01aec68d6d70, 0xee274cacce804b21];
        assert_eq!(ids, observed.map(MemberId));
        assert_eq!(ClusterId::of_members(&ids), ClusterId(0xcd11e86392339c47));
    }

    /// `etcdctl member add b --peer-urls=http://10.1.1.1:2380` against etcd 3.7.1 in that second.
    #[test]
    fn added_member_has_the_id_of_etcd() {
        let id = MemberId::of_added_member(&["http://10.1.1.1:2380"], 1_795_323_173);
        assert_eq!(id, MemberId(0xae56b77a8bd6c1e0));
    }

    #[test]
    fn text_is_hex_without_leading_zeros() {
        assert_eq!(MemberId(0x00ab).to_string(), "ab");
        assert_eq!("8e9e05c52164694d".parse(), Ok(MemberId(0x8e9e05c52164694d)));
        assert_eq!(format!("{:?}", ClusterId(255)), "ClusterId(ff)");
    }
}
