//! The log and the snapshots over their whole life: reopening, purging, truncating, installing.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use flotilla_raft_store::{
    Batch, Change, ClusterId, Command, Opened, RequestId, Store, StoreOptions, Timestamp,
    types::{Entry, SnapshotMeta},
};
use openraft::{
    LogState, RaftLogReader, RaftSnapshotBuilder, StorageHelper,
    storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine},
};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use self::store_support::*;

mod store_support;

#[tokio::test]
async fn everything_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = create(dir.path()).await;
    write(&mut opened, 0..100).await;
    opened.log.save_vote(&vote(3)).await.unwrap();
    close(opened).await;

    let mut opened = open(dir.path()).await.unwrap();
    assert_eq!(opened.identity, identity());
    check_log(&mut opened.log, Some(99)).await;
    assert_eq!(opened.log.read_vote().await.unwrap(), Some(vote(3)));
    assert_eq!(opened.log.read_committed().await.unwrap(), Some(log_id(99)));
}

#[tokio::test]
async fn raft_starts_with_the_committed_state_before_it_looks_for_anybody() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = create(dir.path()).await;
    write(&mut opened, 0..50).await;
    build_snapshot(&mut opened).await;
    write(&mut opened, 50..90).await;
    append(&mut opened.log, 90..95).await;
    let digest = opened.fleet.borrow().digest();
    close(opened).await;

    let mut opened = open(dir.path()).await.unwrap();
    assert_eq!(opened.fleet.borrow().index, 49, "what the snapshot has");
    StorageHelper::new(&mut opened.log, &mut opened.state_machine).get_initial_state().await.unwrap();
    assert_eq!(opened.fleet.borrow().index, 89, "what was committed");
    assert_eq!(opened.fleet.borrow().digest(), digest);
}

#[tokio::test]
async fn a_truncated_log_stays_truncated_and_grows_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = create(dir.path()).await;
    append(&mut opened.log, 0..60).await;
    opened.log.truncate(log_id(40)).await.unwrap();
    check_log(&mut opened.log, Some(39)).await;
    close(opened).await;

    let mut opened = open(dir.path()).await.expect("the mark was lowered first");
    assert_eq!(check_log(&mut opened.log, Some(39)).await.last_log_id, Some(log_id(39)));
    append(&mut opened.log, 40..45).await;
    opened.log.truncate(log_id(0)).await.unwrap();
    close(opened).await;

    let mut opened = open(dir.path()).await.unwrap();
    assert_eq!(check_log(&mut opened.log, None).await, LogState::default());
    append(&mut opened.log, 0..3).await;
}

#[tokio::test]
async fn a_purged_log_keeps_what_leads_from_the_older_snapshot_to_the_newer() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = create(dir.path()).await;
    write(&mut opened, 0..30).await;
    build_snapshot(&mut opened).await;
    write(&mut opened, 30..60).await;
    build_snapshot(&mut opened).await;
    opened.log.purge(log_id(50)).await.unwrap();
    let state = check_log(&mut opened.log, Some(59)).await;
    assert_eq!(state.last_purged_log_id, Some(log_id(50)), "for Raft it is gone at once");
    write(&mut opened, 60..70).await;
    close(opened).await;

    let mut opened = open(dir.path()).await.unwrap();
    let state = check_log(&mut opened.log, Some(69)).await;
    assert_eq!(state.last_purged_log_id, Some(log_id(29)), "on disk only up to the older snapshot");
}

#[tokio::test]
async fn a_log_purged_to_its_end_goes_on_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = create(dir.path()).await;
    for end in [10, 20] {
        write(&mut opened, end - 10..end).await;
        build_snapshot(&mut opened).await;
    }
    opened.log.purge(log_id(19)).await.unwrap();
    write(&mut opened, 20..25).await;
    close(opened).await;
    let mut opened = open(dir.path()).await.unwrap();
    check_log(&mut opened.log, Some(24)).await;
}

#[tokio::test]
async fn a_read_for_replication_is_bounded_in_bytes_and_never_empty() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = create(dir.path()).await;
    let large = |index| entry_of(index, 400 << 10);
    opened.log.blocking_append((0..5).map(large)).await.unwrap();
    opened.log.blocking_append([entry_of(5, 3 << 20), entry_of(6, 10)]).await.unwrap();
    for (start, count) in [(0, 2), (2, 2), (4, 1), (5, 1), (6, 1)] {
        let entries = opened.log.limited_get_log_entries(start, 7).await.unwrap();
        assert_eq!(entries.len(), count, "from {start}");
        assert_eq!(entries[0].log_id, log_id(start));
    }
    assert_eq!(opened.log.try_get_log_entries(0..7).await.unwrap().len(), 7, "for applying, all of it");
    // sled puts values of 16 KiB and more into files that it never syncs.
    assert_eq!(dir.path().join("log/blobs").read_dir().unwrap().count(), 0);
}

#[tokio::test]
async fn an_entry_that_does_not_follow_is_refused_and_stops_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = create(dir.path()).await;
    append(&mut opened.log, 0..5).await;
    opened.log.blocking_append([entry(7)]).await.unwrap_err();
    assert!(opened.status.poisoned().borrow().is_some());
    opened.log.blocking_append([entry(5)]).await.unwrap_err();
    opened.log.save_vote(&vote(9)).await.unwrap_err();
    close(opened).await;
    let mut opened = open(dir.path()).await.unwrap();
    check_log(&mut opened.log, Some(4)).await;
    assert_eq!(opened.log.read_vote().await.unwrap(), None);
}

#[tokio::test]
async fn an_installed_snapshot_replaces_all_there_was() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut leader = create(from.path()).await;
    apply_members(&mut leader, &["n1", "n2"]).await;
    write(&mut leader, 4..80).await;
    let expected = leader.fleet.borrow().clone();

    let mut follower = create(to.path()).await;
    apply_members(&mut follower, &["gone1", "gone2", "gone3"]).await;
    build_snapshot(&mut follower).await;
    install(&mut leader, &mut follower).await;
    assert_eq!(*follower.fleet.borrow(), expected);
    // What openraft does next. Nothing of the old log may be needed, and the new one begins after 79.
    follower.log.purge(log_id(79)).await.unwrap();
    append(&mut follower.log, 80..90).await;
    close(follower).await;

    let mut follower = open(to.path()).await.unwrap();
    assert_eq!(*follower.fleet.borrow(), expected);
    assert_eq!(check_log(&mut follower.log, Some(89)).await.last_purged_log_id, Some(log_id(79)));
    assert_eq!(to.path().join("snapshots").read_dir().unwrap().count(), 1, "the older state is gone");
}

#[tokio::test]
async fn a_purge_waits_for_the_snapshot_that_it_relies_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = create(dir.path()).await;
    write(&mut opened, 0..10).await;
    // openraft asks for this while the snapshot up to 99 is still being written.
    opened.log.purge(log_id(99)).await.unwrap();
    assert_eq!(opened.log.get_log_state().await.unwrap().last_log_id, Some(log_id(99)));
    let mut log = opened.log.clone();
    let early = tokio::time::timeout(std::time::Duration::from_millis(50), log.blocking_append([entry(100)]));
    early.await.expect_err("nothing may be written beyond a hole");
    close_with(opened, log).await;

    let mut opened = open(dir.path()).await.expect("the snapshot never came, and nothing is missing");
    assert_eq!(check_log(&mut opened.log, Some(9)).await.last_log_id, Some(log_id(9)));
}

#[tokio::test]
async fn a_snapshot_that_is_not_whole_is_refused_and_nothing_is_replaced() {
    for damage in [Damage::Truncated, Damage::Flipped, Damage::Other] {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut leader = create(from.path()).await;
        write(&mut leader, 0..20).await;
        let (mut meta, mut bytes) = snapshot_bytes(&mut leader).await;
        let half = bytes.len() / 2;
        match damage {
            Damage::Truncated => bytes.truncate(half),
            Damage::Flipped => bytes[half] ^= 1,
            Damage::Other => meta.last_log_id = Some(log_id(500)),
        }
        let mut follower = create(to.path()).await;
        write(&mut follower, 0..5).await;
        let before = follower.fleet.borrow().clone();
        let mut file = follower.state_machine.begin_receiving_snapshot().await.unwrap();
        file.write_all(&bytes).await.unwrap();
        file.flush().await.unwrap();
        follower.state_machine.install_snapshot(&meta, file).await.unwrap_err();
        assert_eq!(*follower.fleet.borrow(), before);
        close(follower).await;
        let mut follower = open(to.path()).await.unwrap();
        check_log(&mut follower.log, Some(4)).await;
    }
}

#[tokio::test]
async fn the_same_state_is_the_same_snapshot_to_the_byte() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut snapshots = Vec::new();
    for dir in [one.path(), two.path()] {
        let mut opened = create(dir).await;
        write(&mut opened, 0..20).await;
        snapshots.push(snapshot_bytes(&mut opened).await);
    }
    assert_eq!(snapshots[0], snapshots[1]);
}

#[tokio::test]
async fn bytes_of_log_ask_for_a_snapshot_and_the_snapshot_answers() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions { snapshot_every_bytes: 50_000, ..Default::default() };
    let mut opened = Store::create(dir.path(), &identity(), options).await.unwrap();
    assert!(!opened.status.wants_snapshot());
    write(&mut opened, 0..100).await;
    assert!(opened.status.wants_snapshot());
    build_snapshot(&mut opened).await;
    assert!(!opened.status.wants_snapshot());
    assert!(opened.status.size_bytes().unwrap() > 50_000);
}

#[tokio::test]
async fn raft_itself_compacts_its_log_and_comes_back_with_the_same_fleet() {
    let dir = tempfile::tempdir().unwrap();
    let opened = create(dir.path()).await;
    let (fleet, status) = (opened.fleet.clone(), opened.status.clone());
    let raft = start(opened, &Network::default()).await;
    lead(&raft).await;
    for end in [20, 40, 60] {
        for index in end - 20..end {
            let openraft::EntryPayload::Normal(batch) = entry(index).payload else { unreachable!() };
            raft.client_write(batch).await.unwrap();
        }
        raft.trigger().snapshot().await.unwrap();
        let applied = raft.metrics().borrow().last_applied.unwrap();
        raft.wait(PATIENCE).snapshot(applied, "built").await.unwrap();
        raft.trigger().purge_log(applied.index).await.unwrap();
        raft.wait(PATIENCE).purged(Some(applied), "purged").await.unwrap();
    }
    let before = fleet.borrow().clone();
    raft.shutdown().await.unwrap();
    drop(raft);
    tokio::time::timeout(PATIENCE.unwrap(), status.closed()).await.unwrap();

    let opened = open(dir.path()).await.unwrap();
    let fleet = opened.fleet.clone();
    let raft = start(opened, &Network::default()).await;
    assert_eq!(*fleet.borrow(), before);
    raft.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_node_that_is_far_behind_gets_the_snapshot_in_chunks_and_then_the_log() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let network = Network::default();
    let opened = create(one.path()).await;
    let expected = opened.fleet.clone();
    let leader = start(opened, &network).await;
    lead(&leader).await;
    let write = async |apps: std::ops::Range<u64>| {
        for index in apps {
            let request = RequestId { client: format!("client-{index}"), sequence: 1 };
            let openraft::EntryPayload::Normal(Batch(mut commands)) = entry(index).payload else {
                unreachable!()
            };
            commands[0].request = Some(request);
            leader.client_write(Batch(commands)).await.unwrap();
        }
    };
    write(0..40).await;
    leader.trigger().snapshot().await.unwrap();
    let applied = leader.metrics().borrow().last_applied.unwrap();
    leader.wait(PATIENCE).snapshot(applied, "built").await.unwrap();
    leader.trigger().purge_log(applied.index).await.unwrap();
    leader.wait(PATIENCE).purged(Some(applied), "purged").await.unwrap();
    assert!(file_bytes(&one.path().join("snapshots")) > 512, "several chunks of 256 bytes");

    let mut newcomer = identity();
    newcomer.node = 9.into();
    let opened = Store::create(two.path(), &newcomer, StoreOptions::default()).await.unwrap();
    let (fleet, status) = (opened.fleet.clone(), opened.status.clone());
    let learner = start(opened, &network).await;
    leader.add_learner(9.into(), openraft::BasicNode::new("here"), true).await.unwrap();
    write(40..50).await;
    let applied = leader.metrics().borrow().last_applied.unwrap().index;
    learner.wait(PATIENCE).applied_index(Some(applied), "caught up").await.unwrap();
    assert_eq!(learner.metrics().borrow().snapshot.unwrap().index, applied - 11, "not entry by entry");
    assert_eq!(fleet.borrow().digest(), expected.borrow().digest());

    learner.shutdown().await.unwrap();
    network.peers.lock().unwrap().remove(&9.into());
    drop(learner);
    tokio::time::timeout(PATIENCE.unwrap(), status.closed()).await.unwrap();
    open(two.path()).await.expect("the log begins where the snapshot ends");
    leader.shutdown().await.unwrap();
}

fn file_bytes(dir: &std::path::Path) -> u64 {
    dir.read_dir().unwrap().map(|item| item.unwrap().metadata().unwrap().len()).sum()
}

#[derive(Clone, Copy)]
enum Damage {
    Truncated,
    Flipped,
    Other,
}

/// From entry 2 on, where a real cluster begins: ids come from the index, and the first node has 1.
async fn apply_members(opened: &mut Opened, names: &[&str]) {
    write(opened, 0..2).await;
    let init = Change::InitCluster {
        id: ClusterId("c".to_owned()),
        name: "berlin".to_owned(),
        member: member(names[0]),
    };
    let join = names[1..].iter().map(|name| Change::AddMember { member: member(name) });
    let command =
        |(change, index)| normal(index, vec![Command { request: None, time: Timestamp(1), change }]);
    let entries: Vec<Entry> = std::iter::once(init).chain(join).zip(2..).map(command).collect();
    opened.log.blocking_append(entries.clone()).await.unwrap();
    opened.state_machine.apply(entries).await.unwrap();
    assert_eq!(opened.fleet.borrow().members.len(), names.len());
}

async fn snapshot_bytes(opened: &mut Opened) -> (SnapshotMeta, Vec<u8>) {
    let mut builder = opened.state_machine.get_snapshot_builder().await;
    let mut snapshot = builder.build_snapshot().await.unwrap();
    let mut bytes = Vec::new();
    snapshot.snapshot.rewind().await.unwrap();
    snapshot.snapshot.read_to_end(&mut bytes).await.unwrap();
    (snapshot.meta, bytes)
}

/// In chunks, through a file of the receiver.
async fn install(from: &mut Opened, to: &mut Opened) {
    let (meta, bytes) = snapshot_bytes(from).await;
    let mut file = to.state_machine.begin_receiving_snapshot().await.unwrap();
    for chunk in bytes.chunks(100) {
        file.write_all(chunk).await.unwrap();
    }
    file.flush().await.unwrap();
    to.state_machine.install_snapshot(&meta, file).await.unwrap();
}

async fn close_with(opened: Opened, log: flotilla_raft_store::LogStore) {
    drop(log);
    close(opened).await;
}
