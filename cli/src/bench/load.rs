//! Clients that exchange at the same time until they have done enough, and what they counted.

use std::{cell::Cell, collections::BTreeMap, net::SocketAddr, rc::Rc, time::Duration};

use tokio::{
    task::LocalSet,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    exchange::{Class, Connection, Fault, Protocol},
    histogram::Histogram,
};

#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) protocol: Protocol,
    pub(super) connections: u32,
    /// In all.
    pub(super) exchanges: Option<u64>,
    pub(super) duration: Option<Duration>,
    /// Per second, in all.
    pub(super) rate: Option<u32>,
    /// A new connection for every exchange.
    pub(super) is_reconnecting: bool,
    /// For a connection, and for an exchange.
    pub(super) timeout: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) elapsed: Duration,
    pub(super) succeeded: u64,
    /// Until a connection stands.
    pub(super) connecting: Histogram,
    /// From the first byte sent to the last received; at a given rate from when it was due.
    pub(super) exchanging: Histogram,
    /// Exchanges by the target that answered. Those whose target is not known are not in it.
    pub(super) targets: BTreeMap<String, u64>,
    pub(super) faults: BTreeMap<Class, Faults>,
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) count: u64,
    /// What the first of them said.
    pub(super) example: String,
}

/// Names that a target chose are few, or not names.
const TARGETS_MAX: usize = 10_000;

/// Ends when there were enough exchanges, when the time is over, or soon after `stop`.
pub(super) async fn run(load: Load, stop: CancellationToken) -> Tally {
    let start = Instant::now();
    let load = Rc::new(load);
    let taken = Rc::new(Cell::new(0));
    let clients = LocalSet::new();
    let tallies: Vec<_> = (0..load.connections)
        .map(|_| clients.spawn_local(client(Rc::clone(&load), Rc::clone(&taken), start, stop.clone())))
        .collect();
    // Nobody waits for an answer that comes after the end.
    let end = load.duration.map(|duration| start + duration);
    let timer = async {
        match end {
            Some(end) => sleep_until(end).await,
            None => std::future::pending().await,
        }
    };
    let mut all = Tally::default();
    let counting = async {
        for tally in tallies {
            all.merge(tally.await.expect("a client neither panics nor is aborted"));
        }
    };
    let ending = async {
        timer.await;
        stop.cancel();
        std::future::pending::<()>().await;
    };
    clients
        .run_until(async {
            // Both arms live to the end of the select: the second only ever asks the first to finish.
            tokio::select! {
                () = counting => {}
                () = ending => {}
            }
        })
        .await;
    all.elapsed = start.elapsed();
    all
}

async fn client(load: Rc<Load>, taken: Rc<Cell<u64>>, start: Instant, stop: CancellationToken) -> Tally {
    let mut tally = Tally::default();
    let mut connection = None;
    while let Some(number) = take(&load, &taken) {
        let due = load.rate.map(|rate| start + Duration::from_secs_f64(number as f64 / f64::from(rate)));
        // Cancel-safe: a dropped exchange takes its connection with it and is not counted.
        let outcome = tokio::select! {
            biased;
            () = stop.cancelled() => return tally,
            outcome = one(&load, &mut connection, number, due, &mut tally.connecting) => outcome,
        };
        match outcome {
            Ok((time, target)) => tally.succeed(time, target),
            Err(fault) => {
                connection = None;
                tally.fail(fault);
            }
        }
        // Clients that never wait for anything would not let the timer run.
        tokio::task::consume_budget().await;
    }
    tally
}

/// The number of the next exchange, when there is one left.
fn take(load: &Load, taken: &Cell<u64>) -> Option<u64> {
    let number = taken.get();
    if load.exchanges.is_some_and(|exchanges| number >= exchanges) {
        return None;
    }
    taken.set(number + 1);
    Some(number)
}

async fn one(
    load: &Load,
    kept: &mut Option<Connection>,
    number: u64,
    due: Option<Instant>,
    connecting: &mut Histogram,
) -> Result<(Duration, Option<String>), Fault> {
    if let Some(due) = due {
        sleep_until(due).await;
    }
    if load.is_reconnecting || timeout(load.timeout, has_ended(kept)).await.unwrap_or(true) {
        *kept = None;
    }
    let connection = match kept {
        Some(connection) => connection,
        None => {
            let begun = Instant::now();
            let opening = timeout(load.timeout, Connection::open(&load.addresses, &load.protocol));
            let opened = opening.await.map_err(|_| Fault::timeout(load.timeout))??;
            connecting.record(begun.elapsed());
            let connection = kept.insert(opened);
            let introducing = timeout(load.timeout, connection.introduce());
            introducing.await.map_err(|_| Fault::timeout(load.timeout))??;
            connection
        }
    };
    // A late start is the fault of what came before: counting from the start would hide it.
    let begun = due.unwrap_or_else(Instant::now);
    let target = timeout(load.timeout, connection.exchange(number))
        .await
        .map_err(|_| Fault::timeout(load.timeout))??;
    Ok((begun.elapsed(), target))
}

async fn has_ended(kept: &mut Option<Connection>) -> bool {
    match kept {
        Some(connection) => connection.is_over().await,
        None => false,
    }
}

impl Tally {
    pub(super) fn failed(&self) -> u64 {
        self.faults.values().map(|faults| faults.count).sum()
    }

    fn succeed(&mut self, time: Duration, target: Option<String>) {
        self.succeeded += 1;
        self.exchanging.record(time);
        if let Some(target) = target {
            self.count_target(target, 1);
        }
    }

    fn fail(&mut self, fault: Fault) {
        let faults = self.faults.entry(fault.class).or_default();
        if faults.count == 0 {
            faults.example = fault.detail;
        }
        faults.count += 1;
    }

    fn count_target(&mut self, target: String, count: u64) {
        if self.targets.len() < TARGETS_MAX || self.targets.contains_key(&target) {
            *self.targets.entry(target).or_default() += count;
        }
    }

    fn merge(&mut self, other: Self) {
        self.succeeded += other.succeeded;
        self.connecting.merge(&other.connecting);
        self.exchanging.merge(&other.exchanging);
        for (target, count) in other.targets {
            self.count_target(target, count);
        }
        for (class, theirs) in other.faults {
            let mine = self.faults.entry(class).or_default();
            if mine.count == 0 {
                mine.example = theirs.example;
            }
            mine.count += theirs.count;
        }
    }
}

#[cfg(test)]
mod tests;
