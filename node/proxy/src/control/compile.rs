//! From a configuration to a generation: everything that can be wrong with it is found here.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::{Arc, Weak},
};

use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use sha2::{Digest as _, Sha256};

use super::{PrepareError, keys};
use crate::{
    Layers,
    admission::Gate,
    config::{AccessConfig, AppConfig, NamesPolicy, PoolConfig, Protocol, ProxyProtocol, UpstreamProtocol},
    edge::{Edge, Visitors},
    generation::{Generation, Pins, Pool},
    http::{
        guard::{GuardPools, Guards, Signers},
        route::{DEFAULT_POOL, Router, is_host_pattern},
    },
    pool::LocalEndpoint,
    port::Claims,
    rate::Rates,
    room::Room,
    tally::Tallies,
    tls::upstream::Transport,
    upstream::{Endpoint, Place, Resolver, Upstream, balance::Strategies},
    worker::Worker,
};

/// Of the canonical form. A spec of the longest size there is takes about a quarter of it.
const COMPILED_BYTES_MAX: usize = 16 << 20;

/// Told of an app when a target of it is another than before.
type OnChange = Arc<dyn Fn(&Arc<str>) + Send + Sync>;

/// What compiling needs from outside.
pub(crate) struct Compiler<'a> {
    pub(crate) workers: usize,
    pub(crate) strategies: &'a Strategies,
    pub(crate) signers: &'a Signers,
    pub(crate) names: NamesPolicy,
    /// Where this proxy stands.
    pub(crate) zone: Option<&'a str>,
    /// `None`: the one of the system.
    pub(crate) resolver: Option<&'a Arc<Resolver>>,
    /// Where resolving and checking runs.
    pub(crate) tasks: &'a TaskTracker,
    pub(crate) runtime: &'a tokio::runtime::Handle,
    pub(crate) changed: OnChange,
    /// Has the workers open connections of a pool ahead.
    pub(crate) keep_warm: Arc<dyn Fn(Weak<Running>) + Send + Sync>,
}

/// A pool that is resolved and checked, shared by the generations of an app that have it alike.
pub(crate) struct Running {
    app: Arc<str>,
    name: String,
    config: Arc<PoolConfig>,
    transport: Option<Arc<Transport>>,
    pub(crate) upstream: Arc<Upstream>,
    /// The last generation that lets go ends the tasks.
    _stop: DropGuard,
}

impl Running {
    /// What a worker knows of one of its endpoints.
    pub(crate) fn endpoint(&self, worker: &Worker, endpoint: &Endpoint) -> Rc<LocalEndpoint> {
        worker.endpoint(&self.app, endpoint, &self.config, self.transport.as_ref())
    }
}

/// What the generations of an app have in common.
pub(crate) struct OfApp {
    pub(crate) gate: Arc<Gate>,
    pub(crate) room: Option<Arc<Room>>,
    pub(crate) rates: Option<Arc<Rates>>,
    pub(crate) guards: Option<Arc<Guards>>,
    pub(crate) visitors: Option<Arc<Visitors>>,
    pub(crate) edges: Vec<Option<Arc<Edge>>>,
}

/// A configuration in which nothing is wrong, and what was computed from it. Nothing of it is known to
/// the proxy yet.
#[derive(Clone)]
pub struct Compiled {
    /// Without its routes.
    pub(crate) config: AppConfig,
    pub(crate) router: Arc<Router>,
    pub(crate) claims: Arc<[Claims]>,
    pub(crate) digest: [u8; 32],
}

impl Compiled {
    /// What [`super::GenerationStatus::digest`] is where exactly this is served.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }
}

/// Finds what is wrong without changing anything.
pub(crate) fn check(
    config: AppConfig,
    strategies: &Strategies,
    layers: &Layers,
) -> Result<Compiled, PrepareError> {
    let invalid = |reason: String| Err(PrepareError::Invalid(reason));
    let mut seen = BTreeSet::new();
    if let Some((_, port)) = keys(&config).find(|key| !seen.insert(*key)) {
        return invalid(format!("port {port} is named twice"));
    }
    if let Some(port) = config.ports.iter().find(|port| port.port == 0) {
        return invalid(format!("port 0 of {} is not a port to listen on", port.address));
    }
    let has_tcp = config.ports.iter().any(|port| port.protocol == Protocol::Tcp);
    let has_http = config.ports.iter().any(|port| port.protocol == Protocol::Http);
    let routes_by_name = !has_http && !config.routes.is_empty();
    if has_tcp && !routes_by_name && !config.pools.contains_key(DEFAULT_POOL) {
        return invalid(format!("a TCP port needs the pool `{DEFAULT_POOL}`"));
    }
    for port in &config.ports {
        if port.proxy_protocol != ProxyProtocol::Off && port.trusted_proxies.is_empty() {
            return invalid(format!("port {} takes PROXY headers from nobody", port.port));
        }
        if let Some(host) = port.hosts.iter().find(|host| !is_host_pattern(host)) {
            return invalid(format!(
                "port {}: `{host}` is no host name, and neither `*.` nor `.*` with one",
                port.port
            ));
        }
    }
    for (name, pool) in &config.pools {
        if pool.send_proxy.is_some() && (has_http || pool.tls.is_some()) {
            return invalid(format!("pool `{name}`: PROXY headers are sent for TCP ports, and in the clear"));
        }
        let is_asked = config.access.grpc.as_ref().is_some_and(|grpc| grpc.pool == *name);
        if pool.warm > 0 && !has_http {
            return invalid(format!("pool `{name}`: connections are opened ahead for HTTP ports"));
        }
        if pool.protocol == UpstreamProtocol::Http2 && has_tcp && !is_asked {
            return invalid(format!("pool `{name}`: HTTP/2 is for HTTP ports"));
        }
        let strategy = &pool.balance.strategy;
        if strategies.get(strategy).is_none() {
            return invalid(format!("pool `{name}`: there is no balance strategy `{strategy}`"));
        }
    }
    if let Some(unknown) = config.layers.iter().find(|name| !layers.names().any(|known| known == *name)) {
        return invalid(format!("there is no layer `{unknown}`"));
    }
    let forward = config.access.forward.as_ref().map(|forward| &forward.pool);
    let grpc = config.access.grpc.as_ref().map(|grpc| &grpc.pool);
    for name in forward.into_iter().chain(grpc) {
        if !config.pools.contains_key(name) {
            return invalid(format!("access: there is no pool `{name}` to ask"));
        }
    }
    let AccessConfig { allow: _, deny: _, basic, jwt, forward, grpc, signer } = &config.access;
    let is_guarded =
        basic.is_some() || jwt.is_some() || forward.is_some() || grpc.is_some() || signer.is_some();
    if is_guarded && has_tcp {
        return invalid("access: only requests can be looked at, and a port is TCP".to_owned());
    }
    let (digest, bytes) = digest(&config);
    if bytes > COMPILED_BYTES_MAX {
        return invalid(format!("it is {bytes} bytes long, and at most {COMPILED_BYTES_MAX} are served"));
    }
    let router = Arc::new(router(&config).map_err(PrepareError::Invalid)?);
    let claims = config.ports.iter().map(|port| Claims::of(&config, port)).collect();
    // The router has them; so many of them are most of what an app takes.
    let config = AppConfig { routes: Vec::new(), ..config };
    Ok(Compiled { config, router, claims, digest })
}

/// SHA-256 of everything that a generation does. Every field is in its `Debug` form, so that none can
/// be forgotten, and all maps are sorted. The form may change with the version of the program: nodes
/// compare what they serve with what they compiled themselves, never with each other.
fn digest(config: &AppConfig) -> ([u8; 32], usize) {
    struct Sink(Sha256, usize);
    impl std::fmt::Write for Sink {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0.update(text);
            self.1 += text.len();
            Ok(())
        }
    }
    let mut sink = Sink(Sha256::new(), 0);
    std::fmt::write(&mut sink, format_args!("{config:?}")).expect("a hash takes any text");
    (sink.0.finalize().into(), sink.1)
}

/// Makes the generation `uid` and starts those of its pools that no other generation runs already.
pub(crate) fn compile(
    uid: u64,
    compiled: &Compiled,
    known: &[Arc<Running>],
    of_app: OfApp,
    compiler: &Compiler<'_>,
) -> Result<(Arc<Generation>, Vec<Arc<Running>>), String> {
    let Compiled { config, router, claims, digest } = compiled;
    let OfApp { gate, room, rates, guards, visitors, edges } = of_app;
    let running: Vec<Arc<Running>> = config
        .pools
        .iter()
        .map(|(name, pool)| -> Result<Arc<Running>, String> {
            let same = known.iter().find(|known| known.name == *name && *known.config == *pool);
            match same {
                Some(same) => Ok(Arc::clone(same)),
                None => {
                    let running = Arc::new(start(config, name, pool, compiler)?);
                    if pool.warm > 0 {
                        (compiler.keep_warm)(Arc::downgrade(&running));
                    }
                    Ok(running)
                }
            }
        })
        .collect::<Result<_, _>>()?;
    let pools = running.iter().map(|running| Pool {
        name: running.name.as_str().into(),
        upstream: Arc::clone(&running.upstream),
        config: Arc::clone(&running.config),
        transport: running.transport.clone(),
    });
    let generation = Generation {
        uid,
        config: AppConfig { pools: BTreeMap::new(), ..config.clone() },
        router: Arc::clone(router),
        digest: *digest,
        pools: pools.collect(),
        default_pool: config.pools.keys().position(|name| name == DEFAULT_POOL),
        pins: Arc::new(Pins::new(compiler.workers)),
        tallies: Arc::new(Tallies::new(compiler.workers)),
        gate,
        room,
        rates,
        guards,
        guard_pools: GuardPools::of(&config.access, config.pools.keys()),
        visitors,
        edges,
        claims: Arc::clone(claims),
    };
    Ok((Arc::new(generation), running))
}

fn router(config: &AppConfig) -> Result<Router, String> {
    let pools: Vec<String> = config.pools.keys().cloned().collect();
    Router::compile(&config.routes, &pools).map_err(|error| error.to_string())
}

fn start(
    config: &AppConfig,
    name: &str,
    pool: &PoolConfig,
    compiler: &Compiler<'_>,
) -> Result<Running, String> {
    let has_http = config.ports.iter().any(|port| port.protocol == Protocol::Http);
    let transport = Transport::compile(pool, has_http).map_err(|error| format!("pool `{name}`: {error}"))?;
    let stop = CancellationToken::new();
    let upstream = {
        let _inside = compiler.runtime.enter();
        let place = Place { app: &config.app, pool: name, zone: compiler.zone, workers: compiler.workers };
        let layout = compiler.strategies.layout(&pool.balance.strategy);
        let (changed, app) = (Arc::clone(&compiler.changed), Arc::clone(&config.app));
        let changed = Arc::new(move || changed(&app));
        let resolver = compiler.resolver.cloned();
        Upstream::start_with(resolver, pool, place, layout, compiler.tasks, stop.clone(), changed)
    };
    let (app, config) = (Arc::clone(&config.app), Arc::new(pool.clone()));
    Ok(Running { app, name: name.to_owned(), config, transport, upstream, _stop: stop.drop_guard() })
}
