//! Which nodes carry an app. PURE: the fleet in, nodes out.
//!
//! Stable before even: a node that has the app keeps it as long as it may, alive or not, because
//! moving an app costs connections and a node that restarts comes back. What is added goes where the
//! app has least, then where there is least. Applying a placement changes nothing about it.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_raft_store::{Availability, Fleet, Member, NodeId};
use flotilla_spec::{AppSpec, Placement, Replicas, Spread};

/// `current`: the nodes that have the app now. `live`: the nodes that report; a node that does not is
/// kept, and only chosen when there is no other.
pub(crate) fn place(
    fleet: &Fleet,
    spec: &AppSpec,
    current: &BTreeSet<NodeId>,
    live: &BTreeSet<NodeId>,
) -> Vec<NodeId> {
    let may_have: BTreeMap<NodeId, &Member> = fleet
        .members
        .iter()
        .map(|(node, member)| (*node, member.as_ref()))
        .filter(|(node, member)| may_have(&spec.placement, member, current.contains(node)))
        .collect();
    match spec.placement.replicas {
        Replicas::All => may_have.into_keys().collect(),
        Replicas::Count(count) => {
            let count = usize::try_from(count).unwrap_or(usize::MAX).min(may_have.len());
            choose(fleet, spec.placement.spread, &may_have, count, current, live)
        }
    }
}

/// Whether a node may carry an app with this placement. A cordoned one keeps what it has.
pub(crate) fn may_have(placement: &Placement, member: &Member, has: bool) -> bool {
    let available = match member.availability {
        Availability::Active => true,
        Availability::Cordoned => has,
        Availability::Draining | Availability::Left => false,
    };
    available
        && (placement.regions.is_empty() || placement.regions.contains(&member.region))
        && placement.require.iter().all(|(label, value)| member.labels.get(label) == Some(value))
}

fn choose(
    fleet: &Fleet,
    spread: Spread,
    may_have: &BTreeMap<NodeId, &Member>,
    count: usize,
    current: &BTreeSet<NodeId>,
    live: &BTreeSet<NodeId>,
) -> Vec<NodeId> {
    // Nodes of different regions may carry the same zone name.
    let domain = |node: &NodeId| match spread {
        Spread::Zone => may_have.get(node).map(|member| (&member.region, &member.zone)),
        Spread::Node => None,
    };
    let load = |node: &NodeId| fleet.assignments.get(node).map_or(0, BTreeMap::len);
    let mut chosen: BTreeSet<NodeId> =
        current.iter().filter(|node| may_have.contains_key(node)).copied().collect();
    while chosen.len() != count {
        let together = |node: &NodeId| chosen.iter().filter(|other| domain(other) == domain(node)).count();
        let cost = |node: &NodeId| (!live.contains(node), together(node), load(node), *node);
        if chosen.len() > count {
            let Some(worst) = chosen.iter().copied().max_by_key(cost) else { break };
            chosen.remove(&worst);
        } else {
            let free = may_have.keys().copied().filter(|node| !chosen.contains(node));
            let Some(best) = free.min_by_key(cost) else { break };
            chosen.insert(best);
        }
    }
    chosen.into_iter().collect()
}

#[cfg(test)]
mod tests;
