//! `/livez` and `/readyz`: named checks for whoever restarts a member or sends it clients.
//!
//! Paths, names, queries and answers are etcd's (since 3.5.11): a path below one of the two runs one
//! check, `?verbose` tells of each, `?exclude=NAME` leaves one out.

use std::sync::Arc;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;

use super::http::{TEXT, forbid_sniffing, with};
use crate::api::grpc::Body;
use crate::member::{Member, Shard};

/// One thing that can be well or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    /// No alarm tells of corrupt data; none can be raised yet.
    DataCorruption,
    /// The own state can be read.
    SerializableRead,
    /// The cluster confirms reads.
    LinearizableRead,
    /// The member votes.
    NonLearner,
}

const LIVEZ: &[Check] = &[Check::SerializableRead];
const READYZ: &[Check] =
    &[Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead, Check::NonLearner];

impl Check {
    fn name(self) -> &'static str {
        match self {
            Check::DataCorruption => "data_corruption",
            Check::SerializableRead => "serializable_read",
            Check::LinearizableRead => "linearizable_read",
            Check::NonLearner => "non_learner",
        }
    }

    async fn run(self, member: &Member, shard: &Arc<Shard>) -> Result<(), String> {
        match self {
            Check::DataCorruption => Ok(()),
            Check::SerializableRead => {
                member.state().revision();
                Ok(())
            }
            Check::LinearizableRead => {
                member.read_barrier(shard).await.map_err(|error| error.to_string())
            }
            Check::NonLearner if member.node().leadership().is_learner => {
                Err("not supported for learner".to_owned())
            }
            Check::NonLearner => Ok(()),
        }
    }
}

/// The checks at `path`; none if it is no probe.
pub(super) fn checks_at(path: &str) -> Option<&'static [Check]> {
    let (checks, rest) = match path.strip_prefix("/livez") {
        Some(rest) => (LIVEZ, rest),
        None => (READYZ, path.strip_prefix("/readyz")?),
    };
    if rest.is_empty() {
        return Some(checks);
    }
    let name = rest.strip_prefix('/')?;
    let at = checks.iter().position(|check| check.name() == name)?;
    checks.get(at..=at)
}

/// Runs `checks` as the query of `request` says.
pub(super) async fn answer(
    member: &Member,
    shard: &Arc<Shard>,
    request: &Request<Incoming>,
    checks: &[Check],
) -> Response<Body> {
    let query = request.uri().query().unwrap_or_default();
    let pairs = || query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let is_verbose = pairs().any(|(name, _)| name == "verbose");
    // As in etcd: a single check cannot be left out, and an unknown one is no error.
    let is_excluded =
        |check: Check| checks.len() > 1 && pairs().any(|pair| pair == ("exclude", check.name()));
    let (mut text, mut has_failed) = (String::new(), false);
    for check in checks.iter().copied().filter(|&check| !is_excluded(check)) {
        let name = check.name();
        match check.run(member, shard).await {
            Ok(()) => text += &format!("[+]{name} ok\n"),
            Err(error) => {
                has_failed = true;
                text += &format!("[-]{name} failed: {error}\n");
            }
        }
    }
    let mut response = if has_failed {
        with(StatusCode::SERVICE_UNAVAILABLE, TEXT, text + "\n")
    } else if is_verbose {
        with(StatusCode::OK, TEXT, text + "ok\n")
    } else {
        with(StatusCode::OK, TEXT, "ok\n")
    };
    forbid_sniffing(&mut response);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_one_check_or_all() {
        let count = |path| checks_at(path).map(<[Check]>::len);
        assert_eq!(count("/livez"), Some(1));
        assert_eq!(count("/readyz"), Some(4));
        assert_eq!(checks_at("/readyz/non_learner"), Some(&[Check::NonLearner][..]));
        for unknown in ["/livez/", "/livez/non_learner", "/readyzz", "/readyz/x", "/health"] {
            assert_eq!(count(unknown), None, "{unknown}");
        }
    }
}
