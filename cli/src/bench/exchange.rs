//! One connection, and one exchange on it: a payload that comes back, or an HTTP request.

use std::{io, net::SocketAddr, pin::pin};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request,
    body::Bytes,
    client::conn::http1::{self, SendRequest},
    header::HOST,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    task::JoinSet,
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Bytes that come back. 0 bytes: the name of the target is all that is asked for.
    Echo {
        payload_bytes: u32,
        is_identifying: bool,
    },
    Http(Http),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Http {
    pub(super) host: String,
    pub(super) path: String,
    /// 0: a GET; else a POST with so many bytes.
    pub(super) body_bytes: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Refused,
    Reset,
    Timeout,
    /// The other side ended in the middle.
    Truncated,
    BadStatus,
    /// Something else came back than was sent.
    Mismatch,
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) class: Class,
    pub(super) detail: String,
}

pub(super) enum Connection {
    Echo { stream: BufReader<TcpStream>, payload_bytes: u32, is_identifying: bool, target: Option<String> },
    Http { sender: SendRequest<Full<Bytes>>, http: Http, _driver: JoinSet<()> },
}

/// What asks a target for its name, in one line.
const WHO: &str = "whoami\n";
/// A name is a short word; a target that sends more is not answering the question.
const NAME_BYTES_MAX: u64 = 256;

impl Connection {
    /// To the first address that takes it.
    pub(super) async fn open(addresses: &[SocketAddr], protocol: &Protocol) -> Result<Self, Fault> {
        let stream = connect(addresses).await.map_err(|error| Fault::io("connect", &error))?;
        match protocol {
            Protocol::Echo { payload_bytes, is_identifying } => Ok(Self::Echo {
                stream: BufReader::new(stream),
                payload_bytes: *payload_bytes,
                is_identifying: *is_identifying,
                target: None,
            }),
            Protocol::Http(http) => {
                let (sender, connection) = http1::handshake(TokioIo::new(stream))
                    .await
                    .map_err(|error| Fault::hyper("connect", &error))?;
                let mut driver = JoinSet::new();
                // What goes wrong on the connection is told to the request that waits on it.
                driver.spawn(async move { drop(connection.await) });
                Ok(Self::Http { sender, http: http.clone(), _driver: driver })
            }
        }
    }

    /// Asks for the name of the target before the first payload, so that no exchange takes the time for
    /// it. Without a payload the question is the exchange.
    pub(super) async fn introduce(&mut self) -> Result<(), Fault> {
        match self {
            Self::Echo { stream, payload_bytes: 1.., is_identifying: true, target } => {
                *target = identify(stream).await?;
                Ok(())
            }
            Self::Echo { .. } | Self::Http { .. } => Ok(()),
        }
    }

    /// The name of the target that answered, when it is known. `seed` makes the payload another one than
    /// the last, so an answer to the last one is no answer to this.
    pub(super) async fn exchange(&mut self, seed: u64) -> Result<Option<String>, Fault> {
        match self {
            Self::Echo { stream, payload_bytes: 0, .. } => identify(stream).await,
            Self::Echo { stream, payload_bytes, target, .. } => {
                echo(stream, &payload(seed, *payload_bytes)).await?;
                Ok(target.clone())
            }
            Self::Http { sender, http, .. } => request(sender, http, seed).await,
        }
    }

    /// The server said that it will take no further request.
    pub(super) async fn is_over(&mut self) -> bool {
        match self {
            Self::Echo { .. } => false,
            Self::Http { sender, .. } => sender.ready().await.is_err(),
        }
    }
}

async fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut last = io::Error::other("no address");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// An echo server sends the question back: then nobody knows.
async fn identify(stream: &mut BufReader<TcpStream>) -> Result<Option<String>, Fault> {
    let identifying = |error: io::Error| Fault::io("whoami", &error);
    stream.write_all(WHO.as_bytes()).await.map_err(identifying)?;
    let mut line = Vec::new();
    stream.take(NAME_BYTES_MAX).read_until(b'\n', &mut line).await.map_err(identifying)?;
    if !line.ends_with(b"\n") {
        let detail = format!("whoami: {} bytes and no line came back", line.len());
        return Err(Fault { class: Class::Truncated, detail });
    }
    let name = String::from_utf8_lossy(&line);
    let name = name.trim();
    Ok((name != WHO.trim() && !name.is_empty()).then(|| name.to_owned()))
}

/// Sends and receives at the same time: a payload that fits in no buffer would wait for itself.
async fn echo(stream: &mut BufReader<TcpStream>, payload: &[u8]) -> Result<(), Fault> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let send = async {
        writer.write_all(payload).await?;
        writer.flush().await
    };
    let receive = async {
        let mut received = 0;
        let mut chunk = vec![0; payload.len().min(64 * 1024)];
        while received < payload.len() {
            let want = chunk.len().min(payload.len() - received);
            let count = reader.read(&mut chunk[..want]).await.map_err(|error| Fault::io("read", &error))?;
            if count == 0 {
                let detail = format!("{received} of {} bytes came back", payload.len());
                return Err(Fault { class: Class::Truncated, detail });
            }
            if chunk[..count] != payload[received..received + count] {
                let detail = format!("other bytes than sent, from byte {received} on");
                return Err(Fault { class: Class::Mismatch, detail });
            }
            received += count;
        }
        Ok(())
    };
    // When sending fails, what arrived tells more: wait for both. When receiving fails nobody waits for
    // the rest to be sent.
    let mut send = pin!(send);
    let mut receive = pin!(receive);
    tokio::select! {
        biased;
        received = &mut receive => received,
        sent = &mut send => match sent {
            Ok(()) => receive.await,
            Err(error) => receive.await.and(Err(Fault::io("write", &error))),
        },
    }
}

async fn request(
    sender: &mut SendRequest<Full<Bytes>>,
    http: &Http,
    seed: u64,
) -> Result<Option<String>, Fault> {
    let body = if http.body_bytes == 0 { Vec::new() } else { payload(seed, http.body_bytes) };
    let method = if body.is_empty() { Method::GET } else { Method::POST };
    let request = Request::builder()
        .method(method)
        .uri(&http.path)
        .header(HOST, &http.host)
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| Fault { class: Class::Other, detail: format!("request: {error}") })?;
    let response = sender.send_request(request).await.map_err(|error| Fault::hyper("request", &error))?;
    let (head, mut body) = response.into_parts();
    // To its end: a body that breaks off is a failure too.
    while let Some(frame) = body.frame().await {
        drop(frame.map_err(|error| Fault::hyper("response", &error))?);
    }
    if !(200..400).contains(&head.status.as_u16()) {
        return Err(Fault { class: Class::BadStatus, detail: format!("status {}", head.status) });
    }
    let name = head.headers.get("x-target").or_else(|| head.headers.get("x-served-by"));
    Ok(name.and_then(|name| name.to_str().ok()).map(str::to_owned))
}

/// Printable, and one line: a target that reads lines sees all of it, and never the line `whoami`.
fn payload(seed: u64, bytes: u32) -> Vec<u8> {
    const WORDS: &[u8; 32] = b"0123456789ABCDEFGHIJKLMNOPQRSTUV";
    let mut state = seed;
    let mut payload: Vec<u8> = (1..bytes)
        .map(|_| {
            // Knuth's linear congruential generator for 64 bits (MMIX); its high bits are the random ones.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            WORDS[usize::try_from(state >> 59).expect("five bits")]
        })
        .collect();
    payload.push(b'\n');
    payload
}

impl Fault {
    pub(super) fn timeout(after: std::time::Duration) -> Self {
        Self {
            class: Class::Timeout,
            detail: format!("no answer within {}", humantime::format_duration(after)),
        }
    }

    fn io(doing: &str, error: &io::Error) -> Self {
        Self { class: class_of(error), detail: format!("{doing}: {error}") }
    }

    fn hyper(doing: &str, error: &hyper::Error) -> Self {
        let io = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
        let class = match io {
            Some(io) => class_of(io),
            None if error.is_incomplete_message() || error.is_canceled() || error.is_closed() => {
                Class::Truncated
            }
            None => Class::Other,
        };
        Self { class, detail: format!("{doing}: {error}") }
    }
}

fn class_of(error: &io::Error) -> Class {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Class::Refused,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
            Class::Reset
        }
        io::ErrorKind::TimedOut => Class::Timeout,
        io::ErrorKind::UnexpectedEof => Class::Truncated,
        _ => Class::Other,
    }
}

impl Class {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Truncated => "truncated",
            Self::BadStatus => "bad status",
            Self::Mismatch => "mismatch",
            Self::Other => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_one_line_and_differ() {
        for bytes in [1, 2, 64, 100_000] {
            let text = payload(7, bytes);
            assert_eq!(text.len(), bytes as usize);
            assert_eq!(text.iter().filter(|b| **b == b'\n').count(), 1);
            assert!(text.ends_with(b"\n"));
        }
        let texts: std::collections::BTreeSet<_> = (0..10_000).map(|seed| payload(seed, 64)).collect();
        assert_eq!(texts.len(), 10_000);
    }
}
