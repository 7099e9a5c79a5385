//! Machines that die, return, and return wrongly. What may fail is the control plane; what may not is traffic.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what goes wrong fails the test, and what it measured is said"
)]

use std::{net::SocketAddr, time::Duration};

use flotilla_chaos_tests::{
    client::whoami,
    load::Load,
    origin,
    poll::eventually,
    process::{SOON, TestFleet},
    spec,
};
use tokio::time::sleep;

const PROGRAM: &str = env!("CARGO_BIN_EXE_flotilla-under-test");

async fn serves(address: SocketAddr, name: &str) {
    eventually(&format!("{name} answers at {address}"), SOON, async || match whoami(address).await {
        Ok(answer) if answer == name => Ok(()),
        Ok(answer) => Err(answer),
        Err(err) => Err(err.to_string()),
    })
    .await;
}

#[tokio::test]
async fn a_rollout_survives_the_death_of_its_leader_and_no_client_of_the_others_notices() {
    let mut fleet = TestFleet::start(PROGRAM, 3).await;
    let origins = [
        origin::Echo::start("v0"),
        origin::Echo::start("v1"),
        origin::Echo::start("v2"),
        origin::Echo::start("v3"),
    ];
    // Three nodes, one after the other: a rollout takes six seconds, and is hit at different steps.
    let slow = |version: usize| {
        spec::app("web", "9000", &[origins[version].address()], "")
            .replace("min_healthy = \"100ms\"", "min_healthy = \"2s\"")
    };
    fleet.apply(&slow(0)).await.exits(0);
    let mut served = 0;
    for (version, after_ms) in [(1, 0), (2, 700), (3, 1_800)] {
        let leader = fleet.leader().await;
        let others: Vec<_> = (0..3).filter(|&node| node != leader).collect();
        let load = Load::tcp(others.iter().map(|&node| fleet.node(node).port(9000))).per_second(500).start();

        let file = fleet.file("next.toml", &slow(version));
        fleet.cli_at(others[0], ["app", "apply", "-f", &file, "--no-wait"]).await.exits(0);
        // The moment of death is what this test is about.
        sleep(Duration::from_millis(after_ms)).await;
        let status = fleet.cli_at(others[0], ["rollout", "status", "web", "-o", "json"]).await.exits(0);
        assert!(status.stdout.contains("\"progressing\""), "the rollout is under way: {status}");
        fleet.node_mut(leader).kill();

        // Only one that died while it took the new generation itself, and stays away, makes it go back.
        let completed = eventually("the rollout ends on the nodes that live", SOON * 2, async || {
            let output = fleet.cli(["rollout", "status", "web", "-o", "json"]).await;
            let is = |state: &str| output.stdout.contains(&format!("\"state\": \"{state}\""));
            let gone = "went down while it took the generation";
            match (is("completed"), is("rolled back") && output.stdout.contains(gone)) {
                (true, _) => Ok(true),
                (_, true) => Ok(false),
                (false, false) => Err(output),
            }
        })
        .await;
        served = if completed { version } else { served };
        for &node in &others {
            serves(fleet.node(node).port(9000), &format!("v{served}")).await;
        }
        let report = load.stop().await;
        eprintln!("killed {after_ms} ms after the apply: serves v{served}; {report}");
        report.assert_clean();

        fleet.node_mut(leader).start().await;
        serves(fleet.node(leader).port(9000), &format!("v{served}")).await;
        fleet.settled().await;
    }
}

#[tokio::test]
async fn without_a_quorum_traffic_goes_on_and_writes_are_refused() {
    let mut fleet = TestFleet::start(PROGRAM, 3).await;
    let (old, new) = (origin::Echo::start("old"), origin::Echo::start("new"));
    fleet.apply(&spec::app("web", "9000", &[old.address()], "")).await.exits(0);
    let address = fleet.node(2).port(9000);
    let load = Load::tcp([address]).per_second(200).start();
    fleet.node_mut(0).kill();
    fleet.node_mut(1).kill();

    let file = fleet.file("new.toml", &spec::app("web", "9000", &[new.address()], ""));
    fleet.cli(["app", "apply", "-f", &file, "--timeout", "5s"]).await.exits(4).says("E0401");
    fleet.cli(["app", "delete", "web", "--yes", "--timeout", "2s"]).await.exits(4);
    fleet.cli(["cluster", "status"]).await.exits(4);
    // What is, can be read.
    let list = fleet.cli(["app", "list", "-o", "json"]).await.exits(0).json();
    assert_eq!(list["items"][0]["version"], 1, "{list}");
    assert_eq!(whoami(address).await.unwrap(), "old");

    fleet.node_mut(0).start().await;
    fleet.leader().await;
    load.stop().await.assert_clean();
    let list = fleet.cli(["app", "list", "-o", "json"]).await.exits(0).json();
    assert_eq!(list["items"][0]["version"], 1, "a refused write was made later: {list}");
    fleet.cli(["app", "apply", "-f", &file]).await.exits(0);
    for address in fleet.port(9000) {
        assert_eq!(whoami(address).await.unwrap(), "new");
    }
    // The node that missed it catches up.
    fleet.node_mut(1).start().await;
    serves(fleet.node(1).port(9000), "new").await;
}

#[tokio::test]
async fn a_node_serves_what_it_served_before_it_has_found_anybody() {
    let mut fleet = TestFleet::start(PROGRAM, 3).await;
    let (one, two) = (origin::Echo::start("one"), origin::Echo::start("two"));
    fleet.apply(&spec::app("web", "9000", &[one.address()], "")).await.exits(0);
    fleet.apply(&spec::app("web", "9000, 9001", &[two.address()], "")).await.exits(0);
    // All at once, as when the power goes.
    (0..3).for_each(|node| fleet.node_mut(node).kill());

    fleet.node_mut(1).start().await;
    for port in [9000, 9001] {
        serves(fleet.node(1).port(port), "two").await;
    }
    eventually("it sees that nobody leads", SOON, async || match fleet.node(1).status().await {
        Ok(status) if status.leader == 0 => Ok(()),
        Ok(status) => Err(status.leader_name),
        Err(err) => Err(err.to_string()),
    })
    .await;
    serves(fleet.node(1).port(9000), "two").await;

    fleet.node_mut(0).start().await;
    fleet.node_mut(2).start().await;
    for address in fleet.port(9000) {
        serves(address, "two").await;
    }
    fleet.settled().await;
    fleet.apply(&spec::app("web", "9000", &[one.address()], "")).await.exits(0);
}

#[tokio::test]
async fn a_node_that_lost_its_disk_is_not_let_in_under_its_old_name() {
    let mut fleet = TestFleet::start(PROGRAM, 3).await;
    let echo = origin::Echo::start("echo");
    fleet.apply(&spec::app("web", "9000", &[echo.address()], "")).await.exits(0);
    let member = fleet.node(0).cluster_address().to_string();
    let node = fleet.node_mut(2);
    node.kill();
    node.wipe();
    node.start().await;
    // It voted before, and has forgotten for whom.
    let refused = fleet.cli_at(2, ["cluster", "join", &member]).await;
    assert_ne!(refused.code, Some(0), "{refused}");
    refused.says("a node named `n3` is a member already");
    assert!(whoami(fleet.node(2).port(9000)).await.is_err(), "it knows of no app");

    let node = fleet.node_mut(2);
    node.kill();
    node.wipe();
    node.rename("n4");
    node.start().await;
    fleet.join(2, 0).await;
    serves(fleet.node(2).port(9000), "echo").await;
    let status = fleet.cli_at(0, ["cluster", "status", "-o", "json"]).await.json();
    let ids: Vec<_> =
        status["nodes"].as_array().unwrap().iter().map(|node| node["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), 4, "{status}");
    let id =
        status["nodes"].as_array().unwrap().iter().find(|node| node["name"] == "n4").unwrap()["id"].as_u64();
    assert!(ids.iter().all(|other| Some(*other) <= id), "ids are not used again: {status}");
}

#[tokio::test]
async fn a_node_that_returns_with_another_address_is_found_again() {
    let mut fleet = TestFleet::start(PROGRAM, 3).await;
    let echo = origin::Echo::start("echo");
    fleet.apply(&spec::app("web", "9000", &[echo.address()], "")).await.exits(0);
    // A follower first, then the leader of that time.
    for node in [(fleet.leader().await + 1) % 3, fleet.leader().await] {
        fleet.node_mut(node).stop().await;
        let spare = fleet.spare_address(node);
        fleet.node_mut(node).move_to(spare);
        fleet.node_mut(node).start().await;
        serves(fleet.node(node).port(9000), "echo").await;
        let address = fleet.node(node).cluster_address().to_string();
        eventually("the fleet knows the new address", SOON, async || {
            let status = fleet.cli(["cluster", "status", "-o", "json"]).await.json();
            let nodes = status["nodes"].as_array().unwrap();
            let known =
                nodes.iter().any(|node| node["clusterAddress"] == *address && node["state"] == "ready");
            known.then_some(()).ok_or(status.to_string())
        })
        .await;
    }
    fleet.settled().await;
    fleet.apply(&spec::app("other", "9001", &[echo.address()], "")).await.exits(0);
    for address in fleet.port(9001) {
        assert_eq!(whoami(address).await.unwrap(), "echo");
    }
}

#[tokio::test]
async fn a_node_with_the_data_of_another_cluster_is_kept_out() {
    let mut fleet = TestFleet::start(PROGRAM, 3).await;
    let mut other = TestFleet::start(PROGRAM, 1).await;
    let (ours, theirs) = (origin::Echo::start("ours"), origin::Echo::start("theirs"));
    fleet.apply(&spec::app("web", "9000", &[ours.address()], "")).await.exits(0);
    other.apply(&spec::app("web", "9000", &[theirs.address()], "")).await.exits(0);
    other.node_mut(0).stop().await;
    fleet.node_mut(2).stop().await;

    fleet.node_mut(2).wipe();
    copy(&other.node(0).data_dir(), &fleet.node(2).data_dir());
    fleet.node_mut(2).rename("n1");
    fleet.node_mut(2).start().await;
    eventually("the stranger is no member that can be reached", SOON, async || {
        let status = fleet.cli_at(0, ["cluster", "status", "-o", "json"]).await.json();
        let state = &status["nodes"][2]["state"];
        if state == "unreachable" { Ok(()) } else { Err(state.to_string()) }
    })
    .await;
    // Each cluster keeps its own mind.
    fleet
        .cli_at(
            0,
            ["app", "apply", "-f", &fleet.file("b.toml", &spec::app("b", "9001", &[ours.address()], ""))],
        )
        .await
        .exits(0);
    let ids = [fleet.node(0).status().await.unwrap().id, fleet.node(2).status().await.unwrap().id];
    assert_ne!(ids[0], ids[1]);
    let list = fleet.cli_at(2, ["app", "list", "-o", "json"]).await.exits(0).json();
    assert_eq!(list["items"].as_array().unwrap().len(), 1, "{list}");
    assert_eq!(whoami(fleet.node(0).port(9000)).await.unwrap(), "ours");
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[tokio::test]
async fn a_leader_that_stands_still_is_replaced_and_follows_when_it_wakes() {
    let fleet = TestFleet::start(PROGRAM, 3).await;
    let (old, new) = (origin::Echo::start("old"), origin::Echo::start("new"));
    fleet.apply(&spec::app("web", "9000", &[old.address()], "")).await.exits(0);
    let paused = fleet.leader().await;
    fleet.node(paused).pause();
    let others: Vec<_> = (0..3).filter(|&node| node != paused).collect();
    let file = fleet.file("new.toml", &spec::app("web", "9000", &[new.address()], ""));
    let addresses = others
        .iter()
        .map(|&node| fleet.node(node).cluster_address().to_string())
        .collect::<Vec<_>>()
        .join(",");
    fleet.cli(["--addr", &addresses, "app", "apply", "-f", &file]).await.exits(0);
    for &node in &others {
        assert_eq!(whoami(fleet.node(node).port(9000)).await.unwrap(), "new");
    }
    fleet.node(paused).resume();
    serves(fleet.node(paused).port(9000), "new").await;
    fleet.settled().await;
}

#[tokio::test]
async fn a_node_that_was_away_for_many_changes_serves_the_last_one() {
    let mut fleet = TestFleet::start(PROGRAM, 3).await;
    let origins: Vec<_> = (0..2).map(|number| origin::Echo::start(&format!("o{number}"))).collect();
    let change = |round: usize| {
        spec::app("web", "9000", &[origins[round % 2].address()], &format!("description = \"{round}\""))
    };
    fleet.apply(&change(0)).await.exits(0);
    let away = (fleet.leader().await + 1) % 3;
    fleet.node_mut(away).kill();
    for round in 1..=5 {
        fleet.apply(&change(round)).await.exits(0);
    }
    fleet.node_mut(away).start().await;
    serves(fleet.node(away).port(9000), "o1").await;
    let described = fleet.cli(["app", "describe", "web", "-o", "json"]).await.exits(0).json();
    assert_eq!(described["app"]["version"], 6);
}
