//! The proxy as its users see it: real sockets on loopback, a few threads, no mocks.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod frames;
#[allow(dead_code, reason = "unit tests use the rest of it")]
mod name_server;
mod support;

mod access;
mod audit;
mod balance;
mod bulk;
mod canary;
mod connect;
mod dual_stack;
mod edge;
mod files;
mod grpc;
mod h2;
mod h2_conformance;
mod http;
mod layers;
mod limits;
mod metrics;
mod mixup;
mod names;
mod resilience;
mod route;
mod secure;
mod shift;
mod smuggling;
mod tcp;
mod tenants;
mod warm;
