//! What sessions and requests meet at one endpoint, over all workers of the node.
//!
//! Workers only write here, each in a cell of its own, and read a shared number when something fails; the keeper sums
//! up and decides. A pick reads none of it, unless a circuit is half open.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use tokio::sync::Notify;

use crate::{config::PoolConfig, connect::Outcome};

/// What is counted of an endpoint, in a pool that wants anything counted.
#[derive(Debug)]
pub(crate) struct Record {
    /// Failures in a row that alarm the keeper; 0 = none do.
    failures_max: u32,
    failures: AtomicU32,
    /// One per worker; empty without a circuit breaker.
    counts: Box<[Counts]>,
    /// How many may still try a half-open circuit.
    trials: AtomicU32,
    /// The keeper, when it has to look.
    alarm: Arc<Notify>,
}

/// A cache line of its own, so that workers do not slow each other down.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Counts {
    all: AtomicU64,
    errors: AtomicU64,
}

impl Record {
    /// `None` when nothing of the pool's configuration needs it.
    pub(super) fn of(pool: &PoolConfig, workers: usize, alarm: &Arc<Notify>) -> Option<Arc<Record>> {
        let failures_max = if pool.is_watched() { pool.outlier.consecutive_failures } else { 0 };
        let counts = if pool.breaker.is_some() { workers } else { 0 };
        (failures_max > 0 || counts > 0).then(|| {
            Arc::new(Record {
                failures_max,
                failures: AtomicU32::new(0),
                counts: (0..counts).map(|_| Counts::default()).collect(),
                trials: AtomicU32::new(0),
                alarm: Arc::clone(alarm),
            })
        })
    }

    /// `is_trial`: the circuit was half open, so the keeper waits for this.
    pub(crate) fn report(&self, worker: usize, outcome: Outcome, is_trial: bool) {
        if let Some(counts) = self.counts.get(worker) {
            // A load and a store, not an atomic addition: this worker is the only writer.
            let add = |count: &AtomicU64| count.store(count.load(Relaxed).wrapping_add(1), Relaxed);
            add(&counts.all);
            if outcome != Outcome::Served {
                add(&counts.errors);
            }
        }
        match outcome {
            Outcome::Served | Outcome::Error if self.failures.load(Relaxed) != 0 => {
                self.failures.store(0, Relaxed);
            }
            Outcome::Served | Outcome::Error => {}
            Outcome::Failed if self.failures_max > 0 => {
                // Again after each further so many, in case nobody could be spared the first time.
                if (self.failures.fetch_add(1, Relaxed) + 1).is_multiple_of(self.failures_max) {
                    self.alarm.notify_one();
                }
            }
            Outcome::Failed => {}
        }
        if is_trial {
            self.alarm.notify_one();
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failures_max > 0 && self.failures.load(Relaxed) >= self.failures_max
    }

    pub(super) fn forget_failures(&self) {
        self.failures.store(0, Relaxed);
    }

    /// Sessions and requests so far, and how many of them went wrong.
    pub(super) fn totals(&self) -> (u64, u64) {
        let sum = |of: fn(&Counts) -> &AtomicU64| {
            self.counts.iter().fold(0_u64, |sum, counts| sum.wrapping_add(of(counts).load(Relaxed)))
        };
        (sum(|counts| &counts.all), sum(|counts| &counts.errors))
    }

    /// Lets so many through a half-open circuit.
    pub(super) fn allow_trials(&self, trials: u32) {
        self.trials.store(trials, Relaxed);
    }

    /// Whether this one may try a half-open circuit.
    pub(crate) fn take_trial(&self) -> bool {
        self.trials.fetch_update(Relaxed, Relaxed, |trials| trials.checked_sub(1)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BreakerConfig;

    fn record(change: impl FnOnce(&mut PoolConfig)) -> (Arc<Record>, Arc<Notify>) {
        let mut pool = PoolConfig::default();
        change(&mut pool);
        let alarm = Arc::default();
        (Record::of(&pool, 2, &alarm).unwrap(), alarm)
    }

    fn is_alarmed(alarm: &Notify) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        std::pin::pin!(alarm.notified()).poll(&mut context).is_ready()
    }

    #[test]
    fn failures_in_a_row_raise_the_alarm_whoever_meets_them() {
        let (record, alarm) = record(|pool| pool.outlier.consecutive_failures = 3);
        for (worker, outcome, alarmed) in [
            (0, Outcome::Failed, false),
            (1, Outcome::Failed, false),
            (0, Outcome::Served, false),
            (0, Outcome::Failed, false),
            (1, Outcome::Failed, false),
            // Whoever answers is there, and no outlier.
            (1, Outcome::Error, false),
            (0, Outcome::Failed, false),
            (1, Outcome::Failed, false),
            (0, Outcome::Failed, true),
            (0, Outcome::Failed, false),
            (0, Outcome::Failed, false),
            (0, Outcome::Failed, true),
        ] {
            record.report(worker, outcome, false);
            assert_eq!(is_alarmed(&alarm), alarmed, "{outcome:?}");
        }
        assert!(record.has_failed());
        record.forget_failures();
        assert!(!record.has_failed());
    }

    #[test]
    fn a_breaker_counts_over_all_workers() {
        let (record, alarm) = record(|pool| pool.breaker = Some(BreakerConfig::default()));
        for (worker, outcome) in [(0, Outcome::Served), (1, Outcome::Error), (1, Outcome::Failed)] {
            record.report(worker, outcome, false);
        }
        assert_eq!(record.totals(), (3, 2));
        assert!(!is_alarmed(&alarm));
        record.report(0, Outcome::Served, true);
        assert!(is_alarmed(&alarm), "a trial is what the keeper waits for");
        record.allow_trials(2);
        assert_eq!([0; 3].map(|_| record.take_trial()), [true, true, false]);
    }

    #[test]
    fn a_pool_that_wants_nothing_counted_has_no_record() {
        let mut pool = PoolConfig::default();
        assert!(Record::of(&pool, 2, &Arc::default()).is_some(), "outliers are watched unless switched off");
        pool.outlier.consecutive_failures = 0;
        assert!(Record::of(&pool, 2, &Arc::default()).is_none());
    }
}
