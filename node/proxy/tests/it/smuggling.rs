//! Requests that two implementations could read differently never reach an origin.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use flotilla_proxy::config::Protocol::Http;

use crate::support::*;

/// An origin that counts the request heads it sees.
async fn counting() -> (Origin, Arc<AtomicUsize>) {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let origin = Origin::new(move |mut stream| {
        let count = Arc::clone(&count);
        Box::pin(async move {
            while head(&mut stream).await.is_ok() {
                count.fetch_add(1, SeqCst);
                send(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            }
        })
    })
    .await;
    (origin, seen)
}

#[tokio::test]
async fn every_ambiguous_request_is_refused_and_nothing_of_it_is_forwarded() {
    let (origin, seen) = counting().await;
    let (_proxy, listen) = serving(Http, &[origin.address]).await;
    let long_line = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(16 * 1024));
    let long_field = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(64 * 1024));
    let many_fields = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(100));
    for (request, want) in [
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX",
            400,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nX",
            400,
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nX", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nXY", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nX", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nX", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\nX", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 1\r\n\r\nX", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", 400),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
            400,
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
        ("GET / HTTP/1.1\nHost: a\n\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: y\nZ: w\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: y\rZ: w\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: y\0\r\n\r\n", 400),
        ("GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET http://u@b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 501),
        (&long_line, 414),
        (&long_field, 431),
        (&many_fields, 431),
    ] {
        let mut client = connect(listen).await;
        send(&mut client, request).await;
        let answer = String::from_utf8(rest(&mut client).await.unwrap()).unwrap();
        let start: String = request.chars().take(120).collect();
        assert!(answer.starts_with("HTTP/1.1 "), "{start:?}: {answer:?}");
        assert_eq!(status(&answer), want, "{start:?}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "one answer and the end: {start:?}");
    }
    assert_eq!(seen.load(SeqCst), 0);
}

#[tokio::test]
async fn a_request_hidden_behind_a_good_one_is_refused_after_the_answer_to_that() {
    let (origin, seen) = counting().await;
    let (_proxy, listen) = serving(Http, &[origin.address]).await;
    let mut client = connect(listen).await;
    let good = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    let evil = "POST /evil HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
    send(&mut client, format!("{good}{evil}")).await;
    let answer = String::from_utf8(rest(&mut client).await.unwrap()).unwrap();
    let statuses: Vec<&str> = answer.lines().filter(|line| line.starts_with("HTTP/1.1")).collect();
    assert_eq!(statuses, ["HTTP/1.1 200 OK", "HTTP/1.1 400 Bad Request"]);
    assert_eq!(seen.load(SeqCst), 1);
}

#[tokio::test]
async fn a_response_with_two_framings_is_not_forwarded() {
    for fields in [
        "content-length: 3\r\ntransfer-encoding: chunked",
        "transfer-encoding: gzip",
        "content-length: 3\r\ncontent-length: 3",
        "content-length: 3\r\ncontent-length: 4",
        "content-length: x",
        "x: y\r\n z",
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
        let origin = Origin::once(answer, After::Hold).await;
        let (_proxy, listen) = serving(Http, &[origin.address]).await;
        assert_eq!(get(&mut connect(listen).await, "/").await.0, 502, "{fields:?}");
    }
}
