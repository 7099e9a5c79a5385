//! The type configuration of openraft: the only generic corner of the crate.
//!
//! `Batch` and `Answers` carry serde implementations only because openraft's `serde` feature asks
//! for them. Their form is the protobuf of `codec`, so there is one encoding and not two.

use std::time::Duration;

use openraft::SnapshotPolicy;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{Answer, Batch, NodeId, codec};

openraft::declare_raft_types!(
    /// A log entry is a `Batch`. A snapshot is an open file at its start, so that it is sent and
    /// received in chunks and never has to be in memory twice.
    pub TypeConfig:
        D = Batch,
        R = Answers,
        NodeId = NodeId,
        Node = openraft::BasicNode,
        SnapshotData = tokio::fs::File,
);

pub type Raft = openraft::Raft<TypeConfig>;
pub type Entry = openraft::Entry<TypeConfig>;
pub type LogId = openraft::LogId<NodeId>;
pub type Vote = openraft::Vote<NodeId>;
pub type Membership = openraft::Membership<NodeId, openraft::BasicNode>;
pub type StoredMembership = openraft::StoredMembership<NodeId, openraft::BasicNode>;
pub type Snapshot = openraft::Snapshot<TypeConfig>;
pub type SnapshotMeta = openraft::SnapshotMeta<NodeId, openraft::BasicNode>;
pub type StorageError = openraft::StorageError<NodeId>;

/// One answer per command of the batch, in its order; empty for entries that Raft writes for itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answers(pub Vec<Answer>);

/// How patient Raft is. Only the proportion matters for correctness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timings {
    pub heartbeat: Duration,
    pub election_min: Duration,
    pub election_max: Duration,
    /// For sending and installing a snapshot.
    pub install_snapshot: Duration,
}

impl Timings {
    /// A single fsync of a quarter of a second was measured on an ordinary disk, and openraft 0.9
    /// writes the log on the task that sends heartbeats: three heartbeats must fit into an election
    /// timeout even then.
    pub const PRODUCTION: Self = Self {
        heartbeat: Duration::from_millis(500),
        election_min: Duration::from_millis(1_500),
        election_max: Duration::from_millis(3_000),
        install_snapshot: Duration::from_secs(10),
    };

    /// The same proportions, `divisor` times faster, for tests. The snapshot timeout stays: it
    /// covers the real work of writing a file.
    pub fn faster(divisor: u32) -> Self {
        let Self { heartbeat, election_min, election_max, install_snapshot } = Self::PRODUCTION;
        Self {
            heartbeat: heartbeat / divisor,
            election_min: election_min / divisor,
            election_max: election_max / divisor,
            install_snapshot,
        }
    }
}

/// Entries between two snapshots that openraft makes on its own. Larger entries are covered by
/// `StoreStatus::wants_snapshot`, which counts bytes.
const SNAPSHOT_EVERY_ENTRIES: u64 = 4_096;
/// Entries a leader keeps behind its snapshot for followers that are a little late.
const KEEP_ENTRIES: u64 = 1_024;
/// openraft's configuration as the store is built for it. The caller sets nothing but the timings.
pub fn recommended_config(timings: Timings) -> openraft::Config {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1);
    openraft::Config {
        cluster_name: "flotilla".to_owned(),
        heartbeat_interval: millis(timings.heartbeat),
        election_timeout_min: millis(timings.election_min),
        election_timeout_max: millis(timings.election_max),
        install_snapshot_timeout: millis(timings.install_snapshot),
        max_payload_entries: 64,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY_ENTRIES),
        // Must exceed the snapshot interval, else a fresh snapshot would not end the lag.
        replication_lag_threshold: 2 * SNAPSHOT_EVERY_ENTRIES,
        max_in_snapshot_log_to_keep: KEEP_ENTRIES,
        purge_batch_size: 256,
        ..openraft::Config::default()
    }
}

impl Serialize for Batch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        codec::encode_batch(self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Batch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        codec::decode_batch(&Vec::<u8>::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl Serialize for Answers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        codec::encode_answers(&self.0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Answers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Vec::<u8>::deserialize(deserializer)?;
        codec::decode_answers(&bytes).map(Self).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openraft_accepts_the_recommended_config_at_any_speed() {
        for timings in [Timings::PRODUCTION, Timings::faster(5), Timings::faster(20)] {
            recommended_config(timings).validate().unwrap();
        }
    }
}
