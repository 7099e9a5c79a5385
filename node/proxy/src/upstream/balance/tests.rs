#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "small numbers")]

use std::{cell::Cell, net::SocketAddr};

use super::{
    choice::{LeastConn, P2c, PeakEwma},
    turns::RoundRobin,
    *,
};
use crate::upstream::Endpoint;

mod hashing;

/// Idle endpoints that have never answered, and a request without a key.
fn candidates(set: &EndpointSet, random: u64) -> Candidates<'_> {
    Candidates { set, pending: &|_| 0, latency: &|_| None, key: None, tried: &[], random }
}

/// Endpoints with these weights; all are available but those whose index is in `down`.
fn set(weights: &[u32], down: &[u32]) -> EndpointSet {
    let endpoint =
        |(i, &weight): (u16, &u32)| Endpoint::new(SocketAddr::from(([127, 0, 0, 1], i)), "t", weight);
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

/// Every strategy that is there, and what it lays out.
fn all() -> Vec<(String, Box<dyn Balance>, Option<Layout>)> {
    let strategies = Strategies::default();
    let one = |name: &str| (name.to_owned(), strategies.get(name).unwrap(), strategies.layout(name));
    let all: Vec<_> = strategies.names().map(one).collect();
    assert_eq!(all.len(), 8);
    all
}

fn lay_out(set: EndpointSet, layout: Option<&Layout>) -> EndpointSet {
    match layout {
        Some(layout) => set.laid_out(layout),
        None => set,
    }
}

/// How often each endpoint was picked while nothing is in flight.
fn shares(strategy: &dyn Balance, set: &EndpointSet, tried: &[u32], picks: usize, seed: u64) -> Vec<usize> {
    let mut random = random(seed);
    let mut shares = vec![0; set.endpoints.len()];
    for _ in 0..picks {
        let candidates = Candidates { tried, ..candidates(set, random()) };
        shares[strategy.pick(&candidates).unwrap() as usize] += 1;
    }
    shares
}

#[test]
fn a_pick_is_available_weighted_and_untried_or_there_is_none() {
    // Every subset of five endpoints down, every subset tried; the last one weighs nothing.
    let weights = [1, 100, 3, 50, 0];
    let members = |bits: u32| (0..5).filter(move |i| bits >> i & 1 == 1).collect::<Vec<u32>>();
    for (name, strategy, layout) in all() {
        let mut random = random(1);
        for down in 0..32 {
            let set = lay_out(set(&weights, &members(down)), layout.as_ref());
            for tried in 0..32 {
                let may_pick = !(down | tried) & 0b01111;
                for _ in 0..20 {
                    let tried = &members(tried)[..];
                    let pending = |i: usize| [3, 0, 2, 9, 0][i];
                    let candidates = Candidates { pending: &pending, tried, ..candidates(&set, random()) };
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
    for (name, strategy, layout) in all() {
        for set in [EndpointSet::default(), lay_out(EndpointSet::default(), layout.as_ref())] {
            assert_eq!(strategy.pick(&candidates(&set, 7)), None, "{name}");
        }
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
        // The hash strategies have tests of their own.
        for (name, strategy, _) in all().into_iter().filter(|(_, _, layout)| layout.is_none()) {
            for (i, share) in shares(&*strategy, &set, &[], picks, 2).into_iter().enumerate() {
                let is_available = set.available.contains(&u32::try_from(i).unwrap());
                let weight = if is_available { weights[i] } else { 0 };
                let expected = f64::from(weight) / f64::from(total);
                let got = share as f64 / picks as f64;
                // Five standard deviations of a fair draw; round robin is far inside.
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
    for (name, strategy, _) in all() {
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
            let candidates = Candidates { pending: &pending, ..candidates(&set, random()) };
            assert_eq!(P2c.pick(&candidates), Some(expected), "{weights:?}");
            assert_eq!(LeastConn.pick(&candidates), Some(expected), "{weights:?}");
        }
    }
}

#[test]
fn p2c_never_takes_the_most_loaded_of_many() {
    let set = set(&[1; 10], &[]);
    let mut random = random(5);
    for _ in 0..10_000 {
        let pending = |i: usize| if i == 6 { 2 } else { 1 };
        let candidates = Candidates { pending: &pending, ..candidates(&set, random()) };
        assert_ne!(P2c.pick(&candidates), Some(6));
    }
}

#[test]
fn p2c_keeps_a_busy_pool_level() {
    // The fullest bin of p2c stays within a few of the mean.
    let (low, high) = fill(&P2c, &[1; 50], 50_000, 6);
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
    let first = |random| RoundRobin::default().pick(&candidates(&set, random)).unwrap();
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
    let named =
        ["least_conn", "maglev", "p2c", "peak_ewma", "random", "rendezvous", "ring_hash", "round_robin"];
    assert_eq!(strategies.names().collect::<Vec<_>>(), named);
    assert!(strategies.get("last").is_none());
    strategies.register("last", || Box::new(Last));
    assert_eq!(strategies.names().count(), 9);
    let last = strategies.get("last").unwrap();
    let set = set(&[1, 1, 1], &[2]);
    assert_eq!(last.pick(&candidates(&set, 0)), Some(1));
}

#[test]
fn a_layout_is_made_once_per_set_and_read_by_every_worker() {
    struct Table(u32);
    struct First;
    impl Balance for First {
        fn pick(&self, candidates: &Candidates<'_>) -> Option<u32> {
            candidates.set.layout::<Table>().map(|table| table.0)
        }
    }
    let mut strategies = Strategies::default();
    strategies.register_with_layout("first", || Box::new(First), |set| Table(set.available[0]));
    let set = set(&[1, 1, 1], &[0]).laid_out(&strategies.layout("first").unwrap());
    for _worker in 0..2 {
        assert_eq!(strategies.get("first").unwrap().pick(&candidates(&set, 0)), Some(1));
    }
    assert!(set.layout::<String>().is_none());
    assert!(strategies.layout("p2c").is_none());
}

#[test]
fn unequal_weights_have_exactly_their_turns_in_any_stretch_of_a_round() {
    for (weights, down) in [
        (&[2, 1][..], &[][..]),
        (&[3, 2, 1], &[]),
        (&[50, 30, 15, 5], &[]),
        (&[97, 53, 25, 12, 6, 3, 1], &[2]),
    ] {
        let set = set(weights, down);
        let round: u32 = set.available.iter().map(|&i| weights[i as usize]).sum();
        let strategy = RoundRobin::default();
        let mut random = random(9);
        let mut pick = || strategy.pick(&candidates(&set, random())).unwrap() as usize;
        let mut picks = std::collections::VecDeque::new();
        let mut turns = vec![0_u32; weights.len()];
        for _ in 0..3 * round {
            let next = pick();
            picks.push_back(next);
            turns[next] += 1;
            if picks.len() <= round as usize {
                continue;
            }
            turns[picks.pop_front().unwrap()] -= 1;
            for (endpoint, (&had, &weight)) in (0..).zip(turns.iter().zip(weights)) {
                let expected = if set.available.contains(&endpoint) { weight } else { 0 };
                // A turn that is due at the same moment as the end of the stretch may be on either side of it.
                assert!(had.abs_diff(expected) <= 1, "{weights:?}: {endpoint} had {had} turns");
            }
        }
    }
}

#[test]
fn turns_of_unequal_weights_are_spread_out() {
    let set = set(&[5, 1, 1], &[]);
    let strategy = RoundRobin::default();
    let mut random = random(10);
    let picks: Vec<u32> = (0..70).map(|_| strategy.pick(&candidates(&set, random())).unwrap()).collect();
    for endpoint in [1, 2] {
        let turns: Vec<usize> = (0..70).filter(|&at| picks[at] == endpoint).collect();
        assert!(turns.windows(2).all(|two| (6..=8).contains(&(two[1] - two[0]))), "{endpoint}: {picks:?}");
    }
}

#[test]
fn least_conn_takes_the_least_of_all() {
    let mut random = random(11);
    for size in [1, 2, 10, 100] {
        let set = set(&vec![1; size], &[]);
        let least = random() as usize % size;
        for _ in 0..50 {
            let pending = |i: usize| if i == least { 3 } else { 4 + (i % 5) as u32 };
            let candidates = Candidates { pending: &pending, ..candidates(&set, random()) };
            assert_eq!(LeastConn.pick(&candidates), Some(u32::try_from(least).unwrap()));
        }
    }
}

/// Balls into bins without departures: the fullest and the emptiest bin.
fn fill(strategy: &dyn Balance, weights: &[u32], balls: u32, seed: u64) -> (u32, u32) {
    let set = set(weights, &[]);
    let loads: Vec<Cell<u32>> = vec![Cell::new(0); weights.len()];
    let mut random = random(seed);
    for _ in 0..balls {
        let pending = |i: usize| loads[i].get();
        let candidates = Candidates { pending: &pending, ..candidates(&set, random()) };
        let pick = &loads[strategy.pick(&candidates).unwrap() as usize];
        pick.set(pick.get() + 1);
    }
    (loads.iter().min().unwrap().get(), loads.iter().max().unwrap().get())
}

#[test]
fn p2c_is_never_worse_than_random_and_least_conn_never_worse_than_p2c() {
    let strategies = Strategies::default();
    let by_name = |name| strategies.get(name).unwrap();
    let (random, p2c, least) = (by_name("random"), by_name("p2c"), by_name("least_conn"));
    for seed in 0..60 {
        let size = 2 + (mix(seed) % 60) as usize;
        let balls = 50 + (mix(seed + 1000) % 1000) as u32;
        let weights = vec![1; size];
        let fullest = |strategy: &dyn Balance| fill(strategy, &weights, balls, seed).1;
        let (one, two, all) = (fullest(&*random), fullest(&*p2c), fullest(&*least));
        assert!(all <= two && two <= one, "seed {seed}: {size} bins, {balls} balls: {one}, {two}, {all}");
    }
}

/// Requests arrive one per millisecond at endpoints that answer in so many milliseconds, or fail at once (0), and
/// are answered while others wait. Returns how many each endpoint got in the second half.
fn simulate(strategy: &dyn Balance, millis: &[u64], seed: u64) -> Vec<u32> {
    use crate::upstream::ewma::Latency;
    let set = set(&vec![100; millis.len()], &[]);
    let mut random = random(seed);
    let mut latency = vec![Latency::default(); millis.len()];
    let mut pending: Vec<Vec<u64>> = vec![Vec::new(); millis.len()];
    let mut shares = vec![0; millis.len()];
    const END: u64 = 8_000;
    for now in 0..END {
        for (endpoint, ends) in pending.iter_mut().enumerate() {
            for _ in ends.extract_if(.., |end| *end <= now) {
                let took = millis[endpoint];
                latency[endpoint].observe(now, (took * 1000) as f64 + 50.0, took == 0);
            }
        }
        let in_flight = |i: usize| u32::try_from(pending[i].len()).unwrap();
        let expected = |i: usize| latency[i].expected_micros(now);
        let candidates = Candidates { pending: &in_flight, latency: &expected, ..candidates(&set, random()) };
        let pick = strategy.pick(&candidates).unwrap() as usize;
        // A queue of one: who is asked by many answers later.
        let begins = pending[pick].last().copied().unwrap_or(now).max(now);
        pending[pick].push(begins + millis[pick]);
        shares[pick] += u32::from(now >= END / 2);
    }
    shares
}

#[test]
fn peak_ewma_prefers_who_answers_fast_and_avoids_who_fails_fast() {
    for seed in 0..3 {
        let shares = simulate(&PeakEwma, &[3, 3, 30], seed);
        assert!(shares[2] * 8 < shares[0], "seed {seed}: the slow one of {shares:?}");
        // The third fails at once: counted by its times alone it would be the fastest by far.
        let shares = simulate(&PeakEwma, &[3, 3, 0], seed);
        assert!(shares[2] * 20 < shares[0], "seed {seed}: the failing one of {shares:?}");
        // Whereas p2c, which does not look at what became of a request, is drawn to it.
        let shares = simulate(&P2c, &[3, 3, 0], seed);
        assert!(shares[2] > shares[0], "seed {seed}: {shares:?}");
    }
}

#[test]
fn peak_ewma_comes_back_to_who_has_recovered() {
    use crate::upstream::ewma::Latency;
    let set = set(&[100, 100], &[]);
    let mut recovered = Latency::default();
    recovered.observe(0, 50.0, true);
    let expected =
        |now: u64| move |i: usize| if i == 0 { Some(2_000.0) } else { recovered.expected_micros(now) };
    for (now, pick) in [(0, 0), (30_000, 0), (70_000, 1)] {
        let latency = expected(now);
        let candidates = Candidates { latency: &latency, ..candidates(&set, 5) };
        assert_eq!(PeakEwma.pick(&candidates), Some(pick), "after {now} ms");
    }
}

#[test]
fn peak_ewma_lets_one_request_find_out_how_fast_a_new_endpoint_is() {
    let set = set(&[100, 100], &[]);
    let pending = Cell::new(0);
    let in_flight = |i: usize| if i == 1 { pending.get() } else { 0 };
    let latency = |i: usize| (i == 0).then_some(1_000.0);
    for expected in [1, 0, 0] {
        let candidates = Candidates { pending: &in_flight, latency: &latency, ..candidates(&set, 3) };
        let pick = PeakEwma.pick(&candidates).unwrap();
        assert_eq!(pick, expected);
        pending.set(pending.get() + u32::from(pick == 1));
    }
}
