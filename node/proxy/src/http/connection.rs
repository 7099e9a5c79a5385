//! One client connection: reading the heads of its requests, and where it stands between them.

use std::{
    future::poll_fn,
    io,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::net::TcpStream;

use super::{
    FORBIDDEN,
    body::Medium,
    deadline::{Deadline, Phase},
    forward::{Parts, Then, exchange},
    head::{Head, Malformed, may_be_whole, partial},
    headers::{self, Seen},
    held::Held,
    parking,
};
use crate::{
    clock::Expired,
    generation::{LocalServing, Pin},
    metrics::{AppCells, LimitCells},
    pool::InFlight,
    port::At,
    session::{End, reset_on_close},
    stream::Stream,
    tcp::Active,
    worker::Worker,
};

/// From accept, or from the first byte of a later head, to its last byte, unless the app says less.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Request line and fields together, when the app does not say.
const HEADER_BYTES_MAX: usize = 64 * 1024;

/// What HTTP/2 begins with, and no request in HTTP/1.1 can (RFC 9113 §3.4).
const PREFACE_LINE: &[u8] = b"PRI * HTTP/2.0";

/// What a client talks through.
pub(crate) trait Client: Medium {
    /// As [`Medium::is_framed`] says of all of its kind: heads are given to it, and not written.
    const IS_FRAMED: bool = false;
    /// Sends the head of a response. `is_whole`: no body follows.
    fn send_head(&mut self, _: &Head, _: bool) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Says that the body of the request is wanted.
    fn send_continue(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Sends a whole response that was written as text.
    fn answer(&mut self, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Makes the coming end one that nobody can take for a clean one.
    fn reset(&mut self);
    /// For another protocol; `None` where one cannot follow.
    fn into_stream(self) -> Option<Stream>;
    /// The socket, where bytes may go past everything else.
    fn plain(&self) -> Option<&TcpStream> {
        None
    }
    /// Whether an end must be said, not only made: TLS has a word for it, and may hold back what was written.
    fn says_goodbye(&self) -> bool {
        false
    }
}

impl Client for TcpStream {
    fn reset(&mut self) {
        reset_on_close(self);
    }

    fn into_stream(self) -> Option<Stream> {
        Some(Stream::Plain(self))
    }

    fn plain(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl Client for Stream {
    fn reset(&mut self) {
        reset_on_close(self.tcp());
    }

    fn into_stream(self) -> Option<Stream> {
        Some(self)
    }

    fn plain(&self) -> Option<&TcpStream> {
        match self {
            Stream::Plain(stream) => Some(stream),
            Stream::Tls(_) => None,
        }
    }

    fn says_goodbye(&self) -> bool {
        matches!(self, Stream::Tls(_))
    }
}

/// How a connection is to be closed.
pub(crate) enum Close {
    /// In a way that lets the last answer arrive.
    Politely,
    /// The client has said that it sends no more, so no reset can destroy the last answer.
    Done,
    /// With this answer, and then politely.
    Answer(&'static [u8]),
    /// At once. Nothing is in flight.
    Idle,
    /// Not at all: nothing happens here, and it goes on without a task.
    Park,
    Reset(End),
    /// Not at all: it goes on as something else.
    Tunnel(Box<Tunnel>),
    /// The same: the client speaks HTTP/2, and has said nothing else before.
    Http2,
}

/// What is left to do after a 101: carry bytes.
pub(crate) struct Tunnel {
    pub(crate) upstream: Stream,
    /// What the endpoint sent right behind its 101.
    pub(crate) early: Bytes,
    pub(crate) idle: Duration,
    pub(crate) pin: Pin,
    pub(crate) in_flight: InFlight,
    pub(crate) active: Active,
}

pub(crate) struct Connection<C> {
    pub(crate) io: C,
    pub(crate) held: Held,
    pub(crate) worker: Rc<Worker>,
    pub(crate) at: At,
    pub(crate) deadline: Deadline,
    /// The same for the fields of each request.
    pub(crate) seen: Seen,
    /// Of the app, as of the latest request. An idle connection keeps nothing else of a generation.
    pub(crate) cells: Rc<AppCells>,
    idle: Duration,
    header: Duration,
    header_bytes_max: usize,
    line_bytes_max: u16,
    fields_max: u8,
    requests_max: u32,
    /// Bytes of an unfinished head that were looked at.
    scanned: usize,
    pub(super) requests: u32,
    hurries: bool,
    /// When it is its turn to go, among all that are asked to.
    pub(super) lot: u16,
}

impl<C: Client> Connection<C> {
    pub(crate) fn new(
        io: C,
        worker: Rc<Worker>,
        at: At,
        serving: &LocalServing,
        seen: Seen,
    ) -> Connection<C> {
        let mut connection = Connection::on(io, Deadline::new(&worker.clock), worker, at, serving, seen);
        // A client that connects ahead of time and says nothing gets no answer for that.
        connection.deadline.bound(connection.worker.clock.after(connection.header));
        connection.deadline.enter(&connection.worker.clock, Phase::Idle, connection.header);
        connection
    }

    /// For requests that are read by somebody else.
    pub(crate) fn on(
        io: C,
        deadline: Deadline,
        worker: Rc<Worker>,
        at: At,
        serving: &LocalServing,
        seen: Seen,
    ) -> Connection<C> {
        let lot = u16::try_from(worker.random() >> 48).unwrap_or(0);
        let mut connection = Connection {
            io,
            held: Held::default(),
            deadline,
            worker,
            at,
            seen,
            cells: Rc::clone(&serving.app_cells),
            idle: Duration::ZERO,
            header: Duration::ZERO,
            header_bytes_max: 0,
            line_bytes_max: 0,
            fields_max: 0,
            requests_max: 0,
            scanned: 0,
            requests: 0,
            hurries: false,
            lot,
        };
        connection.follow(serving);
        connection
    }

    /// Answers requests until there are no more.
    /// `first`: one that was read already.
    pub(crate) async fn run(&mut self, mut first: Option<Box<Parts>>) -> Close {
        loop {
            let mut parts = match first.take() {
                Some(parts) => parts,
                None => match poll_fn(|cx| self.poll_request(cx)).await {
                    Ok(parts) => parts,
                    Err(close) => return close,
                },
            };
            // On the heap, so that an idle connection is without it: allocating what was freed a moment ago costs
            // next to nothing, 900 bytes for each of 50,000 connections do not.
            let then = Box::pin(exchange(self, &mut parts)).await;
            parts.shrink();
            self.worker.exchanges.give(parts);
            match then {
                Then::Next => self.enter_idle(),
                Then::Close(close) => return close,
            }
        }
    }

    /// Chooses for a new request. Or how to close, where there is nobody to choose.
    pub(crate) fn choose(&mut self, request: &Head) -> Result<Rc<LocalServing>, Close> {
        let serving = match self.at.port.alone() {
            Some(alone) => {
                let serving = alone.choose(&self.worker, self.seen.ip);
                self.at.home = alone;
                serving
            }
            None => self.choose_by_host(request)?,
        };
        self.follow(&serving);
        Ok(serving)
    }

    #[cold]
    fn choose_by_host(&mut self, request: &Head) -> Result<Rc<LocalServing>, Close> {
        let Some(tenant) = self.at.port.tenant(Some(headers::host_of(request))) else {
            self.worker.limits.unclaimed.one();
            // RFC 9110 §15.5.20: inside TLS another connection, to another name, may lead there.
            return Err(Close::Answer(if self.seen.is_secure { MISDIRECTED } else { NOT_FOUND }));
        };
        let serving = tenant.choose(&self.worker, self.seen.ip);
        if serving.serving.visitors.as_ref().is_some_and(|visitors| !visitors.admits(self.seen.ip)) {
            serving.local.cells.rejected_access.one();
            return Err(Close::Answer(FORBIDDEN));
        }
        self.at.home = tenant;
        Ok(serving)
    }

    /// Whether new requests should go elsewhere.
    pub(crate) fn is_unwanted(&self) -> bool {
        let is_closing = || self.at.home.look(&self.worker).serving.closing;
        self.worker.asks_to_go(self.lot) || is_closing()
    }

    /// Counts a request. True when it is the last one this connection may carry.
    pub(crate) fn next_request(&mut self) -> bool {
        self.requests += 1;
        self.cells.begun.one();
        self.requests_max != 0 && self.requests >= self.requests_max
    }

    fn follow(&mut self, serving: &LocalServing) {
        let config = &serving.local.generation.config;
        let header = config.timeouts.request_header;
        self.idle = config.timeouts.idle;
        self.header = if header.is_zero() { HEADER_TIMEOUT } else { header };
        self.header_bytes_max = match config.limits.max_header_bytes {
            0 => HEADER_BYTES_MAX,
            bytes => bytes,
        };
        self.line_bytes_max = config.limits.max_request_line_bytes;
        self.fields_max = config.limits.max_header_fields;
        self.requests_max = config.limits.max_requests_per_connection;
        if !Rc::ptr_eq(&self.cells, &serving.app_cells) {
            self.cells = Rc::clone(&serving.app_cells);
        }
    }

    fn enter_idle(&mut self) {
        self.held.release(&self.worker.buffers);
        self.deadline.timer.uses(0);
        self.hurries = self.worker.asks_to_go(self.lot);
        let idle = if self.hurries { self.worker.idle_while_going() } else { self.idle };
        self.deadline.bound(self.worker.clock.after(idle));
        let may_park =
            !self.hurries && self.io.plain().is_some() && (idle.is_zero() || idle > parking::AFTER);
        self.deadline.enter(&self.worker.clock, Phase::Idle, if may_park { parking::AFTER } else { idle });
    }

    /// Goes on where a parked connection stood.
    pub(super) fn resume(&mut self, requests: u32, lot: u16, idle_until: u64) {
        (self.requests, self.lot) = (requests, lot);
        self.deadline.bound(idle_until);
        self.deadline.enter(&self.worker.clock, Phase::Idle, parking::AFTER);
    }

    fn enter_head(&mut self) {
        // The bound is the window: a head that trickles in does not get more time for each byte.
        self.deadline.bound(self.worker.clock.after(self.header));
        self.deadline.enter(&self.worker.clock, Phase::Head, self.header);
    }

    /// Reads until the head of a request is whole.
    pub(super) fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Result<Box<Parts>, Close>> {
        // The node stops, and this idle connection has not been given less time yet.
        if self.deadline.phase() == Phase::Idle && self.worker.asks_to_go(self.lot) && !self.hurries {
            self.enter_idle();
        }
        loop {
            if !self.held.is_empty() {
                match self.take_head() {
                    Ok(Some(parts)) => return Poll::Ready(Ok(parts)),
                    Ok(None) => {}
                    Err(malformed) => return Poll::Ready(Err(self.refuse(malformed))),
                }
                if self.deadline.phase() == Phase::Idle {
                    self.enter_head();
                }
            }
            let Connection { io, held, worker, .. } = self;
            match held.poll_fill(cx, &worker.buffers, io) {
                Poll::Ready(Ok(n)) if n > 0 => self.cells.received_client.add(n as u64),
                // Between two requests everybody may leave.
                Poll::Ready(Ok(_)) if self.held.is_empty() => return Poll::Ready(Err(Close::Done)),
                Poll::Ready(Ok(_) | Err(_)) => return Poll::Ready(Err(Close::Reset(End::Reset))),
                Poll::Pending => break,
            }
        }
        self.deadline.poll_expired(&self.worker.clock, cx).map(|expired| Err(self.expire(expired)))
    }

    /// The head in front of what is there, if it is whole.
    fn take_head(&mut self) -> Result<Option<Box<Parts>>, Malformed> {
        let max = self.header_bytes_max;
        let bytes = self.held.bytes();
        if self.scanned > 0 && !may_be_whole(bytes, self.scanned) {
            partial(bytes, max)?;
        } else {
            let mut parts = self.worker.exchanges.take();
            let parsed = parts.request.parse_request(bytes, max);
            if let Ok(Some(used)) = parsed {
                parts.request.check_size(self.line_bytes_max, self.fields_max)?;
                self.held.consume(used);
                self.scanned = 0;
                return Ok(Some(parts));
            }
            self.worker.exchanges.give(parts);
            parsed?;
        }
        self.scanned = bytes.len();
        if self.held.is_full() {
            self.held.grow(max);
        }
        Ok(None)
    }

    /// What a passed deadline means where the connection stands.
    fn expire(&self, expired: Expired) -> Close {
        let limits = &self.worker.limits;
        match (expired, self.deadline.phase()) {
            (Expired::Cut, _) => Close::Reset(End::Cut),
            (Expired::Deadline, Phase::Idle) if self.worker.clock.now() < self.deadline.latest() => {
                Close::Park
            }
            (Expired::Deadline, Phase::Idle) => {
                limits.keep_alive_idle.one();
                Close::Idle
            }
            (Expired::Deadline, Phase::Head | Phase::Upstream | Phase::Body) => {
                limits.header_timeout.one();
                Close::Answer(TIMED_OUT)
            }
        }
    }

    fn refuse(&self, malformed: Malformed) -> Close {
        if self.requests == 0 && self.held.bytes().starts_with(PREFACE_LINE) {
            return Close::Http2;
        }
        tracing::debug!(peer = self.seen.client(), ?malformed, "request refused");
        Close::Answer(malformed.answer(&self.worker.limits))
    }

    /// Takes over the head of a request that came as a list.
    pub(crate) fn take_list(
        &self,
        list: &http::request::Parts,
        is_whole: bool,
        request: &mut Head,
    ) -> Result<(), Malformed> {
        request.take_request(list, is_whole, self.header_bytes_max)?;
        request.check_size(self.line_bytes_max, self.fields_max)?;
        self.cells.received_client.add(request.len() as u64);
        Ok(())
    }
}

impl Malformed {
    /// What is said about it, and counted.
    pub(crate) fn answer(self, limits: &LimitCells) -> &'static [u8] {
        let (limit, answer) = match self {
            Malformed::RequestLine => (&limits.request_line, URI_TOO_LONG),
            Malformed::HeaderBytes => (&limits.header_bytes, HEADER_TOO_LARGE),
            Malformed::HeaderFields => (&limits.header_fields, HEADER_TOO_LARGE),
            Malformed::Syntax | Malformed::BareLineFeed | Malformed::EmptyLines | Malformed::Target => {
                (&limits.framing, BAD_REQUEST)
            }
        };
        limit.one();
        answer
    }
}

const BAD_REQUEST: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 18\r\n\
    Connection: close\r\n\r\nmalformed request\n";
const NOT_FOUND: &[u8] = b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\
    Connection: close\r\n\r\nno such host\n";
const MISDIRECTED: &[u8] =
    b"HTTP/1.1 421 Misdirected Request\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\
    Connection: close\r\n\r\nno such host\n";
const TIMED_OUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nContent-Type: text/plain\r\nContent-Length: 27\r\n\
    Connection: close\r\n\r\nrequest head came too slow\n";
const URI_TOO_LONG: &[u8] =
    b"HTTP/1.1 414 URI Too Long\r\nContent-Type: text/plain\r\nContent-Length: 22\r\n\
    Connection: close\r\n\r\nrequest line too long\n";
const HEADER_TOO_LARGE: &[u8] =
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain\r\n\
    Content-Length: 24\r\nConnection: close\r\n\r\nheader fields too large\n";
