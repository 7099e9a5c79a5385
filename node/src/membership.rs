//! Which members vote. The leader brings every member of the fleet into Raft as a learner, and
//! promotes as many as keep the region writable through the most failures.
//!
//! One worker, one change at a time: concurrent membership changes may legally leave a joint
//! configuration behind (openraft's FAQ), and a joint configuration that is found is finished first.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use flotilla_raft_store::{Availability, Fleet, NodeId, types::TypeConfig};
use openraft::{BasicNode, Raft, RaftMetrics, ServerState};
use tracing::{info, warn};

use crate::{replica::Replica, reports::Reports};

/// More voters make every commit slower and tolerate failures that nobody plans for.
pub(crate) const VOTERS_MAX: usize = 5;
/// A learner this close to the leader's log has caught up.
const CAUGHT_UP_ENTRIES: u64 = 100;
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MembershipChange {
    AddLearner { node: NodeId, address: String },
    SetVoters(BTreeSet<NodeId>),
}

/// What the decision needs to know of one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) zone: String,
    pub(crate) address: String,
    /// It reports to the leader and has nearly all of its log.
    pub(crate) fit: bool,
}

/// Raft's own view of the membership.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Current {
    pub(crate) voters: BTreeSet<NodeId>,
    pub(crate) learners: BTreeSet<NodeId>,
    /// A change of voters was begun and not finished.
    pub(crate) joint: bool,
}

/// The next change, if any. Same inputs, same answer; `None` once the membership is as it should be.
pub(crate) fn plan(candidates: &BTreeMap<NodeId, Candidate>, current: &Current) -> Option<MembershipChange> {
    let missing = candidates
        .iter()
        .find(|(node, _)| !current.voters.contains(node) && !current.learners.contains(node));
    if let Some((&node, candidate)) = missing {
        return Some(MembershipChange::AddLearner { node, address: candidate.address.clone() });
    }
    let wanted = voters(candidates, &current.voters);
    (wanted != current.voters || current.joint).then_some(MembershipChange::SetVoters(wanted))
}

/// The voters there should be: an odd number, at most five, over as many zones as possible. Those who
/// vote already keep their vote as long as they are members, so a restart moves nothing.
fn voters(candidates: &BTreeMap<NodeId, Candidate>, current: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let mut chosen: BTreeSet<NodeId> =
        current.iter().copied().filter(|node| candidates.contains_key(node)).collect();
    let mut fit: BTreeSet<NodeId> = candidates
        .iter()
        .filter(|(node, candidate)| candidate.fit && !chosen.contains(node))
        .map(|(&node, _)| node)
        .collect();
    // An even number of voters tolerates no more failures than the odd one below it.
    let odd = |count: usize| if count.is_multiple_of(2) { count.saturating_sub(1) } else { count };
    let target = odd((chosen.len() + fit.len()).min(VOTERS_MAX)).max(chosen.len().min(VOTERS_MAX));
    while chosen.len() < target {
        let in_zone = |zone: &str| chosen.iter().filter(|node| candidates[*node].zone == zone).count();
        let Some(next) = fit.iter().copied().min_by_key(|node| (in_zone(&candidates[node].zone), *node))
        else {
            break;
        };
        fit.remove(&next);
        chosen.insert(next);
    }
    chosen
}

/// Runs on every node; acts while it leads.
pub(crate) async fn run(replica: Arc<Replica>) -> anyhow::Result<()> {
    let mut fleet = replica.fleet.clone();
    let mut metrics = replica.raft.metrics();
    let mut observed = replica.reports.changes();
    loop {
        let change = {
            let metrics = metrics.borrow_and_update().clone();
            let fleet = fleet.borrow_and_update().clone();
            (metrics.state == ServerState::Leader)
                .then(|| plan(&candidates(&fleet, &metrics, &replica.reports), &current(&metrics)))
                .flatten()
        };
        if let Some(change) = change {
            match tokio::time::timeout(CHANGE_TIMEOUT, act(&replica.raft, &change)).await {
                Ok(Ok(())) => info!(?change, "membership changed"),
                Ok(Err(err)) => warn!(error = %err, ?change, "membership change refused"),
                Err(_) => warn!(?change, "membership change timed out; its outcome will show"),
            }
        }
        // Cancel-safe: watch channels remember that they changed.
        tokio::select! {
            changed = fleet.changed() => changed?,
            changed = metrics.changed() => changed?,
            changed = observed.changed() => changed?,
        }
    }
}

async fn act(raft: &Raft<TypeConfig>, change: &MembershipChange) -> anyhow::Result<()> {
    match change {
        MembershipChange::AddLearner { node, address } => {
            raft.add_learner(*node, BasicNode::new(address), false).await?;
        }
        MembershipChange::SetVoters(voters) => {
            raft.change_membership(voters.clone(), true).await?;
        }
    }
    Ok(())
}

fn current(metrics: &RaftMetrics<NodeId, BasicNode>) -> Current {
    let membership = metrics.membership_config.membership();
    Current {
        voters: membership.voter_ids().collect(),
        learners: membership.learner_ids().collect(),
        joint: membership.get_joint_config().len() > 1,
    }
}

fn candidates(
    fleet: &Fleet,
    metrics: &RaftMetrics<NodeId, BasicNode>,
    observed: &Reports,
) -> BTreeMap<NodeId, Candidate> {
    let last = metrics.last_log_index.unwrap_or(0);
    let matched = |node: &NodeId| {
        let replication = metrics.replication.as_ref()?;
        replication.get(node)?.map(|id| id.index)
    };
    fleet
        .members
        .iter()
        .filter(|(_, member)| member.availability != Availability::Left)
        .map(|(&node, member)| {
            let caught_up = matched(&node).is_some_and(|index| index + CAUGHT_UP_ENTRIES >= last);
            let fit = node == metrics.id || (caught_up && observed.is_live(node));
            let candidate =
                Candidate { zone: member.zone.clone(), address: member.cluster_address.clone(), fit };
            (node, candidate)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `members`: id, zone, fit. `voters` and `learners`: ids.
    fn check(
        members: &[(u64, &str, bool)],
        voters: &[u64],
        learners: &[u64],
        expected: Option<MembershipChange>,
    ) {
        let candidates = members
            .iter()
            .map(|&(id, zone, fit)| {
                (NodeId(id), Candidate { zone: zone.to_owned(), address: format!("n{id}:7400"), fit })
            })
            .collect();
        let ids = |ids: &[u64]| ids.iter().map(|&id| NodeId(id)).collect();
        let current = Current { voters: ids(voters), learners: ids(learners), joint: false };
        assert_eq!(
            plan(&candidates, &current),
            expected,
            "{members:?} voters {voters:?} learners {learners:?}"
        );
    }

    fn set(ids: &[u64]) -> Option<MembershipChange> {
        Some(MembershipChange::SetVoters(ids.iter().map(|&id| NodeId(id)).collect()))
    }

    #[test]
    fn a_new_member_becomes_a_learner_first() {
        let add = MembershipChange::AddLearner { node: NodeId(4), address: "n4:7400".to_owned() };
        check(&[(1, "a", true), (4, "b", false)], &[1], &[], Some(add));
    }

    #[test]
    fn promotion_goes_in_odd_numbers_up_to_five() {
        check(&[(1, "a", true)], &[1], &[], None);
        check(&[(1, "a", true), (2, "b", true)], &[1], &[2], None);
        check(&[(1, "a", true), (2, "b", true), (3, "c", true)], &[1], &[2, 3], set(&[1, 2, 3]));
        check(&[(1, "a", true), (2, "b", true), (3, "c", true), (4, "d", true)], &[1, 2, 3], &[4], None);
        let seven: Vec<_> = (1..=7).map(|id| (id, "a", true)).collect();
        check(&seven, &[1, 2, 3], &[4, 5, 6, 7], set(&[1, 2, 3, 4, 5]));
        check(&seven, &[1, 2, 3, 4, 5], &[6, 7], None);
    }

    #[test]
    fn a_learner_that_lags_or_is_silent_waits() {
        check(&[(1, "a", true), (2, "b", true), (3, "c", false)], &[1], &[2, 3], None);
    }

    #[test]
    fn votes_spread_over_zones() {
        let members = [(1, "a", true), (2, "a", true), (3, "b", true), (4, "c", true)];
        check(&members, &[1], &[2, 3, 4], set(&[1, 3, 4]));
    }

    #[test]
    fn a_voter_that_is_down_keeps_its_vote() {
        check(&[(1, "a", true), (2, "b", false), (3, "c", true), (4, "c", true)], &[1, 2, 3], &[4], None);
    }

    #[test]
    fn a_change_left_half_done_is_finished() {
        let candidates =
            [(NodeId(1), Candidate { zone: String::new(), address: String::new(), fit: true })].into();
        let current = Current { voters: [NodeId(1)].into(), learners: BTreeSet::new(), joint: true };
        assert_eq!(plan(&candidates, &current), set(&[1]));
    }
}
