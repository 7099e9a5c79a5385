//! What becomes of endpoints and requests that fail.

use std::time::Duration;

use super::{Findings, MAX_DURATION, MIN_DURATION, balance::is_token};
use crate::{
    Breaker, Hedge, Outlier, Rate, RateKey, Retry, RetryOn, Timeouts,
    diagnostic::{CONTRADICTION, OUT_OF_RANGE, WRONG_VALUE},
    units::duration_text,
};

/// More would only be a slower failure.
const MAX_ATTEMPTS: u32 = 10;
/// More would be an attack on those who are slow already.
const MAX_HEDGES: u32 = 3;
/// A request that waits longer between attempts has lost its client.
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// Ten buckets of at least ten milliseconds.
const MIN_WINDOW: Duration = Duration::from_millis(100);
const MAX_WINDOW: Duration = Duration::from_secs(3600);

/// A client that waits longer has gone.
const MAX_PENDING_TIMEOUT: Duration = Duration::from_secs(300);
/// A request each microsecond.
const MAX_RATE: u32 = 1_000_000;
/// 16 bytes each.
const MAX_RATE_KEYS: u32 = 10_000_000;

pub(super) fn room(pending_timeout: Duration, soft: u32, hard: u32, findings: &mut Findings) {
    findings.duration_or_off("limits.pending_timeout", pending_timeout, MAX_PENDING_TIMEOUT);
    if hard != 0 && soft > hard {
        let message =
            format!("`target_soft` ({soft}) is more than `target_hard` ({hard}), which comes first");
        findings.add("limits.target_soft", CONTRADICTION, message);
    }
}

pub(super) fn rate(rate: Option<&Rate>, findings: &mut Findings) {
    let Some(Rate { key, per_second, burst, max_keys }) = rate else { return };
    findings.number("limits.rate.per_second", *per_second, 1..=MAX_RATE);
    findings.number("limits.rate.burst", *burst, 0..=MAX_RATE);
    findings.number("limits.rate.max_keys", *max_keys, 1..=MAX_RATE_KEYS);
    if let RateKey::Header(name) = key
        && !is_token(name)
    {
        let message = format!("`{name}` is not the name of a header field");
        findings.add("limits.rate.key", WRONG_VALUE, message);
    }
}

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
    let Retry { attempts, on, per_try_timeout, backoff, budget, methods: _, hedge } = retry;
    if let Some(Hedge { after, max }) = hedge {
        findings.duration("retry.hedge.after", *after, MIN_DURATION..=MAX_DURATION);
        findings.number("retry.hedge.max", *max, 1..=MAX_HEDGES);
    }
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
