//! The task behind one upstream: follows its names, checks its endpoints, publishes what may be chosen.
//!
//! One task for the whole pool, whatever its size. It waits for the next answer, result or due check, takes it in, and
//! publishes. What an answer means is decided in `resolve`, what a result means in `health`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Endpoint, EndpointSet, EndpointStatus, Place, Resolution, TargetStatus, Upstream,
    balance::Layout,
    breaker::{self, Change, Circuit},
    health::{self, Health},
    outlier::{self, Ejection},
    probe::{self, Probe},
    record::Record,
    resolve::{self, Found, Kind, Known, Question, Resolver, Service},
    select::{self, Candidate, Selection},
};
use crate::{
    address::{self, Address},
    config::{CheckConfig, CheckKind, PoolConfig, ProxyVersion, ResolveMode, TargetConfig, UpstreamProtocol},
    metrics,
    tls::upstream::Transport,
};

/// Checks of one upstream at the same time. Further ones start when one of these is done.
const CHECKS_PER_UPSTREAM_MAX: usize = 64;
/// Checks of the process at the same time: a boot with 10,000 apps must not use up the file descriptors. Further ones
/// wait here, before their timeout starts to count.
static CHECKS: Semaphore = Semaphore::const_new(512);

pub(super) struct Keeper {
    upstream: Arc<Upstream>,
    app: Arc<str>,
    pool: String,
    mode: ResolveMode,
    check: CheckConfig,
    /// Checks begin like every other connection.
    send_proxy: Option<ProxyVersion>,
    config: PoolConfig,
    layout: Option<Layout>,
    transport: Option<Arc<Transport>>,
    workers: usize,
    /// Raised by workers when something failed too often.
    alarm: Arc<Notify>,
    /// How many are out because of that.
    ejected: usize,
    targets: Vec<Target>,
    /// By address: targets may share an endpoint, which is still checked and chosen once.
    members: BTreeMap<Address, Member>,
    /// When to check whom next. Every checked member is either here or in `checking`.
    due: BTreeSet<(Instant, Address)>,
    /// Whose check is under way. An endpoint may leave and come back meanwhile; it is still checked once.
    checking: HashSet<Address>,
    random: RandomState,
    /// What the workers choose from now.
    published: Option<Selection>,
    /// Its tasks feed the names.
    _resolver: Option<Arc<Resolver>>,
}

/// A target of the configuration, and what it stands for at the moment.
struct Target {
    written: Arc<str>,
    host: Arc<str>,
    port: u16,
    weight: u32,
    is_backup: bool,
    is_near: bool,
    /// `None` for an address, which stands for itself.
    name: Option<watch::Receiver<Known>>,
    resolution: Resolution,
    spots: Vec<Spot>,
}

/// One address that a target stands for, and its part there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Spot {
    address: Address,
    /// Of the target.
    host: u16,
    /// Only the lowest that has somebody fit is used.
    priority: u16,
    family: Preference,
    weight: u32,
}

/// What the family of an address means for its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Preference {
    /// It has only this one.
    Alone,
    /// It has both, and this one carries as the other does.
    Alike,
    First,
    /// It waits until nobody of the other family is fit.
    Second,
}

struct Member {
    health: Health,
    /// Since when it may take traffic; `None` = since always, so it does not start slowly.
    fit_since: Option<Instant>,
    /// Of the first target that has this address.
    host: Arc<str>,
    target: Arc<str>,
    record: Option<Arc<Record>>,
    ejection: Ejection,
    circuit: Circuit,
}

impl Keeper {
    /// Publishes what is known without waiting.
    pub(super) fn new(
        upstream: Arc<Upstream>,
        Place { app, pool, zone, workers }: Place<'_>,
        config: &PoolConfig,
        layout: Option<Layout>,
        mut resolver: Option<Arc<Resolver>>,
    ) -> Self {
        let zone = zone.filter(|_| config.balance.zone_aware);
        let mut watch = |host: &str, kind: Kind| {
            resolver.get_or_insert_with(Resolver::shared).watch(Question::new(host, kind, &config.resolve))
        };
        let mut keeper = Self {
            transport: upstream.transport().cloned(),
            upstream,
            app: app.into(),
            pool: pool.to_owned(),
            mode: config.resolve.mode,
            check: config.check.clone(),
            send_proxy: config.send_proxy,
            config: config.clone(),
            layout,
            workers,
            alarm: Arc::default(),
            ejected: 0,
            targets: config.targets.iter().map(|target| Target::new(target, zone, &mut watch)).collect(),
            members: BTreeMap::new(),
            due: BTreeSet::new(),
            checking: HashSet::new(),
            random: RandomState::new(),
            published: None,
            _resolver: resolver,
        };
        for target in &mut keeper.targets {
            target.follow(keeper.mode);
        }
        keeper.reconcile();
        // Who was there from the beginning has nobody to be slower than.
        keeper.members.values_mut().for_each(|member| member.fit_since = None);
        keeper.publish();
        keeper
    }

    /// Whether nothing can ever change.
    pub(super) fn is_settled(&self) -> bool {
        self.due.is_empty()
            && self.config.breaker.is_none()
            && self.targets.iter().all(|target| target.name.is_none())
    }

    pub(super) async fn run(mut self, stop: CancellationToken, changed: Arc<dyn Fn() + Send + Sync>) {
        let names = self.targets.iter().enumerate();
        let mut news: FuturesUnordered<_> =
            names.filter_map(|(target, of)| Some(next_answer(of.name.clone()?, target))).collect();
        let mut checks = FuturesUnordered::new();
        let alarm = Arc::clone(&self.alarm);
        loop {
            while checks.len() < CHECKS_PER_UPSTREAM_MAX
                && let Some((address, probe)) = self.next_check()
            {
                checks.push(check(address, probe));
            }
            let due = self.due.first().filter(|_| checks.len() < CHECKS_PER_UPSTREAM_MAX).map(|(at, _)| *at);
            let due = due.into_iter().chain(self.next_start()).chain(self.next_look()).min();
            let timer = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now)).await };
            // All are cancel-safe: a token, two sets that keep what is unfinished, a notice and a timer.
            let is_news = tokio::select! {
                () = stop.cancelled() => return,
                Some((name, target)) = news.next() => {
                    self.targets[target].follow(self.mode);
                    news.push(next_answer(name, target));
                    self.reconcile();
                    true
                }
                Some((address, result)) = checks.next() => {
                    let mut is_news = self.record(address, result);
                    // A burst of results is published once and not one by one.
                    while let Some(Some((address, result))) = checks.next().now_or_never() {
                        is_news |= self.record(address, result);
                    }
                    is_news
                }
                () = alarm.notified() => self.look(),
                // A check, which is no news yet, a step of a slow start, or the end of an ejection.
                () = timer, if due.is_some() => self.look() | self.is_starting(),
            };
            if is_news && self.publish() {
                changed();
            }
        }
    }

    /// Brings the members in line with the addresses of the targets. Those that stay keep their health.
    fn reconcile(&mut self) {
        let mut before = std::mem::take(&mut self.members);
        let is_checked = self.is_checked();
        for target in &self.targets {
            for Spot { address, .. } in &target.spots {
                self.members.entry(address.clone()).or_insert_with(|| {
                    if let Some(member) = before.remove(address) {
                        return member;
                    }
                    if is_checked && !self.checking.contains(address) {
                        self.due.insert((Instant::now(), address.clone()));
                    }
                    Member {
                        health: if is_checked { Health::default() } else { Health::unchecked() },
                        fit_since: (!is_checked).then(Instant::now),
                        host: target.host.clone(),
                        target: target.written.clone(),
                        record: Record::of(&self.config, self.workers, &self.alarm),
                        ejection: Ejection::default(),
                        circuit: Circuit::default(),
                    }
                });
            }
        }
        self.ejected = self.members.values().filter(|member| member.ejection.is_out()).count();
        self.due.retain(|(_, address)| self.members.contains_key(address));
    }

    /// The check that is due now, if any.
    fn next_check(&mut self) -> Option<(Address, Probe)> {
        self.due.first().filter(|(at, _)| *at <= Instant::now())?;
        let (_, address) = self.due.pop_first()?;
        self.checking.insert(address.clone());
        let member = self.members.get(&address).expect("whoever is due is a member");
        let CheckConfig { kind, port, timeout, .. } = &self.check;
        let probed = match &address {
            Address::Inet(of) => SocketAddr::new(of.ip(), port.unwrap_or(of.port())).into(),
            Address::Unix(_) => address.clone(),
        };
        let host = member.host.clone();
        Some((
            address,
            Probe {
                kind: kind.clone(),
                address: probed,
                host,
                timeout: *timeout,
                send_proxy: self.send_proxy,
                transport: self.transport.clone(),
            },
        ))
    }

    /// When to look at what workers count, if nobody raises the alarm before.
    fn next_look(&self) -> Option<Instant> {
        if self.ejected == 0 && self.config.breaker.is_none() {
            return None;
        }
        let now = Instant::now();
        let circuit = |member: &Member| {
            let is_broken = self.config.breaker.is_some() && member.record.is_some();
            is_broken.then(|| member.circuit.next().unwrap_or(now))
        };
        self.members.values().flat_map(|member| [member.ejection.until(), circuit(member)]).flatten().min()
    }

    /// Takes out who fails, lets back in whose time is over, and moves the circuits on. Whether any of it happened.
    fn look(&mut self) -> bool {
        let (app, pool, now, all) = (&self.app, &self.pool, Instant::now(), self.members.len());
        let mut is_news = false;
        for (address, member) in &mut self.members {
            let Some(record) = &member.record else { continue };
            if member.ejection.end(now) {
                record.forget_failures();
                member.fit_since = Some(now);
                self.ejected -= 1;
                is_news = true;
                info!(%app, pool, %address, "endpoint may serve again");
            }
            let outlier = &self.config.outlier;
            if record.has_failed()
                && !member.ejection.is_out()
                && outlier::may_eject(self.ejected, all, outlier)
            {
                member.ejection.begin(outlier, now);
                self.ejected += 1;
                is_news = true;
                metrics::target_ejected(app, &member.target);
                warn!(%app, pool, %address, failures = outlier.consecutive_failures, "endpoint taken out");
            }
            let Some(breaker) = &self.config.breaker else { continue };
            match member.circuit.look(record.totals(), breaker, now) {
                Change::None => continue,
                Change::Opened => warn!(%app, pool, %address, "circuit open: too many errors"),
                Change::HalfOpened => record.allow_trials(breaker::TRIALS),
                Change::Closed => {
                    member.fit_since = Some(now);
                    info!(%app, pool, %address, "circuit closed again");
                }
            }
            is_news = true;
            metrics::circuit(app, &member.target, member.circuit.state.number());
        }
        is_news
    }

    /// Whether the result changed anything that users see.
    fn record(&mut self, address: Address, result: Result<(), String>) -> bool {
        self.checking.remove(&address);
        metrics::target_checked(&self.app, result.is_ok());
        // It may have left while its check was under way.
        let Some(Member { health, fit_since, .. }) = self.members.get_mut(&address) else { return false };
        let before = health.available();
        let is_news = health.record(result, self.check.rise, self.check.fall);
        let now = Instant::now();
        if before != health.available() {
            *fit_since = Some(now);
        }
        let random = self.random.hash_one((&address, now));
        self.due
            .insert((now + health::pause(self.check.interval, before.is_none(), random), address.clone()));
        let (app, pool) = (&self.app, &self.pool);
        match (before, health.available(), health.last_error()) {
            (before, after, _) if before == after => {}
            // What every endpoint does when its app starts.
            (None, Some(true), _) => debug!(%app, pool, %address, "endpoint available"),
            (_, _, None) => info!(%app, pool, %address, "endpoint available again"),
            (_, _, Some(error)) => warn!(%app, pool, %address, error, "endpoint unavailable"),
        }
        is_news
    }

    /// Whether somebody gets less than its share because it is new.
    fn is_starting(&self) -> bool {
        !self.config.balance.slow_start.is_zero()
            && self.members.values().any(|member| member.fit_since.is_some())
    }

    /// When the next endpoint that starts slowly gets the next tenth of its share. Forgets those that have all.
    fn next_start(&mut self) -> Option<Instant> {
        let slow_start = self.config.balance.slow_start;
        if slow_start.is_zero() {
            return None;
        }
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for member in self.members.values_mut() {
            let Some(since) = member.fit_since else { continue };
            let mut steps = (1..=select::FULL).map(|tenth| since + slow_start * tenth / select::FULL);
            match steps.find(|at| *at > now) {
                Some(step) => next = Some(next.map_or(step, |next| next.min(step))),
                None => member.fit_since = None,
            }
        }
        next
    }

    /// Whether there was anything new to publish.
    fn publish(&mut self) -> bool {
        let (endpoints, selection) = self.choose();
        let Upstream { set: old_set, status: old_status, transport: _ } = &*self.upstream;
        let old = old_set.load();
        // An equal set is not published again: workers keep their state by the identity of the set.
        let is_same_set = old.endpoints == endpoints && self.published.as_ref() == Some(&selection);
        if !is_same_set {
            if selection.is_panic && !self.published.as_ref().is_some_and(|before| before.is_panic) {
                let (app, pool) = (&self.app, &self.pool);
                warn!(%app, pool, "too few endpoints are fit: all of them are used");
            }
            let mut set = EndpointSet::selected(endpoints, selection.clone());
            if let Some(layout) = &self.layout {
                let is_same_layout = old.endpoints == set.endpoints && old.available == set.available;
                set = if is_same_layout { set.laid_out_like(&old) } else { set.laid_out(layout) };
            }
            old_set.store(Arc::new(set));
            self.published = Some(selection);
        }
        let status = self.status();
        let is_same_status = **old_status.load() == status;
        if !is_same_status {
            for TargetStatus { target, endpoints, .. } in status.iter().filter(|_| self.is_checked()) {
                let is_healthy = endpoints.iter().any(|endpoint| endpoint.available == Some(true));
                metrics::target_healthy(&self.app, target, is_healthy);
            }
            old_status.store(Arc::new(status));
        }
        !(is_same_set && is_same_status)
    }

    fn is_checked(&self) -> bool {
        self.check.kind != CheckKind::None
    }

    /// Every endpoint once, and who of them may be chosen now.
    fn choose(&self) -> (Vec<Endpoint>, Selection) {
        let now = Instant::now();
        let mut seen = HashSet::new();
        let mut endpoints = Vec::with_capacity(self.members.len());
        let mut candidates = Vec::with_capacity(self.members.len());
        for target in &self.targets {
            let lowest = self.lowest_priority(target);
            let first = self.hosts_reached_first(target);
            for &Spot { ref address, host, priority, family, weight } in &target.spots {
                if !seen.insert(address) {
                    continue;
                }
                let member = &self.members[address];
                let waits = family == Preference::Second && first.contains(&host);
                candidates.push(Candidate {
                    weight,
                    is_backup: target.is_backup || priority > lowest || waits,
                    is_near: target.is_near,
                    is_passing: member.health.available(),
                    is_ejected: member.ejection.is_out(),
                    is_open: member.circuit.state.is_open(),
                    tenths: self.tenths(member, now),
                });
                endpoints.push(Endpoint {
                    record: member.record.clone(),
                    is_on_trial: member.circuit.state.is_half_open(),
                    dual_stack: (family != Preference::Alone).then_some(host),
                    ..Endpoint::new(address.clone(), target.written.clone(), weight)
                });
            }
        }
        (endpoints, select::select(&candidates, self.config.balance.panic_threshold))
    }

    /// The lowest priority of a service with somebody who may serve; those above wait for all of it to be gone.
    fn lowest_priority(&self, target: &Target) -> u16 {
        let fit = target.spots.iter().filter(|spot| self.is_fit(spot)).map(|spot| spot.priority).min();
        fit.or_else(|| target.spots.iter().map(|spot| spot.priority).min()).unwrap_or(0)
    }

    /// The hosts that are used by their preferred family: somebody of it may serve, or nobody at all.
    fn hosts_reached_first(&self, target: &Target) -> HashSet<u16> {
        if target.spots.iter().all(|spot| spot.family != Preference::Second) {
            return HashSet::new();
        }
        let fit_in = |family: Preference| -> HashSet<u16> {
            let spots = target.spots.iter().filter(|spot| spot.family == family && self.is_fit(spot));
            spots.map(|spot| spot.host).collect()
        };
        let (first, second) = (fit_in(Preference::First), fit_in(Preference::Second));
        let all = target.spots.iter().map(|spot| spot.host);
        all.filter(|host| first.contains(host) || !second.contains(host)).collect()
    }

    fn is_fit(&self, spot: &Spot) -> bool {
        let member = &self.members[&spot.address];
        member.health.available() == Some(true)
            && !member.ejection.is_out()
            && !member.circuit.state.is_open()
    }

    /// How much of its share a member gets.
    fn tenths(&self, member: &Member, now: Instant) -> u32 {
        let slow_start = self.config.balance.slow_start;
        match member.fit_since {
            Some(since) if now < since + slow_start => {
                let tenths = (now - since).as_millis() * u128::from(select::FULL) / slow_start.as_millis();
                u32::try_from(tenths).unwrap_or(select::FULL).clamp(1, select::FULL)
            }
            Some(_) | None => select::FULL,
        }
    }

    fn status(&self) -> Vec<TargetStatus> {
        let endpoint = |address: &Address| {
            let Member { health, ejection, .. } = &self.members[address];
            EndpointStatus {
                address: address.clone(),
                available: health.available(),
                last_error: health.last_error().map(str::to_owned),
                ejected: ejection.is_out(),
            }
        };
        let targets = self.targets.iter().map(|target| TargetStatus {
            pool: self.pool.clone(),
            target: target.written.clone(),
            resolution: target.resolution.clone(),
            endpoints: target.spots.iter().map(|spot| endpoint(&spot.address)).collect(),
        });
        targets.collect()
    }
}

impl Target {
    fn new(
        config: &TargetConfig,
        zone: Option<&str>,
        watch: &mut impl FnMut(&str, Kind) -> watch::Receiver<Known>,
    ) -> Self {
        let mut target = Self {
            written: config.address.as_str().into(),
            host: "".into(),
            port: 0,
            weight: config.weight,
            is_backup: config.backup,
            is_near: zone.is_none_or(|zone| config.zone.as_deref() == Some(zone)),
            name: None,
            resolution: Resolution::Failed(
                "neither `host:port`, `unix:/path` nor `srv:_service._proto.name`".to_owned(),
            ),
            spots: Vec::new(),
        };
        if let Some(service) = config.address.strip_prefix("srv:") {
            // What stands behind the names of service and protocol is what checks ask for.
            let mut labels = service.splitn(3, '.');
            if let (Some(_), Some(_), Some(domain)) = (labels.next(), labels.next(), labels.next()) {
                target.host = domain.into();
                target.name = Some(watch(service, Kind::Service));
            }
            return target;
        }
        if address::is_file(&config.address) {
            // What servers call themselves that are asked by nobody else; a check may name another.
            target.host = "localhost".into();
            if let Some(address) = Address::of_file(&config.address) {
                target.resolution = Resolution::Resolved;
                target.spots = vec![Spot::alone(address, config.weight)];
            }
            return target;
        }
        let host_and_port = config.address.rsplit_once(':').and_then(|(h, p)| Some((h, p.parse().ok()?)));
        let Some((host, port)) = host_and_port else { return target };
        (target.host, target.port) = (host.into(), port);
        if let Ok(address) = config.address.parse::<SocketAddr>() {
            target.resolution = Resolution::Resolved;
            target.spots = vec![Spot::alone(address.into(), config.weight)];
        } else if !host.is_empty() && !host.contains([':', '[', ']']) {
            target.name = Some(watch(host, Kind::Host));
        }
        target
    }

    /// Takes over what is known of the name.
    fn follow(&mut self, mode: ResolveMode) {
        let Some(name) = &mut self.name else { return };
        let known = name.borrow_and_update();
        let current = self.spots.iter().filter_map(|spot| spot.address.inet());
        let current: Vec<IpAddr> = current.map(|address| address.ip()).collect();
        let chosen = resolve::choose(mode, &known.addresses, &current);
        self.resolution = known.resolution.clone();
        self.spots = spots(&chosen, self.port, self.weight);
    }
}

impl Spot {
    /// Of a target that is one address.
    fn alone(address: Address, weight: u32) -> Spot {
        Spot { address, host: 0, priority: 0, family: Preference::Alone, weight }
    }
}

/// In the order of their addresses.
///
/// A host with addresses of both families is taken for one that is reached in two ways: IPv6 is preferred, as RFC 6724
/// §2.1 orders them, and IPv4 waits like a backup. With fewer IPv6 addresses than IPv4 ones some of the machines seem
/// to have only the latter, and all addresses carry alike: otherwise the first record of a host that begins with IPv6
/// would draw all of its traffic. How connecting goes from one family to the other: [`crate::connect`].
///
/// The heaviest of each priority of a service gets the weight of the target, the others as much less as
/// their records say; a record of weight 0 gets next to nothing, as RFC 2782 has it, unless all of them are.
fn spots(found: &[Found], port: u16, weight: u32) -> Vec<Spot> {
    let services = || found.iter().filter_map(|found| found.service);
    let heaviest = |priority: u16| {
        let alike = services().filter(|service| service.priority == priority);
        alike.map(|service| service.weight).max().unwrap_or(0)
    };
    let share = |service: Service| match heaviest(service.priority) {
        0 => weight,
        heaviest => {
            let share = u64::from(weight) * u64::from(service.weight) / u64::from(heaviest);
            u32::try_from(share).unwrap_or(weight).max(weight.min(1))
        }
    };
    let mut families: HashMap<u16, [usize; 2]> = HashMap::new();
    for found in found {
        families.entry(found.host).or_default()[usize::from(found.ip.is_ipv6())] += 1;
    }
    let family = |found: &Found| match families[&found.host] {
        [0, _] | [_, 0] => Preference::Alone,
        [v4, v6] if v6 < v4 => Preference::Alike,
        [..] if found.ip.is_ipv6() => Preference::First,
        [..] => Preference::Second,
    };
    let spot = |found: &Found| {
        let (port, priority, weight) = match found.service {
            None => (port, 0, weight),
            Some(service) => (service.port, service.priority, share(service)),
        };
        let address = SocketAddr::new(found.ip, port).into();
        Spot { address, host: found.host, priority, family: family(found), weight }
    };
    let mut spots: Vec<Spot> = found.iter().map(spot).collect();
    spots.sort_unstable();
    spots
}

/// Waits for the next answer of one name.
async fn next_answer(mut name: watch::Receiver<Known>, target: usize) -> (watch::Receiver<Known>, usize) {
    name.changed()
        .await
        .expect("the resolver, which the keeper holds, feeds the name while it is listened to");
    (name, target)
}

/// Checks speak HTTP/1.1, or HTTP/2 to gRPC servers, inside TLS where everybody does. What is wrong with the files has been said by whoever
/// prepared the generation.
pub(super) fn transport_of_checks(config: &PoolConfig) -> Option<Arc<Transport>> {
    let protocol = match config.check.kind {
        CheckKind::Grpc { .. } => UpstreamProtocol::Http2,
        CheckKind::None | CheckKind::Tcp | CheckKind::Http { .. } => UpstreamProtocol::Http1,
    };
    let config = PoolConfig { protocol, ..config.clone() };
    Transport::compile(&config, true).ok().flatten()
}

async fn check(address: Address, probe: Probe) -> (Address, Result<(), String>) {
    let _permit = CHECKS.acquire().await.expect("nobody closes it");
    (address, probe::run(&probe).await)
}
