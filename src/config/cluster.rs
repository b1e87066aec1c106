//! `--initial-cluster`: the members that make a new cluster, or that a joining member knows of.

use std::collections::BTreeMap;
use std::fmt;

use super::url::{Url, UrlError};
use crate::identity::{ClusterId, MemberId};

/// The members by name, each with its peer URLs in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InitialCluster(BTreeMap<String, Vec<Url>>);

/// One member that every member of the new cluster knows from its flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitialMember {
    /// The id that all members compute alike.
    pub id: MemberId,
    /// Its `--name`.
    pub name: String,
    /// Where other members reach it.
    pub peer_urls: Vec<Url>,
}

impl InitialCluster {
    /// Parses `name=url,name=url,…`. A name may come several times, once for each of its URLs.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let mut members: BTreeMap<String, Vec<Url>> = BTreeMap::new();
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            // As in etcd: a name without a URL fails like an empty URL.
            let (name, url) = pair.split_once('=').unwrap_or((pair, ""));
            members.entry(name.to_owned()).or_default().push(Url::parse(url)?);
        }
        for urls in members.values_mut() {
            urls.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        }
        Ok(Self(members))
    }

    /// The cluster of one that a member makes when it is told nothing else.
    pub fn of_one(name: &str, peer_urls: &[Url]) -> Self {
        Self(BTreeMap::from([(name.to_owned(), peer_urls.to_vec())]))
    }

    /// The peer URLs of a member, in order.
    pub fn peer_urls(&self, name: &str) -> Option<&[Url]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// All URLs of all members.
    pub fn all_urls(&self) -> impl Iterator<Item = &Url> {
        self.0.values().flatten()
    }

    /// The members of a new cluster, by name, with the ids that `token` gives them.
    pub fn members(&self, token: &str) -> Vec<InitialMember> {
        self.0
            .iter()
            .map(|(name, urls)| InitialMember {
                id: MemberId::of_initial_member(urls, token),
                name: name.clone(),
                peer_urls: urls.clone(),
            })
            .collect()
    }

    /// The id of the new cluster.
    pub fn cluster_id(&self, token: &str) -> ClusterId {
        let ids: Vec<MemberId> = self.members(token).iter().map(|member| member.id).collect();
        ClusterId::of_members(&ids)
    }
}

impl fmt::Display for InitialCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (name, urls) in &self.0 {
            for url in urls {
                write!(f, "{comma}{name}={url}")?;
                comma = ",";
            }
        }
        Ok(())
    }
}
