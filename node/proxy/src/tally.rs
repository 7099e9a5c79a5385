//! What one generation has done: the numbers by which a rollout compares it with another one.
//!
//! Apart from the metrics, which speak of an app whoever serves it. One cell per worker, each with a
//! single writer, so that counting is a load and a store; nothing is flushed, and a reader sees every
//! request as soon as it has ended.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::metrics::LATENCY_BUCKETS;

const BUCKETS: usize = LATENCY_BUCKETS.len() + 1;

/// Totals since the generation was prepared on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// HTTP requests that ended, and TCP sessions that reached a target or found none.
    pub requests: u64,
    /// Requests answered with 5xx, by the target or by us.
    pub errors: u64,
    /// TCP sessions that found no target.
    pub unreached: u64,
    /// TCP sessions that the target reset, and responses that broke off. What a client resets is not the
    /// generation's doing.
    pub resets: u64,
    /// How many took how long, by [`LATENCY_BUCKETS`] and one for what took longer: from the head of a
    /// request to the end of its response, and from accept to the target of a TCP session.
    pub latency: [u64; BUCKETS],
}

/// The cells of all workers.
#[derive(Debug)]
pub(crate) struct Tallies(Box<[Cells]>);

#[repr(align(128))]
#[derive(Debug, Default)]
struct Cells {
    requests: AtomicU64,
    errors: AtomicU64,
    unreached: AtomicU64,
    resets: AtomicU64,
    latency: [AtomicU64; BUCKETS],
}

impl Tallies {
    pub(crate) fn new(workers: usize) -> Tallies {
        Tallies((0..workers).map(|_| Cells::default()).collect())
    }

    pub(crate) fn sum(&self) -> Tally {
        let mut sum = Tally::default();
        for cells in &self.0 {
            sum.requests += cells.requests.load(Relaxed);
            sum.errors += cells.errors.load(Relaxed);
            sum.unreached += cells.unreached.load(Relaxed);
            sum.resets += cells.resets.load(Relaxed);
            for (sum, bucket) in sum.latency.iter_mut().zip(&cells.latency) {
                *sum += bucket.load(Relaxed);
            }
        }
        sum
    }
}

/// The cells of one worker.
pub(crate) struct LocalTally {
    tallies: Arc<Tallies>,
    worker: usize,
}

impl LocalTally {
    pub(crate) fn new(tallies: &Arc<Tallies>, worker: usize) -> LocalTally {
        LocalTally { tallies: Arc::clone(tallies), worker }
    }

    pub(crate) fn request(&self, status: u16, took: Duration) {
        if status >= 500 {
            add_one(&self.cells().errors);
        }
        self.count(took);
    }

    /// `took`: until it reached its target.
    pub(crate) fn session(&self, took: Duration) {
        self.count(took);
    }

    pub(crate) fn unreached(&self) {
        add_one(&self.cells().requests);
        add_one(&self.cells().unreached);
    }

    pub(crate) fn reset(&self) {
        add_one(&self.cells().resets);
    }

    fn count(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        add_one(&self.cells().requests);
        add_one(&self.cells().latency[LATENCY_BUCKETS.partition_point(|bound| *bound < seconds)]);
    }

    fn cells(&self) -> &Cells {
        &self.tallies.0[self.worker]
    }
}

/// Not an atomic addition: this worker is the only writer.
fn add_one(cell: &AtomicU64) {
    cell.store(cell.load(Relaxed).wrapping_add(1), Relaxed);
}
