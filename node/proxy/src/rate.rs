//! How often each client may ask: a rate and a burst per key, in a table that cannot grow without bound.
//!
//! The generic cell rate algorithm (ITU-T I.371, annex A.1): of each key only the moment is kept at which it has all
//! of its burst again. Shared by the workers of a node, because a client with one connection meets one of them only;
//! a key is looked up under the lock of one of many shards, and only where a rate is configured.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::config::RateConfig;

/// Locks over the table.
const SHARDS: usize = 16;
/// Keys that share a stretch of a shard; among these somebody is forgotten when it is full.
const WAYS: usize = 8;

/// The rates of one app, over all its generations with the same bounds.
pub(crate) struct Rates {
    pub(crate) config: RateConfig,
    pace: Pace,
    since: Instant,
    /// Its keys are secret, so nobody can choose keys that meet.
    hasher: RandomState,
    shards: Box<[Mutex<Table>]>,
    sets_max: usize,
}

/// By what a request is known.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(crate) enum Key<'a> {
    Client(IpAddr),
    Field(&'a [u8]),
    Route(&'a str),
}

/// It asks too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooOften {
    /// Until it may ask again.
    pub(crate) wait: Duration,
}

impl Rates {
    pub(crate) fn new(config: &RateConfig) -> Rates {
        Rates {
            pace: Pace::new(config.per_second, config.burst),
            since: Instant::now(),
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            sets_max: config.max_keys.div_ceil(SHARDS * WAYS).next_power_of_two(),
            config: config.clone(),
        }
    }

    /// Counts a request. Whether another key was forgotten for it that had not all of its burst back.
    pub(crate) fn take(&self, key: Key<'_>, now: Instant) -> Result<bool, TooOften> {
        let key = match key {
            // A client has a whole network of these (RFC 6177 §2).
            Key::Client(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_none() => {
                Key::Client(IpAddr::V6((ip.to_bits() >> 64 << 64).into()))
            }
            Key::Client(ip) => Key::Client(ip.to_canonical()),
            key @ (Key::Field(_) | Key::Route(_)) => key,
        };
        let hash = self.hasher.hash_one(key);
        let now = u64::try_from(now.saturating_duration_since(self.since).as_nanos()).unwrap_or(u64::MAX);
        let shard = usize::try_from(hash % SHARDS as u64).expect("a shard number is small");
        let mut table = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
        let (entry, is_evicted) = table.entry(hash / SHARDS as u64, now, self.sets_max);
        match self.pace.take(entry.full_at, now) {
            Ok(full_at) => {
                entry.full_at = full_at;
                Ok(is_evicted)
            }
            Err(nanos) => Err(TooOften { wait: Duration::from_nanos(nanos) }),
        }
    }
}

/// Nanoseconds between two requests, and how far ahead of that a burst may be. PURE.
#[derive(Clone, Copy, Debug)]
struct Pace {
    step: u64,
    burst: u64,
}

impl Pace {
    fn new(per_second: u32, burst: u32) -> Pace {
        let step = 1_000_000_000 / u64::from(per_second.max(1));
        Pace { step, burst: step.saturating_mul(u64::from(burst.max(1))) }
    }

    /// When all of the burst will be there again after this one; or how long to wait for it.
    fn take(self, full_at: u64, now: u64) -> Result<u64, u64> {
        let next = full_at.max(now).saturating_add(self.step);
        let ahead = next - now;
        if ahead <= self.burst { Ok(next) } else { Err(ahead - self.burst) }
    }
}

/// Of a key: when it has all of its burst again. One for which that has passed is as good as none.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    key: u64,
    full_at: u64,
}

/// One shard. It grows by doubling to its bound.
#[derive(Default)]
struct Table {
    /// Empty, or a power of two.
    sets: Vec<[Entry; WAYS]>,
}

impl Table {
    /// The entry of a key, made where there is none; whether one had to go for it that still meant something.
    fn entry(&mut self, key: u64, now: u64, sets_max: usize) -> (&mut Entry, bool) {
        if self.sets.is_empty() {
            self.sets.push(Default::default());
        }
        let (at, way, is_evicted) = loop {
            let at = self.set_of(key);
            let set = &self.sets[at];
            if let Some(way) = set.iter().position(|entry| entry.key == key) {
                break (at, way, false);
            }
            if let Some(way) = set.iter().position(|entry| entry.full_at <= now) {
                break (at, way, false);
            }
            if self.sets.len() < sets_max {
                self.grow();
                continue;
            }
            // Whoever has the most of its burst back loses the least.
            let oldest = (0..WAYS).min_by_key(|&way| set[way].full_at).expect("there are some");
            break (at, oldest, true);
        };
        let entry = &mut self.sets[at][way];
        if entry.key != key {
            *entry = Entry { key, full_at: 0 };
        }
        (entry, is_evicted)
    }

    /// Each set becomes two, so that there is room for all of its keys.
    fn grow(&mut self) {
        let half = self.sets.len();
        self.sets.resize(half * 2, Default::default());
        for at in 0..half {
            for way in 0..WAYS {
                let entry = self.sets[at][way];
                let to = self.set_of(entry.key);
                // An empty one has no place to be in, and would push out somebody else's.
                if entry.full_at != 0 && to != at {
                    self.sets[to][way] = std::mem::take(&mut self.sets[at][way]);
                }
            }
        }
    }

    fn set_of(&self, key: u64) -> usize {
        usize::try_from(key & (self.sets.len() as u64 - 1)).expect("less than a length")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_burst_goes_at_once_and_comes_back_at_the_rate() {
        let pace = Pace::new(10, 3);
        let mut full_at = 0;
        // At so many tenths of a second, and how many tenths are to be waited where it is too often.
        for (tenths, expected) in [
            (100, Ok(())),
            (100, Ok(())),
            (100, Ok(())),
            (100, Err(1)),
            (101, Ok(())),
            (101, Err(1)),
            (103, Ok(())),
            (103, Ok(())),
            (103, Err(1)),
            (200, Ok(())),
            (200, Ok(())),
            (200, Ok(())),
            (200, Err(1)),
        ] {
            let taken = pace.take(full_at, tenths * SECOND / 10);
            full_at = taken.unwrap_or(full_at);
            assert_eq!(taken.map(drop).map_err(|wait| wait / (SECOND / 10)), expected, "at {tenths}");
        }
    }

    fn rates(max_keys: usize) -> Rates {
        Rates::new(&RateConfig { per_second: 1, burst: 1, max_keys, ..RateConfig::default() })
    }

    #[test]
    fn keys_have_rates_of_their_own_and_networks_of_version_six_are_one_key() {
        let rates = rates(1000);
        let now = Instant::now();
        let client = |ip: &str| Key::Client(ip.parse().unwrap());
        for (key, fits) in [
            (client("192.0.2.1"), true),
            (client("192.0.2.2"), true),
            (client("192.0.2.1"), false),
            (client("::ffff:192.0.2.1"), false),
            (client("2001:db8::1"), true),
            (client("2001:db8::2"), false),
            (client("2001:db8:0:1::2"), true),
            (Key::Field(b"a"), true),
            (Key::Route("a"), true),
            (Key::Field(b"a"), false),
        ] {
            assert_eq!(rates.take(key, now).is_ok(), fits, "{key:?}");
        }
        assert!(rates.take(client("192.0.2.1"), now + Duration::from_secs(1)).is_ok());
    }

    #[test]
    fn the_table_grows_to_its_bound_and_forgets_beyond_it() {
        let rates = rates(1024);
        let now = Instant::now();
        let mut evicted = 0;
        for number in 0..100_000_u32 {
            evicted += u32::from(rates.take(Key::Field(&number.to_be_bytes()), now).unwrap());
        }
        let kept: usize = rates.shards.iter().map(|shard| shard.lock().unwrap().sets.len() * WAYS).sum();
        assert_eq!(kept, 1024);
        assert_eq!(evicted as usize, 100_000 - kept);
        // Once they are due they are nobody's loss.
        let later = now + Duration::from_secs(2);
        assert!((0..500_u32).all(|n| rates.take(Key::Field(&n.to_le_bytes()), later).is_ok()));
    }

    #[test]
    fn growing_loses_no_key() {
        let mut table = Table::default();
        for key in 0..1000_u64 {
            let (entry, is_evicted) = table.entry(key.wrapping_mul(0x9E37_79B9_7F4A_7C15), 0, 1 << 20);
            assert!(!is_evicted);
            entry.full_at = key + 1;
        }
        for key in 0..1000_u64 {
            let (entry, _) = table.entry(key.wrapping_mul(0x9E37_79B9_7F4A_7C15), 0, 1 << 20);
            assert_eq!(entry.full_at, key + 1);
        }
    }
}
