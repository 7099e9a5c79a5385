//! What a second worker gives, and what it does that the kernel spreads connections over workers by a hash.
//!
//! Nothing is pinned here: two workers and the load have two cores between them, so rates are those of the machine
//! and not of the proxy. What says whether workers get in each other's way is the CPU an operation costs with
//! one and with two: twice the ratio of the two is the speed-up where the load side is not the limit. It is here, and two
//! workers that wait for it wake up more often, so nginx, whose workers are processes that share nothing, and HAProxy say
//! how much of a difference is that of the machine.

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use crate::{
    client::Exchange,
    peer::{Can, PEERS, Peer, Running, is_installed},
    ratio::median,
    row::{drive, load, operations},
    targets,
    world::World,
};

const WORK: [(&str, Exchange, usize); 3] = [
    ("HTTP/1.1 keep-alive", Exchange::Get("/"), 64),
    ("TCP 64 B back and forth", Exchange::Ping, 64),
    ("TCP connect, echo, close", Exchange::Connect, 64),
];
/// Draws of the hash for each number of connections.
const DRAWS: usize = 15;
/// Requests per second of a draw: about a third of what two workers do on two shared cores.
const DRAW_RATE: f64 = 15_000.0;

pub(crate) fn run(rounds: usize, seconds: f64) -> ExitCode {
    let run = Duration::from_secs_f64(seconds);
    let mut world = World::new();
    let targets = targets(&mut world);
    let peers: Vec<&Peer> = PEERS.iter().filter(|peer| is_installed(peer.version)).collect();
    println!(
        "| work | proxy | CPU-s per 100,000, one worker | two workers | two are worth |\n|---|---|---|---|---|"
    );
    for (name, exchange, clients) in WORK {
        let mut costs = vec![[Vec::new(), Vec::new()]; peers.len()];
        for _ in 0..rounds {
            for (peer, costs) in peers.iter().zip(&mut costs) {
                for (workers, costs) in (1..).zip(costs) {
                    let running = Running::start(peer, &mut world, &targets, Can::default(), workers, None);
                    let load = load(&running, exchange, clients, None);
                    let (result, cpu) = drive(&mut world, &running, &load, run);
                    assert_eq!(result.failed, 0, "{:?}", result.failure);
                    costs.push(cpu / operations(&result) * 100_000.0);
                }
            }
        }
        for (peer, [one, two]) in peers.iter().zip(&costs) {
            let ratios: Vec<f64> = one.iter().zip(two).map(|(one, two)| 2.0 * one / two).collect();
            let (one, two) = (median(one), median(two));
            println!("| {name} | {} | {one:.2} | {two:.2} | {:.2} |", peer.name, median(&ratios));
        }
    }
    println!(
        "\n| connections | busiest worker of two, mean | worst draw | p99, even half of the draws, µs | p99, uneven half |"
    );
    println!("|{}", "---|".repeat(5));
    for clients in [8, 64, 250] {
        let mut draws: Vec<(f64, f64)> =
            (0..DRAWS).map(|_| draw(&mut world, &targets, clients, run)).collect();
        draws.sort_by(|one, other| one.0.total_cmp(&other.0));
        let (even, uneven) = draws.split_at(DRAWS / 2);
        let p99 = |draws: &[(f64, f64)]| median(&draws.iter().map(|draw| draw.1).collect::<Vec<_>>());
        #[allow(clippy::cast_precision_loss)]
        let mean = draws.iter().map(|draw| draw.0).sum::<f64>() / DRAWS as f64;
        println!(
            "| {clients} | {:.0} % | {:.0} % | {:.0} | {:.0} |",
            mean * 100.0,
            draws[DRAWS - 1].0 * 100.0,
            p99(even),
            p99(uneven)
        );
    }
    ExitCode::SUCCESS
}

/// The share of the busier worker, and the p99 of a load at a fixed rate.
fn draw(world: &mut World, targets: &crate::peer::Targets, clients: usize, run: Duration) -> (f64, f64) {
    let running = Running::start(&PEERS[0], world, targets, Can::default(), 2, None);
    let mut load = load(&running, Exchange::Get("/"), clients, Some(DRAW_RATE));
    load.naps = true;
    let before = workers_of(&running);
    let result = world.drive(&load, run);
    let after = workers_of(&running);
    let used: Vec<f64> =
        after.iter().map(|(name, cpu)| cpu - before.get(name).copied().unwrap_or(0.0)).collect();
    let most = used.iter().copied().fold(0.0, f64::max);
    (most / used.iter().sum::<f64>(), result.quantile(0.99))
}

fn workers_of(running: &Running) -> BTreeMap<String, f64> {
    running.cpu_of_threads().into_iter().filter(|(name, _)| name.starts_with("proxy-")).collect()
}
