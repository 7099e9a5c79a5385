//! Which node has which address.
//!
//! On Linux the whole of 127.0.0.0/8 is this machine, so each node gets an address of its own and
//! apps have the same port on all of them. Where only 127.0.0.1 exists (macOS), the nodes share it,
//! their own ports are offset, and the cluster chooses the ports of apps.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
};

use super::port_owner::port_owner;
use crate::exit::{Exit, Failure};

/// Ports between the nodes that share an address.
const PORT_OFFSET: u16 = 10;
/// Ports for apps of each of those nodes.
const POOL_SIZE: u16 = 1000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) nodes: Vec<NodeLayout>,
    /// Every node has an address of its own.
    pub(super) many_addresses: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeLayout {
    pub(super) name: String,
    pub(super) cluster: SocketAddr,
    pub(super) admin: SocketAddr,
    /// Where apps listen.
    pub(super) traffic: IpAddr,
    pool: (u16, u16),
}

pub(super) fn has_many_addresses(nodes: u8) -> bool {
    (1..=nodes).all(|number| TcpListener::bind((address(number), 0)).is_ok())
}

impl Layout {
    pub(super) fn new(nodes: u8, api_port: u16, many_addresses: bool) -> Self {
        let node = |number: u8| {
            let index = u16::from(number - 1);
            let (ip, offset, pool) = if many_addresses {
                (address(number), 0, (20_000, 29_999))
            } else {
                let from = 20_000 + index * POOL_SIZE;
                (address(1), index * PORT_OFFSET, (from, from + POOL_SIZE - 1))
            };
            let at = |port| SocketAddr::new(ip, port);
            NodeLayout {
                name: format!("n{number}"),
                cluster: at(api_port + offset),
                admin: at(api_port + offset + 1),
                traffic: ip,
                pool,
            }
        };
        Self { nodes: (1..=nodes).map(node).collect(), many_addresses }
    }

    /// gRPC addresses, the first node's first.
    pub(super) fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.cluster.to_string()).collect()
    }

    /// The port that the demo app asks for; 0 where the nodes cannot all have the same.
    pub(super) fn demo_port(&self, wanted: u16) -> u16 {
        if self.many_addresses { wanted } else { 0 }
    }

    /// Says what is in the way before anything is started.
    pub(super) fn check_free(&self, demo_port: Option<u16>) -> Result<(), Failure> {
        for node in &self.nodes {
            for (address, advice) in [
                (node.cluster, "stop it, or choose other ports with --api-port"),
                (node.admin, "stop it, or choose other ports with --api-port"),
            ] {
                check_free(address, advice)?;
            }
            if let Some(port) = demo_port.map(|port| self.demo_port(port)).filter(|port| *port != 0) {
                check_free(
                    SocketAddr::new(node.traffic, port),
                    &format!(
                        "stop it, or choose another port for the demo app: `flotilla dev --port {}`",
                        port + 1
                    ),
                )?;
            }
        }
        Ok(())
    }
}

impl NodeLayout {
    /// `node.toml`. All nodes share this machine's disk and processors, where an answer takes
    /// microseconds: they notice a dead leader three times faster than nodes that are far apart.
    pub(super) fn file(&self, data_dir: &Path) -> String {
        format!(
            "name = \"{}\"\nregion = \"dev\"\nzone = \"dev-{}\"\ndata_dir = {:?}\n\n\
             [cluster]\nlisten = \"{}\"\n\n[admin]\nlisten = \"{}\"\n\n\
             [traffic]\naddress = \"{}\"\ndrain = \"2s\"\n\n[ports]\npool = \"{}-{}\"\n\n\
             [limits]\nworkers = 1\n\n\
             [raft]\nheartbeat = \"150ms\"\nelection_min = \"500ms\"\nelection_max = \"1s\"\n",
            self.name,
            self.name,
            data_dir.display().to_string(),
            self.cluster,
            self.admin,
            self.traffic,
            self.pool.0,
            self.pool.1,
        )
    }
}

fn address(number: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, number).into()
}

fn check_free(address: SocketAddr, advice: &str) -> Result<(), Failure> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(err) if err.kind() == io::ErrorKind::AddrInUse => {
            let owner = match address {
                SocketAddr::V4(address) => port_owner(address),
                SocketAddr::V6(_) => None,
            };
            let owner = owner.map(|owner| format!(" by {owner}")).unwrap_or_default();
            Err(Failure::new(Exit::Failed, format!("{address} is in use{owner}")).code("E0500").help(advice))
        }
        Err(err) => {
            Err(Failure::new(Exit::Failed, format!("cannot listen on {address}: {err}")).help(advice))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use flotilla_node::config::ConfigFile;

    use super::*;

    #[test]
    fn with_many_addresses_the_ports_are_alike_and_otherwise_they_differ() {
        let many = Layout::new(3, 7400, true);
        assert_eq!(many.addresses(), ["127.0.0.1:7400", "127.0.0.2:7400", "127.0.0.3:7400"]);
        assert_eq!(many.demo_port(8080), 8080);
        let one = Layout::new(3, 7400, false);
        assert_eq!(one.addresses(), ["127.0.0.1:7400", "127.0.0.1:7410", "127.0.0.1:7420"]);
        assert_eq!(one.demo_port(8080), 0);
        let sockets: HashSet<SocketAddr> =
            one.nodes.iter().flat_map(|node| [node.cluster, node.admin]).collect();
        assert_eq!(sockets.len(), 6);
        assert!(one.nodes.is_sorted_by(|a, b| a.pool.1 < b.pool.0));
    }

    #[test]
    fn the_settings_of_a_node_are_what_a_node_reads() {
        let layout = Layout::new(9, 7400, true);
        for node in &layout.nodes {
            let file: ConfigFile = toml::from_str(&node.file(Path::new("/tmp/with \"quotes\""))).unwrap();
            let config = file.resolve().unwrap();
            assert_eq!(config.name, node.name);
            assert_eq!(config.cluster_listen, node.cluster);
            assert_eq!(config.data_dir, Path::new("/tmp/with \"quotes\""));
        }
    }

    #[test]
    fn a_port_that_is_taken_is_named_with_what_to_do() {
        let taken = TcpListener::bind((address(1), 0)).unwrap();
        let address = taken.local_addr().unwrap();
        let failure = check_free(address, "stop it").unwrap_err();
        assert!(failure.message.starts_with(&format!("{address} is in use")), "{failure}");
        assert_eq!(failure.code.as_deref(), Some("E0500"));
        if cfg!(target_os = "linux") {
            assert!(failure.message.contains(&format!("pid {}", std::process::id())), "{failure}");
        }
    }
}
