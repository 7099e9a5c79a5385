//! Which generations there are, which ports, and what may close when.
//!
//! The state behind [`crate::Proxy`], changed only under its lock and never while waiting. After
//! each change [`State::settle`] compares what is with what is wanted and takes the next steps, so no
//! order of calls can leave a port open that nobody wants, or close one that somebody does. It looks only
//! at the apps that were touched since: among 10,000 apps a change to one costs what it costs among ten.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    admission::{Gate, Sources},
    config::{AppConfig, Limits, NamesPolicy, Protocol},
    edge::{Edge, Visitors},
    generation::{Generation, Serving, Split},
    http::guard::{Around, Guards},
    metrics,
    port::{Claim, Claims, Slot},
    rate::Rates,
    room::Room,
    socket::PortSockets,
    tally::Tally,
    tls::{Tls, upstream::Transport},
};

mod audit;
mod compile;
mod door;
mod status;
mod tenancy;
#[cfg(test)]
mod tests;

pub use audit::{Drift, DriftKind};
pub use compile::Compiled;
pub(crate) use compile::{Compiler, OfApp, Running, check};
pub use door::DoorError;
pub(crate) use door::{DOOR_WORKER, Opened};
pub use status::{GenerationStatus, Phase, PortState, PortStatus, PrepareError, UnknownGeneration};
use tenancy::{Leading, Lease, Port, Rank, Stage};

pub(crate) type PortKey = (IpAddr, u16);

/// What the effects of a change are, for the caller to carry out.
pub(crate) enum Effect {
    /// Workers shall accept.
    Listen { slot: Arc<Slot>, sockets: Arc<PortSockets> },
    /// Workers shall let go, and then [`State::closed`] be called.
    Close { key: PortKey, slot: u64 },
    /// Sessions of this generation shall end.
    Cut { generation: u64 },
}

#[derive(Default)]
pub(crate) struct State {
    apps: BTreeMap<Arc<str>, App>,
    /// Boxed: a map that grows at its end is half empty.
    ports: BTreeMap<PortKey, Box<Port>>,
    cuts: Vec<Cut>,
    /// Apps that may have steps to take in the next settle.
    touched: BTreeSet<Arc<str>>,
    /// Ports that were bound for one of them, whatever became of the generation.
    bound: BTreeSet<PortKey>,
    /// Ports that some app is about to leave.
    closing: BTreeSet<PortKey>,
    /// Apps of which the status may differ from what [`State::take_changed`] was called for last.
    changed: BTreeSet<Arc<str>>,
    /// Whose files may change; several times the same where generations share it.
    tls: Vec<Weak<Tls>>,
    transports: Vec<Weak<Transport>>,
    guards: Vec<Weak<Guards>>,
    last_id: u64,
}

/// What was made from files.
pub(crate) struct WithFiles {
    tls: Vec<Arc<Tls>>,
    transports: Vec<Arc<Transport>>,
    guards: Vec<Arc<Guards>>,
}

impl WithFiles {
    pub(crate) fn is_empty(&self) -> bool {
        let WithFiles { tls, transports, guards } = self;
        tls.is_empty() && transports.is_empty() && guards.is_empty()
    }

    /// Reads again what has changed. Waits for the disk.
    pub(crate) fn refresh(&self) {
        self.tls.iter().for_each(|tls| tls.refresh());
        self.transports.iter().for_each(|transport| transport.refresh());
        self.guards.iter().for_each(|guards| guards.refresh());
    }
}

#[derive(Default)]
struct App {
    gate: Arc<Gate>,
    sources: Option<Arc<Sources>>,
    room: Option<Arc<Room>>,
    rates: Option<Arc<Rates>>,
    guards: Option<Arc<Guards>>,
    /// Boxed: a map of one has room for eleven.
    generations: BTreeMap<u64, Box<Entry>>,
    /// Two of them serve, and share the clients.
    shared: Option<Shares>,
}

/// How two generations share the clients of their app.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shares {
    pub(crate) newer: u64,
    /// Of the newer one, 1 to 99.
    pub(crate) percent: u8,
    pub(crate) older: u64,
}

struct Entry {
    generation: Arc<Generation>,
    /// What resolves and checks; let go when nothing can reach the generation.
    running: Vec<Arc<Running>>,
    phase: Phase,
    /// It served until another one took over, and keeps no port for that.
    is_superseded: bool,
    cut_at: Option<Instant>,
}

/// A removed generation whose sessions may live until `at`.
struct Cut {
    generation: Arc<Generation>,
    at: Instant,
}

impl App {
    /// What the ports of a new generation do before their protocol begins; the same as in the latest one where
    /// that is asked for.
    fn edges(&self, compiled: &Compiled) -> Result<Vec<Option<Arc<Edge>>>, String> {
        let Compiled { config, router, .. } = compiled;
        let before = |key: PortKey| {
            self.generations.values().rev().find_map(|entry| {
                let at = keys(&entry.generation.config).position(|known| known == key)?;
                entry.generation.edges[at].as_ref()
            })
        };
        // Beside HTTP ports the routes are for requests.
        let is_tcp = config.ports.iter().all(|port| port.protocol == Protocol::Tcp);
        let routes_by_name = is_tcp && !router.is_empty();
        let edges = config.ports.iter().zip(keys(config));
        edges.map(|(port, key)| Edge::compile(port, routes_by_name, before(key))).collect()
    }

    /// What its generations hold of a port, which keeps it from closing.
    fn held(&self, key: PortKey) -> HashSet<Claim> {
        let holding = self.generations.values().filter(|entry| entry.holds_ports());
        let claims = holding.filter_map(|entry| claims(&entry.generation, key));
        claims.flat_map(|claims| claims.names.iter().cloned()).collect()
    }

    /// Whether it has a name of a port only until the generation serves that is prepared.
    fn lets_go(&self, key: PortKey, claim: &Claim) -> bool {
        let newest = self.generations.values().rev().find(|entry| entry.holds_ports());
        newest.is_some_and(|newest| {
            let keeps = claims(&newest.generation, key).is_some_and(|claims| claims.names.contains(claim));
            newest.phase == Phase::Prepared && !keeps
        })
    }

    /// What those claim of it that shall have it.
    fn claims(&self, key: PortKey) -> Leading {
        let serving = self.generations.iter().filter(|(_, entry)| entry.phase == Phase::Serving);
        let serving = serving.filter_map(|(number, entry)| Some((*number, claims(&entry.generation, key)?)));
        let all = || serving.clone().map(|(_, claims)| claims);
        let mut leading = Leading { names: HashMap::new(), takes_all_alone: true };
        for (generation, claims) in serving.clone() {
            leading.takes_all_alone &= claims.takes_all_alone;
            for name in &claims.names {
                let is_whole = all().all(|claims| claims.names.contains(name));
                leading.names.insert(name.clone(), Rank { is_whole, generation });
            }
        }
        leading
    }

    /// Those of the latest generation go on where the bounds are the same.
    fn rates(&mut self, limits: &Limits) -> Option<Arc<Rates>> {
        let config = limits.rate.as_ref()?;
        let known = self.rates.take().filter(|known| known.config == *config);
        let rates = known.unwrap_or_else(|| Arc::new(Rates::new(config)));
        self.rates = Some(Arc::clone(&rates));
        Some(rates)
    }

    /// Who shall have a port: the generation that serves it, or the two that share it.
    fn wanted(&self, key: PortKey) -> Option<Serving> {
        let of = |entry: &Entry| {
            let at = keys(&entry.generation.config).position(|held| held == key)?;
            (entry.phase == Phase::Serving).then(|| Serving::new(&entry.generation, at))
        };
        let Some(Shares { newer, percent, older }) = self.shared else {
            return self.generations.values().map(Box::as_ref).find_map(of);
        };
        let [newer, older] = [newer, older].map(|number| of(self.generations.get(&number)?));
        match (newer, older) {
            (Some(newer), Some(older)) => {
                Some(Serving { split: Some(Split { percent, rest: Arc::new(older) }), ..newer })
            }
            (one, other) => one.or(other),
        }
    }

    fn percent(&self, number: u64, phase: Phase) -> u8 {
        match (phase, self.shared) {
            (Phase::Serving, Some(shares)) if shares.newer == number => shares.percent,
            (Phase::Serving, Some(shares)) => 100 - shares.percent,
            (Phase::Serving, None) => 100,
            (Phase::Prepared | Phase::Draining | Phase::Removing, _) => 0,
        }
    }
}

impl Entry {
    fn is_leaving(&self) -> bool {
        match self.phase {
            Phase::Prepared | Phase::Serving => false,
            Phase::Draining | Phase::Removing => true,
        }
    }

    /// Whether it keeps the ports it names from closing.
    fn holds_ports(&self) -> bool {
        match self.phase {
            Phase::Prepared => !self.is_superseded,
            Phase::Serving => true,
            Phase::Draining | Phase::Removing => false,
        }
    }
}

impl State {
    /// Whether one of the ports is just being closed: wait for that before preparing.
    pub(crate) fn is_closing_for_good(&self, config: &AppConfig) -> bool {
        keys(config).any(|key| self.ports.get(&key).is_some_and(|port| port.stage == Stage::Last))
    }

    /// Adds a generation and binds what it needs. Doing it again changes nothing.
    pub(crate) fn prepare(
        &mut self,
        compiled: &Compiled,
        compiler: &Compiler<'_>,
    ) -> Result<(), PrepareError> {
        let config = &compiled.config;
        let known = self.entry(&config.app, config.generation);
        if known.is_some_and(|entry| entry.generation.digest != compiled.digest) {
            let AppConfig { app, generation, .. } = config;
            return Err(PrepareError::Invalid(format!(
                "generation {generation} of `{app}` exists and is another one"
            )));
        }
        let is_alive = known.is_some_and(|entry| !entry.running.is_empty() && entry.holds_ports());
        let is_leaving = known.is_some_and(|entry| !entry.running.is_empty() && entry.is_leaving());
        self.check_owners(compiled, compiler.names)?;
        self.touched.insert(Arc::clone(&config.app));
        self.bind(compiled, compiler.workers)?;
        if is_alive {
            return Ok(());
        }
        let app = self.apps.entry(Arc::clone(&config.app)).or_default();
        // It is served until its ports close, so it is whole: it stays, and keeps count of its sessions.
        if is_leaving && let Some(entry) = app.generations.get_mut(&config.generation) {
            (entry.phase, entry.is_superseded, entry.cut_at) = (Phase::Prepared, false, None);
            return Ok(());
        }
        let edges = app.edges(compiled).map_err(PrepareError::Invalid)?;
        for tls in edges.iter().flatten().filter_map(|edge| edge.tls.as_ref()) {
            self.tls.push(Arc::downgrade(tls));
        }
        let visitors = Visitors::compile(config, &mut app.sources);
        let around = Around {
            app: &config.app,
            signers: compiler.signers,
            tasks: compiler.tasks,
            runtime: compiler.runtime,
        };
        let guards = Guards::compile(&config.access, app.guards.as_ref(), &around);
        let guards = guards.map_err(PrepareError::Invalid)?;
        self.guards.extend(guards.iter().filter(|guards| guards.has_files()).map(Arc::downgrade));
        app.guards.clone_from(&guards);
        let limits = &config.limits;
        let of_app = OfApp {
            gate: Arc::clone(&app.gate),
            room: Room::is_bounded(limits).then(|| Arc::clone(app.room.get_or_insert_default())),
            rates: app.rates(limits),
            guards,
            visitors,
            edges,
        };
        let running: Vec<_> = app.generations.values().flat_map(|entry| entry.running.clone()).collect();
        self.last_id += 1;
        let (generation, running) = compile::compile(self.last_id, compiled, &running, of_app, compiler)
            .map_err(PrepareError::Invalid)?;
        for pool in &generation.pools {
            let of_checks = pool.upstream.transport();
            self.transports.extend(pool.transport.iter().chain(of_checks).map(Arc::downgrade));
        }
        let entry = Entry { generation, running, phase: Phase::Prepared, is_superseded: false, cut_at: None };
        app.generations.insert(config.generation, Box::new(entry));
        Ok(())
    }

    /// Lets a prepared generation take every port it names, and its app's others go.
    pub(crate) fn serve(
        &mut self,
        app: &str,
        number: u64,
        compiler: &Compiler<'_>,
    ) -> Result<Vec<Effect>, UnknownGeneration> {
        self.make_serve(app, &[number], None, compiler)
    }

    /// Lets two prepared generations share the clients, on the ports that both name.
    pub(crate) fn share(
        &mut self,
        app: &str,
        shares: Shares,
        compiler: &Compiler<'_>,
    ) -> Result<Vec<Effect>, UnknownGeneration> {
        self.make_serve(app, &[shares.newer, shares.older], Some(shares), compiler)
    }

    fn make_serve(
        &mut self,
        app: &str,
        numbers: &[u64],
        shares: Option<Shares>,
        compiler: &Compiler<'_>,
    ) -> Result<Vec<Effect>, UnknownGeneration> {
        let mut ports = BTreeSet::new();
        for &number in numbers {
            let entry = self.entry(app, number).ok_or(UnknownGeneration(number))?;
            let (compiled, phase) = (entry.generation.compiled(), entry.phase);
            self.touched.insert(Arc::clone(&compiled.config.app));
            // A generation that came back after its ports were closed or its checks stopped needs them again.
            if phase != Phase::Serving
                && let Err(error) = self.prepare(&compiled, compiler)
            {
                tracing::error!(app, generation = number, %error, "serve");
                return Err(UnknownGeneration(number));
            }
            ports.extend(keys(&compiled.config));
        }
        let record = self.apps.get_mut(app).ok_or(UnknownGeneration(numbers[0]))?;
        record.shared = shares;
        for (number, entry) in &mut record.generations {
            if numbers.contains(number) {
                entry.phase = Phase::Serving;
                entry.is_superseded = false;
                entry.cut_at = None;
            } else if entry.phase == Phase::Serving {
                entry.phase = Phase::Prepared;
                entry.is_superseded = true;
            }
        }
        if let Some(entry) = record.generations.get(&numbers[0]) {
            metrics::generation(&entry.generation.config.app, numbers[0]);
        }
        Ok(ports.into_iter().filter_map(|port| self.shift(app, port)).collect())
    }

    /// The shift itself: one store per port.
    fn shift(&mut self, app: &str, key: PortKey) -> Option<Effect> {
        let record = self.apps.get(app)?;
        let (serving, leading) = (record.wanted(key)?, record.claims(key));
        let app = Arc::clone(&serving.generation.config.app);
        let port = self.ports.get_mut(&key)?;
        let options =
            tenancy::at(&serving.generation, key).map(|config| config.socket.clone()).unwrap_or_default();
        port.set_options(&options);
        let apps = &self.apps;
        let lets_go =
            |other: &str, claim: &Claim| apps.get(other).is_some_and(|other| other.lets_go(key, claim));
        self.touched.extend(port.lead(serving, leading, lets_go));
        note_closing(&mut self.closing, key, port);
        metrics::listener(&app, key.1, true, false);
        if port.stage != Stage::Bound {
            return None;
        }
        if let Err(error) = port.sockets.listen(options.backlog) {
            tracing::error!(address = %key.0, port = key.1, %error, "listen");
            return None;
        }
        port.stage = Stage::Listening;
        Some(Effect::Listen { slot: Arc::clone(&port.slot), sockets: Arc::clone(&port.sockets) })
    }

    pub(crate) fn drain(&mut self, app: &str, number: u64) -> Result<(), UnknownGeneration> {
        let entry = self.entry_mut(app, number).ok_or(UnknownGeneration(number))?;
        if entry.phase != Phase::Removing {
            entry.phase = Phase::Draining;
        }
        self.unshare(app, number);
        Ok(())
    }

    pub(crate) fn remove(
        &mut self,
        app: &str,
        number: u64,
        cut_at: Option<Instant>,
    ) -> Result<(), UnknownGeneration> {
        let entry = self.entry_mut(app, number).ok_or(UnknownGeneration(number))?;
        entry.phase = Phase::Removing;
        // Asking again may shorten the time but not lengthen it.
        entry.cut_at = [entry.cut_at, cut_at].into_iter().flatten().min();
        self.unshare(app, number);
        Ok(())
    }

    /// One of two that shared goes: the other one has all clients from now on.
    fn unshare(&mut self, app: &str, number: u64) {
        let Some(record) = self.apps.get_mut(app) else { return };
        let Some(Shares { newer, older, .. }) = record.shared else { return };
        if number != newer && number != older {
            return;
        }
        record.shared = None;
        let other = if number == newer { older } else { newer };
        let ports: Vec<PortKey> = record
            .generations
            .get(&other)
            .map(|entry| keys(&entry.generation.config).collect())
            .unwrap_or_default();
        for port in ports {
            // It listens already, so there is nothing more to do.
            let _listens = self.shift(app, port);
        }
    }

    /// Takes every step that is due at `now`. Calling it again changes nothing.
    pub(crate) fn settle(&mut self, now: Instant, horizon: Duration) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (key, app) in self.due() {
            effects.extend(self.settle_port(key, &app, now, horizon));
            self.changed.insert(app);
        }
        self.forget(now);
        self.changed.append(&mut self.touched);
        self.bound.clear();
        self.cuts.retain(|cut| cut.generation.pins.count() > 0);
        for Cut { generation, .. } in self.cuts.extract_if(.., |cut| cut.at <= now) {
            metrics::drain_forced(&generation.config.app);
            effects.push(Effect::Cut { generation: generation.uid });
        }
        effects
    }

    /// Where a step may be due: the ports of apps that were touched, and those that somebody leaves.
    fn due(&self) -> BTreeSet<(PortKey, Arc<str>)> {
        let mut due = BTreeSet::new();
        for app in &self.touched {
            let entries = self.apps.get(app).into_iter().flat_map(|app| app.generations.values());
            let own = entries.flat_map(|entry| keys(&entry.generation.config));
            let has = |key: &PortKey| self.ports.get(key).is_some_and(|port| port.of(app).is_some());
            let held = own.chain(self.bound.iter().copied()).filter(has);
            due.extend(held.map(|key| (key, Arc::clone(app))));
        }
        for key in &self.closing {
            let closing = self.ports.get(key).into_iter().flat_map(|port| port.closing());
            due.extend(closing.map(|(app, ..)| (*key, Arc::clone(app))));
        }
        #[cfg(test)]
        assert_eq!(due, self.due_of_all(), "a port was forgotten");
        due
    }

    /// The same, by looking at every port.
    #[cfg(test)]
    fn due_of_all(&self) -> BTreeSet<(PortKey, Arc<str>)> {
        let of_port = |(key, port): (&PortKey, &Port)| {
            let touched = self.touched.iter().filter(|app| port.of(app).is_some());
            let closing = port.closing().map(|(app, ..)| app);
            touched.chain(closing).map(|app| (*key, Arc::clone(app))).collect::<Vec<_>>()
        };
        self.ports.iter().map(|(key, port)| (key, &**port)).flat_map(of_port).collect()
    }

    fn settle_port(
        &mut self,
        key: PortKey,
        app: &Arc<str>,
        now: Instant,
        horizon: Duration,
    ) -> Option<Effect> {
        let port = self.ports.get_mut(&key)?;
        if self.touched.contains(app) {
            port.hold(app, self.apps.get(app).map(|app| app.held(key)).unwrap_or_default());
        }
        let closes = port.settle(app, now, horizon);
        note_closing(&mut self.closing, key, port);
        let slot = port.slot.id;
        if port.tenancies.is_empty() && port.stage == Stage::Bound {
            self.ports.remove(&key);
        } else if port.of(app).is_none() {
            self.touched.insert(Arc::clone(app));
        }
        closes.then_some(Effect::Close { key, slot })
    }

    /// Lets go of what nothing can reach any more.
    fn forget(&mut self, now: Instant) {
        let State { apps, ports, cuts, touched, .. } = self;
        let is_served = |generation: &Generation| {
            let app = &generation.config.app;
            let of = |key| ports.get(&key)?.of(app);
            keys(&generation.config).any(|key| of(key).is_some_and(|tenancy| tenancy.serves(generation)))
        };
        for name in &*touched {
            let Some(app) = apps.get_mut(name) else { continue };
            app.generations.retain(|_, entry| {
                if entry.holds_ports() || is_served(&entry.generation) {
                    return true;
                }
                match entry.phase {
                    Phase::Prepared | Phase::Serving => true,
                    Phase::Draining => {
                        entry.running.clear();
                        true
                    }
                    Phase::Removing => {
                        let generation = Arc::clone(&entry.generation);
                        cuts.extend(entry.cut_at.map(|at| Cut { generation, at: at.max(now) }));
                        false
                    }
                }
            });
            if app.generations.is_empty() {
                apps.remove(name);
            }
        }
    }

    /// The last thing before a port closes: nobody begins to connect any more.
    pub(crate) fn turn_away(&self, key: PortKey) {
        if let Some(port) = self.ports.get(&key) {
            port.sockets.turn_away();
        }
    }

    /// The workers have let go of a port.
    pub(crate) fn closed(&mut self, key: PortKey, now: Instant) {
        let Some(port) = self.ports.remove(&key) else { return };
        self.closing.remove(&key);
        for (app, since, _) in port.closing() {
            metrics::listener(app, key.1, false, false);
            metrics::drained(app, now.saturating_duration_since(since));
        }
        self.touched.extend(port.tenancies.into_keys());
    }

    /// Closes every port now, whoever wants it.
    pub(crate) fn close_all(&mut self, now: Instant) -> Vec<Effect> {
        self.ports.retain(|_, port| port.stage != Stage::Bound);
        self.ports
            .iter_mut()
            .filter(|(_, port)| port.stage != Stage::Last)
            .map(|(key, port)| {
                port.close_now(now);
                note_closing(&mut self.closing, *key, port);
                Effect::Close { key: *key, slot: port.slot.id }
            })
            .collect()
    }

    /// When [`State::settle`] has something to do next, unless something is asked before.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let ports = self.closing.iter().filter_map(|key| self.ports.get(key));
        let open = ports.filter(|port| port.stage != Stage::Last);
        let closes = open.flat_map(|port| port.closing().map(|(_, _, until)| until));
        closes.chain(self.cuts.iter().map(|cut| cut.at)).min()
    }

    pub(crate) fn take_changed(&mut self) -> BTreeSet<Arc<str>> {
        std::mem::take(&mut self.changed)
    }

    pub(crate) fn status(&self, now: Instant) -> Vec<GenerationStatus> {
        self.apps.values().flat_map(|app| self.generations_of(app, now)).collect()
    }

    pub(crate) fn status_of<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
        now: Instant,
    ) -> Vec<GenerationStatus> {
        let apps = names.into_iter().filter_map(|name| self.apps.get(name));
        apps.flat_map(|app| self.generations_of(app, now)).collect()
    }

    fn generations_of<'a>(
        &'a self,
        app: &'a App,
        now: Instant,
    ) -> impl Iterator<Item = GenerationStatus> + 'a {
        app.generations.values().map(move |entry| self.generation_status(app, entry, now))
    }

    fn generation_status(&self, app: &App, entry: &Entry, now: Instant) -> GenerationStatus {
        let config = &entry.generation.config;
        let ports = keys(config).filter_map(|key| {
            let port = self.ports.get(&key)?;
            let state = match (port.stage, port.of(&config.app)?.stage) {
                (Stage::Last, _) => PortState::Closing { left: Duration::ZERO },
                (Stage::Bound, _) => PortState::Bound,
                (Stage::Listening, Lease::Waiting | Lease::Serving) => PortState::Listening,
                (Stage::Listening, Lease::Closing { until, .. }) => {
                    PortState::Closing { left: until.saturating_duration_since(now) }
                }
            };
            Some(PortStatus { address: key.0, port: key.1, state })
        });
        GenerationStatus {
            app: Arc::clone(&config.app),
            generation: config.generation,
            phase: entry.phase,
            percent: app.percent(config.generation, entry.phase),
            digest: self.served_digest(entry),
            ports: ports.collect(),
            targets: entry.generation.pools.iter().flat_map(|pool| pool.upstream.status()).collect(),
            pins: entry.generation.pins.count(),
            tally: entry.generation.tallies.sum(),
        }
    }

    /// Everything whose files may have changed.
    pub(crate) fn with_files(&mut self) -> WithFiles {
        WithFiles {
            tls: living(&mut self.tls),
            transports: living(&mut self.transports),
            guards: living(&mut self.guards),
        }
    }

    pub(crate) fn apps(&self) -> impl Iterator<Item = &Arc<str>> {
        self.apps.keys()
    }

    /// Open connections of an app; `None`: there is no such app.
    pub(crate) fn connections(&self, app: &str) -> Option<usize> {
        Some(self.apps.get(app)?.gate.count())
    }

    pub(crate) fn tally(&self, app: &str, number: u64) -> Option<Tally> {
        Some(self.entry(app, number)?.generation.tallies.sum())
    }

    pub(crate) fn has_ports(&self) -> bool {
        !self.ports.is_empty()
    }

    pub(crate) fn slot_id(&self, key: PortKey) -> Option<u64> {
        self.ports.get(&key).map(|port| port.slot.id)
    }

    fn check_owners(&self, compiled: &Compiled, names: NamesPolicy) -> Result<(), PrepareError> {
        let Compiled { config, claims, .. } = compiled;
        for ((key, wanted), claims) in keys(config).zip(&config.ports).zip(&**claims) {
            let Some(port) = self.ports.get(&key) else { continue };
            let others = |other: &str| {
                let entries = self.apps.get(other).into_iter().flat_map(|app| app.generations.values());
                let holding = entries.filter(|entry| entry.holds_ports());
                holding.filter_map(|entry| tenancy::at(&entry.generation, key)).collect()
            };
            let lets_go = |other: &str, claim: &Claim| match names {
                NamesPolicy::FirstHolder => {
                    self.apps.get(other).is_some_and(|other| other.lets_go(key, claim))
                }
                NamesPolicy::NewestGeneration => true,
            };
            if let Some(why) = port.refuses(&config.app, wanted, claims, others, lets_go) {
                return Err(PrepareError::Taken(why));
            }
        }
        Ok(())
    }

    /// Binds the ports that are not there yet: all of them or none.
    fn bind(&mut self, compiled: &Compiled, workers: usize) -> Result<(), PrepareError> {
        let Compiled { config, claims, .. } = compiled;
        self.bound.extend(keys(config));
        let mut fresh = Vec::new();
        for key in keys(config).filter(|key| !self.ports.contains_key(key)) {
            let (address, port) = key;
            let is_ours = self.ports.keys().any(|&(_, known)| known == port);
            let bind = if is_ours { PortSockets::bind_beside } else { PortSockets::bind };
            let sockets = bind(address, port, workers).map_err(|source| PrepareError::Bind {
                address,
                port,
                source,
                owner: None,
            })?;
            fresh.push((key, sockets));
        }
        for ((address, port), sockets) in fresh {
            self.last_id += 1;
            let slot = Slot { id: self.last_id, address, port, tenants: Arc::default() };
            self.ports.insert((address, port), Box::new(Port::new(slot, sockets)));
        }
        for (key, claims) in keys(config).zip(&**claims) {
            let mut holds = self.apps.get(&config.app).map(|app| app.held(key)).unwrap_or_default();
            holds.extend(claims.names.iter().cloned());
            if let Some(port) = self.ports.get_mut(&key) {
                port.hold(&config.app, holds);
            }
        }
        Ok(())
    }

    fn entry(&self, app: &str, number: u64) -> Option<&Entry> {
        self.apps.get(app)?.generations.get(&number).map(Box::as_ref)
    }

    /// To change it.
    fn entry_mut(&mut self, app: &str, number: u64) -> Option<&mut Entry> {
        let (name, _) = self.apps.get_key_value(app)?;
        self.touched.insert(Arc::clone(name));
        self.apps.get_mut(app)?.generations.get_mut(&number).map(Box::as_mut)
    }

    #[cfg(test)]
    pub(crate) fn generation(&self, app: &str, number: u64) -> Option<Arc<Generation>> {
        self.entry(app, number).map(|entry| Arc::clone(&entry.generation))
    }
}

fn keys(config: &AppConfig) -> impl Iterator<Item = PortKey> + '_ {
    config.ports.iter().map(|port| (port.address, port.port))
}

fn note_closing(closing: &mut BTreeSet<PortKey>, key: PortKey, port: &Port) {
    match port.closing().next() {
        Some(_) => drop(closing.insert(key)),
        None => drop(closing.remove(&key)),
    }
}

/// Those that somebody still has, each once.
fn living<T>(list: &mut Vec<Weak<T>>) -> Vec<Arc<T>> {
    let mut all: Vec<Arc<T>> = list.iter().filter_map(Weak::upgrade).collect();
    all.sort_by_key(Arc::as_ptr);
    all.dedup_by(|one, other| Arc::ptr_eq(one, other));
    *list = all.iter().map(Arc::downgrade).collect();
    all
}

fn claims(generation: &Generation, key: PortKey) -> Option<&Claims> {
    generation.claims.get(keys(&generation.config).position(|known| known == key)?)
}
