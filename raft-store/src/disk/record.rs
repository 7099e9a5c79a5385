//! What the slots hold: who this node is and what it voted, and how far its log reached.

use crate::{
    ClusterId, NodeId, codec,
    types::{LogId, Vote},
};

pub(super) const NODE: &str = "node";
pub(super) const NODE_FORMAT: u8 = 1;
pub(super) const MARK: &str = "mark";
pub(super) const MARK_FORMAT: u8 = 1;

/// Who the node is in which cluster. Fixed when the store is created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster: ClusterId,
    pub cluster_name: String,
    pub node: NodeId,
    pub node_name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct NodeRecord {
    #[prost(string, tag = "1")]
    pub(super) cluster: String,
    #[prost(string, tag = "2")]
    pub(super) cluster_name: String,
    #[prost(uint64, tag = "3")]
    pub(super) node: u64,
    #[prost(string, tag = "4")]
    pub(super) node_name: String,
    #[prost(bytes = "vec", optional, tag = "5")]
    pub(super) vote: Option<Vec<u8>>,
}

/// A lower bound of what the log must still have.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct MarkRecord {
    /// Index of the last entry, or of an installed snapshot, that was acknowledged.
    #[prost(uint64, optional, tag = "1")]
    pub(super) last: Option<u64>,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(super) committed: Option<Vec<u8>>,
}

impl NodeRecord {
    pub(super) fn new(identity: &Identity) -> Self {
        Self {
            cluster: identity.cluster.0.clone(),
            cluster_name: identity.cluster_name.clone(),
            node: identity.node.0,
            node_name: identity.node_name.clone(),
            vote: None,
        }
    }

    pub(super) fn identity(&self) -> Identity {
        Identity {
            cluster: ClusterId(self.cluster.clone()),
            cluster_name: self.cluster_name.clone(),
            node: NodeId(self.node),
            node_name: self.node_name.clone(),
        }
    }

    /// An unreadable vote is an error: taken for "never voted", the node could vote twice in a term.
    pub(super) fn decode_vote(&self) -> Result<Option<Vote>, codec::DecodeError> {
        self.vote.as_deref().map(codec::raft::decode_vote).transpose()
    }

    pub(super) fn set_vote(&mut self, vote: &Vote) {
        self.vote = Some(codec::raft::encode_vote(vote));
    }
}

impl MarkRecord {
    pub(super) fn decode_committed(&self) -> Result<Option<LogId>, codec::DecodeError> {
        self.committed.as_deref().map(codec::raft::decode_log_id).transpose()
    }

    pub(super) fn set_committed(&mut self, committed: Option<&LogId>) {
        self.committed = committed.map(codec::raft::encode_log_id);
    }
}

impl Identity {
    /// What is written into the log, so that it cannot be taken for another node's.
    pub(super) fn owner(&self) -> Vec<u8> {
        format!("{}/{}", self.cluster, self.node).into_bytes()
    }
}
