//! CONNECT: refused, unless a route asks for it.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD as STANDARD};
use flotilla_proxy::{
    AppConfig, Proxy,
    config::{BasicConfig, Protocol::Http, RouteConfig, UpstreamProtocol},
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::timeout};

use crate::support::*;

const CONNECT: &str = "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n";
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";

pub(crate) fn tunnels() -> RouteConfig {
    RouteConfig { connect: true, ..RouteConfig::hosts("tunnel", ["a"], "default") }
}

async fn tunnelling(origin: &Origin, change: impl FnOnce(&mut AppConfig)) -> (Proxy, SocketAddr) {
    let proxy = proxy();
    let (mut config, listen) = app(Http, &[origin.address]);
    config.routes = vec![tunnels()];
    change(&mut config);
    serve(&proxy, &config).await;
    (proxy, listen)
}

/// Everything that is answered to `request` until the end.
async fn all(listen: SocketAddr, request: &str) -> String {
    let mut client = connect(listen).await;
    send(&mut client, request).await;
    String::from_utf8(rest(&mut client).await.unwrap()).unwrap()
}

/// Agrees to each CONNECT, and then sends back what it gets.
async fn far_end() -> Origin {
    Origin::new(|mut stream| {
        Box::pin(async move {
            let Ok(_asked) = head(&mut stream).await else { return };
            send(&mut stream, "HTTP/1.1 200 OK\r\n\r\n").await;
            let (mut read, mut write) = stream.split();
            if tokio::io::copy(&mut read, &mut write).await.is_ok() {
                let _gone = write.shutdown().await;
            }
        })
    })
    .await
}

/// Refuses each CONNECT and answers other requests; the request lines it has seen.
async fn unwilling() -> (Origin, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let lines = Arc::clone(&seen);
    let origin = Origin::new(move |mut stream| {
        let lines = Arc::clone(&lines);
        Box::pin(async move {
            while let Ok(head) = head(&mut stream).await {
                let line = head.lines().next().unwrap().to_owned();
                let answer = match line.starts_with("CONNECT") {
                    true => "HTTP/1.1 403 Forbidden\r\ncontent-length: 3\r\n\r\nno\n",
                    false => "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nyes",
                };
                lines.lock().unwrap().push(line);
                send(&mut stream, answer).await;
            }
        })
    })
    .await;
    (origin, seen)
}

async fn open(listen: SocketAddr) -> TcpStream {
    let mut client = connect(listen).await;
    send(&mut client, format!("{CONNECT}hello")).await;
    assert_eq!(status(&head(&mut client).await.unwrap()), 200);
    assert_eq!(receive(&mut client, 5).await, b"hello");
    client
}

#[tokio::test]
async fn a_connect_that_no_route_asks_for_is_refused_as_it_always_was() {
    let (origin, seen) = unwilling().await;
    let text = "CONNECT is for forward proxies\n";
    let refused = format!(
        "HTTP/1.1 501 Not Implemented\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    );
    let (_plain, without) = serving(Http, &[origin.address]).await;
    let (_proxy, with) = tunnelling(&origin, |_| ()).await;
    for (listen, request) in [
        (without, CONNECT),
        (without, "CONNECT a:443 HTTP/1.1\r\nHost: b\r\nContent-Length: 1\r\n\r\nx"),
        (without, "CONNECT / HTTP/1.1\r\n\r\n"),
        (without, "CONNECT a:443 HTTP/1.0\r\n\r\n"),
        (with, "CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\n"),
        (with, "CONNECT a:443 HTTP/1.0\r\nHost: a:443\r\n\r\n"),
    ] {
        assert_eq!(all(listen, &format!("{request}{HIDDEN}")).await, refused, "{request}");
    }
    assert_eq!(*seen.lock().unwrap(), [""; 0]);
}

#[tokio::test]
async fn a_connect_becomes_a_tunnel_that_loses_no_byte() {
    let origin = Origin::new(|mut stream| {
        Box::pin(async move {
            let head = head(&mut stream).await.unwrap();
            assert!(head.starts_with("CONNECT a:443 HTTP/1.1\r\n"), "{head}");
            assert_eq!(field(&head, "host"), Some("a:443"), "{head}");
            assert_eq!(field(&head, "x-forwarded-for"), Some("127.0.0.1"), "{head}");
            assert_eq!(field(&head, "proxy-connection"), None, "{head}");
            let early = timeout(Duration::from_millis(50), stream.peek(&mut [0])).await;
            assert!(early.is_err(), "nothing comes before there is a tunnel");
            let fields = "content-length: 5\r\ntransfer-encoding: chunked\r\nconnection: close\r\nx-far: end";
            send(&mut stream, format!("HTTP/1.1 201 Fine\r\n{fields}\r\n\r\nfirst")).await;
            let (mut read, mut write) = stream.split();
            let _ended = tokio::io::copy(&mut read, &mut write).await;
            write.shutdown().await.unwrap();
        })
    })
    .await;
    let (_proxy, listen) = tunnelling(&origin, |_| ()).await;
    let mut client = connect(listen).await;
    let fields = "Host: a\r\nProxy-Connection: keep-alive\r\nConnection: upgrade\r\nUpgrade: chat";
    send(&mut client, format!("CONNECT a:443 HTTP/1.1\r\n{fields}\r\n\r\n{HIDDEN}")).await;
    let head = head(&mut client).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 201 Fine\r\n"), "{head}");
    assert_eq!(field(&head, "x-far"), Some("end"), "{head}");
    for gone in ["content-length", "transfer-encoding", "connection", "upgrade"] {
        assert_eq!(field(&head, gone), None, "{head}");
    }
    let first = format!("first{HIDDEN}");
    assert_eq!(receive(&mut client, first.len()).await, first.as_bytes());
    send(&mut client, "late").await;
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut client).await.unwrap(), b"late");
}

#[tokio::test]
async fn a_connect_that_is_declined_is_an_ordinary_request_unless_bytes_came_behind_it() {
    let (origin, seen) = unwilling().await;
    let (_proxy, listen) = tunnelling(&origin, |_| ()).await;
    let mut client = connect(listen).await;
    for _again in 0..2 {
        send(&mut client, CONNECT).await;
        let (head, body) = response(&mut client).await;
        assert_eq!((status(&head), body.as_str(), field(&head, "connection")), (403, "no\n", None));
        send(&mut client, "GET /good HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(response(&mut client).await.1, "yes", "a route for CONNECT takes other methods, too");
    }
    for early in [HIDDEN, "x", "\r\n"] {
        let mut client = connect(listen).await;
        send(&mut client, format!("{CONNECT}{early}")).await;
        let (head, body) = response(&mut client).await;
        assert_eq!((status(&head), body.as_str(), field(&head, "connection")), (403, "no\n", Some("close")));
        assert_eq!(rest(&mut client).await.unwrap(), b"", "{early:?}");
    }
    let (connect, good) = ("CONNECT a:443 HTTP/1.1", "GET /good HTTP/1.1");
    assert_eq!(*seen.lock().unwrap(), [connect, good, connect, good, connect, connect, connect]);
}

#[tokio::test]
async fn a_switch_of_protocols_is_no_answer_to_a_connect() {
    let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\n";
    let origin = Origin::once(answer, After::Hold).await;
    let (_proxy, listen) = tunnelling(&origin, |_| ()).await;
    let request = "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n";
    let answer = all(listen, &format!("{request}{HIDDEN}")).await;
    assert_eq!((status(&answer), answer.matches("HTTP/1.1").count()), (502, 1), "{answer}");
}

#[tokio::test]
async fn a_connect_that_two_could_read_differently_is_refused_and_not_forwarded() {
    let (origin, seen) = unwilling().await;
    let (_proxy, listen) = tunnelling(&origin, |_| ()).await;
    for (target, fields) in [
        ("a", "Host: a"),
        ("a:", "Host: a"),
        ("a:0", "Host: a:0"),
        ("a:65536", "Host: a:65536"),
        ("a:x", "Host: a"),
        (":443", "Host: a"),
        ("/", "Host: a"),
        ("*", "Host: a"),
        ("http://a:443/", "Host: a:443"),
        ("u@a:443", "Host: a:443"),
        ("a:443", "X: y"),
        ("a:443", "Host: b:443"),
        ("b:443", "Host: a"),
        ("a:443", "Host: a:443\r\nHost: a:443"),
        ("a:443", "Host: a:443\r\nContent-Length: 0"),
        ("a:443", "Host: a:443\r\nContent-Length: 33"),
        ("a:443", "Host: a:443\r\nTransfer-Encoding: chunked"),
        ("a:443", "Host: a:443\r\nTransfer-Encoding: chunked\r\nContent-Length: 33"),
        ("a:443", "Host: a:443\r\nTransfer-Encoding : chunked"),
    ] {
        let answer = all(listen, &format!("CONNECT {target} HTTP/1.1\r\n{fields}\r\n\r\n{HIDDEN}")).await;
        assert_eq!((status(&answer), answer.matches("HTTP/1.1").count()), (400, 1), "{target} {fields}");
    }
    assert_eq!(*seen.lock().unwrap(), [""; 0]);
}

#[tokio::test]
async fn a_connect_passes_the_guards_of_its_app() {
    let origin = far_end().await;
    let users = [("ann".to_owned(), bcrypt::hash("secret", 4).unwrap())].into();
    let basic = BasicConfig { users, ..BasicConfig::default() };
    let (_proxy, listen) = tunnelling(&origin, |app| app.access.basic = Some(basic)).await;
    let asked = |password: &str| {
        let word = STANDARD.encode(format!("ann:{password}"));
        format!("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nAuthorization: Basic {word}\r\n\r\n")
    };
    for request in [CONNECT.to_owned(), asked("guess")] {
        let answer = all(listen, &format!("{request}{}", asked("secret"))).await;
        assert_eq!((status(&answer), answer.matches("HTTP/1.1").count()), (401, 1), "{answer}");
    }
    assert_eq!(origin.accepted(), 0);
    let mut client = connect(listen).await;
    send(&mut client, asked("secret") + "hello").await;
    assert_eq!(status(&head(&mut client).await.unwrap()), 200);
    assert_eq!(receive(&mut client, 5).await, b"hello");
}

#[tokio::test]
async fn an_endpoint_in_http_2_gets_no_connect() {
    let origin = Origin::new(|stream| {
        Box::pin(async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                assert_ne!(request.method(), "CONNECT");
                let _gone = respond.send_response(http::Response::new(()), true);
            }
        })
    })
    .await;
    let http2 = |app: &mut AppConfig| {
        app.pools.get_mut("default").unwrap().protocol = UpstreamProtocol::Http2;
    };
    let (_proxy, listen) = tunnelling(&origin, http2).await;
    let answer = all(listen, &format!("{CONNECT}{HIDDEN}")).await;
    assert_eq!((status(&answer), answer.matches("HTTP/1.1").count()), (502, 1), "{answer}");
    let mut client = connect(listen).await;
    send(&mut client, HIDDEN).await;
    assert_eq!(status(&head(&mut client).await.unwrap()), 200);
}

#[tokio::test]
async fn a_tunnel_survives_every_shift_and_ends_with_its_generation() {
    let origin = far_end().await;
    let proxy = proxy();
    let (mut app, listen) = app(Http, &[origin.address]);
    app.routes = vec![tunnels()];
    serve(&proxy, &app).await;
    let mut session = open(listen).await;
    app.generation = 2;
    app.routes.clear();
    serve(&proxy, &app).await;
    assert_eq!(status(&all(listen, CONNECT).await), 501, "the new generation has no such route");
    send(&mut session, "still").await;
    assert_eq!(receive(&mut session, 5).await, b"still");
    let pins = || proxy.status().iter().find(|status| status.generation == 1).map(|status| status.pins);
    eventually("the tunnel alone is pinned", || pins() == Some(1)).await;
    proxy.remove("web", 1, Some(Duration::from_millis(200))).unwrap();
    assert_reset(&mut session).await;
}
