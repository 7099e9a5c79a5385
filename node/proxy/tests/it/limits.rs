//! What may be in flight at once, who waits for it, and how often a client may ask.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use flotilla_proxy::{
    AppConfig, Proxy,
    config::{
        AccessConfig, Http2Limits, Limits, Protocol, ProxyProtocol, RateConfig, RateKey, RetryConfig,
        RouteConfig,
    },
};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};

use crate::{
    frames::{ACK, Raw, SETTINGS, WINDOW_UPDATE},
    support::*,
};

/// An origin that answers as many requests as it is allowed to, and counts those that it has.
struct Gated {
    origin: Origin,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    allowed: Arc<Semaphore>,
    seen: watch::Receiver<usize>,
}

async fn gated(name: &'static str) -> Gated {
    let (now, most) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let allowed = Arc::new(Semaphore::new(0));
    let (sender, seen) = watch::channel(0);
    let sender = Arc::new(sender);
    let parts = (Arc::clone(&now), Arc::clone(&most), Arc::clone(&allowed));
    let origin = Origin::new(move |mut stream| {
        let ((now, most, allowed), sender) = (parts.clone(), Arc::clone(&sender));
        Box::pin(async move {
            while let Ok(head) = head(&mut stream).await {
                most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                sender.send_modify(|seen| *seen += 1);
                let mut byte = [0];
                let is_allowed = tokio::select! {
                    permit = allowed.acquire() => { permit.unwrap().forget(); true }
                    // Nobody waits for it any more.
                    _gone = stream.peek(&mut byte) => false,
                };
                now.fetch_sub(1, SeqCst);
                if !is_allowed {
                    return;
                }
                let path = head.split(' ').nth(1).unwrap();
                let body = format!("{name}{path}");
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                send(&mut stream, answer).await;
            }
        })
    })
    .await;
    Gated { origin, now, most, allowed, seen }
}

impl Gated {
    /// Waits until so many requests have come in all.
    async fn saw(&self, n: usize) {
        let mut seen = self.seen.clone();
        tokio::time::timeout(PATIENCE, seen.wait_for(|seen| *seen >= n)).await.expect("in time").unwrap();
    }
}

async fn serving(origins: &[&Gated], limits: Limits) -> (Proxy, AppConfig, SocketAddr) {
    let proxy = proxy();
    let addresses: Vec<_> = origins.iter().map(|gated| gated.origin.address).collect();
    let (mut config, listen) = app(Protocol::Http, &addresses);
    config.limits = limits;
    serve(&proxy, &config).await;
    (proxy, config, listen)
}

async fn asking(listen: SocketAddr, path: &str) -> TcpStream {
    let mut client = connect(listen).await;
    send(&mut client, format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
    client
}

/// Takes out the one of these that is refused, which says what it is told.
async fn refused(clients: &mut Vec<TcpStream>) -> String {
    let refused = {
        let readable = clients.iter().map(|client| Box::pin(client.readable()));
        let (ready, at, _) = tokio::time::timeout(PATIENCE, futures_util::future::select_all(readable))
            .await
            .expect("one too many");
        ready.unwrap();
        at
    };
    response(&mut clients.remove(refused)).await.0
}

#[tokio::test]
async fn requests_beyond_the_bound_wait_and_beyond_that_are_refused() {
    for by_target in [false, true] {
        let origin = gated("o").await;
        let limits = Limits {
            max_in_flight: if by_target { 0 } else { 2 },
            target_hard: if by_target { 2 } else { 0 },
            max_pending: 3,
            pending_timeout: PATIENCE * 3,
            ..Limits::default()
        };
        let (_proxy, _, listen) = serving(&[&origin], limits).await;
        let mut clients = vec![asking(listen, "/1").await, asking(listen, "/2").await];
        origin.saw(2).await;
        let mut waiting = Vec::new();
        for path in ["/3", "/4", "/5", "/6"] {
            waiting.push(asking(listen, path).await);
        }
        let head = refused(&mut waiting).await;
        assert_eq!((status(&head), field(&head, "retry-after")), (503, Some("1")), "{head}");
        assert_eq!(origin.now.load(SeqCst), 2);
        clients.append(&mut waiting);
        origin.allowed.add_permits(clients.len());
        for client in &mut clients {
            assert_eq!(status(&response(client).await.0), 200, "by target: {by_target}");
        }
        assert_eq!(origin.most.load(SeqCst), 2, "by target: {by_target}");
    }
}

#[tokio::test]
async fn a_wait_ends_with_its_deadline_and_with_its_client() {
    let origin = gated("o").await;
    let limits = Limits {
        max_in_flight: 1,
        max_pending: 1,
        pending_timeout: Duration::from_millis(300),
        ..Limits::default()
    };
    let (proxy, mut config, listen) = serving(&[&origin], limits).await;
    let mut first = asking(listen, "/first").await;
    origin.saw(1).await;
    let mut late = asking(listen, "/late").await;
    let (head, body) = response(&mut late).await;
    assert_eq!((status(&head), body.as_str()), (503, "too many requests at once\n"));
    drop(late);
    // From now on nobody is late, but some go away.
    config.generation = 2;
    config.limits.pending_timeout = PATIENCE * 3;
    serve(&proxy, &config).await;
    for round in 2..5 {
        let mut clients = vec![asking(listen, "/a").await, asking(listen, "/b").await];
        assert_eq!(status(&refused(&mut clients).await), 503);
        // The other one waits, and goes.
        clients.into_iter().for_each(reset);
        eventually("only the first is there", || proxy.connections() == 1).await;
        origin.allowed.add_permits(1);
        assert_eq!(status(&response(&mut first).await.0), 200);
        first = asking(listen, "/next").await;
        origin.saw(round).await;
    }
    origin.allowed.add_permits(1);
    assert_eq!(status(&response(&mut first).await.0), 200);
}

#[tokio::test]
async fn a_target_beyond_its_soft_bound_is_passed_over_and_never_goes_beyond_the_hard_one() {
    let (one, other) = (gated("one").await, gated("other").await);
    let limits = Limits { target_soft: 2, target_hard: 3, max_pending: 100, ..Limits::default() };
    let (_proxy, _, listen) = serving(&[&one, &other], limits).await;
    let mut clients = JoinSet::new();
    let mut ask = |count: usize| {
        for _ in 0..count {
            clients.spawn(async move {
                let mut client = asking(listen, "/").await;
                status(&response(&mut client).await.0)
            });
        }
    };
    ask(4);
    one.saw(2).await;
    other.saw(2).await;
    ask(2);
    one.saw(3).await;
    other.saw(3).await;
    ask(2);
    // Two more wait. Whoever answers first gets the next one.
    one.allowed.add_permits(2);
    one.saw(5).await;
    one.allowed.add_permits(3);
    other.allowed.add_permits(3);
    let statuses = clients.join_all().await;
    assert_eq!(statuses, [200; 8]);
    assert_eq!((one.most.load(SeqCst), other.most.load(SeqCst)), (3, 3));
}

#[tokio::test]
async fn sessions_wait_for_a_target_as_well() {
    let echo = Origin::echo().await;
    let proxy = proxy();
    let (mut config, listen) = app(Protocol::Tcp, &[echo.address]);
    config.limits =
        Limits { target_hard: 1, max_pending: 1, pending_timeout: PATIENCE * 3, ..Limits::default() };
    serve(&proxy, &config).await;
    let mut first = connect(listen).await;
    send(&mut first, "a").await;
    assert_eq!(receive(&mut first, 1).await, b"a");
    // One of them waits and the other one is refused, maybe before its `connect` has returned.
    let mut clients = [TcpStream::connect(listen).await, TcpStream::connect(listen).await];
    let ended = async |client: &mut io::Result<TcpStream>| match client {
        Ok(stream) => rest(stream).await.expect_err("a reset, not a clean end").kind(),
        Err(error) => error.kind(),
    };
    let [one, other] = &mut clients;
    let (refused, how) = tokio::select! {
        how = ended(one) => (0, how),
        how = ended(other) => (1, how),
    };
    assert_eq!(how, io::ErrorKind::ConnectionReset);
    drop(first);
    let waiting = clients[1 - refused].as_mut().unwrap();
    send(waiting, "b").await;
    assert_eq!(receive(waiting, 1).await, b"b");
}

#[tokio::test]
async fn each_client_has_a_rate_of_its_own() {
    let origin = Origin::http("fine").await;
    let proxy = proxy();
    let (mut config, listen) = app(Protocol::Http, &[origin.address]);
    let rate = |key| Some(RateConfig { key, per_second: 1, burst: 3, max_keys: 1000 });
    config.limits.rate = rate(RateKey::Header("x-key".to_owned()));
    serve(&proxy, &config).await;
    let mut client = connect(listen).await;
    let mut ask = async |key: &str| {
        send(&mut client, format!("GET / HTTP/1.1\r\nhost: a\r\n{key}\r\n\r\n")).await;
        response(&mut client).await.0
    };
    let heads = [ask("x-key: a").await, ask("X-Key: a").await, ask("x-key: a").await, ask("x-key: a").await];
    assert_eq!(heads.each_ref().map(|head| status(head)), [200, 200, 200, 429]);
    assert!(field(&heads[3], "retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(status(&ask("x-key: b").await), 200);
    // Without the field it is the address.
    let nameless = [ask("y: a").await, ask("y: b").await, ask("y: c").await, ask("y: d").await];
    assert_eq!(nameless.each_ref().map(|head| status(head)), [200, 200, 200, 429]);
    // A change that leaves the rate as it is forgives nothing.
    config.generation = 2;
    config.retry = RetryConfig { attempts: 2, ..RetryConfig::default() };
    serve(&proxy, &config).await;
    assert_eq!(status(&ask("y: e").await), 429);
    // By route: all clients of one together.
    config.generation = 3;
    config.routes = vec![RouteConfig::hosts("a", ["a"], "default")];
    config.limits.rate = rate(RateKey::Route);
    serve(&proxy, &config).await;
    let routed = [ask("x-key: 1").await, ask("x-key: 2").await, ask("x-key: 3").await, ask("x-key: 4").await];
    assert_eq!(routed.each_ref().map(|head| status(head)), [200, 200, 200, 429]);
}

#[tokio::test]
async fn a_new_deny_ends_connections_that_were_let_in() {
    let origin = Origin::http("fine").await;
    let proxy = proxy();
    let (mut config, listen) = app(Protocol::Http, &[origin.address]);
    serve(&proxy, &config).await;
    let mut client = connect(listen).await;
    assert_eq!(get(&mut client, "/").await.0, 200);
    config.generation = 2;
    config.access = AccessConfig { deny: vec!["127.0.0.0/8".parse().unwrap()], ..AccessConfig::default() };
    serve(&proxy, &config).await;
    send(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let head = response(&mut client).await.0;
    assert_eq!((status(&head), field(&head, "connection")), (403, Some("close")));
    assert_eq!(rest(&mut client).await.unwrap(), b"");
}

#[tokio::test]
async fn how_long_a_hello_and_a_proxy_header_may_take_are_settings() {
    let origin = Origin::echo().await;
    let (patient, hasty) = (Duration::from_secs(60), Duration::from_millis(100));
    let start = async |proxy_header_timeout, hello_timeout| {
        let proxy = proxy_with(|config| {
            config.proxy_header_timeout = proxy_header_timeout;
            config.hello_timeout = hello_timeout;
        });
        let (mut config, listen) = app(Protocol::Tcp, &[origin.address]);
        config.ports[0].proxy_protocol = ProxyProtocol::Accept;
        config.ports[0].trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
        config.routes = vec![RouteConfig::hosts("a", ["a.test"], "default")];
        serve(&proxy, &config).await;
        (proxy, listen)
    };
    let header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n";
    for (what, begins, hurries) in [
        ("a PROXY header", &b"PROXY TCP4 "[..], start(hasty, patient).await),
        ("a hello", &[&header[..], b"\x16\x03"].concat(), start(patient, hasty).await),
    ] {
        let (_waits, listen) = start(patient, patient).await;
        let mut waiting = connect(listen).await;
        send(&mut waiting, begins).await;
        let mut hurried = connect(hurries.1).await;
        send(&mut hurried, begins).await;
        // With a reset or without: it is over.
        let _ended = rest(&mut hurried).await;
        // The one that came first is still waited for.
        let open = timeout(Duration::from_millis(50), waiting.read_u8()).await;
        assert!(open.is_err(), "{what}: {open:?}");
    }
}

#[tokio::test]
async fn what_a_client_may_ask_of_http2_is_a_setting_and_it_is_told() {
    let origin = Origin::http("").await;
    let http2 = Http2Limits {
        streams: 7,
        stream_window_bytes: 70_000,
        connection_window_bytes: 200_000,
        header_list_bytes: 9_000,
        header_table_bytes: 1_000,
        ..Http2Limits::default()
    };
    let proxy = proxy_with(|config| config.http2 = http2);
    let (config, listen) = app(Protocol::Http, &[origin.address]);
    serve(&proxy, &config).await;
    let mut raw = Raw::connect(listen).await;
    let mut settings = BTreeMap::new();
    let mut window = 65_535;
    while settings.is_empty() || window == 65_535 {
        let (kind, flags, stream, payload) = raw.frame().await.expect("it goes on");
        match (kind, flags & ACK, stream) {
            (SETTINGS, 0, 0) => settings.extend(payload.chunks(6).map(|one| {
                let (id, value) = one.split_at(2);
                (u16::from_be_bytes(id.try_into().unwrap()), u32::from_be_bytes(value.try_into().unwrap()))
            })),
            (WINDOW_UPDATE, _, 0) => window += u32::from_be_bytes(payload.try_into().unwrap()),
            _ => {}
        }
    }
    // RFC 9113 §6.5.2.
    let said = [1, 3, 4, 6].map(|id| settings.get(&id).copied());
    assert_eq!(said, [Some(1_000), Some(7), Some(70_000), Some(9_000)], "{settings:?}");
    assert_eq!(window, 200_000);
}

#[tokio::test]
async fn each_worker_lets_memory_go_while_nothing_happens() {
    static WORKERS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let _proxy = proxy_with(|config| {
        config.give_back = || {
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            WORKERS.lock().unwrap().insert(name);
        }
    });
    eventually("both workers give back", || WORKERS.lock().unwrap().len() == 2).await;
}
