//! HTTP/2 of clients: one task per connection, one per stream on the same thread.
//!
//! Framing, flow control and header compression are the h2 crate's. Every stream is answered by the same engine as a
//! request in HTTP/1.1, see [`stream`], and chooses its generation for itself. Here: how a connection begins, what it
//! may not do, and how it ends politely.

use std::{
    cell::Cell,
    future::poll_fn,
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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::InspectReader;

use super::{connection::Connection, headers::Seen};
use crate::{
    clock::{Expired, NEVER, Timer},
    generation::Serving,
    port::At,
    session::End,
    worker::Worker,
};

mod chunks;
pub(crate) mod link;
mod meter;
pub(crate) mod stream;

use meter::{Flood, Meter};
use stream::StreamIo;

const STREAMS_MAX: u32 = 100;
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
const HEADER_LIST_BYTES_MAX: u32 = 64 * 1024;
const HEADER_TABLE_BYTES: u32 = 4 * 1024;
/// What waits to be sent on one stream before its source is held back.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// From accept to the client's preface and settings.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For the answer to the first of the two GOAWAYs, and for the client to close.
const GOODBYE: Duration = Duration::from_secs(2);

/// Serves one connection that speaks HTTP/2 to its end.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    worker: Rc<Worker>,
    at: At,
    timer: Rc<Timer>,
    seen: Seen,
    io: S,
) -> End {
    let flood = Rc::new(Cell::new(None));
    let watch = {
        let (worker, flood, mut meter) = (Rc::clone(&worker), Rc::clone(&flood), Meter::new());
        move |bytes: &[u8]| {
            if let Err(seen) = meter.see(bytes, worker.clock.now()) {
                flood.set(Some(seen));
            }
        }
    };
    let io = InspectReader::new(io, watch);
    let mut builder = server::Builder::new();
    builder
        .max_concurrent_streams(STREAMS_MAX)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .header_table_size(HEADER_TABLE_BYTES)
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
    let streams = Rc::new(Streams { open: Cell::new(0), timer: Rc::clone(&timer) });
    let mut connection =
        Session { http, worker, at, timer, seen, flood, streams, is_idle: false, is_leaving: false };
    poll_fn(|cx| connection.poll(cx)).await
}

struct Session<S> {
    http: server::Connection<S, Bytes>,
    worker: Rc<Worker>,
    at: At,
    timer: Rc<Timer>,
    seen: Seen,
    flood: Rc<Cell<Option<Flood>>>,
    streams: Rc<Streams>,
    is_idle: bool,
    /// The client was told to begin nothing more.
    is_leaving: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    /// Takes on streams until there are no more.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            match self.http.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    self.start(request, respond);
                    continue;
                }
                Poll::Ready(Some(Err(_))) => return Poll::Ready(End::Reset),
                Poll::Ready(None) => return Poll::Ready(End::Done),
                Poll::Pending => {}
            }
            if let Some(flood) = self.flood.take() {
                let limits = &self.worker.limits;
                match flood {
                    Flood::Resets => limits.h2_resets.one(),
                    Flood::Pings => limits.h2_pings.one(),
                    Flood::Settings => limits.h2_settings.one(),
                }
                self.http.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
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
        match ready!(self.worker.clock.poll_expired(&self.timer, cx)) {
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

    fn start(&self, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        let open = Open::new(&self.streams);
        let (worker, at, seen) = (Rc::clone(&self.worker), self.at.clone(), self.seen);
        match StreamIo::new(request, respond) {
            Ok(io) => {
                tokio::task::spawn_local(answer(worker, at, seen, io, open));
            }
            Err(mut respond) => {
                self.worker.limits.framing.one();
                respond.send_reset(Reason::PROTOCOL_ERROR);
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
        clock.set(&self.timer, until);
    }
}

/// Answers one request, as on a connection of its own.
async fn answer(worker: Rc<Worker>, at: At, seen: Seen, io: StreamIo, _open: Open) {
    let serving = at.home.choose(&worker, seen.ip);
    let mut connection = Connection::new(io, worker, at, &serving, seen);
    drop(serving);
    let close = connection.run(None).await;
    super::end(&mut connection, close).await;
}

/// How many streams are open.
struct Streams {
    open: Cell<usize>,
    timer: Rc<Timer>,
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
