//! What the nodes last said of themselves, as the leader heard it: soft state, lost with the leader.
//!
//! Nothing here is ever written to the log; only transitions that follow from it are.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use flotilla_proxy::Tally;
use flotilla_raft_store::{GenerationId, NodeId, Transition};
use flotilla_spec::AppName;
use imbl::ordmap::DiffItem;
use tokio::{sync::watch, time::Instant};

use crate::rollout::observed::{GenerationReport, Generations, NodeLoad, Observed, ObservedNode, Readiness};

mod notes;

use notes::Notes;

/// Heartbeats a node may miss before it counts as down.
const MISSED_HEARTBEATS_MAX: u32 = 3;

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
    pub(crate) load: Arc<NodeLoad>,
    pub(crate) stopping: bool,
    pub(crate) told_drain: BTreeSet<AppName>,
    pub(crate) tallies: BTreeMap<(AppName, GenerationId), Tally>,
    pub(crate) generations: Told,
}

/// What a report says of the generations of its node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told {
    /// As in the report before.
    Same,
    /// What differs from the report with that sequence.
    Since {
        sequence: u64,
        changed: Generations,
        gone: Vec<(AppName, GenerationId)>,
    },
    Whole(Generations),
}

impl Told {
    /// `sequence`: of the report that had `before`.
    pub(crate) fn since(sequence: u64, before: &Generations, now: &Generations) -> Self {
        let (mut changed, mut gone) = (Generations::new(), Vec::new());
        for difference in before.diff(now) {
            match difference {
                DiffItem::Add(key, said) | DiffItem::Update { new: (key, said), .. } => {
                    changed.insert(key.clone(), said.clone());
                }
                DiffItem::Remove(key, _) => gone.push(key.clone()),
            }
        }
        if changed.is_empty() && gone.is_empty() {
            return Self::Same;
        }
        Self::Since { sequence, changed, gone }
    }
}

pub(crate) struct Reports {
    /// A node that is silent for longer is down.
    silence_max: Duration,
    latest: Mutex<BTreeMap<NodeId, Heard>>,
    notes: Mutex<Notes>,
    changed: watch::Sender<()>,
}

struct Heard {
    at: Instant,
    /// Since when there has been no gap longer than `silence_max`.
    live_since: Instant,
    /// Without its generations.
    report: Report,
    generations: Generations,
}

impl Reports {
    pub(crate) fn new(heartbeat: Duration) -> Self {
        Self {
            silence_max: heartbeat * MISSED_HEARTBEATS_MAX,
            latest: Mutex::default(),
            notes: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }

    /// False: the report leaves out what this table does not know either, and must come again whole.
    pub(crate) fn insert(&self, node: NodeId, mut report: Report, now: Instant) -> bool {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let known = latest.get(&node).filter(|known| known.report.incarnation == report.incarnation);
        if known.is_some_and(|known| known.report.sequence >= report.sequence) {
            return true;
        }
        let without_gap = known.filter(|known| now.duration_since(known.at) <= self.silence_max);
        let same = known.is_some_and(|known| {
            known.report.stopping == report.stopping && known.report.told_drain == report.told_drain
        });
        let told = std::mem::replace(&mut report.generations, Told::Same);
        let news = without_gap.is_none() || told != Told::Same || !same;
        let live_since = without_gap.map_or(now, |known| known.live_since);
        let Some(generations) = generations(known, told) else { return false };
        if let Some(known) = known {
            let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
            notes.compare(node, &known.generations, &generations, now);
        }
        latest.insert(node, Heard { at: now, live_since, report, generations });
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

    /// What happened on the nodes since it was asked last, for the log of events.
    pub(crate) fn take_notes(&self) -> Vec<Transition> {
        std::mem::take(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner).taken)
    }

    pub(crate) fn is_live(&self, node: NodeId) -> bool {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.get(&node).is_some_and(|heard| heard.at.elapsed() <= self.silence_max)
    }

    /// Since the last report of a node; `None`: this table never had one.
    pub(crate) fn silent_for(&self, node: NodeId) -> Option<Duration> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        Some(latest.get(&node)?.at.elapsed())
    }

    /// The last report of a node, with its age but without its generations.
    pub(crate) fn of(&self, node: NodeId) -> Option<(Duration, Report)> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = latest.get(&node)?;
        let report = Report {
            generations: Told::Same,
            load: heard.report.load.clone(),
            told_drain: BTreeSet::new(),
            tallies: BTreeMap::new(),
            ..heard.report
        };
        Some((heard.at.elapsed(), report))
    }

    /// What a node last said of one generation.
    pub(crate) fn generation(&self, node: NodeId, key: &(AppName, GenerationId)) -> Option<GenerationReport> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.get(&node)?.generations.get(key).map(|said| GenerationReport::clone(said))
    }

    /// What a node serves, as it last said.
    pub(crate) fn serving(&self, node: NodeId) -> BTreeSet<AppName> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let said = latest.get(&node).map(|heard| &heard.generations);
        let serving = said.into_iter().flatten().filter(|(_, said)| said.readiness == Readiness::Serving);
        serving.map(|((app, _), _)| app.clone()).collect()
    }

    /// Apps that drain on a node, of which every agent check that asks there was told so.
    pub(crate) fn told_drain(&self, node: NodeId) -> BTreeSet<AppName> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let live = latest.get(&node).filter(|heard| heard.at.elapsed() <= self.silence_max);
        live.map(|heard| heard.report.told_drain.clone()).unwrap_or_default()
    }

    /// A leader that has led for so long has heard from all who live.
    pub(crate) fn may_blame(&self, leader_for: Duration) -> bool {
        leader_for >= self.silence_max
    }

    /// Plain data for the plan.
    pub(crate) fn observed(&self, leader_for: Duration) -> Observed {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let reports = latest.iter().map(|(&node, heard)| {
            let observed = ObservedNode {
                age: heard.at.elapsed(),
                live_for: heard.live_since.elapsed(),
                applied: heard.report.applied,
                connections: heard.report.connections,
                load: heard.report.load.clone(),
                tallies: heard.report.tallies.clone(),
                generations: heard.generations.clone(),
                stopping: heard.report.stopping,
            };
            (node, observed)
        });
        Observed {
            reports: reports.collect(),
            leader_for,
            silence_max: self.silence_max,
            lost_after: None,
            windows: BTreeMap::new(),
            balancers: Arc::default(),
        }
    }
}

/// `None`: what was said before is not known here.
fn generations(known: Option<&Heard>, told: Told) -> Option<Generations> {
    match told {
        Told::Whole(generations) => Some(generations),
        Told::Same => known.map(|known| known.generations.clone()),
        Told::Since { sequence, changed, gone } => {
            let known = known.filter(|known| known.report.sequence == sequence)?;
            let mut generations = known.generations.clone();
            for key in gone {
                generations.remove(&key);
            }
            generations.extend(changed);
            Some(generations)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT: Duration = Duration::from_millis(100);
    const NODE: NodeId = NodeId(2);

    fn key(generation: u64) -> (AppName, GenerationId) {
        (AppName::parse("web").unwrap(), GenerationId(generation))
    }

    /// Generations with their pins.
    fn said<const N: usize>(pins: [(u64, u64); N]) -> Generations {
        let said = pins.map(|(generation, pins)| {
            let report = GenerationReport {
                readiness: Readiness::Serving,
                percent: 100,
                detail: String::new(),
                warnings: Vec::new(),
                digest: [0; 32],
                pins,
                targets: Vec::new(),
                taken_ports: Vec::new(),
                probes: Vec::new(),
                repairs: 0,
            };
            (key(generation), Arc::new(report))
        });
        said.into_iter().collect()
    }

    fn report(incarnation: u64, sequence: u64, generations: Told) -> Report {
        let load = Arc::default();
        let tallies = BTreeMap::new();
        Report {
            sequence,
            incarnation,
            applied: 1,
            connections: 0,
            store_bytes: 0,
            load,
            stopping: false,
            told_drain: BTreeSet::new(),
            tallies,
            generations,
        }
    }

    fn pins(reports: &Reports) -> Option<u64> {
        reports.generation(NODE, &key(7)).map(|report| report.pins)
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_report_keeps_what_the_whole_one_said() {
        let reports = Reports::new(HEARTBEAT);
        assert!(!reports.insert(NODE, report(1, 1, Told::Same), Instant::now()), "nothing is known yet");
        assert!(reports.insert(NODE, report(1, 2, Told::Whole(said([(7, 5)]))), Instant::now()));
        assert!(reports.insert(NODE, report(1, 3, Told::Same), Instant::now()));
        assert_eq!(pins(&reports), Some(5));
        assert!(!reports.insert(NODE, report(2, 1, Told::Same), Instant::now()), "a new process starts anew");
    }

    #[tokio::test(start_paused = true)]
    async fn what_differs_is_enough_for_who_knows_the_report_before() {
        let reports = Reports::new(HEARTBEAT);
        let (first, second, third) = (said([(6, 1), (7, 5)]), said([(7, 6), (8, 2)]), said([(8, 2)]));
        let since = Told::since;
        assert_eq!(since(1, &first, &said([(6, 1), (7, 5)])), Told::Same);
        let of_node = || reports.observed(Duration::ZERO).reports[&NODE].generations.clone();
        assert!(!reports.insert(NODE, report(1, 1, since(9, &first, &second)), Instant::now()));
        assert!(reports.insert(NODE, report(1, 2, Told::Whole(first.clone())), Instant::now()));
        assert!(reports.insert(NODE, report(1, 3, since(2, &first, &second)), Instant::now()));
        assert_eq!(of_node(), second);
        // The report between was lost on its way, so this one says nothing.
        assert!(!reports.insert(NODE, report(1, 5, since(4, &second, &third)), Instant::now()));
        assert_eq!(of_node(), second);
        assert!(reports.insert(NODE, report(1, 6, Told::Same), Instant::now()));
        assert!(reports.insert(NODE, report(1, 7, since(6, &second, &third)), Instant::now()));
        assert_eq!(of_node(), third);
        assert!(
            !reports.insert(NODE, report(2, 1, since(7, &third, &first)), Instant::now()),
            "a new process"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_report_that_arrives_late_is_dropped() {
        let reports = Reports::new(HEARTBEAT);
        assert!(reports.insert(NODE, report(1, 2, Told::Whole(said([(7, 5)]))), Instant::now()));
        assert!(reports.insert(NODE, report(1, 1, Told::Whole(said([(7, 9)]))), Instant::now()));
        assert_eq!(pins(&reports), Some(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_node_is_down_and_its_return_is_news() {
        let reports = Reports::new(HEARTBEAT);
        reports.insert(NODE, report(1, 1, Told::Whole(said([(7, 5)]))), Instant::now());
        let mut changes = reports.changes();
        reports.insert(NODE, report(1, 2, Told::Same), Instant::now());
        assert!(!changes.has_changed().unwrap(), "still the same is no news");
        tokio::time::advance(HEARTBEAT * 4).await;
        assert!(!reports.is_live(NODE));
        reports.insert(NODE, report(1, 3, Told::Same), Instant::now());
        assert!(changes.has_changed().unwrap());
        changes.borrow_and_update();
        assert_eq!(reports.observed(Duration::ZERO).reports[&NODE].live_for, Duration::ZERO);
    }
}
