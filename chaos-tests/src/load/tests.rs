//! Each outcome, from a server that misbehaves in exactly that way.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
};

use socket2::SockRef;

use super::*;
use crate::origin;

/// Serves connections one after the other until the process ends; a test's process is short.
fn server(session: impl Fn(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || listener.incoming().for_each(|stream| session(stream.unwrap())));
    address
}

/// Reads one request, TCP or HTTP.
fn receive(stream: &mut TcpStream) {
    let mut buffer = [0; 4096];
    assert!(stream.read(&mut buffer).unwrap() > 0);
}

fn answer(answer: impl AsRef<[u8]> + Send + 'static) -> SocketAddr {
    server(move |mut stream| {
        receive(&mut stream);
        stream.write_all(answer.as_ref()).unwrap();
    })
}

fn reset(mut stream: TcpStream) {
    receive(&mut stream);
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

async fn check(load: Load, expected: Outcome) {
    let report = load.clients(2).operations(6).timeout(Duration::from_millis(300)).run().await;
    assert_eq!(report.count(expected), 6, "{report}");
    assert_eq!(report.total(), 6, "{report}");
}

#[tokio::test]
async fn every_way_in_which_an_echo_fails_is_counted_as_what_it_is() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    check(Load::tcp([closed]), Outcome::Refused).await;
    check(Load::tcp([server(reset)]), Outcome::Reset).await;
    check(Load::tcp([answer("000")]), Outcome::Eof).await;
    check(Load::tcp([answer([b'x'; 64])]), Outcome::Mismatch).await;
    let silent = server(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
    check(Load::tcp([silent]), Outcome::Timeout).await;
    check(Load::tcp([origin::Echo::start("echo").address()]), Outcome::Ok).await;
}

#[tokio::test]
async fn every_way_in_which_a_request_fails_is_counted_as_what_it_is() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for load in [|to| Load::http([to], "/"), |to| Load::http_keep_alive([to], "/")] {
        check(load(closed), Outcome::Refused).await;
        check(load(server(reset)), Outcome::Reset).await;
        check(load(answer("")), Outcome::Eof).await;
        check(load(answer("HTTP/1.1 200 OK\r\ncontent-le")), Outcome::Eof).await;
        check(load(answer("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort")), Outcome::Eof).await;
        check(load(answer("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nshort")), Outcome::Eof)
            .await;
        check(load(answer("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n")), Outcome::BadStatus).await;
        check(load(answer("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")), Outcome::Mismatch).await;
        check(load(answer("HTTP/1.1 200 OK\r\nx-token: 77\r\ncontent-length: 0\r\n\r\n")), Outcome::Mismatch)
            .await;
        check(load(answer("SSH-2.0-OpenSSH_9.2\r\n")), Outcome::Mismatch).await;
        let silent = server(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
        check(load(silent), Outcome::Timeout).await;
        check(load(origin::Http::start("http").address()), Outcome::Ok).await;
    }
}

/// Answers each request properly; `Connection: close` or not, it closes after `per_connection` of them.
fn closing_origin(per_connection: usize, announce: bool) -> SocketAddr {
    server(move |mut stream| {
        for served in 1..=per_connection {
            let mut request = [0; 4096];
            let read = stream.read(&mut request).unwrap();
            let request = String::from_utf8_lossy(&request[..read]).into_owned();
            let Some((_, token)) = request.split_once("x-token: ") else { return };
            let token = token.lines().next().unwrap();
            let close = if announce && served == per_connection { "connection: close\r\n" } else { "" };
            let reply = format!("HTTP/1.1 200 OK\r\nx-token: {token}\r\n{close}content-length: 0\r\n\r\n");
            stream.write_all(reply.as_bytes()).unwrap();
        }
    })
}

#[tokio::test]
async fn a_kept_connection_that_ends_between_two_requests_is_no_failure() {
    // Where the end is not announced, the pace leaves the client time to see it.
    for (announce, per_second) in [(true, 1_000), (false, 20)] {
        let address = closing_origin(2, announce);
        let load = Load::http_keep_alive([address], "/").clients(1).per_second(per_second).operations(10);
        let report = load.run().await;
        report.assert_clean();
        assert_eq!((report.ok(), report.reconnects()), (10, 4), "{report}");
    }
}

#[tokio::test]
async fn requests_on_a_kept_connection_share_it() {
    let origin = origin::Http::start("one");
    let report = Load::http_keep_alive([origin.address()], "/").clients(3).operations(300).run().await;
    report.assert_clean();
    assert_eq!(report.answered_by()["one"], 300);
    assert_eq!(origin.connections(), 3);
    let report = Load::http([origin.address()], "/").clients(3).operations(300).run().await;
    report.assert_clean();
    assert_eq!(origin.connections(), 303);
}

#[tokio::test]
async fn the_rate_is_kept_and_the_duration_ends_the_load() {
    let echo = origin::Echo::start("echo");
    let report = Load::tcp([echo.address()]).per_second(500).duration(Duration::from_secs(1)).run().await;
    report.assert_clean();
    assert_eq!(report.total(), 500);
}

#[tokio::test]
async fn a_stopped_load_finishes_what_it_has_begun() {
    let origin = origin::Http::start("slow");
    let running = Load::http([origin.address()], "/slow?ms=200").clients(4).start();
    crate::poll::eventually("four requests arrive", Duration::from_secs(5), async || {
        match origin.requests() {
            4.. => Ok(()),
            fewer => Err(fewer),
        }
    })
    .await;
    let report = running.stop().await;
    report.assert_clean();
    assert_eq!(report.total(), origin.requests());
}

#[tokio::test]
#[should_panic(expected = "Refused 5")]
async fn a_report_with_failures_is_not_clean() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    Load::tcp([closed]).operations(5).run().await.assert_clean();
}

/// How fast the instrument itself is: `cargo test -p flotilla-chaos-tests --lib -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "a measurement; needs the machine for itself"]
async fn the_load_opens_5_000_connections_per_second() {
    let echo = origin::Echo::start("echo");
    let http = origin::Http::start("http");
    for load in [
        Load::tcp([echo.address()]),
        Load::http([http.address()], "/"),
        Load::http_keep_alive([http.address()], "/"),
    ] {
        let report = load.duration(Duration::from_secs(5)).run().await;
        eprintln!("{report}");
        report.assert_clean();
        assert!(report.throughput() >= 5_000.0, "{report}");
    }
}
