//! The fleet and what is observed of it, as people see it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use flotilla_api::v1;
use flotilla_proxy::Tally;
use flotilla_raft_store::{
    App, AppChanged, Assignment, Availability, Cause, Desired, Drain, Fleet, GenerationId, Member, NodeId,
    Outcome, Rollout, RolloutState, Steer, Step,
};
use flotilla_spec::{AppName, Listen, Protocol, RolloutStrategy};
use openraft::ServerState;

use super::{Malformed, required};
use crate::{
    clock, membership,
    replica::Replica,
    reports::{Report, Reports, Told},
    rollout::{
        observed::{
            AppLoad, GenerationReport, Generations, NodeLoad, ProbeKind, ProbeReport, ProbeState, Readiness,
            Resolution, TargetReport,
        },
        plan::Waiting,
    },
};

/// The receiver of a message for whoever answers at an address.
pub(crate) const ANY_NODE: NodeId = NodeId(0);

pub(crate) fn member_to_pb(member: &Member) -> v1::MemberSpec {
    v1::MemberSpec {
        name: member.name.clone(),
        region: member.region.clone(),
        zone: member.zone.clone(),
        cluster_address: member.cluster_address.clone(),
        admin_address: member.admin_address.clone(),
        labels: member.labels.clone().into_iter().collect(),
        port_pool_from: member.port_pool.0.into(),
        port_pool_to: member.port_pool.1.into(),
        reserved_ports: member.reserved_ports.iter().copied().map(u32::from).collect(),
        version: member.binary_version.clone(),
        weight: member.weight,
        traffic_address: member.traffic_address.clone(),
    }
}

pub(crate) fn member(member: Option<v1::MemberSpec>) -> Result<Member, Malformed> {
    let member = required(member, "member")?;
    Ok(Member {
        name: member.name,
        region: member.region,
        zone: member.zone,
        cluster_address: member.cluster_address,
        admin_address: member.admin_address,
        labels: member.labels.into_iter().collect(),
        port_pool: (port(member.port_pool_from)?, port(member.port_pool_to)?),
        reserved_ports: member.reserved_ports.into_iter().map(port).collect::<Result<_, _>>()?,
        availability: Availability::Active,
        drain: None,
        weight: member.weight,
        binary_version: member.version,
        traffic_address: member.traffic_address,
    })
}

fn port(port: u32) -> Result<u16, Malformed> {
    u16::try_from(port).map_err(|_| Malformed(format!("{port} is not a port")))
}

fn load_to_pb(load: &NodeLoad) -> v1::NodeLoad {
    let apps = load.apps.iter().map(|(app, load)| v1::AppLoad {
        app: app.to_string(),
        connections: load.connections,
        begun_per_second: load.begun_per_second,
    });
    v1::NodeLoad {
        quiet_ms: u64::try_from(load.quiet_for.as_millis()).unwrap_or(u64::MAX),
        cpu_percent: load.cpu_percent,
        apps: apps.collect(),
        overloaded: load.overloaded,
    }
}

fn load(load: v1::NodeLoad) -> Result<NodeLoad, Malformed> {
    let apps = load.apps.into_iter().map(|of_app| {
        let app = AppName::parse(&of_app.app).map_err(|err| Malformed(err.to_string()))?;
        let v1::AppLoad { connections, begun_per_second, .. } = of_app;
        Ok((app, AppLoad { connections, begun_per_second }))
    });
    Ok(NodeLoad {
        quiet_for: Duration::from_millis(load.quiet_ms),
        cpu_percent: load.cpu_percent,
        apps: apps.collect::<Result<_, Malformed>>()?,
        overloaded: load.overloaded,
    })
}

pub(crate) fn report_to_pb(report: &Report, envelope: Option<v1::Envelope>) -> v1::NodeReport {
    let (told, changes_since, gone) = match &report.generations {
        Told::Same => (None, 0, &[][..]),
        Told::Since { sequence, changed, gone } => (Some(changed), *sequence, &gone[..]),
        Told::Whole(generations) => (Some(generations), 0, &[][..]),
    };
    let generations = told.into_iter().flatten().map(|((app, generation), report)| v1::GenerationReport {
        app: app.to_string(),
        generation: generation.0,
        readiness: readiness_to_pb(report.readiness).into(),
        percent: report.percent.into(),
        detail: report.detail.clone(),
        warnings: report.warnings.clone(),
        digest: report.digest.to_vec(),
        pins: report.pins,
        targets: report.targets.iter().map(target_to_pb).collect(),
        taken_ports: report.taken_ports.iter().copied().map(u32::from).collect(),
        probes: report.probes.iter().map(probe_to_pb).collect(),
        repairs: report.repairs,
    });
    let gone = gone
        .iter()
        .map(|(app, generation)| v1::GenerationKey { app: app.to_string(), generation: generation.0 });
    v1::NodeReport {
        envelope,
        sequence: report.sequence,
        incarnation: report.incarnation,
        applied: report.applied,
        connections: report.connections,
        store_bytes: report.store_bytes,
        generations: generations.collect(),
        same_generations: told.is_none(),
        changes_since,
        gone: gone.collect(),
        load: Some(load_to_pb(&report.load)),
        stopping: report.stopping,
        told_drain: report.told_drain.iter().map(ToString::to_string).collect(),
        tallies: report.tallies.iter().map(tally_to_pb).collect(),
    }
}

pub(crate) fn report(report: v1::NodeReport) -> Result<Report, Malformed> {
    let generations = report.generations.into_iter().map(|report| {
        let app = AppName::parse(&report.app).map_err(|err| Malformed(err.to_string()))?;
        let digest = report.digest.try_into().map_err(|_| Malformed("a digest has 32 bytes".to_owned()))?;
        let targets = report.targets.into_iter().map(target).collect::<Result<_, _>>()?;
        let probes = report.probes.into_iter().map(probe).collect::<Result<_, _>>()?;
        let readiness = readiness(report.readiness)?;
        let key = (app, GenerationId(report.generation));
        Ok((
            key,
            Arc::new(GenerationReport {
                readiness,
                percent: u8::try_from(report.percent).unwrap_or(u8::MAX),
                detail: report.detail,
                warnings: report.warnings,
                digest,
                pins: report.pins,
                targets,
                taken_ports: report.taken_ports.into_iter().map(port).collect::<Result<_, _>>()?,
                probes,
                repairs: report.repairs,
            }),
        ))
    });
    let generations = generations.collect::<Result<Generations, Malformed>>()?;
    let generations = match (report.same_generations, report.changes_since) {
        (true, _) => Told::Same,
        (false, 0) => Told::Whole(generations),
        (false, sequence) => {
            let gone = report.gone.into_iter().map(|key| {
                let app = AppName::parse(&key.app).map_err(|err| Malformed(err.to_string()))?;
                Ok((app, GenerationId(key.generation)))
            });
            let gone = gone.collect::<Result<_, Malformed>>()?;
            Told::Since { sequence, changed: generations, gone }
        }
    };
    let told_drain = report.told_drain.iter().map(|app| AppName::parse(app));
    let told_drain = told_drain.collect::<Result<_, _>>().map_err(|err| Malformed(err.to_string()))?;
    Ok(Report {
        load: Arc::new(report.load.map(load).transpose()?.unwrap_or_default()),
        tallies: report.tallies.into_iter().map(tally).collect::<Result<_, _>>()?,
        sequence: report.sequence,
        incarnation: report.incarnation,
        applied: report.applied,
        connections: report.connections,
        store_bytes: report.store_bytes,
        stopping: report.stopping,
        told_drain,
        generations,
    })
}

fn tally_to_pb(((app, generation), tally): (&(AppName, GenerationId), &Tally)) -> v1::GenerationTally {
    v1::GenerationTally {
        app: app.to_string(),
        generation: generation.0,
        requests: tally.requests,
        errors: tally.errors,
        unreached: tally.unreached,
        resets: tally.resets,
        latency: tally.latency.to_vec(),
    }
}

fn tally(tally: v1::GenerationTally) -> Result<((AppName, GenerationId), Tally), Malformed> {
    let app = AppName::parse(&tally.app).map_err(|err| Malformed(err.to_string()))?;
    let latency = tally.latency.try_into().map_err(|_| Malformed("other latency buckets".to_owned()))?;
    let v1::GenerationTally { requests, errors, unreached, resets, .. } = tally;
    let read = Tally { requests, errors, unreached, resets, latency };
    Ok(((app, GenerationId(tally.generation)), read))
}

fn readiness_to_pb(readiness: Readiness) -> v1::generation_report::Readiness {
    use v1::generation_report::Readiness as Pb;
    match readiness {
        Readiness::Preparing => Pb::Preparing,
        Readiness::Ready => Pb::Ready,
        Readiness::Serving => Pb::Serving,
        Readiness::Draining => Pb::Draining,
        Readiness::Removed => Pb::Removed,
        Readiness::Rejected => Pb::Rejected,
    }
}

fn readiness(readiness: i32) -> Result<Readiness, Malformed> {
    use v1::generation_report::Readiness as Pb;
    match Pb::try_from(readiness) {
        Ok(Pb::Preparing) => Ok(Readiness::Preparing),
        Ok(Pb::Ready) => Ok(Readiness::Ready),
        Ok(Pb::Serving) => Ok(Readiness::Serving),
        Ok(Pb::Draining) => Ok(Readiness::Draining),
        Ok(Pb::Removed) => Ok(Readiness::Removed),
        Ok(Pb::Rejected) => Ok(Readiness::Rejected),
        Ok(Pb::Unspecified) | Err(_) => Err(Malformed(format!("readiness {readiness} is unknown"))),
    }
}

fn target_to_pb(target: &TargetReport) -> v1::TargetReport {
    use v1::target_report::Resolution as Pb;
    let resolution = match target.resolution {
        Resolution::Pending => Pb::Pending,
        Resolution::Resolved => Pb::Resolved,
        Resolution::Failed => Pb::Failed,
    };
    v1::TargetReport {
        target: target.target.clone(),
        resolution: resolution.into(),
        endpoints: target.endpoints,
        available: target.available,
        detail: target.detail.clone(),
        ejected: target.ejected,
    }
}

fn target(target: v1::TargetReport) -> Result<TargetReport, Malformed> {
    use v1::target_report::Resolution as Pb;
    let resolution = match Pb::try_from(target.resolution) {
        Ok(Pb::Pending) => Resolution::Pending,
        Ok(Pb::Resolved) => Resolution::Resolved,
        Ok(Pb::Failed) => Resolution::Failed,
        Ok(Pb::Unspecified) | Err(_) => {
            return Err(Malformed(format!("resolution {} is unknown", target.resolution)));
        }
    };
    Ok(TargetReport {
        target: target.target,
        resolution,
        endpoints: target.endpoints,
        available: target.available,
        ejected: target.ejected,
        detail: target.detail,
    })
}

fn probe_to_pb(probe: &ProbeReport) -> v1::ProbeStatus {
    v1::ProbeStatus {
        name: probe.name.clone(),
        kind: match probe.kind {
            ProbeKind::Readiness => "readiness",
            ProbeKind::Liveness => "liveness",
        }
        .to_owned(),
        state: match probe.state {
            ProbeState::Pending => "pending",
            ProbeState::Passing => "passing",
            ProbeState::Failing => "failing",
        }
        .to_owned(),
        detail: probe.detail.clone(),
    }
}

fn probe(probe: v1::ProbeStatus) -> Result<ProbeReport, Malformed> {
    Ok(ProbeReport {
        kind: match probe.kind.as_str() {
            "readiness" => ProbeKind::Readiness,
            "liveness" => ProbeKind::Liveness,
            other => return Err(Malformed(format!("probe kind `{other}` is unknown"))),
        },
        state: match probe.state.as_str() {
            "pending" => ProbeState::Pending,
            "passing" => ProbeState::Passing,
            "failing" => ProbeState::Failing,
            other => return Err(Malformed(format!("probe state `{other}` is unknown"))),
        },
        name: probe.name,
        detail: probe.detail,
    })
}

pub(crate) fn app_changed_to_pb(changed: &AppChanged) -> v1::AppChanged {
    v1::AppChanged {
        app: changed.app.to_string(),
        outcome: outcome_to_pb(changed.outcome).into(),
        version: changed.version,
        generation: changed.generation.0,
    }
}

fn outcome_to_pb(outcome: Outcome) -> v1::app_changed::Outcome {
    match outcome {
        Outcome::Created => v1::app_changed::Outcome::Created,
        Outcome::Changed => v1::app_changed::Outcome::Changed,
        Outcome::Unchanged => v1::app_changed::Outcome::Unchanged,
        Outcome::Deleted => v1::app_changed::Outcome::Deleted,
    }
}

pub(crate) fn app_to_pb(fleet: &Fleet, name: &AppName) -> Option<v1::App> {
    let app = fleet.apps.get(name)?;
    let placed: Vec<_> = fleet
        .assignments
        .keys()
        .filter_map(|node| {
            let mut ours = fleet.assignments_of(*node, name);
            let first = ours.next()?;
            Some(
                std::iter::once(first)
                    .chain(ours)
                    .any(|(_, assignment)| assignment.desired == Desired::Serve),
            )
        })
        .collect();
    Some(v1::App {
        name: name.to_string(),
        version: app.version,
        wanted: app.wanted.0,
        serving: app.serving.map_or(0, |generation| generation.0),
        state: app_state(fleet, name, app).to_owned(),
        listen: app.spec.listen.iter().map(listen_to_text).collect(),
        targets: app.spec.targets.iter().map(|target| target.address.clone()).collect(),
        policy: app.spec.balance.policy.name().to_owned(),
        nodes_serving: count(placed.iter().filter(|serves| **serves).count()),
        nodes_placed: count(placed.len()),
    })
}

fn app_state(fleet: &Fleet, name: &AppName, app: &App) -> &'static str {
    if app.deleted {
        return "deleting";
    }
    match fleet.rollouts.get(&(name.clone(), app.wanted)).map(|rollout| rollout.state) {
        Some(RolloutState::Progressing) => "rolling out",
        Some(RolloutState::Paused) => "paused",
        Some(RolloutState::RollingBack) => "rolling back",
        Some(RolloutState::RolledBack) => "rolled back",
        Some(RolloutState::Failed) => "failed",
        Some(RolloutState::Completed | RolloutState::Superseded) | None => "serving",
    }
}

pub(super) fn protocol_to_text(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Http => "http",
    }
}

fn listen_to_text(listen: &Listen) -> String {
    format!("{}:{}", protocol_to_text(listen.protocol), listen.port)
}

pub(crate) fn description_to_pb(
    fleet: &Fleet,
    name: &AppName,
    reports: &Reports,
    waiting: &[Waiting],
) -> Option<v1::AppDescription> {
    let app = fleet.apps.get(name)?;
    let wanted = fleet.generations.get(&(name.clone(), app.wanted))?;
    let nodes = fleet.assignments.iter().flat_map(|(&node, assignments)| {
        let ours = assignments.iter().filter(|((app, _), _)| app == name);
        ours.map(move |(key, assignment)| {
            node_generation_to_pb(fleet, node, key.clone(), assignment, reports.generation(node, key))
        })
    });
    let newest =
        fleet.rollouts.keys().filter(|(app, _)| app == name).map(|(_, generation)| *generation).max();
    Some(v1::AppDescription {
        app: app_to_pb(fleet, name),
        spec: app.spec.to_json(),
        digest: hex(&wanted.digest),
        nodes: nodes.collect(),
        history: app.history.iter().map(history_to_pb).collect(),
        rollout: newest.and_then(|generation| rollout_to_pb(fleet, name, generation, reports, waiting)),
    })
}

fn node_generation_to_pb(
    fleet: &Fleet,
    node: NodeId,
    key: (AppName, GenerationId),
    assignment: &Assignment,
    report: Option<GenerationReport>,
) -> v1::NodeGeneration {
    let targets = report.iter().flat_map(|report| &report.targets).map(|target| v1::TargetStatus {
        target: target.target.clone(),
        resolution: resolution_to_text(target.resolution).to_owned(),
        endpoints: target.endpoints,
        available: target.available,
        detail: target.detail.clone(),
    });
    v1::NodeGeneration {
        node: fleet.node_name(node),
        generation: key.1.0,
        desired: desired_to_text(assignment.desired).to_owned(),
        readiness: report.as_ref().map_or("unknown", |report| readiness_to_text(report.readiness)).to_owned(),
        digest: report.as_ref().map(|report| hex(&report.digest)).unwrap_or_default(),
        ports: assignment.ports.iter().copied().map(u32::from).collect(),
        targets: targets.collect(),
        digest_matches: matches(fleet, &key, report.as_ref()),
        pins: report.as_ref().map_or(0, |report| report.pins),
        probes: report.iter().flat_map(|report| &report.probes).map(probe_to_pb).collect(),
        repairs: report.as_ref().map_or(0, |report| report.repairs),
        detail: report.map(|report| report.detail).unwrap_or_default(),
    }
}

/// The node has exactly the spec of the generation ready, or serves it.
fn matches(fleet: &Fleet, key: &(AppName, GenerationId), report: Option<&GenerationReport>) -> bool {
    let digest = fleet.generations.get(key).map(|generation| generation.digest);
    report.is_some_and(|report| match report.readiness {
        Readiness::Ready | Readiness::Serving => Some(report.digest) == digest,
        Readiness::Preparing | Readiness::Draining | Readiness::Removed | Readiness::Rejected => false,
    })
}

fn history_to_pb(entry: &flotilla_raft_store::HistoryEntry) -> v1::HistoryEntry {
    v1::HistoryEntry {
        version: entry.version,
        generation: entry.generation.0,
        time_ms: entry.time.0,
        cause: match &entry.cause {
            Cause::Applied => "applied".to_owned(),
            Cause::RolledBackTo { version } => format!("rolled back to {version}"),
        },
        outcome: entry.outcome.map_or("in progress", rollout_state_to_text).to_owned(),
        spec: entry.spec.to_json(),
    }
}

pub(crate) fn ports_to_pb(fleet: &Fleet, app: &str) -> v1::ListPortsReply {
    let mut ports = Vec::new();
    for (&node, assignments) in &fleet.assignments {
        for ((name, generation), assignment) in assignments {
            let Some(known) = fleet.generations.get(&(name.clone(), *generation)) else { continue };
            if !app.is_empty() && name.as_str() != app {
                continue;
            }
            for (listen, &port) in known.spec.listen.iter().zip(&assignment.ports) {
                ports.push(v1::PortAssignment {
                    node: fleet.node_name(node),
                    address: listen.address.to_string(),
                    port: port.into(),
                    protocol: protocol_to_text(listen.protocol).to_owned(),
                    app: name.to_string(),
                    generation: generation.0,
                    desired: desired_to_text(assignment.desired).to_owned(),
                });
            }
        }
    }
    v1::ListPortsReply { ports }
}

pub(crate) fn rollout_to_pb(
    fleet: &Fleet,
    app: &AppName,
    generation: GenerationId,
    reports: &Reports,
    waiting: &[Waiting],
) -> Option<v1::Rollout> {
    let key = (app.clone(), generation);
    let rollout = fleet.rollouts.get(&key)?;
    let version = |generation: GenerationId| {
        let history = fleet.apps.get(app).map(|app| &app.history)?;
        history.iter().find(|entry| entry.generation == generation).map(|entry| entry.version)
    };
    // Nothing more happens by itself.
    let finished = rollout.state.is_finished() || rollout.state == RolloutState::Paused;
    Some(v1::Rollout {
        app: app.to_string(),
        from: rollout.from.map_or(0, |from| from.0),
        to: generation.0,
        state: rollout_state_to_text(rollout.state).to_owned(),
        finished,
        reason: rollout.reason.clone(),
        started_ms: rollout.started.0,
        progressed_ms: rollout.progressed.0,
        steps: steps_to_pb(fleet, rollout, &key, reports),
        waiting: waiting
            .iter()
            .filter(|waiting| !finished && *waiting.app() == *app)
            .map(|waiting| waiting.display(fleet).to_string())
            .collect(),
        from_version: rollout.from.and_then(version).unwrap_or(0),
        to_version: version(generation).unwrap_or(0),
        digest: fleet.generations.get(&key).map(|record| hex(&record.digest)).unwrap_or_default(),
        strategy: fleet
            .generations
            .get(&key)
            .map(|record| strategy_to_text(&record.spec.rollout))
            .unwrap_or_default(),
    })
}

fn steps_to_pb(
    fleet: &Fleet,
    rollout: &Rollout,
    key: &(AppName, GenerationId),
    reports: &Reports,
) -> Vec<v1::RolloutStep> {
    let steps = rollout.steps.iter().map(|(&node, step)| {
        let report = reports.generation(node, key);
        let (step, failure) = step_to_text(step);
        let detail =
            if failure.is_empty() { report.as_ref().map_or("", |report| &report.detail) } else { failure };
        v1::RolloutStep {
            percent: percent_of(fleet, node, key).into(),
            node: fleet.node_name(node),
            step: step.to_owned(),
            detail: detail.to_owned(),
            readiness: report
                .as_ref()
                .map_or("unknown", |report| readiness_to_text(report.readiness))
                .to_owned(),
            live: reports.is_live(node),
            digest: report.as_ref().map(|report| hex(&report.digest)).unwrap_or_default(),
            digest_matches: matches(fleet, key, report.as_ref()),
            warnings: report.map(|report| report.warnings).unwrap_or_default(),
        }
    });
    steps.collect()
}

/// The share of the clients that the generation is asked to take there.
fn percent_of(fleet: &Fleet, node: NodeId, (app, generation): &(AppName, GenerationId)) -> u8 {
    fleet.traffic(node, app).map_or(0, |traffic| traffic.share_of(*generation))
}

fn strategy_to_text(rollout: &flotilla_spec::Rollout) -> String {
    let nodes = |count: u32| if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") };
    let who = match (rollout.strategy, rollout.canaries()) {
        (RolloutStrategy::BlueGreen, _) => "blue_green".to_owned(),
        (RolloutStrategy::AllAtOnce, _) => "all_at_once".to_owned(),
        (RolloutStrategy::Rolling | RolloutStrategy::Canary, 0) => {
            format!("rolling, {} at a time", nodes(rollout.max_parallel))
        }
        (RolloutStrategy::Rolling | RolloutStrategy::Canary, count) => format!("canary on {}", nodes(count)),
    };
    let steps: Vec<String> = rollout.steps.iter().map(|percent| format!("{percent} %")).collect();
    let steps = if steps.len() > 1 { format!(", {}", steps.join(" -> ")) } else { String::new() };
    let asks = if rollout.auto_promote { "" } else { ", to be promoted" };
    format!("{who}{steps}{asks}")
}

pub(crate) fn steer(word: i32) -> Result<Steer, Malformed> {
    use v1::steer_rollout_request::Word;
    match Word::try_from(word) {
        Ok(Word::Pause) => Ok(Steer::Pause),
        Ok(Word::Resume) => Ok(Steer::Resume),
        Ok(Word::Promote) => Ok(Steer::Promote { full: false }),
        Ok(Word::PromoteInFull) => Ok(Steer::Promote { full: true }),
        Ok(Word::Abort) => Ok(Steer::Abort),
        Ok(Word::Unspecified) | Err(_) => Err(Malformed("no word to a rollout".to_owned())),
    }
}

fn step_to_text(step: &Step) -> (&'static str, &str) {
    match step {
        Step::Preparing { .. } => ("preparing", ""),
        Step::Ready => ("ready", ""),
        Step::Shifting { .. } => ("shifting", ""),
        Step::Monitoring { .. } => ("monitoring", ""),
        Step::Done => ("done", ""),
        Step::Failed { reason } => ("failed", reason),
    }
}

fn rollout_state_to_text(state: RolloutState) -> &'static str {
    match state {
        RolloutState::Progressing => "progressing",
        RolloutState::Paused => "paused",
        RolloutState::RollingBack => "rolling back",
        RolloutState::RolledBack => "rolled back",
        RolloutState::Completed => "completed",
        RolloutState::Failed => "failed",
        RolloutState::Superseded => "superseded",
    }
}

fn desired_to_text(desired: Desired) -> &'static str {
    match desired {
        Desired::Prepare => "prepare",
        Desired::Serve => "serve",
        Desired::Drain => "drain",
        Desired::Remove => "remove",
    }
}

fn readiness_to_text(readiness: Readiness) -> &'static str {
    match readiness {
        Readiness::Preparing => "preparing",
        Readiness::Ready => "ready",
        Readiness::Serving => "serving",
        Readiness::Draining => "draining",
        Readiness::Removed => "removed",
        Readiness::Rejected => "rejected",
    }
}

fn resolution_to_text(resolution: Resolution) -> &'static str {
    match resolution {
        Resolution::Pending => "resolving",
        Resolution::Resolved => "resolved",
        Resolution::Failed => "unresolved",
    }
}

pub(crate) fn nodes_to_pb(replica: &Replica) -> Vec<v1::Node> {
    let fleet = replica.fleet();
    let metrics = replica.raft.metrics().borrow().clone();
    let voters: BTreeSet<NodeId> = metrics.membership_config.membership().voter_ids().collect();
    let leads = metrics.state == ServerState::Leader;
    let drains = replica.drains.borrow().clone();
    let node = |(&id, member): (&NodeId, &Arc<Member>)| {
        let report = replica.reports.of(id);
        let live = replica.reports.is_live(id);
        v1::Node {
            id: id.0,
            name: member.name.clone(),
            region: member.region.clone(),
            zone: member.zone.clone(),
            cluster_address: member.cluster_address.clone(),
            admin_address: member.admin_address.clone(),
            role: role(id, metrics.current_leader, &voters).to_owned(),
            state: node_state(
                member.availability,
                leads.then_some(live),
                report.as_ref().is_some_and(|(_, report)| report.load.overloaded),
            )
            .to_owned(),
            version: member.binary_version.clone(),
            applied: report.as_ref().map_or(0, |(_, report)| report.applied),
            labels: member.labels.clone().into_iter().collect(),
            apps: count(fleet.assignments.get(&id).map_or(0, |assignments| {
                assignments.keys().map(|(app, _)| app).collect::<BTreeSet<_>>().len()
            })),
            connections: report.as_ref().map_or(0, |(_, report)| report.connections),
            store_bytes: report.as_ref().map_or(0, |(_, report)| report.store_bytes),
            weight: member.weight,
            cpu_percent: report.as_ref().map_or(0, |(_, report)| report.load.cpu_percent),
            drain: member.drain.map(|drain| drain_to_pb(&drain, drains.get(&id))),
            report_age_ms: report.map(|(age, _)| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        }
    };
    let present = fleet.members.iter().filter(|(_, member)| member.availability != Availability::Left);
    present.map(node).collect()
}

fn drain_to_pb(drain: &Drain, waiting: Option<&Vec<String>>) -> v1::Drain {
    v1::Drain {
        phase: drain.phase.to_string(),
        over: drain.phase.is_over(),
        since_ms: drain.since.0,
        started_ms: drain.started.0,
        deadline_ms: drain.deadline.0,
        leaves: drain.leaves,
        waiting: waiting.cloned().unwrap_or_default(),
    }
}

fn role(node: NodeId, leader: Option<NodeId>, voters: &BTreeSet<NodeId>) -> &'static str {
    if leader == Some(node) {
        "leader"
    } else if voters.contains(&node) {
        "follower"
    } else {
        "learner"
    }
}

/// `live`: `None` where nobody reports to, because this node does not lead.
fn node_state(availability: Availability, live: Option<bool>, is_overloaded: bool) -> &'static str {
    match (availability, live) {
        (Availability::Left, _) => "left",
        (_, Some(false)) => "unreachable",
        (Availability::Active, Some(true)) if is_overloaded => "overloaded",
        (Availability::Active, Some(true)) => "ready",
        (Availability::Active, None) => "unknown",
        (Availability::Cordoned, _) => "cordoned",
        (Availability::Draining, _) => "draining",
    }
}

pub(crate) fn status_to_pb(replica: &Replica) -> v1::ClusterStatusReply {
    let fleet = replica.fleet();
    let metrics = replica.raft.metrics().borrow().clone();
    let voters: BTreeSet<NodeId> = metrics.membership_config.membership().voter_ids().collect();
    let leads = metrics.state == ServerState::Leader;
    let live = voters.iter().filter(|&&node| leads && replica.reports.is_live(node)).count();
    let majority = voters.len() / 2 + 1;
    let leader = metrics.current_leader.unwrap_or_default();
    let health = match metrics.current_leader {
        None => "no quorum",
        // The leader was asked first and did not answer; who reports to it is not known here.
        Some(_) if !leads => "unknown",
        Some(_) if live < voters.len() => "degraded",
        Some(_) => "healthy",
    };
    v1::ClusterStatusReply {
        id: replica.identity.cluster.0.clone(),
        name: fleet.cluster.name.clone(),
        leader: leader.0,
        leader_name: metrics.current_leader.map(|leader| fleet.node_name(leader)).unwrap_or_default(),
        term: metrics.current_term,
        commit: metrics.last_applied.map_or(0, |id| id.index),
        voters: count(voters.len()),
        voters_live: count(live),
        tolerates: count(live.saturating_sub(majority)),
        health: health.to_owned(),
        nodes: nodes_to_pb(replica),
        answered_by: fleet.node_name(replica.me()),
        now_ms: clock::now().0,
        voters_max: count(membership::VOTERS_MAX),
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("strings take every write");
        text
    })
}

pub(crate) fn plan_to_pb(before: &Fleet, after: &Fleet, changes: &[AppChanged]) -> v1::PlanAppsReply {
    let apps: Vec<_> = changes.iter().map(|changed| app_plan_to_pb(before, after, changed)).collect();
    let changed = changes.iter().filter(|changed| changed.outcome == Outcome::Changed).count();
    v1::PlanAppsReply {
        apps,
        apps_unchanged: (before.apps.len() - changed.min(before.apps.len())) as u64,
        index: before.index,
        cluster: before.cluster.name.clone(),
    }
}

fn app_plan_to_pb(before: &Fleet, after: &Fleet, changed: &AppChanged) -> v1::AppPlan {
    let old = before.apps.get(&changed.app);
    let new = after.apps.get(&changed.app);
    let document = |app: Option<&Arc<App>>| {
        app.and_then(|app| serde_json::from_slice(&app.spec.to_json()).ok())
            .unwrap_or(serde_json::Value::Null)
    };
    let mut changes = Vec::new();
    if changed.outcome == Outcome::Changed {
        field_changes("", &document(old), &document(new), &mut changes);
    }
    v1::AppPlan {
        app: changed.app.to_string(),
        outcome: outcome_to_pb(changed.outcome).into(),
        version_before: old.map_or(0, |app| app.version),
        version_after: changed.version,
        changes,
        nodes: if changed.outcome == Outcome::Unchanged {
            Vec::new()
        } else {
            node_plans(before, after, changed)
        },
        warnings: Vec::new(),
        rollout: match changed.outcome {
            Outcome::Created | Outcome::Changed => {
                new.map(|app| strategy_to_text(&app.spec.rollout)).unwrap_or_default()
            }
            Outcome::Unchanged | Outcome::Deleted => String::new(),
        },
    }
}

/// The leaves in which two documents differ, named as in the file.
fn field_changes(
    path: &str,
    before: &serde_json::Value,
    after: &serde_json::Value,
    changes: &mut Vec<v1::FieldChange>,
) {
    use serde_json::Value::{Array, Null, Object};
    match (before, after) {
        _ if before == after => {}
        (Object(old), Object(new)) => {
            let keys: BTreeSet<_> = old.keys().chain(new.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                field_changes(&path, old.get(key).unwrap_or(&Null), new.get(key).unwrap_or(&Null), changes);
            }
        }
        (Array(old), Array(new)) => {
            for index in 0..old.len().max(new.len()) {
                let path = format!("{path}[{index}]");
                field_changes(
                    &path,
                    old.get(index).unwrap_or(&Null),
                    new.get(index).unwrap_or(&Null),
                    changes,
                );
            }
        }
        _ => {
            changes.push(v1::FieldChange { field: path.to_owned(), before: leaf(before), after: leaf(after) })
        }
    }
}

fn leaf(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => String::new(),
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::Array(_)
        | serde_json::Value::Object(_) => value.to_string(),
    }
}

fn node_plans(before: &Fleet, after: &Fleet, changed: &AppChanged) -> Vec<v1::NodePlan> {
    let ports = |fleet: &Fleet, node: &NodeId, generation: Option<GenerationId>| -> Option<BTreeSet<u16>> {
        let assignment = fleet.assignments.get(node)?.get(&(changed.app.clone(), generation?))?;
        Some(assignment.ports.iter().copied().collect())
    };
    let serving = before.apps.get(&changed.app).and_then(|app| app.serving);
    let spec = |fleet: &Fleet, generation: Option<GenerationId>| {
        let known = fleet.generations.get(&(changed.app.clone(), generation?))?;
        Some(Arc::clone(&known.spec))
    };
    let in_place = spec(before, serving)
        .zip(spec(after, Some(changed.generation)))
        .map_or("C0", |(old, new)| in_place_class(&old.listen, &new.listen));
    let nodes: BTreeSet<_> = before.assignments.keys().chain(after.assignments.keys()).collect();
    let plan = |node: &NodeId| {
        let old = ports(before, node, serving);
        let new = ports(after, node, Some(changed.generation));
        let class = match (&old, &new) {
            (None, None) => return None,
            (None, Some(_)) => "new",
            (Some(_), None) => "leave",
            (Some(old), Some(new)) => match (new.is_subset(old), old.is_subset(new)) {
                (true, true) => in_place,
                (false, true) => "C3",
                (true, false) => "C4",
                (false, false) => "C3+C4",
            },
        };
        Some(v1::NodePlan {
            node: after.node_name(*node),
            change_class: class.to_owned(),
            ports: new.or(old).into_iter().flatten().map(u32::from).collect(),
        })
    };
    nodes.into_iter().filter_map(plan).collect()
}

/// What a change is that leaves the ports as they are.
fn in_place_class(old: &[Listen], new: &[Listen]) -> &'static str {
    let differ = |is_other: fn(&Listen, &Listen) -> bool| {
        new.iter().any(|new| old.iter().any(|old| old.port == new.port && is_other(old, new)))
    };
    if differ(|old, new| old.address != new.address) {
        "C5"
    } else if differ(|old, new| old.socket != new.socket) {
        "C2"
    } else {
        "C0"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_carries_travels_whole() {
        let of_app = AppLoad { connections: 3, begun_per_second: 4 };
        let whole = NodeLoad {
            quiet_for: Duration::from_millis(5),
            cpu_percent: 6,
            apps: [(AppName::parse("web").unwrap(), of_app)].into(),
            overloaded: true,
        };
        assert_eq!(load(load_to_pb(&whole)).unwrap(), whole);
    }

    #[test]
    fn a_node_that_turns_clients_away_is_not_called_ready() {
        for (availability, live, is_overloaded, expected) in [
            (Availability::Active, Some(true), false, "ready"),
            (Availability::Active, Some(true), true, "overloaded"),
            (Availability::Active, Some(false), true, "unreachable"),
            (Availability::Active, None, false, "unknown"),
            (Availability::Cordoned, Some(true), true, "cordoned"),
            (Availability::Draining, Some(true), true, "draining"),
        ] {
            assert_eq!(node_state(availability, live, is_overloaded), expected);
        }
    }
}
