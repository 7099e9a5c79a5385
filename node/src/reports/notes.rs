//! What is worth an event between two reports of a node: a probe of what serves that fails or passes
//! again, a target that is taken out or comes back, by its checks or for failures in a row, and something
//! that was put right. PURE but for what it keeps.
//!
//! What happens during a rollout is an event of the rollout; this is for the time after it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use flotilla_raft_store::{GenerationId, NodeId, Transition};
use flotilla_spec::AppName;
use imbl::ordmap::DiffItem;
use tokio::time::Instant;

use crate::rollout::observed::{GenerationReport, Generations, ProbeState, Readiness};

type Key = (AppName, GenerationId);

/// Between two notes of one app on one node: what flaps costs the log little, and is told when it rests.
const GAP: Duration = Duration::from_secs(10);
/// Between a note and one that has nothing but endpoints ejected or back: they come back by themselves.
const EJECTIONS_GAP: Duration = Duration::from_secs(60);
/// Notes of all nodes and apps within `GAP`; further ones are dropped, as the events are bounded anyway.
const NOTES_MAX: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) taken: Vec<Transition>,
    last: BTreeMap<(NodeId, AppName), Instant>,
    /// What was told last of those that have changed since, and whose next note is not due yet.
    held: BTreeMap<(NodeId, Key), Arc<GenerationReport>>,
}

impl Notes {
    /// `before` and `after`: two reports of the node, one after the other. With the same twice what was
    /// held back is told when it is due.
    pub(super) fn compare(&mut self, node: NodeId, before: &Generations, after: &Generations, now: Instant) {
        self.last.retain(|_, last| now.duration_since(*last) < EJECTIONS_GAP);
        let mut recent = self.last.values().filter(|last| now.duration_since(**last) < GAP).count();
        let mut told_last = BTreeMap::new();
        for difference in before.diff(after) {
            if let DiffItem::Update { old: (key, before), .. } = difference {
                told_last.insert(key.clone(), Arc::clone(before));
            }
        }
        self.held.retain(|(of, key), before| {
            if *of == node {
                told_last.insert(key.clone(), Arc::clone(before));
            }
            *of != node
        });
        for (key, before) in told_last {
            let Some((message, gap)) = after.get(&key).and_then(|after| tell(&before, after)) else {
                continue;
            };
            let at = (node, key.0.clone());
            if self.last.get(&at).is_some_and(|last| now.duration_since(*last) < gap) {
                self.held.insert((node, key), before);
            } else if recent.max(self.taken.len()) < NOTES_MAX {
                recent += 1;
                self.last.insert(at, now);
                self.taken.push(Transition::Note { app: key.0, node, message });
            }
        }
    }
}

/// What there is to tell, and how long after the note before.
fn tell(before: &GenerationReport, after: &GenerationReport) -> Option<(String, Duration)> {
    if after.readiness != Readiness::Serving || before.readiness != Readiness::Serving {
        return None;
    }
    let mut told = Vec::new();
    if after.repairs > before.repairs {
        told.push("what it served was not what was decided, and was put right".to_owned());
    }
    for probe in &after.probes {
        let known = before.probes.iter().find(|known| known.name == probe.name).map(|known| known.state);
        match (known, probe.state) {
            (Some(ProbeState::Passing | ProbeState::Pending), ProbeState::Failing) => {
                told.push(probe.to_string());
            }
            (Some(ProbeState::Failing), ProbeState::Passing) => {
                told.push(format!("probe `{}` passes again", probe.name));
            }
            (Some(_) | None, ProbeState::Pending | ProbeState::Passing | ProbeState::Failing) => {}
        }
    }
    for target in &after.targets {
        let known = before.targets.iter().find(|known| known.target == target.target);
        if known.is_some_and(|known| known.available != target.available) {
            let (name, available, all) = (&target.target, target.available, target.endpoints);
            let is_short = available < all && !target.detail.is_empty();
            let because = if is_short { format!(": {}", target.detail) } else { String::new() };
            told.push(format!("target {name}: {available} of {all} endpoints available{because}"));
        }
    }
    let gap = if told.is_empty() { EJECTIONS_GAP } else { GAP };
    for target in &after.targets {
        let known = before.targets.iter().find(|known| known.target == target.target);
        let (name, ejected, all) = (&target.target, target.ejected, target.endpoints);
        match known.map_or(ejected, |known| known.ejected) {
            before if before < ejected => {
                told.push(format!(
                    "target {name}: {ejected} of {all} endpoints taken out after failures in a row"
                ));
            }
            before if before > ejected && ejected == 0 => {
                told.push(format!(
                    "target {name}: what was taken out after failures in a row may serve again"
                ));
            }
            _ => {}
        }
    }
    (!told.is_empty()).then(|| (told.join("; "), gap))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::observed::{ProbeKind, ProbeReport, Resolution, TargetReport};

    fn report(state: ProbeState, repairs: u64) -> Generations {
        let probe = ProbeReport {
            name: "alive".to_owned(),
            kind: ProbeKind::Liveness,
            state,
            detail: if state == ProbeState::Failing {
                "HTTP 500, expected 200".to_owned()
            } else {
                String::new()
            },
        };
        let report = GenerationReport {
            readiness: Readiness::Serving,
            percent: 100,
            detail: String::new(),
            warnings: Vec::new(),
            digest: [0; 32],
            pins: 0,
            targets: Vec::new(),
            taken_ports: Vec::new(),
            probes: vec![probe],
            repairs,
        };
        Generations::unit((AppName::parse("web").unwrap(), GenerationId(7)), report.into())
    }

    fn targets(available: u32, detail: &str) -> Generations {
        let target = TargetReport {
            target: "shop:3000".to_owned(),
            resolution: Resolution::Resolved,
            endpoints: 2,
            available,
            ejected: 0,
            detail: detail.to_owned(),
        };
        let passing = report(ProbeState::Passing, 0);
        let of = |(key, report): (&Key, &Arc<GenerationReport>)| {
            let report =
                GenerationReport { targets: vec![target.clone()], ..GenerationReport::clone(report) };
            (key.clone(), Arc::new(report))
        };
        passing.iter().map(of).collect()
    }

    /// What is told of reports that come at these seconds.
    fn told(reports: &[(u64, Generations)]) -> Vec<(u64, String)> {
        let mut notes = Notes::default();
        let start = Instant::now();
        let mut told = Vec::new();
        for window in reports.windows(2) {
            let ((_, before), (second, after)) = (&window[0], &window[1]);
            notes.compare(NodeId(2), before, after, start + Duration::from_secs(*second));
            told.extend(std::mem::take(&mut notes.taken).into_iter().map(|note| match note {
                Transition::Note { message, .. } => (*second, message),
                other => panic!("{other:?}"),
            }));
        }
        told
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_fails_after_the_rollout_is_an_event_and_flapping_is_few() {
        use ProbeState::{Failing, Passing};
        let told = told(&[
            (0, report(Passing, 0)),
            (1, report(Failing, 0)),
            (2, report(Passing, 0)),
            (3, report(Failing, 0)),
            (20, report(Passing, 1)),
        ]);
        assert_eq!(
            told,
            [
                (1, "liveness probe `alive`: HTTP 500, expected 200".to_owned()),
                (
                    20,
                    "what it served was not what was decided, and was put right; probe `alive` passes again"
                        .to_owned()
                ),
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_is_taken_out_is_an_event_and_its_return_is_told_when_it_is_due() {
        let refused = "connection refused";
        let told = told(&[
            (0, targets(2, "")),
            (1, targets(1, refused)),
            (2, targets(0, refused)),
            (3, targets(2, "")),
            (9, targets(2, "")),
            (11, targets(2, "")),
            (12, targets(1, "")),
            (13, targets(2, "")),
            (30, targets(2, "")),
        ]);
        let of = |second, what: &str| (second, format!("target shop:3000: {what}"));
        assert_eq!(
            told,
            [of(1, "1 of 2 endpoints available: connection refused"), of(11, "2 of 2 endpoints available"),]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_ejection_is_an_event_and_those_that_follow_it_are_few() {
        let ejected = |ejected| -> Generations {
            let of = |(key, report): (&Key, &Arc<GenerationReport>)| {
                let mut report = GenerationReport::clone(report);
                report.targets[0].ejected = ejected;
                (key.clone(), Arc::new(report))
            };
            targets(2, "").iter().map(of).collect()
        };
        // Out for half a minute each time, and out again a moment later.
        let flaps = (0..10).flat_map(|times| [(times * 32 + 2, ejected(1)), (times * 32 + 32, ejected(0))]);
        let mut reports = vec![(0, ejected(0))];
        reports.extend(flaps);
        let told = told(&reports);
        let out = "target shop:3000: 1 of 2 endpoints taken out after failures in a row".to_owned();
        assert_eq!(told.first(), Some(&(2, out)));
        let seconds: Vec<u64> = told.iter().map(|(second, _)| *second).collect();
        assert!(seconds.windows(2).all(|pair| pair[1] - pair[0] >= 60), "{told:?}");
        assert!(told.len() > 1, "{told:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_happens_to_many_at_once_is_told_of_some() {
        let apps = |state| -> Generations {
            let one = report(state, 0).get_min().unwrap().1.clone();
            let key = |number| (AppName::parse(&format!("app-{number}")).unwrap(), GenerationId(7));
            (0..2 * NOTES_MAX).map(|number| (key(number), one.clone())).collect()
        };
        let all = [ProbeState::Passing, ProbeState::Failing, ProbeState::Passing];
        let reports: Vec<_> = [0, 1, 2].into_iter().zip(all.map(apps)).collect();
        assert_eq!(told(&reports).len(), NOTES_MAX);
    }
}
