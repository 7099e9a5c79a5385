//! A traffic thread: one single-threaded runtime with everything it needs of its own.
//!
//! What several workers see is in [`Shared`] and is touched per connection or per tick, never per
//! request. The worker is told what to listen on by [`Command`]s and decides nothing itself.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    pin::pin,
    rc::{Rc, Weak},
    sync::{
        self, Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use metrics::Counter;
use tokio::{
    runtime::{Builder, LocalOptions},
    sync::{mpsc, oneshot},
    task::yield_now,
    time::{Instant, MissedTickBehavior},
};

use crate::{
    Layers,
    admission::Admission,
    buffers::{Buffers, Spares},
    clock::{Clock, TICK, millis},
    config::{Http2Limits, PoolConfig, ProxyConfig},
    control::Running,
    generation::{Generation, LocalGeneration},
    http::{date::Date, forward::Parts, mirror::Copies, parking::Parking},
    listener::Listeners,
    metrics::{AppCells, LimitCells, Registry, TargetCells},
    overload::Overload,
    pipe::Pipes,
    pool::{Endpoints, LocalEndpoint, Settings},
    port::{LocalPort, Met, Slot},
    rounds::Rounds,
    slice,
    socket::PortSockets,
    tls::upstream::Transport,
    upstream::{Endpoint, balance::Strategies},
    warm::Warmth,
};

/// Commands that may wait for one worker: several for each of the 65,536 ports there can be. A full
/// queue means the thread has not run for long, which the watchdog has reported by then.
const COMMANDS_MAX: usize = 1 << 18;
/// Between two rounds of upkeep: metrics, idle connections, leftovers.
const UPKEEP: Duration = Duration::from_millis(500);
/// A connection that is asked to go and says nothing for this long is closed. Long enough for a client
/// that is in the middle of a page to be told by a response instead.
const IDLE_WHILE_LEAVING: Duration = Duration::from_secs(5);

/// What the control side asks of a worker.
pub(crate) enum Command {
    /// Accept on a port from now on.
    Listen { slot: Arc<Slot>, sockets: Arc<PortSockets> },
    /// Accept what is left in the backlog and let go of the socket, then answer.
    Close { slot: u64, done: oneshot::Sender<()> },
    /// End everything that still uses a generation.
    Cut { generation: u64 },
    /// Clients are asked to go, one after the other over this time; `None`: not any more.
    Leave { over: Option<Duration> },
    /// The node stops: everybody who waits looks at what that means for them.
    Stop,
    /// End everything.
    CutAll,
    /// Leave the thread.
    Exit,
    /// Open connections of a pool ahead, for as long as it runs.
    Warm { pool: sync::Weak<Running> },
    /// Say for which slots this worker accepts.
    Audit { answer: oneshot::Sender<Vec<u64>> },
    /// Stand still, for tests of the watchdog.
    Stall { time: Duration },
    /// Make the accept task of a port panic, for tests of its restart.
    Fail { slot: u64 },
}

/// What all workers and the control side see.
pub(crate) struct Shared {
    pub(crate) strategies: Strategies,
    pub(crate) layers: Layers,
    pub(crate) admission: Arc<Admission>,
    pub(crate) overload: Overload,
    pub(crate) early: Early,
    /// 0, or the node stops: finish what is there, politely, and give an idle connection only this
    /// many milliseconds more.
    pub(crate) stopping: AtomicU64,
    /// Per worker, milliseconds of its clock at its last tick.
    pub(crate) heartbeats: Vec<AtomicU64>,
    pub(crate) listener_restarts: AtomicU64,
    pub(crate) begun: Begun,
    pub(crate) give_back: fn(),
}

/// Bounds of a connection before anybody knows whose it is; see [`ProxyConfig`].
pub(crate) struct Early {
    pub(crate) proxy_header_timeout: Duration,
    pub(crate) hello_timeout: Duration,
    pub(crate) http2: Http2Limits,
}

impl From<&ProxyConfig> for Early {
    fn from(config: &ProxyConfig) -> Early {
        let ProxyConfig { proxy_header_timeout, hello_timeout, http2, .. } = *config;
        Early { proxy_header_timeout, hello_timeout, http2 }
    }
}

/// Per app, the requests and sessions that all workers have seen begin.
#[derive(Default)]
pub(crate) struct Begun(Mutex<HashMap<Arc<str>, Arc<AtomicU64>>>);

impl Begun {
    fn of(&self, app: &Arc<str>) -> Arc<AtomicU64> {
        Arc::clone(self.apps().entry(Arc::clone(app)).or_default())
    }

    /// Of each that had a client here. Those that are gone are forgotten.
    pub(crate) fn counts(&self, is_there: impl Fn(&str) -> bool) -> Vec<(Arc<str>, u64)> {
        let mut apps = self.apps();
        apps.retain(|app, count| Arc::strong_count(count) > 1 || is_there(app));
        apps.iter().map(|(app, count)| (Arc::clone(app), count.load(Relaxed))).collect()
    }

    fn apps(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<AtomicU64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Clients are asked to go: since when, by the worker's clock, and over how many milliseconds.
#[derive(Clone, Copy)]
struct Leaving {
    since: u64,
    over: u64,
}

/// The state of one traffic thread. Lives on that thread only.
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) clock: Clock,
    pub(crate) buffers: Buffers,
    pub(crate) pipes: Pipes,
    pub(crate) exchanges: Spares<Parts>,
    pub(crate) date: Date,
    pub(crate) copies: Copies,
    pub(crate) parking: Parking,
    pub(crate) warmth: Warmth,
    pub(crate) limits: Rc<LimitCells>,
    pub(crate) registry: Registry,
    leaving: Cell<Option<Leaving>>,
    random: Cell<u64>,
    apps: RefCell<HashMap<Arc<str>, LocalApp>>,
    generations: RefCell<HashMap<u64, Weak<LocalGeneration>>>,
    upkeep: Upkeep,
}

/// What this worker has of an app, whatever the generation.
#[derive(Default)]
struct LocalApp {
    cells: Weak<AppCells>,
    endpoints: Endpoints,
}

/// What there is one of for each app, generation, port or app on a port that was met here.
#[derive(Default)]
struct Upkeep {
    apps: Rounds<Arc<str>>,
    generations: Rounds<u64>,
    ports: Rounds<Weak<LocalPort>>,
    tenants: Rc<Met>,
}

/// The control side's end of a worker.
pub(crate) struct WorkerHandle {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) thread: thread::JoinHandle<()>,
}

/// Starts the thread of one worker. It ends when asked to, or when nobody can ask any more.
pub(crate) fn start(index: usize, shared: Arc<Shared>) -> io::Result<WorkerHandle> {
    let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
    let (started, starting) = std::sync::mpsc::sync_channel(1);
    let thread = thread::Builder::new().name(format!("proxy-{index}")).spawn(move || {
        slice::shorten();
        // It cannot leave the thread it was made on.
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => return drop(started.send(Err(error))),
        };
        if started.send(Ok(())).is_err() {
            return;
        }
        runtime.block_on(async {
            let worker = Rc::new(Worker::new(index, shared));
            run(worker, inbox).await;
        });
    })?;
    starting.recv().map_err(io::Error::other)??;
    Ok(WorkerHandle { commands, thread })
}

async fn run(worker: Rc<Worker>, mut inbox: mpsc::Receiver<Command>) {
    let mut listeners = Listeners::new(Rc::clone(&worker));
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut upkeep = pin!(upkeep(&worker));
    loop {
        // `recv`, `tick` and `ended` are cancel-safe: each hands over what it has or nothing. Upkeep goes on where
        // it was.
        tokio::select! {
            command = inbox.recv() => match command {
                Some(Command::Listen { slot, sockets }) => {
                    listeners.listen(slot, sockets);
                    // It takes some tens of microseconds, and a thousand of them may come in a row.
                    yield_now().await;
                }
                Some(Command::Close { slot, done }) => listeners.close(slot, done),
                Some(Command::Cut { generation }) => worker.clock.cut(generation),
                Some(Command::Leave { over }) => {
                    worker.leave(over);
                    worker.parking.look_around(&worker);
                }
                Some(Command::Warm { pool }) => {
                    worker.warmth.add(pool);
                    worker.warmth.top_up(&worker);
                }
                Some(Command::Stop) => {
                    worker.clock.wake_all();
                    worker.parking.look_around(&worker);
                }
                Some(Command::CutAll) => {
                    worker.parking.wake_all(&worker);
                    worker.clock.cut_all();
                }
                Some(Command::Fail { slot }) => listeners.fail(slot),
                // Nobody waits any more when the one who asked has given up.
                Some(Command::Audit { answer }) => drop(answer.send(listeners.accepting())),
                Some(Command::Stall { time }) => stall(time),
                Some(Command::Exit) | None => break,
            },
            now = tick.tick() => worker.tick(now),
            () = listeners.ended() => {}
            () = &mut upkeep => {}
        }
    }
    worker.registry.flush_now();
}

/// For ever; see [`Rounds`].
async fn upkeep(worker: &Rc<Worker>) {
    let mut interval = tokio::time::interval(UPKEEP);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        worker.look_around().await;
        worker.parking.look_around(worker);
        worker.warmth.top_up(worker);
        (worker.shared.give_back)();
    }
}

impl Worker {
    pub(crate) fn new(index: usize, shared: Arc<Shared>) -> Worker {
        let registry = Registry::default();
        Worker {
            index,
            shared,
            clock: Clock::new(),
            buffers: Buffers::default(),
            pipes: Pipes::default(),
            exchanges: Spares::default(),
            date: Date::default(),
            copies: Copies::default(),
            parking: Parking::default(),
            warmth: Warmth::default(),
            limits: registry.add(LimitCells::new()),
            registry,
            leaving: Cell::new(None),
            random: Cell::new(seed_of(index)),
            apps: RefCell::default(),
            generations: RefCell::default(),
            upkeep: Upkeep::default(),
        }
    }

    /// 64 random bits for the choice of an endpoint; nothing secret comes from here (xorshift64*,
    /// Marsaglia 2003).
    pub(crate) fn random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Whether the connection with this lot, 0 to 65535, is asked to go by now.
    pub(crate) fn asks_to_go(&self, lot: u16) -> bool {
        let due = |leaving: Leaving| {
            let after = leaving.over.saturating_mul(u64::from(lot)) >> 16;
            self.clock.now() >= leaving.since.saturating_add(after)
        };
        self.is_stopping() || self.leaving.get().is_some_and(due)
    }

    /// How long a connection that is asked to go may be idle.
    pub(crate) fn idle_while_going(&self) -> Duration {
        self.idle_while_stopping().unwrap_or(IDLE_WHILE_LEAVING)
    }

    fn leave(&self, over: Option<Duration>) {
        let since = self.clock.now();
        self.leaving.set(over.map(|over| Leaving { since, over: millis(over) }));
        self.clock.wake_all();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.shared.stopping.load(Relaxed) != 0
    }

    pub(crate) fn idle_while_stopping(&self) -> Option<Duration> {
        match self.shared.stopping.load(Relaxed) {
            0 => None,
            millis => Some(Duration::from_millis(millis)),
        }
    }

    pub(crate) fn app_cells(&self, app: &Arc<str>) -> Rc<AppCells> {
        let mut apps = self.apps.borrow_mut();
        let known = self.app(&mut apps, app);
        if let Some(cells) = known.cells.upgrade() {
            return cells;
        }
        let begun = Counter::from_arc(self.shared.begun.of(app));
        let cells = self.registry.add(AppCells::new(app, begun));
        known.cells = Rc::downgrade(&cells);
        cells
    }

    fn app<'a>(&self, apps: &'a mut HashMap<Arc<str>, LocalApp>, app: &Arc<str>) -> &'a mut LocalApp {
        apps.entry(Arc::clone(app)).or_insert_with_key(|app| {
            self.upkeep.apps.add(Arc::clone(app));
            LocalApp::default()
        })
    }

    /// One that keeps no old generation alive when nobody comes to it.
    pub(crate) fn port(&self, slot: Arc<Slot>) -> Rc<LocalPort> {
        let port = Rc::new(LocalPort::new(slot, Rc::clone(&self.upkeep.tenants)));
        self.upkeep.ports.add(Rc::downgrade(&port));
        port
    }

    pub(crate) fn generation(&self, generation: &Arc<Generation>) -> Rc<LocalGeneration> {
        if let Some(known) = self.generations.borrow().get(&generation.uid).and_then(Weak::upgrade) {
            return known;
        }
        let local = Rc::new(LocalGeneration::new(self, generation));
        let before = self.generations.borrow_mut().insert(generation.uid, Rc::downgrade(&local));
        if before.is_none() {
            self.upkeep.generations.add(generation.uid);
        }
        local
    }

    pub(crate) fn endpoint(
        &self,
        app: &Arc<str>,
        endpoint: &Endpoint,
        config: &PoolConfig,
        transport: Option<&Arc<Transport>>,
    ) -> Rc<LocalEndpoint> {
        let settings = Settings::of(config, transport);
        let cells = self.app_cells(app);
        let mut apps = self.apps.borrow_mut();
        let endpoints = &mut self.app(&mut apps, app).endpoints;
        if let Some(known) = endpoints.find(&endpoint.address, &settings) {
            return known;
        }
        let load = self.registry.add(TargetCells::new(app, &endpoint.target));
        let fresh = Rc::new(LocalEndpoint::new(
            endpoint.address.clone(),
            settings,
            cells,
            load,
            Arc::clone(&endpoint.target),
        ));
        endpoints.add(&fresh);
        fresh
    }

    fn tick(&self, now: Instant) {
        self.clock.tick(now);
        self.shared.heartbeats[self.index].store(self.clock.now(), Relaxed);
    }

    async fn look_around(&self) {
        // Idle connections whose lot has come up in the meantime look at what that means for them.
        if let Some(Leaving { since, over }) = self.leaving.get()
            && self.clock.now() <= since.saturating_add(over).saturating_add(millis(UPKEEP * 2))
        {
            self.clock.wake_all();
        }
        self.pipes.try_again();
        self.buffers.shrink();
        self.exchanges.shrink();
        self.registry.flush().await;
        self.upkeep.ports.go(|port| port.upgrade().inspect(|port| port.forget_old()).is_some()).await;
        let forget_old = |(port, tenant): &(Weak<LocalPort>, u64)| {
            port.upgrade().is_some_and(|port| port.forget_old_of(*tenant))
        };
        self.upkeep.tenants.go(forget_old).await;
        self.upkeep.generations.go(|uid| self.has_generation(*uid)).await;
        self.upkeep.apps.go(|app| self.sweep(app)).await;
    }

    /// False, and it is forgotten, when nobody uses it.
    fn has_generation(&self, uid: u64) -> bool {
        let mut generations = self.generations.borrow_mut();
        let is_used = generations.get(&uid).is_some_and(|local| local.strong_count() > 0);
        if !is_used {
            generations.remove(&uid);
        }
        is_used
    }

    /// Closes what has been idle for too long. False, and the app is forgotten, when nobody uses it.
    fn sweep(&self, app: &Arc<str>) -> bool {
        let mut apps = self.apps.borrow_mut();
        let Some(known) = apps.get_mut(app) else { return false };
        known.endpoints.sweep(self.clock.now());
        let is_used = known.cells.strong_count() > 0 || !known.endpoints.is_empty();
        if !is_used {
            apps.remove(app);
        }
        is_used
    }
}

#[allow(clippy::disallowed_methods, reason = "it is asked to be the thread that does what none may do")]
fn stall(time: Duration) {
    thread::sleep(time);
}

/// Different on each worker and at each start, and never 0, where the generator would stay.
fn seed_of(index: usize) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(index) | 1
}
