//! Consistent hashing on a ring (Karger et al., 1997): everybody has as many points on a circle as it weighs, and a
//! key belongs to the next point.
//!
//! When an endpoint goes, exactly its keys move, each to a neighbour. Shares are less even than with maglev.

use super::{Balance, Candidates, draw_by_key, mix};
use crate::upstream::EndpointSet;

pub(super) struct RingHash;

/// Points, ascending, and the endpoint each belongs to.
pub(super) struct Ring(Vec<(u64, u32)>);

/// Points of an endpoint of the default weight 100. The shares of n endpoints spread by about 1/sqrt(160) = 8 %.
const POINTS: u64 = 160;
const WEIGHT: u64 = 100;
/// Points of a whole ring, 16 bytes each. Larger pools get a smaller number per endpoint.
const POINTS_MAX: usize = 1 << 20;

impl Balance for RingHash {
    fn pick(&self, candidates: &Candidates<'_>) -> Option<u32> {
        let Some(Ring(points)) = candidates.set.layout() else { return draw_by_key(candidates) };
        let key = candidates.key.unwrap_or(candidates.random);
        let start = points.partition_point(|&(point, _)| point < key);
        // The first is it, unless this is a retry: then whoever comes after it on the ring.
        let mut around = points[start..].iter().chain(&points[..start]);
        around.find(|(_, endpoint)| !candidates.tried.contains(endpoint)).map(|&(_, endpoint)| endpoint)
    }

    fn wants_key(&self) -> bool {
        true
    }
}

impl Ring {
    pub(super) fn new(set: &EndpointSet) -> Self {
        // By all endpoints and not by those available, so that nobody's points move when another one fails.
        let per_endpoint = (POINTS_MAX / set.endpoints.len().max(1)) as u64;
        let mut points: Vec<(u64, u32)> = set
            .eligible()
            .flat_map(|(endpoint, weight)| {
                let count = (u64::from(weight) * POINTS / WEIGHT).clamp(1, per_endpoint.max(1));
                let identity = set.endpoints[endpoint as usize].identity();
                (0..count).map(move |number| (mix(identity ^ mix(number)), endpoint))
            })
            .collect();
        points.sort_unstable();
        Self(points)
    }
}
