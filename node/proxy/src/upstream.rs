//! A pool of an app: its targets resolved to endpoints, the endpoints checked, and the set that
//! may be chosen published to the workers.
//!
//! Control side only: everything here runs on the control runtime and hands the workers immutable
//! sets. What a worker keeps of its own (pending counts, idle connections) is in `pool`.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{balance::Layout, keeper::Keeper, record::Record, select::Selection};
use crate::{address::Address, config::PoolConfig, tls::upstream::Transport};

pub mod balance;
mod breaker;
pub(crate) mod ewma;
mod health;
mod keeper;
pub(crate) mod key;
mod outlier;
mod probe;
pub(crate) mod record;
mod resolve;
mod select;
mod wheel;

pub(crate) use resolve::Resolver;
pub(crate) use wheel::{scale, scale_to};

/// The endpoints of one pool at one moment. Immutable; a change publishes a new set.
#[derive(Debug, Default)]
pub struct EndpointSet {
    /// Every resolved endpoint, ordered by target and address, without duplicates.
    pub endpoints: Vec<Endpoint>,
    /// Indexes into `endpoints` of those that may be chosen now, ascending.
    pub available: Vec<u32>,
    /// Those that are fit as well and wait for the others to be gone: backups, other zones. For retries that have
    /// tried everybody in `available`.
    pub reserve: Vec<u32>,
    /// The effective weights of the available ones, laid out for the strategies.
    wheel: wheel::Wheel,
    layout: Option<Arc<dyn Any + Send + Sync>>,
    version: u64,
    /// Somebody's circuit is half open, so a pick has to ask whether it may try.
    pub(crate) has_trials: bool,
    /// Somebody's host has addresses of both families.
    pub(crate) has_dual_stack: bool,
}

#[derive(Clone, Debug)]
pub struct Endpoint {
    pub address: Address,
    /// The target as the user wrote it; a metric label.
    pub target: Arc<str>,
    /// Share of the traffic against the others; 0 takes none.
    pub weight: u32,
    /// What workers count of it, if anything.
    pub(crate) record: Option<Arc<Record>>,
    /// Its circuit is half open.
    pub(crate) is_on_trial: bool,
    /// Which host of its target it is of, if that has addresses of the other family, too.
    pub(crate) dual_stack: Option<u16>,
}

impl PartialEq for Endpoint {
    fn eq(&self, other: &Self) -> bool {
        let Self { address, target, weight, record, is_on_trial, dual_stack } = self;
        (address, target, *weight, *is_on_trial, *dual_stack)
            == (&other.address, &other.target, other.weight, other.is_on_trial, other.dual_stack)
            && record.as_ref().map(Arc::as_ptr) == other.record.as_ref().map(Arc::as_ptr)
    }
}

impl EndpointSet {
    /// `available` are indexes into `endpoints`, ascending. Endpoints of weight 0 are known and checked but take
    /// no traffic, so they drop out here and no strategy has to think of them.
    pub fn new(endpoints: Vec<Endpoint>, mut available: Vec<u32>) -> Self {
        available.retain(|&i| endpoints[i as usize].weight > 0);
        let chosen = available.iter().map(|&i| (i, endpoints[i as usize].weight)).collect();
        Self::selected(endpoints, Selection { chosen, ..Selection::default() })
    }

    fn selected(endpoints: Vec<Endpoint>, selection: Selection) -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let Selection { chosen, reserve, is_panic: _ } = selection;
        let wheel = wheel::Wheel::new(chosen.iter().map(|&(_, weight)| weight));
        let available = chosen.into_iter().map(|(endpoint, _)| endpoint).collect();
        let version = LAST.fetch_add(1, Relaxed) + 1;
        let has_trials = endpoints.iter().any(|endpoint| endpoint.is_on_trial);
        let has_dual_stack = endpoints.iter().any(|endpoint| endpoint.dual_stack.is_some());
        Self { endpoints, available, reserve, wheel, layout: None, version, has_trials, has_dual_stack }
    }

    /// The same with what a strategy looks things up in.
    #[must_use]
    pub fn laid_out(mut self, layout: &Layout) -> Self {
        self.layout = Some(layout(&self));
        self
    }

    /// The layout depends on nothing but the endpoints and who of them is available.
    fn laid_out_like(mut self, other: &Self) -> Self {
        self.layout.clone_from(&other.layout);
        self
    }

    /// What the strategy's layout made of this set, if it is a `T`.
    pub fn layout<T: Any>(&self) -> Option<&T> {
        self.layout.as_ref()?.downcast_ref()
    }

    /// Unlike that of any other set in the process, for strategies that keep something per set.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The available endpoints with their weights as configured: what a layout is made of, so that a slow start
    /// does not move keys.
    pub fn eligible(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.available.iter().map(|&endpoint| (endpoint, self.endpoints[endpoint as usize].weight))
    }
}

impl Endpoint {
    pub fn new(address: impl Into<Address>, target: impl Into<Arc<str>>, weight: u32) -> Self {
        Self {
            address: address.into(),
            target: target.into(),
            weight,
            record: None,
            is_on_trial: false,
            dual_stack: None,
        }
    }

    /// The same on every node, for strategies that hash.
    pub fn identity(&self) -> u64 {
        key::hash(self.address.to_string().as_bytes())
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
    pub address: Address,
    /// `None` until the first check is back.
    pub available: Option<bool>,
    /// Why the last check failed; `None` after one that passed.
    pub last_error: Option<String>,
    /// Taken out for a while because of failures in a row, whatever its checks say.
    pub ejected: bool,
}

/// Whose pool it is, and where the proxy stands.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub app: &'a str,
    pub pool: &'a str,
    pub zone: Option<&'a str>,
    /// Those who will choose.
    pub workers: usize,
}

/// The control side of one pool: what it publishes.
pub struct Upstream {
    set: ArcSwap<EndpointSet>,
    status: ArcSwap<Vec<TargetStatus>>,
    /// How checks begin.
    transport: Option<Arc<Transport>>,
}

impl Upstream {
    /// Spawns what resolves and checks the targets of `pool` on `tasks`, where it runs until `stop`. Must be called
    /// inside a tokio runtime.
    ///
    /// What is known without waiting (addresses that nobody checks) is published when this returns. `changed` is
    /// called after every later change of the set or the status, from the control runtime; it must not block.
    pub fn start(
        pool: &PoolConfig,
        place: Place<'_>,
        layout: Option<Layout>,
        tasks: &TaskTracker,
        stop: CancellationToken,
        changed: Arc<dyn Fn() + Send + Sync>,
    ) -> Arc<Self> {
        Self::start_with(None, pool, place, layout, tasks, stop, changed)
    }

    /// `None`: names are looked up by the resolver of this runtime.
    pub(crate) fn start_with(
        resolver: Option<Arc<Resolver>>,
        pool: &PoolConfig,
        place: Place<'_>,
        layout: Option<Layout>,
        tasks: &TaskTracker,
        stop: CancellationToken,
        changed: Arc<dyn Fn() + Send + Sync>,
    ) -> Arc<Self> {
        let transport = keeper::transport_of_checks(pool);
        let upstream = Arc::new(Self { set: ArcSwap::default(), status: ArcSwap::default(), transport });
        let keeper = Keeper::new(upstream.clone(), place, pool, layout, resolver);
        // Addresses that nobody checks never change: 10,000 apps of that kind cost no task at all.
        if !keeper.is_settled() {
            tasks.spawn(keeper.run(stop, changed));
        }
        upstream
    }

    /// What of the checks is in files.
    pub(crate) fn transport(&self) -> Option<&Arc<Transport>> {
        self.transport.as_ref()
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
