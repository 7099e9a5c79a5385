//! TCP sessions.

use std::time::Duration;

use flotilla_proxy::config::Protocol::Tcp;
use tokio::io::AsyncWriteExt;

use crate::support::*;

#[tokio::test]
async fn bytes_go_both_ways_and_the_end_of_one_way_leaves_the_other_open() {
    let origin = Origin::echo().await;
    let (_proxy, listen) = serving(Tcp, &[origin.address]).await;
    let mut client = connect(listen).await;
    send(&mut client, "one").await;
    assert_eq!(receive(&mut client, 3).await, b"one");
    send(&mut client, "two").await;
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut client).await.unwrap(), b"two");
}

#[tokio::test]
async fn a_client_may_go_on_sending_after_the_origin_has_said_all() {
    let (got, mut told) = tokio::sync::mpsc::channel(1);
    let origin = Origin::new(move |mut stream| {
        let got = got.clone();
        Box::pin(async move {
            send(&mut stream, "bye").await;
            stream.shutdown().await.unwrap();
            got.send(rest(&mut stream).await.unwrap()).await.unwrap();
        })
    })
    .await;
    let (_proxy, listen) = serving(Tcp, &[origin.address]).await;
    let mut client = connect(listen).await;
    assert_eq!(rest(&mut client).await.unwrap(), b"bye");
    send(&mut client, "still here").await;
    client.shutdown().await.unwrap();
    assert_eq!(told.recv().await.unwrap(), b"still here");
}

#[tokio::test]
async fn a_reset_of_the_origin_is_a_reset_for_the_client() {
    let origin = Origin::new(|mut stream| {
        Box::pin(async move {
            receive(&mut stream, 2).await;
            reset(stream);
        })
    })
    .await;
    let (proxy, listen) = serving(Tcp, &[origin.address]).await;
    let mut client = connect(listen).await;
    send(&mut client, "go").await;
    assert_reset(&mut client).await;
    eventually("it counts against the generation", || proxy.status()[0].tally.resets == 1).await;
}

#[tokio::test]
async fn a_reset_of_the_client_is_a_reset_for_the_origin_even_after_it_was_half_closed() {
    for half_closed in [false, true] {
        let (got, mut told) = tokio::sync::mpsc::channel(1);
        let origin = Origin::new(move |mut stream| {
            let got = got.clone();
            Box::pin(async move {
                receive(&mut stream, 2).await;
                let mut end = rest(&mut stream).await;
                if half_closed {
                    assert!(end.is_ok(), "the end of the client comes first");
                    // Reading has ended for good; only writing can tell.
                    while stream.write_all(b"x").await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    end = Err(std::io::ErrorKind::ConnectionReset.into());
                }
                got.send(end.map_err(|error| error.kind())).await.unwrap();
            })
        })
        .await;
        let (proxy, listen) = serving(Tcp, &[origin.address]).await;
        let mut client = connect(listen).await;
        send(&mut client, "go").await;
        if half_closed {
            client.shutdown().await.unwrap();
        }
        // The bytes must be through before the reset, which would overtake them.
        eventually("the session is there", || origin.accepted() == 1).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        reset(client);
        assert_eq!(told.recv().await.unwrap(), Err(std::io::ErrorKind::ConnectionReset));
        eventually("the session ended", || proxy.status()[0].pins == 0).await;
        assert_eq!(proxy.status()[0].tally.resets, 0, "the generation is not to blame");
    }
}

#[tokio::test]
async fn a_half_closed_idle_session_ends_when_its_client_resets() {
    let origin = Origin::new(|stream| Box::pin(async move { hold_open(stream).await })).await;
    let (proxy, listen) = serving(Tcp, &[origin.address]).await;
    let mut client = connect(listen).await;
    client.shutdown().await.unwrap();
    eventually("the session is there", || origin.accepted() == 1 && proxy.status()[0].pins == 1).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    reset(client);
    eventually("the session ended", || proxy.status()[0].pins == 0).await;
}

async fn hold_open(stream: tokio::net::TcpStream) {
    std::future::pending::<()>().await;
    drop(stream);
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_passed_over_for_another() {
    let origin = Origin::greeter("here").await;
    let (_proxy, listen) = serving(Tcp, &[free(), free(), free(), origin.address]).await;
    for _ in 0..20 {
        assert_eq!(rest(&mut connect(listen).await).await.unwrap(), b"here");
    }
}

#[tokio::test]
async fn a_client_is_reset_when_no_endpoint_can_be_reached() {
    let (proxy, listen) = serving(Tcp, &[free(), free()]).await;
    assert_reset_at(listen).await;
    eventually("nothing is pinned", || proxy.status()[0].pins == 0).await;
    eventually("nothing is counted", || proxy.connections() == 0).await;
}

#[tokio::test]
async fn a_session_in_which_nothing_moves_is_reset_after_its_time() {
    let origin = Origin::echo().await;
    let proxy = proxy();
    let (mut app, listen) = app(Tcp, &[origin.address]);
    app.timeouts.tcp_idle = Duration::from_millis(400);
    serve(&proxy, &app).await;
    let mut client = connect(listen).await;
    let start = tokio::time::Instant::now();
    for _ in 0..6 {
        send(&mut client, "x").await;
        receive(&mut client, 1).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_reset(&mut client).await;
    let lived = start.elapsed();
    assert!(lived > Duration::from_millis(850), "traffic must extend its life: {lived:?}");
}

#[tokio::test]
async fn a_slow_reader_stops_the_sender_instead_of_filling_memory() {
    let (sent, told) = tokio::sync::watch::channel(0);
    let origin = Origin::new(move |mut stream| {
        let sent = sent.clone();
        Box::pin(async move {
            let chunk = vec![7; 64 * 1024];
            for _ in 0..4096 {
                if stream.write_all(&chunk).await.is_err() {
                    return;
                }
                sent.send_modify(|n| *n += chunk.len());
            }
        })
    })
    .await;
    let (_proxy, listen) = serving(Tcp, &[origin.address]).await;
    let client = connect(listen).await;
    // Steady when nothing was sent for a while; only the kernel's buffers hold anything.
    let mut before = usize::MAX;
    while before != *told.borrow() {
        before = *told.borrow();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(before < 64 * 1024 * 1024, "{before} bytes of 256 MiB were taken from the origin");
    drop(client);
}

#[tokio::test]
async fn a_place_over_the_limits_is_refused_and_comes_back() {
    let origin = Origin::echo().await;
    let proxy = proxy_with(|config| config.max_connections_per_source = 2);
    let (app, listen) = app(Tcp, &[origin.address]);
    serve(&proxy, &app).await;
    let (mut one, mut two) = (connect(listen).await, connect(listen).await);
    for client in [&mut one, &mut two] {
        send(client, "x").await;
        receive(client, 1).await;
    }
    assert_reset_at(listen).await;
    drop(one);
    eventually("the place is free", || proxy.connections() == 1).await;
    let mut three = connect(listen).await;
    send(&mut three, "x").await;
    assert_eq!(receive(&mut three, 1).await, b"x");
}
