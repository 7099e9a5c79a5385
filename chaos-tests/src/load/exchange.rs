//! One operation: what is sent, and what every way to fail is called.

use std::{
    error::Error as _,
    fmt, io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, header::HOST};
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};

use super::{Exchange, Outcome};

/// Clients come from this many loopback addresses: a closed connection keeps its port for 60 s, and
/// one address has 28,000 of them per destination.
const SOURCES: u64 = 16;

#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) outcome: Outcome,
    target: SocketAddr,
    detail: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {}: {}", self.outcome, self.target, self.detail)
    }
}

/// Runs operations one after the other.
pub(super) struct Client<'a> {
    id: u64,
    exchange: &'a Exchange,
    targets: &'a [SocketAddr],
    /// Of the operation under way, or the last one.
    target: SocketAddr,
    kept: Option<Connection>,
    pub(super) reconnects: u64,
}

impl<'a> Client<'a> {
    pub(super) fn new(id: u64, exchange: &'a Exchange, targets: &'a [SocketAddr]) -> Self {
        Self { id, exchange, targets, target: targets[0], kept: None, reconnects: 0 }
    }

    /// Returns who answered, where the protocol tells.
    pub(super) async fn operate(&mut self, number: u64) -> Result<Option<String>, Failure> {
        let turn = match self.exchange {
            Exchange::TcpEcho | Exchange::Http { .. } => number,
            Exchange::HttpKeepAlive { .. } => self.id,
        };
        self.target = *pick(self.targets, turn);
        let source = source(self.id);
        let ended = match self.exchange {
            Exchange::TcpEcho => echo(source, self.target, number).await.map(|()| None),
            Exchange::Http { path } => get_once(source, self.target, path, number).await,
            Exchange::HttpKeepAlive { path } => self.get_kept(source, path, number).await,
        };
        ended.map_err(|(outcome, detail)| Failure { outcome, target: self.target, detail })
    }

    /// The operation took too long: so did its connection.
    pub(super) fn give_up(&mut self, limit: Duration) -> Failure {
        self.kept = None;
        Failure {
            outcome: Outcome::Timeout,
            target: self.target,
            detail: format!("not done within {limit:?}"),
        }
    }

    async fn get_kept(&mut self, source: SocketAddr, path: &str, number: u64) -> Ended<Option<String>> {
        loop {
            let mut connection = match self.kept.take() {
                Some(connection) => connection,
                None => Connection::open(source, self.target).await?,
            };
            match connection.get(path, number).await {
                Sent::Answered(response) => {
                    let answered_by = read_answer(response, number).await?;
                    self.kept = Some(connection);
                    return Ok(answered_by);
                }
                // Nothing of the request has been sent, so nothing has failed.
                Sent::Closed => self.reconnects += 1,
                Sent::Broken(err) => return Err(name_http(&err)),
            }
        }
    }
}

/// The outcome, and what exactly was seen.
type Broken = (Outcome, String);
type Ended<T> = Result<T, Broken>;

fn pick(targets: &[SocketAddr], turn: u64) -> &SocketAddr {
    &targets[usize::try_from(turn % targets.len() as u64).expect("below the length")]
}

fn source(id: u64) -> SocketAddr {
    let last = u8::try_from(id % SOURCES + 1).expect("SOURCES < 255");
    SocketAddrV4::new(Ipv4Addr::new(127, 255, 0, last), 0).into()
}

async fn connect(source: SocketAddr, target: SocketAddr) -> Ended<TcpStream> {
    let connect = async {
        let socket = TcpSocket::new_v4()?;
        // Loopback has addresses to spare, each with all its ports. Elsewhere there is only the one.
        if target.ip().is_loopback() {
            // The port is chosen at connect, when the destination is known: many more are free then.
            setsockopt(&socket, IpBindAddressNoPort, &true)?;
            socket.bind(source)?;
        }
        let stream = socket.connect(target).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    connect.await.map_err(|err| name_io(&err, "connect"))
}

async fn echo(source: SocketAddr, target: SocketAddr, number: u64) -> Ended<()> {
    let mut stream = connect(source, target).await?;
    let question = format!("{number:0>63}\n");
    stream.write_all(question.as_bytes()).await.map_err(|err| name_io(&err, "send"))?;
    let mut answer = [0; 64];
    stream.read_exact(&mut answer).await.map_err(|err| name_io(&err, "read"))?;
    if answer != question.as_bytes() {
        return Err((
            Outcome::Mismatch,
            format!("echo of {number} is {:?}", String::from_utf8_lossy(&answer)),
        ));
    }
    Ok(())
}

async fn get_once(source: SocketAddr, target: SocketAddr, path: &str, number: u64) -> Ended<Option<String>> {
    let mut connection = Connection::open(source, target).await?;
    match connection.get(path, number).await {
        Sent::Answered(response) => read_answer(response, number).await,
        Sent::Closed => Err((Outcome::Eof, "closed before the first request".to_owned())),
        Sent::Broken(err) => Err(name_http(&err)),
    }
}

struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    target: SocketAddr,
    /// Reads and writes; ends with the connection.
    #[expect(dead_code, reason = "owns the task")]
    driver: JoinSet<()>,
}

enum Sent {
    Answered(Response<Incoming>),
    /// The server had closed the connection before the request was sent.
    Closed,
    Broken(hyper::Error),
}

impl Connection {
    async fn open(source: SocketAddr, target: SocketAddr) -> Ended<Self> {
        let stream = connect(source, target).await?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|err| name_http(&err))?;
        let mut driver = JoinSet::new();
        // How it ended is told to the request under way, or does not matter.
        driver.spawn(async move { drop(connection.await) });
        Ok(Self { sender, target, driver })
    }

    async fn get(&mut self, path: &str, number: u64) -> Sent {
        if self.sender.ready().await.is_err() {
            return Sent::Closed;
        }
        let request = Request::get(path)
            .header(HOST, self.target.to_string())
            .header("x-token", number)
            .body(Empty::new())
            .expect("the path is valid");
        match self.sender.try_send_request(request).await {
            Ok(response) => Sent::Answered(response),
            Err(mut err) => match err.take_message() {
                Some(_) => Sent::Closed,
                None => Sent::Broken(err.into_error()),
            },
        }
    }
}

/// Reads the whole answer and checks that it is the one to request `number`.
async fn read_answer(response: Response<Incoming>, number: u64) -> Ended<Option<String>> {
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(|err| name_http(&err))?.to_bytes();
    let field = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
    if !head.status.is_success() {
        let text = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
        return Err((Outcome::BadStatus, format!("{}: {text}", head.status)));
    }
    let token = field("x-token");
    if token != Some(&number.to_string()) {
        return Err((Outcome::Mismatch, format!("the answer to {number} has x-token {token:?}")));
    }
    Ok(field("x-target").map(str::to_owned))
}

fn name_io(err: &io::Error, step: &str) -> Broken {
    use io::ErrorKind::*;
    let outcome = match err.kind() {
        ConnectionRefused => Outcome::Refused,
        ConnectionReset | ConnectionAborted | BrokenPipe => Outcome::Reset,
        UnexpectedEof => Outcome::Eof,
        TimedOut => Outcome::Timeout,
        _ => Outcome::Other,
    };
    (outcome, format!("{step}: {err}"))
}

fn name_http(err: &hyper::Error) -> Broken {
    if err.is_incomplete_message() {
        return (Outcome::Eof, err.to_string());
    }
    if err.is_parse() {
        return (Outcome::Mismatch, format!("not HTTP: {err}"));
    }
    match err.source().and_then(|source| source.downcast_ref::<io::Error>()) {
        Some(io) => name_io(io, "http"),
        None => (Outcome::Other, format!("{err:?}")),
    }
}
