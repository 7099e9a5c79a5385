//! The load balancers outside that are told where apps serve: what they are, never how they are.
//!
//! What a balancer was told, and what it was seen to have, is soft state of the leader.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use flotilla_spec::AppName;

use super::{Answer, At, Fleet, NodeId};
use crate::{Rejection, Reply};

/// Each costs a task on the leader, and its state is held in memory.
pub const BALANCERS_MAX: usize = 64;
/// Of each text of a balancer.
const TEXT_BYTES_MAX: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balancer {
    /// The apps it is told about. Empty: all.
    pub apps: BTreeSet<AppName>,
    /// From one change of it to the next, at least; zero: what its kind bears.
    pub min_interval: Duration,
    pub kind: BalancerKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BalancerKind {
    /// Told over its runtime API.
    Haproxy(Haproxy),
    /// Asks each node, on one port, how an app is there.
    AgentCheck { port: u16 },
    /// Connects to a port of each node that is open while the app serves there.
    TcpCheck {
        port: u16,
        /// The port closes as soon as the node drains, and not only when it does not serve.
        closes_on_drain: bool,
    },
    /// Subscribes to endpoints over xDS, on one port of each node.
    Envoy {
        port: u16,
        /// `host:port` of the admin interface of each Envoy, where its view is read.
        admin: Vec<String>,
    },
    /// Reads a file on the machine of a node, and is reloaded there.
    Nginx { node: NodeId },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Haproxy {
    /// `host:port`, or the path of a unix socket.
    pub address: String,
    /// The node that reaches `address`; `None`: any, so the leader does it itself.
    pub node: Option<NodeId>,
    /// Names of backends, with `{app}` and `{port}`.
    pub backend: String,
    /// Servers whose names begin so are the fleet's; all others are left alone.
    pub prefix: String,
    /// Parameters of a server that is added at run time, as in HAProxy's file.
    pub options: String,
}

impl Fleet {
    pub(super) fn put_balancer(&mut self, at: At, name: &str, balancer: &Balancer, replace: bool) -> Answer {
        let known = self.balancers.get(name);
        if known.is_some_and(|known| **known == *balancer) {
            return Ok(Reply::Done);
        }
        if known.is_some() && !replace {
            return Err(Rejection::BalancerExists { name: name.to_owned() });
        }
        if known.is_none() && self.balancers.len() >= BALANCERS_MAX {
            return Err(invalid(format!("there are {BALANCERS_MAX} balancers, which is the limit")));
        }
        self.check_balancer(name, balancer)?;
        self.balancers.insert(name.to_owned(), Arc::new(balancer.clone()));
        self.record(at, None, None, format!("balancer {name} is told where apps serve"));
        Ok(Reply::Done)
    }

    pub(super) fn remove_balancer(&mut self, at: At, name: &str) -> Answer {
        if self.balancers.remove(name).is_none() {
            return Err(Rejection::NoSuchBalancer { name: name.to_owned() });
        }
        self.record(at, None, None, format!("balancer {name} is told nothing any more"));
        Ok(Reply::Done)
    }

    /// A port that every node opens for a balancer, and no app may have.
    pub(super) fn is_balancer_port(&self, port: u16) -> bool {
        self.balancers.values().any(|balancer| balancer.kind.port() == Some(port))
    }

    fn check_balancer(&self, name: &str, balancer: &Balancer) -> Result<(), Rejection> {
        if AppName::parse(name).is_err() {
            return Err(invalid(format!(
                "`{name}` is not a name: 1 to 63 of a-z, 0-9 and `-` are, not beginning or ending with `-`"
            )));
        }
        if balancer.min_interval > Duration::from_secs(60) {
            return Err(invalid("more than a minute between changes leaves a balancer behind".to_owned()));
        }
        match &balancer.kind {
            BalancerKind::Haproxy(haproxy) => self.check_haproxy(haproxy)?,
            BalancerKind::Nginx { node } => {
                self.member(*node)?;
            }
            BalancerKind::TcpCheck { .. } if balancer.apps.len() != 1 => {
                return Err(invalid("a check port is for exactly one app".to_owned()));
            }
            BalancerKind::Envoy { admin, .. } => {
                for address in admin {
                    plain("the address of an admin interface", address)?;
                }
            }
            BalancerKind::AgentCheck { .. } | BalancerKind::TcpCheck { .. } => {}
        }
        match balancer.kind.port() {
            Some(port) => self.check_balancer_port(name, port),
            None => Ok(()),
        }
    }

    fn check_haproxy(&self, haproxy: &Haproxy) -> Result<(), Rejection> {
        plain("the address", &haproxy.address)?;
        plain("the name of the backend", &haproxy.backend)?;
        plain("the prefix of the servers", &haproxy.prefix)?;
        if haproxy.options.len() > TEXT_BYTES_MAX || haproxy.options.contains(['\n', '\r', ';']) {
            return Err(invalid("the options of a server are one line, without `;`".to_owned()));
        }
        if !haproxy.backend.contains("{app}") {
            return Err(invalid(format!(
                "backend \"{}\" is the same for every app: say where the name of the app goes, as in \"be_{{app}}\"",
                haproxy.backend
            )));
        }
        match haproxy.node {
            Some(node) => drop(self.member(node)?.clone()),
            None if haproxy.address.starts_with('/') => {
                return Err(invalid(
                    "a unix socket is on one machine: say which node runs there, or give HAProxy a TCP address"
                        .to_owned(),
                ));
            }
            None => {}
        }
        Ok(())
    }

    fn check_balancer_port(&self, name: &str, port: u16) -> Result<(), Rejection> {
        if port == 0 {
            return Err(invalid("a balancer cannot find port 0".to_owned()));
        }
        let held = self.ports.iter().find(|((_, taken), _)| *taken == port);
        if let Some((node, app)) = held.and_then(|((node, _), holders)| Some((node, holders.apps.first()?))) {
            return Err(Rejection::PortTaken { port, node: self.node_name(*node), owner: app.clone() });
        }
        let reserves = |member: &&Arc<super::Member>| member.reserved_ports.contains(&port);
        if let Some(member) = self.members.values().find(reserves) {
            return Err(Rejection::PortReserved { port, node: member.name.clone() });
        }
        let same = |(other, balancer): &(&String, &Arc<Balancer>)| {
            *other != name && balancer.kind.port() == Some(port)
        };
        match self.balancers.iter().find(same) {
            Some((other, _)) => Err(invalid(format!("port {port} is that of balancer `{other}`"))),
            None => Ok(()),
        }
    }
}

impl BalancerKind {
    /// The port that every node opens for it.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::AgentCheck { port } | Self::TcpCheck { port, .. } | Self::Envoy { port, .. } => Some(*port),
            Self::Haproxy(_) | Self::Nginx { .. } => None,
        }
    }
}

/// These end up in the commands of a balancer, which are lines of words.
fn plain(what: &str, text: &str) -> Result<(), Rejection> {
    let plain = !text.is_empty()
        && text.len() <= TEXT_BYTES_MAX
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !b";\"'\\#".contains(&byte));
    match plain {
        true => Ok(()),
        false => Err(invalid(format!(
            "{what} \"{}\" is not 1 to {TEXT_BYTES_MAX} printable characters without spaces, quotes, `;`, `#`",
            text.escape_default()
        ))),
    }
}

fn invalid(why: String) -> Rejection {
    Rejection::InvalidBalancer { why }
}
