//! A generation: one immutable, compiled app. And what a worker derives from it for itself.
//!
//! [`Generation`] is shared and never changes. [`LocalGeneration`] is built once per worker, the
//! first time a connection or request there meets it, and holds only `Rc`s and cells. Sessions keep
//! neither: they keep a [`Pin`], which is two words and a count.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::IpAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use arc_swap::{ArcSwapOption, Cache};

use crate::{
    admission::Gate,
    config::{AppConfig, PoolConfig, Protocol},
    http::route::Router,
    metrics::{AppCells, PortCells},
    pool::{Endpoints, LocalEndpoint},
    upstream::{
        EndpointSet, Upstream,
        balance::{Balance, Candidates},
    },
    worker::Worker,
};

/// One compiled app. Immutable.
pub(crate) struct Generation {
    /// Unique in the process, also among generations of the same number that were made twice.
    pub(crate) uid: u64,
    pub(crate) config: AppConfig,
    pub(crate) router: Router,
    /// In the order of `config.pools`; the router names them by index.
    pub(crate) pools: Vec<Pool>,
    /// The pool of TCP sessions.
    pub(crate) default_pool: Option<usize>,
    pub(crate) pins: Arc<Pins>,
    /// Open connections of the app, over all its generations.
    pub(crate) gate: Arc<Gate>,
}

pub(crate) struct Pool {
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) config: Arc<PoolConfig>,
}

impl Generation {
    pub(crate) fn route_index(&self, name: &str) -> Option<usize> {
        self.config.routes.iter().position(|route| route.name == name)
    }
}

/// Who still uses a generation: one cell per worker, each with a single writer.
#[derive(Debug)]
pub(crate) struct Pins(Box<[PinCell]>);

/// A cache line of its own, so that workers do not slow each other down.
#[repr(align(128))]
#[derive(Debug, Default)]
struct PinCell(AtomicU64);

impl Pins {
    pub(crate) fn new(workers: usize) -> Pins {
        Pins((0..workers).map(|_| PinCell::default()).collect())
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.iter().map(|cell| cell.0.load(Relaxed)).sum()
    }
}

/// The cell of one worker.
pub(crate) struct LocalPins {
    pins: Arc<Pins>,
    worker: usize,
    pub(crate) generation: u64,
}

impl LocalPins {
    pub(crate) fn new(generation: &Generation, worker: usize) -> LocalPins {
        LocalPins { pins: Arc::clone(&generation.pins), worker, generation: generation.uid }
    }

    pub(crate) fn pin(self: &Rc<Self>) -> Pin {
        self.change(1);
        Pin(Rc::clone(self))
    }

    /// A load and a store, not an atomic addition: this worker is the only writer.
    fn change(&self, by: i64) {
        let cell = &self.pins.0[self.worker].0;
        cell.store(cell.load(Relaxed).wrapping_add_signed(by), Relaxed);
    }
}

/// One user of a generation: a TCP session, a request, a tunnel.
pub(crate) struct Pin(Rc<LocalPins>);

impl Pin {
    /// What [`crate::clock::Clock::cut`] must name to end this user.
    pub(crate) fn generation(&self) -> u64 {
        self.0.generation
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.change(-1);
    }
}

/// What one worker made of a generation.
pub(crate) struct LocalGeneration {
    pub(crate) generation: Arc<Generation>,
    pub(crate) pools: Vec<LocalPool>,
    pub(crate) cells: Rc<AppCells>,
    pub(crate) pins: Rc<LocalPins>,
}

impl LocalGeneration {
    pub(crate) fn new(worker: &Worker, generation: &Arc<Generation>) -> LocalGeneration {
        let pools = generation.pools.iter().map(|pool| LocalPool::new(worker, generation, pool)).collect();
        LocalGeneration {
            generation: Arc::clone(generation),
            pools,
            cells: worker.app_cells(&generation.config.app),
            pins: Rc::new(LocalPins::new(generation, worker.index)),
        }
    }
}

/// One worker's view of a pool: the published endpoints with its own counts, and its own strategy.
pub(crate) struct LocalPool {
    upstream: Arc<Upstream>,
    app: Arc<str>,
    config: Arc<PoolConfig>,
    balance: Box<dyn Balance>,
    view: RefCell<Rc<View>>,
}

/// A published set and, index by index, what this worker knows of each endpoint.
pub(crate) struct View {
    pub(crate) set: Arc<EndpointSet>,
    pub(crate) endpoints: Vec<Rc<LocalEndpoint>>,
}

impl LocalPool {
    fn new(worker: &Worker, generation: &Generation, pool: &Pool) -> LocalPool {
        let balance = worker.shared.strategies.get(&pool.config.balance);
        LocalPool {
            upstream: Arc::clone(&pool.upstream),
            app: Arc::clone(&generation.config.app),
            config: Arc::clone(&pool.config),
            balance: balance.expect("the strategy was looked up when the generation was compiled"),
            view: RefCell::new(Rc::new(View { set: Arc::default(), endpoints: Vec::new() })),
        }
    }

    /// The endpoints as of now. A session keeps the view over its attempts, so indexes stay true.
    pub(crate) fn view(&self, worker: &Worker) -> Rc<View> {
        let set = self.upstream.set().load();
        let mut view = self.view.borrow_mut();
        if !Arc::ptr_eq(&view.set, &set) {
            let local = |endpoint| worker.endpoint(&self.app, endpoint, &self.config);
            let endpoints = set.endpoints.iter().map(local).collect();
            *view = Rc::new(View { set: Arc::clone(&set), endpoints });
        }
        Rc::clone(&view)
    }

    /// Chooses an endpoint that was not tried yet.
    pub(crate) fn pick(&self, view: &View, tried: &[u32], random: u64) -> Option<u32> {
        let pending = |endpoint: usize| view.endpoints[endpoint].pending();
        self.balance.pick(&Candidates { set: &view.set, pending: &pending, tried, random })
    }
}

/// What a port serves at the moment.
pub(crate) struct Serving {
    pub(crate) generation: Arc<Generation>,
    pub(crate) protocol: Protocol,
    pub(crate) max_connections: usize,
    /// The port is going away: it still takes everything, and asks HTTP clients to reconnect elsewhere.
    pub(crate) closing: bool,
}

/// `None` until something serves the port for the first time.
pub(crate) type Swap = ArcSwapOption<Serving>;

/// The one place where a port and the generation it serves meet; a shift is one swap in here.
pub(crate) struct Slot {
    pub(crate) id: u64,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) serving: Arc<Swap>,
    /// Open connections of the port.
    pub(crate) gate: Arc<Gate>,
}

/// One worker's end of a [`Slot`].
pub(crate) struct LocalPort {
    pub(crate) slot: Arc<Slot>,
    serving: RefCell<Cache<Arc<Swap>, Option<Arc<Serving>>>>,
    current: RefCell<Option<Rc<LocalServing>>>,
}

/// What a connection or request that arrives now is served with.
pub(crate) struct LocalServing {
    pub(crate) serving: Arc<Serving>,
    pub(crate) local: Rc<LocalGeneration>,
    pub(crate) cells: Rc<PortCells>,
}

impl LocalPort {
    pub(crate) fn new(slot: Arc<Slot>) -> LocalPort {
        let serving = RefCell::new(Cache::new(Arc::clone(&slot.serving)));
        LocalPort { slot, serving, current: RefCell::default() }
    }

    /// The choice of the generation: one atomic read, and a comparison as long as nothing changed.
    pub(crate) fn choose(&self, worker: &Worker) -> Option<Rc<LocalServing>> {
        let mut cache = self.serving.borrow_mut();
        let serving = cache.load().as_ref()?;
        let mut current = self.current.borrow_mut();
        match &*current {
            Some(local) if Arc::ptr_eq(&local.serving, serving) => Some(Rc::clone(local)),
            Some(_) | None => {
                let fresh = Rc::new(LocalServing::new(worker, &self.slot, serving));
                *current = Some(Rc::clone(&fresh));
                Some(fresh)
            }
        }
    }
}

impl LocalServing {
    fn new(worker: &Worker, slot: &Slot, serving: &Arc<Serving>) -> LocalServing {
        let config = &serving.generation.config;
        let routes = config.routes.iter().map(|route| route.name.clone()).collect();
        LocalServing {
            serving: Arc::clone(serving),
            local: worker.generation(&serving.generation),
            cells: worker.registry.add(PortCells::new(&config.app, slot.port, serving.protocol, routes)),
        }
    }
}

/// All endpoints one worker knows, by app and address.
pub(crate) type EndpointTable = BTreeMap<Arc<str>, Endpoints>;
