//! The contract of a node: every message and service, generated from `proto/`.

/// Version 1 of the protocol. Fields are only added, tags never reused.
#[allow(unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("flotilla.v1");
}
