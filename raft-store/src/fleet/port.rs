//! Ports of nodes: who holds which, and how one is chosen.
//!
//! Chosen inside `apply` and nowhere else, so two leaders cannot give the same port twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use flotilla_spec::{ANY_HOST, AppName, AppSpec, Listen};
use imbl::OrdMap;

use super::{Fleet, NodeId};
use crate::Rejection;

/// The apps that have a port of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    pub apps: BTreeSet<AppName>,
    /// Whose each name is that clients may ask for there, see [`flotilla_spec::claims`].
    pub hosts: BTreeMap<String, AppName>,
}

impl Holders {
    /// Adds what an app claims. Whose it is already is named.
    fn add(&mut self, app: &AppName, hosts: BTreeSet<String>) -> Result<(), (String, AppName)> {
        if let Some((host, owner)) = self.clash(app, &hosts) {
            return Err((host, owner));
        }
        self.apps.insert(app.clone());
        self.hosts.extend(hosts.into_iter().map(|host| (host, app.clone())));
        Ok(())
    }

    fn clash(&self, app: &AppName, hosts: &BTreeSet<String>) -> Option<(String, AppName)> {
        let mut owned = hosts.iter().filter_map(|host| Some((host, self.hosts.get(host)?)));
        owned.find(|(_, owner)| *owner != app).map(|(host, owner)| (host.clone(), owner.clone()))
    }

    fn other_than(&self, app: &AppName) -> Option<&AppName> {
        self.apps.iter().find(|holder| *holder != app)
    }
}

/// Ports that the command at hand takes, before it changes anything.
#[derive(Default)]
pub(super) struct Claims {
    /// With the entry of one of them, which is like all others.
    taken: BTreeMap<(NodeId, u16), (Holders, Listen)>,
    /// The lowest port of each node that may be free: a command for a thousand apps must not look at
    /// the first thousand ports a thousand times.
    lowest: BTreeMap<NodeId, u16>,
}

impl Fleet {
    /// The ports that a generation with this spec would get on a node now, one per `spec.listen`.
    pub fn choose_ports(&self, node: NodeId, spec: &AppSpec) -> Result<Vec<u16>, Rejection> {
        let mut claims = Claims::default();
        self.claim_fixed_ports(&mut claims, node, spec)?;
        self.claim_ports(&mut claims, node, spec)
    }

    /// First for all apps of a command, so that no chosen port gets in the way of a fixed one.
    pub(super) fn claim_fixed_ports(
        &self,
        claims: &mut Claims,
        node: NodeId,
        spec: &AppSpec,
    ) -> Result<(), Rejection> {
        let member = self.member(node)?;
        for listen in spec.listen.iter().filter(|listen| listen.port != 0) {
            let port = listen.port;
            if member.reserved_ports.contains(&port) || self.is_balancer_port(port) {
                return Err(Rejection::PortReserved { port, node: member.name.clone() });
            }
            if claims.taken.get(&(node, port)).is_some_and(|(holders, _)| holders.apps.contains(&spec.name)) {
                // One assignment has a port once.
                return Err(Rejection::PortTaken {
                    port,
                    node: member.name.clone(),
                    owner: spec.name.clone(),
                });
            }
            let hosts = flotilla_spec::claims(spec, listen);
            self.check_shared(claims, node, spec, listen, &hosts).map_err(|(owner, why)| match why {
                Some(why) => {
                    let (app, node) = (spec.name.clone(), member.name.clone());
                    Rejection::CannotShare { port, node, app, owner, why }
                }
                None => Rejection::PortTaken { port, node: member.name.clone(), owner },
            })?;
            let taken =
                claims.taken.entry((node, port)).or_insert_with(|| (Holders::default(), listen.clone()));
            taken.0.add(&spec.name, hosts).expect("nobody else was found to have them");
        }
        Ok(())
    }

    /// Whose a port is that an app cannot have as well, and why; `None`: both want whatever is left.
    fn check_shared(
        &self,
        claims: &Claims,
        node: NodeId,
        spec: &AppSpec,
        listen: &Listen,
        hosts: &BTreeSet<String>,
    ) -> Result<(), (AppName, Option<String>)> {
        let app = &spec.name;
        let key = (node, listen.port);
        let held = self.ports.get(&key).map(Arc::as_ref);
        let taken = claims.taken.get(&key);
        let holders = || held.into_iter().chain(taken.map(|(holders, _)| holders));
        let only_rest = hosts.iter().all(|host| host == ANY_HOST);
        // All that have it agree with each other, so one of them speaks for all.
        let owner = held.and_then(|holders| holders.other_than(app));
        let terms_held = owner.into_iter().flat_map(|owner| {
            let entries = self.entries_at(key, owner).map(|(_, listen)| listen);
            entries.filter_map(move |other| Some((owner, flotilla_spec::differ(listen, other)?)))
        });
        let terms_taken = taken.and_then(|(holders, other)| {
            Some((holders.other_than(app)?, flotilla_spec::differ(listen, other)?))
        });
        if let Some((owner, why)) = terms_held.chain(terms_taken).next() {
            return Err((owner.clone(), Some(format!("{why}; make them alike, or take another port"))));
        }
        match holders().find_map(|holders| holders.clash(app, hosts)) {
            None => Ok(()),
            Some((_, owner)) if only_rest => Err((owner, None)),
            Some((host, owner)) => {
                Err((owner, Some(format!("the host `{host}` is its already: take it from there first"))))
            }
        }
    }

    /// The specs of an app's generations on a node with the entries that have that port.
    fn entries_at(
        &self,
        (node, port): (NodeId, u16),
        app: &AppName,
    ) -> impl Iterator<Item = (&AppSpec, &Listen)> {
        self.assignments_of(node, app).flat_map(move |(generation, assignment)| {
            let spec = self.generations.get(&(app.clone(), generation)).map(|generation| &*generation.spec);
            let entries =
                spec.into_iter().flat_map(|spec| spec.listen.iter().map(move |listen| (spec, listen)));
            entries.zip(&assignment.ports).filter(move |(_, held)| **held == port).map(|(entry, _)| entry)
        })
    }

    /// `0` keeps the port that the same entry of `listen` has there, else gets the lowest free one of
    /// the node's pool.
    pub(super) fn claim_ports(
        &self,
        claims: &mut Claims,
        node: NodeId,
        spec: &AppSpec,
    ) -> Result<Vec<u16>, Rejection> {
        let member = self.member(node)?;
        let before = self.newest_assignment(node, &spec.name).map_or(&[][..], |newest| &newest.ports);
        let reserved: BTreeSet<u16> = member.reserved_ports.iter().copied().collect();
        let usable = |claims: &Claims, port: u16| {
            port != 0
                && !reserved.contains(&port)
                && !self.is_balancer_port(port)
                && !claims.taken.contains_key(&(node, port))
        };
        let (from, to) = member.port_pool;
        let mut ports = Vec::with_capacity(spec.listen.len());
        for (entry, listen) in spec.listen.iter().enumerate() {
            if listen.port != 0 {
                ports.push(listen.port);
                continue;
            }
            let sticky = before.get(entry).copied().filter(|port| usable(claims, *port));
            let chosen = sticky.or_else(|| {
                let lowest = claims.lowest.get(&node).copied().unwrap_or(from);
                let mut held = self.held_between(node, lowest, to).peekable();
                let free =
                    (lowest..=to).find(|port| held.next_if_eq(port).is_none() && usable(claims, *port));
                claims.lowest.insert(node, free.unwrap_or(to));
                free
            });
            let exhausted = || Rejection::PortPoolExhausted { node: member.name.clone(), from, to };
            let port = chosen.ok_or_else(exhausted)?;
            let mut holders = Holders::default();
            holders.add(&spec.name, flotilla_spec::claims(spec, listen)).expect("it is the only one");
            claims.taken.insert((node, port), (holders, listen.clone()));
            ports.push(port);
        }
        Ok(ports)
    }

    /// The lowest port of the node's pool that nobody holds and that `fits`.
    pub(super) fn free_port(&self, node: NodeId, fits: impl Fn(u16) -> bool) -> Result<u16, Rejection> {
        let member = self.member(node)?;
        let (from, to) = member.port_pool;
        let mut held = self.held_between(node, from, to).peekable();
        let free = (from..=to).find(|port| {
            held.next_if_eq(port).is_none()
                && *port != 0
                && !self.is_balancer_port(*port)
                && !member.reserved_ports.contains(port)
                && !self.is_balancer_port(*port)
                && fits(*port)
        });
        free.ok_or_else(|| Rejection::PortPoolExhausted { node: member.name.clone(), from, to })
    }

    /// In ascending order.
    fn held_between(&self, node: NodeId, from: u16, to: u16) -> impl Iterator<Item = u16> {
        let held = (from <= to).then(|| self.ports.range((node, from)..=(node, to)));
        held.into_iter().flatten().map(|((_, port), _)| *port)
    }

    /// Of one entry of `listen` each.
    pub(super) fn hold_ports(&mut self, node: NodeId, spec: &AppSpec, ports: &[u16]) {
        for (listen, port) in spec.listen.iter().zip(ports) {
            let holders = Arc::make_mut(self.ports.entry((node, *port)).or_default());
            // What is somebody else's was refused before anything was changed.
            let _theirs = holders.add(&spec.name, flotilla_spec::claims(spec, listen));
        }
    }

    /// Frees what no other generation of the app uses on the node.
    pub(super) fn free_ports(&mut self, node: NodeId, spec: &AppSpec, ports: &[u16]) {
        let app = &spec.name;
        for (listen, port) in spec.listen.iter().zip(ports) {
            let key = (node, *port);
            let entries = self.entries_at(key, app);
            let kept: BTreeSet<String> =
                entries.flat_map(|(spec, listen)| flotilla_spec::claims(spec, listen)).collect();
            let Some(holders) = self.ports.get_mut(&key).map(Arc::make_mut) else { continue };
            for host in flotilla_spec::claims(spec, listen).difference(&kept) {
                holders.hosts.remove(host);
            }
            if kept.is_empty() {
                holders.apps.remove(app);
            }
            if holders.apps.is_empty() {
                self.ports.remove(&key);
            }
        }
    }

    /// What `ports` must be: every port of every assignment.
    pub(crate) fn held_ports(&self) -> Result<OrdMap<(NodeId, u16), Arc<Holders>>, String> {
        let mut held: BTreeMap<(NodeId, u16), Holders> = BTreeMap::new();
        for (node, assignments) in &self.assignments {
            for (key @ (app, _), assignment) in assignments {
                let generation =
                    self.generations.get(key).ok_or_else(|| format!("{app}: no such generation"))?;
                for (listen, port) in generation.spec.listen.iter().zip(&assignment.ports) {
                    let holders = held.entry((*node, *port)).or_default();
                    let added = holders.add(app, flotilla_spec::claims(&generation.spec, listen));
                    added.map_err(|(host, owner)| {
                        format!("host {host} of port {port} of node {node} is held by {owner} and {app}")
                    })?;
                }
            }
        }
        Ok(held.into_iter().map(|(key, holders)| (key, Arc::new(holders))).collect())
    }
}
