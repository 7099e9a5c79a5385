//! Whoever asks gets an answer to what they have asked, or none: thousands of requests while everything breaks.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use flotilla_proxy::config::{Protocol, RetryConfig, RetryOn};
use h2::client::SendRequest;
use http::Request;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use crate::support::*;

/// Numbers from a seed (Vigna's splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// An origin that says the nonce of each request in head and body of its answer, where it answers.
async fn origin(seed: u64) -> Origin {
    let connections = AtomicUsize::new(0);
    Origin::new(move |stream| {
        let number = connections.fetch_add(1, SeqCst) as u64;
        Box::pin(faulty(stream, Random(seed ^ number << 32)))
    })
    .await
}

async fn faulty(mut stream: TcpStream, mut random: Random) {
    while let Ok(head) = head(&mut stream).await {
        let nonce = field(&head, "x-nonce").unwrap().to_owned();
        let length: usize = field(&head, "content-length").map_or(0, |length| length.parse().unwrap());
        let body = format!("{nonce}\n").repeat(1 + usize::try_from(random.below(200)).unwrap());
        let whole =
            format!("HTTP/1.1 200 OK\r\nx-nonce: {nonce}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let fault = random.below(40);
        if fault == 0 {
            return reset(stream);
        }
        // Early, before the body of the request was read.
        if fault == 1 {
            let _gone = stream.write_all(whole.as_bytes()).await;
        }
        let mut sent = vec![0; length];
        if stream.read_exact(&mut sent).await.is_err() {
            return;
        }
        assert!(sent.chunks(nonce.len()).all(|part| nonce.as_bytes().starts_with(part)), "a body of {nonce}");
        let written = match fault {
            1 => Ok(()),
            // In the middle of it.
            2 | 3 => {
                let some = usize::try_from(random.below(whole.len() as u64)).unwrap();
                let _gone = stream.write_all(&whole.as_bytes()[..some]).await;
                return if fault == 2 { reset(stream) } else { drop(stream) };
            }
            4 => {
                let mut written = Ok(());
                for piece in whole.as_bytes().chunks(300) {
                    written = written.and(stream.write_all(piece).await);
                    tokio::task::yield_now().await;
                }
                written
            }
            5 => {
                let mut chunked =
                    format!("HTTP/1.1 200 OK\r\nx-nonce: {nonce}\r\ntransfer-encoding: chunked\r\n\r\n");
                for piece in body.as_bytes().chunks(777) {
                    chunked += &format!("{:x}\r\n{}\r\n", piece.len(), std::str::from_utf8(piece).unwrap());
                }
                stream.write_all((chunked + "0\r\n\r\n").as_bytes()).await
            }
            // And then the end, which nobody was told of.
            6 => {
                let _gone = stream.write_all(whole.as_bytes()).await;
                return;
            }
            // An answer nobody asked for comes behind it: it belongs to nobody.
            7 => {
                stream
                    .write_all(
                        (whole + "HTTP/1.1 200 OK\r\nx-nonce: stray\r\ncontent-length: 0\r\n\r\n").as_bytes(),
                    )
                    .await
            }
            _ => stream.write_all(whole.as_bytes()).await,
        };
        if written.is_err() {
            return;
        }
    }
}

/// What all clients have seen.
#[derive(Default)]
struct Seen {
    whole: AtomicUsize,
    /// Broken off, or an answer of the proxy's own.
    broken: AtomicUsize,
}

impl Seen {
    /// Of an answer that came whole, or `None` for one that did not.
    fn note(&self, nonce: &str, status: u16, said: Option<&str>, body: Option<&[u8]>) {
        if status != 200 {
            assert!(status >= 500, "{nonce}: {status}");
            self.broken.fetch_add(1, SeqCst);
            return;
        }
        assert_eq!(said, Some(nonce), "another's answer");
        let Some(body) = body else {
            self.broken.fetch_add(1, SeqCst);
            return;
        };
        let body = std::str::from_utf8(body).unwrap();
        assert!(
            !body.is_empty() && body.lines().all(|line| line == nonce),
            "{nonce}: another's body: {body:.80}"
        );
        self.whole.fetch_add(1, SeqCst);
    }
}

/// A client of HTTP/1.1 that asks several things at once and now and then leaves in the middle.
async fn pipelines(listen: SocketAddr, client: usize, requests: usize, seen: Arc<Seen>) {
    let mut random = Random(client as u64);
    let mut number = 0;
    while number < requests {
        let mut stream = connect(listen).await;
        'connection: while number < requests {
            let batch: Vec<String> = (0..=random.below(4))
                .map(|at| format!("a{client}-{}", number + usize::try_from(at).unwrap()))
                .collect();
            number += batch.len();
            let mut text = String::new();
            for nonce in &batch {
                // Idempotent ones may be sent twice, others may not.
                text += &match random.below(3) {
                    0 => {
                        let body = nonce.repeat(1 + usize::try_from(random.below(2000)).unwrap());
                        format!(
                            "POST / HTTP/1.1\r\nhost: a\r\nx-nonce: {nonce}\r\ncontent-length: {}\r\n\r\n{body}",
                            body.len()
                        )
                    }
                    _ => format!("GET / HTTP/1.1\r\nhost: a\r\nx-nonce: {nonce}\r\n\r\n"),
                };
            }
            let leaves = random.below(30) == 0;
            if stream.write_all(text.as_bytes()).await.is_err() || leaves {
                break 'connection;
            }
            for nonce in &batch {
                let Ok(head) = head(&mut stream).await else { break 'connection };
                let length = field(&head, "content-length").map(|length| length.parse().unwrap());
                let body = match length {
                    Some(length) => {
                        let mut body = vec![0; length];
                        timeout(PATIENCE, stream.read_exact(&mut body))
                            .await
                            .expect("a body in time")
                            .ok()
                            .map(|_| body)
                    }
                    None => chunks(&mut stream).await,
                };
                let is_over = body.is_none() || field(&head, "connection") == Some("close");
                seen.note(nonce, status(&head), field(&head, "x-nonce"), body.as_deref());
                if is_over {
                    break 'connection;
                }
            }
        }
    }
}

async fn chunks(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.push(timeout(PATIENCE, stream.read_u8()).await.expect("a size in time").ok()?);
        }
        let size = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
        let mut data = vec![0; size + 2];
        timeout(PATIENCE, stream.read_exact(&mut data)).await.expect("a chunk in time").ok()?;
        body.extend_from_slice(&data[..size]);
        if size == 0 {
            return Some(body);
        }
    }
}

/// A client of HTTP/2 with many streams, some of which it gives up.
async fn streams(listen: SocketAddr, client: usize, requests: usize, seen: Arc<Seen>) {
    let (send, connection) = h2::client::handshake(connect(listen).await).await.unwrap();
    let mut tasks = JoinSet::new();
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    for number in 0..requests {
        let send = timeout(PATIENCE, send.clone().ready()).await.expect("room in time").unwrap();
        // Fewer resets than are too many.
        let gives_up = number % 50 == 7 && number < 2000;
        tasks.spawn(one_stream(send, format!("b{client}-{number}"), gives_up, Arc::clone(&seen)));
        while tasks.len() >= 16 {
            tasks.join_next().await.unwrap().unwrap();
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

async fn one_stream(mut send: SendRequest<Bytes>, nonce: String, gives_up: bool, seen: Arc<Seen>) {
    let has_body = nonce.ends_with('3');
    let method = if has_body { "POST" } else { "GET" };
    let request = Request::builder().method(method).uri("http://a/").header("x-nonce", &nonce);
    let body = Bytes::from(nonce.repeat(300));
    let request = if has_body { request.header("content-length", body.len()) } else { request };
    let (response, mut stream) = send.send_request(request.body(()).unwrap(), !has_body).unwrap();
    if has_body {
        // It waits inside for room, and goes nowhere where nobody wants it.
        let _unwanted = stream.send_data(body, true);
    }
    if gives_up {
        stream.send_reset(h2::Reason::CANCEL);
        return;
    }
    let Ok(response) = timeout(PATIENCE * 2, response).await.expect("an answer in time") else {
        seen.broken.fetch_add(1, SeqCst);
        return;
    };
    let status = response.status().as_u16();
    let said = response.headers().get("x-nonce").map(|said| said.to_str().unwrap().to_owned());
    let mut body = response.into_body();
    let mut bytes = Some(Vec::new());
    while let Some(data) = timeout(PATIENCE, body.data()).await.expect("data in time") {
        match (&mut bytes, data) {
            (Some(bytes), Ok(data)) => {
                body.flow_control().release_capacity(data.len()).unwrap();
                bytes.extend_from_slice(&data);
            }
            (_, Err(_)) => {
                bytes = None;
                break;
            }
            (None, Ok(_)) => unreachable!("it was left at the first error"),
        }
    }
    seen.note(&nonce, status, said.as_deref(), bytes.as_deref());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_the_answer_of_another_whatever_breaks() {
    const REQUESTS: usize = 600;
    let (one, two) = (origin(1).await, origin(2).await);
    let proxy = proxy();
    let (mut app, listen) = app(Protocol::Http, &[one.address, two.address]);
    app.retry = RetryConfig {
        attempts: 2,
        on: vec![RetryOn::Connect, RetryOn::Reset],
        backoff: (Duration::from_millis(1), Duration::from_millis(1)),
        ..RetryConfig::default()
    };
    serve(&proxy, &app).await;
    let (seen, stop) = (Arc::new(Seen::default()), AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for client in 0..4 {
        clients.spawn(pipelines(listen, client, REQUESTS, Arc::clone(&seen)));
        clients.spawn(streams(listen, client, REQUESTS, Arc::clone(&seen)));
    }
    let shifts = async {
        let targets = [pool(&[one.address]), pool(&[two.address]), pool(&[one.address, two.address])];
        for generation in 2.. {
            if stop.load(SeqCst) {
                break;
            }
            app.generation = generation;
            app.pools.insert("default".to_owned(), targets[usize::try_from(generation % 3).unwrap()].clone());
            serve(&proxy, &app).await;
            // Something has gone through each.
            let before = seen.whole.load(SeqCst);
            eventually("requests go on", || seen.whole.load(SeqCst) > before + 20 || stop.load(SeqCst)).await;
        }
        app.generation
    };
    let (generations, ()) = tokio::join!(shifts, async {
        while let Some(done) = clients.join_next().await {
            done.unwrap();
        }
        stop.store(true, SeqCst);
    });
    let (whole, broken) = (seen.whole.load(SeqCst), seen.broken.load(SeqCst));
    assert!(whole > 3 * REQUESTS && broken > 10 && generations > 10, "{whole} {broken} {generations}");
}
