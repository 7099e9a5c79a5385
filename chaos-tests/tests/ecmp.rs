//! A router that spreads connections over the nodes by itself: Linux with a resilient group of next
//! hops, in network namespaces. All nodes have the same address for traffic, and no balancer is told
//! anything: who drains a node takes its weight away at the router first, and the router moves a bucket
//! of connections elsewhere once it has been idle.
//!
//! Needs root, and a kernel with `CONFIG_NET_NS` and resilient groups (5.13).

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what goes wrong fails the test, and what it measured is said"
)]

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{self, Command},
};

use flotilla_chaos_tests::{
    client::{get, whoami},
    load::Load,
    origin, peers,
    poll::eventually,
    process::{NodeSettings, SOON, TestFleet},
    spec,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_flotilla-under-test");
const NODES: usize = 3;
/// So many that under this load each is idle for a second now and then, as a bucket in use is not moved;
/// and so few that the share of the least weight next to `MUCH` is none of them.
const BUCKETS: u32 = 256;
const MUCH: u32 = 250;
const LITTLE: u32 = 1;
const PORT: u16 = 9000;

/// A router and three namespaces for nodes behind it. This machine is the client in front. In a corner
/// of 198.18.0.0/15, which is for such tests (RFC 2544).
struct Network {
    ip: PathBuf,
    /// Of this process: tests of other processes have others.
    number: u8,
}

impl Network {
    /// `None`, and said why, where it cannot be had.
    fn build() -> Option<Self> {
        let ip = peers::program("ip")?;
        let number = u8::try_from(process::id() % 256).expect("below 256");
        let network = Self { ip, number };
        match network.try_build() {
            Ok(()) => Some(network),
            Err(why) => {
                eprintln!("SKIPPED: no network namespaces or no resilient groups of next hops here: {why}");
                None
            }
        }
    }

    fn try_build(&self) -> Result<(), String> {
        let router = self.router();
        self.run(&format!("netns add {router}"))?;
        let front = self.front();
        let (here, there) = (self.address(0, 1), self.address(0, 2));
        self.run(&format!("link add {front} type veth peer name front netns {router}"))?;
        self.run(&format!("addr add {here}/30 dev {front}"))?;
        self.run(&format!("link set {front} up"))?;
        self.run(&format!("-n {router} addr add {there}/30 dev front"))?;
        self.run(&format!("-n {router} link set front up"))?;
        self.run(&format!("-n {router} link set lo up"))?;
        for setting in [
            "ip_forward=1",
            "fib_multipath_hash_policy=1",
            "conf.all.rp_filter=0",
            "conf.default.rp_filter=0",
        ] {
            let (name, value) = setting.split_once('=').unwrap();
            let path = format!("/proc/sys/net/ipv4/{}", name.replace('.', "/"));
            self.run(&format!("netns exec {router} sh -c \"echo {value} > {path}\""))?;
        }
        for node in 0..NODES {
            let (space, link) = (self.node(node), format!("node{node}"));
            let (gateway, address) = (self.address(node + 1, 1), self.address(node + 1, 2));
            self.run(&format!("netns add {space}"))?;
            self.run(&format!("-n {router} link add {link} type veth peer name uplink netns {space}"))?;
            self.run(&format!("-n {router} addr add {gateway}/30 dev {link}"))?;
            self.run(&format!("-n {router} link set {link} up"))?;
            self.run(&format!("-n {space} link set lo up"))?;
            self.run(&format!("-n {space} addr add {address}/30 dev uplink"))?;
            self.run(&format!("-n {space} link set uplink up"))?;
            self.run(&format!("-n {space} addr add {}/32 dev lo", self.shared()))?;
            self.run(&format!("-n {space} route add default via {gateway}"))?;
            self.run(&format!("-n {router} nexthop add id {} via {address} dev {link}", node + 1))?;
        }
        self.group("add", &[MUCH; NODES])?;
        self.run(&format!("-n {router} route add {}/32 nhid 10", self.shared()))?;
        self.run(&format!("route add 198.18.{}.0/24 via {there} dev {front}", self.number))
    }

    /// Spreads new connections by these weights.
    fn group(&self, verb: &str, weights: &[u32]) -> Result<(), String> {
        let members = weights.iter().enumerate().map(|(node, weight)| format!("{},{weight}", node + 1));
        let members = members.collect::<Vec<_>>().join("/");
        self.run(&format!(
            "-n {} nexthop {verb} id 10 group {members} type resilient buckets {BUCKETS} idle_timer 1",
            self.router()
        ))
    }

    /// As one types it, with `sh -c` for its quotes.
    fn run(&self, words: &str) -> Result<(), String> {
        let command = format!("{} {words}", self.ip.display());
        let output = Command::new("sh").args(["-c", &command]).output().map_err(|err| err.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(()) } else { Err(format!("ip {words}: {said}")) }
    }

    fn router(&self) -> String {
        format!("flotilla-{}-router", process::id())
    }

    fn node(&self, node: usize) -> String {
        format!("flotilla-{}-n{}", process::id(), node + 1)
    }

    /// Names of links are short.
    fn front(&self) -> String {
        format!("flt{}", process::id())
    }

    /// A /30 for each link.
    fn address(&self, link: usize, end: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.number, u8::try_from(link * 4).unwrap() + end)
    }

    /// Where all nodes take traffic.
    fn shared(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.number, 100)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The links go with the namespaces, and the route with its link.
        for node in 0..NODES {
            drop(self.run(&format!("netns del {}", self.node(node))));
        }
        drop(self.run(&format!("netns del {}", self.router())));
    }
}

async fn fleet_in(network: &Network) -> TestFleet {
    let mut fleet = TestFleet::empty(PROGRAM);
    for number in 0..NODES {
        let node = fleet.prepare(NodeSettings {
            zone: format!("z{number}"),
            traffic: Some(network.shared()),
            namespace: Some(network.node(number)),
            ..NodeSettings::default()
        });
        fleet.node_mut(node).move_to(network.address(number + 1, 2));
        fleet.node_mut(node).start().await;
    }
    fleet.init(0).await;
    for node in 1..NODES {
        fleet.join(node, 0).await;
    }
    fleet.settled().await;
    fleet
}

/// Connections that the node has taken so far.
async fn opened(fleet: &TestFleet, node: usize) -> u64 {
    let (_, text) = get(fleet.node(node).admin_address(), "/metrics").await.unwrap();
    let of_app = |line: &&str| line.starts_with("flotilla_connections_opened_total{");
    let values = text.lines().filter(of_app).filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a counter")]
    let sum = values.sum::<f64>() as u64;
    sum
}

#[tokio::test]
async fn a_node_behind_a_router_is_drained_and_no_client_notices() {
    let Some(network) = Network::build() else { return };
    let fleet = fleet_in(&network).await;
    let echo = origin::Echo::start_at("echo", (network.address(0, 1), 0).into()).unwrap();
    fleet.apply(&spec::app("web", &PORT.to_string(), &[echo.address()], "")).await.exits(0);
    let front = SocketAddr::from((network.shared(), PORT));
    eventually("the router forwards", SOON, async || whoami(front).await.map(drop)).await;

    let load = Load::tcp([front]).per_second(200).start();
    eventually("all nodes take connections", SOON, async || {
        let mut counts = Vec::new();
        for node in 0..NODES {
            counts.push(opened(&fleet, node).await);
        }
        if counts.iter().all(|count| *count >= 50) { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await;

    network.group("replace", &[MUCH, LITTLE, MUCH]).unwrap();
    let drained = ["node", "drain", "n2", "--deadline", "90s", "--quiet-for", "3s"];
    fleet.cli(drained).await.exits(0);
    let at_rest = opened(&fleet, 1).await;
    let before = load.finished();
    eventually("the load goes on", SOON, async || {
        (load.finished() - before >= 400).then_some(()).ok_or("slowly")
    })
    .await;
    assert_eq!(opened(&fleet, 1).await, at_rest, "the drained node still takes connections");

    let report = load.stop().await;
    eprintln!("{report}");
    report.assert_clean();
}
