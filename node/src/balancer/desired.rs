//! Where balancers shall send what. PURE: the fleet and what is observed of it in, services out.
//!
//! A service is one entry of an app's `listen`. It has an endpoint on each node where the app's traffic
//! may go now, or went a moment ago. Readiness is taken from what nodes report, never from what they
//! were asked: an endpoint appears when its node says that it serves.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use flotilla_raft_store::{Assignment, Availability, Desired, Fleet, GenerationId, Member, NodeId};
use flotilla_spec::{AppName, Protocol};

use crate::rollout::observed::{Observed, ObservedNode, Readiness};

/// HAProxy's limit is 256.
const WEIGHT_MAX: u32 = 256;

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Services {
    /// The fleet that they follow from.
    pub(crate) index: u64,
    /// In the order of their names.
    pub(crate) services: Vec<Service>,
    /// Nodes that cannot be told to a balancer, and why.
    pub(crate) problems: Vec<String>,
    /// When the leader found that they changed, for the time that balancers take to follow.
    pub(crate) made: Option<tokio::time::Instant>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Service {
    /// `app` for the first entry of `listen`, `app-PORT` for the others.
    pub(crate) name: String,
    pub(crate) app: AppName,
    /// As in the spec; 0: the cluster chooses.
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
    /// One per node at most, in the order of their ids.
    pub(crate) endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Endpoint {
    pub(crate) node: NodeId,
    pub(crate) node_name: String,
    pub(crate) address: SocketAddr,
    /// 1 to 256, and 100 of a normal node: a hundred parts, so that a share of it is a whole number.
    pub(crate) weight: u32,
    pub(crate) state: State,
    pub(crate) generation: GenerationId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// Takes new sessions.
    Ready,
    /// Keeps those it has, takes no new ones.
    Drain,
    /// Nothing can be said for it: the node is silent, or none of the targets answers there.
    Down,
    /// This leader is new and has not heard from the node: it stays as the balancer has it.
    Unknown,
}

impl Services {
    /// What a balancer that is told about `apps` alone is told; all, if that is empty.
    pub(crate) fn of_apps(&self, apps: &BTreeSet<AppName>) -> Vec<Service> {
        let told = |service: &&Service| apps.is_empty() || apps.contains(&service.app);
        self.services.iter().filter(told).cloned().collect()
    }
}

pub(crate) fn desired(fleet: &Fleet, observed: &Observed) -> Services {
    let mut wanted = Services { index: fleet.index, ..Services::default() };
    let nodes: Vec<Node<'_>> = present(fleet, &mut wanted.problems);
    for (name, app) in &fleet.apps {
        let on_nodes: Vec<OnNode<'_>> =
            nodes.iter().filter_map(|node| on_node(fleet, observed, node, name)).collect();
        let entries = app.spec.listen.len();
        for (entry, listen) in app.spec.listen.iter().enumerate() {
            let endpoints = on_nodes.iter().filter_map(|on_node| on_node.endpoint(fleet, name, entry));
            let mut endpoints: Vec<Endpoint> = endpoints.collect();
            never_none(&mut endpoints);
            wanted.services.push(Service {
                name: service_name(name, entry, listen.port, entries),
                app: name.clone(),
                port: listen.port,
                protocol: listen.protocol,
                endpoints,
            });
        }
    }
    wanted.services.sort_by(|a, b| a.name.cmp(&b.name));
    wanted
}

/// The first entry bears the name of the app, whether or not there are others: adding a port to an app
/// must not take its name from the first. Entries without a port of their own are counted.
fn service_name(app: &AppName, entry: usize, port: u16, entries: usize) -> String {
    debug_assert!(entry < entries);
    match (entry, port) {
        (0, _) => app.to_string(),
        (entry, 0) => format!("{app}-{}", entry + 1),
        (_, port) => format!("{app}-{port}"),
    }
}

/// Members, with what is the same for all of their endpoints.
struct Node<'a> {
    id: NodeId,
    member: &'a Member,
    address: IpAddr,
    weight: u32,
}

fn present<'a>(fleet: &'a Fleet, problems: &mut Vec<String>) -> Vec<Node<'a>> {
    let mut nodes = Vec::new();
    for (&id, member) in &fleet.members {
        if member.availability == Availability::Left {
            continue;
        }
        let Ok(address) = member.traffic_address.parse() else {
            problems.push(format!(
                "node {} has no IP address for traffic (\"{}\"): set [traffic] advertise there",
                member.name, member.traffic_address
            ));
            continue;
        };
        nodes.push(Node { id, member, address, weight: member.weight.clamp(1, WEIGHT_MAX) });
    }
    nodes
}

/// One app on one node, for all of its services.
struct OnNode<'a> {
    node: &'a Node<'a>,
    /// The generation whose ports take the traffic.
    generation: GenerationId,
    assignment: &'a Assignment,
    state: State,
}

/// `None`: the app is not there, or has not begun to serve there.
fn on_node<'a>(
    fleet: &'a Fleet,
    observed: &Observed,
    node: &'a Node<'a>,
    app: &AppName,
) -> Option<OnNode<'a>> {
    let newest_asked = |wanted: &dyn Fn(Desired) -> bool| {
        fleet.assignments_of(node.id, app).rev().find(|(_, asked)| wanted(asked.desired))
    };
    let serves = newest_asked(&|desired| desired == Desired::Serve);
    let leaves = newest_asked(&|desired| matches!(desired, Desired::Drain | Desired::Remove));
    let report = observed.live(node.id);
    let (generation, assignment, state) = match (serves, report) {
        (Some((generation, assignment)), None) => {
            let state = if observed.may_blame() { State::Down } else { State::Unknown };
            (generation, assignment, state)
        }
        (Some(_), Some(report)) => {
            let asked: Vec<_> = fleet.assignments_of(node.id, app).collect();
            let serving = |(generation, asked): &(GenerationId, _)| {
                let asked: &&std::sync::Arc<Assignment> = asked;
                asked.desired != Desired::Prepare && says_serving(report, app, *generation)
            };
            // One that takes a share only has not got its ports to itself yet.
            let whole = |asked: &(GenerationId, _)| {
                let (_, assignment): &(_, &std::sync::Arc<Assignment>) = asked;
                serving(asked) && assignment.percent == 100
            };
            let newest = asked.iter().rev();
            let found = newest.clone().copied().find(whole).or_else(|| newest.copied().find(serving));
            match (found, serves) {
                (Some((generation, assignment)), _) => {
                    (generation, assignment, of_report(report, app, generation))
                }
                // It is closing its ports already.
                (None, Some((generation, assignment))) if report.stopping => {
                    (generation, assignment, State::Drain)
                }
                (None, _) => return None,
            }
        }
        // A node that gives the app back, or an app that is deleted: until it has let go of it.
        (None, _) => {
            let (generation, assignment) = leaves?;
            (generation, assignment, State::Drain)
        }
    };
    let leaving = match node.member.availability {
        Availability::Active | Availability::Cordoned => report.is_some_and(|report| report.stopping),
        Availability::Draining | Availability::Left => true,
    };
    let state = if leaving && state == State::Ready { State::Drain } else { state };
    Some(OnNode { node, generation, assignment, state })
}

fn says_serving(report: &ObservedNode, app: &AppName, generation: GenerationId) -> bool {
    let said = report.generations.get(&(app.clone(), generation));
    said.is_some_and(|said| said.readiness == Readiness::Serving)
}

fn of_report(report: &ObservedNode, app: &AppName, generation: GenerationId) -> State {
    let said = report.generations.get(&(app.clone(), generation));
    match said.is_some_and(|said| said.has_no_target()) {
        true => State::Down,
        false => State::Ready,
    }
}

/// When nothing would be left, what is silent or has no targets is still the best there is: a balancer
/// without servers helps nobody, and what is really gone its own checks find out.
fn never_none(endpoints: &mut [Endpoint]) {
    if endpoints.iter().any(|endpoint| matches!(endpoint.state, State::Ready | State::Unknown)) {
        return;
    }
    for endpoint in endpoints {
        if endpoint.state == State::Down {
            endpoint.state = State::Ready;
        }
    }
}

impl OnNode<'_> {
    /// `entry`: of the app's newest spec. A generation of before may not have it.
    fn endpoint(&self, fleet: &Fleet, app: &AppName, entry: usize) -> Option<Endpoint> {
        let spec = &fleet.generations.get(&(app.clone(), self.generation))?.spec;
        let (listen, port) = spec.listen.iter().zip(&self.assignment.ports).nth(entry)?;
        let address = match listen.address.is_unspecified() {
            true => self.node.address,
            false => listen.address,
        };
        Some(Endpoint {
            node: self.node.id,
            node_name: self.node.member.name.clone(),
            address: (address, *port).into(),
            weight: self.node.weight,
            state: self.state,
            generation: self.generation,
        })
    }
}

#[cfg(test)]
mod tests;
