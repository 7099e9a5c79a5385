//! What a connection waits for, and until when.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use crate::clock::{Clock, Expired, NEVER, Timer, millis};

/// It decides what a passed deadline means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The next request. Nothing of it is there.
    Idle,
    /// The rest of a head.
    Head,
    /// The endpoint. What is waited for is answered with 504.
    Upstream,
    /// Bytes of a body, either way, with the head of the response sent.
    Body,
}

pub(crate) struct Deadline {
    pub(crate) timer: Timer,
    phase: Phase,
    /// Each byte moves the deadline to this many milliseconds from now, not beyond `latest`.
    window: u64,
    latest: u64,
}

impl Deadline {
    pub(crate) fn new(clock: &Clock) -> Deadline {
        Deadline { timer: clock.timer(), phase: Phase::Idle, window: NEVER, latest: NEVER }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    pub(crate) fn latest(&self) -> u64 {
        self.latest
    }

    /// No phase from now on may last longer than until then.
    pub(crate) fn bound(&mut self, latest: u64) {
        self.latest = latest;
    }

    /// Enters a phase of at most `window` without a byte; zero = no limit.
    pub(crate) fn enter(&mut self, clock: &Clock, phase: Phase, window: Duration) {
        self.phase = phase;
        self.window = if window.is_zero() { NEVER } else { millis(window) };
        self.extend(clock);
    }

    /// A byte has moved.
    pub(crate) fn extend(&self, clock: &Clock) {
        let deadline = clock.now().saturating_add(self.window);
        clock.set(&self.timer, deadline.min(self.latest));
    }

    /// Makes it one that nobody waits for. False: it has been cut, and is not to be used again.
    pub(crate) fn clear(&mut self) -> bool {
        self.timer.uses(0);
        (self.phase, self.window, self.latest) = (Phase::Idle, NEVER, NEVER);
        self.timer.clear()
    }

    pub(crate) fn poll_expired(&self, clock: &Clock, cx: &Context<'_>) -> Poll<Expired> {
        clock.poll_expired(&self.timer, cx)
    }
}
