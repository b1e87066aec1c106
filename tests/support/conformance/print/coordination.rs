//! Prints the answers of leases, locks and elections.

use bytes::Bytes;
use quorate::pb::etcdserverpb::{
    LeaseKeepAliveResponse, LeaseLeasesResponse, LeaseTimeToLiveResponse,
};
use quorate::pb::v3electionpb::{
    CampaignResponse, LeaderResponse, ProclaimResponse, ResignResponse,
};
use quorate::pb::v3lockpb::{LockResponse, UnlockResponse};

use super::super::request::Shape;
use super::{Printer, decode};

/// How much of a lease may have passed since it was granted or renewed, for its remaining time to
/// be printed as `full`.
const PASSED_SECONDS_MAX: i64 = 20;

impl Printer<'_> {
    /// Prints an answer of the services with which clients coordinate.
    pub(super) fn coordination(&mut self, shape: Shape, message: &Bytes) {
        match shape {
            Shape::KeepAlive => {
                let response: LeaseKeepAliveResponse = decode(message);
                let head = self.header(0, response.header.as_ref());
                let id = self.scope.show_lease(response.id);
                self.line(0, format!("keepalive {head} ID={id} TTL={}", response.ttl));
            }
            Shape::TimeToLive => self.time_to_live(&decode(message)),
            Shape::Leases => self.leases(&decode(message)),
            Shape::Lock => {
                let response: LockResponse = decode(message);
                let head = self.header(0, response.header.as_ref());
                self.line(0, format!("lock {head} key={}", self.scope.show_key(&response.key)));
            }
            Shape::Unlock => {
                let response: UnlockResponse = decode(message);
                let head = self.header(0, response.header.as_ref());
                self.line(0, format!("unlock {head}"));
            }
            Shape::Campaign => self.campaign(&decode(message)),
            Shape::Proclaim => {
                let response: ProclaimResponse = decode(message);
                let head = self.header(0, response.header.as_ref());
                self.line(0, format!("proclaim {head}"));
            }
            Shape::Resign => {
                let response: ResignResponse = decode(message);
                let head = self.header(0, response.header.as_ref());
                self.line(0, format!("resign {head}"));
            }
            Shape::Leader | Shape::Observe => {
                let response: LeaderResponse = decode(message);
                let head = self.header(0, response.header.as_ref());
                self.line(0, format!("leader {head}"));
                if let Some(kv) = &response.kv {
                    self.kv(1, "", kv);
                }
            }
            _ => unreachable!("printed with the answers of KV and Maintenance"),
        }
    }

    /// Prints a lease; its keys have no order, and its time goes on while the case runs.
    fn time_to_live(&mut self, response: &LeaseTimeToLiveResponse) {
        let head = self.header(0, response.header.as_ref());
        let id = self.scope.show_lease(response.id);
        let granted = response.granted_ttl;
        let full = granted - PASSED_SECONDS_MAX..=granted;
        let remaining = match response.ttl {
            ttl if ttl > 0 && full.contains(&ttl) => "full".to_owned(),
            ttl => ttl.to_string(),
        };
        self.line(0, format!("ttl {head} ID={id} TTL={remaining} grantedTTL={granted}"));
        let mut keys: Vec<&Bytes> = response.keys.iter().collect();
        keys.sort();
        for key in keys {
            self.line(1, self.scope.show_key(key));
        }
    }

    /// Prints those of all leases that belong to this case.
    fn leases(&mut self, response: &LeaseLeasesResponse) {
        let head = self.header(0, response.header.as_ref());
        self.line(0, format!("leases {head}"));
        let known = self.scope.all_leases();
        for lease in response.leases.iter().filter(|lease| known.contains(&lease.id)) {
            self.line(1, self.scope.show_lease(lease.id));
        }
    }

    fn campaign(&mut self, response: &CampaignResponse) {
        let head = self.header(0, response.header.as_ref());
        let Some(leader) = &response.leader else {
            return self.line(0, format!("campaign {head} NO-LEADER-KEY"));
        };
        // The key tells the lease, so it is printed first.
        let key = self.scope.show_key(&leader.key);
        let name = self.scope.show_key(&leader.name);
        let revision = self.scope.show_revision(leader.rev);
        let lease = self.scope.show_lease(leader.lease);
        self.line(0, format!("campaign {head} name={name} key={key} rev={revision} lease={lease}"));
    }
}
