//! When an endpoint counts as available, and when it is checked next.
//!
//! Pure: results, durations and random bits come in, verdicts go out. The checks themselves are in `probe`.

use std::time::Duration;

use super::wheel::scale;

/// What the checks of one endpoint have shown so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Health {
    /// `None` until the first result.
    available: Option<bool>,
    /// Results in a row that contradict `available`.
    against: u32,
    last_error: Option<String>,
}

impl Health {
    /// An endpoint that nobody checks.
    pub(super) fn unchecked() -> Self {
        Self { available: Some(true), ..Self::default() }
    }

    pub(super) fn available(&self) -> Option<bool> {
        self.available
    }

    /// Why the last check failed; `None` after one that passed.
    pub(super) fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// Takes one result in. `rise` passes in a row bring an endpoint back, `fall` failures in a row take it out (0
    /// counts as 1); the very first result stands alone, so that a fresh endpoint serves, or is known to be down, at
    /// once. Returns whether anything that users see changed.
    pub(super) fn record(&mut self, result: Result<(), String>, rise: u32, fall: u32) -> bool {
        let before = (self.available, self.last_error.take());
        let passed = result.is_ok();
        self.last_error = result.err();
        self.against = if self.available == Some(passed) { 0 } else { self.against + 1 };
        let needed = match (self.available, passed) {
            (None, _) => 1,
            (Some(_), true) => rise,
            (Some(_), false) => fall,
        };
        if self.against >= needed.max(1) {
            (self.available, self.against) = (Some(passed), 0);
        }
        before.0 != self.available || before.1 != self.last_error
    }
}

/// How long after one check the next one starts.
///
/// All endpoints are checked at once when they appear, and at a boot of the node all of them appear at once. So the
/// first pause is any part of the interval, which spreads them over it, and ±10 % ever after keeps them from
/// finding together again, within a node and between nodes.
pub(super) fn pause(interval: Duration, is_first: bool, random: u64) -> Duration {
    let percent = if is_first { 10 + scale(random, 91) } else { 90 + scale(random, 21) };
    let percent = u32::try_from(percent).expect("at most 110");
    interval * percent / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `+` a pass, `-` a failure; after each the state: `U`p, `D`own. Rise 2, fall 3.
    #[track_caller]
    fn check(results: &str, states: &str) {
        let mut health = Health::default();
        let seen: String = results
            .chars()
            .map(|result| {
                health.record(if result == '+' { Ok(()) } else { Err("down".to_owned()) }, 2, 3);
                if health.available() == Some(true) { 'U' } else { 'D' }
            })
            .collect();
        assert_eq!(seen, states, "after {results}");
    }

    #[test]
    fn the_first_result_counts_alone() {
        check("+", "U");
        check("-", "D");
    }

    #[test]
    fn an_endpoint_leaves_after_fall_failures_in_a_row() {
        check("+--", "UUU");
        check("+---", "UUUD");
        check("+--+--+---", "UUUUUUUUUD");
    }

    #[test]
    fn an_endpoint_returns_after_rise_passes_in_a_row() {
        check("-+", "DD");
        check("-++", "DDU");
        check("-+-+-++", "DDDDDDU");
        check("+---++", "UUUDDU");
    }

    #[test]
    fn a_rise_or_fall_of_zero_is_one() {
        let mut health = Health::default();
        for (result, expected) in [(Ok(()), true), (Err(String::new()), false), (Ok(()), true)] {
            health.record(result, 0, 0);
            assert_eq!(health.available(), Some(expected));
        }
    }

    #[test]
    fn a_change_is_reported_when_the_state_or_the_reason_changes() {
        let mut health = Health::default();
        let refused = || Err("connection refused".to_owned());
        for (result, changed, error) in [
            (Ok(()), true, None),
            (Ok(()), false, None),
            (refused(), true, Some("connection refused")),
            (refused(), false, Some("connection refused")),
            (Err("status 500".to_owned()), true, Some("status 500")),
            (Err("status 500".to_owned()), false, Some("status 500")),
            (Ok(()), true, None),
        ] {
            assert_eq!(health.record(result, 2, 3), changed);
            assert_eq!(health.last_error(), error);
        }
    }

    #[test]
    fn an_endpoint_that_nobody_checks_is_available() {
        assert_eq!(Health::unchecked().available(), Some(true));
        assert_eq!(Health::default().available(), None);
    }

    #[test]
    fn checks_keep_their_interval_within_ten_percent() {
        let interval = Duration::from_secs(5);
        assert_eq!(pause(interval, false, 0), Duration::from_millis(4500));
        assert_eq!(pause(interval, false, u64::MAX), Duration::from_millis(5500));
        assert_eq!(pause(interval, false, u64::MAX / 2), Duration::from_secs(5));
    }

    #[test]
    fn the_first_pause_spreads_endpoints_over_the_whole_interval() {
        let interval = Duration::from_secs(5);
        assert_eq!(pause(interval, true, 0), Duration::from_millis(500));
        assert_eq!(pause(interval, true, u64::MAX), Duration::from_secs(5));
    }
}
