//! Against real sockets, with servers that behave and servers that do not.

use std::{future::Future, net::SocketAddr};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::*;
use crate::{
    bench::{exchange::Http, report},
    output::Style,
};

/// A server on a free port of `host`; it ends with the value that owns its tasks.
async fn serve<F>(
    host: &str,
    answer: impl Fn(TcpStream, usize) -> F + Send + 'static,
) -> (SocketAddr, JoinSet<()>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind((host, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut sessions = JoinSet::new();
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            sessions.spawn(answer(stream, number));
        }
    });
    (address, server)
}

async fn echo(mut stream: TcpStream, _: usize) {
    let (mut reader, mut writer) = stream.split();
    drop(tokio::io::copy(&mut reader, &mut writer).await);
}

/// Answers `whoami` and echoes every other line, as the demo targets do.
async fn named(stream: TcpStream, name: String) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).await.is_ok_and(|count| count > 0) {
        let answer = if line == "whoami\n" { format!("{name}\n") } else { line.clone() };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
        line.clear();
    }
}

fn tcp(address: SocketAddr, payload_bytes: u32) -> Load {
    Load {
        addresses: vec![address],
        protocol: Protocol::Echo { payload_bytes, is_identifying: false },
        connections: 5,
        exchanges: Some(100),
        duration: None,
        rate: None,
        is_reconnecting: false,
        timeout: Duration::from_secs(20),
    }
}

fn http(address: SocketAddr, body_bytes: u32) -> Load {
    let http = Http { host: "shop.example".to_owned(), path: "/x".to_owned(), body_bytes };
    Load { protocol: Protocol::Http(http), ..tcp(address, 0) }
}

async fn tally(load: Load) -> Tally {
    run(load, CancellationToken::new()).await
}

fn faults(tally: &Tally) -> Vec<(Class, u64)> {
    tally.faults.iter().map(|(class, faults)| (*class, faults.count)).collect()
}

#[tokio::test]
async fn every_byte_of_a_large_payload_comes_back_on_kept_connections() {
    for host in ["127.0.0.1", "::1"] {
        let (address, _server) = serve(host, echo).await;
        // Larger than any socket buffer: it only comes back when both directions move at once.
        let tally = tally(Load { connections: 1, exchanges: Some(2), ..tcp(address, 24_000_000) }).await;
        assert_eq!((tally.succeeded, tally.failed()), (2, 0), "{:?}", tally.faults);
        assert_eq!((tally.connecting.count(), tally.exchanging.count()), (1, 2));
    }
}

#[tokio::test]
async fn reconnecting_clients_connect_for_each_exchange() {
    let (address, _server) = serve("127.0.0.1", echo).await;
    let tally = tally(Load { is_reconnecting: true, ..tcp(address, 64) }).await;
    assert_eq!((tally.succeeded, tally.connecting.count()), (100, 100));
}

#[tokio::test]
async fn targets_that_name_themselves_are_counted_and_echo_servers_stay_unknown() {
    let (address, _server) =
        serve("127.0.0.1", |stream, number| named(stream, format!("target-{}", number % 3))).await;
    let identifying = Protocol::Echo { payload_bytes: 64, is_identifying: true };
    let load = Load {
        protocol: identifying.clone(),
        exchanges: Some(300),
        is_reconnecting: true,
        ..tcp(address, 0)
    };
    let counted = tally(load).await;
    assert_eq!((counted.succeeded, counted.failed()), (300, 0), "{:?}", counted.faults);
    let targets: Vec<_> = counted.targets.iter().map(|(name, count)| (name.as_str(), *count)).collect();
    assert_eq!(targets, [("target-0", 100), ("target-1", 100), ("target-2", 100)]);
    let text = report::render(&counted, true, Style::PLAIN);
    assert!(text.contains("TARGET    EXCHANGES  SHARE\ntarget-0        100  33.3%\n"), "{text}");

    let (address, _server) = serve("127.0.0.1", echo).await;
    let unknown = tally(Load { protocol: identifying, ..tcp(address, 0) }).await;
    assert_eq!((unknown.succeeded, unknown.targets.len()), (100, 0));
    assert!(report::hint(&unknown).is_some() && report::hint(&counted).is_none());
    assert_eq!(report::document("a:1", &unknown)["targetUnknown"], 100);
}

#[tokio::test]
async fn without_a_payload_the_question_for_the_name_is_the_exchange() {
    let (address, _server) =
        serve("127.0.0.1", |stream, number| named(stream, format!("target-{number}"))).await;
    let protocol = Protocol::Echo { payload_bytes: 0, is_identifying: true };
    let kept = tally(Load { connections: 1, exchanges: Some(9), protocol, ..tcp(address, 0) }).await;
    assert_eq!(kept.targets, BTreeMap::from([("target-0".to_owned(), 9)]));
    assert_eq!((kept.connecting.count(), kept.exchanging.count()), (1, 9));
}

#[tokio::test]
async fn it_goes_on_after_errors_and_tells_them_apart() {
    // By turns: reset in the middle, end in the middle, another text, and an echo.
    let (address, _server) = serve("127.0.0.1", |mut stream, number| async move {
        let mut request = [0; 64];
        stream.read_exact(&mut request).await.unwrap();
        match number % 4 {
            0 => stream.set_zero_linger().unwrap(),
            1 => stream.write_all(&request[..10]).await.unwrap(),
            2 => stream.write_all(&[b'x'; 64]).await.unwrap(),
            _ => stream.write_all(&request).await.unwrap(),
        }
    })
    .await;
    let tally = tally(Load { is_reconnecting: true, ..tcp(address, 64) }).await;
    assert_eq!(tally.succeeded, 25);
    assert_eq!(faults(&tally), [(Class::Reset, 25), (Class::Truncated, 25), (Class::Mismatch, 25)]);
    assert_eq!(tally.faults[&Class::Truncated].example, "10 of 64 bytes came back");
    let text = report::render(&tally, true, Style::PLAIN);
    assert!(text.starts_with("✗ 100 exchanges in "), "{text}");
    assert!(text.contains("truncated     25  10 of 64 bytes came back\n"), "{text}");
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_refused() {
    let (address, server) = serve("127.0.0.1", echo).await;
    drop(server);
    // The task that owned the socket ends at its next turn.
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    let tally = tally(Load { exchanges: Some(7), ..tcp(address, 64) }).await;
    assert_eq!(faults(&tally), [(Class::Refused, 7)]);
    assert_eq!(tally.connecting.count(), 0);
}

#[tokio::test]
async fn a_server_that_stalls_is_a_timeout_and_the_next_exchange_has_a_new_connection() {
    let (address, _server) = serve("127.0.0.1", |stream, number| async move {
        if number == 0 {
            std::future::pending::<()>().await;
        }
        echo(stream, number).await;
    })
    .await;
    let timeout = Duration::from_millis(200);
    let tally = tally(Load { connections: 1, exchanges: Some(3), timeout, ..tcp(address, 64) }).await;
    assert_eq!((tally.succeeded, faults(&tally)), (2, vec![(Class::Timeout, 1)]));
    assert_eq!(tally.faults[&Class::Timeout].example, "no answer within 200ms");
}

/// Reads one request and says what to write.
async fn answer_http(stream: TcpStream, answers: &[String]) {
    let mut stream = BufReader::new(stream);
    for answer in answers {
        let (mut line, mut body_bytes) = (String::new(), 0);
        loop {
            line.clear();
            if stream.read_line(&mut line).await.is_ok_and(|count| count == 0) {
                return;
            }
            if let Some(bytes) = line.strip_prefix("content-length: ") {
                body_bytes = bytes.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        stream.read_exact(&mut vec![0; body_bytes]).await.unwrap();
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

#[tokio::test]
async fn http_targets_are_known_by_their_field_and_a_polite_close_is_no_error() {
    let (address, _server) = serve("127.0.0.1", |stream, number| async move {
        let answer = |more: &str| {
            format!("HTTP/1.1 200 OK\r\nx-target: t{}\r\n{more}content-length: 5\r\n\r\nhello", number % 2)
        };
        answer_http(stream, &[answer(""), answer(""), answer("connection: close\r\n")]).await;
    })
    .await;
    for body_bytes in [0, 100_000] {
        let tally = tally(Load { connections: 1, exchanges: Some(12), ..http(address, body_bytes) }).await;
        assert_eq!((tally.succeeded, tally.failed()), (12, 0), "{:?}", tally.faults);
        assert_eq!(tally.connecting.count(), 4);
        assert_eq!(tally.targets, BTreeMap::from([("t0".to_owned(), 6), ("t1".to_owned(), 6)]));
    }
}

#[tokio::test]
async fn http_failures_are_told_apart() {
    let (address, _server) = serve("127.0.0.1", |stream, number| async move {
        let answer = match number % 3 {
            0 => "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
            1 => "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
            _ => "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        };
        answer_http(stream, &[answer.to_owned()]).await;
    })
    .await;
    let tally = tally(Load { is_reconnecting: true, exchanges: Some(90), ..http(address, 0) }).await;
    assert_eq!((tally.succeeded, faults(&tally)), (30, vec![(Class::Truncated, 30), (Class::BadStatus, 30)]));
    assert_eq!(tally.faults[&Class::BadStatus].example, "status 503 Service Unavailable");
}

#[tokio::test]
async fn a_rate_is_kept_and_a_duration_ends_it() {
    let (address, _server) = serve("127.0.0.1", echo).await;
    let paced = tally(Load { rate: Some(200), exchanges: Some(41), ..tcp(address, 64) }).await;
    assert_eq!(paced.succeeded, 41);
    // The last of 41 exchanges is due after 40/200 of a second.
    assert!(paced.elapsed >= Duration::from_millis(200), "{:?}", paced.elapsed);

    let duration = Some(Duration::from_millis(100));
    let bounded = tally(Load { exchanges: None, duration, ..tcp(address, 64) }).await;
    assert!(bounded.elapsed >= Duration::from_millis(100));
    assert!(bounded.succeeded > 0);
    assert_eq!(bounded.failed(), 0);
}

#[tokio::test]
async fn a_load_that_is_stopped_shows_what_it_has() {
    let (address, _server) = serve("127.0.0.1", |stream, _| async move {
        let _stream = stream;
        std::future::pending().await
    })
    .await;
    let stop = CancellationToken::new();
    stop.cancel();
    let tally = run(tcp(address, 64), stop).await;
    assert_eq!((tally.succeeded, tally.failed()), (0, 0));
}
