//! The Raft member of a node: store, consensus, and what the leader keeps beside them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use flotilla_raft_store::{
    Answer, Change, Command, Fleet, Identity, Member, NodeId, Opened, ProposeOptions, Proposer, ProposerTask,
    RequestId, StoreStatus, types::TypeConfig,
};
use flotilla_spec::AppName;
use openraft::{BasicNode, Raft, RaftMetrics, ServerState};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    balancer::{
        checks::Agents, desired::Services, envoy::Hub, local::Local, standing::Standings, status::Board,
    },
    clock,
    config::Config,
    metrics,
    peer::{Network, Peers},
    reports::Reports,
    rollout::{
        observed::{self, Drained, ObservedBalancer},
        plan::Waiting,
    },
    server::error::{Refusal, not_proposed},
};

/// How often the log is asked whether it wants a snapshot.
const SNAPSHOT_LOOK: Duration = Duration::from_secs(1);

/// Everything a node has once it belongs to a cluster. Shared by the tasks that work on it.
pub(crate) struct Replica {
    pub(crate) identity: Identity,
    pub(crate) raft: Raft<TypeConfig>,
    /// The applied state, published after every log entry.
    pub(crate) fleet: watch::Receiver<Arc<Fleet>>,
    pub(crate) proposer: Proposer,
    pub(crate) peers: Arc<Peers>,
    pub(crate) reports: Reports,
    /// Why the coordinator does nothing now; empty on a node that does not lead.
    pub(crate) waiting: watch::Sender<Arc<Vec<Waiting>>>,
    /// What nodes that give their traffic up wait for; empty on a node that does not lead.
    pub(crate) drains: watch::Sender<Arc<BTreeMap<NodeId, Vec<String>>>>,
    /// The balancers outside as this leader sees them; empty on a node that does not lead.
    pub(crate) balancers: watch::Sender<Arc<Vec<ObservedBalancer>>>,
    /// The same for people.
    pub(crate) board: Board,
    /// Where balancers shall send what, on a node that leads and is asked for it.
    pub(crate) services: watch::Sender<Arc<Services>>,
    /// Rounds with balancers that this node reaches.
    pub(crate) local: Local,
    /// xDS streams that this leader answers.
    pub(crate) envoys: Hub,
    /// How apps are on this node, for balancers that ask.
    pub(crate) standings: watch::Sender<Arc<Standings>>,
    /// Who asks.
    pub(crate) agents: Agents,
    /// In this node's metrics.
    pub(crate) rollouts_shown: metrics::Shown,
    /// This node stops, and the leader has seen that no balancer sends it anything new.
    pub(crate) let_go: watch::Sender<bool>,
    pub(crate) store: StoreStatus,
    /// What this node would like the fleet to know of it.
    pub(crate) member: Member,
    pub(crate) heartbeat: Duration,
    /// A node that is silent for this long is given up.
    pub(crate) lost_after: Duration,
}

impl Replica {
    /// Starts Raft over an open store. The fleet that the store remembers is published before this
    /// returns, so a node can serve it whether or not there is a leader.
    pub(crate) async fn start(opened: Opened, config: &Config) -> anyhow::Result<(Arc<Self>, ProposerTask)> {
        let Opened { identity, log, state_machine, fleet, status } = opened;
        let peers = Peers::new(identity.cluster.clone(), identity.node, fleet.clone());
        let network = Network { peers: peers.clone(), retry: config.raft.heartbeat / 4 };
        let raft_config = flotilla_raft_store::types::recommended_config(config.raft);
        let raft_config = Arc::new(raft_config.validate().context("check the Raft timings")?);
        let raft =
            Raft::new(identity.node, raft_config, network, log, state_machine).await.context("start Raft")?;

        // Only the node that made the cluster ever does this, and a store that lost its log does not
        // open: an empty log here is one that never held anything.
        if identity.node == FIRST_NODE && !raft.is_initialized().await? {
            let first = BasicNode::new(&config.cluster_advertise);
            raft.initialize(std::collections::BTreeMap::from([(FIRST_NODE, first)])).await?;
        }
        info!(cluster = %identity.cluster, node = %identity.node, name = %identity.node_name, "member started");
        let (proposer, proposer_task) = Proposer::new(raft.clone(), ProposeOptions::default());
        let replica = Arc::new(Self {
            proposer,
            raft,
            fleet,
            peers,
            reports: Reports::new(config.raft.heartbeat),
            waiting: watch::Sender::default(),
            drains: watch::Sender::default(),
            balancers: watch::Sender::default(),
            board: Board::default(),
            services: watch::Sender::default(),
            local: Local::new(config.nginx.clone()),
            envoys: Hub::default(),
            standings: watch::Sender::default(),
            agents: Agents::default(),
            rollouts_shown: metrics::Shown::default(),
            let_go: watch::Sender::default(),
            store: status,
            member: config.member(),
            heartbeat: config.raft.heartbeat,
            lost_after: config.lost_after,
            identity,
        });
        Ok((replica, proposer_task))
    }

    /// For a node that stops: whether no balancer sends it new sessions of what it serves. Only a leader
    /// knows, and no balancer that cannot be seen is counted.
    pub(crate) fn is_let_go(&self, node: NodeId) -> bool {
        let balancers = self.board.observed(&self.fleet());
        let is_let_go = |app: &AppName| match observed::drained(&balancers, node, app) {
            Drained::NoneConfigured | Drained::Yes => true,
            Drained::Unknown | Drained::No => false,
        };
        self.leads().is_some() && self.reports.serving(node).iter().all(is_let_go)
    }

    pub(crate) fn me(&self) -> NodeId {
        self.identity.node
    }

    pub(crate) fn fleet(&self) -> Arc<Fleet> {
        self.fleet.borrow().clone()
    }

    /// The leader this node knows, itself included.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        self.raft.metrics().borrow().current_leader
    }

    /// The term this node leads, if it does.
    pub(crate) fn leads(&self) -> Option<u64> {
        leads(&self.raft.metrics().borrow())
    }
}

pub(crate) fn leads(metrics: &RaftMetrics<NodeId, BasicNode>) -> Option<u64> {
    (metrics.state == ServerState::Leader).then_some(metrics.current_term)
}

pub(crate) const FIRST_NODE: NodeId = NodeId(1);

impl Replica {
    /// Proposes a change here, on the leader. The outer error says that there is no answer; the inner
    /// one is the fleet's refusal.
    pub(crate) async fn propose(
        &self,
        request: Option<RequestId>,
        change: Change,
    ) -> Result<Answer, tonic::Status> {
        if !self.store.has_room() {
            return Err(Refusal::DiskFull { free_bytes: self.store.free_bytes().unwrap_or(0) }.into());
        }
        let time = clock::now();
        let superseded = metrics::Ending::superseded(&self.fleet(), &change, time);
        let answer = self.proposer.propose(Command { request, time, change }).await;
        if let Ok(Ok(_)) = answer {
            // An answer comes when its entry is applied here.
            superseded.into_iter().for_each(|superseded| superseded.count_in(&self.fleet()));
        }
        answer.map_err(|err| not_proposed(&err))
    }
}

/// Keeps an eye on the store and on Raft. A core that died, or a store that failed once, does not come
/// back: the process ends, and its supervisor starts a new one that serves from disk.
pub(crate) async fn watch_over(replica: Arc<Replica>) -> anyhow::Result<()> {
    let mut metrics = replica.raft.metrics();
    let mut poisoned = replica.store.poisoned();
    let mut look = tokio::time::interval(SNAPSHOT_LOOK);
    loop {
        if let Some(why) = &*poisoned.borrow_and_update() {
            bail!("the store failed: {why}");
        }
        if let Err(fatal) = &metrics.borrow_and_update().running_state {
            bail!("Raft stopped: {fatal}");
        }
        // Cancel-safe: watch channels and intervals remember.
        tokio::select! {
            changed = metrics.changed() => changed?,
            changed = poisoned.changed() => changed?,
            _ = look.tick() => {
                if replica.store.wants_snapshot() && let Err(err) = replica.raft.trigger().snapshot().await {
                    warn!(error = %err, "snapshot not taken");
                }
            }
        }
    }
}
