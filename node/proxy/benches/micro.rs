//! Nanoseconds per step of a request. `cargo bench -p flotilla-proxy --bench micro`
#![allow(clippy::print_stdout, reason = "a benchmark prints")]
#![allow(clippy::disallowed_methods, reason = "it measures real time")]

use std::time::{Duration, Instant};

use flotilla_proxy::micro::{self, Step};

/// As in the real program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 20;
const ROUND: Duration = Duration::from_millis(20);
/// Steps between two looks at the clock.
const BATCH: u32 = 1000;

fn main() {
    let steps: [(&str, Step); 22] = [
        ("head: read a request of 9 fields", micro::parse()),
        ("route: 1 host", micro::route(1)),
        ("route: 10,000 hosts", micro::route(10_000)),
        ("head: read, check and rewrite a request", micro::rewrite_request()),
        ("head: read, check and rewrite a response", micro::rewrite_response()),
        ("pick: p2c of 3", micro::pick("p2c", 3)),
        ("pick: p2c of 1,000", micro::pick("p2c", 1000)),
        ("pick: round robin of 3", micro::pick("round_robin", 3)),
        ("pick: round robin of 1,000", micro::pick("round_robin", 1000)),
        ("pick: peak EWMA of 3", micro::pick("peak_ewma", 3)),
        ("pick: peak EWMA of 1,000", micro::pick("peak_ewma", 1000)),
        ("pick: least connections of 3", micro::pick("least_conn", 3)),
        ("pick: least connections of 1,000", micro::pick("least_conn", 1000)),
        ("pick: random of 3", micro::pick("random", 3)),
        ("pick: random of 1,000", micro::pick("random", 1000)),
        ("pick: maglev of 3", micro::pick("maglev", 3)),
        ("pick: maglev of 1,000", micro::pick("maglev", 1000)),
        ("pick: ring hash of 3", micro::pick("ring_hash", 3)),
        ("pick: ring hash of 1,000", micro::pick("ring_hash", 1000)),
        ("pick: rendezvous of 100", micro::pick("rendezvous", 100)),
        ("pick: rendezvous of 1,000", micro::pick("rendezvous", 1000)),
        ("pool: take and put back", micro::pool()),
    ];
    for (name, mut step) in steps {
        println!("{name:<44}{:>10.1} ns", nanoseconds(&mut step));
    }
}

/// The best of some rounds: what disturbs a round only ever makes it longer.
fn nanoseconds(step: &mut Step) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let (start, mut steps) = (Instant::now(), 0_u32);
        while start.elapsed() < ROUND {
            for _ in 0..BATCH {
                step();
            }
            steps += BATCH;
        }
        best = best.min(start.elapsed().as_secs_f64() * 1e9 / f64::from(steps));
    }
    best
}
