//! What the cluster agrees on.
//!
//! `fleet` is the replicated value and `command` everything that changes it; `codec` is their
//! protobuf form. `log`, `disk` and `state_machine` are the durable half: openraft's storage over
//! sled and files; `propose` is the way into the log. Nothing here knows sockets, nodes' clocks or the proxy.

pub mod codec;
mod command;
mod disk;
mod fleet;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod log;
mod propose;
mod state_machine;
pub mod types;

pub use command::*;
pub use disk::{FsyncObserver, Identity, OpenError, Opened, Store, StoreOptions, StoreStatus};
pub use fleet::*;
pub use log::LogStore;
pub use propose::{ProposeError, ProposeOptions, Proposer, ProposerTask};
pub use state_machine::{SnapshotBuilder, StateMachine};
