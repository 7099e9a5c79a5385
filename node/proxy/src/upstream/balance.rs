//! Strategies: which of the available endpoints takes the next session or request.
//!
//! A strategy looks at one worker's numbers only. It knows neither health (what is unavailable is not in the set)
//! nor retries (what was tried is named by the caller).

use std::{cell::Cell, collections::BTreeMap, sync::Arc};

use super::{EndpointSet, wheel};

/// What a strategy may look at. Everything is local to one worker; nothing here is shared or locked.
pub struct Candidates<'a> {
    pub set: &'a EndpointSet,
    /// Requests or sessions in flight from this worker, one per endpoint of `set`.
    pub pending: &'a dyn Fn(usize) -> u32,
    /// Endpoints (indexes into `set.endpoints`) that this session has tried already and must not get again.
    pub tried: &'a [u32],
    /// 64 random bits, fresh for each choice.
    pub random: u64,
}

/// A strategy with the state of one worker. Called on the hot path: no allocation, no lock, no wait.
pub trait Balance {
    /// An index into `set.endpoints` out of `set.available` and not in `tried`; `None` when there is none.
    fn pick(&self, candidates: &Candidates<'_>) -> Option<u32>;
}

/// Makes one strategy for one worker and one pool.
pub type Factory = Arc<dyn Fn() -> Box<dyn Balance> + Send + Sync>;

/// The strategies a configuration may name.
#[derive(Clone)]
pub struct Strategies(BTreeMap<String, Factory>);

impl Default for Strategies {
    /// `p2c` and `round_robin`.
    fn default() -> Self {
        let mut strategies = Self(BTreeMap::new());
        strategies.register("p2c", || Box::new(P2c));
        strategies.register("round_robin", || Box::<RoundRobin>::default());
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
        self.0.insert(name.into(), Arc::new(factory));
    }

    /// A fresh instance for one worker and one pool; `None`: nobody registered the name.
    pub fn get(&self, name: &str) -> Option<Box<dyn Balance>> {
        self.0.get(name).map(|factory| factory())
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// The better of two random choices (Mitzenmacher 2001): nearly as even as asking all, at the price of two.
///
/// Both are drawn by weight, and fewer in flight per weight wins. On a tie the first drawn wins, so an idle pool is
/// shared exactly by weight.
struct P2c;

impl Balance for P2c {
    fn pick(&self, candidates: &Candidates<'_>) -> Option<u32> {
        let first = draw(candidates, None, candidates.random)?;
        let Some(second) = draw(candidates, Some(first), mix(candidates.random)) else {
            return Some(candidates.set.available[first]);
        };
        let [first, second] = [first, second].map(|entry| candidates.set.available[entry]);
        let load = |one: u32, other: u32| {
            u64::from((candidates.pending)(one as usize))
                * u64::from(candidates.set.endpoints[other as usize].weight)
        };
        Some(if load(second, first) < load(first, second) { second } else { first })
    }
}

/// One after the other, each as often as it weighs, its turns spread out.
///
/// Starts at a random turn, so that the workers of all nodes do not march in step towards the same endpoint.
#[derive(Default)]
struct RoundRobin {
    /// The number of the next turn; `None` before the first.
    turn: Cell<Option<u64>>,
}

impl Balance for RoundRobin {
    fn pick(&self, candidates: &Candidates<'_>) -> Option<u32> {
        let EndpointSet { available, wheel, .. } = candidates.set;
        if available.is_empty() {
            return None;
        }
        // One turn is enough unless this is a retry. A heavy endpoint that was tried has many turns, so a bounded
        // number of them may meet nobody else; the draw then finds who is left.
        for _ in 0..=2 * candidates.tried.len() {
            let turn = self.turn.get().unwrap_or(candidates.random);
            self.turn.set(Some(turn.wrapping_add(1)));
            let endpoint = available[wheel.turn(turn)];
            if !candidates.tried.contains(&endpoint) {
                return Some(endpoint);
            }
        }
        draw(candidates, None, candidates.random).map(|entry| available[entry])
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

/// A second, independent-looking 64 bits out of the first (the finaliser of SplitMix64).
fn mix(random: u64) -> u64 {
    let z = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
