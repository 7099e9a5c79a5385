//! Strategies that compare loads: p2c, peak EWMA, least connections, and random, which compares nothing.

use super::{Balance, Candidates, draw, mix};

/// The better of two random choices (Mitzenmacher 2001): nearly as even as asking all, at the price of two.
///
/// Both are drawn by weight, and fewer in flight per weight wins. On a tie the first drawn wins, so an idle pool is
/// shared exactly by weight.
pub(super) struct P2c;

/// The better of two by expected wait: the time an endpoint takes to answer, times what it has to answer already,
/// per weight.
///
/// The time is a moving average that jumps to each peak and comes down slowly (Finagle's "Peak EWMA"). A failure
/// counts as a slow answer, or an endpoint that fails at once would look fast and draw all the traffic.
pub(super) struct PeakEwma;

/// Fewest in flight per weight, of all, or of so many neighbours that it makes no difference.
///
/// Ties go to whom the draw by weight meets first, so an idle pool is shared exactly by weight.
pub(super) struct LeastConn;

/// By weight, whatever the load.
pub(super) struct Random;

/// Endpoints that [`LeastConn`] looks at. Beyond a few dozen the best of a sample is as good as the best of all
/// (Mitzenmacher 2001, §1: each further choice lowers the maximum by a constant at most), and a pick stays O(1).
const LOOKED_AT_MAX: usize = 128;

/// What an endpoint is taken to wait, in microseconds, that has never answered and has somebody waiting already. One
/// request may find out how fast it is; the others go elsewhere until then.
const UNKNOWN_MICROS: f64 = 1e9;

impl Balance for P2c {
    fn pick(&self, candidates: &Candidates<'_>) -> Option<u32> {
        better_of_two(candidates, |endpoint| f64::from((candidates.pending)(endpoint)))
    }
}

impl Balance for PeakEwma {
    fn pick(&self, candidates: &Candidates<'_>) -> Option<u32> {
        better_of_two(candidates, |endpoint| {
            let pending = f64::from((candidates.pending)(endpoint));
            match (candidates.latency)(endpoint) {
                Some(micros) => micros * (pending + 1.0),
                None => UNKNOWN_MICROS * pending,
            }
        })
    }

    fn wants_latency(&self) -> bool {
        true
    }
}

impl Balance for LeastConn {
    fn pick(&self, candidates: &Candidates<'_>) -> Option<u32> {
        let first = draw(candidates, None, candidates.random)?;
        let available = &candidates.set.available;
        let mut best = (available[first], load(candidates, first));
        let rest = (first + 1..available.len()).chain(0..first).take(LOOKED_AT_MAX - 1);
        for entry in rest {
            if best.1 == 0.0 {
                break;
            }
            let load = load(candidates, entry);
            if load < best.1 && !candidates.tried.contains(&available[entry]) {
                best = (available[entry], load);
            }
        }
        Some(best.0)
    }
}

impl Balance for Random {
    fn pick(&self, candidates: &Candidates<'_>) -> Option<u32> {
        draw(candidates, None, candidates.random).map(|entry| candidates.set.available[entry])
    }
}

/// In flight per weight.
fn load(candidates: &Candidates<'_>, entry: usize) -> f64 {
    let pending = (candidates.pending)(candidates.set.available[entry] as usize);
    f64::from(pending) / weight(candidates, entry)
}

fn weight(candidates: &Candidates<'_>, entry: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "one weight is far below 2^52")]
    let weight = candidates.set.wheel.stretch(entry).1 as f64;
    weight
}

/// Draws two by weight and takes the one with the lower cost per weight; the first on a tie.
fn better_of_two(candidates: &Candidates<'_>, cost: impl Fn(usize) -> f64) -> Option<u32> {
    let available = &candidates.set.available;
    let first = draw(candidates, None, candidates.random)?;
    let Some(second) = draw(candidates, Some(first), mix(candidates.random)) else {
        return Some(available[first]);
    };
    // Cross-multiplied: no division.
    let [one, other] = [first, second].map(|entry| cost(available[entry] as usize));
    let is_better = other * weight(candidates, first) < one * weight(candidates, second);
    Some(available[if is_better { second } else { first }])
}
