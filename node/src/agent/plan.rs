//! What the node does next, and what it says of itself. PURE: desired and running in, actions and
//! reports out.
//!
//! Applying a plan twice changes nothing. A node that boots with nothing running prepares and serves
//! in one go: what served before the restart serves after it, checked or not. What takes an app's
//! traffic is let go only when its successor has taken it: a node that was away while a rollout
//! completed, and cannot prepare what serves elsewhere, goes on with what it has.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use flotilla_proxy::{GenerationStatus, Phase, PortState, TargetStatus};
use flotilla_raft_store::{Assignment, Desired, Fleet, Generation, GenerationId, takes_traffic};
use flotilla_spec::AppName;

use super::Key;
use crate::rollout::observed::{GenerationReport, Readiness, Resolution, TargetReport};

pub(crate) type Assigned = BTreeMap<Key, Arc<Assignment>>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Prepare {
        key: Key,
    },
    /// Takes the app's traffic from whichever generation has it.
    Serve {
        key: Key,
    },
    Drain {
        key: Key,
    },
    /// `cut_after`: how long what still uses the generation may go on; `None`: as long as it likes.
    Remove {
        key: Key,
        cut_after: Option<Duration>,
    },
}

impl Action {
    pub(crate) fn key(&self) -> &Key {
        match self {
            Self::Prepare { key } | Self::Serve { key } | Self::Drain { key } | Self::Remove { key, .. } => {
                key
            }
        }
    }
}

/// `None` for a name that no fleet has given: such a generation is not ours.
pub(crate) fn key(status: &GenerationStatus) -> Option<Key> {
    Some((AppName::parse(&status.app).ok()?, GenerationId(status.generation)))
}

/// The phase of every generation that runs here.
pub(crate) fn running(status: &[GenerationStatus]) -> BTreeMap<Key, Phase> {
    status.iter().filter_map(|status| Some((key(status)?, status.phase))).collect()
}

/// Preparing comes before shifting, shifting before draining, draining before removing: at every step
/// something serves that served before.
pub(crate) fn plan(
    assigned: &Assigned,
    running: &BTreeMap<Key, Phase>,
    drain: impl Fn(&Key) -> Duration,
) -> Vec<Action> {
    let mut actions = Vec::new();
    for (key, assignment) in assigned {
        if asks_to_run(assignment.desired) && !running.contains_key(key) {
            actions.push(Action::Prepare { key: key.clone() });
        }
    }
    for key in assigned.keys() {
        let takes_it = takes_traffic(assigned, &key.0) == Some(key.1);
        if takes_it && running.get(key) != Some(&Phase::Serving) {
            actions.push(Action::Serve { key: key.clone() });
        }
    }
    for (key, phase) in running {
        let desired = assigned.get(key).map(|assignment| assignment.desired);
        let successor = takes_traffic(assigned, &key.0);
        if *phase == Phase::Serving && successor.is_some() {
            continue;
        }
        match (desired, phase) {
            (Some(Desired::Drain), Phase::Prepared | Phase::Serving) => {
                actions.push(Action::Drain { key: key.clone() });
            }
            (Some(Desired::Remove) | None, Phase::Prepared | Phase::Serving | Phase::Draining) => {
                // A shift never cuts a session; an app that leaves the node does, in its own time.
                let cut_after = successor.is_none().then(|| drain(key));
                actions.push(Action::Remove { key: key.clone(), cut_after });
            }
            (Some(Desired::Prepare | Desired::Serve), _)
            | (Some(Desired::Drain), Phase::Draining | Phase::Removing)
            | (Some(Desired::Remove) | None, Phase::Removing) => {}
        }
    }
    actions
}

fn asks_to_run(desired: Desired) -> bool {
    match desired {
        Desired::Prepare | Desired::Serve => true,
        Desired::Drain | Desired::Remove => false,
    }
}

/// What the node says of one generation. `rejected`: why the proxy would not take it; `compiled`: the
/// digest of the spec that it did take.
pub(crate) fn report(
    generation: &Generation,
    desired: Option<Desired>,
    status: Option<&GenerationStatus>,
    rejected: Option<&str>,
    compiled: Option<[u8; 32]>,
) -> GenerationReport {
    let empty = |readiness, detail: &str| GenerationReport {
        readiness,
        detail: detail.to_owned(),
        warnings: Vec::new(),
        digest: compiled.unwrap_or_default(),
        pins: 0,
        targets: Vec::new(),
    };
    if let Some(why) = rejected {
        return empty(Readiness::Rejected, why);
    }
    let Some(status) = status else {
        return match desired {
            Some(Desired::Prepare | Desired::Serve) => empty(Readiness::Preparing, "not started yet"),
            Some(Desired::Drain | Desired::Remove) | None => empty(Readiness::Removed, ""),
        };
    };
    let (missing, warnings) = missing(&status.targets, generation.spec.rollout.min_healthy_targets);
    let (readiness, detail) = match status.phase {
        Phase::Prepared if missing.is_empty() => (Readiness::Ready, missing),
        Phase::Prepared => (Readiness::Preparing, missing),
        Phase::Serving => (Readiness::Serving, missing),
        Phase::Draining => (Readiness::Draining, String::new()),
        Phase::Removing => (Readiness::Draining, closing(status)),
    };
    let targets = status.targets.iter().map(target_report).collect();
    GenerationReport { warnings, pins: status.pins, targets, ..empty(readiness, &detail) }
}

/// What keeps the targets from being good enough, empty when nothing does; and what is wrong with
/// the others.
fn missing(targets: &[TargetStatus], needed: u32) -> (String, Vec<String>) {
    let mut healthy = 0;
    let mut undecided = Vec::new();
    let mut warnings = Vec::new();
    for target in targets {
        let available = target.endpoints.iter().any(|endpoint| endpoint.available == Some(true));
        let unchecked = target.endpoints.iter().any(|endpoint| endpoint.available.is_none());
        let error = target.endpoints.iter().find_map(|endpoint| endpoint.last_error.as_deref());
        match &target.resolution {
            flotilla_proxy::Resolution::Pending => undecided.push(format!("resolving {}", target.target)),
            flotilla_proxy::Resolution::Failed(why) => {
                // An answer from before may still be in use.
                healthy += u32::from(available);
                warnings.push(format!("target {} does not resolve: {why}", target.target));
            }
            flotilla_proxy::Resolution::Resolved if available => healthy += 1,
            flotilla_proxy::Resolution::Resolved if unchecked => {
                undecided.push(format!("checking {}", target.target));
            }
            flotilla_proxy::Resolution::Resolved => {
                let why = error.unwrap_or("it has no address");
                warnings.push(format!("target {} fails its check: {why}", target.target));
            }
        }
    }
    // A file may ask for more than it has targets; more than all cannot be healthy.
    let needed = needed.min(u32::try_from(targets.len()).unwrap_or(u32::MAX));
    let resolving = targets.iter().any(|target| target.resolution == flotilla_proxy::Resolution::Pending);
    if healthy >= needed && !resolving {
        return (String::new(), warnings);
    }
    let mut reasons = undecided;
    reasons.extend(warnings.iter().cloned());
    (format!("{healthy} of {needed} targets are healthy: {}", reasons.join("; ")), warnings)
}

fn closing(status: &GenerationStatus) -> String {
    let ports = status.ports.iter().filter_map(|port| match port.state {
        PortState::Closing { left } => Some(format!("port {} closes in {} s", port.port, left.as_secs())),
        PortState::Bound | PortState::Listening => None,
    });
    ports.collect::<Vec<_>>().join("; ")
}

fn target_report(target: &TargetStatus) -> TargetReport {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let (resolution, why) = match &target.resolution {
        flotilla_proxy::Resolution::Pending => (Resolution::Pending, None),
        flotilla_proxy::Resolution::Resolved => (Resolution::Resolved, None),
        flotilla_proxy::Resolution::Failed(why) => (Resolution::Failed, Some(why.as_str())),
    };
    let error = target.endpoints.iter().find_map(|endpoint| endpoint.last_error.as_deref());
    TargetReport {
        target: target.target.to_string(),
        resolution,
        endpoints: count(target.endpoints.len()),
        available: count(target.endpoints.iter().filter(|endpoint| endpoint.available == Some(true)).count()),
        detail: why.or(error).unwrap_or_default().to_owned(),
    }
}

/// How long sessions of a generation may outlive its app on the node.
pub(crate) fn drain_of(fleet: &Fleet, key: &Key) -> Duration {
    fleet.generations.get(key).map_or(Duration::ZERO, |generation| generation.spec.rollout.drain)
}

#[cfg(test)]
mod tests {
    use flotilla_raft_store::Timestamp;

    use super::*;

    fn key(app: &str, generation: u64) -> Key {
        (AppName::parse(app).unwrap(), GenerationId(generation))
    }

    /// Assigned and running as `(generation, ...)` of the app `web`; the plan as text.
    fn check(assigned: &[(u64, Desired)], running: &[(u64, Phase)], expected: &[&str]) {
        let assigned: Assigned = assigned
            .iter()
            .map(|&(generation, desired)| {
                let assignment = Assignment { desired, ports: vec![80], index: 0, since: Timestamp(0) };
                (key("web", generation), Arc::new(assignment))
            })
            .collect();
        let mut running: BTreeMap<Key, Phase> =
            running.iter().map(|&(generation, phase)| (key("web", generation), phase)).collect();
        let text = |actions: &[Action]| -> Vec<String> {
            let text = |action: &Action| match action {
                Action::Prepare { key } => format!("prepare {}", key.1),
                Action::Serve { key } => format!("serve {}", key.1),
                Action::Drain { key } => format!("drain {}", key.1),
                Action::Remove { key, cut_after: None } => format!("remove {}", key.1),
                Action::Remove { key, cut_after: Some(after) } => {
                    format!("remove {} cut {}s", key.1, after.as_secs())
                }
            };
            actions.iter().map(text).collect()
        };
        let drain = |_: &Key| Duration::from_secs(30);
        let mut told = Vec::new();
        loop {
            let actions = plan(&assigned, &running, drain);
            if actions.is_empty() {
                break;
            }
            told.extend(text(&actions));
            carry_out(actions, &mut running);
            assert!(told.len() < 9, "a plan applied is a plan done: {told:?}");
        }
        assert_eq!(told, expected, "assigned {assigned:?}");
    }

    fn carry_out(actions: Vec<Action>, running: &mut BTreeMap<Key, Phase>) {
        for action in actions {
            match action {
                Action::Prepare { key } => drop(running.insert(key, Phase::Prepared)),
                Action::Serve { key } => {
                    for (_, phase) in running
                        .iter_mut()
                        .filter(|(other, phase)| other.0 == key.0 && **phase == Phase::Serving)
                    {
                        *phase = Phase::Prepared;
                    }
                    running.insert(key, Phase::Serving);
                }
                Action::Drain { key } => drop(running.insert(key, Phase::Draining)),
                Action::Remove { key, .. } => drop(running.insert(key, Phase::Removing)),
            }
        }
    }

    #[test]
    fn the_plan_follows_what_is_asked() {
        use Desired::{Drain, Prepare, Remove, Serve};
        use Phase::{Draining, Prepared, Removing, Serving};
        // A first apply, step by step.
        check(&[(7, Prepare)], &[], &["prepare 7"]);
        check(&[(7, Prepare)], &[(7, Prepared)], &[]);
        check(&[(7, Serve)], &[(7, Prepared)], &["serve 7"]);
        check(&[(7, Serve)], &[(7, Serving)], &[]);
        // A reboot goes straight back to serving.
        check(&[(7, Serve)], &[], &["prepare 7", "serve 7"]);
        // A reboot in mid-rollout prepares both and serves the newer.
        check(&[(7, Serve), (8, Serve)], &[], &["prepare 7", "prepare 8", "serve 8"]);
        // A shift: the old generation stays warm until it is asked to drain.
        check(&[(7, Serve), (8, Prepare)], &[(7, Serving)], &["prepare 8"]);
        check(&[(7, Serve), (8, Serve)], &[(7, Serving), (8, Prepared)], &["serve 8"]);
        check(&[(7, Serve), (8, Serve)], &[(7, Prepared), (8, Serving)], &[]);
        check(&[(7, Drain), (8, Serve)], &[(7, Prepared), (8, Serving)], &["drain 7"]);
        // A shift never cuts a session.
        check(&[(7, Remove), (8, Serve)], &[(7, Draining), (8, Serving)], &["remove 7"]);
        check(&[(7, Remove), (8, Serve)], &[(7, Removing), (8, Serving)], &[]);
        check(&[(7, Remove), (8, Serve)], &[(8, Serving)], &[]);
        // A rollback: the old one takes over before the new one drains.
        check(&[(7, Serve), (8, Drain)], &[(7, Prepared), (8, Serving)], &["serve 7", "drain 8"]);
        // Away while a rollout completed.
        check(&[(7, Drain), (8, Serve)], &[(7, Serving)], &["prepare 8", "serve 8", "drain 7"]);
        // A delete drains, then cuts what is left after the app's drain time.
        check(&[(7, Drain)], &[(7, Serving)], &["drain 7"]);
        check(&[(7, Remove)], &[(7, Draining)], &["remove 7 cut 30s"]);
        // What nobody asked for goes.
        check(&[], &[(7, Serving)], &["remove 7 cut 30s"]);
    }

    /// The proxy refused to prepare 8: the rest of that plan fails, and 7 must have been left alone.
    #[test]
    fn what_serves_is_not_let_go_before_its_successor_serves() {
        let asked = |generation, desired| {
            let assignment = Assignment { desired, ports: vec![80], index: 0, since: Timestamp(0) };
            (key("web", generation), Arc::new(assignment))
        };
        for old in [Desired::Drain, Desired::Remove] {
            let assigned: Assigned = [asked(7, old), asked(8, Desired::Serve)].into();
            let running = BTreeMap::from([(key("web", 7), Phase::Serving)]);
            let actions = plan(&assigned, &running, |_| Duration::ZERO);
            let key = key("web", 8);
            assert_eq!(actions, [Action::Prepare { key: key.clone() }, Action::Serve { key }]);
        }
    }

    #[test]
    fn readiness_needs_names_resolved_and_enough_healthy_targets() {
        use flotilla_proxy::{EndpointStatus, Resolution as R};
        let target = |name: &str, resolution: R, available: &[Option<bool>]| TargetStatus {
            pool: "default".to_owned(),
            target: name.into(),
            resolution,
            endpoints: available
                .iter()
                .map(|&available| EndpointStatus {
                    address: "127.0.0.1:1".parse().unwrap(),
                    available,
                    last_error: (available == Some(false)).then(|| "connection refused".to_owned()),
                })
                .collect(),
        };
        let up = || target("a:1", R::Resolved, &[Some(true)]);
        let down = || target("b:1", R::Resolved, &[Some(false)]);
        let new = || target("c:1", R::Resolved, &[None]);
        let pending = || target("d:1", R::Pending, &[]);
        let stale = || target("f:1", R::Failed("timed out".to_owned()), &[Some(true)]);
        let lost = || target("e:1", R::Failed("no such name".to_owned()), &[]);
        for (targets, needed, expected, warned) in [
            (vec![up(), up()], 1, "", 0),
            (vec![up(), new()], 1, "", 0),
            (vec![up(), lost(), down()], 1, "", 2),
            (vec![stale()], 1, "", 1),
            (vec![up(), pending()], 1, "1 of 1 targets are healthy: resolving d:1", 0),
            (vec![new()], 1, "0 of 1 targets are healthy: checking c:1", 0),
            (
                vec![down()],
                1,
                "0 of 1 targets are healthy: target b:1 fails its check: connection refused",
                1,
            ),
            (
                vec![up(), down()],
                2,
                "1 of 2 targets are healthy: target b:1 fails its check: connection refused",
                1,
            ),
            (vec![up()], 3, "", 0),
            (vec![down()], 0, "", 1),
        ] {
            let (missing, warnings) = missing(&targets, needed);
            assert_eq!(
                (missing.as_str(), warnings.len()),
                (expected, warned),
                "{targets:?}, {needed} needed"
            );
        }
    }
}
