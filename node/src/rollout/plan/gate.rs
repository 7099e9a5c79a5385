//! Whether the new generation does as well as the old one: PURE, numbers in, a verdict out.
//!
//! Both are looked at in the same window, so that what both do badly, because a target behind both is
//! ill, is nobody's fault. The rule: with `n` requests of the new generation in the window, and at least
//! `min_requests` in place of a smaller `n`, more than `error_percent` percent beyond what the old one has
//! fail in one way. Taking the larger number lets a bad generation be seen before `min_requests` have
//! been harmed, and never calls one bad that could still turn out well by then.

use std::time::Duration;

use flotilla_proxy::{Tally, metrics::LATENCY_BUCKETS};
use flotilla_raft_store::GenerationId;
use flotilla_spec::AbortOn;

use crate::rollout::observed::Window;

/// With fewer requests in the window the old generation is taken to do no harm: a single failure among
/// three requests must not excuse everything.
const BASELINE_REQUESTS_MIN: u64 = 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    AsWell,
    /// Not enough to judge by. `is_idle`: there is nothing to wait for either.
    TooFew {
        sampled: u64,
        of: u64,
        is_idle: bool,
    },
    Worse {
        how: String,
    },
}

/// One of the ways in which a request goes wrong.
type Counted = fn(&Tally) -> u64;

pub(super) fn judge(policy: &AbortOn, window: &Window, from: GenerationId) -> Verdict {
    let Window { new, old, .. } = window;
    let needed = u64::from(policy.min_requests);
    let ways: [(&str, Counted); 3] = [
        ("were answered with 5xx", |tally| tally.errors),
        ("found no target", |tally| tally.unreached),
        ("were reset", |tally| tally.resets),
    ];
    for (how, count) in ways {
        let (bad, before) = (count(new), count(old));
        if policy.error_percent > 0 && bad > 0 && exceeds(policy, bad, new.requests, before, old.requests) {
            let with_old = match old.requests {
                0 => String::new(),
                all => format!("; with generation {from} {} of {all}", percent(before, all)),
            };
            let all = new.requests;
            return Verdict::Worse {
                how: format!("{} of {all} requests {how}{with_old}", percent(bad, all)),
            };
        }
    }
    if !policy.p99.is_zero() {
        let (slow, all) = slower(new, policy.p99);
        let (slow_before, all_before) = slower(old, policy.p99);
        let old_is_slow = all_before >= BASELINE_REQUESTS_MIN && slow_before * 100 > all_before;
        if slow * 100 > all.max(needed) && !old_is_slow {
            let limit = humantime::format_duration(policy.p99);
            let how = format!("{} of {all} requests took longer than {limit}", percent(slow, all));
            return Verdict::Worse { how };
        }
    }
    if new.requests < needed {
        let is_idle = new.requests + old.requests == 0;
        return Verdict::TooFew { sampled: new.requests, of: needed, is_idle };
    }
    Verdict::AsWell
}

/// What the gate looked at, for the events: every way of going wrong together.
pub(super) fn saw(window: &Window, from: GenerationId) -> String {
    let failed = |tally: &Tally| tally.errors + tally.unreached + tally.resets;
    let of = |tally: &Tally| percent(failed(tally), tally.requests);
    match (window.new.requests, window.old.requests) {
        (0, _) => "no request came".to_owned(),
        (new, 0) => format!("{} of {new} requests failed", of(&window.new)),
        (new, old) => {
            format!(
                "{} of {new} requests failed; with generation {from} {} of {old}",
                of(&window.new),
                of(&window.old)
            )
        }
    }
}

/// In whole numbers: `bad / n > error_percent + before / all`.
fn exceeds(policy: &AbortOn, bad: u64, requests: u64, before: u64, before_of: u64) -> bool {
    let n = u128::from(requests.max(policy.min_requests.into()));
    let (before, all) = if before_of < BASELINE_REQUESTS_MIN { (0, 1) } else { (before, before_of) };
    let (bad, before, all) = (u128::from(bad), u128::from(before), u128::from(all));
    bad * 100 * all > (u128::from(policy.error_percent) * all + before * 100) * n
}

/// How many took surely longer than `limit`, and how many there were.
fn slower(tally: &Tally, limit: Duration) -> (u64, u64) {
    let limit = limit.as_secs_f64();
    let lower_bounds = std::iter::once(0.0).chain(LATENCY_BUCKETS);
    let slow = tally.latency.iter().zip(lower_bounds).filter(|(_, lower)| *lower >= limit);
    (slow.map(|(count, _)| count).sum(), tally.latency.iter().sum())
}

fn percent(part: u64, all: u64) -> String {
    let tenths = (part * 1000).checked_div(all).unwrap_or(0);
    format!("{}.{} %", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(requests: u64, errors: u64) -> Tally {
        Tally { requests, errors, ..Tally::default() }
    }

    fn check(new: Tally, old: Tally, expected: &str) {
        let window = Window { age: Duration::from_secs(10), new, old };
        let policy = AbortOn { p99: Duration::from_millis(500), ..AbortOn::default() };
        let told = match judge(&policy, &window, GenerationId(6)) {
            Verdict::AsWell => "as well".to_owned(),
            Verdict::TooFew { sampled, of, is_idle } => format!("{sampled} of {of}, idle: {is_idle}"),
            Verdict::Worse { how } => how,
        };
        assert_eq!(told, expected, "{window:?}");
    }

    #[test]
    fn the_new_generation_is_judged_by_the_old_one_in_the_same_window() {
        check(tally(1000, 0), tally(1000, 0), "as well");
        check(tally(1000, 50), tally(1000, 0), "as well");
        check(
            tally(1000, 51),
            tally(1000, 0),
            "5.1 % of 1000 requests were answered with 5xx; with generation 6 0.0 % of 1000",
        );
        // What both do badly is nobody's fault.
        check(tally(1000, 240), tally(1000, 200), "as well");
        check(
            tally(1000, 260),
            tally(1000, 200),
            "26.0 % of 1000 requests were answered with 5xx; with generation 6 20.0 % of 1000",
        );
        // Three requests of the old one excuse nothing.
        check(
            tally(100, 9),
            tally(3, 3),
            "9.0 % of 100 requests were answered with 5xx; with generation 6 100.0 % of 3",
        );
    }

    #[test]
    fn few_requests_are_not_judged_but_enough_failures_are() {
        check(tally(0, 0), tally(0, 0), "0 of 100, idle: true");
        check(tally(0, 0), tally(9, 0), "0 of 100, idle: false");
        check(tally(99, 5), tally(0, 0), "99 of 100, idle: false");
        check(tally(30, 6), tally(0, 0), "20.0 % of 30 requests were answered with 5xx");
    }

    #[test]
    fn sessions_and_times_count_too() {
        let unreached = Tally { requests: 200, unreached: 20, ..Tally::default() };
        check(unreached, tally(0, 0), "10.0 % of 200 requests found no target");
        let resets = Tally { requests: 200, resets: 20, ..Tally::default() };
        check(resets, tally(0, 0), "10.0 % of 200 requests were reset");
        // The ninth bucket ends at 250 ms, the tenth at 500 ms.
        let slow = |bucket: usize| {
            let mut tally = tally(1000, 0);
            tally.latency[0] = 980;
            tally.latency[bucket] = 20;
            tally
        };
        check(slow(9), tally(0, 0), "as well");
        check(slow(10), tally(0, 0), "2.0 % of 1000 requests took longer than 500ms");
        check(slow(10), slow(10), "as well");
    }
}
