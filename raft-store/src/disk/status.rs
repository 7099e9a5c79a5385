//! What the rest of the node may ask about the disk, at any time and from any thread.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::sys::statvfs::statvfs;
use tokio::sync::watch;

use super::StoreOptions;

/// Called by the writer thread with the time each log sync took; must not block.
#[derive(Clone)]
pub struct FsyncObserver(pub Arc<dyn Fn(Duration) + Send + Sync>);

/// Cheap to clone. Does not keep the store open.
#[derive(Clone, Debug)]
pub struct StoreStatus {
    shared: Arc<Shared>,
    closed: watch::Receiver<()>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    free_space_min_bytes: u64,
    snapshot_every_bytes: u64,
    /// Bytes appended since the last snapshot.
    log_bytes: AtomicU64,
    poisoned: watch::Sender<Option<Arc<str>>>,
}

impl StoreStatus {
    pub(super) fn new(dir: &Path, options: &StoreOptions, closed: watch::Receiver<()>) -> Self {
        let shared = Shared {
            dir: dir.to_owned(),
            free_space_min_bytes: options.free_space_min_bytes,
            snapshot_every_bytes: options.snapshot_every_bytes,
            log_bytes: AtomicU64::new(0),
            poisoned: watch::Sender::new(None),
        };
        Self { shared: Arc::new(shared), closed }
    }

    /// What the log and the snapshots occupy.
    pub fn size_bytes(&self) -> io::Result<u64> {
        size_of(&self.shared.dir)
    }

    /// What an unprivileged process may still write to this filesystem.
    pub fn free_bytes(&self) -> io::Result<u64> {
        free_bytes(&self.shared.dir)
    }

    /// Asked before proposing a change. `false` below `StoreOptions::free_space_min_bytes`, and when nobody
    /// can tell: followers and Raft itself still need to write, so the last bytes are not for new changes.
    pub fn has_room(&self) -> bool {
        self.free_bytes().is_ok_and(|free| free >= self.shared.free_space_min_bytes)
    }

    /// The log has grown by `StoreOptions::snapshot_every_bytes` since the last snapshot: time for
    /// `raft.trigger().snapshot()`. openraft itself counts entries only.
    pub fn wants_snapshot(&self) -> bool {
        self.shared.log_bytes.load(Ordering::Relaxed) >= self.shared.snapshot_every_bytes
    }

    /// `Some(why)` after the first write or sync that failed. From then on every operation fails, and the
    /// process has to exit: after a failed fsync nobody knows what the page cache still holds.
    pub fn poisoned(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.shared.poisoned.subscribe()
    }

    /// Returns when the directory is unlocked: all parts of the store were dropped and written out.
    pub async fn closed(&self) {
        let mut closed = self.closed.clone();
        while closed.changed().await.is_ok() {}
    }

    pub(crate) fn poison(&self, why: &dyn fmt::Display) -> Arc<str> {
        let mut first = None;
        self.shared.poisoned.send_if_modified(|poisoned| {
            let fresh = poisoned.is_none();
            first = Some(poisoned.get_or_insert_with(|| why.to_string().into()).clone());
            fresh
        });
        first.expect("set by the closure")
    }

    pub(crate) fn poison_reason(&self) -> Option<Arc<str>> {
        self.shared.poisoned.borrow().clone()
    }

    pub(super) fn log_grew(&self, bytes: u64) {
        self.shared.log_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn log_bytes(&self) -> u64 {
        self.shared.log_bytes.load(Ordering::Relaxed)
    }

    /// A snapshot now covers `bytes` of what `log_bytes` had counted.
    pub(crate) fn log_covered(&self, bytes: u64) {
        self.shared.log_bytes.fetch_sub(bytes.min(self.log_bytes()), Ordering::Relaxed);
    }
}

pub(super) fn free_bytes(dir: &Path) -> io::Result<u64> {
    let stat = statvfs(dir)?;
    Ok(stat.blocks_available() * stat.fragment_size())
}

fn size_of(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in dir.read_dir()? {
        let entry = entry?;
        bytes += match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size_of(&entry.path())?,
            Ok(metadata) => metadata.len(),
            // Snapshots come and go.
            Err(err) if err.kind() == io::ErrorKind::NotFound => 0,
            Err(err) => return Err(err),
        };
    }
    Ok(bytes)
}

impl fmt::Debug for FsyncObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FsyncObserver")
    }
}
