//! One node: its file, its process, its log.

use std::{
    fs::{self, File, OpenOptions},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::net::TcpStream;

use super::SOON;
use crate::poll::eventually;

const CLUSTER_PORT: u16 = 7400;
const ADMIN_PORT: u16 = 7401;
/// Lines of a node's log that a failed test shows.
const LOG_LINES: usize = 80;

#[derive(Clone, Debug)]
pub struct NodeSettings {
    pub zone: String,
    /// `[join] addresses`.
    pub join: Vec<SocketAddr>,
    /// `[traffic] address`, where it is not that of the node.
    pub traffic: Option<Ipv4Addr>,
    /// The network namespace that it runs in, where that is not the test's.
    pub namespace: Option<String>,
    /// Where it is not the node's own.
    pub data_dir: Option<PathBuf>,
    /// `[traffic] drain`.
    pub drain: String,
    /// `[cluster] lost_after`.
    pub lost_after: String,
    /// Further sections of its file.
    pub more: String,
    pub log_level: String,
}

impl Default for NodeSettings {
    fn default() -> Self {
        Self {
            zone: "z1".to_owned(),
            join: Vec::new(),
            traffic: None,
            namespace: None,
            data_dir: None,
            drain: "5s".to_owned(),
            lost_after: "1m".to_owned(),
            more: String::new(),
            log_level: "info".to_owned(),
        }
    }
}

pub struct Node {
    program: PathBuf,
    directory: PathBuf,
    name: String,
    address: Ipv4Addr,
    settings: NodeSettings,
    process: Option<Child>,
}

impl Node {
    pub(super) fn new(
        program: &Path,
        directory: &Path,
        name: &str,
        address: Ipv4Addr,
        settings: NodeSettings,
    ) -> Self {
        fs::create_dir_all(directory).unwrap();
        Self {
            program: program.to_owned(),
            directory: directory.to_owned(),
            name: name.to_owned(),
            address,
            settings,
            process: None,
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn cluster_address(&self) -> SocketAddr {
        (self.address, CLUSTER_PORT).into()
    }

    pub fn admin_address(&self) -> SocketAddr {
        (self.address, ADMIN_PORT).into()
    }

    /// Where a port of an app is on this node.
    pub fn port(&self, port: u16) -> SocketAddr {
        (self.traffic_address(), port).into()
    }

    fn traffic_address(&self) -> Ipv4Addr {
        self.settings.traffic.unwrap_or(self.address)
    }

    pub fn data_dir(&self) -> PathBuf {
        self.settings.data_dir.clone().unwrap_or_else(|| self.directory.join("data"))
    }

    pub fn settings_mut(&mut self) -> &mut NodeSettings {
        &mut self.settings
    }

    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the node runs").id()
    }

    /// Starts the process and waits until it answers on its cluster port.
    pub async fn start(&mut self) {
        self.spawn();
        let address = self.cluster_address();
        eventually(&format!("{} listens on {address}", self.name), SOON, async || {
            if let Some(status) = self.process.as_mut().expect("just spawned").try_wait().unwrap() {
                panic!("{} ended at once: {status}\n{}", self.name, self.log_tail());
            }
            TcpStream::connect(address).await.map(drop)
        })
        .await;
    }

    /// Starts the process and waits for its end, which is expected.
    pub async fn start_and_fail(&mut self) -> ExitStatus {
        self.spawn();
        self.ended().await
    }

    fn spawn(&mut self) {
        assert!(self.process.is_none(), "{} runs already", self.name);
        let file = self.directory.join("node.toml");
        fs::write(&file, self.file()).unwrap();
        let log = OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        let mut command = match &self.settings.namespace {
            // It becomes the program, so that its process is the node's.
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        let child = command
            .args(["node", "run", "-f"])
            .arg(&file)
            .env("FLOTILLA_UNDER_TEST", "1")
            .stdin(Stdio::null())
            .stdout(File::try_clone(&log).unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(child);
    }

    fn file(&self) -> String {
        let Self {
            name,
            address,
            settings: NodeSettings { zone, join, drain, lost_after, log_level, more, .. },
            ..
        } = self;
        let traffic = self.traffic_address();
        let join: Vec<_> = join.iter().map(SocketAddr::to_string).collect();
        let data_dir = self.data_dir();
        // A fifth of the default times, in proportion, so that a test does not wait for elections.
        format!(
            r#"
name = "{name}"
region = "test"
zone = "{zone}"
data_dir = {data_dir:?}
[cluster]
listen = "{address}:{CLUSTER_PORT}"
lost_after = "{lost_after}"
[admin]
listen = "{address}:{ADMIN_PORT}"
[join]
addresses = {join:?}
[traffic]
address = "{traffic}"
drain = "{drain}"
[raft]
heartbeat = "100ms"
election_min = "300ms"
election_max = "600ms"
[log]
level = "{log_level}"
format = "text"
{more}
"#
        )
    }

    /// True once the process has ended by itself; it may be started again then.
    pub fn has_died(&mut self) -> bool {
        let died = self.process.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some());
        if died {
            self.process = None;
        }
        died
    }

    /// The power goes.
    pub fn kill(&mut self) {
        let mut child = self.process.take().expect("the node runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Sends a signal, and nothing more.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).expect("a pid is an i32");
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// The process stands still, with its sockets open, until [`Node::resume`].
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Waits until the process has ended by itself, or by a signal sent before.
    pub async fn ended(&mut self) -> ExitStatus {
        let child = self.process.as_mut().expect("the node runs");
        let status = eventually(&format!("{} ends", self.name), SOON, async || {
            child.try_wait().unwrap().ok_or("it runs")
        })
        .await;
        self.process = None;
        status
    }

    /// SIGTERM, and the end that follows.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended().await
    }

    /// For the next start.
    pub fn move_to(&mut self, address: Ipv4Addr) {
        assert!(self.process.is_none(), "{} runs", self.name);
        self.address = address;
    }

    /// For the next start.
    pub fn rename(&mut self, name: &str) {
        assert!(self.process.is_none(), "{} runs", self.name);
        name.clone_into(&mut self.name);
    }

    /// The disk is replaced by an empty one.
    pub fn wipe(&mut self) {
        assert!(self.process.is_none(), "{} runs", self.name);
        fs::remove_dir_all(self.data_dir()).unwrap();
    }

    /// Memory that the process really holds.
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux says VmRSS");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        kib * 1024
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub(super) fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
        format!("---- the log of {} ends with\n{}", self.name, tail.join("\n"))
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("log")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.process.take() {
            // It may have ended by itself.
            drop(child.kill());
            drop(child.wait());
        }
    }
}
