//! Rollouts: how far each node is on the way from one generation to the next.
//!
//! Applies what the coordinator decided and decides nothing: when a node counts as ready, and when to
//! turn back, is the coordinator's plan. A command that no longer fits is refused as stale.

use std::{collections::BTreeMap, sync::Arc};

use flotilla_spec::AppName;

use super::{At, Desired, Fleet, GenerationId, GenerationState, NodeId, Timestamp, assignment::stale};
use crate::Rejection;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollout {
    /// What serves until this one does, and what a rollback returns to: the generation that completed
    /// last. It stays asked to serve, warm behind the new one, until the rollout has finished.
    pub from: Option<GenerationId>,
    pub state: RolloutState,
    pub steps: BTreeMap<NodeId, Step>,
    pub started: Timestamp,
    /// The last time a step moved up. `progress_deadline` of the spec counts from here.
    pub progressed: Timestamp,
    /// Why it failed, paused or went back; empty while all is well.
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RolloutState {
    Progressing,
    /// It failed, and stands where it stood because the spec says `auto_rollback = false`.
    Paused,
    RollingBack,
    RolledBack,
    Completed,
    /// It failed and there was nothing to go back to: the generation is taken away.
    Failed,
    /// A later change of the app took its place.
    Superseded,
}

impl RolloutState {
    /// Nothing more happens until the app is changed again.
    pub fn is_finished(self) -> bool {
        match self {
            Self::Progressing | Self::RollingBack => false,
            Self::Paused | Self::RolledBack | Self::Completed | Self::Failed | Self::Superseded => true,
        }
    }
}

/// How far one node is in a rollout. Only moves up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Preparing {
        since: Timestamp,
    },
    Ready,
    /// Asked to serve.
    Shifting {
        since: Timestamp,
    },
    /// Serves; baking until `min_healthy` has passed. A bake that was spoilt begins again, later.
    Monitoring {
        since: Timestamp,
    },
    Done,
    Failed {
        reason: String,
    },
}

impl Rollout {
    pub(super) fn new(from: Option<GenerationId>, steps: BTreeMap<NodeId, Step>, time: Timestamp) -> Self {
        let state = RolloutState::Progressing;
        Self { from, state, steps, started: time, progressed: time, reason: String::new() }
    }
}

impl Step {
    fn rank(&self) -> u8 {
        match self {
            Self::Preparing { .. } => 0,
            Self::Ready => 1,
            Self::Shifting { .. } => 2,
            Self::Monitoring { .. } => 3,
            Self::Done => 4,
            Self::Failed { .. } => 5,
        }
    }

    fn begins_bake_again(&self, to: &Self) -> bool {
        matches!((self, to), (Self::Monitoring { since }, Self::Monitoring { since: later }) if later > since)
    }

    fn asks_to_serve(&self) -> bool {
        match self {
            Self::Shifting { .. } | Self::Monitoring { .. } | Self::Done => true,
            Self::Preparing { .. } | Self::Ready | Self::Failed { .. } => false,
        }
    }
}

impl Fleet {
    /// The rollout to the generation that the app's user asked for last.
    pub fn newest_rollout(&self, app: &AppName) -> Option<(GenerationId, &Arc<Rollout>)> {
        let wanted = self.apps.get(app)?.wanted;
        Some((wanted, self.rollouts.get(&(app.clone(), wanted))?))
    }

    pub(super) fn advance(
        &mut self,
        at: At,
        app: &AppName,
        generation: GenerationId,
        steps: &[(NodeId, Step)],
    ) -> Result<(), Rejection> {
        let mut rollout = Rollout::clone(self.rollout_in(RolloutState::Progressing, app, generation)?);
        for (node, to) in steps {
            let step =
                rollout.steps.get_mut(node).ok_or_else(|| stale("the node is not part of the rollout"))?;
            let up = to.rank() > step.rank();
            if !up && !step.begins_bake_again(to) {
                return Err(stale("the node is that far already"));
            }
            if up {
                rollout.progressed = rollout.progressed.max(at.time);
            }
            step.clone_from(to);
        }
        self.rollouts.insert((app.clone(), generation), Arc::new(rollout));
        for (node, step) in steps {
            if step.asks_to_serve() {
                self.raise(at, *node, app, generation, Desired::Serve);
            }
            if let Step::Failed { reason } = step {
                let what = format!("node {}: generation {generation}: {reason}", self.node_name(*node));
                self.record(at, Some(app), Some(*node), what);
            }
        }
        Ok(())
    }

    pub(super) fn complete(
        &mut self,
        at: At,
        app: &AppName,
        generation: GenerationId,
    ) -> Result<(), Rejection> {
        let rollout = self.rollout_in(RolloutState::Progressing, app, generation)?;
        let steps = || rollout.steps.values();
        if !steps().any(|step| *step == Step::Done) || steps().any(|step| matches!(step, Step::Failed { .. }))
        {
            return Err(stale("no step is done, or one has failed"));
        }
        for other in self.generation_ids(app) {
            if other != generation {
                self.withdraw(at, app, other);
            }
        }
        // A node that was down all the time is asked to serve as soon as it returns.
        let nodes: Vec<NodeId> = self.nodes_of(app, generation).collect();
        for node in nodes {
            self.raise(at, node, app, generation, Desired::Serve);
        }
        if let Some(record) = self.apps.get_mut(app) {
            Arc::make_mut(record).serving = Some(generation);
        }
        self.set_generation_state(app, generation, GenerationState::Serving);
        self.finish(app, generation, RolloutState::Completed);
        self.record(at, Some(app), None, format!("generation {generation} serves"));
        self.sweep(at, app);
        Ok(())
    }

    /// One commit: the older generation is still asked to serve, so asking for the newer one to drain
    /// gives the traffic back to it.
    pub(super) fn turn_back(
        &mut self,
        at: At,
        app: &AppName,
        generation: GenerationId,
        reason: &str,
    ) -> Result<(), Rejection> {
        let from = self.rollout_in(RolloutState::Progressing, app, generation)?.from;
        self.set_generation_state(app, generation, GenerationState::Failed);
        self.set_reason(app, generation, reason);
        match from {
            Some(from) => {
                for other in self.generation_ids(app) {
                    if other != from {
                        self.withdraw(at, app, other);
                    }
                }
                self.set_rollout_state(app, generation, RolloutState::RollingBack);
                let what = format!("generation {generation} goes back to {from}: {reason}");
                self.record(at, Some(app), None, what);
            }
            // What a superseded rollout may have left serving somewhere is better than nothing.
            None => {
                self.withdraw(at, app, generation);
                self.finish(app, generation, RolloutState::Failed);
                self.record(at, Some(app), None, format!("generation {generation} failed: {reason}"));
            }
        }
        self.sweep(at, app);
        Ok(())
    }

    pub(super) fn rolled_back(
        &mut self,
        at: At,
        app: &AppName,
        generation: GenerationId,
    ) -> Result<(), Rejection> {
        let from = self.rollout_in(RolloutState::RollingBack, app, generation)?.from;
        self.finish(app, generation, RolloutState::RolledBack);
        let from = from.unwrap_or_default();
        self.record(at, Some(app), None, format!("generation {from} serves again"));
        Ok(())
    }

    pub(super) fn pause(
        &mut self,
        at: At,
        app: &AppName,
        generation: GenerationId,
        reason: &str,
    ) -> Result<(), Rejection> {
        self.rollout_in(RolloutState::Progressing, app, generation)?;
        self.set_reason(app, generation, reason);
        self.finish(app, generation, RolloutState::Paused);
        self.record(at, Some(app), None, format!("generation {generation} stops where it stands: {reason}"));
        Ok(())
    }

    /// Makes room for a later change, or a delete. Where the unfinished generation serves it goes on
    /// until its successor does; where it only prepared it is taken away at once.
    pub(super) fn supersede(&mut self, at: At, app: &AppName) {
        let Some((generation, rollout)) = self.newest_rollout(app) else { return };
        if !rollout.state.is_finished() {
            self.finish(app, generation, RolloutState::Superseded);
        }
        let serving = self.apps.get(app).and_then(|record| record.serving);
        for other in self.generation_ids(app) {
            if Some(other) != serving && !self.withdraw_unserved(at, app, other) {
                self.set_generation_state(app, other, GenerationState::Draining);
            }
        }
    }

    /// A rollout does not wait for a node that gives the generation back.
    pub(super) fn leave_rollout(&mut self, node: NodeId, app: &AppName, generation: GenerationId) {
        if let Some(rollout) = self.rollouts.get_mut(&(app.clone(), generation))
            && !rollout.state.is_finished()
            && rollout.steps.contains_key(&node)
        {
            Arc::make_mut(rollout).steps.remove(&node);
        }
    }

    fn rollout_in(
        &self,
        state: RolloutState,
        app: &AppName,
        generation: GenerationId,
    ) -> Result<&Arc<Rollout>, Rejection> {
        let rollout = self.rollouts.get(&(app.clone(), generation));
        let rollout = rollout.ok_or_else(|| stale("there is no such rollout"))?;
        if rollout.state != state {
            return Err(stale("the rollout is in another state by now"));
        }
        Ok(rollout)
    }

    fn finish(&mut self, app: &AppName, generation: GenerationId, state: RolloutState) {
        self.set_rollout_state(app, generation, state);
        self.note_outcome(app, state);
    }

    fn set_rollout_state(&mut self, app: &AppName, generation: GenerationId, state: RolloutState) {
        if let Some(rollout) = self.rollouts.get_mut(&(app.clone(), generation)) {
            Arc::make_mut(rollout).state = state;
        }
    }

    fn set_reason(&mut self, app: &AppName, generation: GenerationId, reason: &str) {
        if let Some(rollout) = self.rollouts.get_mut(&(app.clone(), generation)) {
            Arc::make_mut(rollout).reason = reason.to_owned();
        }
    }
}
