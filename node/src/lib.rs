//! A member of the fleet: data plane, Raft member, agent and coordinator in one process.
//!
//! The only crate that knows the three leaves: what the cluster agrees on (`flotilla-raft-store`),
//! the contract of a node (`flotilla-api`) and the data plane (`flotilla-proxy`). Start with
//! [`run`]; read `node.rs`, `rollout/plan.rs` and `agent/plan.rs`.

mod admin;
mod agent;
mod announce;
mod balancer;
mod clock;
pub mod config;
#[doc(hidden)]
pub mod faults;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod join;
mod load;
mod logging;
mod membership;
mod memory;
mod metrics;
mod node;
mod peer;
mod replica;
mod reports;
mod rollout;
mod server;
mod standalone;

/// Settings of [`Standalone`].
pub use flotilla_proxy::ProxyConfig;
pub use node::run;
pub use standalone::{Applied, ApplyError, Standalone};
