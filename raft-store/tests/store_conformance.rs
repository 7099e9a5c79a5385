//! openraft's own suite against the real store. It does not cover reopening, crashes or damage: see
//! `store_kill.rs`, `store_damage.rs` and `store_disk.rs`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use flotilla_raft_store::{
    ClusterId, Identity, LogStore, NodeId, StateMachine, Store, StoreOptions,
    types::{StorageError, TypeConfig},
};
use openraft::testing::{StoreBuilder, Suite};
use tempfile::TempDir;

struct RealStore;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for RealStore {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity {
            cluster: ClusterId("c1".to_owned()),
            cluster_name: "test".to_owned(),
            node: NodeId(1),
            node_name: "n1".to_owned(),
        };
        let opened = Store::create(dir.path(), &identity, StoreOptions::default()).await.unwrap();
        Ok((dir, opened.log, opened.state_machine))
    }
}

#[test]
fn the_store_passes_openrafts_suite() {
    Suite::test_all(RealStore).unwrap();
}
