//! The coordinator: on the leader, turns what the fleet wants and what the nodes report into the
//! next commands. Snapshot, plan, propose; everything it decides by is in `plan`.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use flotilla_raft_store::{Change, Fleet, NodeId, Presence, Transition};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{task::JoinHandle, time::Instant};
use tracing::{debug, info, warn};

use crate::{
    clock, metrics,
    replica::{self, FIRST_NODE, Replica},
};

mod attention;
mod autoscale;
pub(crate) mod observed;
pub(crate) mod placement;
pub(crate) mod plan;
mod presence;
mod window;

use attention::Attention;
use observed::Observed;
use plan::Plan;
use window::Windows;

/// Bakes, deadlines and silences pass without an event; the plan looks at them this often.
const TICK: Duration = Duration::from_millis(100);
/// After a proposal that got no answer. The fleet is read again before anything is proposed again.
const PAUSE: Duration = Duration::from_millis(200);

/// Commands of one round; the next one goes on. The proposer has no room for any number of them.
const COMMANDS_MAX: usize = 512;
/// Commands that only tidy up wait this long for others like them: entries that nobody waits for would
/// stand in the way of those that somebody does.
const TIDY_AFTER: Duration = Duration::from_millis(100);
/// In so many ticks all apps are looked at, a part in each: ten thousand at once would keep those waiting of which
/// something has changed, and traffic. Nothing should be found by it; it is for what nobody thought of.
const WALK_TICKS: usize = 100;
/// Between two looks at the load of apps that scale by themselves.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// Between two looks at whether apps should move: a move takes a second or two.
const BALANCE_EVERY: Duration = Duration::from_secs(5);

/// Runs on every node; acts while it leads.
pub(crate) async fn run(replica: Arc<Replica>) -> anyhow::Result<()> {
    let mut fleet = replica.fleet.clone();
    let mut reports = replica.reports.changes();
    let mut balancers = replica.balancers.subscribe();
    let mut metrics = replica.raft.metrics();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut leading: Option<Leading> = None;
    let mut last_leader = None;
    loop {
        let (term, leader) = {
            let metrics = metrics.borrow_and_update();
            (replica::leads(&metrics), metrics.current_leader)
        };
        if leader.is_some() && leader != last_leader {
            metrics::leader_changed();
            last_leader = leader;
        }
        reports.borrow_and_update();
        balancers.borrow_and_update();
        fleet.borrow_and_update();
        leading = match (term, leading) {
            (None, _) => {
                replica.waiting.send_if_modified(|waiting| !std::mem::take(waiting).is_empty());
                replica.drains.send_if_modified(|drains| !std::mem::take(drains).is_empty());
                None
            }
            (Some(term), Some(leading)) if leading.term == term => Some(leading),
            (Some(term), _) => Some(Leading::new(term)),
        };
        if let Some(leading) = &mut leading
            && !leading.advance(&replica).await
        {
            tokio::time::sleep(PAUSE).await;
        }
        // Cancel-safe: watch channels and intervals remember.
        tokio::select! {
            changed = fleet.changed() => changed?,
            changed = reports.changed() => changed?,
            changed = balancers.changed() => changed?,
            changed = metrics.changed(), if leading.is_none() => changed?,
            _ = tick.tick(), if leading.is_some() => {}
        }
    }
}

struct Leading {
    term: u64,
    since: Instant,
    /// When it was last looked whether apps should move.
    balanced: Instant,
    /// Looks now, on a thread of its own: at ten thousand apps that takes a while, and nobody waits for it.
    balancing: Option<JoinHandle<(Balanced, Vec<Transition>)>>,
    /// Of these nothing should move, so they need no other look.
    even: Option<Balanced>,
    sampled: Instant,
    demands: autoscale::Demands,
    windows: Windows,
    attention: Attention,
    /// Since when there is something to tidy up.
    untidy: Option<Instant>,
    /// When a part of all apps was looked at.
    walked: Instant,
    /// The log index at which it took control; `None`: not yet.
    in_control_since: Option<u64>,
}

/// What it depends on whether apps should move.
#[derive(PartialEq)]
struct Balanced {
    /// Of the fleet.
    index: u64,
    live: BTreeSet<NodeId>,
    lost: BTreeSet<NodeId>,
}

impl Leading {
    fn new(term: u64) -> Self {
        let now = Instant::now();
        let (demands, windows) = (autoscale::Demands::default(), Windows::default());
        Self {
            term,
            since: now,
            balanced: now,
            balancing: None,
            even: None,
            sampled: now,
            demands,
            windows,
            attention: Attention::default(),
            walked: now,
            untidy: None,
            in_control_since: None,
        }
    }
}

impl Leading {
    /// One round: false when a proposal got no answer, so that its effect is unknown.
    async fn advance(&mut self, replica: &Replica) -> bool {
        let fleet = replica.fleet();
        if fleet.cluster.id.0.is_empty() {
            return replica.me() != FIRST_NODE || self.propose(replica, [init(replica)]).await;
        }
        if fleet.cluster.controller.term < self.term {
            info!(term = self.term, "takes control of the rollouts");
            let change = Change::TakeControl { term: self.term, node: replica.me() };
            return self.propose(replica, [change]).await;
        }
        let since = *self.in_control_since.get_or_insert(fleet.index);
        let mut observed = replica.reports.observed(self.since.elapsed());
        observed.balancers = replica.balancers.borrow().clone();
        observed.lost_after = Some(replica.lost_after);
        let mut plan = self.plan(&fleet, &mut observed);
        if self.sampled.elapsed() >= SAMPLE_EVERY {
            self.sampled = Instant::now();
            let now = clock::now();
            self.demands.sample(&fleet, &observed, now);
            plan.commands.extend(autoscale::scale(&fleet, &observed, &self.demands, now));
        }
        let quiet = plan.commands.is_empty() && observed.may_blame();
        if quiet {
            plan.commands = self.rebalance(&fleet, &observed).await;
        } else {
            self.balancing = None;
        }
        self.put_off(&mut plan.commands);
        plan.commands.truncate(COMMANDS_MAX);
        let drains = std::mem::take(&mut plan.drains);
        replica.drains.send_if_modified(|shown| {
            let changed = **shown != drains;
            if changed {
                *shown = Arc::new(drains);
            }
            changed
        });
        replica.waiting.send_if_modified(|waiting| {
            let changed = **waiting != plan.waiting;
            if changed {
                *waiting = Arc::new(plan.waiting);
            }
            changed
        });
        let presences = presence::told(&fleet, &observed, since);
        let term = self.term;
        let notes = replica.reports.take_notes();
        let changes = plan.commands.into_iter().chain(presences).chain(notes).map(|transition| {
            log(&transition);
            Change::Coordinate { term, transition }
        });
        self.propose(replica, changes).await
    }

    fn plan(&mut self, fleet: &Arc<Fleet>, observed: &mut Observed) -> Plan {
        let now = clock::now();
        let mut plan = match self.attention.look(fleet, observed) {
            Some(mut names) => {
                if self.walked.elapsed() >= TICK {
                    self.walked = Instant::now();
                    names.extend(self.attention.walk(fleet, fleet.apps.len().div_ceil(WALK_TICKS)));
                }
                observed.windows = self.windows.look(fleet, &names, &observed.reports, now);
                plan::plan_apps(fleet, observed, now, &names)
            }
            None => {
                observed.windows = self.windows.look(fleet, fleet.apps.keys(), &observed.reports, now);
                plan::plan(fleet, observed, now)
            }
        };
        let active = std::mem::take(&mut plan.active);
        self.attention.planned(active);
        plan
    }

    /// Moves that a look begun by an earlier round has found; begins the next one when it is time. The fleet may have
    /// moved on since: then applying them refuses them.
    async fn rebalance(&mut self, fleet: &Arc<Fleet>, observed: &Observed) -> Vec<Transition> {
        if let Some(found) = self.balancing.take_if(|look| look.is_finished()) {
            let Ok((balanced, moves)) = found.await else { return Vec::new() };
            self.even = moves.is_empty().then_some(balanced);
            return moves;
        }
        if self.balancing.is_none() && self.balanced.elapsed() >= BALANCE_EVERY {
            self.balanced = Instant::now();
            let (live, lost) = (observed.live_members(fleet), observed.lost_members(fleet));
            let balanced = Balanced { index: fleet.index, live, lost };
            if self.even.as_ref() == Some(&balanced) {
                return Vec::new();
            }
            let fleet = Arc::clone(fleet);
            self.balancing = Some(tokio::task::spawn_blocking(move || {
                let Balanced { live, lost, .. } = &balanced;
                let moves = placement::rebalance(&fleet, placement::Nodes { live, lost });
                (balanced, moves)
            }));
        }
        Vec::new()
    }

    /// The next plan has again what is left out here.
    fn put_off(&mut self, commands: &mut Vec<Transition>) {
        if commands.iter().all(is_urgent) {
            self.untidy = None;
            return;
        }
        match self.untidy {
            Some(since) if since.elapsed() >= TIDY_AFTER => {
                self.untidy = None;
                commands.sort_by_key(|command| !is_urgent(command));
            }
            Some(_) => commands.retain(is_urgent),
            None => {
                self.untidy = Some(Instant::now());
                commands.retain(is_urgent);
            }
        }
    }

    /// All at once: the proposer packs them into as few log entries as fit.
    async fn propose(&self, replica: &Replica, changes: impl IntoIterator<Item = Change>) -> bool {
        let fleet = replica.fleet();
        let propose = |change| {
            let ending = metrics::Ending::of(&fleet, &change, clock::now());
            async move { (ending, replica.propose(None, change).await) }
        };
        let mut answers: FuturesUnordered<_> = changes.into_iter().map(propose).collect();
        let mut known = true;
        while let Some((ending, answer)) = answers.next().await {
            match answer {
                Ok(Ok(_)) => ending.into_iter().for_each(metrics::Ending::count),
                // The fleet moved on between the look and the commit; the next look sees how.
                Ok(Err(rejection)) => debug!(%rejection, "transition refused"),
                Err(status) => {
                    warn!(error = status.message(), "transition not proposed");
                    known = false;
                }
            }
        }
        known
    }
}

/// Somebody waits for it, or for what comes after it.
fn is_urgent(transition: &Transition) -> bool {
    match transition {
        Transition::Advance { .. }
        | Transition::Complete { .. }
        | Transition::RollBack { .. }
        | Transition::RolledBack { .. }
        | Transition::Pause { .. }
        | Transition::Place { .. }
        | Transition::Note { .. }
        | Transition::ChoosePorts { .. }
        | Transition::AdvanceDrain { .. }
        | Transition::TellPresence { .. }
        | Transition::Scale { .. } => true,
        Transition::Assign { .. } | Transition::Forget { .. } => false,
    }
}

fn init(replica: &Replica) -> Change {
    Change::InitCluster {
        id: replica.identity.cluster.clone(),
        name: replica.identity.cluster_name.clone(),
        member: replica.member.clone(),
    }
}

fn log(transition: &Transition) {
    match transition {
        Transition::Complete { app, generation } => info!(%app, %generation, "rollout complete"),
        Transition::RollBack { app, generation, reason } => {
            warn!(%app, %generation, %reason, "rollout goes back");
        }
        Transition::RolledBack { app, generation, missing } if missing.is_empty() => {
            info!(%app, %generation, "rollout is back");
        }
        Transition::RolledBack { app, generation, missing } => {
            warn!(%app, %generation, %missing, "rollout is not back everywhere");
        }
        Transition::Pause { app, generation, reason } => {
            warn!(%app, %generation, %reason, "rollout stops where it stands");
        }
        Transition::AdvanceDrain { node, phase, why } => info!(%node, %phase, %why, "drain"),
        Transition::TellPresence { node, presence: Presence::Down, why } => {
            warn!(%node, %why, "node is down")
        }
        Transition::TellPresence { node, presence: Presence::Up, .. } => info!(%node, "node is up again"),
        Transition::TellPresence { node, presence: Presence::Stopped, .. } => {
            info!(%node, "node has stopped")
        }
        Transition::Scale { app, replicas, short, reason } => {
            info!(%app, replicas, short, %reason, "replicas");
        }
        Transition::Note { app, node, message } => warn!(%app, %node, %message, "reported"),
        Transition::ChoosePorts { node, app, generation, taken } => {
            warn!(%node, %app, %generation, ?taken, "another process has the ports; others are chosen");
        }
        Transition::Advance { .. }
        | Transition::Assign { .. }
        | Transition::Forget { .. }
        | Transition::Place { .. } => debug!(?transition, "transition"),
    }
}
