//! The weights of a set of endpoints laid out on a circle: a point of the circle names one of them.
//!
//! Built once when a set is published; the workers only read it. An entry is a position in
//! `EndpointSet::available`, not an index of an endpoint.

/// 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

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

    /// Whose turn number `turn` is. There must be somebody.
    ///
    /// Equal weights take turns strictly. Otherwise the turns step around the circle by the golden section, the
    /// rotation that spreads its points most evenly (Knuth, TAOCP 3, §6.4, exercise 9): no entry is ever more than a
    /// few turns ahead of its share, and its turns come spread out. No state but the number, and none to rebuild when
    /// the set changes.
    pub(super) fn turn(&self, turn: u64) -> usize {
        if self.is_even {
            let entries = self.ends.len() as u64;
            return usize::try_from(turn % entries).expect("less than a length");
        }
        self.owner(scale(turn.wrapping_mul(GOLDEN), self.points()))
    }
}

/// Maps 64 random bits evenly on `0..bound`.
pub(super) fn scale(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first turns, beginning with number 0.
    #[track_caller]
    fn check(weights: &[u32], turns: &str) {
        let wheel = Wheel::new(weights.iter().copied());
        let seen: String =
            (0..).take(turns.len()).map(|turn| char::from(b"ABCDEFG"[wheel.turn(turn)])).collect();
        assert_eq!(seen, turns, "{weights:?}");
    }

    #[test]
    fn equal_weights_take_turns_and_others_are_spread() {
        check(&[7], "AAAA");
        check(&[1, 1], "ABABABAB");
        check(&[100, 100, 100], "ABCABCABC");
        check(&[2, 1], "AAABAABABAAB");
        check(&[3, 1], "AAABAAAABAABAAAA");
        check(&[4, 2, 1], "ABABAABACAABAA");
    }

    #[test]
    fn nobody_is_ever_far_from_his_share() {
        for weights in
            [&[2, 1][..], &[3, 2, 1], &[100, 1], &[50, 30, 15, 5], &[997, 503, 251, 127, 61, 31, 17]]
        {
            let wheel = Wheel::new(weights.iter().copied());
            // Anywhere in the sequence, also where the number wraps around.
            for start in [0, 1 << 40, u64::MAX - 500] {
                let mut turns = vec![0.0; weights.len()];
                for count in 1..2000_u32 {
                    turns[wheel.turn(start.wrapping_add(count.into()))] += 1.0;
                    for (had, &weight) in turns.iter().zip(weights) {
                        let sum: u32 = weights.iter().sum();
                        let share = f64::from(count) * f64::from(weight) / f64::from(sum);
                        assert!((had - share).abs() < 5.0, "{weights:?}: {had} instead of {share}");
                    }
                }
            }
        }
    }

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
        assert!(wheel.turn(u64::MAX) < 10_000);
    }

    #[test]
    fn random_bits_are_spread_evenly() {
        assert_eq!([0, u64::MAX / 2, u64::MAX].map(|random| scale(random, 10)), [0, 4, 9]);
        assert_eq!(scale(u64::MAX, 1), 0);
    }
}
