//! What each node is asked to do with each generation.
//!
//! `Desired` only moves up, per node and generation, and so does the share that a serving generation
//! is asked to take. Which generation takes an app's traffic on a node follows from that alone: **of
//! the generations that the node is asked to serve, the newest takes its share and the oldest the
//! rest**. So a shift asks for the new generation, share by share, and leaves the old one, still asked
//! to serve, warm behind it; a rollback asks the node to drain the new one, which is one commit and
//! needs nothing to be made ready; and when the rollout completes the old one drains. The oldest is
//! the one that completed last, so what a superseded rollout left in between gets nothing once its
//! successor has begun to shift.
//!
//! One thing goes back: a node that gives up the generation that the app serves, and shall have it again
//! before its ports have closed, is asked to serve it anew. Nothing was lost until then, so there is nothing to
//! wait for.

use std::sync::Arc;

use flotilla_spec::AppName;
use imbl::OrdMap;

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
    /// Only moves up, until the node is placed again.
    pub desired: Desired,
    /// The share of the app's traffic on the node, 1 to 100, once it is asked to serve. Only moves up.
    pub percent: u8,
    /// The real port of each entry of `spec.listen`, in its order.
    pub ports: Vec<u16>,
    /// Log index at which `desired`, `percent` or `ports` last moved: a report from before says nothing about it.
    pub index: u64,
    /// When `desired` last moved. The spec's `drain` counts from here.
    pub since: Timestamp,
}

/// Who takes an app's new traffic on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    pub newest: GenerationId,
    /// The share of the newest: 1 to 100, and 100 when there is no other.
    pub percent: u8,
    /// Who takes the rest; `None` when the newest takes it all.
    pub rest: Option<GenerationId>,
}

impl Traffic {
    pub fn share_of(&self, generation: GenerationId) -> u8 {
        if generation == self.newest {
            self.percent
        } else if Some(generation) == self.rest {
            100 - self.percent
        } else {
            0
        }
    }
}

/// How an app's new traffic is shared on a node that is asked for `of_node`, among the generations
/// that `can` take any.
pub fn traffic(
    of_node: &OrdMap<(AppName, GenerationId), Arc<Assignment>>,
    app: &AppName,
    can: impl Fn(GenerationId) -> bool,
) -> Option<Traffic> {
    let generations = (app.clone(), GenerationId(0))..=(app.clone(), GenerationId(u64::MAX));
    let mut serving = of_node
        .range(generations)
        .filter(|((_, generation), asked)| asked.desired == Desired::Serve && can(*generation))
        .map(|((_, generation), asked)| (*generation, asked.percent));
    let (newest, percent) = serving.next_back()?;
    let rest = serving.next().map(|(oldest, _)| oldest).filter(|_| percent < 100);
    Some(Traffic { newest, percent: if rest.is_some() { percent } else { 100 }, rest })
}

impl Fleet {
    /// The newest generation that takes the app's new traffic on a node.
    pub fn takes_traffic(&self, node: NodeId, app: &AppName) -> Option<GenerationId> {
        self.traffic(node, app).map(|traffic| traffic.newest)
    }

    pub fn traffic(&self, node: NodeId, app: &AppName) -> Option<Traffic> {
        traffic(self.assignments.get(&node)?, app, |_| true)
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
        // Proposed before the node was placed again.
        if current == Desired::Serve && desired == Desired::Remove {
            return Err(stale("the node has to drain first"));
        }
        self.raise(at, node, app, generation, desired);
        self.leave_rollout(node, app, generation);
        // What a node that drains gives back follows from its drain, which is told.
        let drains = self.member(node).is_ok_and(|member| member.gives_back());
        let serves = self.apps.get(app).is_some_and(|record| record.serving == Some(generation));
        if serves && desired == Desired::Drain && !drains {
            let what = format!("node {} gives generation {generation} back", self.node_name(node));
            self.record(at, Some(app), Some(node), what);
        }
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
    /// serves as soon as it can. One that is giving it back keeps it, with its ports.
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
        let held = self.assignment(node, app, generation).map(|asked| (asked.desired, asked.ports.clone()));
        let ports = match held {
            Some((Desired::Prepare | Desired::Serve, _)) => {
                return Err(stale("the node has that generation already"));
            }
            Some((Desired::Drain | Desired::Remove, ports)) => ports,
            None => self.choose_ports(node, &self.generation(app, generation)?.spec)?,
        };
        let name = self.member(node)?.name.clone();
        self.record(at, Some(app), Some(node), format!("node {name} gets generation {generation}"));
        self.give(at, node, app, generation, Desired::Serve, ports);
        Ok(())
    }

    /// The ports that a generation would have on a node if those that the cluster chose, and that a
    /// process of others has, were chosen anew.
    pub fn other_ports(
        &self,
        node: NodeId,
        app: &AppName,
        generation: GenerationId,
        taken: &[u16],
    ) -> Result<Vec<u16>, Rejection> {
        let current = self.assignment(node, app, generation).ok_or_else(no_assignment)?;
        match current.desired {
            Desired::Prepare | Desired::Serve => {}
            Desired::Drain | Desired::Remove => return Err(stale("the node gives the generation back")),
        }
        let listen = &self.generation(app, generation)?.spec.listen;
        let mut ports = current.ports.clone();
        for (entry, listen) in listen.iter().enumerate() {
            if listen.port == 0 && ports.get(entry).is_some_and(|port| taken.contains(port)) {
                ports[entry] =
                    self.free_port(node, |port| !taken.contains(&port) && !ports.contains(&port))?;
            }
        }
        if ports == current.ports {
            return Err(stale("none of the ports was chosen by the cluster"));
        }
        Ok(ports)
    }

    pub(super) fn choose_other_ports(
        &mut self,
        at: At,
        node: NodeId,
        app: &AppName,
        generation: GenerationId,
        taken: &[u16],
    ) -> Result<(), Rejection> {
        let ports = self.other_ports(node, app, generation, taken)?;
        let before = self.assignment(node, app, generation).map_or(Vec::new(), |asked| asked.ports.clone());
        let name = self.node_name(node);
        for (old, new) in before.iter().zip(&ports).filter(|(old, new)| old != new) {
            let what =
                format!("node {name}: another process has port {old}, so generation {generation} gets {new}");
            self.record(at, Some(app), Some(node), what);
        }
        let Ok(spec) = self.generation(app, generation).map(|generation| Arc::clone(&generation.spec)) else {
            return Ok(());
        };
        if let Some(of_node) = self.assignments.get_mut(&node)
            && let Some(assignment) = of_node.get_mut(&(app.clone(), generation))
        {
            let assignment = Arc::make_mut(assignment);
            assignment.ports.clone_from(&ports);
            assignment.index = at.index;
        }
        self.hold_ports(node, &spec, &ports);
        self.free_ports(node, &spec, &before);
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
        let assignment =
            Assignment { desired, percent: 100, ports: ports.clone(), index: at.index, since: at.time };
        self.assignments.entry(node).or_default().insert((app.clone(), generation), Arc::new(assignment));
        if let Ok(record) = self.generation(app, generation) {
            let spec = Arc::clone(&record.spec);
            self.hold_ports(node, &spec, &ports);
        }
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

    /// Up to that share, never down.
    pub(super) fn ask_to_serve(
        &mut self,
        at: At,
        node: NodeId,
        app: &AppName,
        generation: GenerationId,
        percent: u8,
    ) {
        let of_node = self.assignments.get_mut(&node);
        let Some(assignment) = of_node.and_then(|of_node| of_node.get_mut(&(app.clone(), generation))) else {
            return;
        };
        let begins = assignment.desired < Desired::Serve;
        if begins || (assignment.desired == Desired::Serve && assignment.percent < percent) {
            let assignment = Arc::make_mut(assignment);
            assignment.desired = Desired::Serve;
            assignment.percent = percent;
            assignment.index = at.index;
            assignment.since = if begins { at.time } else { assignment.since };
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
        if let Ok(record) = self.generation(app, generation) {
            let spec = Arc::clone(&record.spec);
            self.free_ports(node, &spec, &gone.ports);
        }
    }
}

pub(super) fn stale(why: &str) -> Rejection {
    Rejection::Stale { why: why.to_owned() }
}

fn no_assignment() -> Rejection {
    stale("the node is not asked for that generation")
}
