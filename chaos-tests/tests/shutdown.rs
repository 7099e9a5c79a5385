//! How a node ends when it is asked to.

#![allow(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::time::Duration;

use flotilla_chaos_tests::{
    client::get,
    origin,
    poll::eventually,
    process::{SOON, TestFleet},
    spec,
};
use nix::sys::signal::Signal;

const PROGRAM: &str = env!("CARGO_BIN_EXE_flotilla-under-test");

#[tokio::test]
async fn sigterm_and_sigint_end_a_node_after_the_requests_under_way() {
    let mut fleet = TestFleet::start(PROGRAM, 3).await;
    let origin = origin::Http::start("slow");
    fleet.apply(&spec::app("web", "\"http:8080\"", &[origin.address()], "")).await.exits(0);
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let node = fleet.node_mut(0);
        let before = origin.requests();
        let (address, admin) = (node.port(8080), node.admin_address());
        let request = async { get(address, "/slow?ms=1500").await };
        let stop = async {
            eventually("the request has arrived", SOON, async || {
                (origin.requests() > before).then_some(()).ok_or("it has not")
            })
            .await;
            node.signal(signal);
            let (status, why) = eventually("the node is no longer ready", SOON, async || {
                let (status, body) = get(admin, "/readyz").await?;
                if status == 200 { Err(body) } else { Ok((status, body)) }
            })
            .await;
            assert_eq!(status, 503, "{why}");
            node.ended().await
        };
        let (answer, status) = tokio::join!(request, stop);
        assert_eq!(answer.map(|(status, _)| status.as_u16()), Ok(200), "{signal}");
        assert!(status.success(), "{signal}: {status}");
        node.start().await;
        fleet.settled().await;
        serves_again(address).await;
    }
}

async fn serves_again(address: std::net::SocketAddr) {
    eventually("the node serves again", SOON, async || match get(address, "/").await? {
        (status, _) if status == 200 => Ok(()),
        (status, body) => Err(format!("{status}: {body}")),
    })
    .await;
}

#[tokio::test]
async fn a_session_that_does_not_end_is_cut_at_the_deadline() {
    use tokio::{io::AsyncReadExt as _, io::AsyncWriteExt as _, net::TcpStream, time::Instant};
    let mut fleet = TestFleet::empty(PROGRAM);
    let settings =
        flotilla_chaos_tests::process::NodeSettings { drain: "2s".to_owned(), ..Default::default() };
    fleet.add(settings).await;
    fleet.init(0).await;
    fleet.settled().await;
    let echo = origin::Echo::start("echo");
    fleet.apply(&spec::app("raw", "9000", &[echo.address()], "")).await.exits(0);
    let mut session = TcpStream::connect(fleet.node(0).port(9000)).await.unwrap();
    session.write_all(b"hold\n").await.unwrap();
    session.read_exact(&mut [0; 5]).await.unwrap();

    let begun = Instant::now();
    let status = fleet.node_mut(0).stop().await;
    assert!(status.success(), "{status}");
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(8), "{took:?}");
    // Cut, not finished: whether that is an end or a reset depends on what is still in the buffers.
    assert!(matches!(session.read(&mut [0; 1]).await, Ok(0) | Err(_)));
}
