//! Ports of nodes: who holds which, and how one is chosen.
//!
//! Chosen inside `apply` and nowhere else, so two leaders cannot give the same port twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use flotilla_spec::{AppName, AppSpec};

use super::{Fleet, NodeId};
use crate::Rejection;

/// Ports that the command at hand takes, before it changes anything.
#[derive(Default)]
pub(super) struct Claims {
    taken: BTreeMap<(NodeId, u16), AppName>,
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
        for port in spec.listen.iter().map(|listen| listen.port).filter(|port| *port != 0) {
            if member.reserved_ports.contains(&port) || self.is_balancer_port(port) {
                return Err(Rejection::PortReserved { port, node: member.name.clone() });
            }
            let holder = self.ports.get(&(node, port)).filter(|holder| **holder != spec.name).cloned();
            if let Some(owner) = holder.or_else(|| claims.taken.insert((node, port), spec.name.clone())) {
                return Err(Rejection::PortTaken { port, node: member.name.clone(), owner });
            }
        }
        Ok(())
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
            claims.taken.insert((node, port), spec.name.clone());
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
                && !member.reserved_ports.contains(port)
                && fits(*port)
        });
        free.ok_or_else(|| Rejection::PortPoolExhausted { node: member.name.clone(), from, to })
    }

    /// In ascending order.
    fn held_between(&self, node: NodeId, from: u16, to: u16) -> impl Iterator<Item = u16> {
        let held = (from <= to).then(|| self.ports.range((node, from)..=(node, to)));
        held.into_iter().flatten().map(|((_, port), _)| *port)
    }

    pub(super) fn hold_ports(&mut self, node: NodeId, app: &AppName, ports: &[u16]) {
        for port in ports {
            self.ports.insert((node, *port), app.clone());
        }
    }

    /// Frees what no other generation of the app uses on the node.
    pub(super) fn free_ports(&mut self, node: NodeId, app: &AppName, ports: &[u16]) {
        let kept: BTreeSet<u16> =
            self.assignments_of(node, app).flat_map(|(_, assignment)| &assignment.ports).copied().collect();
        for port in ports.iter().filter(|port| !kept.contains(port)) {
            self.ports.remove(&(node, *port));
        }
    }

    /// What `ports` must be: every port of every assignment.
    pub(crate) fn held_ports(&self) -> Result<BTreeMap<(NodeId, u16), AppName>, String> {
        let mut held: BTreeMap<(NodeId, u16), AppName> = BTreeMap::new();
        for (node, assignments) in &self.assignments {
            for ((app, _), assignment) in assignments {
                for port in &Arc::as_ref(assignment).ports {
                    let other = held.insert((*node, *port), app.clone());
                    if let Some(other) = other.filter(|other| other != app) {
                        return Err(format!("port {port} of node {node} is held by {other} and {app}"));
                    }
                }
            }
        }
        Ok(held)
    }
}
