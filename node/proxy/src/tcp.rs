//! L4: one client connection joined to one upstream connection, byte for byte.
//!
//! Half-closed sessions stay open in the other direction; a reset of either side becomes a reset of
//! the other. HTTP tunnels use [`join`] as well.
//!
//! Small messages are copied through a buffer: one read, one write. A direction that fills its buffer
//! is bulk and goes through a pipe inside the kernel from then on, until little comes at a time.

use std::{
    future::{Future, poll_fn},
    io,
    net::{IpAddr, Shutdown},
    ops::Range,
    os::fd::AsFd,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use socket2::{SockRef, TcpKeepalive};
use tokio::{io::Interest, net::TcpStream};

use crate::{
    address::Address,
    clock::{Expired, NEVER, Timer},
    connect::{Attempts, Chosen, NoRoom, Outcome, Unreachable},
    edge::Client,
    generation::{LocalServing, Pin, Unchosen},
    http::route::Request,
    metrics::{AppCells, Count},
    pipe::Pipe,
    pool::InFlight,
    proxy_protocol::{self, ProxyVersion},
    relay,
    session::{Admitted, End, reset_on_close},
    stream::Stream,
    upstream::key,
    worker::Worker,
};

/// A splice that moved less is the end of bulk. Half of a full buffer, which is its beginning, so that
/// a stream in between does not change its mind at every read.
const BULK_BYTES_MIN: usize = crate::buffers::BUFFER_BYTES / 2;
/// A session that lasts longer is worth the system calls that set its keep-alive, four of them. Far below
/// the seconds after which the first probe is due.
const SETTLED: Duration = Duration::from_secs(1);
/// Bytes that one direction moves before others get their turn: about a third of a millisecond.
const TURN_BYTES: u64 = 1024 * 1024;

/// What is known of a session before it begins, where something had to be learned first.
pub(crate) struct Before {
    pub(crate) timer: Timer,
    pub(crate) client: Client,
    /// What the client asked for in its TLS hello.
    pub(crate) name: Option<String>,
    /// What was read of the client already.
    pub(crate) read: Bytes,
}

/// Serves one accepted connection to its end.
#[expect(clippy::manual_async_fn, reason = "that has room for its arguments twice")]
pub(crate) fn serve(
    worker: Rc<Worker>,
    serving: Rc<LocalServing>,
    client: TcpStream,
    mut admitted: Admitted,
) -> impl Future<Output = ()> {
    async move {
        let timer = worker.clock.timer();
        let peer = || client.peer_addr().ok().map(|peer| peer.ip());
        let session = match connect(&worker, serving, &timer, None, &peer).await {
            Ok(session) => session,
            Err(end) => {
                reset_on_close(&client);
                admitted.end(end);
                return;
            }
        };
        admitted.reached();
        let header = session.send_proxy.map(|version| proxy_header(&worker, version, &client, None));
        let first = [header.unwrap_or_default(), Bytes::new()];
        let endpoint = &session.in_flight.0;
        let late = Late { keepalive: endpoint.keepalive() };
        // A socket file knows neither of the options.
        let late = matches!(endpoint.address, Address::Inet(_)).then_some(late);
        let end = match session.upstream {
            Stream::Plain(upstream) => {
                let streams = Streams { client, upstream };
                carry(&worker, &timer, &streams, session.idle, &session.cells, first, late).await
            }
            upstream @ Stream::Tls(_) => {
                late.iter().for_each(|late| late.set(upstream.tcp()));
                let (client, idle) = (client.into(), session.idle);
                Box::pin(relay::join(&worker, &timer, client, upstream, idle, &session.cells, first)).await
            }
        };
        admitted.end(end);
    }
}

/// The same for one that was looked at.
pub(crate) async fn serve_known(
    worker: Rc<Worker>,
    serving: Rc<LocalServing>,
    client: Stream,
    before: Before,
    mut admitted: Admitted,
) {
    let Before { timer, read, .. } = &before;
    let session =
        match connect(&worker, serving, timer, before.name.as_deref(), &|| Some(before.client.peer.ip()))
            .await
        {
            Ok(session) => session,
            Err(end) => {
                reset_on_close(client.tcp());
                admitted.end(end);
                return;
            }
        };
    let Session { upstream, idle, cells, send_proxy, in_flight, _pin, _active } = session;
    Late { keepalive: in_flight.0.keepalive() }.set(upstream.tcp());
    let to_upstream = match send_proxy {
        None => read.clone(),
        Some(version) => {
            let header = proxy_header(&worker, version, client.tcp(), Some(&before.client));
            [header, read.clone()].concat().into()
        }
    };
    let first = [to_upstream, Bytes::new()];
    let end = relay::join(&worker, timer, client, upstream, idle, &cells, first).await;
    admitted.end(end);
}

/// What a running session keeps of its generation: a pin, and nothing that is large.
struct Session {
    upstream: Stream,
    idle: Duration,
    cells: Rc<AppCells>,
    send_proxy: Option<ProxyVersion>,
    _pin: Pin,
    in_flight: InFlight,
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

async fn connect(
    worker: &Worker,
    serving: Rc<LocalServing>,
    timer: &Timer,
    name: Option<&str>,
    peer: &dyn Fn() -> Option<IpAddr>,
) -> Result<Session, End> {
    let local = &serving.local;
    let pin = local.pins.pin();
    timer.uses(pin.generation());
    let timeouts = &local.generation.config.timeouts;
    let pool = match name {
        Some(name) => local.generation.router.route(&Request::by_name(name)).and_then(|route| route.pool()),
        None => local.generation.default_pool,
    };
    let pool = pool.map(|pool| &local.pools[pool]);
    let Some(pool) = pool else { return Err(no_target(&local.cells)) };
    let key = pool.hash_on().and_then(|_whatever| peer()).map(key::of_client);
    let deadline = worker.clock.after(timeouts.connect);
    let mut attempts = Attempts::for_session(worker, pool, key, deadline);
    let mut chosen = match attempts.choose(worker) {
        Ok(chosen) => chosen,
        Err(Unchosen::Nobody) => return Err(no_target(&local.cells)),
        Err(Unchosen::Full) => Box::pin(wait(worker, &serving, timer, &mut attempts)).await?,
    };
    match attempts.connect(worker, timer, &mut chosen).await {
        Ok(upstream) => {
            attempts.report(worker, &chosen, Outcome::Served);
            Ok(Session {
                upstream,
                idle: timeouts.tcp_idle,
                cells: Rc::clone(&serving.app_cells),
                send_proxy: pool.config.send_proxy,
                _active: Active::new(&local.cells),
                _pin: pin,
                in_flight: chosen.in_flight,
            })
        }
        Err(Unreachable::Cut) => Err(End::Cut),
        Err(Unreachable::Failed | Unreachable::Timeout) => Err(End::NoTarget),
    }
}

/// Waits for an endpoint that has room.
async fn wait(
    worker: &Worker,
    serving: &LocalServing,
    timer: &Timer,
    attempts: &mut Attempts<'_>,
) -> Result<Chosen, End> {
    let config = &serving.local.generation.config;
    worker.clock.set(timer, worker.clock.after(config.limits.pending_timeout));
    let waited = attempts.wait(worker, serving, |cx| worker.clock.poll_expired(timer, cx)).await;
    attempts.until(worker.clock.after(config.timeouts.connect));
    waited.map_err(|no_room| match no_room {
        NoRoom::Nobody => no_target(&serving.local.cells),
        NoRoom::TooMany => {
            serving.local.cells.rejected_limit.one();
            End::NoTarget
        }
        NoRoom::GaveUp(Expired::Cut) => End::Cut,
        NoRoom::GaveUp(Expired::Deadline) => {
            worker.limits.pending_timeout.one();
            serving.local.cells.rejected_limit.one();
            End::NoTarget
        }
    })
}

/// What the endpoint is told of the client before its first byte.
pub(crate) fn proxy_header(
    worker: &Worker,
    version: ProxyVersion,
    stream: &TcpStream,
    client: Option<&Client>,
) -> Bytes {
    let peer = client.map(|client| client.peer).or_else(|| stream.peer_addr().ok());
    let local = client.and_then(|client| client.local).or_else(|| stream.local_addr().ok());
    let tls = client.and_then(|client| client.tls.as_ref());
    let id = format!("{:016x}{:016x}", worker.random(), worker.random());
    let about = proxy_protocol::About {
        alpn: tls.and_then(|tls| tls.alpn.as_deref()),
        authority: tls.and_then(|tls| tls.name.as_deref()),
        unique_id: Some(id.as_bytes()),
        received: client.map_or(&[], |client| &client.tlvs),
    };
    proxy_protocol::write(version, peer.zip(local), &about).into()
}

fn no_target(cells: &AppCells) -> End {
    cells.rejected_no_target.one();
    End::NoTarget
}

/// What an upstream socket gets only once its session has lasted [`SETTLED`].
struct Late {
    keepalive: Option<TcpKeepalive>,
}

impl Late {
    fn set(&self, upstream: &TcpStream) {
        let Some(keepalive) = &self.keepalive else { return };
        if let Err(error) = SockRef::from(upstream).set_tcp_keepalive(keepalive) {
            tracing::debug!(%error, "set keep-alive");
        }
    }
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
    timer: &Timer,
    streams: &Streams,
    idle: Duration,
    cells: &AppCells,
    first: [Bytes; 2],
) -> End {
    carry(worker, timer, streams, idle, cells, first, None).await
}

/// [`join`], with `late` options to be set on the upstream socket.
async fn carry(
    worker: &Worker,
    timer: &Timer,
    streams: &Streams,
    idle: Duration,
    cells: &AppCells,
    first: [Bytes; 2],
    late: Option<Late>,
) -> End {
    let [to_upstream, to_client] = first;
    // What this proxy says before the client has said anything.
    let preface = to_upstream.len() as u64;
    let mut has_begun = false;
    let mut up = Half::new(to_upstream, &cells.received_client, &cells.sent_upstream);
    let mut down = Half::new(to_client, &cells.received_upstream, &cells.sent_client);
    up.is_delayed = late.is_some();
    let mut late_at = if late.is_some() { worker.clock.after(SETTLED) } else { NEVER };
    let mut idle_at = worker.clock.after(idle);
    worker.clock.set(timer, idle_at.min(late_at));
    let Streams { client, upstream } = streams;
    // A side that has said all it will say is not read any more, so without these its reset would
    // go unnoticed while the other direction is idle.
    let mut client_broke = pin!(client.ready(Interest::ERROR));
    let mut upstream_broke = pin!(upstream.ready(Interest::ERROR));
    let end = poll_fn(|cx| {
        let before = up.moved + down.moved;
        let one = up.poll(cx, worker, client, upstream, down.phase);
        let other = down.poll(cx, worker, upstream, client, up.phase);
        match (one, other) {
            (Poll::Ready(Err(Broke::Source)), _) | (_, Poll::Ready(Err(Broke::Sink))) => {
                return Poll::Ready(End::Reset);
            }
            (Poll::Ready(Err(Broke::Sink)), _) | (_, Poll::Ready(Err(Broke::Source))) => {
                return Poll::Ready(End::Broken);
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(End::Done),
            (Poll::Ready(Ok(())), Poll::Pending) if client_broke.as_mut().poll(cx).is_ready() => {
                return Poll::Ready(End::Reset);
            }
            (Poll::Pending, Poll::Ready(Ok(()))) if upstream_broke.as_mut().poll(cx).is_ready() => {
                return Poll::Ready(End::Broken);
            }
            (Poll::Ready(Ok(())), Poll::Pending) | (Poll::Pending, _) => {}
        }
        if up.moved + down.moved != before {
            if !has_begun && up.moved > preface {
                has_begun = true;
                cells.begun.one();
            }
            idle_at = worker.clock.after(idle);
            worker.clock.set(timer, idle_at.min(late_at));
        }
        let expired = ready!(worker.clock.poll_expired(timer, cx));
        if expired == Expired::Deadline && worker.clock.now() < idle_at {
            late_at = NEVER;
            late.iter().for_each(|late| late.set(upstream));
            worker.clock.set(timer, idle_at);
            return worker.clock.poll_expired(timer, cx).map(End::from);
        }
        Poll::Ready(End::from(expired))
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

/// Which end of one direction.
pub(crate) enum Broke {
    Source,
    Sink,
}

/// One direction.
struct Half<'a> {
    first: Bytes,
    /// Held only while there are bytes in it, or more may be there to read.
    buffer: Option<Box<[u8]>>,
    filled: Range<usize>,
    /// The same. Nothing is read while the buffer, the pipe or `first` have bytes, so never two do.
    pipe: Option<Pipe>,
    is_bulk: bool,
    /// The target collects small writes as long as one is unacknowledged (RFC 1122 §4.2.3.4), which does
    /// not concern the first: many sessions have no other.
    is_delayed: bool,
    phase: Phase,
    moved: u64,
    received: &'a Count,
    sent: &'a Count,
}

/// Where one direction stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Open,
    /// Everything is read, not everything is written.
    Draining,
    Done,
}

impl<'a> Half<'a> {
    fn new(first: Bytes, received: &'a Count, sent: &'a Count) -> Half<'a> {
        Half {
            first,
            buffer: None,
            filled: 0..0,
            pipe: None,
            is_bulk: false,
            is_delayed: false,
            phase: Phase::Open,
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
        from: &TcpStream,
        to: &TcpStream,
        opposite: Phase,
    ) -> Poll<Result<(), Broke>> {
        let turn = self.moved + TURN_BYTES;
        loop {
            if self.phase == Phase::Done {
                return Poll::Ready(Ok(()));
            }
            ready!(self.write(cx, to)).map_err(|_| Broke::Sink)?;
            if self.phase == Phase::Draining {
                self.free(worker);
                // The last to end leaves that to the close: nothing is left to be read there, so it sends
                // a FIN as well.
                if opposite != Phase::Done {
                    SockRef::from(to).shutdown(Shutdown::Write).map_err(|_| Broke::Sink)?;
                }
                self.phase = Phase::Done;
                continue;
            }
            let others_wait = self.moved >= turn;
            if others_wait {
                cx.waker().wake_by_ref();
            }
            // Readiness first: a session that has nothing to say holds no buffer.
            if others_wait || from.poll_read_ready(cx).map_err(|_| Broke::Source)?.is_pending() {
                self.free(worker);
                return Poll::Pending;
            }
            self.read(worker, from).map_err(|_| Broke::Source)?;
        }
    }

    fn read(&mut self, worker: &Worker, from: &TcpStream) -> io::Result<()> {
        if self.is_bulk && self.splice(worker, from)? {
            return Ok(());
        }
        let buffer = self.buffer.get_or_insert_with(|| worker.buffers.take());
        match from.try_read(buffer) {
            Ok(0) => self.phase = Phase::Draining,
            Ok(n) => {
                self.filled = 0..n;
                self.received.add(n as u64);
                self.is_bulk = n == buffer.len();
                if !self.is_bulk {
                    forget_readiness(from, Interest::READABLE);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Reads into a pipe. False when that gave nothing and a real read must tell why: `splice` stops in
    /// front of urgent data (tcp(7), `MSG_OOB`) and calls that the end, or would-block, though there are
    /// bytes behind it.
    fn splice(&mut self, worker: &Worker, from: &TcpStream) -> io::Result<bool> {
        if self.pipe.is_none() {
            self.pipe = worker.pipes.take();
        }
        let Some(pipe) = &mut self.pipe else { return Ok(false) };
        match pipe.fill(from.as_fd()) {
            Ok(0) => Ok(false),
            Ok(n) => {
                self.received.add(n as u64);
                self.is_bulk = n >= BULK_BYTES_MIN;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn write(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<()>> {
        while self.has_bytes() {
            ready!(to.poll_write_ready(cx))?;
            if self.is_delayed && self.moved > 0 {
                to.set_nodelay(true)?;
                self.is_delayed = false;
            }
            match self.try_write(to) {
                Ok(n) => {
                    self.moved += n as u64;
                    self.sent.add(n as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn has_bytes(&self) -> bool {
        let piped = self.pipe.as_ref().map_or(0, Pipe::held);
        !self.first.is_empty() || !self.filled.is_empty() || piped > 0
    }

    fn try_write(&mut self, to: &TcpStream) -> io::Result<usize> {
        if let Some(pipe) = self.pipe.as_mut().filter(|pipe| pipe.held() > 0) {
            return to.try_io(Interest::WRITABLE, || pipe.drain(to.as_fd()));
        }
        let bytes: &[u8] = match &self.buffer {
            Some(buffer) if self.first.is_empty() => &buffer[self.filled.clone()],
            Some(_) | None => &self.first,
        };
        let all = bytes.len();
        let n = to.try_write(bytes)?;
        if self.first.is_empty() {
            self.filled.start += n;
        } else {
            self.first.advance(n);
        }
        if n < all {
            forget_readiness(to, Interest::WRITABLE);
        }
        Ok(n)
    }

    /// Gives back what it has borrowed.
    fn free(&mut self, worker: &Worker) {
        if let Some(buffer) = self.buffer.take() {
            worker.buffers.give(buffer);
        }
        if let Some(pipe) = self.pipe.take() {
            worker.pipes.give(pipe);
        }
        self.filled = 0..0;
    }
}

/// After a short read or write the kernel has no more, so the next attempt is known to be futile
/// until the next event: epoll(7), edge-triggered, "the read/write I/O space is exhausted".
fn forget_readiness(stream: &TcpStream, interest: Interest) {
    let _would_block: io::Result<()> = stream.try_io(interest, || Err(io::ErrorKind::WouldBlock.into()));
}

#[cfg(test)]
mod tests;
