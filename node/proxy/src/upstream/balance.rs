//! Strategies: which of the available endpoints takes the next session or request.
//!
//! A strategy looks at one worker's numbers only. It knows neither health (what is unavailable is not in the set)
//! nor retries (what was tried is named by the caller).

use std::{any::Any, collections::BTreeMap, sync::Arc};

use super::{EndpointSet, wheel};

mod choice;
mod maglev;
mod rendezvous;
mod ring;
mod turns;

pub use super::key::{hash, mix};

/// What a strategy may look at. Everything is local to one worker; nothing here is shared or locked.
pub struct Candidates<'a> {
    pub set: &'a EndpointSet,
    /// Requests or sessions in flight from this worker, one per endpoint of `set`.
    pub pending: &'a dyn Fn(usize) -> u32,
    /// Microseconds until an endpoint answers: the peak moving average as of now, in which failures count as slow.
    /// `None` before its first answer, and for every endpoint unless [`Balance::wants_latency`].
    pub latency: &'a dyn Fn(usize) -> Option<f64>,
    /// The hash of what the configuration hashes on. `None` when the request has no such thing, and always unless
    /// [`Balance::wants_key`].
    pub key: Option<u64>,
    /// Endpoints (indexes into `set.endpoints`) that this session has tried already and must not get again.
    pub tried: &'a [u32],
    /// 64 random bits, fresh for each choice.
    pub random: u64,
}

/// A strategy with the state of one worker. Called on the hot path: no allocation, no lock, no wait.
pub trait Balance {
    /// An index into `set.endpoints` out of `set.available` and not in `tried`; `None` when there is none.
    fn pick(&self, candidates: &Candidates<'_>) -> Option<u32>;

    /// Whether answers are to be timed for [`Candidates::latency`].
    fn wants_latency(&self) -> bool {
        false
    }

    /// Whether [`Candidates::key`] is to be filled in.
    fn wants_key(&self) -> bool {
        false
    }
}

/// Makes one strategy for one worker and one pool.
pub type Factory = Arc<dyn Fn() -> Box<dyn Balance> + Send + Sync>;

/// What a strategy makes of a set once, on the control side, for all workers to read: a lookup table, a ring.
pub type Layout = Arc<dyn Fn(&EndpointSet) -> Arc<dyn Any + Send + Sync> + Send + Sync>;

/// The strategies a configuration may name.
#[derive(Clone)]
pub struct Strategies(BTreeMap<String, Strategy>);

#[derive(Clone)]
struct Strategy {
    factory: Factory,
    layout: Option<Layout>,
}

impl Default for Strategies {
    /// `least_conn`, `maglev`, `p2c`, `peak_ewma`, `random`, `rendezvous`, `ring_hash` and `round_robin`.
    fn default() -> Self {
        let mut strategies = Self(BTreeMap::new());
        strategies.register("p2c", || Box::new(choice::P2c));
        strategies.register("peak_ewma", || Box::new(choice::PeakEwma));
        strategies.register("least_conn", || Box::new(choice::LeastConn));
        strategies.register("random", || Box::new(choice::Random));
        strategies.register("round_robin", || Box::<turns::RoundRobin>::default());
        strategies.register_with_layout("maglev", || Box::new(maglev::Maglev), maglev::Table::new);
        strategies.register_with_layout("ring_hash", || Box::new(ring::RingHash), ring::Ring::new);
        strategies.register_with_layout(
            "rendezvous",
            || Box::new(rendezvous::Rendezvous),
            rendezvous::Scores::new,
        );
        strategies
    }
}

impl Strategies {
    /// A name that is there already gets the new meaning, for pools compiled from now on.
    pub fn register(
        &mut self,
        name: impl Into<String>,
        factory: impl Fn() -> Box<dyn Balance> + Send + Sync + 'static,
    ) {
        self.0.insert(name.into(), Strategy { factory: Arc::new(factory), layout: None });
    }

    /// The same for a strategy that looks things up: `layout` runs once for each published set, and
    /// [`EndpointSet::layout`] gives what it made to every worker.
    pub fn register_with_layout<T: Any + Send + Sync>(
        &mut self,
        name: impl Into<String>,
        factory: impl Fn() -> Box<dyn Balance> + Send + Sync + 'static,
        layout: impl Fn(&EndpointSet) -> T + Send + Sync + 'static,
    ) {
        let layout: Layout = Arc::new(move |set| Arc::new(layout(set)));
        self.0.insert(name.into(), Strategy { factory: Arc::new(factory), layout: Some(layout) });
    }

    /// A fresh instance for one worker and one pool; `None`: nobody registered the name.
    pub fn get(&self, name: &str) -> Option<Box<dyn Balance>> {
        self.0.get(name).map(|strategy| (strategy.factory)())
    }

    /// What to lay out for the strategy of this name, if anything.
    pub fn layout(&self, name: &str) -> Option<Layout> {
        self.0.get(name)?.layout.clone()
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// An entry of `available` by weight, out of those neither tried nor `except`; `random` decides.
fn draw(candidates: &Candidates<'_>, except: Option<usize>, random: u64) -> Option<usize> {
    let EndpointSet { available, wheel, .. } = candidates.set;
    if candidates.tried.is_empty() {
        // Cut the excepted stretch out of the circle, draw, and step over the cut.
        let (start, length) = except.map_or((u64::MAX, 0), |entry| wheel.stretch(entry));
        let points = wheel.points() - length;
        if points == 0 {
            return None;
        }
        let point = wheel::scale(random, points);
        return Some(wheel.owner(if point < start { point } else { point + length }));
    }
    // A retry: rare enough to walk the whole set twice.
    let left = || {
        (0..available.len())
            .filter(|&entry| Some(entry) != except && !candidates.tried.contains(&available[entry]))
            .map(|entry| (entry, wheel.stretch(entry).1))
    };
    let mut point = wheel::scale(random, left().map(|(_, weight)| weight).sum());
    for (entry, weight) in left() {
        if point < weight {
            return Some(entry);
        }
        point -= weight;
    }
    None
}

/// What hash strategies do without a layout, or when it names nobody that is left: a draw by weight that the key
/// decides, so that equal keys still meet.
fn draw_by_key(candidates: &Candidates<'_>) -> Option<u32> {
    let random = mix(candidates.key.unwrap_or(candidates.random));
    draw(candidates, None, random).map(|entry| candidates.set.available[entry])
}

#[cfg(test)]
mod tests;
