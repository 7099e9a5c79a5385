//! Strategies: which of the available endpoints takes the next session or request.

use super::EndpointSet;

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
