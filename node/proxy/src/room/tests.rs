use std::{
    pin::{Pin, pin},
    sync::atomic::{AtomicUsize, Ordering},
    task::Wake,
};

use super::*;

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// One who waits for a place, and how often it was woken.
struct Waiter<'a> {
    future: Pin<Box<dyn Future<Output = Result<Place, ()>> + 'a>>,
    woken: Arc<Woken>,
}

impl<'a> Waiter<'a> {
    fn new(count: &'a Arc<Count>, max: usize) -> Waiter<'a> {
        let future = Box::pin(wait(&count.line, move || count.take(max), |_| Poll::Pending));
        let mut waiter = Waiter { future, woken: Arc::default() };
        assert!(waiter.poll().is_none(), "there is no room");
        waiter
    }

    fn poll(&mut self) -> Option<Place> {
        let waker = Waker::from(Arc::clone(&self.woken));
        match self.future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(place) => Some(place.unwrap()),
            Poll::Pending => None,
        }
    }

    fn was_woken(&self) -> bool {
        self.woken.0.swap(0, Ordering::SeqCst) > 0
    }
}

#[test]
fn whoever_waits_longest_comes_first() {
    let count = Arc::<Count>::default();
    let place = count.take(1).unwrap();
    assert!(count.take(1).is_none());
    let mut waiters = [Waiter::new(&count, 1), Waiter::new(&count, 1), Waiter::new(&count, 1)];
    drop(place);
    assert_eq!([0, 1, 2].map(|at| waiters[at].was_woken()), [true, false, false]);
    assert!(waiters[1].poll().is_none(), "it is not its turn");
    let place = waiters[0].poll().unwrap();
    assert_eq!(count.now(), 1);
    drop(place);
}

#[test]
fn one_who_leaves_lets_the_next_one_in() {
    let count = Arc::<Count>::default();
    let places = [count.take(2).unwrap(), count.take(2).unwrap()];
    let [first, second, mut third] = [2, 2, 2].map(|max| Waiter::new(&count, max));
    drop(places);
    // The first was called and never came: its client has gone.
    assert!(first.was_woken());
    drop(second);
    assert!(!third.was_woken(), "there is still somebody before it");
    drop(first);
    assert!(third.was_woken());
    assert!(third.poll().is_some());
    drop(third);
    assert!(count.line.is_empty());
    assert_eq!(count.now(), 0);
}

#[test]
fn a_wait_ends_when_it_is_given_up() {
    let count = Arc::<Count>::default();
    let _place = count.take(1).unwrap();
    let mut future = pin!(wait(&count.line, || count.take(1), |_| Poll::Ready("late")));
    let polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(polled, Poll::Ready(Err("late"))));
}

#[test]
fn nobody_is_lost_among_many_threads() {
    const THREADS: usize = 4;
    const TIMES: usize = 2_000;
    let count = Arc::<Count>::default();
    let highest = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                runtime.block_on(async {
                    for _ in 0..TIMES {
                        let waited: Result<Place, ()> =
                            wait(&count.line, || count.take(2), |_| Poll::Pending).await;
                        highest.fetch_max(count.now(), Ordering::SeqCst);
                        tokio::task::yield_now().await;
                        drop(waited.unwrap());
                    }
                });
            });
        }
    });
    assert_eq!(count.now(), 0);
    assert!(count.line.is_empty());
    assert!(highest.into_inner() <= 2);
}

#[test]
fn what_has_no_room_goes_to_whom_it_burdens_least() {
    // In flight at each, the bound, who was tried, where to start, and who is chosen.
    for (now, max, tried, start, expected) in [
        (&[3, 1, 2][..], 3, &[][..], 0, Some(1)),
        (&[3, 1, 2], 3, &[1], 0, Some(2)),
        (&[3, 3, 3], 3, &[], 0, None),
        (&[3, 3, 4], 0, &[], 0, Some(0)),
        (&[1, 1, 1], 3, &[], u64::MAX, Some(2)),
        (&[1, 1, 1], 3, &[2], u64::MAX, Some(0)),
        (&[], 3, &[], 0, None),
    ] {
        let available: Vec<u32> = (0..).take(now.len()).collect();
        let got = spill(&available, |endpoint| now[endpoint as usize], max, tried, start);
        assert_eq!(got, expected, "{now:?} {max} {tried:?} {start}");
    }
}
