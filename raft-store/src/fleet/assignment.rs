//! What each node is asked to do with each generation.
//!
//! `Desired` only moves up, per node and generation. Which generation takes an app's traffic on a
//! node follows from that alone: **of the generations that the node is asked to serve, the newest**.
//! So a shift asks for the new generation and leaves the old one, still asked to serve, warm behind
//! it; a rollback asks the node to drain the new one, which is one commit and needs nothing to be
//! made ready; and when the rollout completes the old one drains. At no moment can two generations
//! of an app be meant to take new traffic on one node.

use std::{collections::BTreeMap, sync::Arc};

use flotilla_spec::AppName;

use super::{At, Fleet, GenerationId, GenerationState, NodeId, Timestamp};
use crate::Rejection;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Desired {
    /// Bind, resolve, connect, check; take no traffic.
    Prepare,
    /// Take the app's traffic, unless a newer generation is asked to.
    Serve,
    /// Take nothing new, finish what is there.
    Drain,
    /// Give up what is left, and the ports.
    Remove,
}

/// What one node is asked to do with one generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Only moves up.
    pub desired: Desired,
    /// The real port of each entry of `spec.listen`, in its order.
    pub ports: Vec<u16>,
    /// Log index at which `desired` last moved: a report from before says nothing about it.
    pub index: u64,
    /// When `desired` last moved. The spec's `drain` counts from here.
    pub since: Timestamp,
}

/// The generation that takes the app's new traffic on a node that is asked for `of_node`.
pub fn takes_traffic(
    of_node: &BTreeMap<(AppName, GenerationId), Arc<Assignment>>,
    app: &AppName,
) -> Option<GenerationId> {
    let generations = (app.clone(), GenerationId(0))..=(app.clone(), GenerationId(u64::MAX));
    let serving = of_node.range(generations).filter(|(_, asked)| asked.desired == Desired::Serve);
    serving.map(|((_, generation), _)| *generation).next_back()
}

impl Fleet {
    /// The generation that takes the app's new traffic on a node.
    pub fn takes_traffic(&self, node: NodeId, app: &AppName) -> Option<GenerationId> {
        takes_traffic(self.assignments.get(&node)?, app)
    }

    /// What a node is asked of all generations of an app, oldest first.
    pub fn assignments_of<'a>(
        &'a self,
        node: NodeId,
        app: &AppName,
    ) -> impl DoubleEndedIterator<Item = (GenerationId, &'a Arc<Assignment>)> + use<'a> {
        let range = (app.clone(), GenerationId(0))..=(app.clone(), GenerationId(u64::MAX));
        let assignments = self.assignments.get(&node).map(|of_node| of_node.range(range));
        assignments.into_iter().flatten().map(|((_, generation), assignment)| (*generation, assignment))
    }

    pub fn assignment(
        &self,
        node: NodeId,
        app: &AppName,
        generation: GenerationId,
    ) -> Option<&Arc<Assignment>> {
        self.assignments.get(&node)?.get(&(app.clone(), generation))
    }

    /// Nodes that have an assignment for the generation.
    pub fn nodes_of(&self, app: &AppName, generation: GenerationId) -> impl Iterator<Item = NodeId> {
        let key = (app.clone(), generation);
        self.assignments.iter().filter(move |(_, of_node)| of_node.contains_key(&key)).map(|(node, _)| *node)
    }

    /// The coordinator's own moves: a generation that is done with, or a node that gives an app back
    /// and with that leaves the rollout it may be part of.
    pub(super) fn assign(
        &mut self,
        at: At,
        node: NodeId,
        app: &AppName,
        generation: GenerationId,
        desired: Desired,
    ) -> Result<(), Rejection> {
        let current = self.assignment(node, app, generation).ok_or_else(no_assignment)?.desired;
        match desired {
            Desired::Prepare | Desired::Serve => {
                return Err(stale("only a rollout asks a node to prepare or serve"));
            }
            Desired::Drain | Desired::Remove => {}
        }
        if desired <= current {
            return Err(stale("the node is asked for that or more already"));
        }
        self.raise(at, node, app, generation, desired);
        self.leave_rollout(node, app, generation);
        Ok(())
    }

    /// The node has let go of the generation.
    pub(super) fn forget(
        &mut self,
        at: At,
        node: NodeId,
        app: &AppName,
        generation: GenerationId,
    ) -> Result<(), Rejection> {
        let current = self.assignment(node, app, generation).ok_or_else(no_assignment)?.desired;
        if current != Desired::Remove {
            return Err(stale("the node is still asked for the generation"));
        }
        self.unassign(node, app, generation);
        self.sweep(at, app);
        Ok(())
    }

    /// A node is asked to serve what the app's other nodes serve already: there is nothing to gate, it
    /// serves as soon as it can.
    pub(super) fn place(
        &mut self,
        at: At,
        app: &AppName,
        generation: GenerationId,
        node: NodeId,
    ) -> Result<(), Rejection> {
        let record = self.apps.get(app).ok_or_else(|| Rejection::NoSuchApp { app: app.clone() })?;
        if record.deleted || record.serving != Some(generation) {
            return Err(stale("the app does not serve that generation"));
        }
        if self
            .rollouts
            .get(&(app.clone(), record.wanted))
            .is_some_and(|rollout| !rollout.state.is_finished())
        {
            return Err(stale("the app is rolling out"));
        }
        if self.assignment(node, app, generation).is_some() {
            return Err(stale("the node has that generation already"));
        }
        let spec = self.generation(app, generation)?.spec.clone();
        let ports = self.choose_ports(node, &spec)?;
        let name = self.member(node)?.name.clone();
        self.record(at, Some(app), Some(node), format!("node {name} gets generation {generation}"));
        self.give(at, node, app, generation, Desired::Serve, ports);
        Ok(())
    }

    pub(super) fn give(
        &mut self,
        at: At,
        node: NodeId,
        app: &AppName,
        generation: GenerationId,
        desired: Desired,
        ports: Vec<u16>,
    ) {
        self.hold_ports(node, app, &ports);
        let assignment = Assignment { desired, ports, index: at.index, since: at.time };
        self.assignments.entry(node).or_default().insert((app.clone(), generation), Arc::new(assignment));
    }

    /// Up to `desired`, never down.
    pub(super) fn raise(
        &mut self,
        at: At,
        node: NodeId,
        app: &AppName,
        generation: GenerationId,
        desired: Desired,
    ) {
        let of_node = self.assignments.get_mut(&node);
        let Some(assignment) = of_node.and_then(|of_node| of_node.get_mut(&(app.clone(), generation))) else {
            return;
        };
        if assignment.desired < desired {
            let assignment = Arc::make_mut(assignment);
            assignment.desired = desired;
            assignment.index = at.index;
            assignment.since = at.time;
        }
    }

    /// Takes a generation back from every node: what never served is removed, the rest drains.
    pub(super) fn withdraw(&mut self, at: At, app: &AppName, generation: GenerationId) {
        let nodes: Vec<NodeId> = self.nodes_of(app, generation).collect();
        for node in nodes {
            match self.assignment(node, app, generation).map(|assignment| assignment.desired) {
                Some(Desired::Prepare) => self.raise(at, node, app, generation, Desired::Remove),
                Some(Desired::Serve) => self.raise(at, node, app, generation, Desired::Drain),
                Some(Desired::Drain | Desired::Remove) | None => {}
            }
        }
        self.set_generation_state(app, generation, GenerationState::Draining);
    }

    /// Takes a generation back where it has not begun to serve. True: it has on some node.
    pub(super) fn withdraw_unserved(&mut self, at: At, app: &AppName, generation: GenerationId) -> bool {
        let nodes: Vec<NodeId> = self.nodes_of(app, generation).collect();
        let mut serves = false;
        for node in nodes {
            match self.assignment(node, app, generation).map(|assignment| assignment.desired) {
                Some(Desired::Prepare) => self.raise(at, node, app, generation, Desired::Remove),
                Some(Desired::Serve) => serves = true,
                Some(Desired::Drain | Desired::Remove) | None => {}
            }
        }
        serves
    }

    /// All of a node at once, when it has left.
    pub(super) fn forget_node(&mut self, at: At, node: NodeId) {
        let keys: Vec<_> =
            self.assignments.get(&node).into_iter().flat_map(|of_node| of_node.keys()).cloned().collect();
        for (app, generation) in &keys {
            self.unassign(node, app, *generation);
            self.leave_rollout(node, app, *generation);
        }
        for (app, _) in &keys {
            self.sweep(at, app);
        }
    }

    pub(super) fn newest_assignment(&self, node: NodeId, app: &AppName) -> Option<&Arc<Assignment>> {
        self.assignments_of(node, app).next_back().map(|(_, assignment)| assignment)
    }

    fn unassign(&mut self, node: NodeId, app: &AppName, generation: GenerationId) {
        let Some(of_node) = self.assignments.get_mut(&node) else { return };
        let Some(gone) = of_node.remove(&(app.clone(), generation)) else { return };
        if of_node.is_empty() {
            self.assignments.remove(&node);
        }
        self.free_ports(node, app, &gone.ports);
    }
}

pub(super) fn stale(why: &str) -> Rejection {
    Rejection::Stale { why: why.to_owned() }
}

fn no_assignment() -> Rejection {
    stale("the node is not asked for that generation")
}
