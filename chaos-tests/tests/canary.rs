//! A new generation that answers one request in ten with 500 is caught at the canary and taken back.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what goes wrong fails the test, and what it measured is said"
)]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use flotilla_chaos_tests::{
    client::get,
    poll::eventually,
    process::{SOON, TestFleet},
    spec,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket},
    task::JoinSet,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_flotilla-under-test");

/// Answers one request per connection; every tenth with 500 where it `fails`.
async fn origin(fails: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    #[allow(clippy::disallowed_methods, reason = "it serves until the runtime of the test ends")]
    let _serves = tokio::spawn(async move {
        let mut sessions = JoinSet::new();
        for number in 0_u64.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            sessions.spawn(async move {
                let mut head = [0; 1024];
                // A check that only connects is no request.
                let Ok(1..) = stream.read(&mut head).await else { return };
                let status = if fails && number % 10 == 0 { "500 Oh" } else { "200 OK" };
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                let _gone = stream.write_all(answer.as_bytes()).await;
            });
            while sessions.try_join_next().is_some() {}
        }
    });
    address
}

/// One request from an address of this machine. The status.
async fn request(client: u64, node: SocketAddr) -> std::io::Result<String> {
    let [.., third, fourth] = client.to_be_bytes();
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 1, third, fourth], 0)))?;
    let mut stream = socket.connect(node).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer.split(' ').nth(1).unwrap_or_default().to_owned())
}

/// Some node has this line in its metrics.
async fn shown(fleet: &TestFleet, line: &str) -> Result<(), String> {
    let name = line.split('{').next().unwrap_or(line);
    let mut others = Vec::new();
    for node in fleet.nodes() {
        let (_, text) = get(node.admin_address(), "/metrics").await?;
        if text.lines().any(|shown| shown == line) {
            return Ok(());
        }
        others.extend(text.lines().filter(|shown| shown.starts_with(name)).map(str::to_owned));
    }
    Err(others.join("\n"))
}

#[tokio::test]
async fn a_generation_that_fails_one_request_in_ten_is_reverted_at_the_canary() {
    let (good, bad) = (origin(false).await, origin(true).await);
    let fleet = TestFleet::start(PROGRAM, 3).await;
    let check = "check = \"none\"";
    fleet.apply(&spec::app("web", "\"http:8080\"", &[good], check)).await.exits(0);
    let (stop, ok, failed) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let nodes = fleet.port(8080);
    let mut clients = JoinSet::new();
    for lane in 0..6_u64 {
        let (stop, ok, failed, nodes) = (stop.clone(), ok.clone(), failed.clone(), nodes.clone());
        clients.spawn(async move {
            for turn in 0_u64.. {
                if stop.load(SeqCst) {
                    return;
                }
                let client = turn * 6 + lane;
                let node = nodes[usize::try_from(client % 3).unwrap()];
                let count = if request(client, node).await.unwrap() == "200" { &ok } else { &failed };
                count.fetch_add(1, SeqCst);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }
    let bad = format!(
        "[[app]]\nname = \"web\"\nlisten = [\"http:8080\"]\ntargets = [\"{bad}\"]\n{check}\n\
         rollout = {{ strategy = \"canary\", steps = [20, 100], min_healthy = \"30s\" }}\n"
    );
    let monitored = eventually("the metrics show the bake", SOON * 2, async || {
        shown(&fleet, "flotilla_rollout_phase{app=\"web\",phase=\"monitoring\"} 1").await
    });
    let (applied, ()) = tokio::join!(fleet.apply(&bad), monitored);
    let applied = applied.exits(1);
    let (seen, answered) = (failed.load(SeqCst), ok.load(SeqCst));
    eprintln!("{applied:?}\n{seen} requests failed, {answered} were answered well");
    applied.says("rolled back");
    assert!((3..100).contains(&seen), "{seen} requests failed");
    // The old generation has everything again: hundreds of answers later no further one was bad.
    let (before, then) = (failed.load(SeqCst), ok.load(SeqCst));
    eventually("clients are answered", SOON, async || match ok.load(SeqCst) - then {
        300.. => Ok(()),
        more => Err(format!("{more} more")),
    })
    .await;
    assert_eq!(failed.load(SeqCst), before, "the bad generation is asked no more");
    for line in ["rollouts_total{app=\"web\",result=\"rolled_back\"} 1", "rollout_in_progress{app=\"web\"} 0"]
    {
        eventually("the metrics show the end", SOON, async || {
            shown(&fleet, &format!("flotilla_{line}")).await
        })
        .await;
    }
    stop.store(true, SeqCst);
    while let Some(client) = clients.join_next().await {
        client.expect("no client saw anything but an answer");
    }
}
