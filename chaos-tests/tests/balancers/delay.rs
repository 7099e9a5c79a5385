//! How long balancers take to follow: from the moment the leader knows that a node serves, to the moment the
//! balancer was seen to have it.

use flotilla_chaos_tests::{client::get, peers, process::TestFleet, spec};

use crate::support::{fleet_with_web, seen};

const CHANGES: usize = 40;
/// The moves of one change: each node's endpoint goes to another port.
const MOVES: u64 = 3;

/// The cumulative counts of the leader's histogram: all, and those within 50 ms.
async fn followed(fleet: &TestFleet, balancer: &str) -> (u64, u64) {
    let leader = fleet.leader().await;
    let (_, metrics) = get(fleet.node(leader).admin_address(), "/metrics").await.unwrap();
    let read = |suffix: &str| {
        let prefix = format!("flotilla_balancer_delay_seconds_{suffix}");
        let name = format!("balancer=\"{balancer}\"");
        let line = metrics.lines().find(|line| {
            line.starts_with(&prefix)
                && line.contains(&name)
                && (suffix == "count" || line.contains("le=\"0.05\""))
        });
        line.and_then(|line| line.rsplit(' ').next()).and_then(|count| count.parse().ok()).unwrap_or(0)
    };
    (read("count"), read("bucket"))
}

async fn measure(fleet: &TestFleet, echo: std::net::SocketAddr, balancer: &str) {
    let all = ["n1 ready", "n2 ready", "n3 ready"];
    seen(fleet, balancer, "in sync", &all).await;
    let before = followed(fleet, balancer).await;
    for change in 0..CHANGES {
        let port = if change % 2 == 0 { "8081" } else { "8080" };
        fleet.apply(&spec::app("web", port, &[echo], "")).await.exits(0);
    }
    seen(fleet, balancer, "in sync", &all).await;
    let after = followed(fleet, balancer).await;
    let (changes, fast) = (after.0 - before.0, after.1 - before.1);
    eprintln!("{balancer}: {changes} changes, {fast} of them seen within 50 ms");
    assert!(changes >= CHANGES as u64 * MOVES / 2, "{changes}");
}

/// `cargo test --release -p flotilla-chaos-tests --test balancers -- --ignored --nocapture follow_within`
#[tokio::test]
#[ignore = "a measurement"]
async fn haproxy_and_envoy_follow_within() {
    if peers::program("haproxy").is_none() || peers::program("envoy").is_none() {
        return;
    }
    let (fleet, echo) = fleet_with_web().await;
    let haproxy = crate::haproxy::start(&fleet, 6).unwrap();
    crate::haproxy::add(&fleet, &haproxy).await;
    measure(&fleet, echo.address(), "edge").await;
    drop(haproxy);
    fleet.cli(["balancer", "remove", "edge"]).await.exits(0);
    let _envoy = crate::envoy::start(&fleet, false).unwrap();
    fleet.cli(["balancer", "add", "envoy", "mesh", "--port", "7403"]).await.exits(0);
    measure(&fleet, echo.address(), "mesh").await;
}
