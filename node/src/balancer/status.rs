//! What balancers were told and were seen to have: soft state of the leader, for people and for the
//! coordinator.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use flotilla_raft_store::{Balancer, BalancerKind, Fleet, NodeId};
use flotilla_spec::AppName;
use tokio::{sync::watch, time::Instant};

use super::desired::{Endpoint, Service, State};
use crate::rollout::observed::ObservedBalancer;

/// Of one balancer. Everything in it was seen by this leader, in this term.
#[derive(Clone, Debug, Default)]
pub(crate) struct Status {
    pub(crate) health: Health,
    /// Why it is not in sync.
    pub(crate) problems: Vec<String>,
    pub(crate) pushes: u64,
    pub(crate) pushed: Option<Instant>,
    pub(crate) observed: Option<Instant>,
    pub(crate) servers: Vec<Server>,
    pub(crate) clients: Vec<Client>,
    /// Where it sends new sessions, or may by now. `None`: not known.
    pub(crate) sends: Option<Arc<BTreeSet<(NodeId, AppName)>>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Health {
    /// Not looked at yet.
    #[default]
    Unknown,
    /// Seen to have what it should.
    InSync,
    /// Seen, and something is otherwise.
    Drifting,
    /// It cannot be seen or told.
    Failing,
    /// Nobody has connected yet.
    Waiting,
    /// It asks the nodes by itself, and is not told anything.
    Asks,
}

/// What a balancer has for one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) service: String,
    pub(crate) app: AppName,
    pub(crate) node: NodeId,
    pub(crate) node_name: String,
    pub(crate) address: SocketAddr,
    pub(crate) wanted: State,
    pub(crate) seen: Seen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Ready,
    Drain,
    /// Out of service because somebody said so.
    Maint,
    /// Out of service because the balancer's own check fails; comes back by itself.
    Failing,
    Absent,
    Unknown,
}

/// A connected xDS client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Client {
    pub(crate) id: String,
    pub(crate) by: String,
    pub(crate) kind: String,
    pub(crate) sent: String,
    pub(crate) acknowledged: String,
    pub(crate) error: String,
}

/// What one round with a balancer came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    /// Changes that were made.
    pub(crate) changes: u64,
    pub(crate) problems: Vec<String>,
    pub(crate) servers: Vec<Server>,
}

impl Server {
    pub(crate) fn new(service: &Service, endpoint: &Endpoint, seen: Seen) -> Self {
        Self {
            service: service.name.clone(),
            app: service.app.clone(),
            node: endpoint.node,
            node_name: endpoint.node_name.clone(),
            address: endpoint.address,
            wanted: endpoint.state,
            seen,
        }
    }

    /// New sessions go there, or will without anybody asking for it.
    pub(crate) fn is_sent_to(&self) -> bool {
        match self.seen {
            Seen::Ready | Seen::Failing | Seen::Unknown => true,
            Seen::Drain | Seen::Maint | Seen::Absent => false,
        }
    }

    pub(crate) fn is_as_wanted(&self) -> bool {
        match self.wanted {
            State::Ready => matches!(self.seen, Seen::Ready | Seen::Failing),
            State::Drain | State::Down => !self.is_sent_to(),
            State::Unknown => true,
        }
    }
}

/// Where any of these is sent new sessions.
pub(crate) fn sends(servers: &[Server]) -> BTreeSet<(NodeId, AppName)> {
    let sent_to = servers.iter().filter(|server| server.is_sent_to());
    sent_to.map(|server| (server.node, server.app.clone())).collect()
}

/// The state of all balancers, in one place.
#[derive(Default)]
pub(crate) struct Board {
    states: Mutex<BTreeMap<String, Status>>,
    changed: watch::Sender<()>,
}

impl Board {
    pub(crate) fn update(&self, name: &str, change: impl FnOnce(&mut Status)) {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        change(states.entry(name.to_owned()).or_default());
        drop(states);
        self.changed.send_replace(());
    }

    /// Forgets what this node knew while it led, or all but what is still configured.
    pub(crate) fn retain(&self, keep: impl Fn(&str) -> bool) {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        let before = states.len();
        states.retain(|name, _| keep(name));
        if states.len() != before {
            drop(states);
            self.changed.send_replace(());
        }
    }

    pub(crate) fn of(&self, name: &str) -> Option<Status> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// For the coordinator.
    pub(crate) fn observed(&self, fleet: &Fleet) -> Vec<ObservedBalancer> {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody knows who connects to a check port, or what they make of it.
        let can_be_seen =
            |(_, balancer): &(_, &Arc<Balancer>)| !matches!(balancer.kind, BalancerKind::TcpCheck { .. });
        let observed = fleet.balancers.iter().filter(can_be_seen).map(|(name, balancer)| ObservedBalancer {
            name: name.clone(),
            apps: balancer.apps.clone(),
            sends: states.get(name).and_then(|status| status.sends.clone()),
        });
        observed.collect()
    }
}
