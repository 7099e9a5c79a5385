//! The rows of the table: what is done, and which figure of it counts.

use std::{
    fmt,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{
    client::{Exchange, Load, Result},
    outside,
    peer::{Can, Running},
    world::World,
};

const WARM_UP: Duration = Duration::from_millis(300);
/// Of what everybody can do: the load at which tails are compared.
const TAIL_LOAD: f64 = 0.6;
/// Clients that ask once a second, each longer after its last answer than Flotilla keeps a task for it.
const SLOW: usize = 2_000;
/// Idle connections: at L4 each takes a proxy two descriptors, and this program two as well.
const IDLE: usize = 4_000;
/// Their proxy serves others meanwhile, so many at a time, and gives back what it does not need.
const OTHERS: usize = 50;
const TIMES: usize = 5;
const GIB: f64 = (1u64 << 30) as f64;

pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// As the README says it.
    pub(crate) work: &'static str,
    how: How,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// CPU seconds per 100,000 operations, flat out.
    Operations(Exchange, usize),
    /// The same, of clients that ask once a second.
    Slow(Exchange),
    /// CPU seconds per GiB.
    Bytes(Exchange, usize),
    /// The same as [`How::Operations`], by a program of others.
    Tls,
    H2c,
    /// Microseconds from when a request was due, at 60 % of what everybody can do.
    Tail(Exchange, usize),
    /// KiB per idle connection.
    Idle(Exchange),
}

pub(crate) const ROWS: [Row; 16] = [
    row(
        "h1-64",
        "HTTP/1.1 keep-alive, 11 B, 64 connections, per 100,000",
        How::Operations(Exchange::Get("/"), 64),
    ),
    row("h1-250", "the same, 250 connections", How::Operations(Exchange::Get("/"), 250)),
    row(
        "h1-close",
        "HTTP/1.1, a connection per request, per 100,000",
        How::Operations(Exchange::GetOnce, 64),
    ),
    row(
        "h1-slow",
        "HTTP/1.1, 2,000 connections of a request per second, per 100,000",
        How::Slow(Exchange::Get("/")),
    ),
    row("h1-64k", "HTTP/1.1, 64 KiB bodies, per GiB", How::Bytes(Exchange::Get("/64k"), 32)),
    row("h1-1m", "HTTP/1.1, 1 MiB bodies, per GiB", How::Bytes(Exchange::Get("/1m"), 16)),
    row("tls-64", "TLS 1.3, HTTP/1.1 keep-alive, 64 connections, per 100,000", How::Tls),
    row("h2c", "HTTP/2 clear, 8 connections of 32 streams, per 100,000", How::H2c),
    row(
        "l4-ping",
        "TCP, 64 B back and forth, 64 connections, per 100,000",
        How::Operations(Exchange::Ping, 64),
    ),
    row("l4-connect", "TCP, connect, echo, close, per 100,000", How::Operations(Exchange::Connect, 64)),
    row("l4-bulk16", "TCP, bulk over 16 connections, per GiB", How::Bytes(Exchange::Bulk, 16)),
    row("l4-bulk1", "TCP, bulk over one connection, per GiB", How::Bytes(Exchange::Bulk, 1)),
    row("h1-tail", "HTTP/1.1 at 60 % of capacity", How::Tail(Exchange::Get("/"), 64)),
    row("l4-tail", "TCP 64 B at 60 % of capacity", How::Tail(Exchange::Ping, 64)),
    row("h1-idle", "memory of an idle HTTP connection, KiB", How::Idle(Exchange::Get("/"))),
    row("l4-idle", "memory of an idle TCP session, KiB", How::Idle(Exchange::Ping)),
];

const fn row(name: &'static str, work: &'static str, how: How) -> Row {
    Row { name, work, how }
}

/// Requests per second flat out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capacity {
    pub(crate) http: f64,
    pub(crate) echo: f64,
}

/// One measurement.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    /// What counts, with what is added to the name of the row.
    pub(crate) figures: Vec<(&'static str, f64)>,
    rate: f64,
    /// CPUs the proxy used.
    cpus: f64,
    pub(crate) failed: u64,
    failure: Option<String>,
}

impl Row {
    pub(crate) fn is_possible(&self, can: Can) -> bool {
        match self.how {
            How::Tls => can.tls,
            How::H2c => can.h2c,
            How::Operations(..) | How::Slow(_) | How::Bytes(..) | How::Tail(..) | How::Idle(_) => true,
        }
    }

    pub(crate) fn needs_capacity(&self) -> bool {
        matches!(self.how, How::Tail(..))
    }

    /// Memory is compared in a proxy that has done nothing else.
    pub(crate) fn needs_fresh_proxy(&self) -> bool {
        matches!(self.how, How::Idle(_))
    }

    /// Digits behind the point that say something.
    pub(crate) fn digits(&self) -> usize {
        if self.needs_capacity() { 0 } else { 2 }
    }

    pub(crate) fn measure(
        &self,
        world: &mut World,
        running: &Running,
        run: Duration,
        capacity: Option<&Capacity>,
    ) -> Measured {
        match self.how {
            How::Operations(exchange, clients) => {
                let (result, cpu) = drive(world, running, &load(running, exchange, clients, None), run);
                let figure = cpu / operations(&result) * 100_000.0;
                Measured::new(vec![("", figure)], cpu, result)
            }
            How::Slow(exchange) => slow(world, running, exchange, run * 3),
            How::Bytes(exchange, clients) => {
                let (result, cpu) = drive(world, running, &load(running, exchange, clients, None), run);
                #[allow(clippy::cast_precision_loss)]
                let figure = cpu / (result.bytes as f64 / GIB);
                Measured::new(vec![("", figure)], cpu, result)
            }
            How::Tls => outside(world, running, |world| outside::wrk_tls(world, running.ports.tls, run)),
            How::H2c => outside(world, running, |world| outside::h2load(world, running.ports.h2c, run)),
            How::Tail(exchange, clients) => {
                let capacity = capacity.expect("it was measured before the first round");
                let rate = if exchange == Exchange::Ping { capacity.echo } else { capacity.http } * TAIL_LOAD;
                let load = load(running, exchange, clients, Some(rate));
                let (result, cpu) = drive(world, running, &load, run);
                let figures = vec![(" p99", result.quantile(0.99)), (" p99.9", result.quantile(0.999))];
                Measured::new(figures, cpu, result)
            }
            How::Idle(exchange) => idle(world, running, exchange),
        }
    }
}

impl Capacity {
    pub(crate) fn of(world: &mut World, running: &Running, run: Duration) -> Capacity {
        let mut rate = |exchange| {
            let (result, _) = drive(world, running, &load(running, exchange, 64, None), run);
            operations(&result) / result.seconds
        };
        Capacity { http: rate(Exchange::Get("/")), echo: rate(Exchange::Ping) }
    }
}

pub(crate) fn load(running: &Running, exchange: Exchange, clients: usize, per_second: Option<f64>) -> Load {
    let port = match exchange {
        Exchange::Get(_) | Exchange::GetOnce => running.ports.http,
        Exchange::Ping | Exchange::Connect => running.ports.echo,
        Exchange::Bulk => running.ports.source,
    };
    Load { address: SocketAddr::from(([127, 0, 0, 1], port)), exchange, clients, per_second, naps: false }
}

/// After a warm-up. With it, the CPU seconds the proxy took.
pub(crate) fn drive(world: &mut World, running: &Running, load: &Load, run: Duration) -> (Result, f64) {
    world.drive(load, WARM_UP);
    let before = running.cpu_seconds();
    let result = world.drive(load, run);
    (result, running.cpu_seconds() - before)
}

#[allow(clippy::cast_precision_loss)]
pub(crate) fn operations(result: &Result) -> f64 {
    result.operations as f64
}

fn outside(world: &mut World, running: &Running, run: impl Fn(&mut World) -> Result) -> Measured {
    let before = running.cpu_seconds();
    let result = run(world);
    let cpu = running.cpu_seconds() - before;
    let figure = cpu / operations(&result) * 100_000.0;
    Measured::new(vec![("", figure)], cpu, result)
}

fn slow(world: &mut World, running: &Running, exchange: Exchange, run: Duration) -> Measured {
    let mut clients = world.open(&load(running, exchange, SLOW, None));
    world.serve_for(Duration::from_secs(1));
    #[allow(clippy::cast_precision_loss)]
    clients.go_on(SLOW as f64);
    let (start, before) = (Instant::now(), running.cpu_seconds());
    let result = world.go_on(clients, || start.elapsed() >= run);
    let cpu = running.cpu_seconds() - before;
    let figure = cpu / operations(&result) * 100_000.0;
    Measured::new(vec![("", figure)], cpu, result)
}

fn idle(world: &mut World, running: &Running, exchange: Exchange) -> Measured {
    // What the first connections make the proxy allocate once is not theirs.
    drop(world.open(&load(running, exchange, OTHERS, None)));
    world.serve_for(WARM_UP);
    let before = running.memory_kib();
    let clients = world.open(&load(running, exchange, IDLE, None));
    for _ in 0..TIMES {
        world.drive(&load(running, exchange, OTHERS, None), WARM_UP);
        world.serve_for(Duration::from_secs(1));
    }
    #[allow(clippy::cast_precision_loss)]
    let figure = (running.memory_kib() - before) / IDLE as f64;
    Measured::new(vec![("", figure)], 0.0, clients.finish(Duration::from_secs(1)))
}

impl Measured {
    fn new(figures: Vec<(&'static str, f64)>, cpu: f64, result: Result) -> Measured {
        Measured {
            figures,
            rate: operations(&result) / result.seconds,
            cpus: cpu / result.seconds,
            failed: result.failed,
            failure: result.failure,
        }
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, figure) in &self.figures {
            write!(f, "{name}{}{figure:.3}, ", if name.is_empty() { "" } else { " " })?;
        }
        write!(f, "{:.0}/s, {:.2} CPUs", self.rate, self.cpus)?;
        match &self.failure {
            Some(failure) => write!(f, ", {} FAILED: {failure}", self.failed),
            None => Ok(()),
        }
    }
}
