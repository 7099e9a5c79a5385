//! Hosts with addresses of both families: which is used, and what becomes of sessions when one leads nowhere.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use flotilla_proxy::{
    AppConfig, Proxy, Resolution,
    config::{
        BalanceConfig,
        Protocol::{self, Http, Tcp},
        ResolveMode, TargetConfig,
    },
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::Instant,
};

use crate::{name_server::NameServer, support::*};

/// The delay of RFC 8305 §5, as the proxy has it.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// The same port of both families, and how many IPv6 connections may wait there.
pub(crate) async fn both(backlog: u32) -> (TcpListener, TcpListener) {
    loop {
        let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let v6 = TcpSocket::new_v6().unwrap();
        // Somebody else may have it.
        if v6.bind((Ipv6Addr::LOCALHOST, v4.local_addr().unwrap().port()).into()).is_ok() {
            return (v4, v6.listen(backlog).unwrap());
        }
    }
}

/// A listener with `backlog` that answers nobody any more, for as long as this is kept.
pub(crate) async fn black_hole(listener: &TcpListener, backlog: u32) -> Vec<TcpStream> {
    let address = listener.local_addr().unwrap();
    let port = format!(":{:04X}", address.port());
    // Linux drops what comes when more wait than may (`sk_acceptq_is_full`).
    let waiting =
        || rows().into_iter().find(|row| row.state == "0A" && row.local.ends_with(&port)).unwrap().received;
    let mut queued = Vec::new();
    while waiting() <= backlog {
        let before = waiting();
        queued.push(connect(address).await);
        eventually("it waits to be accepted", || waiting() > before).await;
    }
    queued
}

/// Of /proc/net/tcp6, proc(5).
struct Row {
    local: String,
    remote: String,
    state: String,
    /// Of a listener: who waits to be accepted.
    received: u32,
}

fn rows() -> Vec<Row> {
    let row = |line: &str| {
        let mut words = line.split_whitespace().skip(1).map(str::to_owned);
        let [local, remote, state, queues] = std::array::from_fn(|_| words.next().unwrap());
        let received = u32::from_str_radix(queues.split_once(':').unwrap().1, 16).unwrap();
        Row { local, remote, state, received }
    };
    std::fs::read_to_string("/proc/net/tcp6").unwrap().lines().skip(1).map(row).collect()
}

/// Whether somebody is connecting to that port by IPv6.
fn is_connecting(port: u16) -> bool {
    let port = format!(":{port:04X}");
    rows().iter().any(|row| row.state == "02" && row.remote.ends_with(&port))
}

/// An app in front of `web.test`, which stands for both, and is resolved.
pub(crate) async fn serving_name(
    protocol: Protocol,
    origin: SocketAddr,
    change: impl FnOnce(&mut AppConfig),
) -> (Proxy, SocketAddr, NameServer) {
    let server = NameServer::start().await;
    server.set("web.test", "127.0.0.1 ::1");
    server.set_service("_app._tcp.web.test", &[&format!("0 0 {} web.test", origin.port())]);
    let proxy = proxy_with(|config| {
        config.workers = 1;
        config.name_server = Some(server.address);
    });
    let (mut config, listen) = app(protocol, &[]);
    let pool = config.pools.get_mut("default").unwrap();
    pool.targets = vec![TargetConfig::new(format!("web.test:{}", origin.port()), 100)];
    // Far beyond the patience of a test: who waits for the family that leads nowhere fails.
    config.timeouts.connect = Duration::from_secs(120);
    change(&mut config);
    serve(&proxy, &config).await;
    let target = || proxy.status()[0].targets[0].clone();
    eventually("resolved", || target().resolution == Resolution::Resolved).await;
    assert_eq!(target().endpoints.len(), 2);
    (proxy, listen, server)
}

/// How an app may write what stands for both.
const WAYS: [fn(&mut AppConfig); 3] = [
    |_| (),
    |app| app.pools.get_mut("default").unwrap().resolve.mode = ResolveMode::First,
    |app| {
        let target = TargetConfig::new("srv:_app._tcp.web.test".to_owned(), 100);
        app.pools.get_mut("default").unwrap().targets = vec![target];
    },
];

pub(crate) fn greeter(name: &'static str) -> impl Fn(TcpStream) -> Task + Send + Sync + 'static {
    move |mut stream| {
        Box::pin(async move {
            send(&mut stream, name).await;
        })
    }
}

#[tokio::test]
async fn of_two_families_that_work_ipv6_is_used() {
    for way in WAYS {
        let (v4, v6) = both(64).await;
        let (v4, v6) = (Origin::on(v4, greeter("four")), Origin::on(v6, greeter("six")));
        let (_proxy, listen, _server) = serving_name(Tcp, v4.address, way).await;
        for _ in 0..20 {
            assert_eq!(rest(&mut connect(listen).await).await.unwrap(), b"six");
        }
        assert_eq!((v4.accepted(), v6.accepted()), (0, 20));
    }
}

#[tokio::test]
async fn a_family_that_leads_nowhere_delays_one_session_and_loses_none() {
    for way in WAYS {
        delays_one_session_and_loses_none(way).await;
    }
}

async fn delays_one_session_and_loses_none(way: fn(&mut AppConfig)) {
    let (v4, v6) = both(1).await;
    let queued = black_hole(&v6, 1).await;
    let v4 = Origin::on(v4, greeter("four"));
    let (proxy, listen, _server) = serving_name(Tcp, v4.address, way).await;
    let begun = Instant::now();
    assert_eq!(rest(&mut connect(listen).await).await.unwrap(), b"four");
    // Not sooner: IPv6 had its time. A timer may be a millisecond early by our clock.
    assert!(begun.elapsed() > ATTEMPT_DELAY - Duration::from_millis(10), "{:?}", begun.elapsed());
    eventually("the attempt that lost is closed", || !is_connecting(v4.address.port())).await;
    // Who comes next does not wait: nobody even tries the family that was silent, which is seen by its answering now.
    let v6 = Origin::on(v6, greeter("six"));
    eventually("it answers", || v6.accepted() == queued.len()).await;
    for _ in 0..20 {
        assert_eq!(rest(&mut connect(listen).await).await.unwrap(), b"four");
    }
    assert_eq!((v4.accepted(), v6.accepted()), (21, queued.len()));
    assert_eq!(proxy.status()[0].tally.unreached, 0);
    eventually("nothing is in flight", || proxy.status()[0].pins == 0).await;
}

#[tokio::test]
async fn a_family_that_refuses_is_passed_over_at_once() {
    for way in WAYS {
        let (v4, v6) = both(1).await;
        drop(v6);
        let v4 = Origin::on(v4, greeter("four"));
        let (proxy, listen, _server) = serving_name(Tcp, v4.address, way).await;
        for _ in 0..10 {
            assert_eq!(rest(&mut connect(listen).await).await.unwrap(), b"four");
        }
        assert_eq!(v4.accepted(), 10);
        assert_eq!(proxy.status()[0].tally.unreached, 0);
    }
}

#[tokio::test]
async fn a_host_of_a_service_is_tried_by_both_families_before_another_host_is() {
    let (v4, v6) = both(1).await;
    drop(v6);
    let dual = Origin::on(v4, greeter("dual"));
    let other = Origin::greeter("other").await;
    let server = NameServer::start().await;
    server.set("dual.test", "127.0.0.1 ::1");
    server.set("other.test", "127.0.0.1");
    let records = [("dual", &dual), ("other", &other)]
        .map(|(host, origin)| format!("0 1 {} {host}.test", origin.address.port()));
    server.set_service("_app._tcp.test", &records.each_ref().map(String::as_str));
    let proxy = proxy_with(|config| {
        config.workers = 1;
        config.name_server = Some(server.address);
    });
    let (mut config, listen) = app(Tcp, &[]);
    let pool = config.pools.get_mut("default").unwrap();
    pool.targets = vec![TargetConfig::new("srv:_app._tcp.test".to_owned(), 100)];
    pool.balance = BalanceConfig { strategy: "round_robin".to_owned(), ..BalanceConfig::default() };
    // It is refused each time, and stays the first choice.
    pool.outlier.consecutive_failures = 0;
    serve(&proxy, &config).await;
    eventually("resolved", || proxy.status()[0].targets[0].endpoints.len() == 3).await;
    for _ in 0..20 {
        rest(&mut connect(listen).await).await.unwrap();
    }
    assert_eq!((dual.accepted(), other.accepted()), (10, 10));
    assert_eq!(proxy.status()[0].tally.unreached, 0);
}

#[tokio::test]
async fn nobody_is_reached_when_one_family_is_silent_and_the_other_refuses() {
    let (v4, v6) = both(1).await;
    let _queued = black_hole(&v6, 1).await;
    let address = v4.local_addr().unwrap();
    drop(v4);
    let timeout = Duration::from_millis(800);
    let (proxy, listen, _server) =
        serving_name(Tcp, address, |config| config.timeouts.connect = timeout).await;
    assert_reset_at(listen).await;
    eventually("it counts as unreached", || proxy.status()[0].tally.unreached == 1).await;
    eventually("nothing is in flight", || proxy.status()[0].pins == 0).await;
    assert!(!is_connecting(address.port()));
}

#[tokio::test]
async fn requests_go_on_with_the_connection_that_was_first() {
    let (v4, v6) = both(1).await;
    let _queued = black_hole(&v6, 1).await;
    let v4 = Origin::on(v4, |mut stream| {
        Box::pin(async move {
            while head(&mut stream).await.is_ok() {
                send(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfour").await;
            }
        })
    });
    let (_proxy, listen, _server) = serving_name(Http, v4.address, |_| ()).await;
    let mut client = connect(listen).await;
    for _ in 0..3 {
        assert_eq!(get(&mut client, "/").await, (200, "four".to_owned()));
    }
    assert_eq!(v4.accepted(), 1);
}
