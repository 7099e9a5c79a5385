//! Records that come back from disks and peers otherwise than they went.

use openraft::EntryPayload;

use super::{
    chunk::{Damage, Joiner, split},
    snapshot,
};
use crate::{
    codec::{self, raft},
    fuzz::{EVERY_COMMAND, FLEET},
    types::{Entry, SnapshotMeta},
};

/// The first byte says which record; then come the changes, each a place (two bytes) and what is flipped there. Or,
/// for peers that are not ours, the bytes of the record themselves.
pub fn stored_records(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    match kind % 4 {
        0 => raw(rest),
        1 => log_entry(rest),
        2 => snapshot_file(rest),
        _ => raw(&flipped(&raft::encode_entry(&entry()), rest)),
    }
}

fn entry() -> Entry {
    let batch = codec::decode_batch(&EVERY_COMMAND).expect("commands of our own");
    Entry { log_id: Default::default(), payload: EntryPayload::Normal(batch) }
}

fn flipped(bytes: &[u8], changes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for change in changes.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % bytes.len();
        bytes[at] ^= change[2];
    }
    bytes
}

/// What can be read can be written, and then reads as the same.
fn raw(bytes: &[u8]) {
    if let Ok(entry) = raft::decode_entry(bytes) {
        assert_eq!(raft::decode_entry(&raft::encode_entry(&entry)), Ok(entry));
    }
    if let Ok(meta) = raft::decode_snapshot_meta(bytes) {
        assert_eq!(raft::decode_snapshot_meta(&raft::encode_snapshot_meta(&meta)), Ok(meta));
    }
    if let Ok(membership) = raft::decode_membership(bytes) {
        assert_eq!(raft::decode_membership(&raft::encode_membership(&membership)), Ok(membership));
    }
    if let Ok(vote) = raft::decode_vote(bytes) {
        assert_eq!(raft::decode_vote(&raft::encode_vote(&vote)), Ok(vote));
    }
    if let Ok(fleet) = codec::decode_fleet(bytes) {
        assert_eq!(codec::decode_fleet(&codec::encode_fleet(&fleet)), Ok(fleet));
    }
    if let Ok(answers) = codec::decode_answers(bytes) {
        assert_eq!(codec::decode_answers(&codec::encode_answers(&answers)), Ok(answers));
    }
}

/// As it lies in sled, keys included.
fn log_entry(changes: &[u8]) {
    let (index, entry) = (7, raft::encode_entry(&entry()));
    let chunks: Vec<_> = split(index, &entry).collect();
    let written: Vec<u8> = chunks.iter().flat_map(|(key, value)| [&key[..], value].concat()).collect();
    let read = flipped(&written, changes);
    let mut rest = &read[..];
    let mut joiner = Joiner::default();
    let mut joined = Vec::new();
    let result: Result<(), Damage> = chunks.iter().try_for_each(|(key, value)| {
        let (key, behind) = rest.split_at(key.len());
        let (value, behind) = behind.split_at(value.len());
        rest = behind;
        joined.extend(joiner.feed(key, value)?);
        Ok(())
    });
    if result.is_ok() && joiner.finish().is_ok() {
        assert_eq!(joined, [(index, entry)]);
    }
}

fn snapshot_file(changes: &[u8]) {
    let mut meta = SnapshotMeta::default();
    meta.snapshot_id = snapshot::id(&meta, &FLEET);
    let written = snapshot::encode(&meta, &FLEET);
    let read = flipped(&written, changes);
    if let Ok(contents) = snapshot::decode(&read) {
        assert_eq!((contents.meta, &contents.body), (meta, &*FLEET));
        assert_eq!(read, written);
    }
}
