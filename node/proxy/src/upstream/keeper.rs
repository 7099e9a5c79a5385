//! The task behind one upstream: follows its names, checks its endpoints, publishes what may be chosen.
//!
//! One task for the whole pool, whatever its size. It waits for the next answer, result or due check, takes it in, and
//! publishes. What an answer means is decided in `resolve`, what a result means in `health`.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    sync::Arc,
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Endpoint, EndpointSet, EndpointStatus, Resolution, TargetStatus, Upstream,
    health::{self, Health},
    probe::{self, Probe},
    resolve::{self, Known, Question, Resolver},
};
use crate::config::{CheckConfig, CheckKind, PoolConfig, ResolveMode, TargetConfig};

/// Checks of one upstream at the same time. Further ones start when one of these is done.
const CHECKS_PER_UPSTREAM_MAX: usize = 64;
/// Checks of the process at the same time: a boot with 10,000 apps must not use up the file descriptors. Further ones
/// wait here, before their timeout starts to count.
static CHECKS: Semaphore = Semaphore::const_new(512);

pub(super) struct Keeper {
    upstream: Arc<Upstream>,
    app: String,
    pool: String,
    mode: ResolveMode,
    check: CheckConfig,
    targets: Vec<Target>,
    /// By address: targets may share an endpoint, which is still checked and chosen once.
    members: BTreeMap<SocketAddr, Member>,
    /// When to check whom next. Every checked member is either here or in `checking`.
    due: BTreeSet<(Instant, SocketAddr)>,
    /// Whose check is under way. An endpoint may leave and come back meanwhile; it is still checked once.
    checking: HashSet<SocketAddr>,
    random: RandomState,
    /// Its tasks feed the names.
    _resolver: Option<Arc<Resolver>>,
}

/// A target of the configuration, and what it stands for at the moment.
struct Target {
    written: Arc<str>,
    host: Arc<str>,
    port: u16,
    weight: u32,
    /// `None` for an address, which stands for itself.
    name: Option<watch::Receiver<Known>>,
    resolution: Resolution,
    addresses: Vec<SocketAddr>,
}

struct Member {
    health: Health,
    /// Of the first target that has this address.
    host: Arc<str>,
}

impl Keeper {
    /// Publishes what is known without waiting.
    pub(super) fn new(
        upstream: Arc<Upstream>,
        (app, pool): (&str, &str),
        config: &PoolConfig,
        mut resolver: Option<Arc<Resolver>>,
    ) -> Self {
        let mut watch = |host: &str| {
            resolver.get_or_insert_with(Resolver::shared).watch(Question::new(host, &config.resolve))
        };
        let mut keeper = Self {
            upstream,
            app: app.to_owned(),
            pool: pool.to_owned(),
            mode: config.resolve.mode,
            check: config.check.clone(),
            targets: config.targets.iter().map(|target| Target::new(target, &mut watch)).collect(),
            members: BTreeMap::new(),
            due: BTreeSet::new(),
            checking: HashSet::new(),
            random: RandomState::new(),
            _resolver: resolver,
        };
        for target in &mut keeper.targets {
            target.follow(keeper.mode);
        }
        keeper.reconcile();
        keeper.publish();
        keeper
    }

    /// Whether nothing can ever change.
    pub(super) fn is_settled(&self) -> bool {
        self.due.is_empty() && self.targets.iter().all(|target| target.name.is_none())
    }

    pub(super) async fn run(mut self, stop: CancellationToken, changed: Arc<dyn Fn() + Send + Sync>) {
        let names = self.targets.iter().enumerate();
        let mut news: FuturesUnordered<_> =
            names.filter_map(|(target, of)| Some(next_answer(of.name.clone()?, target))).collect();
        let mut checks = FuturesUnordered::new();
        loop {
            while checks.len() < CHECKS_PER_UPSTREAM_MAX
                && let Some((address, probe)) = self.next_check()
            {
                checks.push(check(address, probe));
            }
            let due = self.due.first().filter(|_| checks.len() < CHECKS_PER_UPSTREAM_MAX).map(|&(at, _)| at);
            let timer = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now)).await };
            // All are cancel-safe: a token, two sets that keep what is unfinished, and a timer.
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
                () = timer, if due.is_some() => false,
            };
            if is_news && self.publish() {
                changed();
            }
        }
    }

    /// Brings the members in line with the addresses of the targets. Those that stay keep their health.
    fn reconcile(&mut self) {
        let mut before = std::mem::take(&mut self.members);
        for target in &self.targets {
            for &address in &target.addresses {
                self.members.entry(address).or_insert_with(|| match before.remove(&address) {
                    Some(member) => member,
                    None if self.check.kind == CheckKind::None => {
                        Member { health: Health::unchecked(), host: target.host.clone() }
                    }
                    None => {
                        if !self.checking.contains(&address) {
                            self.due.insert((Instant::now(), address));
                        }
                        Member { health: Health::default(), host: target.host.clone() }
                    }
                });
            }
        }
        self.due.retain(|(_, address)| self.members.contains_key(address));
    }

    /// The check that is due now, if any.
    fn next_check(&mut self) -> Option<(SocketAddr, Probe)> {
        let &(_, address) = self.due.first().filter(|(at, _)| *at <= Instant::now())?;
        self.due.pop_first();
        self.checking.insert(address);
        let member = self.members.get(&address).expect("whoever is due is a member");
        let CheckConfig { kind, port, timeout, .. } = &self.check;
        let probed = SocketAddr::new(address.ip(), port.unwrap_or(address.port()));
        let host = member.host.clone();
        Some((address, Probe { kind: kind.clone(), address: probed, host, timeout: *timeout }))
    }

    /// Whether the result changed anything that users see.
    fn record(&mut self, address: SocketAddr, result: Result<(), String>) -> bool {
        self.checking.remove(&address);
        // It may have left while its check was under way.
        let Some(Member { health, .. }) = self.members.get_mut(&address) else { return false };
        let before = health.available();
        let is_news = health.record(result, self.check.rise, self.check.fall);
        let now = Instant::now();
        let random = self.random.hash_one((address, now));
        self.due.insert((now + health::pause(self.check.interval, before.is_none(), random), address));
        let (app, pool) = (&self.app, &self.pool);
        match (before, health.available(), health.last_error()) {
            (before, after, _) if before == after => {}
            // What every endpoint does when its app starts.
            (None, Some(true), _) => debug!(app, pool, %address, "endpoint available"),
            (_, _, None) => info!(app, pool, %address, "endpoint available again"),
            (_, _, Some(error)) => warn!(app, pool, %address, error, "endpoint unavailable"),
        }
        is_news
    }

    /// Whether there was anything new to publish.
    fn publish(&self) -> bool {
        let (set, status) = (self.set(), self.status());
        let Upstream { set: old_set, status: old_status } = &*self.upstream;
        let is_same_set = {
            let old = old_set.load();
            old.endpoints == set.endpoints && old.available == set.available
        };
        // An equal set is not published again: workers keep their state by the identity of the set.
        if !is_same_set {
            old_set.store(Arc::new(set));
        }
        let is_same_status = **old_status.load() == status;
        if !is_same_status {
            old_status.store(Arc::new(status));
        }
        !(is_same_set && is_same_status)
    }

    fn set(&self) -> EndpointSet {
        let mut seen = HashSet::new();
        let mut endpoints = Vec::with_capacity(self.members.len());
        for Target { written, weight, addresses, .. } in &self.targets {
            let new = addresses.iter().filter(|&&address| seen.insert(address));
            endpoints.extend(new.map(|&address| Endpoint {
                address,
                target: written.clone(),
                weight: *weight,
            }));
        }
        let is_available =
            |endpoint: &Endpoint| self.members[&endpoint.address].health.available() == Some(true);
        let available = (0..).zip(&endpoints).filter(|(_, endpoint)| is_available(endpoint)).map(|(i, _)| i);
        let available = available.collect();
        EndpointSet::new(endpoints, available)
    }

    fn status(&self) -> Vec<TargetStatus> {
        let endpoint = |address: &SocketAddr| {
            let health = &self.members[address].health;
            let last_error = health.last_error().map(str::to_owned);
            EndpointStatus { address: *address, available: health.available(), last_error }
        };
        let targets = self.targets.iter().map(|target| TargetStatus {
            pool: self.pool.clone(),
            target: target.written.clone(),
            resolution: target.resolution.clone(),
            endpoints: target.addresses.iter().map(endpoint).collect(),
        });
        targets.collect()
    }
}

impl Target {
    fn new(config: &TargetConfig, watch: &mut impl FnMut(&str) -> watch::Receiver<Known>) -> Self {
        let mut target = Self {
            written: config.address.as_str().into(),
            host: "".into(),
            port: 0,
            weight: config.weight,
            name: None,
            resolution: Resolution::Failed("not `host:port`".to_owned()),
            addresses: Vec::new(),
        };
        let host_and_port = config.address.rsplit_once(':').and_then(|(h, p)| Some((h, p.parse().ok()?)));
        let Some((host, port)) = host_and_port else { return target };
        (target.host, target.port) = (host.into(), port);
        if let Ok(address) = config.address.parse() {
            target.resolution = Resolution::Resolved;
            target.addresses = vec![address];
        } else if !host.is_empty() && !host.contains([':', '[', ']']) {
            target.name = Some(watch(host));
        }
        target
    }

    /// Takes over what is known of the name.
    fn follow(&mut self, mode: ResolveMode) {
        let Some(name) = &mut self.name else { return };
        let known = name.borrow_and_update();
        let current = self.addresses.first().map(SocketAddr::ip);
        let chosen = resolve::choose(mode, &known.addresses, current);
        self.resolution = known.resolution.clone();
        self.addresses = chosen.into_iter().map(|ip| SocketAddr::new(ip, self.port)).collect();
        self.addresses.sort_unstable();
    }
}

/// Waits for the next answer of one name.
async fn next_answer(mut name: watch::Receiver<Known>, target: usize) -> (watch::Receiver<Known>, usize) {
    name.changed()
        .await
        .expect("the resolver, which the keeper holds, feeds the name while it is listened to");
    (name, target)
}

async fn check(address: SocketAddr, probe: Probe) -> (SocketAddr, Result<(), String>) {
    let _permit = CHECKS.acquire().await.expect("nobody closes it");
    (address, probe::run(&probe).await)
}
