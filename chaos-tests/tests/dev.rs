//! `flotilla dev` is the first thing that anybody runs: what it prints must work, and nothing may stay.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what goes wrong fails the test, and what it measured is said"
)]

use std::{
    net::{Ipv4Addr, TcpListener},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use flotilla_chaos_tests::poll::eventually;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_flotilla-under-test");
const START: Duration = Duration::from_secs(60);

static TURN: AtomicU32 = AtomicU32::new(0);

struct Dev {
    process: Child,
    directory: tempfile::TempDir,
}

impl Dev {
    fn start(more: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("tmp")).unwrap();
        let output = std::fs::File::create(directory.path().join("stdout")).unwrap();
        let errors = std::fs::File::create(directory.path().join("stderr")).unwrap();
        let (app, api) = (free_ports(1).to_string(), free_ports(2).to_string());
        let process = Command::new(PROGRAM)
            .args(["dev", "--port", &app, "--api-port", &api])
            .args(more)
            .env("TMPDIR", directory.path().join("tmp"))
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .unwrap();
        Self { process, directory }
    }

    fn said(&self) -> String {
        let read = |name| std::fs::read_to_string(self.directory.path().join(name)).unwrap();
        read("stdout") + &read("stderr")
    }

    /// Everything that is printed, once the last line of it is.
    async fn banner(&mut self) -> String {
        eventually("the banner is printed", START, async || {
            let said = self.said();
            assert_eq!(self.process.try_wait().unwrap(), None, "it ended: {said}");
            if said.contains("Ctrl-C") { Ok(said) } else { Err(said) }
        })
        .await
    }

    fn descendants(&self) -> Vec<i32> {
        descendants(i32::try_from(self.process.id()).unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.process.id()).unwrap()), signal).unwrap();
    }

    async fn ended(&mut self) -> Option<i32> {
        eventually("dev ends", START, async || self.process.try_wait().unwrap().ok_or("it runs")).await.code()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("flotilla dev said:\n{}", self.said());
        }
        // Nodes that are left notice that their parent is gone, or a test has failed that says so.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// The first of `count` ports that nobody uses on the addresses of three nodes. Below the range from which
/// the kernel picks, so that no connection takes one in between.
fn free_ports(count: u16) -> u16 {
    let free = |port| (1..=3).all(|node| TcpListener::bind((Ipv4Addr::new(127, 0, 0, node), port)).is_ok());
    // Ten apart, so that tests that run at the same time do not choose the same ones.
    let turn = TURN.fetch_add(1, Ordering::Relaxed) + std::process::id();
    let candidates = (0..1_400).map(|offset| 10_000 + u16::try_from((turn + offset) % 1_400).unwrap() * 10);
    candidates.into_iter().find(|port| (*port..port + count).all(free)).expect("a free port")
}

fn descendants(parent: i32) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let Some(pid) = entry.unwrap().file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // The name of the program may hold spaces and brackets; what follows its last bracket does not.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let after = stat.rsplit(") ").next().unwrap();
        if after.split(' ').nth(1) == Some(&parent.to_string()) {
            found.push(pid);
            found.extend(descendants(pid));
        }
    }
    found
}

/// A process that has ended and that nobody has asked for is still listed, as `Z`.
fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.rsplit(") ").next().unwrap().starts_with('Z'))
}

/// The commands under `try`, without what is said about them.
fn commands(banner: &str) -> Vec<String> {
    let lines = banner
        .lines()
        .skip_while(|line| !line.starts_with("  try "))
        .take_while(|line| !line.starts_with("Ctrl-C"));
    lines.map(|line| line.get(13..).unwrap().split("   #").next().unwrap().trim().to_owned()).collect()
}

#[tokio::test]
async fn what_dev_prints_works_when_pasted_and_ctrl_c_leaves_nothing_behind() {
    let mut dev = Dev::start(&[]);
    let banner = dev.banner().await;
    let commands = commands(&banner);
    let kinds = ["curl ", "app apply -f", "cluster status", "kill -9 "];
    for kind in kinds {
        assert!(commands.iter().any(|command| command.contains(kind)), "`{kind}` is not in {commands:?}");
    }
    // Into one terminal, one after the other.
    let pasted = format!("set -ex\n{}", commands.join("\n"));
    let output = tokio::process::Command::new("sh").args(["-c", &pasted]).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The last command killed the leader, which dev starts again.
    eventually("the first command works again", START, async || {
        let curl = tokio::process::Command::new("sh").args(["-c", &commands[0]]).output().await.unwrap();
        if curl.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&curl.stderr).into_owned()) }
    })
    .await;

    let processes = dev.descendants();
    assert!(!processes.is_empty());
    dev.signal(Signal::SIGINT);
    let code = dev.ended().await;
    assert_eq!(code, Some(0), "{}", dev.said());
    let left: Vec<_> = processes.into_iter().filter(|&pid| is_alive(pid)).collect();
    assert!(left.is_empty(), "processes are left: {left:?}");
    let left: Vec<_> = std::fs::read_dir(dev.directory.path().join("tmp")).unwrap().collect();
    assert!(left.is_empty(), "files are left: {left:?}");
}

#[tokio::test]
async fn nodes_do_not_outlive_a_dev_that_is_killed() {
    let mut dev = Dev::start(&["--no-demo"]);
    dev.banner().await;
    let processes = dev.descendants();
    assert!(processes.len() >= 3, "{processes:?}");
    dev.signal(Signal::SIGKILL);
    dev.ended().await;
    eventually("the nodes end", Duration::from_secs(20), async || {
        let left: Vec<_> = processes.iter().filter(|&&pid| is_alive(pid)).collect();
        left.is_empty().then_some(()).ok_or(format!("{left:?} run"))
    })
    .await;
}
