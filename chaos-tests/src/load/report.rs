//! What became of the operations.

use std::{collections::BTreeMap, fmt, time::Duration};

use super::{exchange::Failure, histogram::Histogram};

/// How one operation ended. The first thing that went wrong counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Ok,
    /// Nobody listens.
    Refused,
    /// The connection was cut by an RST.
    Reset,
    /// The connection ended before the answer did.
    Eof,
    Timeout,
    /// An HTTP status other than 2xx.
    BadStatus,
    /// An answer that is not the one to this question, or is not HTTP at all.
    Mismatch,
    /// None of the above: as a rule the client's own machine, such as no free port or descriptor.
    Other,
}

/// Failures of which the report shows the details; of the others only the number.
const DETAILS_MAX: usize = 10;

/// The counts of one client, later of all.
#[derive(Debug, Default)]
pub(super) struct Tally {
    outcomes: BTreeMap<Outcome, u64>,
    latency: Histogram,
    answered_by: BTreeMap<String, u64>,
    details: Vec<(Duration, Failure)>,
    pub(super) reconnects: u64,
}

impl Tally {
    /// `ended`: who answered, where that is known, or what went wrong.
    pub(super) fn count(&mut self, at: Duration, took: Duration, ended: Result<Option<String>, Failure>) {
        let outcome = match ended {
            Ok(answered_by) => {
                self.latency.record(took);
                if let Some(name) = answered_by {
                    *self.answered_by.entry(name).or_default() += 1;
                }
                Outcome::Ok
            }
            Err(failure) => {
                let outcome = failure.outcome;
                if self.details.len() < DETAILS_MAX {
                    self.details.push((at, failure));
                }
                outcome
            }
        };
        *self.outcomes.entry(outcome).or_default() += 1;
    }

    pub(super) fn add(&mut self, other: Self) {
        for (outcome, count) in other.outcomes {
            *self.outcomes.entry(outcome).or_default() += count;
        }
        for (name, count) in other.answered_by {
            *self.answered_by.entry(name).or_default() += count;
        }
        self.latency.add(&other.latency);
        self.details.extend(other.details);
        self.reconnects += other.reconnects;
    }

    pub(super) fn report(mut self, elapsed: Duration) -> Report {
        self.details.sort_by_key(|(at, _)| *at);
        self.details.truncate(DETAILS_MAX);
        Report { elapsed, tally: self }
    }
}

#[derive(Debug)]
pub struct Report {
    elapsed: Duration,
    tally: Tally,
}

impl Report {
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.tally.outcomes.get(&outcome).copied().unwrap_or(0)
    }

    pub fn ok(&self) -> u64 {
        self.count(Outcome::Ok)
    }

    pub fn failed(&self) -> u64 {
        self.total() - self.ok()
    }

    pub fn total(&self) -> u64 {
        self.tally.outcomes.values().sum()
    }

    /// HTTP: how many good answers came from which origin.
    pub fn answered_by(&self) -> &BTreeMap<String, u64> {
        &self.tally.answered_by
    }

    /// Kept connections that the server closed between two requests.
    pub fn reconnects(&self) -> u64 {
        self.tally.reconnects
    }

    /// Good operations per second.
    pub fn throughput(&self) -> f64 {
        self.ok() as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// Of good operations; `per_mille` of 1,000 were as fast or faster.
    pub fn latency(&self, per_mille: u64) -> Duration {
        self.tally.latency.quantile(per_mille)
    }

    /// Not one operation failed, and there were some.
    pub fn assert_clean(&self) {
        assert!(self.failed() == 0 && self.ok() > 0, "{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { elapsed, tally } = self;
        let total = self.total();
        write!(f, "{total} operations in {elapsed:.2?}, {:.0} good ones per second:", self.throughput())?;
        for (outcome, count) in &tally.outcomes {
            write!(f, " {outcome:?} {count}")?;
        }
        let at = |per_mille| self.latency(per_mille);
        write!(
            f,
            "\n  latency p50 {:.2?}  p90 {:.2?}  p99 {:.2?}  p99.9 {:.2?}  max {:.2?}",
            at(500),
            at(900),
            at(990),
            at(999),
            tally.latency.max()
        )?;
        for (name, count) in &tally.answered_by {
            write!(f, "\n  {name} answered {count}")?;
        }
        for (at, failure) in &tally.details {
            write!(f, "\n  after {at:.3?}: {failure}")?;
        }
        Ok(())
    }
}
