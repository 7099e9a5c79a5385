//! What the coordinator does next. PURE: the fleet, what is observed of it and the time in; commands
//! and the reasons for waiting out.
//!
//! The plan follows from the fleet alone, so a new leader goes on where the last one stopped, and a
//! command whose fate is unknown needs no care: the next look at the fleet tells. A plan made twice is
//! the same plan; applied twice, the second time is refused. `progress` moves rollouts, `settle` what
//! comes after them: drains, removals, and nodes that came or go.

use std::{
    cell::{OnceCell, RefCell},
    collections::{BTreeMap, BTreeSet},
    iter::Peekable,
    sync::Arc,
    time::Duration,
};

use flotilla_raft_store::{
    App, Assignment, Desired, Fleet, GenerationId, NodeId, RolloutState, Step, Timestamp, Transition,
};
use flotilla_spec::AppName;

use super::{
    observed::{GenerationReport, Observed, ObservedNode, Readiness},
    placement::Loads,
};

mod drain;
mod gate;
mod progress;
mod settle;
mod waiting;

pub(crate) use waiting::{Waiting, Why};

/// Apps that shift on some node at the same time; the others wait for their turn. Bounds what the nodes
/// have to swap, and what the log has to take, when a thousand apps are changed at once.
const APPS_SHIFTING_MAX: usize = 1_024;

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) commands: Vec<Transition>,
    /// Why nothing more happens now; shown to the user.
    pub(crate) waiting: Vec<Waiting>,
    /// Apps about which more may be planned although nobody changes or reports anything about them.
    pub(crate) active: BTreeSet<AppName>,
    /// The same for each node that gives its traffic up.
    pub(crate) drains: BTreeMap<NodeId, Vec<String>>,
}

/// All apps: one pass over them and, beside it, over each node's assignments, which are in the same order.
pub(crate) fn plan(fleet: &Fleet, observed: &Observed, now: Timestamp) -> Plan {
    let mut planning = Planning::new(fleet, observed, now, fleet.apps.keys());
    let mut nodes: Vec<_> =
        fleet.assignments.iter().map(|(node, of_node)| (*node, of_node.iter().peekable())).collect();
    let mut assigned = Vec::new();
    for (name, app) in &fleet.apps {
        assigned.clear();
        for (node, of_node) in &mut nodes {
            take_app(name, *node, of_node, &mut assigned);
        }
        planning.app(name, app, &assigned);
    }
    planning.finish()
}

/// The same plan, made by looking at these apps only: all that were `active` in the plan before, and all
/// of which something has changed since, in the fleet or in what is observed.
pub(crate) fn plan_apps(
    fleet: &Fleet,
    observed: &Observed,
    now: Timestamp,
    names: &BTreeSet<AppName>,
) -> Plan {
    let mut planning = Planning::new(fleet, observed, now, names);
    let mut assigned = Vec::new();
    for (name, app) in names.iter().filter_map(|name| fleet.apps.get_key_value(name)) {
        assigned.clear();
        for &node in fleet.assignments.keys() {
            let of_app = fleet.assignments_of(node, name);
            assigned.extend(of_app.map(|(generation, assignment)| Asked { node, generation, assignment }));
        }
        planning.app(name, app, &assigned);
    }
    planning.finish()
}

/// A plan in the making.
struct Planning<'a> {
    fleet: &'a Fleet,
    observed: &'a Observed,
    now: Timestamp,
    around: OnceCell<Around>,
    budget: Budget,
    plan: Plan,
}

impl<'a> Planning<'a> {
    fn new(
        fleet: &'a Fleet,
        observed: &'a Observed,
        now: Timestamp,
        names: impl IntoIterator<Item = &'a AppName>,
    ) -> Self {
        let (around, budget) = (OnceCell::new(), Budget::new(fleet, names));
        Self { fleet, observed, now, around, budget, plan: Plan::default() }
    }

    fn app(&mut self, name: &AppName, app: &App, assigned: &[Asked<'_>]) {
        let Self { fleet, observed, now, ref around, .. } = *self;
        let view = View { fleet, observed, now, name, app, assigned, around };
        let size = |plan: &Plan| (plan.commands.len(), plan.waiting.len());
        let before = size(&self.plan);
        plan_app(&view, &mut self.budget, &mut self.plan);
        if size(&self.plan) != before || view.is_active() {
            self.plan.active.insert(name.clone());
        }
    }

    fn finish(mut self) -> Plan {
        drain::drains(self.fleet, self.observed, self.now, &mut self.plan);
        self.plan
    }
}

/// How many more apps may begin to shift now.
struct Budget(usize);

impl Budget {
    fn new<'a>(fleet: &Fleet, names: impl IntoIterator<Item = &'a AppName>) -> Self {
        let shifts = |app: &&AppName| {
            let newest = fleet.newest_rollout(app);
            newest.is_some_and(|(_, rollout)| {
                rollout.state == RolloutState::Progressing
                    && rollout.steps.values().any(|step| matches!(step, Step::Shifting { .. }))
            })
        };
        Self(APPS_SHIFTING_MAX.saturating_sub(names.into_iter().filter(shifts).count()))
    }

    fn take(&mut self) -> bool {
        let is_left = self.0 > 0;
        self.0 = self.0.saturating_sub(1);
        is_left
    }
}

fn plan_app(view: &View<'_>, budget: &mut Budget, plan: &mut Plan) {
    let newest = view.fleet.newest_rollout(view.name);
    let state = newest.map(|(_, rollout)| rollout.state);
    if let Some((generation, rollout)) = newest {
        match rollout.state {
            RolloutState::Progressing => progress::progress(view, generation, rollout, budget, plan),
            RolloutState::RollingBack => progress::go_back(view, generation, rollout, plan),
            RolloutState::Paused
            | RolloutState::RolledBack
            | RolloutState::Completed
            | RolloutState::Failed
            | RolloutState::Superseded => {}
        }
    }
    settle::retire(view, plan);
    settle::choose_other_ports(view, plan);
    if !view.app.deleted {
        settle::rearrange(view, state.is_none_or(RolloutState::is_finished), plan);
    }
}

fn take_app<'a>(
    name: &AppName,
    node: NodeId,
    of_node: &mut Peekable<impl Iterator<Item = (&'a (AppName, GenerationId), &'a Arc<Assignment>)>>,
    assigned: &mut Vec<Asked<'a>>,
) {
    while let Some(((_, generation), assignment)) = of_node.next_if(|((app, _), _)| app == name) {
        assigned.push(Asked { node, generation: *generation, assignment });
    }
}

/// One generation on one node.
struct Asked<'a> {
    node: NodeId,
    generation: GenerationId,
    assignment: &'a Assignment,
}

/// One app, and all there is to know of it.
struct View<'a> {
    fleet: &'a Fleet,
    observed: &'a Observed,
    now: Timestamp,
    name: &'a AppName,
    app: &'a App,
    assigned: &'a [Asked<'a>],
    around: &'a OnceCell<Around>,
}

/// What a placement looks at besides the app; the same for all apps of a plan, and only seldom needed.
struct Around {
    live: BTreeSet<NodeId>,
    lost: BTreeSet<NodeId>,
    loads: RefCell<Loads>,
}

enum Presence<'a> {
    Live(&'a ObservedNode),
    Down,
    /// This leader is new; the node may not have found it yet.
    Unknown,
}

impl<'a> View<'a> {
    fn presence(&self, node: NodeId) -> Presence<'a> {
        match self.observed.live(node) {
            Some(report) => Presence::Live(report),
            None if self.observed.may_blame() => Presence::Down,
            None => Presence::Unknown,
        }
    }

    /// What a live node says of a generation.
    fn report(&self, node: NodeId, generation: GenerationId) -> Option<&'a GenerationReport> {
        self.observed.live(node)?.generations.get(&(self.name.clone(), generation)).map(AsRef::as_ref)
    }

    /// What comes next depends on time, on how far a node has applied the log, or on other apps.
    fn is_active(&self) -> bool {
        let rolls = self.fleet.newest_rollout(self.name).is_some_and(|(_, rollout)| match rollout.state {
            RolloutState::Progressing | RolloutState::RollingBack => true,
            RolloutState::Paused
            | RolloutState::RolledBack
            | RolloutState::Completed
            | RolloutState::Failed
            | RolloutState::Superseded => false,
        });
        let moves = |asked: &Asked<'_>| match asked.assignment.desired {
            Desired::Drain | Desired::Remove => true,
            Desired::Prepare | Desired::Serve => {
                let is_live = self.observed.live(asked.node).is_some();
                let report = self.report(asked.node, asked.generation);
                (is_live && !self.has_seen(asked.node, asked.assignment))
                    || report.is_some_and(|report| !report.taken_ports.is_empty())
            }
        };
        rolls || self.assigned.iter().any(moves)
    }

    /// False while the last report of the node may be older than what it is asked now.
    fn has_seen(&self, node: NodeId, asked: &Assignment) -> bool {
        self.observed.live(node).is_some_and(|report| report.applied >= asked.index)
    }

    /// The node serves some generation of the app, and well.
    fn serves(&self, node: NodeId) -> bool {
        let on_node = self.assigned.iter().filter(|asked| asked.node == node);
        let mut reports = on_node.filter_map(|asked| self.report(node, asked.generation));
        reports.any(|report| report.readiness == Readiness::Serving && report.is_healthy())
    }

    /// The node gives its apps back now.
    fn is_leaving(&self, node: NodeId) -> bool {
        self.fleet.members.get(&node).is_none_or(|member| member.gives_back())
    }

    /// The node does not count, and nothing is taken from it either: it is lost, or on its way out and
    /// still serves.
    fn is_away(&self, node: NodeId) -> bool {
        let drains = self.fleet.members.get(&node).is_some_and(|member| !member.wants_traffic());
        (drains && !self.is_leaving(node)) || self.observed.is_lost(node)
    }

    fn around(&self) -> &'a Around {
        self.around.get_or_init(|| Around {
            live: self.observed.live_members(self.fleet),
            lost: self.observed.lost_members(self.fleet),
            loads: RefCell::new(Loads::of(self.fleet)),
        })
    }

    /// How long something has lasted since `since`, not counting the time before the node was back.
    fn lasted(&self, since: Timestamp, node: &ObservedNode) -> Duration {
        self.now.since(since).min(node.live_for)
    }

    fn asked(&self, desired: Desired) -> impl Iterator<Item = &Asked<'a>> {
        self.assigned.iter().filter(move |asked| asked.assignment.desired == desired)
    }

    fn waiting(&self, generation: GenerationId, node: NodeId, why: Why) -> Waiting {
        Waiting { app: self.name.clone(), generation, node, why }
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod simulation;
#[cfg(any(test, fuzzing))]
pub(crate) mod testing;
#[cfg(test)]
mod transcript;
