//! Traffic that counts.
//!
//! Every operation is begun once, is never repeated, and ends in exactly one [`Outcome`]: one lost
//! connection among millions shows. This does not decide what is good enough; the test does, most
//! often with [`Report::assert_clean`].

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::background::Background;

mod exchange;
mod histogram;
mod report;

pub use report::{Outcome, Report};

use exchange::Client;
use report::Tally;

/// What to send, to whom, and how fast. Nothing happens before [`Load::start`].
#[derive(Clone, Debug)]
pub struct Load {
    /// Taken in turn; a keep-alive client stays with one.
    targets: Arc<[SocketAddr]>,
    exchange: Exchange,
    per_second: Option<u64>,
    clients: u64,
    timeout: Duration,
    operations: Option<u64>,
    duration: Option<Duration>,
}

/// What one operation does.
#[derive(Clone, Debug)]
pub(crate) enum Exchange {
    /// Connect, send 64 bytes, read them back, close.
    TcpEcho,
    /// `GET path` on a new connection, which is closed after the response.
    Http { path: String },
    /// `GET path` on the connection of the last request, or a new one where that is closed.
    HttpKeepAlive { path: String },
}

impl Load {
    /// A new connection per operation, to servers that echo.
    pub fn tcp(targets: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self::new(targets, Exchange::TcpEcho)
    }

    /// A new connection per request, to servers that return the header `x-token`, such as
    /// [`crate::origin::Http`].
    pub fn http(targets: impl IntoIterator<Item = SocketAddr>, path: &str) -> Self {
        Self::new(targets, Exchange::Http { path: path.to_owned() })
    }

    /// As [`Load::http`], with connections that are kept. That a server closes one between two
    /// requests is its right (RFC 9112 §9.5) and no failure.
    pub fn http_keep_alive(targets: impl IntoIterator<Item = SocketAddr>, path: &str) -> Self {
        Self::new(targets, Exchange::HttpKeepAlive { path: path.to_owned() })
    }

    fn new(targets: impl IntoIterator<Item = SocketAddr>, exchange: Exchange) -> Self {
        let targets: Arc<[_]> = targets.into_iter().collect();
        assert!(!targets.is_empty(), "a load needs a target");
        Self {
            targets,
            exchange,
            per_second: None,
            clients: 32,
            timeout: Duration::from_secs(10),
            operations: None,
            duration: None,
        }
    }

    /// Operations begun per second, all clients together. Without it: as fast as the clients can.
    pub fn per_second(mut self, rate: u64) -> Self {
        self.per_second = Some(rate);
        self
    }

    /// Each runs one operation at a time.
    pub fn clients(mut self, clients: u64) -> Self {
        self.clients = clients;
        self
    }

    /// For one whole operation.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Ends after so many operations.
    pub fn operations(mut self, operations: u64) -> Self {
        self.operations = Some(operations);
        self
    }

    /// Begins no operation after so long.
    pub fn duration(mut self, duration: Duration) -> Self {
        self.duration = Some(duration);
        self
    }

    pub fn start(self) -> Running {
        let finished = Arc::new(AtomicU64::new(0));
        let counter = finished.clone();
        let thread = Background::start("load", move |stop| drive(self, stop, counter));
        Running { thread, finished }
    }

    /// Runs until its `operations` or its `duration` end it.
    pub async fn run(self) -> Report {
        assert!(self.operations.is_some() || self.duration.is_some(), "this load would never end");
        self.start().thread.finish().await
    }
}

/// A load under way. Dropping it stops it.
#[derive(Debug)]
pub struct Running {
    thread: Background<Report>,
    finished: Arc<AtomicU64>,
}

impl Running {
    /// Operations that have ended so far, well or not.
    pub fn finished(&self) -> u64 {
        self.finished.load(Ordering::Relaxed)
    }

    /// Begins nothing more, and reports when every operation under way has ended.
    pub async fn stop(self) -> Report {
        self.thread.stop().await
    }
}

/// What the clients of one load share.
struct Shared {
    load: Load,
    begun: AtomicU64,
    finished: Arc<AtomicU64>,
    start: Instant,
    stop: CancellationToken,
}

async fn drive(load: Load, stop: CancellationToken, finished: Arc<AtomicU64>) -> Report {
    let clients = load.clients;
    let shared = Arc::new(Shared { load, begun: AtomicU64::new(0), finished, start: Instant::now(), stop });
    let mut tasks: JoinSet<Tally> = (0..clients).map(|id| client(id, shared.clone())).collect();
    let mut total = Tally::default();
    while let Some(tally) = tasks.join_next().await {
        total.add(tally.expect("a client does not panic"));
    }
    total.report(shared.start.elapsed())
}

async fn client(id: u64, shared: Arc<Shared>) -> Tally {
    let load = &shared.load;
    let mut client = Client::new(id, &load.exchange, &load.targets);
    let mut tally = Tally::default();
    while let Some(number) = next_operation(&shared).await {
        let begun = Instant::now();
        let ended = match tokio::time::timeout(load.timeout, client.operate(number)).await {
            Ok(ended) => ended,
            Err(_) => Err(client.give_up(load.timeout)),
        };
        tally.count(shared.start.elapsed(), begun.elapsed(), ended);
        shared.finished.fetch_add(1, Ordering::Relaxed);
    }
    tally.reconnects = client.reconnects;
    tally
}

/// Waits until the next operation is due, and takes its number. `None`: there is none.
async fn next_operation(shared: &Shared) -> Option<u64> {
    let load = &shared.load;
    if shared.stop.is_cancelled() {
        return None;
    }
    let number = shared.begun.fetch_add(1, Ordering::Relaxed);
    if load.operations.is_some_and(|limit| number >= limit) {
        return None;
    }
    let due = match load.per_second {
        // A load that has fallen behind catches up as fast as its clients can.
        Some(rate) => shared.start + Duration::from_nanos(number * 1_000_000_000 / rate),
        None => Instant::now(),
    };
    if load.duration.is_some_and(|duration| due >= shared.start + duration) {
        return None;
    }
    if due > Instant::now() {
        // Both are cancel-safe: a timer and a token.
        tokio::select! {
            () = sleep_until(due) => {}
            () = shared.stop.cancelled() => return None,
        }
    }
    Some(number)
}

#[cfg(test)]
mod tests;
