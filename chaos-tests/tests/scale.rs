//! Apps that scale by themselves, on real fleets under real load.

#![allow(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::{net::SocketAddr, time::Duration};

use flotilla_chaos_tests::{
    client::{get, whoami},
    load::Load,
    origin,
    poll::eventually,
    process::{NodeSettings, SOON, TestFleet},
    spec,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_flotilla-under-test");

fn app(listen: &str, target: SocketAddr, autoscale: &str) -> String {
    let rules = format!("min = 1, max = 3, cooldown = \"2s\", {autoscale}");
    spec::app("web", listen, &[target], &format!("[app.placement]\nautoscale = {{ {rules} }}"))
}

/// Where the app takes traffic, in the order of the nodes.
async fn serving(fleet: &TestFleet) -> Result<Vec<usize>, String> {
    let output = fleet.cli(["app", "ports", "web", "-o", "json"]).await;
    if output.code != Some(0) {
        return Err(output.to_string());
    }
    let ports = output.json();
    let served = |node: &usize| {
        let mut items = ports["items"].as_array().into_iter().flatten();
        items.any(|port| port["node"] == fleet.node(*node).name() && port["desired"] == "serve")
    };
    Ok((0..fleet.nodes().len()).filter(served).collect())
}

async fn serves_on(fleet: &TestFleet, replicas: std::ops::RangeInclusive<usize>) -> Vec<usize> {
    eventually(&format!("it serves on {replicas:?} nodes"), SOON * 2, async || {
        let nodes = serving(fleet).await?;
        if replicas.contains(&nodes.len()) { Ok(nodes) } else { Err(format!("{nodes:?}")) }
    })
    .await
}

/// Some leader has said this of its decisions.
fn decided(fleet: &TestFleet, what: &str) -> bool {
    let said = |node: &flotilla_chaos_tests::process::Node| {
        node.log().lines().any(|line| line.contains("replicas") && line.contains(what))
    };
    fleet.nodes().iter().any(said)
}

async fn metric_is(fleet: &TestFleet, line: &str) {
    eventually(&format!("the metrics have `{line}`"), SOON, async || {
        let (_, text) = get(fleet.node(0).admin_address(), "/metrics").await?;
        let name = line.split([' ', '{']).next().unwrap();
        let shown = || text.lines().filter(|shown| shown.starts_with(name)).collect::<Vec<_>>().join("\n");
        if text.lines().any(|shown| shown == line) { Ok(()) } else { Err(shown()) }
    })
    .await;
}

/// Sessions that stay open.
async fn held(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut sessions = Vec::new();
    for _ in 0..count {
        let mut session = TcpStream::connect(address).await.unwrap();
        session.write_all(b"hold\n").await.unwrap();
        session.read_exact(&mut [0; 5]).await.unwrap();
        sessions.push(session);
    }
    sessions
}

#[tokio::test]
async fn an_app_grows_with_its_connections_asks_for_a_node_and_shrinks_when_they_are_gone() {
    let mut fleet = TestFleet::start(PROGRAM, 2).await;
    let echo = origin::Echo::start("echo");
    fleet.apply(&app("9000", echo.address(), "target_connections = 10")).await.exits(0);
    let first = serves_on(&fleet, 1..=1).await[0];
    let sessions = held(fleet.node(first).port(9000), 25).await;
    serves_on(&fleet, 2..=2).await;
    for address in fleet.port(9000) {
        eventually("the second node answers, too", SOON, async || whoami(address).await.map(drop)).await;
    }
    let short = "no node has room for 1 of 3 replicas: the fleet should grow";
    eventually("it says that a node is missing", SOON, async || {
        decided(&fleet, short).then_some(()).ok_or("")
    })
    .await;
    metric_is(&fleet, "flotilla_fleet_nodes_recommended 1").await;
    metric_is(&fleet, "flotilla_app_replicas_wanted{app=\"web\"} 3").await;
    assert!(decided(&fleet, " connections, of which 10 are for one replica"));
    eventually("both are events", SOON, async || {
        let output = fleet.cli(["rollout", "events", "web"]).await;
        let told = |what: &str| output.stdout.contains(what);
        if told(short) && told("scales from ") { Ok(()) } else { Err(output) }
    })
    .await;

    let third = fleet.add(NodeSettings { zone: "z3".to_owned(), ..NodeSettings::default() }).await;
    fleet.join(third, 0).await;
    serves_on(&fleet, 3..=3).await;
    metric_is(&fleet, "flotilla_fleet_nodes_recommended 0").await;
    assert!(decided(&fleet, "there is room for all replicas again"));

    drop(sessions);
    let last = serves_on(&fleet, 1..=1).await[0];
    assert!(decided(&fleet, " to 1: "), "the reason is told");
    metric_is(&fleet, "flotilla_app_replicas_wanted{app=\"web\"} 1").await;
    assert_eq!(whoami(fleet.node(last).port(9000)).await.unwrap(), "echo");
}

#[tokio::test]
async fn an_app_grows_with_its_requests_and_shrinks_after_them() {
    let fleet = TestFleet::start(PROGRAM, 3).await;
    let origin = origin::Http::start("origin");
    let rules = "target_requests_per_second = 20";
    fleet.apply(&app("\"http:8080\"", origin.address(), rules)).await.exits(0);
    let first = serves_on(&fleet, 1..=1).await[0];
    let load = Load::http_keep_alive([fleet.node(first).port(8080)], "/").per_second(100).start();
    serves_on(&fleet, 3..=3).await;
    assert!(decided(&fleet, " requests per second, of which 20 are for one replica"));
    load.stop().await.assert_clean();
    serves_on(&fleet, 1..=1).await;
    assert!(decided(&fleet, " requests per second, of which 20 are for one replica at most"));
}

#[tokio::test]
async fn a_user_says_how_many_nodes_whatever_the_load() {
    let fleet = TestFleet::start(PROGRAM, 3).await;
    let echo = origin::Echo::start("echo");
    fleet.apply(&app("9000", echo.address(), "target_connections = 10")).await.exits(0);
    serves_on(&fleet, 1..=1).await;
    fleet.cli(["app", "scale", "web", "2"]).await.exits(0);
    serves_on(&fleet, 2..=2).await;
    fleet.cli(["app", "scale", "web", "all"]).await.exits(0);
    serves_on(&fleet, 3..=3).await;
    let asked = tokio::time::Instant::now();
    // Twice the cooldown: the rules would have it back by then.
    while asked.elapsed() < Duration::from_secs(4) {
        assert_eq!(serves_on(&fleet, 3..=3).await.len(), 3);
    }
    fleet.cli(["app", "scale", "web", "--auto"]).await.exits(0);
    serves_on(&fleet, 1..=1).await;
    // The ports of the others have not closed yet: they take the app again before they do.
    fleet.cli(["app", "scale", "web", "3"]).await.exits(0);
    serves_on(&fleet, 3..=3).await;
    eventually("all nodes report that they serve it", SOON, async || {
        let output = fleet.cli(["app", "describe", "web", "-o", "json"]).await;
        if output.code != Some(0) {
            return Err(output);
        }
        let nodes = output.json()["nodes"].as_array().cloned().unwrap_or_default();
        let serve = nodes.iter().filter(|node| node["readiness"] == "serving").count();
        if serve == 3 { Ok(()) } else { Err(output) }
    })
    .await;
}

#[tokio::test]
async fn an_app_grows_with_the_processor_time_of_its_nodes() {
    let fleet = TestFleet::start(PROGRAM, 2).await;
    let origin = origin::Http::start("origin");
    fleet.apply(&app("\"http:8080\"", origin.address(), "target_cpu_percent = 1")).await.exits(0);
    // Raft alone may be enough on a small machine.
    let first = serves_on(&fleet, 1..=2).await[0];
    let load = Load::http([fleet.node(first).port(8080)], "/").start();
    serves_on(&fleet, 2..=2).await;
    assert!(decided(&fleet, " percent of a node's processors, of which 1 are for one replica"));
    load.stop().await.assert_clean();
}
