//! The node's own metrics and the exporter for all of them. Names and labels of the control plane
//! live here; those of the data plane in `flotilla_proxy::metrics`.

use std::time::Duration;

use anyhow::Context as _;
use metrics::{counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use openraft::ServerState;

use crate::replica::Replica;

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
    describe_gauge!("flotilla_apps", "Apps in the fleet");
    describe_gauge!("flotilla_rollout_in_progress", "Rollouts under way in the fleet");
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
    gauge!("flotilla_apps").set(fleet.apps.len() as f64);
    let under_way = fleet.rollouts.values().filter(|rollout| !rollout.state.is_finished()).count();
    gauge!("flotilla_rollout_in_progress").set(under_way as f64);
}

pub(crate) fn leader_changed() {
    counter!("flotilla_raft_leader_changes_total").increment(1);
}
