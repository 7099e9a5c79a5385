//! Times in a fixed amount of memory, however many there are.
//!
//! Each power of two of microseconds is split into 64 buckets, so a percentile is at most 1.6 % too
//! high. The smallest and the largest time are exact.

use std::time::Duration;

const SPLIT_BITS: u32 = 6;
const SPLIT: u64 = 1 << SPLIT_BITS;

#[derive(Clone, Debug, Default)]
pub(super) struct Histogram {
    /// Grows to the largest bucket that was hit; at most `SPLIT * 59`.
    buckets: Vec<u64>,
    count: u64,
    min: Duration,
    max: Duration,
}

impl Histogram {
    pub(super) fn record(&mut self, time: Duration) {
        let bucket = bucket_of(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        if self.buckets.len() <= bucket {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += 1;
        self.min = if self.count == 0 { time } else { self.min.min(time) };
        self.max = self.max.max(time);
        self.count += 1;
    }

    pub(super) fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        self.min = if self.count == 0 { other.min } else { self.min.min(other.min) };
        self.max = self.max.max(other.max);
        self.count += other.count;
        self.buckets.resize(self.buckets.len().max(other.buckets.len()), 0);
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn min(&self) -> Duration {
        self.min
    }

    pub(super) fn max(&self) -> Duration {
        self.max
    }

    /// The time that `percent` of all times do not exceed.
    pub(super) fn percentile(&self, percent: u64) -> Duration {
        let rank = (self.count * percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_micros(highest_of(bucket)).clamp(self.min, self.max);
            }
        }
        self.max
    }
}

fn bucket_of(micros: u64) -> usize {
    let bucket = if micros < SPLIT {
        micros
    } else {
        let shift = micros.ilog2() - SPLIT_BITS;
        u64::from(shift + 1) * SPLIT + (micros >> shift) - SPLIT
    };
    usize::try_from(bucket).expect("there are fewer than 64 * 59 buckets")
}

/// The largest number of microseconds that falls into the bucket.
fn highest_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < SPLIT {
        return bucket;
    }
    let shift = bucket / SPLIT - 1;
    let first = (bucket % SPLIT + SPLIT) << shift;
    first + ((1 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_at_most_two_percent_wide_and_they_follow_each_other() {
        let mut last = 0;
        for micros in (0..5_000).chain((13..64).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + 1])) {
            let bucket = bucket_of(micros);
            assert!((last..=last + 64).contains(&bucket), "{micros}");
            let highest = highest_of(bucket);
            assert!(highest >= micros && highest - micros <= micros / 60, "{micros} {highest}");
            assert_eq!(bucket_of(highest), bucket);
            last = bucket;
        }
    }

    #[test]
    fn percentiles_of_a_hundred_times_are_those_times() {
        let (mut odd, mut even) = (Histogram::default(), Histogram::default());
        for millis in 1..=100 {
            let half = if millis % 2 == 0 { &mut even } else { &mut odd };
            half.record(Duration::from_millis(millis));
        }
        odd.merge(&even);
        odd.merge(&Histogram::default());
        assert_eq!((odd.count(), odd.min()), (100, Duration::from_millis(1)));
        assert_eq!(odd.max(), Duration::from_millis(100));
        for percent in [50, 90, 99, 100] {
            let exact = Duration::from_millis(percent);
            let told = odd.percentile(percent);
            assert!(told >= exact && told <= exact.mul_f64(1.017), "p{percent}: {told:?}");
        }
    }
}
