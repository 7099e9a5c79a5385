//! Every node: does on the proxy what the fleet asks of this node, and says how far it is.
//!
//! Level-triggered: the plan of an app is made anew from the applied fleet and the running proxy whenever
//! something has changed about it in either, and that of all apps now and then, so a missed event heals.
//! It acts on applied assignments only, and needs neither a leader nor a quorum.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use flotilla_proxy::{AppConfig, GenerationStatus, PrepareError, Proxy, Tally};
use flotilla_raft_store::{Fleet, GenerationId, NodeId, RolloutState, spec_digest};
use flotilla_spec::{AppName, AppSpec};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use self::translate::Here;
use crate::{
    agent::{
        plan::{Action, Assigned, Compiled, Known},
        probe::Probes,
    },
    faults::{self, Moment},
    load::Meter,
    metrics,
    replica::Replica,
    reports::{Report, Told},
    rollout::observed::{Generations, Readiness},
    server::convert,
};

mod leaving;
pub(crate) mod plan;
mod probe;
pub(crate) mod translate;
mod trial;

pub(crate) use probe::ProbeSettings;
pub(crate) use trial::Trials;

/// A port that was taken may be free by now, so what was rejected is tried again after this.
const RETRY: Duration = Duration::from_secs(1);
/// How often what is served is compared with what was decided, for all apps; of thousands one after the other.
const AUDIT: Duration = Duration::from_secs(5);
/// Apps of an audit that are looked at in a row, and how long then only events are: of ten thousand looked at one after
/// the other they would wait for tenths of a second, and traffic for milliseconds where a processor has to do both.
const AUDITED_AT_ONCE: usize = 32;
const AUDIT_PACE: Duration = Duration::from_millis(100);
/// Apps that are acted on before it is said how far they are: of a thousand that change together the
/// leader hears as they go.
const APPS_AT_ONCE: usize = 64;
/// A traffic thread that stands still for this long while a generation is on trial ends the process: the
/// next one starts with the generation before. Without a trial there is nobody to blame and nothing won.
const STALL_MAX: Duration = Duration::from_secs(5);
/// For compiling one generation. It takes milliseconds; one that takes longer would hold up all others.
const COMPILE_MAX: Duration = Duration::from_secs(5);
/// A thread that has not moved for this long may be about to be found standing still.
const STALL_SEEN: Duration = Duration::from_secs(2);

pub(crate) type Key = (AppName, GenerationId);

/// What this node says of itself, and up to which log index it has acted: a report that claimed more
/// would let the coordinator take "not there yet" for "gone already".
#[derive(Clone, Default)]
pub(crate) struct Running {
    applied: u64,
    /// Every generation that runs here or was asked for.
    generations: Generations,
}

pub(crate) struct Agent {
    me: NodeId,
    fleet: watch::Receiver<Arc<Fleet>>,
    /// What is acted on, or was last.
    acted_on: Arc<Fleet>,
    /// Apps to look at, whether or not something has changed about them since.
    due: BTreeSet<AppName>,
    /// Touched by what is acted on now, and not looked at yet.
    left: BTreeSet<AppName>,
    /// What is left of the audit.
    to_audit: BTreeSet<AppName>,
    proxy: Proxy,
    here: Here,
    /// Why a generation cannot be prepared here. Forgotten when it is tried again.
    rejected: BTreeMap<Key, Refused>,
    /// Why a generation is not even tried: it took the node down before, or cannot be compiled.
    refused: BTreeMap<Key, String>,
    trials: Trials,
    /// When what serves on trial will have survived.
    bakes: BTreeMap<Key, Instant>,
    started: Instant,
    /// What each running generation was compiled from.
    compiled: BTreeMap<Key, Compiled>,
    probes: Probes,
    /// How often each running generation had to be put right.
    repairs: BTreeMap<Key, u64>,
    /// What was last done about a drain of the node.
    leaving: leaving::Leaving,
    running: watch::Sender<Running>,
}

/// Why a generation cannot be prepared here.
struct Refused {
    why: String,
    /// Of the assignment: one that has moved since is tried at once.
    index: u64,
    /// Ports that a process of others has.
    taken_ports: Vec<u16>,
}

impl From<String> for Refused {
    fn from(why: String) -> Self {
        Self { why, index: 0, taken_ports: Vec::new() }
    }
}

impl From<PrepareError> for Refused {
    fn from(error: PrepareError) -> Self {
        let taken_ports = match &error {
            PrepareError::Bind { port, source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
                vec![*port]
            }
            _ => Vec::new(),
        };
        Self { taken_ports, ..Self::from(error.to_string()) }
    }
}

impl Agent {
    pub(crate) fn new(
        me: NodeId,
        fleet: watch::Receiver<Arc<Fleet>>,
        proxy: Proxy,
        here: Here,
        probes: ProbeSettings,
        trials: Trials,
    ) -> (Self, watch::Receiver<Running>) {
        let (running, reports) = watch::channel(Running::default());
        (
            Self {
                me,
                fleet,
                acted_on: Arc::default(),
                due: BTreeSet::new(),
                left: BTreeSet::new(),
                to_audit: BTreeSet::new(),
                probes: Probes::new(proxy.clone(), probes),
                repairs: BTreeMap::new(),
                proxy,
                here,
                rejected: BTreeMap::new(),
                refused: BTreeMap::new(),
                trials,
                bakes: BTreeMap::new(),
                started: Instant::now(),
                compiled: BTreeMap::new(),
                leaving: leaving::Leaving::default(),
                running,
            },
            reports,
        )
    }

    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let mut proxy = self.proxy.changes();
        let mut probes = self.probes.changed();
        let mut retry = tokio::time::interval(RETRY);
        let mut audit = tokio::time::interval(AUDIT);
        let mut pace = tokio::time::interval(AUDIT_PACE);
        for ticks in [&mut audit, &mut pace] {
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        let mut audited = BTreeSet::new();
        loop {
            // Of much that changes at once one part after the other, and nothing else before it is done.
            if self.left.is_empty() {
                probes.borrow_and_update();
                let fleet = self.fleet.borrow_and_update().clone();
                self.left = self.touched(&fleet, proxy.take());
                self.acted_on = fleet;
            }
            let fleet = self.acted_on.clone();
            let mut apps: BTreeSet<AppName> =
                std::iter::from_fn(|| self.left.pop_first()).take(APPS_AT_ONCE).collect();
            self.reconcile(&fleet, &apps).await;
            apps.append(&mut self.audit_some(&fleet, std::mem::take(&mut audited), &apps).await);
            let wanted = leaving::leaving(fleet.members.get(&self.me).map(AsRef::as_ref));
            leaving::follow(&self.proxy, wanted, &mut self.leaving);
            self.publish(&fleet, &apps);
            // Cancel-safe: watch channels and intervals remember.
            tokio::select! {
                changed = self.fleet.changed() => changed?,
                () = proxy.changed() => {}
                changed = probes.changed() => changed?,
                _ = retry.tick() => {
                    self.due.extend(std::mem::take(&mut self.rejected).into_keys().map(|(app, _)| app));
                    self.due.extend(self.closing());
                    self.end_a_stall();
                }
                () = next_survivor(&self.bakes) => self.survive(),
                _ = audit.tick() => self.audit().await,
                _ = pace.tick(), if !self.to_audit.is_empty() => {
                    audited = std::iter::from_fn(|| self.to_audit.pop_first()).take(AUDITED_AT_ONCE).collect();
                }
                () = std::future::ready(()), if self.is_at_work() => {}
            }
        }
    }

    /// Apps about which something has changed since the last look, or may have.
    fn touched(&mut self, fleet: &Fleet, of_proxy: BTreeSet<Arc<str>>) -> BTreeSet<AppName> {
        let mut apps = std::mem::take(&mut self.due);
        apps.extend(fleet.apps_changed_since(&self.acted_on));
        apps.extend(of_proxy.iter().filter_map(|app| AppName::parse(app).ok()));
        apps.extend(self.probes.take_changed());
        // They are tried again by and by.
        apps.extend(self.trials.suspects().map(|((app, _), _)| app.clone()));
        apps
    }

    fn is_at_work(&self) -> bool {
        !(self.left.is_empty() && self.due.is_empty())
    }

    /// Apps whose sessions come to an end: nobody says when one does.
    fn closing(&self) -> Vec<AppName> {
        let running = self.running.borrow();
        let closing = running.generations.iter().filter(|(_, said)| said.readiness == Readiness::Draining);
        closing.map(|((app, _), _)| app.clone()).collect()
    }

    /// Everything that is asked of this node or runs here.
    fn all(&self) -> BTreeSet<AppName> {
        let asked = self.acted_on.assignments.get(&self.me).into_iter().flat_map(|asked| asked.keys());
        let said = self.running.borrow().generations.clone();
        let runs = self.proxy.apps();
        let runs = runs.iter().filter_map(|app| AppName::parse(app).ok());
        asked.chain(said.keys()).map(|(app, _)| app.clone()).chain(runs).collect()
    }

    /// A part of the audit: apps about which nothing has changed have nothing to be done.
    async fn audit_some(
        &mut self,
        fleet: &Fleet,
        mut apps: BTreeSet<AppName>,
        touched: &BTreeSet<AppName>,
    ) -> BTreeSet<AppName> {
        apps.retain(|app| !touched.contains(app) && !self.left.contains(app));
        let actions = self.reconcile(fleet, &apps).await;
        if actions > 0 {
            warn!(actions, "the audit found what no event had led to");
        }
        apps
    }

    /// Acts on these apps until there is nothing to do; a plan after an action may ask for the next one.
    /// Returns how often it acted.
    async fn reconcile(&mut self, fleet: &Fleet, apps: &BTreeSet<AppName>) -> usize {
        let mut acted = 0;
        let mut desired = self.desired(fleet, apps);
        self.refuse_suspects(fleet);
        // What took the node down is not there for the plan: the generation before serves on.
        for key in self.refused.keys() {
            desired.remove(key);
        }
        let index = |key: &Key| desired.get(key).map_or(0, |asked| asked.index);
        self.rejected.retain(|key, refused| !apps.contains(&key.0) || refused.index == index(key));
        loop {
            let status = self.status(apps);
            let actions: Vec<_> = plan::plan(
                &desired,
                &plan::running(&status),
                |key| self.rejected.contains_key(key),
                |key| plan::drain_of(fleet, key),
            )
            .into_iter()
            .filter(|action| !self.rejected.contains_key(action.key()))
            .collect();
            if actions.is_empty() {
                return acted;
            }
            acted += actions.len();
            let fresh = actions.iter().filter_map(|action| match action {
                Action::Prepare { key } => Some(key),
                Action::Serve { .. }
                | Action::Share { .. }
                | Action::Drain { .. }
                | Action::Remove { .. } => None,
            });
            if let Err(error) = self.trials.begin(fresh) {
                warn!(%error, "a generation is tried without a note of it");
            }
            for action in actions {
                let key = action.key().clone();
                // What could not be prepared cannot serve either, and the first reason is the one to tell.
                if self.rejected.contains_key(&key) {
                    continue;
                }
                debug!(?action, "act");
                if let Err(refused) = self.act(fleet, action).await {
                    let why = &refused.why;
                    warn!(app = %key.0, generation = %key.1, error = %why, "generation rejected");
                    let index = index(&key);
                    self.rejected.insert(key, Refused { index, ..refused });
                }
            }
        }
    }

    /// What this node is asked of these apps.
    fn desired(&self, fleet: &Fleet, apps: &BTreeSet<AppName>) -> Assigned {
        let of_app = |app| {
            let of_app = fleet.assignments_of(self.me, app);
            of_app.map(move |(generation, asked)| ((AppName::clone(app), generation), asked.clone()))
        };
        apps.iter().flat_map(of_app).collect()
    }

    fn status(&self, apps: &BTreeSet<AppName>) -> Vec<GenerationStatus> {
        self.proxy.status_of(apps.iter().map(AppName::as_str))
    }

    async fn act(&mut self, fleet: &Fleet, action: Action) -> Result<(), Refused> {
        match action {
            Action::Prepare { key } => self.prepare(fleet, key).await,
            Action::Serve { key: (app, generation) } => {
                info!(%app, %generation, "serve");
                self.put_to_the_test(fleet, &(app.clone(), generation));
                self.proxy.serve(app.as_str(), generation.0).map_err(|err| err.to_string().into())
            }
            Action::Share { key: (app, generation), percent, rest } => {
                info!(%app, %generation, percent, %rest, "share");
                self.put_to_the_test(fleet, &(app.clone(), generation));
                self.proxy
                    .share(app.as_str(), generation.0, percent, rest.0)
                    .map_err(|err| err.to_string().into())
            }
            Action::Drain { key: (app, generation) } => {
                info!(%app, %generation, "drain");
                self.proxy.drain(app.as_str(), generation.0).map_err(|err| err.to_string().into())
            }
            Action::Remove { key: (app, generation), cut_after } => {
                info!(%app, %generation, "remove");
                self.proxy.remove(app.as_str(), generation.0, cut_after).map_err(|err| err.to_string().into())
            }
        }
    }

    async fn prepare(&mut self, fleet: &Fleet, key: Key) -> Result<(), Refused> {
        let (Some(generation), Some(assignment)) =
            (fleet.generations.get(&key), fleet.assignment(self.me, &key.0, key.1))
        else {
            return Err("the fleet does not know the generation".to_owned().into());
        };
        let config = translate::translate(&generation.spec, key.1, &assignment.ports, &self.here);
        let compiled = match self.compile(config, generation.spec.clone()).await {
            Ok(compiled) => compiled?,
            Err(why) => {
                // It would do the same again.
                self.refused.insert(key, why.clone());
                return Err(why.into());
            }
        };
        let digests = Compiled { spec: spec_digest(&generation.spec), proxy: compiled.digest() };
        self.proxy.prepare_compiled(compiled).await?;
        self.compiled.insert(key, digests);
        Ok(())
    }

    /// On a thread of its own, so that one that does not end, or panics, is only a rejection. The outer
    /// error is about compiling, the inner one about what was compiled.
    async fn compile(
        &self,
        config: AppConfig,
        spec: Arc<AppSpec>,
    ) -> Result<Result<flotilla_proxy::Compiled, String>, String> {
        let proxy = self.proxy.clone();
        let compiling = tokio::task::spawn_blocking(move || {
            faults::at(Moment::Compile, &spec.labels, &|| {});
            proxy.compile(config)
        });
        match tokio::time::timeout(COMPILE_MAX, compiling).await {
            Ok(Ok(compiled)) => Ok(compiled.map_err(|err| err.to_string())),
            Ok(Err(panic)) => Err(format!("compiling it panicked: {}", panic_text(panic))),
            Err(_) => {
                Err(format!("compiling it took longer than {}", humantime::format_duration(COMPILE_MAX)))
            }
        }
    }

    /// A generation that took the node down is refused until its rollout says otherwise.
    fn refuse_suspects(&mut self, fleet: &Fleet) {
        let up = self.started.elapsed();
        let mut freed = Vec::new();
        for (key, crashes) in self.trials.suspects() {
            let rollout = fleet.rollouts.get(key).map(|rollout| rollout.state);
            match trial::refusal(crashes, rollout, up) {
                Some(why) => drop(self.refused.insert(key.clone(), why)),
                None => freed.push(key.clone()),
            }
        }
        for key in freed {
            if self.refused.remove(&key).is_some() {
                info!(app = %key.0, generation = %key.1, "tried again after a crash");
            }
        }
    }

    /// What is on trial has survived when it has served for as long as it bakes.
    fn put_to_the_test(&mut self, fleet: &Fleet, key: &Key) {
        let Some(generation) = fleet.generations.get(key) else { return };
        faults::at(Moment::Serve, &generation.spec.labels, &|| {
            self.proxy.stall_worker(0, Duration::from_secs(3600));
        });
        if self.trials.is_on_trial(key) {
            self.bakes.insert(key.clone(), Instant::now() + generation.spec.rollout.min_healthy);
        }
    }

    fn survive(&mut self) {
        // Nobody survives while a thread stands still.
        if self.proxy.stalled_for() >= STALL_SEEN {
            let later = Instant::now() + RETRY;
            self.bakes.values_mut().for_each(|at| *at = (*at).max(later));
            return;
        }
        let now = Instant::now();
        let baked: Vec<Key> =
            self.bakes.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        for key in baked {
            self.bakes.remove(&key);
            if let Err(error) = self.trials.survived(&key) {
                warn!(app = %key.0, generation = %key.1, %error, "survived without a note of it");
            }
        }
    }

    fn end_a_stall(&self) {
        let stalled = self.proxy.stalled_for();
        if stalled >= STALL_MAX && self.trials.any_on_trial() {
            error!(?stalled, "a traffic thread stands still since a generation is on trial: starting anew");
            // Nothing could be waited for here: the thread that stands still would be among it.
            std::process::abort();
        }
    }

    /// Nothing should ever be found here.
    async fn audit(&mut self) {
        if self.to_audit.is_empty() {
            self.to_audit = self.all();
        }
        for drift in self.proxy.audit().await {
            warn!(app = %drift.app, generation = drift.generation, %drift, "drift repaired");
            metrics::drift_repaired(&drift.app);
            if let Ok(app) = AppName::parse(&drift.app) {
                *self.repairs.entry((app, GenerationId(drift.generation))).or_default() += 1;
            }
        }
    }

    /// Says anew what there is to say of these apps.
    fn publish(&mut self, fleet: &Fleet, apps: &BTreeSet<AppName>) {
        let status = self.status(apps);
        let running: BTreeMap<Key, &GenerationStatus> =
            status.iter().filter_map(|status| Some((plan::key(status)?, status))).collect();
        let assigned = self.desired(fleet, apps);
        let desired = |key: &Key| assigned.get(key).map(|asked| asked.desired);
        keep(&mut self.compiled, apps, |key| running.contains_key(key));
        keep(&mut self.repairs, apps, |key| running.contains_key(key));
        keep(&mut self.bakes, apps, |key| running.contains_key(key));
        keep(&mut self.rejected, apps, |key| desired(key).is_some());
        keep(&mut self.refused, apps, |key| desired(key).is_some());
        self.trials.keep(apps, |key| desired(key).is_some());
        let phases = running.iter().map(|(key, status)| (key.clone(), status.phase)).collect();
        let spec = |key: &Key| fleet.generations.get(key).map(|generation| &*generation.spec);
        self.probes.keep(apps, plan::probes(&assigned, &phases, spec));
        let said = |key: &Key| {
            let refused = self.rejected.get(key);
            let mut report = plan::report(
                fleet.generations.get(key)?,
                desired(key),
                running.get(key).copied(),
                Known {
                    rejected: self
                        .refused
                        .get(key)
                        .map(String::as_str)
                        .or(refused.map(|refused| refused.why.as_str())),
                    compiled: self.compiled.get(key).copied(),
                    probes: self.probes.of(key),
                    repairs: self.repairs.get(key).copied().unwrap_or(0),
                },
            );
            report.taken_ports = refused.map_or(Vec::new(), |refused| refused.taken_ports.clone());
            Some(report)
        };
        let before = self.running.borrow().clone();
        let mut generations = before.generations.clone();
        let there: BTreeSet<&Key> = assigned.keys().chain(running.keys()).collect();
        let known = apps.iter().flat_map(|app| before.generations.range(of_app(app))).map(|(key, _)| key);
        for key in known.filter(|key| !there.contains(key)) {
            generations.remove(key);
        }
        for &key in &there {
            match said(key).map(Arc::new) {
                Some(report) if generations.get(key) == Some(&report) => {}
                Some(report) => drop(generations.insert(key.clone(), report)),
                None => drop(generations.remove(key)),
            }
        }
        // It has not acted on all that this fleet asks while some apps are left.
        let applied = if self.left.is_empty() { fleet.index } else { before.applied };
        if before.applied != applied || before.generations != generations {
            self.running.send_replace(Running { applied, generations });
        }
    }
}

/// All generations of an app.
fn of_app(app: &AppName) -> std::ops::RangeInclusive<Key> {
    (app.clone(), GenerationId(0))..=(app.clone(), GenerationId(u64::MAX))
}

/// Lets go of what is not to be kept of these apps.
fn keep<T>(map: &mut BTreeMap<Key, T>, apps: &BTreeSet<AppName>, is_kept: impl Fn(&Key) -> bool) {
    for app in apps {
        let keys = map.range(of_app(app)).map(|(key, _)| key);
        let gone: Vec<Key> = keys.filter(|key| !is_kept(key)).cloned().collect();
        for key in gone {
            map.remove(&key);
        }
    }
}

async fn next_survivor(bakes: &BTreeMap<Key, Instant>) {
    match bakes.values().min() {
        Some(&at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn panic_text(panic: tokio::task::JoinError) -> String {
    let Ok(payload) = panic.try_into_panic() else { return "it was given up".to_owned() };
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("without a word").to_owned()
}

/// Tells the leader what runs here: at every heartbeat, and at once after a change.
pub(crate) async fn report(
    replica: Arc<Replica>,
    mut running: watch::Receiver<Running>,
    proxy: Proxy,
    stopping: CancellationToken,
) -> anyhow::Result<()> {
    let mut metrics = replica.raft.metrics();
    let mut heartbeat = tokio::time::interval(replica.heartbeat);
    heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let incarnation = rand::random();
    let mut meter = Meter::start();
    let mut sequence = 0;
    let mut told_stopping = false;
    let mut agents = replica.agents.changes();
    // What the leader knows; a new one knows nothing yet.
    let mut told: Option<Acknowledged> = None;
    let mut compared = Compared::default();
    let mut load = Arc::new(meter.measure(&proxy));
    let mut store_bytes = 0;
    loop {
        let Running { applied, generations } = running.borrow_and_update().clone();
        let leader = metrics.borrow_and_update().current_leader;
        if let Some(leader) = leader {
            sequence += 1;
            let known = told.take().filter(|told| told.by == leader);
            let report = Report {
                sequence,
                incarnation,
                applied,
                connections: proxy.connections(),
                store_bytes,
                load: load.clone(),
                stopping: stopping.is_cancelled(),
                told_drain: replica.agents.told_drain(&replica.standings.borrow(), Instant::now()),
                tallies: compared.tallies(&replica.fleet(), &proxy),
                generations: known
                    .map_or_else(|| Told::Whole(generations.clone()), |known| known.told(&generations)),
            };
            let taken = send(&replica, leader, report).await;
            told = taken.map(|Taken { takes_changes }| Acknowledged {
                by: leader,
                sequence,
                generations,
                takes_changes,
            });
        }
        // Cancel-safe: watch channels and intervals remember.
        tokio::select! {
            changed = running.changed() => changed?,
            changed = leader_changed(&mut metrics, leader) => changed?,
            () = stopping.cancelled(), if !told_stopping => {}
            changed = agents.changed() => changed?,
            // What takes a look at everything is looked at now and then only.
            _ = heartbeat.tick() => {
                load = Arc::new(meter.measure(&proxy));
                store_bytes = replica.store.size_bytes().unwrap_or(0);
            }
        }
        told_stopping = stopping.is_cancelled();
    }
}

/// What a leader has last said that it knows.
struct Acknowledged {
    by: NodeId,
    sequence: u64,
    generations: Generations,
    takes_changes: bool,
}

impl Acknowledged {
    fn told(&self, now: &Generations) -> Told {
        match Told::since(self.sequence, &self.generations, now) {
            Told::Since { .. } | Told::Whole(_) if !self.takes_changes => Told::Whole(now.clone()),
            told => told,
        }
    }
}

/// Rollouts that have something to compare: the two generations of each.
#[derive(Default)]
struct Compared {
    fleet: Arc<Fleet>,
    of_apps: BTreeMap<AppName, [Key; 2]>,
}

impl Compared {
    fn tallies(&mut self, fleet: &Arc<Fleet>, proxy: &Proxy) -> BTreeMap<Key, Tally> {
        for app in fleet.apps_changed_since(&self.fleet) {
            match compared(fleet, &app) {
                Some(keys) => drop(self.of_apps.insert(app, keys)),
                None => drop(self.of_apps.remove(&app)),
            }
        }
        self.fleet = fleet.clone();
        let tally = |key: &Key| Some((key.clone(), proxy.tally(key.0.as_str(), key.1.0)?));
        self.of_apps.values().flatten().filter_map(tally).collect()
    }
}

fn compared(fleet: &Fleet, app: &AppName) -> Option<[Key; 2]> {
    let (to, rollout) = fleet.newest_rollout(app)?;
    let from = rollout.from.filter(|_| rollout.state == RolloutState::Progressing)?;
    let bakes = fleet.generation(app, to).is_ok_and(|to| !to.spec.rollout.min_healthy.is_zero());
    bakes.then(|| [(app.clone(), from), (app.clone(), to)])
}

async fn leader_changed<N: openraft::Node>(
    metrics: &mut watch::Receiver<openraft::RaftMetrics<NodeId, N>>,
    known: Option<NodeId>,
) -> anyhow::Result<()> {
    metrics.wait_for(|metrics| metrics.current_leader != known).await?;
    Ok(())
}

/// The leader knows all that the report says.
struct Taken {
    takes_changes: bool,
}

async fn send(replica: &Replica, leader: NodeId, report: Report) -> Option<Taken> {
    let stopping = report.stopping;
    if leader == replica.me() {
        let accepted = replica.reports.insert(leader, report, Instant::now());
        replica.let_go.send_replace(stopping && accepted && replica.is_let_go(leader));
        return accepted.then_some(Taken { takes_changes: true });
    }
    let mut client = replica.peers.client(leader).ok()?;
    let request = convert::report_to_pb(&report, replica.peers.envelope(leader));
    match tokio::time::timeout(replica.heartbeat * 2, client.report(request)).await {
        Ok(Ok(reply)) => {
            let reply = reply.into_inner();
            replica.let_go.send_replace(reply.let_go);
            reply.accepted.then_some(Taken { takes_changes: reply.takes_changes })
        }
        Ok(Err(status)) => {
            debug!(%leader, error = %status, "report not taken");
            None
        }
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests;
