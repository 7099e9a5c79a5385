//! A fleet of real processes on this machine, for one test.
//!
//! Every node has a loopback address of its own, so all of them use the same ports, and every fleet
//! has its own block of addresses, so tests run side by side. Nothing outlives the test: not when it
//! fails, and not when it is killed.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use flotilla_api::v1::{ClusterStatusReply, ClusterStatusRequest, fleet_client::FleetClient};

use crate::poll::eventually;

mod block;
mod command;
mod node;

pub use command::Output;
pub use node::{Node, NodeSettings};

use block::Block;

/// Long enough for an election on a machine that runs two fleets and their traffic.
pub const SOON: Duration = Duration::from_secs(30);

pub struct TestFleet {
    program: PathBuf,
    block: Block,
    // Before the directory: a node writes there until it is gone.
    nodes: Vec<Node>,
    directory: tempfile::TempDir,
}

impl TestFleet {
    /// Nodes `n1`, `n2`, … in zones `z1`, `z2`, …, formed into one cluster of which all nodes know the leader.
    /// `program`: `env!("CARGO_BIN_EXE_flotilla-under-test")`.
    pub async fn start(program: &str, nodes: usize) -> Self {
        let mut fleet = Self::empty(program);
        for number in 1..=nodes {
            fleet.add(NodeSettings { zone: format!("z{number}"), ..NodeSettings::default() }).await;
        }
        fleet.init(0).await;
        for node in 1..nodes {
            fleet.join(node, 0).await;
        }
        fleet.settled().await;
        fleet
    }

    /// No node yet.
    pub fn empty(program: &str) -> Self {
        Self {
            program: program.into(),
            block: Block::reserve(),
            nodes: Vec::new(),
            directory: tempfile::Builder::new().prefix("flotilla-test-").tempdir().unwrap(),
        }
    }

    /// Starts one more process, which belongs to no cluster. Returns its index.
    pub async fn add(&mut self, settings: NodeSettings) -> usize {
        let index = self.prepare(settings);
        self.nodes[index].start().await;
        index
    }

    /// One more node, not started yet.
    pub fn prepare(&mut self, settings: NodeSettings) -> usize {
        let index = self.nodes.len();
        let name = format!("n{}", index + 1);
        let directory = self.directory.path().join(&name);
        self.nodes.push(Node::new(&self.program, &directory, &name, self.block.address(index), settings));
        index
    }

    pub async fn init(&self, node: usize) {
        self.cli_at(node, ["cluster", "init", "--name", "test"]).await.exits(0);
    }

    pub async fn join(&self, node: usize, member: usize) {
        let member = self.nodes[member].cluster_address().to_string();
        self.cli_at(node, ["cluster", "join", &member]).await.exits(0);
    }

    /// Waits until every running node knows the same leader, all are members, and as many as may vote do.
    pub async fn settled(&self) {
        let running: Vec<_> = self.nodes.iter().filter(|node| node.is_running()).collect();
        // Votes come in odd numbers, at most five.
        let voters = (running.len() - usize::from(running.len().is_multiple_of(2))).min(5);
        eventually("all nodes know the leader and each other", SOON, async || {
            let mut leaders = Vec::new();
            for node in &running {
                let status =
                    node.status().await.map_err(|err| format!("{}: {}", node.name(), err.message()))?;
                if status.nodes.len() < running.len() || (status.voters as usize) < voters {
                    return Err(format!("{} sees {} voters, {status:?}", node.name(), status.voters));
                }
                leaders.push(status.leader);
            }
            match leaders.iter().all(|&leader| leader != 0 && leader == leaders[0]) {
                true => Ok(()),
                false => Err(format!("leaders are {leaders:?}")),
            }
        })
        .await;
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    pub fn node_mut(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }

    /// An address of the block that no node has, for one that moves.
    pub fn spare_address(&self, number: usize) -> Ipv4Addr {
        self.block.address(100 + number)
    }

    /// Where `port` of the apps is, on each running node.
    pub fn port(&self, port: u16) -> Vec<SocketAddr> {
        self.nodes.iter().filter(|node| node.is_running()).map(|node| node.port(port)).collect()
    }

    /// The index of the node that leads, once the running ones agree on it.
    pub async fn leader(&self) -> usize {
        eventually("the running nodes agree on a leader", SOON, async || {
            let mut names = Vec::new();
            for node in self.nodes.iter().filter(|node| node.is_running()) {
                names.push(node.status().await.map_err(|err| err.message().to_owned())?.leader_name);
            }
            let agreed = names.first().filter(|first| names.iter().all(|name| name == *first));
            let leader = agreed.and_then(|name| self.nodes.iter().position(|node| node.name() == name));
            leader.filter(|&index| self.nodes[index].is_running()).ok_or(format!("{names:?}"))
        })
        .await
    }

    /// Runs the command against all running nodes.
    pub async fn cli<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Output {
        let running: Vec<_> = self.nodes.iter().filter(|node| node.is_running()).collect();
        let addresses: Vec<_> = running.iter().map(|node| node.cluster_address().to_string()).collect();
        command::run(&self.program, self.directory.path(), &addresses.join(","), arguments).await
    }

    /// Runs the command against one node.
    pub async fn cli_at<'a>(&self, node: usize, arguments: impl IntoIterator<Item = &'a str>) -> Output {
        let address = self.nodes[node].cluster_address().to_string();
        command::run(&self.program, self.directory.path(), &address, arguments).await
    }

    /// Writes a spec to a file, for `-f`.
    pub fn file(&self, name: &str, content: &str) -> String {
        let path = self.directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// `app apply` of a TOML spec, which waits until it serves.
    pub async fn apply(&self, spec: &str) -> Output {
        self.cli(["app", "apply", "-f", &self.file("apply.toml", spec)]).await
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for TestFleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in &self.nodes {
                eprintln!("{}", node.log_tail());
            }
        }
    }
}

impl Node {
    /// What the node itself says of the cluster.
    pub async fn status(&self) -> Result<ClusterStatusReply, tonic::Status> {
        let mut client = self.client().await?;
        Ok(client.cluster_status(ClusterStatusRequest {}).await?.into_inner())
    }

    /// The node's API, for questions that the command line does not ask.
    pub async fn client(&self) -> Result<FleetClient<tonic::transport::Channel>, tonic::Status> {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", self.cluster_address()));
        let endpoint =
            endpoint.unwrap().connect_timeout(Duration::from_secs(2)).timeout(Duration::from_secs(5));
        let channel = endpoint.connect().await.map_err(|err| tonic::Status::unavailable(err.to_string()))?;
        Ok(FleetClient::new(channel))
    }
}
