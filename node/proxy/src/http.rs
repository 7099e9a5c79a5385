//! L7: one HTTP/1.1 client connection.
//!
//! hyper parses and writes; what it hides is seen by the [`guard`]; requests are answered in
//! [`forward`]. This file is the task around them: deadlines, and how a connection ends. The
//! generation is chosen for each request, so old connections see new routes without being closed.

use std::{
    future::poll_fn,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{HttpService, service_fn},
};
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::{
    clock::Expired,
    generation::{LocalPort, LocalServing},
    session::{Admitted, End, reset_on_close},
    tcp::{Streams, join},
    worker::Worker,
};

mod body;
mod connection;
mod forward;
pub(crate) mod guard;
pub mod headers;
mod io;
pub(crate) mod link;
mod refusal;
mod replay;
pub mod route;

use body::ResponseBody;
use connection::{Connection, Phase, Tunnel};
use guard::Violation;
use io::ClientIo;

/// Request line and fields together, when the app does not say.
const HEADER_BYTES_MAX: usize = 64 * 1024;
/// What hyper may buffer besides a whole head.
const BUFFER_BYTES: usize = 16 * 1024;
/// How long and how much is read from a client after the last answer, so that the answer is not
/// destroyed by a reset for bytes nobody read (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 1024 * 1024;

/// How a connection is to be closed.
enum Close {
    /// It ended by itself, or turned into a tunnel.
    Done,
    /// With this answer, written outside of hyper.
    Answer(&'static [u8]),
    /// At once. Nothing is in flight.
    Idle,
    Reset(End),
}

/// Serves one accepted connection to its end.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    port: Rc<LocalPort>,
    serving: Rc<LocalServing>,
    stream: TcpStream,
    peer: SocketAddr,
    mut admitted: Admitted,
) {
    let header_bytes_max = match serving.local.generation.config.limits.max_header_bytes {
        0 => HEADER_BYTES_MAX,
        bytes => bytes,
    };
    let connection = Rc::new(Connection::new(worker, port, &serving, peer));
    // From here on each request brings its own.
    drop(serving);
    let io = ClientIo::new(stream, Rc::clone(&connection), header_bytes_max);
    let state = Rc::clone(&connection);
    let service = service_fn(move |request| forward::forward(Rc::clone(&state), request));
    let mut http =
        http1::Builder::new().max_buf_size(header_bytes_max + BUFFER_BYTES).serve_connection(io, service);
    let close = poll_fn(|cx| poll(&connection, &mut http, cx)).await;
    let http1::Parts { io, read_buf, .. } = http.into_parts();
    let (stream, held) = io.into_parts();
    let end = match close {
        Close::Done => {
            let tunnel = connection.tunnel.take();
            match tunnel {
                Some(tunnel) => self::tunnel(&connection, stream, tunnel, read_buf, &held).await,
                // It has said that it sends no more, so no reset can destroy the last answer.
                None if connection.has_heard_all() => End::Done,
                None => finish(&connection, stream).await,
            }
        }
        Close::Answer(answer) => {
            // A few bytes into an empty send buffer; a client that is gone does not want them.
            let _unheard = stream.try_write(answer);
            finish(&connection, stream).await
        }
        Close::Idle => End::Idle,
        Close::Reset(end) => {
            reset_on_close(&stream);
            end
        }
    };
    admitted.end(end);
}

/// Answers a connection that is over a limit. Best effort: it is closed right after.
pub(crate) fn refuse(stream: &TcpStream) {
    let _unheard = stream.try_write(OVER_LIMIT);
}

const OVER_LIMIT: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\ncontent-length: 21\r\n\
    retry-after: 1\r\nconnection: close\r\n\r\ntoo many connections\n";
const BAD_REQUEST: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 18\r\n\
    connection: close\r\n\r\nmalformed request\n";
const TIMED_OUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain\r\ncontent-length: 26\r\n\
    connection: close\r\n\r\nrequest head came too slow";
const URI_TOO_LONG: &[u8] =
    b"HTTP/1.1 414 URI Too Long\r\ncontent-type: text/plain\r\ncontent-length: 22\r\n\
    connection: close\r\n\r\nrequest line too long\n";
const HEADER_TOO_LARGE: &[u8] =
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain\r\n\
    content-length: 24\r\nconnection: close\r\n\r\nheader fields too large\n";

fn poll<S>(
    connection: &Connection,
    http: &mut http1::Connection<ClientIo, S>,
    cx: &mut Context<'_>,
) -> Poll<Close>
where
    S: HttpService<Incoming, ResBody = ResponseBody>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if connection.phase() == Phase::Idle && connection.must_hurry() {
        connection.enter_idle();
    }
    if let Poll::Ready(expired) = connection.poll_expired(cx)
        && let Some(close) = expire(connection, expired)
    {
        return Poll::Ready(close);
    }
    match Pin::new(http).poll(cx) {
        Poll::Ready(result) => Poll::Ready(closed(connection, result)),
        Poll::Pending => {
            if let Some(link) = &*connection.upload.borrow() {
                // Its end is told to the response body as well.
                let _: Poll<()> = link.poll_closed(cx);
            }
            Poll::Pending
        }
    }
}

/// What a passed deadline means where the connection stands.
fn expire(connection: &Connection, expired: Expired) -> Option<Close> {
    let limits = &connection.worker.limits;
    match (expired, connection.phase()) {
        (Expired::Cut, _) => Some(Close::Reset(End::Cut)),
        (Expired::Deadline, Phase::Idle) => {
            limits.keep_alive_idle.one();
            Some(Close::Idle)
        }
        (Expired::Deadline, Phase::Head) => {
            limits.header_timeout.one();
            Some(Close::Answer(TIMED_OUT))
        }
        (Expired::Deadline, Phase::Body) => {
            limits.body_idle.one();
            Some(Close::Reset(End::Idle))
        }
        // The request is still there to answer with 504.
        (Expired::Deadline, Phase::Upstream | Phase::Upload) => None,
    }
}

/// What hyper's end of the connection means.
fn closed(connection: &Connection, result: hyper::Result<()>) -> Close {
    if let Some(violation) = connection.violation() {
        return Close::Answer(refusal(connection, violation));
    }
    match result {
        Ok(()) => Close::Done,
        // hyper has answered with 400.
        Err(error) if error.is_parse() => {
            connection.worker.limits.framing.one();
            Close::Done
        }
        // A response that broke off must not look complete; otherwise the client has gone.
        Err(_) => Close::Reset(End::Reset),
    }
}

fn refusal(connection: &Connection, violation: Violation) -> &'static [u8] {
    let limits = &connection.worker.limits;
    tracing::debug!(peer = %connection.peer, ?violation, "request refused");
    let (limit, answer) = match violation {
        Violation::RequestLine => (&limits.request_line, URI_TOO_LONG),
        Violation::HeaderBytes => (&limits.header_bytes, HEADER_TOO_LARGE),
        Violation::HeaderFields => (&limits.header_fields, HEADER_TOO_LARGE),
        Violation::BareLineFeed
        | Violation::BareCarriageReturn
        | Violation::Nul
        | Violation::Folded
        | Violation::LengthAndEncoding
        | Violation::DuplicateLength
        | Violation::Length
        | Violation::Encoding
        | Violation::Fragment
        | Violation::EmptyLines => (&limits.framing, BAD_REQUEST),
    };
    limit.one();
    answer
}

/// Closes in a way that lets the last answer arrive.
async fn finish(connection: &Connection, stream: TcpStream) -> End {
    if connection.is_at_end() || SockRef::from(&stream).shutdown(std::net::Shutdown::Write).is_err() {
        return End::Done;
    }
    let clock = &connection.worker.clock;
    let drained = clock.within(&connection.timer, clock.after(LINGER), drain(connection, &stream));
    // Whoever goes on sending for longer than this gets the reset.
    let _expired = drained.await;
    End::Done
}

async fn drain(connection: &Connection, stream: &TcpStream) {
    let mut left = LINGER_BYTES_MAX;
    while left > 0 && stream.readable().await.is_ok() {
        let mut buffer = connection.worker.buffers.take();
        let read = stream.try_read(&mut buffer);
        connection.worker.buffers.give(buffer);
        match read {
            Ok(0) => return,
            Ok(n) => left = left.saturating_sub(n),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

async fn tunnel(connection: &Connection, client: TcpStream, tunnel: Tunnel, read: Bytes, held: &[u8]) -> End {
    let Tunnel { upstream, early, idle, pin, in_flight: _in_flight, active: _active } = tunnel;
    connection.timer.uses(pin.generation());
    let mut first = BytesMut::from(&read[..]);
    first.extend_from_slice(held);
    let cells = connection.cells();
    let streams = Streams { client, upstream };
    join(&connection.worker, &connection.timer, &streams, idle, &cells, [first.freeze(), early]).await
}
