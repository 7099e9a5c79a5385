//! The coordinator: on the leader, turns what the fleet wants and what the nodes report into the
//! next commands. Snapshot, plan, propose; everything it decides by is in `plan`.

use std::{sync::Arc, time::Duration};

use flotilla_raft_store::{Change, Transition};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::{
    clock, metrics,
    replica::{self, FIRST_NODE, Replica},
};

pub(crate) mod observed;
pub(crate) mod placement;
pub(crate) mod plan;

/// Bakes, deadlines and silences pass without an event; the plan looks at them this often.
const TICK: Duration = Duration::from_millis(100);
/// After a proposal that got no answer. The fleet is read again before anything is proposed again.
const PAUSE: Duration = Duration::from_millis(200);

/// Runs on every node; acts while it leads.
pub(crate) async fn run(replica: Arc<Replica>) -> anyhow::Result<()> {
    let mut fleet = replica.fleet.clone();
    let mut reports = replica.reports.changes();
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
        fleet.borrow_and_update();
        leading = match (term, leading) {
            (None, _) => {
                replica.waiting.send_if_modified(|waiting| !std::mem::take(waiting).is_empty());
                None
            }
            (Some(term), Some(leading)) if leading.term == term => Some(leading),
            (Some(term), _) => Some(Leading { term, since: Instant::now() }),
        };
        if let Some(leading) = &leading
            && !leading.advance(&replica).await
        {
            tokio::time::sleep(PAUSE).await;
        }
        // Cancel-safe: watch channels and intervals remember.
        tokio::select! {
            changed = fleet.changed() => changed?,
            changed = reports.changed() => changed?,
            changed = metrics.changed(), if leading.is_none() => changed?,
            _ = tick.tick(), if leading.is_some() => {}
        }
    }
}

struct Leading {
    term: u64,
    since: Instant,
}

impl Leading {
    /// One round: false when a proposal got no answer, so that its effect is unknown.
    async fn advance(&self, replica: &Replica) -> bool {
        let fleet = replica.fleet();
        if fleet.cluster.id.0.is_empty() {
            return replica.me() != FIRST_NODE || self.propose(replica, [init(replica)]).await;
        }
        if fleet.cluster.controller.term < self.term {
            info!(term = self.term, "takes control of the rollouts");
            let change = Change::TakeControl { term: self.term, node: replica.me() };
            return self.propose(replica, [change]).await;
        }
        let observed = replica.reports.observed(self.since.elapsed());
        let plan = plan::plan(&fleet, &observed, clock::now());
        replica.waiting.send_if_modified(|waiting| {
            let changed = **waiting != plan.waiting;
            if changed {
                *waiting = Arc::new(plan.waiting);
            }
            changed
        });
        let term = self.term;
        let changes = plan.commands.into_iter().map(|transition| {
            log(&transition);
            Change::Coordinate { term, transition }
        });
        self.propose(replica, changes).await
    }

    /// All at once: the proposer packs them into as few log entries as fit.
    async fn propose(&self, replica: &Replica, changes: impl IntoIterator<Item = Change>) -> bool {
        let mut answers: FuturesUnordered<_> =
            changes.into_iter().map(|change| replica.propose(None, change)).collect();
        let mut known = true;
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(Ok(_)) => {}
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
        Transition::RolledBack { app, generation } => info!(%app, %generation, "rollout is back"),
        Transition::Pause { app, generation, reason } => {
            warn!(%app, %generation, %reason, "rollout stops where it stands");
        }
        Transition::Advance { .. }
        | Transition::Assign { .. }
        | Transition::Forget { .. }
        | Transition::Place { .. } => debug!(?transition, "transition"),
    }
}
