//! The experiment of the thesis: three targets, ours with p2c and nginx with `random two`, 100,000 requests over 250
//! connections, again and again; mean and standard deviation. By `hey`, which is itself the limit on two cores, and by
//! `wrk`, with the CPU that a request cost beside the rates.

use std::{process::ExitCode, time::Duration};

use crate::{
    client::Result,
    outside,
    peer::{Can, PEERS, Running, is_installed},
    row::operations,
    targets,
    world::World,
};

const REQUESTS: u64 = 100_000;
const CONNECTIONS: usize = 250;
/// Seven rounds are asked for where nobody said otherwise; this needs more.
const RUNS_MIN: usize = 20;

type Tool = (&'static str, fn(&mut World, &str) -> Result);

const TOOLS: [Tool; 2] = [
    ("hey", |world, url| outside::hey(world, url, REQUESTS, CONNECTIONS)),
    ("wrk", |world, url| outside::wrk(world, url, CONNECTIONS, Duration::from_secs(3))),
];

pub(crate) fn run(rounds: usize) -> ExitCode {
    let runs = rounds.max(RUNS_MIN);
    let mut world = World::new();
    let targets = targets(&mut world);
    let peers: Vec<_> = PEERS[..2].iter().filter(|peer| is_installed(peer.version)).collect();
    let mut failed = 0;
    println!("| by | proxy | requests/s | p99, ms | CPU-s per 100,000 | failed |\n|{}", "---|".repeat(6));
    for (tool, load) in TOOLS {
        if !is_installed(&[tool, "-v"]) {
            println!("SKIPPED {tool}: not installed");
            continue;
        }
        let mut runs_of = vec![Vec::new(); peers.len()];
        for round in 0..runs {
            for turn in 0..peers.len() {
                let peer = (turn + round) % peers.len();
                let running = Running::start(peers[peer], &mut world, &targets, Can::default(), 1, Some("0"));
                let url = format!("http://127.0.0.1:{}/", running.ports.http);
                let before = running.cpu_seconds();
                let result = load(&mut world, &url);
                let cpu = (running.cpu_seconds() - before) / operations(&result) * 100_000.0;
                failed += result.failed;
                runs_of[peer].push((operations(&result) / result.seconds, result.quantile(0.99) / 1e3, cpu));
            }
        }
        for (peer, runs) in peers.iter().zip(runs_of) {
            let rate = spread(runs.iter().map(|run| run.0), 0);
            let p99 = spread(runs.iter().map(|run| run.1), 1);
            let cpu = spread(runs.iter().map(|run| run.2), 2);
            println!("| {tool} | {} | {rate} | {p99} | {cpu} | {failed} |", peer.name);
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Mean ± standard deviation.
pub(crate) fn spread(figures: impl Iterator<Item = f64>, digits: usize) -> String {
    let figures: Vec<f64> = figures.collect();
    #[allow(clippy::cast_precision_loss)]
    let count = figures.len() as f64;
    let mean = figures.iter().sum::<f64>() / count;
    let squares = figures.iter().map(|figure| (figure - mean).powi(2)).sum::<f64>();
    format!("{mean:.digits$} ± {:.digits$}", (squares / (count - 1.0)).sqrt())
}
