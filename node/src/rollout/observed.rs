//! What the nodes report, as plain data: ages instead of clocks, so that a plan made from it can be
//! made again in a test.
//!
//! Soft state of the leader. Nothing here is ever written to the log, only transitions that follow
//! from it are.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use flotilla_proxy::Tally;
use flotilla_raft_store::{Fleet, GenerationId, NodeId};
use flotilla_spec::AppName;
use imbl::OrdMap;

/// What a node says of everything it runs or was asked for. A copy shares all with its original.
pub(crate) type Generations = OrdMap<(AppName, GenerationId), Arc<GenerationReport>>;

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Observed {
    pub(crate) reports: BTreeMap<NodeId, ObservedNode>,
    /// How long this leader has led.
    pub(crate) leader_for: Duration,
    /// Three heartbeats. A node that is silent for longer is down, and a leader that has led for less
    /// holds nothing against anybody: the reports may still be on their way to it.
    pub(crate) silence_max: Duration,
    /// A node that is silent for longer is lost: other nodes stand in for it. `None`: never.
    pub(crate) lost_after: Option<Duration>,
    /// Of nodes that bake: what both generations did since the node's step began.
    pub(crate) windows: BTreeMap<(AppName, NodeId), Window>,
    /// The load balancers outside, as they were last seen.
    pub(crate) balancers: Arc<Vec<ObservedBalancer>>,
}

/// The new generation on the node and, in the same time, the old one on all nodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Window {
    /// How long this leader has watched.
    pub(crate) age: Duration,
    pub(crate) new: Tally,
    pub(crate) old: Tally,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ObservedBalancer {
    pub(crate) name: String,
    /// The apps it is told about. Empty: all of them.
    pub(crate) apps: BTreeSet<AppName>,
    /// Where it sends new sessions, or may by now. `None`: it does not say.
    pub(crate) sends: Option<Arc<BTreeSet<(NodeId, AppName)>>>,
}

/// Whether the balancers confirm that they send no new sessions of an app to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drained {
    /// No balancer is told about the app: only time and quiet can tell.
    NoneConfigured,
    /// One of them cannot be seen, and none was seen to send any.
    Unknown,
    No,
    Yes,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ObservedNode {
    /// Of the last report.
    pub(crate) age: Duration,
    /// How long the node has been reporting without a gap, as this leader saw it. A deadline of a node
    /// that was down counts from its return.
    pub(crate) live_for: Duration,
    /// The log index up to which the report speaks.
    pub(crate) applied: u64,
    pub(crate) connections: u64,
    pub(crate) load: Arc<NodeLoad>,
    /// The node was asked to stop: balancers shall send it nothing new.
    pub(crate) stopping: bool,
    pub(crate) generations: Generations,
    /// Totals of generations that a rollout compares.
    pub(crate) tallies: BTreeMap<(AppName, GenerationId), Tally>,
}

/// What a node carries now.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct NodeLoad {
    /// Since the last session began that a client sent something on, or the last request: the checks
    /// of balancers, which connect and go, do not count.
    pub(crate) quiet_for: Duration,
    /// Of the processors that the node's process may use.
    pub(crate) cpu_percent: u32,
    /// Apps that are not idle.
    pub(crate) apps: BTreeMap<AppName, AppLoad>,
    /// Memory runs short: new connections are turned away.
    pub(crate) overloaded: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AppLoad {
    /// Open now.
    pub(crate) connections: u64,
    /// HTTP requests, and TCP sessions on which the client sent something.
    pub(crate) begun_per_second: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GenerationReport {
    pub(crate) readiness: Readiness,
    /// The share of the app's clients that it has on the node; 0 unless it serves.
    pub(crate) percent: u8,
    /// What is missing, or why it was rejected. Empty when nothing is missing: a generation that is
    /// `Serving` with a detail serves, but would not be called ready.
    pub(crate) detail: String,
    pub(crate) warnings: Vec<String>,
    /// SHA-256 of the canonical spec that the node compiled.
    pub(crate) digest: [u8; 32],
    /// Sessions and requests that still use the generation.
    pub(crate) pins: u64,
    pub(crate) targets: Vec<TargetReport>,
    /// Ports of the generation that a process of others has on the node; the reason of a rejection.
    pub(crate) taken_ports: Vec<u16>,
    /// In the order of the spec; only those that are asked now.
    pub(crate) probes: Vec<ProbeReport>,
    /// How often what served differed from what was decided, and was put right, since the start of the
    /// node.
    pub(crate) repairs: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Readiness {
    Preparing,
    Ready,
    /// Takes the app's new sessions and requests on the node.
    Serving,
    Draining,
    Removed,
    Rejected,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TargetReport {
    /// As the user wrote it.
    pub(crate) target: String,
    pub(crate) resolution: Resolution,
    pub(crate) endpoints: u32,
    pub(crate) available: u32,
    /// Taken out because of failures in a row, whatever their checks say.
    pub(crate) ejected: u32,
    pub(crate) detail: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProbeReport {
    pub(crate) name: String,
    pub(crate) kind: ProbeKind,
    pub(crate) state: ProbeState,
    /// Why it does not pass; empty when it does.
    pub(crate) detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbeKind {
    Readiness,
    Liveness,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbeState {
    /// Too few answers yet.
    Pending,
    Passing,
    Failing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resolution {
    Pending,
    Resolved,
    Failed,
}

impl Observed {
    /// `None`: down, or never heard of by this leader.
    pub(crate) fn live(&self, node: NodeId) -> Option<&ObservedNode> {
        self.reports.get(&node).filter(|report| report.age <= self.silence_max)
    }

    pub(crate) fn live_members(&self, fleet: &Fleet) -> BTreeSet<NodeId> {
        fleet.members.keys().copied().filter(|node| self.live(*node).is_some()).collect()
    }

    pub(crate) fn lost_members(&self, fleet: &Fleet) -> BTreeSet<NodeId> {
        fleet.members.keys().copied().filter(|node| self.is_lost(*node)).collect()
    }

    /// As far as this leader knows.
    pub(crate) fn silent_for(&self, node: NodeId) -> Duration {
        self.reports.get(&node).map_or(self.leader_for, |report| report.age)
    }

    pub(crate) fn is_lost(&self, node: NodeId) -> bool {
        self.may_blame() && self.lost_after.is_some_and(|after| self.silent_for(node) >= after)
    }

    /// False while a node that has not reported may simply not have found this leader yet.
    pub(crate) fn may_blame(&self) -> bool {
        self.leader_for >= self.silence_max
    }

    pub(crate) fn drained(&self, node: NodeId, app: &AppName) -> Drained {
        drained(&self.balancers, node, app)
    }
}

/// What all balancers together say of an app on a node.
pub(crate) fn drained(balancers: &[ObservedBalancer], node: NodeId, app: &AppName) -> Drained {
    let told = |balancer: &&ObservedBalancer| balancer.apps.is_empty() || balancer.apps.contains(app);
    let each = balancers.iter().filter(told).map(|balancer| match &balancer.sends {
        None => Drained::Unknown,
        Some(sends) if sends.contains(&(node, app.clone())) => Drained::No,
        Some(_) => Drained::Yes,
    });
    each.fold(Drained::NoneConfigured, |all, one| match (all, one) {
        (Drained::No, _) | (_, Drained::No) => Drained::No,
        (Drained::Unknown, _) | (_, Drained::Unknown) => Drained::Unknown,
        (Drained::NoneConfigured | Drained::Yes, one) => one,
    })
}

impl GenerationReport {
    /// It has targets, and none of them is available from its node.
    pub(crate) fn has_no_target(&self) -> bool {
        !self.targets.is_empty() && self.targets.iter().all(|target| target.available == 0)
    }

    pub(crate) fn is_healthy(&self) -> bool {
        matches!(self.readiness, Readiness::Ready | Readiness::Serving) && self.detail.is_empty()
    }

    /// The first liveness probe that fails, and why.
    pub(crate) fn not_alive(&self) -> Option<String> {
        let dead =
            |probe: &&ProbeReport| probe.kind == ProbeKind::Liveness && probe.state == ProbeState::Failing;
        self.probes.iter().find(dead).map(|probe| probe.to_string())
    }
}

impl fmt::Display for ProbeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, kind, state: _, detail } = self;
        let kind = match kind {
            ProbeKind::Readiness => "probe",
            ProbeKind::Liveness => "liveness probe",
        };
        let detail = if detail.is_empty() { "no answer yet" } else { detail };
        write!(f, "{kind} `{name}`: {detail}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_balancer_that_sends_or_is_silent_outweighs_those_that_are_done() {
        let web = AppName::parse("web").unwrap();
        let balancer = |apps: &[&str], sends: Option<&[u64]>| ObservedBalancer {
            name: String::new(),
            apps: apps.iter().map(|app| AppName::parse(app).unwrap()).collect(),
            sends: sends
                .map(|nodes| Arc::new(nodes.iter().map(|node| (NodeId(*node), web.clone())).collect())),
        };
        for (balancers, drained) in [
            (vec![], Drained::NoneConfigured),
            (vec![balancer(&["mail"], Some(&[2]))], Drained::NoneConfigured),
            (vec![balancer(&[], Some(&[1]))], Drained::Yes),
            (vec![balancer(&[], Some(&[1])), balancer(&["web"], None)], Drained::Unknown),
            (vec![balancer(&[], None), balancer(&["web"], Some(&[1, 2]))], Drained::No),
            (vec![balancer(&["web"], Some(&[2])), balancer(&[], Some(&[]))], Drained::No),
        ] {
            let observed = Observed { balancers: Arc::new(balancers), ..Observed::default() };
            assert_eq!(observed.drained(NodeId(2), &web), drained, "{:?}", observed.balancers);
        }
    }
}
