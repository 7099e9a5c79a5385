//! What many apps cost: the time to compile them, to bind and serve them, to change one of them, and
//! the memory they take while nothing happens.
//!
//! `cargo bench -p flotilla-proxy --bench scale`. A listening port takes two descriptors per worker,
//! so how many apps get one depends on `ulimit -n`; the others are compiled only.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program that prints and may fail")]

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use flotilla_proxy::{
    AppConfig, Proxy, ProxyConfig,
    config::{CheckConfig, CheckKind, PathMatch, PortConfig, Protocol, RouteConfig},
};
use tokio::time::Instant;

const APPS: usize = 10_000;
const ROUTES_PER_APP: usize = 10;
const LISTENING: usize = 4_000;
const CHANGES: u32 = 100;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        compile_only().await;
        listening().await;
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

async fn listening() {
    let proxy = start();
    let before = resident_kib();
    let start = Instant::now();
    for number in 0..LISTENING {
        proxy.prepare(app(number, port(number))).await.unwrap();
    }
    report("prepare with a port", LISTENING, start.elapsed(), before);
    let start = Instant::now();
    for number in 0..LISTENING {
        proxy.serve(&name(number), 1).unwrap();
    }
    report("serve", LISTENING, start.elapsed(), before);
    change_some(&proxy, LISTENING, port).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    println!("{LISTENING} listening apps, idle: {} KiB", resident_kib().saturating_sub(before));
    proxy.shutdown(Duration::ZERO).await;
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
    Proxy::start(ProxyConfig { workers: 2, ..ProxyConfig::default() }).unwrap()
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
