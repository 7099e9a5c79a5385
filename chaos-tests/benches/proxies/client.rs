//! The clients: closed loops, and an open one whose latency counts from when a request was due.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    mem::MaybeUninit,
    net::SocketAddr,
    time::{Duration, Instant},
};

use mio::{Interest, Registry, Token, event::Event, net::TcpStream};
use socket2::SockRef;

/// Handshakes at once while connections are opened to be kept: fewer than any backlog.
const OPENING_MAX: usize = 200;
/// As in recv(2): the bytes are dropped inside the kernel, which costs this side next to nothing.
const MSG_TRUNC: i32 = 0x20;
const DISCARD: usize = 1 << 20;
const PING: [u8; 64] = *b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// What to send, to whom, how fast.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) address: SocketAddr,
    pub(crate) exchange: Exchange,
    pub(crate) clients: usize,
    /// Requests due per second, over all clients; `None`: each goes on as soon as it can.
    pub(crate) per_second: Option<f64>,
    /// It leaves the CPU to others while nothing is due.
    pub(crate) naps: bool,
}

/// What one operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exchange {
    /// A GET on a connection that is kept.
    Get(&'static str),
    /// A GET on a new connection, which the server closes.
    GetOnce,
    /// 64 bytes there and back.
    Ping,
    /// Connect, 64 bytes there and back, close.
    Connect,
    /// Receive for ever.
    Bulk,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Result {
    pub(crate) operations: u64,
    pub(crate) bytes: u64,
    pub(crate) failed: u64,
    pub(crate) failure: Option<String>,
    pub(crate) seconds: f64,
    /// Of every operation, ascending.
    pub(crate) micros: Vec<u32>,
}

impl Result {
    /// `share` of all operations took no longer.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let last = self.micros.len().saturating_sub(1);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let at = (self.micros.len() as f64 * share) as usize;
        self.micros.get(at.min(last)).map_or(0.0, |micros| f64::from(*micros))
    }
}

pub(crate) struct Clients {
    pub(crate) load: Load,
    first_token: usize,
    all: Vec<Client>,
    free: VecDeque<usize>,
    request: Vec<u8>,
    start: Instant,
    begun: u64,
    /// Every client does one operation and then stays as it is.
    pub(crate) is_once: bool,
    result: Result,
    scratch: Vec<u8>,
    discard: Vec<MaybeUninit<u8>>,
}

#[derive(Default)]
struct Client {
    stream: Option<TcpStream>,
    state: State,
    due: Option<Instant>,
    head: Vec<u8>,
    /// Bytes that are still to come; `None` until the head of a response has told.
    left: Option<usize>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Free,
    Connecting,
    Waiting,
    /// Has the whole response, and waits for the server's close.
    Closing,
}

impl Clients {
    pub(crate) fn new(load: &Load, first_token: usize) -> Clients {
        let host = "Host: bench.test\r\nUser-Agent: bench\r\nAccept: */*\r\n";
        let request = match load.exchange {
            Exchange::Get(path) => format!("GET {path} HTTP/1.1\r\n{host}\r\n").into_bytes(),
            Exchange::GetOnce => format!("GET / HTTP/1.1\r\n{host}Connection: close\r\n\r\n").into_bytes(),
            Exchange::Ping | Exchange::Connect => PING.to_vec(),
            Exchange::Bulk => Vec::new(),
        };
        Clients {
            load: load.clone(),
            first_token,
            all: (0..load.clients).map(|_| Client::default()).collect(),
            free: (0..load.clients).collect(),
            request,
            start: Instant::now(),
            begun: 0,
            is_once: false,
            result: Result::default(),
            scratch: vec![0; 64 * 1024],
            discard: vec![MaybeUninit::uninit(); DISCARD],
        }
    }

    /// Begins what is due and has a client free for it.
    pub(crate) fn begin_due(&mut self, registry: &Registry) {
        loop {
            let now = Instant::now();
            let due = match self.load.per_second {
                #[allow(clippy::cast_precision_loss)]
                Some(rate) => self.start + Duration::from_secs_f64(self.begun as f64 / rate),
                None => now,
            };
            let is_opening = self.is_once && self.begun >= self.result.operations + OPENING_MAX as u64;
            if due > now || is_opening {
                return;
            }
            let Some(client) = self.free.pop_front() else { return };
            self.begun += 1;
            self.begin(client, due, registry);
        }
    }

    /// From now on, on the connections that are open, `per_second` requests over all of them, each in its turn.
    pub(crate) fn go_on(&mut self, per_second: f64) {
        (self.is_once, self.load.per_second) = (false, Some(per_second));
        (self.start, self.begun, self.result) = (Instant::now(), 0, Result::default());
        self.free = (0..self.all.len()).collect();
    }

    pub(crate) fn is_done(&self) -> bool {
        self.unfinished() == 0
    }

    pub(crate) fn unfinished(&self) -> u64 {
        self.all.len() as u64 - self.result.operations
    }

    pub(crate) fn finish(mut self, elapsed: Duration) -> Result {
        self.result.micros.sort_unstable();
        self.result.seconds = elapsed.as_secs_f64();
        self.result
    }

    /// The kernel has news of one client.
    pub(crate) fn ready(&mut self, token: usize, event: &Event, registry: &Registry) {
        let id = token - self.first_token;
        if self.all.get(id).is_none_or(|client| client.stream.is_none()) {
            return;
        }
        let ended = if self.all[id].state == State::Connecting {
            if event.is_writable() { self.send(id).map(|()| false) } else { Ok(false) }
        } else {
            self.receive(id)
        };
        match ended {
            Ok(false) => {}
            Ok(true) => self.ended(id, registry),
            Err(error) => self.failed(id, &error.to_string()),
        }
    }

    fn begin(&mut self, id: usize, due: Instant, registry: &Registry) {
        let client = &mut self.all[id];
        client.due = Some(due);
        client.head.clear();
        if client.stream.is_some() {
            if let Err(error) = self.send(id) {
                self.failed(id, &error.to_string());
            }
            return;
        }
        let connected = TcpStream::connect(self.load.address).and_then(|mut stream| {
            let token = Token(self.first_token + id);
            registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
            Ok(stream)
        });
        match connected {
            Ok(stream) => {
                client.stream = Some(stream);
                client.state = State::Connecting;
            }
            Err(error) => self.failed(id, &error.to_string()),
        }
    }

    fn send(&mut self, id: usize) -> io::Result<()> {
        let client = &mut self.all[id];
        let stream = client.stream.as_mut().expect("it is connected");
        if client.state == State::Connecting
            && let Some(error) = stream.take_error()?
        {
            return Err(error);
        }
        client.state = State::Waiting;
        client.left = match self.load.exchange {
            Exchange::Get(_) | Exchange::GetOnce => None,
            Exchange::Ping | Exchange::Connect => Some(PING.len()),
            Exchange::Bulk => Some(usize::MAX),
        };
        if self.request.is_empty() {
            return Ok(());
        }
        let sent = stream.write(&self.request)?;
        if sent < self.request.len() { Err(io::Error::other("a request did not fit")) } else { Ok(()) }
    }

    /// Whether the operation has ended.
    fn receive(&mut self, id: usize) -> io::Result<bool> {
        let client = &mut self.all[id];
        let stream = client.stream.as_mut().expect("it is connected");
        let mut turn = 0;
        loop {
            let is_body = !matches!(self.load.exchange, Exchange::Ping | Exchange::Connect);
            let got = match client.left {
                Some(left) if is_body && left > 0 => {
                    let len = left.min(DISCARD);
                    SockRef::from(&*stream).recv_with_flags(&mut self.discard[..len], MSG_TRUNC)
                }
                _ => stream.read(&mut self.scratch),
            };
            let n = match got {
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            self.result.bytes += n as u64;
            match (client.state, n) {
                (State::Closing, 0) => return Ok(true),
                (State::Free, 0) => {
                    // A server may close what is idle; the next request connects again.
                    client.stream = None;
                    return Ok(false);
                }
                (_, 0) => return Err(io::Error::other("closed before the end of a response")),
                (State::Closing | State::Free, _) => return Err(io::Error::other("bytes nobody asked for")),
                (State::Connecting | State::Waiting, _) => {}
            }
            if self.load.exchange == Exchange::Bulk {
                turn += n;
                // The kernel says so again only when more arrives, and it always does.
                if turn > 4 * DISCARD {
                    return Ok(false);
                }
                continue;
            }
            let body = match client.left {
                Some(_) => n,
                None => match parse(&mut client.head, &mut client.left, &self.scratch[..n])? {
                    Some(rest) => rest,
                    None => continue,
                },
            };
            let left = client.left.expect("known by now");
            if !is_body && self.scratch[..n] != PING[PING.len() - left..][..n.min(left)] {
                return Err(io::Error::other("an echo of other bytes"));
            }
            let left = left.checked_sub(body).ok_or_else(|| io::Error::other("more than a response"))?;
            client.left = Some(left);
            if left == 0 {
                if self.load.exchange == Exchange::GetOnce {
                    client.state = State::Closing;
                    continue;
                }
                return Ok(true);
            }
        }
    }

    fn ended(&mut self, id: usize, registry: &Registry) {
        let now = Instant::now();
        let client = &mut self.all[id];
        client.state = State::Free;
        let due = client.due.take().expect("it was begun");
        if matches!(self.load.exchange, Exchange::GetOnce | Exchange::Connect) {
            client.stream = None;
        }
        self.result.operations += 1;
        let micros = now.saturating_duration_since(due).as_micros();
        self.result.micros.push(u32::try_from(micros).unwrap_or(u32::MAX));
        match self.load.per_second {
            None if !self.is_once => {
                self.begun += 1;
                self.begin(id, now, registry);
            }
            _ if self.is_once => {}
            _ => self.free.push_back(id),
        }
    }

    fn failed(&mut self, id: usize, why: &str) {
        self.result.failed += 1;
        self.result.failure.get_or_insert_with(|| why.to_owned());
        self.all[id] = Client::default();
        self.free.push_back(id);
    }
}

/// Takes in a piece of a response. Once the head is whole, `left` is the length of the body and the answer how many
/// bytes of it were in the piece.
fn parse(known: &mut Vec<u8>, left: &mut Option<usize>, piece: &[u8]) -> io::Result<Option<usize>> {
    known.extend_from_slice(piece);
    let Some(end) = known.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&known[..end]).map_err(io::Error::other)?;
    if head.get(9..12) != Some("200") {
        return Err(io::Error::other(head.lines().next().unwrap_or_default()));
    }
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    let length = fields.rfind(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = length.and_then(|(_, length)| length.parse().ok());
    *left = Some(length.ok_or_else(|| io::Error::other("a response without a length"))?);
    Ok(Some(known.len() - end - 4))
}
