//! The nodes as child processes: started, watched, started again, stopped.

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep_until, timeout},
};

use super::{
    layout::{Layout, NodeLayout},
    not_up,
    orphan::die_with_parent,
};
use crate::{args::Shell, exit::Failure};

/// Long enough to see the fleet carry on without the node. With less, a leader that is killed is
/// back before the others have elected another.
const RESTART_PAUSE: Duration = Duration::from_secs(3);
/// A node drains for two seconds (`layout.rs`) and then closes its store.
const STOP_TIMEOUT: Duration = Duration::from_secs(6);
/// Of a log, when its node did not come up.
const TAIL_LINES: usize = 5;

pub(super) struct Children {
    nodes: Vec<Node>,
}

struct Node {
    name: String,
    file: PathBuf,
    log: PathBuf,
    process: Process,
}

enum Process {
    Running(Child),
    Ended { restart: Instant },
}

enum Event {
    Ended(ExitStatus),
    RestartDue,
}

impl Children {
    pub(super) fn start(layout: &Layout, home: &Path) -> Result<Self, Failure> {
        let nodes = layout.nodes.iter().map(|node| Node::start(node, home)).collect::<Result<_, _>>()?;
        Ok(Self { nodes })
    }

    /// In the order of the nodes.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.nodes.iter().map(|node| node.pid().unwrap_or(0)).collect()
    }

    /// Waits for the first node that ends, and says why it did. Cancel-safe.
    pub(super) async fn first_death(&mut self) -> Failure {
        let (index, _) = self.next_event().await;
        let node = &self.nodes[index];
        not_up(&format!("{} ended while it started\n{}", node.name, tail(&node.log)))
            .help(format!("its log is {}", node.log.display()))
    }

    /// Starts nodes again that end. Returns only when that cannot be done.
    pub(super) async fn keep_alive(&mut self, shell: &Shell) -> Result<(), Failure> {
        loop {
            let (index, event) = self.next_event().await;
            let node = &mut self.nodes[index];
            match event {
                Event::Ended(status) => {
                    shell.output.note(format!(
                        "! {} ended ({status}); it is started again in {RESTART_PAUSE:?}",
                        node.name
                    ));
                    node.process = Process::Ended { restart: Instant::now() + RESTART_PAUSE };
                }
                Event::RestartDue => {
                    node.process = Process::Running(spawn(&node.file, &node.log)?);
                    let pid = node.pid().unwrap_or(0);
                    shell.output.note(format!("✓ {} is started again (pid {pid})", node.name));
                }
            }
        }
    }

    /// Lets the nodes finish what they are doing, and kills those that take too long.
    pub(super) async fn stop(self) {
        for node in &self.nodes {
            if let Some(pid) = node.pid().and_then(|pid| i32::try_from(pid).ok()) {
                // One that has just ended is not there to be told.
                kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
            }
        }
        let mut ends: FuturesUnordered<_> = self.nodes.into_iter().map(Node::end).collect();
        while ends.next().await.is_some() {}
    }

    /// Cancel-safe: waiting for a child can be given up and begun again.
    async fn next_event(&mut self) -> (usize, Event) {
        let mut events: FuturesUnordered<_> = self
            .nodes
            .iter_mut()
            .enumerate()
            .map(|(index, node)| async move { (index, node.process.event().await) })
            .collect();
        match events.next().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }
}

impl Node {
    fn start(layout: &NodeLayout, home: &Path) -> Result<Self, Failure> {
        let dir = home.join(&layout.name);
        fs::create_dir_all(&dir)?;
        let file = dir.join("node.toml");
        fs::write(&file, layout.file(&dir.join("data")))?;
        let log = dir.join("node.log");
        let process = Process::Running(spawn(&file, &log)?);
        Ok(Self { name: layout.name.clone(), file, log, process })
    }

    fn pid(&self) -> Option<u32> {
        match &self.process {
            Process::Running(child) => child.id(),
            Process::Ended { .. } => None,
        }
    }

    async fn end(self) {
        if let Process::Running(mut child) = self.process
            && timeout(STOP_TIMEOUT, child.wait()).await.is_err()
        {
            // It fails only for a process that has ended.
            drop(child.kill().await);
        }
    }
}

impl Process {
    async fn event(&mut self) -> Event {
        match self {
            Self::Ended { restart } => {
                sleep_until(*restart).await;
                Event::RestartDue
            }
            Self::Running(child) => match child.wait().await {
                Ok(status) => Event::Ended(status),
                // Not a child any more: somebody else has waited for it.
                Err(_) => Event::Ended(ExitStatus::default()),
            },
        }
    }
}

/// `flotilla node run -f FILE`. In a process group of its own, so that Ctrl-C reaches the parent
/// alone and the nodes are stopped in good order.
fn spawn(file: &Path, log: &Path) -> Result<Child, Failure> {
    let log: File = OpenOptions::new().create(true).append(true).open(log)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("node").arg("run").arg("-f").arg(file);
    // Settings of the user's own node are not for these.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("FLOTILLA_")) {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0).kill_on_drop(true);
    die_with_parent(&mut command);
    Ok(command.spawn()?)
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|line| format!("  {line}\n")).collect()
}
