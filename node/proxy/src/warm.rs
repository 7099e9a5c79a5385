//! Connections to endpoints that are opened before anybody asks for them, so that the first byte of a request waits
//! for no handshake.
//!
//! As long as a pool runs (from the preparation of its first generation until the last one has let go of its ports),
//! each worker looks at each of its endpoints that may be chosen, and opens what is missing there: at the beginning,
//! when requests have taken some, and before the oldest would have been idle for too long. What the idle ones become
//! after that is the business of [`crate::pool`].

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::task::JoinSet;

use crate::{
    connect::open_ahead,
    control::Running,
    http::{h2::link, link::Link},
    pool::LocalEndpoint,
    upstream::EndpointSet,
    worker::Worker,
};

/// Connections that one worker opens at the same time. Further ones are opened in the next round of upkeep.
const OPENING_MAX: usize = 64;
/// For one of them, its TLS handshake included.
const TIME_MAX: Duration = Duration::from_secs(10);

/// What one worker keeps open.
#[derive(Default)]
pub(crate) struct Warmth {
    pools: RefCell<Vec<Pool>>,
    opening: RefCell<JoinSet<()>>,
}

/// A pool as of its last published set.
struct Pool {
    running: Weak<Running>,
    set: Arc<EndpointSet>,
    /// Those who may be chosen.
    endpoints: Vec<Rc<LocalEndpoint>>,
}

impl Warmth {
    pub(crate) fn add(&self, running: Weak<Running>) {
        self.pools.borrow_mut().push(Pool { running, set: Arc::default(), endpoints: Vec::new() });
    }

    /// Opens what is missing.
    pub(crate) fn top_up(&self, worker: &Rc<Worker>) {
        let mut opening = self.opening.borrow_mut();
        while opening.try_join_next().is_some() {}
        let mut pools = self.pools.borrow_mut();
        pools.retain_mut(|pool| pool.refresh(worker));
        for endpoint in pools.iter().flat_map(|pool| &pool.endpoints) {
            for _ in 0..endpoint.missing(worker.clock.now()) {
                if opening.len() >= OPENING_MAX {
                    return;
                }
                endpoint.opens();
                opening.spawn_local(open_one(Rc::clone(worker), Rc::clone(endpoint)));
            }
        }
    }
}

impl Pool {
    /// False when it does not run any more.
    fn refresh(&mut self, worker: &Worker) -> bool {
        let Some(running) = self.running.upgrade() else { return false };
        let set = running.upstream.set().load_full();
        if !Arc::ptr_eq(&set, &self.set) {
            let local = |&index: &u32| running.endpoint(worker, &set.endpoints[index as usize]);
            self.endpoints = set.available.iter().map(local).collect();
            self.set = set;
        }
        true
    }
}

async fn open_one(worker: Rc<Worker>, endpoint: Rc<LocalEndpoint>) {
    let timer = worker.clock.timer();
    let opened = open_ahead(&worker.clock, &timer, worker.clock.after(TIME_MAX), &endpoint).await;
    let now = worker.clock.now();
    let Some(stream) = opened else { return endpoint.opened(false, now) };
    if endpoint.speaks_http2(&stream) {
        let send = link::open(&endpoint.cells, stream).await;
        endpoint.opened(send.is_ok(), now);
        if let Ok(send) = send {
            let _shared_with_all = endpoint.share(send);
        }
    } else {
        endpoint.opened(true, now);
        endpoint.put(Link::new(stream, &endpoint.cells), now);
    }
}
