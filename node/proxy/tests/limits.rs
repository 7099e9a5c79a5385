//! The limits as the house document lists them: on without being asked for, and counted when they are reached. In a
//! process of its own, where memory and counters are nobody else's.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(target_os = "linux")]

#[path = "it/frames.rs"]
#[allow(dead_code, reason = "each program uses what it needs")]
mod frames;
#[path = "it/support.rs"]
#[allow(dead_code, reason = "each program uses what it needs")]
mod support;

use std::{net::SocketAddr, sync::LazyLock, time::Duration};

use flotilla_proxy::{
    AppConfig, ProxyConfig,
    config::{
        Http2Limits, Limits, Protocol, ProxyProtocol, RateConfig, RateKey, RetryConfig, RouteConfig, Timeouts,
    },
    metrics,
};
use frames::{Outcome, Raw, frame};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use support::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Mutex,
    task::JoinSet,
    time::Instant,
};

/// What is measured is of the whole process.
static ALONE: Mutex<()> = Mutex::const_new(());
static EXPORTER: LazyLock<PrometheusHandle> = LazyLock::new(|| {
    let exporter = PrometheusBuilder::new().install_recorder().expect("no other test installs one");
    metrics::describe();
    exporter
});

fn count(line: &str) -> u64 {
    let text = EXPORTER.render();
    let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
    value.map_or(0, |value| value.parse().unwrap())
}

fn hits(limit: &str) -> u64 {
    count(&format!("flotilla_limit_hits_total{{limit=\"{limit}\"}}"))
}

#[test]
fn every_limit_is_on_without_being_asked_for() {
    let (proxy, limits, timeouts) = (ProxyConfig::default(), Limits::default(), Timeouts::default());
    assert_eq!((proxy.max_connections, proxy.max_connections_per_source), (50_000, 1_024));
    assert_eq!(proxy.memory_budget, None, "what the machine allows");
    let seconds = Duration::from_secs;
    assert_eq!((proxy.proxy_header_timeout, proxy.hello_timeout), (seconds(3), seconds(5)));
    let http2 = Http2Limits {
        streams: 100,
        stream_window_bytes: 64 << 10,
        connection_window_bytes: 1 << 20,
        header_list_bytes: 64 << 10,
        header_table_bytes: 4 << 10,
        resets: 100,
        pings: 100,
        settings: 100,
    };
    assert_eq!(proxy.http2, http2);
    let Limits {
        max_header_bytes,
        max_request_line_bytes,
        max_header_fields,
        max_requests_per_connection,
        ..
    } = limits;
    assert_eq!((max_header_bytes, max_request_line_bytes, max_header_fields), (64 << 10, 16 << 10, 100));
    assert_eq!((max_requests_per_connection, limits.max_pending), (10_000, 1_000));
    assert_eq!(limits.pending_timeout, seconds(2));
    assert_eq!(RateConfig::default().max_keys, 65_536);
    assert_eq!(
        (timeouts.request_header, timeouts.request_body, timeouts.idle),
        (seconds(10), seconds(30), seconds(60))
    );
    assert_eq!(
        (timeouts.connect, timeouts.tls_handshake, timeouts.tunnel),
        (seconds(2), seconds(5), seconds(3600))
    );
    let retry = RetryConfig::default();
    assert_eq!((retry.attempts, retry.budget_percent, retry.hedge), (1, 20, None));
}

/// One way to reach a limit: a configuration, and what so many connections send.
struct Row {
    limit: &'static str,
    change: fn(&mut AppConfig),
    start: fn(&mut ProxyConfig),
    connections: usize,
    sends: Vec<u8>,
}

fn row(
    limit: &'static str,
    change: fn(&mut AppConfig),
    connections: usize,
    sends: impl Into<Vec<u8>>,
) -> Row {
    Row { limit, change, start: |_| (), connections, sends: sends.into() }
}

/// After the preface and the settings of a client: so many times this.
fn http2(times: usize, frame: impl Fn(usize) -> Vec<u8>) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    (0..times).for_each(|at| bytes.extend(frame(at)));
    bytes
}

/// A request that is given up at once.
fn given_up(at: usize) -> Vec<u8> {
    let stream = u32::try_from(2 * at + 1).unwrap();
    // GET, http and `/` of the static table (RFC 7541, appendix A), and `:authority: a`.
    let request = frame(1, 5, stream, &[0x82, 0x86, 0x84, 0x01, 0x01, b'a']);
    [request, frame(3, 0, stream, &8_u32.to_be_bytes())].concat()
}

const BRIEF: Duration = Duration::from_millis(200);
const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const SILENT: &str = "GET /silent HTTP/1.1\r\nhost: a\r\n\r\n";

fn rows() -> Vec<Row> {
    let fields = "a: b\r\n".repeat(101);
    let many =
        |n: usize| (0..n).map(|n| format!("GET / HTTP/1.1\r\nhost: a\r\nx-key: {n}\r\n\r\n")).collect();
    let all: String = many(400);
    vec![
        Row { start: |proxy| proxy.max_connections = 1, ..row("connections", |_| (), 2, SILENT) },
        Row {
            start: |proxy| proxy.max_connections_per_source = 1,
            ..row("connections_per_source", |_| (), 2, SILENT)
        },
        Row { start: |proxy| proxy.memory_budget = Some(1), ..row("memory", |_| (), 1, GET) },
        row("request_line", |_| (), 1, format!("GET /{} HTTP/1.1\r\n", "a".repeat(17 << 10))),
        row(
            "request_line",
            |app| app.limits.max_request_line_bytes = 20,
            1,
            "GET /aaaaaaaaaaaaaaaaaaa HTTP/1.1\r\nhost: a\r\n\r\n",
        ),
        row("header_bytes", |_| (), 1, format!("GET / HTTP/1.1\r\na: {}", "b".repeat(65 << 10))),
        row("header_fields", |_| (), 1, format!("GET / HTTP/1.1\r\n{fields}\r\n")),
        row(
            "header_fields",
            |app| app.limits.max_header_fields = 1,
            1,
            "GET / HTTP/1.1\r\nhost: a\r\nb: c\r\n\r\n",
        ),
        row("header_timeout", |app| app.timeouts.request_header = BRIEF, 1, "GET"),
        row("keep_alive_idle", |app| app.timeouts.idle = BRIEF, 1, GET),
        row(
            "body_idle",
            |app| app.timeouts.request_body = BRIEF,
            1,
            "PUT /silent HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nx",
        ),
        row(
            "body_bytes",
            |app| app.limits.max_body_bytes = 1,
            1,
            "PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nab",
        ),
        row("requests_per_connection", |app| app.limits.max_requests_per_connection = 2, 1, GET.repeat(2)),
        row(
            "framing",
            |_| (),
            1,
            "GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        ),
        row("in_flight", |app| app.limits.max_in_flight = 1, 2, SILENT),
        row("target_hard", |app| app.limits.target_hard = 1, 2, SILENT),
        row(
            "pending",
            |app| app.limits = Limits { max_in_flight: 1, max_pending: 1, ..Limits::default() },
            3,
            SILENT,
        ),
        row(
            "pending_timeout",
            |app| app.limits = Limits { max_in_flight: 1, pending_timeout: BRIEF, ..Limits::default() },
            2,
            SILENT,
        ),
        row(
            "rate_keys",
            |app| {
                let key = RateKey::Header("x-key".to_owned());
                app.limits.rate = Some(RateConfig { key, per_second: 1, burst: 1, max_keys: 1 });
            },
            1,
            all,
        ),
        row(
            "proxy_header_timeout",
            |app| {
                app.ports[0].proxy_protocol = ProxyProtocol::Accept;
                app.ports[0].trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
            },
            1,
            "PROX",
        ),
        row(
            "tls_handshake_timeout",
            |app| {
                app.ports[0].protocol = Protocol::Tcp;
                app.routes = vec![RouteConfig::hosts("a", ["a.test"], "default")];
            },
            1,
            b"\x16",
        ),
        row("h2_pings", |_| (), 1, http2(101, |_| frame(6, 0, 0, b"abcdefgh"))),
        row("h2_settings", |_| (), 1, http2(101, |_| frame(4, 0, 0, &[]))),
        row("h2_resets", |_| (), 1, http2(101, given_up)),
        Row { start: |proxy| proxy.http2.resets = 10, ..row("h2_resets", |_| (), 1, http2(11, given_up)) },
        Row {
            start: |proxy| proxy.http2.streams = 2,
            ..row("h2_streams", |_| (), 1, {
                http2(3, |at| {
                    let request = [&[0x82, 0x86, 0x04, 7], &b"/silent"[..], &[0x01, 1, b'a']].concat();
                    frame(1, 5, u32::try_from(2 * at + 1).unwrap(), &request)
                })
            })
        },
        // HEADERS, and CONTINUATION that never ends them.
        row("h2_frames", |_| (), 1, {
            http2(10_000, |at| match at {
                0 => frame(1, 1, 1, &[0x82]),
                _ => frame(9, 0, 1, &[]),
            })
        }),
    ]
}

/// Answers at once, and never about `/silent`.
async fn origin() -> Origin {
    Origin::new(|mut stream| {
        Box::pin(async move {
            while let Ok(head) = head(&mut stream).await {
                if head.contains(" /silent ") {
                    return hold(stream).await;
                }
                send(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            }
        })
    })
    .await
}

/// Sends, and reads until the end or for as long as it is let.
async fn client(listen: SocketAddr, sends: Vec<u8>) {
    let Ok(mut stream) = TcpStream::connect(listen).await else { return };
    let (mut read, mut write) = stream.split();
    let reading = async {
        let mut bytes = [0; 4096];
        while read.read(&mut bytes).await.is_ok_and(|n| n > 0) {}
    };
    let writing = async {
        // Whoever is refused in the middle of it is refused all the same.
        let _refused = write.write_all(&sends).await;
    };
    tokio::join!(reading, writing);
}

#[tokio::test]
async fn every_limit_is_counted_when_it_is_reached() {
    let _alone = ALONE.lock().await;
    LazyLock::force(&EXPORTER);
    for Row { limit, change, start, connections, sends } in rows() {
        let before = hits(limit);
        let (proxy, origin) = (
            proxy_with(|config| {
                config.workers = 1;
                start(config);
            }),
            origin().await,
        );
        let (mut config, listen) = app(Protocol::Http, &[origin.address]);
        change(&mut config);
        serve(&proxy, &config).await;
        let deadline = Instant::now() + PATIENCE * 3;
        let mut clients = JoinSet::new();
        while hits(limit) == before {
            assert!(Instant::now() < deadline, "{limit} was never counted");
            if clients.is_empty() {
                for _ in 0..connections {
                    clients.spawn(client(listen, sends.clone()));
                }
            }
            // Counts are published every half second. Those who are turned away come again.
            let _ended = tokio::time::timeout(Duration::from_millis(100), clients.join_next()).await;
        }
    }
}

/// Whether the connection goes on behind these frames.
async fn after(raw: &mut Raw, frames: Vec<u8>) -> Outcome {
    raw.send(&[frames, frame(6, 0, 0, b"abcdefgh")].concat()).await;
    loop {
        match raw.outcome(true).await {
            // Of a request that was answered before it was given up.
            Outcome::Answer(_) | Outcome::Stream(_) => {}
            other => return other,
        }
    }
}

#[tokio::test]
async fn a_client_may_give_up_a_hundred_requests_and_the_next_one_ends_its_connection() {
    const CALM: Outcome = Outcome::Connection(11);
    let _alone = ALONE.lock().await;
    LazyLock::force(&EXPORTER);
    let origin = origin().await;
    // So that PINGs do not decide.
    let proxy = proxy_with(|config| config.http2.pings = 1_000);
    let (config, listen) = app(Protocol::Http, &[origin.address]);
    serve(&proxy, &config).await;
    let before = hits("h2_resets");
    // In one burst, none accepted before it was given up; and one after the other.
    for (number, burst) in [(1, 100), (2, 1)] {
        let mut raw = Raw::connect(listen).await;
        let mut outcome = Outcome::Alive;
        let (begun, mut given) = (Instant::now(), 0);
        // A machine that is too busy to do it within one window begins another one.
        while outcome == Outcome::Alive && (given <= 100 || begun.elapsed() > Duration::from_secs(9)) {
            assert!(given < 10_000, "it never ends");
            let next = if given < 100 { burst } else { 1 };
            outcome = after(&mut raw, (given..given + next).flat_map(given_up).collect()).await;
            given += next;
        }
        assert!(given > 100, "{outcome:?} after {given}");
        assert_eq!(outcome, CALM, "after {given}");
        eventually("it is counted", || hits("h2_resets") == before + number).await;
    }
    let mut client = connect(listen).await;
    assert_eq!(get(&mut client, "/").await.0, 200);
}

/// Anonymous memory of this process, in KiB.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Each begins a head of 40 KiB and never ends it.
async fn slow_clients(listen: SocketAddr, count: usize) {
    let mut clients = JoinSet::new();
    for _ in 0..count {
        clients.spawn(async move {
            let mut stream = TcpStream::connect(listen).await.unwrap();
            let begin = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}", "y".repeat(40 << 10));
            stream.write_all(begin.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            let ended = tokio::time::timeout(PATIENCE * 6, stream.read_to_end(&mut answer)).await;
            ended
                .expect("an end in time")
                .map(|_| String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 408"))
        });
    }
    for ended in clients.join_all().await {
        assert!(ended.unwrap(), "it was told why");
    }
}

#[tokio::test]
async fn a_thousand_clients_that_never_finish_their_heads_are_ended_and_their_memory_comes_back() {
    const CLIENTS: usize = 1000;
    let _alone = ALONE.lock().await;
    LazyLock::force(&EXPORTER);
    let (proxy, origin) = (proxy(), origin().await);
    let (mut config, listen) = app(Protocol::Http, &[origin.address]);
    config.timeouts.request_header = Duration::from_secs(3);
    serve(&proxy, &config).await;
    let timeouts = hits("header_timeout");
    slow_clients(listen, CLIENTS).await;
    let after_one = memory();
    for _ in 0..2 {
        slow_clients(listen, CLIENTS).await;
    }
    eventually("nobody is left", || proxy.connections() == 0).await;
    eventually("each was counted", || hits("header_timeout") - timeouts == 3 * CLIENTS as u64).await;
    // 40 MiB each time, if it were kept.
    let grown = memory().saturating_sub(after_one);
    assert!(grown < 16 << 10, "{grown} KiB more than after the first thousand");
    let mut client = connect(listen).await;
    assert_eq!(get(&mut client, "/").await.0, 200);
}

#[tokio::test]
async fn who_comes_while_memory_is_short_is_turned_away_and_nobody_else() {
    const BALLAST: u64 = 256 << 20;
    let _alone = ALONE.lock().await;
    LazyLock::force(&EXPORTER);
    let budget = (memory() * 1024 + BALLAST / 2) * 100 / 95;
    let proxy = proxy_with(|config| config.memory_budget = Some(budget));
    let (origin, echo) = (origin().await, Origin::echo().await);
    let (http, listen) = app(Protocol::Http, &[origin.address]);
    let (mut tcp, tcp_listen) = app(Protocol::Tcp, &[echo.address]);
    tcp.app = "tcp".into();
    serve(&proxy, &http).await;
    serve(&proxy, &tcp).await;
    let mut client = connect(listen).await;
    assert_eq!(get(&mut client, "/").await.0, 200);
    let ballast = vec![1_u8; usize::try_from(BALLAST).unwrap()];
    eventually("it is noticed", || proxy.is_overloaded()).await;
    let mut refused = connect(listen).await;
    let told = rest(&mut refused).await.map(|bytes| String::from_utf8(bytes).unwrap()).unwrap_or_default();
    assert!(told.is_empty() || told.contains("503 ") && told.contains("Retry-After: 1"), "{told}");
    assert_reset_at(tcp_listen).await;
    assert_eq!(get(&mut client, "/").await.0, 200, "who is there is served");
    let rejected = "flotilla_connections_rejected_total{app=\"web\",reason=\"overload\"}";
    eventually("it is counted", || count(rejected) >= 1 && count("flotilla_overloaded") == 1).await;
    assert_eq!(ballast[7], 1);
    drop(ballast);
    eventually("it is over", || !proxy.is_overloaded()).await;
    let mut late = connect(listen).await;
    assert_eq!(get(&mut late, "/").await.0, 200);
}
