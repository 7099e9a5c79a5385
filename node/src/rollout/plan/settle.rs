//! What comes after rollouts: generations that go, and nodes that come or go.

use std::collections::BTreeSet;

use flotilla_raft_store::{Desired, GenerationId, NodeId, Timestamp, Transition};
use flotilla_spec::Replicas;

use super::{Asked, Plan, View, Why};
use crate::rollout::{
    observed::Readiness,
    placement::{self, Nodes},
};

/// Drain, then Remove, then forget: each when the node has said that the one before is over.
pub(super) fn retire(view: &View<'_>, plan: &mut Plan) {
    for asked in view.assigned {
        match asked.assignment.desired {
            Desired::Prepare | Desired::Serve => {}
            Desired::Drain => drain(view, asked, plan),
            Desired::Remove => remove(view, asked, plan),
        }
    }
}

fn drain(view: &View<'_>, asked: &Asked<'_>, plan: &mut Plan) {
    let Asked { node, generation, assignment } = *asked;
    if !view.has_seen(node, assignment) {
        return;
    }
    let left = drain_left(view, generation, assignment.since);
    let why = match view.report(node, generation) {
        None => None,
        Some(report) => match report.readiness {
            Readiness::Removed | Readiness::Rejected => None,
            // The node waits for the successor, and cuts nobody off for that.
            Readiness::Serving => Some(Why::StillServing),
            Readiness::Preparing | Readiness::Ready => Some(Why::Draining { pins: report.pins, left }),
            Readiness::Draining => {
                let over = report.pins == 0 || left.is_zero();
                (!over).then_some(Why::Draining { pins: report.pins, left })
            }
        },
    };
    match why {
        Some(why) => plan.waiting.push(view.waiting(generation, node, why)),
        None => plan.commands.push(assign(view, asked, Desired::Remove)),
    }
}

fn drain_left(view: &View<'_>, generation: GenerationId, since: Timestamp) -> std::time::Duration {
    let drain = view.fleet.generation(view.name, generation).map(|record| record.spec.rollout.drain);
    drain.unwrap_or_default().saturating_sub(view.now.since(since))
}

fn remove(view: &View<'_>, asked: &Asked<'_>, plan: &mut Plan) {
    let Asked { node, generation, assignment } = *asked;
    if !view.has_seen(node, assignment) {
        return;
    }
    let report = view.report(node, generation);
    let why = report.and_then(|report| match report.readiness {
        Readiness::Removed | Readiness::Rejected => None,
        Readiness::Preparing | Readiness::Ready | Readiness::Serving | Readiness::Draining => {
            Some(Why::Removing { pins: report.pins })
        }
    });
    match why {
        Some(why) => plan.waiting.push(view.waiting(generation, node, why)),
        None => plan.commands.push(Transition::Forget { node, app: view.name.clone(), generation }),
    }
}

/// Gives the app to nodes that shall have it and takes it from those that shall not. While a rollout is
/// under way only a node that leaves is seen to: all else could undo what the rollout counts on.
pub(super) fn rearrange(view: &View<'_>, finished: bool, plan: &mut Plan) {
    // A new leader does not know yet who is alive.
    if !view.observed.may_blame() {
        return;
    }
    let leaving = view.assigned.iter().any(|asked| is_asked_for(asked) && view.is_leaving(asked.node));
    let serving = view.app.serving.filter(|_| finished);
    if !leaving && serving.is_none_or(|serving| is_settled(view, serving)) {
        return;
    }
    let wanted = wanted(view, serving.unwrap_or(view.app.wanted));
    for asked in view.assigned.iter().filter(|asked| is_asked_for(asked) && !view.is_away(asked.node)) {
        let surplus = serving == Some(asked.generation) && !wanted.contains(&asked.node);
        let leaving = view.is_leaving(asked.node);
        // There is no hurry to take away what is only too much.
        if leaving || (surplus && wanted.iter().all(|node| view.serves(*node))) {
            give_back(view, asked, &wanted, plan);
        } else if surplus {
            plan.waiting.push(view.waiting(asked.generation, asked.node, Why::LastToServe));
        }
    }
    if let Some(serving) = serving {
        give(view, serving, &wanted, plan);
    }
}

/// Cheap, because it is asked of every app every time: nothing is collected and nobody ranked.
fn is_settled(view: &View<'_>, serving: GenerationId) -> bool {
    let Ok(record) = view.fleet.generation(view.name, serving) else { return true };
    let on = || {
        let asked = view.asked(Desired::Serve).filter(|asked| asked.generation == serving);
        asked.filter(|asked| !view.is_away(asked.node))
    };
    let has = |node: NodeId| on().any(|asked| asked.node == node);
    let may_have = |node: NodeId| {
        let member = view.fleet.members.get(&node);
        member.is_some_and(|member| placement::may_have(&record.spec.placement, member, has(node)))
    };
    let count = on().count();
    let enough = match view.fleet.replicas(&record.spec) {
        Replicas::Count(wanted) => u32::try_from(count) == Ok(wanted),
        Replicas::All => {
            let members = view.fleet.members.keys().filter(|node| !view.observed.is_lost(**node));
            members.filter(|node| may_have(**node)).count() == count
        }
    };
    enough && on().all(|asked| may_have(asked.node))
}

fn wanted(view: &View<'_>, generation: GenerationId) -> BTreeSet<NodeId> {
    let Ok(record) = view.fleet.generation(view.name, generation) else { return BTreeSet::new() };
    let current = view.assigned.iter().filter(|asked| asked.generation == generation && is_asked_for(asked));
    let current = current.map(|asked| asked.node).collect();
    let around = view.around();
    let nodes = Nodes { live: &around.live, lost: &around.lost };
    let mut loads = around.loads.borrow_mut();
    let wanted = placement::place_among(view.fleet, &record.spec, &current, nodes, &loads);
    for node in wanted.iter().filter(|node| !current.contains(node)) {
        loads.add(*node, &record.spec);
    }
    wanted.into_iter().collect()
}

/// Ports that the cluster chose, and that a process of others turned out to have.
pub(super) fn choose_other_ports(view: &View<'_>, plan: &mut Plan) {
    for asked in view.assigned.iter().filter(|asked| is_asked_for(asked)) {
        if let Some(taken) = exchangeable(view, asked) {
            let (node, app, generation) = (asked.node, view.name.clone(), asked.generation);
            plan.commands.push(Transition::ChoosePorts { node, app, generation, taken });
        }
    }
}

/// The ports of others that keep a generation from being prepared, if there are others to be had.
pub(super) fn exchangeable(view: &View<'_>, asked: &Asked<'_>) -> Option<Vec<u16>> {
    let report = view.report(asked.node, asked.generation)?;
    let is_rejected = report.readiness == Readiness::Rejected && !report.taken_ports.is_empty();
    if !is_rejected || !view.has_seen(asked.node, asked.assignment) {
        return None;
    }
    let other = view.fleet.other_ports(asked.node, view.name, asked.generation, &report.taken_ports);
    other.is_ok().then(|| report.taken_ports.clone())
}

/// Not before another node serves; unless there is none that could.
fn give_back(view: &View<'_>, asked: &Asked<'_>, wanted: &BTreeSet<NodeId>, plan: &mut Plan) {
    match asked.assignment.desired {
        Desired::Prepare => plan.commands.push(assign(view, asked, Desired::Remove)),
        Desired::Serve if wanted.is_empty() || wanted.iter().any(|node| view.serves(*node)) => {
            plan.commands.push(assign(view, asked, Desired::Drain));
        }
        Desired::Serve => plan.waiting.push(view.waiting(asked.generation, asked.node, Why::LastToServe)),
        Desired::Drain | Desired::Remove => {}
    }
}

fn give(view: &View<'_>, serving: GenerationId, wanted: &BTreeSet<NodeId>, plan: &mut Plan) {
    let Ok(record) = view.fleet.generation(view.name, serving) else { return };
    for &node in wanted {
        let has = view.assigned.iter().find(|asked| asked.node == node && asked.generation == serving);
        match has.map(|asked| asked.assignment.desired) {
            Some(Desired::Prepare | Desired::Serve) => continue,
            // Two commands about the same are not proposed at once: their order would not be certain.
            Some(Desired::Drain | Desired::Remove) if is_let_go(view, plan, node, serving) => continue,
            Some(Desired::Drain | Desired::Remove) => {}
            None => {
                if let Err(rejection) = view.fleet.choose_ports(node, &record.spec) {
                    let why = Why::NoRoom { why: rejection.to_string() };
                    plan.waiting.push(view.waiting(serving, node, why));
                    continue;
                }
            }
        }
        let (app, generation) = (view.name.clone(), serving);
        plan.commands.push(Transition::Place { app, generation, node });
    }
}

/// The plan moves a generation on, on its way out of a node.
fn is_let_go(view: &View<'_>, plan: &Plan, on: NodeId, of: GenerationId) -> bool {
    plan.commands.iter().any(|command| {
        let (Transition::Assign { node, app, generation, .. } | Transition::Forget { node, app, generation }) =
            command
        else {
            return false;
        };
        (*node, app, *generation) == (on, view.name, of)
    })
}

fn is_asked_for(asked: &Asked<'_>) -> bool {
    match asked.assignment.desired {
        Desired::Prepare | Desired::Serve => true,
        Desired::Drain | Desired::Remove => false,
    }
}

fn assign(view: &View<'_>, asked: &Asked<'_>, desired: Desired) -> Transition {
    let (node, generation) = (asked.node, asked.generation);
    Transition::Assign { node, app: view.name.clone(), generation, desired }
}
