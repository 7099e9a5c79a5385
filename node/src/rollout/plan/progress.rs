//! One rollout: from node to node, or back.

use std::{collections::BTreeSet, time::Duration};

use flotilla_raft_store::{
    Cause, Desired, Generation, GenerationId, NodeId, Promotion, Rollout, RolloutState, Step, Timestamp,
    Transition,
};
use flotilla_spec::{AppName, RolloutStrategy};

use super::{
    Asked, Budget, Plan, Presence, View, Why,
    gate::{self, Verdict},
    settle::exchangeable,
};
use crate::rollout::observed::{GenerationReport, ObservedNode, Readiness};

/// A target that flaps may begin a bake again this often, so that it costs the log little.
const BAKE_AGAIN: Duration = Duration::from_secs(1);
/// Bakes that a step may last in all while it has too few requests to be judged by. After that it goes
/// on, judged by what there was: an app with little traffic must finish, too.
const BAKES_MAX: u32 = 3;
/// A node that is ready within this time, and may shift by then, goes on without a log entry between.
const READY_UNWRITTEN: Duration = Duration::from_millis(250);

/// What comes next on one node.
enum Next {
    Step(Step),
    /// Has baked with this share, and the gate lets it on; what it saw, if it was asked.
    Passed {
        percent: u8,
        saw: Option<String>,
    },
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

/// An app that is to serve a host that this one gives up, and its newest rollout.
struct Taker<'a> {
    app: AppName,
    host: String,
    generation: GenerationId,
    rollout: &'a Rollout,
}

pub(super) fn progress(
    view: &View<'_>,
    generation: GenerationId,
    rollout: &Rollout,
    budget: &mut Budget,
    plan: &mut Plan,
) {
    let Ok(record) = view.fleet.generation(view.name, generation) else { return };
    let forward = Forward { view, generation, record, rollout };
    let mut moves = Vec::new();
    let mut waits = Vec::new();
    let mut failures = Vec::new();
    let mut may_shift = Vec::new();
    let mut passed = Vec::new();
    let mut saw = Vec::new();
    for (&node, step) in &rollout.steps {
        match forward.next(node, step) {
            Next::Step(step) => moves.push((node, step)),
            Next::Passed { percent, saw: of_node } => {
                passed.push((node, percent));
                saw.extend(of_node.map(|what| (node, what)));
            }
            Next::Shift => may_shift.push(node),
            Next::Wait(why) => waits.push((node, why)),
            Next::Fail(reason) => failures.push((node, reason)),
            Next::Rest => {}
        }
    }
    if !failures.is_empty() {
        return forward.fail(failures, plan);
    }
    let takers = forward.takers();
    if let Some(why) = forward.nobody_takes(&takers) {
        return forward.turn_back(why, plan);
    }
    forward.go_on(&passed, &mut moves, &mut waits);
    forward.shift(&may_shift, &takers, budget, &mut moves, &mut waits);
    forward.note_ready(&may_shift, &mut moves, &mut waits);
    moves.sort_by_key(|(node, _)| *node);
    waits.sort_by_key(|(node, _)| *node);
    if !moves.is_empty() {
        let why = forward.why(&moves, saw);
        plan.commands.push(Transition::Advance { app: view.name.clone(), generation, steps: moves, why });
    } else if forward.is_complete() {
        plan.commands.push(Transition::Complete { app: view.name.clone(), generation });
    } else if rollout.steps.is_empty() {
        return forward.turn_back("every node has left the rollout".to_owned(), plan);
    } else if !waits.iter().any(|(_, why)| why.is_of_others()) && forward.is_overdue() {
        let waits: Vec<String> = waits
            .into_iter()
            .map(|(node, why)| view.waiting(generation, node, why).display(view.fleet).to_string())
            .collect();
        let deadline = humantime::format_duration(record.spec.rollout.progress_deadline);
        return forward.turn_back(format!("no progress for {deadline}: {}", waits.join("; ")), plan);
    }
    plan.waiting.extend(waits.into_iter().map(|(node, why)| view.waiting(generation, node, why)));
}

/// Somebody else must serve the hosts first, everywhere.
fn host_moves(takers: &[Taker<'_>]) -> Option<Why> {
    let taker = takers.iter().find(|taker| !taker.rollout.state.is_finished())?;
    Some(Why::HostMoves { host: taker.host.clone(), to: taker.app.clone() })
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
            Presence::Down if self.in_flight(node, step) => return self.gone(node),
            Presence::Down => return Next::Wait(Why::Down),
            Presence::Unknown => return Next::Wait(Why::NotHeard),
        };
        let report = self.view.report(node, self.generation);
        if let Some(report) = report {
            match report.readiness {
                Readiness::Rejected if self.gets_other_ports(node) => {
                    return Next::Wait(Why::Preparing { detail: report.detail.clone() });
                }
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
        let has = |percent| serves && report.is_some_and(|report| report.percent >= percent);
        let now = self.view.now;
        let not_alive = report.and_then(GenerationReport::not_alive);
        match step {
            Step::Shifting { .. } | Step::Monitoring { .. } if serves && not_alive.is_some() => {
                Next::Fail(not_alive.unwrap_or_default())
            }
            Step::Preparing { .. } if well => Next::Shift,
            Step::Preparing { since } => {
                let overdue = self.overdue(*since, seen, "not ready", &detail);
                overdue.unwrap_or(Next::Wait(Why::Preparing { detail }))
            }
            Step::Ready if well => Next::Shift,
            Step::Ready => Next::Wait(Why::NotReady { detail }),
            // Nothing served before: there is nothing to compare with and nothing to protect.
            Step::Shifting { .. } if serves && self.rollout.from.is_none() => Next::Step(Step::Done),
            // With nothing to bake there is no need to write down that it begins.
            Step::Shifting { percent, .. } if has(*percent) && well && !self.bakes() => {
                Next::Passed { percent: *percent, saw: None }
            }
            Step::Shifting { percent, .. } if has(*percent) => {
                Next::Step(Step::Monitoring { since: now, percent: *percent })
            }
            Step::Shifting { since, .. } => {
                let overdue = self.overdue(*since, seen, "does not serve", &detail);
                overdue.unwrap_or(Next::Wait(Why::Shifting { detail }))
            }
            Step::Monitoring { since, percent } if serves && well => self.bake(node, *since, *percent),
            Step::Monitoring { since, percent } if now.since(*since) >= BAKE_AGAIN => {
                Next::Step(Step::Monitoring { since: now, percent: *percent })
            }
            Step::Monitoring { .. } => Next::Wait(Why::Unwell { detail }),
            Step::Done | Step::Failed { .. } => Next::Rest,
        }
    }

    /// What was rejected is about to be asked for again on other ports.
    fn gets_other_ports(&self, node: NodeId) -> bool {
        let asked = |asked: &&Asked<'_>| asked.node == node && asked.generation == self.generation;
        let asked = self.view.assigned.iter().find(asked);
        // A report from before the exchange says nothing about it.
        asked.is_some_and(|asked| {
            exchangeable(self.view, asked).is_some() || !self.view.has_seen(node, asked.assignment)
        })
    }

    fn overdue(&self, since: Timestamp, seen: &ObservedNode, what: &str, detail: &str) -> Option<Next> {
        let deadline = self.record.spec.rollout.healthy_deadline;
        let overdue = self.view.lasted(since, seen) >= deadline && self.view.observed.may_blame();
        let deadline = humantime::format_duration(deadline);
        let detail = if detail.is_empty() { "it says nothing of the generation" } else { detail };
        overdue.then(|| Next::Fail(format!("{what} after {deadline}: {detail}")))
    }

    fn has_begun(&self) -> bool {
        self.rollout.steps.values().any(|step| step.share().is_some())
    }

    /// It is waited for them until the new generation has its first share.
    fn takers(&self) -> Vec<Taker<'_>> {
        if self.has_begun() {
            return Vec::new();
        }
        let fleet = self.view.fleet;
        let newest = |(app, host)| {
            let (generation, rollout) = fleet.newest_rollout(&app)?;
            Some(Taker { app, host, generation, rollout })
        };
        fleet.takers(self.view.name).into_iter().filter_map(newest).collect()
    }

    /// Where the app that was to take a host over goes back, this one keeps it.
    fn nobody_takes(&self, takers: &[Taker<'_>]) -> Option<String> {
        let went_back = |taker: &&Taker<'_>| match taker.rollout.state {
            RolloutState::RollingBack | RolloutState::RolledBack | RolloutState::Failed => {
                taker.generation >= self.generation
            }
            RolloutState::Progressing
            | RolloutState::Paused
            | RolloutState::Completed
            | RolloutState::Superseded => false,
        };
        let Taker { app, host, .. } = takers.iter().find(went_back)?;
        Some(format!("app `{app}`, which was to take the host `{host}`, went back"))
    }

    /// Whether steps are baked and judged at all.
    fn bakes(&self) -> bool {
        let vouched = self.rollout.promotion == Promotion::Full;
        !vouched && self.rollout.from.is_some() && !self.record.spec.rollout.min_healthy.is_zero()
    }

    /// A bake lasts as long as this leader has watched it: what nobody has seen promotes nothing. While
    /// too few requests came it is extended, but not for an app that nobody asks anything.
    fn bake(&self, node: NodeId, since: Timestamp, percent: u8) -> Next {
        let Some(from) = self.rollout.from.filter(|_| self.bakes()) else {
            return Next::Passed { percent, saw: None };
        };
        let policy = &self.record.spec.rollout;
        let of = policy.min_healthy;
        let window = self.view.observed.windows.get(&(self.view.name.clone(), node));
        let seen_for = window.map_or(Duration::ZERO, |window| window.age);
        let baked = self.view.now.since(since).min(seen_for);
        let verdict = window.map(|window| gate::judge(&policy.abort_on, window, from));
        let left = of.saturating_sub(baked);
        match verdict {
            Some(Verdict::Worse { how }) => Next::Fail(how),
            Some(Verdict::TooFew { .. } | Verdict::AsWell) | None if !left.is_zero() => {
                Next::Wait(Why::Baking { left, of, percent })
            }
            Some(Verdict::TooFew { sampled, of: needed, is_idle: false }) if baked < of * BAKES_MAX => {
                let left = (of * BAKES_MAX).saturating_sub(baked);
                Next::Wait(Why::Gate { sampled, of: needed, left })
            }
            Some(Verdict::TooFew { .. } | Verdict::AsWell) | None => {
                let saw = window.map(|window| format!("at {percent} %: {}", gate::saw(window, from)));
                Next::Passed { percent, saw }
            }
        }
    }

    /// What the gate saw of the nodes that it lets on now.
    fn why(&self, moves: &[(NodeId, Step)], saw: Vec<(NodeId, String)>) -> String {
        let goes_on = |node: &NodeId| moves.iter().any(|(moved, _)| moved == node);
        let told = saw.into_iter().filter(|(node, _)| goes_on(node));
        let told = told.map(|(node, saw)| format!("{} {saw}", self.view.fleet.node_name(node)));
        told.collect::<Vec<_>>().join("; ")
    }

    /// The next share of nodes that have passed one. Those that move together wait for each other.
    fn go_on(
        &self,
        passed: &[(NodeId, u8)],
        moves: &mut Vec<(NodeId, Step)>,
        waits: &mut Vec<(NodeId, Why)>,
    ) {
        let since = self.view.now;
        for &(node, percent) in passed {
            let lags = |(other, step): (&NodeId, &Step)| {
                let share = step.share().filter(|_| self.in_flight(*other, step));
                let has_passed = passed.iter().any(|(passed, _)| passed == other);
                share.is_some_and(|share| share < percent || (share == percent && !has_passed))
            };
            let next = self.percents().iter().copied().find(|next| *next > percent);
            let step = match next {
                None => Step::Done,
                Some(next) if self.waits_for_promotion(next) => {
                    waits.push((node, Why::Promotion));
                    continue;
                }
                Some(_) if self.moves_together() && self.rollout.steps.iter().any(lags) => {
                    waits.push((node, Why::Others));
                    continue;
                }
                Some(percent) => Step::Shifting { since, percent },
            };
            moves.push((node, step));
        }
    }

    /// The shares of a node that goes through all of them.
    fn percents(&self) -> &[u8] {
        let policy = &self.record.spec.rollout;
        let in_one_step = self.rollout.promotion == Promotion::Full
            || self.rollout.from.is_none()
            || policy.strategy == RolloutStrategy::AllAtOnce;
        if in_one_step { &[100] } else { &policy.steps }
    }

    fn moves_together(&self) -> bool {
        let policy = &self.record.spec.rollout;
        match policy.strategy {
            RolloutStrategy::Rolling | RolloutStrategy::Canary => policy.canaries() > 0,
            RolloutStrategy::BlueGreen | RolloutStrategy::AllAtOnce => true,
        }
    }

    /// Asked once: before the last of several shares, or before the first where there is only one.
    fn waits_for_promotion(&self, percent: u8) -> bool {
        let asks = !self.record.spec.rollout.auto_promote && self.rollout.promotion == Promotion::AsSpecified;
        asks && self.rollout.from.is_some() && percent == 100
    }

    /// Writes down that nodes are ready which have to wait for longer.
    fn note_ready(
        &self,
        may_shift: &[NodeId],
        moves: &mut Vec<(NodeId, Step)>,
        waits: &mut Vec<(NodeId, Why)>,
    ) {
        for &node in may_shift {
            let Some(Step::Preparing { since }) = self.rollout.steps.get(&node) else { continue };
            let moves_on = moves.iter().any(|(moving, _)| *moving == node);
            if !moves_on && self.view.now.since(*since) >= READY_UNWRITTEN {
                moves.push((node, Step::Ready));
                waits.retain(|(waiting, _)| *waiting != node);
            }
        }
    }

    /// Chooses who shifts now, and with what share.
    fn shift(
        &self,
        may_shift: &[NodeId],
        takers: &[Taker<'_>],
        budget: &mut Budget,
        moves: &mut Vec<(NodeId, Step)>,
        waits: &mut Vec<(NodeId, Why)>,
    ) {
        if may_shift.is_empty() {
            return;
        }
        let mut may_shift = may_shift.to_vec();
        // Where the old generation does not do well there is the least to lose, so those nodes go first;
        // then one failure domain after the other.
        let zone =
            |node: &NodeId| self.view.fleet.members.get(node).map(|member| (&member.region, &member.zone));
        may_shift.sort_by_key(|node| (self.view.serves(*node), zone(node), *node));
        let steps = &self.rollout.steps;
        let begun = self.has_begun();
        let is_down = |node: &NodeId| matches!(self.view.presence(*node), Presence::Down);
        let can_shift: BTreeSet<NodeId> = may_shift.iter().copied().collect();
        let ready = |(node, step): (&NodeId, &Step)| {
            *step == Step::Ready || step.share().is_some() || can_shift.contains(node) || is_down(node)
        };
        let why = if !begun && !steps.iter().all(ready) {
            Some(Why::OthersNotReady)
        } else if let Some(why) = host_moves(takers) {
            Some(why)
        } else if !begun && !budget.take() {
            Some(Why::Budget)
        } else {
            None
        };
        if let Some(why) = why {
            waits.extend(may_shift.into_iter().map(|node| (node, why.clone())));
            return;
        }
        let shift = |node, percent| (node, Step::Shifting { since: self.view.now, percent });
        // Nothing serves that could be lost.
        if self.rollout.from.is_none() {
            moves.extend(may_shift.into_iter().map(|node| shift(node, 100)));
            return;
        }
        match self.record.spec.rollout.strategy {
            RolloutStrategy::Rolling | RolloutStrategy::Canary => {
                self.shift_in_waves(&may_shift, moves, waits)
            }
            RolloutStrategy::BlueGreen | RolloutStrategy::AllAtOnce => {
                // One that comes late joins the others where they are. The new generation is ready on
                // every node that moves, and the old one warm behind it.
                let least = steps.values().filter_map(Step::share).min();
                let percent = least.unwrap_or(self.percents()[0]);
                if !begun && self.waits_for_promotion(percent) {
                    waits.extend(may_shift.into_iter().map(|node| (node, Why::Promotion)));
                } else {
                    moves.extend(may_shift.into_iter().map(|node| shift(node, percent)));
                }
            }
        }
    }

    /// First the canaries, through all shares; then the others, `max_parallel` at a time.
    fn shift_in_waves(
        &self,
        may_shift: &[NodeId],
        moves: &mut Vec<(NodeId, Step)>,
        waits: &mut Vec<(NodeId, Why)>,
    ) {
        let (policy, steps) = (&self.record.spec.rollout, &self.rollout.steps);
        let since = self.view.now;
        let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        let canaries = count(policy.canaries()).min(steps.len());
        // Who is done now makes room at once: it is one command.
        let finishes = |node: &NodeId| moves.iter().any(|(moving, to)| moving == node && *to == Step::Done);
        let done: BTreeSet<NodeId> = steps
            .iter()
            .filter(|(node, step)| **step == Step::Done || finishes(node))
            .map(|(node, _)| *node)
            .collect();
        let mut in_flight =
            steps.iter().filter(|(node, step)| self.in_flight(**node, step) && !done.contains(node)).count();
        let mut shifting = Vec::new();
        for &node in may_shift {
            let is_canary = done.len() < canaries;
            let (limit, percent) = match (is_canary, canaries) {
                (true, _) => (canaries - done.len(), self.percents()[0]),
                (false, 0) => (count(policy.max_parallel).max(1), self.percents()[0]),
                (false, _) => (count(policy.max_parallel).max(1), 100),
            };
            let why = if !is_canary && canaries > 0 && self.waits_for_promotion(percent) {
                Why::Promotion
            } else if in_flight >= limit {
                if is_canary { Why::Canaries } else { Why::Turn }
            } else if self.takes_the_last_replica(node, &shifting, &done) {
                Why::LastReplica
            } else {
                in_flight += 1;
                shifting.push(node);
                moves.push((node, Step::Shifting { since, percent }));
                continue;
            };
            waits.push((node, why));
        }
    }

    /// A node in mid-shift holds its place. One that went down there may have been taken down by what it
    /// took, so the next one does not follow until it is back and has told how it went. Where nothing
    /// served before all nodes shift together, and who promotes in full vouches for the generation: such
    /// a rollout goes on without it.
    fn in_flight(&self, node: NodeId, step: &Step) -> bool {
        let vouched = self.rollout.promotion == Promotion::Full;
        match step {
            Step::Shifting { .. } | Step::Monitoring { .. } => match self.view.presence(node) {
                Presence::Live(_) | Presence::Unknown => true,
                Presence::Down => self.rollout.from.is_some() && !vouched,
            },
            Step::Preparing { .. } | Step::Ready | Step::Done | Step::Failed { .. } => false,
        }
    }

    /// Of a node that went down in mid-shift: one that stays away has failed.
    fn gone(&self, node: NodeId) -> Next {
        let deadline = self.record.spec.rollout.healthy_deadline;
        let left = deadline.saturating_sub(self.view.observed.silent_for(node));
        if left.is_zero() {
            let deadline = humantime::format_duration(deadline);
            return Next::Fail(format!(
                "went down while it took the generation, and is not back after {deadline}"
            ));
        }
        Next::Wait(Why::Gone { left })
    }

    /// True when the node serves the app and no other node does that stays as it is. The only node that
    /// is alive has nobody to wait for.
    fn takes_the_last_replica(&self, node: NodeId, shifting: &[NodeId], done: &BTreeSet<NodeId>) -> bool {
        let view = self.view;
        let stays = |other: NodeId| {
            let step = self.rollout.steps.get(&other).filter(|_| !done.contains(&other));
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
            plan.commands.push(Transition::Advance { app, generation, steps, why: String::new() });
        }
        self.turn_back(told.join("; "), plan);
    }

    fn turn_back(&self, reason: String, plan: &mut Plan) {
        let (app, generation) = (self.view.name.clone(), self.generation);
        // A rollback is not rolled back: what it came from was worse.
        let is_rollback = self.view.app.history.back().is_some_and(|last| match last.cause {
            Cause::Applied => false,
            Cause::RolledBackTo { .. } => true,
        });
        plan.commands.push(if self.record.spec.rollout.auto_rollback && !is_rollback {
            Transition::RollBack { app, generation, reason }
        } else {
            Transition::Pause { app, generation, reason }
        });
    }
}

/// Never waits for a bake, and never turns round again: it waits until the nodes are back at `from`, and
/// for each no longer than for a node that takes a generation.
pub(super) fn go_back(view: &View<'_>, generation: GenerationId, rollout: &Rollout, plan: &mut Plan) {
    let from = rollout.from.unwrap_or_default();
    let record = view.fleet.generation(view.name, generation);
    let deadline = record.map(|record| record.spec.rollout.healthy_deadline).unwrap_or_default();
    let mut waits = Vec::new();
    let mut missing = Vec::new();
    for asked in view.asked(Desired::Serve).filter(|asked| asked.generation == from) {
        let node = asked.node;
        let seen_all = view.assigned.iter().filter(|other| other.node == node);
        let seen_all = seen_all.into_iter().all(|other| view.has_seen(node, other.assignment));
        let report = view.report(node, from);
        let left = |report: &GenerationReport| report.readiness != Readiness::Serving;
        let has_left = view.report(node, generation).is_none_or(left);
        let why = match view.presence(node) {
            Presence::Down => {
                plan.waiting.push(view.waiting(from, node, Why::Down));
                continue;
            }
            Presence::Unknown => Why::NotHeard,
            Presence::Live(seen) => match report {
                Some(report) if report.readiness == Readiness::Serving && seen_all && has_left => continue,
                _ => {
                    let detail = report.map_or(String::new(), |report| report.detail.clone());
                    if view.lasted(rollout.progressed, seen) >= deadline && view.observed.may_blame() {
                        missing.push(not_back(view, node, &detail));
                        continue;
                    }
                    Why::GoingBack { detail }
                }
            },
        };
        waits.push(view.waiting(from, node, why));
    }
    if waits.is_empty() {
        let (app, missing) = (view.name.clone(), missing.join("; "));
        plan.commands.push(Transition::RolledBack { app, generation, missing });
    }
    plan.waiting.extend(waits);
}

fn not_back(view: &View<'_>, node: NodeId, detail: &str) -> String {
    let because = if detail.is_empty() { String::new() } else { format!(": {detail}") };
    format!("node {} does not get back{because}", view.fleet.node_name(node))
}
