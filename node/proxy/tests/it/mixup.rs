//! Whoever asks gets an answer to what they have asked, or none: thousands of requests while everything breaks.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use flotilla_proxy::{
    AppConfig,
    config::{
        HedgeConfig, MirrorConfig, PoolConfig, Protocol, RetryConfig, RetryOn, RouteConfig, UpstreamProtocol,
    },
};
use h2::{RecvStream, client::SendRequest, server::SendResponse};
use http::{Request, Response};
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

/// What origins were asked.
#[derive(Default)]
struct Asked {
    nonces: Mutex<HashSet<String>>,
    again: AtomicUsize,
}

impl Asked {
    fn note(&self, nonce: &str) {
        let is_new = self.nonces.lock().unwrap().insert(nonce.to_owned());
        self.again.fetch_add(usize::from(!is_new), SeqCst);
    }
}

/// An origin that says the nonce of each request in head and body of its answer, where it answers.
async fn origin(seed: u64, protocol: UpstreamProtocol, asked: &Arc<Asked>) -> Origin {
    let (connections, asked) = (AtomicUsize::new(0), Arc::clone(asked));
    Origin::new(move |stream| {
        let number = connections.fetch_add(1, SeqCst) as u64;
        let (random, asked) = (Random(seed ^ number << 32), Arc::clone(&asked));
        match protocol {
            UpstreamProtocol::Http2 => Box::pin(faulty_streams(stream, random, asked)),
            UpstreamProtocol::Http1 | UpstreamProtocol::Auto => Box::pin(faulty(stream, random, asked)),
        }
    })
    .await
}

fn body_of(nonce: &str, random: &mut Random) -> String {
    format!("{nonce}\n").repeat(1 + usize::try_from(random.below(200)).unwrap())
}

fn assert_is_of(nonce: &str, sent: &[u8]) {
    assert!(sent.chunks(nonce.len()).all(|part| nonce.as_bytes().starts_with(part)), "a body of {nonce}");
}

async fn faulty_streams(stream: TcpStream, mut random: Random, asked: Arc<Asked>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    let mut streams = JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        let nonce = request.headers()["x-nonce"].to_str().unwrap().to_owned();
        asked.note(&nonce);
        // All that is under way breaks off.
        if random.below(150) == 0 {
            return;
        }
        streams.spawn(faulty_stream(request.into_body(), respond, nonce, Random(random.below(u64::MAX))));
    }
}

async fn faulty_stream(
    mut sent: RecvStream,
    mut respond: SendResponse<Bytes>,
    nonce: String,
    mut random: Random,
) {
    let fault = random.below(40);
    if fault == 0 {
        return respond.send_reset(h2::Reason::INTERNAL_ERROR);
    }
    // Fault 1 answers before the body of the request was read.
    let mut read = Vec::new();
    while fault != 1
        && let Some(data) = sent.data().await
    {
        let Ok(data) = data else { return };
        let _gone = sent.flow_control().release_capacity(data.len());
        read.extend_from_slice(&data);
    }
    assert_is_of(&nonce, &read);
    if fault == 2 {
        tokio::time::sleep(SLOW).await;
    }
    let response = Response::builder().header("x-nonce", &nonce).body(()).unwrap();
    let Ok(mut send) = respond.send_response(response, false) else { return };
    let body = body_of(&nonce, &mut random);
    let whole = body.len();
    let some = if fault == 3 { usize::try_from(random.below(whole as u64)).unwrap() } else { whole };
    if send.send_data(Bytes::from(body).slice(..some), fault != 3 && fault != 4).is_err() {
        return;
    }
    match fault {
        3 => send.send_reset(h2::Reason::CANCEL),
        4 => drop(send.send_trailers(http::HeaderMap::new())),
        _ => {}
    }
}

/// Longer than it is waited for before somebody else is asked.
const SLOW: Duration = Duration::from_millis(20);

async fn faulty(mut stream: TcpStream, mut random: Random, asked: Arc<Asked>) {
    while let Ok(head) = head(&mut stream).await {
        let nonce = field(&head, "x-nonce").unwrap().to_owned();
        asked.note(&nonce);
        let length: usize = field(&head, "content-length").map_or(0, |length| length.parse().unwrap());
        let body = body_of(&nonce, &mut random);
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
        assert_is_of(&nonce, &sent);
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
            8 => {
                tokio::time::sleep(SLOW).await;
                stream.write_all(whole.as_bytes()).await
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

fn tries_again(app: &mut AppConfig) {
    app.retry = RetryConfig {
        attempts: 2,
        on: vec![RetryOn::Connect, RetryOn::Reset],
        backoff: (Duration::from_millis(1), Duration::from_millis(1)),
        ..RetryConfig::default()
    };
}

fn asks_several(app: &mut AppConfig) {
    app.retry = RetryConfig {
        attempts: 1,
        hedge: Some(HedgeConfig { after: SLOW / 4, max: 1 }),
        budget_percent: 100,
        ..RetryConfig::default()
    };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_the_answer_of_another_whatever_breaks() {
    nobody_is_mixed_up(UpstreamProtocol::Http1, tries_again, 600).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_where_answers_share_a_connection() {
    nobody_is_mixed_up(UpstreamProtocol::Http2, tries_again, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_where_several_are_asked_at_once() {
    nobody_is_mixed_up(UpstreamProtocol::Http1, asks_several, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_where_several_are_asked_over_shared_connections() {
    nobody_is_mixed_up(UpstreamProtocol::Http2, asks_several, 200).await;
}

/// Everything is also copied to somebody whose answers nobody is to see.
async fn nobody_is_mixed_up(protocol: UpstreamProtocol, repeats: fn(&mut AppConfig), requests: usize) {
    let (asked, copies) = (Arc::new(Asked::default()), Arc::new(Asked::default()));
    let (one, two) = (origin(1, protocol, &asked).await, origin(2, protocol, &asked).await);
    let shadow = origin(3, protocol, &copies).await;
    let pool = |targets: &[SocketAddr]| PoolConfig { protocol, ..pool(targets) };
    let proxy = proxy();
    let (mut app, listen) = app(Protocol::Http, &[]);
    app.pools.insert("default".to_owned(), pool(&[one.address, two.address]));
    app.pools.insert("shadow".to_owned(), pool(&[shadow.address]));
    let mirror = MirrorConfig { pool: "shadow".to_owned(), percent: 100, body_bytes_max: 64 << 10 };
    app.routes = vec![RouteConfig { mirror: Some(mirror), ..RouteConfig::hosts("all", ["a"], "default") }];
    repeats(&mut app);
    serve(&proxy, &app).await;
    let (seen, stop) = (Arc::new(Seen::default()), AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for client in 0..4 {
        clients.spawn(pipelines(listen, client, requests, Arc::clone(&seen)));
        clients.spawn(streams(listen, client, requests, Arc::clone(&seen)));
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
    assert!(whole > 3 * requests && broken > 10 && generations > 10, "{whole} {broken} {generations}");
    let (again, copied) = (asked.again.load(SeqCst), copies.nonces.lock().unwrap().len());
    assert!(again > 3 && copied > requests, "{again} were asked again, and {copied} copied");
}
