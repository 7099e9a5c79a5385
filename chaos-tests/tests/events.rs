//! What the fleet remembers of what happened, whoever leads.

#![allow(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::process::Stdio;

use flotilla_chaos_tests::{
    origin::Echo,
    poll::eventually,
    process::{SOON, TestFleet},
    spec,
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_flotilla-under-test");

/// `flotilla events -f`, asked of some nodes.
struct Followed {
    _process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Followed {
    fn start(fleet: &TestFleet, nodes: &[usize]) -> Self {
        let addresses: Vec<_> =
            nodes.iter().map(|&node| fleet.node(node).cluster_address().to_string()).collect();
        let mut process = Command::new(PROGRAM)
            .args(["events", "-f", "-o", "json"])
            .env("FLOTILLA_ADDR", addresses.join(","))
            .env("FLOTILLA_UNDER_TEST", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { _process: process, lines }
    }

    /// The first event from here on that `is` true of.
    async fn until(&mut self, what: &str, is: impl Fn(&str) -> bool) -> Value {
        let mut seen = Vec::new();
        loop {
            let Ok(line) = timeout(SOON * 2, self.lines.next_line()).await else {
                panic!("it was never told that {what}: {seen:#?}");
            };
            let event: Value = serde_json::from_str(&line.unwrap().expect("it is followed")).unwrap();
            if is(event["message"].as_str().unwrap()) {
                return event;
            }
            seen.push(event["message"].clone());
        }
    }
}

/// What a command that lists events does, asked of one node.
async fn told(fleet: &TestFleet, node: usize, command: &[&str]) -> Result<Vec<String>, String> {
    let output = fleet.cli_at(node, command.iter().copied().chain(["-o", "json"])).await;
    if output.code != Some(0) {
        return Err(output.to_string());
    }
    let document = output.json();
    let items = document["items"].as_array().unwrap();
    Ok(items.iter().map(|event| event["message"].as_str().unwrap().to_owned()).collect())
}

/// Waits until a node tells something that begins like this.
async fn is_told(fleet: &TestFleet, node: usize, beginning: &str) {
    eventually(&format!("`{beginning}…` is told"), SOON, async || {
        let messages = told(fleet, node, &["events"]).await?;
        match messages.iter().any(|message| message.starts_with(beginning)) {
            true => Ok(()),
            false => Err(format!("{messages:#?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn what_happened_is_told_by_every_node_and_goes_on_after_the_death_of_the_leader() {
    let mut fleet = TestFleet::start(PROGRAM, 3).await;
    let (old, new) = (Echo::start("old"), Echo::start("new"));
    fleet.apply(&spec::app("web", "9000", &[old.address()], "")).await.exits(0);
    let leader = fleet.leader().await;
    let others: Vec<usize> = (0..3).filter(|&node| node != leader).collect();
    let mut followed = Followed::start(&fleet, &[leader, others[0]]);
    let serves = followed.until("it serves", |message| message.ends_with(" serves")).await;
    assert_eq!((serves["kind"].as_str(), serves["app"].as_str()), (Some("Event"), Some("web")));

    fleet.node_mut(leader).kill();
    let same = format!("node {} leads", fleet.node(leader).name());
    let leads = |message: &str| message.contains(" leads (term ") && !message.starts_with(&same);
    followed.until("another node leads", leads).await;

    fleet.apply(&spec::app("web", "9000", &[new.address()], "")).await.exits(0);
    let wave = |message: &str| message.contains(" takes 100 % on ");
    followed.until("the new generation takes traffic", wave).await;
    followed.until("it serves", |message| message.ends_with(" serves")).await;

    let name = fleet.node(leader).name().to_owned();
    is_told(&fleet, others[0], &format!("node {name} is down: ")).await;
    fleet.node_mut(leader).start().await;
    is_told(&fleet, others[0], &format!("node {name} is up again after ")).await;
    for node in 0..3 {
        eventually(&format!("node {node} tells both rollouts"), SOON, async || {
            let told = told(&fleet, node, &["rollout", "events", "web"]).await?;
            let has = |what: &str| told.iter().any(|message| message.contains(what));
            let all = ["version 1 accepted", "version 2 accepted", " takes 100 % on "].into_iter().all(has);
            // What the gate saw; nobody came.
            let all = all && has("no request came");
            if all && told.iter().filter(|message| message.ends_with(" serves")).count() == 2 {
                Ok(())
            } else {
                Err(format!("{told:#?}"))
            }
        })
        .await;
    }
    fleet.cli(["rollout", "events", "wbe"]).await.exits(6).says("did you mean `web`?");
}
