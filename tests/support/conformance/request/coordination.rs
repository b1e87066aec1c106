//! The requests of leases, locks and elections.

use prost::Message;
use quorate::pb::etcdserverpb::{
    LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseTimeToLiveRequest,
};
use quorate::pb::v3electionpb::{
    CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest,
};
use quorate::pb::v3lockpb::{LockRequest, UnlockRequest};

use super::super::scope::Scope;
use super::{Fields, Shape};

/// Reads a request of the services with which clients coordinate.
pub(super) fn plain(
    verb: &str,
    fields: &mut Fields<'_>,
    scope: &Scope,
) -> (&'static str, Vec<u8>, Shape) {
    let f = fields;
    match verb {
        "keepalive" => {
            let request = LeaseKeepAliveRequest { id: f.number("ID", scope) };
            ("/etcdserverpb.Lease/LeaseKeepAlive", request.encode_to_vec(), Shape::KeepAlive)
        }
        "ttl" => {
            let request =
                LeaseTimeToLiveRequest { id: f.number("ID", scope), keys: f.flag("keys") };
            ("/etcdserverpb.Lease/LeaseTimeToLive", request.encode_to_vec(), Shape::TimeToLive)
        }
        "leases" => {
            let request = LeaseLeasesRequest {};
            ("/etcdserverpb.Lease/LeaseLeases", request.encode_to_vec(), Shape::Leases)
        }
        "lock" => {
            let request =
                LockRequest { name: f.key("name", scope), lease: f.number("lease", scope) };
            ("/v3lockpb.Lock/Lock", request.encode_to_vec(), Shape::Lock)
        }
        "unlock" => {
            let request = UnlockRequest { key: f.key("key", scope) };
            ("/v3lockpb.Lock/Unlock", request.encode_to_vec(), Shape::Unlock)
        }
        "campaign" => {
            let request = CampaignRequest {
                name: f.key("name", scope),
                lease: f.number("lease", scope),
                value: f.bytes("value", scope),
            };
            ("/v3electionpb.Election/Campaign", request.encode_to_vec(), Shape::Campaign)
        }
        "proclaim" => {
            let value = f.bytes("value", scope);
            let request = ProclaimRequest { leader: leader_key(f, scope), value };
            ("/v3electionpb.Election/Proclaim", request.encode_to_vec(), Shape::Proclaim)
        }
        "resign" => {
            let request = ResignRequest { leader: leader_key(f, scope) };
            ("/v3electionpb.Election/Resign", request.encode_to_vec(), Shape::Resign)
        }
        "leader" => ("/v3electionpb.Election/Leader", leader(f, scope), Shape::Leader),
        "observe" => ("/v3electionpb.Election/Observe", leader(f, scope), Shape::Observe),
        _ => panic!("unknown verb `{verb}`"),
    }
}

fn leader(fields: &mut Fields<'_>, scope: &Scope) -> Vec<u8> {
    LeaderRequest { name: fields.key("name", scope) }.encode_to_vec()
}

/// The key by which a leader holds its election; none if the line has the word `missing`.
fn leader_key(fields: &mut Fields<'_>, scope: &Scope) -> Option<LeaderKey> {
    let leader = LeaderKey {
        name: fields.key("name", scope),
        key: fields.key("key", scope),
        rev: fields.number("rev", scope),
        lease: fields.number("lease", scope),
    };
    (!fields.flag("missing")).then_some(leader)
}
