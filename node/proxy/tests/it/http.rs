//! HTTP requests.

use std::time::Duration;

use flotilla_proxy::{
    AppConfig,
    config::{PathMatch, Protocol::Http, RouteConfig},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

use crate::support::*;

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// A client of a proxy in front of one origin that answers the first request with `answer`.
async fn answered(answer: &str, after: After, request: &str) -> (TcpStream, Origin, flotilla_proxy::Proxy) {
    let origin = Origin::once(answer, after).await;
    let (proxy, listen) = serving(Http, &[origin.address]).await;
    let mut client = connect(listen).await;
    send(&mut client, request).await;
    (client, origin, proxy)
}

async fn serving_with(
    origin: &Origin,
    change: impl FnOnce(&mut AppConfig),
) -> (flotilla_proxy::Proxy, TcpStream) {
    let proxy = proxy();
    let (mut config, listen) = app(Http, &[origin.address]);
    change(&mut config);
    serve(&proxy, &config).await;
    (proxy, connect(listen).await)
}

#[tokio::test]
async fn requests_of_one_connection_share_one_connection_to_the_origin() {
    let origin = Origin::http("hello").await;
    let (_proxy, listen) = serving(Http, &[origin.address]).await;
    let mut client = connect(listen).await;
    for _ in 0..50 {
        assert_eq!(get(&mut client, "/").await, (200, "hello".to_owned()));
    }
    assert_eq!(origin.accepted(), 1);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let origin = Origin::new(|mut stream| {
        Box::pin(async move {
            while let Ok(head) = head(&mut stream).await {
                let path = head.split(' ').nth(1).unwrap().to_owned();
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len());
                send(&mut stream, answer).await;
            }
        })
    })
    .await;
    let (_proxy, listen) = serving(Http, &[origin.address]).await;
    let mut client = connect(listen).await;
    let requests: String = (0..20).map(|n| format!("GET /{n} HTTP/1.1\r\nhost: a\r\n\r\n")).collect();
    send(&mut client, requests).await;
    for n in 0..20 {
        assert_eq!(response(&mut client).await.1, format!("/{n}"));
    }
}

#[tokio::test]
async fn routes_choose_the_pool_and_what_no_route_claims_is_not_found() {
    let (api, web) = (Origin::http("api").await, Origin::http("web").await);
    let (_proxy, mut client) = serving_with(&web, |app| {
        let default = app.pools.remove("default").unwrap();
        app.pools.insert("web".into(), default);
        app.pools.insert("api".into(), pool(&[api.address]));
        let route = |name: &str, path: &str| RouteConfig {
            path: Some(PathMatch::Prefix(path.into())),
            ..RouteConfig::hosts(name, Vec::<String>::new(), name)
        };
        app.routes = vec![route("api", "/api"), route("web", "/web")];
    })
    .await;
    assert_eq!(get(&mut client, "/api/x").await, (200, "api".into()));
    assert_eq!(get(&mut client, "/web").await, (200, "web".into()));
    assert_eq!(get(&mut client, "/other").await.0, 404);
    assert_eq!(get(&mut client, "/api").await, (200, "api".into()));
}

#[tokio::test]
async fn the_status_says_what_went_wrong() {
    let silent = Origin::new(|stream| Box::pin(hold(stream))).await;
    let (_proxy, mut client) =
        serving_with(&silent, |app| app.pools.get_mut("default").unwrap().targets.clear()).await;
    assert_eq!(get(&mut client, "/").await.0, 503);
    assert_eq!(get(&mut client, "/").await.0, 503, "the connection goes on");

    let (_proxy, listen) = serving(Http, &[free(), free()]).await;
    let mut client = connect(listen).await;
    assert_eq!(get(&mut client, "/").await.0, 502);
    assert_eq!(get(&mut client, "/").await.0, 502);

    let (_proxy, mut client) =
        serving_with(&silent, |app| app.timeouts.response_header = Duration::from_millis(200)).await;
    assert_eq!(get(&mut client, "/").await.0, 504);
    assert_eq!(get(&mut client, "/").await.0, 504);

    let (mut client, _origin, _proxy) = answered("nonsense\r\n\r\n", After::Hold, GET).await;
    assert_eq!(status(&response(&mut client).await.0), 502);

    let (mut client, _origin, _proxy) =
        answered("", After::Close, "POST / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(status(&response(&mut client).await.0), 502);

    // An address that drops what it gets: its SYNs are never answered.
    let (_proxy, mut client) = serving_with(&silent, |app| {
        app.pools.get_mut("default").unwrap().targets[0].address = "192.0.2.1:9".into();
        app.timeouts.connect = Duration::from_millis(300);
    })
    .await;
    let code = get(&mut client, "/").await.0;
    assert!(code == 504 || code == 502, "504, or 502 on a machine without a route there: {code}");
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_passed_over_for_another() {
    let origin = Origin::http("here").await;
    let (_proxy, listen) = serving(Http, &[free(), free(), origin.address]).await;
    for _ in 0..10 {
        assert_eq!(get(&mut connect(listen).await, "/").await, (200, "here".into()));
    }
}

#[tokio::test]
async fn responses_without_a_body_do_not_end_the_connection() {
    for (request, answer, want) in [
        ("HEAD / HTTP/1.1", "HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n", Some("500")),
        ("GET / HTTP/1.1", "HTTP/1.1 204 No Content\r\n\r\n", None),
        ("GET / HTTP/1.1", "HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\n\r\n", None),
    ] {
        let origin = Origin::new(move |mut stream| {
            Box::pin(async move {
                while head(&mut stream).await.is_ok() {
                    send(&mut stream, answer).await;
                }
            })
        })
        .await;
        let (_proxy, listen) = serving(Http, &[origin.address]).await;
        let mut client = connect(listen).await;
        for _ in 0..3 {
            send(&mut client, format!("{request}\r\nhost: a\r\n\r\n")).await;
            let head = head(&mut client).await.unwrap();
            assert_eq!(field(&head, "content-length"), want, "{head}");
        }
        assert_eq!(origin.accepted(), 1, "{answer}");
    }
}

#[tokio::test]
async fn a_response_until_the_end_of_its_connection_is_chunked_for_the_client() {
    let (mut client, _origin, _proxy) = answered("HTTP/1.0 200 OK\r\n\r\nhello", After::Close, GET).await;
    let head = head(&mut client).await.unwrap();
    assert_eq!((status(&head), field(&head, "transfer-encoding")), (200, Some("chunked")));
    assert_eq!(receive(&mut client, 15).await, b"5\r\nhello\r\n0\r\n\r\n");
}

#[tokio::test]
async fn a_response_that_breaks_off_is_a_reset_and_never_a_clean_end() {
    for after in [After::Close, After::Reset] {
        for answer in [
            "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        ] {
            let (mut client, _origin, _proxy) = answered(answer, after, GET).await;
            assert_reset(&mut client).await;
        }
    }
}

#[tokio::test]
async fn a_pooled_connection_that_turns_out_closed_costs_an_idempotent_request_nothing() {
    // The second request on each connection is read and never answered.
    let origin = Origin::new(|mut stream| {
        Box::pin(async move {
            head(&mut stream).await.unwrap();
            send(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            let _second = head(&mut stream).await;
        })
    })
    .await;
    let (_proxy, listen) = serving(Http, &[origin.address]).await;
    let mut client = connect(listen).await;
    for n in 1..10 {
        assert_eq!(get(&mut client, "/?a=b").await, (200, "ok".into()));
        assert_eq!(origin.accepted(), n);
    }
    send(&mut client, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(status(&response(&mut client).await.0), 502, "what may have had an effect is not repeated");
}

#[tokio::test]
async fn an_idle_pooled_connection_that_was_closed_is_not_used() {
    let origin = Origin::once("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", After::Close).await;
    let (_proxy, listen) = serving(Http, &[origin.address]).await;
    let mut client = connect(listen).await;
    for _ in 0..5 {
        send(&mut client, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(status(&response(&mut client).await.0), 200);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn large_bodies_stream_both_ways() {
    let origin = Origin::new(|mut stream| {
        Box::pin(async move {
            let head = head(&mut stream).await.unwrap();
            let mut left: usize = field(&head, "content-length").unwrap().parse().unwrap();
            send(&mut stream, format!("HTTP/1.1 200 OK\r\ncontent-length: {left}\r\n\r\n")).await;
            let mut buffer = vec![0; 64 * 1024];
            while left > 0 {
                let n = stream.read(&mut buffer).await.unwrap();
                stream.write_all(&buffer[..n]).await.unwrap();
                left -= n;
            }
            hold(stream).await;
        })
    })
    .await;
    let (_proxy, listen) = serving(Http, &[origin.address]).await;
    let mut client = connect(listen).await;
    let total = 32 * MIB;
    send(&mut client, format!("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: {total}\r\n\r\n")).await;
    assert_eq!(status(&head(&mut client).await.unwrap()), 200, "the response overtakes the request");
    let (mut read, mut write) = client.split();
    let upload = async {
        let chunk = vec![b'x'; MIB];
        for _ in 0..32 {
            write.write_all(&chunk).await.unwrap();
        }
    };
    let download = async {
        let mut buffer = vec![0; MIB];
        let mut got = 0;
        while got < total {
            let n = read.read(&mut buffer).await.unwrap();
            assert!(n > 0 && buffer[..n].iter().all(|byte| *byte == b'x'));
            got += n;
        }
    };
    tokio::join!(upload, download);
}

#[tokio::test]
async fn an_upload_goes_on_while_the_client_does_not_read_the_response() {
    let (got, mut told) = tokio::sync::mpsc::channel(1);
    let total = 8 * MIB;
    let origin = Origin::new(move |mut stream| {
        let got = got.clone();
        Box::pin(async move {
            head(&mut stream).await.unwrap();
            let (mut read, mut write) = stream.split();
            // More than all buffers on the way back can take.
            let answer = async {
                write.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 33554432\r\n\r\n").await.unwrap();
                let _stopped = write.write_all(&vec![b'y'; 32 * MIB]).await;
            };
            let upload = async {
                let mut body = vec![0; total];
                read.read_exact(&mut body).await.unwrap();
                got.send(()).await.unwrap();
            };
            tokio::join!(answer, upload);
        })
    })
    .await;
    let (_proxy, listen) = serving(Http, &[origin.address]).await;
    let mut client = connect(listen).await;
    send(&mut client, format!("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: {total}\r\n\r\n")).await;
    tokio::time::timeout(PATIENCE, client.write_all(&vec![b'x'; total])).await.expect("not stuck").unwrap();
    tokio::time::timeout(PATIENCE, told.recv()).await.expect("the whole upload in time").unwrap();
}

#[tokio::test]
async fn a_slow_reader_stops_the_origin_instead_of_filling_memory() {
    let (sent, told) = tokio::sync::watch::channel(0);
    let origin = Origin::new(move |mut stream| {
        let sent = sent.clone();
        Box::pin(async move {
            head(&mut stream).await.unwrap();
            send(&mut stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
            let chunk = [b"10000\r\n".to_vec(), vec![b'x'; 0x10000], b"\r\n".to_vec()].concat();
            for _ in 0..4096 {
                if stream.write_all(&chunk).await.is_err() {
                    return;
                }
                sent.send_modify(|n| *n += 0x10000);
            }
        })
    })
    .await;
    let (_proxy, listen) = serving(Http, &[origin.address]).await;
    let mut client = connect(listen).await;
    send(&mut client, GET).await;
    let mut before = usize::MAX;
    while before != *told.borrow() {
        before = *told.borrow();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(before < 64 * MIB, "{before} bytes of 256 MiB were taken from the origin");
}

#[tokio::test]
async fn a_body_of_unknown_length_arrives_whole_whatever_the_method() {
    for method in ["POST", "GET"] {
        let (got, mut told) = tokio::sync::mpsc::channel(1);
        let origin = Origin::new(move |mut stream| {
            let got = got.clone();
            Box::pin(async move {
                let head = head(&mut stream).await.unwrap();
                assert_eq!(field(&head, "transfer-encoding"), Some("chunked"), "{head}");
                let mut body = Vec::new();
                while !body.ends_with(b"0\r\n\r\n") {
                    body.push(stream.read_u8().await.unwrap());
                }
                got.send(String::from_utf8(body).unwrap()).await.unwrap();
                send(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                hold(stream).await;
            })
        })
        .await;
        let (_proxy, listen) = serving(Http, &[origin.address]).await;
        let mut client = connect(listen).await;
        let head = format!("{method} / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
        send(&mut client, format!("{head}5;x=y\r\nhello\r\n0\r\n\r\n")).await;
        assert_eq!(told.recv().await.unwrap(), "5\r\nhello\r\n0\r\n\r\n");
        assert_eq!(status(&response(&mut client).await.0), 200);
    }
}

const EXPECT: &str = "PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n";

#[tokio::test]
async fn a_client_that_expects_100_is_asked_for_its_body_only_when_the_origin_asks() {
    let origin = Origin::new(|mut stream| {
        Box::pin(async move {
            while let Ok(head) = head(&mut stream).await {
                assert_eq!(field(&head, "expect"), Some("100-continue"), "{head}");
                send(&mut stream, "HTTP/1.1 100 Continue\r\n\r\n").await;
                assert_eq!(receive(&mut stream, 5).await, b"hello");
                send(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            }
        })
    })
    .await;
    let (_proxy, listen) = serving(Http, &[origin.address]).await;
    let mut client = connect(listen).await;
    for _ in 0..3 {
        send(&mut client, EXPECT).await;
        assert_eq!(status(&head(&mut client).await.unwrap()), 100);
        send(&mut client, "hello").await;
        assert_eq!(status(&response(&mut client).await.0), 200);
    }
}

#[tokio::test]
async fn a_client_that_expects_100_gets_a_final_answer_without_it() {
    let answer = "HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\n\r\n";
    let (mut client, _origin, _proxy) = answered(answer, After::Hold, EXPECT).await;
    let (head, _) = response(&mut client).await;
    assert_eq!((status(&head), field(&head, "connection")), (413, Some("close")));
    assert_eq!(rest(&mut client).await.unwrap(), b"");
}

#[tokio::test]
async fn an_origin_that_ignores_the_expectation_gets_the_body_after_a_while() {
    let origin = Origin::http("ok").await;
    let (_proxy, listen) = serving(Http, &[origin.address]).await;
    let mut client = connect(listen).await;
    send(&mut client, EXPECT).await;
    assert_eq!(status(&head(&mut client).await.unwrap()), 100);
    send(&mut client, "hello").await;
    assert_eq!(response(&mut client).await.1, "ok");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_announced_or_not() {
    let origin = Origin::new(|stream| Box::pin(hold(stream))).await;
    for request in [
        "PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 11\r\n\r\n",
        "PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nb\r\n01234567890\r\n0\r\n\r\n",
    ] {
        let (_proxy, mut client) = serving_with(&origin, |app| app.limits.max_body_bytes = 10).await;
        send(&mut client, request).await;
        assert_eq!(status(&response(&mut client).await.0), 413, "{request:?}");
        assert_eq!(rest(&mut client).await.unwrap(), b"");
    }
}

#[tokio::test]
async fn a_head_that_does_not_come_and_a_connection_that_idles_are_ended() {
    let origin = Origin::http("ok").await;
    let (_proxy, mut client) =
        serving_with(&origin, |app| app.timeouts.request_header = Duration::from_millis(300)).await;
    let start = Instant::now();
    for byte in b"GET / HTTP/1.1\r\nhost: a\r\nx: 0123456789" {
        // The write may fail: the connection is ended before all is sent.
        let _ended = client.write_all(&[*byte]).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(status(&head(&mut client).await.unwrap()), 408);
    assert!(start.elapsed() >= Duration::from_millis(300));

    let (_proxy, mut client) =
        serving_with(&origin, |app| app.timeouts.idle = Duration::from_millis(300)).await;
    assert_eq!(get(&mut client, "/").await.0, 200);
    let start = Instant::now();
    assert_eq!(rest(&mut client).await.unwrap(), b"");
    assert!(start.elapsed() >= Duration::from_millis(200));
}

/// Longer than a connection is idle before it is parked.
const IDLE: Duration = Duration::from_millis(2_300);

#[tokio::test]
async fn a_parked_connection_goes_on_where_it_stood() {
    let origin = Origin::http("ok").await;
    let (proxy, mut client) = serving_with(&origin, |app| app.limits.max_requests_per_connection = 3).await;
    for _ in 0..2 {
        assert_eq!(get(&mut client, "/").await.0, 200);
        tokio::time::sleep(IDLE).await;
    }
    // A head in two pieces, and the last that the connection may carry.
    let (one, other) = GET.split_at(10);
    send(&mut client, one).await;
    tokio::time::sleep(IDLE).await;
    send(&mut client, other).await;
    assert_eq!(field(&head(&mut client).await.unwrap(), "connection"), Some("close"));
    assert_eq!(rest(&mut client).await.unwrap(), b"ok");
    eventually("it is gone", || proxy.connections() == 0).await;
}

#[tokio::test]
async fn a_parked_connection_ends_as_others_do() {
    let origin = Origin::http("ok").await;
    let parked = async || {
        let (proxy, mut client) =
            serving_with(&origin, |app| app.timeouts.idle = Duration::from_secs(3)).await;
        assert_eq!(get(&mut client, "/").await.0, 200);
        tokio::time::sleep(IDLE).await;
        (proxy, client)
    };
    // By its client.
    let (proxy, client) = parked().await;
    assert_eq!(proxy.connections(), 1);
    drop(client);
    eventually("it is gone", || proxy.connections() == 0).await;

    // By its idle time.
    let start = Instant::now();
    let (proxy, mut client) = parked().await;
    assert_eq!(rest(&mut client).await.unwrap(), b"");
    assert!(start.elapsed() >= Duration::from_millis(2_900), "{:?}", start.elapsed());
    eventually("it is gone", || proxy.connections() == 0).await;

    // By force.
    let (proxy, mut client) = parked().await;
    proxy.cut();
    assert!(rest(&mut client).await.is_err(), "a reset");
    eventually("it is gone", || proxy.connections() == 0).await;

    // By a node that stops, and tells it soon.
    let (proxy, mut client) = parked().await;
    let (ended, ()) = tokio::join!(rest(&mut client), proxy.shutdown(Duration::from_millis(200)));
    assert_eq!(ended.unwrap(), b"");
}

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel_that_loses_no_byte() {
    let origin = Origin::new(|mut stream| {
        Box::pin(async move {
            let head = head(&mut stream).await.unwrap();
            assert_eq!(field(&head, "upgrade"), Some("chat"), "{head}");
            send(
                &mut stream,
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\nfirst",
            )
            .await;
            let (mut read, mut write) = stream.split();
            let _ended = tokio::io::copy(&mut read, &mut write).await;
            write.shutdown().await.unwrap();
        })
    })
    .await;
    let (_proxy, listen) = serving(Http, &[origin.address]).await;
    let mut client = connect(listen).await;
    // What comes right behind the request is not HTTP, and neither refused nor lost.
    send(&mut client, "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\n\n\0early")
        .await;
    assert_eq!(status(&head(&mut client).await.unwrap()), 101);
    assert_eq!(receive(&mut client, 12).await, b"first\n\0early");
    send(&mut client, "late").await;
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut client).await.unwrap(), b"late");
}

#[tokio::test]
async fn an_upgrade_that_is_declined_is_an_ordinary_request() {
    let origin = Origin::http("no").await;
    let (_proxy, listen) = serving(Http, &[origin.address]).await;
    let mut client = connect(listen).await;
    let upgrade = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\n";
    send(&mut client, format!("{upgrade}{GET}{upgrade}{GET}")).await;
    for _ in 0..4 {
        assert_eq!(response(&mut client).await.1, "no");
    }
    let (mut client, _origin, _proxy) = answered(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
        After::Hold,
        GET,
    )
    .await;
    assert_eq!(status(&response(&mut client).await.0), 502, "nobody asked for it");
}

#[tokio::test]
async fn an_http_1_0_client_gets_an_answer_it_can_read() {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    let (mut client, _origin, _proxy) = answered(chunked, After::Hold, "GET / HTTP/1.0\r\n\r\n").await;
    let answer = String::from_utf8(rest(&mut client).await.unwrap()).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with("\r\n\r\nok"), "{answer}");
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_request_at_the_origin() {
    let (ended, mut told) = tokio::sync::mpsc::channel(1);
    let origin = Origin::new(move |stream| {
        let ended = ended.clone();
        Box::pin(async move {
            hold(stream).await;
            ended.send(()).await.unwrap();
        })
    })
    .await;
    let (proxy, listen) = serving(Http, &[origin.address]).await;
    let mut client = connect(listen).await;
    send(&mut client, GET).await;
    eventually("the request is at the origin", || origin.accepted() == 1).await;
    drop(client);
    tokio::time::timeout(PATIENCE, told.recv()).await.expect("the origin hears of it").unwrap();
    eventually("nothing is pinned", || proxy.status()[0].pins == 0 && proxy.connections() == 0).await;
}

#[tokio::test]
async fn idle_connections_are_cheap() {
    let origin = Origin::http("ok").await;
    let (_proxy, listen) = serving(Http, &[origin.address]).await;
    let before = resident();
    let mut clients = Vec::new();
    for _ in 0..500 {
        let mut client = connect(listen).await;
        assert_eq!(get(&mut client, "/").await.0, 200);
        clients.push(client);
    }
    let each = resident().saturating_sub(before) / clients.len();
    // Other tests run in this process, so this is a ceiling and not a measurement.
    assert!(each < 128 * 1024, "{each} bytes for one idle connection");
}

/// Resident bytes of this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
