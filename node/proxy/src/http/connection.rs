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

use super::{guard::Violation, link::Link};
use crate::{
    clock::{Expired, NEVER, Timer, millis},
    generation::{LocalPort, LocalServing, Pin},
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
    /// The response whose request body is still on its way: polled by the task of the connection
    /// as well, because the client may not read before it has sent everything.
    pub(crate) upload: RefCell<Option<Link>>,
    pub(crate) tunnel: RefCell<Option<Tunnel>>,
    serving: RefCell<Rc<LocalServing>>,
    phase: Cell<Phase>,
    /// Each byte moves the deadline to this many milliseconds from now, not beyond `latest`.
    window: Cell<u64>,
    latest: Cell<u64>,
    requests: Cell<u32>,
    violation: Cell<Option<Violation>>,
    resume: Cell<bool>,
    is_at_end: Cell<bool>,
    hurries: Cell<bool>,
}

impl Connection {
    pub(crate) fn new(
        worker: Rc<Worker>,
        port: Rc<LocalPort>,
        serving: Rc<LocalServing>,
        peer: SocketAddr,
    ) -> Connection {
        let connection = Connection {
            timer: worker.clock.timer(),
            worker,
            port,
            peer,
            upload: RefCell::default(),
            tunnel: RefCell::default(),
            serving: RefCell::new(serving),
            phase: Cell::new(Phase::Head),
            window: Cell::new(0),
            latest: Cell::new(NEVER),
            requests: Cell::new(0),
            violation: Cell::new(None),
            resume: Cell::new(false),
            is_at_end: Cell::new(false),
            hurries: Cell::new(false),
        };
        connection.enter_head();
        connection
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// What the latest request was served with.
    pub(crate) fn serving(&self) -> Rc<LocalServing> {
        Rc::clone(&self.serving.borrow())
    }

    /// Chooses for a new request. A port that serves nothing any more keeps what it had.
    pub(crate) fn choose(&self) -> Rc<LocalServing> {
        let Some(serving) = self.port.choose(&self.worker) else { return self.serving() };
        let mut latest = self.serving.borrow_mut();
        if !Rc::ptr_eq(&latest, &serving) {
            *latest = Rc::clone(&serving);
        }
        serving
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
        let idle = match self.worker.idle_while_stopping() {
            Some(limit) => limit,
            None => self.serving.borrow().local.generation.config.timeouts.idle,
        };
        self.enter(Phase::Idle, idle, NEVER);
    }

    /// The node stops, and this idle connection has not been given less time yet.
    pub(crate) fn must_hurry(&self) -> bool {
        self.worker.is_stopping() && !self.hurries.get()
    }

    fn enter_head(&self) {
        let asked = self.serving.borrow().local.generation.config.timeouts.request_header;
        let limit = if asked.is_zero() { HEADER_TIMEOUT } else { asked };
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
        self.serving.borrow().local.cells.received_client.add(n as u64);
        match self.phase.get() {
            Phase::Idle if is_mid_head => self.enter_head(),
            Phase::Idle | Phase::Head => {}
            Phase::Upstream | Phase::Body => self.extend(),
        }
    }

    pub(crate) fn sent(&self, n: usize) {
        self.serving.borrow().local.cells.sent_client.add(n as u64);
        if self.phase.get() == Phase::Body {
            self.extend();
        }
    }

    /// Whether the client has said that it will send no more.
    pub(crate) fn is_at_end(&self) -> bool {
        self.is_at_end.get()
    }

    /// A request is being answered.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self.phase.get(), Phase::Upstream | Phase::Body)
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

    /// Tells the socket that an upgrade did not happen.
    pub(crate) fn resume(&self) {
        self.resume.set(true);
    }

    pub(crate) fn take_resume(&self) -> bool {
        self.resume.replace(false)
    }
}
