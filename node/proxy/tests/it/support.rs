//! What the tests share: a proxy, raw connections, scripted origins, and waiting without sleeping.

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use flotilla_proxy::{
    AppConfig, Proxy, ProxyConfig,
    config::{CheckConfig, CheckKind, PoolConfig, Protocol},
};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn proxy_with(change: impl FnOnce(&mut ProxyConfig)) -> Proxy {
    let mut config =
        ProxyConfig { workers: 2, close_horizon: Some(Duration::from_millis(300)), ..ProxyConfig::default() };
    change(&mut config);
    Proxy::start(config).unwrap()
}

pub(crate) fn proxy() -> Proxy {
    proxy_with(|_| ())
}

/// An address nobody uses. It stays bound, without listening, until the process ends, so that no other
/// test and no outgoing connection gets it; `SO_REUSEADDR` lets the proxy under test have it.
pub(crate) fn free() -> SocketAddr {
    let holder = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    holder.bind(&SocketAddr::new(LOCALHOST, 0).into()).unwrap();
    holder.set_reuse_address(true).unwrap();
    let address = holder.local_addr().unwrap().as_socket().unwrap();
    std::mem::forget(holder);
    address
}

/// An app on a free port in front of `targets`, not checked.
pub(crate) fn app(protocol: Protocol, targets: &[SocketAddr]) -> (AppConfig, SocketAddr) {
    let listen = free();
    let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
    let mut app = match protocol {
        Protocol::Tcp => AppConfig::tcp("web", listen, targets),
        Protocol::Http => AppConfig::http("web", listen, targets),
    };
    app.pools.get_mut("default").unwrap().check =
        CheckConfig { kind: CheckKind::None, ..CheckConfig::default() };
    (app, listen)
}

pub(crate) fn pool(targets: &[SocketAddr]) -> PoolConfig {
    let check = CheckConfig { kind: CheckKind::None, ..CheckConfig::default() };
    PoolConfig { check, ..PoolConfig::new(targets.iter().map(ToString::to_string)) }
}

pub(crate) async fn serve(proxy: &Proxy, app: &AppConfig) {
    proxy.prepare(app.clone()).await.unwrap();
    proxy.serve(&app.app, app.generation).unwrap();
}

/// A proxy that serves `targets`, and where.
pub(crate) async fn serving(protocol: Protocol, targets: &[SocketAddr]) -> (Proxy, SocketAddr) {
    let proxy = proxy();
    let (app, listen) = app(protocol, targets);
    serve(&proxy, &app).await;
    (proxy, listen)
}

pub(crate) async fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_true() {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An origin that hands each connection to a script; dies with the handle.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    pub(crate) accepted: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Origin {
    pub(crate) async fn new(script: impl Fn(TcpStream) -> Task + Send + Sync + 'static) -> Origin {
        Origin::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), script)
    }

    pub(crate) fn on(
        listener: TcpListener,
        script: impl Fn(TcpStream) -> Task + Send + Sync + 'static,
    ) -> Origin {
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut sessions = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, SeqCst);
                sessions.spawn(script(stream));
            }
        });
        Origin { address, accepted, _tasks: tasks }
    }

    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(SeqCst)
    }

    /// Sends back what it gets, and ends when it is told the end.
    pub(crate) async fn echo() -> Origin {
        Origin::new(|mut stream| {
            Box::pin(async move {
                let (mut read, mut write) = stream.split();
                if tokio::io::copy(&mut read, &mut write).await.is_ok() {
                    let _gone = write.shutdown().await;
                }
            })
        })
        .await
    }

    /// Says its name to everybody and closes.
    pub(crate) async fn greeter(name: &'static str) -> Origin {
        Origin::new(move |mut stream| {
            Box::pin(async move {
                let _gone = stream.write_all(name.as_bytes()).await;
            })
        })
        .await
    }

    /// Answers each request on a connection with `body`; the request's path is in `x-path`.
    pub(crate) async fn http(body: &'static str) -> Origin {
        Origin::new(move |mut stream| {
            Box::pin(async move {
                while let Ok(head) = head(&mut stream).await {
                    let length = field(&head, "content-length").map_or(0, |value| value.parse().unwrap());
                    let mut sent = vec![0; length];
                    stream.read_exact(&mut sent).await.unwrap();
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            })
        })
        .await
    }

    /// Answers every connection's first request with these bytes, then lets `after` happen.
    pub(crate) async fn once(answer: impl Into<Vec<u8>>, after: After) -> Origin {
        let answer = answer.into();
        Origin::new(move |mut stream| {
            let answer = answer.clone();
            Box::pin(async move {
                if head(&mut stream).await.is_err() {
                    return;
                }
                stream.write_all(&answer).await.unwrap();
                match after {
                    After::Close => {}
                    After::Reset => reset(stream),
                    After::Hold => hold(stream).await,
                }
            })
        })
        .await
    }
}

#[derive(Clone, Copy)]
pub(crate) enum After {
    Close,
    Reset,
    Hold,
}

/// Reads on until the other side ends.
pub(crate) async fn hold(mut stream: TcpStream) {
    let mut rest = Vec::new();
    let _ended = stream.read_to_end(&mut rest).await;
}

pub(crate) fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

pub(crate) async fn connect(address: SocketAddr) -> TcpStream {
    timeout(PATIENCE, TcpStream::connect(address)).await.expect("a connection in time").unwrap()
}

pub(crate) async fn send(stream: &mut TcpStream, bytes: impl AsRef<[u8]>) {
    stream.write_all(bytes.as_ref()).await.unwrap();
}

pub(crate) async fn receive(stream: &mut TcpStream, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    timeout(PATIENCE, stream.read_exact(&mut bytes)).await.expect("bytes in time").unwrap();
    bytes
}

/// Everything until the end; an error where it ends with a reset.
pub(crate) async fn rest(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("an end in time")?;
    Ok(bytes)
}

pub(crate) async fn assert_reset(stream: &mut TcpStream) {
    let error = rest(stream).await.expect_err("a reset, not a clean end");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
}

/// The same for a new connection, which may be reset before `connect` has returned.
pub(crate) async fn assert_reset_at(address: SocketAddr) {
    match TcpStream::connect(address).await {
        Ok(mut stream) => assert_reset(&mut stream).await,
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}"),
    }
}

/// One message head, byte for byte, without reading beyond it.
pub(crate) async fn head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(PATIENCE * 3, stream.read_u8()).await.map_err(|_| io::ErrorKind::TimedOut)??);
    }
    Ok(String::from_utf8(head).unwrap())
}

pub(crate) fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

pub(crate) fn status(head: &str) -> u16 {
    head.split(' ').nth(1).unwrap_or_else(|| panic!("no status line: {head:?}")).parse().unwrap()
}

/// A response of known length: its head and its body.
pub(crate) async fn response(stream: &mut TcpStream) -> (String, String) {
    let head = head(stream).await.unwrap();
    let length =
        field(&head, "content-length").unwrap_or_else(|| panic!("no length: {head}")).parse().unwrap();
    let body = receive(stream, length).await;
    (head, String::from_utf8(body).unwrap())
}

/// A GET on a connection that stays open: status and body.
pub(crate) async fn get(stream: &mut TcpStream, path: &str) -> (u16, String) {
    send(stream, format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
    let (head, body) = response(stream).await;
    (status(&head), body)
}

pub(crate) const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
