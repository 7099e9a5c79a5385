//! Files that are not what was written. Two outcomes are allowed: everything acknowledged is there,
//! or the store is refused as lost. A shorter log that opens is neither.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "a test may speak")]

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
};

use flotilla_raft_store::{OpenError, Store, StoreOptions};
use openraft::{StorageHelper, storage::RaftLogStorage};
use tempfile::TempDir;

use self::store_support::*;

mod store_support;

const LAST: u64 = 119;

/// 120 committed entries, snapshots after 40 and 80, a vote in term 6.
async fn store() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut opened = create(dir.path()).await;
    for start in [0, 40] {
        write(&mut opened, start..start + 40).await;
        build_snapshot(&mut opened).await;
    }
    write(&mut opened, 80..LAST + 1).await;
    opened.log.save_vote(&vote(6)).await.unwrap();
    close(opened).await;
    dir
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Whole,
    Lost,
}

/// Opens a copy of `store` after `damage`. Panics on any outcome that is not allowed.
async fn outcome(store: &TempDir, what: impl std::fmt::Display, damage: impl FnOnce(&Path)) -> Outcome {
    let copy = tempfile::tempdir().unwrap();
    copy_dir(store.path(), copy.path());
    damage(copy.path());
    let options = StoreOptions { open_deadline: std::time::Duration::from_secs(5), ..Default::default() };
    match Store::open(copy.path(), options).await {
        Ok(mut opened) => {
            check_log(&mut opened.log, Some(LAST)).await;
            assert_eq!(opened.log.read_vote().await.unwrap(), Some(vote(6)), "{what}");
            StorageHelper::new(&mut opened.log, &mut opened.state_machine).get_initial_state().await.unwrap();
            assert_eq!(opened.fleet.borrow().index, LAST, "{what}");
            close(opened).await;
            Outcome::Whole
        }
        Err(OpenError::Lost { why }) => {
            assert!(!why.is_empty());
            Outcome::Lost
        }
        Err(err) => panic!("{what}: {err}"),
    }
}

#[tokio::test]
async fn an_undamaged_copy_is_whole() {
    assert_eq!(outcome(&store().await, "nothing", |_| {}).await, Outcome::Whole);
}

#[tokio::test]
async fn a_torn_or_zeroed_tail_of_the_log_is_never_taken_for_a_shorter_log() {
    let store = store().await;
    let mut lost = 0;
    for bytes in [1, 64, 4_096, 40_000, 100_000, 200_000, 400_000] {
        let torn = outcome(&store, format!("{bytes} bytes torn"), |dir| {
            let db = OpenOptions::new().write(true).open(dir.join("log/db")).unwrap();
            db.set_len(db.metadata().unwrap().len().saturating_sub(bytes)).unwrap();
        });
        let torn = torn.await;
        let zeroed =
            outcome(&store, format!("{bytes} bytes zeroed"), |dir| zero_tail(&dir.join("log/db"), bytes));
        let zeroed = zeroed.await;
        lost += usize::from(torn == Outcome::Lost) + usize::from(zeroed == Outcome::Lost);
    }
    assert!(lost > 0, "no damage reached the entries");
}

#[tokio::test]
async fn a_flipped_bit_of_the_log_is_never_read_as_something_else() {
    let store = store().await;
    let used = used_bytes(&store.path().join("log/db"));
    let seed =
        std::env::var("SEED").map_or_else(|_| std::process::id().into(), |seed| seed.parse::<u64>().unwrap());
    println!("SEED={seed}");
    let mut random = seed;
    let mut lost = 0;
    for _ in 0..24 {
        // Knuth's constants; any spread will do.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (at, bit) = ((random >> 16) % used, random % 8);
        let found =
            outcome(&store, format!("bit {bit} of byte {at}"), |dir| flip(&dir.join("log/db"), at, bit));
        lost += usize::from(found.await == Outcome::Lost);
    }
    assert!(lost > 0, "no flip was noticed");
}

#[tokio::test]
async fn a_log_that_came_back_empty_or_shorter_or_anothers_is_lost() {
    let store = store().await;
    let why = |damage: fn(&Path)| {
        let store = &store;
        async move {
            let copy = tempfile::tempdir().unwrap();
            copy_dir(store.path(), copy.path());
            damage(copy.path());
            match open(copy.path()).await.map(drop) {
                Err(OpenError::Lost { why }) => why,
                other => panic!("{other:?}"),
            }
        }
    };
    let gone = why(|dir| fs::remove_dir_all(dir.join("log")).unwrap()).await;
    assert_eq!(gone, "its log is gone");
    let emptied = why(|dir| fs::write(dir.join("log/db"), []).unwrap()).await;
    assert!(emptied.contains("empty"), "{emptied}");

    let (shorter, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut opened = create(shorter.path()).await;
    append(&mut opened.log, 0..LAST).await;
    close(opened).await;
    let mut stranger = identity();
    stranger.node = 8.into();
    close(Store::create(other.path(), &stranger, StoreOptions::default()).await.unwrap()).await;
    for (log, expected) in [(&shorter, "ends at entry 118 though it had reached 119"), (&other, "/8")] {
        let found = outcome_with_log(&store, log).await;
        assert!(found.contains(expected), "{found}");
    }
}

#[tokio::test]
async fn one_damaged_identity_file_changes_nothing_and_two_are_lost() {
    let store = store().await;
    for (what, files, expected) in [
        ("node.a", vec!["node.a"], Outcome::Whole),
        ("node.b", vec!["node.b"], Outcome::Whole),
        ("mark.a", vec!["mark.a"], Outcome::Whole),
        ("mark.b", vec!["mark.b"], Outcome::Whole),
        ("both node files", vec!["node.a", "node.b"], Outcome::Lost),
        ("both mark files", vec!["mark.a", "mark.b"], Outcome::Lost),
    ] {
        for byte in [0, 6, 14, 30] {
            let found =
                outcome(&store, what, |dir| files.iter().for_each(|file| flip(&dir.join(file), byte, 3)));
            assert_eq!(found.await, expected, "{what}, byte {byte}");
        }
        let removed = outcome(&store, what, |dir| {
            files.iter().for_each(|file| fs::remove_file(dir.join(file)).unwrap());
        });
        assert_eq!(removed.await, expected, "{what} removed");
    }
}

#[tokio::test]
async fn a_directory_without_identity_but_with_a_log_is_not_taken_for_a_new_one() {
    let store = store().await;
    for slot in ["node.a", "node.b"] {
        fs::remove_file(store.path().join(slot)).unwrap();
    }
    assert!(matches!(Store::read_identity(store.path()), Err(OpenError::Lost { .. })));
    let created = Store::create(store.path(), &identity(), StoreOptions::default()).await;
    assert!(matches!(created, Err(OpenError::Lost { .. })));
}

#[tokio::test]
async fn a_damaged_snapshot_is_replaced_by_the_one_before_it_and_the_log() {
    let store = store().await;
    let snapshots = snapshots(store.path());
    let [older, newer] = &snapshots[..] else { panic!("{snapshots:?}") };
    let len = fs::metadata(store.path().join("snapshots").join(older)).unwrap().len();
    for at in [0, 10, 15, 60, len - 40, len - 1] {
        let damage = |name: &str| {
            let name = name.to_owned();
            move |dir: &Path| flip(&dir.join("snapshots").join(name), at, 5)
        };
        assert_eq!(outcome(&store, "newer flipped", damage(newer)).await, Outcome::Whole, "byte {at}");
        assert_eq!(outcome(&store, "older flipped", damage(older)).await, Outcome::Whole, "byte {at}");
    }
    let truncated = outcome(&store, "newer truncated", |dir| {
        let file = OpenOptions::new().write(true).open(dir.join("snapshots").join(newer)).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    });
    assert_eq!(truncated.await, Outcome::Whole);
    // Nothing was purged, so even without any snapshot the log has it all.
    let none = outcome(&store, "both removed", |dir| {
        for name in &snapshots {
            fs::remove_file(dir.join("snapshots").join(name)).unwrap();
        }
    });
    assert_eq!(none.await, Outcome::Whole);
}

#[tokio::test]
async fn a_purged_log_without_its_snapshots_is_lost() {
    let store = store().await;
    let mut opened = open(store.path()).await.unwrap();
    opened.log.purge(log_id(70)).await.unwrap();
    append(&mut opened.log, LAST + 1..LAST + 2).await;
    close(opened).await;
    let newer = snapshots(store.path()).pop().unwrap();
    flip(&store.path().join("snapshots").join(&newer), 70, 1);
    let mut opened = open(store.path()).await.expect("the older one and the log behind it");
    StorageHelper::new(&mut opened.log, &mut opened.state_machine).get_initial_state().await.unwrap();
    assert_eq!(opened.fleet.borrow().index, LAST);
    close(opened).await;
    for name in snapshots(store.path()) {
        flip(&store.path().join("snapshots").join(name), 71, 1);
    }
    let err = open(store.path()).await.unwrap_err().to_string();
    assert!(err.contains("no good snapshot") && err.contains("digest"), "{err}");
}

#[tokio::test]
async fn what_a_crash_leaves_behind_does_no_harm() {
    let store = store().await;
    let found = outcome(&store, "leftovers", |dir| {
        fs::write(dir.join("log/snap.00000000000000AB.generating"), []).unwrap();
        fs::write(dir.join("snapshots/3.tmp"), b"half a snaps").unwrap();
    });
    assert_eq!(found.await, Outcome::Whole);
}

#[tokio::test]
async fn a_blob_file_beside_the_log_is_an_alarm() {
    let store = store().await;
    let found = outcome(&store, "blob", |dir| fs::write(dir.join("log/blobs/123"), b"x").unwrap());
    assert_eq!(found.await, Outcome::Lost);
}

#[tokio::test]
async fn a_newer_version_is_told_apart_from_damage() {
    let store = store().await;
    let newer = snapshots(store.path()).pop().unwrap();
    flip(&store.path().join("snapshots").join(newer), 8, 5);
    assert!(matches!(open(store.path()).await, Err(OpenError::Newer { .. })));
}

async fn outcome_with_log(store: &TempDir, log: &TempDir) -> String {
    let copy = tempfile::tempdir().unwrap();
    copy_dir(store.path(), copy.path());
    fs::remove_dir_all(copy.path().join("log")).unwrap();
    copy_dir(&log.path().join("log"), &copy.path().join("log"));
    match open(copy.path()).await.map(drop) {
        Err(OpenError::Lost { why }) => why,
        other => panic!("{other:?}"),
    }
}

fn snapshots(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = dir
        .join("snapshots")
        .read_dir()
        .unwrap()
        .map(|item| item.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn flip(path: &Path, at: u64, bit: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
}

fn zero_tail(path: &Path, bytes: u64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let len = file.metadata().unwrap().len();
    let from = len.saturating_sub(bytes);
    file.write_all_at(&vec![0; usize::try_from(len - from).unwrap()], from).unwrap();
}

/// sled's file grows by segments; behind the last entry there are zeros that mean nothing.
fn used_bytes(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1
}
