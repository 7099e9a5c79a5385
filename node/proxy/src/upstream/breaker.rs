//! A circuit breaker: closed while an endpoint answers well, open while it does not, half open to find out. PURE.
//!
//! Errors are counted in a window of ten buckets that moves on by one bucket at a time.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::BreakerConfig;

const BUCKETS: u32 = 10;
/// How many a half-open circuit lets through. All of them must go well.
pub(super) const TRIALS: u32 = 3;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    #[default]
    Closed,
    Open {
        until: Instant,
    },
    /// `since`: a trial whose outcome never comes does not keep it so for ever.
    HalfOpen {
        since: Instant,
    },
}

impl State {
    pub(super) fn is_open(self) -> bool {
        matches!(self, State::Open { .. })
    }

    pub(super) fn is_half_open(self) -> bool {
        matches!(self, State::HalfOpen { .. })
    }

    /// For the metric.
    pub(super) fn number(self) -> u8 {
        match self {
            State::Closed => 0,
            State::HalfOpen { .. } => 1,
            State::Open { .. } => 2,
        }
    }
}

/// The circuit of one endpoint.
#[derive(Clone, Debug, Default)]
pub(super) struct Circuit {
    pub(super) state: State,
    /// Totals of (all, errors) at the beginning of each bucket, the oldest first. They only ever grow.
    marks: Vec<(u64, u64)>,
    /// When the next bucket begins.
    next: Option<Instant>,
}

/// What to do about a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    Opened,
    /// Let [`TRIALS`] through.
    HalfOpened,
    Closed,
}

impl Circuit {
    /// When to look again at the latest.
    pub(super) fn next(&self) -> Option<Instant> {
        match self.state {
            State::Open { until } => Some(until),
            State::Closed | State::HalfOpen { .. } => self.next,
        }
    }

    /// Looks at the totals so far.
    pub(super) fn look(&mut self, totals: (u64, u64), config: &BreakerConfig, now: Instant) -> Change {
        match self.state {
            State::Closed => self.look_at_window(totals, config, now),
            State::Open { until } if until <= now => self.try_again(totals, config, now),
            State::Open { .. } => Change::None,
            State::HalfOpen { since } => match self.since_mark(totals) {
                (_, 1..) => self.open(config, now),
                (all, 0) if all >= u64::from(TRIALS) => {
                    *self = Self::default();
                    self.mark(totals, config, now);
                    Change::Closed
                }
                (_, 0) if since + config.open_for <= now => self.try_again(totals, config, now),
                (_, 0) => {
                    self.next = Some(since + config.open_for);
                    Change::None
                }
            },
        }
    }

    fn look_at_window(&mut self, totals: (u64, u64), config: &BreakerConfig, now: Instant) -> Change {
        if self.marks.is_empty() {
            self.mark(totals, config, now);
            return Change::None;
        }
        let (all, errors) = self.since_mark(totals);
        if all >= u64::from(config.min_requests.max(1))
            && errors * 100 >= all * u64::from(config.error_percent)
        {
            return self.open(config, now);
        }
        if self.next.is_none_or(|next| next <= now) {
            self.mark(totals, config, now);
        }
        Change::None
    }

    fn open(&mut self, config: &BreakerConfig, now: Instant) -> Change {
        *self = Self { state: State::Open { until: now + config.open_for }, ..Self::default() };
        Change::Opened
    }

    fn try_again(&mut self, totals: (u64, u64), config: &BreakerConfig, now: Instant) -> Change {
        *self = Self {
            state: State::HalfOpen { since: now },
            marks: vec![totals],
            next: Some(now + config.open_for),
        };
        Change::HalfOpened
    }

    /// Begins a bucket, and forgets those before the window.
    fn mark(&mut self, totals: (u64, u64), config: &BreakerConfig, now: Instant) {
        if self.marks.len() >= BUCKETS as usize {
            self.marks.remove(0);
        }
        self.marks.push(totals);
        self.next = Some(now + (config.window / BUCKETS).max(Duration::from_millis(1)));
    }

    /// What was counted since the oldest bucket began.
    fn since_mark(&self, (all, errors): (u64, u64)) -> (u64, u64) {
        let (all_before, errors_before) = self.marks.first().copied().unwrap_or((all, errors));
        (all.wrapping_sub(all_before), errors.wrapping_sub(errors_before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A circuit that is looked at every second: 50 % of at least 20 in 10 s, open for 5 s.
    struct Life {
        circuit: Circuit,
        now: Instant,
        totals: (u64, u64),
    }

    impl Life {
        fn new() -> Self {
            let mut life = Self { circuit: Circuit::default(), now: Instant::now(), totals: (100, 90) };
            life.check(0, 0, Change::None);
            life
        }

        /// One second in which `good` and `bad` ones end.
        #[track_caller]
        fn check(&mut self, good: u64, bad: u64, expected: Change) {
            let config = BreakerConfig {
                error_percent: 50,
                window: Duration::from_secs(10),
                min_requests: 20,
                open_for: Duration::from_secs(5),
            };
            self.now += Duration::from_secs(1);
            self.totals = (self.totals.0 + good + bad, self.totals.1 + bad);
            assert_eq!(self.circuit.look(self.totals, &config, self.now), expected, "{:?}", self.circuit);
        }
    }

    #[test]
    fn it_opens_at_the_share_of_errors_and_not_before_enough_were_seen() {
        let mut life = Life::new();
        life.check(0, 19, Change::None);
        life.check(0, 1, Change::Opened);
        let mut life = Life::new();
        life.check(51, 49, Change::None);
        life.check(0, 2, Change::Opened);
    }

    #[test]
    fn errors_are_forgotten_with_their_bucket() {
        let mut life = Life::new();
        life.check(0, 15, Change::None);
        for _ in 0..9 {
            life.check(0, 0, Change::None);
        }
        life.check(0, 15, Change::None);
        life.check(0, 5, Change::Opened);
    }

    #[test]
    fn it_tries_again_and_closes_when_all_trials_go_well() {
        let mut life = Life::new();
        life.check(0, 20, Change::Opened);
        for _ in 0..4 {
            // Those that were under way say nothing new.
            life.check(0, 1, Change::None);
        }
        life.check(0, 0, Change::HalfOpened);
        life.check(1, 0, Change::None);
        life.check(1, 0, Change::None);
        life.check(1, 0, Change::Closed);
        // It starts without a past.
        life.check(0, 19, Change::None);
        life.check(0, 1, Change::Opened);
    }

    #[test]
    fn one_bad_trial_opens_it_again() {
        let mut life = Life::new();
        life.check(0, 20, Change::Opened);
        for _ in 0..4 {
            life.check(0, 0, Change::None);
        }
        life.check(0, 0, Change::HalfOpened);
        life.check(2, 1, Change::Opened);
        assert!(matches!(life.circuit.state, State::Open { .. }));
    }

    #[test]
    fn trials_that_never_end_are_not_waited_for() {
        let mut life = Life::new();
        life.check(0, 20, Change::Opened);
        for _ in 0..4 {
            life.check(0, 0, Change::None);
        }
        life.check(0, 0, Change::HalfOpened);
        for _ in 0..4 {
            life.check(0, 0, Change::None);
        }
        life.check(0, 0, Change::HalfOpened);
    }
}
