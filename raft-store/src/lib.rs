//! What the cluster agrees on.
//!
//! `fleet` is the replicated value and `command` everything that changes it; `codec` is their
//! protobuf form. `log`, `disk` and `state_machine` are the durable half: openraft's storage over
//! sled and files. Nothing here knows sockets, nodes' clocks or the proxy.

mod codec;
mod command;
mod disk;
mod fleet;
mod log;
mod state_machine;
mod types;

pub use command::*;
pub use fleet::*;
