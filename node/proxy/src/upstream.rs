//! A pool of an app: its targets resolved to endpoints, the endpoints checked, and the set that
//! may be chosen published to the workers.
//!
//! Control side only: everything here runs on the control runtime and hands the workers immutable
//! sets. What a worker keeps of its own (pending counts, idle connections) is in `pool`.

use std::{net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{keeper::Keeper, resolve::Resolver};
use crate::config::PoolConfig;

pub mod balance;
mod health;
mod keeper;
mod probe;
mod resolve;
mod wheel;

/// The endpoints of one pool at one moment. Immutable; a change publishes a new set.
#[derive(Debug, Default)]
pub struct EndpointSet {
    /// Every resolved endpoint, ordered by target and address, without duplicates.
    pub endpoints: Vec<Endpoint>,
    /// Indexes into `endpoints` of those that may be chosen now, ascending.
    pub available: Vec<u32>,
    /// The weights of the available ones, laid out for the strategies.
    wheel: wheel::Wheel,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// The target as the user wrote it; a metric label.
    pub target: Arc<str>,
    /// Share of the traffic against the others; 0 takes none.
    pub weight: u32,
}

impl EndpointSet {
    /// `available` are indexes into `endpoints`, ascending. Endpoints of weight 0 are known and checked but take
    /// no traffic, so they drop out here and no strategy has to think of them.
    pub fn new(endpoints: Vec<Endpoint>, mut available: Vec<u32>) -> Self {
        available.retain(|&i| endpoints[i as usize].weight > 0);
        let wheel = wheel::Wheel::new(available.iter().map(|&i| endpoints[i as usize].weight));
        Self { endpoints, available, wheel }
    }
}

/// What is known of one target of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetStatus {
    pub pool: String,
    /// As the user wrote it.
    pub target: Arc<str>,
    pub resolution: Resolution,
    pub endpoints: Vec<EndpointStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Not looked up yet.
    Pending,
    Resolved,
    /// Why the last lookup gave nothing. `endpoints` still holds the last good answer while it is not too old.
    Failed(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointStatus {
    pub address: SocketAddr,
    /// `None` until the first check is back.
    pub available: Option<bool>,
    /// Why the last check failed; `None` after one that passed.
    pub last_error: Option<String>,
}

/// The control side of one pool: what it publishes.
pub struct Upstream {
    set: ArcSwap<EndpointSet>,
    status: ArcSwap<Vec<TargetStatus>>,
}

impl Upstream {
    /// Spawns what resolves and checks the targets of `pool` on `tasks`, where it runs until `stop`. Must be called
    /// inside a tokio runtime.
    ///
    /// What is known without waiting (addresses that nobody checks) is published when this returns. `changed` is
    /// called after every later change of the set or the status, from the control runtime; it must not block.
    pub fn start(
        pool: &PoolConfig,
        app: &str,
        pool_name: &str,
        tasks: &TaskTracker,
        stop: CancellationToken,
        changed: Arc<dyn Fn() + Send + Sync>,
    ) -> Arc<Self> {
        Self::start_with(None, pool, (app, pool_name), tasks, stop, changed)
    }

    /// `None`: names are looked up by the resolver of this runtime.
    fn start_with(
        resolver: Option<Arc<Resolver>>,
        pool: &PoolConfig,
        name: (&str, &str),
        tasks: &TaskTracker,
        stop: CancellationToken,
        changed: Arc<dyn Fn() + Send + Sync>,
    ) -> Arc<Self> {
        let upstream = Arc::new(Self { set: ArcSwap::default(), status: ArcSwap::default() });
        let keeper = Keeper::new(upstream.clone(), name, pool, resolver);
        // Addresses that nobody checks never change: 10,000 apps of that kind cost no task at all.
        if !keeper.is_settled() {
            tasks.spawn(keeper.run(stop, changed));
        }
        upstream
    }

    /// What the workers choose from: one atomic read, no lock.
    pub fn set(&self) -> &ArcSwap<EndpointSet> {
        &self.set
    }

    /// One entry per target, in the order of the configuration.
    pub fn status(&self) -> Vec<TargetStatus> {
        self.status.load().as_ref().clone()
    }
}

#[cfg(test)]
mod tests;
