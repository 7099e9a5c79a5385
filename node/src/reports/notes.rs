//! What is worth an event between two reports of a node: a probe of what serves that fails or passes
//! again, and something that was put right. PURE but for what it keeps.
//!
//! What happens during a rollout is an event of the rollout; this is for the time after it.

use std::{collections::BTreeMap, time::Duration};

use flotilla_raft_store::{NodeId, Transition};
use flotilla_spec::AppName;
use imbl::ordmap::DiffItem;
use tokio::time::Instant;

use crate::rollout::observed::{GenerationReport, Generations, ProbeState, Readiness};

/// Between two notes of one app on one node: a probe that flaps costs the log little.
const GAP: Duration = Duration::from_secs(10);
/// Notes that wait for the coordinator; further ones are dropped, as the events are bounded anyway.
const NOTES_MAX: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) taken: Vec<Transition>,
    last: BTreeMap<(NodeId, AppName), Instant>,
}

impl Notes {
    pub(super) fn compare(&mut self, node: NodeId, before: &Generations, after: &Generations, now: Instant) {
        for difference in before.diff(after) {
            let DiffItem::Update { old: (_, before), new: (key, after) } = difference else { continue };
            let told = tell(before, after);
            let at = (node, key.0.clone());
            let is_due = self.last.get(&at).is_none_or(|last| now.duration_since(*last) >= GAP);
            if let Some(message) = told.filter(|_| is_due && self.taken.len() < NOTES_MAX) {
                self.last.retain(|_, last| now.duration_since(*last) < GAP);
                self.last.insert(at, now);
                self.taken.push(Transition::Note { app: key.0.clone(), node, message });
            }
        }
    }
}

fn tell(before: &GenerationReport, after: &GenerationReport) -> Option<String> {
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
    (!told.is_empty()).then(|| told.join("; "))
}

#[cfg(test)]
mod tests {
    use flotilla_raft_store::GenerationId;

    use super::*;
    use crate::rollout::observed::{ProbeKind, ProbeReport};

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

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_fails_after_the_rollout_is_an_event_and_flapping_is_few() {
        use ProbeState::{Failing, Passing};
        let mut notes = Notes::default();
        let start = Instant::now();
        let mut told = Vec::new();
        for (second, before, after) in [
            (0, report(Passing, 0), report(Passing, 0)),
            (1, report(Passing, 0), report(Failing, 0)),
            (2, report(Failing, 0), report(Passing, 0)),
            (3, report(Passing, 0), report(Failing, 0)),
            (20, report(Failing, 0), report(Passing, 1)),
        ] {
            notes.compare(NodeId(2), &before, &after, start + Duration::from_secs(second));
            told.extend(std::mem::take(&mut notes.taken).into_iter().map(|note| match note {
                Transition::Note { message, .. } => (second, message),
                other => panic!("{other:?}"),
            }));
        }
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
}
