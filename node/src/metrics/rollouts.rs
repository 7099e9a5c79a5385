//! How rollouts stand and how they ended.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use flotilla_raft_store::{Change, Fleet, GenerationId, Rollout, RolloutState, Step, Timestamp, Transition};
use flotilla_spec::AppName;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

pub(super) const DURATION: &str = "flotilla_rollout_duration_seconds";
/// Seconds: a bake alone takes ten.
pub(super) const DURATION_BUCKETS: [f64; 10] =
    [1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0];
const PHASES: [&str; 5] = ["preparing", "shifting", "monitoring", "paused", "rolling_back"];

/// Apps that were seen under way: the others have no series, so that 10,000 of them cost nothing.
pub(crate) type Shown = Mutex<BTreeSet<AppName>>;

pub(super) fn describe() {
    describe_gauge!("flotilla_rollout_in_progress", "1 while a rollout of the app is under way");
    describe_gauge!("flotilla_rollout_phase", "1 in the phase that the rollout of an app is in");
    describe_gauge!(
        "flotilla_rollout_last_progress_timestamp_seconds",
        "When the rollout of an app last got further"
    );
    describe_counter!(
        "flotilla_rollouts_total",
        "On the leader: rollouts that ended or stopped, by result: completed, rolled_back, failed, paused, superseded"
    );
    describe_histogram!(DURATION, "On the leader: from the start of a rollout to its end");
}

/// Reads the gauges; called when somebody looks.
#[allow(clippy::cast_precision_loss, reason = "a gauge is a float; times stay far below 2^53")]
pub(super) fn observe(fleet: &Fleet, shown: &Shown) {
    let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
    let under_way = fleet.rollouts.iter().filter(|(_, rollout)| !rollout.state.is_finished());
    shown.extend(under_way.map(|((app, _), _)| app.clone()));
    for app in shown.iter() {
        let newest = fleet.newest_rollout(app).map(|(_, rollout)| rollout);
        let now = newest.and_then(|rollout| phase(rollout));
        let label = app.to_string();
        gauge!("flotilla_rollout_in_progress", "app" => label.clone()).set(f64::from(now.is_some()));
        for phase in PHASES {
            let is = f64::from(now == Some(phase));
            gauge!("flotilla_rollout_phase", "app" => label.clone(), "phase" => phase).set(is);
        }
        if let Some(rollout) = newest {
            let seconds = rollout.progressed.0 as f64 / 1_000.0;
            gauge!("flotilla_rollout_last_progress_timestamp_seconds", "app" => label).set(seconds);
        }
    }
}

/// `None`: it has finished.
fn phase(rollout: &Rollout) -> Option<&'static str> {
    let any = |wanted: fn(&Step) -> bool| rollout.steps.values().any(wanted);
    match rollout.state {
        RolloutState::Progressing if any(|step| matches!(step, Step::Monitoring { .. })) => {
            Some("monitoring")
        }
        RolloutState::Progressing if any(|step| step.share().is_some()) => Some("shifting"),
        RolloutState::Progressing => Some("preparing"),
        RolloutState::Paused => Some("paused"),
        RolloutState::RollingBack => Some("rolling_back"),
        RolloutState::RolledBack
        | RolloutState::Completed
        | RolloutState::Failed
        | RolloutState::Superseded => None,
    }
}

/// How a rollout ends when a change is committed.
pub(crate) struct Ending {
    app: AppName,
    result: &'static str,
    took: Duration,
}

impl Ending {
    pub(crate) fn of(fleet: &Fleet, change: &Change, now: Timestamp) -> Option<Self> {
        let Change::Coordinate { transition, .. } = change else { return None };
        let rollout = |app: &AppName, generation| fleet.rollouts.get(&(app.clone(), generation));
        let (app, generation, result) = match transition {
            Transition::Complete { app, generation } => (app, generation, "completed"),
            // Else it goes on, backwards.
            Transition::RollBack { app, generation, .. } if rollout(app, *generation)?.from.is_none() => {
                (app, generation, "failed")
            }
            Transition::RolledBack { app, generation, missing } if missing.is_empty() => {
                (app, generation, "rolled_back")
            }
            Transition::RolledBack { app, generation, .. } => (app, generation, "failed"),
            Transition::Pause { app, generation, .. } => (app, generation, "paused"),
            Transition::Advance { .. }
            | Transition::RollBack { .. }
            | Transition::Assign { .. }
            | Transition::Forget { .. }
            | Transition::Place { .. }
            | Transition::Note { .. }
            | Transition::ChoosePorts { .. }
            | Transition::AdvanceDrain { .. }
            | Transition::TellPresence { .. }
            | Transition::Scale { .. } => return None,
        };
        let started = rollout(app, *generation)?.started;
        Some(Self { app: app.clone(), result, took: now.since(started) })
    }

    /// Those that would make room for a user's change, if it is not what is wanted already.
    pub(crate) fn superseded(fleet: &Fleet, change: &Change, now: Timestamp) -> Vec<Superseded> {
        let apps: Vec<&AppName> = match change {
            Change::ApplyApps { apps } => apps.iter().map(|app| &app.spec.name).collect(),
            Change::DeleteApp { app, .. } | Change::Rollback { app, .. } => vec![app],
            Change::InitCluster { .. }
            | Change::AddMember { .. }
            | Change::UpdateMember { .. }
            | Change::SetAvailability { .. }
            | Change::DrainNode { .. }
            | Change::Steer { .. }
            | Change::ScaleApp { .. }
            | Change::PutBalancer { .. }
            | Change::RemoveBalancer { .. }
            | Change::TakeControl { .. }
            | Change::Coordinate { .. } => return Vec::new(),
        };
        let unfinished = apps.into_iter().filter_map(|app| {
            let (generation, rollout) = fleet.newest_rollout(app)?;
            let ending = Self { app: app.clone(), result: "superseded", took: now.since(rollout.started) };
            (!rollout.state.is_finished()).then_some(Superseded { generation, ending })
        });
        unfinished.collect()
    }

    pub(crate) fn count(self) {
        let app = self.app.to_string();
        counter!("flotilla_rollouts_total", "app" => app.clone(), "result" => self.result).increment(1);
        if !matches!(self.result, "paused" | "superseded") {
            histogram!(DURATION, "app" => app).record(self.took.as_secs_f64());
        }
    }
}

/// A rollout that is over if a change was what it seemed to be.
pub(crate) struct Superseded {
    generation: GenerationId,
    ending: Ending,
}

impl Superseded {
    /// `fleet`: with the change applied.
    pub(crate) fn count_in(self, fleet: &Fleet) {
        if self.is_true(fleet) {
            self.ending.count();
        }
    }

    fn is_true(&self, fleet: &Fleet) -> bool {
        let rollout = fleet.rollouts.get(&(self.ending.app.clone(), self.generation));
        rollout.is_none_or(|rollout| rollout.state == RolloutState::Superseded)
    }
}

#[cfg(test)]
mod tests {
    use flotilla_raft_store::{ApplyApp, NodeId};

    use super::*;
    use crate::rollout::plan::testing::{Log, app, member, spec};

    #[test]
    fn a_rollout_is_superseded_by_another_change_of_its_app_and_by_nothing_else() {
        let mut log = Log::new();
        log.take_control(NodeId(1));
        let apply = |name: &str, listen: &str| {
            let spec = spec(name, listen, "");
            Change::ApplyApps { apps: vec![ApplyApp { spec, if_version: None, placed: vec![NodeId(1)] }] }
        };
        let delete = || Change::DeleteApp { app: app("web"), if_version: None };
        // What is applied, whether it makes room for itself, and whether something seemed to.
        for (change, seems, is) in [
            (apply("web", "80"), 0, 0),
            (apply("web", "80"), 1, 0),
            (apply("mail", "25"), 0, 0),
            (apply("web", "81"), 1, 1),
            (Change::AddMember { member: member("n2") }, 0, 0),
            (delete(), 1, 1),
            (delete(), 0, 0),
        ] {
            let superseded = Ending::superseded(&log.fleet, &change, log.now);
            assert_eq!(superseded.len(), seems, "{change:?}");
            log.apply(change.clone()).unwrap();
            let is_true = superseded.iter().filter(|superseded| superseded.is_true(&log.fleet)).count();
            assert_eq!(is_true, is, "{change:?}");
        }
    }
}
