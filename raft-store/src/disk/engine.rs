//! sled, with what it needs to be safe. The only file that knows sled.
//!
//! sled 0.34.7 calls its data durable after `sync_file_range`, which does not commit a file's size
//! or extents: in simulated power cuts 15 of 20 stores would not open again. With an `fdatasync` of our
//! own after each flush 0 of 77 were bad. `sync` does both, and nothing counts as stored before it returns.
//!
//! Not in here: who calls it when (`writer`), and what an entry means (`log`).

use std::{fs::File, io, ops::Range, path::Path};

use super::{
    OpenError,
    chunk::{self, Damage, Joiner},
    open::undecodable,
    sync_dir,
};
use crate::{codec, types::LogId};

const CACHE_BYTES: u64 = 32 << 20;
const PURGED: &[u8] = b"purged";
/// Says whose log this is: a log that was swapped, or that sled lost whole, does not have it.
const OWNER: &[u8] = b"owner";
/// Keys deleted by one sled batch, give or take one entry.
const DELETE_BATCH: usize = 1_024;

#[derive(Clone, Debug)]
pub(crate) struct Engine {
    db: sled::Db,
}

/// The only one that writes.
#[derive(Debug)]
pub(crate) struct EngineWriter {
    engine: Engine,
    /// Our own handle of sled's file.
    file: File,
}

/// What a scan of the whole log found. All checksums were right and no index was missing.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) owner: Option<Vec<u8>>,
    pub(crate) purged: Option<LogId>,
    pub(crate) first: Option<u64>,
    pub(crate) last: Option<LogId>,
    pub(crate) bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    #[error(transparent)]
    Sled(#[from] sled::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Damage(#[from] Damage),
    #[error("log entry {index} cannot be decoded: {source}")]
    Decode { index: u64, source: codec::DecodeError },
    #[error("the log jumps from entry {from} to entry {to}")]
    Hole { from: u64, to: u64 },
    #[error("sled wrote {0}, which it never syncs")]
    Blob(String),
}

impl EngineWriter {
    /// May panic or never return, on a damaged file: the caller runs it in a thread of its own.
    pub(crate) fn open(dir: &Path) -> Result<Self, EngineError> {
        remove_unfinished_snapshots(dir)?;
        let db = sled::Config::new()
            .path(dir)
            .mode(sled::Mode::LowSpace)
            .cache_capacity(CACHE_BYTES)
            // A flush that nobody waits for would hide its error.
            .flush_every_ms(None)
            .open()?;
        let file = File::open(dir.join("db"))?;
        refuse_blobs(dir)?;
        Ok(Self { engine: Engine { db }, file })
    }

    pub(crate) fn reader(&self) -> Engine {
        self.engine.clone()
    }

    /// The files that sled made are durable, and found after a power cut.
    pub(crate) fn sync_creation(&self, dir: &Path, owner: &[u8]) -> Result<(), EngineError> {
        self.engine.db.insert(OWNER, owner)?;
        self.sync()?;
        for name in ["db", "conf"] {
            File::open(dir.join(name))?.sync_all()?;
        }
        sync_dir(&dir.join("blobs"))?;
        sync_dir(dir)?;
        Ok(())
    }

    pub(crate) fn append(&self, entries: &[(u64, Vec<u8>)]) -> Result<(), EngineError> {
        let mut batch = sled::Batch::default();
        for (key, value) in entries.iter().flat_map(|(index, entry)| chunk::split(*index, entry)) {
            batch.insert(&key, value);
        }
        Ok(self.engine.db.apply_batch(batch)?)
    }

    pub(crate) fn sync(&self) -> Result<(), EngineError> {
        self.engine.db.flush()?;
        Ok(self.file.sync_data()?)
    }

    /// Deletes from the end towards `since`: a crash in between leaves a shorter log and no hole.
    pub(crate) fn truncate(&self, since: u64) -> Result<(), EngineError> {
        let db = &self.engine.db;
        let keys = db.range(chunk::keys(since..u64::MAX)).keys().rev();
        delete(db, keys)?;
        self.sync()
    }

    /// Says durably that everything up to `upto` is gone, then lets it go.
    pub(crate) fn purge(&self, upto: &LogId) -> Result<(), EngineError> {
        self.engine.db.insert(PURGED, codec::raft::encode_log_id(upto))?;
        self.sync()?;
        self.delete_purged(upto)
    }

    /// Not synced: what comes back after a crash is deleted again when the log is opened.
    fn delete_purged(&self, upto: &LogId) -> Result<(), EngineError> {
        let db = &self.engine.db;
        delete(db, db.range(chunk::keys(0..upto.index + 1)).keys())
    }

    /// Checks every byte of the log.
    pub(crate) fn scan(&self) -> Result<Scan, EngineError> {
        let db = &self.engine.db;
        let mut scan = Scan { owner: db.get(OWNER)?.map(|owner| owner.to_vec()), ..Scan::default() };
        if let Some(bytes) = db.get(PURGED)? {
            let upto = codec::raft::decode_log_id(&bytes)
                .map_err(|source| EngineError::Decode { index: 0, source })?;
            self.delete_purged(&upto)?;
            scan.purged = Some(upto);
        }
        let mut last = None;
        self.engine.each(0..u64::MAX, |index, entry| {
            if let Some((from, _)) = last.replace((index, entry)).filter(|(from, _)| from + 1 != index) {
                return Err(EngineError::Hole { from, to: index });
            }
            scan.first.get_or_insert(index);
            scan.bytes += last.as_ref().map_or(0, |(_, entry)| entry.len() as u64);
            Ok(true)
        })?;
        if let Some((index, entry)) = last {
            let entry =
                codec::raft::decode_entry(&entry).map_err(|source| EngineError::Decode { index, source })?;
            scan.last = Some(entry.log_id);
        }
        Ok(scan)
    }
}

impl Engine {
    /// Calls `visit` with each entry until it returns `false`.
    pub(crate) fn each(
        &self,
        indexes: Range<u64>,
        mut visit: impl FnMut(u64, Vec<u8>) -> Result<bool, EngineError>,
    ) -> Result<(), EngineError> {
        let mut joiner = Joiner::default();
        for pair in self.db.range(chunk::keys(indexes)) {
            let (key, value) = pair?;
            if let Some((index, entry)) = joiner.feed(&key, &value)?
                && !visit(index, entry)?
            {
                return Ok(());
            }
        }
        Ok(joiner.finish()?)
    }

    pub(crate) fn log_id(&self, index: u64) -> Result<Option<LogId>, EngineError> {
        let mut found = None;
        self.each(index..index + 1, |index, entry| {
            let entry =
                codec::raft::decode_entry(&entry).map_err(|source| EngineError::Decode { index, source })?;
            found = Some(entry.log_id);
            Ok(false)
        })?;
        Ok(found)
    }
}

impl EngineError {
    /// Tells a disk that says no from data that do.
    pub(crate) fn into_open_error(self) -> OpenError {
        match self {
            // How sled meets a file that is shorter than it should be.
            Self::Sled(sled::Error::Io(err)) if err.kind() == io::ErrorKind::UnexpectedEof => {
                OpenError::Lost { why: format!("its log is cut off: {err}") }
            }
            Self::Io(err) | Self::Sled(sled::Error::Io(err)) => OpenError::Io(err),
            Self::Decode { index, source } => undecodable(&format!("log entry {index}"), source),
            Self::Damage(damage @ Damage::Format { .. }) => OpenError::Newer { what: damage.to_string() },
            err => OpenError::Lost { why: err.to_string() },
        }
    }
}

fn delete(db: &sled::Tree, keys: impl Iterator<Item = sled::Result<sled::IVec>>) -> Result<(), EngineError> {
    let mut batch = sled::Batch::default();
    let mut batched = 0;
    for key in keys {
        let key = key?;
        let (_, part) = chunk::parse_key(&key)?;
        batch.remove(key);
        batched += 1;
        // From the end part 0 comes last, so a batch never leaves half an entry behind.
        if batched >= DELETE_BATCH && part == 0 {
            db.apply_batch(std::mem::take(&mut batch))?;
            batched = 0;
        }
    }
    Ok(db.apply_batch(batch)?)
}

/// A crash while sled writes `snap.<lsn>.generating` leaves an empty file that its next open takes
/// for the newest snapshot, and then calls the store corrupt.
fn remove_unfinished_snapshots(dir: &Path) -> io::Result<()> {
    let entries = match dir.read_dir() {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(err) => return Err(err),
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// A blob file would hold part of the log without ever having been synced.
fn refuse_blobs(dir: &Path) -> Result<(), EngineError> {
    match dir.join("blobs").read_dir()?.next() {
        Some(blob) => Err(EngineError::Blob(blob?.path().display().to_string())),
        None => Ok(()),
    }
}
