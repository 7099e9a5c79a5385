//! What is told to callers: where generations and ports stand, and why something was refused.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use crate::{tally::Tally, upstream::TargetStatus};

/// Where a generation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Ready to serve. Also a generation that served until another one of its app took over: it
    /// stays warm and can be served again at once.
    Prepared,
    /// Takes the new sessions and requests of its ports.
    Serving,
    /// Takes no new ones, except on ports that are still closing.
    Draining,
    /// Is forgotten as soon as its ports are closed.
    Removing,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerationStatus {
    pub app: Arc<str>,
    pub generation: u64,
    pub phase: Phase,
    /// The share of the clients that it takes: 100 where it serves alone, 0 where it does not serve.
    pub percent: u8,
    /// Of what was compiled; of a generation that serves, of what its ports really lead to.
    pub digest: [u8; 32],
    pub ports: Vec<PortStatus>,
    pub targets: Vec<TargetStatus>,
    /// Sessions, requests and tunnels that still use it.
    pub pins: u64,
    pub tally: Tally,
}

/// A port of a generation; missing from a status once it is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortStatus {
    pub address: IpAddr,
    pub port: u16,
    pub state: PortState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortState {
    /// Reserved; clients are refused until something serves it.
    Bound,
    Listening,
    /// Unwanted, and accepting until no client can be half-way through connecting.
    Closing {
        left: Duration,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error("{0}")]
    Invalid(String),
    /// Another app has the port on other terms, or a name there. Not any more once that lets go of it.
    #[error("{0}")]
    Taken(String),
    #[error("{}", describe(*address, *port, source, owner.as_deref()))]
    Bind {
        address: IpAddr,
        port: u16,
        source: io::Error,
        /// Who has the port, where that could be found out.
        owner: Option<String>,
    },
}

fn describe(address: IpAddr, port: u16, source: &io::Error, owner: Option<&str>) -> String {
    match owner {
        Some(owner) => format!("port {port} is in use by {owner}"),
        None if source.kind() == io::ErrorKind::AddrInUse => {
            format!("port {port} is in use by another process")
        }
        None => format!("bind port {port} of {address}: {source}"),
    }
}

/// No such generation is prepared (any more): prepare it first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("generation {0} is not prepared")]
pub struct UnknownGeneration(pub u64);
