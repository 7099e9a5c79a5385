//! Apps and their generations: what a user asks for, and what became of it.
//!
//! A change is judged as a whole before the first field is written, so a refusal leaves nothing behind.
//! How a generation comes to serve is the rollout's matter.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use flotilla_spec::{AppName, AppSpec};
use sha2::{Digest as _, Sha256};

use super::{
    APPS_MAX, Answer, At, Desired, Fleet, GenerationId, HISTORY_MAX, NodeId, Rollout, RolloutState, Scale,
    Step, Timestamp, assignment::stale, port::Claims,
};
use crate::{AppChanged, ApplyApp, Outcome, Rejection, Reply};

#[derive(Clone, Debug, PartialEq)]
pub struct App {
    /// What the user asked for last, whether it serves yet or not.
    pub spec: Arc<AppSpec>,
    /// Counts the accepted changes of this app, from 1. What `--if-version` compares.
    pub version: u64,
    /// The generation of `spec`.
    pub wanted: GenerationId,
    /// The generation that last completed a rollout.
    pub serving: Option<GenerationId>,
    /// Oldest first, at most `HISTORY_MAX`, the wanted one included.
    pub history: VecDeque<HistoryEntry>,
    /// Set by a delete: the app disappears when its last assignment is gone.
    pub deleted: bool,
    /// Overrides the spec's number of replicas.
    pub scale: Option<Scale>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct HistoryEntry {
    pub version: u64,
    pub generation: GenerationId,
    pub spec: Arc<AppSpec>,
    pub time: Timestamp,
    pub cause: Cause,
    /// How its rollout ended; `None` while it is under way.
    pub outcome: Option<RolloutState>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    Applied,
    RolledBackTo { version: u64 },
}

/// Immutable but for its state: a change of an app makes a new generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    pub spec: Arc<AppSpec>,
    /// SHA-256 of the spec's canonical form. Nodes report it, so "serves generation 7" can be checked.
    pub digest: [u8; 32],
    pub state: GenerationState,
}

/// Only moves up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GenerationState {
    /// Its rollout has not completed. After being superseded it may still serve on the nodes that had
    /// shifted to it.
    Staged,
    /// The app's serving generation.
    Serving,
    /// Leaves the nodes.
    Draining,
    /// On no node any more.
    Retired,
    /// Its rollout failed or went back.
    Failed,
}

/// One app of a change that is being judged.
struct Proposal {
    spec: Arc<AppSpec>,
    digest: [u8; 32],
    if_version: Option<u64>,
    placed: BTreeSet<NodeId>,
    cause: Cause,
}

impl Fleet {
    pub fn generation(&self, app: &AppName, generation: GenerationId) -> Result<&Arc<Generation>, Rejection> {
        let found = self.generations.get(&(app.clone(), generation));
        found.ok_or_else(|| stale("the app has no such generation"))
    }

    /// All generations of an app, oldest first.
    pub fn generations_of<'a>(
        &'a self,
        app: &AppName,
    ) -> impl Iterator<Item = (GenerationId, &'a Arc<Generation>)> + use<'a> {
        let range = (app.clone(), GenerationId(0))..=(app.clone(), GenerationId(u64::MAX));
        self.generations.range(range).map(|((_, generation), record)| (*generation, record))
    }

    pub(super) fn apply_apps(&mut self, at: At, apps: &[ApplyApp]) -> Answer {
        let proposals = apps.iter().map(|app| {
            Proposal::new(Arc::new(app.spec.clone()), app.if_version, &app.placed, Cause::Applied)
        });
        self.accept(at, proposals.collect())
    }

    pub(super) fn roll_back_app(
        &mut self,
        at: At,
        app: &AppName,
        to: Option<u64>,
        if_version: Option<u64>,
        placed: &[NodeId],
    ) -> Answer {
        let record = self.living(app)?;
        let entry = record.earlier(to).ok_or_else(|| {
            let version = to.unwrap_or(record.version.saturating_sub(1));
            Rejection::NoSuchVersion { app: app.clone(), version }
        })?;
        let cause = Cause::RolledBackTo { version: entry.version };
        let proposal = Proposal::new(entry.spec.clone(), if_version, placed, cause);
        self.accept(at, vec![proposal])
    }

    pub(super) fn delete_app(&mut self, at: At, app: &AppName, if_version: Option<u64>) -> Answer {
        let record = self.apps.get(app).ok_or_else(|| Rejection::NoSuchApp { app: app.clone() })?;
        if !record.deleted {
            self.check_version(app, if_version)?;
            self.supersede(at, app);
            if let Some(record) = self.apps.get_mut(app) {
                let record = Arc::make_mut(record);
                record.deleted = true;
                record.serving = None;
                record.version += 1;
            }
            for generation in self.generation_ids(app) {
                self.withdraw(at, app, generation);
            }
            self.record(at, Some(app), None, format!("app {app} deleted"));
        }
        let record = &self.apps[app];
        let changed = AppChanged {
            app: app.clone(),
            outcome: Outcome::Deleted,
            version: record.version,
            generation: record.wanted,
        };
        self.sweep(at, app);
        Ok(Reply::Apps { apps: vec![changed] })
    }

    /// All or nothing: nothing is written before every app has passed.
    fn accept(&mut self, at: At, proposals: Vec<Proposal>) -> Answer {
        let mut names = BTreeSet::new();
        let mut created = 0;
        for proposal in &proposals {
            let name = &proposal.spec.name;
            if !names.insert(name.clone()) {
                return Err(Rejection::Stale { why: format!("app `{name}` is named twice in one change") });
            }
            self.check_version(name, proposal.if_version)?;
            created += usize::from(!self.apps.contains_key(name));
        }
        if self.apps.len() + created > APPS_MAX && created > 0 {
            return Err(Rejection::TooManyApps { max: APPS_MAX });
        }
        let mut claims = Claims::default();
        let changes = || proposals.iter().filter(|proposal| !self.is_wanted(proposal));
        changes().for_each(|proposal| claims.change(&proposal.spec, &proposal.placed));
        for proposal in changes() {
            self.check_stageable(at, proposal)?;
            for node in &proposal.placed {
                self.claim_fixed_ports(&mut claims, *node, &proposal.spec)?;
            }
        }
        self.check_moves(&claims)?;
        let mut judged = Vec::with_capacity(proposals.len());
        for proposal in proposals {
            let ports = if self.is_wanted(&proposal) {
                None
            } else {
                let claim =
                    |node: &NodeId| Ok((*node, self.claim_ports(&mut claims, *node, &proposal.spec)?));
                Some(proposal.placed.iter().map(claim).collect::<Result<BTreeMap<_, _>, Rejection>>()?)
            };
            judged.push((proposal, ports));
        }
        let apps = judged.into_iter().map(|(proposal, ports)| match ports {
            Some(ports) => self.stage(at, &proposal, ports),
            None => self.unchanged(&proposal.spec.name),
        });
        Ok(Reply::Apps { apps: apps.collect() })
    }

    /// The same spec again is no change, unless it has failed: then it is another attempt. One that
    /// stands still is resumed, not applied again.
    fn is_wanted(&self, proposal: &Proposal) -> bool {
        let Some(app) = self.apps.get(&proposal.spec.name).filter(|app| !app.deleted) else { return false };
        let key = (proposal.spec.name.clone(), app.wanted);
        let same = self.generations.get(&key).is_some_and(|wanted| wanted.digest == proposal.digest);
        same && self.rollouts.get(&key).is_some_and(|rollout| match rollout.state {
            RolloutState::Progressing | RolloutState::Paused | RolloutState::Completed => true,
            RolloutState::RollingBack
            | RolloutState::RolledBack
            | RolloutState::Failed
            | RolloutState::Superseded => false,
        })
    }

    fn check_stageable(&self, at: At, proposal: &Proposal) -> Result<(), Rejection> {
        let name = &proposal.spec.name;
        if self.generations.contains_key(&(name.clone(), GenerationId(at.index))) {
            return Err(Rejection::Stale { why: format!("app `{name}` was changed in the same log entry") });
        }
        if proposal.placed.is_empty() {
            let why = "no node matches its placement".to_owned();
            return Err(Rejection::NoPlacement { app: name.clone(), why });
        }
        proposal.placed.iter().try_for_each(|node| self.member(*node).map(|_| ()))
    }

    fn unchanged(&self, app: &AppName) -> AppChanged {
        let record = &self.apps[app];
        AppChanged {
            app: app.clone(),
            outcome: Outcome::Unchanged,
            version: record.version,
            generation: record.wanted,
        }
    }

    fn stage(&mut self, at: At, proposal: &Proposal, ports: BTreeMap<NodeId, Vec<u16>>) -> AppChanged {
        let name = &proposal.spec.name;
        let generation = GenerationId(at.index);
        self.supersede(at, name);
        let before = self.apps.get(name).cloned();
        let living = before.as_ref().filter(|app| !app.deleted);
        let serving = living.and_then(|app| app.serving);
        let scale = living.and_then(|app| app.scale);
        let outcome = if living.is_some() { Outcome::Changed } else { Outcome::Created };
        let version = before.as_ref().map_or(0, |app| app.version) + 1;
        let mut history = before.map(|app| app.history.clone()).unwrap_or_default();
        history.push_back(HistoryEntry {
            version,
            generation,
            spec: proposal.spec.clone(),
            time: at.time,
            cause: proposal.cause.clone(),
            outcome: None,
        });
        history.drain(..history.len().saturating_sub(HISTORY_MAX));

        let on: Vec<String> = ports.keys().map(|node| self.node_name(*node)).collect();
        let steps = ports.keys().map(|node| (*node, Step::Preparing { since: at.time })).collect();
        let key = (name.clone(), generation);
        let record = Generation {
            spec: proposal.spec.clone(),
            digest: proposal.digest,
            state: GenerationState::Staged,
        };
        self.generations.insert(key.clone(), Arc::new(record));
        self.rollouts.insert(key, Arc::new(Rollout::new(serving, steps, at.time)));
        let app = App {
            spec: proposal.spec.clone(),
            version,
            wanted: generation,
            serving,
            history,
            deleted: false,
            scale,
        };
        self.apps.insert(name.clone(), Arc::new(app));
        for (node, ports) in ports {
            self.give(at, node, name, generation, Desired::Prepare, ports);
        }
        let what = match &proposal.cause {
            Cause::Applied => format!("version {version} accepted"),
            Cause::RolledBackTo { version: to } => {
                format!("version {version} accepted: back to version {to}")
            }
        };
        self.record(
            at,
            Some(name),
            None,
            format!("{what}; generation {generation} prepares on {}", on.join(", ")),
        );
        self.sweep(at, name);
        AppChanged { app: name.clone(), outcome, version, generation }
    }

    pub(super) fn living(&self, app: &AppName) -> Result<&Arc<App>, Rejection> {
        let living = self.apps.get(app).filter(|record| !record.deleted);
        living.ok_or_else(|| Rejection::NoSuchApp { app: app.clone() })
    }

    /// An app that has been deleted is at version 0, as one that never was.
    pub(super) fn check_version(&self, app: &AppName, if_version: Option<u64>) -> Result<(), Rejection> {
        let actual = self.living(app).map_or(0, |record| record.version);
        match if_version {
            Some(expected) if expected != actual => {
                Err(Rejection::VersionConflict { app: app.clone(), expected, actual })
            }
            Some(_) | None => Ok(()),
        }
    }

    pub(super) fn generation_ids(&self, app: &AppName) -> Vec<GenerationId> {
        self.generations_of(app).map(|(generation, _)| generation).collect()
    }

    /// Upwards only, so what has failed stays failed.
    pub(super) fn set_generation_state(
        &mut self,
        app: &AppName,
        generation: GenerationId,
        state: GenerationState,
    ) {
        if let Some(record) = self.generations.get_mut(&(app.clone(), generation))
            && record.state < state
        {
            Arc::make_mut(record).state = state;
        }
    }

    /// Writes down how the rollout to the wanted generation ended.
    pub(super) fn note_outcome(&mut self, app: &AppName, outcome: RolloutState) {
        let Some(record) = self.apps.get_mut(app) else { return };
        if record.history.back().is_some_and(|last| last.outcome.is_none()) {
            let record = Arc::make_mut(record);
            if let Some(last) = record.history.back_mut() {
                last.outcome = Some(outcome);
            }
        }
    }

    /// Retires generations that are on no node any more, and forgets those that nothing refers to; a
    /// deleted app goes with its last assignment.
    pub(super) fn sweep(&mut self, at: At, app: &AppName) {
        let Some(record) = self.apps.get(app).cloned() else { return };
        let assigned: BTreeSet<GenerationId> = self
            .assignments
            .keys()
            .flat_map(|node| self.assignments_of(*node, app))
            .map(|(generation, _)| generation)
            .collect();
        let gone = record.deleted && assigned.is_empty();
        let mut kept: BTreeSet<GenerationId> = record.history.iter().map(|entry| entry.generation).collect();
        kept.extend(record.serving);
        kept.insert(record.wanted);
        for generation in self.generation_ids(app) {
            if assigned.contains(&generation) {
                continue;
            }
            if gone || !kept.contains(&generation) {
                self.generations.remove(&(app.clone(), generation));
                self.rollouts.remove(&(app.clone(), generation));
            } else if self.generations[&(app.clone(), generation)].state == GenerationState::Draining {
                self.set_generation_state(app, generation, GenerationState::Retired);
            }
        }
        if gone {
            self.apps.remove(app);
            self.record(at, Some(app), None, format!("app {app} is gone"));
        }
    }
}

/// SHA-256 of the canonical spec: what a generation is recognised by.
pub fn spec_digest(spec: &AppSpec) -> [u8; 32] {
    Sha256::digest(spec.to_json()).into()
}

impl App {
    /// The version that a rollback goes to; `None`: the one before the wanted.
    pub fn earlier(&self, version: Option<u64>) -> Option<&HistoryEntry> {
        match version {
            Some(version) => self.history.iter().find(|entry| entry.version == version),
            None => self.history.iter().rev().nth(1),
        }
    }
}

impl Proposal {
    fn new(spec: Arc<AppSpec>, if_version: Option<u64>, placed: &[NodeId], cause: Cause) -> Self {
        let digest = spec_digest(&spec);
        Self { spec, digest, if_version, placed: placed.iter().copied().collect(), cause }
    }
}
