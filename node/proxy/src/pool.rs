//! What one worker knows of an endpoint: how much is in flight there, and its idle connections.
//!
//! Kept by address and settings and not by generation, so counts and warm connections survive a
//! shift. Nothing in here is shared between workers.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use h2::client::SendRequest;

use crate::{
    address::Address,
    clock::millis,
    config::{PoolConfig, TcpKeepalive, UpstreamProtocol},
    http::{h2::link::LinkIo, link::Link},
    metrics::{AppCells, TargetCells},
    room::Place,
    stream::Stream,
    tls::upstream::Transport,
    upstream::ewma::Latency,
};

/// The endpoints of one app. Several of the same address exist while settings change.
#[derive(Default)]
pub(crate) struct Endpoints(HashMap<Address, Vec<Rc<LocalEndpoint>>>);

/// Sweeps an endpoint that no generation names is kept for. A shift lets go of the old generation
/// before it takes up the new one, and the connections shall outlive that.
const UNUSED_SWEEPS_MAX: u32 = 10;

impl Endpoints {
    pub(crate) fn find(&self, address: &Address, settings: &Settings) -> Option<Rc<LocalEndpoint>> {
        self.0.get(address)?.iter().find(|known| known.settings == *settings).cloned()
    }

    pub(crate) fn add(&mut self, endpoint: &Rc<LocalEndpoint>) {
        self.0.entry(endpoint.address.clone()).or_default().push(Rc::clone(endpoint));
    }

    /// Closes what has been idle for too long, and forgets endpoints nobody uses.
    pub(crate) fn sweep(&mut self, now: u64) {
        self.0.retain(|_, endpoints| {
            endpoints.retain(|endpoint| {
                endpoint.sweep(now);
                let unused =
                    if Rc::strong_count(endpoint) > 1 { 0 } else { endpoint.unused_sweeps.get() + 1 };
                endpoint.unused_sweeps.set(unused);
                unused < UNUSED_SWEEPS_MAX
            });
            !endpoints.is_empty()
        });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Idle connections that are opened ahead are replaced this long before they have been idle for too long: two rounds
/// of upkeep. Where that is soon, a quarter of it before.
const RENEWAL_MILLIS: u64 = 1_000;
/// An endpoint that could not be reached is left alone for so long: who has a request goes on trying.
const COLD_MILLIS: u64 = 2_000;

/// The settings that make two endpoints of the same address different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) max_idle: usize,
    /// Idle ones that are opened ahead; 0 = none.
    pub(crate) warm: usize,
    pub(crate) idle_timeout: Duration,
    pub(crate) keepalive: TcpKeepalive,
    pub(crate) transport: Option<Arc<Transport>>,
}

impl Settings {
    pub(crate) fn of(config: &PoolConfig, transport: Option<&Arc<Transport>>) -> Settings {
        Settings {
            transport: transport.cloned(),
            max_idle: config.max_idle,
            warm: config.warm.min(config.max_idle),
            idle_timeout: config.idle_timeout,
            keepalive: config.tcp_keepalive.clone(),
        }
    }
}

pub(crate) struct LocalEndpoint {
    pub(crate) address: Address,
    pub(crate) settings: Settings,
    pub(crate) cells: Rc<AppCells>,
    load: Rc<TargetCells>,
    pending: Cell<u32>,
    /// Of answers, while a strategy asks for it.
    latency: Cell<Latency>,
    /// Sweeps in a row that found nobody but the table holding this.
    unused_sweeps: Cell<u32>,
    /// Last in, first out: few connections stay busy and the rest can time out.
    idle: RefCell<Vec<Idle>>,
    /// The fewest of them since the last sweep: so many were not needed.
    spare: Cell<usize>,
    /// As the user wrote it.
    pub(crate) target: Arc<str>,
    /// Connections that carry many requests at once.
    shared: RefCell<Vec<SendRequest<Bytes>>>,
    /// When the latest of these requests began.
    shared_since: Cell<u64>,
    /// Until when connecting goes by another address of the same name, which was faster.
    slow_until: Cell<u64>,
    /// Connections that are being opened ahead.
    opening: Cell<usize>,
    /// Until when none are, because the last one failed.
    cold_until: Cell<u64>,
}

struct Idle {
    link: Link,
    since: u64,
}

impl LocalEndpoint {
    pub(crate) fn new(
        address: Address,
        settings: Settings,
        cells: Rc<AppCells>,
        load: Rc<TargetCells>,
        target: Arc<str>,
    ) -> LocalEndpoint {
        LocalEndpoint {
            address,
            settings,
            cells,
            load,
            pending: Cell::new(0),
            latency: Cell::default(),
            unused_sweeps: Cell::new(0),
            idle: RefCell::default(),
            spare: Cell::new(0),
            target,
            shared: RefCell::default(),
            shared_since: Cell::new(0),
            slow_until: Cell::new(0),
            opening: Cell::new(0),
            cold_until: Cell::new(0),
        }
    }

    /// For its sockets; `None` = off, or there is no network in between.
    pub(crate) fn keepalive(&self) -> Option<socket2::TcpKeepalive> {
        match self.address {
            Address::Inet(_) => self.settings.keepalive.of_socket(),
            Address::Unix(_) => None,
        }
    }

    pub(crate) fn pending(&self) -> u32 {
        self.pending.get()
    }

    /// Whether another address of the same name was reached sooner, not long ago.
    pub(crate) fn is_slow(&self, now: u64) -> bool {
        now < self.slow_until.get()
    }

    pub(crate) fn overtaken_until(&self, until: u64) {
        self.slow_until.set(until);
    }

    /// Microseconds until an answer.
    pub(crate) fn latency(&self, now: u64) -> Option<f64> {
        self.latency.get().expected_micros(now)
    }

    pub(crate) fn observe(&self, now: u64, took: Duration, is_failure: bool) {
        let mut latency = self.latency.get();
        latency.observe(now, took.as_secs_f64() * 1e6, is_failure);
        self.latency.set(latency);
    }

    /// A connection that was still alive a moment ago. Those found closed are thrown away.
    pub(crate) fn take(&self, cx: &mut Context<'_>) -> Option<Link> {
        if let Some(link) = self.take_shared(cx) {
            return Some(link);
        }
        loop {
            let Idle { mut link, since: _ } = {
                let mut idle = self.idle.borrow_mut();
                let taken = idle.pop();
                self.spare.set(self.spare.get().min(idle.len()));
                taken?
            };
            if link.is_open(cx) {
                return Some(link);
            }
        }
    }

    fn take_shared(&self, cx: &mut Context<'_>) -> Option<Link> {
        let mut shared = self.shared.borrow_mut();
        let mut at = 0;
        while at < shared.len() {
            match shared[at].poll_ready(cx) {
                Poll::Ready(Ok(())) => return Some(self.link_on(shared[at].clone())),
                // It has as many streams as the endpoint allows.
                Poll::Pending => at += 1,
                Poll::Ready(Err(_)) => drop(shared.swap_remove(at)),
            }
        }
        None
    }

    /// How many connections to open ahead.
    pub(crate) fn missing(&self, now: u64) -> usize {
        let Settings { warm, idle_timeout, .. } = self.settings;
        // One that others share carries everybody.
        if warm == 0 || now < self.cold_until.get() || !self.shared.borrow().is_empty() {
            return 0;
        }
        let timeout = millis(idle_timeout);
        let renewal = RENEWAL_MILLIS.min(timeout / 4);
        let lasts = |idle: &&Idle| timeout == 0 || now.saturating_sub(idle.since) + renewal < timeout;
        let idle = self.idle.borrow().iter().filter(lasts).count();
        // The first one tells whether it is of those that are shared.
        let wanted = if idle == 0 && self.may_speak_http2() { 1 } else { warm };
        wanted.saturating_sub(idle + self.opening.get())
    }

    /// One more is being opened ahead.
    pub(crate) fn opens(&self) {
        self.opening.set(self.opening.get() + 1);
    }

    /// And now it is, or it has failed.
    pub(crate) fn opened(&self, is_open: bool, now: u64) {
        self.opening.set(self.opening.get() - 1);
        self.cold_until.set(if is_open { 0 } else { now + COLD_MILLIS });
    }

    fn may_speak_http2(&self) -> bool {
        self.settings.transport.as_ref().is_some_and(|one| one.protocol != UpstreamProtocol::Http1)
    }

    /// Whether requests on a new connection go in HTTP/2.
    pub(crate) fn speaks_http2(&self, stream: &Stream) -> bool {
        let protocol = self.settings.transport.as_ref().map(|transport| transport.protocol);
        protocol == Some(UpstreamProtocol::Http2) || stream.is_http2()
    }

    /// Lets others use a connection, too, and begins with one request on it.
    pub(crate) fn share(&self, send: SendRequest<Bytes>) -> Link {
        self.shared.borrow_mut().push(send.clone());
        self.link_on(send)
    }

    fn link_on(&self, send: SendRequest<Bytes>) -> Link {
        let is_secure = self.settings.transport.as_ref().is_some_and(|transport| transport.is_secure());
        Link::shared(LinkIo::new(send, is_secure))
    }

    /// Keeps it even beyond `max_idle` until the next sweep: connections that come and go with the load of a moment
    /// are needed again in the next, and there are never more than requests were in flight at once.
    pub(crate) fn put(&self, link: Link, now: u64) {
        if link.is_shared() {
            self.shared_since.set(now);
            return;
        }
        if self.settings.max_idle > 0 {
            self.idle.borrow_mut().push(Idle { link, since: now });
        }
    }

    /// Closes what is old or closed at the other end, and what was beyond `max_idle` all the time since the last
    /// sweep, the oldest first.
    fn sweep(&self, now: u64) {
        let timeout = millis(self.settings.idle_timeout);
        let mut cx = Context::from_waker(Waker::noop());
        let is_quiet = self.pending.get() == 0 && now.saturating_sub(self.shared_since.get()) >= timeout;
        if self.settings.warm > 0 {
            let is_open =
                |send: &mut SendRequest<Bytes>| !matches!(send.poll_ready(&mut cx), Poll::Ready(Err(_)));
            self.shared.borrow_mut().retain_mut(is_open);
        } else if timeout != 0 && is_quiet {
            // Each closes once its last sender is gone.
            self.shared.borrow_mut().clear();
        }
        let mut idle = self.idle.borrow_mut();
        let unneeded = self.spare.get().saturating_sub(self.settings.max_idle).min(idle.len());
        idle.drain(..unneeded);
        idle.retain_mut(|idle| {
            let is_old = timeout != 0 && now.saturating_sub(idle.since) >= timeout;
            !is_old && idle.link.is_open(&mut cx)
        });
        self.spare.set(idle.len());
    }
}

/// One request or session in flight at an endpoint, with its place there where these are counted.
pub(crate) struct InFlight(
    pub(crate) Rc<LocalEndpoint>,
    #[expect(dead_code, reason = "it is given back when this is dropped")] Option<Place>,
);

impl InFlight {
    pub(crate) fn new(endpoint: &Rc<LocalEndpoint>, place: Option<Place>) -> InFlight {
        endpoint.pending.set(endpoint.pending.get() + 1);
        endpoint.load.load.up();
        InFlight(Rc::clone(endpoint), place)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.pending.set(self.0.pending.get() - 1);
        self.0.load.load.down();
    }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, sync::Arc};

    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::metrics::Registry;

    #[tokio::test]
    async fn what_is_missing_is_what_is_not_there_on_its_way_or_about_to_be_too_old() {
        let (registry, app) = (Registry::default(), Arc::from("app"));
        let cells = registry.add(AppCells::new(&app, metrics::Counter::noop()));
        let load = registry.add(TargetCells::new(&app, &Arc::from("a")));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let idle_timeout = Duration::from_secs(30);
        let pool = PoolConfig { warm: 3, idle_timeout, ..PoolConfig::default() };
        let endpoint = LocalEndpoint::new(
            address.into(),
            Settings::of(&pool, None),
            Rc::clone(&cells),
            load,
            "a:1".into(),
        );
        assert_eq!(endpoint.missing(0), 3);
        endpoint.opens();
        assert_eq!(endpoint.missing(0), 2, "one is on its way");
        endpoint.opened(false, 0);
        assert_eq!(endpoint.missing(COLD_MILLIS - 1), 0, "it failed");
        assert_eq!(endpoint.missing(COLD_MILLIS), 3);
        let mut peers = Vec::new();
        for at in [5_000, 6_000, 7_000, 8_000] {
            endpoint.put(Link::new(TcpStream::connect(address).await.unwrap().into(), &cells), at);
            peers.push(listener.accept().await.unwrap());
        }
        assert_eq!(endpoint.missing(9_000), 0);
        assert_eq!(endpoint.missing(5_000 + 29_000), 0, "one is too many");
        assert_eq!(endpoint.missing(7_000 + 29_000), 2, "before they are closed");
        endpoint.sweep(7_000 + 29_000);
        assert_eq!(endpoint.idle.borrow().len(), 2, "and the old ones are, when it is time");
    }

    #[test]
    fn of_those_that_may_be_shared_one_is_opened_however_long_that_takes() {
        let (registry, app) = (Registry::default(), Arc::from("app"));
        let cells = registry.add(AppCells::new(&app, metrics::Counter::noop()));
        let load = registry.add(TargetCells::new(&app, &Arc::from("a")));
        let pool = PoolConfig { warm: 3, protocol: UpstreamProtocol::Http2, ..PoolConfig::default() };
        let transport = Transport::compile(&pool, true).unwrap();
        let address = Address::Inet((Ipv4Addr::LOCALHOST, 1).into());
        let endpoint =
            LocalEndpoint::new(address, Settings::of(&pool, transport.as_ref()), cells, load, "a:1".into());
        assert_eq!(endpoint.missing(0), 1);
        endpoint.opens();
        assert_eq!(endpoint.missing(0), 0, "it is on its way");
    }

    #[tokio::test]
    async fn connections_beyond_the_bound_live_while_they_are_needed_and_go_when_they_are_not() {
        let (registry, app) = (Registry::default(), Arc::from("app"));
        let cells = registry.add(AppCells::new(&app, metrics::Counter::noop()));
        let load = registry.add(TargetCells::new(&app, &Arc::from("a")));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let settings = Settings::of(&PoolConfig { max_idle: 2, ..PoolConfig::default() }, None);
        let endpoint = LocalEndpoint::new(address.into(), settings, Rc::clone(&cells), load, "a:1".into());
        let mut peers = Vec::new();
        for _ in 0..5 {
            endpoint.put(Link::new(TcpStream::connect(address).await.unwrap().into(), &cells), 0);
            peers.push(listener.accept().await.unwrap());
        }
        let idle = || endpoint.idle.borrow().len();
        let mut cx = Context::from_waker(Waker::noop());
        endpoint.sweep(0);
        for _ in 0..3 {
            let busy: Vec<Link> = (0..4).map(|_| endpoint.take(&mut cx).unwrap()).collect();
            busy.into_iter().for_each(|link| endpoint.put(link, 0));
            endpoint.sweep(0);
            assert_eq!(idle(), 5, "four of them were needed");
        }
        endpoint.sweep(0);
        assert_eq!(idle(), 2, "nobody needed any");
    }
}
