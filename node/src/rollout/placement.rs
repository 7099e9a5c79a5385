//! Which nodes carry an app. PURE: the fleet in, nodes out.
//!
//! Stable before even: a node that has the app keeps it as long as it may, because moving an app costs
//! connections and a node that restarts comes back. What is added goes where the app has least, then
//! where there is least for the node's weight. Applying a placement changes nothing about it.
//!
//! A node that is lost, down for longer than the grace, does not count, and another one stands in.
//! When it returns the app has one node too many, and leaves the one that [`place`] would have chosen
//! last: of the fullest zone, and there the fullest node, which is mostly the stand-in.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_raft_store::{Availability, Desired, Fleet, Member, NodeId};
use flotilla_spec::{AppName, AppSpec, Placement, Replicas, Spread};
use imbl::OrdMap;

mod rebalance;

pub(crate) use rebalance::rebalance;

/// Who may be counted on.
#[derive(Clone, Copy)]
pub(crate) struct Nodes<'a> {
    /// They report. A node that does not is kept, and only chosen when there is no other.
    pub(crate) live: &'a BTreeSet<NodeId>,
    /// Down for so long that others stand in for them.
    pub(crate) lost: &'a BTreeSet<NodeId>,
}

/// How many ports each node carries, those included that are only being planned.
#[derive(Clone, Debug, Default)]
pub(crate) struct Loads(BTreeMap<NodeId, u64>);

impl Loads {
    pub(crate) fn of(fleet: &Fleet) -> Self {
        let of_node = |of_node: &OrdMap<_, std::sync::Arc<flotilla_raft_store::Assignment>>| {
            let asked = of_node.values().filter(|asked| asked.desired <= Desired::Serve);
            asked.map(|asked| asked.ports.len().max(1) as u64).sum()
        };
        Self(fleet.assignments.iter().map(|(node, assigned)| (*node, of_node(assigned))).collect())
    }

    pub(crate) fn add(&mut self, node: NodeId, spec: &AppSpec) {
        *self.0.entry(node).or_default() += ports(spec);
    }

    fn take(&mut self, node: NodeId, spec: &AppSpec) {
        let load = self.0.entry(node).or_default();
        *load = load.saturating_sub(ports(spec));
    }

    /// For its weight.
    fn relative(&self, node: NodeId, more: u64, weight: u32) -> u64 {
        let load = self.0.get(&node).copied().unwrap_or(0) + more;
        load.saturating_mul(10_000) / u64::from(weight.max(1))
    }
}

/// An app without a port is work, too.
fn ports(spec: &AppSpec) -> u64 {
    spec.listen.len().max(1) as u64
}

/// `current`: the nodes that have the app now.
#[cfg(any(test, fuzzing))]
pub(crate) fn place(
    fleet: &Fleet,
    spec: &AppSpec,
    current: &BTreeSet<NodeId>,
    live: &BTreeSet<NodeId>,
) -> Vec<NodeId> {
    let nodes = Nodes { live, lost: &BTreeSet::new() };
    place_among(fleet, spec, current, nodes, &Loads::of(fleet))
}

/// For many apps: who is there and what they carry is found out once. The caller adds what was placed.
pub(crate) fn place_among(
    fleet: &Fleet,
    spec: &AppSpec,
    current: &BTreeSet<NodeId>,
    nodes: Nodes<'_>,
    loads: &Loads,
) -> Vec<NodeId> {
    let may_have: BTreeMap<NodeId, &Member> = fleet
        .members
        .iter()
        .map(|(node, member)| (*node, member.as_ref()))
        .filter(|(node, member)| {
            may_have(&spec.placement, member, current.contains(node)) && !nodes.lost.contains(node)
        })
        .collect();
    match fleet.replicas(spec) {
        Replicas::All => may_have.into_keys().collect(),
        Replicas::Count(count) => {
            let count = usize::try_from(count).unwrap_or(usize::MAX).min(may_have.len());
            let choice = Choice { spec, may_have: &may_have, live: nodes.live, loads };
            let mut chosen: BTreeSet<NodeId> =
                current.iter().filter(|node| may_have.contains_key(node)).copied().collect();
            choice.fill(&mut chosen, count);
            chosen.into_iter().collect()
        }
    }
}

/// Nodes that have an assignment for the app.
pub(crate) fn nodes_of(fleet: &Fleet, app: &AppName) -> BTreeSet<NodeId> {
    let nodes = fleet.assignments.keys().copied();
    nodes.filter(|node| fleet.assignments_of(*node, app).next().is_some()).collect()
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

/// What a choice of nodes for one app looks at.
struct Choice<'a> {
    spec: &'a AppSpec,
    may_have: &'a BTreeMap<NodeId, &'a Member>,
    live: &'a BTreeSet<NodeId>,
    loads: &'a Loads,
}

/// The lower the better: alive, few of the app in its zone, few ports for its weight.
type Cost = (bool, usize, u64, NodeId);

impl Choice<'_> {
    /// Adds the best or takes away the worst until there are `count`.
    fn fill(&self, chosen: &mut BTreeSet<NodeId>, count: usize) {
        while chosen.len() > count {
            let Some(worst) = self.worst(chosen) else { return };
            chosen.remove(&worst);
        }
        while chosen.len() < count {
            let Some(best) = self.best(chosen) else { return };
            chosen.insert(best);
        }
    }

    fn best(&self, chosen: &BTreeSet<NodeId>) -> Option<NodeId> {
        let free = self.may_have.keys().copied().filter(|node| !chosen.contains(node));
        free.min_by_key(|node| self.cost(chosen, *node))
    }

    fn worst(&self, chosen: &BTreeSet<NodeId>) -> Option<NodeId> {
        chosen.iter().copied().max_by_key(|node| self.cost(chosen, *node))
    }

    /// A node that would be added is weighed with the app, as one that has it is.
    fn cost(&self, chosen: &BTreeSet<NodeId>, node: NodeId) -> Cost {
        let more = if chosen.contains(&node) { 0 } else { ports(self.spec) };
        let weight = self.may_have.get(&node).map_or(1, |member| member.weight);
        let load = self.loads.relative(node, more, weight);
        (!self.live.contains(&node), self.together(chosen, node), load, node)
    }

    /// Chosen nodes in the same failure domain.
    fn together(&self, chosen: &BTreeSet<NodeId>, node: NodeId) -> usize {
        let domain = self.domain(node);
        chosen.iter().filter(|other| self.domain(**other) == domain).count()
    }

    /// Nodes of different regions may carry the same zone name.
    fn domain(&self, node: NodeId) -> Option<(&str, &str)> {
        match self.spec.placement.spread {
            Spread::Zone => {
                self.may_have.get(&node).map(|member| (member.region.as_str(), member.zone.as_str()))
            }
            Spread::Node => None,
        }
    }
}

#[cfg(test)]
mod tests;
