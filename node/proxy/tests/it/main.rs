//! The proxy as its users see it: real sockets on loopback, a few threads, no mocks.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

mod bulk;
mod http;
mod metrics;
mod shift;
mod smuggling;
mod tcp;
