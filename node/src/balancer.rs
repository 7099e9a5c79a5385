//! The load balancers outside: on the leader, one task for each of them brings what it has to what it
//! should have, and says what it was seen to have.
//!
//! Level-triggered: each round compares everything, so a missed event, a restarted balancer and an
//! operator's hand are put right alike. Before each round the leader makes sure, with a quorum, that it
//! still leads: one that was cut off and does not know changes nothing. What is left, a round that was
//! begun in time and ends late, writes whole states and not differences, and is overwritten by the next.
//!
//! `desired` says what they shall have, `haproxy` and `nginx` make it so, `envoy` answers those that
//! subscribe, `checks` those that ask; `local` is where rounds run, on the leader or on the node that
//! reaches the balancer.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use flotilla_raft_store::{Balancer, BalancerKind, NodeId};
use futures_util::FutureExt as _;
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::Instant,
};
use tracing::{debug, info, warn};

use crate::{
    metrics,
    replica::{self, Replica},
};

pub(crate) mod checks;
pub(crate) mod desired;
pub(crate) mod envoy;
pub(crate) mod export;
mod haproxy;
pub(crate) mod local;
pub(crate) mod nginx;
pub(crate) mod standing;
pub(crate) mod status;

use desired::{Service, Services};
use local::Refused;
use status::{Health, Outcome};

/// Silences pass without an event.
const TICK: Duration = Duration::from_millis(100);
/// How often a balancer is looked at although nothing is to be changed.
const OBSERVE: Duration = Duration::from_millis(500);
/// After a round that failed; doubles up to the second.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// For a round that another node does.
const ROUND_TIMEOUT: Duration = Duration::from_secs(15);
/// To hear from a quorum that this node leads.
const FENCE_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs on every node; acts while it leads.
pub(crate) async fn run(replica: Arc<Replica>) -> anyhow::Result<()> {
    let mut fleet = replica.fleet.clone();
    let mut reports = replica.reports.changes();
    let mut board = replica.board.changes();
    let mut metrics = replica.raft.metrics();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut leading: Option<Leading> = None;
    let mut news = true;
    loop {
        let term = replica::leads(&metrics.borrow_and_update());
        // What woke this task counts as seen, and what came beside it does not.
        news |= fleet.has_changed()? || reports.has_changed()?;
        reports.borrow_and_update();
        board.borrow_and_update();
        let now = fleet.borrow_and_update().clone();
        leading = match (term, leading) {
            (None, None) => None,
            (None, Some(_)) => {
                replica.board.retain(|_| false);
                replica.services.send_replace(Arc::default());
                None
            }
            (Some(term), Some(leading)) if leading.term == term => Some(leading),
            (Some(term), _) => Some(Leading::new(term)),
        };
        if let Some(leading) = &mut leading
            && now.cluster.controller.term == leading.term
            && now.cluster.controller.node == replica.me()
        {
            leading.look(&replica, &now, news);
        }
        publish(&replica, &now, leading.is_some());
        // Cancel-safe: watch channels and intervals remember.
        news = tokio::select! {
            changed = fleet.changed() => changed.map(|()| true)?,
            changed = reports.changed(), if leading.is_some() => changed.map(|()| true)?,
            changed = board.changed(), if leading.is_some() => changed.map(|()| false)?,
            changed = metrics.changed(), if leading.is_none() => changed.map(|()| true)?,
            _ = tick.tick(), if leading.is_some() => false,
        };
    }
}

/// Tells the coordinator what balancers were seen to do.
fn publish(replica: &Replica, fleet: &flotilla_raft_store::Fleet, leads: bool) {
    let seen = if leads { replica.board.observed(fleet) } else { Vec::new() };
    replica.balancers.send_if_modified(|before| {
        let changed = **before != seen;
        if changed {
            *before = Arc::new(seen);
        }
        changed
    });
}

struct Leading {
    term: u64,
    since: Instant,
    /// Who was live, and whether silence counted, when services were last made.
    seen: Option<(Vec<NodeId>, bool)>,
    /// With the settings each was started with.
    tellers: BTreeMap<String, (Arc<Balancer>, AbortHandle)>,
    tasks: JoinSet<()>,
}

impl Leading {
    fn new(term: u64) -> Self {
        Self { term, since: Instant::now(), seen: None, tellers: BTreeMap::new(), tasks: JoinSet::new() }
    }

    /// Between two looks at 10,000 apps nothing has changed, mostly.
    fn has_news(&mut self, replica: &Replica, fleet: &flotilla_raft_store::Fleet) -> bool {
        let live = fleet.members.keys().copied().filter(|node| replica.reports.is_live(*node)).collect();
        let seen = Some((live, replica.reports.may_blame(self.since.elapsed())));
        let news = self.seen != seen;
        self.seen = seen;
        news
    }

    /// One look at the fleet: what balancers there are, and what they shall have.
    fn look(&mut self, replica: &Arc<Replica>, fleet: &flotilla_raft_store::Fleet, news: bool) {
        let wanted = !fleet.balancers.is_empty() || replica.services.receiver_count() > 0;
        if !wanted {
            self.seen = None;
        } else if self.has_news(replica, fleet) || news {
            let wanted = desired::desired(fleet, &replica.reports.observed(self.since.elapsed()));
            replica.services.send_if_modified(|services| {
                let first = services.index == 0;
                let changed =
                    first || services.services != wanted.services || services.problems != wanted.problems;
                if changed {
                    *services = Arc::new(Services { made: Some(Instant::now()), ..wanted });
                }
                changed
            });
        }
        while self.tasks.join_next().now_or_never().flatten().is_some() {}
        self.tellers.retain(|name, (settings, task)| {
            let same = fleet.balancers.get(name).is_some_and(|wanted| Arc::ptr_eq(wanted, settings));
            if !same || task.is_finished() {
                task.abort();
            }
            same && !task.is_finished()
        });
        for (name, settings) in &fleet.balancers {
            if !self.tellers.contains_key(name) {
                info!(balancer = name, term = self.term, "tell balancer");
                let teller = Teller {
                    replica: replica.clone(),
                    term: self.term,
                    name: name.clone(),
                    settings: settings.clone(),
                    services: replica.services.subscribe(),
                };
                let task = self.tasks.spawn(teller.run());
                self.tellers.insert(name.clone(), (settings.clone(), task));
            }
        }
        replica.board.retain(|name| fleet.balancers.contains_key(name));
    }
}

/// Keeps one balancer at what it should have, until the leader's term ends.
struct Teller {
    replica: Arc<Replica>,
    term: u64,
    name: String,
    settings: Arc<Balancer>,
    services: watch::Receiver<Arc<Services>>,
}

impl Teller {
    async fn run(mut self) {
        let least = match &self.settings.kind {
            // Commands are answered between two events of its loop.
            BalancerKind::Haproxy(_) => Duration::from_millis(5),
            // Each reload starts new workers, and the old ones stay until their last session.
            BalancerKind::Nginx { .. } => Duration::from_secs(2),
            BalancerKind::Envoy { .. } => return self.watch_envoys().await,
            BalancerKind::AgentCheck { .. } => return self.watch_agents().await,
            BalancerKind::TcpCheck { .. } => {
                self.replica.board.update(&self.name, |status| status.health = Health::Asks);
                return std::future::pending().await;
            }
        };
        let min_interval = self.settings.min_interval.max(least);
        let mut retry = RETRY;
        loop {
            let wanted = self.services.borrow_and_update().clone();
            let services = wanted.of_apps(&self.settings.apps);
            let begun = Instant::now();
            let result = self.round(&services).await;
            let pause = match &result {
                Ok(_) => {
                    retry = RETRY;
                    OBSERVE
                }
                Err(Refused::Fenced(why)) => {
                    debug!(balancer = self.name, why, "not told");
                    RETRY
                }
                Err(Refused::Failed(_)) => {
                    let pause = retry;
                    retry = (retry * 2).min(RETRY_MAX);
                    pause
                }
            };
            if matches!(&result, Ok(outcome) if outcome.changes > 0) {
                metrics::balancer_followed(&self.name, wanted.made);
            }
            self.note(&wanted.problems, result);
            tokio::time::sleep_until(begun + min_interval).await;
            // Cancel-safe: watch channels remember.
            tokio::select! {
                changed = self.services.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Streams are answered elsewhere; here is what their clients were seen to have.
    async fn watch_envoys(mut self) {
        let mut envoys = self.replica.envoys.changes();
        loop {
            let services = self.services.borrow_and_update().of_apps(&self.settings.apps);
            envoys.borrow_and_update();
            let look = envoy::look(&self.settings, &self.replica.envoys.of(&self.name), &services).await;
            let in_sync = look.outcome.problems.is_empty()
                && look.outcome.servers.iter().all(status::Server::is_as_wanted);
            let seen = if in_sync { Health::InSync } else { Health::Drifting };
            let health = look.health.unwrap_or(seen);
            self.replica.board.update(&self.name, |status| {
                status.health = health;
                status.observed = Some(Instant::now());
                // With nobody connected it is not known where clients are sent.
                let known = health != Health::Waiting;
                status.sends = known.then(|| Arc::new(status::sends(&look.outcome.servers)));
                status.servers = look.outcome.servers;
                status.problems = look.outcome.problems;
                status.clients = look.clients;
            });
            // Cancel-safe: watch channels remember.
            tokio::select! {
                changed = self.services.changed() => if changed.is_err() { return },
                changed = envoys.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(OBSERVE) => {}
            }
        }
    }

    /// They ask the nodes, and the nodes report whom they told to drain.
    async fn watch_agents(mut self) {
        let mut reports = self.replica.reports.changes();
        loop {
            let services = self.services.borrow_and_update().of_apps(&self.settings.apps);
            reports.borrow_and_update();
            let sends = checks::sends(services.iter(), |node| self.replica.reports.told_drain(node));
            self.replica.board.update(&self.name, |status| {
                status.health = Health::Asks;
                status.observed = Some(Instant::now());
                status.sends = Some(Arc::new(sends));
            });
            // Cancel-safe: watch channels remember.
            tokio::select! {
                changed = self.services.changed() => if changed.is_err() { return },
                changed = reports.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(OBSERVE) => {}
            }
        }
    }

    async fn round(&self, services: &[Service]) -> Result<Outcome, Refused> {
        fence(&self.replica, self.term).await.map_err(Refused::Fenced)?;
        // Whatever comes of this round: it may send there from now on.
        self.replica.board.update(&self.name, |status| {
            if let Some(sends) = &mut status.sends {
                let ready = services.iter().flat_map(|service| {
                    let endpoints = service.endpoints.iter();
                    let ready = endpoints.filter(|endpoint| endpoint.state == desired::State::Ready);
                    ready.map(|endpoint| (endpoint.node, service.app.clone()))
                });
                Arc::make_mut(sends).extend(ready);
            }
        });
        let at = match &self.settings.kind {
            BalancerKind::Haproxy(haproxy) => haproxy.node,
            BalancerKind::Nginx { node } => Some(*node),
            BalancerKind::Envoy { .. } | BalancerKind::AgentCheck { .. } | BalancerKind::TcpCheck { .. } => {
                None
            }
        };
        match at.filter(|node| *node != self.replica.me()) {
            None => self.replica.local.reconcile(self.term, &self.name, &self.settings.kind, services).await,
            Some(node) => {
                local::at(&self.replica, node, self.term, &self.name, &self.settings, services).await
            }
        }
    }

    fn note(&self, problems: &[String], result: Result<Outcome, Refused>) {
        let before = self.replica.board.of(&self.name).unwrap_or_default();
        match result {
            Ok(mut outcome) => {
                outcome.problems.extend(problems.iter().cloned());
                let health = match outcome.problems.is_empty()
                    && outcome.servers.iter().all(status::Server::is_as_wanted)
                {
                    true => Health::InSync,
                    false => Health::Drifting,
                };
                if before.health != health {
                    info!(balancer = self.name, ?health, problems = ?outcome.problems, "balancer seen");
                }
                metrics::balancer_pushed(&self.name, outcome.changes, "ok");
                let now = Instant::now();
                self.replica.board.update(&self.name, |status| {
                    status.health = health;
                    status.pushes += outcome.changes;
                    if outcome.changes > 0 {
                        status.pushed = Some(now);
                    }
                    status.observed = Some(now);
                    status.sends = Some(Arc::new(status::sends(&outcome.servers)));
                    status.servers = outcome.servers;
                    status.problems = outcome.problems;
                });
            }
            Err(Refused::Fenced(_)) => metrics::balancer_pushed(&self.name, 1, "fenced"),
            Err(Refused::Failed(why)) => {
                if before.problems.first() != Some(&why) {
                    warn!(balancer = self.name, error = why, "balancer not told");
                }
                metrics::balancer_pushed(&self.name, 1, "error");
                self.replica.board.update(&self.name, |status| {
                    status.health = Health::Failing;
                    status.problems = vec![why];
                    status.sends = None;
                });
            }
        }
    }
}

/// True leadership, as of now: a leader that was cut off does not learn of it by itself.
pub(crate) async fn fence(replica: &Replica, term: u64) -> Result<(), String> {
    let in_control = || {
        let controller = replica.fleet.borrow().cluster.controller;
        replica.leads() == Some(term) && controller.term == term && controller.node == replica.me()
    };
    if !in_control() {
        return Err(format!("term {term} is over"));
    }
    match tokio::time::timeout(FENCE_TIMEOUT, replica.raft.ensure_linearizable()).await {
        Ok(Ok(_)) if in_control() => Ok(()),
        Ok(Ok(_)) => Err(format!("term {term} is over")),
        Ok(Err(err)) => Err(err.to_string()),
        Err(_) => Err(format!("no quorum within {FENCE_TIMEOUT:?}")),
    }
}

/// The node that talks to a balancer; `None`: whichever leads, or every node.
pub(crate) fn by(kind: &BalancerKind) -> Option<NodeId> {
    match kind {
        BalancerKind::Haproxy(haproxy) => haproxy.node,
        BalancerKind::Nginx { node } => Some(*node),
        BalancerKind::Envoy { .. } | BalancerKind::AgentCheck { .. } | BalancerKind::TcpCheck { .. } => None,
    }
}
