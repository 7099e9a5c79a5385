//! Connections that are there before the first request.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use flotilla_proxy::{
    AppConfig, Proxy,
    config::{
        Protocol::{Http, Tcp},
        UpstreamProtocol, UpstreamTls,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
};

use crate::{secure::Authority, support::*};

/// An origin that says who of its connections answers, and counts those that are open.
struct Counted {
    origin: Origin,
    open: Arc<AtomicUsize>,
    /// Requests for `/wait` are answered when this is true.
    go: watch::Sender<bool>,
}

impl Counted {
    async fn start() -> Counted {
        let (open, numbers) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (go, gone) = watch::channel(false);
        let count = Arc::clone(&open);
        let origin = Origin::new(move |mut stream| {
            let (open, number, mut go) = (Arc::clone(&count), numbers.fetch_add(1, SeqCst), gone.clone());
            open.fetch_add(1, SeqCst);
            Box::pin(async move {
                while let Ok(head) = head(&mut stream).await {
                    if head.starts_with("GET /wait ") {
                        go.wait_for(|go| *go).await.unwrap();
                    }
                    let number = number.to_string();
                    let length = number.len();
                    send(&mut stream, format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{number}"))
                        .await;
                }
                open.fetch_sub(1, SeqCst);
            })
        })
        .await;
        Counted { origin, open, go }
    }

    fn open(&self) -> usize {
        self.open.load(SeqCst)
    }
}

async fn warm(origin: &Origin, change: impl FnOnce(&mut AppConfig)) -> (Proxy, std::net::SocketAddr) {
    // One worker, so that the counts are of one.
    let proxy = proxy_with(|config| config.workers = 1);
    let (mut config, listen) = app(Http, &[origin.address]);
    config.pools.get_mut("default").unwrap().warm = 3;
    change(&mut config);
    proxy.prepare(config.clone()).await.unwrap();
    (proxy, listen)
}

#[tokio::test]
async fn they_are_open_before_a_generation_serves_and_carry_the_first_requests() {
    let counted = Counted::start().await;
    let (proxy, listen) = warm(&counted.origin, |_| ()).await;
    eventually("three are open", || counted.origin.accepted() == 3).await;
    proxy.serve("web", 1).unwrap();
    let mut client = connect(listen).await;
    let (status, number) = get(&mut client, "/").await;
    assert_eq!(status, 200);
    assert!(number.parse::<usize>().unwrap() < 3, "by connection {number}");
    // Those in use are replaced, and no more than those.
    let mut busy = connect(listen).await;
    send(&mut busy, "GET /wait HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually("one more is open", || counted.origin.accepted() == 4).await;
    counted.go.send_replace(true);
    assert_eq!(crate::support::status(&response(&mut busy).await.0), 200);
    for _ in 0..20 {
        assert_eq!(get(&mut client, "/").await.0, 200);
    }
    assert_eq!((counted.origin.accepted(), counted.open()), (4, 4));
}

#[tokio::test]
async fn each_worker_and_each_target_has_its_own() {
    let (one, other) = (Counted::start().await, Counted::start().await);
    let proxy = proxy();
    let (mut config, _) = app(Http, &[one.origin.address, other.origin.address]);
    config.pools.get_mut("default").unwrap().warm = 2;
    serve(&proxy, &config).await;
    eventually("two for each of two workers", || one.open() == 4 && other.open() == 4).await;
}

#[tokio::test]
async fn those_that_the_origin_closes_or_that_get_too_old_are_opened_again() {
    // Closes what says nothing for a while, as servers do.
    let open = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&open);
    let origin = Origin::new(move |mut stream| {
        let open = Arc::clone(&count);
        open.fetch_add(1, SeqCst);
        Box::pin(async move {
            let _late = tokio::time::timeout(Duration::from_millis(300), head(&mut stream)).await;
            drop(stream);
            open.fetch_sub(1, SeqCst);
        })
    })
    .await;
    let (_proxy, _) = warm(&origin, |_| ()).await;
    eventually("three times three were open", || origin.accepted() >= 9).await;
    eventually("three are open", || open.load(SeqCst) == 3).await;

    let counted = Counted::start().await;
    let (_proxy, _) = warm(&counted.origin, |app| {
        app.pools.get_mut("default").unwrap().idle_timeout = Duration::from_millis(1_500);
    })
    .await;
    eventually("three times three were open", || counted.origin.accepted() >= 9).await;
    eventually("the old ones are closed", || counted.open() <= 6).await;
}

#[tokio::test]
async fn they_go_with_the_app_and_stay_with_a_generation_that_has_the_same_pool() {
    let counted = Counted::start().await;
    let (proxy, listen) = warm(&counted.origin, |_| ()).await;
    proxy.serve("web", 1).unwrap();
    eventually("three are open", || counted.open() == 3).await;
    let (mut next, _) = app(Http, &[counted.origin.address]);
    (next.generation, next.ports[0].port) = (2, listen.port());
    next.pools.get_mut("default").unwrap().warm = 3;
    serve(&proxy, &next).await;
    proxy.remove("web", 1, None).unwrap();
    eventually("the first one is gone", || proxy.status().len() == 1).await;
    let mut client = connect(listen).await;
    assert!(get(&mut client, "/").await.1.parse::<usize>().unwrap() < 3);
    drop(client);
    proxy.remove("web", 2, None).unwrap();
    // After the port has closed, the sweeps of some seconds.
    let deadline = tokio::time::Instant::now() + 4 * PATIENCE;
    while counted.open() > 0 {
        assert!(tokio::time::Instant::now() < deadline, "{} are still open", counted.open());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // One more if a round of upkeep met the request.
    assert!(counted.origin.accepted() <= 4);
}

#[tokio::test]
async fn an_origin_that_comes_late_is_found() {
    let address = free();
    let proxy = proxy_with(|config| config.workers = 1);
    let (mut config, _) = app(Http, &[address]);
    config.pools.get_mut("default").unwrap().warm = 3;
    serve(&proxy, &config).await;
    // Long enough that a first attempt has failed; it is none the worse if it has not.
    tokio::time::sleep(Duration::from_millis(700)).await;
    let origin = Origin::on(tokio::net::TcpListener::bind(address).await.unwrap(), |stream| {
        Box::pin(async move { hold(stream).await })
    });
    eventually("three are open", || origin.accepted() == 3).await;
}

/// An origin inside TLS that counts finished handshakes, and answers with the number of the connection.
async fn secure(authority: &Authority) -> (Origin, Arc<AtomicUsize>) {
    let finished = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&finished);
    let acceptor = authority.acceptor("web");
    let origin = Origin::new(move |stream| {
        let (finished, acceptor) = (Arc::clone(&count), acceptor.clone());
        Box::pin(async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let number = finished.fetch_add(1, SeqCst);
            let mut head = Vec::new();
            while let Ok(byte) = stream.read_u8().await {
                head.push(byte);
                if head.ends_with(b"\r\n\r\n") {
                    head.clear();
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{number:02}");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        })
    })
    .await;
    (origin, finished)
}

#[tokio::test]
async fn inside_tls_the_handshakes_are_done_ahead() {
    let authority = Authority::new();
    authority.issue("web", &["web.test"]);
    let (_root, ca) = authority.root_file();
    let (origin, finished) = secure(&authority).await;
    let (proxy, listen) = warm(&origin, |app| {
        let pool = app.pools.get_mut("default").unwrap();
        let server_name = Some("web.test".to_owned());
        pool.tls = Some(UpstreamTls { server_name, ca, identity: None });
    })
    .await;
    // The first one told that it is not one that others share.
    eventually("three are ready", || finished.load(SeqCst) == 3).await;
    proxy.serve("web", 1).unwrap();
    let mut client = connect(listen).await;
    let (status, number) = get(&mut client, "/").await;
    assert_eq!(status, 200);
    assert!(number.parse::<usize>().unwrap() < 3, "by connection {number}");
    assert!(origin.accepted() <= 4, "one more if a round of upkeep met the request");
}

#[tokio::test]
async fn in_http2_one_connection_is_enough_and_it_is_not_closed_for_being_idle() {
    // Behind a proxy that speaks it.
    let origin = Origin::http("hello").await;
    let behind = proxy_with(|config| config.workers = 1);
    let (inner, address) = app(Http, &[origin.address]);
    serve(&behind, &inner).await;
    let relay = Origin::new(move |mut stream| {
        Box::pin(async move {
            let mut inner = connect(address).await;
            let _ended = tokio::io::copy_bidirectional(&mut stream, &mut inner).await;
        })
    })
    .await;
    let (proxy, listen) = warm(&relay, |app| {
        let pool = app.pools.get_mut("default").unwrap();
        pool.protocol = UpstreamProtocol::Http2;
        pool.idle_timeout = Duration::from_millis(100);
    })
    .await;
    eventually("one is open", || relay.accepted() == 1).await;
    proxy.serve("web", 1).unwrap();
    // Several sweeps later it is still the same.
    tokio::time::sleep(Duration::from_millis(1_600)).await;
    let mut client = connect(listen).await;
    for _ in 0..3 {
        assert_eq!(get(&mut client, "/").await, (200, "hello".to_owned()));
    }
    assert_eq!(relay.accepted(), 1);
}

#[tokio::test]
async fn bytes_have_none_and_who_asks_is_told() {
    let proxy = proxy();
    let (mut config, _) = app(Tcp, &[free()]);
    config.pools.get_mut("default").unwrap().warm = 1;
    let refused = proxy.prepare(config).await.unwrap_err().to_string();
    assert!(refused.contains("connections are opened ahead for HTTP ports"), "{refused}");
}
