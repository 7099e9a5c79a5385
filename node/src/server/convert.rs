//! The only place where the API's protobuf meets our own types.

mod balancer;
mod event;
mod fleet;
mod raft;

pub(crate) use balancer::*;
pub(crate) use event::*;
pub(crate) use fleet::*;
pub(crate) use raft::*;

/// A message that lacks a part it must have, or carries one that makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("malformed message: {0}")]
pub(crate) struct Malformed(pub(crate) String);

fn required<T>(field: Option<T>, name: &'static str) -> Result<T, Malformed> {
    field.ok_or_else(|| Malformed(format!("{name} is missing")))
}
