//! What work costs, next to nginx and HAProxy where they are installed.
//!
//!     cargo bench -p flotilla-chaos-tests --bench proxies                    # every row, seven rounds: eight minutes
//!     cargo bench -p flotilla-chaos-tests --bench proxies -- l4-ping h1-64   # these rows
//!     cargo bench -p flotilla-chaos-tests --bench proxies -- --save FILE     # keep the ratios
//!     cargo bench -p flotilla-chaos-tests --bench proxies -- --check FILE    # fails where one got worse by 5 %
//!     cargo bench -p flotilla-chaos-tests --bench proxies -- thesis|workers|control
//!
//! Every proxy gets one worker on CPU 0; this program, which is targets and clients in one thread, has CPU 1. The
//! proxies take turns, and what is compared is the median over the rounds of ours divided by theirs: a machine that
//! is busy elsewhere moves both. Rates are not compared, they tell as much about the load; `--verbose` prints
//! them, with the share of a CPU the proxy had (a figure near 1 means that the load was not the limit).
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints")]
#![allow(clippy::unwrap_used, reason = "a benchmark that fails stops")]
#![allow(clippy::disallowed_methods, reason = "it measures real time, and waits for other programs")]

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

use clap::Parser as _;

mod client;
mod control;
mod others;
mod outside;
mod peer;
mod ratio;
mod row;
mod thesis;
mod workers;
mod world;

use self::{
    others::Others,
    peer::{Can, PEERS, Peer, Running, Targets, is_installed},
    ratio::Figures,
    row::{Capacity, ROWS, Row},
    world::{Target, World},
};

/// Set in the copy of this program that is pinned.
const PINNED: &str = "FLOTILLA_BENCH_PINNED";

/// Rounds of rows that need a proxy of their own: memory does not vary as time does.
const FRESH_ROUNDS: usize = 3;

#[derive(Debug, clap::Parser)]
struct Args {
    /// Rows to measure, by name, or one of the experiments thesis, workers, control; none: all rows
    rows: Vec<String>,
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Of each measurement
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Only these
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    save: Option<PathBuf>,
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
    /// Every measurement as it comes
    #[arg(short, long)]
    verbose: bool,
    /// What cargo says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let [experiment] = &args.rows[..] {
        match experiment.as_str() {
            "workers" => return workers::run(args.rounds, args.seconds),
            "control" => return control::run(args.seconds),
            _ => {}
        }
    }
    if std::env::var_os(PINNED).is_none() {
        let program = std::env::current_exe().unwrap();
        let mut pinned = Command::new("taskset");
        pinned.args(["-c", "1"]).arg(program).args(std::env::args_os().skip(1)).env(PINNED, "1");
        return if pinned.status().unwrap().success() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    if args.rows == ["thesis"] {
        return thesis::run(args.rounds);
    }
    let unknown: Vec<_> = args.rows.iter().filter(|name| ROWS.iter().all(|row| row.name != **name)).collect();
    if !unknown.is_empty() {
        let known: Vec<_> = ROWS.iter().map(|row| row.name).collect();
        eprintln!("no row {unknown:?}; there are {}", known.join(", "));
        return ExitCode::FAILURE;
    }
    let can = Can::find();
    let wanted = |row: &&Row| args.rows.is_empty() || args.rows.iter().any(|name| name == row.name);
    let (rows, skipped): (Vec<&Row>, Vec<&Row>) =
        ROWS.iter().filter(wanted).partition(|row| row.is_possible(can));
    for row in skipped {
        println!(
            "SKIPPED {}: this build does not listen for it, or its load generator is not installed",
            row.name
        );
    }
    let peers: Vec<&Peer> = PEERS
        .iter()
        .filter(|peer| args.peers.is_empty() || args.peers.iter().any(|name| name == peer.name))
        .filter(|peer| is_installed(peer.version))
        .collect();
    let mut bench = Bench::new(can, peers, &args);
    let others = Others::watch();
    let mut figures = bench.measure(&rows, args.rounds);
    figures.print(&rows);
    println!("other programs used {:.2} CPUs meanwhile; above 0.15 the machine was not quiet", others.cpus());
    match (&args.save, &args.check) {
        (Some(file), _) => figures.save(file),
        (None, Some(file)) => {
            let baseline = ratio::read(file);
            let worse = figures.worse_than(&baseline);
            if !worse.is_empty() {
                // A busy machine makes rows look worse by chance: only what stays worse is.
                println!("again, twice as long: {}", worse.join(", "));
                let again =
                    |row: &&&Row| worse.iter().any(|name| name.split([' ', '/']).next() == Some(row.name));
                let rows: Vec<&Row> = rows.iter().filter(again).copied().collect();
                figures.add(bench.measure(&rows, 2 * args.rounds));
                figures.print(&rows);
            }
            let worse = figures.worse_than(&baseline);
            for name in &worse {
                println!("WORSE {name}: {:.3}, was {:.3}", figures.ratio(name).unwrap(), baseline[name]);
            }
            return if worse.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        (None, None) => {}
    }
    if figures.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Bench<'a> {
    world: World,
    targets: Targets,
    can: Can,
    peers: Vec<&'a Peer>,
    run: Duration,
    verbose: bool,
    capacity: Option<Capacity>,
}

impl<'a> Bench<'a> {
    fn new(can: Can, peers: Vec<&'a Peer>, args: &Args) -> Bench<'a> {
        let mut world = World::new();
        let targets = targets(&mut world);
        let run = Duration::from_secs_f64(args.seconds);
        Bench { world, targets, can, peers, run, verbose: args.verbose, capacity: None }
    }

    /// Peers in turn, and nobody is always the first.
    fn measure(&mut self, rows: &[&Row], rounds: usize) -> Figures {
        let names: Vec<_> = self.peers.iter().map(|peer| peer.name).collect();
        let mut figures = Figures::new(names);
        if rows.iter().any(|row| row.needs_capacity()) && self.capacity.is_none() {
            self.capacity = Some(self.capacity());
        }
        for round in 0..rounds {
            for turn in 0..self.peers.len() {
                let peer = (turn + round) % self.peers.len();
                let mut running = self.start(peer);
                for row in rows.iter().filter(|row| !row.needs_fresh_proxy() || round < FRESH_ROUNDS) {
                    if row.needs_fresh_proxy() {
                        running = self.start(peer);
                    }
                    let capacity = self.capacity.as_ref();
                    let measured = row.measure(&mut self.world, &running, self.run, capacity);
                    if self.verbose {
                        println!("{round} {} {} {measured}", self.peers[peer].name, row.name);
                    }
                    figures.record(peer, row, &measured);
                }
            }
        }
        figures
    }

    fn start(&mut self, peer: usize) -> Running {
        Running::start(self.peers[peer], &mut self.world, &self.targets, self.can, 1, Some("0"))
    }

    /// What the slowest can do, twice tried: the same rate for all.
    fn capacity(&mut self) -> Capacity {
        let mut least = Capacity { http: f64::MAX, echo: f64::MAX };
        for peer in 0..self.peers.len() {
            let mut most = Capacity { http: 0.0, echo: 0.0 };
            for _ in 0..2 {
                let running = self.start(peer);
                let seen = Capacity::of(&mut self.world, &running, self.run);
                most = Capacity { http: most.http.max(seen.http), echo: most.echo.max(seen.echo) };
            }
            least = Capacity { http: least.http.min(most.http), echo: least.echo.min(most.echo) };
        }
        println!("requests per second everybody can do: {:.0} HTTP, {:.0} TCP", least.http, least.echo);
        least
    }
}

fn targets(world: &mut World) -> Targets {
    Targets {
        http: world.targets(Target::Http, 3),
        echo: world.targets(Target::Echo, 3),
        source: world.targets(Target::Source, 3),
    }
}
