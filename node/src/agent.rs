//! Every node: does on the proxy what the fleet asks of this node, and says how far it is.
//!
//! Level-triggered: the plan is made anew from the applied fleet and the running proxy, so a missed
//! event heals. It acts on applied assignments only, and needs neither a leader nor a quorum.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use flotilla_proxy::{GenerationStatus, Proxy};
use flotilla_raft_store::{Fleet, GenerationId, NodeId, spec_digest};
use flotilla_spec::AppName;
use tokio::{sync::watch, time::Instant};
use tracing::{debug, info, warn};

use crate::{
    agent::plan::Action, replica::Replica, reports::Report, rollout::observed::GenerationReport,
    server::convert,
};

pub(crate) mod plan;
pub(crate) mod translate;

/// A port that was taken may be free by now, so what was rejected is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

pub(crate) type Key = (AppName, GenerationId);

/// What this node says of itself, and up to which log index it has acted: a report that claimed more
/// would let the coordinator take "not there yet" for "gone already".
#[derive(Clone, Default)]
pub(crate) struct Running {
    applied: u64,
    /// Every generation that runs here or was asked for. The same `Arc` as long as nothing changes.
    generations: Arc<BTreeMap<Key, GenerationReport>>,
}

pub(crate) struct Agent {
    me: NodeId,
    fleet: watch::Receiver<Arc<Fleet>>,
    proxy: Proxy,
    traffic_address: Option<IpAddr>,
    /// Why a generation cannot be prepared here. Forgotten when it is tried again.
    rejected: BTreeMap<Key, String>,
    /// The digest of the spec that each running generation was compiled from.
    compiled: BTreeMap<Key, [u8; 32]>,
    running: watch::Sender<Running>,
}

impl Agent {
    pub(crate) fn new(
        me: NodeId,
        fleet: watch::Receiver<Arc<Fleet>>,
        proxy: Proxy,
        traffic_address: Option<IpAddr>,
    ) -> (Self, watch::Receiver<Running>) {
        let (running, reports) = watch::channel(Running::default());
        (
            Self {
                me,
                fleet,
                proxy,
                traffic_address,
                rejected: BTreeMap::new(),
                compiled: BTreeMap::new(),
                running,
            },
            reports,
        )
    }

    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let mut proxy = self.proxy.changed();
        let mut retry = tokio::time::interval(RETRY);
        loop {
            proxy.borrow_and_update();
            let fleet = self.fleet.borrow_and_update().clone();
            self.reconcile(&fleet).await;
            self.publish(&fleet);
            // Cancel-safe: watch channels and intervals remember.
            tokio::select! {
                changed = self.fleet.changed() => changed?,
                changed = proxy.changed() => changed?,
                _ = retry.tick() => self.rejected.clear(),
            }
        }
    }

    /// Acts until there is nothing to do; a plan after an action may ask for the next one.
    async fn reconcile(&mut self, fleet: &Fleet) {
        let desired = fleet.assignments.get(&self.me).cloned().unwrap_or_default();
        loop {
            let status = self.proxy.status();
            let actions: Vec<_> =
                plan::plan(&desired, &plan::running(&status), |key| plan::drain_of(fleet, key))
                    .into_iter()
                    .filter(|action| !self.rejected.contains_key(action.key()))
                    .collect();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                debug!(?action, "act");
                let key = action.key().clone();
                if let Err(why) = self.act(fleet, action).await {
                    warn!(app = %key.0, generation = %key.1, error = %why, "generation rejected");
                    self.rejected.insert(key, why);
                }
            }
        }
    }

    async fn act(&mut self, fleet: &Fleet, action: Action) -> Result<(), String> {
        match action {
            Action::Prepare { key } => self.prepare(fleet, key).await,
            Action::Serve { key: (app, generation) } => {
                info!(%app, %generation, "serve");
                self.proxy.serve(app.as_str(), generation.0).map_err(|err| err.to_string())
            }
            Action::Drain { key: (app, generation) } => {
                info!(%app, %generation, "drain");
                self.proxy.drain(app.as_str(), generation.0).map_err(|err| err.to_string())
            }
            Action::Remove { key: (app, generation), cut_after } => {
                info!(%app, %generation, "remove");
                self.proxy.remove(app.as_str(), generation.0, cut_after).map_err(|err| err.to_string())
            }
        }
    }

    async fn prepare(&mut self, fleet: &Fleet, key: Key) -> Result<(), String> {
        let (Some(generation), Some(assignment)) =
            (fleet.generations.get(&key), fleet.assignment(self.me, &key.0, key.1))
        else {
            return Err("the fleet does not know the generation".to_owned());
        };
        let config = translate::translate(&generation.spec, key.1, &assignment.ports, self.traffic_address);
        self.proxy.prepare(config).await.map_err(|err| err.to_string())?;
        self.compiled.insert(key, spec_digest(&generation.spec));
        Ok(())
    }

    fn publish(&mut self, fleet: &Fleet) {
        let status = self.proxy.status();
        let running: BTreeMap<Key, &GenerationStatus> =
            status.iter().filter_map(|status| Some((plan::key(status)?, status))).collect();
        let assigned = fleet.assignments.get(&self.me);
        let desired = |key: &Key| assigned.and_then(|assigned| assigned.get(key)).map(|asked| asked.desired);
        self.compiled.retain(|key, _| running.contains_key(key));
        self.rejected.retain(|key, _| desired(key).is_some());
        let keys: BTreeSet<&Key> =
            assigned.into_iter().flat_map(|assigned| assigned.keys()).chain(running.keys()).collect();
        let reports = keys.into_iter().filter_map(|key| {
            let report = plan::report(
                fleet.generations.get(key)?,
                desired(key),
                running.get(key).copied(),
                self.rejected.get(key).map(String::as_str),
                self.compiled.get(key).copied(),
            );
            Some((key.clone(), report))
        });
        let reports: BTreeMap<_, _> = reports.collect();
        self.running.send_if_modified(|running| {
            let moved = running.applied != fleet.index;
            running.applied = fleet.index;
            let changed = *running.generations != reports;
            if changed {
                running.generations = Arc::new(reports);
            }
            moved || changed
        });
    }
}

/// Tells the leader what runs here: at every heartbeat, and at once after a change.
pub(crate) async fn report(
    replica: Arc<Replica>,
    mut running: watch::Receiver<Running>,
    proxy: Proxy,
) -> anyhow::Result<()> {
    let mut metrics = replica.raft.metrics();
    let mut heartbeat = tokio::time::interval(replica.heartbeat);
    heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let incarnation = rand::random();
    let mut sequence = 0;
    // To whom the whole report went last; a new leader knows nothing yet.
    let mut told: Option<(NodeId, Arc<BTreeMap<Key, GenerationReport>>)> = None;
    loop {
        let Running { applied, generations } = running.borrow_and_update().clone();
        let leader = metrics.borrow_and_update().current_leader;
        if let Some(leader) = leader {
            sequence += 1;
            let same =
                told.as_ref().is_some_and(|(to, last)| *to == leader && Arc::ptr_eq(last, &generations));
            let report = Report {
                sequence,
                incarnation,
                applied,
                connections: proxy.connections(),
                store_bytes: replica.store.size_bytes().unwrap_or(0),
                generations: (!same).then(|| (*generations).clone()),
            };
            told = send(&replica, leader, report).await.then_some((leader, generations));
        }
        // Cancel-safe: watch channels and intervals remember.
        tokio::select! {
            changed = running.changed() => changed?,
            changed = leader_changed(&mut metrics, leader) => changed?,
            _ = heartbeat.tick() => {}
        }
    }
}

async fn leader_changed<N: openraft::Node>(
    metrics: &mut watch::Receiver<openraft::RaftMetrics<NodeId, N>>,
    known: Option<NodeId>,
) -> anyhow::Result<()> {
    metrics.wait_for(|metrics| metrics.current_leader != known).await?;
    Ok(())
}

/// True once the leader has the whole report.
async fn send(replica: &Replica, leader: NodeId, report: Report) -> bool {
    if leader == replica.me() {
        return replica.reports.insert(leader, report, Instant::now());
    }
    let Ok(mut client) = replica.peers.client(leader) else { return false };
    let request = convert::report_to_pb(&report, replica.peers.envelope(leader));
    match tokio::time::timeout(replica.heartbeat * 2, client.report(request)).await {
        Ok(Ok(reply)) => reply.into_inner().accepted,
        Ok(Err(status)) => {
            debug!(%leader, error = %status, "report not taken");
            false
        }
        Err(_) => false,
    }
}
