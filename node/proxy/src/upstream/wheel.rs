//! The weights of a set of endpoints laid out on a circle: a point of the circle names one of them.
//!
//! Built once when a set is published; the workers only read it. An entry is a position in
//! `EndpointSet::available`, not an index of an endpoint.

/// Each entry owns a stretch of the circle as long as its weight.
#[derive(Debug, Default)]
pub(super) struct Wheel {
    /// Where each entry's stretch ends. Ascending; the last one is the circumference.
    ends: Vec<u64>,
    is_even: bool,
}

impl Wheel {
    /// All weights are at least 1.
    pub(super) fn new(weights: impl Iterator<Item = u32>) -> Self {
        let mut end = 0;
        let grow = |weight| {
            end += u64::from(weight);
            end
        };
        let ends: Vec<u64> = weights.map(grow).collect();
        let first = ends.first().copied().unwrap_or(0);
        let is_even = ends.windows(2).all(|pair| pair[1] - pair[0] == first);
        Self { ends, is_even }
    }

    /// How many points the circle has: 0 when there is nobody to choose.
    pub(super) fn points(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
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

    /// Whether everybody weighs the same.
    pub(super) fn is_even(&self) -> bool {
        self.is_even
    }
}

/// Maps 64 random bits evenly on `0..bound`.
pub(crate) fn scale(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}

/// The same for a length.
pub(crate) fn scale_to(random: u64, bound: usize) -> usize {
    usize::try_from(scale(random, bound as u64)).expect("less than a length")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_cover_the_circle_without_gaps() {
        let wheel = Wheel::new([3, 1, 2].into_iter());
        assert_eq!([0, 1, 2].map(|entry| wheel.stretch(entry)), [(0, 3), (3, 1), (4, 2)]);
        assert_eq!((0..6).map(|point| wheel.owner(point)).collect::<Vec<_>>(), [0, 0, 0, 1, 2, 2]);
    }

    #[test]
    fn the_largest_weights_do_not_overflow() {
        let wheel = Wheel::new((0..10_000).map(|entry| u32::MAX - entry % 2));
        assert_eq!(wheel.owner(wheel.points() - 1), 9_999);
        assert_eq!(wheel.owner(scale(u64::MAX, wheel.points())), 9_999);
    }

    #[test]
    fn random_bits_are_spread_evenly() {
        assert_eq!([0, u64::MAX / 2, u64::MAX].map(|random| scale(random, 10)), [0, 4, 9]);
        assert_eq!(scale(u64::MAX, 1), 0);
    }
}
