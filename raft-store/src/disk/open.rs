//! Making a store and opening it again: what must be true before a node may take part in Raft.
//!
//! The checks are one pure function, `judge`. sled may panic or never return on a damaged file, so all
//! of it runs in a thread that can be given up.

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

use super::{
    DirLock, FsyncObserver, Identity, Opened, StoreStatus,
    engine::{EngineError, EngineWriter, Scan},
    record::{MARK, MARK_FORMAT, MarkRecord, NODE, NODE_FORMAT, NodeRecord},
    slots::{SlotError, Slots},
    snapshot::{Damaged, SnapshotError, Snapshots},
    status, sync_dir,
    writer::{Parts, View, Writer},
};
use crate::{
    ClusterId,
    codec::DecodeError,
    log::LogStore,
    state_machine::{State, StateMachine},
    types::LogId,
};

/// Below this much free space a store is not opened: sled itself writes while it opens, and what it
/// leaves behind on a full disk it takes for corruption later.
const OPEN_SPACE_MIN_BYTES: u64 = 4 << 20;
/// How long sled's own lock may outlive a store that this process has just closed.
const SLED_LOCK_WAIT: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The directory must belong to this cluster, if given.
    pub cluster: Option<ClusterId>,
    /// After this long the store counts as lost.
    pub open_deadline: Duration,
    /// Below this, `StoreStatus::has_room` is false.
    pub free_space_min_bytes: u64,
    /// So many bytes of log after a snapshot, `StoreStatus::wants_snapshot` is true.
    pub snapshot_every_bytes: u64,
    pub on_fsync: Option<FsyncObserver>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            cluster: None,
            open_deadline: Duration::from_secs(30),
            free_space_min_bytes: 64 << 20,
            snapshot_every_bytes: 32 << 20,
            on_fsync: None,
        }
    }
}

/// Why there is no store. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "the data directory {} is in use by {}: stop it, or choose another directory",
        dir.display(),
        pid.map_or("another process".to_owned(), |pid| format!("process {pid}"))
    )]
    Locked { dir: PathBuf, pid: Option<u32> },
    #[error("there is no store in {}: make or join a cluster first", dir.display())]
    Absent { dir: PathBuf },
    #[error("{} already holds node {} of cluster {}: choose another directory", dir.display(), identity.node, identity.cluster)]
    Exists { dir: PathBuf, identity: Box<Identity> },
    /// The node may have acknowledged what it no longer has. Under its old id it must never vote again.
    #[error(
        "the store is lost: {why}. Move the data directory away and join the cluster again; the node \
         gets a new id, then remove the old one"
    )]
    Lost { why: String },
    #[error("the data directory belongs to cluster {found}, not to {expected}: choose another directory")]
    OtherCluster { found: ClusterId, expected: ClusterId },
    #[error("the store was written by a newer version ({what}): start that version again")]
    Newer { what: String },
    #[error("{} has {free} bytes free and opening the store needs {needed}: free some space", dir.display())]
    NoSpace { dir: PathBuf, free: u64, needed: u64 },
    #[error("the disk refuses: {0}. Nothing is known to be lost; repair it and start again")]
    Io(#[from] io::Error),
}

/// The two ways to get an `Opened`.
#[derive(Debug)]
pub enum Store {}

impl Store {
    /// Who lives in `dir`, without opening or locking it. `None` when nobody does.
    pub fn read_identity(dir: &Path) -> Result<Option<Identity>, OpenError> {
        match Slots::<NodeRecord>::read(dir, NODE, NODE_FORMAT) {
            Ok(record) => Ok(Some(record.identity())),
            Err(SlotError::Absent(_)) => {
                refuse_orphaned_log(dir)?;
                Ok(None)
            }
            Err(err) => Err(err.into()),
        }
    }

    /// Makes a new store. What an earlier creation that did not finish has left is removed.
    pub async fn create(dir: &Path, identity: &Identity, options: StoreOptions) -> Result<Opened, OpenError> {
        let (dir, identity) = (dir.to_owned(), identity.clone());
        in_thread(options.open_deadline, move || create(&dir, &identity, options)).await
    }

    pub async fn open(dir: &Path, options: StoreOptions) -> Result<Opened, OpenError> {
        let dir = dir.to_owned();
        in_thread(options.open_deadline, move || open(&dir, options)).await
    }
}

/// A thread that hangs is left to itself: the caller is told that the store is lost, and exits.
async fn in_thread(
    deadline: Duration,
    work: impl FnOnce() -> Result<Opened, OpenError> + Send + 'static,
) -> Result<Opened, OpenError> {
    let (result, opened) = oneshot::channel();
    std::thread::Builder::new().name("flotilla-open".to_owned()).spawn(move || {
        let opened = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            Err(OpenError::Lost { why: format!("opening it panicked: {}", panic_text(&*panic)) })
        });
        // Dropped, and thereby closed, if the deadline has passed.
        let _late = result.send(opened);
    })?;
    match tokio::time::timeout(deadline, opened).await {
        Ok(opened) => opened.expect("the thread always answers"),
        Err(_) => {
            Err(OpenError::Lost { why: format!("it did not open within {} s", deadline.as_secs_f32()) })
        }
    }
}

fn create(dir: &Path, identity: &Identity, options: StoreOptions) -> Result<Opened, OpenError> {
    std::fs::create_dir_all(dir)?;
    if let Some(parent) = dir.parent().filter(|parent| parent.is_dir()) {
        sync_dir(parent)?;
    }
    let (lock, closed) = DirLock::acquire(dir)?;
    if let Some(identity) = Store::read_identity(dir)? {
        return Err(OpenError::Exists { dir: dir.to_owned(), identity: Box::new(identity) });
    }
    require_space(dir)?;
    for child in [log_dir(dir), snapshot_dir(dir)] {
        match std::fs::remove_dir_all(&child) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err.into()),
            Ok(()) | Err(_) => std::fs::create_dir(&child)?,
        }
    }
    let engine = EngineWriter::open(&log_dir(dir)).map_err(EngineError::into_open_error)?;
    engine.sync_creation(&log_dir(dir), &identity.owner()).map_err(EngineError::into_open_error)?;
    Slots::create(dir, MARK, MARK_FORMAT, &MarkRecord::default())?;
    sync_dir(dir)?;
    // Last: a directory without identity is empty, whatever else is in it.
    Slots::create(dir, NODE, NODE_FORMAT, &NodeRecord::new(identity))?;
    sync_dir(dir)?;
    assemble(dir, options, engine, lock, closed)
}

fn open(dir: &Path, options: StoreOptions) -> Result<Opened, OpenError> {
    let Some(identity) = Store::read_identity(dir)? else {
        return Err(OpenError::Absent { dir: dir.to_owned() });
    };
    if let Some(expected) = options.cluster.clone().filter(|expected| *expected != identity.cluster) {
        return Err(OpenError::OtherCluster { found: identity.cluster, expected });
    }
    let (lock, closed) = DirLock::acquire(dir)?;
    require_space(dir)?;
    if !log_dir(dir).join("db").is_file() {
        return Err(lost("its log is gone"));
    }
    let engine = open_engine(&log_dir(dir))?;
    assemble(dir, options, engine, lock, closed)
}

fn assemble(
    dir: &Path,
    options: StoreOptions,
    engine: EngineWriter,
    lock: DirLock,
    closed: watch::Receiver<()>,
) -> Result<Opened, OpenError> {
    let (node, node_record) = Slots::<NodeRecord>::open(dir, NODE, NODE_FORMAT)?;
    let (mark, mark_record) = Slots::<MarkRecord>::open(dir, MARK, MARK_FORMAT)?;
    let identity = node_record.identity();
    let scan = engine.scan().map_err(EngineError::into_open_error)?;
    let (snapshots, state, damaged) = Snapshots::load(&snapshot_dir(dir))?;
    for Damaged { why, .. } in &damaged {
        if let SnapshotError::Format(_) = why {
            return Err(OpenError::Newer { what: why.to_string() });
        }
    }
    let state_index = state.as_ref().and_then(|state| state.meta.last_log_id).map(|last| last.index);
    let vote = node_record.decode_vote().map_err(|err| undecodable("its vote", err))?;
    let committed = mark_record.decode_committed().map_err(|err| undecodable("its mark", err))?;
    judge(&identity, &mark_record, committed.as_ref(), &scan, state_index).map_err(|why| {
        let snapshots = damaged.iter().map(|Damaged { path, why }| format!("; {}: {why}", path.display()));
        lost(format!("{why}{}", snapshots.collect::<String>()))
    })?;
    for Damaged { path, why } in &damaged {
        tracing::warn!(path = %path.display(), error = %why, "snapshot damaged, going on from the log");
    }
    let state = State::restore(state).map_err(|err| undecodable("its snapshot", err))?;

    let status = StoreStatus::new(dir, &options, closed);
    status.log_grew(scan.bytes);
    let floor = snapshots.floor(scan.purged.as_ref(), scan.last.as_ref());
    let view = View { purged: scan.purged, deleted: scan.purged, last: scan.last, vote, committed };
    let lock = Arc::new(lock);
    let reader = engine.reader();
    let parts = Parts {
        engine,
        node,
        node_record,
        mark,
        mark_record,
        on_fsync: options.on_fsync,
        _lock: lock.clone(),
    };
    let writer = Writer::spawn(parts, view, floor, status.clone())?;
    let log = LogStore::new(reader, writer.clone(), lock.clone());
    let (state_machine, fleet) = StateMachine::new(state, snapshots, writer, lock);
    Ok(Opened { identity, log, state_machine, fleet, status })
}

/// Whether log, mark and snapshot can be those of a node that has forgotten nothing.
///
/// `state` is the index of the newest good snapshot's last entry.
fn judge(
    identity: &Identity,
    mark: &MarkRecord,
    committed: Option<&LogId>,
    scan: &Scan,
    state: Option<u64>,
) -> Result<(), String> {
    match scan.owner.as_deref().map(String::from_utf8_lossy) {
        None => return Err("its log came back empty".to_owned()),
        Some(owner) if owner.as_bytes() != identity.owner() => {
            return Err(format!("its log is that of {owner}"));
        }
        Some(_) => {}
    }
    let purged = scan.purged.map(|purged| purged.index);
    let begin = purged.map_or(0, |purged| purged + 1);
    if let Some(first) = scan.first.filter(|first| *first != begin) {
        return Err(format!("its log begins with entry {first} and not with {begin}"));
    }
    // Purged entries were there; entries in an installed snapshot never had to be.
    let reached = scan.last.map(|last| last.index).max(purged).max(state);
    if let Some(mark) = mark.last.filter(|mark| reached.is_none_or(|reached| reached < *mark)) {
        return Err(match reached {
            None => format!("its log came back empty though it had reached entry {mark}"),
            Some(reached) => format!("its log ends at entry {reached} though it had reached {mark}"),
        });
    }
    if let Some(committed) =
        committed.filter(|committed| reached.is_none_or(|reached| reached < committed.index))
    {
        return Err(format!("its log does not have the committed entry {}", committed.index));
    }
    if state < purged {
        return Err(format!(
            "entries up to {begin} were purged and no good snapshot has them",
            begin = begin - 1
        ));
    }
    Ok(())
}

fn open_engine(dir: &Path) -> Result<EngineWriter, OpenError> {
    let started = Instant::now();
    loop {
        match EngineWriter::open(dir).map_err(EngineError::into_open_error) {
            // Nobody else can have it: the directory is ours. Threads of sled let go a moment late.
            Err(OpenError::Io(err)) if is_sled_lock(&err) && started.elapsed() < SLED_LOCK_WAIT => {
                std::thread::park_timeout(Duration::from_millis(10));
            }
            opened => return opened,
        }
    }
}

fn is_sled_lock(err: &io::Error) -> bool {
    err.to_string().contains("could not acquire lock")
}

fn require_space(dir: &Path) -> Result<(), OpenError> {
    let free = status::free_bytes(dir)?;
    if free < OPEN_SPACE_MIN_BYTES {
        return Err(OpenError::NoSpace { dir: dir.to_owned(), free, needed: OPEN_SPACE_MIN_BYTES });
    }
    Ok(())
}

/// A log that has entries, but no identity: the two slots were deleted, not never written.
fn refuse_orphaned_log(dir: &Path) -> Result<(), OpenError> {
    match Slots::<MarkRecord>::read(dir, MARK, MARK_FORMAT) {
        Err(SlotError::Absent(_)) => Ok(()),
        // A creation that did not finish.
        Ok(MarkRecord { last: None, committed: None }) => Ok(()),
        Ok(MarkRecord { .. }) => Err(lost("its identity and vote are gone")),
        Err(SlotError::Damaged(_)) => Ok(()),
        Err(err) => Err(err.into()),
    }
}

fn log_dir(dir: &Path) -> PathBuf {
    dir.join("log")
}

fn snapshot_dir(dir: &Path) -> PathBuf {
    dir.join("snapshots")
}

fn lost(why: impl Into<String>) -> OpenError {
    OpenError::Lost { why: why.into() }
}

pub(super) fn undecodable(what: &str, err: DecodeError) -> OpenError {
    match err {
        DecodeError::Newer { what: newer } => OpenError::Newer { what: format!("{what}: {newer}") },
        DecodeError::Corrupt { why } => lost(format!("{what} cannot be decoded: {why}")),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

impl From<SlotError> for OpenError {
    fn from(err: SlotError) -> Self {
        match err {
            SlotError::Io(err) => Self::Io(err),
            SlotError::Newer { .. } => Self::Newer { what: err.to_string() },
            SlotError::TooLarge { .. } => {
                Self::Io(io::Error::new(io::ErrorKind::InvalidInput, err.to_string()))
            }
            SlotError::Absent(_) | SlotError::Damaged(_) => lost(err.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
