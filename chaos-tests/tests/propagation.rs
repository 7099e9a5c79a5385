//! From "committed" to "serves on every node", by asking the data plane itself; and the same change on
//! a proxy that is told by file.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what goes wrong fails the test, and what it measured is said"
)]

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use flotilla_api::v1::{AppChange, ApplyAppsRequest, ListAppsRequest};
use flotilla_chaos_tests::{client::whoami, origin::Echo, peers, poll::eventually, process::TestFleet};
use tokio::time::Instant;

const PROGRAM: &str = env!("CARGO_BIN_EXE_flotilla-under-test");
/// Apps of one log entry.
const BATCH: usize = 250;
/// Ports of the apps that are only there.
const FIRST_PORT: usize = 10_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// Sorted when they are shown.
struct Times(Vec<Duration>);

impl Times {
    fn show(&mut self, what: &str) {
        self.0.sort_unstable();
        let at = |per_mille: usize| self.0[(self.0.len() * per_mille / 1_000).min(self.0.len() - 1)];
        let ms = |time: Duration| time.as_secs_f64() * 1_000.0;
        eprintln!(
            "{what:<44} p50 {:7.1} ms   p99 {:7.1} ms   max {:7.1} ms   ({} changes)",
            ms(at(500)),
            ms(at(990)),
            ms(at(1_000)),
            self.0.len()
        );
    }
}

/// When `address` first answers with `name`.
async fn serves(address: SocketAddr, name: String) -> Instant {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if whoami(address).await.is_ok_and(|answer| answer == name) {
            return Instant::now();
        }
        assert!(Instant::now() < deadline, "{name} does not answer at {address}");
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
}

async fn apply(fleet: &TestFleet, node: usize, specs: impl Iterator<Item = String>) -> Instant {
    let apps = specs.map(|spec| AppChange { spec: spec.into_bytes(), if_version: None }).collect();
    let mut client = fleet.node(node).client().await.unwrap();
    client.apply_apps(ApplyAppsRequest { request: None, apps }).await.unwrap();
    Instant::now()
}

fn spec(name: &str, port: usize, target: SocketAddr, replicas: &str) -> String {
    format!(
        r#"{{"name":"{name}","listen":[{port}],"targets":["{target}"],"check":"none","placement":{{"replicas":{replicas}}},"rollout":{{"max_parallel":3,"min_healthy":"0s"}}}}"#
    )
}

async fn fill(fleet: &TestFleet, leader: usize, present: &mut usize, wanted: usize, target: SocketAddr) {
    while *present < wanted {
        let next = (*present + BATCH).min(wanted);
        let specs = (*present..next).map(|app| spec(&format!("app-{app}"), FIRST_PORT + app, target, "1"));
        apply(fleet, leader, specs).await;
        *present = next;
        complete(fleet, leader, PATIENCE * 5).await;
    }
}

/// `APPS=1,100,10000 cargo test --release -p flotilla-chaos-tests --test propagation -- --ignored --nocapture`
#[tokio::test]
#[ignore = "a measurement"]
async fn from_committed_to_serving_on_three_nodes() {
    let sizes = std::env::var("APPS").unwrap_or_else(|_| "1,100".to_owned());
    let changes: usize = std::env::var("CHANGES").map_or(60, |text| text.parse().unwrap());
    let fleet = TestFleet::start(PROGRAM, 3).await;
    let origins = [Echo::start("even"), Echo::start("odd")];
    let idle = Echo::start("idle");
    let leader = fleet.leader().await;
    let mut present = 0;
    for size in sizes.split(',').map(|size| size.parse::<usize>().unwrap()) {
        fill(&fleet, leader, &mut present, size - 1, idle.address()).await;
        let mut times = Times(Vec::new());
        let mut first = Times(Vec::new());
        for change in 0..changes {
            let origin = &origins[change % 2];
            let committed =
                apply(&fleet, leader, [spec("web", 9_000, origin.address(), "\"all\"")].into_iter()).await;
            let name = ["even", "odd"][change % 2].to_owned();
            let nodes = fleet.port(9_000).into_iter().map(|address| serves(address, name.clone()));
            let served = futures_util::future::join_all(nodes).await;
            times.0.push(served.iter().max().unwrap().saturating_duration_since(committed));
            first.0.push(served.iter().min().unwrap().saturating_duration_since(committed));
            // A change of an unfinished rollout would supersede it.
            eventually("the rollout completes", PATIENCE, async || {
                let mut client = fleet.node(leader).client().await.map_err(|err| err.to_string())?;
                let apps =
                    client.list_apps(ListAppsRequest {}).await.map_err(|err| err.to_string())?.into_inner();
                let web = apps.apps.iter().find(|app| app.name == "web").ok_or("no app")?;
                if web.serving == web.wanted { Ok(()) } else { Err(web.state.clone()) }
            })
            .await;
        }
        first.show(&format!("{size} apps: on the first node"));
        times.show(&format!("{size} apps: on all three nodes"));
    }
    told_by_file("HAProxy, file and reload", haproxy).await;
    told_by_file("Envoy, xDS from files", envoy).await;
}

/// `APPS=1000 cargo test --release -p flotilla-chaos-tests --test propagation many -- --ignored --nocapture`
#[tokio::test]
#[ignore = "a measurement"]
async fn many_apps_changed_by_one_apply_roll_out_side_by_side() {
    let count: usize = std::env::var("APPS").map_or(1_000, |text| text.parse().unwrap());
    let fleet = TestFleet::start(PROGRAM, 3).await;
    let origins = [Echo::start("even"), Echo::start("odd")];
    let leader = fleet.leader().await;
    for (origin, what) in origins.iter().zip(["created", "changed"]) {
        let specs =
            (0..count).map(|app| spec(&format!("app-{app}"), FIRST_PORT + app, origin.address(), "\"all\""));
        let committed = apply(&fleet, leader, specs).await;
        complete(&fleet, leader, PATIENCE * 10).await;
        let took = committed.elapsed().as_secs_f64();
        eprintln!(
            "{count} apps {what} on three nodes by one apply: {took:.2} s, {:.0} rollouts/s",
            count as f64 / took
        );
    }
    for app in 0..count {
        for address in fleet.port(u16::try_from(FIRST_PORT + app).unwrap()) {
            assert_eq!(whoami(address).await.unwrap(), "odd", "app-{app} at {address}");
        }
    }
}

async fn complete(fleet: &TestFleet, leader: usize, patience: Duration) {
    eventually("every rollout completes", patience, async || {
        let mut client = fleet.node(leader).client().await.map_err(|err| err.to_string())?;
        let apps = client.list_apps(ListAppsRequest {}).await.map_err(|err| err.to_string())?;
        let moving = apps.into_inner().apps.iter().filter(|app| app.serving != app.wanted).count();
        if moving == 0 { Ok(()) } else { Err(format!("{moving} apps are on their way")) }
    })
    .await;
}

/// A proxy that runs, and how it is told its one target.
struct Peer {
    child: Child,
    listen: SocketAddr,
    tell: Box<dyn Fn(SocketAddr)>,
    /// Whether it has come to rest after its start or a change, and may be told of the next one.
    rests: Box<dyn Fn() -> bool>,
    _files: tempfile::TempDir,
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

async fn told_by_file(what: &str, start: fn(SocketAddr) -> Option<Peer>) {
    let origins = [Echo::start("even"), Echo::start("odd")];
    let Some(peer) = start(origins[0].address()) else { return };
    serves(peer.listen, "even".to_owned()).await;
    let mut times = Times(Vec::new());
    for change in 1..=40 {
        eventually("it rests", PATIENCE, async || if (peer.rests)() { Ok(()) } else { Err("it does not") })
            .await;
        let told = Instant::now();
        (peer.tell)(origins[change % 2].address());
        let served = serves(peer.listen, ["even", "odd"][change % 2].to_owned()).await;
        times.0.push(served.saturating_duration_since(told));
    }
    times.show(what);
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Readers see the old file or the new one.
fn replace(path: &Path, text: &str) {
    let fresh = path.with_extension("new");
    fs::write(&fresh, text).unwrap();
    fs::rename(&fresh, path).unwrap();
}

fn haproxy(target: SocketAddr) -> Option<Peer> {
    let program = peers::program("haproxy")?;
    let (files, listen) = (tempfile::tempdir().unwrap(), free());
    let path = files.path().join("haproxy.cfg");
    let text = move |target: SocketAddr| {
        format!(
            "defaults\n mode tcp\n timeout connect 2s\n timeout client 30s\n timeout server 30s\n\
             listen web\n bind {listen}\n server s {target}\n"
        )
    };
    replace(&path, &text(target));
    let child = Command::new(program)
        .args(["-W", "-f"])
        .arg(&path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let master = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    let tell = Box::new(move |target| {
        replace(&path, &text(target));
        nix::sys::signal::kill(master, nix::sys::signal::Signal::SIGUSR2).unwrap();
    });
    // A reload that is asked for while the worker before is still there may be lost. One that is asked for
    // before the master has begun to wait is: it starts anew after its worker, and ignores the signal meanwhile.
    let children = format!("/proc/{master}/task/{master}/children");
    let has_one =
        move || fs::read_to_string(&children).is_ok_and(|text| text.split_whitespace().count() == 1);
    let rests = move || has_one() && takes_signal(master, nix::sys::signal::Signal::SIGUSR2);
    Some(Peer { child, listen, tell, rests: Box::new(rests), _files: files })
}

/// Whether the process has a handler for the signal, and does not hold it back.
fn takes_signal(process: nix::unistd::Pid, signal: nix::sys::signal::Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    // `SigCgt: 0000000100716a03`, a bit for each signal from 1 on: proc(5).
    let is_in = |set: &str| {
        let bits = status.lines().find_map(|line| line.strip_prefix(set)).map(str::trim);
        bits.and_then(|bits| u64::from_str_radix(bits, 16).ok())
            .is_some_and(|bits| bits >> (signal as u32 - 1) & 1 == 1)
    };
    is_in("SigCgt:") && !is_in("SigBlk:")
}

fn envoy(target: SocketAddr) -> Option<Peer> {
    let found = peers::program("envoy")?;
    // The wheel puts a script there, and the program beside its package.
    let asked = Command::new("python3").args(["-c", "import envoy; print(envoy.__path__[0])"]).output();
    let package = asked.ok().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let beside = package.map(|path| PathBuf::from(path).join("_bin/envoy")).filter(|path| path.is_file());
    let (files, listen) = (tempfile::tempdir().unwrap(), free());
    let at = |name: &str| files.path().join(name);
    let source = |name: &str| {
        format!(r#"{{"path_config_source":{{"path":{:?}}},"resource_api_version":"V3"}}"#, at(name))
    };
    let bootstrap = format!(
        r#"{{"node":{{"id":"n","cluster":"c"}},"dynamic_resources":{{"lds_config":{},"cds_config":{}}}}}"#,
        source("lds.json"),
        source("cds.json")
    );
    let listener = format!(
        r#"{{"resources":[{{"@type":"type.googleapis.com/envoy.config.listener.v3.Listener","name":"web","address":{{"socket_address":{{"address":"127.0.0.1","port_value":{}}}}},"filter_chains":[{{"filters":[{{"name":"tcp","typed_config":{{"@type":"type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy","stat_prefix":"web","cluster":"web"}}}}]}}]}}]}}"#,
        listen.port()
    );
    let cluster = |target: SocketAddr| {
        format!(
            r#"{{"resources":[{{"@type":"type.googleapis.com/envoy.config.cluster.v3.Cluster","name":"web","type":"STATIC","connect_timeout":"1s","load_assignment":{{"cluster_name":"web","endpoints":[{{"lb_endpoints":[{{"endpoint":{{"address":{{"socket_address":{{"address":"127.0.0.1","port_value":{}}}}}}}}}]}}]}}}}]}}"#,
            target.port()
        )
    };
    fs::write(at("lds.json"), listener).unwrap();
    replace(&at("cds.json"), &cluster(target));
    fs::write(at("bootstrap.json"), bootstrap).unwrap();
    let child = Command::new(beside.unwrap_or(found))
        .arg("-c")
        .arg(at("bootstrap.json"))
        .args(["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "error"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let path = at("cds.json");
    Some(Peer {
        child,
        listen,
        tell: Box::new(move |target| replace(&path, &cluster(target))),
        rests: Box::new(|| true),
        _files: files,
    })
}
