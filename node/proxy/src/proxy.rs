//! The public handle: starts the threads, carries out what `control` decides, and stops again.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Layers,
    admission::Admission,
    config::{AppConfig, NamesPolicy, Protocol, ProxyConfig},
    control::{
        self, Compiled, Compiler, DOOR_WORKER, DoorError, Drift, Effect, GenerationStatus, Opened,
        PrepareError, Running, Shares, State, UnknownGeneration,
    },
    http::guard::Signers,
    metrics,
    overload::{self, Overload},
    socket::{kernel_horizon, owner},
    tally::Tally,
    upstream::{Resolver, balance::Strategies},
    watchdog::Watchdog,
    worker::{self, Begun, Command, Early, Shared},
};

/// How often the watchdog looks.
const WATCH: Duration = Duration::from_secs(1);
/// How long sessions that were cut get to disappear.
const CUT_GRACE: Duration = Duration::from_secs(1);
/// For clients that are half-way through connecting when a port closes: more than a round trip to
/// the next data centre.
const LAST_HANDSHAKES: Duration = Duration::from_millis(250);
/// After this the process that holds a port stays unnamed.
const OWNER_TIMEOUT: Duration = Duration::from_secs(1);
/// For the workers to say what they accept for.
const AUDIT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the files of certificates and passwords are looked at.
const FILES: Duration = Duration::from_secs(2);
/// How often a waiting shutdown looks whether the last session has gone.
const SHUTDOWN_POLL: Duration = Duration::from_millis(20);

/// What one app has to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppLoad {
    pub app: Arc<str>,
    /// Open now.
    pub connections: u64,
    /// HTTP requests, and TCP sessions on which the client sent something, since the app is there.
    /// A check that connects and goes is neither.
    pub begun: u64,
}

/// A running proxy. Clones are the same proxy; it ends with [`Proxy::shutdown`] or its last clone.
#[derive(Clone)]
pub struct Proxy(Arc<Inner>);

type Names = Mutex<BTreeSet<Arc<str>>>;

/// The apps whose status changes, collected for one who asks for them now and then.
pub struct Changes {
    version: watch::Receiver<u64>,
    names: Arc<Names>,
}

impl Changes {
    /// Waits for a change after the last [`Changes::take`]. Cancel-safe.
    pub async fn changed(&mut self) {
        if self.version.changed().await.is_err() {
            // The proxy has ended, and nothing will change any more.
            std::future::pending().await
        }
    }

    /// Apps of which [`Proxy::status`] may differ from what it was when this was called last.
    pub fn take(&mut self) -> BTreeSet<Arc<str>> {
        self.version.mark_unchanged();
        std::mem::take(&mut *self.names.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A listener on the loopback that leads to one generation; closed when dropped.
pub struct Door {
    inner: Weak<Inner>,
    slot: u64,
    address: SocketAddr,
}

impl Door {
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.upgrade() {
            let (done, _unheard) = oneshot::channel();
            inner.command(DOOR_WORKER, Command::Close { slot: self.slot, done });
        }
    }
}

struct Inner {
    shared: Arc<Shared>,
    signers: Signers,
    zone: Option<String>,
    names: NamesPolicy,
    /// `None`: the one of the system.
    resolver: Option<Arc<Resolver>>,
    horizon: Duration,
    state: Mutex<State>,
    commands: Vec<mpsc::Sender<Command>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    control: Handle,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// The control loop has to look again.
    look: Notify,
    changed: watch::Sender<u64>,
    /// The names of whoever follows.
    followers: Mutex<Vec<Weak<Names>>>,
    /// What the watchdog saw last.
    stalled_millis: AtomicU64,
}

/// Code of the embedding program that a configuration asks for by name.
#[derive(Clone, Default)]
pub struct Extensions {
    pub strategies: Strategies,
    pub layers: Layers,
    pub signers: Signers,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Proxy {
    /// Starts the workers and a small control thread (checks, names, closes). Needs no runtime.
    pub fn start(config: ProxyConfig) -> io::Result<Proxy> {
        Proxy::start_with(config, Extensions::default())
    }

    /// The same with code of the embedding program.
    pub fn start_with(config: ProxyConfig, extensions: Extensions) -> io::Result<Proxy> {
        let Extensions { strategies, layers, signers } = extensions;
        let workers = config.workers.max(1);
        let shared = Arc::new(Shared {
            strategies,
            layers,
            overload: Overload::new(config.memory_budget),
            admission: Arc::new(Admission::new(config.max_connections, config.max_connections_per_source)),
            early: Early::from(&config),
            stopping: AtomicU64::new(0),
            heartbeats: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            listener_restarts: AtomicU64::new(0),
            begun: Begun::default(),
            give_back: config.give_back,
        });
        // Before the first connection, not a moment after it.
        shared.overload.sample();
        let mut commands = Vec::new();
        let mut threads = Vec::new();
        for index in 0..workers {
            let worker = worker::start(index, Arc::clone(&shared))?;
            commands.push(worker.commands);
            threads.push(worker.thread);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let resolver = {
            let _inside = runtime.enter();
            config.name_server.map(Resolver::at)
        };
        let inner = Arc::new(Inner {
            shared,
            zone: config.zone,
            names: config.names,
            resolver,
            signers,
            horizon: config.close_horizon.unwrap_or_else(kernel_horizon),
            state: Mutex::default(),
            commands,
            threads: Mutex::new(threads),
            control: runtime.handle().clone(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            look: Notify::new(),
            changed: watch::Sender::new(0),
            followers: Mutex::default(),
            stalled_millis: AtomicU64::new(0),
        });
        let (weak, stop) = (Arc::downgrade(&inner), inner.stop.clone());
        runtime.spawn(stop.clone().run_until_cancelled_owned(files(weak.clone())));
        runtime.spawn(stop.clone().run_until_cancelled_owned(watch_memory(weak.clone())));
        let thread = thread::Builder::new()
            .name("proxy-control".into())
            .spawn(move || runtime.block_on(stop.run_until_cancelled(control(weak))))?;
        // Not among the threads a shutdown joins: it is the one that carries the shutdown out.
        drop(thread);
        Ok(Proxy(inner))
    }

    /// Finds what is wrong with a configuration and computes what serving it takes. Only computes: it
    /// may be done on any thread, and given up.
    pub fn compile(&self, app: AppConfig) -> Result<Compiled, PrepareError> {
        control::check(app, &self.0.shared.strategies, &self.0.shared.layers)
    }

    /// Compiles a generation, binds its ports, starts resolving and checking. Nothing serves yet.
    /// Doing it again for the same generation changes nothing.
    pub async fn prepare(&self, app: AppConfig) -> Result<(), PrepareError> {
        self.prepare_compiled(self.compile(app)?).await
    }

    /// The same for what is compiled already.
    pub async fn prepare_compiled(&self, app: Compiled) -> Result<(), PrepareError> {
        let mut changed = self.changed();
        let result = loop {
            {
                let mut state = self.0.state();
                changed.mark_unchanged();
                if !state.is_closing_for_good(&app.config) {
                    let result = state.prepare(&app, &self.0.compiler());
                    self.0.settle(state);
                    break result;
                }
            }
            // The old sockets of a port are about to be gone. The sender lives as long as we do.
            let _gone = changed.changed().await;
        };
        match result {
            Err(PrepareError::Bind { address, port, source, .. })
                if source.kind() == io::ErrorKind::AddrInUse =>
            {
                let owner = self.owner_of(port).await;
                Err(PrepareError::Bind { address, port, source, owner })
            }
            result => result,
        }
    }

    /// Asked on a thread of its own: with many connections and processes on the machine the answer
    /// takes seconds, and it is only for the message.
    async fn owner_of(&self, port: u16) -> Option<String> {
        let search = async move {
            let search = tokio::task::spawn_blocking(move || owner::of_port(port));
            tokio::time::timeout(OWNER_TIMEOUT, search).await.ok()?.ok()?
        };
        self.0.tasks.spawn_on(search, &self.0.control).await.ok()?
    }

    /// Lets a prepared generation take all new sessions and requests of its ports, atomically per
    /// port. Ports only its predecessor had begin to close.
    pub fn serve(&self, app: &str, generation: u64) -> Result<(), UnknownGeneration> {
        let mut state = self.0.state();
        let effects = state.serve(app, generation, &self.0.compiler())?;
        self.0.carry_out(effects);
        self.0.settle(state);
        Ok(())
    }

    /// Lets two prepared generations share the clients of an app: `newer` takes `percent` of them (1 to
    /// 99), `older` the rest. A client, known by its address, stays where it is while the share does not
    /// change, and moves to `newer` only as it grows. A port that only one of them names is that one's.
    pub fn share(&self, app: &str, newer: u64, percent: u8, older: u64) -> Result<(), UnknownGeneration> {
        let mut state = self.0.state();
        let shares = Shares { newer, percent: percent.clamp(1, 99), older };
        let effects = state.share(app, shares, &self.0.compiler())?;
        self.0.carry_out(effects);
        self.0.settle(state);
        Ok(())
    }

    /// Takes a generation out: its ports begin to close unless another one has them.
    pub fn drain(&self, app: &str, generation: u64) -> Result<(), UnknownGeneration> {
        let mut state = self.0.state();
        state.drain(app, generation)?;
        self.0.settle(state);
        Ok(())
    }

    /// Forgets a generation as soon as its ports are closed. Sessions that still use it live on, and
    /// not longer than `cut_after` from now if that is given.
    pub fn remove(
        &self,
        app: &str,
        generation: u64,
        cut_after: Option<Duration>,
    ) -> Result<(), UnknownGeneration> {
        let mut state = self.0.state();
        state.remove(app, generation, cut_after.map(|after| Instant::now() + after))?;
        self.0.settle(state);
        Ok(())
    }

    /// Opens a way in to a prepared generation that no client has, for as long as the door is kept.
    /// `port` and `protocol` choose among its ports; the first that fits is taken.
    pub fn open_door(
        &self,
        app: &str,
        generation: u64,
        port: Option<u16>,
        protocol: Option<Protocol>,
    ) -> Result<Door, DoorError> {
        let Opened { slot, sockets, address } = self.0.state().open_door(app, generation, port, protocol)?;
        let door = Door { inner: Arc::downgrade(&self.0), slot: slot.id, address };
        self.0.command(DOOR_WORKER, Command::Listen { slot, sockets });
        Ok(door)
    }

    /// Every generation there is; one that is gone is missing.
    pub fn status(&self) -> Vec<GenerationStatus> {
        self.0.state().status(Instant::now())
    }

    /// Compares what the workers serve with what was decided, puts right what differs, and says what
    /// that was.
    pub async fn audit(&self) -> Vec<Drift> {
        let expected = self.0.state().listening();
        let mut answers = Vec::new();
        self.0.command_all(|| {
            let (answer, heard) = oneshot::channel();
            answers.push(heard);
            Command::Audit { answer }
        });
        let mut accepting: Vec<Option<BTreeSet<u64>>> = Vec::new();
        for answer in answers {
            // A worker that stands still is the watchdog's business.
            let slots = tokio::time::timeout(AUDIT_TIMEOUT, answer).await.ok().and_then(Result::ok);
            accepting.push(slots.map(BTreeSet::from_iter));
        }
        let (drifts, effects) = self.0.state().audit(&expected, &accepting);
        let drifted = drifts.iter().map(|drift| Arc::clone(&drift.app)).collect();
        for (worker, effect) in effects {
            match effect {
                Effect::Listen { slot, sockets } => {
                    self.0.command(worker, Command::Listen { slot, sockets });
                }
                Effect::Close { .. } | Effect::Cut { .. } => {}
            }
        }
        if !drifts.is_empty() {
            self.0.bump(&drifted);
        }
        drifts
    }

    /// The same of some apps.
    pub fn status_of<'a>(&self, apps: impl IntoIterator<Item = &'a str>) -> Vec<GenerationStatus> {
        self.0.state().status_of(apps, Instant::now())
    }

    /// The apps that it has.
    pub fn apps(&self) -> Vec<Arc<str>> {
        self.0.state().apps().cloned().collect()
    }

    /// Whether new connections are turned away for want of memory.
    pub fn is_overloaded(&self) -> bool {
        self.0.shared.overload.is_on()
    }

    /// How long the worker that has stood still for longest has done so, to the second.
    pub fn stalled_for(&self) -> Duration {
        Duration::from_millis(self.0.stalled_millis.load(Relaxed))
    }

    /// What one generation has done; `None` where it does not run.
    pub fn tally(&self, app: &str, generation: u64) -> Option<Tally> {
        self.0.state().tally(app, generation)
    }

    /// Moves whenever [`Proxy::status`] may differ in phases, targets or ports.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// The same, with the names of the apps.
    pub fn changes(&self) -> Changes {
        let names = Arc::default();
        let version = self.0.changed.subscribe();
        self.0.followers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&names));
        Changes { version, names }
    }

    /// Connections open now.
    pub fn connections(&self) -> u64 {
        self.0.shared.admission.open() as u64
    }

    /// What each app that had a client has to do.
    pub fn loads(&self) -> Vec<AppLoad> {
        let state = self.0.state();
        let met = self.0.shared.begun.counts(|app| state.connections(app).is_some());
        let load = |(app, begun): (Arc<str>, u64)| {
            let connections = state.connections(&app)? as u64;
            Some(AppLoad { app, connections, begun })
        };
        met.into_iter().filter_map(load).collect()
    }

    /// Asks HTTP clients to go with their next response, one after the other over this time, and
    /// closes what stays idle. Ports stay open and whatever comes is served. `None`: not any more.
    pub fn leave(&self, over: Option<Duration>) {
        self.0.command_all(|| Command::Leave { over });
    }

    /// Ends every connection that is open now. Ports stay open.
    pub fn cut(&self) {
        self.0.command_all(|| Command::CutAll);
    }

    /// Accepts what is waiting, closes the ports, and asks HTTP clients to go with their next
    /// response. Waits for sessions until `deadline`, then cuts what is left.
    pub async fn shutdown(self, deadline: Duration) {
        let inner = Arc::clone(&self.0);
        // On the control runtime, so that the caller needs none of its own.
        let stopped = self.0.tasks.spawn_on(async move { inner.shutdown(deadline).await }, &self.0.control);
        // It fails only if the control thread is gone, and then everything else is, too.
        let _gone = stopped.await;
    }

    /// For tests of the audit: a port leads to another prepared generation of its app from now on.
    #[doc(hidden)]
    pub fn mislead(&self, address: IpAddr, port: u16, app: &str, generation: u64) -> bool {
        self.0.state().mislead((address, port), app, generation)
    }

    /// For tests of the audit: a worker lets go of a port.
    #[doc(hidden)]
    pub fn deafen(&self, address: IpAddr, port: u16, worker: usize) {
        if let Some(slot) = self.0.state().slot_id((address, port)) {
            let (done, _unheard) = oneshot::channel();
            self.0.command(worker, Command::Close { slot, done });
        }
    }

    /// For tests of the watchdog: a worker does nothing for a while.
    #[doc(hidden)]
    pub fn stall_worker(&self, worker: usize, time: Duration) {
        self.0.command(worker, Command::Stall { time });
    }

    /// For tests of its restart: makes the accept task of a port on one worker panic.
    #[doc(hidden)]
    pub fn fail_listener(&self, address: IpAddr, port: u16, worker: usize) {
        if let Some(slot) = self.0.state().slot_id((address, port)) {
            self.0.command(worker, Command::Fail { slot });
        }
    }

    /// For tests: accept tasks that died and were started again.
    #[doc(hidden)]
    pub fn listener_restarts(&self) -> u64 {
        self.0.shared.listener_restarts.load(Relaxed)
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in there left a state that the next settle puts right.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn compiler(self: &Arc<Self>) -> Compiler<'_> {
        let (weak, workers) = (Arc::downgrade(self), Arc::downgrade(self));
        Compiler {
            workers: self.commands.len(),
            strategies: &self.shared.strategies,
            signers: &self.signers,
            names: self.names,
            zone: self.zone.as_deref(),
            resolver: self.resolver.as_ref(),
            tasks: &self.tasks,
            runtime: &self.control,
            changed: Arc::new(move |app| {
                if let Some(inner) = weak.upgrade() {
                    inner.bump(&BTreeSet::from([Arc::clone(app)]));
                }
            }),
            keep_warm: Arc::new(move |pool: Weak<Running>| {
                if let Some(inner) = workers.upgrade() {
                    inner.command_all(|| Command::Warm { pool: Weak::clone(&pool) });
                }
            }),
        }
    }

    fn settle(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let effects = state.settle(Instant::now(), self.horizon);
        let changed = state.take_changed();
        drop(state);
        self.carry_out(effects);
        self.bump(&changed);
        self.look.notify_one();
    }

    fn bump(&self, apps: &BTreeSet<Arc<str>>) {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner).retain(|follower| {
            let Some(names) = follower.upgrade() else { return false };
            names.lock().unwrap_or_else(PoisonError::into_inner).extend(apps.iter().cloned());
            true
        });
        self.changed.send_modify(|version| *version += 1);
    }

    fn carry_out(self: &Arc<Self>, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Listen { slot, sockets } => self.command_all(|| Command::Listen {
                    slot: Arc::clone(&slot),
                    sockets: Arc::clone(&sockets),
                }),
                Effect::Cut { generation } => self.command_all(|| Command::Cut { generation }),
                Effect::Close { key, slot } => {
                    let inner = Arc::clone(self);
                    self.tasks.spawn_on(
                        async move {
                            inner.state().turn_away(key);
                            tokio::time::sleep(LAST_HANDSHAKES).await;
                            inner.close(slot).await;
                            let mut state = inner.state();
                            state.closed(key, Instant::now());
                            inner.settle(state);
                        },
                        &self.control,
                    );
                }
            }
        }
    }

    /// Has every worker let go of a slot, and waits until all have.
    async fn close(&self, slot: u64) {
        let mut answers = Vec::new();
        self.command_all(|| {
            let (done, answer) = oneshot::channel();
            answers.push(answer);
            Command::Close { slot, done }
        });
        for answer in answers {
            // A worker that does not answer is gone, and its sockets with it.
            let _gone = answer.await;
        }
    }

    fn command_all(&self, mut command: impl FnMut() -> Command) {
        for worker in 0..self.commands.len() {
            self.command(worker, command());
        }
    }

    fn command(&self, worker: usize, command: Command) {
        if self.commands[worker].try_send(command).is_err() {
            tracing::error!(worker, "worker takes no commands");
        }
    }

    async fn shutdown(self: Arc<Self>, deadline: Duration) {
        let end = Instant::now() + deadline;
        let idle = u64::try_from(deadline.as_millis() / 2).unwrap_or(u64::MAX).max(1);
        self.shared.stopping.store(idle, Relaxed);
        let closes = self.state().close_all(Instant::now());
        self.carry_out(closes);
        self.command_all(|| Command::Stop);
        self.wait_until_empty(end).await;
        self.command_all(|| Command::CutAll);
        self.wait_until_empty(Instant::now() + CUT_GRACE).await;
        self.command_all(|| Command::Exit);
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        // The result is of no use: a worker that panicked has ended as well.
        let _panicked =
            tokio::task::spawn_blocking(|| threads.into_iter().for_each(|thread| drop(thread.join()))).await;
    }

    async fn wait_until_empty(&self, end: Instant) {
        while Instant::now() < end && (self.shared.admission.open() > 0 || self.state().has_ports()) {
            tokio::time::sleep(SHUTDOWN_POLL).await;
        }
    }
}

/// Looks how much memory there is left.
async fn watch_memory(inner: Weak<Inner>) {
    let mut look = tokio::time::interval(overload::SAMPLE);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        match inner.upgrade() {
            Some(inner) if inner.shared.overload.budget.is_some() => inner.shared.overload.sample(),
            Some(_) | None => return,
        }
    }
}

/// The control thread: closes what is due, and watches the workers.
async fn control(inner: Weak<Inner>) {
    let mut watchdog = Watchdog::default();
    let mut watch = tokio::time::interval(WATCH);
    watch.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let Some(strong) = inner.upgrade() else { return };
        let due = strong.state().next_due();
        let sleep = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        // All cancel-safe: a missed notification is stored, time goes on anyway.
        tokio::select! {
            () = strong.look.notified() => continue,
            now = watch.tick() => {
                let beats = strong.shared.heartbeats.iter().map(|beat| beat.load(Relaxed));
                for worker in watchdog.look(beats, now) {
                    metrics::worker_stalled();
                    tracing::warn!(worker, "worker makes no progress");
                }
                let stalled = WATCH.saturating_mul(watchdog.looks()).as_millis();
                strong.stalled_millis.store(u64::try_from(stalled).unwrap_or(u64::MAX), Relaxed);
            }
            () = sleep => {}
        }
        if due.is_some_and(|due| due <= Instant::now()) {
            strong.settle(strong.state());
        }
    }
}

/// Reads certificates, authorities and passwords again when their files change.
async fn files(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(FILES).await;
        let Some(strong) = inner.upgrade() else { return };
        let with_files = strong.state().with_files();
        drop(strong);
        if with_files.is_empty() {
            continue;
        }
        // Disks are slow, and checks run on this thread.
        if let Err(error) = tokio::task::spawn_blocking(move || with_files.refresh()).await {
            tracing::error!(%error, "read files again");
        }
    }
}
