//! One session joined by hand, so that its worker's pipes can be looked at.

use std::{iter, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::Instant,
};

use super::*;
use crate::{
    admission::Admission,
    clock::TICK,
    overload::Overload,
    upstream::balance::Strategies,
    worker::{Begun, Early, Shared, Worker},
};

const BULK_BYTES: usize = 6 << 20;

fn worker() -> Worker {
    let shared = Shared {
        strategies: Strategies::default(),
        layers: crate::Layers::default(),
        overload: Overload::new(Some(0)),
        admission: Arc::new(Admission::new(0, 0)),
        early: Early::from(&crate::ProxyConfig::default()),
        stopping: 0.into(),
        heartbeats: vec![0.into()],
        listener_restarts: 0.into(),
        begun: Begun::default(),
        give_back: || (),
    };
    Worker::new(0, Arc::new(shared))
}

/// The far end and the near end of a connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (far, near) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (far.unwrap(), near.unwrap().0)
}

/// Sends bulk from the client to the upstream, and says what the app counted: in, out.
async fn send_bulk(worker: &Worker) -> (u64, u64) {
    let (mut client, client_near) = pair().await;
    let (mut upstream, upstream_near) = pair().await;
    let sent: Vec<u8> = (0..BULK_BYTES).map(|i| (i / 7 + i / 4096).to_le_bytes()[0]).collect();
    let cells = worker.app_cells(&"app".into());
    let streams = Streams { client: client_near, upstream: upstream_near };
    let timer = worker.clock.timer();
    let before = (cells.received_client.pending(), cells.sent_upstream.pending());
    let mut received = Vec::new();
    let (end, (), ()) = tokio::join!(
        join(worker, &timer, &streams, Duration::ZERO, &cells, [Bytes::new(), Bytes::new()]),
        async {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
        },
        async {
            upstream.read_to_end(&mut received).await.unwrap();
            upstream.shutdown().await.unwrap();
        },
    );
    assert_eq!(end, End::Done);
    assert!(received == sent, "{} of {} bytes, or others", received.len(), sent.len());
    (cells.received_client.pending() - before.0, cells.sent_upstream.pending() - before.1)
}

#[tokio::test]
async fn bulk_goes_through_a_pipe_that_is_given_back_and_every_byte_is_counted() {
    let worker = worker();
    for _ in 0..2 {
        assert_eq!(send_bulk(&worker).await, (BULK_BYTES as u64, BULK_BYTES as u64));
        assert_eq!(worker.pipes.made_and_free(), (1, 1));
    }
}

#[tokio::test]
async fn bulk_is_copied_while_all_pipes_are_lent() {
    let worker = worker();
    let lent: Vec<Pipe> = iter::from_fn(|| worker.pipes.take()).collect();
    assert!(!lent.is_empty());
    assert_eq!(send_bulk(&worker).await, (BULK_BYTES as u64, BULK_BYTES as u64));
    assert_eq!(worker.pipes.made_and_free(), (lent.len(), 0));
}

#[tokio::test]
async fn an_upstream_socket_gets_its_options_when_they_begin_to_matter() {
    let worker = worker();
    let (mut client, client_near) = pair().await;
    let (mut upstream, upstream_near) = pair().await;
    let streams = Streams { client: client_near, upstream: upstream_near };
    let options = || {
        let socket = SockRef::from(&streams.upstream);
        (socket.tcp_nodelay().unwrap(), socket.keepalive().unwrap())
    };
    let cells = worker.app_cells(&"app".into());
    let timer = worker.clock.timer();
    let late = Late { keepalive: Some(TcpKeepalive::new().with_time(Duration::from_secs(10))) };
    let (idle, first, start) = (Duration::from_secs(60), [Bytes::new(), Bytes::new()], Instant::now());
    let session = carry(&worker, &timer, &streams, idle, &cells, first, Some(late));
    let script = async {
        for (message, want) in [(b"one", (false, false)), (b"two", (true, false))] {
            client.write_all(message).await.unwrap();
            let mut got = [0; 3];
            upstream.read_exact(&mut got).await.unwrap();
            assert_eq!((&got, options()), (message, want));
        }
        worker.clock.tick(start + SETTLED + TICK);
        while !options().1 {
            tokio::task::yield_now().await;
        }
        // That was no end: only the silence is.
        worker.clock.tick(start + idle + TICK);
    };
    let both = async { tokio::join!(session, script).0 };
    let end = tokio::time::timeout(Duration::from_secs(20), both).await.expect("it hangs");
    assert_eq!(end, End::Idle);
}
