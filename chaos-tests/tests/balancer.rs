//! Three nodes behind a real load balancer, with the configuration that `deploy/` ships: it forwards, and no
//! connection is lost while nodes restart.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what goes wrong fails the test, and what it measured is said"
)]

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use flotilla_chaos_tests::{
    client::whoami,
    load::Load,
    origin, peers,
    poll::eventually,
    process::{SOON, TestFleet},
    spec,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_flotilla-under-test");

/// The file of `deploy/load-balancer`, for this fleet, listening on one more address of it.
fn config(name: &str, fleet: &TestFleet) -> (String, SocketAddr) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/load-balancer").join(name);
    let mut config = fs::read_to_string(file).unwrap();
    for (node, shipped) in fleet.nodes().iter().zip(["10.0.0.11:8080", "10.0.0.12:8080", "10.0.0.13:8080"]) {
        assert!(config.contains(shipped), "{shipped}");
        config = config.replace(shipped, &node.port(8080).to_string());
    }
    let front = SocketAddr::from((fleet.spare_address(9), 8080));
    let config = config
        .replace("bind :8080", &format!("bind {front}"))
        .replace("listen 8080", &format!("listen {front}"));
    assert!(config.contains(&front.to_string()));
    (config, front)
}

struct Balancer(Child);

impl Balancer {
    /// What it says goes to `balancer.log`.
    fn start(command: &mut Command, fleet: &TestFleet) -> Self {
        let log = File::create(fleet.directory().join("balancer.log")).unwrap();
        let process = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn();
        Self(process.unwrap())
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // Asked, it ends its workers too.
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        let _gone = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        drop(self.0.wait());
    }
}

/// Three nodes behind HAProxy as `deploy/` sets it up; `None` where it is not installed.
async fn behind_haproxy() -> Option<(TestFleet, Balancer, SocketAddr)> {
    let haproxy = peers::program("haproxy")?;
    let fleet = TestFleet::start(PROGRAM, 3).await;
    let (config, front) = config("haproxy.cfg", &fleet);
    let file = fleet.file("haproxy.cfg", &config);
    let balancer = Balancer::start(Command::new(haproxy).args(["-db", "-f", &file]), &fleet);
    Some((fleet, balancer, front))
}

/// The same with nginx.
async fn behind_nginx() -> Option<(TestFleet, Balancer, SocketAddr)> {
    let nginx = peers::program("nginx")?;
    let fleet = TestFleet::start(PROGRAM, 3).await;
    let (config, front) = config("nginx.conf", &fleet);
    let file = fleet.file("nginx.conf", &config);
    let settings =
        format!("pid {}; error_log stderr; daemon off;", fleet.directory().join("nginx.pid").display());
    let balancer = Balancer::start(Command::new(nginx).args(["-g", &settings, "-c", &file]), &fleet);
    Some((fleet, balancer, front))
}

#[tokio::test]
async fn nodes_behind_haproxy_are_restarted_without_a_lost_connection() {
    let Some((mut fleet, _balancer, front)) = behind_haproxy().await else { return };
    restart_every_node_under_load(&mut fleet, front).await;
}

#[tokio::test]
async fn nodes_behind_nginx_are_restarted_without_a_lost_connection() {
    let Some((mut fleet, _balancer, front)) = behind_nginx().await else { return };
    restart_every_node_under_load(&mut fleet, front).await;
}

#[tokio::test]
async fn haproxy_spreads_connections_over_the_nodes_and_leaves_out_one_that_stopped() {
    let Some((mut fleet, _balancer, front)) = behind_haproxy().await else { return };
    forwards_without_one_node(&mut fleet, front).await;
}

#[tokio::test]
async fn nginx_spreads_connections_over_the_nodes_and_leaves_out_one_that_stopped() {
    let Some((mut fleet, _balancer, front)) = behind_nginx().await else { return };
    forwards_without_one_node(&mut fleet, front).await;
}

async fn forwards_without_one_node(fleet: &mut TestFleet, front: SocketAddr) {
    let _echo = serve_behind(fleet, front).await;
    Load::tcp([front]).operations(300).run().await.assert_clean();
    fleet.node_mut(1).stop().await;
    Load::tcp([front]).operations(300).run().await.assert_clean();
}

/// Applies the app, and waits until the balancer forwards to it.
async fn serve_behind(fleet: &TestFleet, front: SocketAddr) -> origin::Echo {
    let echo = origin::Echo::start("echo");
    fleet.apply(&spec::app("web", "8080", &[echo.address()], "")).await.exits(0);
    eventually("the balancer forwards", SOON, async || {
        let log = || fs::read_to_string(fleet.directory().join("balancer.log")).unwrap();
        whoami(front).await.map_err(|err| format!("{err}\n{}", log()))
    })
    .await;
    echo
}

async fn restart_every_node_under_load(fleet: &mut TestFleet, front: SocketAddr) {
    let _echo = serve_behind(fleet, front).await;
    let load = Load::tcp([front]).per_second(300).start();
    for node in 0..3 {
        fleet.node_mut(node).stop().await;
        let begun = load.finished();
        served(&load, begun).await;
        fleet.node_mut(node).start().await;
        let address = fleet.node(node).port(8080);
        eventually("the node serves again", SOON, async || whoami(address).await.map(drop)).await;
        let begun = load.finished();
        served(&load, begun).await;
    }
    let report = load.stop().await;
    eprintln!("{report}");
    report.assert_clean();
}

/// Some seconds' worth of operations: the balancer checks its servers every second.
async fn served(load: &flotilla_chaos_tests::load::Running, begun: u64) {
    eventually("the load goes on", Duration::from_secs(60), async || match load.finished() - begun {
        900.. => Ok(()),
        fewer => Err(fewer),
    })
    .await;
}
