//! What must hold of every fleet, whatever has been applied to it. Tests ask after each command.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Availability, BALANCERS_MAX, CLIENTS_MAX, Desired, EVENTS_MAX, Fleet, GenerationState, HISTORY_MAX,
    RolloutState,
};

macro_rules! hold {
    ($fact:expr, $($otherwise:tt)+) => {
        if !$fact {
            return Err(format!($($otherwise)+));
        }
    };
}

impl Fleet {
    /// The first invariant that is broken.
    pub fn check(&self) -> Result<(), String> {
        self.check_members()?;
        self.check_apps()?;
        self.check_assignments()?;
        self.check_rollouts()?;
        hold!(self.ports == self.held_ports()?, "the port table is not what the assignments hold");
        hold!(self.balancers.len() <= BALANCERS_MAX, "there are {} balancers", self.balancers.len());
        let mut ports = BTreeSet::new();
        for port in self.balancers.values().filter_map(|balancer| balancer.kind.port()) {
            hold!(ports.insert(port), "two balancers have port {port}");
            let taken = self.ports.keys().any(|(_, taken)| *taken == port);
            hold!(!taken, "port {port} is a balancer's and an app's");
        }
        hold!(self.events.len() <= EVENTS_MAX, "there are {} events", self.events.len());
        hold!(self.requests.len() <= CLIENTS_MAX, "there are {} clients", self.requests.len());
        Ok(())
    }

    fn check_members(&self) -> Result<(), String> {
        let present = self.members.keys().filter_map(|node| self.member(*node).ok());
        let mut names = BTreeSet::new();
        for member in present {
            hold!(names.insert(&member.name), "two members are named {}", member.name);
            let drains = member.availability == Availability::Draining;
            hold!(member.drain.is_some() == drains, "{}: {:?} while {:?}", member.name, member.drain, drains);
        }
        for node in self.absences.keys() {
            hold!(self.member(*node).is_ok(), "node {node} is away and no member");
        }
        hold!(self.members.is_empty() || !self.cluster.id.0.is_empty(), "members without a cluster");
        Ok(())
    }

    fn check_apps(&self) -> Result<(), String> {
        for (name, app) in &self.apps {
            hold!(*name == app.spec.name, "app {name} holds the spec of {}", app.spec.name);
            let wanted =
                self.generation(name, app.wanted).map_err(|_| format!("{name}: no wanted generation"))?;
            hold!(wanted.spec == app.spec, "{name}: the wanted generation has another spec");
            if let Some(serving) = app.serving {
                let state = self.generation(name, serving).map(|generation| generation.state);
                hold!(state == Ok(GenerationState::Serving), "{name}: serving {serving} is {state:?}");
                hold!(
                    serving <= app.wanted,
                    "{name}: serves {serving}, newer than the wanted {}",
                    app.wanted
                );
            }
            hold!(!app.deleted || app.serving.is_none(), "{name} is deleted and serves");
            let history = &app.history;
            hold!(history.len() <= HISTORY_MAX, "{name}: a history of {}", history.len());
            hold!(
                history.back().is_some_and(|last| last.generation == app.wanted),
                "{name}: wanted is not last"
            );
            for (entry, next) in history.iter().zip(history.iter().skip(1)) {
                hold!(entry.version < next.version, "{name}: versions are out of order");
                hold!(entry.outcome.is_some(), "{name}: version {} has not ended", entry.version);
            }
            for entry in history {
                let generation = self.generation(name, entry.generation);
                hold!(
                    generation.is_ok_and(|known| known.spec == entry.spec),
                    "{name}: a spec of the past is lost"
                );
                hold!(entry.version <= app.version, "{name}: a version of the future");
            }
        }
        Ok(())
    }

    fn check_assignments(&self) -> Result<(), String> {
        for (node, of_node) in &self.assignments {
            hold!(self.member(*node).is_ok(), "node {node} has assignments and is no member");
            hold!(!of_node.is_empty(), "node {node} has an empty table");
            for ((app, generation), assignment) in of_node {
                let record = self.generation(app, *generation);
                let Ok(record) = record else {
                    return Err(format!("{app}: node {node} has an unknown {generation}"));
                };
                let listen = &record.spec.listen;
                hold!(
                    listen.len() == assignment.ports.len(),
                    "{app}: {generation} has other ports on {node}"
                );
                let distinct: BTreeSet<_> = assignment.ports.iter().collect();
                hold!(distinct.len() == listen.len(), "{app}: {generation} has a port twice on {node}");
                for (listen, port) in listen.iter().zip(&assignment.ports) {
                    hold!(
                        *port != 0 && (listen.port == 0 || listen.port == *port),
                        "{app}: port {port} on {node}"
                    );
                }
                hold!(
                    (1..=100).contains(&assignment.percent),
                    "{app}: {generation} has {} % of node {node}",
                    assignment.percent
                );
                let serves = assignment.desired <= Desired::Serve;
                let leaves = match record.state {
                    GenerationState::Staged | GenerationState::Serving => false,
                    GenerationState::Draining | GenerationState::Retired | GenerationState::Failed => true,
                };
                hold!(
                    !(serves && leaves),
                    "{app}: {generation} is {:?} and still asked for on {node}",
                    record.state
                );
                hold!(
                    record.state != GenerationState::Retired,
                    "{app}: {generation} is retired, but on {node}"
                );
            }
        }
        Ok(())
    }

    fn check_rollouts(&self) -> Result<(), String> {
        hold!(self.generations.keys().eq(self.rollouts.keys()), "generations and rollouts differ");
        hold!(
            self.generations.keys().all(|(app, _)| self.apps.contains_key(app)),
            "a generation without app"
        );
        let mut outcomes = BTreeMap::new();
        for (name, app) in &self.apps {
            for entry in &app.history {
                outcomes.insert((name.clone(), entry.generation), entry.outcome);
            }
        }
        for (key @ (name, generation), rollout) in &self.rollouts {
            let app = &self.apps[name];
            let unfinished = !rollout.state.is_finished();
            hold!(
                !unfinished || (app.wanted == *generation && !app.deleted),
                "{name}: {generation} is unfinished"
            );
            let state = Some(rollout.state);
            let told = outcomes.get(key).copied();
            hold!(
                told.is_none_or(|told| told == state.filter(|_| !unfinished)),
                "{name}: {generation} ended as {told:?}"
            );
            hold!(
                !unfinished || rollout.from == app.serving,
                "{name}: {generation} comes from {:?}",
                rollout.from
            );
            if rollout.state == RolloutState::Progressing {
                for (node, step) in &rollout.steps {
                    let asked = self.assignment(*node, name, *generation);
                    let desired = asked.map(|assignment| assignment.desired);
                    let share = asked.map_or(0, |assignment| assignment.percent);
                    hold!(
                        step.share()
                            .is_none_or(|percent| desired > Some(Desired::Prepare) && percent <= share),
                        "{name}: {node} is {step:?} at {desired:?} with {share} %"
                    );
                }
            }
        }
        Ok(())
    }
}
