//! Traffic while nothing happens, and while everything changes: not one operation may fail.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what goes wrong fails the test, and what it measured is said"
)]

use std::time::Duration;

use flotilla_chaos_tests::{
    client::{get, whoami},
    load::Load,
    origin::{self, pattern::Pattern},
    process::{Node, TestFleet},
    spec,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::sleep,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_flotilla-under-test");
const MIB: u64 = 1 << 20;

/// What a node may need more while it moves a stream of any length: buffers, and what they fragment.
const FLAT: u64 = 16 * MIB;

#[tokio::test]
async fn a_thousand_requests_at_once_are_all_answered() {
    let fleet = TestFleet::start(PROGRAM, 3).await;
    let origin = origin::Http::start("slow");
    fleet.apply(&spec::app("web", "\"http:8080\"", &[origin.address()], "")).await.exits(0);
    let address = fleet.node(0).port(8080);
    // All of them are under way when the first is answered.
    let load = Load::http([address], "/slow?ms=2000").clients(1_000).operations(1_000);
    let report = load.timeout(Duration::from_secs(30)).run().await;
    eprintln!("{report}");
    report.assert_clean();
    assert!(report.latency(1_000) < Duration::from_secs(10), "{report}");
}

#[tokio::test]
async fn half_a_gibibyte_passes_through_a_node_whose_memory_stays_flat() {
    stream(512 * MIB).await;
}

/// `cargo test -p flotilla-chaos-tests --test traffic -- --ignored five_gibibytes`
#[tokio::test]
#[ignore = "moves 15 GiB, which takes half a minute"]
async fn five_gibibytes_pass_through_a_node_whose_memory_stays_flat() {
    stream(5 * 1024 * MIB).await;
}

async fn stream(bytes: u64) {
    let fleet = TestFleet::start(PROGRAM, 1).await;
    let http = origin::Http::start("bytes");
    let echo = origin::Echo::start("echo");
    fleet.apply(&spec::app("web", "\"http:8080\"", &[http.address()], "")).await.exits(0);
    fleet.apply(&spec::app("raw", "9000", &[echo.address()], "")).await.exits(0);
    let node = fleet.node(0);
    // A short one of each first: what the first connection of a process needs is not the stream's.
    download(node, 32 * MIB).await;
    upload(node, 32 * MIB).await;
    circle(node, 32 * MIB).await;
    let before = node.resident_bytes();
    let highest = [download(node, bytes).await, upload(node, bytes).await, circle(node, bytes).await];
    eprintln!("resident bytes: {before} before, {highest:?} at most during download, upload and echo");
    for highest in highest {
        assert!(highest < before + FLAT, "resident bytes grew from {before} to {highest}");
    }
}

/// HTTP from the origin. Returns the most memory that the node had.
async fn download(node: &Node, bytes: u64) -> u64 {
    let mut stream = TcpStream::connect(node.port(8080)).await.unwrap();
    let request = format!("GET /bytes/{bytes} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    // A reader that does nothing for a while: the stream has to wait for it, in nobody's memory.
    sleep(Duration::from_millis(300)).await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    check(&mut stream, bytes, node).await
}

/// HTTP to the origin, which checks the bytes itself.
async fn upload(node: &Node, bytes: u64) -> u64 {
    let mut stream = TcpStream::connect(node.port(8080)).await.unwrap();
    let head =
        format!("POST /upload HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {bytes}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let highest = send(&mut stream, bytes, node).await;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(&format!("\r\n\r\n{bytes} ")), "{answer}");
    highest
}

/// TCP to the origin and back, both ways at once, with a half-closed end.
async fn circle(node: &Node, bytes: u64) -> u64 {
    let mut stream = TcpStream::connect(node.port(9000)).await.unwrap();
    let (mut read, mut write) = stream.split();
    let there = async {
        let highest = send(&mut write, bytes, node).await;
        write.shutdown().await.unwrap();
        highest
    };
    let (there, back) = tokio::join!(there, check(&mut read, bytes, node));
    there.max(back)
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), bytes: u64, node: &Node) -> u64 {
    let mut pattern = Pattern::default();
    let mut memory = Memory::of(node);
    while pattern.position() < bytes {
        let piece = pattern.next(bytes - pattern.position());
        stream.write_all(piece).await.unwrap();
        memory.look(pattern.position());
    }
    memory.highest
}

/// Reads to the end of the stream, which must be `bytes` long and right.
async fn check(stream: &mut (impl AsyncRead + Unpin), bytes: u64, node: &Node) -> u64 {
    let mut pattern = Pattern::default();
    let mut memory = Memory::of(node);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match stream.read(&mut buffer).await.unwrap() {
            0 => break,
            read => pattern.check(&buffer[..read]).unwrap_or_else(|at| panic!("byte {at} is wrong")),
        }
        memory.look(pattern.position());
    }
    assert_eq!(pattern.position(), bytes);
    memory.highest
}

/// The most memory that a node had while a stream went on.
struct Memory<'a> {
    node: &'a Node,
    highest: u64,
    /// The position in the stream at which to look again.
    next: u64,
}

impl<'a> Memory<'a> {
    fn of(node: &'a Node) -> Self {
        Self { node, highest: 0, next: 0 }
    }

    fn look(&mut self, position: u64) {
        if position >= self.next {
            self.highest = self.highest.max(self.node.resident_bytes());
            self.next = position + 4 * MIB;
        }
    }
}

#[tokio::test]
async fn thirty_applies_lose_no_connection() {
    // What counts is that none is lost; how many a busy machine opens is not a matter for a test.
    applies_under_load(30, 100).await;
}

/// `cargo test -p flotilla-chaos-tests --test traffic -- --ignored two_hundred --nocapture`
#[tokio::test]
#[ignore = "takes minutes"]
async fn two_hundred_applies_lose_no_connection() {
    applies_under_load(200, 2_000).await;
}

/// Each apply moves both apps to the other set of targets, and takes a port away or adds it again, while
/// clients open 2,200 connections per second and others keep theirs. `per_second_min`: opened in fact.
async fn applies_under_load(applies: u32, per_second_min: u32) {
    let fleet = TestFleet::start(PROGRAM, 3).await;
    let echoes = ["blue", "green"].map(origin::Echo::start);
    let https = ["blue", "green"].map(origin::Http::start);
    let specs = |round: u32| {
        let turn = usize::try_from(round % 2).unwrap();
        let ports = ["9000", "9000, 9001"][turn];
        // The drain of a port that goes is not what is waited for here.
        spec::app("raw", ports, &[echoes[turn].address()], &format!("description = \"{round}\""))
            + &spec::app(
                "web",
                "\"http:8080\"",
                &[https[turn].address()],
                &format!("description = \"{round}\""),
            )
    };
    fleet.apply(&specs(0)).await.exits(0);

    let connections = Load::tcp(fleet.port(9000)).per_second(1_200).clients(64).start();
    let requests = Load::http(fleet.port(8080), "/").per_second(1_000).clients(64).start();
    let kept = Load::http_keep_alive(fleet.port(8080), "/").clients(6).per_second(300).start();
    for round in 1..=applies {
        fleet.apply(&specs(round)).await.exits(0);
        let expected = ["blue", "green"][usize::try_from(round % 2).unwrap()];
        for address in fleet.port(9000) {
            assert_eq!(whoami(address).await.unwrap(), expected, "after apply {round} at {address}");
        }
        for address in fleet.port(8080) {
            let (_, body) = get(address, "/").await.unwrap();
            assert_eq!(body.trim(), expected, "after apply {round} at {address}");
        }
    }
    let reports = [connections.stop().await, requests.stop().await, kept.stop().await];
    for report in &reports {
        eprintln!("{report}");
        report.assert_clean();
    }
    let opened = reports[0].throughput() + reports[1].throughput();
    assert!(opened >= f64::from(per_second_min), "only {opened:.0} connections per second were opened");
    for report in &reports[1..] {
        assert_eq!(report.answered_by().len(), 2, "traffic has moved: {report}");
    }
}
