//! What becomes of endpoints and requests that fail.

use std::time::Duration;

use super::{Findings, MAX_DURATION, MIN_DURATION};
use crate::{
    Breaker, Outlier, Retry, RetryOn, Timeouts,
    diagnostic::{CONTRADICTION, OUT_OF_RANGE},
    units::duration_text,
};

/// More would only be a slower failure.
const MAX_ATTEMPTS: u32 = 10;
/// A request that waits longer between attempts has lost its client.
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// Ten buckets of at least ten milliseconds.
const MIN_WINDOW: Duration = Duration::from_millis(100);
const MAX_WINDOW: Duration = Duration::from_secs(3600);

pub(super) fn outlier(outlier: &Outlier, findings: &mut Findings) {
    let Outlier { consecutive_failures: _, ejection, max_ejected } = outlier;
    findings.duration("outlier.ejection", *ejection, MIN_DURATION..=MAX_DURATION);
    findings.number("outlier.max_ejected", *max_ejected, 0..=100);
}

pub(super) fn breaker(breaker: Option<&Breaker>, findings: &mut Findings) {
    let Some(Breaker { error_percent, window, min_requests: _, open_for }) = breaker else { return };
    findings.number("breaker.error_percent", *error_percent, 1..=100);
    findings.duration("breaker.window", *window, MIN_WINDOW..=MAX_WINDOW);
    findings.duration("breaker.open_for", *open_for, MIN_DURATION..=MAX_WINDOW);
}

pub(super) fn retry(retry: &Retry, timeouts: &Timeouts, findings: &mut Findings) {
    let Retry { attempts, on, per_try_timeout, backoff, budget, methods: _ } = retry;
    findings.number("retry.attempts", *attempts, 1..=MAX_ATTEMPTS);
    for (index, on) in on.iter().enumerate() {
        if let RetryOn::Status(status) = on
            && !(400..=599).contains(status)
        {
            let message = format!("a status that is tried again is from 400 to 599, not {status}");
            findings.add(&format!("retry.on[{index}]"), OUT_OF_RANGE, message);
        }
    }
    findings.duration_or_off("retry.per_try_timeout", *per_try_timeout, MAX_DURATION);
    if !timeouts.request.is_zero() && *per_try_timeout > timeouts.request {
        let message = format!(
            "`per_try_timeout` ({}) is longer than `timeouts.request` ({}), which ends the request first",
            duration_text(*per_try_timeout),
            duration_text(timeouts.request),
        );
        findings.add("retry.per_try_timeout", CONTRADICTION, message);
    }
    findings.duration_or_off("retry.backoff.base", backoff.base, MAX_BACKOFF);
    findings.duration_or_off("retry.backoff.max", backoff.max, MAX_BACKOFF);
    if backoff.base > backoff.max {
        let (base, max) = (duration_text(backoff.base), duration_text(backoff.max));
        let message = format!("`base` ({base}) is longer than `max` ({max})");
        findings.add("retry.backoff", CONTRADICTION, message);
    }
    findings.number("retry.budget", *budget, 0..=100);
}
