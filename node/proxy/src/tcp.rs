//! L4: one client connection joined to one upstream connection, byte for byte.
//!
//! Half-closed sessions stay open in the other direction; a reset of either side becomes a reset of
//! the other. The copy is one function, [`join`], which HTTP tunnels use as well; moving bytes inside
//! the kernel (splice) would replace the body of [`Half::poll`] and nothing else.

use std::{
    future::{Future, poll_fn},
    io,
    net::Shutdown,
    ops::Range,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream};

use crate::{
    clock::Timer,
    connect::{Attempts, Unreachable},
    generation::{LocalServing, Pin},
    metrics::{AppCells, Count},
    pool::InFlight,
    session::{Admitted, End, reset_on_close},
    worker::Worker,
};

/// Serves one accepted connection to its end.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    serving: Rc<LocalServing>,
    client: TcpStream,
    mut admitted: Admitted,
) {
    let timer = worker.clock.timer();
    let session = match connect(&worker, serving, &timer).await {
        Ok(session) => session,
        Err(end) => {
            reset_on_close(&client);
            admitted.end(end);
            return;
        }
    };
    let streams = Streams { client, upstream: session.upstream };
    let first = [Bytes::new(), Bytes::new()];
    let end = join(&worker, &timer, &streams, session.idle, &session.cells, first).await;
    admitted.end(end);
}

/// What a running session keeps of its generation: a pin, and nothing that is large.
struct Session {
    upstream: TcpStream,
    idle: Duration,
    cells: Rc<AppCells>,
    _pin: Pin,
    _in_flight: InFlight,
    _active: Active,
}

/// Counts an open upstream connection.
pub(crate) struct Active(Rc<AppCells>);

impl Active {
    pub(crate) fn new(cells: &Rc<AppCells>) -> Active {
        cells.upstream_active.up();
        Active(Rc::clone(cells))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.upstream_active.down();
    }
}

async fn connect(worker: &Worker, serving: Rc<LocalServing>, timer: &Rc<Timer>) -> Result<Session, End> {
    let local = &serving.local;
    let pin = local.pins.pin();
    timer.uses(pin.generation());
    let timeouts = &local.generation.config.timeouts;
    let pool = local.generation.default_pool.map(|pool| &local.pools[pool]);
    let Some(pool) = pool else { return Err(no_target(&local.cells)) };
    let mut attempts = Attempts::new(worker, pool, worker.clock.after(timeouts.connect));
    let Some(mut chosen) = attempts.choose(worker) else { return Err(no_target(&local.cells)) };
    match attempts.connect(worker, timer, &mut chosen).await {
        Ok(upstream) => Ok(Session {
            upstream,
            idle: timeouts.tcp_idle,
            cells: Rc::clone(&local.cells),
            _active: Active::new(&local.cells),
            _pin: pin,
            _in_flight: chosen.in_flight,
        }),
        Err(Unreachable::Cut) => Err(End::Cut),
        Err(Unreachable::Failed | Unreachable::Timeout) => Err(End::NoTarget),
    }
}

fn no_target(cells: &AppCells) -> End {
    cells.rejected_no_target.one();
    End::NoTarget
}

/// Two connections that belong together.
pub(crate) struct Streams {
    pub(crate) client: TcpStream,
    pub(crate) upstream: TcpStream,
}

/// Copies both ways until both have ended. `first`: bytes to send before anything is read, for the
/// upstream and for the client.
pub(crate) async fn join(
    worker: &Worker,
    timer: &Rc<Timer>,
    streams: &Streams,
    idle: Duration,
    cells: &AppCells,
    first: [Bytes; 2],
) -> End {
    let [to_upstream, to_client] = first;
    let mut up = Half::new(to_upstream, &cells.received_client, &cells.sent_upstream);
    let mut down = Half::new(to_client, &cells.received_upstream, &cells.sent_client);
    worker.clock.set(timer, worker.clock.after(idle));
    let Streams { client, upstream } = streams;
    // A side that has said all it will say is not read any more, so without these its reset would
    // go unnoticed while the other direction is idle.
    let mut client_broke = pin!(client.ready(Interest::ERROR));
    let mut upstream_broke = pin!(upstream.ready(Interest::ERROR));
    let end = poll_fn(|cx| {
        let before = up.moved + down.moved;
        let one = up.poll(cx, worker, client, upstream);
        let other = down.poll(cx, worker, upstream, client);
        let broke = match (one, other) {
            (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => true,
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(End::Done),
            (Poll::Ready(Ok(())), Poll::Pending) => client_broke.as_mut().poll(cx).is_ready(),
            (Poll::Pending, Poll::Ready(Ok(()))) => upstream_broke.as_mut().poll(cx).is_ready(),
            (Poll::Pending, Poll::Pending) => false,
        };
        if broke {
            return Poll::Ready(End::Reset);
        }
        if up.moved + down.moved != before {
            worker.clock.set(timer, worker.clock.after(idle));
        }
        worker.clock.poll_expired(timer, cx).map(End::from)
    })
    .await;
    up.free(worker);
    down.free(worker);
    if end != End::Done {
        reset_on_close(client);
        reset_on_close(upstream);
    }
    end
}

/// One direction.
struct Half<'a> {
    first: Bytes,
    /// Held only while there are bytes in it, or more may be there to read.
    buffer: Option<Box<[u8]>>,
    filled: Range<usize>,
    phase: Phase,
    moved: u64,
    received: &'a Count,
    sent: &'a Count,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Everything is read, not everything is written.
    Draining,
    Done,
}

impl<'a> Half<'a> {
    fn new(first: Bytes, received: &'a Count, sent: &'a Count) -> Half<'a> {
        Half { first, buffer: None, filled: 0..0, phase: Phase::Open, moved: 0, received, sent }
    }

    /// Moves what can be moved. Ready once the source has ended and the target was told so.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
        from: &TcpStream,
        to: &TcpStream,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.phase == Phase::Done {
                return Poll::Ready(Ok(()));
            }
            ready!(self.write(cx, to))?;
            if self.phase == Phase::Draining {
                self.free(worker);
                SockRef::from(to).shutdown(Shutdown::Write)?;
                self.phase = Phase::Done;
                continue;
            }
            // Readiness first: a session that has nothing to say holds no buffer.
            if from.poll_read_ready(cx)?.is_pending() {
                self.free(worker);
                return Poll::Pending;
            }
            self.read(worker, from)?;
        }
    }

    fn read(&mut self, worker: &Worker, from: &TcpStream) -> io::Result<()> {
        let buffer = self.buffer.get_or_insert_with(|| worker.buffers.take());
        match from.try_read(buffer) {
            Ok(0) => self.phase = Phase::Draining,
            Ok(n) => {
                self.filled = 0..n;
                self.received.add(n as u64);
                if n < buffer.len() {
                    forget_readiness(from, Interest::READABLE);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn write(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<()>> {
        loop {
            let bytes: &[u8] = match &self.buffer {
                _ if !self.first.is_empty() => &self.first,
                Some(buffer) => &buffer[self.filled.clone()],
                None => &[],
            };
            if bytes.is_empty() {
                return Poll::Ready(Ok(()));
            }
            ready!(to.poll_write_ready(cx))?;
            match to.try_write(bytes) {
                Ok(n) => {
                    if n < bytes.len() {
                        forget_readiness(to, Interest::WRITABLE);
                    }
                    self.wrote(n);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn wrote(&mut self, n: usize) {
        if self.first.is_empty() {
            self.filled.start += n;
        } else {
            self.first.advance(n);
        }
        self.moved += n as u64;
        self.sent.add(n as u64);
    }

    fn free(&mut self, worker: &Worker) {
        if let Some(buffer) = self.buffer.take() {
            worker.buffers.give(buffer);
        }
        self.filled = 0..0;
    }
}

/// After a short read or write the kernel has no more, so the next attempt is known to be futile
/// until the next event: epoll(7), edge-triggered, "the read/write I/O space is exhausted".
fn forget_readiness(stream: &TcpStream, interest: Interest) {
    let _would_block: io::Result<()> = stream.try_io(interest, || Err(io::ErrorKind::WouldBlock.into()));
}
