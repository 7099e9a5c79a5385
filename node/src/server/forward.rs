//! Any node answers for the fleet: what only the leader can do is passed on to it, once.

use flotilla_raft_store::NodeId;
use tonic::{Request, Status, transport::Channel};

use super::error::Refusal;
use crate::replica::Replica;

/// Marks a request that a node passed on. Two nodes that disagree about the leader must not send it
/// back and forth.
const FORWARDED: &str = "flotilla-forwarded";

pub(super) enum Leader {
    Me,
    Other(Channel),
}

/// Who leads, as far as this node knows.
pub(super) fn leader<T>(replica: &Replica, request: &Request<T>) -> Result<Leader, Status> {
    match replica.leader() {
        Some(node) if node == replica.me() => Ok(Leader::Me),
        Some(node) if request.metadata().get(FORWARDED).is_none() => {
            Ok(Leader::Other(channel(replica, node)?))
        }
        Some(_) | None => Err(Refusal::NoLeader.into()),
    }
}

fn channel(replica: &Replica, node: NodeId) -> Result<Channel, Status> {
    replica.peers.channel(node, None).map_err(|_| Refusal::NoLeader.into())
}

pub(super) fn mark<T>(mut request: Request<T>) -> Request<T> {
    request.metadata_mut().insert(FORWARDED, tonic::metadata::MetadataValue::from_static("1"));
    request
}
