//! What the nodes last said of themselves, as the leader heard it: soft state, lost with the leader.
//!
//! Nothing here is ever written to the log; only transitions that follow from it are.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use flotilla_raft_store::{AppName, GenerationId, NodeId};
use tokio::{sync::watch, time::Instant};

use crate::rollout::observed::{GenerationReport, Observed, ObservedNode};

/// Heartbeats a node may miss before it counts as down.
pub(crate) const MISSED_HEARTBEATS_MAX: u32 = 3;

/// One node's report, as it travels.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Report {
    /// Rises with each report of one process; one that arrives late is dropped.
    pub(crate) sequence: u64,
    /// Random per process start.
    pub(crate) incarnation: u64,
    pub(crate) applied: u64,
    pub(crate) connections: u64,
    pub(crate) store_bytes: u64,
    /// `None`: as in the report before.
    pub(crate) generations: Option<BTreeMap<(AppName, GenerationId), GenerationReport>>,
}

pub(crate) struct Reports {
    /// A node that is silent for longer is down.
    silence_max: Duration,
    latest: Mutex<BTreeMap<NodeId, (Instant, Report)>>,
    changed: watch::Sender<()>,
}

impl Reports {
    pub(crate) fn new(heartbeat: Duration) -> Self {
        Self {
            silence_max: heartbeat * MISSED_HEARTBEATS_MAX,
            latest: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }

    /// False: the report leaves out what this table does not know either, and must come again whole.
    pub(crate) fn insert(&self, node: NodeId, mut report: Report, now: Instant) -> bool {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let previous = latest.get(&node).filter(|(_, known)| known.incarnation == report.incarnation);
        if previous.is_some_and(|(_, known)| known.sequence >= report.sequence) {
            return true;
        }
        let was_live = previous.is_some_and(|(at, _)| now.duration_since(*at) <= self.silence_max);
        let news = !was_live || report.generations.is_some();
        if report.generations.is_none() {
            let Some((_, known)) = previous else { return false };
            report.generations.clone_from(&known.generations);
        }
        latest.insert(node, (now, report));
        drop(latest);
        if news {
            self.changed.send_replace(());
        }
        true
    }

    /// Fires when a node comes back, or reports something other than "still the same".
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(crate) fn is_live(&self, node: NodeId) -> bool {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.get(&node).is_some_and(|(at, _)| at.elapsed() <= self.silence_max)
    }

    pub(crate) fn silence_max(&self) -> Duration {
        self.silence_max
    }

    /// The last report of a node, with its age.
    pub(crate) fn of(&self, node: NodeId) -> Option<(Duration, Report)> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.get(&node).map(|(at, report)| (at.elapsed(), report.clone()))
    }

    /// Plain data for the plan.
    pub(crate) fn observed(&self, leader_for: Duration) -> Observed {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let reports = latest
            .iter()
            .map(|(&node, (at, report))| {
                let generations = report.generations.clone().unwrap_or_default();
                (node, ObservedNode { age: at.elapsed(), applied: report.applied, generations })
            })
            .collect();
        Observed { reports, leader_for }
    }
}
