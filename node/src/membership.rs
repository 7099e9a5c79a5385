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

use flotilla_raft_store::{Availability, Change, Fleet, NodeId, types::TypeConfig};
use openraft::{BasicNode, ChangeMembers, Raft, RaftMetrics, ServerState};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{replica::Replica, reports::Reports};

/// More voters make every commit slower and tolerate failures that nobody plans for.
pub(crate) const VOTERS_MAX: usize = 5;
/// A learner this close to the leader's log has caught up.
const CAUGHT_UP_ENTRIES: u64 = 100;
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// A node that is silent is looked at again, though nothing happens.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MembershipChange {
    AddLearner {
        node: NodeId,
        address: String,
    },
    SetVoters(BTreeSet<NodeId>),
    /// Its drain is over and it has no vote: it leaves the fleet, and hears of it.
    Dismiss(NodeId),
    /// It has left and is silent: nobody replicates to it any more.
    Forget(NodeId),
}

/// What the decision needs to know of one member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) zone: String,
    pub(crate) address: String,
    /// It reports to the leader.
    pub(crate) live: bool,
    /// Live, and it has nearly all of the leader's log.
    pub(crate) fit: bool,
    /// Down for so long that its vote goes to another.
    pub(crate) lost: bool,
    /// Its drain is over, and it shall leave the cluster.
    pub(crate) leaves: bool,
}

/// Raft's own view of the membership.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Current {
    pub(crate) leader: NodeId,
    pub(crate) voters: BTreeSet<NodeId>,
    pub(crate) learners: BTreeSet<NodeId>,
    /// Those of them that have left the fleet and do not report any more.
    pub(crate) gone: BTreeSet<NodeId>,
    /// A change of voters was begun and not finished.
    pub(crate) joint: bool,
}

/// The next change, if any. Same inputs, same answer; `None` once the membership is as it should be.
pub(crate) fn plan(candidates: &BTreeMap<NodeId, Candidate>, current: &Current) -> Option<MembershipChange> {
    let known = |node: &NodeId| current.voters.contains(node) || current.learners.contains(node);
    let missing = candidates.iter().find(|(node, candidate)| !known(node) && !candidate.leaves);
    if let Some((&node, candidate)) = missing {
        return Some(MembershipChange::AddLearner { node, address: candidate.address.clone() });
    }
    let wanted = voters(candidates, current);
    if wanted != current.voters || current.joint {
        return Some(MembershipChange::SetVoters(wanted));
    }
    let dismissed =
        candidates.iter().find(|(node, candidate)| candidate.leaves && !current.voters.contains(node));
    if let Some((&node, _)) = dismissed {
        return Some(MembershipChange::Dismiss(node));
    }
    current
        .learners
        .iter()
        .find(|node| current.gone.contains(node))
        .map(|node| MembershipChange::Forget(*node))
}

/// The voters there should be: an odd number, at most five, over as many zones as possible. Those who
/// vote already keep their vote as long as they are members, so a restart moves nothing; one that is
/// lost gives it to a learner that is ready, and one that leaves gives it up, the leader last.
///
/// Every change of voters is a joint one (Raft §6): until it is done both majorities must agree, so the
/// new vote counts before the old one is gone. A set of which no majority is alive is never asked for.
fn voters(candidates: &BTreeMap<NodeId, Candidate>, current: &Current) -> BTreeSet<NodeId> {
    let before: BTreeSet<NodeId> =
        current.voters.iter().copied().filter(|node| candidates.contains_key(node)).collect();
    let mut fit: BTreeSet<NodeId> = candidates
        .iter()
        .filter(|(node, candidate)| candidate.fit && !candidate.leaves && !before.contains(node))
        .map(|(&node, _)| node)
        .collect();
    let mut chosen = before.clone();
    // One at a time: what becomes of it is seen before the next.
    let leaving = before.iter().filter(|node| candidates[node].leaves);
    let lost = before.iter().filter(|node| candidates[node].lost);
    if let Some(gives_up) = leaving.copied().min_by_key(|node| (*node == current.leader, *node)) {
        chosen.remove(&gives_up);
    } else if let Some(lost) = lost.copied().next().filter(|_| !fit.is_empty()) {
        chosen.remove(&lost);
    }
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
    let live = chosen.iter().filter(|node| candidates[*node].live).count();
    if live > chosen.len() / 2 { chosen } else { before }
}

/// Runs on every node; acts while it leads.
pub(crate) async fn run(replica: Arc<Replica>) -> anyhow::Result<()> {
    let mut fleet = replica.fleet.clone();
    let mut metrics = replica.raft.metrics();
    let mut observed = replica.reports.changes();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut leads_since = None;
    loop {
        let change = {
            let metrics = metrics.borrow_and_update().clone();
            let fleet = fleet.borrow_and_update().clone();
            if metrics.state == ServerState::Leader {
                let leads_for = leads_since.get_or_insert_with(Instant::now).elapsed();
                let candidates = candidates(&fleet, &metrics, &replica, leads_for);
                plan(&candidates, &current(&fleet, &metrics, &replica.reports))
            } else {
                leads_since = None;
                None
            }
        };
        if let Some(change) = change {
            match tokio::time::timeout(CHANGE_TIMEOUT, act(&replica, &change)).await {
                Ok(Ok(())) => info!(?change, "membership changed"),
                Ok(Err(err)) => warn!(error = %err, ?change, "membership change refused"),
                Err(_) => warn!(?change, "membership change timed out; its outcome will show"),
            }
        }
        // Cancel-safe: watch channels and intervals remember.
        tokio::select! {
            changed = fleet.changed() => changed?,
            changed = metrics.changed() => changed?,
            changed = observed.changed() => changed?,
            _ = look.tick() => {}
        }
    }
}

async fn act(replica: &Replica, change: &MembershipChange) -> anyhow::Result<()> {
    let raft: &Raft<TypeConfig> = &replica.raft;
    match change {
        MembershipChange::AddLearner { node, address } => {
            raft.add_learner(*node, BasicNode::new(address), false).await?;
        }
        MembershipChange::SetVoters(voters) => {
            raft.change_membership(voters.clone(), true).await?;
        }
        MembershipChange::Dismiss(node) => {
            let change = Change::SetAvailability { node: *node, availability: Availability::Left };
            let answer = replica.propose(None, change).await;
            answer.map_err(|status| anyhow::anyhow!(status.message().to_owned()))??;
        }
        MembershipChange::Forget(node) => {
            raft.change_membership(ChangeMembers::RemoveNodes(BTreeSet::from([*node])), false).await?;
        }
    }
    Ok(())
}

/// Runs on every node: ends it when the fleet has removed it.
pub(crate) async fn dismissal(replica: Arc<Replica>, dismissed: CancellationToken) -> anyhow::Result<()> {
    let mut fleet = replica.fleet.clone();
    let me = replica.me();
    let has_left = |fleet: &Arc<Fleet>| {
        fleet.members.get(&me).is_some_and(|member| member.availability == Availability::Left)
    };
    fleet.wait_for(has_left).await?;
    dismissed.cancel();
    std::future::pending().await
}

fn current(fleet: &Fleet, metrics: &RaftMetrics<NodeId, BasicNode>, reports: &Reports) -> Current {
    let membership = metrics.membership_config.membership();
    let has_left = |node: &NodeId| {
        fleet.members.get(node).is_some_and(|member| member.availability == Availability::Left)
    };
    let learners: BTreeSet<NodeId> = membership.learner_ids().collect();
    Current {
        leader: metrics.id,
        voters: membership.voter_ids().collect(),
        gone: learners.iter().copied().filter(|node| has_left(node) && !reports.is_live(*node)).collect(),
        learners,
        joint: membership.get_joint_config().len() > 1,
    }
}

fn candidates(
    fleet: &Fleet,
    metrics: &RaftMetrics<NodeId, BasicNode>,
    replica: &Replica,
    leads_for: Duration,
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
            let live = node == metrics.id || replica.reports.is_live(node);
            let silent = replica.reports.silent_for(node).unwrap_or(leads_for).min(leads_for);
            let candidate = Candidate {
                zone: member.zone.clone(),
                address: member.cluster_address.clone(),
                live,
                fit: node == metrics.id || (caught_up && live),
                lost: !live && silent >= replica.lost_after,
                leaves: member.drain.is_some_and(|drain| drain.leaves && drain.phase.is_over()),
            };
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
                let address = format!("n{id}:7400");
                (
                    NodeId(id),
                    Candidate { zone: zone.to_owned(), address, live: true, fit, ..Candidate::default() },
                )
            })
            .collect();
        let ids = |ids: &[u64]| ids.iter().map(|&id| NodeId(id)).collect();
        let current = Current { voters: ids(voters), learners: ids(learners), ..Current::default() };
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
        let candidates = [(NodeId(1), Candidate { live: true, fit: true, ..Candidate::default() })].into();
        let current = Current { voters: [NodeId(1)].into(), joint: true, ..Current::default() };
        assert_eq!(plan(&candidates, &current), set(&[1]));
    }

    /// Members as `id zone` with `down`, `lost`, `slow` or `leaves`; the first voter leads. What happens,
    /// applied until nothing is left to do.
    fn story(members: &[&str], voters: &[u64]) -> Vec<String> {
        let mut candidates = BTreeMap::new();
        for line in members {
            let words: Vec<&str> = line.split(' ').collect();
            let has = |word: &str| words.contains(&word);
            let live = !has("down") && !has("lost");
            let candidate = Candidate {
                zone: words[1].to_owned(),
                address: String::new(),
                live,
                fit: live && !has("slow"),
                lost: has("lost"),
                leaves: has("leaves"),
            };
            candidates.insert(NodeId(words[0].parse().unwrap()), candidate);
        }
        let voters: BTreeSet<NodeId> = voters.iter().copied().map(NodeId).collect();
        let learners = candidates.keys().copied().filter(|node| !voters.contains(node)).collect();
        let leader = *voters.first().unwrap();
        let mut current = Current { leader, voters, learners, ..Current::default() };
        let mut told = Vec::new();
        while let Some(change) = plan(&candidates, &current) {
            assert!(told.len() < 9, "it goes in circles: {told:?}");
            match change {
                MembershipChange::AddLearner { node, .. } => {
                    told.push(format!("learn {node}"));
                    current.learners.insert(node);
                }
                MembershipChange::SetVoters(voters) => {
                    let quorum = |of: &BTreeSet<NodeId>| {
                        of.iter().filter(|node| candidates[*node].live).count() > of.len() / 2
                    };
                    assert!(quorum(&current.voters) && quorum(&voters), "{voters:?} cannot be agreed on");
                    told.push(format!("voters {:?}", voters.iter().map(|node| node.0).collect::<Vec<_>>()));
                    current.learners.extend(current.voters.difference(&voters));
                    current.learners.retain(|node| !voters.contains(node));
                    // The leader that gave up its vote is followed by another.
                    current.leader = *voters.first().unwrap();
                    current.voters = voters;
                }
                MembershipChange::Dismiss(node) => {
                    told.push(format!("dismiss {node}"));
                    candidates.remove(&node);
                    current.gone.insert(node);
                }
                MembershipChange::Forget(node) => {
                    told.push(format!("forget {node}"));
                    current.learners.remove(&node);
                }
            }
        }
        told
    }

    #[test]
    fn the_vote_of_a_lost_node_goes_to_a_learner_that_is_ready() {
        let none: [&str; 0] = [];
        assert_eq!(story(&["1 a", "2 b", "3 c lost", "4 d"], &[1, 2, 3]), ["voters [1, 2, 4]"]);
        // Not before the grace is over, not to one that lags, and not when there is no other.
        assert_eq!(story(&["1 a", "2 b", "3 c down", "4 d"], &[1, 2, 3]), none);
        assert_eq!(story(&["1 a", "2 b", "3 c lost", "4 d slow"], &[1, 2, 3]), none);
        assert_eq!(story(&["1 a", "2 b", "3 c lost"], &[1, 2, 3]), none);
        // Two of five, one after the other.
        let five = ["1 a", "2 b", "3 c", "4 d lost", "5 e lost", "6 f", "7 g"];
        assert_eq!(story(&five, &[1, 2, 3, 4, 5]), ["voters [1, 2, 3, 5, 6]", "voters [1, 2, 3, 6, 7]"]);
    }

    #[test]
    fn a_node_that_leaves_gives_up_its_vote_first_and_the_leader_is_last() {
        let all = ["voters [1, 2]", "dismiss 3", "forget 3"];
        assert_eq!(story(&["1 a", "2 b", "3 c leaves"], &[1, 2, 3]), all);
        let replaced = ["voters [1, 2, 4]", "dismiss 3", "forget 3"];
        assert_eq!(story(&["1 a", "2 b", "3 c leaves", "4 d"], &[1, 2, 3]), replaced);
        assert_eq!(story(&["1 a", "2 b", "3 c", "4 d leaves"], &[1, 2, 3]), ["dismiss 4", "forget 4"]);
        let leader = ["voters [1, 3]", "voters [3]", "dismiss 1", "dismiss 2", "forget 1", "forget 2"];
        assert_eq!(story(&["1 a leaves", "2 b leaves", "3 c"], &[1, 2, 3]), leader);
    }

    #[test]
    fn nobody_leaves_a_quorum_that_would_be_lost_without_it() {
        let none: [&str; 0] = [];
        assert_eq!(story(&["1 a", "2 b leaves", "3 c down"], &[1, 2, 3]), none);
        // The dead one may go.
        let dead = ["voters [1, 2]", "dismiss 3", "forget 3"];
        assert_eq!(story(&["1 a", "2 b", "3 c down leaves"], &[1, 2, 3]), dead);
    }
}
