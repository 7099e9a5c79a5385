//! nginx with its stream module: a file of upstreams, tested, loaded, and seen to be loaded.
//!
//! nginx has no way to ask what it runs with, and stays silently with what it had when it cannot take a file.
//! So a reload counts only when every worker of before is shutting down and new ones have come. Reloads are rare
//! on purpose: each leaves the old workers behind until their last session.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{fs, process::Command, time::Instant};

use super::{
    desired::{Service, State},
    export,
    status::{Outcome, Seen, Server},
};

/// For `nginx -t`, which resolves names.
const TEST_TIMEOUT: Duration = Duration::from_secs(10);
/// For new workers to come after a signal.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(20);

/// `[nginx]` of node.toml. What a node may run and write is not decided over the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NginxConfig {
    pub program: PathBuf,
    /// Its main file, which includes `upstreams` in its `stream` block.
    pub config: PathBuf,
    /// The file that the node writes.
    pub upstreams: PathBuf,
    /// Where nginx writes its process id.
    pub pid: PathBuf,
}

/// What the running workers were loaded with.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    text: String,
    workers: BTreeSet<i32>,
}

pub(crate) async fn reconcile(
    config: &NginxConfig,
    loaded: &mut Option<Loaded>,
    services: &[Service],
) -> Result<Outcome, String> {
    if services.iter().flat_map(|service| &service.endpoints).any(|endpoint| endpoint.state == State::Unknown)
    {
        // A new leader has not heard from all nodes, and a file is all or nothing.
        return Ok(Outcome { servers: servers(services, |_| Seen::Unknown), ..Outcome::default() });
    }
    let text = format!("# Written by flotilla; changes are overwritten.\n{}", export::nginx(services, true));
    let master = read_pid(&config.pid).await?;
    let workers = workers(master);
    let on_disk = fs::read_to_string(&config.upstreams).await.unwrap_or_default();
    let is_loaded =
        loaded.as_ref().is_some_and(|loaded| loaded.text == text && !loaded.workers.is_disjoint(&workers));
    let mut changes = 0;
    if on_disk != text || !is_loaded {
        *loaded = None;
        write(&config.upstreams, &text).await.map_err(|err| said(&config.upstreams, &err))?;
        if let Err(why) = test(config).await {
            // Whoever reloads nginx next must not find a file that it refuses.
            write(&config.upstreams, &on_disk).await.map_err(|err| said(&config.upstreams, &err))?;
            return Err(why);
        }
        kill(Pid::from_raw(master), Signal::SIGHUP)
            .map_err(|err| format!("signal nginx ({master}): {err}"))?;
        let workers = new_workers(master, &workers).await?;
        *loaded = Some(Loaded { text, workers });
        changes = 1;
    }
    let seen = |state| match state {
        State::Ready => Seen::Ready,
        State::Drain => Seen::Drain,
        State::Down => Seen::Maint,
        State::Unknown => Seen::Unknown,
    };
    Ok(Outcome { changes, problems: Vec::new(), servers: servers(services, seen) })
}

fn servers(services: &[Service], seen: impl Fn(State) -> Seen) -> Vec<Server> {
    let endpoints = |service: &Service| {
        let server = |endpoint| Server::new(service, endpoint, seen(endpoint.state));
        service.endpoints.iter().map(server).collect::<Vec<_>>()
    };
    services.iter().flat_map(endpoints).collect()
}

async fn read_pid(path: &Path) -> Result<i32, String> {
    let text = fs::read_to_string(path).await.map_err(|err| said(path, &err))?;
    let pid = text.trim().parse().ok().filter(|pid| *pid > 1);
    pid.ok_or_else(|| format!("{}: \"{}\" is not a process id", path.display(), text.trim()))
}

/// Not half a file, whenever nginx or the power looks.
async fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    fs::write(&temporary, text).await?;
    fs::File::open(&temporary).await?.sync_all().await?;
    fs::rename(&temporary, path).await
}

async fn test(config: &NginxConfig) -> Result<(), String> {
    let mut command = Command::new(&config.program);
    command.arg("-t").arg("-q").arg("-c").arg(&config.config).kill_on_drop(true);
    match tokio::time::timeout(TEST_TIMEOUT, command.output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let words = String::from_utf8_lossy(&output.stderr);
            let why = words.lines().find(|line| line.contains("[emerg]")).unwrap_or("nginx -t failed");
            Err(why.to_owned())
        }
        Ok(Err(err)) => Err(said(&config.program, &err)),
        Err(_) => Err(format!("nginx -t took longer than {TEST_TIMEOUT:?}")),
    }
}

/// Waits until all workers of before are shutting down and others have come.
async fn new_workers(master: i32, before: &BTreeSet<i32>) -> Result<BTreeSet<i32>, String> {
    let deadline = Instant::now() + RELOAD_TIMEOUT;
    loop {
        let now = workers(master);
        if !now.is_empty() && now.is_disjoint(before) {
            return Ok(now);
        }
        if Instant::now() >= deadline {
            return Err(format!(
                "nginx kept its old workers for {RELOAD_TIMEOUT:?} after a reload: its error log says why"
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Workers that accept: one that finishes its last sessions says so in its title.
fn workers(master: i32) -> BTreeSet<i32> {
    let children =
        std::fs::read_to_string(format!("/proc/{master}/task/{master}/children")).unwrap_or_default();
    let accepts = |pid: &i32| {
        let title = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let title = String::from_utf8_lossy(&title);
        title.starts_with("nginx: worker process") && !title.contains("shutting down")
    };
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(accepts).collect()
}

fn said(path: &Path, err: &io::Error) -> String {
    format!("{}: {err}", path.display())
}
