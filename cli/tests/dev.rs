//! `flotilla dev` for real: nodes as processes, traffic through them, a leader that is killed.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test that cannot go on panics; clocks are real"
)]
#![cfg(target_os = "linux")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

/// A debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Dev {
    process: Child,
    temporary: TempDir,
    api: String,
    banner: Value,
}

impl Dev {
    fn start(args: &[&str]) -> Self {
        Self::start_at(free_port(12), args)
    }

    fn start_at(api_port: u16, args: &[&str]) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let port = free_port(1);
        let mut process = flotilla(&["dev", "-o", "json"])
            .args(["--api-port", &api_port.to_string(), "--port", &port.to_string()])
            .args(args)
            .env("TMPDIR", temporary.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The document ends with the line that closes its outermost brace.
        let mut text = String::new();
        let mut stdout = process.stdout.take().unwrap();
        let mut byte = [0];
        while !text.ends_with("\n}\n") && stdout.read(&mut byte).unwrap() > 0 {
            text.push(char::from(byte[0]));
        }
        let banner = serde_json::from_str(&text).unwrap_or_else(|_| panic!("no banner: {text}"));
        Self { process, temporary, api: format!("127.0.0.1:{api_port}"), banner }
    }

    fn pids(&self) -> Vec<i32> {
        let nodes = self.banner["nodes"].as_array().unwrap();
        nodes.iter().map(|node| i32::try_from(node["pid"].as_i64().unwrap()).unwrap()).collect()
    }

    fn leader_pid(&self) -> i32 {
        let nodes = self.banner["nodes"].as_array().unwrap();
        let leader = nodes.iter().position(|node| node["name"] == self.banner["leader"]).unwrap();
        self.pids()[leader]
    }

    /// Where the demo app answers.
    fn addresses(&self) -> Vec<SocketAddr> {
        serde_json::from_value(self.banner["demo"]["addresses"].clone()).unwrap()
    }

    fn ask(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = flotilla(args).env("FLOTILLA_ADDR", &self.api).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.process.id()).unwrap()), signal).unwrap();
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Its nodes die with it.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn flotilla(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flotilla"));
    command.args(args).env_remove("FLOTILLA_ADDR").stdin(Stdio::null());
    command
}

/// The first of `count` ports in a row that are free on three addresses, below the range from which
/// the kernel gives ports to connections.
fn free_port(count: u16) -> u16 {
    let free =
        |port| (1..=3).all(|last| TcpListener::bind(SocketAddr::from(([127, 0, 0, last], port))).is_ok());
    let from = 10_000 + rand::random_range(0..20_000);
    (from..32_000).step_by(7).find(|first| (0..count).all(|offset| free(first + offset))).unwrap()
}

/// The target that answers.
fn get(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: demo\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer.strip_prefix("HTTP/1.1 200")?.split_once("hello from ")?.1.trim().to_owned())
}

fn is_alive(pid: i32) -> bool {
    // A zombie answers to signal 0 too; its parent may be gone before init has reaped it.
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    status.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[track_caller]
fn assert_eventually(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_fleet_comes_up_serves_changes_and_leaves_nothing_behind() {
    let mut dev = Dev::start(&[]);
    let addresses = dev.addresses();
    assert_eq!(addresses.len(), 3);
    for address in &addresses {
        assert!(get(*address).unwrap().starts_with("target-"), "{address}");
    }
    let (code, status) = dev.ask(&["cluster", "status"]);
    assert_eq!(code, Some(0), "{status}");
    assert!(status.contains("3/3 voters"), "{status}");

    // What the banner says to try.
    let next = dev.banner["demo"]["next"].as_str().unwrap();
    let (code, verdict) = dev.ask(&["app", "apply", "-f", next]);
    assert_eq!(code, Some(0), "{verdict}");
    assert!(verdict.starts_with("✓ hello is at version 2 on 3 nodes"), "{verdict}");
    for address in addresses.iter().flat_map(|address| [address; 6]) {
        assert_ne!(get(*address).unwrap(), "target-1");
    }

    let pids = dev.pids();
    dev.signal(Signal::SIGINT);
    assert_eq!(dev.process.wait().unwrap().code(), Some(0));
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    assert_eq!(entries(dev.temporary.path()), [] as [PathBuf; 0]);
}

#[test]
fn a_leader_that_is_killed_comes_back_and_the_others_serve_meanwhile() {
    let dev = Dev::start(&[]);
    let (killed, pids) = (dev.leader_pid(), dev.pids());
    kill(Pid::from_raw(killed), Signal::SIGKILL).unwrap();
    for (address, _) in dev.addresses().iter().zip(&pids).filter(|(_, pid)| **pid != killed) {
        assert!(get(*address).is_some(), "{address}");
    }
    let others_lead = || {
        let addresses = ["127.0.0.2", "127.0.0.3"].map(|ip| dev.api.replace("127.0.0.1", ip)).join(",");
        let (code, status) = dev.ask(&["cluster", "status", "--addr", &addresses]);
        code == Some(0) && !status.contains("(term 1)")
    };
    assert_eventually("another node leads", others_lead);
    assert_eventually("every node serves again", || {
        dev.addresses().iter().all(|address| get(*address).is_some())
    });
    assert_eventually("every voter is heard again", || {
        dev.ask(&["cluster", "status"]).1.contains("3/3 voters")
    });
}

#[test]
fn an_app_of_the_users_own_takes_the_place_of_the_demo_and_may_fail_without_the_fleet() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("own.toml");
    let own = "[[app]]\nname = \"own\"\nlisten = [0]\ntargets = [\"127.0.0.1:1\"]\n";
    fs::write(&file, format!("{own}[app.rollout]\nhealthy_deadline = \"1s\"\n")).unwrap();
    let dev = Dev::start(&["--nodes", "1", "--app", file.to_str().unwrap()]);
    assert_eq!(dev.banner["demo"], Value::Null);
    assert_eventually("it failed", || dev.ask(&["app", "list", "--no-headers"]).1.contains("failed"));
    assert_eq!(dev.ask(&["cluster", "status"]).0, Some(0));

    fs::write(&file, "[[app]]").unwrap();
    let refused = flotilla(&["dev", "--app", file.to_str().unwrap()]).output().unwrap();
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(2), 0));
}

#[test]
fn nodes_that_share_an_address_have_ports_of_their_own() {
    let dev = Dev::start(&["--one-address", "--nodes", "2"]);
    let addresses = dev.addresses();
    assert_eq!(addresses.len(), 2);
    for address in &addresses {
        assert!(address.ip().is_loopback() && get(*address).unwrap().starts_with("target-"), "{address}");
    }
    assert_ne!(addresses[0].port(), addresses[1].port());
}

#[test]
fn no_node_outlives_a_parent_that_is_killed() {
    let mut dev = Dev::start(&["--no-demo", "--nodes", "2"]);
    let pids = dev.pids();
    dev.process.kill().unwrap();
    dev.process.wait().unwrap();
    assert_eventually("the nodes are gone", || pids.iter().all(|pid| !is_alive(*pid)));
}

#[test]
fn a_fleet_that_is_kept_goes_on_where_it_was() {
    let kept = tempfile::tempdir().unwrap();
    let dir = kept.path().to_str().unwrap();
    let cluster = |dev: &Dev| -> Value {
        serde_json::from_str::<Value>(&dev.ask(&["cluster", "status", "-o", "json"]).1).unwrap()["id"].clone()
    };
    let api_port = free_port(12);
    let first = {
        let mut dev = Dev::start_at(api_port, &["--data-dir", dir, "--nodes", "1"]);
        let id = cluster(&dev);
        dev.signal(Signal::SIGTERM);
        assert_eq!(dev.process.wait().unwrap().code(), Some(0));
        id
    };
    assert_ne!(first, Value::Null);
    let dev = Dev::start_at(api_port, &["--data-dir", dir, "--nodes", "1", "--no-demo"]);
    assert_eq!(cluster(&dev), first);
    assert!(dev.ask(&["app", "list"]).1.contains("hello"));
}
