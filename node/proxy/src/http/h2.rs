//! HTTP/2 of clients: one task per connection, one per stream on the same thread.
//!
//! Framing, flow control and header compression are the h2 crate's. Every stream is answered by the same engine as a
//! request in HTTP/1.1, see [`stream`], and chooses its generation for itself. Here: how a connection begins, what it
//! may not do, and how it ends politely.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Reason, RecvStream,
    server::{self, SendResponse},
};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    connection::{Client, Close, Connection},
    deadline::Deadline,
    forward::{Parts, Then, exchange},
    head::Malformed,
    headers::Seen,
};
use crate::{
    clock::{Expired, NEVER, Timer},
    generation::Serving,
    port::At,
    session::End,
    stream::Stream,
    worker::Worker,
};

pub(crate) mod link;
pub(crate) mod meter;
pub(crate) mod stream;

use meter::{Breach, Meter, Refusals};
use stream::StreamIo;

/// What waits to be sent on one stream before its source is held back.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// From accept to the client's preface and settings.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For the answer to the first of the two GOAWAYs, and for the client to close.
const GOODBYE: Duration = Duration::from_secs(2);

/// Serves one connection that speaks HTTP/2 to its end. `begun`: what was read of it already.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    at: At,
    timer: Timer,
    seen: Seen,
    begun: Bytes,
    io: Stream,
) -> End {
    let breach = Rc::new(Cell::new(None));
    let limits = worker.shared.early.http2;
    let meter = Meter::new(&limits);
    let io = Watched {
        begun,
        io,
        meter,
        refusals: Refusals::new(),
        breach: Rc::clone(&breach),
        worker: Rc::clone(&worker),
    };
    let mut builder = server::Builder::new();
    builder
        .max_concurrent_streams(limits.streams)
        .initial_window_size(limits.stream_window_bytes)
        .initial_connection_window_size(limits.connection_window_bytes)
        .max_header_list_size(limits.header_list_bytes)
        .header_table_size(limits.header_table_bytes)
        // The meter counts all resets, so it comes first: what is left to this is one burst over two windows.
        .max_pending_accept_reset_streams(usize::try_from(limits.resets).unwrap_or(usize::MAX))
        .max_send_buffer_size(SEND_BUFFER_BYTES);
    let until = worker.clock.after(HANDSHAKE_TIMEOUT);
    let http = match worker.clock.within(&timer, until, builder.handshake::<_, Bytes>(io)).await {
        Ok(Ok(http)) => http,
        Ok(Err(_)) => return End::Reset,
        Err(expired) => {
            worker.limits.header_timeout.one();
            return expired.into();
        }
    };
    let streams = Rc::new(Streams { open: Cell::new(0), timer, spare: RefCell::default() });
    let mut connection =
        Session { http, worker, at, seen, breach, streams, is_idle: false, is_leaving: false };
    poll_fn(|cx| connection.poll(cx)).await
}

/// What a client sends, up to what it may not send, and what it is sent.
struct Watched {
    /// Bytes that were read before this began, and have not been handed on.
    begun: Bytes,
    io: Stream,
    meter: Meter,
    refusals: Refusals,
    breach: Rc<Cell<Option<Breach>>>,
    worker: Rc<Worker>,
}

impl Watched {
    fn sent(&mut self, bytes: &[u8]) {
        let refused = self.refusals.see(bytes);
        if refused > 0 {
            self.worker.limits.h2_streams.add(refused);
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        if this.begun.is_empty() {
            ready!(Pin::new(&mut this.io).poll_read(cx, buffer))?;
        } else {
            let n = this.begun.len().min(buffer.remaining());
            buffer.put_slice(&this.begun.split_to(n));
        }
        if let Err(breach) = this.meter.see(&buffer.filled()[before..], this.worker.clock.now()) {
            this.breach.set(Some(breach));
            // Nobody is to act on it. Whoever polls looks at the breach next and reads no more.
            buffer.set_filled(before);
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let n = ready!(Pin::new(&mut this.io).poll_write(cx, bytes))?;
        this.sent(&bytes[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let n = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, bytes))?;
        let mut left = n;
        for piece in bytes {
            let written = left.min(piece.len());
            this.sent(&piece[..written]);
            left -= written;
        }
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

struct Session {
    http: server::Connection<Watched, Bytes>,
    worker: Rc<Worker>,
    at: At,
    seen: Seen,
    breach: Rc<Cell<Option<Breach>>>,
    streams: Rc<Streams>,
    is_idle: bool,
    /// The client was told to begin nothing more.
    is_leaving: bool,
}

impl Session {
    /// Takes on streams until there are no more.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            match self.http.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    self.start(request, respond);
                    continue;
                }
                Poll::Ready(Some(Err(error))) => {
                    // Frames that cost their sender nothing: empty ones, and CONTINUATION without end.
                    if error.is_library() && error.reason() == Some(Reason::ENHANCE_YOUR_CALM) {
                        self.worker.limits.h2_frames.one();
                    }
                    return Poll::Ready(End::Reset);
                }
                Poll::Ready(None) => return Poll::Ready(End::Done),
                Poll::Pending => {}
            }
            if let Some(breach) = self.breach.take() {
                let limits = &self.worker.limits;
                let (limit, reason) = match breach {
                    Breach::Resets => (&limits.h2_resets, Reason::ENHANCE_YOUR_CALM),
                    Breach::Pings => (&limits.h2_pings, Reason::ENHANCE_YOUR_CALM),
                    Breach::Settings => (&limits.h2_settings, Reason::ENHANCE_YOUR_CALM),
                    Breach::FrameSize => (&limits.framing, Reason::FRAME_SIZE_ERROR),
                    Breach::NoSettings => (&limits.framing, Reason::PROTOCOL_ERROR),
                };
                limit.one();
                self.http.abrupt_shutdown(reason);
                self.is_leaving = true;
                continue;
            }
            if !self.is_leaving && self.must_leave() {
                self.leave();
                continue;
            }
            break;
        }
        self.watch_idle();
        match ready!(self.worker.clock.poll_expired(&self.streams.timer, cx)) {
            Expired::Cut => Poll::Ready(End::Cut),
            Expired::Deadline if self.is_leaving => Poll::Ready(End::Idle),
            Expired::Deadline => {
                self.worker.limits.keep_alive_idle.one();
                self.leave();
                // To send it.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    /// Answers a request, in a task of its own, as long as it takes.
    fn start(&self, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        let (io, list) = StreamIo::new(request, respond);
        let serving = self.at.home.choose(&self.worker, self.seen.ip);
        let deadline = self.streams.deadline(&self.worker);
        let (worker, at) = (Rc::clone(&self.worker), self.at.clone());
        let connection = Connection::on(io, deadline, worker, at, &serving, self.seen);
        let mut parts = self.worker.exchanges.take();
        match connection.take_list(&list, connection.io.is_whole(), &mut parts.request) {
            Ok(()) => {
                let open = Open::new(&self.streams);
                // A task is moved about with its future in it, and this one is large.
                tokio::task::spawn_local(Box::pin(answer(connection, parts, open)));
            }
            Err(malformed) => {
                self.worker.exchanges.give(parts);
                refuse(connection, malformed);
            }
        }
    }

    fn must_leave(&self) -> bool {
        let is_closing = || {
            let local = self.at.home.look(&self.worker);
            let Serving { closing, visitors, .. } = &*local.serving;
            *closing || visitors.as_ref().is_some_and(|visitors| !visitors.admits(self.seen.ip))
        };
        self.worker.is_stopping() || is_closing()
    }

    /// In two steps: no stream that is on its way to us is lost (RFC 9113 §6.8).
    fn leave(&mut self) {
        self.http.graceful_shutdown();
        self.is_leaving = true;
        self.is_idle = false;
    }

    /// The deadline is about the time without a stream.
    fn watch_idle(&mut self) {
        let is_idle = self.streams.open.get() == 0;
        if is_idle == self.is_idle && is_idle {
            return;
        }
        self.is_idle = is_idle;
        let clock = &self.worker.clock;
        let until = match (is_idle, self.is_leaving) {
            (false, _) => NEVER,
            (true, true) => clock.after(GOODBYE),
            (true, false) => {
                let serving = self.at.home.choose(&self.worker, self.seen.ip);
                let idle = serving.local.generation.config.timeouts.idle;
                clock.after(self.worker.idle_while_stopping().unwrap_or(idle))
            }
        };
        clock.set(&self.streams.timer, until);
    }
}

/// Answers one request.
#[expect(clippy::manual_async_fn, reason = "that has room for its arguments twice")]
fn answer(
    mut connection: Connection<StreamIo>,
    mut parts: Box<Parts>,
    open: Open,
) -> impl Future<Output = ()> {
    async move {
        let then = exchange(&mut connection, &mut parts).await;
        parts.shrink();
        connection.worker.exchanges.give(parts);
        let Connection { mut io, held, worker, deadline, .. } = connection;
        match then {
            // That nobody hears it is noticed by nobody.
            Then::Close(Close::Answer(text)) => drop(io.answer(text)),
            Then::Close(Close::Reset(_)) => io.reset(),
            Then::Next | Then::Close(_) => {}
        }
        held.give_back(&worker.buffers);
        open.0.keep(deadline);
    }
}

/// Says no to what the engine does not get to see.
fn refuse(connection: Connection<StreamIo>, malformed: Malformed) {
    let Connection { mut io, worker, .. } = connection;
    match malformed {
        // RFC 9113 §8.1.1.
        Malformed::Syntax | Malformed::BareLineFeed | Malformed::EmptyLines => {
            worker.limits.framing.one();
            io.refuse(Reason::PROTOCOL_ERROR);
        }
        Malformed::Target | Malformed::RequestLine | Malformed::HeaderBytes | Malformed::HeaderFields => {
            // That nobody hears it is noticed by nobody.
            let _unheard = io.answer(malformed.answer(&worker.limits));
        }
    }
}

/// What the streams of a connection share.
struct Streams {
    open: Cell<usize>,
    /// Of the connection.
    timer: Timer,
    /// Deadlines of streams that have ended, for those that come.
    spare: RefCell<Vec<Deadline>>,
}

impl Streams {
    fn deadline(&self, worker: &Worker) -> Deadline {
        self.spare.borrow_mut().pop().unwrap_or_else(|| Deadline::new(&worker.clock))
    }

    fn keep(&self, mut deadline: Deadline) {
        if deadline.clear() {
            self.spare.borrow_mut().push(deadline);
        }
    }
}

struct Open(Rc<Streams>);

impl Open {
    fn new(streams: &Rc<Streams>) -> Open {
        streams.open.set(streams.open.get() + 1);
        Open(Rc::clone(streams))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let open = self.0.open.get() - 1;
        self.0.open.set(open);
        if open == 0 {
            // From now on the connection is idle.
            self.0.timer.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<A, B, C, R>(_: fn(A, B, C) -> R) -> usize {
        std::mem::size_of::<R>()
    }

    #[test]
    fn a_request_under_way_is_small() {
        let bytes = bytes(answer);
        assert!(bytes <= 2560, "{bytes}");
    }
}
