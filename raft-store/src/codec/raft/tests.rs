//! Golden bytes: what one version has written, every later one must read.

use flotilla_spec::AppName;

use super::*;
use crate::{Batch, Change, Command, Timestamp};

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, NodeId(3)), index)
}

fn membership() -> Membership {
    let nodes: BTreeMap<_, _> = [(1, "a:7400"), (2, "b:7400"), (300, "c:7400")]
        .map(|(id, at)| (NodeId(id), BasicNode::new(at)))
        .into();
    let voters = |ids: &[u64]| ids.iter().copied().map(NodeId).collect();
    Membership::new(vec![voters(&[1, 2]), voters(&[1])], nodes)
}

fn golden<T>(name: &str, value: &T, encoded: Vec<u8>, decoded: Result<T, DecodeError>, expected: &[u8])
where
    T: PartialEq + std::fmt::Debug,
{
    assert_eq!(encoded, expected, "{name}: {}", encoded.escape_ascii());
    assert_eq!(decoded.as_ref(), Ok(value), "{name}");
}

#[test]
fn the_bytes_of_votes_and_log_ids_are_fixed() {
    let id = log_id(2, 300);
    let bytes = b"\x01\x08\x02\x10\x03\x18\xac\x02";
    golden("log id", &id, encode_log_id(&id), decode_log_id(bytes), bytes);

    let vote = Vote { leader_id: LeaderId::new(5, NodeId(3)), committed: true };
    let bytes = b"\x01\x08\x05\x10\x03\x18\x01";
    golden("vote", &vote, encode_vote(&vote), decode_vote(bytes), bytes);
}

#[test]
fn the_bytes_of_a_joint_membership_with_a_learner_are_fixed() {
    let bytes = b"\x01\x0a\x04\x0a\x02\x01\x02\x0a\x03\x0a\x01\x01\
        \x12\x0a\x08\x01\x12\x06a:7400\x12\x0a\x08\x02\x12\x06b:7400\x12\x0b\x08\xac\x02\x12\x06c:7400";
    let membership = membership();
    golden("membership", &membership, encode_membership(&membership), decode_membership(bytes), bytes);
}

#[test]
fn the_bytes_of_entries_are_fixed() {
    let blank = Entry { log_id: log_id(1, 4), payload: EntryPayload::Blank };
    let bytes = b"\x01\x0a\x06\x08\x01\x10\x03\x18\x04\x12\x00";
    golden("blank", &blank, encode_entry(&blank), decode_entry(bytes), bytes);

    let change = Change::DeleteApp { app: AppName::parse("shop").unwrap(), if_version: Some(2) };
    let batch = Batch(vec![Command { request: None, time: Timestamp(9), change }]);
    let inner = encode_batch(&batch);
    let entry = Entry { log_id: log_id(1, 5), payload: EntryPayload::Normal(batch) };
    let len = u8::try_from(inner.len()).unwrap();
    let bytes = [b"\x01\x0a\x06\x08\x01\x10\x03\x18\x05\x1a".as_slice(), &[len], &inner].concat();
    golden("batch", &entry, encode_entry(&entry), decode_entry(&bytes), &bytes);

    let entry = Entry { log_id: log_id(1, 6), payload: EntryPayload::Membership(membership()) };
    assert_eq!(decode_entry(&encode_entry(&entry)), Ok(entry));
}

#[test]
fn the_description_of_a_snapshot_reads_back() {
    for meta in [
        SnapshotMeta::default(),
        SnapshotMeta {
            last_log_id: Some(log_id(2, 80)),
            last_membership: StoredMembership::new(Some(log_id(1, 0)), membership()),
            snapshot_id: "0011223344556677".to_owned(),
        },
    ] {
        assert_eq!(decode_snapshot_meta(&encode_snapshot_meta(&meta)), Ok(meta));
    }
}

#[test]
fn unknown_formats_and_payloads_are_newer_and_everything_else_is_corrupt() {
    for (bytes, newer) in [
        (&b"\x02\x0a\x06\x08\x01\x10\x03\x18\x04\x12\x00"[..], true),
        (b"\x01\x0a\x06\x08\x01\x10\x03\x18\x04\x4a\x00", true),
        (b"", false),
        (b"\x01\x12\x00", false),
        (b"\x01\x0a\x06\x08\x01", false),
    ] {
        match decode_entry(bytes).unwrap_err() {
            DecodeError::Newer { .. } => assert!(newer, "{bytes:?}"),
            DecodeError::Corrupt { .. } => assert!(!newer, "{bytes:?}"),
        }
    }
}
