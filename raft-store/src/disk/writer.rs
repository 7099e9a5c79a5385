//! The thread that writes: log, vote and mark, in the order they were asked for.
//!
//! It drains its bounded queue, stages every append it found, syncs once, and only then
//! acknowledges them all. After one error the store is poisoned: nothing is tried again, because a
//! second fsync may succeed without having written what the first one failed on.
//!
//! # The mark
//!
//! sled can come back empty or shorter without an error. The mark, kept outside of it, says how far the
//! log reached. Syncing it with every append would double the cost of a write, so it is
//! - *written* to the page cache before each acknowledgement: exact whenever only the process died;
//! - *synced* before a vote is saved, when a snapshot is installed, after `MARK_ENTRIES_MAX` entries or
//!   `MARK_AGE_MAX`, and as soon as nothing has been asked for `MARK_IDLE`: after a power cut it lags by at
//!   most that.
//!
//! So a log that came back without entries the mark knows of is refused when it is opened, and never votes.
//! Not seen is only this: a power cut together with a disk that lied about the tail of a burst, by less than the bounds
//! above. An empty log is always seen, because its owner's name is in it. Truncation lowers the mark durably
//! *before* it deletes, a purge does not change it (what was purged counts as present).

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch},
    time::Instant,
};

use super::{
    DirLock, FsyncObserver, StoreStatus,
    engine::{EngineError, EngineWriter},
    record::{MarkRecord, NodeRecord},
    slots::{SlotError, Slots},
};
use crate::types::{LogId, Vote};

/// Operations that wait for the writer; whoever comes later waits for a place.
const QUEUE_MAX: usize = 64;
const MARK_ENTRIES_MAX: u64 = 256;
const MARK_AGE_MAX: Duration = Duration::from_millis(200);
const MARK_IDLE: Duration = Duration::from_millis(5);

/// The store is poisoned, for this reason. Raft stops, and so must the process.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the store failed and accepts nothing any more: {0}")]
pub(crate) struct Poisoned(pub(crate) Arc<str>);

/// Hands operations to the writer thread, which ends when the last handle is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    ops: SyncSender<Queued>,
    permits: Arc<Semaphore>,
    state: Arc<State>,
}

/// What both sides look at.
#[derive(Debug)]
pub(crate) struct State {
    view: Mutex<View>,
    /// Entries below this index may be deleted: a durable snapshot, and the one before it, have them.
    floor: watch::Sender<u64>,
    wake_queued: AtomicBool,
    pub(crate) status: StoreStatus,
}

/// The log as Raft sees it. All of it is durable, but for `purged` and `committed`, which need not be.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    /// Entries up to here are hidden. They are deleted when `floor` allows it: openraft purges what an
    /// incoming snapshot covers while that snapshot is still being written, and a crash at that
    /// moment must not find the one gone and the other incomplete.
    pub(crate) purged: Option<LogId>,
    /// Entries up to here are gone.
    pub(crate) deleted: Option<LogId>,
    /// The last entry that is there, hidden or not.
    pub(crate) last: Option<LogId>,
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
}

#[derive(Debug)]
pub(crate) enum Op {
    Append {
        entries: Vec<(u64, Vec<u8>)>,
        last: LogId,
    },
    /// Deletes from this index on.
    Truncate {
        since: u64,
    },
    Vote(Vote),
    /// A snapshot up to this index was installed and is about to be acknowledged.
    Installed {
        index: u64,
    },
}

#[derive(Debug)]
enum Queued {
    Op {
        op: Op,
        done: oneshot::Sender<Result<(), Poisoned>>,
        _place: OwnedSemaphorePermit,
    },
    /// `purged`, `committed` or `floor` has changed.
    Wake,
}

/// What the thread owns.
pub(super) struct Parts {
    pub(super) engine: EngineWriter,
    pub(super) node: Slots<NodeRecord>,
    pub(super) node_record: NodeRecord,
    pub(super) mark: Slots<MarkRecord>,
    pub(super) mark_record: MarkRecord,
    pub(super) on_fsync: Option<FsyncObserver>,
    /// Last: unlocked after everything above was dropped.
    pub(super) _lock: Arc<DirLock>,
}

struct Thread {
    parts: Parts,
    state: Arc<State>,
    unsynced: u64,
    /// Since when the mark on disk is behind; `None` when it is not.
    mark_dirty_since: Option<Instant>,
}

/// Appends of one cycle that wait for their common sync.
#[derive(Default)]
struct Staged {
    entries: Vec<(u64, Vec<u8>)>,
    last: Option<LogId>,
    acks: Vec<Done>,
}

#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error("write the log: {0}")]
    Log(#[from] EngineError),
    #[error("write a record: {0}")]
    Slot(#[from] SlotError),
}

type Done = oneshot::Sender<Result<(), Poisoned>>;

impl Writer {
    pub(super) fn spawn(parts: Parts, view: View, floor: u64, status: StoreStatus) -> std::io::Result<Self> {
        // One place more than permits, for the one `Wake` that may be queued.
        let (ops, queue) = sync_channel(QUEUE_MAX + 1);
        let state = Arc::new(State {
            view: Mutex::new(view),
            floor: watch::Sender::new(floor),
            wake_queued: AtomicBool::new(false),
            status,
        });
        let thread = Thread { parts, state: state.clone(), unsynced: 0, mark_dirty_since: None };
        std::thread::Builder::new().name("flotilla-store".to_owned()).spawn(move || thread.run(&queue))?;
        Ok(Self { ops, permits: Arc::new(Semaphore::new(QUEUE_MAX)), state })
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Returns when the operation is durable.
    pub(crate) async fn write(&self, op: Op) -> Result<(), Poisoned> {
        let place = self.permits.clone().acquire_owned().await.expect("never closed");
        let (done, result) = oneshot::channel();
        match self.ops.try_send(Queued::Op { op, done, _place: place }) {
            Ok(()) => result.await.unwrap_or_else(|_| Err(self.state.writer_died())),
            Err(TrySendError::Full(_)) => unreachable!("as many places as permits"),
            Err(TrySendError::Disconnected(_)) => Err(self.state.writer_died()),
        }
    }

    /// Hides entries now, and deletes them when a snapshot allows it.
    pub(crate) fn purge(&self, upto: LogId) {
        self.state.view().purged = Some(upto);
        self.wake();
    }

    /// Not synced on its own: a power cut may bring an older one back, which only means that fewer
    /// entries are applied again before a leader is found.
    pub(crate) fn save_committed(&self, committed: Option<LogId>) {
        self.state.view().committed = committed;
        self.wake();
    }

    pub(crate) fn raise_floor(&self, floor: u64) {
        self.state.floor.send_if_modified(|current| {
            let raise = *current < floor;
            *current = floor.max(*current);
            raise
        });
        self.wake();
    }

    /// Returns when the log may go on after `purged` though the entries before it are not there.
    pub(crate) async fn purge_allowed(&self, purged: &LogId) -> Result<(), Poisoned> {
        let mut floor = self.state.floor.subscribe();
        let mut poisoned = self.state.status.poisoned();
        // Both arms only look at watches, so the one that is dropped has lost nothing.
        tokio::select! {
            _ = floor.wait_for(|floor| *floor > purged.index) => Ok(()),
            _ = poisoned.wait_for(Option::is_some) => self.state.check(),
        }
    }

    fn wake(&self) {
        if !self.state.wake_queued.swap(true, Ordering::AcqRel) {
            // A thread that is gone needs no waking.
            let _gone = self.ops.try_send(Queued::Wake);
        }
    }
}

impl State {
    /// Never held across anything that waits.
    pub(crate) fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn check(&self) -> Result<(), Poisoned> {
        self.status.poison_reason().map_or(Ok(()), |why| Err(Poisoned(why)))
    }

    pub(crate) fn poison(&self, why: &dyn std::fmt::Display) -> Poisoned {
        Poisoned(self.status.poison(why))
    }

    fn writer_died(&self) -> Poisoned {
        self.poison(&"the thread that writes the log has died")
    }
}

impl Thread {
    fn run(mut self, queue: &Receiver<Queued>) {
        loop {
            let first = match self.mark_dirty_since {
                None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(_) => queue.recv_timeout(MARK_IDLE),
            };
            match first {
                Ok(first) => self.cycle(std::iter::once(first).chain(queue.try_iter().take(QUEUE_MAX))),
                Err(RecvTimeoutError::Timeout) => self.guard(Self::sync_mark).unwrap_or_default(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        // After an orderly end both slots are up to date.
        self.guard(|thread| Ok(thread.parts.mark.save_both(&thread.parts.mark_record)?)).unwrap_or_default();
    }

    fn cycle(&mut self, queued: impl Iterator<Item = Queued>) {
        let mut staged = Staged::default();
        let mut places = Vec::new();
        for queued in queued {
            let Queued::Op { op, done, _place: place } = queued else {
                // Reset before the state is read: whoever changes it from now on queues another one.
                self.state.wake_queued.store(false, Ordering::Release);
                self.append(std::mem::take(&mut staged));
                // In its turn: the append behind it may go on where the purge ends.
                self.guard(Self::purge).unwrap_or_default();
                continue;
            };
            places.push(place);
            if let Op::Append { entries, last } = op {
                staged.entries.extend(entries);
                staged.last = Some(last);
                staged.acks.push(done);
                continue;
            }
            self.append(std::mem::take(&mut staged));
            let result = self.guard(|thread| match op {
                Op::Append { .. } => unreachable!("staged above"),
                Op::Truncate { since } => thread.truncate(since),
                Op::Vote(vote) => thread.vote(&vote),
                Op::Installed { index } => thread.installed(index),
            });
            acknowledge([done], &result);
        }
        self.append(staged);
        self.guard(Self::keep_mark).unwrap_or_default();
    }

    /// Runs `write` unless the store is poisoned, and poisons it when `write` fails.
    fn guard(&mut self, write: impl FnOnce(&mut Self) -> Result<(), WriteError>) -> Result<(), Poisoned> {
        self.state.check()?;
        write(self).map_err(|err| {
            tracing::error!(error = %err, "store failed");
            self.state.poison(&err)
        })
    }

    /// However many there are: one batch, one sync, one answer.
    fn append(&mut self, Staged { entries, last, acks }: Staged) {
        let Some(last) = last else { return };
        let result = self.guard(|thread| {
            thread.parts.engine.append(&entries)?;
            thread.sync_log()?;
            thread.parts.mark_record.last = thread.parts.mark_record.last.max(Some(last.index));
            thread.unsynced += entries.len() as u64;
            thread.put_mark()?;
            thread.state.status.log_grew(entries.iter().map(|(_, entry)| entry.len() as u64).sum());
            thread.state.view().last = Some(last);
            Ok(())
        });
        acknowledge(acks, &result);
    }

    fn truncate(&mut self, since: u64) -> Result<(), WriteError> {
        let mark = &mut self.parts.mark_record;
        mark.last = mark.last.and_then(|last| Some(last.min(since.checked_sub(1)?)));
        // In both slots: the older one would still ask for what is deleted next.
        self.parts.mark.save_both(&self.parts.mark_record)?;
        self.mark_synced();
        self.parts.engine.truncate(since)?;
        let last = match since.checked_sub(1) {
            Some(index) => self.parts.engine.reader().log_id(index)?,
            None => None,
        };
        self.state.view().last = last;
        Ok(())
    }

    /// The mark first: whoever hears of the vote hears it from a node that knows how much it has acknowledged.
    fn vote(&mut self, vote: &Vote) -> Result<(), WriteError> {
        if self.mark_dirty_since.is_some() {
            self.sync_mark()?;
        }
        self.parts.node_record.set_vote(vote);
        self.parts.node.save_both(&self.parts.node_record)?;
        self.state.view().vote = Some(*vote);
        Ok(())
    }

    fn installed(&mut self, index: u64) -> Result<(), WriteError> {
        self.parts.mark_record.last = self.parts.mark_record.last.max(Some(index));
        self.put_mark()?;
        self.sync_mark()
    }

    /// Deletes what is hidden, as far as `floor` allows.
    fn purge(&mut self) -> Result<(), WriteError> {
        let View { purged, deleted, .. } = self.state.view().clone();
        let Some(wanted) = purged else { return Ok(()) };
        let Some(allowed) = self.state.floor.borrow().checked_sub(1) else { return Ok(()) };
        if deleted.is_some_and(|deleted| deleted.index >= wanted.index.min(allowed)) {
            return Ok(());
        }
        let upto = match wanted.index <= allowed {
            true => Some(wanted),
            false => self.parts.engine.reader().log_id(allowed)?,
        };
        // A log that begins above the floor has nothing to delete below it.
        let Some(upto) = upto else { return Ok(()) };
        self.parts.engine.purge(&upto)?;
        let mut view = self.state.view();
        view.deleted = Some(upto);
        view.last = view.last.filter(|last| last.index > upto.index);
        Ok(())
    }

    /// After the acknowledgements: what the mark needs does not make anybody wait.
    fn keep_mark(&mut self) -> Result<(), WriteError> {
        let committed = self.state.view().committed;
        let before = self.parts.mark_record.committed.clone();
        self.parts.mark_record.set_committed(committed.as_ref());
        if before != self.parts.mark_record.committed {
            self.parts.mark.put(&self.parts.mark_record)?;
        }
        let old = self.mark_dirty_since.is_some_and(|since| since.elapsed() >= MARK_AGE_MAX);
        if old || self.unsynced >= MARK_ENTRIES_MAX {
            self.sync_mark()?;
        }
        Ok(())
    }

    fn put_mark(&mut self) -> Result<(), WriteError> {
        self.parts.mark.put(&self.parts.mark_record)?;
        self.mark_dirty_since.get_or_insert_with(Instant::now);
        Ok(())
    }

    fn sync_mark(&mut self) -> Result<(), WriteError> {
        self.parts.mark.sync()?;
        self.mark_synced();
        Ok(())
    }

    fn mark_synced(&mut self) {
        self.unsynced = 0;
        self.mark_dirty_since = None;
    }

    fn sync_log(&self) -> Result<(), WriteError> {
        let started = Instant::now();
        self.parts.engine.sync()?;
        if let Some(FsyncObserver(observe)) = &self.parts.on_fsync {
            observe(started.elapsed());
        }
        Ok(())
    }
}

impl Drop for Thread {
    /// Also runs when sled panics: nobody may wait for a thread that is gone.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.state.poison(&"the thread that writes the log panicked");
        }
    }
}

fn acknowledge(acks: impl IntoIterator<Item = Done>, result: &Result<(), Poisoned>) {
    for ack in acks {
        // Whoever no longer waits has lost interest, not data.
        let _gone = ack.send(result.clone());
    }
}
