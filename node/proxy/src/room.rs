//! How much an app may have in flight, in all and at one address, and who waits for room.
//!
//! Counted per node, over all workers and generations of the app: a bound of a few, divided by the workers, would
//! depend on which of them a client happens to meet. So there is one atomic count per bound, changed once when a
//! request begins and once when it ends; only those who have to wait take a lock. An app without such bounds has
//! none of this.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
};

use crate::{address::Address, config::Limits};

/// What one app has in flight, over all its generations.
#[derive(Default)]
pub(crate) struct Room {
    /// Requests.
    pub(crate) requests: Arc<Count>,
    /// All who wait, whatever for.
    waiting: Arc<Count>,
    pools: Mutex<BTreeMap<String, Weak<PoolRoom>>>,
}

/// What a pool has in flight at each of its addresses. Their bounds share a line, since whoever waits takes the first
/// address that has room.
#[derive(Default)]
pub(crate) struct PoolRoom {
    pub(crate) line: Arc<Line>,
    addresses: Mutex<HashMap<Address, Weak<Count>>>,
}

/// So many are there.
#[derive(Default)]
pub(crate) struct Count {
    now: AtomicUsize,
    pub(crate) line: Arc<Line>,
}

/// One of them, until it is dropped.
pub(crate) struct Place(Arc<Count>);

/// Those who wait, the longest first. Only the first may take what becomes free.
#[derive(Default)]
pub(crate) struct Line {
    /// How many, to be read without the lock.
    length: AtomicUsize,
    seats: Mutex<Seats>,
}

#[derive(Default)]
struct Seats {
    last: u64,
    /// By their numbers, which ascend.
    waiting: VecDeque<(u64, Waker)>,
}

/// One who waits.
struct Seat {
    line: Arc<Line>,
    number: u64,
}

impl Room {
    /// Whether `limits` bound anything of this kind.
    pub(crate) fn is_bounded(limits: &Limits) -> bool {
        limits.max_in_flight > 0 || limits.target_soft > 0 || limits.target_hard > 0
    }

    pub(crate) fn pool(&self, name: &str) -> Arc<PoolRoom> {
        let mut pools = lock(&self.pools);
        if let Some(known) = pools.get(name).and_then(Weak::upgrade) {
            return known;
        }
        pools.retain(|_, pool| pool.strong_count() > 0);
        let fresh = Arc::default();
        pools.insert(name.to_owned(), Arc::downgrade(&fresh));
        fresh
    }

    /// A place among those who may wait; `None` when there are `max`.
    pub(crate) fn wait(&self, max: usize) -> Option<Place> {
        self.waiting.take(max)
    }
}

impl PoolRoom {
    pub(crate) fn count(&self, address: &Address) -> Arc<Count> {
        let mut addresses = lock(&self.addresses);
        if let Some(known) = addresses.get(address).and_then(Weak::upgrade) {
            return known;
        }
        addresses.retain(|_, count| count.strong_count() > 0);
        let fresh = Arc::new(Count { now: AtomicUsize::new(0), line: Arc::clone(&self.line) });
        addresses.insert(address.clone(), Arc::downgrade(&fresh));
        fresh
    }
}

impl Count {
    /// `None` when there are `max`; 0 = no limit.
    ///
    /// Never more than that even for a moment: whoever found the count too high because of an attempt that failed
    /// would wait for somebody to leave who has never been there.
    pub(crate) fn take(self: &Arc<Self>, max: usize) -> Option<Place> {
        let more = |now: usize| (max == 0 || now < max).then_some(now + 1);
        self.now.fetch_update(SeqCst, SeqCst, more).ok()?;
        Some(Place(Arc::clone(self)))
    }

    pub(crate) fn now(&self) -> usize {
        self.now.load(SeqCst)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, SeqCst);
        self.0.line.call();
    }
}

impl Line {
    pub(crate) fn is_empty(&self) -> bool {
        self.length.load(SeqCst) == 0
    }

    /// There may be room for the first. Whoever joins after this has looked sees the room itself.
    fn call(&self) {
        if !self.is_empty()
            && let Some((_, first)) = lock(&self.seats).waiting.front()
        {
            first.wake_by_ref();
        }
    }

    fn join(self: &Arc<Self>) -> Seat {
        let mut seats = lock(&self.seats);
        seats.last += 1;
        let number = seats.last;
        seats.waiting.push_back((number, Waker::noop().clone()));
        self.length.store(seats.waiting.len(), SeqCst);
        Seat { line: Arc::clone(self), number }
    }
}

impl Seat {
    /// Whether it is the turn of this one, who is woken when that may have changed.
    fn is_first(&self, cx: &Context<'_>) -> bool {
        let mut seats = lock(&self.line.seats);
        let at = seats.waiting.binary_search_by_key(&self.number, |(number, _)| *number);
        let at = at.expect("a seat is in its line until it is dropped");
        seats.waiting[at].1.clone_from(cx.waker());
        at == 0
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = lock(&self.line.seats);
        let at = seats.waiting.binary_search_by_key(&self.number, |(number, _)| *number);
        if let Ok(at) = at {
            seats.waiting.remove(at);
            self.line.length.store(seats.waiting.len(), SeqCst);
            // There may be room for more than one.
            if let (0, Some((_, first))) = (at, seats.waiting.front()) {
                first.wake_by_ref();
            }
        }
    }
}

/// Waits at the end of `line` for what `attempt` gives; it is asked only when everybody before is gone, and again
/// whenever somebody leaves. Ends with what `give_up` says, if that comes first.
pub(crate) async fn wait<T, E>(
    line: &Arc<Line>,
    mut attempt: impl FnMut() -> Option<T>,
    mut give_up: impl FnMut(&mut Context<'_>) -> Poll<E>,
) -> Result<T, E> {
    let seat = line.join();
    poll_fn(|cx| {
        if seat.is_first(cx)
            && let Some(got) = attempt()
        {
            return Poll::Ready(Ok(got));
        }
        give_up(cx).map(Err)
    })
    .await
}

/// Who takes what the chosen one has no room for: the one with the least in flight of those below `max`. Ties go to
/// the first from `start` on, so that equal keys still meet. PURE.
pub(crate) fn spill(
    available: &[u32],
    now: impl Fn(u32) -> usize,
    max: usize,
    tried: &[u32],
    start: u64,
) -> Option<u32> {
    let (before, from) = available.split_at(crate::upstream::scale_to(start, available.len()));
    let mut best = None;
    for &endpoint in from.iter().chain(before) {
        let now = now(endpoint);
        let is_free = (max == 0 || now < max) && !tried.contains(&endpoint);
        if is_free && best.is_none_or(|(least, _)| now < least) {
            best = Some((now, endpoint));
        }
    }
    best.map(|(_, endpoint)| endpoint)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
