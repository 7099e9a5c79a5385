//! Maglev hashing (Eisenbud et al., NSDI 2016): a lookup table in which everybody holds as many places as it weighs.
//!
//! The most even of the hash strategies, at one array access per pick. When an endpoint goes, its places go to the
//! others, and few others move.

use super::{Balance, Candidates, draw_by_key, mix};
use crate::upstream::EndpointSet;

pub(super) struct Maglev;

/// Which endpoint each place of the table belongs to.
pub(super) struct Table(Vec<u32>);

/// Primes, so that every step through a table visits all of it. About a hundred places per endpoint keep the shares
/// within a percent or two (§3.4 of the paper), and a small pool keeps a small table.
const SIZES: [(usize, usize); 4] = [(20, 2_039), (160, 16_381), (655, 65_537), (usize::MAX, 655_373)];

/// Other places to look at when the first was tried already.
const LOOKS_MAX: u64 = 8;

impl Balance for Maglev {
    fn pick(&self, candidates: &Candidates<'_>) -> Option<u32> {
        let Some(Table(places)) = candidates.set.layout() else { return draw_by_key(candidates) };
        if places.is_empty() {
            return None;
        }
        let mut key = candidates.key.unwrap_or(candidates.random);
        for _ in 0..LOOKS_MAX {
            let endpoint = places[super::wheel::scale_to(key, places.len())];
            if !candidates.tried.contains(&endpoint) {
                return Some(endpoint);
            }
            key = mix(key);
        }
        draw_by_key(candidates)
    }

    fn wants_key(&self) -> bool {
        true
    }
}

/// An endpoint walking the table in an order of its own.
struct Walker {
    endpoint: u32,
    next: usize,
    step: usize,
    /// Places it may take per round, the heaviest one taking one, and what is left over from earlier rounds.
    share: f64,
    credit: f64,
}

impl Table {
    /// §3.4, with weights: in each round the heaviest takes the next free place on its walk, and the others
    /// whenever their weight adds up to one.
    pub(super) fn new(set: &EndpointSet) -> Self {
        // By all endpoints and not by those available, so that a failing one does not change the size.
        let (_, size) = SIZES
            .into_iter()
            .find(|(endpoints, _)| set.endpoints.len() <= *endpoints)
            .expect("the last one has no bound");
        let heaviest = set.eligible().map(|(_, weight)| weight).max().unwrap_or(1);
        let mut walkers: Vec<Walker> = set
            .eligible()
            .map(|(endpoint, weight)| {
                let identity = set.endpoints[endpoint as usize].identity();
                Walker {
                    endpoint,
                    next: super::wheel::scale_to(identity, size),
                    step: 1 + super::wheel::scale_to(mix(identity), size - 1),
                    share: f64::from(weight) / f64::from(heaviest),
                    credit: 0.0,
                }
            })
            .collect();
        // Whoever comes first gets the place both want, so the order must not depend on how targets are listed.
        walkers.sort_by_key(|walker| set.endpoints[walker.endpoint as usize].identity());
        if walkers.is_empty() {
            return Self(Vec::new());
        }
        const FREE: u32 = u32::MAX;
        let mut places = vec![FREE; size];
        let mut taken = 0;
        'all: loop {
            for walker in &mut walkers {
                walker.credit += walker.share;
                if walker.credit < 1.0 {
                    continue;
                }
                walker.credit -= 1.0;
                while places[walker.next] != FREE {
                    walker.next = (walker.next + walker.step) % size;
                }
                places[walker.next] = walker.endpoint;
                taken += 1;
                if taken == size {
                    break 'all;
                }
            }
        }
        Self(places)
    }
}
