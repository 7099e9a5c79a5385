//! Time for a worker: a coarse clock and one wheel of deadlines, moved by one tick.
//!
//! A session or connection owns a single [`Timer`] for its whole life and moves its deadline with
//! a plain store, so neither a request nor a copied byte touches a timer queue. The price is the
//! resolution: a deadline fires up to one [`TICK`] late.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::Instant;

/// Resolution of every timeout of the data plane.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// No deadline.
pub(crate) const NEVER: u64 = u64::MAX;
/// Slots of the wheel. A deadline further away than this is looked at again each time its slot
/// comes by, which also bounds how long the timer of a finished connection lingers (6.4 s).
const SLOTS: u64 = 64;

/// Milliseconds since the worker started, as of the last tick.
pub(crate) struct Clock {
    start: Instant,
    now: Cell<u64>,
    ticks: Cell<u64>,
    wheel: RefCell<Vec<Vec<Rc<Entry>>>>,
}

/// Why a wait ended without its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expired {
    Deadline,
    /// The control side asked for the end of everything that still uses a generation.
    Cut,
}

/// One deadline, owned by one task.
pub(crate) struct Timer(Rc<Entry>);

/// What the wheel knows of it, which may keep it for a while after its owner has gone.
struct Entry {
    deadline: Cell<u64>,
    /// The tick whose slot holds this timer; `NEVER` when none does. An entry found in another
    /// slot is a leftover from before the deadline was moved closer.
    scheduled: Cell<u64>,
    cut: Cell<bool>,
    /// What the owner uses now, see [`Clock::cut`]; 0 = nothing.
    generation: Cell<u64>,
    waker: RefCell<Option<Waker>>,
}

impl Clock {
    pub(crate) fn new() -> Clock {
        let wheel = (0..SLOTS).map(|_| Vec::new()).collect();
        Clock { start: Instant::now(), now: Cell::new(0), ticks: Cell::new(0), wheel: RefCell::new(wheel) }
    }

    pub(crate) fn now(&self) -> u64 {
        self.now.get()
    }

    /// The moment `after` from now; never, when `after` is zero (= switched off).
    pub(crate) fn after(&self, after: Duration) -> u64 {
        if after.is_zero() { NEVER } else { self.now.get().saturating_add(millis(after)) }
    }

    pub(crate) fn timer(&self) -> Timer {
        let entry = Rc::new(Entry {
            deadline: Cell::new(NEVER),
            scheduled: Cell::new(NEVER),
            cut: Cell::new(false),
            generation: Cell::new(0),
            waker: RefCell::new(None),
        });
        self.schedule(&entry);
        Timer(entry)
    }

    /// Moves the deadline. Later is a store; earlier than the wheel would look is a push.
    pub(crate) fn set(&self, Timer(entry): &Timer, deadline: u64) {
        entry.deadline.set(deadline);
        let scheduled = entry.scheduled.get();
        if scheduled == NEVER || tick_of(deadline) < scheduled {
            self.schedule(entry);
        }
    }

    /// Advances to `now` and wakes the owners of what has expired.
    pub(crate) fn tick(&self, now: Instant) {
        let elapsed = millis(now.saturating_duration_since(self.start));
        self.now.set(elapsed);
        let target = elapsed / millis(TICK);
        // After a long stall one turn of the wheel reaches everything.
        let first = self.ticks.get().max(target.saturating_sub(SLOTS)) + 1;
        for tick in first..=target {
            self.ticks.set(tick);
            let slot = std::mem::take(&mut self.wheel.borrow_mut()[index(tick)]);
            for entry in slot {
                if Rc::strong_count(&entry) == 1 || entry.scheduled.get() > tick {
                    continue;
                }
                entry.scheduled.set(NEVER);
                if entry.deadline.get() <= elapsed {
                    entry.wake();
                } else {
                    self.schedule(&entry);
                }
            }
        }
    }

    /// Ends every wait of the owners that use `generation`.
    pub(crate) fn cut(&self, generation: u64) {
        let wheel = self.wheel.borrow();
        for entry in wheel.iter().flatten().filter(|entry| entry.generation.get() == generation) {
            entry.cut.set(true);
            entry.wake();
        }
    }

    /// Has every owner look at where it stands.
    pub(crate) fn wake_all(&self) {
        for entry in self.wheel.borrow().iter().flatten() {
            entry.wake();
        }
    }

    /// Ends every wait.
    pub(crate) fn cut_all(&self) {
        for entry in self.wheel.borrow().iter().flatten() {
            entry.cut.set(true);
            entry.wake();
        }
    }

    /// The result of `future`, unless the deadline or a cut comes first.
    pub(crate) async fn within<F: Future>(
        &self,
        timer: &Timer,
        deadline: u64,
        future: F,
    ) -> Result<F::Output, Expired> {
        self.set(timer, deadline);
        let mut future = pin!(future);
        std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => self.poll_expired(timer, cx).map(Err),
        })
        .await
    }

    pub(crate) fn poll_expired(&self, Timer(entry): &Timer, cx: &Context<'_>) -> Poll<Expired> {
        if entry.cut.get() {
            return Poll::Ready(Expired::Cut);
        }
        if entry.deadline.get() <= self.now.get() {
            return Poll::Ready(Expired::Deadline);
        }
        entry.register(cx.waker());
        Poll::Pending
    }

    fn schedule(&self, entry: &Rc<Entry>) {
        let next = self.ticks.get() + 1;
        let tick = tick_of(entry.deadline.get()).clamp(next, next + SLOTS - 2);
        entry.scheduled.set(tick);
        self.wheel.borrow_mut()[index(tick)].push(Rc::clone(entry));
    }
}

impl Timer {
    pub(crate) fn deadline(&self) -> u64 {
        self.0.deadline.get()
    }

    /// Says which generation a [`Clock::cut`] must name to reach this owner; 0 = none.
    pub(crate) fn uses(&self, generation: u64) {
        self.0.generation.set(generation);
    }

    /// Forgets deadline and owner. False: it has been cut, which is for ever.
    pub(crate) fn clear(&self) -> bool {
        self.0.deadline.set(NEVER);
        self.0.waker.take();
        !self.0.cut.get()
    }

    /// Has the owner look at where it stands.
    pub(crate) fn wake(&self) {
        self.0.wake();
    }
}

impl Drop for Timer {
    /// A waker keeps the memory of its task, and the wheel would keep the waker.
    fn drop(&mut self) {
        self.0.waker.take();
    }
}

impl Entry {
    fn register(&self, waker: &Waker) {
        let mut registered = self.waker.borrow_mut();
        if !registered.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *registered = Some(waker.clone());
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(NEVER)
}

/// The first tick at or after `at`.
fn tick_of(at: u64) -> u64 {
    at.div_ceil(millis(TICK))
}

fn index(tick: u64) -> usize {
    usize::try_from(tick % SLOTS).expect("a slot number is small")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expired(clock: &Clock, timer: &Timer) -> bool {
        clock.poll_expired(timer, &Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn a_timer_that_is_gone_keeps_no_task() {
        struct Task;
        impl std::task::Wake for Task {
            fn wake(self: std::sync::Arc<Task>) {}
        }
        let clock = Clock::new();
        let task = std::sync::Arc::new(Task);
        let timer = clock.timer();
        let waker = Waker::from(std::sync::Arc::clone(&task));
        assert!(clock.poll_expired(&timer, &Context::from_waker(&waker)).is_pending());
        drop(waker);
        assert_eq!(std::sync::Arc::strong_count(&task), 2, "it is to be woken");
        drop(timer);
        assert_eq!(std::sync::Arc::strong_count(&task), 1, "nobody is left to be woken");
    }

    #[test]
    fn a_deadline_fires_at_most_one_tick_late_and_never_early() {
        for (deadline, tick_ms, want) in [
            (250, 200, false),
            (250, 300, true),
            (60_000, 59_900, false),
            (60_000, 60_000, true),
            (NEVER, 10_000_000, false),
        ] {
            let clock = Clock::new();
            let timer = clock.timer();
            clock.set(&timer, deadline);
            clock.tick(clock.start + Duration::from_millis(tick_ms));
            assert_eq!(expired(&clock, &timer), want, "{deadline} at {tick_ms}");
        }
    }

    #[test]
    fn a_waker_is_called_when_a_moved_deadline_passes() {
        let flag = std::sync::Arc::new(Flag::default());
        let waker = Waker::from(std::sync::Arc::clone(&flag));
        let clock = Clock::new();
        let timer = clock.timer();
        clock.set(&timer, 60_000);
        assert!(clock.poll_expired(&timer, &Context::from_waker(&waker)).is_pending());
        clock.set(&timer, 500); // closer than the wheel would look
        for ms in (100..=400).step_by(100) {
            clock.tick(clock.start + Duration::from_millis(ms));
        }
        assert!(!flag.0.load(std::sync::atomic::Ordering::SeqCst));
        clock.tick(clock.start + Duration::from_millis(500));
        assert!(flag.0.load(std::sync::atomic::Ordering::SeqCst));
    }

    #[test]
    fn a_finished_owner_leaves_the_wheel_within_one_turn() {
        let clock = Clock::new();
        for _ in 0..100 {
            drop(clock.timer());
        }
        for ms in (0..=6_500).step_by(100) {
            clock.tick(clock.start + Duration::from_millis(ms));
        }
        assert_eq!(clock.wheel.borrow().iter().map(Vec::len).sum::<usize>(), 0);
    }

    #[test]
    fn a_cut_reaches_only_the_generation_it_names() {
        let clock = Clock::new();
        let (one, two) = (clock.timer(), clock.timer());
        one.uses(1);
        two.uses(2);
        clock.cut(1);
        assert!(expired(&clock, &one) && !expired(&clock, &two));
    }

    #[derive(Default)]
    struct Flag(std::sync::atomic::AtomicBool);
    impl std::task::Wake for Flag {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    }
}
