//! One check of one endpoint: does it answer?
//!
//! Knows nothing of earlier checks; what a series of results means is decided in `health`.

use std::{error::Error, io, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use crate::{
    address::Address,
    config::CheckKind,
    connect::dial_file,
    grpc_health::grpc_health,
    proxy_protocol::{self, About, ProxyVersion},
    tls::upstream::Transport,
};

const USER_AGENT: &str = "flotilla-check";

/// What to try.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    pub(super) kind: CheckKind,
    pub(super) address: Address,
    /// The host of the target as the user wrote it, for the `Host` field of a check that names none.
    pub(super) host: Arc<str>,
    /// For all of it: connect, ask, answer.
    pub(super) timeout: Duration,
    /// What the endpoint expects of every connection: that it begins with a PROXY header.
    pub(super) send_proxy: Option<ProxyVersion>,
    pub(super) transport: Option<Arc<Transport>>,
}

/// `Err` says in a few words of plain English why the endpoint is not fit to serve.
pub(super) async fn run(probe: &Probe) -> Result<(), String> {
    match tokio::time::timeout(probe.timeout, attempt(probe)).await {
        Ok(result) => result,
        Err(_) => Err(format!("timed out after {:?}", probe.timeout)),
    }
}

async fn attempt(probe: &Probe) -> Result<(), String> {
    if probe.kind == CheckKind::None {
        return Ok(());
    }
    let stream = match &probe.address {
        Address::Inet(address) => TcpStream::connect(address).await,
        Address::Unix(path) => dial_file(path).await,
    };
    let stream = stream.map_err(|err| io_reason(&err))?;
    // Checks come for as long as the endpoint lives. A reset at the end leaves no TIME_WAIT on either side, where an
    // orderly close would leave thousands. Nothing is lost: whatever was still under way was for us alone.
    stream.set_zero_linger().map_err(|err| io_reason(&err))?;
    if let Some(version) = probe.send_proxy {
        let header = proxy_protocol::write(version, None, &About::default());
        // A few bytes into an empty send buffer.
        stream.writable().await.map_err(|err| io_reason(&err))?;
        stream.try_write(&header).map_err(|err| io_reason(&err))?;
    }
    match &probe.kind {
        CheckKind::None | CheckKind::Tcp => Ok(()),
        CheckKind::Http { path, host, expect } => {
            let host = host.clone().unwrap_or_else(|| authority(probe));
            let status = match tls(probe)? {
                None => ask(stream, path, &host).await?,
                Some((config, name)) => {
                    let stream = TlsConnector::from(config).connect(name, stream).await;
                    ask(stream.map_err(|err| format!("TLS: {err}"))?, path, &host).await?
                }
            };
            let fits = expect.iter().any(|&(low, high)| (low..=high).contains(&status));
            if fits { Ok(()) } else { Err(format!("status {status}")) }
        }
        CheckKind::Grpc { service } => {
            let authority = authority(probe);
            match tls(probe)? {
                None => grpc_health(stream, &authority, service).await,
                Some((config, name)) => {
                    let stream = TlsConnector::from(config).connect(name, stream).await;
                    grpc_health(stream.map_err(|err| format!("TLS: {err}"))?, &authority, service).await
                }
            }
        }
    }
}

type Tls = (Arc<rustls::ClientConfig>, rustls::pki_types::ServerName<'static>);

fn tls(probe: &Probe) -> Result<Option<Tls>, String> {
    let Some(transport) = &probe.transport else { return Ok(None) };
    transport.tls(&authority(probe))
}

/// The status of one GET. The body is not read: the verdict must not depend on its length.
async fn ask<S>(stream: S, path: &str, host: &str) -> Result<u16, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|err| format!("cannot ask for `{path}` on `{host}`: {err}"))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|err| http_reason(&err))?;
    let mut response = pin!(sender.send_request(request));
    // The connection moves only while it is polled. It may end in the very poll that delivers the response, and then
    // the response is there to be picked up.
    let response = tokio::select! {
        response = &mut response => response,
        _ended = connection => response.await,
    };
    response.map(|response| response.status().as_u16()).map_err(|err| http_reason(&err))
}

/// RFC 9110 §7.2: the port belongs to the host unless it is the one of the scheme. A file has none.
fn authority(Probe { address, host, .. }: &Probe) -> String {
    match address.inet().map(|address| address.port()) {
        None | Some(80) => host.to_string(),
        Some(port) => format!("{host}:{port}"),
    }
}

fn http_reason(err: &hyper::Error) -> String {
    if err.is_parse() {
        return "the answer is not HTTP/1.1".to_owned();
    }
    if err.is_incomplete_message() || err.is_canceled() {
        return "closed without an answer".to_owned();
    }
    match err.source().and_then(|source| source.downcast_ref::<io::Error>()) {
        Some(err) => io_reason(err),
        None => err.to_string(),
    }
}

/// "connection refused" rather than "Connection refused (os error 111)".
fn io_reason(err: &io::Error) -> String {
    match err.raw_os_error() {
        // Of a socket file.
        Some(_) if err.kind() == io::ErrorKind::NotFound => "no such file".to_owned(),
        // A kind that the standard library has no name for says "uncategorized error".
        Some(_) if !err.kind().to_string().starts_with("uncategorized") => err.kind().to_string(),
        _ => err.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        task::JoinSet,
    };

    use super::*;

    fn http(path: &str, expect: &[(u16, u16)]) -> CheckKind {
        CheckKind::Http { path: path.to_owned(), host: None, expect: expect.to_vec() }
    }

    fn probe(address: SocketAddr, kind: CheckKind) -> Probe {
        Probe {
            kind,
            address: address.into(),
            host: "web".into(),
            timeout: Duration::from_secs(2),
            send_proxy: None,
            transport: None,
        }
    }

    /// Checks an origin that reads a request head, says `answer`, and closes. Returns the verdict and what it read.
    async fn check(kind: CheckKind, answer: &'static str) -> (Result<(), String>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut origin = JoinSet::new();
        origin.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.unwrap_or(0) > 0 {}
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(head).unwrap()
        });
        let verdict = run(&probe(address, kind)).await;
        let head = origin.join_next().await.unwrap().unwrap();
        (verdict, head.replace(&address.port().to_string(), "PORT"))
    }

    #[tokio::test]
    async fn an_open_port_passes_a_tcp_check() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        assert_eq!(run(&probe(listener.local_addr().unwrap(), CheckKind::Tcp)).await, Ok(()));
    }

    #[tokio::test]
    async fn a_tcp_check_ends_with_a_reset_and_so_without_time_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        run(&probe(listener.local_addr().unwrap(), CheckKind::Tcp)).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let err = stream.read(&mut [0]).await.unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_closed_port_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        for kind in [CheckKind::Tcp, http("/", &[(200, 399)])] {
            assert_eq!(run(&probe(address, kind)).await, Err("connection refused".to_owned()));
        }
    }

    #[tokio::test]
    async fn an_http_check_asks_politely_and_looks_at_the_status() {
        let ok = "HTTP/1.1 204 No Content\r\n\r\n";
        let (verdict, head) = check(http("/healthz?full", &[(200, 399)]), ok).await;
        assert_eq!(verdict, Ok(()));
        assert_eq!(
            head,
            "GET /healthz?full HTTP/1.1\r\nhost: web:PORT\r\nuser-agent: flotilla-check\r\naccept: */*\r\n\
             connection: close\r\n\r\n"
        );
    }

    #[tokio::test]
    async fn a_host_of_its_own_goes_into_the_request() {
        let host = Some("internal.example".to_owned());
        let kind = CheckKind::Http { path: "/".to_owned(), host, expect: vec![(200, 200)] };
        let (verdict, head) = check(kind, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!(verdict, Ok(()));
        assert!(head.contains("host: internal.example\r\n"), "{head}");
    }

    #[tokio::test]
    async fn ranges_of_statuses_are_inclusive() {
        let ranges = [(200, 204), (418, 418)];
        for (status, passes) in
            [("200 x", true), ("204 x", true), ("205 x", false), ("418 x", true), ("500 x", false)]
        {
            let answer: &'static str = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").leak();
            let (verdict, _) = check(http("/", &ranges), answer).await;
            let expected = if passes { Ok(()) } else { Err(format!("status {}", &status[..3])) };
            assert_eq!(verdict, expected);
        }
    }

    #[tokio::test]
    async fn what_is_no_answer_is_named() {
        for (answer, expected) in [
            ("", "closed without an answer"),
            ("HTTP/1.1 200 OK\r\nContent-Le", "closed without an answer"),
            ("SSH-2.0-OpenSSH_9.2\r\n", "the answer is not HTTP/1.1"),
        ] {
            assert_eq!(check(http("/", &[(200, 399)]), answer).await.0, Err(expected.to_owned()), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_body_without_end_does_not_delay_the_verdict() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut origin = JoinSet::new();
        origin.spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nx").await.unwrap();
            // Until the other side goes away.
            while stream.read(&mut [0; 64]).await.is_ok_and(|count| count > 0) {}
        });
        assert_eq!(run(&probe(address, http("/", &[(200, 399)]))).await, Ok(()));
        origin.join_next().await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn silence_runs_into_the_timeout() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut probe = probe(listener.local_addr().unwrap(), http("/", &[(200, 399)]));
        probe.timeout = Duration::from_millis(50);
        assert_eq!(run(&probe).await, Err("timed out after 50ms".to_owned()));
    }

    /// What a server does that was sent the beginning of HTTP/2.
    #[derive(Clone, Copy, Debug)]
    enum Does {
        CloseUnread,
        CloseRead,
        /// Says so much and then nothing.
        Say(&'static [u8]),
        SayAndClose(&'static [u8]),
    }

    const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
    /// After no stream, without an error.
    const GOAWAY: &[u8] = b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\0";
    /// Of stream 1: a status, and more to come.
    const HEADERS: &[u8] = b"\0\0\0\x04\0\0\0\0\0\0\0\x01\x01\x04\0\0\0\x01\x88";

    async fn act(listener: TcpListener, does: Does) {
        let (mut stream, _) = listener.accept().await.unwrap();
        if matches!(does, Does::CloseUnread) {
            return;
        }
        // The check may be over by then, and the connection reset.
        let mut read = [0; 1024];
        let _preface = stream.read(&mut read).await;
        let (says, closes) = match does {
            Does::CloseUnread | Does::CloseRead => (&[][..], true),
            Does::Say(says) => (says, false),
            Does::SayAndClose(says) => (says, true),
        };
        let _said = stream.write_all(says).await;
        while !closes && stream.read(&mut read).await.is_ok_and(|count| count > 0) {}
    }

    #[tokio::test]
    async fn a_grpc_check_fails_in_time_whatever_a_server_does_instead_of_answering() {
        const CLOSED: &str = "closed without an answer";
        const LATE: &str = "timed out after 300ms";
        const LATE_AFTER: Duration = Duration::from_millis(300);
        for (does, expected) in [
            (Does::CloseUnread, CLOSED),
            (Does::CloseRead, CLOSED),
            (Does::Say(b""), LATE),
            (Does::Say(SETTINGS), LATE),
            // Too early, or without an end.
            (Does::Say(HEADERS), ""),
            (Does::SayAndClose(SETTINGS), CLOSED),
            (Does::SayAndClose(HEADERS), ""),
            (Does::Say(GOAWAY), "the answer is not gRPC"),
            (Does::SayAndClose(GOAWAY), "the answer is not gRPC"),
            (Does::Say(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "the answer is not gRPC"),
            (Does::SayAndClose(b"SSH-2.0-OpenSSH_9.2\r\n"), "the answer is not gRPC"),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let kind = CheckKind::Grpc { service: String::new() };
            let mut probe = probe(listener.local_addr().unwrap(), kind);
            // Who is not silent is not waited for.
            probe.timeout = if ["", LATE].contains(&expected) { LATE_AFTER } else { Duration::from_secs(20) };
            let mut server = JoinSet::new();
            server.spawn(act(listener, does));
            let verdict = tokio::time::timeout(Duration::from_secs(10), run(&probe)).await;
            let why = verdict.expect("a verdict in time").expect_err("it did not say that it serves");
            assert!(why.starts_with(expected), "{does:?}: {why}");
            server.join_next().await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn a_path_that_is_none_is_an_error_and_no_panic() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let verdict = run(&probe(listener.local_addr().unwrap(), http("/a b", &[]))).await;
        assert!(verdict.unwrap_err().starts_with("cannot ask for `/a b`"));
    }
}
