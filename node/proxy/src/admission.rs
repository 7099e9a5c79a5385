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
    sources: Arc<Sources>,
}

/// One admitted connection. Dropping it gives the place back.
pub(crate) struct Place {
    admission: Arc<Admission>,
    source: Option<SourcePlace>,
}

/// Which bound a connection met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    Node,
    Source,
}

impl Admission {
    pub(crate) fn new(max: usize, max_per_source: usize) -> Admission {
        Admission { max, max_per_source, open: AtomicUsize::new(0), sources: Arc::default() }
    }

    pub(crate) fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    pub(crate) fn admit(self: &Arc<Self>, source: IpAddr) -> Result<Place, Full> {
        let mut place = self.enter()?;
        place.attribute(source)?;
        Ok(place)
    }

    /// Admits a connection of which it is not known yet whose it is.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<Place, Full> {
        if take(&self.open, self.max) {
            Ok(Place { admission: Arc::clone(self), source: None })
        } else {
            Err(Full::Node)
        }
    }
}

impl Place {
    /// Says whose it is.
    pub(crate) fn attribute(&mut self, source: IpAddr) -> Result<(), Full> {
        let Admission { sources, max_per_source, .. } = &*self.admission;
        self.source = Some(sources.take(source, *max_per_source).ok_or(Full::Source)?);
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.open.fetch_sub(1, Relaxed);
    }
}

/// Open connections by client address.
pub(crate) struct Sources {
    hasher: RandomState,
    shards: Vec<Mutex<HashMap<IpAddr, usize>>>,
}

/// One connection of a source. Dropping it gives the place back.
pub(crate) struct SourcePlace {
    sources: Arc<Sources>,
    source: IpAddr,
}

impl Default for Sources {
    fn default() -> Self {
        Self { hasher: RandomState::new(), shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl Sources {
    /// `None` when the source has `max` already; 0 = no limit.
    pub(crate) fn take(self: &Arc<Self>, source: IpAddr, max: usize) -> Option<SourcePlace> {
        // A client that reaches a dual-stack socket over IPv4 is the same source as over an IPv4 one.
        let source = source.to_canonical();
        let has_room = self.with(source, |count| {
            let room = max == 0 || *count < max;
            *count += usize::from(room);
            room
        });
        has_room.then(|| SourcePlace { sources: Arc::clone(self), source })
    }

    fn with<T>(&self, source: IpAddr, change: impl FnOnce(&mut usize) -> T) -> T {
        let shard =
            usize::try_from(self.hasher.hash_one(source) % SHARDS as u64).expect("a shard number is small");
        let mut sources = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
        let count = sources.entry(source).or_insert(0);
        let result = change(count);
        if *count == 0 {
            sources.remove(&source);
        }
        result
    }
}

impl Drop for SourcePlace {
    fn drop(&mut self) {
        self.sources.with(self.source, |count| *count -= 1);
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

    pub(crate) fn count(&self) -> usize {
        self.0.load(Relaxed)
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
        assert_eq!(admission.enter().err(), Some(Full::Node));
        assert_eq!(admission.open(), 3);
        drop(first);
        assert_eq!(admission.open(), 2);
        let _again = admission.admit(a).unwrap();
        assert_eq!(
            admission.sources.shards.iter().map(|shard| shard.lock().unwrap().len()).sum::<usize>(),
            2
        );
    }

    #[test]
    fn a_place_may_learn_later_whose_it_is() {
        let admission = Arc::new(Admission::new(2, 1));
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        let mut first = admission.enter().unwrap();
        let mut second = admission.enter().unwrap();
        assert_eq!(first.attribute(ip), Ok(()));
        assert_eq!(second.attribute(ip), Err(Full::Source));
        drop(first);
        assert_eq!(second.attribute(ip), Ok(()));
        drop(second);
        assert_eq!(admission.open(), 0);
    }

    #[test]
    fn a_gate_of_zero_is_open() {
        let gate = Arc::new(Gate::default());
        let _all: Vec<_> = (0..100).map(|_| gate.pass(0).unwrap()).collect();
        assert!(gate.pass(100).is_none());
        assert_eq!(gate.0.load(Relaxed), 100);
    }
}
