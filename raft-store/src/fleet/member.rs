//! Members: who they are, and whether they may be given apps.
//!
//! Which of them vote in Raft is openraft's membership and not kept here.

use std::{collections::BTreeMap, sync::Arc};

use super::assignment::stale;
use super::{
    Answer, At, ClusterId, Controller, DRAIN_DEADLINE, DRAIN_QUIET, Drain, Fleet, NodeId, SCHEMA_VERSION,
};
use crate::{Rejection, Reply};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Unique among members that have not left.
    pub name: String,
    pub region: String,
    pub zone: String,
    /// `host:port` of the gRPC port, as peers reach it.
    pub cluster_address: String,
    /// `host:port` of the admin HTTP port.
    pub admin_address: String,
    /// Where balancers find its apps, but for those that listen on an address of their own. A host or an IP.
    pub traffic_address: String,
    pub labels: BTreeMap<String, String>,
    /// Inclusive range from which `port = 0` is served.
    pub port_pool: (u16, u16),
    /// Ports of the node that apps must not use.
    pub reserved_ports: Vec<u16>,
    pub availability: Availability,
    /// How far the node has given its traffic up; there exactly while it is `Draining`.
    pub drain: Option<Drain>,
    /// Its share of the work, in percent of a normal node.
    pub weight: u32,
    /// Of the binary that runs there.
    pub binary_version: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Availability {
    Active,
    /// Keeps what it has, gets nothing new.
    Cordoned,
    /// Gives back what it has.
    Draining,
    /// For good: the id stays taken, so that it can never mean another node.
    Left,
}

impl Fleet {
    pub(super) fn init_cluster(&mut self, at: At, id: &ClusterId, name: &str, member: &Member) -> Answer {
        if !self.cluster.id.0.is_empty() {
            return Err(Rejection::AlreadyInitialised { id: self.cluster.id.clone() });
        }
        if id.0.is_empty() {
            return Err(stale("a cluster needs an id"));
        }
        self.cluster.id = id.clone();
        self.cluster.name = name.to_owned();
        self.cluster.schema_version = SCHEMA_VERSION;
        self.add_member(at, NodeId(1), member)
    }

    /// A new member is active, whatever it says of itself.
    pub(super) fn add_member(&mut self, at: At, node: NodeId, member: &Member) -> Answer {
        self.check_name_free(&member.name, None)?;
        if self.members.contains_key(&node) {
            return Err(Rejection::Stale { why: format!("node id {node} was given in the same log entry") });
        }
        let member = Member { availability: Availability::Active, drain: None, ..member.clone() };
        self.record(at, None, Some(node), format!("node {} joined", member.name));
        self.members.insert(node, Arc::new(member));
        Ok(Reply::Member { node })
    }

    /// Keeps the availability: a node that restarts under another address is still cordoned.
    pub(super) fn update_member(&mut self, at: At, node: NodeId, member: &Member) -> Answer {
        let current = self.member(node)?.clone();
        self.check_name_free(&member.name, Some(node))?;
        let updated = Member { availability: current.availability, drain: current.drain, ..member.clone() };
        if *current == updated {
            return Ok(Reply::Member { node });
        }
        let mut what = format!("node {} changed", updated.name);
        if current.cluster_address != updated.cluster_address {
            what = format!("node {} is now at {}", updated.name, updated.cluster_address);
        } else if current.binary_version != updated.binary_version {
            what = format!("node {} now runs {}", updated.name, updated.binary_version);
        }
        self.record(at, None, Some(node), what);
        self.members.insert(node, Arc::new(updated));
        Ok(Reply::Member { node })
    }

    pub(super) fn set_availability(&mut self, at: At, node: NodeId, availability: Availability) -> Answer {
        let current = self.member(node)?;
        if current.availability == availability {
            return Ok(Reply::Member { node });
        }
        if availability == Availability::Draining {
            return self.drain_node(at, node, (DRAIN_DEADLINE, DRAIN_QUIET), false, false);
        }
        let name = current.name.clone();
        let member = Member { availability, drain: None, ..Member::clone(current) };
        self.members.insert(node, Arc::new(member));
        let what = match availability {
            Availability::Active => "takes apps again",
            Availability::Cordoned => "keeps its apps and gets no new ones",
            Availability::Draining => "gives its apps back",
            Availability::Left => "left",
        };
        self.record(at, None, Some(node), format!("node {name} {what}"));
        if availability == Availability::Left {
            self.absences.remove(&node);
            self.forget_node(at, node);
        }
        Ok(Reply::Member { node })
    }

    pub(super) fn take_control(&mut self, at: At, term: u64, node: NodeId) -> Answer {
        let name = self.member(node)?.name.clone();
        let current = self.cluster.controller;
        let proposed = Controller { term, node };
        if proposed == current {
            return Ok(Reply::Done);
        }
        if term <= current.term {
            return Err(Rejection::StaleTerm { proposed: term, current: current.term });
        }
        self.cluster.controller = proposed;
        self.record(at, None, Some(node), format!("node {name} leads (term {term})"));
        Ok(Reply::Done)
    }

    /// A member that has not left.
    pub fn member(&self, node: NodeId) -> Result<&Arc<Member>, Rejection> {
        let member = self.members.get(&node).filter(|member| member.availability != Availability::Left);
        member.ok_or(Rejection::NoSuchNode { node })
    }

    /// For texts; the id where there is no such member.
    pub fn node_name(&self, node: NodeId) -> String {
        self.members.get(&node).map_or_else(|| node.to_string(), |member| member.name.clone())
    }

    fn check_name_free(&self, name: &str, except: Option<NodeId>) -> Result<(), Rejection> {
        let taken = self.members.iter().find(|(id, member)| {
            member.name == name && member.availability != Availability::Left && Some(**id) != except
        });
        match taken {
            Some((node, _)) => Err(Rejection::NameTaken { name: name.to_owned(), node: *node }),
            None => Ok(()),
        }
    }
}
