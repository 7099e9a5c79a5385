use super::*;

const COOLDOWN: Duration = Duration::from_secs(60);

fn rules(min: u32, max: u32) -> Autoscale {
    Autoscale {
        min,
        max,
        target_connections: Some(100),
        target_requests_per_second: None,
        target_cpu_percent: None,
        cooldown: COOLDOWN,
    }
}

fn connections(count: u64) -> Demand {
    Demand { connections: count, ..Demand::default() }
}

/// Connections now and at most, seconds since the last change; the replicas decided on, or none.
#[track_caller]
fn check(current: u32, now: u64, peak: Option<u64>, since: Option<u64>, expected: Option<u32>) {
    let seen = Seen { now: connections(now), peak: peak.map(connections) };
    let decision = decide(&rules(2, 8), current, seen, since.map(Duration::from_secs));
    assert_eq!(
        decision.map(|decision| decision.replicas),
        expected,
        "{current} replicas, {now} now, {peak:?}"
    );
}

#[test]
fn it_grows_beyond_the_tolerance_and_shrinks_only_with_room() {
    // Enough, a little too much, too much, far too much, more than there may be.
    check(2, 200, None, None, None);
    check(2, 219, None, None, None);
    check(2, 221, None, None, Some(3));
    check(2, 750, None, None, Some(8));
    check(2, 9_000, None, None, Some(8));
    check(8, 9_000, None, None, None);
    // Less, with the memory of more; less for long; hardly less; nothing at all.
    check(4, 100, Some(390), None, None);
    check(4, 100, Some(230), None, Some(3));
    check(4, 100, Some(150), None, Some(2));
    check(4, 0, Some(0), None, Some(2));
    check(4, 0, None, None, None);
}

#[test]
fn it_keeps_to_the_cooldown_and_to_the_bounds() {
    check(2, 750, None, Some(59), None);
    check(2, 750, None, Some(60), Some(8));
    check(4, 0, Some(0), Some(59), None);
    // Bounds that were changed hold at once.
    check(1, 0, None, Some(0), Some(2));
    check(9, 900, None, Some(0), Some(8));
}

#[test]
fn the_target_that_needs_most_decides_and_is_named() {
    let rules =
        Autoscale { target_requests_per_second: Some(1_000), target_cpu_percent: Some(50), ..rules(1, 20) };
    let decided = |demand| decide(&rules, 2, Seen { now: demand, peak: None }, None).unwrap();
    let busy = Demand { connections: 300, begun_per_second: 5_000, cpu_percent: 120 };
    let why = "5000 requests per second, of which 1000 are for one replica";
    assert_eq!(decided(busy), Decision { replicas: 5, why: why.to_owned() });
    assert_eq!(decided(Demand { cpu_percent: 400, ..busy }).replicas, 8);
}

/// xorshift64*, so that a run can be made again.
struct Random(u64);

impl Random {
    fn below(&mut self, max: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % max
    }
}

/// Load second by second; the seconds at which the number changed, and to what.
fn run(
    rules: &Autoscale,
    load: impl Fn(u64, &mut Random) -> u64,
    seconds: u64,
    seed: u64,
) -> Vec<(u64, u32)> {
    let mut random = Random(seed | 1);
    let (mut current, mut changed) = (rules.min, None);
    let mut samples: VecDeque<(u64, u64)> = VecDeque::new();
    let mut changes = Vec::new();
    for second in 0..seconds {
        let now = load(second, &mut random);
        samples.push_back((second, now));
        let cooldown = rules.cooldown.as_secs();
        while samples.get(1).is_some_and(|(time, _)| second - time >= cooldown) {
            samples.pop_front();
        }
        let whole = second - samples[0].0 >= cooldown;
        let peak = whole.then(|| connections(samples.iter().map(|(_, load)| *load).max().unwrap()));
        let seen = Seen { now: connections(now), peak };
        let since = changed.map(|changed| Duration::from_secs(second - changed));
        if let Some(decision) = decide(rules, current, seen, since) {
            assert!((rules.min..=rules.max).contains(&decision.replicas), "seed {seed}: {decision:?}");
            assert!(since.is_none_or(|since| since >= rules.cooldown), "seed {seed}: too soon");
            assert_ne!(decision.replicas, current);
            current = decision.replicas;
            changed = Some(second);
            changes.push((second, current));
        }
    }
    changes
}

#[test]
fn noise_moves_nothing_and_a_day_moves_it_up_once_and_down_once() {
    for seed in 0..200 {
        let rules = rules(1, 20);
        // One hour of a load that varies by a tenth either way: it settles, and stays.
        let noisy = run(&rules, |_, random| 450 + random.below(91), 3_600, seed);
        assert!(noisy.len() <= 2, "seed {seed}: {noisy:?}");
        assert!(noisy.iter().all(|(second, _)| *second < 200), "seed {seed}: {noisy:?}");
        // Up to ten times the load and back again, with the same noise: never down before it is up, never up
        // again on the way down.
        let hill = |second: u64, random: &mut Random| {
            let height = if second < 1_800 { second } else { 3_600_u64.saturating_sub(second) };
            (height / 2 + 50) * (95 + random.below(11)) / 100
        };
        let day = run(&rules, hill, 3_700, seed);
        let top = day.iter().map(|(_, replicas)| *replicas).max().unwrap();
        let turn = day.iter().position(|(_, replicas)| *replicas == top).unwrap();
        assert!(day[..=turn].is_sorted_by_key(|(_, replicas)| *replicas), "seed {seed}: {day:?}");
        assert!(day[turn..].is_sorted_by(|a, b| a.1 >= b.1), "seed {seed}: {day:?}");
        assert!((9..=11).contains(&top), "seed {seed}: {day:?}");
        assert!(day.last().unwrap().1 <= 3, "seed {seed}: {day:?}");
    }
}

#[test]
fn a_short_gust_is_answered_and_not_forgotten_at_once() {
    let load = |second: u64, _: &mut Random| if (100..110).contains(&second) { 500 } else { 80 };
    let changes = run(&rules(1, 8), load, 400, 1);
    assert_eq!(changes[0], (100, 5));
    assert_eq!(changes.len(), 2, "{changes:?}");
    // The gust ended at 109; it counts for a whole cooldown after that.
    assert_eq!(changes[1], (170, 1));
}
