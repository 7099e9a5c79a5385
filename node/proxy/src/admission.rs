//! Who may connect: the bounds on open connections, counted per node, per source and per app.
//!
//! Asked once per connection, never per request, so shared atomics and a sharded lock are cheap
//! enough here.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

/// Locks over the source table; two workers rarely meet on one of these many.
const SHARDS: usize = 64;

/// The open connections of the process. A bound of 0 is no bound.
pub(crate) struct Admission {
    max: usize,
    max_per_source: usize,
    open: AtomicUsize,
    hasher: RandomState,
    sources: Vec<Mutex<HashMap<IpAddr, usize>>>,
}

/// One admitted connection. Dropping it gives the place back.
pub(crate) struct Place {
    admission: Arc<Admission>,
    source: IpAddr,
}

/// Which bound a connection met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    Node,
    Source,
}

impl Admission {
    pub(crate) fn new(max: usize, max_per_source: usize) -> Admission {
        let sources = (0..SHARDS).map(|_| Mutex::default()).collect();
        Admission { max, max_per_source, open: AtomicUsize::new(0), hasher: RandomState::new(), sources }
    }

    pub(crate) fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    pub(crate) fn admit(self: &Arc<Self>, source: IpAddr) -> Result<Place, Full> {
        // A client that reaches a dual-stack socket over IPv4 is the same source as over an IPv4 one.
        let source = source.to_canonical();
        if !take(&self.open, self.max) {
            return Err(Full::Node);
        }
        let admitted = self.with_source(source, |count| {
            let room = self.max_per_source == 0 || *count < self.max_per_source;
            *count += usize::from(room);
            room
        });
        if !admitted {
            self.open.fetch_sub(1, Relaxed);
            return Err(Full::Source);
        }
        Ok(Place { admission: Arc::clone(self), source })
    }

    fn with_source<T>(&self, source: IpAddr, change: impl FnOnce(&mut usize) -> T) -> T {
        let shard =
            usize::try_from(self.hasher.hash_one(source) % SHARDS as u64).expect("a shard number is small");
        let mut sources = self.sources[shard].lock().unwrap_or_else(PoisonError::into_inner);
        let count = sources.entry(source).or_insert(0);
        let result = change(count);
        if *count == 0 {
            sources.remove(&source);
        }
        result
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.with_source(self.source, |count| *count -= 1);
        self.admission.open.fetch_sub(1, Relaxed);
    }
}

/// Adds one to `count` unless it has reached `max`; 0 = no limit.
fn take(count: &AtomicUsize, max: usize) -> bool {
    let before = count.fetch_add(1, Relaxed);
    let room = max == 0 || before < max;
    if !room {
        count.fetch_sub(1, Relaxed);
    }
    room
}

/// A shared count of open connections with a bound, for a port or an app.
#[derive(Debug, Default)]
pub(crate) struct Gate(AtomicUsize);

/// A place behind a [`Gate`].
pub(crate) struct Passed(Arc<Gate>);

impl Gate {
    /// `None` when `max` are open; 0 = no limit.
    pub(crate) fn pass(self: &Arc<Self>, max: usize) -> Option<Passed> {
        take(&self.0, max).then(|| Passed(Arc::clone(self)))
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_hold_and_places_come_back() {
        let admission = Arc::new(Admission::new(3, 2));
        let [a, b]: [IpAddr; 2] = ["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()];
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        let first = admission.admit(a).unwrap();
        let _second = admission.admit(mapped).unwrap();
        assert_eq!(admission.admit(a).err(), Some(Full::Source));
        let _third = admission.admit(b).unwrap();
        assert_eq!(admission.admit(b).err(), Some(Full::Node));
        assert_eq!(admission.open(), 3);
        drop(first);
        assert_eq!(admission.open(), 2);
        let _again = admission.admit(a).unwrap();
        assert_eq!(admission.sources.iter().map(|shard| shard.lock().unwrap().len()).sum::<usize>(), 2);
    }

    #[test]
    fn a_gate_of_zero_is_open() {
        let gate = Arc::new(Gate::default());
        let _all: Vec<_> = (0..100).map(|_| gate.pass(0).unwrap()).collect();
        assert!(gate.pass(100).is_none());
        assert_eq!(gate.0.load(Relaxed), 100);
    }
}
