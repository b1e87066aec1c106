//! A member without data: has it never run, or has it lost what it had?
//!
//! One that lost its data has forgotten for whom it voted and which entries it acknowledged. If it
//! ran again under its old id, it could elect a leader that lacks acknowledged entries. So the other
//! members are asked first. etcd asks them, too, and takes whatever one of them knows for true; here
//! a member that has a log must have asked a majority before it calls another one new.
//!
//! Members of a new cluster have no log themselves and answer just that. If some of them are silent,
//! a majority of such answers is enough after a while, since a new cluster may start without a
//! minority. **Limit:** a member that lost its data is taken for new if only members that never ran
//! can be reached when it starts.

use std::time::Duration;

use futures_util::future::join_all;

use super::node::Node;
use super::peers::Peers;
use crate::clock;
use crate::limits;
use crate::pb::quorate::peer::Standing;

/// What a round of asking came to.
#[derive(Debug, PartialEq, Eq)]
enum Finding {
    New,
    Known,
    Open,
}

/// Whether the member of `peers`, which has no data, is new to its cluster of itself and `others`;
/// false if it ran before. Asks until that is certain; after `patience`, members of a new cluster
/// that are silent are not waited for.
pub async fn is_new(peers: &Peers, others: &[u64], patience: Duration) -> bool {
    let begun_at = clock::now();
    let mut told_at = begun_at;
    loop {
        let asked = others.iter().map(|other| peers.standing(*other, limits::STANDING_TIMEOUT));
        let answers: Vec<Option<Standing>> =
            join_all(asked).await.into_iter().map(Result::ok).collect();
        let now = clock::now();
        let is_patient = now.saturating_duration_since(begun_at) < patience;
        match finding(&answers, is_patient) {
            Finding::New => return true,
            Finding::Known => return false,
            Finding::Open => {}
        }
        if now.saturating_duration_since(told_at) >= limits::STANDING_NEWS_INTERVAL {
            told_at = now;
            let silent = answers.iter().filter(|answer| answer.is_none()).count();
            let unsure = answers.len() - silent;
            tracing::warn!(
                silent,
                unsure,
                "this member has no data, and waits until other members can tell whether it is new"
            );
        }
        tokio::time::sleep(limits::STANDING_RETRY).await;
    }
}

/// What the answers of all others come to; `None` stands for silence.
fn finding(answers: &[Option<Standing>], is_patient: bool) -> Finding {
    let count = |wanted| answers.iter().filter(|answer| **answer == Some(wanted)).count();
    if count(Standing::Known) > 0 {
        return Finding::Known;
    }
    if count(Standing::New) > 0 {
        return Finding::New;
    }
    let blank = count(Standing::Blank);
    let members = answers.len() + 1;
    let majority = members / 2 + 1;
    let is_enough = if is_patient { blank == answers.len() } else { blank + 1 >= majority };
    if is_enough && count(Standing::Unsure) == 0 { Finding::New } else { Finding::Open }
}

impl Node {
    /// What this member knows of `asker`, which has no data.
    pub(super) async fn standing_of(&self, asker: u64) -> Standing {
        if self.last_log_index().is_none_or(|last| last == 0) {
            // Nothing, or the membership that a new cluster begins with.
            return Standing::Blank;
        }
        if self.has_run(asker) {
            return Standing::Known;
        }
        let Some(index) = self.read_index(limits::STANDING_TIMEOUT / 2).await else {
            return Standing::Unsure;
        };
        let mut applied = self.shared().applied();
        let caught_up = applied.wait_for(|applied| *applied >= index);
        match tokio::time::timeout(limits::STANDING_TIMEOUT / 4, caught_up).await {
            Ok(Ok(_)) if self.has_run(asker) => Standing::Known,
            Ok(Ok(_)) => Standing::New,
            Ok(Err(_)) | Err(_) => Standing::Unsure,
        }
    }

    /// Whether `member` has announced itself, or has acknowledged something to this leader.
    fn has_run(&self, member: u64) -> bool {
        self.shared().state.read().members().contains_key(&member) || self.has_acknowledged(member)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Standing::{Blank, Known, New, Unsure};

    const SILENT: Option<Standing> = None;

    fn of(answers: &[Option<Standing>]) -> [Finding; 2] {
        [finding(answers, true), finding(answers, false)]
    }

    #[test]
    fn a_single_member_is_new() {
        assert_eq!(of(&[]), [Finding::New, Finding::New]);
    }

    #[test]
    fn who_has_run_is_known_whatever_others_say() {
        for other in [SILENT, Some(Unsure), Some(Blank), Some(New), Some(Known)] {
            assert_eq!(of(&[other, Some(Known)]), [Finding::Known, Finding::Known]);
        }
    }

    #[test]
    fn one_that_asked_a_majority_is_believed() {
        for other in [SILENT, Some(Unsure), Some(Blank), Some(New)] {
            assert_eq!(of(&[other, Some(New)]), [Finding::New, Finding::New]);
        }
    }

    #[test]
    fn a_new_cluster_starts_without_a_minority_after_a_while() {
        let blank = Some(Blank);
        assert_eq!(of(&[blank, blank]), [Finding::New, Finding::New]);
        assert_eq!(of(&[blank, SILENT]), [Finding::Open, Finding::New]);
        assert_eq!(of(&[SILENT, SILENT]), [Finding::Open, Finding::Open]);
        assert_eq!(of(&[SILENT]), [Finding::Open, Finding::Open]);
        assert_eq!(of(&[blank, blank, SILENT, SILENT]), [Finding::Open, Finding::New]);
        assert_eq!(of(&[blank, blank, SILENT]), [Finding::Open, Finding::New]);
        assert_eq!(of(&[blank, SILENT, SILENT, SILENT]), [Finding::Open, Finding::Open]);
        assert_eq!(of(&[blank, SILENT, SILENT]), [Finding::Open, Finding::Open]);
    }

    /// A log without a majority may be the one that lacks what was acknowledged.
    #[test]
    fn a_log_without_a_majority_leaves_it_open() {
        assert_eq!(of(&[Some(Unsure), SILENT]), [Finding::Open, Finding::Open]);
        assert_eq!(of(&[Some(Unsure), Some(Blank)]), [Finding::Open, Finding::Open]);
        assert_eq!(of(&[Some(Blank), Some(Blank), Some(Unsure)]), [Finding::Open, Finding::Open]);
    }
}
