//! When an endpoint is taken out because of what sessions and requests met there, and for how long. PURE.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::OutlierConfig;

/// However often it was taken out before.
const EJECTION_MAX: Duration = Duration::from_secs(300);

/// Whether an endpoint is out, and how often in a row it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ejection {
    until: Option<Instant>,
    times: u32,
    back_since: Option<Instant>,
}

impl Ejection {
    pub(super) fn is_out(&self) -> bool {
        self.until.is_some()
    }

    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Each time in a row for longer. An endpoint that has been back for a while starts from the beginning: one step
    /// less for each time that it has served for as long as the shortest ejection.
    pub(super) fn begin(&mut self, config: &OutlierConfig, now: Instant) {
        let served = self.back_since.map_or(Duration::ZERO, |since| now - since);
        let forgiven = served.as_millis() / config.ejection.as_millis().max(1);
        let before = self.times.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX));
        self.times = before.saturating_add(1);
        let longest = EJECTION_MAX.max(config.ejection);
        self.until = Some(now + config.ejection.saturating_mul(self.times).min(longest));
    }

    /// Whether it has just come back.
    pub(super) fn end(&mut self, now: Instant) -> bool {
        let is_over = self.until.is_some_and(|until| until <= now);
        if is_over {
            self.until = None;
            self.back_since = Some(now);
        }
        is_over
    }
}

/// Whether one more of `all` may be out: never more than the share, and never the last.
pub(super) fn may_eject(out: usize, all: usize, config: &OutlierConfig) -> bool {
    out + 1 < all && (out + 1) * 100 <= all * config.max_ejected as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_in_a_row_is_longer_up_to_a_bound_and_good_service_is_rewarded() {
        let config = OutlierConfig { ejection: Duration::from_secs(30), ..OutlierConfig::default() };
        let start = Instant::now();
        let mut ejection = Ejection::default();
        let mut now = start;
        // Seconds it serves before it fails again, and seconds it is out then.
        for (served, out) in [(0, 30), (1, 60), (29, 90), (30, 90), (65, 60), (1, 90), (1000, 30)] {
            now += Duration::from_secs(served);
            ejection.begin(&config, now);
            assert_eq!(ejection.until(), Some(now + Duration::from_secs(out)), "after {served} s");
            assert!(!ejection.end(now + Duration::from_secs(out - 1)) && ejection.is_out());
            now += Duration::from_secs(out);
            assert!(ejection.end(now) && !ejection.is_out());
        }
        for _ in 0..20 {
            ejection.begin(&config, now);
            now = ejection.until().unwrap();
            ejection.end(now);
        }
        ejection.begin(&config, now);
        assert_eq!(ejection.until(), Some(now + Duration::from_secs(300)));
    }

    #[test]
    fn no_more_than_the_share_are_out_and_never_all() {
        for (max_ejected, all, expected) in [
            (50, 1, 0),
            (50, 2, 1),
            (50, 3, 1),
            (50, 4, 2),
            (50, 10, 5),
            (10, 9, 0),
            (10, 10, 1),
            (100, 3, 2),
            (0, 9, 0),
        ] {
            let config = OutlierConfig { max_ejected, ..OutlierConfig::default() };
            let out = (0..all).take_while(|&out| may_eject(out, all, &config)).count();
            assert_eq!(out, expected, "{max_ejected} % of {all}");
        }
    }
}
