//! What a fleet says, as JSON. The names of the fields are a promise to scripts: they are spelled
//! out here, so that renaming a field of the protocol does not rename one of theirs.

use flotilla_api::v1::{
    App, AppChanged, AppDescription, AppPlan, Balancer, BalancerStatus, ClusterStatusReply, Event,
    HistoryEntry, Node, NodeGeneration, PortAssignment, Rollout, app_changed::Outcome, balancer::Kind,
};
use serde_json::{Value, json};

use crate::view::rfc3339;

pub(crate) fn app(app: &App) -> Value {
    json!({
        "name": app.name,
        "version": app.version,
        "wanted": app.wanted,
        "serving": id(app.serving),
        "state": app.state,
        "listen": app.listen,
        "targets": app.targets,
        "policy": app.policy,
        "nodesServing": app.nodes_serving,
        "nodesPlaced": app.nodes_placed,
    })
}

pub(crate) fn balancer(balancer: &Balancer) -> Value {
    let mut whole = json!({
        "name": balancer.name,
        "apps": balancer.apps,
        "minIntervalMs": balancer.min_interval_ms,
    });
    let (kind, settings) = match &balancer.kind {
        Some(Kind::Haproxy(haproxy)) => (
            "haproxy",
            json!({
                "address": haproxy.address,
                "node": haproxy.node,
                "backend": haproxy.backend,
                "prefix": haproxy.prefix,
                "options": haproxy.options,
            }),
        ),
        Some(Kind::AgentCheck(check)) => ("agentCheck", json!({ "port": check.port })),
        Some(Kind::TcpCheck(check)) => {
            ("tcpCheck", json!({ "port": check.port, "closesOnDrain": check.closes_on_drain }))
        }
        Some(Kind::Envoy(envoy)) => ("envoy", json!({ "port": envoy.port, "admin": envoy.admin })),
        Some(Kind::Nginx(nginx)) => ("nginx", json!({ "node": nginx.node })),
        None => ("unknown", Value::Null),
    };
    whole["balancer"] = json!(kind);
    whole[kind] = settings;
    whole
}

pub(crate) fn balancer_status(status: &BalancerStatus) -> Value {
    let mut whole = status.balancer.as_ref().map_or(json!({}), balancer);
    whole["state"] = json!(status.state);
    whole["problems"] = json!(status.problems);
    whole["pushes"] = json!(status.pushes);
    whole["pushedAgeMs"] = json!(status.pushed_age_ms);
    whole["observedAgeMs"] = json!(status.observed_age_ms);
    whole["servers"] = list(&status.servers, |server| {
        json!({
            "service": server.service,
            "app": server.app,
            "node": server.node,
            "address": server.address,
            "wanted": server.wanted,
            "seen": server.seen,
        })
    });
    whole["clients"] = list(&status.clients, |client| {
        json!({
            "id": client.id,
            "through": client.by,
            "stream": client.r#type,
            "sent": client.sent,
            "acknowledged": client.acknowledged,
            "refused": client.error,
        })
    });
    whole
}

pub(crate) fn description(description: &AppDescription) -> Value {
    json!({
        "app": description.app.as_ref().map(app),
        "spec": spec(&description.spec),
        "digest": description.digest,
        "nodes": list(&description.nodes, node_generation),
        "history": list(&description.history, history_entry),
        "rollout": description.rollout.as_ref().map(rollout),
    })
}

/// One generation on one node.
fn node_generation(node: &NodeGeneration) -> Value {
    json!({
        "node": node.node,
        "generation": node.generation,
        "desired": node.desired,
        "readiness": node.readiness,
        "detail": node.detail,
        "digest": node.digest,
        "digestMatches": node.digest_matches,
        "ports": node.ports,
        "targets": list(&node.targets, |target| json!({
            "target": target.target,
            "resolution": target.resolution,
            "endpoints": target.endpoints,
            "available": target.available,
            "detail": target.detail,
        })),
        "pins": node.pins,
        "probes": list(&node.probes, |probe| json!({
            "name": probe.name,
            "kind": probe.kind,
            "state": probe.state,
            "detail": probe.detail,
        })),
        "repairs": node.repairs,
    })
}

pub(crate) fn changed(changed: &AppChanged) -> Value {
    json!({
        "app": changed.app,
        "outcome": outcome(changed.outcome()),
        "version": changed.version,
        "generation": changed.generation,
    })
}

pub(crate) fn plan(plan: &AppPlan) -> Value {
    json!({
        "app": plan.app,
        "outcome": outcome(plan.outcome()),
        "versionBefore": id(plan.version_before),
        "versionAfter": plan.version_after,
        "changes": list(&plan.changes, |change| json!({
            "field": change.field,
            "before": (!change.before.is_empty()).then_some(&change.before),
            "after": (!change.after.is_empty()).then_some(&change.after),
        })),
        "nodes": list(&plan.nodes, |node| json!({
            "node": node.node,
            "changeClass": node.change_class,
            "ports": node.ports,
        })),
        "rollout": plan.rollout,
        "warnings": plan.warnings,
    })
}

pub(crate) fn history_entry(entry: &HistoryEntry) -> Value {
    json!({
        "version": entry.version,
        "generation": entry.generation,
        "time": rfc3339(entry.time_ms),
        "cause": entry.cause,
        "outcome": entry.outcome,
        "spec": spec(&entry.spec),
    })
}

pub(crate) fn port(port: &PortAssignment) -> Value {
    json!({
        "node": port.node,
        "address": port.address,
        "port": port.port,
        "protocol": port.protocol,
        "app": port.app,
        "generation": port.generation,
        "desired": port.desired,
    })
}

pub(crate) fn event(event: &Event) -> Value {
    json!({
        "index": event.index,
        "time": rfc3339(event.time_ms),
        "app": (!event.app.is_empty()).then_some(&event.app),
        "node": (!event.node.is_empty()).then_some(&event.node),
        "message": event.message,
    })
}

pub(crate) fn rollout(rollout: &Rollout) -> Value {
    json!({
        "app": rollout.app,
        "from": id(rollout.from),
        "to": rollout.to,
        "fromVersion": id(rollout.from_version),
        "toVersion": id(rollout.to_version),
        "state": rollout.state,
        "finished": rollout.finished,
        "reason": rollout.reason,
        "started": rfc3339(rollout.started_ms),
        "progressed": rfc3339(rollout.progressed_ms),
        "steps": list(&rollout.steps, |step| json!({
            "node": step.node,
            "step": step.step,
            "percent": step.percent,
            "detail": step.detail,
            "readiness": step.readiness,
            "live": step.live,
            "digest": step.digest,
            "digestMatches": step.digest_matches,
            "warnings": step.warnings,
        })),
        "waiting": rollout.waiting,
        "digest": rollout.digest,
        "strategy": rollout.strategy,
    })
}

pub(crate) fn node(node: &Node) -> Value {
    json!({
        "id": node.id,
        "name": node.name,
        "region": node.region,
        "zone": node.zone,
        "clusterAddress": node.cluster_address,
        "adminAddress": node.admin_address,
        "role": node.role,
        "state": node.state,
        "version": node.version,
        "applied": node.applied,
        "labels": node.labels.iter().collect::<std::collections::BTreeMap<_, _>>(),
        "apps": node.apps,
        "connections": node.connections,
        "storeBytes": node.store_bytes,
        "reportAgeMs": node.report_age_ms,
        "weight": node.weight,
        "cpuPercent": node.cpu_percent,
        "drain": node.drain.as_ref().map(|drain| json!({
            "phase": drain.phase,
            "over": drain.over,
            "since": rfc3339(drain.since_ms),
            "started": rfc3339(drain.started_ms),
            "deadline": rfc3339(drain.deadline_ms),
            "leaves": drain.leaves,
            "waiting": drain.waiting,
        })),
    })
}

pub(crate) fn cluster(status: &ClusterStatusReply) -> Value {
    json!({
        "id": status.id,
        "name": status.name,
        "health": status.health,
        "leader": (status.leader != 0).then_some(&status.leader_name),
        "term": status.term,
        "commit": status.commit,
        "voters": status.voters,
        "votersLive": status.voters_live,
        "tolerates": status.tolerates,
        "nodes": list(&status.nodes, node),
        "answeredBy": status.answered_by,
    })
}

pub(crate) fn list<T>(items: &[T], one: impl Fn(&T) -> Value) -> Value {
    items.iter().map(one).collect()
}

pub(crate) fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Unspecified => "unknown",
        Outcome::Created => "created",
        Outcome::Changed => "changed",
        Outcome::Unchanged => "unchanged",
        Outcome::Deleted => "deleted",
    }
}

/// Ids and versions count from 1; the protocol writes "none" as 0.
fn id(id: u64) -> Option<u64> {
    (id != 0).then_some(id)
}

/// The canonical JSON of a spec, as a part of the document.
fn spec(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_default()
}
