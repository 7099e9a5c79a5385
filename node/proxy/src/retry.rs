//! Whether a request that went wrong is tried again, and when. PURE.
//!
//! Never after anything of a response went on to the client, and never a request whose body is gone. A budget keeps
//! retries from making an overload worse: they are a share of the requests, not a multiple.

use std::{cell::Cell, time::Duration};

use crate::config::{RetryConfig, RetryMethods, RetryOn};

/// What became of an attempt that did not go well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Nobody could be reached; nothing was sent.
    Connect,
    /// It says that it has done nothing with the request.
    Refused,
    /// It broke off without a whole response head.
    Reset,
    /// No response head in time.
    Timeout,
    Status(u16),
}

/// What is known of the request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    /// Sending it twice does no more than sending it once (RFC 9110 §9.2.2).
    pub(crate) is_idempotent: bool,
    /// All of it is still there to be sent again.
    pub(crate) is_whole: bool,
    /// Attempts so far, this one included.
    pub(crate) attempts: u32,
}

/// Whether `trouble` is worth another attempt. The budget is asked last, by the caller.
pub(crate) fn may_retry(config: &RetryConfig, trouble: Trouble, request: Request) -> bool {
    if request.attempts >= config.attempts || !request.is_whole {
        return false;
    }
    let is_listed = config.on.iter().any(|on| match (on, trouble) {
        (RetryOn::Connect, Trouble::Connect)
        | (RetryOn::RefusedStream, Trouble::Refused)
        | (RetryOn::Reset, Trouble::Reset)
        | (RetryOn::Timeout, Trouble::Timeout)
        | (RetryOn::GatewayError, Trouble::Status(502..=504))
        | (RetryOn::ServerError, Trouble::Status(500..=599)) => true,
        (RetryOn::Status(wanted), Trouble::Status(status)) => *wanted == status,
        (
            RetryOn::Connect
            | RetryOn::RefusedStream
            | RetryOn::Reset
            | RetryOn::Timeout
            | RetryOn::GatewayError
            | RetryOn::ServerError
            | RetryOn::Status(_),
            _,
        ) => false,
    });
    let is_harmless = match (trouble, config.methods) {
        // It was seen by nobody, or by somebody who left it alone.
        (Trouble::Connect | Trouble::Refused, _) | (_, RetryMethods::All) => true,
        (_, RetryMethods::Idempotent) => request.is_idempotent,
    };
    is_listed && is_harmless
}

/// How long to wait before the attempt after so many: doubled each time, with full jitter (Brooker, "Exponential
/// Backoff And Jitter", 2015), so that those who failed together do not come back together.
pub(crate) fn backoff(config: &RetryConfig, attempts: u32, random: u64) -> Duration {
    let (base, max) = config.backoff;
    let longest = base.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(max);
    let nanos = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(crate::upstream::scale(random, nanos.saturating_add(1)))
}

/// How many retries an app can afford on one worker: a share of its requests in the last ten seconds, and a few in
/// any case (Finagle's `RetryBudget`, linkerd's `retryBudget`).
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// Requests and retries of each second, by its number.
    seconds: [Cell<(u64, u32, u32)>; SECONDS],
}

const SECONDS: usize = 10;
/// Retries in the window that are free, or an app with little traffic could never retry.
const FREE: u64 = 10;

impl Budget {
    pub(crate) fn request(&self, now_millis: u64) {
        let (_, requests, retries) = self.second(now_millis).get();
        self.second(now_millis).set((now_millis / 1000, requests.saturating_add(1), retries));
    }

    /// Takes one retry out of the budget, if it has one left.
    pub(crate) fn retry(&self, now_millis: u64, percent: u32) -> bool {
        let second = now_millis / 1000;
        self.second(now_millis);
        let recent =
            self.seconds.iter().map(Cell::get).filter(|(of, ..)| second - of.min(&second) < SECONDS as u64);
        let (requests, retries) = recent.fold((0_u64, 0_u64), |(requests, retries), (_, more, again)| {
            (requests + u64::from(more), retries + u64::from(again))
        });
        let is_affordable = retries < FREE + requests * u64::from(percent) / 100;
        if is_affordable {
            let (of, requests, retries) = self.second(now_millis).get();
            self.second(now_millis).set((of, requests, retries.saturating_add(1)));
        }
        is_affordable
    }

    /// The cell of this second, emptied if it held an older one.
    fn second(&self, now_millis: u64) -> &Cell<(u64, u32, u32)> {
        let second = now_millis / 1000;
        let cell = &self.seconds[usize::try_from(second % SECONDS as u64).expect("less than a length")];
        if cell.get().0 != second {
            cell.set((second, 0, 0));
        }
        cell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: Request = Request { is_idempotent: true, is_whole: true, attempts: 1 };
    const POST: Request = Request { is_idempotent: false, is_whole: true, attempts: 1 };
    const SENT: Request = Request { is_idempotent: true, is_whole: false, attempts: 1 };
    const LAST: Request = Request { is_idempotent: true, is_whole: true, attempts: 3 };

    #[test]
    fn what_may_be_tried_again() {
        use RetryOn::{Connect, GatewayError, RefusedStream, Reset, ServerError, Status, Timeout};
        for (on, trouble, get, post) in [
            (Connect, Trouble::Connect, true, true),
            (Connect, Trouble::Reset, false, false),
            (RefusedStream, Trouble::Refused, true, true),
            (RefusedStream, Trouble::Reset, false, false),
            (Reset, Trouble::Refused, false, false),
            (Connect, Trouble::Status(503), false, false),
            (Reset, Trouble::Reset, true, false),
            (Reset, Trouble::Timeout, false, false),
            (Timeout, Trouble::Timeout, true, false),
            (GatewayError, Trouble::Status(502), true, false),
            (GatewayError, Trouble::Status(500), false, false),
            (ServerError, Trouble::Status(500), true, false),
            (ServerError, Trouble::Status(404), false, false),
            (Status(429), Trouble::Status(429), true, false),
            (Status(429), Trouble::Status(503), false, false),
        ] {
            let config = RetryConfig { attempts: 3, on: vec![on.clone()], ..RetryConfig::default() };
            let what = format!("{on:?} {trouble:?}");
            assert_eq!(may_retry(&config, trouble, GET), get, "{what} GET");
            assert_eq!(may_retry(&config, trouble, POST), post, "{what} POST");
            assert!(!may_retry(&config, trouble, SENT), "{what}: its body is gone");
            assert!(!may_retry(&config, trouble, LAST), "{what}: three are enough");
            let all = RetryConfig { methods: RetryMethods::All, ..config };
            assert_eq!(may_retry(&all, trouble, POST), get, "{what} POST, when allowed");
        }
        assert!(!may_retry(&RetryConfig::default(), Trouble::Connect, GET), "one attempt is the default");
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_are_spread_from_zero() {
        let millis = Duration::from_millis;
        let config = RetryConfig { backoff: (millis(25), millis(250)), ..RetryConfig::default() };
        for (attempts, longest) in [(1, 25), (2, 50), (3, 100), (4, 200), (5, 250), (60, 250)] {
            assert_eq!(backoff(&config, attempts, 0), Duration::ZERO);
            assert_eq!(backoff(&config, attempts, u64::MAX), millis(longest));
        }
    }

    #[test]
    fn retries_are_a_share_of_the_requests_and_a_few_are_free() {
        let budget = Budget::default();
        let retries = |now| (0..1000).take_while(|_| budget.retry(now, 20)).count();
        assert_eq!(retries(0), 10);
        for _ in 0..100 {
            budget.request(500);
        }
        assert_eq!(retries(999), 20);
        assert_eq!(retries(9_999), 0);
        // The second of the requests and of their retries leaves the window.
        assert_eq!(retries(10_000), 10);
        assert_eq!(retries(60_000), 10);
    }

    #[test]
    fn a_storm_of_failures_costs_no_more_than_the_share() {
        let budget = Budget::default();
        let mut retries = 0;
        for now in 0..100_000 {
            budget.request(now);
            retries += u32::from(budget.retry(now, 20));
        }
        // A fifth, and what the free ones of each window add.
        assert!((20_000..=20_000 + 10 * 10).contains(&retries), "{retries}");
    }
}
