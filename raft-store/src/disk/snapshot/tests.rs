use openraft::CommittedLeaderId;

use super::*;
use crate::NodeId;

fn meta(index: u64) -> SnapshotMeta {
    let last_log_id = Some(LogId::new(CommittedLeaderId::new(2, NodeId(1)), index));
    let mut meta = SnapshotMeta { last_log_id, ..SnapshotMeta::default() };
    meta.snapshot_id = id(&meta, b"body");
    meta
}

#[test]
fn no_flipped_bit_and_no_other_length_passes_for_a_snapshot() {
    let whole = encode(&meta(7), b"body");
    assert_eq!(decode(&whole).unwrap().body, b"body");
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 16;
        assert!(decode(&flipped).is_err(), "byte {at}");
        assert!(decode(&whole[..at]).is_err(), "{at} bytes");
    }
    assert!(decode(&[whole, vec![0]].concat()).is_err());
}

#[test]
fn the_file_format_is_fixed() {
    let bytes = encode(&meta(7), b"body");
    let (content, digest) = bytes.split_at(bytes.len() - DIGEST_BYTES);
    let expected = [
        b"flotsnap\x01\0\0\0\x1f\0\0\0\0\0\0\0\x04".as_slice(),
        b"\x01\x0a\x06\x08\x02\x10\x01\x18\x07\x12\x02\x12\x00\x1a\x10",
        meta(7).snapshot_id.as_bytes(),
        b"body",
    ]
    .concat();
    assert_eq!(content, expected, "{}", content.escape_ascii());
    assert_eq!(Sha256::digest(content).as_slice(), digest);
}

#[test]
fn the_last_two_are_kept_and_an_older_one_that_comes_late_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (snapshots, ..) = Snapshots::load(dir.path()).unwrap();
    for index in [10, 20, 30, 25] {
        snapshots.write(&meta(index), b"body").unwrap();
        snapshots.retire_old().unwrap();
    }
    let (loaded, newest, damaged) = Snapshots::load(dir.path()).unwrap();
    let next: Vec<u64> = loaded.kept().iter().map(|kept| next_index(&kept.meta)).collect();
    assert_eq!((next, newest.unwrap().meta, damaged.len()), (vec![21, 31], meta(30), 0));
    assert_eq!(dir.path().read_dir().unwrap().count(), 2);
}

#[test]
fn what_may_be_deleted_always_leaves_two_ways_to_the_state() {
    for (what, next_indexes, deleted, last, expected) in [
        ("no snapshot", &[][..], None, Some(50), 0),
        ("the whole log is the other way", &[40], None, Some(50), 0),
        ("two snapshots", &[20, 40], None, Some(50), 20),
        ("two snapshots, purged before", &[20, 40], Some(19), Some(50), 20),
        ("the log does not lead from the older one", &[20, 40], Some(30), Some(50), 40),
        ("installed: the log ends before it", &[100], None, Some(50), 100),
        ("installed into an empty log", &[100], None, None, 100),
        ("installed, crashed before the older was removed", &[20, 100], None, Some(50), 100),
        ("a single one and a purged log", &[40], Some(39), Some(50), 40),
    ] {
        assert_eq!(floor(next_indexes, deleted, last), expected, "{what}");
    }
}
