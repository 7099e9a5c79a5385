//! How it breaks: what the tests of this crate are made of.
//!
//! Real processes ([`process`]), real traffic whose every failure is counted ([`load`]), and servers
//! behind the fleet that say what they received ([`origin`]). Nothing here knows how a node works
//! inside: the tests see what users, clients and targets see.

#![allow(clippy::unwrap_used, reason = "whatever goes wrong here, the test that asked for it fails")]
#![allow(clippy::print_stderr, reason = "a test that fails or skips says why on stderr")]

mod background;
pub mod client;
pub mod load;
pub mod origin;
pub mod peers;
pub mod poll;
pub mod process;
pub mod spec;
