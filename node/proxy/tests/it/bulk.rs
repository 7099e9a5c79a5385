//! Bulk through TCP sessions: what a pipe in the kernel must not lose, mix up or hoard.

use std::time::Duration;

use flotilla_proxy::config::Protocol::Tcp;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

use crate::support::*;

/// Of which every part differs from every other: a lost, doubled or displaced byte shows.
pub(crate) fn stream(bytes: usize, seed: u64) -> Vec<u8> {
    let mut x = seed;
    let mut next = || {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (x >> 33).to_le_bytes()
    };
    let mut stream: Vec<u8> =
        std::iter::repeat_with(&mut next).flat_map(|bytes| bytes[..4].to_vec()).take(bytes).collect();
    stream.shrink_to_fit();
    stream
}

async fn write_all(mut to: OwnedWriteHalf, bytes: Vec<u8>) {
    to.write_all(&bytes).await.unwrap();
    to.shutdown().await.unwrap();
}

async fn read_all(mut from: OwnedReadHalf) -> Vec<u8> {
    let mut bytes = Vec::new();
    timeout(PATIENCE * 3, from.read_to_end(&mut bytes)).await.expect("an end in time").unwrap();
    bytes
}

pub(crate) fn assert_same(got: &[u8], want: &[u8], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let at = got.iter().zip(want).position(|(got, want)| got != want);
    assert_eq!(at, None, "{what}");
}

/// An origin that sends `bytes` while it receives, and gives back what it received.
async fn exchange(bytes: Vec<u8>) -> (Origin, tokio::sync::mpsc::Receiver<Vec<u8>>) {
    let (got, told) = tokio::sync::mpsc::channel(64);
    let origin = Origin::new(move |stream| {
        let (got, bytes) = (got.clone(), bytes.clone());
        Box::pin(async move {
            let (read, write) = stream.into_split();
            let ((), received) = tokio::join!(write_all(write, bytes), read_all(read));
            got.send(received).await.unwrap();
        })
    })
    .await;
    (origin, told)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_arrives_byte_for_byte_in_both_directions_at_once() {
    let (up, down) = (stream(24 << 20, 1), stream((24 << 20) + 13, 2));
    let (origin, mut told) = exchange(down.clone()).await;
    let (_proxy, listen) = serving(Tcp, &[origin.address]).await;
    let (read, write) = connect(listen).await.into_split();
    let ((), received) = tokio::join!(write_all(write, up.clone()), read_all(read));
    assert_same(&received, &down, "down");
    assert_same(&told.recv().await.unwrap(), &up, "up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sizes_around_the_switch_between_copy_and_pipe_arrive_whole() {
    let origin = Origin::echo().await;
    let (_proxy, listen) = serving(Tcp, &[origin.address]).await;
    let (buffer, pipe) = (32 * 1024, 256 * 1024);
    let mut client = connect(listen).await;
    for around in [buffer / 2, buffer, 2 * buffer, buffer + pipe, 3 * pipe] {
        for size in [around - 1, around, around + 1] {
            let bytes = stream(size, size as u64);
            // Over one connection that goes on, so that each size meets the mode the last one left.
            let (mut read, mut write) = client.split();
            let mut echo = vec![0; size];
            let (sent, received) =
                tokio::join!(write.write_all(&bytes), timeout(PATIENCE, read.read_exact(&mut echo)),);
            sent.unwrap();
            received.expect("an echo in time").unwrap();
            assert_same(&echo, &bytes, &format!("{size} on an old connection"));
            let (read, write) = connect(listen).await.into_split();
            let ((), echo) = tokio::join!(write_all(write, bytes.clone()), read_all(read));
            assert_same(&echo, &bytes, &format!("{size} on a new connection"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_messages_between_bulk_are_answered_at_once_and_in_order() {
    let origin = Origin::echo().await;
    let (_proxy, listen) = serving(Tcp, &[origin.address]).await;
    let mut client = connect(listen).await;
    for round in 0..8 {
        for size in [64, 700 * 1024, 1] {
            let bytes = stream(size, round);
            let (mut read, mut write) = client.split();
            let mut echo = vec![0; size];
            let (sent, received) =
                tokio::join!(write.write_all(&bytes), timeout(PATIENCE, read.read_exact(&mut echo)));
            sent.unwrap();
            received.expect("an echo in time").unwrap();
            assert_same(&echo, &bytes, &format!("{size} in round {round}"));
        }
    }
}

/// Sends until nothing is taken any more: the client's window, the pipe and the buffers are full.
async fn fill(stream: &TcpStream, bytes: &[u8]) -> usize {
    let mut sent = 0;
    while sent < bytes.len() {
        match timeout(Duration::from_millis(300), stream.writable()).await {
            Err(_) => break,
            Ok(ready) => ready.unwrap(),
        }
        match stream.try_write(&bytes[sent..]) {
            Ok(n) => sent += n,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    sent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_stream_does_not_overtake_what_still_waits_in_the_pipe() {
    let bytes = stream(64 << 20, 3);
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let sent_bytes = bytes.clone();
    let origin = Origin::new(move |mut stream| {
        let (tell, bytes) = (tell.clone(), sent_bytes.clone());
        Box::pin(async move {
            let sent = fill(&stream, &bytes).await;
            stream.shutdown().await.unwrap();
            tell.send(sent).await.unwrap();
            // The other direction is still open.
            assert_eq!(receive(&mut stream, 4).await, b"more");
        })
    })
    .await;
    let (_proxy, listen) = serving(Tcp, &[origin.address]).await;
    let mut client = connect(listen).await;
    let sent = told.recv().await.unwrap();
    assert!(sent < bytes.len(), "the way must be full for this test");
    let mut received = Vec::new();
    timeout(PATIENCE * 3, client.read_to_end(&mut received)).await.expect("an end in time").unwrap();
    assert_same(&received, &bytes[..sent], "all that was sent before the end");
    send(&mut client, "more").await;
    client.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_with_bytes_in_the_pipe_ends_the_session_and_reaches_nobody_else() {
    let secret = vec![b'S'; 64 << 20];
    let sent_bytes = secret.clone();
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let resets = Origin::new(move |stream| {
        let (tell, bytes) = (tell.clone(), sent_bytes.clone());
        Box::pin(async move {
            fill(&stream, &bytes).await;
            reset(stream);
            tell.send(()).await.unwrap();
        })
    })
    .await;
    let proxy = proxy_with(|config| config.workers = 1);
    let (app, listen) = app(Tcp, &[resets.address]);
    serve(&proxy, &app).await;
    let mut client = connect(listen).await;
    told.recv().await.unwrap();
    assert_reset(&mut client).await;
    eventually("the session is gone", || proxy.connections() == 0).await;

    let down = stream(4 << 20, 4);
    let (origin, _told) = exchange(down.clone()).await;
    let (mut next, listen) = crate::support::app(Tcp, &[origin.address]);
    next.app = "next".into();
    serve(&proxy, &next).await;
    let (read, write) = connect(listen).await.into_split();
    let ((), received) = tokio::join!(write_all(write, Vec::new()), read_all(read));
    assert_same(&received, &down, "a session on the same worker after that");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn urgent_data_in_the_middle_of_bulk_does_not_stop_the_stream() {
    let (before, after) = (stream(4 << 20, 5), stream(4 << 20, 6));
    let sent = (before.clone(), after.clone());
    let origin = Origin::new(move |mut stream| {
        let (before, after) = sent.clone();
        Box::pin(async move {
            send(&mut stream, &before).await;
            SockRef::from(&stream).send_out_of_band(b"!").unwrap();
            send(&mut stream, &after).await;
            stream.shutdown().await.unwrap();
            hold(stream).await;
        })
    })
    .await;
    let (_proxy, listen) = serving(Tcp, &[origin.address]).await;
    let client = connect(listen).await;
    let (read, _write) = client.into_split();
    let received = read_all(read).await;
    // The urgent byte itself is out of band and goes no further.
    assert_same(&received, &[before, after].concat(), "everything around the urgent byte");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_bulk_left_stuck_is_reset_after_its_idle_time() {
    let origin = Origin::new(move |stream| {
        Box::pin(async move {
            fill(&stream, &vec![7; 64 << 20]).await;
            hold(stream).await;
        })
    })
    .await;
    let proxy = proxy();
    let (mut app, listen) = app(Tcp, &[origin.address]);
    app.timeouts.tcp_idle = Duration::from_millis(500);
    serve(&proxy, &app).await;
    let mut client = connect(listen).await;
    eventually("it began", || proxy.connections() == 1).await;
    eventually("it ended", || proxy.connections() == 0).await;
    assert_reset(&mut client).await;
}
