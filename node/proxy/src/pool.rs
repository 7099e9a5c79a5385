//! What one worker knows of an endpoint: how much is in flight there, and its idle connections.
//!
//! Kept by address and settings and not by generation, so counts and warm connections survive a
//! shift. Nothing in here is shared between workers.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    task::{Context, Waker},
    time::Duration,
};

use crate::{
    clock::millis,
    config::{PoolConfig, TcpKeepalive},
    http::link::Link,
    metrics::{AppCells, TargetCells},
};

/// The endpoints of one app. Several of the same address exist while settings change.
#[derive(Default)]
pub(crate) struct Endpoints(HashMap<SocketAddr, Vec<Rc<LocalEndpoint>>>);

/// Sweeps an endpoint that no generation names is kept for. A shift lets go of the old generation
/// before it takes up the new one, and the connections shall outlive that.
const UNUSED_SWEEPS_MAX: u32 = 10;

impl Endpoints {
    pub(crate) fn find(&self, address: SocketAddr, settings: &Settings) -> Option<Rc<LocalEndpoint>> {
        self.0.get(&address)?.iter().find(|known| known.settings == *settings).cloned()
    }

    pub(crate) fn add(&mut self, endpoint: &Rc<LocalEndpoint>) {
        self.0.entry(endpoint.address).or_default().push(Rc::clone(endpoint));
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

/// The settings that make two endpoints of the same address different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) max_idle: usize,
    pub(crate) idle_timeout: Duration,
    pub(crate) keepalive: TcpKeepalive,
}

impl Settings {
    pub(crate) fn of(config: &PoolConfig) -> Settings {
        Settings {
            max_idle: config.max_idle,
            idle_timeout: config.idle_timeout,
            keepalive: config.tcp_keepalive.clone(),
        }
    }

    /// For the socket; `None` = off. The kernel refuses zeroes, so those keep its defaults.
    pub(crate) fn keepalive(&self) -> Option<socket2::TcpKeepalive> {
        let TcpKeepalive { idle, interval, count } = self.keepalive;
        if idle.is_zero() {
            return None;
        }
        let mut keepalive = socket2::TcpKeepalive::new().with_time(idle);
        if !interval.is_zero() {
            keepalive = keepalive.with_interval(interval);
        }
        Some(if count == 0 { keepalive } else { keepalive.with_retries(count) })
    }
}

pub(crate) struct LocalEndpoint {
    pub(crate) address: SocketAddr,
    pub(crate) settings: Settings,
    pub(crate) cells: Rc<AppCells>,
    load: Rc<TargetCells>,
    pending: Cell<u32>,
    /// Sweeps in a row that found nobody but the table holding this.
    unused_sweeps: Cell<u32>,
    /// Last in, first out: few connections stay busy and the rest can time out.
    idle: RefCell<Vec<Idle>>,
}

struct Idle {
    link: Link,
    since: u64,
}

impl LocalEndpoint {
    pub(crate) fn new(
        address: SocketAddr,
        settings: Settings,
        cells: Rc<AppCells>,
        load: Rc<TargetCells>,
    ) -> LocalEndpoint {
        LocalEndpoint {
            address,
            settings,
            cells,
            load,
            pending: Cell::new(0),
            unused_sweeps: Cell::new(0),
            idle: RefCell::default(),
        }
    }

    pub(crate) fn pending(&self) -> u32 {
        self.pending.get()
    }

    /// A connection that was still alive a moment ago. Those found closed are thrown away.
    pub(crate) fn take(&self, cx: &mut Context<'_>) -> Option<Link> {
        loop {
            // Not held while the connection is polled: it may wake or drop others.
            let Idle { link, since: _ } = self.idle.borrow_mut().pop()?;
            if link.poll_closed(cx).is_pending() {
                return Some(link);
            }
        }
    }

    pub(crate) fn put(&self, link: Link, now: u64) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < self.settings.max_idle {
            idle.push(Idle { link, since: now });
        }
    }

    fn sweep(&self, now: u64) {
        let timeout = millis(self.settings.idle_timeout);
        let mut cx = Context::from_waker(Waker::noop());
        self.idle.borrow_mut().retain(|idle| {
            let is_old = timeout != 0 && now.saturating_sub(idle.since) >= timeout;
            !is_old && idle.link.poll_closed(&mut cx).is_pending()
        });
    }
}

/// One request or session in flight at an endpoint.
pub(crate) struct InFlight(pub(crate) Rc<LocalEndpoint>);

impl InFlight {
    pub(crate) fn new(endpoint: &Rc<LocalEndpoint>) -> InFlight {
        endpoint.pending.set(endpoint.pending.get() + 1);
        endpoint.load.load.up();
        InFlight(Rc::clone(endpoint))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.pending.set(self.0.pending.get() - 1);
        self.0.load.load.down();
    }
}
