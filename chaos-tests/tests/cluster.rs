//! How nodes become a cluster, and who votes in it.

#![allow(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::{collections::BTreeMap, time::Duration};

use flotilla_chaos_tests::{
    poll::eventually,
    process::{NodeSettings, SOON, TestFleet},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_flotilla-under-test");

fn zone(number: usize) -> NodeSettings {
    NodeSettings { zone: format!("z{number}"), ..NodeSettings::default() }
}

/// Of each node, as the cluster's status says.
async fn roles(fleet: &TestFleet) -> BTreeMap<String, String> {
    let status = fleet.cli(["cluster", "status", "-o", "json"]).await.exits(0).json();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    status["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| (text(&node["name"]), text(&node["role"])))
        .collect()
}

fn count(roles: &BTreeMap<String, String>, role: &str) -> usize {
    roles.values().filter(|&has| has == role).count()
}

#[tokio::test]
async fn three_nodes_form_a_cluster_that_may_lose_one() {
    let fleet = TestFleet::start(PROGRAM, 3).await;
    let status = fleet.cli(["cluster", "status", "-o", "json"]).await.exits(0).json();
    assert_eq!(status["health"], "healthy");
    assert_eq!(status["name"], "test");
    assert_eq!(
        (&status["voters"], &status["votersLive"], &status["tolerates"]),
        (&3.into(), &3.into(), &1.into())
    );
    let roles = roles(&fleet).await;
    assert_eq!((count(&roles, "leader"), count(&roles, "follower")), (1, 2), "{roles:?}");
    fleet.cli(["node", "list"]).await.exits(0).says("n1").says("n2").says("n3");
}

#[tokio::test]
async fn learners_are_promoted_in_pairs_until_five_nodes_vote_in_all_zones() {
    let mut fleet = TestFleet::start(PROGRAM, 3).await;
    let mut grow = async |number: usize, voters: usize| {
        let node = fleet.add(zone(number % 3 + 1)).await;
        fleet.join(node, number % 3).await;
        eventually(&format!("{voters} of {} nodes vote", number + 1), SOON, async || {
            let roles = roles(&fleet).await;
            let learners = count(&roles, "learner");
            (roles.len() == number + 1 && learners == roles.len() - voters)
                .then_some(())
                .ok_or(format!("{roles:?}"))
        })
        .await;
    };
    // An even number of voters would tolerate no more failures than the odd one below.
    grow(3, 3).await;
    grow(4, 5).await;
    grow(5, 5).await;
    grow(6, 5).await;
    let status = fleet.cli(["cluster", "status", "-o", "json"]).await.exits(0).json();
    assert_eq!((&status["voters"], &status["tolerates"]), (&5.into(), &2.into()));
    let voting = status["nodes"].as_array().unwrap().iter().filter(|node| node["role"] != "learner");
    let zones: std::collections::BTreeSet<_> = voting.map(|node| node["zone"].as_str().unwrap()).collect();
    assert_eq!(zones.len(), 3);
}

#[tokio::test]
async fn nodes_that_are_told_whom_to_join_need_no_command() {
    let mut fleet = TestFleet::empty(PROGRAM);
    let first = fleet.add(zone(1)).await;
    let seed = fleet.node(first).cluster_address();
    for number in 2..=3 {
        fleet.add(NodeSettings { join: vec![seed], ..zone(number) }).await;
    }
    // They wait for a cluster to be there, and do not make one of their own.
    fleet.init(first).await;
    fleet.settled().await;
}

#[tokio::test]
async fn a_cluster_is_made_once() {
    let mut fleet = TestFleet::start(PROGRAM, 1).await;
    fleet.cli_at(0, ["cluster", "init"]).await.exits(1).says("E0501");
    let stranger = fleet.add(zone(1)).await;
    fleet.init(stranger).await;
    let member = fleet.node(0).cluster_address().to_string();
    fleet.cli_at(stranger, ["cluster", "join", &member]).await.exits(1).says("E0501");
    // Nor does a node make one that was told which to join.
    let seeds = vec![fleet.node(0).cluster_address()];
    let third = fleet.add(NodeSettings { join: seeds, ..zone(1) }).await;
    eventually("the third node joins by itself", SOON, async || {
        let status = fleet.node(third).status().await.map_err(|err| err.message().to_owned())?;
        (status.nodes.len() == 2).then_some(()).ok_or(format!("{} nodes", status.nodes.len()))
    })
    .await;
    fleet.cli_at(third, ["cluster", "init"]).await.exits(1).says("E0501");
}

#[tokio::test]
async fn a_node_without_a_cluster_says_so() {
    let mut fleet = TestFleet::empty(PROGRAM);
    fleet.add(zone(1)).await;
    fleet.cli(["app", "list"]).await.exits(1).says("E0502").says("flotilla cluster init");
    let (status, body) =
        flotilla_chaos_tests::client::get(fleet.node(0).admin_address(), "/readyz").await.unwrap();
    assert_eq!(status, 503, "{body}");
    let (status, _) =
        flotilla_chaos_tests::client::get(fleet.node(0).admin_address(), "/livez").await.unwrap();
    assert_eq!(status, 200);
}

#[tokio::test]
async fn the_death_of_the_leader_is_followed_by_an_election() {
    let mut fleet = TestFleet::start(PROGRAM, 3).await;
    let old = fleet.leader().await;
    fleet.node_mut(old).kill();
    let new = eventually("another node leads", Duration::from_secs(10), async || {
        let new = fleet.leader().await;
        (new != old).then_some(new).ok_or("the dead one is still believed to lead")
    })
    .await;
    fleet.node_mut(old).start().await;
    fleet.settled().await;
    assert_eq!(fleet.leader().await, new, "the old leader follows when it returns");
}
