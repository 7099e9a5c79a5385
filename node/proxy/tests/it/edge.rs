//! What comes before the protocol: TLS, PROXY headers, who may connect.

use std::{net::SocketAddr, time::Duration};

use flotilla_proxy::{
    AppConfig,
    config::{
        AccessConfig, PortConfig, Protocol, ProxyProtocol, ProxyVersion, RouteConfig, TlsConfig, TlsVersion,
    },
};
use rustls::{ProtocolVersion, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{secure::*, support::*};

const V12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];

fn with_tls(mut app: AppConfig, tls: TlsConfig) -> AppConfig {
    app.ports[0].tls = Some(tls);
    app
}

async fn says<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(stream: &mut S, text: &str) -> String {
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut back = vec![0; text.len()];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut back)).await.expect("an echo in time").unwrap();
    String::from_utf8(back).unwrap()
}

#[tokio::test]
async fn tls_ends_here_and_bytes_and_ends_go_both_ways() {
    let authority = Authority::new();
    authority.issue("web", &["web.test"]);
    let origin = Origin::echo().await;
    let proxy = proxy();
    let (app, listen) = app(Protocol::Tcp, &[origin.address]);
    let config = TlsConfig { alpn: vec!["echo".to_owned()], ..authority.tls(&["web"]) };
    serve(&proxy, &with_tls(app, config)).await;
    for (versions, want) in
        [(rustls::ALL_VERSIONS, ProtocolVersion::TLSv1_3), (V12, ProtocolVersion::TLSv1_2)]
    {
        let connector = authority.client().only(versions).alpn(&["other", "echo"]).connector();
        let mut stream = tls(&connector, listen, "web.test").await.unwrap();
        assert_eq!((version(&stream), alpn(&stream)), (want, "echo".to_owned()));
        assert_eq!(says(&mut stream, "hello").await, "hello");
        // More than any buffer on the way, read while it is written.
        let sent: Vec<u8> = (0..3_000_000u32).flat_map(|n| n.to_le_bytes()).collect();
        let (mut read, mut write) = tokio::io::split(stream);
        let mut got = Vec::new();
        let (copied, written) = tokio::join!(read.read_to_end(&mut got), async {
            write.write_all(&sent).await?;
            write.shutdown().await
        });
        written.unwrap();
        assert_eq!(copied.unwrap(), sent.len());
        assert!(got == sent);
    }
}

#[tokio::test]
async fn each_name_gets_its_certificate_and_strangers_the_first() {
    let authority = Authority::new();
    let web = authority.issue("web", &["web.test", "www.web.test"]);
    let star = authority.issue("star", &["*.star.test"]);
    let origin = Origin::echo().await;
    let proxy = proxy();
    let (app, listen) = app(Protocol::Tcp, &[origin.address]);
    serve(&proxy, &with_tls(app, authority.tls(&["web", "star"]))).await;
    let connector = authority.client().connector();
    for (name, want) in [("web.test", &web), ("WWW.web.test", &web), ("a.star.test", &star)] {
        let stream = tls(&connector, listen, name).await.unwrap();
        assert_eq!(certificate(&stream), want, "{name}");
    }
    for name in ["other.test", "a.b.star.test", "star.test"] {
        // The first certificate, which is for somebody else.
        let refused = tls(&connector, listen, name).await.unwrap_err();
        assert!(refused.to_string().contains("not valid for name"), "{name}: {refused}");
    }
}

#[tokio::test]
async fn a_changed_certificate_is_for_new_handshakes_and_closes_nothing() {
    let authority = Authority::new();
    let first = authority.issue("web", &["web.test"]);
    let origin = Origin::echo().await;
    let proxy = proxy();
    let (app, listen) = app(Protocol::Tcp, &[origin.address]);
    serve(&proxy, &with_tls(app, authority.tls(&["web"]))).await;
    let mut old = tls(&authority.client().connector(), listen, "web.test").await.unwrap();
    assert_eq!(certificate(&old), &first);
    // A file that is no certificate changes nothing.
    std::fs::write(authority.directory.path().join("web.pem"), "rubbish").unwrap();
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let still = tls(&authority.client().connector(), listen, "web.test").await.unwrap();
    assert_eq!(certificate(&still), &first);
    let second = authority.issue("web", &["web.test"]);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let new = tls(&authority.client().connector(), listen, "web.test").await.unwrap();
        if *certificate(&new) == second {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "the new certificate never came");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(says(&mut old, "still here").await, "still here");
}

#[tokio::test]
async fn a_session_is_resumed_on_any_worker_and_after_a_shift() {
    let authority = Authority::new();
    authority.issue("web", &["web.test"]);
    let origin = Origin::echo().await;
    let proxy = proxy();
    let (app, listen) = app(Protocol::Tcp, &[origin.address]);
    let mut app = with_tls(app, authority.tls(&["web"]));
    serve(&proxy, &app).await;
    for versions in [rustls::ALL_VERSIONS, V12] {
        let connector = authority.client().only(versions).connector();
        let mut first = tls(&connector, listen, "web.test").await.unwrap();
        assert!(!is_resumed(&first));
        // Tickets of TLS 1.3 come with the first bytes.
        assert_eq!(says(&mut first, "x").await, "x");
        for _ in 0..8 {
            let mut next = tls(&connector, listen, "web.test").await.unwrap();
            assert_eq!(says(&mut next, "x").await, "x");
            assert!(is_resumed(&next));
        }
        app.generation += 1;
        app.ports[0].tls.as_mut().unwrap().alpn.push(format!("unused-{}", app.generation));
        serve(&proxy, &app).await;
        let mut after = tls(&connector, listen, "web.test").await.unwrap();
        assert_eq!(says(&mut after, "x").await, "x");
        assert!(is_resumed(&after));
    }
}

#[tokio::test]
async fn a_minimum_version_and_client_certificates_are_insisted_on() {
    let (authority, others) = (Authority::new(), Authority::new());
    authority.issue("web", &["web.test"]);
    authority.issue("friend", &["friend.test"]);
    others.issue("stranger", &["stranger.test"]);
    let (_root, client_ca) = authority.root_file();
    let origin = Origin::echo().await;
    let proxy = proxy();
    let (app, listen) = app(Protocol::Tcp, &[origin.address]);
    let tls_config =
        TlsConfig { min_version: TlsVersion::V13, client_ca: Some(client_ca), ..authority.tls(&["web"]) };
    serve(&proxy, &with_tls(app, tls_config)).await;
    let old = authority.client().only(V12).shows(&authority, "friend").connector();
    assert!(tls(&old, listen, "web.test").await.is_err());
    let friend = authority.client().shows(&authority, "friend").connector();
    let mut stream = tls(&friend, listen, "web.test").await.unwrap();
    assert_eq!(says(&mut stream, "hello").await, "hello");
    for (who, connector) in [
        ("nobody", authority.client().connector()),
        ("stranger", authority.client().shows(&others, "stranger").connector()),
    ] {
        // In TLS 1.3 the client is done before the server has looked at its certificate.
        let mut stream = tls(&connector, listen, "web.test").await.unwrap();
        let _unheard = stream.write_all(b"hello").await;
        let error = stream.read_u8().await.expect_err(who);
        assert!(error.to_string().contains("fatal alert"), "{who}: {error}");
    }
    assert_eq!(origin.accepted(), 1);
}

#[tokio::test]
async fn a_client_that_says_nothing_loses_its_place() {
    let authority = Authority::new();
    authority.issue("web", &["web.test"]);
    let origin = Origin::echo().await;
    let proxy = proxy();
    let (app, listen) = app(Protocol::Tcp, &[origin.address]);
    let mut app = with_tls(app, authority.tls(&["web"]));
    app.timeouts.tls_handshake = Duration::from_millis(200);
    serve(&proxy, &app).await;
    let mut silent = connect(listen).await;
    let mut rude = connect(listen).await;
    send(&mut rude, "GET / HTTP/1.1\r\n\r\n").await;
    assert_eq!(rest(&mut silent).await.unwrap(), b"");
    let _alert = rest(&mut rude).await;
    eventually("both are gone", || proxy.connections() == 0).await;
    assert_eq!(origin.accepted(), 0);
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_is_named_before_anything_shifts() {
    let authority = Authority::new();
    authority.issue("web", &["web.test"]);
    authority.issue("other", &["web.test"]);
    let path = authority.directory.path();
    std::fs::copy(path.join("other.key"), path.join("web.key")).unwrap();
    let proxy = proxy();
    for (name, why) in [("web", "is not the key of"), ("missing", "there is no certificate `missing`")] {
        let (app, _) = app(Protocol::Tcp, &["127.0.0.1:1".parse().unwrap()]);
        let error = proxy.prepare(with_tls(app, authority.tls(&[name]))).await.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
}

fn named(name: &str, host: &str, pool: &str) -> RouteConfig {
    RouteConfig::hosts(name, [host], pool)
}

#[tokio::test]
async fn sessions_are_routed_by_the_name_in_their_hello_without_being_opened() {
    // Each origin ends TLS itself, in a proxy of its own.
    let authority = Authority::new();
    let a = authority.issue("a", &["a.test"]);
    let b = authority.issue("b", &["b.test", "x.b.test"]);
    let echo = Origin::echo().await;
    let behind = proxy();
    let mut addresses = Vec::new();
    for name in ["a", "b"] {
        let (mut app, listen) = app(Protocol::Tcp, &[echo.address]);
        app.app = name.into();
        serve(&behind, &with_tls(app, authority.tls(&[name]))).await;
        addresses.push(listen);
    }
    let front = proxy();
    let (mut app, listen) = app(Protocol::Tcp, &[]);
    app.pools.clear();
    app.pools.insert("a".to_owned(), pool(&addresses[..1]));
    app.pools.insert("b".to_owned(), pool(&addresses[1..]));
    app.routes = vec![named("a", "a.test", "a"), named("b", "b.test", "b"), named("stars", "*.b.test", "b")];
    serve(&front, &app).await;
    let connector = authority.client().connector();
    for (name, want) in [("a.test", &a), ("b.test", &b), ("x.b.test", &b)] {
        let mut stream = tls(&connector, listen, name).await.unwrap();
        assert_eq!(certificate(&stream), want, "{name}");
        assert_eq!(says(&mut stream, name).await, name);
    }
    // A name of nobody, and no TLS at all, are reset at once.
    tls(&connector, listen, "nobody.test").await.unwrap_err();
    let mut plain = connect(listen).await;
    send(&mut plain, "GET / HTTP/1.1\r\n\r\n").await;
    assert_reset(&mut plain).await;
}

/// An origin that tells the first line or header it gets, up to the client's `!`.
async fn tells() -> Origin {
    Origin::new(|mut stream| {
        Box::pin(async move {
            let mut heard = Vec::new();
            while let Ok(byte) = stream.read_u8().await {
                if byte == b'!' {
                    break;
                }
                heard.push(byte);
            }
            let _gone = stream.write_all(&heard).await;
        })
    })
    .await
}

fn behind_proxy(app: &mut AppConfig, mode: ProxyProtocol) {
    app.ports[0].proxy_protocol = mode;
    app.ports[0].trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
}

async fn heard(listen: SocketAddr, sent: &[u8]) -> std::io::Result<String> {
    // A refused one may be reset before this returns.
    let mut stream = tokio::net::TcpStream::connect(listen).await?;
    stream.write_all(sent).await?;
    rest(&mut stream).await.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

#[tokio::test]
async fn a_client_behind_a_trusted_proxy_is_passed_on_as_itself() {
    let origin = tells().await;
    let proxy = proxy();
    let (mut app, listen) = app(Protocol::Tcp, &[origin.address]);
    behind_proxy(&mut app, ProxyProtocol::Require);
    app.pools.get_mut("default").unwrap().send_proxy = Some(ProxyVersion::V1);
    serve(&proxy, &app).await;
    let line = "PROXY TCP4 192.0.2.7 198.51.100.1 1234 80\r\n";
    assert_eq!(heard(listen, format!("{line}hi!").as_bytes()).await.unwrap(), format!("{line}hi"));
    // Byte by byte it is the same.
    let mut slow = connect(listen).await;
    for byte in format!("{line}hi!").bytes() {
        send(&mut slow, [byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(rest(&mut slow).await.unwrap(), format!("{line}hi").into_bytes());
    // LOCAL: the proxy itself.
    let local = heard(listen, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0hi!").await.unwrap();
    assert!(local.starts_with("PROXY TCP4 127.0.0.1 127.0.0.1 "), "{local}");
    assert!(local.ends_with(&format!(" {}\r\nhi", listen.port())), "{local}");
    // No header, a broken one, or nothing at all.
    assert!(heard(listen, b"hi!").await.is_err());
    assert!(heard(listen, b"PROXY TCP4 nonsense\r\nhi!").await.is_err());
    assert_eq!(origin.accepted(), 3);
}

#[tokio::test]
async fn a_header_of_somebody_who_is_not_trusted_is_no_header() {
    let origin = tells().await;
    let proxy = proxy();
    for (mode, want) in [(ProxyProtocol::Accept, Some("PROXY UNKNOWN\r\nhi")), (ProxyProtocol::Require, None)]
    {
        let (mut app, listen) = app(Protocol::Tcp, &[origin.address]);
        behind_proxy(&mut app, mode);
        app.app = format!("{mode:?}").into();
        app.ports[0].trusted_proxies = vec!["10.0.0.0/8".parse().unwrap()];
        serve(&proxy, &app).await;
        let got = heard(listen, b"PROXY UNKNOWN\r\nhi!").await.ok();
        assert_eq!(got.as_deref(), want, "{mode:?}");
    }
}

#[tokio::test]
async fn a_proxy_that_sends_no_header_in_time_is_reset() {
    let origin = tells().await;
    let proxy = proxy();
    let (mut app, listen) = app(Protocol::Tcp, &[origin.address]);
    behind_proxy(&mut app, ProxyProtocol::Accept);
    serve(&proxy, &app).await;
    let mut slow = connect(listen).await;
    send(&mut slow, "PROXY TCP4 192").await;
    assert_reset(&mut slow).await;
    assert_eq!((origin.accepted(), proxy.connections()), (0, 0));
}

#[tokio::test]
async fn limits_and_lists_are_about_the_client_and_not_about_the_proxy_in_front() {
    let origin = Origin::echo().await;
    let proxy = proxy_with(|config| config.max_connections_per_source = 2);
    let (mut app, listen) = app(Protocol::Tcp, &[origin.address]);
    behind_proxy(&mut app, ProxyProtocol::Require);
    app.access.deny = vec!["192.0.2.0/25".parse().unwrap()];
    serve(&proxy, &app).await;
    let from = |client: &str| format!("PROXY TCP4 {client} 198.51.100.1 1234 80\r\nx");
    let open = |client: &'static str| async move {
        let mut stream = connect(listen).await;
        send(&mut stream, from(client)).await;
        let mut byte = [0];
        let got = tokio::time::timeout(PATIENCE, stream.read_exact(&mut byte)).await.unwrap();
        got.ok().map(|_| stream)
    };
    let _one = open("192.0.2.200").await.unwrap();
    let _two = open("192.0.2.200").await.unwrap();
    assert!(open("192.0.2.200").await.is_none());
    assert!(open("192.0.2.1").await.is_none());
    let _others: Vec<_> =
        [open("192.0.2.201").await, open("198.51.100.9").await].map(|stream| stream.unwrap()).into();
}

#[tokio::test]
async fn only_clients_on_the_list_come_in_and_the_list_changes_in_place() {
    let origin = Origin::echo().await;
    let proxy = proxy();
    let (mut app, listen) = app(Protocol::Tcp, &[origin.address]);
    for (allow, deny, is_admitted) in [
        ("127.0.0.0/8", None, true),
        ("127.0.0.0/8", Some("127.0.0.1/32"), false),
        ("10.0.0.0/8", None, false),
        ("0.0.0.0/0", Some("10.0.0.0/8"), true),
    ] {
        app.access = AccessConfig {
            allow: vec![allow.parse().unwrap()],
            deny: deny.into_iter().map(|deny| deny.parse().unwrap()).collect(),
            ..AccessConfig::default()
        };
        serve(&proxy, &app).await;
        app.generation += 1;
        if is_admitted {
            let mut stream = connect(listen).await;
            assert_eq!(says(&mut stream, "hello").await, "hello", "{allow} {deny:?}");
        } else {
            assert_reset_at(listen).await;
        }
    }
}

#[tokio::test]
async fn one_client_has_only_so_many_connections_to_an_app_over_all_its_generations() {
    let origin = Origin::echo().await;
    let proxy = proxy();
    let (mut app, listen) = app(Protocol::Tcp, &[origin.address]);
    app.limits.max_connections_per_source = 2;
    serve(&proxy, &app).await;
    let mut first = connect(listen).await;
    assert_eq!(says(&mut first, "x").await, "x");
    app.generation += 1;
    serve(&proxy, &app).await;
    let mut second = connect(listen).await;
    assert_eq!(says(&mut second, "x").await, "x");
    assert_reset_at(listen).await;
    drop(first);
    eventually("its place is free", || proxy.connections() == 1).await;
    let mut third = connect(listen).await;
    assert_eq!(says(&mut third, "x").await, "x");
}

#[tokio::test]
async fn a_port_that_reads_headers_of_nobody_is_refused() {
    let (mut app, listen) = app(Protocol::Tcp, &["127.0.0.1:1".parse().unwrap()]);
    app.ports =
        vec![PortConfig { proxy_protocol: ProxyProtocol::Accept, ..PortConfig::new(listen, Protocol::Tcp) }];
    let error = proxy().prepare(app).await.unwrap_err();
    assert!(error.to_string().contains("from nobody"), "{error}");
}
