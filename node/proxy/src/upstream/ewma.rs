//! How long an endpoint takes to answer: an average that jumps to each peak and comes down slowly. PURE.
//!
//! Finagle's "Peak EWMA", with a penalty: an endpoint that fails at once is not fast.

/// After this long without a new peak, an old one has lost 63 % of its weight (Finagle's default).
const DECAY_MILLIS: f64 = 10_000.0;
/// A failure counts as an answer after at least this long,
const FAILURE_MICROS: f64 = 1e6;
/// or after twice of what is expected of the endpoint, so that it weighs something where every answer is slow; but
/// never after more than this, or it would take minutes to be believed again.
const FAILURE_MICROS_MAX: f64 = 60e6;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Latency {
    /// 0 before the first answer.
    micros: f64,
    at_millis: u64,
}

impl Latency {
    /// Takes in one answer, or one failure, that came after so long.
    pub(crate) fn observe(&mut self, now_millis: u64, took_micros: f64, is_failure: bool) {
        let expected = self.micros * self.kept(now_millis);
        let sample = match is_failure {
            true => took_micros.max((2.0 * expected).clamp(FAILURE_MICROS, FAILURE_MICROS_MAX)),
            false => took_micros,
        };
        self.micros = if sample >= expected {
            sample
        } else {
            let kept = self.kept(now_millis);
            self.micros * kept + sample * (1.0 - kept)
        };
        // Never 0 again: that would be "not known".
        self.micros = self.micros.max(1.0);
        self.at_millis = now_millis;
    }

    /// As of now. An old peak fades also while nobody asks, so that the endpoint gets its next chance.
    pub(crate) fn expected_micros(&self, now_millis: u64) -> Option<f64> {
        (self.micros > 0.0).then(|| self.micros * self.kept(now_millis))
    }

    /// How much of the past still counts.
    fn kept(&self, now_millis: u64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "an age is far below 2^52 ms")]
        let age = now_millis.saturating_sub(self.at_millis) as f64;
        if age == 0.0 { 1.0 } else { (-age / DECAY_MILLIS).exp() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Observations as (milliseconds, microseconds, failed), and what is expected at the last of them.
    #[track_caller]
    fn check(observations: &[(u64, f64, bool)], expected: f64) {
        let mut latency = Latency::default();
        for &(at, took, is_failure) in observations {
            latency.observe(at, took, is_failure);
        }
        let now = observations.last().map_or(0, |last| last.0);
        let got = latency.expected_micros(now).unwrap();
        assert!((got / expected - 1.0).abs() < 0.01, "{observations:?}: {got}, not {expected}");
    }

    #[test]
    fn a_peak_counts_at_once_and_fades_slowly() {
        check(&[(0, 500.0, false)], 500.0);
        check(&[(0, 500.0, false), (1, 90_000.0, false)], 90_000.0);
        check(&[(0, 100_000.0, false), (0, 500.0, false)], 100_000.0);
        // After one decay time the peak has lost 63 % to the new sample.
        check(&[(0, 100_000.0, false), (10_000, 1_000.0, false)], 37_420.0);
    }

    #[test]
    fn a_failure_is_slow_however_fast_it_comes() {
        check(&[(0, 100.0, true)], 1e6);
        check(&[(0, 100.0, false), (1, 100.0, true)], 1e6);
        // Where answers take three seconds, a failure counts as six.
        check(&[(0, 3e6, false), (0, 100.0, true)], 6e6);
        check(&[(0, 100.0, true), (0, 100.0, true), (0, 100.0, true)], 4e6);
        check(&[(0, 100.0, true); 20], 60e6);
        // A failure that really took long counts as that.
        check(&[(0, 90e6, true)], 90e6);
    }

    #[test]
    fn a_peak_is_forgotten_while_nobody_asks() {
        let mut latency = Latency::default();
        assert_eq!(latency.expected_micros(5), None);
        latency.observe(0, 100_000.0, false);
        assert!(latency.expected_micros(10_000).unwrap() < 37_000.0);
        assert!(latency.expected_micros(100_000).unwrap() < 10.0);
    }
}
