//! What the strategies that hash promise: equal keys meet, shares follow weights, and few keys move.

use super::*;

const NAMES: [&str; 3] = ["maglev", "ring_hash", "rendezvous"];
const KEYS: usize = 8_000;

/// Where every key goes.
fn owners(name: &str, set: EndpointSet) -> Vec<u32> {
    let strategies = Strategies::default();
    let set = set.laid_out(&strategies.layout(name).unwrap());
    let strategy = strategies.get(name).unwrap();
    assert!(strategy.wants_key());
    let pick = |key: usize| {
        // What else is known of the moment does not matter.
        let (key, random) = (Some(hash(&key.to_be_bytes())), key as u64);
        strategy.pick(&Candidates { key, ..candidates(&set, random) }).unwrap()
    };
    (0..KEYS).map(pick).collect()
}

fn share(owners: &[u32], endpoint: u32) -> f64 {
    owners.iter().filter(|&&owner| owner == endpoint).count() as f64 / owners.len() as f64
}

fn moved(before: &[u32], after: &[u32]) -> f64 {
    before.iter().zip(after).filter(|(one, other)| one != other).count() as f64 / before.len() as f64
}

/// Endpoints by the last number of their address, all of weight 100.
fn numbered(numbers: &[u16], down: &[u16]) -> EndpointSet {
    let endpoint = |&number: &u16| Endpoint::new(SocketAddr::from(([10, 0, 0, 1], number)), "t", 100);
    let available = (0..).zip(numbers).filter(|(_, number)| !down.contains(number)).map(|(i, _)| i).collect();
    EndpointSet::new(numbers.iter().map(endpoint).collect(), available)
}

/// The same by name and not by index, which is another one when the list is.
fn named(owners: &[u32], numbers: &[u16]) -> Vec<u32> {
    owners.iter().map(|&owner| numbers[owner as usize].into()).collect()
}

#[test]
fn shares_follow_the_weights_within_the_bound_of_each_algorithm() {
    for (name, bound) in [("maglev", 0.03), ("ring_hash", 0.35), ("rendezvous", 0.05)] {
        for weights in [&[100; 5][..], &[100, 200, 300], &[10, 100, 1000], &[100; 40]] {
            let owners = owners(name, set(weights, &[]));
            let total: u32 = weights.iter().sum();
            for (endpoint, &weight) in (0..).zip(weights) {
                let ideal = f64::from(weight) / f64::from(total);
                // And five standard deviations of drawing the keys.
                let drawn = 5.0 * (ideal / KEYS as f64).sqrt();
                let got = share(&owners, endpoint);
                assert!(
                    (got - ideal).abs() <= ideal * bound + drawn,
                    "{name} {weights:?}: {endpoint} has {got} of the keys, not {ideal}"
                );
            }
        }
    }
}

#[test]
fn when_an_endpoint_goes_its_keys_move_and_hardly_any_other() {
    // What moves beyond the keys of the one that went, as a share of all keys.
    for (name, bound) in [("maglev", 0.05), ("ring_hash", 0.0), ("rendezvous", 0.0)] {
        for size in [3, 10, 50] {
            let numbers: Vec<u16> = (1..=size).collect();
            let before = owners(name, numbered(&numbers, &[]));
            let gone = size / 2 + 1;
            let after = owners(name, numbered(&numbers, &[gone]));
            let had = share(&before, u32::from(gone) - 1);
            let moved = moved(&before, &after);
            assert!(moved >= had, "{name} of {size}");
            assert!(moved <= had + bound, "{name} of {size}: {moved} moved, {had} had to");
            // It comes back to exactly what it had.
            assert_eq!(owners(name, numbered(&numbers, &[])), before, "{name} of {size}");
        }
    }
}

#[test]
fn when_an_endpoint_comes_it_takes_its_share_and_hardly_any_other_key_moves() {
    for (name, bound) in [("maglev", 0.05), ("ring_hash", 0.0), ("rendezvous", 0.0)] {
        for size in [3_u16, 10, 50] {
            let few: Vec<u16> = (1..=size).collect();
            let many: Vec<u16> = (1..=size + 1).collect();
            let before = named(&owners(name, numbered(&few, &[])), &few);
            let after = named(&owners(name, numbered(&many, &[])), &many);
            let (moved, got) = (moved(&before, &after), share(&after, u32::from(size) + 1));
            assert!(moved <= got + bound, "{name} from {size}: {moved} moved, {got} had to");
        }
    }
}

#[test]
fn the_order_in_which_targets_are_listed_does_not_matter() {
    for name in NAMES {
        let (one, other) = ([1, 2, 3, 4, 5], [4, 2, 5, 1, 3]);
        let [one, other] =
            [one, other].map(|numbers| named(&owners(name, numbered(&numbers, &[])), &numbers));
        assert_eq!(one, other, "{name}");
    }
}

#[test]
fn a_retry_goes_where_the_key_would_be_without_the_first() {
    let strategies = Strategies::default();
    for name in ["ring_hash", "rendezvous"] {
        let numbers: Vec<u16> = (1..=20).collect();
        let layout = strategies.layout(name).unwrap();
        let (set, strategy) = (numbered(&numbers, &[]).laid_out(&layout), strategies.get(name).unwrap());
        for key in (0..50).map(mix) {
            let first = strategy.pick(&Candidates { key: Some(key), ..candidates(&set, 1) }).unwrap();
            let tried = &[first][..];
            let second = strategy.pick(&Candidates { key: Some(key), tried, ..candidates(&set, 1) });
            let without = numbered(&numbers, &[u16::try_from(first).unwrap() + 1]).laid_out(&layout);
            assert_eq!(
                second,
                strategy.pick(&Candidates { key: Some(key), ..candidates(&without, 2) }),
                "{name}"
            );
        }
    }
}

#[test]
fn requests_without_the_key_are_spread() {
    let strategies = Strategies::default();
    for name in NAMES {
        let set = set(&[100; 4], &[]).laid_out(&strategies.layout(name).unwrap());
        let shares = shares(&*strategies.get(name).unwrap(), &set, &[], 10_000, 12);
        assert!(shares.iter().all(|share| (1_500..3_500).contains(share)), "{name}: {shares:?}");
    }
}

#[test]
fn the_largest_pools_are_laid_out_too() {
    let strategies = Strategies::default();
    for name in NAMES {
        let set = set(&[100; 2_000], &[]).laid_out(&strategies.layout(name).unwrap());
        let strategy = strategies.get(name).unwrap();
        let owner = |key| strategy.pick(&Candidates { key: Some(key), ..candidates(&set, 1) }).unwrap();
        let seen: std::collections::BTreeSet<u32> = (0..100).map(mix).map(owner).collect();
        assert!(seen.len() > 90, "{name}: {} of 100 keys have an endpoint of their own", seen.len());
    }
}
