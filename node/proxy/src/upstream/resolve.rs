//! Names to addresses, and how long an answer is good for.
//!
//! One task looks after each distinct name, however many apps use it: it asks again before the answer expires, keeps
//! the last good answer while the name cannot be resolved, and ends when nobody listens any more. What to publish
//! and when to ask again is decided by [`Memory`], which is pure. Of ports and weights only those are known here that
//! SRV records say (RFC 2782); health is not.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, SocketAddr},
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{NameServerConfig, ResolverConfig, ResolverOpts},
    lookup::Lookup,
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::RData,
};
use tokio::{runtime, sync::watch, task::JoinSet, time::Instant};
use tracing::{info, warn};

use super::{Resolution, scale};
use crate::{
    config::{Family, ResolveConfig, ResolveMode},
    metrics,
};

/// A record may say 0, and so may `min_ttl`: still no busy loop.
const TTL_FLOOR: Duration = Duration::from_millis(100);
/// After the first failure, doubled by each further one in a row.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Hosts of one service; further ones are not used.
const SERVICE_HOSTS_MAX: usize = 1_000;
/// The resolver has timeouts and attempts of its own; this bounds whatever they add up to.
const LOOKUP_MAX: Duration = Duration::from_secs(15);

/// What is asked. Apps that ask the same share one task and its lookups.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Question {
    pub(super) host: Arc<str>,
    pub(super) kind: Kind,
    pub(super) family: Family,
    pub(super) min_ttl: Duration,
    pub(super) max_ttl: Duration,
    pub(super) stale: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Addresses of a host.
    Host,
    /// The hosts of a service and then their addresses.
    Service,
}

impl Question {
    pub(super) fn new(host: &str, kind: Kind, config: &ResolveConfig) -> Self {
        let ResolveConfig { mode: _, family, min_ttl, max_ttl, stale } = *config;
        Self { host: host.into(), kind, family, min_ttl, max_ttl, stale }
    }
}

/// One address, and what the service says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) ip: IpAddr,
    /// Addresses of the same number are of the same host: those of one record of a service, and all of a name.
    pub(super) host: u16,
    pub(super) service: Option<Service>,
}

/// Of an SRV record (RFC 2782).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Service {
    /// The lowest that can be reached is to be used.
    pub(super) priority: u16,
    pub(super) weight: u16,
    pub(super) port: u16,
}

impl From<IpAddr> for Found {
    fn from(ip: IpAddr) -> Self {
        Self { ip, host: 0, service: None }
    }
}

/// What is known of a name now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) resolution: Resolution,
    /// In the order of the answer; the last good ones while a failure is younger than `stale`.
    pub(super) addresses: Arc<[Found]>,
}

impl Known {
    fn pending() -> Self {
        Self { resolution: Resolution::Pending, addresses: Arc::new([]) }
    }
}

/// Which addresses of an answer are used. `First` is one host, with one address of each family where it has both, so
/// that one can stand in for the other. Name servers rotate their answers, so it stays with the addresses it has for as
/// long as they are among them.
pub(super) fn choose(mode: ResolveMode, answer: &[Found], current: &[IpAddr]) -> Vec<Found> {
    match mode {
        ResolveMode::All => answer.to_vec(),
        ResolveMode::First => {
            let is_current = |found: &&Found| current.contains(&found.ip);
            let Some(first) = answer.iter().find(is_current).or(answer.first()) else { return Vec::new() };
            let of_family = |is_v6: bool| {
                let is_way = move |found: &&Found| found.host == first.host && found.ip.is_ipv6() == is_v6;
                let ways = || answer.iter().filter(is_way);
                ways().find(is_current).or(ways().next()).copied()
            };
            [false, true].into_iter().filter_map(of_family).collect()
        }
    }
}

/// Looks names up, once for everybody who asks the same.
pub(crate) struct Resolver {
    shared: Arc<Shared>,
    /// One task per question; dropping the resolver ends them.
    tasks: Mutex<JoinSet<()>>,
}

struct Shared {
    dns: TokioResolver,
    names: Mutex<HashMap<Question, watch::Sender<Known>>>,
}

impl Resolver {
    /// The one resolver of the runtime this is called in, configured as the system is. It lives as long as somebody
    /// holds it. One per runtime and not per process, because its sockets and tasks die with their runtime.
    pub(super) fn shared() -> Arc<Self> {
        static RESOLVERS: LazyLock<Mutex<HashMap<runtime::Id, Weak<Resolver>>>> =
            LazyLock::new(Mutex::default);
        let mut resolvers = RESOLVERS.lock().unwrap_or_else(PoisonError::into_inner);
        let runtime = runtime::Handle::current().id();
        if let Some(resolver) = resolvers.get(&runtime).and_then(Weak::upgrade) {
            return resolver;
        }
        resolvers.retain(|_, resolver| resolver.strong_count() > 0);
        let resolver = Self::system();
        resolvers.insert(runtime, Arc::downgrade(&resolver));
        resolver
    }

    /// Configured by `/etc/resolv.conf` and `/etc/hosts`.
    pub(super) fn system() -> Arc<Self> {
        match TokioResolver::builder_tokio() {
            Ok(builder) => Self::build(builder),
            Err(err) => {
                // What resolv.conf(5) promises when the file names no server. `/etc/hosts` is read in any case.
                warn!(error = %err, "no name server configured; asking the one on this machine");
                Self::at(SocketAddr::from(([127, 0, 0, 1], 53)))
            }
        }
    }

    /// Asks one name server, over UDP and, for long answers, TCP.
    pub(crate) fn at(server: SocketAddr) -> Arc<Self> {
        let mut name_server = NameServerConfig::udp_and_tcp(server.ip());
        for connection in &mut name_server.connections {
            connection.port = server.port();
        }
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![name_server]);
        Self::build(TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()))
    }

    fn build(mut builder: hickory_resolver::ResolverBuilder<TokioRuntimeProvider>) -> Arc<Self> {
        // A cached answer could not be refreshed before it expires, and it is dropped when we need it most.
        let ResolverOpts { cache_size, .. } = builder.options_mut();
        *cache_size = 0;
        let dns = builder.build().expect("without TLS there is nothing that can fail");
        let shared = Arc::new(Shared { dns, names: Mutex::default() });
        Arc::new(Self { shared, tasks: Mutex::default() })
    }

    /// What is known of a name, now and from now on. Must be called inside a tokio runtime.
    pub(super) fn watch(&self, question: Question) -> watch::Receiver<Known> {
        let mut names = self.shared.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = names.get(&question) {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(Known::pending());
        names.insert(question.clone(), sender.clone());
        drop(names);
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(look_after(self.shared.clone(), question, sender));
        receiver
    }
}

/// The life of one name: ask, publish, wait; until the last listener is gone.
async fn look_after(shared: Arc<Shared>, question: Question, sender: watch::Sender<Known>) {
    let mut memory = Memory::default();
    let random = RandomState::new();
    loop {
        let answer = tokio::time::timeout(LOOKUP_MAX, look_up(&shared.dns, &question)).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("timed out after {LOOKUP_MAX:?}")));
        metrics::name_looked_up(answer.is_ok());
        let (known, wait) = memory.learn(answer, Instant::now(), &question);
        let wait = early(wait, random.hash_one(Instant::now()));
        log_change(&question.host, &sender.borrow().resolution, &known);
        sender.send_if_modified(|current| {
            let is_new = *current != known;
            *current = known;
            is_new
        });
        // Both are cancel-safe: a timer, and a wait for a condition.
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = sender.closed() => {
                let mut names = shared.names.lock().unwrap_or_else(PoisonError::into_inner);
                // Under the lock nobody can begin to listen; somebody may have just before.
                if sender.receiver_count() == 0 {
                    names.remove(&question);
                    return;
                }
            }
        }
    }
}

/// Up to a tenth sooner, so that names that were asked for together are not asked for together for ever.
fn early(wait: Duration, random: u64) -> Duration {
    const PARTS: u32 = 1 << 10;
    wait - wait / 10 * u32::try_from(scale(random, PARTS.into())).unwrap_or(0) / PARTS
}

fn log_change(host: &str, before: &Resolution, now: &Known) {
    match (before, &now.resolution) {
        (Resolution::Failed(_), Resolution::Failed(_)) => {}
        (_, Resolution::Failed(error)) => warn!(host, error, kept = now.addresses.len(), "cannot resolve"),
        (Resolution::Failed(_), Resolution::Resolved) => info!(host, "resolved again"),
        (_, Resolution::Pending | Resolution::Resolved) => {}
    }
}

/// A good answer. Never empty.
#[derive(Debug)]
struct Answer {
    addresses: Vec<Found>,
    ttl: Duration,
}

/// What one name remembers between lookups.
#[derive(Debug, Default)]
struct Memory {
    /// The last good answer and when its time to live ended.
    good: Option<(Arc<[Found]>, Instant)>,
    failures: u32,
}

impl Memory {
    /// Takes one answer in: what to publish, and how long to wait before asking again.
    ///
    /// "No such name" is treated like any failure, against RFC 8767 §4: a registry that loses its records must not
    /// take down endpoints that still answer. Those that do not are found by their checks.
    fn learn(
        &mut self,
        answer: Result<Answer, String>,
        now: Instant,
        question: &Question,
    ) -> (Known, Duration) {
        match answer {
            Ok(Answer { addresses, ttl }) => {
                let ttl = ttl.min(question.max_ttl).max(question.min_ttl).max(TTL_FLOOR);
                let addresses: Arc<[Found]> = addresses.into();
                self.good = Some((addresses.clone(), now + ttl));
                self.failures = 0;
                // The last tenth of its life is for asking again.
                (Known { resolution: Resolution::Resolved, addresses }, ttl * 9 / 10)
            }
            Err(reason) => {
                let mut wait = (BACKOFF_MIN * (1 << self.failures.min(5))).min(BACKOFF_MAX);
                self.failures += 1;
                let addresses: Arc<[Found]> = match &self.good {
                    Some((addresses, expires)) if now < *expires + question.stale => {
                        // Be awake when they get too old.
                        wait = wait.min(*expires + question.stale - now);
                        addresses.clone()
                    }
                    _ => Arc::new([]),
                };
                (Known { resolution: Resolution::Failed(reason), addresses }, wait)
            }
        }
    }
}

async fn look_up(dns: &TokioResolver, question: &Question) -> Result<Answer, String> {
    match question.kind {
        Kind::Host => look_up_host(dns, &question.host, question.family).await,
        Kind::Service => look_up_service(dns, question).await,
    }
}

/// What the service says, and then the addresses of each host it names. The answer lives as long as the shortest of
/// them all. One host that cannot be resolved keeps nobody from the others.
async fn look_up_service(dns: &TokioResolver, question: &Question) -> Result<Answer, String> {
    let lookup = dns.srv_lookup(&*question.host).await.map_err(|err| plain(&err))?;
    let mut ttl = u32::MAX;
    let mut hosts: Vec<(Service, String)> = Vec::new();
    for record in lookup.answers() {
        let RData::SRV(srv) = &record.data else { continue };
        ttl = ttl.min(record.ttl);
        // RFC 2782: a target of `.` says that there is decidedly no such service.
        if !srv.target.is_root() && hosts.len() < SERVICE_HOSTS_MAX {
            let service = Service { priority: srv.priority, weight: srv.weight, port: srv.port };
            hosts.push((service, srv.target.to_ascii()));
        }
    }
    // Name servers rotate their answers; the order says nothing here.
    hosts.sort();
    let family = question.family;
    let lookups = hosts.iter().map(|(_, host)| look_up_host(dns, host, family));
    let answers = futures_util::future::join_all(lookups).await;
    let mut ttl = Duration::from_secs(ttl.into());
    let (mut addresses, mut reason) = (Vec::new(), None);
    for (((service, name), answer), host) in hosts.iter().zip(answers).zip(0..) {
        match answer {
            Ok(answer) => {
                ttl = ttl.min(answer.ttl);
                let service = Some(*service);
                addresses.extend(answer.addresses.iter().map(|&Found { ip, .. }| Found {
                    ip,
                    host,
                    service,
                }));
            }
            Err(why) => reason = Some(format!("{name}: {why}")),
        }
    }
    if addresses.is_empty() {
        return Err(reason.unwrap_or_else(|| "the service is not offered".to_owned()));
    }
    Ok(Answer { addresses, ttl })
}

async fn look_up_host(dns: &TokioResolver, host: &str, family: Family) -> Result<Answer, String> {
    let v4 = async { (family != Family::V6).then_some(dns.ipv4_lookup(host).await) };
    let v6 = async { (family != Family::V4).then_some(dns.ipv6_lookup(host).await) };
    let (v4, v6) = futures_util::future::join(v4, v6).await;
    combine([v4, v6].into_iter().flatten())
}

/// The answers of both families as one. One family that answers is enough: many names have only one, and some
/// servers fail on the other.
fn combine(answers: impl Iterator<Item = Result<Lookup, NetError>>) -> Result<Answer, String> {
    let mut addresses = Vec::new();
    let mut ttl = u32::MAX;
    let mut reason = None;
    for answer in answers {
        match answer {
            Ok(lookup) => {
                for record in lookup.answers() {
                    if let Some(address) = record.data.ip_addr()
                        && !addresses.contains(&Found::from(address))
                    {
                        addresses.push(Found::from(address));
                        ttl = ttl.min(record.ttl);
                    }
                }
            }
            // Prefer a failure to "no records": it may be why there are no addresses.
            Err(err) if err.is_no_records_found() => reason = reason.or(Some(plain(&err))),
            Err(err) => reason = Some(plain(&err)),
        }
    }
    if addresses.is_empty() {
        return Err(reason.unwrap_or_else(|| "the name has no addresses".to_owned()));
    }
    Ok(Answer { addresses, ttl: Duration::from_secs(ttl.into()) })
}

fn plain(err: &NetError) -> String {
    match err {
        _ if err.is_nx_domain() => "no such name".to_owned(),
        _ if err.is_no_records_found() => "the name has no addresses".to_owned(),
        NetError::Timeout => "the name server does not answer".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
pub(super) mod tests;
