//! The state of one client connection: where it stands, what it waits for, how it will end.
//!
//! Shared by the socket wrapper, the requests and the task of the connection, all on one thread.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::net::TcpStream;

use super::{guard::Violation, headers::Seen, link::Link};
use crate::{
    clock::{Expired, NEVER, Timer, millis},
    config::Timeouts,
    generation::{LocalPort, LocalServing, Pin},
    metrics::AppCells,
    pool::InFlight,
    tcp::Active,
    worker::Worker,
};

/// Requests on one connection; the last one is answered with `Connection: close`.
const REQUESTS_MAX: u32 = 10_000;
/// From accept, or from the first byte of a later head, to its last byte, unless the app says less.
pub(crate) const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// What a connection waits for; it decides what a passed deadline means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The next request. Nothing of it is there.
    Idle,
    /// The rest of a head.
    Head,
    /// The endpoint. The request itself watches the deadline and answers with 504.
    Upstream,
    /// The same, and the body of the request on its way there.
    Upload,
    /// Bytes of a body, either way, with the head of the response sent.
    Body,
}

/// What is left to do after a 101: carry bytes.
pub(crate) struct Tunnel {
    pub(crate) upstream: TcpStream,
    /// What the endpoint sent right behind its 101.
    pub(crate) early: Bytes,
    pub(crate) idle: Duration,
    pub(crate) pin: Pin,
    pub(crate) in_flight: InFlight,
    pub(crate) active: Active,
}

pub(crate) struct Connection {
    pub(crate) worker: Rc<Worker>,
    pub(crate) port: Rc<LocalPort>,
    pub(crate) timer: Rc<Timer>,
    pub(crate) peer: SocketAddr,
    /// The same for the fields of each request.
    pub(crate) seen: Seen,
    /// The response whose request body is still on its way: polled by the task of the connection
    /// as well, because the client may not read before it has sent everything.
    pub(crate) upload: RefCell<Option<Link>>,
    pub(crate) tunnel: RefCell<Option<Tunnel>>,
    /// Of the app, as of the latest request. An idle connection keeps nothing else of a generation.
    cells: RefCell<Rc<AppCells>>,
    idle: Cell<Duration>,
    header: Cell<Duration>,
    phase: Cell<Phase>,
    /// Each byte moves the deadline to this many milliseconds from now, not beyond `latest`.
    window: Cell<u64>,
    latest: Cell<u64>,
    requests: Cell<u32>,
    violation: Cell<Option<Violation>>,
    resume: Cell<bool>,
    is_at_end: Cell<bool>,
    has_heard_all: Cell<bool>,
    hurries: Cell<bool>,
}

impl Connection {
    pub(crate) fn new(
        worker: Rc<Worker>,
        port: Rc<LocalPort>,
        serving: &LocalServing,
        peer: SocketAddr,
    ) -> Connection {
        let connection = Connection {
            timer: worker.clock.timer(),
            worker,
            seen: Seen::new(peer, port.slot.port),
            port,
            peer,
            upload: RefCell::default(),
            tunnel: RefCell::default(),
            cells: RefCell::new(Rc::clone(&serving.local.cells)),
            idle: Cell::default(),
            header: Cell::default(),
            phase: Cell::new(Phase::Idle),
            window: Cell::new(0),
            latest: Cell::new(NEVER),
            requests: Cell::new(0),
            violation: Cell::new(None),
            resume: Cell::new(false),
            is_at_end: Cell::new(false),
            has_heard_all: Cell::new(false),
            hurries: Cell::new(false),
        };
        connection.follow(serving);
        // A client that connects ahead of time and says nothing gets no answer for that.
        connection.enter(Phase::Idle, connection.header.get(), NEVER);
        connection
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// The app's counts.
    pub(crate) fn cells(&self) -> Rc<AppCells> {
        Rc::clone(&self.cells.borrow())
    }

    /// Chooses for a new request.
    pub(crate) fn choose(&self) -> Rc<LocalServing> {
        let serving = self.port.choose(&self.worker).expect("a port keeps what it served last");
        self.follow(&serving);
        serving
    }

    fn follow(&self, serving: &LocalServing) {
        let Timeouts { idle, request_header, .. } = serving.local.generation.config.timeouts;
        self.idle.set(idle);
        self.header.set(if request_header.is_zero() { HEADER_TIMEOUT } else { request_header });
        if !Rc::ptr_eq(&self.cells.borrow(), &serving.local.cells) {
            self.cells.replace(Rc::clone(&serving.local.cells));
        }
    }

    /// Whether new requests should go elsewhere.
    pub(crate) fn is_unwanted(&self) -> bool {
        let is_closing = || self.port.choose(&self.worker).is_some_and(|serving| serving.serving.closing);
        self.worker.is_stopping() || is_closing()
    }

    /// Counts a request. True when it is the last one this connection may carry.
    pub(crate) fn next_request(&self) -> bool {
        self.requests.set(self.requests.get() + 1);
        self.requests.get() >= REQUESTS_MAX
    }

    /// Enters a phase of at most `window` without a byte, and in all not longer than until `latest`.
    pub(crate) fn enter(&self, phase: Phase, window: Duration, latest: u64) {
        self.phase.set(phase);
        self.window.set(if window.is_zero() { NEVER } else { millis(window) });
        self.latest.set(latest);
        self.extend();
    }

    /// The request is over.
    pub(crate) fn enter_idle(&self) {
        self.timer.uses(0);
        self.hurries.set(self.worker.is_stopping());
        let idle = self.worker.idle_while_stopping().unwrap_or(self.idle.get());
        self.enter(Phase::Idle, idle, NEVER);
    }

    /// The node stops, and this idle connection has not been given less time yet.
    pub(crate) fn must_hurry(&self) -> bool {
        self.worker.is_stopping() && !self.hurries.get()
    }

    fn enter_head(&self) {
        let limit = self.header.get();
        // No window: a head that trickles in does not get more time for each byte.
        self.enter(Phase::Head, limit, self.worker.clock.after(limit));
    }

    pub(crate) fn poll_expired(&self, cx: &Context<'_>) -> Poll<Expired> {
        self.worker.clock.poll_expired(&self.timer, cx)
    }

    fn extend(&self) {
        let deadline = self.worker.clock.now().saturating_add(self.window.get());
        self.worker.clock.set(&self.timer, deadline.min(self.latest.get()));
    }

    pub(crate) fn received(&self, n: usize, is_mid_head: bool) {
        self.is_at_end.set(n == 0);
        if n == 0 {
            return;
        }
        self.cells.borrow().received_client.add(n as u64);
        match self.phase.get() {
            Phase::Idle if is_mid_head => self.enter_head(),
            Phase::Idle | Phase::Head | Phase::Upstream => {}
            Phase::Upload | Phase::Body => self.extend(),
        }
    }

    pub(crate) fn sent(&self, n: usize) {
        self.cells.borrow().sent_client.add(n as u64);
        match self.phase.get() {
            // Idle: the last of a response is still on its way out.
            Phase::Idle | Phase::Body => self.extend(),
            Phase::Head | Phase::Upstream | Phase::Upload => {}
        }
    }

    /// Whether the client has said that it will send no more.
    pub(crate) fn is_at_end(&self) -> bool {
        self.is_at_end.get()
    }

    /// The client's last request, by its own words, was read to its end.
    pub(crate) fn hear_all(&self) {
        self.has_heard_all.set(true);
    }

    pub(crate) fn has_heard_all(&self) -> bool {
        self.has_heard_all.get()
    }

    /// A request is being answered.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self.phase.get(), Phase::Upstream | Phase::Upload | Phase::Body)
    }

    pub(crate) fn violate(&self, violation: Violation) {
        self.violation.set(Some(violation));
    }

    pub(crate) fn has_violation(&self) -> bool {
        self.violation.get().is_some()
    }

    pub(crate) fn violation(&self) -> Option<Violation> {
        self.violation.get()
    }

    /// Tells the socket that an upgrade did not happen. What it held comes with the next read, which
    /// nothing else may cause: these bytes have arrived long ago.
    pub(crate) fn resume(&self) {
        self.resume.set(true);
        self.timer.wake();
    }

    pub(crate) fn take_resume(&self) -> bool {
        self.resume.replace(false)
    }
}
