//! Reaching an endpoint: attempts against one endpoint after the other until a shared deadline.
//!
//! Happy Eyeballs (RFC 8305). Every address of a host, which is a name or what one record of a service names, is an
//! endpoint of its own, with its checks, its counts and its share of the traffic; so who is tried first stays the choice
//! of the balance strategy, for which IPv4 waits behind IPv6 (see `spots` in [`crate::upstream`]). What is added here:
//! after an endpoint of a host with both families the next attempt is always at another address of the same host and of
//! the other family, which is the order of §4. It begins as soon as the first has failed, or when that has not succeeded
//! after [`ATTEMPT_DELAY`]; then both go on, the first to succeed is used and the other one is closed. An attempt that
//! was overtaken counts as failed, and for [`REMEMBERED`] this worker begins at the other family, so that a family that
//! leads nowhere delays one connection and not each. An attempt includes the TLS handshake of pools that have one: a way
//! on which only small packets pass is not a way.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::{Either, select};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, sleep},
};
use tokio_rustls::TlsConnector;

use crate::{
    address::Address,
    clock::{Clock, Expired, Timer},
    generation::{LocalPool, LocalServing, Unchosen, View},
    metrics::AppCells,
    pool::{InFlight, LocalEndpoint},
    room::{self, Place},
    stream::Stream,
    upstream::{Endpoint, scale_to},
    worker::Worker,
};

/// RFC 8305 §5, Connection Attempt Delay.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// RFC 6555 §4.2 has ten minutes in mind, for a client that may have moved to another network since.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Between two looks whether a socket file takes connections again.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// Why nothing was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreachable {
    /// Everybody who could be tried refused.
    Failed,
    Timeout,
    Cut,
}

/// The endpoints one session or request has tried, and until when it may go on.
pub(crate) struct Attempts<'a> {
    pool: &'a LocalPool,
    view: Rc<View>,
    /// What a strategy that hashes goes by.
    key: Option<u64>,
    /// Stays unallocated until the first attempt has failed.
    tried: Vec<u32>,
    deadline: u64,
    options: Options,
}

/// When a new socket gets its options, each of which is a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Options {
    /// Before it connects, for connections that are used again and again.
    Now,
    /// By the caller, see [`crate::tcp`]: most sessions end before they need them.
    Later,
}

/// Who waits for room, counted.
pub(crate) struct Waiting(
    Rc<AppCells>,
    #[expect(dead_code, reason = "it is given back when this is dropped")] Place,
);

/// Why there was none.
pub(crate) enum NoRoom<E> {
    /// So many wait already that one more may not.
    TooMany,
    /// There is nobody left to wait for.
    Nobody,
    GaveUp(E),
}

impl Waiting {
    /// `None`: too many wait already.
    pub(crate) fn begin(worker: &Worker, serving: &LocalServing) -> Option<Waiting> {
        let generation = &serving.local.generation;
        let limits = &generation.config.limits;
        let place = generation.room.as_ref().filter(|_| !limits.pending_timeout.is_zero());
        let Some(place) = place.and_then(|room| room.wait(limits.max_pending)) else {
            worker.limits.pending.one();
            return None;
        };
        serving.local.cells.pending.up();
        Some(Waiting(Rc::clone(&serving.local.cells), place))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.pending.down();
    }
}

/// An endpoint by its index, and the place there.
type Picked = (u32, Option<Place>);

/// A chosen endpoint.
pub(crate) struct Chosen {
    pub(crate) in_flight: InFlight,
    index: u32,
    /// When, if answers are timed.
    at: Option<Instant>,
}

/// What became of a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Served,
    /// Answered, but with an error of its own.
    Error,
    /// Not reached, not answered in time, broken off, or it says itself that it cannot serve.
    Failed,
}

impl Outcome {
    /// 502, 503 and 504 are what an endpoint answers that cannot serve.
    pub(crate) fn of(status: u16) -> Outcome {
        match status {
            502..=504 => Outcome::Failed,
            500.. => Outcome::Error,
            _ => Outcome::Served,
        }
    }
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(worker: &Worker, pool: &'a LocalPool, key: Option<u64>, deadline: u64) -> Attempts<'a> {
        Attempts { pool, view: pool.view(worker), key, tried: Vec::new(), deadline, options: Options::Now }
    }

    /// The same, and the caller sets the options of the socket when they begin to matter.
    pub(crate) fn for_session(
        worker: &Worker,
        pool: &'a LocalPool,
        key: Option<u64>,
        deadline: u64,
    ) -> Attempts<'a> {
        Attempts { options: Options::Later, ..Attempts::new(worker, pool, key, deadline) }
    }

    /// Chooses none of these, which others ask.
    pub(crate) fn avoid(&mut self, addresses: &[Address]) {
        let endpoints = (0_u32..).zip(&self.view.set.endpoints);
        let met = endpoints.filter(|(_, one)| addresses.contains(&one.address));
        self.tried.extend(met.map(|(index, _)| index));
    }

    /// Nobody where others wait already: they come first.
    pub(crate) fn choose(&self, worker: &Worker) -> Result<Chosen, Unchosen> {
        match self.pool.line() {
            Some(line) if !line.is_empty() => Err(Unchosen::Full),
            Some(_) | None => self.choose_ahead(worker),
        }
    }

    /// The same, whoever waits.
    fn choose_ahead(&self, worker: &Worker) -> Result<Chosen, Unchosen> {
        let mut picked = self.pool.pick(worker, &self.view, self.key, &self.tried)?;
        if self.view.set.has_dual_stack {
            picked = self.choose_known_way(worker, picked);
        }
        if self.view.set.has_trials {
            picked = self.choose_on_trial(worker, picked)?;
        }
        Ok(self.chosen(picked))
    }

    fn chosen(&self, (index, place): Picked) -> Chosen {
        let in_flight = InFlight::new(&self.view.endpoints[index as usize], place);
        Chosen { in_flight, index, at: self.pool.is_timed.then(Instant::now) }
    }

    /// What was picked, if it is not half open or this one may try it; else somebody for whom that is so.
    fn choose_on_trial(&self, worker: &Worker, mut picked: Picked) -> Result<Picked, Unchosen> {
        let mut avoided = self.tried.clone();
        loop {
            let Endpoint { record, is_on_trial, .. } = &self.view.set.endpoints[picked.0 as usize];
            if !is_on_trial || record.as_ref().is_none_or(|record| record.take_trial()) {
                return Ok(picked);
            }
            avoided.push(picked.0);
            picked = self.pool.pick(worker, &self.view, self.key, &avoided)?;
        }
    }

    /// Another address of the same host, where this one was overtaken a while ago.
    fn choose_known_way(&self, worker: &Worker, picked: Picked) -> Picked {
        let is_slow = |index: u32| self.view.endpoints[index as usize].is_slow(worker.clock.now());
        if !is_slow(picked.0) {
            return picked;
        }
        self.rival(worker, picked.0).filter(|(rival, _)| !is_slow(*rival)).unwrap_or(picked)
    }

    /// Waits until an endpoint has room, behind those who wait already. `give_up` is asked meanwhile.
    pub(crate) async fn wait<E>(
        &mut self,
        worker: &Worker,
        serving: &LocalServing,
        give_up: impl FnMut(&mut Context<'_>) -> Poll<E>,
    ) -> Result<Chosen, NoRoom<E>> {
        let Some(line) = self.pool.line().map(Arc::clone) else { return Err(NoRoom::Nobody) };
        worker.limits.target_hard.one();
        let waiting = Waiting::begin(worker, serving).ok_or(NoRoom::TooMany)?;
        let attempt = || {
            // Addresses may have come meanwhile.
            self.view = self.pool.view(worker);
            match self.choose_ahead(worker) {
                Err(Unchosen::Full) => None,
                decided => Some(decided),
            }
        };
        let waited = room::wait(&line, attempt, give_up).await;
        drop(waiting);
        waited.map_err(NoRoom::GaveUp)?.map_err(|_nobody| NoRoom::Nobody)
    }

    /// Another endpoint than before, or any if all were tried, and time until then to reach it.
    pub(crate) fn again(&mut self, worker: &Worker, failed: &Chosen, deadline: u64) -> Option<Chosen> {
        self.deadline = deadline;
        if let Some(next) = self.instead_of(worker, failed) {
            return Some(next);
        }
        self.tried.clear();
        self.choose_ahead(worker).ok()
    }

    /// Time to reach an endpoint that was chosen after a wait.
    pub(crate) fn until(&mut self, deadline: u64) {
        self.deadline = deadline;
    }

    /// Says what became of a choice, once.
    pub(crate) fn report(&self, worker: &Worker, chosen: &Chosen, outcome: Outcome) {
        let Endpoint { record, is_on_trial, .. } = &self.view.set.endpoints[chosen.index as usize];
        if let Some(record) = record {
            record.report(worker.index, outcome, *is_on_trial);
        }
        if let Some(at) = chosen.at {
            chosen.in_flight.0.observe(worker.clock.now(), at.elapsed(), outcome != Outcome::Served);
        }
    }

    /// Connects to `chosen`, or to others if that fails; `chosen` becomes the one it was.
    pub(crate) async fn connect(
        &mut self,
        worker: &Worker,
        timer: &Timer,
        chosen: &mut Chosen,
    ) -> Result<Stream, Unreachable> {
        loop {
            let is_dual_stack = self.view.set.endpoints[chosen.index as usize].dual_stack.is_some();
            let until = self.share_of_time(worker.clock.now(), if is_dual_stack { 2 } else { 1 });
            let reached = match is_dual_stack {
                false => connect(&worker.clock, timer, until, &chosen.in_flight.0, self.options).await,
                // On the heap: few names are, and a connection to one of the others is as small as before.
                true => Box::pin(self.race(worker, timer, until, chosen)).await,
            };
            let mut why = match reached {
                Ok(stream) => return Ok(stream),
                Err(Failure::Refused) => Unreachable::Failed,
                Err(Failure::Expired(Expired::Deadline)) => Unreachable::Timeout,
                Err(Failure::Expired(Expired::Cut)) => return Err(Unreachable::Cut),
            };
            self.report(worker, chosen, Outcome::Failed);
            if worker.clock.now() >= self.deadline {
                why = Unreachable::Timeout;
            } else if let Some(next) = self.instead_of(worker, chosen) {
                *chosen = next;
                continue;
            }
            return Err(why);
        }
    }

    /// Connects to `chosen` and, if that takes long, to its rival at the same time; `chosen` becomes the one it was, or
    /// the last one that failed. The failure of the other one is reported.
    async fn race(
        &mut self,
        worker: &Worker,
        timer: &Timer,
        until: u64,
        chosen: &mut Chosen,
    ) -> Result<Stream, Failure> {
        let (clock, options) = (&worker.clock, self.options);
        let first = Rc::clone(&chosen.in_flight.0);
        let mut ahead = pin!(connect(clock, timer, until, &first, options));
        if let Either::Left((reached, _)) = select(&mut ahead, pin!(sleep(ATTEMPT_DELAY))).await {
            return reached;
        }
        let Some(rival) = self.rival(worker, chosen.index) else { return ahead.await };
        let rival = self.chosen(rival);
        let second = Rc::clone(&rival.in_flight.0);
        let behind = pin!(connect(clock, timer, until, &second, options));
        match select(ahead, behind).await {
            Either::Left((Ok(stream), _)) => {
                first.cells.connects_lost.one();
                Ok(stream)
            }
            Either::Left((Err(Failure::Expired(Expired::Cut)), _)) => Err(Failure::Expired(Expired::Cut)),
            Either::Left((Err(_), behind)) => {
                self.give_up(worker, std::mem::replace(chosen, rival));
                behind.await
            }
            Either::Right((Ok(stream), _)) => {
                first.cells.connects_lost.one();
                first.overtaken_until(clock.after(REMEMBERED));
                self.give_up(worker, std::mem::replace(chosen, rival));
                Ok(stream)
            }
            Either::Right((Err(_), ahead)) => {
                self.give_up(worker, rival);
                ahead.await
            }
        }
    }

    fn give_up(&mut self, worker: &Worker, failed: Chosen) {
        self.report(worker, &failed, Outcome::Failed);
        self.tried.push(failed.index);
    }

    /// Another address of the same host, of the other family, that was not tried.
    fn rival(&self, worker: &Worker, of: u32) -> Option<Picked> {
        let set = &self.view.set;
        let of = &set.endpoints[of as usize];
        let family = |endpoint: &Endpoint| endpoint.address.inet().map(|address| address.is_ipv6());
        let is_rival = |index: &u32| {
            let one = &set.endpoints[*index as usize];
            one.dual_stack.is_some()
                && (one.dual_stack, &one.target) == (of.dual_stack, &of.target)
                && family(one) != family(of)
                && !one.is_on_trial
                && !self.tried.contains(index)
        };
        let rivals = || set.available.iter().chain(&set.reserve).copied().filter(is_rival);
        let index = rivals().nth(scale_to(worker.random(), rivals().count()))?;
        Some((index, self.pool.place(&self.view, index).ok()?))
    }

    /// Another endpoint than all before.
    fn instead_of(&mut self, worker: &Worker, failed: &Chosen) -> Option<Chosen> {
        self.tried.push(failed.index);
        if self.view.set.endpoints[failed.index as usize].dual_stack.is_some()
            && let Some(rival) = self.rival(worker, failed.index)
        {
            return Some(self.chosen(rival));
        }
        // It has waited for its turn already.
        self.choose_ahead(worker).ok()
    }

    /// An endpoint that does not answer at all must leave time for the others: half of what is left
    /// while there is another one than those that are tried now.
    fn share_of_time(&self, now: u64, together: usize) -> u64 {
        let all = self.view.set.available.len() + self.view.set.reserve.len();
        let others = all.saturating_sub(self.tried.len() + together);
        if others == 0 || self.deadline == crate::clock::NEVER {
            return self.deadline;
        }
        now + self.deadline.saturating_sub(now).div_ceil(2)
    }
}

/// A connection that nobody waits for. `None`: there is none, which is counted.
pub(crate) async fn open_ahead(
    clock: &Clock,
    timer: &Timer,
    until: u64,
    endpoint: &LocalEndpoint,
) -> Option<Stream> {
    connect(clock, timer, until, endpoint, Options::Now).await.ok()
}

enum Failure {
    Refused,
    Expired(Expired),
}

async fn connect(
    clock: &Clock,
    timer: &Timer,
    until: u64,
    endpoint: &LocalEndpoint,
    options: Options,
) -> Result<Stream, Failure> {
    let cells = &endpoint.cells;
    let start = Instant::now();
    match clock.within(timer, until, dial(endpoint, options)).await {
        Ok(Ok(stream)) => {
            cells.connects_ok.one();
            cells.connect_duration.record(start.elapsed());
            Ok(stream)
        }
        Ok(Err(error)) => {
            cells.connects_failed.one();
            tracing::debug!(endpoint = %endpoint.address, %error, "connect failed");
            Err(Failure::Refused)
        }
        Err(expired) => {
            cells.connects_timeout.one();
            Err(Failure::Expired(expired))
        }
    }
}

async fn dial(endpoint: &LocalEndpoint, options: Options) -> io::Result<Stream> {
    let stream = match &endpoint.address {
        Address::Inet(address) => dial_tcp(*address, endpoint, options).await?,
        Address::Unix(path) => Box::pin(dial_file(path)).await?,
    };
    let Some(transport) = &endpoint.settings.transport else { return Ok(Stream::Plain(stream)) };
    let tls = transport.tls(&endpoint.target).map_err(io::Error::other)?;
    let Some((config, name)) = tls else { return Ok(Stream::Plain(stream)) };
    // Boxed: it is large, and most connections have none.
    let stream = Box::pin(TlsConnector::from(config).connect(name, stream)).await?;
    Ok(Stream::Tls(Box::new(stream.into())))
}

async fn dial_tcp(address: SocketAddr, endpoint: &LocalEndpoint, options: Options) -> io::Result<TcpStream> {
    let socket = open(Domain::for_address(address), Some(Protocol::TCP))?;
    if options == Options::Now {
        socket.set_tcp_nodelay(true)?;
        if let Some(keepalive) = &endpoint.keepalive() {
            socket.set_tcp_keepalive(keepalive)?;
        }
    }
    let begun = socket.connect(&address.into());
    if let Err(error) = begun
        && error.raw_os_error() != Some(libc::EINPROGRESS)
    {
        return Err(error);
    }
    let stream = TcpStream::from_std(socket.into())?;
    let ready = stream.ready(Interest::WRITABLE | Interest::ERROR).await?;
    // One that failed is writable as well, but then always an error too: without that the kernel need
    // not be asked how it went.
    if (ready.is_error() || ready.is_write_closed())
        && let Some(error) = stream.take_error()?
    {
        return Err(error);
    }
    Ok(stream)
}

/// The same for a socket file. The connection is there at once, unless as many wait to be accepted as may: then
/// connect(2) says `EAGAIN`, nobody tells when there is room, and it is asked again until the caller gives up.
///
/// What carries it is a `TcpStream` as well: but for names and options, which are never asked of it, everything done
/// with one is recv(2), send(2), shutdown(2), splice(2) and epoll(7), which are the same for both.
pub(crate) async fn dial_file(path: &Path) -> io::Result<TcpStream> {
    let address = SockAddr::unix(path)?;
    loop {
        let socket = open(Domain::UNIX, None)?;
        match socket.connect(&address) {
            Ok(()) => return TcpStream::from_std(socket.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(FULL_PAUSE).await,
            Err(error) => return Err(error),
        }
    }
}

#[cfg(target_os = "linux")]
fn open(domain: Domain, protocol: Option<Protocol>) -> io::Result<Socket> {
    Socket::new(domain, Type::STREAM.nonblocking(), protocol)
}

#[cfg(not(target_os = "linux"))]
fn open(domain: Domain, protocol: Option<Protocol>) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::STREAM, protocol)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
