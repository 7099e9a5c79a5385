//! Nodes that are drained, removed and replaced, under load: nobody notices.
//!
//! What no load balancer does by itself, because it is not told or has no check that says "send nothing
//! new", the test does as an operator would: it changes the balancer's file when the node is a lame duck.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what goes wrong fails the test, and what it measured is said"
)]

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use flotilla_chaos_tests::{
    client::whoami,
    load::Load,
    origin, peers,
    poll::eventually,
    process::{NodeSettings, SOON, TestFleet},
    spec,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_flotilla-under-test");
const DRAIN: [&str; 4] = ["--deadline", "20s", "--quiet-for", "2s"];

async fn drain(fleet: &TestFleet, node: &str) -> flotilla_chaos_tests::process::Output {
    fleet.cli(["node", "drain", node].into_iter().chain(DRAIN)).await
}

struct Balancer {
    process: Child,
    front: SocketAddr,
}

impl Balancer {
    /// What it says goes to `balancer.log`.
    fn start(fleet: &TestFleet, front: SocketAddr, command: &mut Command) -> Self {
        let log = File::create(fleet.directory().join("balancer.log")).unwrap();
        let process = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        Self { process: process.unwrap(), front }
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.process.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        drop(self.process.wait());
    }
}

fn front(fleet: &TestFleet) -> SocketAddr {
    (fleet.spare_address(9), 8080).into()
}

/// Connections to the apps' port; whether to send more is asked of `/readyz` on the admin port, and a
/// server that says no keeps what it has.
fn haproxy(fleet: &TestFleet) -> Option<Balancer> {
    let program = peers::program("haproxy")?;
    let servers: Vec<_> = fleet
        .nodes()
        .iter()
        .map(|node| {
            format!(
                "  server {} {} check addr {} port {}",
                node.name(),
                node.port(8080),
                node.admin_address().ip(),
                node.admin_address().port()
            )
        })
        .collect();
    let config = format!(
        "defaults\n  mode tcp\n  timeout connect 2s\n  timeout client 1m\n  timeout server 1m\n\
         listen web\n  bind {}\n  balance roundrobin\n  option httpchk GET /readyz\n  \
         default-server inter 200ms fall 1 rise 1\n{}\n",
        front(fleet),
        servers.join("\n")
    );
    let file = fleet.file("haproxy.cfg", &config);
    Some(Balancer::start(fleet, front(fleet), Command::new(program).args(["-db", "-f", &file])))
}

fn nginx_config(fleet: &TestFleet, without: Option<&str>) -> String {
    let servers: Vec<_> = fleet
        .nodes()
        .iter()
        .map(|node| {
            let down = if Some(node.name()) == without { " down" } else { "" };
            format!("    server {}{down};", node.port(8080))
        })
        .collect();
    let modules = PathBuf::from("/usr/lib/nginx/modules/ngx_stream_module.so");
    let load = if modules.exists() { format!("load_module {};\n", modules.display()) } else { String::new() };
    format!(
        "{load}daemon off;\npid {};\nerror_log stderr;\nevents {{}}\nstream {{\n  upstream web {{\n{}\n  }}\n  \
         server {{ listen {}; proxy_pass web; }}\n}}\n",
        fleet.directory().join("nginx.pid").display(),
        servers.join("\n"),
        front(fleet)
    )
}

fn nginx(fleet: &TestFleet) -> Option<Balancer> {
    let program = peers::program("nginx")?;
    let file = fleet.file("nginx.conf", &nginx_config(fleet, None));
    Some(Balancer::start(fleet, front(fleet), Command::new(program).args(["-c", &file])))
}

fn envoy(fleet: &TestFleet) -> Option<Balancer> {
    let program = peers::program("envoy")?;
    let endpoints: Vec<_> = fleet
        .nodes()
        .iter()
        .map(|node| {
            let socket = |address: SocketAddr| {
                format!("{{socket_address: {{address: {}, port_value: {}}}}}", address.ip(), address.port())
            };
            format!(
                "        - endpoint: {{address: {}, health_check_config: {{port_value: {}}}}}",
                socket(node.port(8080)),
                node.admin_address().port()
            )
        })
        .collect();
    let config = format!(
        "static_resources:\n  listeners:\n  - address: {{socket_address: {{address: {}, port_value: {}}}}}\n    \
         filter_chains:\n    - filters:\n      - name: envoy.filters.network.tcp_proxy\n        typed_config:\n          \
         \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy\n          \
         stat_prefix: web\n          cluster: web\n  clusters:\n  - name: web\n    type: STATIC\n    \
         connect_timeout: 2s\n    health_checks:\n    - timeout: 1s\n      interval: 0.2s\n      \
         no_traffic_interval: 0.2s\n      unhealthy_threshold: 1\n      healthy_threshold: 1\n      http_health_check: {{path: /readyz}}\n    \
         load_assignment:\n      cluster_name: web\n      endpoints:\n      - lb_endpoints:\n{}\n",
        front(fleet).ip(),
        front(fleet).port(),
        endpoints.join("\n")
    );
    let file = fleet.file("envoy.yaml", &config);
    let base = (fleet.nodes()[0].pid() % 60_000).to_string();
    let arguments = ["-c", &file, "--base-id", &base, "--concurrency", "1", "--log-level", "warning"];
    Some(Balancer::start(fleet, front(fleet), Command::new(program).args(arguments)))
}

/// An app, a load through the balancer, and each node in turn drained and taken back meanwhile.
/// `take_out`: what an operator does when the node has become a lame duck.
async fn drain_every_node_under_load(
    fleet: &TestFleet,
    balancer: &Balancer,
    take_out: impl Fn(Option<&str>),
) {
    let echo = origin::Echo::start("echo");
    fleet.apply(&spec::app("web", "8080", &[echo.address()], "")).await.exits(0);
    eventually("the balancer forwards", SOON, async || {
        let log = || fs::read_to_string(fleet.directory().join("balancer.log")).unwrap();
        whoami(balancer.front).await.map_err(|err| format!("{err}\n{}", log()))
    })
    .await;
    let load = Load::tcp([balancer.front]).per_second(200).start();
    for node in fleet.nodes().iter().take(2) {
        take_out(Some(node.name()));
        let drained = drain(fleet, node.name()).await;
        drained.exits(0);
        take_out(None);
        fleet.cli(["node", "undrain", node.name()]).await.exits(0);
    }
    let report = load.stop().await;
    eprintln!("{report}");
    report.assert_clean();
}

#[tokio::test]
async fn nodes_are_drained_behind_haproxy_and_no_client_notices() {
    let fleet = TestFleet::start(PROGRAM, 3).await;
    let Some(balancer) = haproxy(&fleet) else { return };
    drain_every_node_under_load(&fleet, &balancer, |_| {}).await;
}

#[tokio::test]
async fn nodes_are_drained_behind_nginx_and_no_client_notices() {
    let fleet = TestFleet::start(PROGRAM, 3).await;
    let Some(balancer) = nginx(&fleet) else { return };
    let take_out = |node: Option<&str>| {
        fleet.file("nginx.conf", &nginx_config(&fleet, node));
        balancer.signal(nix::sys::signal::Signal::SIGHUP);
    };
    drain_every_node_under_load(&fleet, &balancer, take_out).await;
}

#[tokio::test]
async fn nodes_are_drained_behind_envoy_and_no_client_notices() {
    let fleet = TestFleet::start(PROGRAM, 3).await;
    let Some(balancer) = envoy(&fleet) else { return };
    drain_every_node_under_load(&fleet, &balancer, |_| {}).await;
}

#[tokio::test]
async fn a_member_leaves_and_a_dead_voter_is_replaced_by_the_fourth_node() {
    let mut fleet = TestFleet::empty(PROGRAM);
    for number in 1..=4 {
        let settings = NodeSettings {
            zone: format!("z{number}"),
            lost_after: "2s".to_owned(),
            ..NodeSettings::default()
        };
        fleet.add(settings).await;
    }
    fleet.init(0).await;
    for node in 1..4 {
        fleet.join(node, 0).await;
    }
    fleet.settled().await;
    let echo = origin::Echo::start("echo");
    fleet.apply(&spec::app("web", "8080", &[echo.address()], "")).await.exits(0);

    // A voter that does not lead dies, and the learner takes its vote.
    let leader = fleet.leader().await;
    let voters = |status: &flotilla_api::v1::ClusterStatusReply| -> Vec<String> {
        let voters = status.nodes.iter().filter(|node| node.role != "learner");
        voters.map(|node| node.name.clone()).collect()
    };
    let before = voters(&fleet.node(leader).status().await.unwrap());
    assert_eq!(before.len(), 3, "{before:?}");
    let dead = (0..4)
        .find(|index| *index != leader && before.contains(&fleet.node(*index).name().to_owned()))
        .unwrap();
    fleet.node_mut(dead).kill();
    let name = fleet.node(dead).name().to_owned();
    eventually("the fourth node votes", SOON, async || {
        let status = fleet.node(leader).status().await.map_err(|err| err.message().to_owned())?;
        let now = voters(&status);
        if now.len() == 3 && !now.contains(&name) && status.voters_live == 3 {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    })
    .await;

    // It will not come back.
    fleet.cli(["node", "remove", &name, "--force", "--yes"]).await.exits(0);
    assert_eq!(fleet.node(leader).status().await.unwrap().nodes.len(), 3);

    // The leader leaves: it is drained, another one leads, and its process ends by itself.
    let leaving = fleet.node(leader).name().to_owned();
    let arguments = ["node", "remove", &leaving, "--yes"].into_iter().chain(DRAIN);
    fleet.cli(arguments).await.exits(0);
    assert!(fleet.node_mut(leader).ended().await.success());
    let other = fleet.leader().await;
    let status = fleet.node(other).status().await.unwrap();
    assert_eq!((status.nodes.len(), status.voters), (2, 2));
    fleet.apply(&spec::app("web", "8081", &[echo.address()], "")).await.exits(0);
}

#[tokio::test]
async fn a_drain_shows_its_phases_and_is_called_off_in_any_of_them() {
    let fleet = TestFleet::start(PROGRAM, 3).await;
    let echo = origin::Echo::start("echo");
    fleet.apply(&spec::app("web", "8080", &[echo.address()], "")).await.exits(0);
    let node = fleet.node(2);
    // Between two leaders a node answers by what it knows, or not at all.
    let phase_is = async |wanted: &str| {
        eventually(&format!("the phase is {wanted}"), SOON, async || {
            let mut client = node.client().await.map_err(|err| err.to_string())?;
            let request = flotilla_api::v1::ListNodesRequest {};
            let nodes = client.list_nodes(request).await.map_err(|err| err.to_string())?.into_inner().nodes;
            let shown = nodes.into_iter().find(|shown| shown.name == node.name());
            let phase = shown.and_then(|shown| shown.drain).map_or("none".to_owned(), |drain| drain.phase);
            if phase == wanted { Ok(()) } else { Err(phase) }
        })
        .await;
    };

    // Lame duck, then quiet: waiting for sessions to die down, and called off.
    fleet
        .cli(["node", "drain", node.name(), "--quiet-for", "1h", "--deadline", "3h", "--no-wait"])
        .await
        .exits(0);
    phase_is("quiet").await;
    whoami(node.port(8080)).await.unwrap();
    fleet.cli(["node", "undrain", node.name()]).await.exits(0);
    phase_is("none").await;

    // A connection that stays open keeps it from being empty.
    let open = tokio::net::TcpStream::connect(node.port(8080)).await.unwrap();
    fleet.cli(["node", "drain", node.name(), "--quiet-for", "1s", "--no-wait"]).await.exits(0);
    phase_is("draining").await;
    whoami(node.port(8080)).await.unwrap();
    fleet.cli(["node", "cordon", node.name()]).await.exits(1);
    drop(open);
    let drained = drain(&fleet, node.name()).await;
    drained.exits(0);
    phase_is("empty").await;
    fleet.cli(["node", "undrain", node.name()]).await.exits(0);
    fleet.cli(["node", "cordon", node.name()]).await.exits(0);
    fleet.cli(["node", "uncordon", node.name()]).await.exits(0);

    // At the deadline what is left is cut.
    let other = fleet.node(1);
    let _open = tokio::net::TcpStream::connect(other.port(8080)).await.unwrap();
    let terms = ["--deadline", "4s", "--quiet-for", "500ms"];
    fleet.cli(["node", "drain", other.name()].into_iter().chain(terms)).await.exits(1);
}
