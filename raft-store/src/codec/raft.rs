//! Raft's own records as protobuf: what the log holds and what peers send each other.
//!
//! The rules are those of `codec`: a format byte first, tags never reused.

use std::collections::{BTreeMap, BTreeSet};

use openraft::{BasicNode, CommittedLeaderId, EntryPayload, LeaderId};
use prost::Message;

use super::{DecodeError, corrupt, decode_batch, encode_batch, known, open, seal};
use crate::{
    NodeId,
    types::{Entry, LogId, Membership, SnapshotMeta, StoredMembership, Vote},
};

#[derive(Clone, PartialEq, Message)]
struct LogIdRecord {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    leader: u64,
    #[prost(uint64, tag = "3")]
    index: u64,
}

#[derive(Clone, PartialEq, Message)]
struct VoteRecord {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    node: u64,
    #[prost(bool, tag = "3")]
    committed: bool,
}

/// The voters of one half of a joint configuration, or of the only one.
#[derive(Clone, PartialEq, Message)]
struct VotersRecord {
    #[prost(uint64, repeated, tag = "1")]
    nodes: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct MembershipRecord {
    #[prost(message, repeated, tag = "1")]
    configs: Vec<VotersRecord>,
    #[prost(btree_map = "uint64, string", tag = "2")]
    addresses: BTreeMap<u64, String>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredMembershipRecord {
    #[prost(message, optional, tag = "1")]
    log_id: Option<LogIdRecord>,
    #[prost(message, optional, tag = "2")]
    membership: Option<MembershipRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct SnapshotMetaRecord {
    #[prost(message, optional, tag = "1")]
    last_log_id: Option<LogIdRecord>,
    #[prost(message, optional, tag = "2")]
    membership: Option<StoredMembershipRecord>,
    #[prost(string, tag = "3")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct BlankRecord {}

#[derive(Clone, PartialEq, prost::Oneof)]
enum PayloadRecord {
    #[prost(message, tag = "2")]
    Blank(BlankRecord),
    #[prost(bytes, tag = "3")]
    Batch(Vec<u8>),
    #[prost(message, tag = "4")]
    Membership(MembershipRecord),
}

#[derive(Clone, PartialEq, Message)]
struct EntryRecord {
    #[prost(message, optional, tag = "1")]
    log_id: Option<LogIdRecord>,
    #[prost(oneof = "PayloadRecord", tags = "2, 3, 4")]
    payload: Option<PayloadRecord>,
}

pub fn encode_log_id(log_id: &LogId) -> Vec<u8> {
    seal(&LogIdRecord::from(log_id))
}

pub fn decode_log_id(bytes: &[u8]) -> Result<LogId, DecodeError> {
    Ok(open::<LogIdRecord>(bytes)?.into())
}

pub fn encode_vote(vote: &Vote) -> Vec<u8> {
    seal(&VoteRecord { term: vote.leader_id.term, node: vote.leader_id.node_id.0, committed: vote.committed })
}

pub fn decode_vote(bytes: &[u8]) -> Result<Vote, DecodeError> {
    let VoteRecord { term, node, committed } = open(bytes)?;
    Ok(Vote { leader_id: LeaderId::new(term, NodeId(node)), committed })
}

pub fn encode_membership(membership: &Membership) -> Vec<u8> {
    seal(&MembershipRecord::from(membership))
}

pub fn decode_membership(bytes: &[u8]) -> Result<Membership, DecodeError> {
    Ok(open::<MembershipRecord>(bytes)?.into())
}

pub fn encode_entry(entry: &Entry) -> Vec<u8> {
    let payload = match &entry.payload {
        EntryPayload::Blank => PayloadRecord::Blank(BlankRecord {}),
        EntryPayload::Normal(batch) => PayloadRecord::Batch(encode_batch(batch)),
        EntryPayload::Membership(membership) => PayloadRecord::Membership(membership.into()),
    };
    seal(&EntryRecord { log_id: Some((&entry.log_id).into()), payload: Some(payload) })
}

pub fn decode_entry(bytes: &[u8]) -> Result<Entry, DecodeError> {
    let EntryRecord { log_id, payload } = open(bytes)?;
    let log_id = log_id.ok_or_else(|| corrupt("a log entry without an id"))?.into();
    let payload = match known(payload, "the payload of a log entry")? {
        PayloadRecord::Blank(BlankRecord {}) => EntryPayload::Blank,
        PayloadRecord::Batch(bytes) => EntryPayload::Normal(decode_batch(&bytes)?),
        PayloadRecord::Membership(membership) => EntryPayload::Membership(membership.into()),
    };
    Ok(Entry { log_id, payload })
}

pub fn encode_snapshot_meta(meta: &SnapshotMeta) -> Vec<u8> {
    seal(&SnapshotMetaRecord {
        last_log_id: meta.last_log_id.as_ref().map(Into::into),
        membership: Some(StoredMembershipRecord {
            log_id: meta.last_membership.log_id().as_ref().map(Into::into),
            membership: Some(meta.last_membership.membership().into()),
        }),
        id: meta.snapshot_id.clone(),
    })
}

pub fn decode_snapshot_meta(bytes: &[u8]) -> Result<SnapshotMeta, DecodeError> {
    let SnapshotMetaRecord { last_log_id, membership, id } = open(bytes)?;
    let StoredMembershipRecord { log_id, membership } = membership.unwrap_or_default();
    let membership = membership.unwrap_or_default().into();
    Ok(SnapshotMeta {
        last_log_id: last_log_id.map(Into::into),
        last_membership: StoredMembership::new(log_id.map(Into::into), membership),
        snapshot_id: id,
    })
}

impl From<&LogId> for LogIdRecord {
    fn from(log_id: &LogId) -> Self {
        Self { term: log_id.leader_id.term, leader: log_id.leader_id.node_id.0, index: log_id.index }
    }
}

impl From<LogIdRecord> for LogId {
    fn from(record: LogIdRecord) -> Self {
        Self::new(CommittedLeaderId::new(record.term, NodeId(record.leader)), record.index)
    }
}

impl From<&Membership> for MembershipRecord {
    fn from(membership: &Membership) -> Self {
        let voters =
            |config: &BTreeSet<NodeId>| VotersRecord { nodes: config.iter().map(|id| id.0).collect() };
        Self {
            configs: membership.get_joint_config().iter().map(voters).collect(),
            addresses: membership.nodes().map(|(id, node)| (id.0, node.addr.clone())).collect(),
        }
    }
}

impl From<MembershipRecord> for Membership {
    fn from(record: MembershipRecord) -> Self {
        let voters = |config: VotersRecord| config.nodes.into_iter().map(NodeId).collect();
        let nodes: BTreeMap<_, _> =
            record.addresses.into_iter().map(|(id, address)| (NodeId(id), BasicNode::new(address))).collect();
        Self::new(record.configs.into_iter().map(voters).collect(), nodes)
    }
}

#[cfg(test)]
mod tests;
