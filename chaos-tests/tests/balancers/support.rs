//! What all balancers need: a process that ends with the test, a fleet with an app, and questions.

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use flotilla_chaos_tests::{
    client::whoami,
    origin,
    poll::eventually,
    process::{SOON, TestFleet},
    spec,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_flotilla-under-test");

/// A balancer's process, whose words go to a file.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub(crate) fn start(command: &mut Command, directory: &Path) -> Self {
        let log = directory.join("balancer.log");
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let spawned = command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).spawn();
        Self { child: spawned.unwrap(), log }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Asked, it ends its workers too.
        let _gone = kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGTERM);
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("---- the balancer said\n{}", std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// Three nodes that serve `web` on port 8080.
pub(crate) async fn fleet_with_web() -> (TestFleet, origin::Echo) {
    let fleet = TestFleet::start(PROGRAM, 3).await;
    let echo = origin::Echo::start("echo");
    fleet.apply(&spec::app("web", "8080", &[echo.address()], "")).await.exits(0);
    (fleet, echo)
}

/// What `balancer list` says of one.
pub(crate) async fn status(fleet: &TestFleet, balancer: &str) -> Value {
    let listed = fleet.cli(["balancer", "list", "-o", "json"]).await.exits(0).json();
    let found = listed["items"].as_array().unwrap().iter().find(|item| item["name"] == balancer).cloned();
    found.unwrap_or(Value::Null)
}

/// Waits until `balancer list` shows these servers: `n1 ready`, in the order of the nodes.
pub(crate) async fn seen(fleet: &TestFleet, balancer: &str, state: &str, servers: &[&str]) -> Value {
    eventually(&format!("{balancer} is {state} with {servers:?}"), SOON, async || {
        let status = status(fleet, balancer).await;
        let has: Vec<String> = status["servers"].as_array().into_iter().flatten().map(server).collect();
        match status["state"] == state && has == servers {
            true => Ok(status),
            false => Err(format!("{status:#}")),
        }
    })
    .await
}

fn server(server: &Value) -> String {
    format!("{} {}", server["node"].as_str().unwrap(), server["seen"].as_str().unwrap())
}

/// Waits until a client gets through.
pub(crate) async fn forwards(front: SocketAddr) {
    eventually("the balancer forwards", SOON, async || whoami(front).await.map(drop)).await;
}
