//! A generation: one immutable, compiled app. And what a worker derives from it for itself.
//!
//! [`Generation`] is shared and never changes. [`LocalGeneration`] is built once per worker, the
//! first time a connection or request there meets it, and holds only `Rc`s and cells. Sessions keep
//! neither: they keep a [`Pin`], which is two words and a count.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use metrics::Counter;

use crate::{
    admission::Gate,
    config::{AppConfig, HashOn, PoolConfig, Protocol},
    control::Compiled,
    edge::{Edge, Visitors},
    http::{
        guard::{GuardPools, Guards},
        reply::Redirect,
        route::Router,
    },
    layers::Next,
    metrics::{AppCells, GuardCells, PortCells, TlsCells},
    pool::LocalEndpoint,
    port::{Claims, Slot},
    rate::Rates,
    retry,
    room::{Count, Line, Place, PoolRoom, Room, spill},
    tally::{LocalTally, Tallies},
    tls::upstream::Transport,
    upstream::{
        self, EndpointSet, Upstream,
        balance::{Balance, Candidates},
    },
    worker::Worker,
};

/// One compiled app. Immutable.
pub(crate) struct Generation {
    /// Unique in the process, also among generations of the same number that were made twice.
    pub(crate) uid: u64,
    /// Without its routes and pools: those are below, and a map of one costs as much as a map of eleven.
    pub(crate) config: AppConfig,
    pub(crate) router: Arc<Router>,
    /// Of everything that was configured.
    pub(crate) digest: [u8; 32],
    /// In the order of their names; the router names them by index.
    pub(crate) pools: Vec<Pool>,
    /// The pool of TCP sessions.
    pub(crate) default_pool: Option<usize>,
    pub(crate) pins: Arc<Pins>,
    pub(crate) tallies: Arc<Tallies>,
    /// Open connections of the app, over all its generations.
    pub(crate) gate: Arc<Gate>,
    /// `None`: everybody may connect.
    pub(crate) visitors: Option<Arc<Visitors>>,
    /// What is in flight, where that is bounded.
    pub(crate) room: Option<Arc<Room>>,
    /// Who may ask, where that takes more than an address.
    pub(crate) guards: Option<Arc<Guards>>,
    pub(crate) guard_pools: GuardPools,
    /// How often each client may ask, where that is bounded.
    pub(crate) rates: Option<Arc<Rates>>,
    /// In the order of `config.ports`.
    pub(crate) edges: Vec<Option<Arc<Edge>>>,
    /// The same.
    pub(crate) claims: Arc<[Claims]>,
}

pub(crate) struct Pool {
    pub(crate) name: Box<str>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) config: Arc<PoolConfig>,
    pub(crate) transport: Option<Arc<Transport>>,
}

impl Generation {
    /// As it was before it was prepared, to prepare it again.
    pub(crate) fn compiled(&self) -> Compiled {
        let pools = self.pools.iter().map(|pool| (pool.name.to_string(), PoolConfig::clone(&pool.config)));
        let config = AppConfig { pools: pools.collect(), ..self.config.clone() };
        let (router, claims) = (Arc::clone(&self.router), Arc::clone(&self.claims));
        Compiled { config, router, claims, digest: self.digest }
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
    pub(crate) guard_cells: Option<Rc<GuardCells>>,
    pub(crate) pins: Rc<LocalPins>,
    pub(crate) retries: retry::Budget,
    /// `None`: requests go through no user code.
    pub(crate) layers: Option<Next>,
}

impl LocalGeneration {
    pub(crate) fn new(worker: &Worker, generation: &Arc<Generation>) -> LocalGeneration {
        let pools = generation.pools.iter().map(|pool| LocalPool::new(worker, generation, pool)).collect();
        LocalGeneration {
            generation: Arc::clone(generation),
            pools,
            cells: worker.app_cells(&generation.config.app),
            guard_cells: generation
                .guards
                .as_ref()
                .map(|_| worker.registry.add(GuardCells::new(&generation.config.app))),
            pins: Rc::new(LocalPins::new(generation, worker.index)),
            retries: retry::Budget::default(),
            layers: Some(&generation.config.layers).filter(|layers| !layers.is_empty()).map(|layers| {
                let stack = worker.shared.layers.stack(layers);
                stack.expect("the layers were looked up when the generation was compiled")
            }),
        }
    }
}

/// One worker's view of a pool: the published endpoints with its own counts, and its own strategy.
pub(crate) struct LocalPool {
    upstream: Arc<Upstream>,
    app: Arc<str>,
    pub(crate) config: Arc<PoolConfig>,
    transport: Option<Arc<Transport>>,
    balance: Box<dyn Balance>,
    /// Whether answers are timed.
    pub(crate) is_timed: bool,
    wants_key: bool,
    bounds: Option<Bounds>,
    view: RefCell<Rc<View>>,
}

/// How much may be in flight at each address of a pool; 0 = no limit.
struct Bounds {
    room: Arc<PoolRoom>,
    /// Others are preferred from here on.
    soft: usize,
    hard: usize,
}

/// Why nobody was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unchosen {
    Nobody,
    /// Everybody has as much in flight as they may.
    Full,
}

/// A published set and, index by index, what this worker knows of each endpoint.
pub(crate) struct View {
    pub(crate) set: Arc<EndpointSet>,
    pub(crate) endpoints: Vec<Rc<LocalEndpoint>>,
    /// What all workers have in flight there; empty where that is not bounded.
    counts: Vec<Arc<Count>>,
}

impl LocalPool {
    fn new(worker: &Worker, generation: &Generation, pool: &Pool) -> LocalPool {
        let balance = worker.shared.strategies.get(&pool.config.balance.strategy);
        let balance = balance.expect("the strategy was looked up when the generation was compiled");
        let limits = &generation.config.limits;
        let bounds = generation.room.as_ref().filter(|_| limits.target_soft > 0 || limits.target_hard > 0);
        LocalPool {
            bounds: bounds.map(|room| Bounds {
                room: room.pool(&pool.name),
                soft: limits.target_soft,
                hard: limits.target_hard,
            }),
            upstream: Arc::clone(&pool.upstream),
            app: Arc::clone(&generation.config.app),
            config: Arc::clone(&pool.config),
            is_timed: balance.wants_latency(),
            wants_key: balance.wants_key(),
            balance,
            transport: pool.transport.clone(),
            view: RefCell::new(Rc::new(View {
                set: Arc::default(),
                endpoints: Vec::new(),
                counts: Vec::new(),
            })),
        }
    }

    /// The endpoints as of now. A session keeps the view over its attempts, so indexes stay true.
    pub(crate) fn view(&self, worker: &Worker) -> Rc<View> {
        let set = self.upstream.set().load();
        let mut view = self.view.borrow_mut();
        if !Arc::ptr_eq(&view.set, &set) {
            let local =
                |endpoint| worker.endpoint(&self.app, endpoint, &self.config, self.transport.as_ref());
            let endpoints = set.endpoints.iter().map(local).collect();
            let counts = match &self.bounds {
                None => Vec::new(),
                Some(bounds) => set.endpoints.iter().map(|one| bounds.room.count(&one.address)).collect(),
            };
            *view = Rc::new(View { set: Arc::clone(&set), endpoints, counts });
        }
        Rc::clone(&view)
    }

    /// What to hash, if the strategy hashes.
    pub(crate) fn hash_on(&self) -> Option<&HashOn> {
        self.wants_key.then_some(&self.config.balance.hash_on)
    }

    /// Those who wait for one of its addresses.
    pub(crate) fn line(&self) -> Option<&Arc<Line>> {
        self.bounds.as_ref().map(|bounds| &bounds.room.line)
    }

    /// Chooses an endpoint that was not tried yet, and takes a place there where these are counted.
    pub(crate) fn pick(
        &self,
        worker: &Worker,
        view: &View,
        key: Option<u64>,
        tried: &[u32],
    ) -> Result<(u32, Option<Place>), Unchosen> {
        let random = worker.random();
        let chosen = self.strategy_pick(worker, view, key, tried, random).ok_or(Unchosen::Nobody)?;
        let Some(&Bounds { soft, hard, .. }) = self.bounds.as_ref() else { return Ok((chosen, None)) };
        let take = |endpoint: u32, max| {
            let place = view.counts[endpoint as usize].take(max)?;
            Some((endpoint, Some(place)))
        };
        let now = |endpoint: u32| view.counts[endpoint as usize].now();
        let least = if soft == 0 || hard != 0 && soft > hard { hard } else { soft };
        for max in [least, hard] {
            if let Some(taken) = take(chosen, max) {
                return Ok(taken);
            }
            let start = key.unwrap_or(random);
            while let Some(other) = spill(&view.set.available, now, max, tried, start) {
                // Another worker may have been faster.
                if let Some(taken) = take(other, max) {
                    return Ok(taken);
                }
            }
        }
        let reserve = view.set.reserve.iter().filter(|endpoint| !tried.contains(endpoint));
        reserve.copied().find_map(|endpoint| take(endpoint, hard)).ok_or(Unchosen::Full)
    }

    /// A place at this endpoint, where these are counted.
    pub(crate) fn place(&self, view: &View, endpoint: u32) -> Result<Option<Place>, Unchosen> {
        let Some(bounds) = &self.bounds else { return Ok(None) };
        view.counts[endpoint as usize].take(bounds.hard).map(Some).ok_or(Unchosen::Full)
    }

    fn strategy_pick(
        &self,
        worker: &Worker,
        view: &View,
        key: Option<u64>,
        tried: &[u32],
        random: u64,
    ) -> Option<u32> {
        let now = worker.clock.now();
        let pending = |endpoint: usize| view.endpoints[endpoint].pending();
        let latency = |endpoint: usize| view.endpoints[endpoint].latency(now);
        let set = &*view.set;
        let candidates = Candidates { set, pending: &pending, latency: &latency, key, tried, random };
        self.balance.pick(&candidates).or_else(|| reserve(set, tried, random))
    }
}

/// Somebody who waits for the others to be gone.
fn reserve(set: &EndpointSet, tried: &[u32], random: u64) -> Option<u32> {
    let (before, from) = set.reserve.split_at(upstream::scale_to(random, set.reserve.len()));
    from.iter().chain(before).copied().find(|endpoint| !tried.contains(endpoint))
}

/// What a port serves at the moment.
#[derive(Clone)]
pub(crate) struct Serving {
    pub(crate) generation: Arc<Generation>,
    pub(crate) protocol: Protocol,
    pub(crate) max_connections: usize,
    /// What comes before the protocol; `None` for most.
    pub(crate) edge: Option<Arc<Edge>>,
    /// Who may connect; `None`: everybody.
    pub(crate) visitors: Option<Arc<Visitors>>,
    /// Where all requests are sent instead of being served.
    pub(crate) redirect: Option<Arc<Redirect>>,
    /// The port is going away: it still takes everything, and asks HTTP clients to reconnect elsewhere.
    pub(crate) closing: bool,
    /// `None`: this one takes every client.
    pub(crate) split: Option<Split>,
    /// Nobody's traffic comes in here, only what this node asks itself.
    pub(crate) is_door: bool,
}

/// Two generations share a port while traffic moves from one to the other.
#[derive(Clone)]
pub(crate) struct Split {
    /// The share of the one that holds this, which is the newer one.
    pub(crate) percent: u8,
    /// The other one, for all other clients. It is not split itself.
    pub(crate) rest: Arc<Serving>,
}

impl Serving {
    /// The same, closing or not.
    pub(crate) fn with_closing(&self, closing: bool) -> Serving {
        let split = self.split.as_ref().map(|Split { percent, rest }| Split {
            percent: *percent,
            rest: Arc::new(rest.with_closing(closing)),
        });
        Serving { closing, split, ..self.clone() }
    }

    /// Whether some clients go to that generation.
    pub(crate) fn leads_to(&self, generation: &Generation) -> bool {
        let rest = self.split.as_ref().map(|split| split.rest.generation.uid);
        self.generation.uid == generation.uid || rest == Some(generation.uid)
    }
}

impl Serving {
    /// For the port at this place of the configuration.
    pub(crate) fn new(generation: &Arc<Generation>, at: usize) -> Serving {
        let port = &generation.config.ports[at];
        Serving {
            generation: Arc::clone(generation),
            protocol: port.protocol,
            max_connections: port.max_connections,
            edge: generation.edges[at].clone(),
            visitors: generation.visitors.clone(),
            redirect: port.redirect_https.map(|port| Arc::new(Redirect::to_https(port))),
            closing: false,
            split: None,
            is_door: false,
        }
    }
}

/// What a connection or request that arrives now is served with.
pub(crate) struct LocalServing {
    pub(crate) serving: Arc<Serving>,
    pub(crate) local: Rc<LocalGeneration>,
    /// Those of the generation; through a door the same, but for `begun`.
    pub(crate) app_cells: Rc<AppCells>,
    /// `None`: what comes in here is not compared with anything.
    pub(crate) tally: Option<Rc<LocalTally>>,
    pub(crate) cells: Rc<PortCells>,
    /// Where TLS ends here.
    pub(crate) tls: Option<Rc<TlsCells>>,
    /// Who has the other clients, and the share of this one.
    pub(crate) rest: Option<(u8, Rc<LocalServing>)>,
}

impl LocalServing {
    pub(crate) fn new(worker: &Worker, slot: &Slot, serving: &Arc<Serving>) -> LocalServing {
        let config = &serving.generation.config;
        let routes = serving.generation.router.names().map(str::to_owned).collect();
        let rest = serving
            .split
            .as_ref()
            .map(|split| (split.percent, Rc::new(LocalServing::new(worker, slot, &split.rest))));
        let ends_tls = serving.edge.as_ref().is_some_and(|edge| edge.tls.is_some());
        let local = worker.generation(&serving.generation);
        let (app_cells, tally) = match serving.is_door {
            true => (worker.registry.add(AppCells::new(&config.app, Counter::noop())), None),
            false => {
                let tally = LocalTally::new(&serving.generation.tallies, worker.index);
                (Rc::clone(&local.cells), Some(Rc::new(tally)))
            }
        };
        LocalServing {
            tls: ends_tls.then(|| worker.registry.add(TlsCells::new(&config.app))),
            rest,
            serving: Arc::clone(serving),
            local,
            app_cells,
            tally,
            cells: worker.registry.add(PortCells::new(&config.app, slot.port, serving.protocol, routes)),
        }
    }
}
