//! Generations that take down whoever touches them: one node, once.

#![allow(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::time::Duration;

use flotilla_chaos_tests::{
    client::whoami,
    load::Load,
    origin,
    poll::eventually,
    process::{SOON, TestFleet},
    spec,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_flotilla-under-test");

/// Applies a generation that has `fault`, restarts the node that dies of it as a supervisor would, and
/// checks that nobody else is harmed.
async fn costs_one_node_once(fault: &str, bake: &str) {
    let mut fleet = TestFleet::start(PROGRAM, 3).await;
    let (good, bad) = (origin::Echo::start("good"), origin::Echo::start("bad"));
    fleet.apply(&spec::app("web", "9000", &[good.address()], "")).await.exits(0);
    let poison = spec::app("web", "9000", &[bad.address()], &format!("labels = {{ fault = \"{fault}\" }}"))
        .replace("min_healthy = \"100ms\"", &format!("min_healthy = \"{bake}\""))
        .replace("progress_deadline = \"20s\"", "progress_deadline = \"60s\"");
    let file = fleet.file("poison.toml", &poison);
    fleet.cli(["app", "apply", "-f", &file, "--wait=committed"]).await.exits(0);

    let mut victim = None;
    for _ in 0..1_500 {
        victim = (0..3).find(|&node| fleet.node_mut(node).has_died());
        if victim.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let victim = victim.expect("one node dies of it");
    let others: Vec<_> = (0..3).filter(|&node| node != victim).collect();
    let load = Load::tcp(others.iter().map(|&node| fleet.node(node).port(9000))).per_second(100).start();
    fleet.node_mut(victim).start().await;
    let address = fleet.node(victim).port(9000);
    eventually("it serves what it survived", SOON, async || match whoami(address).await {
        Ok(name) if name == "good" => Ok(()),
        Ok(name) => Err(name),
        Err(err) => Err(err.to_string()),
    })
    .await;
    let output = eventually("the rollout goes back", SOON * 2, async || {
        let output = fleet.cli(["rollout", "status", "web", "-o", "json"]).await;
        if output.stdout.contains("\"rolled back\"") { Ok(output) } else { Err(output) }
    })
    .await;
    let name = fleet.node(victim).name().to_owned();
    assert!(output.stdout.contains(&format!("node {name}: crash: the node went down once")), "{output}");
    load.stop().await.assert_clean();
    for node in 0..3 {
        assert!(!fleet.node_mut(node).has_died(), "node {node} died, too");
        assert_eq!(whoami(fleet.node(node).port(9000)).await.unwrap(), "good");
    }
    // What is good is taken as if nothing had been.
    let next = origin::Echo::start("next");
    fleet.apply(&spec::app("web", "9000", &[next.address()], "")).await.exits(0);
    assert_eq!(whoami(address).await.unwrap(), "next");
}

#[tokio::test]
async fn a_generation_that_crashes_a_node_costs_one_node_once() {
    costs_one_node_once("abort", "5s").await;
}

#[tokio::test]
async fn a_generation_that_stalls_a_node_costs_one_node_once() {
    costs_one_node_once("stall", "20s").await;
}

#[tokio::test]
async fn a_generation_that_cannot_be_compiled_in_time_or_at_all_is_a_clear_rejection() {
    let mut fleet = TestFleet::start(PROGRAM, 1).await;
    let good = origin::Echo::start("good");
    fleet.apply(&spec::app("web", "9000", &[good.address()], "")).await.exits(0);
    for (fault, why) in
        [("panic", "compiling it panicked: asked to"), ("slow", "compiling it took longer than 5s")]
    {
        let labels = format!("labels = {{ fault = \"{fault}\" }}");
        let refused = fleet.apply(&spec::app("web", "9000", &[good.address()], &labels)).await.exits(1);
        assert!(refused.stderr.contains(why), "{refused}");
        assert_eq!(whoami(fleet.node(0).port(9000)).await.unwrap(), "good");
    }
    assert!(!fleet.node_mut(0).has_died());
}
