//! From a configuration to a generation: everything that can be wrong with it is found here.

use std::{collections::BTreeSet, sync::Arc};

use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use super::{PrepareError, keys};
use crate::{
    admission::Gate,
    config::{AppConfig, PoolConfig, Protocol},
    generation::{Generation, Pins, Pool},
    http::route::Router,
    upstream::{Upstream, balance::Strategies},
};

/// The pool that TCP sessions, and requests no route claims, go to.
const DEFAULT_POOL: &str = "default";

/// What compiling needs from outside.
pub(crate) struct Compiler<'a> {
    pub(crate) workers: usize,
    pub(crate) strategies: &'a Strategies,
    /// Where resolving and checking runs.
    pub(crate) tasks: &'a TaskTracker,
    pub(crate) runtime: &'a tokio::runtime::Handle,
    pub(crate) changed: Arc<dyn Fn() + Send + Sync>,
}

/// A pool that is resolved and checked, shared by the generations of an app that have it alike.
pub(crate) struct Running {
    name: String,
    config: Arc<PoolConfig>,
    upstream: Arc<Upstream>,
    /// The last generation that lets go ends the tasks.
    _stop: DropGuard,
}

/// Finds what is wrong without changing anything.
pub(crate) fn check(config: &AppConfig, compiler: &Compiler<'_>) -> Result<(), PrepareError> {
    let invalid = |reason: String| Err(PrepareError::Invalid(reason));
    let mut seen = BTreeSet::new();
    if let Some((_, port)) = keys(config).find(|key| !seen.insert(*key)) {
        return invalid(format!("port {port} is named twice"));
    }
    if let Some(port) = config.ports.iter().find(|port| port.port == 0) {
        return invalid(format!("port 0 of {} is not a port to listen on", port.address));
    }
    let is_tcp = config.ports.iter().any(|port| port.protocol == Protocol::Tcp);
    if is_tcp && !config.pools.contains_key(DEFAULT_POOL) {
        return invalid(format!("a TCP port needs the pool `{DEFAULT_POOL}`"));
    }
    for (name, pool) in &config.pools {
        if compiler.strategies.get(&pool.balance).is_none() {
            return invalid(format!("pool `{name}`: there is no balance strategy `{}`", pool.balance));
        }
    }
    router(config).map(drop).map_err(PrepareError::Invalid)
}

/// Makes the generation `uid` and starts those of its pools that no other generation runs already.
pub(crate) fn compile(
    uid: u64,
    config: &AppConfig,
    gate: &Arc<Gate>,
    known: &[Arc<Running>],
    compiler: &Compiler<'_>,
) -> Result<(Arc<Generation>, Vec<Arc<Running>>), String> {
    let router = router(config)?;
    let running: Vec<Arc<Running>> = config
        .pools
        .iter()
        .map(|(name, pool)| {
            let same = known.iter().find(|known| known.name == *name && *known.config == *pool);
            same.cloned().unwrap_or_else(|| Arc::new(start(config, name, pool, compiler)))
        })
        .collect();
    let pools = running
        .iter()
        .map(|running| Pool { upstream: Arc::clone(&running.upstream), config: Arc::clone(&running.config) });
    let generation = Generation {
        uid,
        config: config.clone(),
        router,
        pools: pools.collect(),
        default_pool: config.pools.keys().position(|name| name == DEFAULT_POOL),
        pins: Arc::new(Pins::new(compiler.workers)),
        gate: Arc::clone(gate),
    };
    Ok((Arc::new(generation), running))
}

fn router(config: &AppConfig) -> Result<Router, String> {
    let pools: Vec<String> = config.pools.keys().cloned().collect();
    Router::compile(&config.routes, &pools).map_err(|error| error.to_string())
}

fn start(config: &AppConfig, name: &str, pool: &PoolConfig, compiler: &Compiler<'_>) -> Running {
    let stop = CancellationToken::new();
    let upstream = {
        let _inside = compiler.runtime.enter();
        Upstream::start(pool, &config.app, name, compiler.tasks, stop.clone(), Arc::clone(&compiler.changed))
    };
    Running { name: name.to_owned(), config: Arc::new(pool.clone()), upstream, _stop: stop.drop_guard() }
}
