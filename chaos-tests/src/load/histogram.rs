//! Latencies in buckets of 3 %, so that millions of them take 15 KiB.

use std::time::Duration;

/// Each doubling is divided into this many buckets.
const PER_DOUBLING: u64 = 32;
const BITS: u32 = PER_DOUBLING.trailing_zeros();

#[derive(Clone, Debug, Default)]
pub(super) struct Histogram {
    /// Index: see [`bucket`]; grows to the largest value seen.
    counts: Vec<u64>,
    total: u64,
    max_us: u64,
}

impl Histogram {
    pub(super) fn record(&mut self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let bucket = bucket(us);
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += 1;
        self.total += 1;
        self.max_us = self.max_us.max(us);
    }

    pub(super) fn add(&mut self, other: &Self) {
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
        self.max_us = self.max_us.max(other.max_us);
    }

    /// The latency that `per_mille` of 1,000 operations did not exceed, rounded up to its bucket's end.
    pub(super) fn quantile(&self, per_mille: u64) -> Duration {
        let rank = (self.total * per_mille).div_ceil(1_000);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_micros(upper_bound(bucket).min(self.max_us));
            }
        }
        Duration::from_micros(self.max_us)
    }

    pub(super) fn max(&self) -> Duration {
        Duration::from_micros(self.max_us)
    }
}

/// Small values have a bucket each; above, the highest `BITS + 1` bits choose it.
fn bucket(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(BITS + 1);
    usize::try_from(u64::from(shift) * PER_DOUBLING + (value >> shift)).expect("at most 1,920")
}

/// The largest value of the bucket.
fn upper_bound(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket / PER_DOUBLING).saturating_sub(1);
    let lowest = (bucket - shift * PER_DOUBLING) << shift;
    lowest + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lies_in_its_bucket_and_no_bucket_is_wider_than_a_32nd() {
        let mut next = 0;
        for bucket_index in 0..1_000 {
            let upper = upper_bound(bucket_index);
            assert_eq!(bucket(next), bucket_index, "first value {next}");
            assert_eq!(bucket(upper), bucket_index, "last value {upper}");
            assert!(upper - next <= next / PER_DOUBLING, "{next}..={upper}");
            next = upper + 1;
        }
        assert_eq!(bucket(u64::MAX), 1_919);
    }

    #[test]
    fn quantiles_are_within_a_32nd_of_the_exact_ones() {
        let mut histogram = Histogram::default();
        for us in 1..=10_000 {
            histogram.record(Duration::from_micros(us));
        }
        for (per_mille, exact) in [(1, 10), (500, 5_000), (900, 9_000), (990, 9_900), (999, 9_990)] {
            let us = histogram.quantile(per_mille).as_micros();
            assert!((exact..=exact + exact / 32).contains(&us), "{per_mille}: {us} for {exact}");
        }
        assert_eq!(histogram.quantile(1_000), Duration::from_micros(10_000));
        assert_eq!(Histogram::default().quantile(500), Duration::ZERO);
    }
}
