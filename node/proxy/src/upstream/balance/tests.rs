use super::*;
use crate::upstream::Endpoint;

/// Endpoints with these weights; all are available but those whose index is in `down`.
fn set(weights: &[u32], down: &[u32]) -> EndpointSet {
    let endpoint = |(i, &weight): (u16, &u32)| Endpoint {
        address: ([127, 0, 0, 1], i).into(),
        target: "t".into(),
        weight,
    };
    let available = (0..u32::try_from(weights.len()).unwrap()).filter(|i| !down.contains(i)).collect();
    EndpointSet::new((0..).zip(weights).map(endpoint).collect(), available)
}

/// Reproducible random bits.
fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(state)
    }
}

fn both() -> [(&'static str, Box<dyn Balance>); 2] {
    let strategies = Strategies::default();
    ["p2c", "round_robin"].map(|name| (name, strategies.get(name).unwrap()))
}

/// How often each endpoint was picked while nothing is in flight.
fn shares(strategy: &dyn Balance, set: &EndpointSet, tried: &[u32], picks: usize, seed: u64) -> Vec<usize> {
    let mut random = random(seed);
    let mut shares = vec![0; set.endpoints.len()];
    for _ in 0..picks {
        let pending = |_: usize| 0;
        let candidates = Candidates { set, pending: &pending, tried, random: random() };
        shares[strategy.pick(&candidates).unwrap() as usize] += 1;
    }
    shares
}

#[test]
fn a_pick_is_available_weighted_and_untried_or_there_is_none() {
    // Every subset of five endpoints down, every subset tried; the last one weighs nothing.
    let weights = [1, 100, 3, 50, 0];
    let members = |bits: u32| (0..5).filter(move |i| bits >> i & 1 == 1).collect::<Vec<u32>>();
    for (name, strategy) in both() {
        let mut random = random(1);
        for down in 0..32 {
            let set = set(&weights, &members(down));
            for tried in 0..32 {
                let may_pick = !(down | tried) & 0b01111;
                for _ in 0..20 {
                    let tried = &members(tried)[..];
                    let pending = |i: usize| [3, 0, 2, 9, 0][i];
                    let candidates = Candidates { set: &set, pending: &pending, tried, random: random() };
                    match strategy.pick(&candidates) {
                        Some(pick) => assert!(may_pick >> pick & 1 == 1, "{name}: {pick} of {may_pick:05b}"),
                        None => assert_eq!(may_pick, 0, "{name} found nobody"),
                    }
                }
            }
        }
    }
}

#[test]
fn an_empty_set_has_nobody() {
    let set = EndpointSet::default();
    for (name, strategy) in both() {
        let candidates = Candidates { set: &set, pending: &|_| 0, tried: &[], random: 7 };
        assert_eq!(strategy.pick(&candidates), None, "{name}");
    }
}

#[test]
fn an_idle_pool_is_shared_by_weight() {
    let picks = 40_000;
    for (weights, down) in [
        (&[1, 1, 1][..], &[][..]),
        (&[100, 100], &[]),
        (&[1, 2, 3, 4], &[]),
        (&[300, 100], &[]),
        (&[50, 0, 25, 25], &[]),
        (&[7, 1, 1, 5], &[3]),
        (&[1000, 1], &[]),
    ] {
        let set = set(weights, down);
        let total: u32 = set.available.iter().map(|&i| weights[i as usize]).sum();
        for (name, strategy) in both() {
            for (i, share) in shares(&*strategy, &set, &[], picks, 2).into_iter().enumerate() {
                let is_available = set.available.contains(&u32::try_from(i).unwrap());
                let weight = if is_available { weights[i] } else { 0 };
                let expected = f64::from(weight) / f64::from(total);
                #[expect(clippy::cast_precision_loss, reason = "small numbers")]
                let got = share as f64 / picks as f64;
                // Five standard deviations of a fair draw; round robin is far inside.
                #[expect(clippy::cast_precision_loss, reason = "small numbers")]
                let allowed = 5.0 * (expected * (1.0 - expected) / picks as f64).sqrt() + 1e-9;
                assert!(
                    (got - expected).abs() <= allowed,
                    "{name} {weights:?}: {i} got {got}, not {expected}"
                );
            }
        }
    }
}

#[test]
fn a_retry_is_shared_by_weight_among_those_left() {
    let set = set(&[10, 20, 30, 40], &[]);
    for (name, strategy) in both() {
        let shares = shares(&*strategy, &set, &[3, 0], 10_000, 3);
        assert_eq!((shares[0], shares[3]), (0, 0), "{name}");
        assert!((3_500..4_500).contains(&shares[1]), "{name}: {shares:?}");
    }
}

#[test]
fn p2c_takes_the_less_loaded_of_two() {
    // Of two endpoints both are always compared, so the order of the draw cannot matter.
    for (weights, pending, expected) in [
        ([1, 1], [1, 0], 1),
        ([1, 1], [5, 6], 0),
        ([1, 1], [1000, 0], 1),
        // Load is counted per weight: 3 in flight of weight 4 are less than 1 of weight 1.
        ([4, 1], [3, 1], 0),
        ([4, 1], [5, 1], 1),
        ([100, 300], [1, 2], 1),
        ([u32::MAX, 1], [u32::MAX, u32::MAX], 0),
    ] {
        let set = set(&weights, &[]);
        let mut random = random(4);
        for _ in 0..100 {
            let pending = |i: usize| pending[i];
            let candidates = Candidates { set: &set, pending: &pending, tried: &[], random: random() };
            assert_eq!(P2c.pick(&candidates), Some(expected), "{weights:?}");
        }
    }
}

#[test]
fn p2c_never_takes_the_most_loaded_of_many() {
    let set = set(&[1; 10], &[]);
    let mut random = random(5);
    for _ in 0..10_000 {
        let pending = |i: usize| if i == 6 { 2 } else { 1 };
        let candidates = Candidates { set: &set, pending: &pending, tried: &[], random: random() };
        assert_ne!(P2c.pick(&candidates), Some(6));
    }
}

#[test]
fn p2c_keeps_a_busy_pool_level() {
    // Balls into bins without departures: the fullest bin of p2c stays within a few of the mean.
    let set = set(&[1; 50], &[]);
    let loads: Vec<Cell<u32>> = vec![Cell::new(0); 50];
    let mut random = random(6);
    for _ in 0..50_000 {
        let pending = |i: usize| loads[i].get();
        let candidates = Candidates { set: &set, pending: &pending, tried: &[], random: random() };
        let pick = &loads[P2c.pick(&candidates).unwrap() as usize];
        pick.set(pick.get() + 1);
    }
    let (low, high) = (loads.iter().min().unwrap().get(), loads.iter().max().unwrap().get());
    assert!(low >= 990 && high <= 1010, "{low}..{high}");
}

#[test]
fn round_robin_gives_every_endpoint_its_turn_in_every_round() {
    let set = set(&[1; 5], &[2]);
    let strategy = RoundRobin::default();
    for round in 0..10 {
        assert_eq!(shares(&strategy, &set, &[], 4, round), [1, 1, 0, 1, 1]);
    }
}

#[test]
fn round_robin_starts_anywhere() {
    let set = set(&[1; 8], &[]);
    let mut random = random(7);
    let first = |random| {
        RoundRobin::default().pick(&Candidates { set: &set, pending: &|_| 0, tried: &[], random }).unwrap()
    };
    let starts: std::collections::BTreeSet<u32> = (0..200).map(|_| first(random())).collect();
    assert_eq!(starts.len(), 8);
}

#[test]
fn round_robin_goes_on_when_the_set_shrinks() {
    let strategy = RoundRobin::default();
    shares(&strategy, &set(&[1; 100], &[]), &[], 99, 8);
    assert_eq!(shares(&strategy, &set(&[1; 3], &[]), &[], 3, 8), [1, 1, 1]);
    assert_eq!(shares(&strategy, &set(&[1; 3], &[1]), &[], 4, 8), [2, 0, 2]);
}

#[test]
fn strategies_are_found_by_name_and_added_by_name() {
    struct Last;
    impl Balance for Last {
        fn pick(&self, candidates: &Candidates<'_>) -> Option<u32> {
            candidates.set.available.last().copied()
        }
    }
    let mut strategies = Strategies::default();
    assert_eq!(strategies.names().collect::<Vec<_>>(), ["p2c", "round_robin"]);
    assert!(strategies.get("last").is_none());
    strategies.register("last", || Box::new(Last));
    assert_eq!(strategies.names().collect::<Vec<_>>(), ["last", "p2c", "round_robin"]);
    let last = strategies.get("last").unwrap();
    let set = set(&[1, 1, 1], &[2]);
    assert_eq!(last.pick(&Candidates { set: &set, pending: &|_| 0, tried: &[], random: 0 }), Some(1));
}
