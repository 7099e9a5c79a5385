//! Rendezvous hashing (Thaler and Ravishankar, 1996), weighted (Schindelhauer and Schomaker, 2005): every endpoint
//! bids for a key, and the highest bid has it.
//!
//! Exact where rings and tables are approximate: shares follow the weights, and a change moves only the keys it must.
//! The bids of pools of up to 128 are worked out once for each of 65,536 classes of keys; of larger ones at each
//! pick, which is O(n): `maglev` and `ring_hash` are for those.

use super::{Balance, Candidates, draw_by_key, mix};
use crate::upstream::EndpointSet;

pub(super) struct Rendezvous;

/// Who bids, and who wins each class of keys.
pub(super) struct Scores {
    bidders: Vec<Bidder>,
    is_even: bool,
    /// Empty for pools of more than [`BIDDERS_MAX`].
    winners: Vec<u32>,
}

struct Bidder {
    endpoint: u32,
    identity: u64,
    weight: f64,
}

/// Classes of keys: the first bits of the key.
const CLASS_BITS: u32 = 16;
/// Filling the table for so many takes the control thread some 20 ms, or 200 ms if they weigh differently.
const BIDDERS_MAX: usize = 128;

impl Balance for Rendezvous {
    fn pick(&self, candidates: &Candidates<'_>) -> Option<u32> {
        let Some(scores) = candidates.set.layout::<Scores>() else { return draw_by_key(candidates) };
        let class = candidates.key.unwrap_or(candidates.random) >> (u64::BITS - CLASS_BITS);
        let known = usize::try_from(class).ok().and_then(|class| scores.winners.get(class));
        match known {
            Some(winner) if !candidates.tried.contains(winner) => Some(*winner),
            // A retry goes to the second bid, which is where the key would be without the first.
            Some(_) => scores.winner(class, candidates.tried),
            None => scores.winner(candidates.key.unwrap_or(candidates.random), candidates.tried),
        }
    }

    fn wants_key(&self) -> bool {
        true
    }
}

impl Scores {
    pub(super) fn new(set: &EndpointSet) -> Self {
        let bidder = |(endpoint, weight): (u32, u32)| Bidder {
            endpoint,
            identity: set.endpoints[endpoint as usize].identity(),
            weight: f64::from(weight),
        };
        let bidders: Vec<Bidder> = set.eligible().map(bidder).collect();
        let is_even = bidders.windows(2).all(|two| two[0].weight == two[1].weight);
        let mut scores = Self { bidders, is_even, winners: Vec::new() };
        if set.endpoints.len() <= BIDDERS_MAX {
            scores.winners = (0..1 << CLASS_BITS).map_while(|class| scores.winner(class, &[])).collect();
        }
        scores
    }

    fn winner(&self, key: u64, tried: &[u32]) -> Option<u32> {
        let key = mix(key);
        let bidders = self.bidders.iter().filter(|bidder| !tried.contains(&bidder.endpoint));
        // The same winner either way: of equal weights the higher draw makes the higher bid.
        let best = match self.is_even {
            true => bidders.max_by_key(|bidder| bidder.draw(key)),
            false => bidders.max_by(|one, other| one.bid(key).total_cmp(&other.bid(key))),
        };
        best.map(|bidder| bidder.endpoint)
    }
}

impl Bidder {
    fn draw(&self, key: u64) -> u64 {
        mix(self.identity ^ key) >> 11
    }

    /// `-w / ln(u)` for a `u` of this endpoint and key evenly in (0, 1).
    fn bid(&self, key: u64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit exactly")]
        let unit = (self.draw(key) as f64 + 0.5) / (1_u64 << 53) as f64;
        -self.weight / unit.ln()
    }
}
