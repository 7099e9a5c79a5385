//! The data plane of Flotilla: an L4 and L7 proxy whose applications change while they run.
//!
//! A library on its own. An [`AppConfig`] is one *generation* of an application: ports, routes and
//! pools of targets. [`Proxy::prepare`] binds its ports and starts resolving and checking its
//! targets; [`Proxy::serve`] lets it take every new session and request of its ports in one atomic
//! step. Nothing is closed by that: sessions live on with what they have, keep-alive connections
//! ask the new generation for their next request, and a rollback is another `serve`.
//!
//! It knows nothing of clusters, and never waits for anybody but clients and targets.

mod access;
mod address;
mod admission;
mod buffers;
mod client_hello;
mod clock;
pub mod config;
mod connect;
mod control;
mod edge;
mod file;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod generation;
mod grpc_health;
pub mod http;
pub mod layers;
mod listener;
pub mod metrics;
#[doc(hidden)]
pub mod micro;
mod overload;
mod pipe;
mod pool;
mod port;
mod proxy;
mod proxy_protocol;
mod rate;
mod relay;
mod retry;
mod room;
mod rounds;
mod session;
mod shift;
mod slice;
mod socket;
mod split;
mod stream;
mod tally;
mod tcp;
mod tls;
pub mod upstream;
mod warm;
mod watchdog;
mod worker;

pub use address::Address;
pub use config::{AppConfig, ProxyConfig};
pub use control::{
    Compiled, DoorError, Drift, DriftKind, GenerationStatus, Phase, PortState, PortStatus, PrepareError,
    UnknownGeneration,
};
pub use grpc_health::grpc_health;
pub use http::guard::{Sign, Signers, Unsigned};
pub use layers::Layers;
pub use proxy::{AppLoad, Changes, Door, Extensions, Proxy};
pub use shift::ShiftError;
pub use tally::Tally;
pub use upstream::{EndpointStatus, Resolution, TargetStatus, balance::Strategies};
