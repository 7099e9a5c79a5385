//! A pool of an app: its targets resolved to endpoints, the endpoints checked, and the set that
//! may be chosen published to the workers.
//!
//! Control side only: everything here runs on the control runtime and hands the workers immutable
//! sets. What a worker keeps of its own (pending counts, idle connections) is in `pool`.

use std::{net::SocketAddr, sync::Arc};

pub mod balance;

/// The endpoints of one pool at one moment. Immutable; a change publishes a new set.
#[derive(Debug, Default)]
pub struct EndpointSet {
    /// Every resolved endpoint, ordered by target and address, without duplicates.
    pub endpoints: Vec<Endpoint>,
    /// Indexes into `endpoints` of those that may be chosen now, ascending.
    pub available: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// The target as the user wrote it; a metric label.
    pub target: Arc<str>,
    pub weight: u32,
}
