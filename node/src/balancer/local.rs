//! Where rounds with a balancer run: here, for this leader or for another one that asks for it.
//!
//! A unix socket and an nginx are on one machine, so the leader has the node of that machine do it. The
//! node refuses a term that is older than one it has seen: a leader that was deposed meanwhile may
//! still have a request on its way.

use std::{collections::BTreeMap, sync::Arc};

use flotilla_raft_store::{Balancer, BalancerKind, Fleet, NodeId};
use tokio::sync::Mutex;

use super::{
    desired::Service,
    haproxy,
    nginx::{self, NginxConfig},
    status::Outcome,
};
use crate::{replica::Replica, server::convert};

/// A round that did not come about, or not to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Nothing was touched: somebody else leads.
    Fenced(String),
    /// It may have been told a part.
    Failed(String),
}

pub(crate) struct Local {
    nginx: Option<NginxConfig>,
    balancers: Mutex<BTreeMap<String, Arc<Mutex<Rounds>>>>,
}

/// One at a time with each balancer.
#[derive(Default)]
struct Rounds {
    /// The highest term that had one.
    term: u64,
    /// What a nginx was loaded with.
    loaded: Option<nginx::Loaded>,
}

impl Local {
    pub(crate) fn new(nginx: Option<NginxConfig>) -> Self {
        Self { nginx, balancers: Mutex::default() }
    }

    pub(crate) async fn reconcile(
        &self,
        term: u64,
        name: &str,
        kind: &BalancerKind,
        services: &[Service],
    ) -> Result<Outcome, Refused> {
        let balancer = self.balancers.lock().await.entry(name.to_owned()).or_default().clone();
        let mut rounds = balancer.lock().await;
        if term < rounds.term {
            return Err(Refused::Fenced(format!("term {term} is over: term {} talks to it", rounds.term)));
        }
        rounds.term = term;
        match kind {
            BalancerKind::Haproxy(settings) => {
                haproxy::reconcile(settings, services).await.map_err(Refused::Failed)
            }
            BalancerKind::Nginx { .. } => {
                let missing = "this node has no [nginx] in its node.toml";
                let config = self.nginx.as_ref().ok_or_else(|| Refused::Failed(missing.to_owned()))?;
                nginx::reconcile(config, &mut rounds.loaded, services).await.map_err(Refused::Failed)
            }
            BalancerKind::AgentCheck { .. } | BalancerKind::TcpCheck { .. } | BalancerKind::Envoy { .. } => {
                Err(Refused::Failed("nobody tells it anything".to_owned()))
            }
        }
    }
}

/// The node's own word on who leads, before a round for another one.
pub(crate) fn check_term(fleet: &Fleet, term: u64) -> Result<(), Refused> {
    let known = fleet.cluster.controller.term;
    match term < known {
        true => Err(Refused::Fenced(format!("term {term} is over: term {known} is in control"))),
        false => Ok(()),
    }
}

/// Has another node do it.
pub(crate) async fn at(
    replica: &Replica,
    node: NodeId,
    term: u64,
    name: &str,
    settings: &Balancer,
    services: &[Service],
) -> Result<Outcome, Refused> {
    let fleet = replica.fleet();
    let node_name = fleet.node_name(node);
    let failed = |why: &str| Refused::Failed(format!("node {node_name}: {why}"));
    let mut client = replica.peers.client(node).map_err(|err| failed(&err.to_string()))?;
    let request =
        convert::balance_to_pb(&fleet, replica.peers.envelope(node), term, name, settings, services);
    let answer = tokio::time::timeout(super::ROUND_TIMEOUT, client.balance(request)).await;
    match answer {
        Ok(Ok(reply)) => convert::outcome(reply.into_inner()).map_err(|err| failed(&err.to_string())),
        Ok(Err(status)) if status.code() == tonic::Code::Aborted => {
            Err(Refused::Fenced(status.message().to_owned()))
        }
        Ok(Err(status)) => Err(failed(status.message())),
        Err(_) => Err(failed("no answer")),
    }
}
