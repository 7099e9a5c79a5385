//! Runs the examples as they are, as processes, against real origins.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    env,
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{Router, routing::any};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    task::JoinSet,
    time::{Instant, sleep},
};

const DEADLINE: Duration = Duration::from_secs(20);

/// An origin that answers everything with its name, until dropped.
struct Origin {
    address: SocketAddr,
    answered: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Origin {
    async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answered = Arc::new(AtomicUsize::new(0));
        let count = answered.clone();
        let answer = any(move || {
            count.fetch_add(1, Relaxed);
            std::future::ready(name)
        });
        let mut task = JoinSet::new();
        task.spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await.unwrap() });
        Self { address, answered, _task: task }
    }
}

/// Starts an example and waits until it accepts at all of `ports`. It dies with the handle.
async fn start(example: &str, args: &[String], ports: &[SocketAddr]) -> Child {
    // <target>/debug/deps/<this test>: examples are two floors up.
    let mut path: PathBuf = env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.extend(["examples", example]);
    assert!(path.exists(), "{} is not built: run `cargo build -p flotilla-proxy --examples`", path.display());
    let mut child = Command::new(path).args(args).stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    for &port in ports {
        eventually("the example listens", async || {
            assert_eq!(child.try_wait().unwrap(), None, "the example ended");
            TcpStream::connect(port).await.is_ok()
        })
        .await;
    }
    child
}

async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// A client with one connection that it keeps.
struct Client {
    sender: SendRequest<Empty<Bytes>>,
    _connection: JoinSet<()>,
}

impl Client {
    async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let (sender, connection) = http1::handshake(TokioIo::new(TcpStream::connect(address).await?)).await?;
        let mut task = JoinSet::new();
        // What goes wrong here also fails the request that was waiting.
        task.spawn(async move { connection.await.unwrap_or_default() });
        Ok(Self { sender, _connection: task })
    }

    async fn send(&mut self, method: Method, host: &str, path: &str) -> anyhow::Result<(StatusCode, String)> {
        let request = Request::builder().method(method).uri(path).header(header::HOST, host);
        let request = request.body(Empty::new())?;
        let exchange = async {
            self.sender.ready().await?;
            let response = self.sender.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            anyhow::Ok((status, String::from_utf8(body.to_vec())?))
        };
        tokio::time::timeout(DEADLINE, exchange).await?
    }
}

/// One request over a connection of its own.
async fn ask(address: SocketAddr, method: Method, host: &str, path: &str) -> (StatusCode, String) {
    Client::connect(address).await.unwrap().send(method, host, path).await.unwrap()
}

#[tokio::test]
async fn balance_gives_each_of_three_upstreams_its_share() {
    let origins = [Origin::start("a").await, Origin::start("b").await, Origin::start("c").await];
    let listen = free_port().await;
    let mut args = vec![listen.to_string()];
    args.extend(origins.iter().map(|origin| origin.address.to_string()));
    let _example = start("balance", &args, &[listen]).await;
    eventually("all three answer", async || {
        ask(listen, Method::GET, "h", "/").await;
        origins.iter().all(|origin| origin.answered.load(Relaxed) > 0)
    })
    .await;

    let mut shares: BTreeMap<String, u32> = BTreeMap::new();
    let mut client = Client::connect(listen).await.unwrap();
    for _ in 0..600 {
        let (status, name) = client.send(Method::GET, "h", "/").await.unwrap();
        assert_eq!(status, StatusCode::OK);
        *shares.entry(name).or_default() += 1;
    }
    // 200 each; a fair draw leaves this range once in 10^9 runs.
    assert!(shares.len() == 3 && shares.values().all(|share| (130..270).contains(share)), "{shares:?}");
}

#[tokio::test]
async fn route_by_host_sends_api_hosts_to_the_api_and_all_others_to_the_frontend() {
    let (api, frontend) = (Origin::start("api").await, Origin::start("frontend").await);
    let listen = free_port().await;
    let args = [listen, api.address, frontend.address].map(|address| address.to_string());
    let _example = start("route_by_host", &args, &[listen]).await;
    let mut client = Client::connect(listen).await.unwrap();
    for (host, expected) in [
        ("api.example.com", "api"),
        ("API.example.com:8080", "api"),
        ("www.example.com", "frontend"),
        ("example.com", "frontend"),
        ("apix.example.com", "frontend"),
        ("www.api.example.com", "frontend"),
        ("api.example.org", "api"),
    ] {
        let answer = client.send(Method::GET, host, "/").await.unwrap();
        assert_eq!(answer, (StatusCode::OK, expected.to_owned()), "{host}");
    }
}

/// Requests without a pause until told to stop.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    done: AtomicUsize,
}

impl Load {
    /// `keep`: over one connection for as long as there is load; otherwise over a new one each time.
    async fn run(&self, address: SocketAddr, keep: bool) -> anyhow::Result<()> {
        let mut client = Client::connect(address).await?;
        while !self.stop.load(Relaxed) {
            if !keep {
                client = Client::connect(address).await?;
            }
            let (status, body) = client.send(Method::GET, "h", "/").await?;
            anyhow::ensure!(status == StatusCode::OK, "{status}: {body}");
            self.done.fetch_add(1, Relaxed);
        }
        Ok(())
    }
}

#[tokio::test]
async fn admin_api_adds_and_removes_upstreams_without_failing_a_request() {
    let origins = [Origin::start("a").await, Origin::start("b").await, Origin::start("c").await];
    let [a, b, c] = origins.each_ref().map(|origin| origin.address);
    let (listen, admin) = (free_port().await, free_port().await);
    let args = [listen, admin, a].map(|address| address.to_string());
    let mut example = start("admin_api", &args, &[listen, admin]).await;

    let load = Arc::new(Load::default());
    let mut clients = JoinSet::new();
    for keep in [true, true, false, false] {
        let load = load.clone();
        clients.spawn(async move { load.run(listen, keep).await });
    }
    let path = |upstream: SocketAddr| format!("/upstreams/{upstream}");
    let change = async |method: Method, upstream: SocketAddr, expected: StatusCode| {
        let (status, body) = ask(admin, method, "admin", &path(upstream)).await;
        assert_eq!(status, expected, "{body}");
    };
    let serving = async || {
        let list = ask(admin, Method::GET, "admin", "/upstreams").await.1;
        serde_json::from_str::<Vec<SocketAddr>>(&list).unwrap()
    };
    let answers = async |origin: usize| {
        let before = origins[origin].answered.load(Relaxed);
        eventually("the origin gets requests", async || origins[origin].answered.load(Relaxed) > before + 20)
            .await;
    };

    answers(0).await;
    assert_eq!(serving().await, [a]);
    change(Method::POST, a, StatusCode::OK).await;
    change(Method::DELETE, b, StatusCode::NOT_FOUND).await;
    for _ in 0..5 {
        change(Method::POST, b, StatusCode::CREATED).await;
        change(Method::POST, c, StatusCode::CREATED).await;
        answers(1).await;
        answers(2).await;
        change(Method::DELETE, a, StatusCode::NO_CONTENT).await;
        change(Method::DELETE, b, StatusCode::NO_CONTENT).await;
        assert_eq!(serving().await, [c]);
        answers(2).await;
        let removed = origins[0].answered.load(Relaxed);
        answers(2).await;
        assert_eq!(origins[0].answered.load(Relaxed), removed, "what was removed gets nothing");
        change(Method::POST, a, StatusCode::CREATED).await;
        change(Method::DELETE, c, StatusCode::NO_CONTENT).await;
        answers(0).await;
    }

    load.stop.store(true, Relaxed);
    let mut failures = Vec::new();
    while let Some(ended) = clients.join_next().await {
        failures.extend(ended.unwrap().err());
    }
    assert!(failures.is_empty(), "{failures:?} in {} requests", load.done.load(Relaxed));
    assert!(load.done.load(Relaxed) > 500, "there was load");
    assert_eq!(example.try_wait().unwrap(), None, "the example still runs");
}

#[tokio::test]
async fn layers_asks_for_the_password_before_anything_reaches_the_origin() {
    let origin = Origin::start("a").await;
    let listen = free_port().await;
    let args = [listen, origin.address].map(|address| address.to_string());
    let _example = start("layers", &args, &[listen]).await;
    let (status, body) = ask(listen, Method::GET, "h", "/").await;
    assert_eq!((status, body.as_str()), (StatusCode::UNAUTHORIZED, "who are you?\n"));
    assert_eq!(origin.answered.load(Relaxed), 0);
    let request = "GET / HTTP/1.1\r\nhost: h\r\nauthorization: open sesame\r\nconnection: close\r\n\r\n";
    let mut client = TcpStream::connect(listen).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(DEADLINE, client.read_to_string(&mut answer)).await.expect("in time").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with('a'), "{answer}");
    assert_eq!(origin.answered.load(Relaxed), 1);
}
