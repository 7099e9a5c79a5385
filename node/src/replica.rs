//! The Raft member of a node: store, consensus, and what the leader keeps beside them.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use flotilla_raft_store::{Fleet, Identity, Member, NodeId, Opened, Proposer, StoreStatus, TypeConfig};
use openraft::{BasicNode, Raft, RaftMetrics, ServerState};
use tokio::sync::watch;
use tracing::info;

use crate::{
    config::Config,
    peer::{Network, Peers},
    reports::Reports,
    rollout::plan::Waiting,
};

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
    pub(crate) store: StoreStatus,
    /// What this node would like the fleet to know of it.
    pub(crate) member: Member,
    pub(crate) heartbeat: Duration,
}

impl Replica {
    /// Starts Raft over an open store. The fleet that the store remembers is published before this
    /// returns, so a node can serve it whether or not there is a leader.
    pub(crate) async fn start(opened: Opened, config: &Config) -> anyhow::Result<Arc<Self>> {
        let Opened { identity, log, state_machine, fleet, status, .. } = opened;
        let peers = Peers::new(identity.cluster.clone(), identity.node, fleet.clone());
        let network = Network { peers: peers.clone(), retry: config.raft.heartbeat / 4 };
        let raft_config = flotilla_raft_store::recommended_config(config.raft);
        let raft_config = Arc::new(raft_config.validate().context("check the Raft timings")?);
        let raft = Raft::new(identity.node, raft_config, network, log, state_machine).await.context("start Raft")?;

        // Only the node that made the cluster ever does this, and a store that lost its log does not
        // open: an empty log here is one that never held anything.
        if identity.node == FIRST_NODE && !raft.is_initialized().await? {
            let first = BasicNode::new(&config.cluster_advertise);
            raft.initialize([(FIRST_NODE, first)].into_iter().collect::<std::collections::BTreeMap<_, _>>()).await?;
        }
        info!(cluster = %identity.cluster, node = %identity.node, name = %identity.node_name, "member started");
        Ok(Arc::new(Self {
            proposer: Proposer::start(raft.clone(), &config.proposer()),
            raft,
            fleet,
            peers,
            reports: Reports::new(config.raft.heartbeat),
            waiting: watch::Sender::default(),
            store: status,
            member: config.member(),
            heartbeat: config.raft.heartbeat,
            identity,
        }))
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
            return Err(Refusal::DiskFull { free_bytes: self.store.free_bytes() }.into());
        }
        let command = Command { request, time: clock::now(), change };
        self.proposer.propose(command).await.map_err(|err| not_proposed(&err))
    }
}
