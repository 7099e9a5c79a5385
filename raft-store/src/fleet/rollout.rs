//! Rollouts: how far each node is on the way from one generation to the next.
//!
//! Applies what the coordinator decided and decides nothing: when a node counts as ready, and when to
//! turn back, is the coordinator's plan. A command that no longer fits is refused as stale.

use std::{collections::BTreeMap, sync::Arc};

use flotilla_spec::AppName;

use super::{At, Fleet, GenerationId, GenerationState, NodeId, Timestamp, assignment::stale};
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
    /// How far the user vouches for it.
    pub promotion: Promotion,
}

/// What the user has said about going on. Only moves up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promotion {
    /// As the spec says: by itself, or not before it is promoted.
    #[default]
    AsSpecified,
    /// Goes on where `auto_promote = false` made it wait.
    Promoted,
    /// Goes on without bakes and gates. It still waits until nodes are ready, and goes in waves.
    Full,
}

/// What a user tells a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steer {
    /// Stand where it stands; traffic stays as it is.
    Pause,
    /// Go on in the direction it had. What failed is tried again, and bakes begin anew.
    Resume,
    Promote {
        full: bool,
    },
    /// Turn back, whatever the spec says.
    Abort,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RolloutState {
    Progressing,
    /// Stands where it stood until the user says more: it was told to, or it failed and may not turn back
    /// by itself (`auto_rollback = false`, or it is a rollback already).
    Paused,
    RollingBack,
    RolledBack,
    Completed,
    /// It failed and there was nothing to go back to: the generation is taken away. Or a node did not get
    /// back in time; it is still asked to.
    Failed,
    /// A later change of the app took its place.
    Superseded,
}

impl RolloutState {
    /// Nothing more happens until the app is changed again.
    pub fn is_finished(self) -> bool {
        match self {
            Self::Progressing | Self::Paused | Self::RollingBack => false,
            Self::RolledBack | Self::Completed | Self::Failed | Self::Superseded => true,
        }
    }
}

/// How far one node is in a rollout. Only moves up, share by share; only a resumed rollout tries again
/// what failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Preparing {
        since: Timestamp,
    },
    Ready,
    /// Asked to give the generation this share of the app's traffic on the node.
    Shifting {
        since: Timestamp,
        /// 1 to 100.
        percent: u8,
    },
    /// Has that share; baking until `min_healthy` has passed and the gate lets it on. A bake that was
    /// spoilt begins again, later.
    Monitoring {
        since: Timestamp,
        percent: u8,
    },
    Done,
    Failed {
        reason: String,
    },
}

impl Rollout {
    pub(super) fn new(from: Option<GenerationId>, steps: BTreeMap<NodeId, Step>, time: Timestamp) -> Self {
        let state = RolloutState::Progressing;
        let promotion = Promotion::default();
        Self { from, state, steps, started: time, progressed: time, reason: String::new(), promotion }
    }
}

impl Step {
    /// Stage, share, and whether the share has been reached.
    fn rank(&self) -> (u8, u8, bool) {
        match self {
            Self::Preparing { .. } => (0, 0, false),
            Self::Ready => (1, 0, false),
            Self::Shifting { percent, .. } => (2, *percent, false),
            Self::Monitoring { percent, .. } => (2, *percent, true),
            Self::Done => (3, 0, false),
            Self::Failed { .. } => (4, 0, false),
        }
    }

    fn begins_bake_again(&self, to: &Self) -> bool {
        match (self, to) {
            (Self::Monitoring { since, percent }, Self::Monitoring { since: later, percent: as_before }) => {
                later > since && percent == as_before
            }
            (_, _) => false,
        }
    }

    /// The share of the app's traffic on the node that the generation is asked to take.
    pub fn share(&self) -> Option<u8> {
        match self {
            Self::Shifting { percent, .. } | Self::Monitoring { percent, .. } => Some(*percent),
            Self::Done => Some(100),
            Self::Preparing { .. } | Self::Ready | Self::Failed { .. } => None,
        }
    }

    /// The same step, begun now: what went before a pause says nothing about what comes after it.
    fn again(&mut self, time: Timestamp) {
        match self {
            Self::Preparing { since } | Self::Shifting { since, .. } | Self::Monitoring { since, .. } => {
                *since = time;
            }
            Self::Failed { .. } => *self = Self::Preparing { since: time },
            Self::Ready | Self::Done => {}
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
        why: &str,
    ) -> Result<(), Rejection> {
        let mut rollout = Rollout::clone(self.rollout_in(RolloutState::Progressing, app, generation)?);
        for (node, to) in steps {
            let step =
                rollout.steps.get_mut(node).ok_or_else(|| stale("the node is not part of the rollout"))?;
            if to.share().is_some_and(|percent| !(1..=100).contains(&percent)) {
                return Err(stale("a share is 1 to 100 percent"));
            }
            let up = to.rank() > step.rank();
            if !up && !step.begins_bake_again(to) {
                return Err(stale("the node is that far already"));
            }
            if up {
                rollout.progressed = rollout.progressed.max(at.time);
            }
            step.clone_from(to);
        }
        // A first generation takes everything everywhere: that it serves is told when it does.
        if rollout.from.is_some()
            && let Some(moved) = self.moved(steps, why)
        {
            self.record(at, Some(app), None, format!("generation {generation} {moved}"));
        }
        self.rollouts.insert((app.clone(), generation), Arc::new(rollout));
        for (node, step) in steps {
            if let Some(percent) = step.share() {
                self.ask_to_serve(at, *node, app, generation, percent);
            }
            if let Step::Failed { reason } = step {
                let what = format!("node {}: generation {generation}: {reason}", self.node_name(*node));
                self.record(at, Some(app), Some(*node), what);
            }
        }
        Ok(())
    }

    /// Shares that begin, and bakes that are over, in words. `None`: neither.
    fn moved(&self, steps: &[(NodeId, Step)], why: &str) -> Option<String> {
        let mut shares: BTreeMap<u8, Vec<String>> = BTreeMap::new();
        let mut done = Vec::new();
        for (node, step) in steps {
            match step {
                Step::Shifting { percent, .. } => {
                    shares.entry(*percent).or_default().push(self.node_name(*node));
                }
                Step::Done => done.push(self.node_name(*node)),
                Step::Preparing { .. } | Step::Ready | Step::Monitoring { .. } | Step::Failed { .. } => {}
            }
        }
        let shares = shares.iter().map(|(percent, on)| format!("takes {percent} % on {}", on.join(", ")));
        let done = (!done.is_empty()).then(|| format!("is done on {}", done.join(", ")));
        let moved: Vec<String> = shares.chain(done).collect();
        let because = if why.is_empty() { String::new() } else { format!(" ({why})") };
        (!moved.is_empty()).then(|| format!("{}{because}", moved.join("; ")))
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
            self.ask_to_serve(at, node, app, generation, 100);
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
        self.turn(at, app, generation, from, reason);
        Ok(())
    }

    fn turn(
        &mut self,
        at: At,
        app: &AppName,
        generation: GenerationId,
        from: Option<GenerationId>,
        reason: &str,
    ) {
        self.set_generation_state(app, generation, GenerationState::Failed);
        self.set_reason(app, generation, reason);
        self.touch(app, generation, at.time);
        match from {
            Some(from) => {
                for other in self.generation_ids(app) {
                    if other != from {
                        self.withdraw(at, app, other);
                    }
                }
                self.set_rollout_state(app, generation, RolloutState::RollingBack);
                let lost: Vec<_> = self.lost_hosts(app).into_iter().collect();
                let lost =
                    lost.iter().map(|(host, owner)| format!("; the host `{host}` is app {owner}'s now"));
                let lost: String = lost.collect();
                let what = format!("generation {generation} goes back to {from}: {reason}{lost}");
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
    }

    pub(super) fn rolled_back(
        &mut self,
        at: At,
        app: &AppName,
        generation: GenerationId,
        missing: &str,
    ) -> Result<(), Rejection> {
        let rollout = Arc::clone(self.rollout_in(RolloutState::RollingBack, app, generation)?);
        let from = rollout.from.unwrap_or_default();
        if missing.is_empty() {
            self.finish(app, generation, RolloutState::RolledBack);
            self.record(at, Some(app), None, format!("generation {from} serves again"));
            return Ok(());
        }
        let reason = format!("{}; on the way back: {missing}", rollout.reason);
        self.set_reason(app, generation, &reason);
        self.finish(app, generation, RolloutState::Failed);
        self.record(
            at,
            Some(app),
            None,
            format!("generation {from} serves again, but not everywhere: {missing}"),
        );
        Ok(())
    }

    /// Of a rollout that goes either way.
    pub(super) fn pause(
        &mut self,
        at: At,
        app: &AppName,
        generation: GenerationId,
        reason: &str,
    ) -> Result<(), Rejection> {
        if self.rollout_in(RolloutState::RollingBack, app, generation).is_err() {
            self.rollout_in(RolloutState::Progressing, app, generation)?;
        }
        self.stop(at, app, generation, reason);
        Ok(())
    }

    fn stop(&mut self, at: At, app: &AppName, generation: GenerationId, reason: &str) {
        self.set_reason(app, generation, reason);
        self.set_rollout_state(app, generation, RolloutState::Paused);
        self.record(at, Some(app), None, format!("generation {generation} stops where it stands: {reason}"));
    }

    /// What a user says. Saying it twice changes nothing.
    pub(super) fn steer(
        &mut self,
        at: At,
        app: &AppName,
        if_version: Option<u64>,
        steer: Steer,
    ) -> Result<(), Rejection> {
        let no_app = || Rejection::NoSuchApp { app: app.clone() };
        self.apps.get(app).filter(|record| !record.deleted).ok_or_else(no_app)?;
        self.check_version(app, if_version)?;
        let cannot = |why: &str| Err(Rejection::CannotSteer { app: app.clone(), why: why.to_owned() });
        let Some((generation, rollout)) = self.newest_rollout(app) else {
            return cannot("it has no rollout");
        };
        let from = rollout.from;
        // A failed generation only ever goes back.
        let goes_back =
            self.generation(app, generation).is_ok_and(|record| record.state == GenerationState::Failed);
        match (steer, rollout.state) {
            (_, RolloutState::Completed) => return cannot("its last rollout has completed"),
            (_, RolloutState::RolledBack | RolloutState::Failed | RolloutState::Superseded) => {
                return cannot("its last rollout is over");
            }
            (Steer::Pause, RolloutState::Progressing) => {
                self.stop(at, app, generation, "paused by a user");
            }
            (Steer::Pause | Steer::Promote { .. }, RolloutState::RollingBack) => {
                return cannot("it is on its way back already");
            }
            (Steer::Promote { .. }, RolloutState::Paused) if goes_back => {
                return cannot("it is on its way back already");
            }
            (Steer::Promote { full }, RolloutState::Progressing | RolloutState::Paused) => {
                if !full && self.generation(app, generation)?.spec.rollout.auto_promote {
                    return cannot("it promotes itself; a full promotion skips bakes and gates");
                }
                self.promote(at, app, generation, full);
                self.go_on(at, app, generation);
            }
            (Steer::Resume, RolloutState::Paused) => self.go_on(at, app, generation),
            (Steer::Abort, RolloutState::Paused) if goes_back => self.go_on(at, app, generation),
            (Steer::Abort, RolloutState::Progressing | RolloutState::Paused) => {
                self.turn(at, app, generation, from, "aborted by a user");
            }
            (Steer::Pause, RolloutState::Paused)
            | (Steer::Resume, RolloutState::Progressing | RolloutState::RollingBack)
            | (Steer::Abort, RolloutState::RollingBack) => {}
        }
        Ok(())
    }

    fn promote(&mut self, at: At, app: &AppName, generation: GenerationId, full: bool) {
        let to = if full { Promotion::Full } else { Promotion::Promoted };
        let Some(rollout) = self.rollouts.get_mut(&(app.clone(), generation)) else { return };
        if rollout.promotion < to {
            Arc::make_mut(rollout).promotion = to;
            let how = if full { " in full" } else { "" };
            self.record(at, Some(app), None, format!("generation {generation} promoted{how} by a user"));
        }
    }

    /// Leaves a pause, in the direction the rollout had.
    fn go_on(&mut self, at: At, app: &AppName, generation: GenerationId) {
        let goes_back =
            self.generation(app, generation).is_ok_and(|record| record.state == GenerationState::Failed);
        let Some(rollout) = self.rollouts.get_mut(&(app.clone(), generation)) else { return };
        if rollout.state != RolloutState::Paused {
            return;
        }
        let rollout = Arc::make_mut(rollout);
        rollout.state = if goes_back { RolloutState::RollingBack } else { RolloutState::Progressing };
        rollout.progressed = at.time;
        if !goes_back {
            rollout.reason.clear();
            rollout.steps.values_mut().for_each(|step| step.again(at.time));
        }
        self.record(at, Some(app), None, format!("generation {generation} goes on"));
    }

    /// Makes room for a later change, or a delete. Where the unfinished generation serves it goes on
    /// until its successor does; where it only prepared it is taken away at once.
    pub(super) fn supersede(&mut self, at: At, app: &AppName) {
        let Some((generation, rollout)) = self.newest_rollout(app) else { return };
        if !rollout.state.is_finished() {
            self.finish(app, generation, RolloutState::Superseded);
            self.record(at, Some(app), None, format!("the rollout of generation {generation} is superseded"));
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

    fn touch(&mut self, app: &AppName, generation: GenerationId, time: Timestamp) {
        if let Some(rollout) = self.rollouts.get_mut(&(app.clone(), generation)) {
            let rollout = Arc::make_mut(rollout);
            rollout.progressed = rollout.progressed.max(time);
        }
    }

    fn set_reason(&mut self, app: &AppName, generation: GenerationId, reason: &str) {
        if let Some(rollout) = self.rollouts.get_mut(&(app.clone(), generation)) {
            Arc::make_mut(rollout).reason = reason.to_owned();
        }
    }
}
