//! The proxy as its users see it: real sockets on loopback, a few threads, no mocks.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

mod access;
mod audit;
mod balance;
mod bulk;
mod canary;
mod edge;
mod h2;
mod http;
mod layers;
mod limits;
mod metrics;
mod resilience;
mod route;
mod secure;
mod shift;
mod smuggling;
mod tcp;
mod tenants;
