//! Snapshots as files: written beside their final name, synced, renamed, the directory synced.
//!
//! ```text
//! "flotsnap" | format u8 | meta length u32 | body length u64 | meta | body | SHA-256 of all before
//! ```
//! The same bytes go to other nodes, so the digest covers the way there too. The last two are kept, and
//! with them the log from the older one on: when the newest turns out to be damaged, the one before it and the
//! log give the same state. Not in here: what is in the body.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use sha2::{Digest, Sha256};

use super::sync_dir;
use crate::{
    codec,
    types::{LogId, SnapshotMeta},
};

const MAGIC: &[u8; 8] = b"flotsnap";
const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 8 + 1 + 4 + 8;
const DIGEST_BYTES: usize = 32;
const KEPT: usize = 2;

/// The snapshots of one data directory, oldest first.
#[derive(Debug)]
pub(crate) struct Snapshots {
    dir: PathBuf,
    kept: Mutex<Vec<Kept>>,
    temporary: AtomicU64,
}

#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) meta: SnapshotMeta,
    pub(crate) path: PathBuf,
}

#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) meta: SnapshotMeta,
    pub(crate) body: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error("the snapshot does not begin with its magic number")]
    Magic,
    #[error("the snapshot has the unknown format {0}: it was written by a newer version")]
    Format(u8),
    #[error("the snapshot has {found} bytes instead of {expected}")]
    Length { expected: u64, found: u64 },
    #[error("the snapshot's digest is wrong")]
    Digest,
    #[error("the snapshot's description cannot be decoded: {0}")]
    Meta(codec::DecodeError),
    #[error("the snapshot is {found}, not {expected} as announced")]
    Other { expected: String, found: String },
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Snapshots {
    /// Reads every snapshot there is. The damaged ones are reported and stay where they are until newer ones
    /// replace them; the contents of the newest good one are returned.
    pub(super) fn load(dir: &Path) -> io::Result<(Self, Option<Contents>, Vec<Damaged>)> {
        let mut paths = Vec::new();
        for entry in dir.read_dir()? {
            let path = entry?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("snap") => paths.push(path),
                Some("tmp") => std::fs::remove_file(path)?,
                _ => {}
            }
        }
        paths.sort();
        let (mut kept, mut newest, mut damaged) = (Vec::new(), None, Vec::new());
        for path in paths {
            match File::open(&path).map_err(SnapshotError::Io).and_then(read) {
                Ok(contents) => {
                    kept.push(Kept { meta: contents.meta.clone(), path });
                    newest = Some(contents);
                }
                Err(SnapshotError::Io(err)) => return Err(err),
                Err(why) => damaged.push(Damaged { path, why }),
            }
        }
        let snapshots = Self { dir: dir.to_owned(), kept: Mutex::new(kept), temporary: AtomicU64::new(0) };
        Ok((snapshots, newest, damaged))
    }

    pub(crate) fn current(&self) -> Option<Kept> {
        self.kept().last().cloned()
    }

    /// Durable when it returns. A snapshot older than the current one is of no use here and is not kept.
    pub(crate) fn write(&self, meta: &SnapshotMeta, body: &[u8]) -> io::Result<File> {
        let name = format!("{:020}-{}.snap", next_index(meta), meta.snapshot_id);
        let temporary = self.temporary_path();
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&temporary)?;
        file.write_all(&encode(meta, body))?;
        file.sync_all()?;
        let mut kept = self.kept();
        if kept.last().is_some_and(|current| next_index(&current.meta) > next_index(meta)) {
            std::fs::remove_file(temporary)?;
            return Ok(file);
        }
        let path = self.dir.join(name);
        std::fs::rename(temporary, &path)?;
        sync_dir(&self.dir)?;
        kept.retain(|other| other.path != path);
        kept.push(Kept { meta: meta.clone(), path });
        Ok(file)
    }

    /// Forgets all but the newest `KEPT`.
    pub(crate) fn retire_old(&self) -> io::Result<()> {
        self.retire_all_but(KEPT)
    }

    /// After an installation: the log does not lead from an older snapshot to this one.
    pub(crate) fn retire_all_but_current(&self) -> io::Result<()> {
        self.retire_all_but(1)
    }

    /// Log entries below this index may be deleted: those up to the older snapshot, if the log leads from
    /// there to the newer one.
    pub(crate) fn floor(&self, deleted: Option<&LogId>, last: Option<&LogId>) -> u64 {
        let next_indexes: Vec<u64> = self.kept().iter().map(|kept| next_index(&kept.meta)).collect();
        floor(&next_indexes, deleted.map(|deleted| deleted.index), last.map(|last| last.index))
    }

    /// A file without a name: whatever happens, nothing of it stays behind.
    pub(crate) fn receive(&self) -> io::Result<File> {
        let path = self.temporary_path();
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        std::fs::remove_file(path)?;
        Ok(file)
    }

    fn retire_all_but(&self, count: usize) -> io::Result<()> {
        let mut kept = self.kept();
        let surplus = kept.len().saturating_sub(count);
        kept.drain(..surplus);
        self.remove_others(&kept)
    }

    fn remove_others(&self, kept: &[Kept]) -> io::Result<()> {
        for entry in self.dir.read_dir()? {
            let path = entry?.path();
            let is_snapshot = path.extension().is_some_and(|extension| extension == "snap");
            if is_snapshot && kept.iter().all(|kept| kept.path != path) {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    fn temporary_path(&self) -> PathBuf {
        self.dir.join(format!("{}.tmp", self.temporary.fetch_add(1, Ordering::Relaxed)))
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `next_indexes`: for each snapshot, oldest first, the first index it does not contain.
fn floor(next_indexes: &[u64], deleted: Option<u64>, last: Option<u64>) -> u64 {
    let begin = deleted.map_or(0, |deleted| deleted + 1);
    let end = last.map_or(begin, |last| last + 1);
    let (older, newest) = match *next_indexes {
        [] => return 0,
        // A whole log is as good as an older snapshot.
        [newest] => (0, newest),
        [.., older, newest] => (older, newest),
    };
    if begin <= older && newest <= end { older } else { newest }
}

/// A file that is not what was written.
#[derive(Debug)]
pub(super) struct Damaged {
    pub(super) path: PathBuf,
    pub(super) why: SnapshotError,
}

/// The index of the first entry that the snapshot does not contain.
pub(crate) fn next_index(meta: &SnapshotMeta) -> u64 {
    meta.last_log_id.map_or(0, |last| last.index + 1)
}

/// Reads and checks all of a snapshot, from its beginning.
pub(crate) fn read(mut file: File) -> Result<Contents, SnapshotError> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    decode(&bytes)
}

/// Names the content: two snapshots of one id are the same bytes, so a transfer that was begun
/// by one leader may be continued by another.
pub(crate) fn id(meta: &SnapshotMeta, body: &[u8]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(codec::raft::encode_snapshot_meta(&SnapshotMeta {
        snapshot_id: String::new(),
        ..meta.clone()
    }));
    hasher.update(body);
    let digest = hasher.finalize();
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn encode(meta: &SnapshotMeta, body: &[u8]) -> Vec<u8> {
    let meta = codec::raft::encode_snapshot_meta(meta);
    let meta_len = u32::try_from(meta.len()).expect("a membership is far smaller than 4 GiB");
    let mut bytes = Vec::with_capacity(HEADER_BYTES + meta.len() + body.len() + DIGEST_BYTES);
    bytes.extend(MAGIC);
    bytes.push(FORMAT);
    bytes.extend(meta_len.to_be_bytes());
    bytes.extend((body.len() as u64).to_be_bytes());
    bytes.extend(meta);
    bytes.extend(body);
    let digest = Sha256::digest(&bytes);
    bytes.extend(digest);
    bytes
}

pub(super) fn decode(bytes: &[u8]) -> Result<Contents, SnapshotError> {
    let found = bytes.len() as u64;
    let Some((header, rest)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Err(SnapshotError::Length { expected: HEADER_BYTES as u64, found });
    };
    if &header[..8] != MAGIC {
        return Err(SnapshotError::Magic);
    }
    if header[8] != FORMAT {
        return Err(SnapshotError::Format(header[8]));
    }
    let meta_len = u64::from(u32::from_be_bytes(header[9..13].try_into().expect("four bytes")));
    let body_len = u64::from_be_bytes(header[13..21].try_into().expect("eight bytes"));
    let expected = body_len.saturating_add(meta_len + (HEADER_BYTES + DIGEST_BYTES) as u64);
    if expected != found {
        return Err(SnapshotError::Length { expected, found });
    }
    let (content, digest) = bytes.split_at(bytes.len() - DIGEST_BYTES);
    if Sha256::digest(content).as_slice() != digest {
        return Err(SnapshotError::Digest);
    }
    let meta_len = usize::try_from(meta_len).expect("no longer than the bytes in memory");
    let (meta, body) = rest[..rest.len() - DIGEST_BYTES].split_at(meta_len);
    let meta = codec::raft::decode_snapshot_meta(meta).map_err(SnapshotError::Meta)?;
    Ok(Contents { meta, body: body.to_vec() })
}

#[cfg(test)]
mod tests;
