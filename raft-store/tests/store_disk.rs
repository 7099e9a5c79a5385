//! The directory and the disk below it: whose it is, whether there is room, and what happens when there is none.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "a test may speak")]

use std::{path::Path, process::Command, time::Duration};

use flotilla_raft_store::{ClusterId, FsyncObserver, OpenError, Store, StoreOptions};
use openraft::storage::{RaftLogStorage, RaftLogStorageExt};

use self::store_support::*;

mod store_support;

#[tokio::test]
async fn an_empty_directory_has_no_identity_and_does_not_open() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Store::read_identity(dir.path()).unwrap(), None);
    assert_eq!(Store::read_identity(&dir.path().join("absent")).unwrap(), None);
    assert!(matches!(open(dir.path()).await, Err(OpenError::Absent { .. })));
}

#[tokio::test]
async fn a_store_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    close(create(&dir.path().join("new/deep")).await).await;
    assert_eq!(Store::read_identity(&dir.path().join("new/deep")).unwrap(), Some(identity()));
    let again = Store::create(&dir.path().join("new/deep"), &identity(), StoreOptions::default()).await;
    assert!(matches!(again, Err(OpenError::Exists { .. })));
}

#[tokio::test]
async fn a_directory_of_another_cluster_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    close(create(dir.path()).await).await;
    let expected = ClusterId("another".to_owned());
    let options = StoreOptions { cluster: Some(expected.clone()), ..Default::default() };
    match Store::open(dir.path(), options).await.map(drop) {
        Err(OpenError::OtherCluster { found, expected: wanted }) => {
            assert_eq!((found, wanted), (identity().cluster, expected));
        }
        other => panic!("{other:?}"),
    }
    let options = StoreOptions { cluster: Some(identity().cluster), ..Default::default() };
    Store::open(dir.path(), options).await.unwrap();
}

#[tokio::test]
async fn a_store_is_open_once() {
    let dir = tempfile::tempdir().unwrap();
    let opened = create(dir.path()).await;
    let second = open(dir.path()).await.map(drop);
    assert!(matches!(second, Err(OpenError::Locked { pid: Some(pid), .. }) if pid == std::process::id()));
    assert_eq!(Store::read_identity(dir.path()).unwrap(), Some(identity()), "readable without the lock");
    close(opened).await;
    open(dir.path()).await.unwrap();
}

#[tokio::test]
async fn room_is_a_matter_of_the_free_space_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let opened = create(dir.path()).await;
    let free = opened.status.free_bytes().unwrap();
    close(opened).await;
    for (min, expected) in [(0, true), (free * 2, false)] {
        let options = StoreOptions { free_space_min_bytes: min, ..Default::default() };
        let opened = Store::open(dir.path(), options).await.unwrap();
        assert_eq!(opened.status.has_room(), expected);
        close(opened).await;
    }
}

#[tokio::test]
async fn each_append_is_one_observed_sync() {
    let dir = tempfile::tempdir().unwrap();
    let (sender, syncs) = std::sync::mpsc::channel::<Duration>();
    let observer = FsyncObserver(std::sync::Arc::new(move |took| sender.send(took).unwrap()));
    let options = StoreOptions { on_fsync: Some(observer), ..Default::default() };
    let mut opened = Store::create(dir.path(), &identity(), options).await.unwrap();
    append(&mut opened.log, 0..64).await;
    append(&mut opened.log, 64..65).await;
    close(opened).await;
    assert_eq!(syncs.iter().count(), 2);
}

/// A filesystem of 24 MiB that is unmounted again.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` without the right to mount.
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"])
            .arg(dir.path())
            .output()
            .is_ok_and(|output| output.status.success());
        mounted.then_some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

#[tokio::test]
async fn a_full_disk_stops_the_store_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount() else {
        assert!(
            std::env::var("FLOTILLA_REQUIRE").as_deref() != Ok("all"),
            "needs root, to mount a small disk"
        );
        println!("SKIPPED: needs root");
        return;
    };
    let dir = disk.0.path().join("store");
    let mut opened = create(&dir).await;
    append(&mut opened.log, 0..20).await;
    opened.log.save_vote(&vote(2)).await.unwrap();
    let mut acked = 19;
    let poisoned = opened.status.poisoned();
    let filler = disk.0.path().join("filler");
    fill(&filler, 0);
    assert!(!opened.status.has_room(), "the soft limit comes first");
    while poisoned.borrow().is_none() {
        match opened.log.blocking_append([entry_of(acked + 1, 300_000)]).await {
            Ok(()) => acked += 1,
            Err(_) => assert!(poisoned.borrow().is_some()),
        }
        assert!(acked < 200, "the disk never filled up");
    }
    opened.log.blocking_append([entry(acked + 1)]).await.unwrap_err();
    opened.log.save_vote(&vote(3)).await.unwrap_err();
    close(opened).await;

    // Still full: refused, and not mistaken for lost.
    assert!(matches!(open(&dir).await.map(drop), Err(OpenError::NoSpace { .. })));

    std::fs::remove_file(filler).unwrap();
    let mut opened = open(&dir).await.unwrap();
    let last = opened.log.get_log_state().await.unwrap().last_log_id.unwrap().index;
    assert!(last >= acked, "{acked} was acknowledged, {last} is the last");
    let entries = openraft::RaftLogReader::try_get_log_entries(&mut opened.log, 0..20).await.unwrap();
    assert_eq!(entries, (0..20).map(entry).collect::<Vec<_>>());
    let vote_now = opened.log.read_vote().await.unwrap().unwrap();
    assert!(vote_now == vote(2) || vote_now == vote(3));
    append(&mut opened.log, last + 1..last + 5).await;
}

/// Takes all but `leave` bytes.
fn fill(path: &Path, leave: u64) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).unwrap();
    while file.write_all(&[1; 4_096]).is_ok() {}
    let len = file.metadata().unwrap().len();
    file.set_len(len.saturating_sub(leave)).unwrap();
}
