//! The same as `tcp::join` for two connections of which one is inside TLS: copied through a buffer, because the
//! kernel cannot move what has to be encrypted.
//!
//! The rules are those of `tcp`: half-closed sessions stay open in the other direction, and one that breaks on
//! one side is reset on the other.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    clock::Timer,
    metrics::{AppCells, Count},
    session::{End, reset_on_close},
    stream::Stream,
    tcp::{self, Broke, Phase, Streams},
    worker::Worker,
};

/// Reads of one direction before others get their turn: 1 MiB of full buffers.
const TURN_READS: u32 = 32;

/// Copies both ways until both have ended, the way that fits. `first`: bytes to send before anything is read, for
/// the upstream and for the client.
pub(crate) async fn join(
    worker: &Worker,
    timer: &Timer,
    client: Stream,
    upstream: Stream,
    idle: Duration,
    cells: &AppCells,
    first: [Bytes; 2],
) -> End {
    match (client, upstream) {
        (Stream::Plain(client), Stream::Plain(upstream)) => {
            tcp::join(worker, timer, &Streams { client, upstream }, idle, cells, first).await
        }
        (client, upstream) => Box::pin(relay(worker, timer, client, upstream, idle, cells, first)).await,
    }
}

async fn relay(
    worker: &Worker,
    timer: &Timer,
    mut client: Stream,
    mut upstream: Stream,
    idle: Duration,
    cells: &AppCells,
    first: [Bytes; 2],
) -> End {
    let [to_upstream, to_client] = first;
    // What this proxy says before the client has said anything.
    let preface = to_upstream.len() as u64;
    let mut has_begun = false;
    let mut up = Half::new(to_upstream, &cells.received_client, &cells.sent_upstream);
    let mut down = Half::new(to_client, &cells.received_upstream, &cells.sent_client);
    worker.clock.set(timer, worker.clock.after(idle));
    let end = poll_fn(|cx| {
        let before = up.moved + down.moved;
        let one = up.poll(cx, worker, &mut client, &mut upstream);
        let other = down.poll(cx, worker, &mut upstream, &mut client);
        match (one, other) {
            (Poll::Ready(Err(Broke::Source)), _) | (_, Poll::Ready(Err(Broke::Sink))) => {
                return Poll::Ready(End::Reset);
            }
            (Poll::Ready(Err(Broke::Sink)), _) | (_, Poll::Ready(Err(Broke::Source))) => {
                return Poll::Ready(End::Broken);
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(End::Done),
            _ => {}
        }
        if up.moved + down.moved != before {
            if !has_begun && up.moved > preface {
                has_begun = true;
                cells.begun.one();
            }
            worker.clock.set(timer, worker.clock.after(idle));
        }
        worker.clock.poll_expired(timer, cx).map(End::from)
    })
    .await;
    up.free(worker);
    down.free(worker);
    if end != End::Done {
        reset_on_close(client.tcp());
        reset_on_close(upstream.tcp());
    }
    end
}

/// One direction.
struct Half<'a> {
    first: Bytes,
    /// Held only while there are bytes in it.
    buffer: Option<Box<[u8]>>,
    filled: std::ops::Range<usize>,
    phase: Phase,
    /// Something was written since the last flush: TLS may still hold it back.
    is_unflushed: bool,
    moved: u64,
    received: &'a Count,
    sent: &'a Count,
}

impl<'a> Half<'a> {
    fn new(first: Bytes, received: &'a Count, sent: &'a Count) -> Half<'a> {
        Half {
            first,
            buffer: None,
            filled: 0..0,
            phase: Phase::Open,
            is_unflushed: false,
            moved: 0,
            received,
            sent,
        }
    }

    /// Moves what can be moved. Ready once the source has ended and the target was told so.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
        from: &mut Stream,
        to: &mut Stream,
    ) -> Poll<Result<(), Broke>> {
        for _ in 0..TURN_READS {
            if self.phase == Phase::Done {
                return Poll::Ready(Ok(()));
            }
            ready!(self.write(cx, to)).map_err(|_| Broke::Sink)?;
            if self.phase == Phase::Draining {
                self.free(worker);
                ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(|_| Broke::Sink)?;
                self.phase = Phase::Done;
                continue;
            }
            let read = self.read(cx, worker, from);
            if read.is_pending() {
                self.free(worker);
                // Nothing more to come for now: what TLS gathered goes out.
                ready!(self.flush(cx, to)).map_err(|_| Broke::Sink)?;
            }
            ready!(read).map_err(|_| Broke::Source)?;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn read(&mut self, cx: &mut Context<'_>, worker: &Worker, from: &mut Stream) -> Poll<io::Result<()>> {
        let buffer = self.buffer.get_or_insert_with(|| worker.buffers.take());
        let mut read = ReadBuf::new(buffer);
        ready!(Pin::new(from).poll_read(cx, &mut read))?;
        let n = read.filled().len();
        if n == 0 {
            self.phase = Phase::Draining;
        }
        self.filled = 0..n;
        self.received.add(n as u64);
        Poll::Ready(Ok(()))
    }

    fn write(&mut self, cx: &mut Context<'_>, to: &mut Stream) -> Poll<io::Result<()>> {
        loop {
            let bytes: &[u8] = match &self.buffer {
                Some(buffer) if self.first.is_empty() => &buffer[self.filled.clone()],
                Some(_) | None => &self.first,
            };
            if bytes.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let n = ready!(Pin::new(&mut *to).poll_write(cx, bytes))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.is_unflushed = true;
            self.moved += n as u64;
            self.sent.add(n as u64);
            if self.first.is_empty() {
                self.filled.start += n;
            } else {
                self.first.advance(n);
            }
        }
    }

    fn flush(&mut self, cx: &mut Context<'_>, to: &mut Stream) -> Poll<io::Result<()>> {
        if self.is_unflushed {
            ready!(Pin::new(to).poll_flush(cx))?;
            self.is_unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Gives back what it has borrowed.
    fn free(&mut self, worker: &Worker) {
        if let Some(buffer) = self.buffer.take() {
            worker.buffers.give(buffer);
        }
        self.filled = 0..0;
    }
}
