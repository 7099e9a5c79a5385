//! Envoy, which subscribes: every node is an xDS server, and the leader's word goes to all streams.
//!
//! A node that does not lead passes a stream on to the one that does; when that one loses its office the
//! stream ends, and Envoy, which keeps what it has, connects again. Both protocols are served, state of the world
//! and incremental (`session`), aggregated and for endpoints alone. An acknowledgement is what Envoy says
//! that it has; with the address of its admin interface it is asked what it really has (`admin`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use flotilla_raft_store::{Balancer, BalancerKind, NodeId};
use tokio::sync::watch;

use super::{
    desired::{Service, State},
    status::{Client, Health, Outcome, Seen, Server},
};

mod admin;
pub(super) mod serve;
mod session;

/// What one stream was told and has acknowledged.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subscriber {
    pub(crate) balancer: String,
    pub(crate) client: Client,
    /// By the name of the service; without an entry it does not subscribe. `None`: it has none yet.
    pub(crate) has: BTreeMap<String, Option<Arc<Service>>>,
}

/// All streams that this leader answers.
#[derive(Default)]
pub(crate) struct Hub {
    streams: Mutex<(u64, BTreeMap<u64, Subscriber>)>,
    changed: watch::Sender<()>,
}

impl Hub {
    fn enter(&self, subscriber: Subscriber) -> u64 {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.0 += 1;
        let id = streams.0;
        streams.1.insert(id, subscriber);
        drop(streams);
        self.changed.send_replace(());
        id
    }

    fn update(&self, id: u64, change: impl FnOnce(&mut Subscriber)) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(subscriber) = streams.1.get_mut(&id) {
            change(subscriber);
        }
        drop(streams);
        self.changed.send_replace(());
    }

    fn leave(&self, id: u64) {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).1.remove(&id);
        self.changed.send_replace(());
    }

    pub(super) fn of(&self, balancer: &str) -> Vec<Subscriber> {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.1.values().filter(|subscriber| subscriber.balancer == balancer).cloned().collect()
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

/// What the Envoys of one balancer were seen to have.
pub(super) struct Look {
    pub(super) health: Option<Health>,
    pub(super) outcome: Outcome,
    pub(super) clients: Vec<Client>,
}

pub(super) async fn look(settings: &Balancer, subscribers: &[Subscriber], services: &[Service]) -> Look {
    let mut outcome = Outcome { servers: servers(subscribers, services), ..Outcome::default() };
    for Subscriber { client, .. } in subscribers {
        if !client.error.is_empty() {
            outcome.problems.push(format!("{} refused what it was sent: {}", client.id, client.error));
        }
    }
    let known: BTreeSet<&str> = services.iter().map(|service| service.name.as_str()).collect();
    let asked: BTreeSet<&String> = subscribers.iter().flat_map(|subscriber| subscriber.has.keys()).collect();
    for name in asked.into_iter().filter(|name| !known.contains(name.as_str())) {
        outcome.problems.push(format!("an Envoy asks for service `{name}`, which there is not"));
    }
    if let BalancerKind::Envoy { admin, .. } = &settings.kind {
        for address in admin {
            match admin::clusters(address).await {
                Ok(clusters) => admin::overrule(&mut outcome.servers, &clusters),
                Err(why) => outcome.problems.push(format!("{address}: {why}")),
            }
        }
    }
    Look {
        health: subscribers.is_empty().then_some(Health::Waiting),
        clients: subscribers.iter().map(|subscriber| subscriber.client.clone()).collect(),
        outcome,
    }
}

/// For each endpoint that somebody subscribes to, what the one that is furthest behind has.
fn servers(subscribers: &[Subscriber], services: &[Service]) -> Vec<Server> {
    let mut servers = Vec::new();
    for service in services {
        let has: Vec<&Option<Arc<Service>>> =
            subscribers.iter().filter_map(|subscriber| subscriber.has.get(&service.name)).collect();
        if has.is_empty() {
            continue;
        }
        for endpoint in &service.endpoints {
            let seen = has.iter().map(|has| match has {
                None => Seen::Unknown,
                Some(has) => state_of(has, endpoint.node),
            });
            let wanted = Server::new(service, endpoint, Seen::Ready);
            let mut all: Vec<Server> = seen.map(|seen| Server { seen, ..wanted.clone() }).collect();
            all.sort_by_key(Server::is_as_wanted);
            servers.extend(all.into_iter().next());
        }
    }
    servers
}

fn state_of(service: &Service, node: NodeId) -> Seen {
    match service.endpoints.iter().find(|endpoint| endpoint.node == node).map(|endpoint| endpoint.state) {
        Some(State::Ready) => Seen::Ready,
        Some(State::Drain) => Seen::Drain,
        Some(State::Down) => Seen::Maint,
        Some(State::Unknown) => Seen::Unknown,
        None => Seen::Absent,
    }
}
