//! The node's own metrics and the exporter for all of them. Names and labels of the control plane
//! live here; those of the data plane in `flotilla_proxy::metrics`.

use std::time::Duration;

use anyhow::Context as _;
use flotilla_raft_store::{DrainPhase, Fleet, NodeId};
use flotilla_spec::Replicas;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use openraft::ServerState;

use crate::{balancer::status::Health, replica::Replica};

mod rollouts;

pub(crate) use rollouts::{Ending, Shown};

/// Seconds. From half a millisecond, where a healthy proxy lives, to the longest wait worth telling apart.
const LATENCY_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Histograms keep every sample until upkeep folds them into buckets.
const UPKEEP: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(crate) struct Exporter(PrometheusHandle);

impl Exporter {
    pub(crate) fn render(&self) -> String {
        self.0.render()
    }

    pub(crate) async fn upkeep(self) -> anyhow::Result<()> {
        let mut interval = tokio::time::interval(UPKEEP);
        loop {
            interval.tick().await;
            self.0.run_upkeep();
        }
    }
}

/// Once per process, before anything counts.
pub(crate) fn install() -> anyhow::Result<Exporter> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &LATENCY_BUCKETS)?
        .set_buckets_for_metric(Matcher::Full(rollouts::DURATION.to_owned()), &rollouts::DURATION_BUCKETS)?
        .install_recorder()
        .context("install the metrics recorder")?;
    flotilla_proxy::metrics::describe();
    describe();
    gauge!("flotilla_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(Exporter(handle))
}

fn describe() {
    describe_gauge!("flotilla_build_info", "The version that runs; always 1");
    describe_gauge!("flotilla_raft_has_leader", "1 while this node knows a leader");
    describe_gauge!("flotilla_raft_is_leader", "1 while this node leads");
    describe_gauge!("flotilla_raft_voter", "1 while this node votes");
    describe_gauge!("flotilla_raft_voters", "Voters in the membership this node knows");
    describe_gauge!("flotilla_raft_term", "The Raft term of this node");
    describe_gauge!("flotilla_raft_log_index", "Index of the last log entry of this node");
    describe_gauge!("flotilla_raft_applied_index", "Index of the last log entry applied on this node");
    describe_counter!("flotilla_raft_leader_changes_total", "Times this node saw another leader than before");
    describe_gauge!("flotilla_raft_peer_lag_entries", "On the leader: log entries a peer has not got yet");
    describe_gauge!("flotilla_store_size_bytes", "Bytes of the log store and the snapshots on disk");
    describe_counter!("flotilla_probes_total", "Answers to the probes of an app, by result");
    describe_gauge!("flotilla_probe_passing", "1 while the last answer to a probe was good");
    describe_counter!("flotilla_drift_repairs_total", "Times what served differed from what was decided");
    describe_gauge!(
        "flotilla_node_drain_phase",
        "1 in the phase that this node has reached in giving its traffic up; all 0 when it does not"
    );
    describe_gauge!(
        "flotilla_app_replicas_wanted",
        "Replicas of an app that was scaled, by hand or by itself"
    );
    describe_gauge!(
        "flotilla_fleet_nodes_recommended",
        "Nodes that the fleet should have more, for apps that found no room for all their replicas"
    );
    describe_gauge!("flotilla_apps", "Apps in the fleet");
    rollouts::describe();
    describe_counter!(
        "flotilla_balancer_pushes_total",
        "On the leader: changes made to a load balancer, and rounds with it that failed or were fenced"
    );
    describe_histogram!(
        "flotilla_balancer_delay_seconds",
        "On the leader: from a change of where apps serve to a load balancer that was seen to have it"
    );
    describe_gauge!(
        "flotilla_balancer_in_sync",
        "On the leader: 1 while a load balancer was seen to have what it should"
    );
    describe_gauge!(
        "flotilla_balancer_observed_timestamp_seconds",
        "On the leader: when a load balancer was last seen"
    );
}

/// Reads the gauges; called when somebody looks.
#[allow(clippy::cast_precision_loss, reason = "a gauge is a float; indexes stay far below 2^53")]
pub(crate) fn observe(replica: &Replica) {
    let flag = |set: bool| if set { 1.0 } else { 0.0 };
    let metrics = replica.raft.metrics().borrow().clone();
    let membership = metrics.membership_config.membership();
    gauge!("flotilla_raft_has_leader").set(flag(metrics.current_leader.is_some()));
    gauge!("flotilla_raft_is_leader").set(flag(metrics.state == ServerState::Leader));
    gauge!("flotilla_raft_voter").set(flag(membership.voter_ids().any(|node| node == metrics.id)));
    gauge!("flotilla_raft_voters").set(membership.voter_ids().count() as f64);
    gauge!("flotilla_raft_term").set(metrics.current_term as f64);
    gauge!("flotilla_raft_log_index").set(metrics.last_log_index.unwrap_or(0) as f64);
    gauge!("flotilla_raft_applied_index").set(metrics.last_applied.map_or(0, |id| id.index) as f64);
    if let Some(replication) = &metrics.replication {
        let last = metrics.last_log_index.unwrap_or(0);
        for (node, matched) in replication.iter().filter(|(node, _)| **node != metrics.id) {
            let lag = last.saturating_sub(matched.map_or(0, |id| id.index));
            gauge!("flotilla_raft_peer_lag_entries", "peer" => node.to_string()).set(lag as f64);
        }
    }
    gauge!("flotilla_store_size_bytes").set(replica.store.size_bytes().unwrap_or(0) as f64);
    let fleet = replica.fleet();
    for name in fleet.balancers.keys() {
        let status = replica.board.of(name).unwrap_or_default();
        gauge!("flotilla_balancer_in_sync", "balancer" => name.clone())
            .set(flag(status.health == Health::InSync));
        if let Some(observed) = status.observed {
            let seconds = crate::clock::now().0 as f64 / 1_000.0 - observed.elapsed().as_secs_f64();
            gauge!("flotilla_balancer_observed_timestamp_seconds", "balancer" => name.clone()).set(seconds);
        }
    }
    observe_fleet(&fleet, replica.me());
    gauge!("flotilla_apps").set(fleet.apps.len() as f64);
    rollouts::observe(&fleet, &replica.rollouts_shown);
}

/// From the moment the leader found a change to the moment the balancer was seen to have it.
pub(crate) fn balancer_followed(balancer: &str, made: Option<tokio::time::Instant>) {
    if let Some(made) = made {
        histogram!("flotilla_balancer_delay_seconds", "balancer" => balancer.to_owned())
            .record(made.elapsed());
    }
}

/// `result`: `ok`, `error`, `fenced`. The names of balancers are the operators' and limited in number.
pub(crate) fn balancer_pushed(balancer: &str, changes: u64, result: &'static str) {
    counter!("flotilla_balancer_pushes_total", "balancer" => balancer.to_owned(), "result" => result)
        .increment(changes);
}

/// How far this node has given its traffic up, and how apps are scaled.
fn observe_fleet(fleet: &Fleet, me: NodeId) {
    let drain = fleet.members.get(&me).and_then(|member| member.drain);
    let phases =
        [DrainPhase::LameDuck, DrainPhase::Quiet, DrainPhase::Draining, DrainPhase::Empty, DrainPhase::Cut];
    for phase in phases {
        let is = drain.is_some_and(|drain| drain.phase == phase);
        gauge!("flotilla_node_drain_phase", "phase" => phase.to_string()).set(if is { 1.0 } else { 0.0 });
    }
    let mut nodes_short = 0;
    for (name, app) in &fleet.apps {
        let Some(scale) = app.scale else { continue };
        let wanted = match fleet.replicas(&app.spec) {
            Replicas::All => u32::try_from(fleet.members.len()).unwrap_or(u32::MAX),
            Replicas::Count(count) => count,
        };
        nodes_short = nodes_short.max(scale.short);
        gauge!("flotilla_app_replicas_wanted", "app" => name.to_string()).set(f64::from(wanted));
    }
    gauge!("flotilla_fleet_nodes_recommended").set(f64::from(nodes_short));
}

pub(crate) fn leader_changed() {
    counter!("flotilla_raft_leader_changes_total").increment(1);
}

/// The names of probes come from the spec.
pub(crate) fn probed(app: &str, probe: &str, passed: bool) {
    let labels = [("app", app.to_owned()), ("probe", probe.to_owned())];
    let result = if passed { "pass" } else { "fail" };
    counter!("flotilla_probes_total", "app" => app.to_owned(), "probe" => probe.to_owned(), "result" => result)
        .increment(1);
    gauge!("flotilla_probe_passing", &labels).set(if passed { 1.0 } else { 0.0 });
}

pub(crate) fn drift_repaired(app: &str) {
    counter!("flotilla_drift_repairs_total", "app" => app.to_owned()).increment(1);
}
