//! Data directories that are not what their node left: never served from in silence.

#![allow(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use flotilla_chaos_tests::{
    client::whoami,
    origin,
    poll::eventually,
    process::{NodeSettings, SOON, TestFleet},
    spec,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_flotilla-under-test");

fn truncate(file: &Path) {
    let length = fs::metadata(file).unwrap().len();
    fs::OpenOptions::new().write(true).open(file).unwrap().set_len(length / 2).unwrap();
}

fn snapshots(data_dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(data_dir.join("snapshots")) else { return Vec::new() };
    let mut found: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "snap"));
    found.sort();
    found
}

#[tokio::test]
async fn a_log_that_came_back_shorter_is_lost_and_its_node_does_not_start() {
    let mut fleet = TestFleet::start(PROGRAM, 3).await;
    let echo = origin::Echo::start("echo");
    fleet.apply(&spec::app("web", "9000", &[echo.address()], "")).await.exits(0);
    let node = fleet.node_mut(2);
    node.kill();
    truncate(&node.data_dir().join("log/db"));
    let status = node.start_and_fail().await;
    assert_eq!(status.code(), Some(1), "{}", node.log());
    assert!(node.log().contains("the store is lost"), "{}", node.log());
    // It says what to do, and that works.
    node.wipe();
    node.rename("n4");
    node.start().await;
    fleet.join(2, 0).await;
    eventually("the new node serves", SOON, async || whoami(fleet.node(2).port(9000)).await.map(drop)).await;
}

#[tokio::test]
async fn a_data_directory_belongs_to_one_process() {
    let mut fleet = TestFleet::start(PROGRAM, 1).await;
    let data_dir = Some(fleet.node(0).data_dir());
    let second = fleet.prepare(NodeSettings { data_dir, ..NodeSettings::default() });
    let pid = fleet.node(0).pid();
    let node = fleet.node_mut(second);
    let status = node.start_and_fail().await;
    assert_eq!(status.code(), Some(1), "{}", node.log());
    assert!(node.log().contains(&format!("in use by process {pid}")), "{}", node.log());
    fleet.cli_at(0, ["cluster", "status"]).await.exits(0);
}

#[tokio::test]
async fn a_truncated_snapshot_is_noticed_and_nothing_is_forgotten() {
    let mut fleet = TestFleet::start(PROGRAM, 3).await;
    let echo = origin::Echo::start("echo");
    // A snapshot is taken after 32 MiB of log. The description makes each change nearly as large as may be.
    let padding = "x".repeat(900_000);
    let change = |round: usize| {
        spec::app("web", "9000", &[echo.address()], &format!("description = \"{round} {padding}\""))
    };
    for round in 0..40 {
        let file = fleet.file("web.toml", &change(round));
        fleet.cli(["app", "apply", "-f", &file, "--no-wait"]).await.exits(0);
    }
    for node in fleet.nodes() {
        let data_dir = node.data_dir();
        eventually("a snapshot is taken", SOON, async || snapshots(&data_dir).pop().ok_or("there is none"))
            .await;
    }
    let before = described(&fleet, 0).await;

    let data_dir = fleet.node(2).data_dir();
    fleet.node_mut(2).kill();
    truncate(&snapshots(&data_dir).pop().unwrap());
    fleet.node_mut(2).start().await;
    eventually("it is noticed", SOON, async || {
        fleet.node(2).log().contains("snapshot damaged").then_some(()).ok_or("nothing is said")
    })
    .await;
    fleet.settled().await;
    assert_eq!(described(&fleet, 2).await, before);
}

/// Version and digest of the app, as one node knows them.
async fn described(fleet: &TestFleet, node: usize) -> (serde_json::Value, serde_json::Value) {
    let described = fleet.cli_at(node, ["app", "describe", "web", "-o", "json"]).await.exits(0).json();
    (described["app"]["version"].clone(), described["digest"].clone())
}
