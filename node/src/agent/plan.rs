//! What the node does next, and what it says of itself. PURE: desired and running in, actions and
//! reports out.
//!
//! Applying a plan twice changes nothing. A node that boots with nothing running prepares and serves
//! in one go: what served before the restart serves after it, checked or not. What takes an app's
//! traffic is let go only when its successor has taken it: a node that was away while a rollout
//! completed, and cannot prepare what serves elsewhere, goes on with what it has.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use flotilla_proxy::{GenerationStatus, Phase, PortState, TargetStatus};
use flotilla_raft_store::{Assignment, Desired, Fleet, Generation, GenerationId, Traffic, traffic};
use flotilla_spec::{AppName, AppSpec, Probe};
use imbl::OrdMap;

use super::Key;
use crate::rollout::observed::{
    GenerationReport, ProbeKind, ProbeReport, ProbeState, Readiness, Resolution, TargetReport,
};

pub(crate) type Assigned = OrdMap<Key, Arc<Assignment>>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Prepare {
        key: Key,
    },
    /// Takes the app's traffic from whichever generation has it.
    Serve {
        key: Key,
    },
    /// Shares the app's clients: `percent` of them, the rest to the generation `rest`.
    Share {
        key: Key,
        percent: u8,
        rest: GenerationId,
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
            Self::Prepare { key }
            | Self::Serve { key }
            | Self::Share { key, .. }
            | Self::Drain { key }
            | Self::Remove { key, .. } => key,
        }
    }
}

/// `None` for a name that no fleet has given: such a generation is not ours.
pub(crate) fn key(status: &GenerationStatus) -> Option<Key> {
    Some((AppName::parse(&status.app).ok()?, GenerationId(status.generation)))
}

/// Where a generation stands on the proxy, and its share of the app's clients.
pub(crate) type Stand = (Phase, u8);

pub(crate) fn running(status: &[GenerationStatus]) -> BTreeMap<Key, Stand> {
    status.iter().filter_map(|status| Some((key(status)?, (status.phase, status.percent)))).collect()
}

/// Preparing comes before shifting, shifting before draining, draining before removing: at every step
/// something serves that served before. A generation that `cannot` run here leaves the traffic to the
/// next one that is asked to serve.
pub(crate) fn plan(
    assigned: &Assigned,
    running: &BTreeMap<Key, Stand>,
    cannot: impl Fn(&Key) -> bool,
    drain: impl Fn(&Key) -> Duration,
) -> Vec<Action> {
    let mut actions = Vec::new();
    for (key, assignment) in assigned {
        let runs = match running.get(key) {
            Some((Phase::Prepared | Phase::Serving, _)) => true,
            // One that was given back and is wanted again.
            Some((Phase::Draining | Phase::Removing, _)) | None => false,
        };
        if asks_to_run(assignment.desired) && !runs {
            actions.push(Action::Prepare { key: key.clone() });
        }
    }
    for key in assigned.keys() {
        let of = |generation| (key.0.clone(), generation);
        let traffic = traffic(assigned, &key.0, |generation| !cannot(&of(generation)));
        let Some(Traffic { newest, percent, rest }) = traffic.filter(|traffic| traffic.newest == key.1)
        else {
            continue;
        };
        let has = |generation, percent| running.get(&of(generation)) == Some(&(Phase::Serving, percent));
        match rest {
            Some(rest) if !has(newest, percent) || !has(rest, 100 - percent) => {
                actions.push(Action::Share { key: key.clone(), percent, rest });
            }
            None if !has(newest, 100) => actions.push(Action::Serve { key: key.clone() }),
            Some(_) | None => {}
        }
    }
    for (key, (phase, _)) in running {
        let desired = assigned.get(key).map(|assignment| assignment.desired);
        let successor = traffic(assigned, &key.0, |_| true);
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

/// What the agent itself knows of a generation, beside what the proxy says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known<'a> {
    /// Why the proxy would not take it.
    pub(crate) rejected: Option<&'a str>,
    pub(crate) compiled: Option<Compiled>,
    pub(crate) probes: Vec<ProbeReport>,
    pub(crate) repairs: u64,
}

/// What a generation was made from, and what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Compiled {
    /// Of the spec.
    pub(crate) spec: [u8; 32],
    /// What the proxy says as long as it serves exactly that.
    pub(crate) proxy: [u8; 32],
}

/// What the node says of one generation. Its digest is that of the spec only while the proxy serves what
/// that spec compiles to here; a proxy that serves something else is reported with its own.
pub(crate) fn report(
    generation: &Generation,
    desired: Option<Desired>,
    status: Option<&GenerationStatus>,
    known: Known<'_>,
) -> GenerationReport {
    let Known { rejected, compiled, probes, repairs } = known;
    let digest = match (compiled, status) {
        (Some(compiled), Some(status)) if status.digest != compiled.proxy => status.digest,
        (Some(compiled), _) => compiled.spec,
        (None, _) => [0; 32],
    };
    let empty = |readiness, detail: &str| GenerationReport {
        readiness,
        percent: status.map_or(0, |status| status.percent),
        detail: detail.to_owned(),
        warnings: Vec::new(),
        digest,
        pins: 0,
        targets: Vec::new(),
        taken_ports: Vec::new(),
        probes: Vec::new(),
        repairs,
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
    let unready = if missing.is_empty() { unready(&probes, status.phase) } else { missing };
    let (readiness, detail) = match status.phase {
        Phase::Prepared if unready.is_empty() => (Readiness::Ready, unready),
        Phase::Prepared => (Readiness::Preparing, unready),
        Phase::Serving => (Readiness::Serving, unready),
        Phase::Draining => (Readiness::Draining, String::new()),
        Phase::Removing => (Readiness::Draining, closing(status)),
    };
    let targets = status.targets.iter().map(target_report).collect();
    GenerationReport { warnings, pins: status.pins, targets, probes, ..empty(readiness, &detail) }
}

/// The probes that do not let a generation be ready; once it serves, those that have failed.
fn unready(probes: &[ProbeReport], phase: Phase) -> String {
    let stands_in_the_way = |probe: &&ProbeReport| match (probe.kind, probe.state) {
        (_, ProbeState::Passing) => false,
        (_, ProbeState::Failing) => true,
        (ProbeKind::Readiness, ProbeState::Pending) => phase == Phase::Prepared,
        (ProbeKind::Liveness, ProbeState::Pending) => false,
    };
    let told: Vec<String> = probes.iter().filter(stands_in_the_way).map(ToString::to_string).collect();
    told.join("; ")
}

/// The probes to ask, by their place in the spec: of what is being made ready and of what takes traffic.
/// What stays warm behind it is not asked; the coordinator does not wait for it either.
pub(crate) fn probes<'a>(
    assigned: &Assigned,
    running: &BTreeMap<Key, Phase>,
    spec: impl Fn(&Key) -> Option<&'a AppSpec>,
) -> BTreeMap<(Key, usize), &'a Probe> {
    let mut wanted = BTreeMap::new();
    for (key, phase) in running {
        let asked = assigned.get(key).is_some_and(|assignment| asks_to_run(assignment.desired));
        let Some(spec) = spec(key).filter(|spec| asked && !spec.probe.is_empty()) else { continue };
        let shared = traffic(assigned, &key.0, |_| true);
        if shared.is_some_and(|shared| key.1 < shared.newest && Some(key.1) != shared.rest) {
            continue;
        }
        for (index, probe) in spec.probe.iter().enumerate() {
            let now = match (probe.kind, phase) {
                (_, Phase::Draining | Phase::Removing) => false,
                (flotilla_spec::ProbeKind::Readiness, Phase::Prepared | Phase::Serving) => true,
                (flotilla_spec::ProbeKind::Liveness, Phase::Prepared) => false,
                (flotilla_spec::ProbeKind::Liveness, Phase::Serving) => true,
            };
            if now {
                wanted.insert((key.clone(), index), probe);
            }
        }
    }
    wanted
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
        ejected: count(target.endpoints.iter().filter(|endpoint| endpoint.ejected).count()),
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
                let assignment =
                    Assignment { desired, percent: 100, ports: vec![80], index: 0, since: Timestamp(0) };
                (key("web", generation), Arc::new(assignment))
            })
            .collect();
        let stand = |phase| (phase, if phase == Phase::Serving { 100 } else { 0 });
        let mut running: BTreeMap<Key, Stand> =
            running.iter().map(|&(generation, phase)| (key("web", generation), stand(phase))).collect();
        let text = |actions: &[Action]| -> Vec<String> {
            let text = |action: &Action| match action {
                Action::Prepare { key } => format!("prepare {}", key.1),
                Action::Serve { key } => format!("serve {}", key.1),
                Action::Share { key, percent, rest } => format!("share {} {percent} % {rest}", key.1),
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
            let actions = plan(&assigned, &running, |_| false, drain);
            if actions.is_empty() {
                break;
            }
            told.extend(text(&actions));
            carry_out(actions, &mut running);
            assert!(told.len() < 9, "a plan applied is a plan done: {told:?}");
        }
        assert_eq!(told, expected, "assigned {assigned:?}");
    }

    fn carry_out(actions: Vec<Action>, running: &mut BTreeMap<Key, Stand>) {
        for action in actions {
            match action {
                Action::Prepare { key } => drop(running.insert(key, (Phase::Prepared, 0))),
                Action::Serve { key } => {
                    rest_of(&key.0, running);
                    running.insert(key, (Phase::Serving, 100));
                }
                Action::Share { key, percent, rest } => {
                    rest_of(&key.0, running);
                    running.insert((key.0.clone(), rest), (Phase::Serving, 100 - percent));
                    running.insert(key, (Phase::Serving, percent));
                }
                Action::Drain { key } => drop(running.insert(key, (Phase::Draining, 0))),
                Action::Remove { key, .. } => drop(running.insert(key, (Phase::Removing, 0))),
            }
        }
    }

    /// What served stays warm.
    fn rest_of(app: &AppName, running: &mut BTreeMap<Key, Stand>) {
        for (_, stand) in
            running.iter_mut().filter(|(other, stand)| other.0 == *app && stand.0 == Phase::Serving)
        {
            *stand = (Phase::Prepared, 0);
        }
    }

    #[test]
    fn a_share_is_taken_and_given_back_and_what_cannot_run_leaves_its_traffic_to_the_other() {
        let asked = |generation, percent| {
            let (index, since) = (0, Timestamp(0));
            let assignment = Assignment { desired: Desired::Serve, percent, ports: vec![80], index, since };
            (key("web", generation), Arc::new(assignment))
        };
        let assigned: Assigned = [asked(7, 100), asked(8, 10)].into_iter().collect();
        let both = |seven, eight| BTreeMap::from([(key("web", 7), seven), (key("web", 8), eight)]);
        let plan = |running: &BTreeMap<Key, Stand>, cannot: u64| {
            plan(&assigned, running, |key| key.1 == GenerationId(cannot), |_| Duration::ZERO)
        };
        let share = Action::Share { key: key("web", 8), percent: 10, rest: GenerationId(7) };
        let before = both((Phase::Serving, 100), (Phase::Prepared, 0));
        assert_eq!(plan(&before, 0), std::slice::from_ref(&share));
        assert_eq!(plan(&both((Phase::Serving, 99), (Phase::Serving, 1)), 0), [share]);
        assert_eq!(plan(&both((Phase::Serving, 90), (Phase::Serving, 10)), 0), []);
        let after_a_boot = both((Phase::Prepared, 0), (Phase::Prepared, 0));
        assert_eq!(plan(&after_a_boot, 8), [Action::Serve { key: key("web", 7) }]);
        assert_eq!(plan(&after_a_boot, 7), [Action::Serve { key: key("web", 8) }]);
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
        // Given back, and wanted again before the ports have closed.
        check(&[(7, Serve)], &[(7, Draining)], &["prepare 7", "serve 7"]);
        check(&[(7, Serve)], &[(7, Removing)], &["prepare 7", "serve 7"]);
        // What nobody asked for goes.
        check(&[], &[(7, Serving)], &["remove 7 cut 30s"]);
    }

    /// The proxy refused to prepare 8: the rest of that plan fails, and 7 must have been left alone.
    #[test]
    fn what_serves_is_not_let_go_before_its_successor_serves() {
        let asked = |generation, desired| {
            let assignment =
                Assignment { desired, percent: 100, ports: vec![80], index: 0, since: Timestamp(0) };
            (key("web", generation), Arc::new(assignment))
        };
        for old in [Desired::Drain, Desired::Remove] {
            let assigned: Assigned = [asked(7, old), asked(8, Desired::Serve)].into_iter().collect();
            let running = BTreeMap::from([(key("web", 7), (Phase::Serving, 100))]);
            let actions = plan(&assigned, &running, |_| false, |_| Duration::ZERO);
            let key = key("web", 8);
            assert_eq!(actions, [Action::Prepare { key: key.clone() }, Action::Serve { key }]);
        }
    }

    #[test]
    fn readiness_needs_names_resolved_and_enough_healthy_targets() {
        use std::net::SocketAddr;

        use flotilla_proxy::{EndpointStatus, Resolution as R};
        let target = |name: &str, resolution: R, available: &[Option<bool>]| TargetStatus {
            pool: "default".to_owned(),
            target: name.into(),
            resolution,
            endpoints: available
                .iter()
                .map(|&available| EndpointStatus {
                    address: SocketAddr::from(([127, 0, 0, 1], 1)).into(),
                    available,
                    last_error: (available == Some(false)).then(|| "connection refused".to_owned()),
                    ejected: false,
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
