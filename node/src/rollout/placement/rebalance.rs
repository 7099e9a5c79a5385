//! Moves that make the fleet more even: what a new node, or a new zone, gets of what is there. PURE.
//!
//! A move is one more node for an app; that the app then leaves the node it can best do without is
//! [`super::place`]'s doing, and only after the new one serves. Each move makes the fleet strictly more
//! even, so there is an end to them, and a node gets its share and no more.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use flotilla_raft_store::{App, Desired, Fleet, GenerationId, Member, NodeId, RolloutState, Transition};
use flotilla_spec::{AppName, Replicas};
use imbl::OrdMap;

use super::{Choice, Loads, Nodes, may_have};

/// Moves under way at the same time. More would drain half a fleet at once.
const MOVES_MAX: usize = 16;

/// Nothing while an earlier move is under way. The greatest gain comes first, so that no app moves that
/// another one could have spared the move.
pub(crate) fn rebalance(fleet: &Fleet, nodes: Nodes<'_>) -> Vec<Transition> {
    let mut loads = Loads::of(fleet);
    let mut movable = Vec::new();
    for (name, app) in &fleet.apps {
        let Some((generation, count)) = self::movable(fleet, name, app) else { continue };
        let current = serving_nodes(fleet, name, generation);
        if current.len() > count {
            return Vec::new();
        }
        if current.len() == count {
            movable.push((name, app, generation, current));
        }
    }
    let mut moves = Vec::new();
    while moves.len() < MOVES_MAX {
        let gains = movable.iter().enumerate().filter_map(|(place, (_, app, _, current))| {
            let better = better(fleet, app, current, nodes, &loads)?;
            fleet.choose_ports(better.to, &app.spec).is_ok().then_some((better, place))
        });
        // Of equal gains the first app's, so that the same fleet moves the same apps.
        let best = gains.max_by_key(|(better, place)| (better.gain, std::cmp::Reverse(*place)));
        let Some((Better { from, to, .. }, place)) = best else { break };
        let (name, app, generation, _) = movable.swap_remove(place);
        loads.take(from, &app.spec);
        loads.add(to, &app.spec);
        moves.push(Transition::Place { app: name.clone(), generation, node: to });
    }
    moves
}

/// Which node an app would leave for which other one.
struct Better {
    from: NodeId,
    to: NodeId,
    /// More zones, then by how much the loads come closer.
    gain: (bool, u64),
}

/// The generation that serves and on how many nodes, of an app that nothing else happens to.
fn movable(fleet: &Fleet, name: &AppName, app: &Arc<App>) -> Option<(GenerationId, usize)> {
    let Replicas::Count(count) = fleet.replicas(&app.spec) else { return None };
    let rollout = fleet.rollouts.get(&(name.clone(), app.wanted))?;
    let settled = app.serving == Some(app.wanted) && rollout.state == RolloutState::Completed && !app.deleted;
    settled.then_some((app.wanted, usize::try_from(count).unwrap_or(usize::MAX)))
}

fn serving_nodes(fleet: &Fleet, name: &AppName, generation: GenerationId) -> BTreeSet<NodeId> {
    let key = (name.clone(), generation);
    let on = |of_node: &OrdMap<_, Arc<flotilla_raft_store::Assignment>>| {
        of_node.get(&key).is_some_and(|asked| asked.desired <= Desired::Serve)
    };
    fleet.assignments.iter().filter(|(_, of_node)| on(of_node)).map(|(node, _)| *node).collect()
}

/// The move of an app that makes the fleet more even, if there is one.
fn better(
    fleet: &Fleet,
    app: &App,
    current: &BTreeSet<NodeId>,
    nodes: Nodes<'_>,
    loads: &Loads,
) -> Option<Better> {
    let may_have: BTreeMap<NodeId, &Member> = fleet
        .members
        .iter()
        .map(|(node, member)| (*node, member.as_ref()))
        .filter(|(node, member)| may_have(&app.spec.placement, member, current.contains(node)))
        .collect();
    // Nodes that are down, lost or drained have their own ways.
    if !current.iter().all(|node| may_have.contains_key(node) && nodes.live.contains(node)) {
        return None;
    }
    let choice = Choice { spec: &app.spec, may_have: &may_have, live: nodes.live, loads };
    let free = |node: &NodeId| {
        !current.contains(node)
            && nodes.live.contains(node)
            && fleet.assignments_of(*node, &app.spec.name).next().is_none()
    };
    let candidates = may_have.keys().copied().filter(free);
    let to = candidates.min_by_key(|node| choice.cost(current, *node))?;
    let mut with = current.clone();
    with.insert(to);
    // Weighed as they will be when both have the app.
    let mut loads = loads.clone();
    loads.add(to, &app.spec);
    let choice = Choice { loads: &loads, ..choice };
    let from = choice.worst(&with)?;
    if from == to {
        return None;
    }
    let (_, from_together, from_load, _) = choice.cost(&with, from);
    let (_, to_together, to_load, _) = choice.cost(&with, to);
    let same_domain = choice.domain(from) == choice.domain(to);
    let zones_gain = !same_domain && from_together > to_together;
    let spread_stays = same_domain || from_together >= to_together;
    let gain = (zones_gain, from_load.saturating_sub(to_load));
    (zones_gain || (spread_stays && from_load > to_load)).then_some(Better { from, to, gain })
}
