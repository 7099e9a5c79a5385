//! Round robin: one after the other, each as often as it weighs, its turns spread out.

use std::{
    cell::{Cell, RefCell},
    cmp::Reverse,
    collections::BinaryHeap,
};

use super::{Balance, Candidates, draw, mix};
use crate::upstream::EndpointSet;

/// Equal weights take turns strictly. Otherwise everybody's next turn is due one n-th of a round after the last, and
/// whoever is due first is next: in any stretch of turns as long as the weights add up to, everybody has had exactly
/// as many as it weighs (stride scheduling, Waldspurger 1995; the result is nginx's smooth weighted round robin
/// without looking at everybody each time).
///
/// Starts at a random turn, so that the workers of all nodes do not march in step towards the same endpoint.
#[derive(Default)]
pub(super) struct RoundRobin {
    /// The number of the next turn; `None` before the first.
    turn: Cell<Option<u64>>,
    schedule: RefCell<Schedule>,
}

/// Who is due when, for one set.
#[derive(Default)]
struct Schedule {
    version: u64,
    /// Entries of `available` by the time their next turn is due. A round takes [`ROUND`].
    due: BinaryHeap<Reverse<(u128, usize)>>,
}

/// One round in the units of time: fine enough that a turn of the smallest share is a whole number of them.
const ROUND: u128 = 1 << 64;

impl Balance for RoundRobin {
    fn pick(&self, candidates: &Candidates<'_>) -> Option<u32> {
        let EndpointSet { available, .. } = candidates.set;
        if available.is_empty() {
            return None;
        }
        // One turn is enough unless this is a retry. A heavy endpoint that was tried has many turns, so a bounded
        // number of them may meet nobody else; the draw then finds who is left.
        for _ in 0..=2 * candidates.tried.len() {
            let endpoint = available[self.next(candidates)];
            if !candidates.tried.contains(&endpoint) {
                return Some(endpoint);
            }
        }
        draw(candidates, None, candidates.random).map(|entry| available[entry])
    }
}

impl RoundRobin {
    /// Takes a turn.
    fn next(&self, Candidates { set, random, .. }: &Candidates<'_>) -> usize {
        if set.wheel.is_even() {
            let turn = self.turn.get().unwrap_or(*random);
            self.turn.set(Some(turn.wrapping_add(1)));
            return usize::try_from(turn % set.available.len() as u64).expect("less than a length");
        }
        let mut schedule = self.schedule.borrow_mut();
        if schedule.version != set.version() {
            schedule.begin(set, *random);
        }
        schedule.next(set)
    }
}

impl Schedule {
    /// Everybody's first turn is due somewhere in the first of its strides.
    fn begin(&mut self, set: &EndpointSet, random: u64) {
        self.version = set.version();
        self.due.clear();
        let mut bits = random;
        self.due.extend((0..set.available.len()).map(|entry| {
            bits = mix(bits);
            Reverse(((stride(set, entry) * u128::from(bits >> 32)) >> 32, entry))
        }));
    }

    fn next(&mut self, set: &EndpointSet) -> usize {
        let mut first = self.due.peek_mut().expect("nobody asks for a turn of an empty set");
        let Reverse((at, entry)) = *first;
        *first = Reverse((at + stride(set, entry), entry));
        entry
    }
}

/// From one turn of an entry to its next. In 2^64 rounds nobody comes to the end of the type.
fn stride(set: &EndpointSet, entry: usize) -> u128 {
    ROUND / u128::from(set.wheel.stretch(entry).1)
}
