//! Targets that are socket files of this machine.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use flotilla_proxy::{
    AppConfig, Resolution, Tally,
    config::{
        CheckConfig, CheckKind,
        Protocol::{self, Http, Tcp},
        UpstreamProtocol, UpstreamTls,
    },
};
use socket2::{Domain, SockAddr, Socket, Type};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    bulk::{assert_same, stream},
    secure::Authority,
    support::*,
};

/// An origin behind a socket file, which goes with it.
struct FileOrigin {
    accepted: Arc<AtomicUsize>,
    path: PathBuf,
    _tasks: JoinSet<()>,
}

impl FileOrigin {
    fn new(path: &Path, script: impl Fn(UnixStream) -> Task + Send + Sync + 'static) -> FileOrigin {
        Self::on(UnixListener::bind(path).unwrap(), path, script)
    }

    fn on(
        listener: UnixListener,
        path: &Path,
        script: impl Fn(UnixStream) -> Task + Send + Sync + 'static,
    ) -> FileOrigin {
        let accepted = Arc::<AtomicUsize>::default();
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
        FileOrigin { accepted, path: path.to_owned(), _tasks: tasks }
    }

    /// Sends back what it gets, and ends when it is told the end.
    fn echo(path: &Path) -> FileOrigin {
        Self::new(path, |stream| Box::pin(echo(stream)))
    }

    /// Answers each request with the head of it and `body` behind that.
    fn http(path: &Path, body: Vec<u8>) -> FileOrigin {
        Self::new(path, move |stream| {
            let body = body.clone();
            Box::pin(async move {
                answer_heads(stream, &body).await;
            })
        })
    }

    /// The same inside TLS, in HTTP/1.1.
    fn https(path: &Path, acceptor: TlsAcceptor, body: Vec<u8>) -> FileOrigin {
        Self::new(path, move |stream| {
            let (acceptor, body) = (acceptor.clone(), body.clone());
            Box::pin(async move {
                // A client that does not believe us goes.
                let Ok(stream) = acceptor.accept(stream).await else { return };
                answer_heads(stream, &body).await;
            })
        })
    }

    /// Speaks HTTP/2 only, with `acceptor` inside TLS: says in `x-path` what it was asked for, sends the body back as it
    /// comes, and ends with a trailer.
    fn http2(path: &Path, acceptor: Option<TlsAcceptor>) -> FileOrigin {
        Self::new(path, move |stream| {
            let acceptor = acceptor.clone();
            Box::pin(async move {
                match acceptor {
                    None => echo_streams(stream).await,
                    Some(acceptor) => echo_streams(acceptor.accept(stream).await.unwrap()).await,
                }
            })
        })
    }

    fn accepted(&self) -> usize {
        self.accepted.load(SeqCst)
    }
}

impl Drop for FileOrigin {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.path);
    }
}

async fn echo(mut stream: UnixStream) {
    let (mut read, mut write) = stream.split();
    if tokio::io::copy(&mut read, &mut write).await.is_ok() {
        let _gone = write.shutdown().await;
    }
}

async fn answer_heads<S: AsyncRead + AsyncWrite + Unpin>(stream: S, body: &[u8]) {
    let mut stream = BufReader::new(stream);
    while let Some(mut answer) = file_head(&mut stream).await {
        let length = field(&answer, "content-length").map_or(0, |value| value.parse().unwrap());
        let mut sent = vec![0; length];
        stream.read_exact(&mut sent).await.unwrap();
        let bytes = answer.len() + sent.len() + body.len();
        answer.insert_str(0, &format!("HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\n\r\n"));
        let answer = [answer.as_bytes(), &sent, body].concat();
        stream.write_all(&answer).await.unwrap();
        stream.flush().await.unwrap();
    }
}

async fn echo_streams<S: AsyncRead + AsyncWrite + Unpin>(stream: S) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    let mut streams = JoinSet::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        streams.spawn(async move {
            let response = http::Response::builder().header("x-path", request.uri().path());
            let mut send = respond.send_response(response.body(()).unwrap(), false).unwrap();
            let mut body = request.into_body();
            while let Some(Ok(data)) = body.data().await {
                body.flow_control().release_capacity(data.len()).unwrap();
                send.reserve_capacity(data.len());
                send.send_data(data, false).unwrap();
            }
            let trailers = [("grpc-status".parse().unwrap(), "0".parse().unwrap())];
            let _gone = send.send_trailers(trailers.into_iter().collect());
        });
    }
}

async fn file_head<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).unwrap())
}

/// A directory, and a path in it where nothing is.
fn place() -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("app.sock");
    (directory, path)
}

fn app_at(protocol: Protocol, path: &Path) -> (AppConfig, std::net::SocketAddr) {
    let (mut config, listen) = app(protocol, &[]);
    let target = flotilla_proxy::config::TargetConfig::new(target(path), 100);
    config.pools.get_mut("default").unwrap().targets = vec![target];
    (config, listen)
}

fn target(path: &Path) -> String {
    format!("unix:{}", path.display())
}

#[tokio::test]
async fn bytes_go_both_ways_and_one_way_may_end_before_the_other() {
    let (_directory, path) = place();
    let origin = FileOrigin::echo(&path);
    let proxy = proxy();
    let (config, listen) = app_at(Tcp, &path);
    serve(&proxy, &config).await;
    let mut client = connect(listen).await;
    // Several writes: TCP has an option about the second one, which a file has not.
    for word in ["one", "two", "six"] {
        send(&mut client, word).await;
        assert_eq!(receive(&mut client, 3).await, word.as_bytes());
    }
    send(&mut client, "end").await;
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut client).await.unwrap(), b"end");
    assert_eq!(origin.accepted(), 1);
    let status = &proxy.status()[0].targets[0];
    assert_eq!((&*status.target, &status.resolution), (&*target(&path), &Resolution::Resolved));
    assert_eq!(status.endpoints[0].address.to_string(), target(&path));
    assert_eq!(status.endpoints[0].address.inet(), None);
}

#[tokio::test]
async fn a_session_outlives_the_moment_when_tcp_gets_its_keep_alive() {
    let (_directory, path) = place();
    let _origin = FileOrigin::echo(&path);
    let (config, listen) = app_at(Tcp, &path);
    let proxy = proxy();
    serve(&proxy, &config).await;
    let mut client = connect(listen).await;
    send(&mut client, "x").await;
    receive(&mut client, 1).await;
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < Duration::from_millis(1500) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        send(&mut client, "y").await;
        assert_eq!(receive(&mut client, 1).await, b"y");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_arrives_byte_for_byte_in_both_directions_at_once() {
    let (up, down) = (stream(24 << 20, 11), stream((24 << 20) + 13, 12));
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let (_directory, path) = place();
    let sent = down.clone();
    let _origin = FileOrigin::new(&path, move |stream| {
        let (tell, sent) = (tell.clone(), sent.clone());
        Box::pin(async move {
            let (mut read, mut write) = stream.into_split();
            let mut received = Vec::new();
            let writing = async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let ((), n) = tokio::join!(writing, read.read_to_end(&mut received));
            n.unwrap();
            tell.send(received).await.unwrap();
        })
    });
    let proxy = proxy();
    let (config, listen) = app_at(Tcp, &path);
    serve(&proxy, &config).await;
    let (mut read, mut write) = connect(listen).await.into_split();
    let mut received = Vec::new();
    let writing = async {
        write.write_all(&up).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let ((), n) = tokio::join!(writing, timeout(PATIENCE * 3, read.read_to_end(&mut received)));
    n.expect("an end in time").unwrap();
    assert_same(&received, &down, "down");
    assert_same(&told.recv().await.unwrap(), &up, "up");
}

#[tokio::test]
async fn what_breaks_behind_the_file_is_a_reset_for_the_client() {
    let (_directory, path) = place();
    let _origin = FileOrigin::new(&path, |mut stream| {
        // With something left to read: so a process ends that was killed.
        Box::pin(async move {
            let _first = stream.read_u8().await.unwrap();
        })
    });
    let proxy = proxy();
    let (config, listen) = app_at(Tcp, &path);
    serve(&proxy, &config).await;
    let mut client = connect(listen).await;
    send(&mut client, "go").await;
    assert_reset(&mut client).await;
    eventually("it counts against the generation", || proxy.status()[0].tally.resets == 1).await;
}

#[tokio::test]
async fn requests_reuse_a_connection_and_bodies_of_every_size_arrive() {
    let (_directory, path) = place();
    // Large enough to be moved inside the kernel.
    let body = stream(3 << 20, 13);
    let origin = FileOrigin::http(&path, body.clone());
    // One worker, so that there is one pool.
    let proxy = proxy_with(|config| config.workers = 1);
    let (config, listen) = app_at(Http, &path);
    serve(&proxy, &config).await;
    let mut client = connect(listen).await;
    for upload in [0, 1, 100_000] {
        let sent = stream(upload, 14);
        send(&mut client, format!("POST /a HTTP/1.1\r\nhost: shop.test\r\ncontent-length: {upload}\r\n\r\n"))
            .await;
        send(&mut client, &sent).await;
        let head = head(&mut client).await.unwrap();
        assert_eq!(status(&head), 200);
        let length = field(&head, "content-length").unwrap().parse().unwrap();
        let answer = receive(&mut client, length).await;
        assert!(answer.starts_with(b"POST /a HTTP/1.1\r\n"));
        assert_same(&answer[length - body.len()..], &body, "down");
        assert_same(&answer[length - body.len() - upload..length - body.len()], &sent, "up");
    }
    drop(client);
    let mut client = connect(listen).await;
    send(&mut client, "GET /b HTTP/1.1\r\nhost: shop.test\r\n\r\n").await;
    assert_eq!(status(&head(&mut client).await.unwrap()), 200);
    assert_eq!(origin.accepted(), 1, "four requests of two clients");
}

#[tokio::test]
async fn behind_a_file_whoever_has_the_certificate_is_believed() {
    let (authority, strangers) = (Authority::new(), Authority::new());
    authority.issue("web", &["web.test"]);
    let ((_root, ca), (_other_root, other_ca)) = (authority.root_file(), strangers.root_file());
    let body = stream(1 << 20, 15);
    let (_directory, path) = place();
    let origin = FileOrigin::https(&path, authority.acceptor("web"), body.clone());
    let good = UpstreamTls { server_name: Some("web.test".to_owned()), ca, identity: None };
    for (what, protocol, tls, want) in [
        ("what is agreed on", UpstreamProtocol::Auto, good.clone(), 200),
        ("HTTP/1.1", UpstreamProtocol::Http1, good.clone(), 200),
        (
            "another name",
            UpstreamProtocol::Auto,
            UpstreamTls { server_name: Some("b.test".to_owned()), ..good.clone() },
            502,
        ),
        ("another authority", UpstreamProtocol::Auto, UpstreamTls { ca: other_ca, ..good.clone() }, 502),
        ("no name", UpstreamProtocol::Auto, UpstreamTls { server_name: None, ..good.clone() }, 502),
    ] {
        let proxy = proxy_with(|config| config.workers = 1);
        let (mut config, listen) = app_at(Http, &path);
        let pool = config.pools.get_mut("default").unwrap();
        (pool.protocol, pool.tls) = (protocol, Some(tls));
        serve(&proxy, &config).await;
        let before = origin.accepted();
        let mut client = connect(listen).await;
        for _again in 0..3 {
            send(&mut client, "GET /a HTTP/1.1\r\nhost: shop.test\r\n\r\n").await;
            let head = head(&mut client).await.unwrap();
            assert_eq!(status(&head), want, "{what}");
            let length = field(&head, "content-length").unwrap().parse().unwrap();
            let answer = receive(&mut client, length).await;
            if want == 200 {
                assert!(answer.starts_with(b"GET /a HTTP/1.1\r\n"), "{what}");
                assert_same(&answer[length - body.len()..], &body, what);
            }
        }
        if want == 200 {
            assert_eq!(origin.accepted(), before + 1, "{what}: one connection for all three");
        }
    }
}

#[tokio::test]
async fn behind_a_file_requests_share_a_connection_in_http_2() {
    let authority = Authority::new();
    authority.issue("web", &["web.test"]);
    let (_root, ca) = authority.root_file();
    let tls = UpstreamTls { server_name: Some("web.test".to_owned()), ca, identity: None };
    let http2 = || authority.acceptor_with("web", &["h2"]);
    for (what, protocol, acceptor) in [
        ("in the clear", UpstreamProtocol::Http2, None),
        ("inside TLS", UpstreamProtocol::Http2, Some(http2())),
        ("agreed on", UpstreamProtocol::Auto, Some(http2())),
    ] {
        let (_directory, path) = place();
        let is_secure = acceptor.is_some();
        let origin = FileOrigin::http2(&path, acceptor);
        let proxy = proxy_with(|config| config.workers = 1);
        let (mut config, listen) = app_at(Http, &path);
        let pool = config.pools.get_mut("default").unwrap();
        (pool.protocol, pool.tls) = (protocol, is_secure.then(|| tls.clone()));
        serve(&proxy, &config).await;
        // The first opens the connection that the others share.
        let ask = async |number: u64, bytes: usize| {
            let (sent, mut client) = (stream(bytes, number), connect(listen).await);
            let head_sent = format!("POST /{number} HTTP/1.1\r\nhost: a\r\ncontent-length: {bytes}\r\n\r\n");
            send(&mut client, head_sent).await;
            let (mut read, mut write) = client.split();
            let answer = async {
                let mut answer = Vec::new();
                while !answer.ends_with(b"0\r\ngrpc-status: 0\r\n\r\n") {
                    let more = timeout(PATIENCE, read.read_buf(&mut answer)).await;
                    assert_ne!(more.expect("an answer in time").unwrap(), 0, "{what}");
                }
                answer
            };
            let (answer, written) = tokio::join!(answer, write.write_all(&sent));
            written.unwrap();
            let end = answer.windows(4).position(|at| at == b"\r\n\r\n").unwrap() + 4;
            let head = std::str::from_utf8(&answer[..end]).unwrap();
            assert_eq!((status(head), field(head, "x-path")), (200, Some(&*format!("/{number}"))), "{what}");
            assert_same(&unchunked(&answer[end..]), &sent, what);
        };
        ask(1, 5).await;
        tokio::join!(ask(2, 300_000), ask(3, 0), ask(4, 70_000));
        assert_eq!(origin.accepted(), 1, "{what}");
    }
}

/// The content of a chunked body, up to its trailers.
fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    loop {
        let end = body.windows(2).position(|at| at == b"\r\n").unwrap();
        let length = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
        if length == 0 {
            return content;
        }
        content.extend_from_slice(&body[end + 2..][..length]);
        body = &body[end + 2 + length + 2..];
    }
}

#[tokio::test]
async fn checks_of_a_file_go_inside_tls_as_requests_do() {
    let authority = Authority::new();
    authority.issue("web", &["web.test"]);
    let (_root, ca) = authority.root_file();
    let (_directory, path) = place();
    let _origin = FileOrigin::https(&path, authority.acceptor("web"), Vec::new());
    for (name, want) in [("web.test", true), ("b.test", false)] {
        let proxy = proxy();
        let (mut config, _) = app_at(Http, &path);
        let pool = config.pools.get_mut("default").unwrap();
        pool.tls = Some(UpstreamTls { server_name: Some(name.to_owned()), ca: ca.clone(), identity: None });
        let kind = CheckKind::Http { path: "/".to_owned(), host: None, expect: vec![(200, 299)] };
        pool.check = CheckConfig { kind, fall: 1, rise: 1, ..CheckConfig::default() };
        serve(&proxy, &config).await;
        let checked = || proxy.status()[0].targets[0].endpoints[0].available;
        eventually("checked", || checked() == Some(want)).await;
    }
}

#[tokio::test]
async fn without_its_file_a_target_cannot_be_reached() {
    let (_directory, path) = place();
    let proxy = proxy();
    let (config, listen) = app_at(Http, &path);
    serve(&proxy, &config).await;
    let mut client = connect(listen).await;
    send(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let (head, body) = response(&mut client).await;
    assert_eq!((status(&head), &*body), (502, "no endpoint could be reached\n"));
    eventually("it counts as an error", || proxy.status()[0].tally.errors == 1).await;
    // The connection goes on, and so does the target once it is there.
    let _origin = FileOrigin::http(&path, Vec::new());
    assert_eq!(get(&mut client, "/").await.0, 200);

    let (_directory, path) = place();
    let (mut config, listen) = app_at(Tcp, &path);
    config.app = "bytes".into();
    serve(&proxy, &config).await;
    assert_reset_at(listen).await;
    let tally =
        |app: &str| -> Tally { proxy.status().into_iter().find(|status| *status.app == *app).unwrap().tally };
    eventually("it counts as unreached", || tally("bytes").unreached == 1).await;
    // A file that nobody listens at any more refuses.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    assert_reset_at(listen).await;
    eventually("it counts as unreached", || tally("bytes").unreached == 2).await;
}

#[tokio::test]
async fn checks_fail_until_there_is_a_file_and_again_without_it() {
    let brief = Duration::from_millis(20);
    let web = CheckKind::Http { path: "/healthz".to_owned(), host: None, expect: vec![(200, 299)] };
    for kind in [CheckKind::Tcp, web] {
        let (_directory, path) = place();
        let proxy = proxy();
        let (mut config, listen) = app_at(Http, &path);
        let pool = config.pools.get_mut("default").unwrap();
        pool.check = CheckConfig { kind, interval: brief, fall: 1, rise: 1, ..CheckConfig::default() };
        // Otherwise a target that is alone is tried although it fails.
        pool.balance.panic_threshold = 0;
        serve(&proxy, &config).await;
        let endpoint = || proxy.status()[0].targets[0].endpoints[0].clone();
        eventually("the check fails", || endpoint().available == Some(false)).await;
        assert_eq!(endpoint().last_error.as_deref(), Some("no such file"));
        let mut client = connect(listen).await;
        assert_eq!(get(&mut client, "/").await.0, 503);
        let origin = FileOrigin::http(&path, Vec::new());
        eventually("the check passes", || endpoint().available == Some(true)).await;
        let (status, answer) = get(&mut client, "/x").await;
        assert_eq!(status, 200);
        assert!(answer.starts_with("GET /x HTTP/1.1\r\n"), "{answer}");
        drop(origin);
        eventually("the check fails again", || endpoint().available == Some(false)).await;
    }
}

#[tokio::test]
async fn an_http_check_asks_for_localhost_unless_it_names_a_host() {
    for (named, expected) in [(None, "localhost"), (Some("shop.test"), "shop.test")] {
        let (_directory, path) = place();
        let (tell, mut told) = tokio::sync::mpsc::channel(1);
        let _origin = FileOrigin::new(&path, move |stream| {
            let tell = tell.clone();
            Box::pin(async move {
                let mut stream = BufReader::new(stream);
                let Some(head) = file_head(&mut stream).await else { return };
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                stream.get_mut().write_all(answer).await.unwrap();
                // Only the first is looked at.
                let _full = tell.try_send(head);
            })
        });
        let proxy = proxy();
        let (mut config, _) = app_at(Http, &path);
        let host = named.map(str::to_owned);
        let kind = CheckKind::Http { path: "/".to_owned(), host, expect: vec![(200, 299)] };
        config.pools.get_mut("default").unwrap().check = CheckConfig { kind, ..CheckConfig::default() };
        serve(&proxy, &config).await;
        let head = timeout(PATIENCE, told.recv()).await.expect("a check in time").unwrap();
        assert_eq!(field(&head, "host"), Some(expected));
    }
}

#[tokio::test]
async fn a_file_that_takes_no_more_for_now_is_waited_for() {
    let (_directory, path) = place();
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    socket.listen(1).unwrap();
    socket.set_nonblocking(true).unwrap();
    // Nobody accepts: at some point the kernel takes no more (unix(7), EAGAIN of connect(2)).
    let mut waiting = Vec::new();
    loop {
        let client = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        client.set_nonblocking(true).unwrap();
        match client.connect(&SockAddr::unix(&path).unwrap()) {
            Ok(()) => waiting.push(client),
            Err(error) => break assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
    let proxy = proxy();
    let (config, listen) = app_at(Tcp, &path);
    serve(&proxy, &config).await;
    let mut client = connect(listen).await;
    send(&mut client, "hello").await;
    eventually("the session is there", || proxy.status()[0].pins == 1).await;
    let origin = FileOrigin::on(
        UnixListener::from_std(std::os::fd::OwnedFd::from(socket).into()).unwrap(),
        &path,
        |stream| Box::pin(echo(stream)),
    );
    assert_eq!(receive(&mut client, 5).await, b"hello");
    assert!(origin.accepted() > waiting.len());
}
