//! How long balancers take to follow: from the moment the leader knows that a node serves, to the moment the
//! balancer was seen to have it.

use flotilla_chaos_tests::{client::get, peers, process::TestFleet, spec};

use crate::support::{fleet_with_web, seen};

const CHANGES: usize = 60;
/// The moves of one change: each node's endpoint goes to another port.
const MOVES: u64 = 3;

/// The leader's histogram: upper bounds in seconds, ascending, and how many took no longer.
async fn followed(fleet: &TestFleet, balancer: &str) -> Vec<(f64, u64)> {
    let leader = fleet.leader().await;
    let (_, metrics) = get(fleet.node(leader).admin_address(), "/metrics").await.unwrap();
    let of_balancer = format!("balancer=\"{balancer}\"");
    let buckets = metrics.lines().filter(|line| {
        line.starts_with("flotilla_balancer_delay_seconds_bucket") && line.contains(&of_balancer)
    });
    let read = |line: &str| {
        let (_, bound) = line.split_once("le=\"").unwrap();
        let bound = bound.split('"').next().unwrap().replace("+Inf", "inf");
        (bound.parse().unwrap(), line.rsplit(' ').next().unwrap().parse().unwrap())
    };
    buckets.map(read).collect()
}

/// The upper bound, in milliseconds, of the bucket that has the change at this place.
fn quantile(buckets: &[(f64, u64)], percent: u64) -> f64 {
    let all = buckets.last().unwrap().1;
    let place = (all * percent).div_ceil(100);
    buckets.iter().find(|(_, count)| *count >= place).unwrap().0 * 1000.0
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
    let mut after = followed(fleet, balancer).await;
    for ((_, count), (_, before)) in after.iter_mut().zip(&before) {
        *count -= before;
    }
    let changes = after.last().unwrap().1;
    eprintln!(
        "{balancer}: {changes} changes, p50 within {} ms, p99 within {} ms; {after:?}",
        quantile(&after, 50),
        quantile(&after, 99)
    );
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
