//! The weights of a set of endpoints laid out on a circle: a point of the circle names one of them.
//!
//! Built once when a set is published; the workers only read it. Places on the wheel are positions in
//! `EndpointSet::available`, not indexes of endpoints.

/// Each entry owns a stretch of the circle as long as its weight (divided by what all weights have in common).
#[derive(Debug, Default)]
pub(super) struct Wheel {
    /// Where each entry's stretch ends. Ascending; the last one is the circumference.
    ends: Vec<u64>,
    /// See [`Wheel::stride`].
    stride: u64,
}

impl Wheel {
    /// All weights are at least 1.
    pub(super) fn new(weights: impl Iterator<Item = u32> + Clone) -> Self {
        let common = weights.clone().fold(0, |a, w| gcd(a, u64::from(w))).max(1);
        let ends: Vec<u64> = weights
            .scan(0, |end, w| {
                *end += u64::from(w) / common;
                Some(*end)
            })
            .collect();
        let stride = stride(ends.last().copied().unwrap_or(0));
        Self { ends, stride }
    }

    /// How many points the circle has: 0 when there is nobody to choose.
    pub(super) fn points(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Walking the circle in steps of the stride visits every point once per round, so each entry comes up exactly
    /// as often as it weighs; and because the stride is near the golden section of the circle, the turns of one entry
    /// are spread over the round rather than bunched (the three-distance theorem).
    pub(super) fn stride(&self) -> u64 {
        self.stride
    }

    /// Who owns a point. `point < points()`.
    pub(super) fn owner(&self, point: u64) -> usize {
        self.ends.partition_point(|&end| end <= point)
    }

    /// The stretch of one entry: its first point and its length.
    pub(super) fn stretch(&self, entry: usize) -> (u64, u64) {
        let start = if entry == 0 { 0 } else { self.ends[entry - 1] };
        (start, self.ends[entry] - start)
    }
}

/// The number next to the golden section of `points` that shares no divisor with it.
fn stride(points: u64) -> u64 {
    if points < 3 {
        return points.min(1);
    }
    // 0.618 in 64-bit fixed point.
    let near = scale(0x9E37_79B9_7F4A_7C15, points);
    (0..points).flat_map(|d| [near.wrapping_sub(d), near + d]).find(|&s| s > 0 && gcd(s, points) == 1).unwrap_or(1)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Maps 64 random bits evenly on `0..bound`.
#[expect(clippy::cast_possible_truncation, reason = "a 64-bit number times a fraction below one fits 64 bits")]
pub(super) fn scale(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}
