//! What many apps cost: the time to compile them, to bind and serve them, to change one of them, and
//! the memory they take while nothing happens; each with a port of its own, and all on one port by their hosts.
//!
//! `cargo bench -p flotilla-proxy --bench scale`. A listening port takes two descriptors per worker,
//! so how many apps get one depends on `ulimit -n`; all of them are compiled. With `--features without-metrics` a
//! request costs less by what counting costs.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program that prints and may fail")]

use std::{
    env, fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    thread,
    time::Duration,
};

use flotilla_proxy::{
    AppConfig, Proxy, ProxyConfig,
    config::{CheckConfig, CheckKind, PathMatch, PortConfig, Protocol, RouteConfig},
};
use tokio::time::Instant;

const APPS: usize = 10_000;
const ROUTES_PER_APP: usize = 10;
const CHANGES: u32 = 100;
/// Of one connection, which may not ask for more than 10,000.
const REQUESTS: u32 = 8_000;

/// As in the real program: what is kept per app depends on it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Clone, Copy)]
enum Row {
    CompileOnly,
    PortEach(usize),
    OnePort(usize),
}

const ROWS: [Row; 7] = [
    Row::CompileOnly,
    Row::PortEach(1),
    Row::PortEach(100),
    Row::PortEach(APPS),
    Row::OnePort(1),
    Row::OnePort(100),
    Row::OnePort(APPS),
];

/// Each row in a process of its own: it would take up what the row before has freed, and seem small.
fn main() {
    if let Some(row) = env::args().skip(1).find_map(|argument| argument.parse::<usize>().ok()) {
        return run(ROWS[row]);
    }
    for row in 0..ROWS.len() {
        let status = Command::new(env::current_exe().unwrap()).arg(row.to_string()).status().unwrap();
        assert!(status.success(), "row {row}: {status}");
    }
}

fn run(row: Row) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let origin = start_origin();
    runtime.block_on(async {
        match row {
            Row::CompileOnly => compile_only().await,
            Row::PortEach(apps) => {
                serving(apps.min((descriptors() - 500) / 2), "with a port each", port, origin).await;
            }
            Row::OnePort(apps) => serving(apps, "on one port", shared_port, origin).await,
        }
    });
}

async fn compile_only() {
    let proxy = start();
    let before = resident_kib();
    let start = Instant::now();
    for number in 0..APPS {
        proxy.prepare(app(number, Vec::new())).await.unwrap();
    }
    report("compile", APPS, start.elapsed(), before);
    change_some(&proxy, APPS, |_| Vec::new()).await;
    proxy.shutdown(Duration::ZERO).await;
}

/// `what` says where `ports` lets them listen.
async fn serving(apps: usize, what: &str, ports: fn(usize) -> Vec<PortConfig>, origin: SocketAddr) {
    let proxy = start();
    let before = resident_kib();
    let start = Instant::now();
    for number in 0..apps {
        proxy.prepare(app(number, ports(number))).await.unwrap();
    }
    report(&format!("prepare {what}"), apps, start.elapsed(), before);
    let start = Instant::now();
    for number in 0..apps {
        proxy.serve(&name(number), 1).unwrap();
    }
    report(&format!("serve {what}"), apps, start.elapsed(), before);
    if apps > CHANGES as usize {
        change_some(&proxy, apps, ports).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    println!("{apps} apps {what}, idle: {} KiB", resident_kib().saturating_sub(before));
    let mut last = app(apps - 1, ports(apps - 1));
    last.generation = 3;
    last.pools.get_mut("default").unwrap().targets[0].address = origin.to_string();
    last.pools.get_mut("default").unwrap().targets.truncate(1);
    let address = SocketAddr::new(last.ports[0].address, last.ports[0].port);
    proxy.shift(last).await.unwrap();
    let cost = thread::spawn(move || cost_of_requests(address, apps - 1)).join().unwrap();
    println!("a request among {apps} apps {what}: {cost:?} of CPU");
    proxy.shutdown(Duration::ZERO).await;
}

/// CPU time of the traffic thread per request, most of it in the kernel.
fn cost_of_requests(address: SocketAddr, app: usize) -> Duration {
    let mut client = TcpStream::connect(address).unwrap();
    client.set_nodelay(true).unwrap();
    let request = format!("GET /v5/things/1 HTTP/1.1\r\nhost: h5.app-{app}.test\r\n\r\n");
    let mut round = |times: u32| {
        let before = traffic_nanos();
        for _ in 0..times {
            client.write_all(request.as_bytes()).unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"hello world") {
                let mut piece = [0; 1024];
                let n = client.read(&mut piece).unwrap();
                assert!(n > 0, "{}", String::from_utf8_lossy(&answer));
                answer.extend_from_slice(&piece[..n]);
            }
        }
        Duration::from_nanos(traffic_nanos() - before) / times
    };
    round(REQUESTS / 10);
    round(REQUESTS)
}

fn traffic_nanos() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap().filter_map(Result::ok).map(|task| task.path());
    let of = |task: std::path::PathBuf| -> Option<u64> {
        let name = fs::read_to_string(task.join("comm")).ok()?;
        let stat = fs::read_to_string(task.join("schedstat")).ok()?;
        name.starts_with("proxy-").then(|| stat.split(' ').next()?.parse().ok()).flatten()
    };
    tasks.filter_map(of).sum()
}

/// One connection at a time, which is all that is made.
fn start_origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut head = [0; 4096];
                while matches!(stream.read(&mut head), Ok(1..)) {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nhello world").unwrap();
                }
            });
        }
    });
    address
}

fn descriptors() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap_or_default();
    line.split_whitespace().nth(3).and_then(|soft| soft.parse().ok()).unwrap_or(1024)
}

/// Replaces the generations of some apps, as a user who changes one of many does.
async fn change_some(proxy: &Proxy, apps: usize, ports: impl Fn(usize) -> Vec<PortConfig>) {
    let mut worst = Duration::ZERO;
    let begin = Instant::now();
    for number in (0..apps).step_by(apps / CHANGES as usize).take(CHANGES as usize) {
        let start = Instant::now();
        let config = AppConfig { generation: 2, ..app(number, ports(number)) };
        proxy.prepare(config).await.unwrap();
        proxy.serve(&name(number), 2).unwrap();
        proxy.remove(&name(number), 1, None).unwrap();
        worst = worst.max(start.elapsed());
    }
    println!("change one of {apps}: {:?} on average, {worst:?} at worst", begin.elapsed() / CHANGES);
}

fn start() -> Proxy {
    Proxy::start(ProxyConfig { workers: 1, ..ProxyConfig::default() }).unwrap()
}

fn name(number: usize) -> String {
    format!("app-{number}")
}

fn app(number: usize, ports: Vec<PortConfig>) -> AppConfig {
    let listen = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 1);
    let mut app = AppConfig::http(&name(number), listen, ["127.0.0.1:9", "127.0.0.1:10"]);
    app.ports = ports;
    app.pools.get_mut("default").unwrap().check =
        CheckConfig { kind: CheckKind::None, ..CheckConfig::default() };
    app.routes = (0..ROUTES_PER_APP)
        .map(|route| RouteConfig {
            path: Some(PathMatch::Prefix(format!("/v{route}/things"))),
            ..RouteConfig::hosts(&format!("r{route}"), [format!("h{route}.app-{number}.test")], "default")
        })
        .collect();
    app
}

/// 1,000 ports on each loopback address, below those the kernel gives out.
fn port(number: usize) -> Vec<PortConfig> {
    let address = IpAddr::V4(Ipv4Addr::new(127, 77, 0, u8::try_from(number / 1000).unwrap()));
    let port = u16::try_from(20_000 + number % 1000).unwrap();
    vec![PortConfig::new(SocketAddr::new(address, port), Protocol::Http)]
}

/// All of them on one, each by ten hosts of its own.
fn shared_port(number: usize) -> Vec<PortConfig> {
    let listen = SocketAddr::new(Ipv4Addr::new(127, 77, 1, 0).into(), 20_000);
    let hosts = (0..ROUTES_PER_APP).map(|route| format!("h{route}.app-{number}.test")).collect();
    vec![PortConfig { hosts, ..PortConfig::new(listen, Protocol::Http) }]
}

fn report(what: &str, apps: usize, took: Duration, before_kib: u64) {
    let each = took / u32::try_from(apps).unwrap();
    println!(
        "{what}: {apps} apps in {took:?}, {each:?} each, {} KiB",
        resident_kib().saturating_sub(before_kib)
    );
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}
