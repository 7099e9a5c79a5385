//! How many replicas an app needs for its load. PURE: rules, load and time in, a decision with its
//! reason out.
//!
//! Growing looks at the load now, shrinking at the highest load of the whole `cooldown`, and between
//! the two lies a band in which nothing happens: as many replicas as a load asks for are never so few
//! or so many that the same load asks for another number.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use flotilla_raft_store::{App, Fleet, NodeId, RolloutState, ScaledBy, Timestamp, Transition};
use flotilla_spec::{AppName, AppSpec, Autoscale, Replicas};

use super::{
    observed::Observed,
    placement::{self},
};

/// A load above the targets by less than this is left to the replicas that there are.
const TOLERANCE_PERCENT: u64 = 10;
/// Fewer replicas must have this much room left, or the next gust would bring them back.
const ROOM_PERCENT: u64 = 20;
/// Samples kept per app: beyond this the oldest is forgotten, and shrinking is decided on less.
const SAMPLES_MAX: usize = 3_600;

/// Of all nodes that serve the app together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Demand {
    pub(crate) connections: u64,
    pub(crate) begun_per_second: u64,
    /// Added up, not averaged: two nodes at 60 are 120.
    pub(crate) cpu_percent: u64,
}

/// What a leader has seen of an app's load. A new leader begins anew, and shrinks nothing before it has
/// seen a whole `cooldown`.
#[derive(Debug, Default)]
pub(crate) struct Demands(BTreeMap<AppName, VecDeque<(Timestamp, Demand)>>);

/// The load that a decision is made on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) now: Demand,
    /// The highest of each kind in the cooldown; `None`: it has not been watched for that long.
    pub(crate) peak: Option<Demand>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) replicas: u32,
    pub(crate) why: String,
}

/// `None`: the number stays. `since_change`: since it last changed.
pub(crate) fn decide(
    rules: &Autoscale,
    current: u32,
    seen: Seen,
    since_change: Option<Duration>,
) -> Option<Decision> {
    let bounded = current.min(rules.max).max(rules.min);
    if bounded != current {
        let why = format!("{current} is outside of {} to {}", rules.min, rules.max);
        return Some(Decision { replicas: bounded, why });
    }
    if since_change.is_some_and(|since| since < rules.cooldown) {
        return None;
    }
    let grow = Needs::of(rules, seen.now, 100);
    if grow.exceeds(current) {
        let replicas = grow.replicas.min(rules.max);
        return (replicas > current).then_some(Decision { replicas, why: grow.why });
    }
    let shrink = Needs::of(rules, seen.peak?, 100 - ROOM_PERCENT);
    let replicas = shrink.replicas.max(rules.min);
    (replicas < current).then(|| Decision { replicas, why: format!("{} at most", shrink.why) })
}

/// The target that asks for most.
struct Needs {
    replicas: u32,
    demand: u64,
    target: u64,
    why: String,
}

impl Needs {
    /// `use_percent`: of each target.
    fn of(rules: &Autoscale, demand: Demand, use_percent: u64) -> Self {
        let kinds = [
            (rules.target_connections, demand.connections, "connections"),
            (rules.target_requests_per_second, demand.begun_per_second, "requests per second"),
            (rules.target_cpu_percent, demand.cpu_percent, "percent of a node's processors"),
        ];
        let needs = kinds.into_iter().filter_map(|(target, demand, what)| {
            let target = u64::from(target?);
            let replicas = (demand * 100).div_ceil((target * use_percent).max(1)).max(1);
            let replicas = u32::try_from(replicas).unwrap_or(u32::MAX);
            let why = format!("{demand} {what}, of which {target} are for one replica");
            Some(Self { replicas, demand, target, why })
        });
        let none = Self { replicas: 1, demand: 0, target: 1, why: String::new() };
        needs.fold(none, |most, one| if one.replicas >= most.replicas { one } else { most })
    }

    fn exceeds(&self, current: u32) -> bool {
        self.demand * 100 > u64::from(current) * self.target * (100 + TOLERANCE_PERCENT)
    }
}

impl Demands {
    /// One sample of every app that scales by itself; the others are forgotten.
    pub(crate) fn sample(&mut self, fleet: &Fleet, observed: &Observed, now: Timestamp) {
        for (app, _, rules) in scaling(fleet) {
            let samples = self.0.entry(app.clone()).or_default();
            samples.push_back((now, demand(fleet, observed, app)));
            // One sample from before the window says that all of it was watched.
            while samples.len() > SAMPLES_MAX
                || samples.get(1).is_some_and(|(time, _)| now.since(*time) >= rules.cooldown)
            {
                samples.pop_front();
            }
        }
        self.0.retain(|_, samples| samples.back().is_some_and(|(time, _)| *time == now));
    }

    pub(crate) fn seen(&self, app: &AppName, cooldown: Duration, now: Timestamp) -> Seen {
        let Some(samples) = self.0.get(app) else { return Seen::default() };
        let is_whole = samples.front().is_some_and(|(time, _)| now.since(*time) >= cooldown);
        let most = |of: fn(&Demand) -> u64| samples.iter().map(|(_, demand)| of(demand)).max().unwrap_or(0);
        let peak = Demand {
            connections: most(|demand| demand.connections),
            begun_per_second: most(|demand| demand.begun_per_second),
            cpu_percent: most(|demand| demand.cpu_percent),
        };
        let now = samples.back().map_or(Demand::default(), |(_, demand)| *demand);
        Seen { now, peak: is_whole.then_some(peak) }
    }
}

/// The apps that scale by themselves, and by which rules.
fn scaling(fleet: &Fleet) -> impl Iterator<Item = (&AppName, &App, &Autoscale)> {
    let apps = fleet.apps.iter().filter(|(_, app)| !app.deleted);
    apps.filter_map(|(name, app)| Some((name, &**app, app.spec.placement.autoscale.as_ref()?)))
}

fn demand(fleet: &Fleet, observed: &Observed, app: &AppName) -> Demand {
    let mut all = Demand::default();
    for node in placement::nodes_of(fleet, app) {
        let Some(seen) = observed.live(node) else { continue };
        let of_app = seen.load.apps.get(app).copied().unwrap_or_default();
        all.connections += of_app.connections;
        all.begun_per_second += of_app.begun_per_second;
        all.cpu_percent += u64::from(seen.load.cpu_percent);
    }
    all
}

/// What the apps that scale by themselves need now.
pub(crate) fn scale(
    fleet: &Fleet,
    observed: &Observed,
    demands: &Demands,
    now: Timestamp,
) -> Vec<Transition> {
    if !observed.may_blame() {
        return Vec::new();
    }
    let mut transitions = Vec::new();
    for (name, app, rules) in scaling(fleet) {
        let by_user = app.scale.is_some_and(|scale| scale.by == ScaledBy::User);
        // What rolls out is not compared with what it follows.
        let rolls = fleet.newest_rollout(name).is_some_and(|(_, rollout)| {
            matches!(rollout.state, RolloutState::Progressing | RolloutState::RollingBack)
        });
        let Replicas::Count(current) = fleet.replicas(&app.spec) else { continue };
        if by_user || rolls {
            continue;
        }
        let since_change = app.scale.map(|scale| now.since(scale.since));
        let decision = decide(rules, current, demands.seen(name, rules.cooldown, now), since_change);
        let (replicas, why) = match decision {
            Some(decision) => (decision.replicas, Some(decision.why)),
            None => (current, None),
        };
        let short = replicas.saturating_sub(room(fleet, observed, &app.spec));
        let known = app.scale.map_or(0, |scale| scale.short);
        let mut told = Vec::new();
        if let Some(why) = why {
            told.push(format!("scales from {current} to {replicas}: {why}"));
        }
        if short > 0 && short != known {
            told.push(format!("no node has room for {short} of {replicas} replicas: the fleet should grow"));
        } else if short == 0 && known > 0 {
            told.push("there is room for all replicas again".to_owned());
        }
        if !told.is_empty() {
            let (app, reason) = (name.clone(), told.join("; "));
            transitions.push(Transition::Scale { app, replicas, short, reason });
        }
    }
    transitions
}

/// Nodes that have the app or could have it.
fn room(fleet: &Fleet, observed: &Observed, spec: &AppSpec) -> u32 {
    let has = |node: NodeId| fleet.assignments_of(node, &spec.name).next().is_some();
    let fits = |node: NodeId| has(node) || fleet.choose_ports(node, spec).is_ok();
    let may = fleet.members.iter().filter(|(node, member)| {
        placement::may_have(&spec.placement, member, has(**node)) && !observed.is_lost(**node) && fits(**node)
    });
    u32::try_from(may.count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
