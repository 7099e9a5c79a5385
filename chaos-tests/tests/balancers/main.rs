//! Load balancers that are told, or ask, where apps serve: real ones, in front of real nodes.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what goes wrong fails the test, and what it measured is said"
)]

mod checks;
mod delay;
mod envoy;
mod export;
mod haproxy;
mod nginx;
mod support;
