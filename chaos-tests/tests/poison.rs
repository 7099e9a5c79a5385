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

use tokio::time::Instant;

const PROGRAM: &str = env!("CARGO_BIN_EXE_flotilla-under-test");

/// When the node that died is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Supervisor {
    Prompt,
    /// After several times the bake.
    Slow,
    /// Not before the rollout has gone back.
    Absent,
}

/// Applies a generation that has `fault`, restarts the node that dies of it as its supervisor would, and
/// checks that nobody else is harmed.
async fn costs_one_node_once(fault: &str, bake_seconds: u64, supervisor: Supervisor) {
    let mut fleet = TestFleet::start(PROGRAM, 3).await;
    let (good, bad) = (origin::Echo::start("good"), origin::Echo::start("bad"));
    fleet.apply(&spec::app("web", "9000", &[good.address()], "")).await.exits(0);
    let poison = spec::app("web", "9000", &[bad.address()], &format!("labels = {{ fault = \"{fault}\" }}"))
        .replace("min_healthy = \"100ms\"", &format!("min_healthy = \"{bake_seconds}s\""))
        .replace("progress_deadline = \"20s\"", "progress_deadline = \"60s\"");
    let file = fleet.file("poison.toml", &poison);
    fleet.cli(["app", "apply", "-f", &file, "--wait=committed"]).await.exits(0);

    let victim = eventually("one node dies of it", SOON, async || {
        (0..3).find(|&node| fleet.node_mut(node).has_died()).ok_or("all live")
    })
    .await;
    let others: Vec<_> = (0..3).filter(|&node| node != victim).collect();
    let load = Load::tcp(others.iter().map(|&node| fleet.node(node).port(9000))).per_second(100).start();
    let name = fleet.node(victim).name().to_owned();
    let back = async |fleet: &TestFleet| {
        eventually("the rollout goes back", SOON * 2, async || {
            let output = fleet.cli(["rollout", "status", "web", "-o", "json"]).await;
            if output.stdout.contains("\"rolled back\"") { Ok(output) } else { Err(output) }
        })
        .await
    };
    match supervisor {
        Supervisor::Prompt => {}
        Supervisor::Slow => holds_its_place(&fleet, &name, Duration::from_secs(3 * bake_seconds)).await,
        Supervisor::Absent => drop(back(&fleet).await),
    }
    fleet.node_mut(victim).start().await;
    let address = fleet.node(victim).port(9000);
    eventually("it serves what it survived", SOON, async || match whoami(address).await {
        Ok(name) if name == "good" => Ok(()),
        Ok(name) => Err(name),
        Err(err) => Err(err.to_string()),
    })
    .await;
    let why = match supervisor {
        Supervisor::Prompt | Supervisor::Slow => "crash: the node went down once",
        Supervisor::Absent => "went down while it took the generation, and is not back after 10s",
    };
    let output = back(&fleet).await;
    assert!(output.stdout.contains(&format!("node {name}: {why}")), "{output}");
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

/// For so long no other node takes what `victim` died of.
async fn holds_its_place(fleet: &TestFleet, victim: &str, time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        // Between two leaders there is nobody to ask.
        let status = fleet.cli(["rollout", "status", "web", "-o", "json"]).await;
        if status.code == Some(0) {
            let rollout = status.json();
            let steps = rollout["items"][0]["steps"].as_array().unwrap_or_else(|| panic!("{status}"));
            let took = |step: &&serde_json::Value| {
                ["shifting", "monitoring", "done"].contains(&step["step"].as_str().unwrap())
            };
            // The victim may have led, and a follower may not know yet that it took its turn.
            let others = steps.iter().filter(took).any(|step| step["node"] != victim);
            assert!(!others, "{status}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let why = format!("node {victim}: went down while it took generation");
    eventually("the wait is explained", SOON, async || {
        let status = fleet.cli(["rollout", "status", "web", "-o", "json"]).await;
        if status.stdout.contains(&why) { Ok(()) } else { Err(status) }
    })
    .await;
}

#[tokio::test]
async fn a_generation_that_crashes_a_node_costs_one_node_once() {
    costs_one_node_once("abort", 5, Supervisor::Prompt).await;
}

#[tokio::test]
async fn a_node_that_is_restarted_late_keeps_the_others_from_what_it_died_of() {
    costs_one_node_once("abort", 1, Supervisor::Slow).await;
}

#[tokio::test]
async fn a_node_that_does_not_come_back_has_failed() {
    costs_one_node_once("abort", 1, Supervisor::Absent).await;
}

#[tokio::test]
async fn a_generation_that_stalls_a_node_costs_one_node_once() {
    costs_one_node_once("stall", 20, Supervisor::Prompt).await;
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
