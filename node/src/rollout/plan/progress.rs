//! One rollout: from node to node, or back.

use std::time::Duration;

use flotilla_raft_store::{Desired, Generation, GenerationId, NodeId, Rollout, Step, Transition};

use super::{Plan, Presence, View, Why};
use crate::rollout::observed::{GenerationReport, ObservedNode, Readiness};

/// A target that flaps may begin a bake again this often, so that it costs the log little.
const BAKE_AGAIN: Duration = Duration::from_secs(1);

/// What comes next on one node.
enum Next {
    Step(Step),
    /// May shift when the others let it.
    Shift,
    Wait(Why),
    Fail(String),
    Rest,
}

/// One rollout that goes forward.
struct Forward<'a> {
    view: &'a View<'a>,
    generation: GenerationId,
    record: &'a Generation,
    rollout: &'a Rollout,
}

pub(super) fn progress(view: &View<'_>, generation: GenerationId, rollout: &Rollout, plan: &mut Plan) {
    let Ok(record) = view.fleet.generation(view.name, generation) else { return };
    let forward = Forward { view, generation, record, rollout };
    let mut moves = Vec::new();
    let mut waits = Vec::new();
    let mut failures = Vec::new();
    let mut may_shift = Vec::new();
    for (&node, step) in &rollout.steps {
        match forward.next(node, step) {
            Next::Step(step) => moves.push((node, step)),
            Next::Shift => may_shift.push(node),
            Next::Wait(why) => waits.push((node, why)),
            Next::Fail(reason) => failures.push((node, reason)),
            Next::Rest => {}
        }
    }
    if !failures.is_empty() {
        return forward.fail(failures, plan);
    }
    forward.shift(may_shift, &mut moves, &mut waits);
    moves.sort_by_key(|(node, _)| *node);
    waits.sort_by_key(|(node, _)| *node);
    if !moves.is_empty() {
        plan.commands.push(Transition::Advance { app: view.name.clone(), generation, steps: moves });
    } else if forward.is_complete() {
        plan.commands.push(Transition::Complete { app: view.name.clone(), generation });
    } else if rollout.steps.is_empty() {
        return forward.turn_back("every node has left the rollout".to_owned(), plan);
    } else if forward.is_overdue() {
        let waits: Vec<String> = waits
            .into_iter()
            .map(|(node, why)| view.waiting(generation, node, why).display(view.fleet).to_string())
            .collect();
        let deadline = humantime::format_duration(record.spec.rollout.progress_deadline);
        return forward.turn_back(format!("no progress for {deadline}: {}", waits.join("; ")), plan);
    }
    plan.waiting.extend(waits.into_iter().map(|(node, why)| view.waiting(generation, node, why)));
}

impl Forward<'_> {
    fn next(&self, node: NodeId, step: &Step) -> Next {
        match step {
            Step::Done => return Next::Rest,
            Step::Failed { reason } => return Next::Fail(reason.clone()),
            Step::Preparing { .. } | Step::Ready | Step::Shifting { .. } | Step::Monitoring { .. } => {}
        }
        let seen = match self.view.presence(node) {
            Presence::Live(seen) => seen,
            Presence::Down => return Next::Wait(Why::Down),
            Presence::Unknown => return Next::Wait(Why::NotHeard),
        };
        let report = self.view.report(node, self.generation);
        if let Some(report) = report {
            match report.readiness {
                Readiness::Rejected => return Next::Fail(report.detail.clone()),
                Readiness::Ready | Readiness::Serving if report.digest != self.record.digest => {
                    return Next::Wait(Why::OtherSpec);
                }
                Readiness::Preparing
                | Readiness::Ready
                | Readiness::Serving
                | Readiness::Draining
                | Readiness::Removed => {}
            }
        }
        let detail = report.map_or(String::new(), |report| report.detail.clone());
        let serves = report.is_some_and(|report| report.readiness == Readiness::Serving);
        let well = report.is_some_and(GenerationReport::is_healthy);
        let policy = &self.record.spec.rollout;
        let now = self.view.now;
        match step {
            Step::Preparing { .. } if well => Next::Step(Step::Ready),
            Step::Preparing { since } => {
                let overdue = self.overdue(*since, seen, "not ready", &detail);
                overdue.unwrap_or(Next::Wait(Why::Preparing { detail }))
            }
            Step::Ready if well => Next::Shift,
            Step::Ready => Next::Wait(Why::NotReady { detail }),
            // Nothing served before: there is nothing to compare with and nothing to protect.
            Step::Shifting { .. } if serves && self.rollout.from.is_none() => Next::Step(Step::Done),
            Step::Shifting { .. } if serves => Next::Step(Step::Monitoring { since: now }),
            Step::Shifting { since } => {
                let overdue = self.overdue(*since, seen, "does not serve", &detail);
                overdue.unwrap_or(Next::Wait(Why::Shifting { detail }))
            }
            Step::Monitoring { since } if serves && well => {
                let baked = now.since(*since);
                match policy.min_healthy.checked_sub(baked) {
                    None | Some(Duration::ZERO) => Next::Step(Step::Done),
                    Some(left) => Next::Wait(Why::Baking { left, of: policy.min_healthy }),
                }
            }
            Step::Monitoring { since } if now.since(*since) >= BAKE_AGAIN => {
                Next::Step(Step::Monitoring { since: now })
            }
            Step::Monitoring { .. } => Next::Wait(Why::Unwell { detail }),
            Step::Done | Step::Failed { .. } => Next::Rest,
        }
    }

    fn overdue(
        &self,
        since: flotilla_raft_store::Timestamp,
        seen: &ObservedNode,
        what: &str,
        detail: &str,
    ) -> Option<Next> {
        let deadline = self.record.spec.rollout.healthy_deadline;
        let overdue = self.view.lasted(since, seen) >= deadline && self.view.observed.may_blame();
        let deadline = humantime::format_duration(deadline);
        let detail = if detail.is_empty() { "it says nothing of the generation" } else { detail };
        overdue.then(|| Next::Fail(format!("{what} after {deadline}: {detail}")))
    }

    /// Chooses who shifts now. Where the old generation does not do well there is the least to lose, so
    /// those nodes go first.
    fn shift(
        &self,
        mut may_shift: Vec<NodeId>,
        moves: &mut Vec<(NodeId, Step)>,
        waits: &mut Vec<(NodeId, Why)>,
    ) {
        let steps = &self.rollout.steps;
        let begun = steps.values().any(is_asked_to_serve);
        let is_down = |node: &NodeId| matches!(self.view.presence(*node), Presence::Down);
        let ready =
            |(node, step): (&NodeId, &Step)| *step == Step::Ready || is_asked_to_serve(step) || is_down(node);
        let all_ready = steps.iter().all(ready);
        let in_flight: Vec<NodeId> =
            steps.iter().filter(|(node, step)| self.in_flight(**node, step)).map(|(node, _)| *node).collect();
        let parallel = usize::try_from(self.record.spec.rollout.max_parallel).unwrap_or(usize::MAX).max(1);
        let since = self.view.now;
        may_shift.sort_by_key(|node| (self.view.serves(*node), *node));
        let mut shifting = Vec::new();
        for node in may_shift {
            let why = if !begun && !all_ready {
                Why::OthersNotReady
            } else if self.rollout.from.is_none() {
                moves.push((node, Step::Shifting { since }));
                continue;
            } else if in_flight.len() + shifting.len() >= parallel {
                Why::Turn
            } else if self.takes_the_last_replica(node, &shifting) {
                Why::LastReplica
            } else {
                shifting.push(node);
                moves.push((node, Step::Shifting { since }));
                continue;
            };
            waits.push((node, why));
        }
    }

    /// A node in mid-shift holds its place. One that went down there holds it for as long as it would
    /// have baked: were it the new generation that took it down, the next node must not follow at once.
    fn in_flight(&self, node: NodeId, step: &Step) -> bool {
        match step {
            Step::Shifting { since } | Step::Monitoring { since } => match self.view.presence(node) {
                Presence::Live(_) | Presence::Unknown => true,
                Presence::Down => self.view.now.since(*since) < self.record.spec.rollout.min_healthy,
            },
            Step::Preparing { .. } | Step::Ready | Step::Done | Step::Failed { .. } => false,
        }
    }

    /// True when the node serves the app and no other node does that stays as it is. The only node that
    /// is alive has nobody to wait for.
    fn takes_the_last_replica(&self, node: NodeId, shifting: &[NodeId]) -> bool {
        let view = self.view;
        let stays = |other: NodeId| {
            let step = self.rollout.steps.get(&other);
            other != node && !shifting.contains(&other) && !matches!(step, Some(Step::Shifting { .. }))
        };
        let another = view.assigned.iter().any(|asked| stays(asked.node) && view.serves(asked.node));
        let alone =
            !self.rollout.steps.keys().any(|other| *other != node && view.observed.live(*other).is_some());
        view.serves(node) && !another && !alone
    }

    /// Done wherever there is somebody to be done. A node that is down catches up by its assignment.
    fn is_complete(&self) -> bool {
        let steps = &self.rollout.steps;
        let settled = |(node, step): (&NodeId, &Step)| {
            *step == Step::Done
                || (matches!(self.view.presence(*node), Presence::Down) && !self.in_flight(*node, step))
        };
        steps.values().any(|step| *step == Step::Done) && steps.iter().all(settled)
    }

    /// A bake that goes well is progress, however long it takes.
    fn is_overdue(&self) -> bool {
        let bakes = self.rollout.steps.iter().any(|(node, step)| {
            let well = self.view.report(*node, self.generation).is_some_and(GenerationReport::is_healthy);
            well && matches!(step, Step::Monitoring { .. })
        });
        let lasted = self.view.now.since(self.rollout.progressed);
        !bakes && lasted >= self.record.spec.rollout.progress_deadline && self.view.observed.may_blame()
    }

    fn fail(&self, failures: Vec<(NodeId, String)>, plan: &mut Plan) {
        let told: Vec<String> = failures
            .iter()
            .map(|(node, reason)| format!("node {}: {reason}", self.view.fleet.node_name(*node)))
            .collect();
        let is_new = |(node, _): &(NodeId, String)| !matches!(self.rollout.steps[node], Step::Failed { .. });
        let steps: Vec<_> = failures
            .into_iter()
            .filter(is_new)
            .map(|(node, reason)| (node, Step::Failed { reason }))
            .collect();
        if !steps.is_empty() {
            let (app, generation) = (self.view.name.clone(), self.generation);
            plan.commands.push(Transition::Advance { app, generation, steps });
        }
        self.turn_back(told.join("; "), plan);
    }

    fn turn_back(&self, reason: String, plan: &mut Plan) {
        let (app, generation) = (self.view.name.clone(), self.generation);
        plan.commands.push(if self.record.spec.rollout.auto_rollback {
            Transition::RollBack { app, generation, reason }
        } else {
            Transition::Pause { app, generation, reason }
        });
    }
}

/// Never waits for a bake, and never turns round again: it waits until the nodes are back at `from`.
pub(super) fn go_back(view: &View<'_>, generation: GenerationId, rollout: &Rollout, plan: &mut Plan) {
    let from = rollout.from.unwrap_or_default();
    let mut back = true;
    for asked in view.asked(Desired::Serve).filter(|asked| asked.generation == from) {
        let node = asked.node;
        let seen_all = view.assigned.iter().filter(|other| other.node == node);
        let seen_all = seen_all.into_iter().all(|other| view.has_seen(node, other.assignment));
        let report = view.report(node, from);
        let why = match view.presence(node) {
            Presence::Down => {
                plan.waiting.push(view.waiting(from, node, Why::Down));
                continue;
            }
            Presence::Unknown => Why::NotHeard,
            Presence::Live(_) => match report {
                Some(report) if report.readiness == Readiness::Serving && seen_all => continue,
                Some(report) => Why::GoingBack { detail: report.detail.clone() },
                None => Why::GoingBack { detail: String::new() },
            },
        };
        back = false;
        plan.waiting.push(view.waiting(from, node, why));
    }
    if back {
        plan.commands.push(Transition::RolledBack { app: view.name.clone(), generation });
    }
}

fn is_asked_to_serve(step: &Step) -> bool {
    match step {
        Step::Shifting { .. } | Step::Monitoring { .. } | Step::Done => true,
        Step::Preparing { .. } | Step::Ready | Step::Failed { .. } => false,
    }
}
