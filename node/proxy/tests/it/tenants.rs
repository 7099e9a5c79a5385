//! Several apps on one port.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use flotilla_proxy::{
    AppConfig, PortState, PrepareError, Proxy,
    config::{
        AccessConfig, NamesPolicy,
        Protocol::{self, Http, Tcp},
        ProxyProtocol, RouteConfig, TlsConfig,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use crate::{secure::*, support::*};

/// An app that has a port for these hosts; without any, for whatever nobody else claims.
fn tenant(
    name: &str,
    protocol: Protocol,
    listen: SocketAddr,
    hosts: &[&str],
    target: SocketAddr,
) -> AppConfig {
    let (mut app, _) = app(protocol, &[target]);
    app.app = name.into();
    app.ports[0].address = listen.ip();
    app.ports[0].port = listen.port();
    app.ports[0].hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
    app
}

fn next(app: &AppConfig, target: SocketAddr) -> AppConfig {
    let mut next = app.clone();
    next.generation += 1;
    next.pools.insert("default".into(), pool(&[target]));
    next
}

async fn ask(stream: &mut TcpStream, host: &str) -> (u16, String) {
    send(stream, format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
    let (head, body) = response(stream).await;
    (status(&head), body)
}

/// On a connection of its own.
async fn ask_once(listen: SocketAddr, host: &str) -> (u16, String) {
    ask(&mut connect(listen).await, host).await
}

#[tokio::test]
async fn each_request_goes_to_the_app_of_its_host_and_what_nobody_claims_to_nobody() {
    let (a, b, c) = (Origin::http("a").await, Origin::http("b").await, Origin::http("c").await);
    let (proxy, listen) = (proxy(), free());
    serve(&proxy, &tenant("a", Http, listen, &["a.test", "*.a.test"], a.address)).await;
    assert_eq!(ask_once(listen, "other.test").await.0, 404, "it has named its hosts");
    let mut early = connect(listen).await;
    assert_eq!(ask(&mut early, "a.test").await, (200, "a".into()));
    // By the hosts of its routes, all of which have some.
    let mut routed = tenant("b", Http, listen, &[], b.address);
    let pool = routed.pools.remove("default").unwrap();
    routed.pools.insert("b".into(), pool);
    routed.routes =
        vec![RouteConfig::hosts("one", ["b.test"], "b"), RouteConfig::hosts("two", ["b2.test"], "b")];
    serve(&proxy, &routed).await;
    // A connection from before knows the new app as well.
    for (host, app) in [("a.test", "a"), ("b.test", "b"), ("X.A.test:80", "a"), ("b2.test", "b")] {
        assert_eq!(ask(&mut early, host).await, (200, app.into()), "{host}");
    }
    assert_eq!(ask(&mut early, "c.test").await, (404, "no such host\n".into()));
    serve(&proxy, &tenant("c", Http, listen, &[], c.address)).await;
    let mut all = connect(listen).await;
    for (host, app) in [("c.test", "c"), ("a.test", "a"), ("b.test", "b")] {
        assert_eq!(ask(&mut all, host).await, (200, app.into()), "{host}");
    }
    // And the rest is nobody's again.
    proxy.remove("c", 1, None).unwrap();
    eventually("the one for the rest is gone", || !has(&proxy, "c")).await;
    assert_eq!(ask(&mut all, "a.test").await, (200, "a".into()));
    assert_eq!(ask(&mut all, "c.test").await.0, 404);
}

fn has(proxy: &Proxy, app: &str) -> bool {
    proxy.status().iter().any(|status| &*status.app == app)
}

async fn refused(proxy: &Proxy, app: AppConfig) -> String {
    match proxy.prepare(app).await {
        Err(PrepareError::Taken(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_two_apps_cannot_both_have_is_refused_by_name() {
    let origin = Origin::http("x").await;
    let (proxy, listen) = (proxy(), free());
    let port = listen.port();
    let of = |name: &str, hosts: &[&str]| tenant(name, Http, listen, hosts, origin.address);
    serve(&proxy, &of("a", &["a.test", "*.a.test"])).await;
    assert_eq!(
        refused(&proxy, of("b", &["b.test", "A.test."])).await,
        format!("port {port} belongs to app `a` for host `a.test`")
    );
    let mut tcp = of("b", &["b.test"]);
    tcp.ports[0].protocol = Tcp;
    assert!(refused(&proxy, tcp).await.ends_with("one speaks HTTP there and the other TCP"));
    let authority = Authority::new();
    authority.issue("b", &["b.test"]);
    let mut secure = of("b", &["b.test"]);
    secure.ports[0].tls = Some(authority.tls(&["b"]));
    assert!(refused(&proxy, secure).await.ends_with("one ends TLS there and the other does not"));
    let mut behind = of("b", &["b.test"]);
    behind.ports[0].proxy_protocol = ProxyProtocol::Accept;
    behind.ports[0].trusted_proxies = vec!["10.0.0.0/8".parse().unwrap()];
    assert!(refused(&proxy, behind).await.contains("they differ in `proxy_protocol`"));
    serve(&proxy, &of("rest", &[])).await;
    let why = refused(&proxy, of("b", &[])).await;
    assert_eq!(
        why,
        format!("port {port} belongs to app `rest` for any host; one of the two must name its hosts")
    );
    // Nothing of all that is left.
    assert!(!has(&proxy, "b"));
    // Its own next generation is not in its way; a host that it gives up is free once that is gone.
    serve(&proxy, &AppConfig { generation: 2, ..of("a", &["a.test"]) }).await;
    proxy.remove("a", 1, None).unwrap();
    serve(&proxy, &of("b", &["*.a.test"])).await;
}

/// Clients of one host, each on a connection that it keeps and on new ones in turn, until `stop`.
fn load(
    listen: SocketAddr,
    host: &'static str,
    answers: &'static [&'static str],
    stop: &Arc<AtomicBool>,
) -> Load {
    let (asked, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let (stop, asked, failed) = (Arc::clone(stop), Arc::clone(&asked), Arc::clone(&failed));
        tasks.spawn(async move {
            let mut kept = connect(listen).await;
            while !stop.load(SeqCst) {
                let (mut status, mut body) = ask(&mut kept, host).await;
                let is_right = |status: u16, body: &str| status == 200 && answers.contains(&body);
                asked.fetch_add(1, SeqCst);
                failed.fetch_add(usize::from(!is_right(status, &body)), SeqCst);
                (status, body) = ask_once(listen, host).await;
                asked.fetch_add(1, SeqCst);
                failed.fetch_add(usize::from(!is_right(status, &body)), SeqCst);
            }
        });
    }
    Load { asked, failed, tasks }
}

struct Load {
    asked: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
}

impl Load {
    async fn more(&self) {
        let before = self.asked.load(SeqCst);
        eventually("the load goes on", || self.asked.load(SeqCst) > before + 50).await;
    }

    async fn none_failed(mut self) -> usize {
        while let Some(task) = self.tasks.join_next().await {
            task.unwrap();
        }
        assert_eq!(self.failed.load(SeqCst), 0);
        self.asked.load(SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_shifts_goes_back_and_goes_away_while_another_serves_on_the_same_port() {
    let (a, a2, b) = (Origin::http("a").await, Origin::http("a2").await, Origin::http("b").await);
    let (proxy, listen) = (proxy(), free());
    let first = tenant("a", Http, listen, &["a.test"], a.address);
    serve(&proxy, &first).await;
    serve(&proxy, &tenant("b", Http, listen, &["b.test"], b.address)).await;
    let (stop, stop_b) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let on_a = load(listen, "a.test", &["a", "a2"], &stop);
    let on_b = load(listen, "b.test", &["b"], &stop_b);
    for generation in 2..12 {
        let second = AppConfig { generation, ..next(&first, a2.address) };
        proxy.prepare(second).await.unwrap();
        proxy.share("a", generation, 50, 1).unwrap();
        on_a.more().await;
        proxy.serve("a", generation).unwrap();
        on_a.more().await;
        proxy.serve("a", 1).unwrap();
        proxy.remove("a", generation, None).unwrap();
        on_a.more().await;
    }
    stop.store(true, SeqCst);
    let asked = on_a.none_failed().await;
    // Without clients it goes away, and the port stays the other one's.
    proxy.remove("a", 1, None).unwrap();
    on_b.more().await;
    eventually("it is gone", || !has(&proxy, "a")).await;
    on_b.more().await;
    assert_eq!(ask_once(listen, "a.test").await.0, 404);
    assert!(proxy.status().iter().all(|status| status.ports[0].state == PortState::Listening));
    // And comes back.
    serve(&proxy, &AppConfig { generation: 20, ..first }).await;
    assert_eq!(ask_once(listen, "a.test").await, (200, "a".into()));
    stop_b.store(true, SeqCst);
    assert!(asked + on_b.none_failed().await > 1_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_moves_from_one_app_to_another_without_a_request_between_them() {
    let (a, b) = (Origin::http("a").await, Origin::http("b").await);
    let (proxy, listen) = (proxy(), free());
    let of = |name: &str, generation: u64, hosts: &[&str], origin: &Origin| AppConfig {
        generation,
        ..tenant(name, Http, listen, hosts, origin.address)
    };
    serve(&proxy, &of("a", 1, &["a.test", "x.test"], &a)).await;
    serve(&proxy, &of("b", 1, &["b.test"], &b)).await;
    let stop = Arc::new(AtomicBool::new(false));
    let loads = [("x.test", &["a", "b"][..]), ("a.test", &["a"]), ("b.test", &["b"])]
        .map(|(host, answers)| load(listen, host, answers, &stop));
    // There and back again, each time with a generation of the taker that is never served.
    let mut serving = [("a", 1), ("b", 1)];
    for round in 0..10 {
        let (generation, is_there) = (2 + 2 * round, round % 2 == 0);
        let hosts: [&[&str]; 2] = if is_there {
            [&["a.test"], &["b.test", "x.test"]]
        } else {
            [&["a.test", "x.test"], &["b.test"]]
        };
        let [next_a, next_b] = [of("a", generation, hosts[0], &a), of("b", generation, hosts[1], &b)];
        let (giver, taker) = if is_there { (next_a, next_b) } else { (next_b, next_a) };
        assert!(refused(&proxy, taker.clone()).await.contains("for host `x.test`"));
        proxy.prepare(giver.clone()).await.unwrap();
        proxy.prepare(taker.clone()).await.unwrap();
        let third = of("c", 1, &["x.test"], &a);
        assert!(refused(&proxy, third).await.contains("for host `x.test`"), "one of them has it");
        proxy.remove(&taker.app, generation, None).unwrap();
        proxy.prepare(AppConfig { generation: generation + 1, ..taker.clone() }).await.unwrap();
        proxy.serve(&taker.app, generation + 1).unwrap();
        let now = if is_there { "b" } else { "a" };
        assert_eq!(ask_once(listen, "x.test").await, (200, now.into()));
        proxy.serve(&giver.app, generation).unwrap();
        assert_eq!(ask_once(listen, "x.test").await, (200, now.into()));
        for (app, generation) in serving {
            proxy.remove(app, generation, None).unwrap();
        }
        serving = if is_there {
            [("a", generation), ("b", generation + 1)]
        } else {
            [("a", generation + 1), ("b", generation)]
        };
        for load in &loads {
            load.more().await;
        }
        assert_eq!(ask_once(listen, "x.test").await, (200, now.into()));
    }
    stop.store(true, SeqCst);
    for load in loads {
        load.none_failed().await;
    }
    // Nobody holds it who does not have it.
    proxy.remove("a", 21, None).unwrap();
    eventually("it is gone", || !has(&proxy, "a")).await;
    serve(&proxy, &of("c", 1, &["x.test"], &b)).await;
}

#[tokio::test]
async fn a_name_of_two_apps_goes_to_the_newest_generation_that_serves() {
    let (a, b) = (Origin::http("a").await, Origin::http("b").await);
    let proxy = proxy_with(|config| config.names = NamesPolicy::NewestGeneration);
    let listen = free();
    let of = |name: &str, generation: u64, hosts: &[&str], origin: &Origin| AppConfig {
        generation,
        ..tenant(name, Http, listen, hosts, origin.address)
    };
    let whose = async || match ask_once(listen, "x.test").await {
        (200, whose) => whose,
        (status, body) => panic!("{status} {body}"),
    };
    // In whatever order they come.
    serve(&proxy, &of("b", 3, &["b.test", "x.test"], &b)).await;
    serve(&proxy, &of("a", 1, &["a.test", "x.test"], &a)).await;
    assert_eq!(whose().await, "b");
    // One that goes back gives it back.
    serve(&proxy, &of("b", 2, &["b.test"], &b)).await;
    assert_eq!(whose().await, "a");
    // Of those that share the clients all must have it.
    proxy.share("b", 3, 50, 2).unwrap();
    assert_eq!(whose().await, "a");
    proxy.serve("b", 3).unwrap();
    assert_eq!(whose().await, "b");
    // And so does one that gives it up, or takes it up again with an older generation.
    serve(&proxy, &of("a", 4, &["a.test"], &a)).await;
    assert_eq!(whose().await, "b");
    proxy.serve("a", 1).unwrap();
    assert_eq!(whose().await, "b");
    proxy.share("a", 4, 50, 1).unwrap();
    assert_eq!(whose().await, "b");
    proxy.serve("a", 1).unwrap();
    for generation in [2, 3] {
        proxy.remove("b", generation, None).unwrap();
    }
    eventually("it is gone", || !has(&proxy, "b")).await;
    assert_eq!(whose().await, "a");
    assert_eq!(ask_once(listen, "b.test").await.0, 404);
}

#[tokio::test]
async fn an_app_that_goes_takes_its_own_until_nobody_can_be_half_way_and_asks_to_come_elsewhere() {
    let (a, b) = (Origin::http("a").await, Origin::http("b").await);
    let proxy = proxy_with(|config| config.close_horizon = Some(Duration::from_secs(3600)));
    let listen = free();
    serve(&proxy, &tenant("a", Http, listen, &["a.test"], a.address)).await;
    serve(&proxy, &tenant("b", Http, listen, &["b.test"], b.address)).await;
    proxy.remove("a", 1, None).unwrap();
    let mut client = connect(listen).await;
    send(&mut client, "GET / HTTP/1.1\r\nhost: a.test\r\n\r\n").await;
    let (head, body) = response(&mut client).await;
    assert_eq!((status(&head), body.as_str(), field(&head, "connection")), (200, "a", Some("close")));
    let mut client = connect(listen).await;
    send(&mut client, "GET / HTTP/1.1\r\nhost: b.test\r\n\r\n").await;
    assert_eq!(field(&response(&mut client).await.0, "connection"), None);
    // Somebody else may have the host at once.
    let c = Origin::http("c").await;
    serve(&proxy, &tenant("c", Http, listen, &["a.test"], c.address)).await;
    assert_eq!(ask_once(listen, "a.test").await, (200, "c".into()));
    eventually("nothing of it is left", || !has(&proxy, "a")).await;
}

#[tokio::test]
async fn the_last_one_to_go_closes_the_port() {
    let (a, b) = (Origin::http("a").await, Origin::http("b").await);
    let (proxy, listen) = (proxy(), free());
    serve(&proxy, &tenant("a", Http, listen, &["a.test"], a.address)).await;
    serve(&proxy, &tenant("b", Http, listen, &["b.test"], b.address)).await;
    proxy.remove("b", 1, None).unwrap();
    proxy.remove("a", 1, None).unwrap();
    eventually("both are gone", || proxy.status().is_empty()).await;
    assert!(TcpStream::connect(listen).await.is_err());
    // The same port for something else, and by another app.
    let greeter = Origin::greeter("hi").await;
    serve(&proxy, &tenant("a", Tcp, listen, &[], greeter.address)).await;
    assert_eq!(receive(&mut connect(listen).await, 2).await, b"hi");
}

#[tokio::test]
async fn lists_of_who_may_come_are_each_apps_own() {
    let (a, b) = (Origin::http("a").await, Origin::http("b").await);
    let (proxy, listen) = (proxy(), free());
    let mut closed = tenant("a", Http, listen, &["a.test"], a.address);
    closed.access = AccessConfig { deny: vec!["127.0.0.0/8".parse().unwrap()], ..AccessConfig::default() };
    serve(&proxy, &closed).await;
    serve(&proxy, &tenant("b", Http, listen, &["b.test"], b.address)).await;
    assert_eq!(ask_once(listen, "a.test").await.0, 403);
    let mut client = connect(listen).await;
    assert_eq!(ask(&mut client, "b.test").await, (200, "b".into()));
    assert_eq!(ask(&mut client, "a.test").await.0, 403, "on a connection of the other app as well");
}

#[tokio::test]
async fn the_name_in_a_hello_chooses_the_app_and_its_certificates() {
    let authority = Authority::new();
    let [a_cert, b_cert] =
        [("a", "a.test"), ("b", "b.test")].map(|(file, name)| authority.issue(file, &[name]));
    let (a, b) = (Origin::http("a").await, Origin::http("b").await);
    let (proxy, listen) = (proxy(), free());
    let tls_of = |name| Some(TlsConfig { alpn: vec!["http/1.1".into()], ..authority.tls(&[name]) });
    let mut first = tenant("a", Http, listen, &["a.test"], a.address);
    first.ports[0].tls = tls_of("a");
    let mut second = tenant("b", Http, listen, &["b.test"], b.address);
    second.ports[0].tls = tls_of("b");
    serve(&proxy, &first).await;
    serve(&proxy, &second).await;
    let connector = authority.client().alpn(&["http/1.1"]).connector();
    for (name, cert, body) in [("a.test", &a_cert, "a"), ("b.test", &b_cert, "b")] {
        let mut stream = tls(&connector, listen, name).await.unwrap();
        assert_eq!(certificate(&stream), cert);
        assert!(over(&mut stream, name).await.ends_with(&format!("\r\n\r\n{body}")));
    }
    // A host that is not served here, on a connection to one that is.
    let mut stream = tls(&connector, listen, "a.test").await.unwrap();
    assert!(over(&mut stream, "c.test").await.starts_with("HTTP/1.1 421 "));
    let unknown = tls(&connector, listen, "c.test").await.unwrap_err();
    assert!(unknown.to_string().contains("UnrecognisedName"), "{unknown}");
    // Other settings than those of the listener.
    let mut other = tenant("c", Http, listen, &["c.test"], a.address);
    other.ports[0].tls = Some(authority.tls(&["a"]));
    assert!(refused(&proxy, other).await.ends_with("their TLS settings there differ: only certificates may"));
    // Somebody for the rest.
    let other = Origin::http("rest").await;
    let mut rest = tenant("rest", Http, listen, &[], other.address);
    rest.ports[0].tls = tls_of("b");
    serve(&proxy, &rest).await;
    let mut stream = tls(&connector, listen, "b.test").await.unwrap();
    assert!(over(&mut stream, "c.test").await.ends_with("rest"));
}

/// One request, and its answer up to the end of its body.
async fn over<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(stream: &mut S, host: &str) -> String {
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    read.expect("an answer in time").unwrap();
    String::from_utf8(answer).unwrap()
}

/// Ends TLS itself with this certificate and says its name.
async fn tls_origin(authority: &Authority, file: &'static str) -> (SocketAddr, Proxy, Origin) {
    let greeter = Origin::greeter(file).await;
    let proxy = proxy();
    let (mut app, listen) = app(Tcp, &[greeter.address]);
    app.ports[0].tls = Some(authority.tls(&[file]));
    serve(&proxy, &app).await;
    (listen, proxy, greeter)
}

#[tokio::test]
async fn sessions_pass_to_the_app_of_their_name_unopened() {
    let authority = Authority::new();
    for (file, name) in [("a", "a.test"), ("b", "b.test")] {
        authority.issue(file, &[name]);
    }
    let (a, b) = (tls_origin(&authority, "a").await, tls_origin(&authority, "b").await);
    let (proxy, listen) = (proxy(), free());
    serve(&proxy, &tenant("a", Tcp, listen, &["a.test"], a.0)).await;
    serve(&proxy, &tenant("b", Tcp, listen, &["b.test"], b.0)).await;
    let connector = authority.client().connector();
    for name in ["a", "b"] {
        let mut stream = tls(&connector, listen, &format!("{name}.test")).await.unwrap();
        let mut said = String::new();
        let _end = stream.read_to_string(&mut said).await;
        assert_eq!(said, name);
    }
    let unknown = tls(&connector, listen, "c.test").await.unwrap_err();
    assert!(unknown.to_string().contains("UnrecognisedName"), "{unknown}");
    // Whoever takes the rest takes what is no TLS, too.
    let echo = Origin::echo().await;
    serve(&proxy, &tenant("rest", Tcp, listen, &[], echo.address)).await;
    let mut plain = connect(listen).await;
    send(&mut plain, "hello").await;
    assert_eq!(receive(&mut plain, 5).await, b"hello");
    // Its going touches no session, not even its own.
    let mut stream = tls(&connector, listen, "a.test").await.unwrap();
    proxy.remove("rest", 1, None).unwrap();
    proxy.remove("b", 1, None).unwrap();
    eventually("both are gone", || !has(&proxy, "rest") && !has(&proxy, "b")).await;
    send(&mut plain, "again").await;
    assert_eq!(receive(&mut plain, 5).await, b"again");
    let mut said = String::new();
    let _end = stream.read_to_string(&mut said).await;
    assert_eq!(said, "a");
}
