//! Nodes that give their traffic up: which phase comes next, and what is waited for.
//!
//! The first half of the time is for the balancers and for the other nodes, the second half for the
//! sessions. A balancer that is told is believed only when it was seen to send nothing; one that
//! nobody told of anything shows by silence. Until the drain is over the node serves whatever comes.

use std::{collections::BTreeSet, time::Duration};

use flotilla_raft_store::{Desired, Drain, DrainPhase, Fleet, NodeId, Timestamp, Transition};
use flotilla_spec::AppName;

use super::{Plan, waiting::seconds};
use crate::rollout::{
    observed::{Drained, Observed, Readiness},
    placement,
};

/// Reasons that are named; the others are counted.
const NAMED_MAX: usize = 3;

enum Next {
    Phase(DrainPhase, String),
    Wait(Vec<String>),
}

struct Leaving<'a> {
    fleet: &'a Fleet,
    observed: &'a Observed,
    now: Timestamp,
    node: NodeId,
    drain: Drain,
}

pub(super) fn drains(fleet: &Fleet, observed: &Observed, now: Timestamp, plan: &mut Plan) {
    // A new leader does not know yet who serves what.
    if !observed.may_blame() {
        return;
    }
    for (&node, member) in &fleet.members {
        let Some(drain) = member.drain.filter(|drain| !drain.phase.is_over()) else { continue };
        match (Leaving { fleet, observed, now, node, drain }).next() {
            Next::Phase(phase, why) => {
                plan.commands.push(Transition::AdvanceDrain { node, phase, why });
            }
            Next::Wait(why) => drop(plan.drains.insert(node, why)),
        }
    }
}

impl Leaving<'_> {
    fn next(&self) -> Next {
        if self.now >= self.drain.deadline {
            let left = match self.observed.live(self.node) {
                Some(seen) => connections(seen.connections),
                None => "it does not report".to_owned(),
            };
            return Next::Phase(DrainPhase::Cut, left);
        }
        match self.drain.phase {
            DrainPhase::LameDuck => self.be_quiet(),
            DrainPhase::Quiet => self.begin_to_drain(),
            DrainPhase::Draining | DrainPhase::Empty | DrainPhase::Cut => self.be_empty(),
        }
    }

    fn be_quiet(&self) -> Next {
        let mut missing = Vec::new();
        let mut confirmed = false;
        for app in self.apps() {
            match self.observed.drained(self.node, app) {
                Drained::NoneConfigured => {}
                Drained::Yes => confirmed = true,
                Drained::No => missing.push(format!("a balancer still sends it sessions of `{app}`")),
                Drained::Unknown => missing.push(format!("a balancer does not say where it sends `{app}`")),
            }
            if !self.is_served_elsewhere(app) && self.may_go_elsewhere(app) {
                missing.push(format!("no other node serves `{app}` yet"));
            }
        }
        if missing.is_empty() {
            let why = if confirmed { "the balancers have confirmed" } else { "no balancer is told" };
            return Next::Phase(DrainPhase::Quiet, why.to_owned());
        }
        self.unless_half(DrainPhase::Quiet, missing)
    }

    fn begin_to_drain(&self) -> Next {
        let Some(seen) = self.observed.live(self.node) else {
            return Next::Wait(vec!["it does not report".to_owned()]);
        };
        let quiet = (seen.load.quiet_for + seen.age).min(self.now.since(self.drain.since));
        let wanted = self.drain.quiet;
        if quiet >= wanted {
            let why = format!("no session has begun for {}", humantime::format_duration(wanted));
            return Next::Phase(DrainPhase::Draining, why);
        }
        let (quiet, wanted) = (quiet.as_secs(), seconds(wanted));
        self.unless_half(
            DrainPhase::Draining,
            vec![format!("no session has begun for {quiet} s, {wanted} s are waited for")],
        )
    }

    fn be_empty(&self) -> Next {
        let Some(seen) = self.observed.live(self.node) else {
            return Next::Wait(vec!["it does not report".to_owned()]);
        };
        let since = self.now.since(self.drain.since);
        if seen.connections == 0 && seen.age < since {
            return Next::Phase(DrainPhase::Empty, String::new());
        }
        let left = seconds(Duration::from_millis(self.drain.deadline.0.saturating_sub(self.now.0)));
        Next::Wait(vec![format!("{}, which are cut in {left} s", connections(seen.connections))])
    }

    fn unless_half(&self, next: DrainPhase, missing: Vec<String>) -> Next {
        let all = self.drain.deadline.since(self.drain.started);
        let missing = named(missing);
        if self.now.since(self.drain.started) < all / 2 {
            return Next::Wait(missing);
        }
        Next::Phase(next, format!("half of the time has passed, and {}", missing.join(", and ")))
    }

    /// What the node serves.
    fn apps(&self) -> BTreeSet<&AppName> {
        let of_node = self.fleet.assignments.get(&self.node).into_iter().flatten();
        let serves = of_node.filter(|(_, asked)| asked.desired == Desired::Serve);
        serves.map(|((app, _), _)| app).collect()
    }

    fn is_served_elsewhere(&self, app: &AppName) -> bool {
        let others = self.fleet.members.iter().filter(|(node, member)| {
            **node != self.node && member.wants_traffic() && self.observed.live(**node).is_some()
        });
        others.into_iter().any(|(node, _)| {
            self.fleet.assignments_of(*node, app).any(|(generation, _)| {
                let report = self.observed.live(*node);
                let report = report.and_then(|seen| seen.generations.get(&(app.clone(), generation)));
                report.is_some_and(|report| report.readiness == Readiness::Serving && report.is_healthy())
            })
        })
    }

    fn may_go_elsewhere(&self, app: &AppName) -> bool {
        let Some(record) = self.fleet.apps.get(app).filter(|record| !record.deleted) else { return false };
        self.fleet.members.iter().any(|(node, member)| {
            *node != self.node
                && self.observed.live(*node).is_some()
                && placement::may_have(&record.spec.placement, member, false)
        })
    }
}

fn connections(count: u64) -> String {
    match count {
        1 => "1 connection is left".to_owned(),
        count => format!("{count} connections are left"),
    }
}

fn named(mut reasons: Vec<String>) -> Vec<String> {
    let more = reasons.len().saturating_sub(NAMED_MAX);
    reasons.truncate(NAMED_MAX);
    if more > 0 {
        reasons.push(format!("{more} more reasons like these"));
    }
    reasons
}
