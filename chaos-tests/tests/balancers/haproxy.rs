//! HAProxy over its runtime API.

use std::{net::SocketAddr, process::Command};

use flotilla_chaos_tests::{
    load::Load,
    origin, peers,
    poll::eventually,
    process::{NodeSettings, SOON, TestFleet},
    spec,
};
use nix::sys::signal::Signal;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{PROGRAM, Process, fleet_with_web, forwards, seen, status};

pub(crate) struct Haproxy {
    _process: Process,
    front: SocketAddr,
    runtime: SocketAddr,
}

/// `slots`: of the backend's `server-template`.
fn config(fleet: &TestFleet, slots: usize) -> (String, SocketAddr, SocketAddr) {
    let address = fleet.spare_address(9);
    let (front, runtime) = (SocketAddr::from((address, 8080)), SocketAddr::from((address, 9999)));
    let template = match slots {
        0 => String::new(),
        slots => format!("server-template flotilla {slots} 127.0.0.1:1 check inter 200ms disabled"),
    };
    let socket = fleet.directory().join("haproxy.sock");
    let config = format!(
        r"
global
    stats socket ipv4@{runtime} level admin
    stats socket {} mode 600 level admin
defaults
    mode tcp
    timeout connect 2s
    timeout client 1m
    timeout server 1m
    retries 2
    option redispatch 1
frontend web
    bind {front}
    default_backend web
backend web
    balance roundrobin
    {template}
",
        socket.display()
    );
    (config, front, runtime)
}

pub(crate) fn start(fleet: &TestFleet, slots: usize) -> Option<Haproxy> {
    let haproxy = peers::program("haproxy")?;
    let (config, front, runtime) = config(fleet, slots);
    let file = fleet.file("haproxy.cfg", &config);
    // With a master, so that it can be reloaded.
    let process = Process::start(Command::new(haproxy).args(["-W", "-db", "-f", &file]), fleet.directory());
    Some(Haproxy { _process: process, front, runtime })
}

impl Haproxy {
    async fn ask(&self, command: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.runtime).await?;
        stream.write_all(format!("{command}\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    async fn pid(&self) -> std::io::Result<String> {
        let info = self.ask("show info").await?;
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid: ").map(str::to_owned));
        pid.ok_or_else(|| std::io::Error::other(info))
    }
}

pub(crate) async fn add(fleet: &TestFleet, haproxy: &Haproxy) {
    let address = haproxy.runtime.to_string();
    let options = "check inter 200ms";
    let add = ["balancer", "add", "haproxy", "edge", "--address", &address, "--options", options];
    fleet.cli(add).await.exits(0).says("balancer edge is told where apps serve");
}

const ALL: [&str; 3] = ["n1 ready", "n2 ready", "n3 ready"];

#[tokio::test]
async fn haproxy_follows_the_nodes_in_slots_and_with_servers_of_its_own() {
    if peers::program("haproxy").is_none() {
        return;
    }
    let (mut fleet, _echo) = fleet_with_web().await;
    // Two slots for three nodes: the third is added at run time.
    let haproxy = start(&fleet, 2).unwrap();
    add(&fleet, &haproxy).await;
    seen(&fleet, "edge", "in sync", &ALL).await;
    let state = haproxy.ask("show servers state web").await.unwrap();
    assert!(state.contains(" flotilla1 ") && state.contains(" flotilla2 "), "{state}");
    assert!(state.contains(" flotilla-n"), "{state}");
    forwards(haproxy.front).await;
    Load::tcp([haproxy.front]).operations(300).run().await.assert_clean();

    // A session holds the node while it stops: HAProxy sends nothing new, and keeps the session.
    let mut held = TcpStream::connect(fleet.node(1).port(8080)).await.unwrap();
    held.write_all(b"whoami\n").await.unwrap();
    fleet.node(1).signal(Signal::SIGTERM);
    seen(&fleet, "edge", "in sync", &["n1 ready", "n2 drain", "n3 ready"]).await;
    drop(held);
    fleet.node_mut(1).ended().await;
    seen(&fleet, "edge", "in sync", &["n1 ready", "n2 maint", "n3 ready"]).await;
    Load::tcp([haproxy.front]).operations(300).run().await.assert_clean();

    fleet.node_mut(1).start().await;
    seen(&fleet, "edge", "in sync", &ALL).await;
    fleet.cli(["app", "delete", "web", "--yes", "--no-wait"]).await.exits(0);
    // A server that was added at run time and carries nothing may be gone before it is seen draining.
    eventually("HAProxy sends nothing to the nodes", SOON, async || {
        let status = status(&fleet, "edge").await;
        let servers = status["servers"].as_array().cloned().unwrap_or_default();
        let quiet = |server: &serde_json::Value| server["seen"] == "drain" || server["seen"] == "absent";
        match status["state"] == "in sync" && servers.iter().all(quiet) {
            true => Ok(()),
            false => Err(format!("{status:#}")),
        }
    })
    .await;
    fleet.cli(["balancer", "remove", "edge"]).await.exits(0);
    assert!(status(&fleet, "edge").await.is_null());
}

/// This one neither checks its servers nor tries another one: it knows only what it is told, and late.
#[tokio::test]
async fn a_node_that_stops_takes_what_comes_until_haproxy_was_seen_to_send_nothing() {
    let Some(haproxy) = peers::program("haproxy") else { return };
    let mut fleet = TestFleet::empty(PROGRAM);
    for number in 1..=3 {
        let (zone, drain) = (format!("z{number}"), "40s".to_owned());
        fleet.add(NodeSettings { zone, drain, ..NodeSettings::default() }).await;
    }
    fleet.init(0).await;
    fleet.join(1, 0).await;
    fleet.join(2, 0).await;
    fleet.settled().await;
    let echo = origin::Echo::start("echo");
    fleet.apply(&spec::app("web", "8080", &[echo.address()], "")).await.exits(0);
    let (config, front, runtime) = config(&fleet, 0);
    let file = fleet.file("haproxy.cfg", &config.replace("retries 2\n    option redispatch 1", "retries 0"));
    let _process = Process::start(Command::new(haproxy).args(["-db", "-f", &file]), fleet.directory());
    let runtime = runtime.to_string();
    let add = ["balancer", "add", "haproxy", "edge", "--address", &runtime, "--options", "maxconn 10000"];
    fleet.cli(add.into_iter().chain(["--min-interval", "2s"])).await.exits(0);
    seen(&fleet, "edge", "in sync", &ALL).await;
    forwards(front).await;

    let load = Load::tcp([front]).per_second(200).start();
    // The leader, too, knows when it may go.
    for node in [(fleet.leader().await + 1) % 3, fleet.leader().await] {
        fleet.node_mut(node).stop().await;
        assert!(fleet.node(node).log().contains("no balancer sends anything new"), "node {node}");
        fleet.node_mut(node).start().await;
        fleet.settled().await;
        seen(&fleet, "edge", "in sync", &ALL).await;
    }
    load.stop().await.assert_clean();
}

#[tokio::test]
async fn a_haproxy_that_forgets_at_a_reload_is_told_again() {
    if peers::program("haproxy").is_none() {
        return;
    }
    let (fleet, _echo) = fleet_with_web().await;
    let haproxy = start(&fleet, 2).unwrap();
    add(&fleet, &haproxy).await;
    seen(&fleet, "edge", "in sync", &ALL).await;
    let before = haproxy.pid().await.unwrap();
    haproxy._process.signal(Signal::SIGUSR2);
    eventually("a new worker answers", SOON, async || match haproxy.pid().await {
        Ok(pid) if pid != before => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    // The status may still be that of the worker before; the new one is asked itself.
    eventually("the new worker has the nodes", SOON, async || {
        let state = haproxy.ask("show servers state web").await.map_err(|err| err.to_string())?;
        let serving = fleet.nodes().iter().filter(|node| {
            // In operation, and with its weight.
            let address = format!(" {} 2 ", node.cluster_address().ip());
            state.lines().any(|line| line.contains(&address) && line.contains(" 100 "))
        });
        if serving.count() == 3 { Ok(()) } else { Err(state) }
    })
    .await;
    seen(&fleet, "edge", "in sync", &ALL).await;
    Load::tcp([haproxy.front]).operations(300).run().await.assert_clean();
}

#[tokio::test]
async fn what_keeps_haproxy_from_being_told_is_said() {
    if peers::program("haproxy").is_none() {
        return;
    }
    let (fleet, _echo) = fleet_with_web().await;
    let (_, _, runtime) = config(&fleet, 0);
    let address = runtime.to_string();
    let add = ["balancer", "add", "haproxy", "edge", "--address", &address];
    fleet.cli(add).await.exits(0);
    // Nobody listens.
    let status = seen(&fleet, "edge", "failing", &[]).await;
    assert!(status["problems"][0].as_str().unwrap().contains("refused"), "{status}");
    // Its name is taken, and a path says nothing about the machine.
    let again = ["balancer", "add", "haproxy", "edge", "--address", "127.0.0.1:1"];
    fleet.cli(again).await.exits(1).says("E0321");
    let socket = ["balancer", "add", "haproxy", "other", "--address", "/run/haproxy.sock"];
    fleet.cli(socket).await.exits(2).says("a unix socket is on one machine");

    let haproxy = start(&fleet, 0).unwrap();
    seen(&fleet, "edge", "in sync", &ALL).await;
    let wrong = [add.as_slice(), &["--replace", "--backend", "be_{app}"]].concat();
    fleet.cli(wrong).await.exits(0);
    let status = seen(&fleet, "edge", "drifting", &["n1 absent", "n2 absent", "n3 absent"]).await;
    assert!(status["problems"].to_string().contains("No such backend"), "{status}");
    forwards(haproxy.front).await;
}

#[tokio::test]
async fn a_node_reaches_haproxys_socket_for_the_leader() {
    if peers::program("haproxy").is_none() {
        return;
    }
    let (fleet, _echo) = fleet_with_web().await;
    let haproxy = start(&fleet, 3).unwrap();
    let socket = fleet.directory().join("haproxy.sock");
    let socket = socket.to_str().unwrap();
    let follower = (fleet.leader().await + 1) % 3;
    let node = fleet.node(follower).name().to_owned();
    fleet.cli(["balancer", "add", "haproxy", "edge", "--address", socket, "--node", &node]).await.exits(0);
    seen(&fleet, "edge", "in sync", &ALL).await;
    forwards(haproxy.front).await;
}

#[tokio::test]
async fn a_new_leader_takes_the_balancer_over_and_the_old_one_leaves_it_alone() {
    if peers::program("haproxy").is_none() {
        return;
    }
    let (mut fleet, echo) = fleet_with_web().await;
    let haproxy = start(&fleet, 3).unwrap();
    add(&fleet, &haproxy).await;
    seen(&fleet, "edge", "in sync", &ALL).await;

    // The leader stands still with all it knows, and the next one changes what HAProxy has.
    let old = fleet.leader().await;
    fleet.node(old).pause();
    let others: Vec<usize> = (0..3).filter(|node| *node != old).collect();
    eventually("another node leads", SOON, async || {
        let status = fleet.node(others[0]).status().await.map_err(|err| err.message().to_owned())?;
        match status.leader_name != fleet.node(old).name() && !status.leader_name.is_empty() {
            true => Ok(()),
            false => Err(status.leader_name),
        }
    })
    .await;
    let old_slot = |state: &str| {
        let address = format!(" {} ", fleet.node(old).cluster_address().ip());
        state.lines().find(|line| line.contains(&address)).map(str::to_owned)
    };
    // Bit 0: in maintenance because somebody said so.
    let is_out = |state: &str| {
        let line = old_slot(state).unwrap_or_default();
        line.split(' ').nth(6).and_then(|admin| admin.parse::<u32>().ok()).is_some_and(|admin| admin & 1 == 1)
    };
    eventually("the new leader has taken the silent node out", SOON, async || {
        let state = haproxy.ask("show servers state web").await.map_err(|err| err.to_string())?;
        if is_out(&state) { Ok(()) } else { Err(state) }
    })
    .await;
    // Back, it believes for a moment that it leads. It may only come in again when the new leader says so.
    let spec = spec::app("web", "8080", &[echo.address()], "[app.labels]\nround = \"2\"");
    fleet.node(old).resume();
    fleet.settled().await;
    fleet.apply(&spec).await.exits(0);
    seen(&fleet, "edge", "in sync", &ALL).await;
    assert_ne!(fleet.leader().await, old, "the old leader was elected again: the test shows nothing");

    // And when the leader dies for good.
    let leader = fleet.leader().await;
    fleet.node_mut(leader).kill();
    let expected: Vec<String> = (0..3)
        .map(|node| format!("n{} {}", node + 1, if node == leader { "maint" } else { "ready" }))
        .collect();
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    seen(&fleet, "edge", "in sync", &expected).await;
    Load::tcp([haproxy.front]).operations(300).run().await.assert_clean();
}
