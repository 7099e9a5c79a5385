//! What the nodes report, as plain data: ages instead of clocks, so that a plan made from it can be
//! made again in a test.
//!
//! Soft state of the leader. Nothing here is ever written to the log, only transitions that follow
//! from it are.

use std::{collections::BTreeMap, time::Duration};

use flotilla_raft_store::{GenerationId, NodeId};
use flotilla_spec::AppName;

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Observed {
    pub(crate) reports: BTreeMap<NodeId, ObservedNode>,
    /// How long this leader has led.
    pub(crate) leader_for: Duration,
    /// Three heartbeats. A node that is silent for longer is down, and a leader that has led for less
    /// holds nothing against anybody: the reports may still be on their way to it.
    pub(crate) silence_max: Duration,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ObservedNode {
    /// Of the last report.
    pub(crate) age: Duration,
    /// How long the node has been reporting without a gap, as this leader saw it. A deadline of a node
    /// that was down counts from its return.
    pub(crate) live_for: Duration,
    /// The log index up to which the report speaks.
    pub(crate) applied: u64,
    pub(crate) generations: BTreeMap<(AppName, GenerationId), GenerationReport>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GenerationReport {
    pub(crate) readiness: Readiness,
    /// What is missing, or why it was rejected. Empty when nothing is missing: a generation that is
    /// `Serving` with a detail serves, but would not be called ready.
    pub(crate) detail: String,
    pub(crate) warnings: Vec<String>,
    /// SHA-256 of the canonical spec that the node compiled.
    pub(crate) digest: [u8; 32],
    /// Sessions and requests that still use the generation.
    pub(crate) pins: u64,
    pub(crate) targets: Vec<TargetReport>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Readiness {
    Preparing,
    Ready,
    /// Takes the app's new sessions and requests on the node.
    Serving,
    Draining,
    Removed,
    Rejected,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TargetReport {
    /// As the user wrote it.
    pub(crate) target: String,
    pub(crate) resolution: Resolution,
    pub(crate) endpoints: u32,
    pub(crate) available: u32,
    pub(crate) detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resolution {
    Pending,
    Resolved,
    Failed,
}

impl Observed {
    /// `None`: down, or never heard of by this leader.
    pub(crate) fn live(&self, node: NodeId) -> Option<&ObservedNode> {
        self.reports.get(&node).filter(|report| report.age <= self.silence_max)
    }

    /// False while a node that has not reported may simply not have found this leader yet.
    pub(crate) fn may_blame(&self) -> bool {
        self.leader_for >= self.silence_max
    }
}

impl GenerationReport {
    pub(crate) fn is_healthy(&self) -> bool {
        matches!(self.readiness, Readiness::Ready | Readiness::Serving) && self.detail.is_empty()
    }
}
